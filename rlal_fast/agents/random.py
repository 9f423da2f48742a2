"""Random search: the baseline that learns nothing, and the filler of the first episodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlal_fast.replay import ReplayBuffer


class RandomAgent:
    """Draws each ratio from U(0, a_max) and clamps it to what the budget allows (method.md §4)."""

    name = "random"

    def __init__(self, a_max: float = 0.8) -> None:
        self.a_max = a_max

    def act(
        self, state: Tensor, z: Tensor | None, low: Tensor, high: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Ratios [P] within [low, high] [P]; the state [P, S] and z only lend the number P."""
        ratio = self.a_max * torch.rand(state.shape[0], generator=generator)
        return torch.clamp(ratio, low, high)

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
