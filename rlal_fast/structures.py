"""The best structures found so far, compared under the current weights (method.md §5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlal_fast.env import Scorer
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet


class Structures:
    """Keeps the `size` best sub-networks. Each keeps its channel indices while the weights move.

    Attributes:
        subnets: best first.
        rewards: float64, their rewards when they were last evaluated; the first is on all images.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.subnets: list[Subnet] = []
        self.rewards: NDArray[np.float64] = np.empty(0)

    @property
    def best(self) -> Subnet | None:
        """The structure: the best sub-network under the weights of the last evaluation."""
        return self.subnets[0] if self.subnets else None

    def reevaluate(self, scorer: Scorer) -> None:
        """Old rewards go stale as the weights move: measure and sort again."""
        if self.subnets:
            self._keep_best(self.subnets, scorer.accuracies(self.subnets))

    def offer(self, subnets: Sequence[Subnet], rewards: NDArray[np.float64]) -> None:
        """Takes in newly scored sub-networks; their rewards are of the current weights."""
        new = [i for i, s in enumerate(subnets) if s not in self.subnets and s not in subnets[:i]]
        combined = [*self.subnets, *(subnets[i] for i in new)]
        self._keep_best(combined, np.concatenate([self.rewards, rewards[new]]))

    def _keep_best(self, subnets: Sequence[Subnet], rewards: NDArray[np.float64]) -> None:
        order = np.argsort(-rewards, kind="stable")[: self.size]  # among equals the older one stays
        self.subnets, self.rewards = [subnets[i] for i in order], rewards[order]

    def state_dict(self) -> dict[str, list[object]]:
        """Kept indices and rewards as plain lists."""
        kept = [[indices.tolist() for indices in subnet.kept] for subnet in self.subnets]
        return {"kept": list(kept), "rewards": list(self.rewards.tolist())}

    def load_state_dict(self, state: dict[str, list[object]], graph: PrunableGraph) -> None:
        """What `state_dict` returned, for the same network."""
        self.subnets = [graph.subnet_of(kept) for kept in state["kept"]]  # type: ignore[arg-type]
        self.rewards = np.array(state["rewards"], dtype=np.float64)
