"""The walk of an episode over the groups: what an agent sees, and what its choices become.

Implements method.md §3 (state) and §4 (action and budget). It knows a network by its groups'
features and its budget alone, so the episodes of a past run can be walked again without its model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlal_fast.errors import InputError
from rlal_fast.flops import Budget
from rlal_fast.graph import Group, PrunableGraph
from rlal_fast.replay import Episodes

IntArray = NDArray[np.int64]

STATIC_FEATURES = (
    "index",
    "kind",
    "in_channels",
    "out_channels",
    "kernel",
    "stride",
    "spatial_size",
    "parameters",
    "macs",
)
DYNAMIC_FEATURES = ("macs_pruned", "macs_to_prune", "macs_removable", "previous_action")
# Of the state "profile" beside them. The reward depends on all ratios of an episode, and the
# features above tell the last one alone. In the profile the ratios decided so far stand at their
# relative depth in the network, so it has the same size and meaning for any number of groups.
PROFILE_FEATURES = 32
STATES = ("profile", "basic")


@dataclass(frozen=True)
class Step:
    """What is known when a group is decided, for P episodes side by side."""

    group: int
    state: Tensor  # float32 [P, S]
    even: Tensor  # float32 [P], the ratio that would meet the budget, given to all groups to come
    low: Tensor  # float32 [P], least ratio allowed
    high: Tensor  # float32 [P], greatest ratio allowed


class Walk:
    """All episodes of a network.

    Args:
        features: float32 [G, len(STATIC_FEATURES)] of its groups (`static_features`).
        budget: which widths are allowed.
        state: "profile", or "basic": the components of method.md §3 alone.

    Raises:
        InputError: no state has that name.
    """

    def __init__(
        self, features: NDArray[np.float32], budget: Budget, state: str = "profile"
    ) -> None:
        if state not in STATES:
            raise InputError(f"state={state!r} must be one of {', '.join(STATES)}")
        self.features, self.budget, self.state = features, budget, state
        self.groups = len(features)
        self._places = places(self.groups)

    @property
    def state_size(self) -> int:
        """Size S of a state."""
        basic = len(STATIC_FEATURES) + len(DYNAMIC_FEATURES)
        return basic if self.state == "basic" else basic + 1 + PROFILE_FEATURES

    def walk(
        self, count: int, choose: Callable[[Step, IntArray, IntArray], IntArray]
    ) -> tuple[IntArray, Episodes]:
        """Decides one group after the other, in `count` episodes side by side.

        Args:
            choose: the step, least and greatest widths [P] -> widths [P].

        Returns:
            widths int64 [P, G], and the episodes with rewards of 0.
        """
        full = self.budget.full_widths
        widths = np.tile(full, (count, 1))
        shape = (count, self.groups)
        actions, lows, highs = (np.zeros(shape, dtype=np.float32) for _ in range(3))
        states = np.zeros((*shape, self.state_size), dtype=np.float32)
        profile = np.zeros((count, PROFILE_FEATURES), dtype=np.float32)
        for g in range(self.groups):
            even = self.budget.even_ratio(widths, g)
            states[:, g] = self._state(widths, g, actions, even, profile)
            low, high = self.budget.bounds(widths, g)
            # a ratio is the other way round: keeping the most channels is the lowest ratio
            lows[:, g], highs[:, g] = 1 - high / full[g], 1 - low / full[g]
            columns = (states[:, g], even.astype(np.float32), lows[:, g], highs[:, g])
            step = Step(g, *(torch.from_numpy(column.copy()) for column in columns))
            widths[:, g] = choose(step, low, high)
            actions[:, g] = 1 - widths[:, g] / full[g]  # what was executed, not what was asked
            # not one matrix product: its last bits would depend on the number of episodes
            profile += actions[:, g, None] * self._places[g]
        rewards = np.zeros(count, dtype=np.float32)
        return widths, Episodes(*map(torch.from_numpy, (states, actions, lows, highs, rewards)))

    def episodes(self, widths: IntArray, rewards: NDArray[np.floating]) -> Episodes:
        """What `walk` put down of episodes that ended in these widths [P, G], bit for bit.

        Args:
            widths: as `walk` returned them.
            rewards: [P].
        """
        _, walked = self.walk(len(widths), lambda step, *_: widths[:, step.group])
        return rewarded(walked, rewards)

    def _state(
        self,
        widths: IntArray,
        group: int,
        actions: NDArray[np.float32],
        even: NDArray[np.float64],
        profile: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """States [P, S] before `group` is decided; later groups in `widths` are still full."""
        cost, full = self.budget.cost, self.budget.macs_full
        now = cost.macs(widths)
        least = widths.copy()
        least[:, group:] = self.budget.min_widths[group:]
        dynamic = [
            (full - now) / full,
            np.maximum(now - self.budget.macs, 0) / full,
            (now - cost.macs(least)) / full,
            actions[:, group - 1] if group else np.zeros(len(widths)),
        ]
        static = np.tile(self.features[group], (len(widths), 1))
        parts = [static, np.stack(dynamic, axis=1)]
        if self.state == "profile":
            parts += [even[:, None], profile]
        return np.concatenate(parts, axis=1).astype(np.float32)


def rewarded(episodes: Episodes, rewards: NDArray[np.floating]) -> Episodes:
    """The same episodes with these rewards [P]."""
    return Episodes(
        episodes.states,
        episodes.actions,
        episodes.low,
        episodes.high,
        torch.from_numpy(rewards.astype(np.float32)),
    )


def places(groups: int) -> NDArray[np.float32]:
    """[G, PROFILE_FEATURES]: how much of each slot of the profile belongs to each group.

    Both divide the depth 0..1 evenly; a column adds up to 1.
    """
    slots = np.arange(PROFILE_FEATURES) / PROFILE_FEATURES
    begin = np.arange(groups)[:, None] / max(groups, 1)
    shared = np.minimum(begin + 1 / max(groups, 1), slots + 1 / PROFILE_FEATURES)
    overlap = np.maximum(shared - np.maximum(begin, slots), 0)
    return (overlap * PROFILE_FEATURES).astype(np.float32)


def static_features(graph: PrunableGraph) -> NDArray[np.float32]:
    """What a state says of the groups themselves, whatever was decided (method.md §3).

    Returns:
        float32 [G, len(STATIC_FEATURES)], each relative to the network's own largest value. All
        but the kind: it means the same in a network that lacks another kind (method.md §10).
    """
    groups, macs = graph.groups, graph.group_macs()
    rows = []
    for group, cost in zip(groups, macs, strict=True):
        first = group.layers[0]
        size = first.shape[1:] or (1, 1)
        rows.append(
            [
                group.index,
                _kind(group),
                graph.nodes[first.inputs[0]].shape[0],
                group.width,
                max(first.attrs.get("kernel", [1])),
                max(first.attrs.get("stride", [1])),
                float(np.sqrt(size[0] * size[1])),
                _parameters(graph, group),
                cost,
            ]
        )
    features = np.array(rows, dtype=np.float64).reshape(len(groups), len(STATIC_FEATURES))
    largest = np.maximum(features.max(axis=0, initial=1e-9), 1e-9)
    largest[STATIC_FEATURES.index("kind")] = 1.0
    return (features / largest).astype(np.float32)


def _kind(group: Group) -> float:
    """0: convolution, 1/2: convolution whose channels a depthwise one then filters, 1: linear."""
    if group.layers[0].op == "linear":
        return 1.0
    return 0.5 if any(node.attrs.get("depthwise", False) for node in group.layers) else 0.0


def _parameters(graph: PrunableGraph, group: Group) -> int:
    state = graph.model.state_dict()
    return sum(state[node.params["weight"]].numel() for node in group.layers)
