"""PastRun: what a finished run leaves for later ones to learn from (method.md §10)."""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlal_fast.errors import InputError
from rlal_fast.flops import CostTable

_LONGEST = 1000  # characters of a name
_SCALARS = (type(None), bool, int, float, str)  # but no types of their own: numpy.float64 is one


@dataclass(frozen=True, eq=False)
class PastRun:
    """N episodes over the G groups of a network, the E epochs they took place in, and the agent.

    Together with the cost table it is enough to walk the episodes again, under another budget, too.

    Raises:
        InputError: a field that no run can have (named).
    """

    id: str  # 12 hexadecimal digits, random: see `new_id`
    created: str  # UTC, ISO 8601 to the microsecond: see `now`
    version: str  # of rlal_fast
    arch: str
    dataset: str
    pruned_flops: float  # asked for: fraction in [0, 1)
    a_max: float
    min_width: int
    round_to: int
    importance: str
    groups: str  # mode: "internal" or "all"
    seed: int
    reward_images: int
    """Images of the reward split: a reward is that many trials' share of hits, or fewer where a
    race stopped it."""
    feature_names: tuple[str, ...]  # [F]
    features: NDArray[np.float32]
    """float32 [G, F]: what a state says of each group whatever was decided, on the network's own
    scale (method.md §3)."""
    cost: CostTable
    widths: NDArray[np.int32]  # int32 [N, G] in 1..C_g, oldest episode first
    rewards: NDArray[np.float32]  # float32 [N], accuracies on the reward split, in [0, 1]
    epochs: NDArray[np.int32]  # int32 [N], 0-based, each in 0..E-1
    baselines: NDArray[np.float32]
    """float32 [E]: the full network's accuracy on the reward split in each epoch, in [0, 1]."""
    agent_name: str
    agent_state: dict[str, Any] | None
    """What the agent's state_dict returned: dicts, lists, tuples of tensors and plain values."""

    def __post_init__(self) -> None:
        self._check_words()
        self._check_settings()
        self._check_arrays()
        if self.agent_state is not None:
            if not isinstance(self.agent_state, dict):
                raise InputError(f"agent_state is a {type(self.agent_state).__name__}, not a dict")
            _check_state(self.agent_state, "agent_state")

    def _check_words(self) -> None:
        if not re.fullmatch("[0-9a-f]{12}", str(self.id)):
            raise InputError(f"id={self.id!r} must be 12 hexadecimal digits")
        if not _is_utc(self.created):
            raise InputError(
                f"created={self.created!r} must be UTC to the microsecond, as "
                "2026-01-31T12:00:00.000000+00:00"
            )
        names = ("version", "arch", "dataset", "importance", "groups", "agent_name")
        words = {name: getattr(self, name) for name in names}
        words |= {f"feature_names[{i}]": name for i, name in enumerate(self.feature_names)}
        for name, word in words.items():
            fits = isinstance(word, str) and 0 < len(word) <= _LONGEST
            if not fits or word != word.encode(errors="replace").decode():  # half a character
                raise InputError(f"{name}={word!r:.80} must be 1 to {_LONGEST} characters of text")

    def _check_settings(self) -> None:
        for name, most in (("pruned_flops", math.nextafter(1, 0)), ("a_max", 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f"{name}={value!r} must be a number")
            if not 0 <= value <= most:
                raise InputError(f"{name}={value} must be in [0, 1{')' if most < 1 else ']'}")
        for name, least in (("min_width", 1), ("round_to", 1), ("seed", 0), ("reward_images", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InputError(f"{name}={value!r} must be a whole number from {least} on")

    def _check_arrays(self) -> None:
        full = self.cost.full_widths
        episodes, epochs = len(self.rewards), len(self.baselines)
        _check_array("features", self.features, np.float32, (len(full), len(self.feature_names)))
        _check_array("widths", self.widths, np.int32, (episodes, len(full)))
        _check_array("rewards", self.rewards, np.float32, (episodes,))
        _check_array("epochs", self.epochs, np.int32, (episodes,))
        _check_array("baselines", self.baselines, np.float32, (epochs,))
        if not (self.widths.size and epochs):
            raise InputError(
                f"a run of {episodes} episodes over {len(full)} groups in {epochs} epochs teaches "
                "nothing: it needs at least one of each"
            )
        for name, array, low, high in (
            ("rewards", self.rewards, 0, 1),
            ("baselines", self.baselines, 0, 1),
            ("epochs", self.epochs, 0, epochs - 1),
            ("widths", self.widths, 1, full),
        ):
            outside = ~((low <= array) & (array <= high))  # nan is outside, too
            if outside.any():
                place = tuple(map(int, np.argwhere(outside)[0]))
                most = np.broadcast_to(high, array.shape)[place]
                raise InputError(f"{name}{list(place)} is {array[place]}, not in {low}..{most}")


def new_id() -> str:
    """A random id."""
    return secrets.token_hex(6)


def now() -> str:
    """This moment as `created` has it."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _is_utc(text: Any) -> bool:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return False
    # written in one way only, so that the order of the texts is that of the moments
    return moment.utcoffset() == timedelta(0) and moment.isoformat(timespec="microseconds") == text


def _check_array(name: str, array: Any, kind: type[np.generic], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != kind or array.shape != shape:
        found = (
            f"{array.dtype} {list(array.shape)}"
            if isinstance(array, np.ndarray)
            else type(array).__name__
        )
        raise InputError(f"{name} must be {np.dtype(kind)} {list(shape)}, not {found}")
    if kind is np.float32 and not np.isfinite(array).all():
        raise InputError(f"{name} holds a value that is not finite")


def _check_state(value: Any, where: str) -> None:
    """Only what torch.load(weights_only=True) gives back."""
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise InputError(f"{where} has the key {key!r}, which is neither text nor a number")
            _check_state(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_state(item, f"{where}[{index}]")
    elif not (type(value) in _SCALARS or isinstance(value, Tensor)):
        raise InputError(f"{where} is a {type(value).__name__}: a run keeps plain values only")
