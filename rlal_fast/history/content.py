"""PastRun <-> bytes: arrays as numpy's compressed .npz, the rest as JSON; nothing is pickled."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlal_fast.errors import InputError
from rlal_fast.flops import CostTable
from rlal_fast.history.past_run import PastRun
from rlal_fast.packed import pack, unpack

_ARRAYS = ("features", "widths", "rewards", "epochs", "baselines")
_OTHERS = ("cost", "agent_state")
_PLAIN = tuple(f.name for f in fields(PastRun) if f.name not in _ARRAYS + _OTHERS)


def encode(run: PastRun) -> bytes:
    """Everything in `run`, compressed; the agent's tensors bit for bit."""
    settings = {name: getattr(run, name) for name in _PLAIN} | {"cost": run.cost.to_json()}
    arrays = {name: getattr(run, name) for name in _ARRAYS}
    # A group's widths after one another, in one byte where they fit: half of the size. Epochs fall
    # into runs of equal ones, which compress to nothing.
    arrays["widths"] = np.ascontiguousarray(run.widths.T, np.min_scalar_type(run.widths.max()))
    arrays["settings"] = _raw(json.dumps(settings).encode())
    if run.agent_state is not None:
        state = io.BytesIO()
        torch.save(pack(run.agent_state), state)
        arrays["agent_state"] = _raw(state.getvalue())
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def decode(content: bytes) -> PastRun:
    """What was given to `encode`.

    Raises:
        InputError: the bytes are something else, or describe a run that cannot be.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
        settings = json.loads(arrays.pop("settings").tobytes())
        state = arrays.pop("agent_state", None)
        if state is not None:
            stored = io.BytesIO(state.tobytes())
            state = unpack(torch.load(stored, map_location="cpu", weights_only=True))
        arrays["widths"] = np.ascontiguousarray(arrays["widths"].T, np.int32)
        settings["feature_names"] = tuple(settings["feature_names"])
        settings["cost"] = CostTable.from_json(settings["cost"])
        return PastRun(**settings, **arrays, agent_state=state)
    except InputError:
        raise
    except Exception as error:  # zip, zlib, numpy, json and torch raise many types, all about this
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"the content is not that of a run ({reason})") from error


def _raw(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)
