"""Importance criteria: the weights of a group -> one score per channel (method.md §4).

A criterion is a plain function; a new one is a function and a line in `CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlal_fast.errors import InputError


@dataclass(frozen=True)
class GroupWeights:
    """What a criterion may look at.

    Attributes:
        filters: for each convolution or linear layer that produces the group, its filters [C, K].
        scales: for each batch norm over the group's channels, its scale [C].
        group: index of the group, so that a random score differs from group to group.
    """

    filters: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    group: int


Criterion = Callable[[GroupWeights], Tensor]


def l1(weights: GroupWeights) -> Tensor:
    """Sum of absolute weights of the producing filters (Li et al. 2017)."""
    return torch.stack([f.double().abs().sum(1) for f in weights.filters]).sum(0)


def l2(weights: GroupWeights) -> Tensor:
    """Euclidean norm of all weights that produce the channel."""
    return torch.stack([f.double().square().sum(1) for f in weights.filters]).sum(0).sqrt()


def bn_scale(weights: GroupWeights) -> Tensor:
    """Absolute batch-norm scale (Liu et al. 2017, network slimming)."""
    if not weights.scales:
        raise InputError(
            f"importance 'bn_scale' needs a batch norm behind every group, "
            f"group {weights.group} has none"
        )
    return torch.stack([s.double().abs() for s in weights.scales]).sum(0)


def fpgm(weights: GroupWeights) -> Tensor:
    """Sum of distances to the other filters (He et al. 2019): one near all others is redundant."""
    scores = []
    for filters in weights.filters:
        wide = filters.double()
        scores.append(torch.cdist(wide, wide).sum(1))
    return torch.stack(scores).sum(0)


def random(weights: GroupWeights) -> Tensor:
    """A fixed random order per group: the control that tells what a criterion is worth."""
    generator = torch.Generator().manual_seed(weights.group)
    return torch.rand(weights.filters[0].shape[0], generator=generator, dtype=torch.float64)


CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "fpgm": fpgm,
    "random": random,
}


def criterion(name: str) -> Criterion:
    """The criterion called `name`; InputError names those that exist."""
    if name not in CRITERIA:
        raise InputError(f"unknown importance {name!r}: known are {', '.join(CRITERIA)}")
    return CRITERIA[name]
