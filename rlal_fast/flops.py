"""FLOPs accounting and the exact budget (method.md §1, §4).

MACs are multiply-adds of convolutions and linear layers for one image, as exact int64; FLOPs are
twice that. All counting happens in C++ over many width vectors at once; `kernels/reference.py`
holds the specification.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlal_fast.errors import InputError
from rlal_fast.kernels import native
from rlal_fast.subnet import check_widths

if TYPE_CHECKING:
    from rlal_fast.graph import PrunableGraph

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ChannelCount:
    """Channels of one tensor as a linear form of the widths: constant + sum of times_g * c_g."""

    constant: int
    terms: tuple[tuple[int, int], ...]  # (group, times)


@dataclass(frozen=True)
class LayerCost:
    """MACs of one layer: area * out channels * in channels (in = 1 for a depthwise convolution).

    Attributes:
        name: the layer's place in the model.
        area: kernel positions times output pixels.
        out, inputs: channel counts of its output and of what each output channel reads.
    """

    name: str
    area: int
    out: ChannelCount
    inputs: ChannelCount


@dataclass(frozen=True)
class CostTable:
    """The cost of a network as a function of its widths."""

    layers: tuple[LayerCost, ...]
    full_widths: IntArray  # [G]

    @cached_property
    def native(self) -> native.CostModel:
        rows = [
            (
                layer.area,
                layer.out.constant,
                layer.out.terms,
                layer.inputs.constant,
                layer.inputs.terms,
            )
            for layer in self.layers
        ]
        return native.extension().CostModel(rows, self.full_widths)

    def macs(self, widths: ArrayLike) -> IntArray:
        """MACs int64 [...] of widths [..., G]."""
        checked = check_widths(widths, self.full_widths)
        rows = math.prod(checked.shape[:-1])  # not -1: a network may have no groups
        flat = np.ascontiguousarray(checked.reshape(rows, len(self.full_widths)))
        return np.asarray(self.native.count(flat)).reshape(checked.shape[:-1])

    def to_json(self) -> str:
        """The table as JSON text, which `from_json` reads."""
        layers = [asdict(layer) for layer in self.layers]
        return json.dumps({"full_widths": self.full_widths.tolist(), "layers": layers})

    @classmethod
    def from_json(cls, text: str) -> CostTable:
        """The table that `to_json` wrote.

        Raises:
            InputError: the text is no such table: not JSON, something missing, a number that is no
                count, a term of a group that is not there, or more MACs than int64 holds.
        """
        try:
            plain = json.loads(text)
            full = [_whole(width, 1) for width in plain["full_widths"]]
            layers = tuple(_layer(row, len(full)) for row in plain["layers"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"not a cost table as CostTable.to_json writes it: {error}") from error
        macs = sum(
            row.area * _channels(row.out, full) * _channels(row.inputs, full) for row in layers
        )
        if macs > np.iinfo(np.int64).max:
            raise InputError(f"the cost table counts {macs} MACs, more than int64 holds")
        return cls(layers, np.array(full, dtype=np.int64))


def _layer(row: dict[str, Any], groups: int) -> LayerCost:
    if not isinstance(row["name"], str):
        raise ValueError(f"a layer's name is {row['name']!r}")
    counts = (_count(row[part], groups) for part in ("out", "inputs"))
    return LayerCost(row["name"], _whole(row["area"], 0), *counts)


def _count(row: dict[str, Any], groups: int) -> ChannelCount:
    terms = tuple((_whole(group, 0), _whole(times, 0)) for group, times in row["terms"])
    if any(group >= groups for group, _ in terms):
        raise ValueError(f"terms {terms} name a group that is not among {groups}")
    return ChannelCount(_whole(row["constant"], 0), terms)


def _whole(value: Any, least: int) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{value!r} is not a whole number from {least} on")
    return value


def _channels(count: ChannelCount, widths: list[int]) -> int:
    return count.constant + sum(times * widths[group] for group, times in count.terms)


def count_macs(graph: PrunableGraph, widths: ArrayLike) -> IntArray:
    """Exact multiply-adds for one image of the compact networks of the given widths.

    Args:
        graph: the network.
        widths: integers [S, G] (or [G]) in 1..C_g.

    Returns:
        int64 [S] (or a scalar array): convolutions and linear layers only, no bias, no batch norm.

    Raises:
        InputError: wrong shape, not integers, or a width out of range (the group is named).
    """
    return graph.cost.macs(widths)


class Budget:
    """Which widths an episode may choose so that it ends within an exact number of MACs.

    Args:
        cost: the network's cost table.
        pruned_flops: fraction p in [0, 1) of FLOPs to remove; the budget is floor((1-p) *
            MACs_full).
        a_max: largest pruning ratio of a group, in [0, 1].
        min_width: smallest width of a group.
        round_to: widths are multiples of this (or the full width).

    Raises:
        InputError: a setting out of range, or a budget that even the smallest widths exceed; the
            message says what can be reached.
    """

    def __init__(
        self,
        cost: CostTable,
        pruned_flops: float,
        *,
        a_max: float = 0.8,
        min_width: int = 1,
        round_to: int = 1,
    ) -> None:
        if not 0 <= pruned_flops < 1:
            raise InputError(f"pruned_flops must be in [0, 1), e.g. 0.5, not {pruned_flops}")
        if not 0 <= a_max <= 1 or min_width < 1 or round_to < 1:
            raise InputError(
                f"a_max={a_max} must be in [0, 1], min_width={min_width} and "
                f"round_to={round_to} at least 1"
            )
        self.cost, self.a_max, self.round_to = cost, a_max, round_to
        self.full_widths = cost.full_widths
        self.macs_full = int(cost.macs(self.full_widths))
        # a Fraction of the decimal that the user wrote: 0.35 means 35/100, not its nearest double
        self.macs = math.floor((1 - Fraction(str(pruned_flops))) * self.macs_full)
        self.min_widths = self._smallest(min_width)
        least = int(cost.macs(self.min_widths)) if len(self.full_widths) else self.macs_full
        if least > self.macs:
            # rounded down, so that the number printed can itself be asked for
            reach = (self.macs_full - least) * 10000 // self.macs_full / 10000
            raise InputError(
                f"pruned_flops={pruned_flops} cannot be reached: with a_max={a_max}, "
                f"min_width={min_width}, round_to={round_to} the range is 0 to {reach:.4f}"
            )

    def _smallest(self, min_width: int) -> IntArray:
        smallest = [
            max(min_width, full - math.floor(self.a_max * full + 1e-9)) for full in self.full_widths
        ]
        rounded = np.ceil(np.array(smallest) / self.round_to).astype(np.int64) * self.round_to
        return np.minimum(rounded, self.full_widths)

    def bounds(self, widths: IntArray, group: int) -> tuple[IntArray, IntArray]:
        """Allowed widths [low, high] of `group` after the choices widths[:, :group] (method.md §4).

        Args:
            widths: int64 [P, G]; entries from `group` on are ignored.

        Returns:
            low, high: int64 [P] with low <= high; any choice in between can still end within the
            budget, and none below low is needed for it.
        """
        return self.cost.native.bounds(
            np.ascontiguousarray(widths), group, self.min_widths, self.round_to, self.macs
        )

    def width(
        self, ratios: NDArray[np.floating], group: int, low: IntArray, high: IntArray
    ) -> IntArray:
        """Widths [P] for pruning ratios [P]: floor, round, then bound, in this order."""
        full = int(self.full_widths[group])
        exact = full - np.floor((np.clip(ratios, 0.0, 1.0) + 1e-7) * full)  # float32 is off by 6e-8
        rounded = np.minimum(np.round(exact / self.round_to) * self.round_to, full)
        # the full width is allowed too, also where it is no multiple: a ratio of 0 removes nothing
        nearest = np.where(full - exact < np.abs(rounded - exact), full, rounded)
        return np.clip(nearest.astype(np.int64), low, high)

    def even_ratio(self, widths: IntArray, group: int) -> NDArray[np.float64]:
        """Ratios [P] that meet the budget if all groups from `group` on get them; a_max at most.

        They are exact to a_max / 256, from above: a little more is removed than must be.

        Args:
            widths: int64 [P, G]; entries from `group` on are ignored.
        """
        full, least = self.full_widths[group:], self.min_widths[group:]
        low, high = np.zeros(len(widths)), np.full(len(widths), self.a_max)
        trial = widths.copy()
        for _ in range(8):
            ratio = (low + high) / 2
            kept = full - np.floor(ratio[:, None] * full + 1e-7).astype(np.int64)
            trial[:, group:] = np.maximum(kept, least)
            fits = self.cost.macs(trial) <= self.macs
            low, high = np.where(fits, low, ratio), np.where(fits, ratio, high)
        return high

    def fitted(self, ratios: NDArray[np.floating]) -> NDArray[np.float64]:
        """Ratios in the spirit of these that meet the budget, and no more than they must.

        What each group keeps, 1 - ratio, is raised to one power: groups that were pruned little
        stay so, and one that was not pruned is not pruned now.

        Args:
            ratios: [P, G] in [0, 1], such as another budget's.

        Returns:
            [P, G] in [0, a_max], a_max where a ratio of 1 was; where the groups that are pruned
            cannot meet the budget alone, a_max for each of them.
        """
        kept = np.clip(1.0 - np.asarray(ratios, dtype=np.float64), 1e-6, 1.0)
        # logarithms of the power: from next to nothing to a_max for whatever is pruned at all
        low, high = np.full(len(kept), math.log(1e-2)), np.full(len(kept), math.log(1e8))
        widths = np.empty(kept.shape, dtype=np.int64)
        for _ in range(24):
            power = (low + high) / 2
            pruned = np.minimum(1.0 - kept ** np.exp(power)[:, None], self.a_max)
            for group in range(len(self.full_widths)):
                only = slice(group, group + 1)
                least, full = self.min_widths[only], self.full_widths[only]
                widths[:, group] = self.width(pruned[:, group], group, least, full)
            fits = self.cost.macs(widths) <= self.macs
            low, high = np.where(fits, low, power), np.where(fits, power, high)
        found: NDArray[np.float64] = 1.0 - kept ** np.exp(high)[:, None]
        return np.minimum(found, self.a_max)

    def uniform_ratio(self) -> float:
        """The smallest ratio (to 1e-4) that, given to all groups, meets the budget; else a_max."""
        ratios = np.arange(10000) / 10000
        ratios = ratios[ratios <= self.a_max]
        widths = np.empty((len(ratios), len(self.full_widths)), dtype=np.int64)
        for group in range(len(self.full_widths)):
            only = slice(group, group + 1)
            low, high = self.min_widths[only], self.full_widths[only]
            widths[:, group] = self.width(ratios, group, low, high)
        fitting = np.flatnonzero(self.cost.macs(widths) <= self.macs)
        return float(ratios[fitting[0]]) if len(fitting) else self.a_max
