"""What the tests of several agents share: a replay of noise, and a toy whose optimum is known."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from rlal_fast.agents import Agent
from rlal_fast.replay import Episodes, ReplayBuffer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def through_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def random_replay(groups: int = 3, state_size: int = 4, epochs: int = 2) -> ReplayBuffer:
    replay = ReplayBuffer(100, groups, state_size)
    g = generator(9)
    for epoch in range(epochs):
        low = 0.3 * torch.rand(8, groups, generator=g)
        replay.add(
            Episodes(
                states=torch.rand(8, groups, state_size, generator=g),
                actions=low + 0.2,
                low=low,
                high=low + 0.4,
                rewards=torch.rand(8, generator=g),
            ),
            epoch,
        )
    return replay


COSTS = torch.tensor([0.1, 0.6, 0.2, 0.9])
BUDGET = 1.6  # what the ratios of an episode must add up to
# Least sum(COSTS * a^2) with sum(a) = BUDGET and a <= 0.8: a ~ 1/cost, group 0 held at 0.8.
BEST = torch.tensor([0.8, 0.1714, 0.5143, 0.1143])


def walk(
    agent: Agent,
    episodes: int,
    g: torch.Generator,
    *,
    hide_cost: bool = False,
    index_first: bool = False,
    costs: Tensor = COSTS,
    budget: float = BUDGET,
) -> Episodes:
    """A toy of method.md §4: bounds by which every episode meets the budget.

    index_first: the state begins with the group's place in 0..1, as the environment's does.
    """
    groups, first = len(costs), int(index_first)
    states = torch.zeros(episodes, groups, first + groups + 2)
    actions, low, high = torch.zeros(3, episodes, groups)
    for i in range(groups):
        still = budget - actions.sum(1)
        states[:, i, 0] = i / (groups - 1)  # written over where no index is asked for
        states[:, i, first : first + groups] = torch.eye(groups)[i]
        states[:, i, first + groups] = still / groups
        if not hide_cost:
            states[:, i, first + groups + 1] = (costs * actions.square()).sum(1)
        low[:, i] = (still - (groups - 1 - i) * 0.8).clamp(0, 0.8)
        high[:, i] = torch.maximum(low[:, i], still.clamp(0, 0.8))
        actions[:, i] = agent.act(states[:, i], None, low[:, i], high[:, i], g)
    return Episodes(states, actions, low, high, 1 - (costs * actions.square()).sum(1))
