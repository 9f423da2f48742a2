"""Racing: what is clearly behind after some of the images is not scored on the rest.

Most sub-networks of an epoch are far from the best one, and a part of the images shows it. So all
are scored on the first images, and on the rest only those that come within a standard error of the
lead, as in the races of Maron and Moore (Hoeffding Races, NIPS 1993), but with a margin that risks
a good one now and then: the next epoch has others. The best one's accuracy is always that on all
images; the others' tell the agent what was seen of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rlal_fast.subnet import Subnet

_LEAST = 100  # images, below which a share tells nothing
_MARGIN = 1.0  # standard errors; 2 found the same, with more images


class PartScorer(Protocol):
    """What scores sub-networks on a part of its images; `Evaluator` is one."""

    def __len__(self) -> int: ...

    def accuracies(
        self, subnets: Sequence[Subnet], images: range | None = None
    ) -> NDArray[np.float64]: ...


class Race:
    """A scorer: accuracies on all images, or on the first ones for what falls behind.

    Args:
        evaluator: its images in random order, so that the first ones stand for all.
        share: of the images, in (0, 1], after which sub-networks may be left, though not before the
            hundredth; 1: never.

    Attributes:
        left: sub-networks that were left since `start`.
    """

    def __init__(self, evaluator: PartScorer, share: float) -> None:
        self.evaluator = evaluator
        self.first = min(len(evaluator), max(_LEAST, math.ceil(share * len(evaluator))))
        self._lead: float | None = None
        self.left = 0

    def start(self, lead: float | None) -> None:
        """Begins anew.

        Args:
            lead: the best accuracy that is known of the current weights; None: none is.
        """
        self._lead, self.left = lead, 0

    def accuracies(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]:
        """Float64 [S], in [0, 1]; the lead passes on from call to call.

        Raises:
            InputError: as `Evaluator.accuracies`.
        """
        total = len(self.evaluator)
        if self.first == total or not subnets:
            return self.evaluator.accuracies(subnets)
        found = self.evaluator.accuracies(subnets, range(self.first))
        going = np.flatnonzero(self._within_reach(found))
        self.left += len(subnets) - len(going)
        if not len(going):
            return found
        rest = self.evaluator.accuracies([subnets[i] for i in going.tolist()], range(self.first, total))
        found[going] = (self.first * found[going] + (total - self.first) * rest) / total
        best = float(found[going].max())
        self._lead = best if self._lead is None else max(best, self._lead)
        return found

    def _within_reach(self, found: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Those that may be ahead on all images, by their accuracies on the first."""
        variance = found * (1 - found)
        lead = self._lead
        if lead is None:  # the one ahead so far was seen on the first images alone
            lead = float(found.max())
            variance = variance + lead * (1 - lead)
        unseen = 1 - self.first / len(self.evaluator)
        return found + _MARGIN * np.sqrt(variance * unseen / self.first) >= lead
