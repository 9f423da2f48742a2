"""The CIFAR ResNets of He et al. 2016, §4.2: stages of 16, 32, 64 channels, option A shortcuts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rlal_fast.errors import InputError

_STAGE_WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added.

    Where the shape changes, the shortcut takes every second pixel and pads zero channels on both
    sides (option A): no parameters, so nothing but the block's inner channels can be pruned freely.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:  # [N, in, H, W] -> [N, channels, H/stride, W/stride]
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.extra_channels == 0:
            return x
        before = self.extra_channels // 2
        pad = (0, 0, 0, 0, before, self.extra_channels - before)
        return F.pad(x[:, :, :: self.stride, :: self.stride], pad)


class ResNetCifar(nn.Module):
    """ResNet of depth 6n+2 for small images of any size from 4x4 up.

    Raises:
        InputError: the depth is not 6n+2.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"a CIFAR ResNet has depth 6n+2 (8, 14, 20, ...), not {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, _STAGE_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STAGE_WIDTHS[0])
        self.layer1 = _stage(_STAGE_WIDTHS[0], _STAGE_WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(_STAGE_WIDTHS[0], _STAGE_WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(_STAGE_WIDTHS[1], _STAGE_WIDTHS[2], blocks, stride=2)
        self.fc = nn.Linear(_STAGE_WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:  # [N, in_channels, H, W] -> [N, num_classes]
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
