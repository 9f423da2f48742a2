"""What a joint run keeps in its checkpoint, and how it goes on from it.

Only what cannot be made again is kept: the states and bounds of past episodes follow from their
widths, and the optimiser of the joint weights has no use once the network is cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlal_fast.errors import InputError

if TYPE_CHECKING:
    from rlal_fast.trainer import JointTrainer

State = dict[str, Any]
# What may differ when a run goes on. On another device the last bits do, too.
_FREE = {"epochs", "search_epochs", "finetune_epochs", "structures"}
_FREE |= {"evaluator", "evaluator_precision", "device", "weights.amp", "weights.capture"}


def gather(trainer: JointTrainer, tuning: bool) -> State:
    """The joint part of a checkpoint.

    Args:
        tuning: whether the network is cut already. The momentum of the joint weights, a third of
            the state of a large network, is then left out: a run that is made longer later starts
            its optimiser anew, at a learning rate that had come down to nothing.
    """
    return {
        "epoch": trainer.epoch,
        "episodes": trainer.episodes,
        "seconds": trainer.elapsed(),
        "threads": torch.get_num_threads(),
        "settings": _settings(trainer),
        "model": trainer.model.state_dict(),
        "optimizer": None if tuning else trainer.weights.optimizer.state_dict(),
        "agent": trainer.agent.state_dict(),
        "head_start": trainer.head_start.state_dict(),
        "environment": trainer.environment.state_dict() if trainer.environment else None,
        "replay": past_episodes(trainer),
        "structures": trainer.structures.state_dict(),
    }


def restore(trainer: JointTrainer, joint: State) -> None:
    """Puts a new trainer where the one of `gather` was.

    Raises:
        InputError: the checkpoint is of other settings or of another network.
    """
    _check_settings(trainer, joint["settings"])
    trainer.epoch, trainer.episodes = joint["epoch"], joint["episodes"]
    trainer.seconds = dict(joint["seconds"])
    try:
        trainer.model.load_state_dict(joint["model"])
    except RuntimeError as error:
        raise InputError(
            f"the run's checkpoint does not fit {trainer.arch}: go on with the network it began "
            "with"
        ) from error
    if joint["optimizer"] is not None:
        trainer.weights.optimizer.load_state_dict(joint["optimizer"])
    trainer.agent.load_state_dict(joint["agent"])
    trainer.head_start.load_state_dict(joint["head_start"])
    if trainer.environment:
        trainer.environment.load_state_dict(joint["environment"])
    _restore_episodes(trainer, joint["replay"])
    trainer.structures.load_state_dict(joint["structures"], trainer.graph)


def past_episodes(trainer: JointTrainer) -> State:
    """The replay as widths int32 [N, G], rewards and epochs [N], oldest episode first."""
    state, widths = trainer.replay.state_dict(), torch.from_numpy(past_widths(trainer))
    return {
        "widths": widths.to(torch.int32),
        "rewards": state["rewards"],
        "epochs": state["epochs"],
    }


def past_widths(trainer: JointTrainer) -> NDArray[np.int64]:
    """Widths int64 [N, G] of the replay's episodes, oldest first, as its ratios tell them."""
    ratios = trainer.replay.all_actions.double().numpy()
    return np.rint((1 - ratios) * trainer.graph.full_widths).astype(np.int64)


def _restore_episodes(trainer: JointTrainer, state: State) -> None:
    episodes = trainer.env.episodes(
        state["widths"].numpy().astype(np.int64), state["rewards"].numpy()
    )
    trainer.replay.load_state_dict({**vars(episodes), "epochs": state["epochs"]})


def _settings(trainer: JointTrainer) -> State:
    """What must be the same for a checkpoint to make sense; epochs may grow."""
    plain = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in _flat(dataclasses.asdict(trainer.config))
        if name not in _FREE
    }
    return {**plain, "full_widths": trainer.graph.full_widths.tolist()}


def _flat(values: State, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots, and their values."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_settings(trainer: JointTrainer, saved: State) -> None:
    settings = _settings(trainer)
    wrong = [name for name in settings if settings[name] != saved.get(name)]
    if wrong:
        name, folder = wrong[0], trainer.folder.path if trainer.folder else None
        raise InputError(
            f"the checkpoint in {folder} was made with {name}={saved.get(name)}, not "
            f"{settings[name]}: go on with the settings it began with, or use another folder"
        )
