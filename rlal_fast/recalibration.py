"""Batch norm recalibration (method.md §5): the images for it, and the module that is kept at last.

What a cut does to a network first is to move the means and variances that its batch norms expect.
By the accuracy with the old ones a search finds what moves them least; with its own ones
(EagleEye's adaptive batch normalisation, Li et al., ECCV 2020, §3.3) a sub-network shows what is
left after a fine-tuning. Scoring recalibrates inside the evaluator; `recalibrate` does the same to
an ordinary module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rlal_fast.data import ImageData
from rlal_fast.errors import InputError
from rlal_fast.seeds import generator

# 32 images of CIFAR's size rank sub-networks nearly as well as 512, and 128 as well
# (benchmarks/agents.md). Larger ones have more pixels for a mean, and more activations to hold.
_MOST, _LEAST, _PIXELS = 128, 32, 128 * 32 * 32


def image_count(asked: int | None, network: nn.Module, data: ImageData, *, standing: bool) -> int:
    """How many training images sub-networks are recalibrated on.

    Args:
        asked: a number, which is taken as it is; None: 128 of at most 32 x 32 pixels, fewer of
            larger ones, at least 32, where that helps and can be.
        network: without batch norm there is nothing to recalibrate.
        data: the training split may have fewer.
        standing: the weights are not trained. While they are, the alignment keeps the best
            structure's statistics near the full network's, and 0 is the default.
    """
    if asked is not None:
        return asked
    if not standing or not any(isinstance(module, _BatchNorm) for module in network.modules()):
        return 0
    height, width = data.image_shape[1:]
    return min(len(data.train), max(_LEAST, min(_MOST, _PIXELS // (height * width))))


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
