"""A toy of method.md §2 whose rewards move with the epoch as they do when weights move.

As in `agent_cases.walk`, an episode's ratios add up to BUDGET and each costs `costs * a^2`. Here
the costs are others in every epoch, so the best ratios are too, and the reward may rise as training
makes it rise. Nothing in a state tells the epoch. Each epoch's best reward is known exactly.

Measured: mean regret over the second half of the epochs (best reward - mean reward of the episodes
of SETTINGS' policy), mean ± sd over the seeds 0, 1, ...; random ratios have 0.14 to 0.27. "rise" is
first_level 0.5. `told` reads the costs and the level themselves as z, `5 epochs` is without z but
with a replay of 5 epochs, `centred` is without z, each reward less the mean of its epoch.

  drift (epochs, seeds)     w/o EE        EE            told          5 epochs      centred
  one_way, rise (30, 3)     0.317 ± 0.006 0.124 ± 0.014 0.117 ± 0.017 0.078 ± 0.011 0.133 ± 0.003
  one_way, rise (24, 9)     0.300 ± 0.027 0.195 ± 0.036
  turning 60, rise (30, 3)  0.226 ± 0.032 0.104 ± 0.005
  one_way (40, 2)           0.168 ± 0.012 0.106 ± 0.016 0.050 ± 0.025 0.034 ± 0.014
  still, rise (40, 2)       0.027 ± 0.005 0.013 ± 0.000 0.010 ± 0.003 0.022 ± 0.002
  still, rise (30, 4)       0.022 ± 0.004 0.022 ± 0.001
  still, rise (24, 3)       0.020 ± 0.003 0.021 ± 0.004
  still (30, 3)             0.016 ± 0.001 0.024 ± 0.002
  still (24, 3)             0.018 ± 0.001 0.020 ± 0.002
  jumps, turning 40 (40, 2) 0.267 ± 0.029 0.232 ± 0.012 0.052 ± 0.010 0.194 ± 0.032
  jumps, turning 20 (40, 2) 0.179 ± 0.019 0.184 ± 0.000 0.034 ± 0.000 0.193 ± 0.022

With 40 epochs 40 updates each, else 30; with 24 epochs 20 steps of the model each, else 25.
EE is worth most where a rise comes with a moving optimum. Where the optimum moves one way, a short
memory without z does better still. Jumps: a third to a half of what separates EE from `told` is
lateness (told one epoch late: 0.109 and 0.116); of the rest, 100 steps of the model instead of 25
win back most for turning 40 (0.145). Costs two regimes apart have optima that are alike, so
`turning` has two kinds of regimes rather than four.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from agent_cases import BUDGET, COSTS
from torch import Tensor

from rlal_fast.agents import Agent, RandomAgent
from rlal_fast.agents.sac import SAC, SACConfig
from rlal_fast.environment_model import EnvironmentModel, EnvironmentModelConfig
from rlal_fast.replay import Episodes, ReplayBuffer

A_MAX = 0.8
GROUPS = len(COSTS)
STATE = 2 * GROUPS + 1  # which group, the ratios so far, what is still to be pruned

# Written out, so that other defaults of these classes do not move the measurements.
SETTINGS = SACConfig(
    actor_lr=1e-3,
    critic_lr=3e-3,
    alpha=0.1,
    gamma=1.0,
    tau=0.02,
    hidden=(64, 64),
    batch_size=64,
    a_max=A_MAX,
    scale_rewards=True,
    return_weight=0.0,
)
ENVIRONMENT = EnvironmentModelConfig(
    embedding=32, hidden=32, decoder=(64, 64), lr=1e-3, steps_per_epoch=20, batch_size=64
)


@dataclass(frozen=True)
class Drift:
    """The rewards of E epochs: level * (1 - sum(costs * a^2)), in [0, 1] within the budget."""

    costs: Tensor  # float32 [E, G]
    level: Tensor  # float32 [E], accuracy of the whole network, in (0, 1]

    @property
    def epochs(self) -> int:
        return self.level.shape[0]

    def rewards(self, actions: Tensor, epoch: int) -> Tensor:
        """Rewards [P] of ratios [P, G] under an epoch's weights."""
        return self.level[epoch] * (1 - (self.costs[epoch] * actions.square()).sum(-1))

    def best(self, epoch: int) -> float:
        """Greatest reward in an epoch that any ratios within the budget have."""
        return float(self.rewards(best_ratios(self.costs[epoch]), epoch))


def best_ratios(costs: Tensor) -> Tensor:
    """Least sum(costs * a^2) with sum(a) = BUDGET and a <= A_MAX.

    Lagrange: a = m / costs, or A_MAX where that is more; groups are held there one by one.
    """
    held = torch.zeros(GROUPS, dtype=torch.bool)
    while True:
        still = BUDGET - A_MAX * int(held.sum())
        free = torch.where(held, 0.0, 1 / costs)
        ratios = torch.where(held, A_MAX, still * free / free.sum())
        if bool((ratios <= A_MAX).all()):
            return ratios
        held |= ratios >= A_MAX


