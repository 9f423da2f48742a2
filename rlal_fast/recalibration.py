"""Batch norm recalibration (method.md §5): the images for it, and the module that is kept at last.

Scoring recalibrates inside the evaluator; `recalibrate` does the same to an ordinary module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rlal_fast.data import ImageData
from rlal_fast.errors import InputError
from rlal_fast.seeds import generator


def training_sample(data: ImageData, count: int, seed: int) -> Tensor | None:
    """The first `count` of a random order of the training split that the seed alone fixes.

    Returns:
        float32 [count, C, H, W], normalised and not augmented; None for a count of 0.

    Raises:
        InputError: there are fewer training images.
    """
    if count > len(data.train):
        raise InputError(
            f"bn_recalibrate={count} asks for more than the {len(data.train)} training images: "
            f"give 0 to {len(data.train)}"
        )
    if not count:
        return None
    order = torch.randperm(len(data.train), generator=generator(seed, "recalibration"))
    images = data.train.images
    return data.normalisation(images[order[:count].to(images.device)])


@torch.no_grad()
def recalibrate(network: nn.Module, images: Tensor) -> None:
    """Replaces the running statistics of every batch norm by those of one batch of images.

    The batch norms run in training mode, everything else in eval mode; weights, modes and momenta
    are left as they were.

    Args:
        network: any module.
        images: as the network takes them, [N, C, H, W].

    Raises:
        ValueError: by torch, where a batch norm gets one value per channel.
    """
    modes = [(module, module.training) for module in network.modules()]
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches so far, of which there is one
            norm.train()
        network(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
