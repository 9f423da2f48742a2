"""MobileNet-V1 (Howard et al. 2017) and -V2 (Sandler et al. 2018) with strides for 32x32 images.

V1 keeps the first stride 1 and reaches 2x2; V2 keeps the first two strides 1 and reaches 4x4, the
variant of about 94.5 % on CIFAR-10 that the pruning papers prune.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_V1_LAYERS = (
    [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    + [(512, 1)] * 5
    + [(1024, 2), (1024, 1)]
)  # (out channels, stride) of the depthwise-separable layers

_V2_STAGES = (  # expansion, out channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv_bn(
    in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(
        in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return [conv, nn.BatchNorm2d(channels)]


class MobileNetV1(nn.Module):
    """Thirteen depthwise-separable layers of 64 to 1024 channels, times the width multiplier."""

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, multiplier: float = 1.0
    ) -> None:
        super().__init__()
        width = int(32 * multiplier)
        layers = [*_conv_bn(in_channels, width, 3), nn.ReLU()]
        for full, stride in _V1_LAYERS:
            channels = int(full * multiplier)
            layers += [*_conv_bn(width, width, 3, stride, groups=width), nn.ReLU()]
            layers += [*_conv_bn(width, channels, 1), nn.ReLU()]
            width = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, in_channels, H, W] -> [N, num_classes]
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; added to its input where the shapes agree."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_conv_bn(in_channels, hidden, 1), nn.ReLU6()]
        layers += [*_conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        layers += _conv_bn(hidden, channels, 1)
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Seven stages of inverted residuals between a 3x3 stem and a 1x1 head of 1280 channels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        layers = [*_conv_bn(in_channels, 32, 3), nn.ReLU6()]
        width = 32
        for expansion, channels, blocks, stride in _V2_STAGES:
            for block in range(blocks):
                layers.append(
                    InvertedResidual(width, channels, expansion, stride if block == 0 else 1)
                )
                width = channels
        layers += [*_conv_bn(width, 1280, 1), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, in_channels, H, W] -> [N, num_classes]
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