def rise(epochs: int, first: float) -> Tensor:
    """Level [E] of a network in training: quick from `first` at the start, 1 at the end."""
    return 1 - (1 - first) * torch.exp(-4 * torch.linspace(0, 1, epochs))


def still(epochs: int, first_level: float = 1.0) -> Drift:
    """The same costs in every epoch."""
    return Drift(COSTS.expand(epochs, GROUPS), rise(epochs, first_level))


def one_way(epochs: int, first_level: float = 1.0) -> Drift:
    """From COSTS straight to COSTS backwards: dear groups become cheap, and never again dear."""
    share = torch.linspace(0, 1, epochs)[:, None]
    return Drift(torch.lerp(COSTS, COSTS.flip(0), share), rise(epochs, first_level))


def turning(epochs: int, period: int, *, sudden: bool = False, first_level: float = 1.0) -> Drift:
    """COSTS move on by one group after the other and are back where they were after `period`.

    sudden: they stay for a quarter of a period and jump; otherwise they never stand still.
    """
    place = torch.arange(epochs) * GROUPS / period
    before = place.floor().long()
    share = torch.zeros(epochs) if sudden else place - before
    regimes = torch.stack([COSTS.roll(k) for k in range(GROUPS)])
    here, there = regimes[before % GROUPS], regimes[(before + 1) % GROUPS]
    return Drift(torch.lerp(here, there, share[:, None]), rise(epochs, first_level))


def walk(
    agent: Agent, episodes: int, drift: Drift, epoch: int, z: Tensor | None, g: torch.Generator
) -> Episodes:
    """Episodes under an epoch's weights and z; their bounds leave no way past the budget."""
    states = torch.zeros(episodes, GROUPS, STATE)
    actions, low, high = torch.zeros(3, episodes, GROUPS)
    for i in range(GROUPS):
        left = BUDGET - actions.sum(1)
        states[:, i, i] = 1
        states[:, i, GROUPS : 2 * GROUPS] = actions
        states[:, i, 2 * GROUPS] = left / GROUPS
        low[:, i] = (left - (GROUPS - 1 - i) * A_MAX).clamp(0, A_MAX)
        high[:, i] = torch.maximum(low[:, i], left.clamp(0, A_MAX))
        actions[:, i] = agent.act(states[:, i], z, low[:, i], high[:, i], g)
    return Episodes(states, actions, low, high, drift.rewards(actions, epoch))


@dataclass(frozen=True)
class Regret:
    """How far below the best an epoch's episodes stayed."""

    mean: Tensor  # float32 [E], best reward of the epoch - mean reward of its episodes
    best: Tensor  # float32 [E], best reward of the epoch - reward of its best episode

    def second_half(self) -> tuple[float, float]:
        """Averages of both over the later half of the epochs."""
        start = self.mean.shape[0] // 2
        return float(self.mean[start:].mean()), float(self.best[start:].mean())


def run(
    drift: Drift,
    sac: SACConfig,
    environment: EnvironmentModelConfig | None,
    seed: int,
    *,
    episodes: int = 10,
    random_epochs: int = 4,
    updates: int = 40,
    memory: int | None = None,
    centred: bool = False,
    z_of: Callable[[int], Tensor] | None = None,
) -> Regret:
    """The loop of `JointTrainer._joint_epoch` on a drift; `environment` None is "w/o EE".

    memory: how many epochs the replay holds; None: all.
    centred: the replay is given rewards less their epoch's mean, another way to be rid of a rise.
    z_of: z [E, Z] as known in an epoch, for an agent that is told instead of learning it.
    """
    g = torch.Generator().manual_seed(seed)
    model = None if environment is None else EnvironmentModel(STATE, environment, seed)
    z_size = model.z_size if model else 0 if z_of is None else z_of(0).shape[1]
    agent = SAC(STATE, z_size, sac, seed)
    replay = ReplayBuffer(episodes * (memory or drift.epochs), GROUPS, STATE)
    mean, best = torch.zeros(2, drift.epochs)
    for epoch in range(drift.epochs):
        if model:
            model.begin_epoch()
        z = model.z() if model else None if z_of is None else z_of(epoch)
        chooser = RandomAgent(A_MAX) if epoch < random_epochs else agent
        found = walk(chooser, episodes, drift, epoch, None if z is None else z[epoch], g)
        mean[epoch] = drift.best(epoch) - found.rewards.mean()
        best[epoch] = drift.best(epoch) - found.rewards.max()
        if centred:
            found = replace(found, rewards=found.rewards - found.rewards.mean())
        replay.add(found, epoch)
        if model:
            model.update(replay, g)
            z = model.z()
        agent.update(replay, z, updates, g)
    return Regret(mean, best)
