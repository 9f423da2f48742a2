"""joint_state.py: what a checkpoint of a joint run holds, how much, and where it can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rlal_fast import checkpoint, joint_state
from rlal_fast.agents import SACConfig
from rlal_fast.compaction import compact
from rlal_fast.data import ImageData
from rlal_fast.environment_model import EnvironmentModelConfig
from rlal_fast.finetune import config as finetune_config
from rlal_fast.joint_config import JointConfig
from rlal_fast.models import create
from rlal_fast.seeds import generator
from rlal_fast.subnet import Subnet
from rlal_fast.trainer import JointTrainer
from rlal_fast.weights import WeightsConfig, WeightTrainer

MIB = 2**20


class Drawn:
    """Random rewards: what is stored takes as much as real ones."""

    def __init__(self) -> None:
        self.source = np.random.default_rng(0)

    def accuracies(self, subnets: list[Subnet]) -> NDArray[np.float64]:
        return self.source.random(len(subnets))


def images(size: int, channels: int) -> ImageData:
    pixels = torch.randint(0, 256, (24, channels, size, size), dtype=torch.uint8)
    labels = torch.arange(24) % 10
    return ImageData.from_tensors(
        train=(pixels, labels), reward=(pixels, labels), test=(pixels, labels)
    )


def record(trainer: JointTrainer) -> dict[str, Any]:
    best = trainer.structures.best
    assert best is not None
    agent = dict.fromkeys(("critic_loss", "q", "actor_loss", "entropy", "reward_scale"), 0.1)
    numbers = ("loss", "penalty", "train_accuracy", "reward_split_accuracy", "structure_reward")
    return {
        "stage": "joint",
        "epoch": trainer.epoch,
        "phase": "policy",
        **dict.fromkeys((*numbers, "environment_loss", "lr"), 0.1),
        "rewards": [0.1] * 10,
        "structure_widths": best.widths.tolist(),
        "agent": agent,
        "seconds": {"weights": 1.0, "episodes": 1.0, "agent": 1.0},
    }


def after(trainer: JointTrainer, epochs: int, episodes: int) -> None:
    """As if so many epochs had passed: all that grows or comes into being has done so."""
    trainer._train_weights(0)
    trainer.env.scorer = Drawn()
    for epoch in range(epochs):
        if trainer.environment:
            trainer.environment.begin_epoch()
        source = generator(0, "episodes", epoch)
        rollout = trainer.env.rollout(trainer.random_agent, episodes, None, source)
        trainer.replay.add(rollout.episodes, epoch)
        trainer.structures.offer(rollout.subnets, rollout.rewards)
        trainer.log.records.append(record(trainer))
        trainer.epoch += 1
    trainer._learn(0)


def size_of(trainer: JointTrainer) -> float:
    assert trainer.folder is not None
    (file,) = trainer.folder.checkpoint_dir.iterdir()
    return file.stat().st_size / MIB


def test_a_checkpoint_of_resnet56_takes_at_most_16_mib(tmp_path: Path) -> None:
    """200 epochs of 10 episodes, at its end and while the cut network is fine-tuned."""
    environment = EnvironmentModelConfig(steps_per_epoch=1)
    config = JointConfig(epochs=200, agent_updates=1, environment=environment)
    data = images(8, 3)
    trainer = JointTrainer(create("resnet56", 10, 3), data, config, folder=tmp_path / "run")
    after(trainer, 200, 10)
    assert trainer.replay.episode_count == trainer.replay.capacity_episodes == 2000
    trainer._save(None)
    assert size_of(trainer) < 15
    state = checkpoint.load(trainer.folder)  # type: ignore[arg-type]
    assert state is not None
    replay = trainer.replay.state_dict()
    trainer.replay = type(trainer.replay)(2000, replay["states"].shape[1], trainer.env.state_size)
    joint_state.restore(trainer, state["joint"])
    for name, tensor in trainer.replay.state_dict().items():
        assert torch.equal(tensor, replay[name]), name

    # a cut that removes hardly any weights: the worst case
    widths = np.maximum(1, (0.95 * trainer.graph.full_widths).astype(np.int64))
    small = compact(trainer.model, trainer.graph.subnet(widths))
    settings = finetune_config(WeightsConfig(), 0.01)
    tuner = WeightTrainer(small, data, settings, epochs=50, seed=0, purpose="finetune")
    tuner.train_epoch(0)
    trainer.log.records += [record(trainer)] * 50
    tuned = {"network": small.state_dict(), "optimizer": tuner.optimizer.state_dict()}
    trainer._save({"epoch": 1, **tuned})
    assert size_of(trainer) < 16


@pytest.mark.parametrize("tuning", [False, True])
def test_the_momentum_is_kept_until_the_network_is_cut(tmp_path: Path, tuning: bool) -> None:
    torch.manual_seed(0)
    config = JointConfig(
        epochs=2,
        episodes_per_epoch=2,
        agent_updates=1,
        sac=SACConfig(hidden=(8,)),
        epoch_embedding=False,
    )
    trainers = [JointTrainer(create("resnet8", 10, 1), images(8, 1), config) for _ in range(2)]
    after(trainers[0], 2, 2)
    state = joint_state.gather(trainers[0], tuning)
    assert (state["optimizer"] is None) == tuning
    joint_state.restore(trainers[1], state)
    momentum = trainers[1].weights.optimizer.state_dict()["state"]
    assert bool(momentum) != tuning
    assert trainers[1].epoch == 2
    for a, b in zip(
        trainers[0].model.state_dict().values(),
        trainers[1].model.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
