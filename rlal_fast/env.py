"""PruningEnv: one episode = one walk over the groups, ending in a sub-network within the budget.

Implements method.md §3 (state), §4 (action and budget), §5 (reward). All episodes of an epoch walk
side by side, and their sub-networks are scored in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlal_fast.agents import Agent
from rlal_fast.flops import Budget
from rlal_fast.graph import Group, PrunableGraph
from rlal_fast.replay import Episodes
from rlal_fast.subnet import Subnet

IntArray = NDArray[np.int64]
Arrays = tuple[NDArray[np.float32], ...]

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


class Scorer(Protocol):
    """What scores sub-networks; `Evaluator` is one."""

    def accuracies(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]: ...


@dataclass(frozen=True, eq=False)
class Rollout:
    """P finished episodes.

    Attributes:
        subnets: the sub-network that each episode ended in.
        widths: int64 [P, G].
        rewards: float64 [P], accuracies on the reward split.
        episodes: the same as transitions for the replay.
    """

    subnets: list[Subnet]
    widths: IntArray
    rewards: NDArray[np.float64]
    episodes: Episodes


class PruningEnv:
    """The agent's world.

    Args:
        graph: the network; its model's current weights rank the channels.
        budget: which widths are allowed.
        scorer: gives sub-networks their reward.
        importance: criterion by which channels stay.
    """

    def __init__(
        self, graph: PrunableGraph, budget: Budget, scorer: Scorer, importance: str = "l1"
    ) -> None:
        self.graph, self.budget, self.scorer, self.importance = graph, budget, scorer, importance
        self._static = static_features(graph)

    state_size = len(STATIC_FEATURES) + len(DYNAMIC_FEATURES)

    def rollout(
        self, agent: Agent, count: int, z: Tensor | None, generator: torch.Generator
    ) -> Rollout:
        """Lets `agent` walk `count` episodes and scores the sub-networks they end in.

        Args:
            agent: chooses a pruning ratio per group.
            count: number of episodes P.
            z: the epoch's embedding [Z], or None.
            generator: of the policy's samples.
        """

        def choose(group: int, seen: tuple[Tensor, ...], low: IntArray, high: IntArray) -> IntArray:
            state, least, most = seen
            ratios = agent.act(state, z, least, most, generator)
            return self.budget.width(ratios.numpy(), group, low, high)

        widths, seen = self._walk(count, choose)
        subnets = self.graph.subnets(widths, self.importance)
        rewards = self.scorer.accuracies(subnets)
        return Rollout(subnets, widths, rewards, _episodes(seen, rewards))

    def episodes(self, widths: IntArray, rewards: NDArray[np.floating]) -> Episodes:
        """What `rollout` put down of episodes that ended in these widths [P, G], bit for bit.

        Args:
            widths: as `rollout` returned them.
            rewards: [P].
        """
        _, seen = self._walk(len(widths), lambda group, *_: widths[:, group])
        return _episodes(seen, rewards)

    def _walk(
        self,
        count: int,
        choose: Callable[[int, tuple[Tensor, ...], IntArray, IntArray], IntArray],
    ) -> tuple[IntArray, Arrays]:
        """Decides one group after the other, in `count` episodes side by side.

        Args:
            choose: group, what an agent sees (states [P, S], least and greatest ratios [P]), least
                and greatest widths [P] -> widths [P].

        Returns:
            widths [P, G], and states, executed ratios, least and greatest ratios.
        """
        groups, full = len(self.graph.groups), self.graph.full_widths
        widths = np.tile(full, (count, 1))
        shape = (count, groups)
        actions, lows, highs = (np.zeros(shape, dtype=np.float32) for _ in range(3))
        states = np.zeros((*shape, self.state_size), dtype=np.float32)
        for g in range(groups):
            states[:, g] = self._state(widths, g, actions[:, g - 1] if g else np.zeros(count))
            low, high = self.budget.bounds(widths, g)
            # a ratio is the other way round: keeping the most channels is the lowest ratio
            lows[:, g], highs[:, g] = 1 - high / full[g], 1 - low / full[g]
            seen = tuple(_column(array, g) for array in (states, lows, highs))
            widths[:, g] = choose(g, seen, low, high)
            actions[:, g] = 1 - widths[:, g] / full[g]  # what was executed, not what was asked
        return widths, (states, actions, lows, highs)

    def _state(
        self, widths: IntArray, group: int, previous: NDArray[np.floating]
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
            previous,
        ]
        static = np.tile(self._static[group], (len(widths), 1))
        return np.concatenate([static, np.stack(dynamic, axis=1)], axis=1).astype(np.float32)


def _episodes(seen: Arrays, rewards: NDArray[np.floating]) -> Episodes:
    return Episodes(*map(torch.from_numpy, (*seen, rewards.astype(np.float32))))


def _column(array: NDArray[np.float32], group: int) -> Tensor:
    return torch.from_numpy(array[:, group].copy())


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
