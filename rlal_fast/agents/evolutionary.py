"""Evolutionary search over vectors of pruning ratios: the baseline that learns no policy.

A plain (mu + lambda) search: the mu best distinct episodes so far are the parents of the next
lambda, which are whatever number of episodes the environment walks side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rlal_fast.errors import InputError
from rlal_fast.replay import ReplayBuffer


@dataclass(frozen=True)
class EvolutionConfig:
    """Settings of the evolutionary search.

    On ResNet-20 at 50 %, 300 evaluations, rates of 1 and 0.1 in place of 0.5 and 0.2 were ahead on
    500 images (0.421 to 0.407, four seeds) and behind on 1,000 (0.379 to 0.391, two seeds):
    settings near these are not told apart.

    Raises:
        InputError: a value is outside its range.
    """

    population: int = 16  # mu, the number of parents
    tournament: int = 2  # parents drawn, of which the best is taken
    crossover_rate: float = 0.5  # share of children with two parents
    mutation_rate: float = 0.2  # share of the genes that change; one changes always
    mutation_sigma: float = 0.15  # of the Gaussian added to them, in units of the ratio
    # Weights that move make rewards stale, and what was lucky once would be a parent for ever. So
    # parents age and die, as in Real et al., Regularized Evolution for Image Classifier
    # Architecture Search, AAAI 2019, section 2. What they were worth their children hand on.
    lifetime: int = 20  # epochs for which an episode can be a parent
    a_max: float = 0.8  # greatest pruning ratio

    def __post_init__(self) -> None:
        checks = {
            "population": self.population >= 1,
            "tournament": self.tournament >= 1,
            "crossover_rate": 0 <= self.crossover_rate <= 1,
            "mutation_rate": 0 <= self.mutation_rate <= 1,
            "mutation_sigma": 0 < self.mutation_sigma < math.inf,
            "lifetime": self.lifetime >= 1,
            "a_max": 0 < self.a_max < 1,
        }
        for name, valid in checks.items():
            if not valid:
                raise InputError(f"EvolutionConfig.{name} = {getattr(self, name)} is out of range")


class EvolutionarySearch:
    """Breeds each epoch's episodes from the best ones of the replay.

    Genes are executed ratios, what the environment made of a wish, so that parents are within the
    budget and a child differs from that by its mutations alone. Where the bounds of the budget
    change a child, they change its last groups. Spreading that over all later groups, in
    proportion to or on top of the child's ratios, found nothing better: ResNet-20 at 50 %, 300
    evaluations on 500 images, means of the best of four seeds 0.404 as it is, 0.398 and 0.395
    spread.

    The first episodes, until `update` was called with a replay, are random.
    """

    name = "evolutionary"

    def __init__(self, config: EvolutionConfig | None = None) -> None:
        self.config = config or EvolutionConfig()
        self._parents: Tensor | None = None  # [mu, G], best first
        self._children: Tensor | None = None  # [P, G], those that walk now

    def act(
        self, state: Tensor, z: Tensor | None, low: Tensor, high: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Ratios [P] within [low, high] [P]; z is not read.

        Of the state [P, S] only the first component of its first row is, the group's place in
        0..1: where it is 0, new children are bred.
        """
        count = state.shape[0]
        if self._parents is None:
            ratio = self.config.a_max * torch.rand(count, generator=generator)
            return torch.clamp(ratio, low, high)
        last = self._parents.shape[1] - 1
        group = min(max(round(float(state[0, 0]) * last), 0), last)
        if group == 0 or self._children is None or len(self._children) != count:
            self._children = self._breed(self._parents, count, generator)
        return torch.clamp(self._children[:, group], low, high)

    def update(
        self,
        replay: ReplayBuffer,
        z_by_epoch: Tensor | None,
        steps: int,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Choose the parents, whatever `steps` is; the generator is left as it was.

        Returns and raises what `choose_parents` does.
        """
        return self.choose_parents(replay)

    def choose_parents(self, replay: ReplayBuffer) -> dict[str, float]:
        """The best distinct living episodes, from which `act` breeds.

        Returns:
            "parents": their number; "best_parent" and "worst_parent": their rewards.

        Raises:
            InputError: the replay is empty.
        """
        if replay.episode_count == 0:
            raise InputError("the replay is empty: add episodes before choosing parents from it")
        rows = self._candidates(replay)
        rewards = replay.all_returns[rows]
        order = torch.argsort(rewards, descending=True, stable=True)[: self.config.population]
        self._parents, rewards = replay.all_actions[rows[order]], rewards[order]
        return {
            "parents": float(len(order)),
            "best_parent": float(rewards[0]),
            "worst_parent": float(rewards[-1]),
        }

    def adopt(self, parents: Tensor) -> None:
        """Breed from these ratios [N, G], best first, whatever the replay holds."""
        self._parents = parents

    def state_dict(self) -> dict[str, Any]:
        """Parents and children."""
        return {"parents": self._parents, "children": self._children}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, bit for bit, from what `state_dict` returned."""
        self._parents, self._children = state["parents"], state["children"]

    def _candidates(self, replay: ReplayBuffer) -> Tensor:
        """Rows [N] of the distinct living episodes, newest first.

        Of episodes with equal ratios only the newest stays: its reward is of the newest weights.
        """
        epochs = replay.all_epochs
        living = torch.nonzero(epochs > epochs.max() - self.config.lifetime).flip(0).squeeze(1)
        distinct: dict[tuple[float, ...], int] = {}
        for row, ratios in zip(living.tolist(), replay.all_actions[living].tolist(), strict=True):
            distinct.setdefault(tuple(ratios), row)
        return torch.tensor(list(distinct.values()))

    def _breed(self, parents: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Children [P, G] of parents [mu, G], best first: crossover, then mutation."""
        config, shape = self.config, (count, parents.shape[1])
        mother, father = (self._choose(parents, count, generator) for _ in range(2))
        crossed = torch.rand(count, 1, generator=generator) < config.crossover_rate
        fathers = crossed & (torch.rand(shape, generator=generator) < 0.5)
        children = torch.where(fathers, father, mother)
        mutated = torch.rand(shape, generator=generator) < config.mutation_rate
        always = torch.randint(shape[1], (count,), generator=generator)
        mutated |= functional.one_hot(always, shape[1]).bool()  # no child only repeats its parent
        noise = config.mutation_sigma * torch.randn(shape, generator=generator)
        return torch.clamp(children + noise * mutated, 0.0, config.a_max)

    def _choose(self, parents: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Winners [P, G] of tournaments with replacement."""
        drawn = torch.randint(len(parents), (count, self.config.tournament), generator=generator)
        return parents[drawn.amin(1)]
