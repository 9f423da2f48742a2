"""JointTrainer: trains a CNN and prunes it at the same time (RLAL Alg. 1, method.md §2)."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlal_fast import agents, checkpoint, finetune
from rlal_fast._version import __version__
from rlal_fast.alignment import AlignmentPenalty
from rlal_fast.compaction import CompactNetwork, compact, parameter_count
from rlal_fast.data import ImageData
from rlal_fast.env import PruningEnv, Rollout
from rlal_fast.environment_model import EnvironmentModel
from rlal_fast.errors import InputError
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.joint_config import JointConfig
from rlal_fast.latency import measure
from rlal_fast.metrics import MetricsLog, Record
from rlal_fast.recalibration import recalibrate, training_sample
from rlal_fast.replay import ReplayBuffer
from rlal_fast.report import Report
from rlal_fast.run_folder import RunFolder
from rlal_fast.seeds import derived_seed, generator
from rlal_fast.structures import Structures
from rlal_fast.subnet import Subnet
from rlal_fast.weights import EpochResult, WeightTrainer, accuracy


@dataclass(frozen=True, eq=False)
class JointResult:
    """What `fit` returns.

    Attributes:
        network: the compact network, fine-tuned, in eval mode.
        structure: the sub-network of the full model that it was cut from.
        report: the figures.
        metrics: one record per epoch, as in metrics.jsonl.
    """

    network: CompactNetwork
    structure: Subnet
    report: Report
    metrics: list[Record]


class JointTrainer:
    """Trains and prunes `model`.

    Args:
        model: a CNN of the operations in `tracing.py`; trained in place.
        data: train, reward and test splits; test is used once, at the end.
        config: settings.
        folder: where to write metrics and checkpoints; a checkpoint found there is resumed.
        arch: name for the report.
        on_epoch: told each epoch's record.
        on_batch: told (batches done, batches in all) within an epoch of weights.

    Raises:
        InputError: the model cannot be pruned, does not fit the data, or cannot reach the budget.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        config: JointConfig | None = None,
        *,
        folder: RunFolder | str | os.PathLike[str] | None = None,
        arch: str | None = None,
        on_epoch: Callable[[Record], None] | None = None,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> None:
        if not isinstance(data, ImageData):
            raise InputError(
                f"data must be an rlal_fast.ImageData, not {type(data).__name__}: make one by "
                "ImageData.from_tensors(train=(images, labels), test=(images, labels))"
            )
        self.model, self.data = model, data
        self.config = config = config or JointConfig()
        self.folder = (
            RunFolder(os.fspath(folder)) if isinstance(folder, str | os.PathLike) else folder
        )
        self.arch = arch or type(model).__name__
        self.on_epoch, self.on_batch = on_epoch, on_batch
        self.graph = PrunableGraph.trace(
            model,
            torch.zeros(1, *data.image_shape),
            groups=config.groups,
            include=config.include,
            exclude=config.exclude,
        )
        self._check_model()
        self.budget = Budget(
            self.graph.cost,
            config.pruned_flops,
            a_max=config.a_max,
            min_width=config.min_width,
            round_to=config.round_to,
        )
        self.recalibration = training_sample(data, config.bn_recalibrate, config.seed)
        rewarded = data.normalised(data.reward), data.reward.labels
        self.evaluator = Evaluator(self.graph, *rewarded, config.evaluator, self.recalibration)
        self.env = PruningEnv(self.graph, self.budget, self.evaluator, config.importance)
        self.weights = WeightTrainer(
            model, data, config.weights, epochs=config.epochs, seed=config.seed, purpose="joint"
        )
        self._make_learners()
        self.structures = Structures(config.structures)
        self.seconds = {"total": 0.0, "weights": 0.0, "episodes": 0.0, "agent": 0.0}
        self._since = time.perf_counter()  # up to here `total` counts
        self.epoch = self.episodes = 0
        self.log = MetricsLog(None, [])

    def _check_model(self) -> None:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        if device.type != "cpu":
            raise InputError(f"the model is on {device}; training runs on the CPU: use model.cpu()")
        outputs = self.graph.nodes[-1].shape[0]
        if outputs != self.data.num_classes:
            raise InputError(
                f"the network has {outputs} outputs, the data set {self.data.num_classes} classes"
            )
        if not self.graph.groups:
            raise InputError("the network has no group that can be pruned; try groups='all'")
        self.graph.importance(self.config.importance)  # what cannot rank it fails now, not later

    def _make_learners(self) -> None:
        config, groups, size = self.config, len(self.graph.groups), PruningEnv.state_size
        self.environment: EnvironmentModel | None = None
        if config.epoch_embedding:
            seed = derived_seed(config.seed, "environment model")
            self.environment = EnvironmentModel(size, config.environment, seed)
        self.agent = agents.create(
            config.agent,
            size,
            self.environment.z_size if self.environment else 0,
            config.sac,
            derived_seed(config.seed, "agent"),
            uniform_ratio=self.budget.uniform_ratio(),
        )
        self.random_agent = agents.RandomAgent(config.a_max)
        capacity = config.total_epochs * config.episodes_per_epoch
        self.replay = ReplayBuffer(capacity, groups, size)

    # -- the algorithm -----------------------------------------------------------------------------

    def fit(self) -> JointResult:
        """Runs what is left: joint epochs, pruning, fine-tuning, report."""
        state = checkpoint.load(self.folder) if self.folder is not None else None
        self.log = MetricsLog(self.folder, state["records"] if state else self.log.records)
        self._since = time.perf_counter()
        tuning = None
        try:
            if state:
                self._restore(state["joint"])
                if self.epoch == self.config.total_epochs:  # else the structure may still change
                    tuning = state["finetune"]
            while self.epoch < self.config.total_epochs:
                self._finish_epoch(self._joint_epoch(self.epoch))
            return self._prune_and_finetune(tuning)
        finally:
            self.log.close()

    def _joint_epoch(self, epoch: int) -> Record:
        """One turn of RLAL Alg. 1."""
        phase, before = self.config.phase(epoch), dict(self.seconds)
        with self._timed("weights"):
            trained = self._train_weights(epoch) if epoch < self.config.epochs else None
        with self._timed("episodes"):
            self.evaluator.load_weights(self.model)
            full = self.evaluator.accuracies([self.graph.full_subnet()])[0]
        if self.environment:
            self.environment.begin_epoch()
        rollout, learned = None, {}
        if phase != "warmup":
            with self._timed("episodes"):
                rollout = self._walk(epoch, phase)
                if trained is not None:  # else the weights, and so the rewards, are the same
                    self.structures.reevaluate(self.evaluator)
                self.structures.offer(rollout.subnets, rollout.rewards)
            with self._timed("agent"):
                learned = self._learn(epoch)
        spent = {
            name: self.seconds[name] - before[name] for name in ("weights", "episodes", "agent")
        }
        return self._record(epoch, phase, trained, float(full), rollout, learned, spent)

    def _train_weights(self, epoch: int) -> EpochResult:
        penalty = None
        if self.config.alignment and self.structures.best is not None:
            penalty = AlignmentPenalty(self.model, self.structures.best)
        return self.weights.train_epoch(epoch, penalty, self.config.beta, self.on_batch)

    def _walk(self, epoch: int, phase: str) -> Rollout:
        agent = self.random_agent if phase == "random" else self.agent
        z = self.environment.z()[epoch] if self.environment else None
        source = generator(self.config.seed, "episodes", epoch)
        rollout = self.env.rollout(agent, self.config.episodes_per_epoch, z, source)
        self.replay.add(rollout.episodes, epoch)
        self.episodes += len(rollout.subnets)
        return rollout

    def _learn(self, epoch: int) -> dict[str, float]:
        """Updates the environment model on all rewards, then the agent on replayed transitions."""
        metrics: dict[str, float] = {}
        source = generator(self.config.seed, "learning", epoch)
        if self.environment:
            metrics.update(self.environment.update(self.replay, source))
        steps = self.config.agent_updates
        if steps is None:
            steps = self.config.episodes_per_epoch * len(self.graph.groups)
        z = self.environment.z() if self.environment else None
        return {**metrics, **self.agent.update(self.replay, z, steps, source)}

    def _prune_and_finetune(self, state: dict[str, Any] | None) -> JointResult:
        """Cuts the best structure out of the full network, trains it a little more, and reports."""
        structure = self.structures.best
        assert structure is not None  # the config leaves epochs for episodes
        test = self.data.test.images, self.data.test.labels, self.data.normalisation
        small = compact(self.model, structure)
        if self.recalibration is not None:
            recalibrate(small, self.recalibration)  # it is what was scored, even if never tuned
        baseline, as_cut = accuracy(self.model, *test), accuracy(small, *test)

        def finished(record: Record, tuning: dict[str, Any]) -> None:
            self.seconds["weights"] += record["seconds"]["weights"]
            self._publish(record)
            self._save(tuning)

        finetune.run(
            small,
            self.data,
            finetune.config(self.config.weights, self.config.finetune_lr),
            epochs=self.config.finetune,
            seed=self.config.seed,
            state=state,
            on_epoch=finished,
            on_batch=self.on_batch,
        )
        pruned = accuracy(small.eval(), *test)
        report = self._report(structure, small, baseline, as_cut, pruned)
        small.metadata.update(self._description())
        return JointResult(small, structure, report, self.log.records)

    # -- bookkeeping -------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def _elapsed(self) -> dict[str, float]:
        """The seconds of all parts; `total` is the wall clock of this and earlier processes."""
        now = time.perf_counter()
        self.seconds["total"] += now - self._since
        self._since = now
        return dict(self.seconds)

    def _record(
        self,
        epoch: int,
        phase: str,
        trained: EpochResult | None,
        full: float,
        rollout: Rollout | None,
        learned: dict[str, float],
        spent: dict[str, float],
    ) -> Record:
        best = self.structures.best
        return {
            "stage": "joint",
            "epoch": epoch,
            "phase": phase,
            "loss": trained.loss if trained else None,
            "penalty": trained.penalty if trained else None,
            "train_accuracy": trained.accuracy if trained else None,
            "reward_split_accuracy": full,
            "rewards": rollout.rewards.tolist() if rollout else [],
            "structure_reward": float(self.structures.rewards[0]) if best else None,
            "structure_widths": best.widths.tolist() if best else None,
            "environment_loss": learned.pop("environment_loss", None),
            "agent": learned,
            "lr": trained.lr if trained else None,
            "seconds": spent,
        }

    def _finish_epoch(self, record: Record) -> None:
        self.epoch += 1
        self._publish(record)
        self._save(None)

    def _publish(self, record: Record) -> None:
        self.log.append(record)
        if self.on_epoch is not None:
            self.on_epoch(record)

    def _save(self, tuning: dict[str, Any] | None) -> None:
        if self.folder is None:
            return
        joint = {
            "epoch": self.epoch,
            "episodes": self.episodes,
            "seconds": self._elapsed(),
            "threads": torch.get_num_threads(),
            "settings": self._settings(),
            "model": self.model.state_dict(),
            "optimizer": self.weights.optimizer.state_dict(),
            "agent": self.agent.state_dict(),
            "environment": self.environment.state_dict() if self.environment else None,
            "replay": self.replay.state_dict(),
            "structures": self.structures.state_dict(),
        }
        checkpoint.save(
            self.folder, {"joint": joint, "finetune": tuning, "records": self.log.records}
        )

    def _restore(self, joint: dict[str, Any]) -> None:
        self._check_settings(joint["settings"])
        self.epoch, self.episodes = joint["epoch"], joint["episodes"]
        self.seconds = dict(joint["seconds"])
        try:
            self.model.load_state_dict(joint["model"])
        except RuntimeError as error:
            raise InputError(
                f"the run's checkpoint does not fit {self.arch}: "
                "go on with the network it began with"
            ) from error
        self.weights.optimizer.load_state_dict(joint["optimizer"])
        self.agent.load_state_dict(joint["agent"])
        if self.environment:
            self.environment.load_state_dict(joint["environment"])
        self.replay.load_state_dict(joint["replay"])
        self.structures.load_state_dict(joint["structures"], self.graph)

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to make sense; epochs may grow."""
        config = dataclasses.asdict(self.config)
        free = ("epochs", "search_epochs", "finetune_epochs", "evaluator", "structures")
        plain = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in config.items()
            if name not in free and not isinstance(value, dict)
        }
        return {**plain, "full_widths": self.graph.full_widths.tolist()}

    def _check_settings(self, saved: dict[str, Any]) -> None:
        settings = self._settings()
        wrong = [name for name in settings if settings[name] != saved.get(name)]
        if wrong:
            name, folder = wrong[0], self.folder.path if self.folder else None
            raise InputError(
                f"the checkpoint in {folder} was made with {name}={saved.get(name)}, not "
                f"{settings[name]}: go on with the settings it began with, or use another folder"
            )

    def _description(self) -> dict[str, Any]:
        """What someone who loads the network needs to use it."""
        return {
            "arch": self.arch,
            "dataset": self.data.name,
            "classes": list(self.data.classes),
            "normalisation": {
                "mean": list(self.data.normalisation.mean),
                "std": list(self.data.normalisation.std),
            },
        }

    def _report(
        self,
        structure: Subnet,
        small: CompactNetwork,
        baseline: float,
        as_cut: float,
        pruned: float,
    ) -> Report:
        macs_full, macs = self.budget.macs_full, int(self.graph.cost.macs(structure.widths))
        latency_ms = measure({"full": self.model, "pruned": small}, self.data.image_shape)
        return Report(
            arch=self.arch,
            dataset=self.data.name,
            seed=self.config.seed,
            baseline_accuracy=baseline,
            pruned_accuracy=pruned,
            delta=pruned - baseline,
            macs_full=macs_full,
            macs=macs,
            pruned_flops=1 - macs / macs_full,
            pruned_flops_requested=self.config.pruned_flops,
            params_full=parameter_count(self.model),
            params=parameter_count(small),
            widths={
                group.name: [int(width), group.width]
                for group, width in zip(self.graph.groups, structure.widths, strict=True)
            },
            latency_ms=latency_ms,
            best_reward=float(self.structures.rewards[0]),
            episodes=self.episodes,
            seconds=self._elapsed(),
            evaluator=f"{self.evaluator.description}, {torch.get_num_threads()} threads",
            split_sizes={
                name: len(getattr(self.data, name)) for name in ("train", "reward", "test")
            },
            accuracy_before_finetuning=as_cut,
            version=__version__,
        )
