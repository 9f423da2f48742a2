"""Uniform pruning: the baseline that gives every group the same ratio."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlal_fast.errors import InputError
from rlal_fast.replay import ReplayBuffer


class UniformAgent:
    """Chooses the same ratio for every group, clamped to what the budget allows (method.md §4).

    Args:
        ratio: pruning ratio in [0, 1].

    Raises:
        InputError: the ratio lies outside [0, 1].
    """

    name = "uniform"

    def __init__(self, ratio: float) -> None:
        if not 0.0 <= ratio <= 1.0:
            raise InputError(f"uniform ratio is {ratio}: give a pruning ratio between 0 and 1")
        self.ratio = ratio

    def act(
        self, state: Tensor, z: Tensor | None, low: Tensor, high: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Ratios [P] within [low, high] [P]; the state [P, S] and z only lend the number P."""
        return torch.clamp(torch.full((state.shape[0],), self.ratio), low, high)

    def update(
        self,
        replay: ReplayBuffer,
        z_by_epoch: Tensor | None,
        steps: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Nothing to learn: no metrics, and the generator is left as it was."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Empty: the agent has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept what `state_dict` returned."""
