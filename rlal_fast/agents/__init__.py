"""Agents: one file each, all with the same four methods (RLAL §3.2, method.md §8)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from rlal_fast.agents.ddpg import DDPG, DDPGConfig
from rlal_fast.agents.evolutionary import EvolutionarySearch, EvolutionConfig
from rlal_fast.agents.random import RandomAgent
from rlal_fast.agents.sac import SAC, SACConfig
from rlal_fast.agents.uniform import UniformAgent
from rlal_fast.errors import InputError
from rlal_fast.replay import ReplayBuffer

__all__ = [
    "AGENTS",
    "DDPG",
    "SAC",
    "Agent",
    "DDPGConfig",
    "EvolutionConfig",
    "EvolutionarySearch",
    "RandomAgent",
    "SACConfig",
    "UniformAgent",
    "create",
]

AGENTS = ("sac", "ddpg", "evolutionary", "random", "uniform")


class Agent(Protocol):
    """What the environment and the trainer ask of an agent."""

    name: str

    def act(
        self, state: Tensor, z: Tensor | None, low: Tensor, high: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Sample ratios [P] within [low, high] [P] for states [P, S] and this epoch's z [Z]."""
        ...

    def update(
        self,
        replay: ReplayBuffer,
        z_by_epoch: Tensor | None,
        steps: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Take `steps` learning steps, z_by_epoch[e] being z of epoch e. Returns mean metrics."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything `act` and `update` depend on, readable by torch.load(weights_only=True).

        As with torch's modules, the tensors are the live ones: save them, or deepcopy to keep them.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, bit for bit, from what `state_dict` returned."""
        ...


def create(
    name: str,
    state_size: int,
    z_size: int,
    config: SACConfig | None = None,
    seed: int = 0,
    *,
    uniform_ratio: float = 0.5,
) -> Agent:
    """Make an agent by name (one of `AGENTS`).

    Args:
        name: "sac", "ddpg", "evolutionary", "random" or "uniform".
        state_size: size S of a state.
        z_size: size Z of the environment model's z; 0 for an agent without z (ablation w/o EE).
        config: SAC's settings; the others take their a_max from here too.
        seed: seed of the initial weights.
        uniform_ratio: the uniform agent's pruning ratio, in [0, 1].

    Raises:
        InputError: no agent has that name.
    """
    config = config or SACConfig()
    if name == "sac":
        return SAC(state_size, z_size, config, seed)
    if name == "ddpg":
        return DDPG(state_size, z_size, DDPGConfig(a_max=config.a_max), seed)
    if name == "evolutionary":
        return EvolutionarySearch(EvolutionConfig(a_max=config.a_max))
    if name == "random":
        return RandomAgent(config.a_max)
    if name == "uniform":
        return UniformAgent(uniform_ratio)
    raise InputError(f"unknown agent {name!r}: choose one of {', '.join(AGENTS)}")
