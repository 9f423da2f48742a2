"""What is scored: a network with usual ranges, images on the device, and sub-networks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import rlal_fast as rf
from rlal_fast.agents import RandomAgent
from rlal_fast.env import PruningEnv
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import reference
from rlal_fast.recalibration import recalibrate
from rlal_fast.subnet import Subnet

_PRUNED = 0.5
_A_MAX = 0.8


@dataclass(frozen=True)
class Case:
    """A network and images to score it on.

    Attributes:
        name: of its section.
        arch: as `rlal_fast.models.create` knows it.
        images, size: how many, and their height and width.
        checked: images on which logits are compared with the reference.
        per_call: sub-networks in a call, for what takes several.
        compiled: whether torch.compile, which takes a minute, has its turn too.
    """

    name: str
    arch: str
    classes: int
    images: int
    size: int
    checked: int
    per_call: tuple[int, ...] = (1, 10, 100)
    compiled: bool = False


class Scene:
    """A case on a device: random images and labels, random weights, random sub-networks.

    Attributes:
        graph: traced on the CPU, where its model stays; statistics are those of 32 of the images,
            as with random weights all images would else get nearly the same logits.
        images, labels: on the device.
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        self.case, self.device = case, device
        shape = (case.images, 3, case.size, case.size)
        self.images = torch.randn(shape, device=device)
        self.labels = torch.randint(0, case.classes, (case.images,), device=device)
        model = rf.models.create(case.arch, case.classes).eval()
        recalibrate(model, torch.randn(32, *shape[1:]))
        self.graph = PrunableGraph.trace(model, torch.zeros(1, *shape[1:]))
        self._drawn: dict[tuple[int, int], list[Subnet]] = {}

    def subnets(self, count: int, number: int) -> list[Subnet]:
        """The number-th `count` random sub-networks within the budget; drawn when first asked."""
        key = count, number
        if key not in self._drawn:
            self._drawn[key] = random_subnets(self.graph, count, seed=100_000 * count + number)
        return self._drawn[key]

    def macs(self, subnets: Sequence[Subnet]) -> float:
        """Multiply-adds of an image, mean of the sub-networks."""
        return float(self.graph.cost.macs([subnet.widths for subnet in subnets]).mean())

    @torch.no_grad()
    def truth(self, subnet: Subnet) -> Tensor:
        """Logits of the first images by the torch twin in float64, on the device."""
        state = self.graph.model.state_dict()
        exact = {name: tensor.to(self.device, torch.float64) for name, tensor in state.items()}
        kept = self.graph.kept_positions(subnet)
        images = self.images[: self.case.checked].double()
        return reference.subnet_logits(self.graph.nodes, exact, kept, images)


def random_subnets(graph: PrunableGraph, count: int, seed: int) -> list[Subnet]:
    """What a search draws at first."""
    env = PruningEnv(graph, Budget(graph.cost, _PRUNED), _Unscored())
    source = torch.Generator().manual_seed(seed)
    return env.rollout(RandomAgent(_A_MAX), count, None, source).subnets


class _Unscored:
    def accuracies(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]:
        return np.zeros(len(subnets))
