"""Which runs a comparison has, and what its rows must have in common."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlal_fast import compaction, device, models
from rlal_fast.comparison.contenders import CONTENDERS
from rlal_fast.comparison.results import Job
from rlal_fast.data import ImageData, Split
from rlal_fast.device_training import training_precision
from rlal_fast.errors import InputError
from rlal_fast.history.content import encode
from rlal_fast.history.past_run import PastRun
from rlal_fast.joint_config import JointConfig
from rlal_fast.recalibration import image_count
from rlal_fast.seeds import derived_seed

# Fields of JointConfig that are the run's own, follow from others, or change no reward but by the
# last bits of a sum, so that two machines can share one comparison. (That weights are trained in
# bfloat16 on a GPU stands in their settings.)
_OWN = {"pruned_flops", "episodes_per_epoch", "seed", "agent", "epoch_embedding"}
_OWN |= {"search_epochs", "episodes"}
_OWN |= {"evaluator", "device"}
# What only joint training reads, and what any training does.
_OF_JOINT = {"warmup_epochs", "alignment", "beta", "beta_growth", "structures", "race_share"}
_OF_TRAINING = {"weights", "finetune_epochs", "finetune_lr"}
# What some contenders read and others do not: rows of those others stay comparable without it.
_OF_CONTENDERS = {"state", "sac", "screening", "environment", "history", "assistant"}


@dataclass(frozen=True)
class Network:
    """The network that is pruned: its architecture, and the weights to start from, if any."""

    arch: str
    init: Path | None = None

    def create(self, data: ImageData, seed: int) -> nn.Module:
        """The full network; without `init` its first weights follow from the seed."""
        torch.manual_seed(derived_seed(seed, "model"))
        model = models.create(self.arch, data.num_classes, data.image_shape[0])
        if self.init is not None:
            compaction.load_full(model, self.init)
        return model

    def fingerprint(self) -> str | None:
        """SHA-256 of the bytes of `init`: a file may move, its weights may not change."""
        if self.init is None:
            return None
        try:
            return hashlib.sha256(self.init.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"cannot read {self.init}: {error.strerror}") from error


def _sha256_of(split: Split) -> str:
    """Tells another split, another preparation or another set of images of the same name."""
    found = hashlib.sha256(split.images.cpu().contiguous().numpy().tobytes())
    found.update(split.labels.cpu().numpy().tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Plan:
    """All combinations of these, each one run.

    Where base.epochs is 0 the weights stand still, and every run has exactly `evaluations`: its
    last epoch is shorter where P does not divide them. In joint training `evaluations` is None, and
    every run has P for each of base's epochs after the warm-up. A contender that knows one
    sub-network is scored once (once an epoch in joint training), whatever P is. `history` goes to
    the contenders that learn from past runs.

    Raises:
        InputError: an unknown contender, nothing to compare, or numbers that cannot work.
    """

    agents: tuple[str, ...]
    pruned_flops: tuple[float, ...] = (0.5,)
    episodes_per_epoch: tuple[int, ...] = (10,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    evaluations: int | None = 400
    base: JointConfig = field(default_factory=lambda: JointConfig(epochs=0))
    history: tuple[PastRun, ...] = ()

    def __post_init__(self) -> None:
        for name in ("agents", "pruned_flops", "episodes_per_epoch", "seeds"):
            values = getattr(self, name)
            if not values:
                raise InputError(f"{name} is empty: name at least one")
            if len(set(values)) < len(values):
                raise InputError(f"{name} holds a value twice: {', '.join(map(str, values))}")
        for agent in self.agents:
            if agent not in CONTENDERS:
                raise InputError(f"unknown agent {agent!r}: known are {', '.join(CONTENDERS)}")
            if CONTENDERS[agent].learns and not self.history:
                raise InputError(f"{agent} learns from past runs: give some by --history FILE")
            if CONTENDERS[agent].joint and not self.joint:
                raise InputError(
                    f"{agent} differs in how weights are trained: train them by --epochs"
                )
            if CONTENDERS[agent].joint and (not self.base.alignment or self.base.beta == 0):
                raise InputError(f"{agent} differs by the alignment, which is switched off for all")
        if self.history and not any(CONTENDERS[agent].learns for agent in self.agents):
            learners = ", ".join(name for name, one in CONTENDERS.items() if one.learns)
            raise InputError(
                f"none of the agents learns from past runs: add one of {learners}, or leave out "
                "--history"
            )
        if (self.evaluations is None) != self.joint:
            raise InputError(
                "evaluations are for weights that stand still; in joint training they follow from "
                f"epochs: give one of them, not epochs={self.base.epochs} and "
                f"evaluations={self.evaluations}"
            )
        if self.evaluations is not None and self.evaluations < 1:
            raise InputError(f"evaluations={self.evaluations} must be at least 1")
        for job in self.jobs():
            self.config(job)  # what cannot work is refused before the first run

    @property
    def joint(self) -> bool:
        """Whether the weights are trained while the agents search."""
        return self.base.epochs > 0

    @property
    def finetune_epochs(self) -> int:
        """Of each run's structure. On standing weights they are compared as cut unless asked."""
        return self.base.finetune if self.joint else self.base.finetune_epochs or 0

    def jobs(self) -> Iterator[Job]:
        """The runs, seed by seed: what is stopped early still compares all agents."""
        seen = set()
        for seed in self.seeds:
            for ratio in self.pruned_flops:
                for episodes in self.episodes_per_epoch:
                    for agent in self.agents:
                        job = Job(agent, ratio, episodes, seed)
                        if CONTENDERS[agent].constant:
                            job = Job(agent, ratio, 1, seed if self.joint else 0)
                        if job not in seen:
                            seen.add(job)
                            yield job

    def config(self, job: Job) -> JointConfig:
        """The settings of one run."""
        base = replace(
            self.base,
            pruned_flops=job.pruned_flops,
            episodes_per_epoch=job.episodes_per_epoch,
            seed=job.seed,
            finetune_epochs=self.finetune_epochs,
            search_epochs=0 if self.joint else 1,
            warmup_epochs=self.base.warmup_epochs if self.joint else 0,
        )
        config = CONTENDERS[job.agent].config(base)
        if self.evaluations is None or CONTENDERS[job.agent].constant:
            return config
        rounds = math.ceil(self.evaluations / job.episodes_per_epoch)
        return replace(config, search_epochs=rounds, episodes=self.evaluations)

    def evaluations_of(self, job: Job) -> int:
        """How many sub-networks a run scores."""
        config = self.config(job)
        return sum(config.episodes_in(epoch) for epoch in range(config.total_epochs))

    def past_runs(self, job: Job) -> tuple[PastRun, ...]:
        """Those that a run may learn from."""
        return self.history if CONTENDERS[job.agent].learns else ()

    def _history_sha256(self) -> str | None:
        """Of the past runs' content, in their order."""
        if not self.history:
            return None
        return hashlib.sha256(b"".join(encode(run) for run in self.history)).hexdigest()

    def settings(self, network: Network, data: ImageData) -> dict[str, Any]:
        """What makes rows comparable, as plain data without a path of this machine."""
        config = dataclasses.asdict(self.base)
        trains = self.joint or self.finetune_epochs > 0
        unread = _OWN | _OF_CONTENDERS | (set() if self.joint else _OF_JOINT)
        unread |= set() if trains else _OF_TRAINING
        kept = {name: value for name, value in config.items() if name not in unread}
        kept["bn_recalibrate"] = image_count(
            self.base.bn_recalibrate, network.create(data, 0), data, standing=not self.joint
        )
        if self.joint:
            kept["race_share"] = self.base.race
        if trains:
            kept["finetune_epochs"] = self.finetune_epochs
            if not self.finetune_epochs:
                kept.pop("finetune_lr")
            kept["weights"].pop("capture")  # another way to launch the same steps
            amp = training_precision(self.base.weights, device.resolve(self.base.device))
            kept["weights"]["amp"] = "off" if amp is None else str(amp).removeprefix("torch.")
            kept["augmentation"] = dataclasses.asdict(data.augmentation)
        return {
            "arch": network.arch,
            "init_sha256": network.fingerprint(),
            "dataset": data.name,
            "image_shape": list(data.image_shape),
            "classes": data.num_classes,
            "train_images": len(data.train),
            "reward_images": len(data.reward),
            "test_images": len(data.test),
            "reward_sha256": _sha256_of(data.reward),
            "evaluations": self.evaluations,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()},
            "contenders": {agent: self._settings_of(agent) for agent in self.agents},
        }

    def _settings_of(self, agent: str) -> dict[str, Any]:
        """What one contender reads and others do not."""
        found = CONTENDERS[agent].reads(self.base)
        learns = CONTENDERS[agent].learns
        return found | ({"history_sha256": self._history_sha256()} if learns else {})
