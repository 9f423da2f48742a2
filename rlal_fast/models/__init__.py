"""Plain `nn.Module` networks, ignorant of pruning.

`create` is the one entrance; the names it knows are in `NAMES`.
"""

from __future__ import annotations

import re

from torch import nn

from rlal_fast.errors import InputError
from rlal_fast.models.mobilenet import MobileNetV1, MobileNetV2
from rlal_fast.models.resnet_cifar import ResNetCifar

NAMES: tuple[str, ...] = (
    "resnet8",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "mobilenet_v1",
    "mobilenet_v1_0.75",
    "mobilenet_v1_0.5",
    "mobilenet_v1_0.25",
    "mobilenet_v2",
)
"""Networks made here, MobileNet-V1 with its paper's width multipliers too; beside them every
`torchvision/<name>` classifier can be asked for."""

_TORCHVISION_PREFIX = "torchvision/"


def create(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Makes a freshly initialised network.

    Args:
        name: one of `NAMES`, or `torchvision/<name>` (e.g. `torchvision/resnet18`).
        num_classes: size of the last linear layer's output.
        in_channels: channels of the input images; torchvision's networks take 3 only.

    Returns:
        A module that maps float32 images [N, in_channels, H, W] to logits [N, num_classes].

    Raises:
        InputError: unknown name, or `torchvision` is not installed, or impossible sizes.
    """
    if num_classes < 1 or in_channels < 1:
        raise InputError(
            f"num_classes={num_classes}, in_channels={in_channels}: both must be at least 1"
        )
    if name.startswith(_TORCHVISION_PREFIX):
        return _create_torchvision(name, num_classes, in_channels)
    if name not in NAMES:
        raise InputError(
            f"unknown architecture {name!r}: known are {', '.join(NAMES)} and torchvision/<name>"
        )
    if match := re.fullmatch(r"resnet(\d+)", name):
        return ResNetCifar(int(match[1]), num_classes, in_channels)
    if name == "mobilenet_v2":
        return MobileNetV2(num_classes, in_channels)
    multiplier = float(name.removeprefix("mobilenet_v1").removeprefix("_") or 1)
    return MobileNetV1(num_classes, in_channels, multiplier)


def _create_torchvision(name: str, num_classes: int, in_channels: int) -> nn.Module:
    try:
        from torchvision import models as zoo
    except ImportError as error:
        raise InputError(
            f"{name} needs torchvision, which is not installed: pip install 'rlal_fast[demo]'"
        ) from error
    short = name.removeprefix(_TORCHVISION_PREFIX)
    classifiers = zoo.list_models(module=zoo)
    if short not in classifiers:
        raise InputError(f"unknown torchvision network {short!r}: known are {classifiers}")
    if in_channels != 3:
        raise InputError(f"{name} takes images of 3 channels, these have {in_channels}")
    module: nn.Module = zoo.get_model(short, weights=None, num_classes=num_classes)
    return module


__all__ = ["NAMES", "create"]
