"""Checkpoints of a run: one file, written aside and renamed, read without running pickled code."""

from __future__ import annotations

from typing import Any

import torch

from rlal_fast.errors import InputError
from rlal_fast.packed import pack, unpack
from rlal_fast.run_folder import RunFolder

_FILE = "last.pt"
_FORMAT = 5


def save(folder: RunFolder, state: dict[str, Any]) -> None:
    """Replaces the checkpoint; a kill at any moment leaves the old or the new one whole.

    Tensors are stored from the CPU, so that a run on a GPU can go on on a machine without one.

    Raises:
        InputError: the disk is full; the old checkpoint stays.
    """
    content = {"format": _FORMAT, **pack(state)}
    folder.write_atomically(folder.checkpoint_dir / _FILE, lambda file: torch.save(content, file))


def exists(folder: RunFolder) -> bool:
    """Whether the run has finished an epoch, and so goes on from a checkpoint."""
    return (folder.checkpoint_dir / _FILE).is_file()


def threads(folder: RunFolder) -> int | None:
    """The number of threads that the run began with, None before its first checkpoint."""
    state = load(folder)
    return None if state is None else int(state["joint"]["threads"])


def load(folder: RunFolder) -> dict[str, Any] | None:
    """The last checkpoint, or None if the run was stopped before its first.

    Raises:
        InputError: the file is damaged or of another version.
    """
    path = folder.checkpoint_dir / _FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"]
        if found == _FORMAT:
            state = unpack(state)
    except FileNotFoundError:
        return None
    except Exception as error:  # torch's reader raises many types, all about this file
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(
            f"the checkpoint {path} cannot be read ({reason}): delete it to start this run again "
            "from its config.yaml"
        ) from error
    if found != _FORMAT:
        raise InputError(
            f"the checkpoint {path} has format {found}, this version reads {_FORMAT}: go on with "
            "the version of rlal_fast that wrote it, or delete it to start this run again"
        )
    return state
