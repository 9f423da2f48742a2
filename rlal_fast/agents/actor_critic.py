"""What the actor-critic agents have in common: their checks, their training loop, their state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlal_fast.errors import InputError
from rlal_fast.mlp import MLP, Condition, single_thread


class ActorCritic:
    """Base of agents with an actor and critics that read [s, z].

    Args:
        state_size: size S of a state.
        z_size: size Z of z; 0 for an agent without z (ablation w/o EE).
        hidden: sizes of the hidden layers.
    """

    def __init__(self, state_size: int, z_size: int, hidden: tuple[int, ...]) -> None:
        self.state_size, self.z_size = state_size, z_size
        self.updates = 0
        self._shape = [state_size, z_size, *hidden]

    def learned(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """The networks and optimisers, by their names in `state_dict`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Networks, targets, Adam states and the number of updates."""
        parts = {name: part.state_dict() for name, part in self.learned().items()}
        return {"shape": list(self._shape), **parts, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, bit for bit, from what `state_dict` returned.

        Raises:
            InputError: the saved agent has other sizes.
        """
        if state["shape"] != self._shape:
            raise InputError(
                f"the saved agent has sizes (state, z, hidden...) {state['shape']}, this one has "
                f"{self._shape}: load it into an agent made with the same sizes"
            )
        for name, part in self.learned().items():
            part.load_state_dict(state[name])
        self.updates = state["updates"]

    def _condition(self, state: Tensor, z: Tensor | None) -> Condition | None:
        """What the actor reads beside states [P, S]: one z [Z] for all of them.

        Raises:
            InputError: the state or z has another size than the agent was made for.
        """
        if state.dim() != 2 or state.shape[1] != self.state_size:
            raise InputError(
                f"state has shape {tuple(state.shape)}, this agent needs [P, {self.state_size}]"
            )
        self._check_z(z)
        return None if z is None else Condition(z[None], None)

    def _check_z(self, z: Tensor | None) -> None:
        size = 0 if z is None else z.shape[-1]
        if size != self.z_size:
            raise InputError(f"z has size {size}, this agent was made for size {self.z_size}")


def mean_over_steps(step: Callable[[], dict[str, Tensor]], steps: int) -> dict[str, float]:
    """Call `step` so many times on one thread; the means of the metrics it returns."""
    totals: dict[str, Tensor] = {}
    with single_thread():
        for _ in range(steps):
            totals = {name: totals.get(name, 0.0) + value for name, value in step().items()}
    return {name: float(value) / steps for name, value in totals.items()}


def follow(target: MLP, source: MLP, tau: float) -> None:
    """target <- target + tau (source - target), parameter by parameter."""
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
            ours.lerp_(theirs, tau)
