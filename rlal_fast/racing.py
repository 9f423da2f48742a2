"""Racing: what is clearly behind after some of the images is not scored on the rest.

Most sub-networks of an epoch are far from the best one, and a part of the images shows it. So all
are scored on the first images, and on the rest only those that come within a standard error of the
best, as in the races of Maron and Moore (Hoeffding Races, NIPS 1993), but with a margin that loses
a good one now and then: the next epoch has others. The best accuracy found is always one on all
images; of those that were stopped the agent is told what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rlal_fast.subnet import Subnet

_LEAST = 100  # images, below which a share tells nothing
_MARGIN = 1.0  # standard errors; 2 took more images and found the same, see benchmarks/agents.md


class PartScorer(Protocol):
    """What scores sub-networks on a part of its images; `Evaluator` is one."""

    def __len__(self) -> int: ...

    def accuracies(
        self, subnets: Sequence[Subnet], images: range | None = None
    ) -> NDArray[np.float64]: ...


class Race:
    """A scorer: accuracies on all images, or on the first ones for what is clearly behind.

    Args:
        evaluator: its images in random order, so that the first ones stand for all.
        share: of the images, in (0, 1], that come first, though at least 100; 1: all of them.

    Attributes:
        first: how many images those are.
        stopped: sub-networks since `start` that were scored on them alone.
    """

    def __init__(self, evaluator: PartScorer, share: float) -> None:
        self.evaluator = evaluator
        self.first = min(len(evaluator), max(_LEAST, math.ceil(share * len(evaluator))))
        self.stopped = 0
        self._whole = False
        self._lead: float | None = None

    def start(self, whole: bool) -> None:
        """Forgets the best accuracy so far, which was of other weights.

        Args:
            whole: nothing is stopped until the next start.
        """
        self._whole, self._lead, self.stopped = whole, None, 0

    def accuracies(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]:
        """Float64 [S], in [0, 1]. The best so far passes on from call to call.

        Raises:
            InputError: as `Evaluator.accuracies`.
        """
        if self._whole or self.first == len(self.evaluator) or not subnets:
            return self.evaluator.accuracies(subnets)
        found = self.evaluator.accuracies(subnets, range(self.first))
        stopped = np.ones(len(subnets), dtype=bool)
        if self._lead is None:  # somebody has to be scored on all images before others are behind
            self._finish(subnets, found, stopped, np.arange(len(found)) == found.argmax())
        self._finish(subnets, found, stopped, self._within_reach(found))
        self.stopped += int(stopped.sum())
        return found

    def _finish(
        self,
        subnets: Sequence[Subnet],
        found: NDArray[np.float64],
        stopped: NDArray[np.bool_],
        wanted: NDArray[np.bool_],
    ) -> None:
        """Scores those that are stopped and wanted on the other images, too."""
        going = np.flatnonzero(stopped & wanted)
        if not len(going):
            return
        total = len(self.evaluator)
        rest = self.evaluator.accuracies(
            [subnets[i] for i in going.tolist()], range(self.first, total)
        )
        hits = np.rint(self.first * found[going]) + np.rint((total - self.first) * rest)
        found[going], stopped[going] = hits / total, False
        self._lead = max(float(found[going].max()), self._lead or 0.0)

    def _within_reach(self, found: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Those that may be the best on all images, by their accuracies on the first."""
        unseen = 1 - self.first / len(self.evaluator)
        error = np.sqrt(found * (1 - found) * unseen / self.first)
        assert self._lead is not None  # accuracies has seen to it
        reachable: NDArray[np.bool_] = found + _MARGIN * error >= self._lead
        return reachable
