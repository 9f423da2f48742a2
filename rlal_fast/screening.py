"""Screening: many episodes are walked, and those that promise the most are scored.

Walking costs microseconds, scoring what a whole reward split costs. So an ensemble that predicts
rewards (the critics of SAC, or an assistant that past runs have taught) looks at many candidates
first. As in SUNRISE (Lee et al., ICML 2021, section 4.2) the promise is the ensemble's mean plus a
multiple of its spread: what it disagrees on is worth a look, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlal_fast.agents import Agent
from rlal_fast.errors import InputError
from rlal_fast.replay import Episodes
from rlal_fast.walk import Step

_EXPLORE, _POLICY, _BRED = range(3)  # sources of candidates


@dataclass(frozen=True)
class ScreeningConfig:
    """Settings of the screening.

    Raises:
        InputError: a value is outside its range.
    """

    # Episodes walked for each one that is scored; 1: no screening. The more there are, the more of
    # the picks are those that the critics overrate: at 65 % pruned FLOPs 60 found 26.7 %, 4 30.2 %.
    candidates: int = 4
    # A policy that has settled proposes the like of what it knows, and what the critics overrate is
    # picked all the time. So both the candidates and what is picked of them come from three
    # sources, each with a share of its own: exploration, the best episodes' children, the policy.
    # See benchmarks/agents.md for what each brought.
    explore_share: float = 0.3
    bred_share: float = 0.3
    # Half of the exploration has random ratios, half ratios around the even one: at 65 % pruned
    # FLOPs random ratios leave the last groups no choice.
    even_spread: float = 0.5  # greatest distance from the even ratio
    optimism: float = 0.5  # weight of the ensemble's standard deviation

    def __post_init__(self) -> None:
        checks = {
            "candidates": self.candidates >= 1,
            "explore_share": 0 <= self.explore_share <= 1,
            "bred_share": 0 <= self.bred_share <= 1 - self.explore_share,
            "even_spread": self.even_spread > 0,
            "optimism": self.optimism >= 0,
        }
        for name, valid in checks.items():
            if not valid:
                raise InputError(f"ScreeningConfig.{name} = {getattr(self, name)} is out of range")


class Ensemble(Protocol):
    """What predicts rewards."""

    def predict(self, states: Tensor, actions: Tensor, z: Tensor | None) -> Tensor:
        """Rewards [M, N], on any one scale, of states [N, G, S] and ratios [N, G]: M opinions."""
        ...


class Screening:
    """Picks candidates for one epoch.

    Args:
        config: its settings.
        ensemble: predicts the rewards.
        breeder: gives the children of the best episodes: an evolutionary search that has chosen its
            parents.
        a_max: greatest pruning ratio.
        known: widths, as bytes of int64 [G], that were scored under these weights already: to
            score them again would tell nothing.
        offset: in [0, 1), where shares that are no whole picks are rounded: if it differs from
            epoch to epoch, all sources come to their share, however few picks an epoch has.
    """

    def __init__(
        self,
        config: ScreeningConfig,
        ensemble: Ensemble,
        breeder: Agent,
        a_max: float = 0.8,
        known: frozenset[bytes] = frozenset(),
        offset: float = 0.5,
    ) -> None:
        self.config, self.ensemble, self.breeder = config, ensemble, breeder
        self.a_max, self.known, self.offset = a_max, known, offset

    def vary(self, ratios: Tensor, step: Step, generator: torch.Generator) -> Tensor:
        """Ratios [P] of a step's candidates: the agent's, or what their source has instead.

        Which candidates are whose does not depend on the step, so it is the same in a whole walk.
        """
        source = torch.from_numpy(self.sources(len(ratios)))
        noise = torch.rand(len(ratios), generator=generator)
        near = step.even + self.config.even_spread * (2 * noise - 1)
        explored = torch.where(torch.arange(len(ratios)) % 2 == 0, self.a_max * noise, near)
        bred = self.breeder.act(step.state, None, step.low, step.high, generator)
        ratios = torch.where(source == _EXPLORE, explored, ratios)
        return torch.where(source == _BRED, bred, ratios)

    def choose(
        self, episodes: Episodes, widths: NDArray[np.int64], z: Tensor | None, count: int
    ) -> NDArray[np.int64]:
        """Rows int64 [count] of the candidates to score: the most promising of each source.

        Sub-networks that are known, or there twice, come last: only if a source runs out of others,
        and the others do, too.
        """
        predicted = self.ensemble.predict(episodes.states, episodes.actions, z)
        promise = predicted.mean(0)
        if len(predicted) > 1:
            promise = promise + self.config.optimism * predicted.std(0)
        fresh: list[int] = []
        rest: list[int] = []
        seen = set(self.known)
        for row in torch.argsort(promise, descending=True, stable=True).tolist():
            key = np.ascontiguousarray(widths[row], dtype=np.int64).tobytes()
            (rest if key in seen else fresh).append(row)
            seen.add(key)
        whose, wanted = self.sources(len(widths)), self.sources(count)
        chosen: list[int] = []
        for source in (_POLICY, _BRED, _EXPLORE):
            own = [row for row in fresh if whose[row] == source]
            chosen += own[: int((wanted == source).sum())]
        left = [row for row in fresh + rest if row not in set(chosen)]
        return np.array((chosen + left)[:count], dtype=np.int64)

    def sources(self, count: int) -> NDArray[np.int64]:
        """The source [count] of each of so many candidates, or picks, by their shares."""
        place = (np.arange(count) + self.offset) / max(count, 1)
        bred = place >= 1 - self.config.bred_share
        explored = place < self.config.explore_share
        return np.select([bred, explored], [_BRED, _EXPLORE], _POLICY)
