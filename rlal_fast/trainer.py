"""JointTrainer: trains a CNN and prunes it at the same time (RLAL Alg. 1, method.md §2)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rlal_fast import agents, checkpoint, device, finetune, joint_report, joint_state
from rlal_fast.alignment import AlignmentPenalty, MaskedAlignment, beta_in, default_beta
from rlal_fast.compaction import CompactNetwork, compact
from rlal_fast.data import ImageData
from rlal_fast.data.device_batches import placed
from rlal_fast.device_training import trainer_for
from rlal_fast.env import PruningEnv, Rollout
from rlal_fast.environment_model import EnvironmentModel
from rlal_fast.errors import InputError, RunStopped
from rlal_fast.evaluator import Evaluator
from rlal_fast.exploration import explore, with_predictions
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.head_start import HeadStart, Target
from rlal_fast.history.past_run import PastRun
from rlal_fast.joint_config import JointConfig
from rlal_fast.metrics import MetricsLog, Record
from rlal_fast.racing import Race
from rlal_fast.recalibration import image_count, recalibrate, training_sample
from rlal_fast.replay import ReplayBuffer
from rlal_fast.report import Report
from rlal_fast.run_folder import RunFolder
from rlal_fast.seeds import derived_seed, generator
from rlal_fast.structures import Structures
from rlal_fast.subnet import Subnet
from rlal_fast.weights import EpochResult, accuracy

# Of the seconds. Validation, the full network's accuracy, is no part of what pruning costs.
_PARTS = ("weights", "validation", "episodes", "agent")


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What `finetune` returns.

    Attributes:
        network: the compact network, fine-tuned, in eval mode, on the CPU.
        structure: the sub-network of the full model that it was cut from.
        accuracies: on the test split: of the full network, of the compact one as cut, and of the
            compact one after fine-tuning.
    """

    network: CompactNetwork
    structure: Subnet
    accuracies: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class JointResult:
    """What `fit` returns.

    Attributes:
        network: the compact network, fine-tuned, in eval mode, on the CPU.
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
        model: a CNN of the operations in `tracing.py`; moved to config.device, wherever it is, and
            trained in place.
        data: train, reward and test splits; test is used once, at the end.
        config: settings.
        folder: where to write metrics and checkpoints; a checkpoint found there is resumed.
        arch: name for the report.
        on_epoch: told each epoch's record.
        on_batch: told (batches done, batches in all) within an epoch of weights.
        history: past runs to learn from, as config.history says; a resumed run has what it learned
            in its checkpoint.

    Raises:
        InputError: the model cannot be pruned, does not fit the data, or cannot reach the budget;
            or config.device is not there.
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
        history: Sequence[PastRun] = (),
    ) -> None:
        if not isinstance(data, ImageData):
            raise InputError(
                f"data must be an rlal_fast.ImageData, not {type(data).__name__}: make one by "
                "ImageData.from_tensors(train=(images, labels), test=(images, labels))"
            )
        self.config = config = config or JointConfig()
        self.device = device.resolve(config.device)
        self.model, self.data = model.cpu(), placed(data, self.device)
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
        self.model.to(self.device)  # after the trace, which takes place on the CPU
        self.budget = Budget(
            self.graph.cost,
            config.pruned_flops,
            a_max=config.a_max,
            min_width=config.min_width,
            round_to=config.round_to,
        )
        self._make_evaluator()
        self.env = PruningEnv(self.graph, self.budget, self.race, config.importance, config.state)
        self.weights = trainer_for(model)(
            model,
            self.data,
            config.weights,
            epochs=config.epochs,
            seed=config.seed,
            purpose="joint",
        )
        steps = config.epochs * data.train_batch_count(config.weights.batch_size)
        self.beta = default_beta(steps) if config.beta is None else config.beta
        self._masked = None
        if self.device.type != "cpu" and config.alignment:
            self._masked = MaskedAlignment(model, self.graph)
        self.seconds = dict.fromkeys(("total", *_PARTS), 0.0)
        self._since = time.perf_counter()  # up to here `total` counts
        with self._timed("agent"):  # what past runs teach takes its time
            self._make_learners(history)
        self.elapsed()
        self.structures = Structures(config.structures)
        self.epoch = self.episodes = 0
        self._full: float | None = None  # the full network's accuracy on the reward split
        self._deadline: float | None = None  # by time.perf_counter
        self.log = MetricsLog(None, [])

    def _check_model(self) -> None:
        outputs = self.graph.nodes[-1].shape[0]
        if outputs != self.data.num_classes:
            raise InputError(
                f"the network has {outputs} outputs, the data set {self.data.num_classes} classes"
            )
        if not self.graph.groups:
            raise InputError("the network has no group that can be pruned; try groups='all'")
        self.graph.importance(self.config.importance)  # what cannot rank it fails now, not later

    def _make_evaluator(self) -> None:
        config, data = self.config, self.data
        standing = config.epochs == 0
        count = image_count(config.bn_recalibrate, self.model, data, standing=standing)
        sample = training_sample(data, count, config.seed)
        self.recalibration = None if sample is None else sample.to(self.device)
        reward = data.reward.shuffled(generator(config.seed, "order of reward images"))
        self.evaluator = Evaluator(
            self.graph,
            data.normalised(reward).to(self.device),
            reward.labels.to(self.device),
            config.evaluator,
            self.recalibration,
            precision=config.evaluator_precision,
        )
        self.race = Race(self.evaluator, config.race)

    def _make_learners(self, history: Sequence[PastRun]) -> None:
        config, groups, size = self.config, len(self.graph.groups), self.env.state_size
        self.environment: EnvironmentModel | None = None
        if config.epoch_embedding:
            seed = derived_seed(config.seed, "environment model")
            self.environment = EnvironmentModel(size, config.environment, seed)
        self.agent = self._new_agent()
        target = Target(self.arch, self.data.name, self.budget, len(self.data.reward))
        self.head_start = HeadStart(config, history, target, self.agent)
        self.random_agent = agents.RandomAgent(config.a_max)
        capacity = config.total_epochs * config.episodes_per_epoch
        self.replay = ReplayBuffer(capacity, groups, size)

    def _new_agent(self) -> agents.Agent:
        return agents.create(
            self.config.agent,
            self.env.state_size,
            self.environment.z_size if self.environment else 0,
            replace(self.config.sac, a_max=self.config.a_max),
            derived_seed(self.config.seed, "agent"),
            uniform_ratio=self.budget.uniform_ratio(),
        )

    # -- the algorithm -----------------------------------------------------------------------------

    def fit(self, max_minutes: float | None = None) -> JointResult:
        """Runs what is left: joint epochs, pruning, fine-tuning, report.

        Args:
            max_minutes: stop after the first epoch that ends later than this after the call, if
                any epoch is left. The end of a run, which cuts, measures and reports, is not
                counted.

        Raises:
            RunStopped: max_minutes are over; the same call on the same folder goes on.
            InputError: max_minutes without a folder, the training diverged, or the folder's
                checkpoint is of another run.
        """
        self._deadline = self._deadline_of(max_minutes)
        state = checkpoint.load(self.folder) if self.folder is not None else None
        self.log = MetricsLog(self.folder, state["records"] if state else self.log.records)
        self._since = time.perf_counter()
        tuning = None
        try:
            if state:
                joint_state.restore(self, state["joint"])
                if self.epoch == self.config.total_epochs:  # else the structure may still change
                    tuning = state["finetune"]
            self._run_epochs()
            return self._prune_and_finetune(tuning)
        finally:
            self.log.close()

    def search(self) -> Subnet:
        """The epochs of `fit` alone, without a folder: the best structure, not yet cut."""
        self._since = time.perf_counter()
        return self._run_epochs()

    def _run_epochs(self) -> Subnet:
        while self.epoch < self.config.total_epochs:
            self._finish_epoch(self._joint_epoch(self.epoch))
        assert self.structures.best is not None  # the config leaves epochs for episodes
        return self.structures.best

    def _deadline_of(self, max_minutes: float | None) -> float | None:
        if max_minutes is None:
            return None
        if self.folder is None:
            raise InputError("max_minutes needs a folder that the run can go on from")
        if not max_minutes >= 0:
            raise InputError(f"max_minutes={max_minutes} must be at least 0")
        return time.perf_counter() + 60 * max_minutes

    def _joint_epoch(self, epoch: int) -> Record:
        """One turn of RLAL Alg. 1."""
        phase, before = self.head_start.phase(self.config.phase(epoch)), dict(self.seconds)
        with self._timed("weights"):
            trained = self._train_weights(epoch) if epoch < self.config.epochs else None
        if trained is not None or self._full is None:  # else the weights are the same
            with self._timed("episodes"):
                self.evaluator.load_weights(self.model)
            with self._timed("validation"):
                self._full = float(self.evaluator.accuracies([self.graph.full_subnet()])[0])
        if self.environment:
            self.environment.begin_epoch()
        rollout, learned = None, {}
        if phase != "warmup":
            with self._timed("episodes"):
                self.race.start(whole=trained is None or phase == "trial")
                if trained is not None:  # else the weights, and so the rewards, are the same
                    self.structures.reevaluate(self.race)
                rollout = self._walk(epoch, phase)
                self.structures.offer(rollout.subnets, rollout.rewards)
            with self._timed("agent"):
                learned = self._learn(epoch)
        spent = {name: self.seconds[name] - before[name] for name in _PARTS}
        return self._record(epoch, phase, trained, self._full, rollout, learned, spent)

    def _train_weights(self, epoch: int) -> EpochResult:
        penalty: AlignmentPenalty | MaskedAlignment | None = self._masked
        if self._masked is not None:
            self._masked.align_to(self.structures.best)
        elif self.config.alignment and self.structures.best is not None:
            penalty = AlignmentPenalty(self.model, self.structures.best)
        beta = beta_in(epoch, self.config.epochs, self.beta, self.config.beta_growth)
        return self.weights.train_epoch(epoch, penalty, beta, self.on_batch)

    def _walk(self, epoch: int, phase: str) -> Rollout:
        rollout = explore(self, epoch, phase)
        self.replay.add(rollout.episodes, epoch)
        self.episodes += len(rollout.subnets)
        return rollout

    def _learn(self, epoch: int) -> dict[str, float]:
        """Updates the environment model on all rewards, then the agent on replayed transitions."""
        metrics: dict[str, float] = {}
        source = generator(self.config.seed, "learning", epoch)
        if self.environment:
            metrics.update(self.environment.update(self.replay, source))
        default = self.config.episodes_per_epoch * len(self.graph.groups)
        steps = default if self.config.agent_updates is None else self.config.agent_updates
        anew = self.head_start.judge(self.replay.episode_count)
        self.head_start.learn(self.replay, epoch)
        replay = self.replay
        if anew:  # as from scratch, with all episodes so far
            self.agent, steps = self._new_agent(), len(self.replay.epochs) * steps
        else:
            replay = with_predictions(self, epoch)
        z = self.environment.z() if self.environment else None
        return {**metrics, **self.agent.update(replay, z, steps, source)}

    def _prune_and_finetune(self, state: dict[str, Any] | None) -> JointResult:
        found = self.finetune(state)
        report = joint_report.make(self, found.structure, found.network, found.accuracies)
        found.network.metadata.update(joint_report.description(self))
        return JointResult(found.network, found.structure, report, self.log.records)

    def finetune(self, state: dict[str, Any] | None = None) -> Finetuned:
        """Cuts the best structure out of the full network and trains it a little more.

        Args:
            state: where an interrupted fine-tuning stopped.
        """
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
            self._stop_if_late(record["epoch"] + 1)

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
        small.cpu()
        return Finetuned(small, structure, (baseline, as_cut, pruned))

    # -- bookkeeping -------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def elapsed(self) -> dict[str, float]:
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
            "stopped_early": self.race.stopped if rollout else 0,
            "structure_reward": float(self.structures.rewards[0]) if best else None,
            "structure_widths": best.widths.tolist() if best else None,
            "environment_loss": learned.pop("environment_loss", None),
            "agent": learned,
            "history": self.head_start.record(),
            "lr": trained.lr if trained else None,
            "seconds": spent,
        }

    def _finish_epoch(self, record: Record) -> None:
        self.epoch += 1
        self._publish(record)
        self._save(None)
        self._stop_if_late(0)

    def _stop_if_late(self, tuned: int) -> None:
        """Called where a checkpoint has everything; `tuned` epochs of fine-tuning are done."""
        done, total = self.epoch + tuned, self.config.total_epochs + self.config.finetune
        late = self._deadline is not None and time.perf_counter() >= self._deadline
        if late and done < total:
            raise RunStopped(done, total)

    def _publish(self, record: Record) -> None:
        self.log.append(record)
        if self.on_epoch is not None:
            self.on_epoch(record)

    def _save(self, tuning: dict[str, Any] | None) -> None:
        if self.folder is None:
            return
        joint = joint_state.gather(self, tuning is not None)
        checkpoint.save(
            self.folder, {"joint": joint, "finetune": tuning, "records": self.log.records}
        )
