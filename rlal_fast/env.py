"""PruningEnv: one episode = one walk over the groups, ending in a sub-network within the budget.

The walk itself, with states and bounds, is `walk.py`; here its sub-networks get their reward
(method.md §5). All episodes of an epoch walk side by side and are scored in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlal_fast.agents import Agent
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.replay import Episodes
from rlal_fast.screening import Screening
from rlal_fast.subnet import Subnet
from rlal_fast.walk import IntArray, Step, Walk, rewarded, static_features


class Scorer(Protocol):
    """What scores sub-networks; `Evaluator` is one."""

    def accuracies(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]: ...


@dataclass(frozen=True, eq=False)
class Rollout:
    """P finished episodes.

    Attributes:
        subnets: the sub-network that each episode ended in.
        widths: int64 [P, G].
        rewards: float64 [P], accuracies on the reward split, or what a race saw of it.
        episodes: the same as transitions for the replay.
    """

    subnets: list[Subnet]
    widths: IntArray
    rewards: NDArray[np.float64]
    episodes: Episodes


def joined(rollouts: Sequence[Rollout]) -> Rollout:
    """Several rollouts as one, in this order."""
    names = list(vars(rollouts[0].episodes))
    return Rollout(
        [subnet for rollout in rollouts for subnet in rollout.subnets],
        np.concatenate([rollout.widths for rollout in rollouts]),
        np.concatenate([rollout.rewards for rollout in rollouts]),
        Episodes(*(torch.cat([getattr(r.episodes, name) for r in rollouts]) for name in names)),
    )


class PruningEnv:
    """The agent's world.

    Args:
        graph: the network; its model's current weights rank the channels.
        budget: which widths are allowed.
        scorer: gives sub-networks their reward.
        importance: criterion by which channels stay.
        state: "profile" or "basic", see `walk.Walk`.
    """

    def __init__(
        self,
        graph: PrunableGraph,
        budget: Budget,
        scorer: Scorer,
        importance: str = "l1",
        state: str = "profile",
    ) -> None:
        self.graph, self.budget, self.scorer, self.importance = graph, budget, scorer, importance
        self.walk = Walk(static_features(graph), budget, state)

    @property
    def state_size(self) -> int:
        """Size S of a state."""
        return self.walk.state_size

    def rollout(
        self,
        agent: Agent,
        count: int,
        z: Tensor | None,
        generator: torch.Generator,
        screening: Screening | None = None,
    ) -> Rollout:
        """Lets `agent` walk `count` episodes and scores the sub-networks they end in.

        Args:
            agent: chooses a pruning ratio per group.
            count: number of episodes P.
            z: the epoch's embedding [Z], or None.
            generator: of the policy's samples.
            screening: walk many more episodes and score those P of them that it picks.
        """

        def choose(step: Step, low: IntArray, high: IntArray) -> IntArray:
            ratios = agent.act(step.state, z, step.low, step.high, generator)
            if screening is not None:
                ratios = screening.vary(ratios, step, generator)
            return self.budget.width(ratios.numpy(), step.group, low, high)

        walkers = count if screening is None else count * screening.config.candidates
        widths, episodes = self.walk.walk(walkers, choose)
        if screening is not None:
            chosen = screening.choose(episodes, widths, z, count)
            widths = widths[chosen]
            rows = torch.from_numpy(chosen)
            episodes = Episodes(*(tensor[rows] for tensor in vars(episodes).values()))
        subnets = self.graph.subnets(widths, self.importance)
        rewards = self.scorer.accuracies(subnets)
        return Rollout(subnets, widths, rewards, rewarded(episodes, rewards))

    def episodes(self, widths: IntArray, rewards: NDArray[np.floating]) -> Episodes:
        """What `rollout` put down of episodes that ended in these widths [P, G], bit for bit.

        Args:
            widths: as `rollout` returned them.
            rewards: [P].
        """
        return self.walk.episodes(widths, rewards)
