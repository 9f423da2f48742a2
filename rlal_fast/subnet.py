"""widths + importance -> Subnet: which channels of every group stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlal_fast.errors import InputError

if TYPE_CHECKING:
    from rlal_fast.graph import PrunableGraph

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Subnet:
    """A sub-network: the kept channel indices of every prunable group (method.md §1).

    Attributes:
        graph: the network it is part of.
        kept: for each group g, ascending int64 indices [c_g] into its C_g channels.
    """

    graph: PrunableGraph
    kept: tuple[IntArray, ...]

    @property
    def widths(self) -> IntArray:
        """Kept channels per group, int64 [G]."""
        return np.array([len(indices) for indices in self.kept], dtype=np.int64)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Subnet):
            return NotImplemented
        return self.graph is other.graph and all(
            np.array_equal(mine, theirs) for mine, theirs in zip(self.kept, other.kept, strict=True)
        )

    def __hash__(self) -> int:
        return hash(tuple(indices.tobytes() for indices in self.kept))

    def __repr__(self) -> str:
        return f"Subnet(widths={self.widths.tolist()})"


def check_widths(widths: ArrayLike, full_widths: IntArray) -> IntArray:
    """Widths as int64 [..., G] in 1..C_g; anything else raises InputError and names the group."""
    groups = len(full_widths)
    try:
        given = np.asarray(widths)
    except ValueError as error:  # a ragged list
        raise InputError(f"widths must be integers [..., {groups}]: {error}") from error
    if given.ndim == 0 or given.shape[-1] != groups or given.dtype.kind not in "iu":
        raise InputError(
            f"widths must be integers [..., {groups}], one per group, "
            f"not {given.dtype} {given.shape}"
        )
    checked = given.astype(np.int64)
    wrong = np.argwhere((checked < 1) | (checked > full_widths))
    if len(wrong):
        place = tuple(wrong[0])
        raise InputError(
            f"width {checked[place]} of group {place[-1]} is outside 1..{full_widths[place[-1]]}"
        )
    return checked


def most_important(scores: NDArray[np.float64], width: int) -> IntArray:
    """The `width` channels of highest score, ascending; among equals the earlier channel stays."""
    best = np.argsort(-scores, kind="stable")[:width]
    return np.sort(best).astype(np.int64)


def check_kept(kept: list[ArrayLike], full_widths: IntArray) -> tuple[IntArray, ...]:
    """Kept indices as given by a user or a file, checked: ascending, in range, not empty."""
    if len(kept) != len(full_widths):
        raise InputError(f"kept names {len(kept)} groups, the network has {len(full_widths)}")
    checked = []
    for group, (indices, full) in enumerate(zip(kept, full_widths, strict=True)):
        array = np.asarray(indices)
        integers = array.ndim == 1 and len(array) > 0 and array.dtype.kind in "iu"
        in_range = integers and array[0] >= 0 and array[-1] < full
        if not in_range or (np.diff(array.astype(np.int64)) <= 0).any():
            raise InputError(
                f"kept channels of group {group} must be ascending indices in 0..{full - 1}, "
                f"not {indices!r}"
            )
        checked.append(array.astype(np.int64))
    return tuple(checked)
