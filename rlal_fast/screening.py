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

from rlal_fast.errors import InputError
from rlal_fast.replay import Episodes


@dataclass(frozen=True)
class ScreeningConfig:
    """Settings of the screening.

    Raises:
        InputError: a value is outside its range.
    """

    candidates: int = 60  # episodes walked for each one that is scored; 1: no screening
    # A policy that has settled proposes the like of what it knows. So some candidates have random
    # ratios, and some ratios around the even one: at 65 % pruned FLOPs random ratios leave the
    # last groups no choice. See benchmarks/README.md for what each brought.
    random_share: float = 0.25
    even_share: float = 0.25
    even_spread: float = 0.5  # greatest distance from the even ratio
    optimism: float = 0.5  # weight of the ensemble's standard deviation

    def __post_init__(self) -> None:
        checks = {
            "candidates": self.candidates >= 1,
            "random_share": 0 <= self.random_share <= 1,
            "even_share": 0 <= self.even_share <= 1 - self.random_share,
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
        a_max: greatest pruning ratio.
        known: widths, as bytes of int64 [G], that were scored under these weights already: to
            score them again would tell nothing.
    """

    def __init__(
        self,
        config: ScreeningConfig,
        ensemble: Ensemble,
        a_max: float = 0.8,
        known: frozenset[bytes] = frozenset(),
    ) -> None:
        self.config, self.ensemble, self.a_max, self.known = config, ensemble, a_max, known

    def vary(self, ratios: Tensor, even: Tensor, generator: torch.Generator) -> Tensor:
        """The agent's ratios [P], in some episodes random ones or ones around the even one [P].

        Which episodes follows from P alone, so that it is the same in all steps of a walk.
        """
        config, place = self.config, (torch.arange(len(ratios)) + 0.5) / len(ratios)
        noise = torch.rand(len(ratios), generator=generator)
        near = even + config.even_spread * (2 * noise - 1)
        ratios = torch.where(place < config.random_share + config.even_share, near, ratios)
        return torch.where(place < config.random_share, self.a_max * noise, ratios)

    def choose(
        self, episodes: Episodes, widths: NDArray[np.int64], z: Tensor | None, count: int
    ) -> NDArray[np.int64]:
        """Rows int64 [count] of the most promising candidates, the best first.

        Sub-networks that are known, or there twice, come last: only if others run out.
        """
        predicted = self.ensemble.predict(episodes.states, episodes.actions, z)
        promise = predicted.mean(0)
        if len(predicted) > 1:
            promise = promise + self.config.optimism * predicted.std(0)
        order = torch.argsort(promise, descending=True, stable=True).tolist()
        fresh: list[int] = []
        rest: list[int] = []
        seen = set(self.known)
        for row in order:
            key = np.ascontiguousarray(widths[row], dtype=np.int64).tobytes()
            (rest if key in seen else fresh).append(row)
            seen.add(key)
        return np.array((fresh + rest)[:count], dtype=np.int64)
