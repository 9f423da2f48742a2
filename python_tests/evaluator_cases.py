"""Networks that an evaluator could get wrong, sub-networks of them, and their true logits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from networks import Net, conv
from torch import Tensor, nn
from torch.nn import functional as F

import rlal_fast as rf

IMAGES = 5


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 11), (11, 16)):
        layers += [conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Dropout(0.5), nn.Linear(16 * 2 * 1, 20), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(20, 7))


def pooled(pool: nn.Module, features: int, **settings: Any) -> nn.Module:
    """conv -> pool -> relu -> linear on 11x7 images."""
    stem = conv(3, 6, **settings)
    return nn.Sequential(stem, pool, nn.ReLU(), nn.Flatten(), nn.Linear(features, 5))


def late_operand() -> nn.Module:
    """x is added, read by another layer afterwards, and added once more at the end."""

    def run(n: Any, x: Tensor) -> Tensor:
        x = F.relu(n.a(x))
        y = F.relu(n.b(x) + x)
        z = F.relu6(n.c(y) + n.d(x))
        return n.fc((z + x + y).mean((2, 3)))

    layers = {name: conv(6, 6) for name in "bcd"}
    return Net(run, a=conv(3, 6), **layers, fc=nn.Linear(6, 4))


def late_residual() -> nn.Module:
    """x is added to a block's result, which must not take its place, as it is added once more."""

    def run(n: Any, x: Tensor) -> Tensor:
        x = F.relu(n.a(x))
        y = F.relu(n.c(F.relu(n.b(x))) + x)
        z = F.relu(n.e(F.relu(n.d(y))) + x)
        return n.fc((z + y).mean((2, 3)))

    layers = {name: conv(6, 6) for name in "bcde"}
    return Net(run, a=conv(3, 6), **layers, fc=nn.Linear(6, 4))


def pre_activation() -> nn.Module:
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.stem(x)
        x = x + n.b(F.relu(n.bn2(n.a(F.relu(n.bn1(x))))))
        return n.fc(F.relu(n.last(x)).mean((2, 3)))

    norms = {"bn1": nn.BatchNorm2d(6), "bn2": nn.BatchNorm2d(9), "last": nn.BatchNorm2d(6)}
    return Net(run, stem=conv(3, 6), a=conv(6, 9), b=conv(9, 6), **norms, fc=nn.Linear(6, 4))


def twice(n: Any, x: Tensor) -> Tensor:
    x = n.a(x)
    x = F.relu(x + x)
    x = n.drop(n.b(x))
    return n.fc((x + x).flatten(1))


def shared_pool(n: Any, x: Tensor) -> Tensor:
    """The addition's later operand is a pool, so the earlier convolution takes the addition."""
    return n.fc((n.a(x) + F.max_pool2d(n.b(x), 3, 1, 1)).mean((2, 3)))


def tiled() -> nn.Module:
    """3x3 convolutions of many channel counts on images of whole 4x4 tiles."""

    def run(n: Any, x: Tensor) -> Tensor:
        x = F.relu(n.bn(n.a(x)))
        x = F.relu6(n.c(n.b(x)) + x)
        return n.fc(n.d(F.max_pool2d(x, (1, 2))).mean((2, 3)))

    layers = {"a": conv(3, 13), "b": conv(13, 34), "c": conv(34, 13), "d": conv(13, 7)}
    return Net(run, **layers, bn=nn.BatchNorm2d(13), fc=nn.Linear(7, 4))


def two_heads(n: Any, x: Tensor) -> Tensor:
    x = F.relu(n.a(x)).flatten(1)
    return n.one(x) + n.two(x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "resnet8": (lambda: rf.models.create("resnet8", 10), (3, 9, 13)),
    "resnet8 down to 1x1": (lambda: rf.models.create("resnet8", 10), (3, 4, 4)),
    "resnet20 digits": (lambda: rf.models.create("resnet20", 10, in_channels=1), (1, 8, 8)),
    "mobilenet_v1": (lambda: rf.models.create("mobilenet_v1", 10), (3, 11, 8)),
    "mobilenet_v2": (lambda: rf.models.create("mobilenet_v2", 10), (3, 8, 11)),
    "torchvision": (lambda: rf.models.create("torchvision/resnet18", 12), (3, 64, 72)),
    "vgg": (vgg, (3, 17, 11)),
    "4x4 tiles": (tiled, (3, 12, 40)),
    "one row of 4x4 tiles": (tiled, (3, 4, 24)),
    "one column of 4x4 tiles": (tiled, (3, 20, 8)),
    "avg_pool": (lambda: pooled(nn.AvgPool2d(2), 6 * 5 * 3), (3, 11, 7)),
    "avg_pool ceil": (lambda: pooled(nn.AvgPool2d(2, ceil_mode=True), 6 * 6 * 4), (3, 11, 7)),
    "avg_pool padded": (lambda: pooled(nn.AvgPool2d(3, 2, 1), 6 * 6 * 4), (3, 11, 7)),
    "avg_pool padded, ceil, uncounted": (
        lambda: pooled(nn.AvgPool2d((4, 3), 3, 1, True, False), 6 * 4 * 3),
        (3, 11, 7),
    ),
    "max_pool overlapping": (lambda: pooled(nn.MaxPool2d(3, 2), 6 * 5 * 3), (3, 11, 7)),
    "max_pool ceil": (lambda: pooled(nn.MaxPool2d(2, 2, 0, 1, False, True), 144), (3, 11, 7)),
    "max_pool padded, ceil": (
        lambda: pooled(nn.MaxPool2d((3, 5), (3, 2), (1, 2), ceil_mode=True), 6 * 4 * 4),
        (3, 11, 7),
    ),
    "adaptive pool": (lambda: pooled(nn.AdaptiveAvgPool2d((2, 7)), 84, stride=(1, 1)), (3, 10, 7)),
    "pre-activation": (pre_activation, (3, 7, 5)),
    "x + x": (
        lambda: Net(twice, a=conv(3, 6), b=conv(6, 5), drop=nn.Dropout(), fc=nn.Linear(60, 4)),
        (3, 4, 3),
    ),
    "operand read later": (late_operand, (3, 6, 7)),
    "residual read later": (late_residual, (3, 6, 7)),
    "adds a pool": (
        lambda: Net(shared_pool, a=conv(3, 6), b=conv(3, 6), fc=nn.Linear(6, 4)),
        (3, 6, 7),
    ),
    "adds the images": (
        lambda: Net(lambda n, x: n.fc((x + n.a(x)).flatten(1)), a=conv(3, 3), fc=nn.Linear(75, 4)),
        (3, 5, 5),
    ),
    "two heads on 1x1": (
        lambda: Net(two_heads, a=conv(3, 8), one=nn.Linear(8, 4), two=nn.Linear(8, 4)),
        (3, 1, 1),
    ),
    "relu after flatten": (
        lambda: nn.Sequential(conv(3, 6), nn.Flatten(), nn.ReLU(), nn.Linear(6 * 20, 4)),
        (3, 5, 4),
    ),
    "flatten at the end": (lambda: nn.Sequential(conv(3, 6), conv(6, 2), nn.Flatten()), (3, 3, 2)),
    "dilated, dense kernels": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 5, (1, 7), (1, 2), (0, 3)),
            nn.ReLU6(),
            nn.Conv2d(5, 9, (5, 2), dilation=(2, 3), padding=4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(9, 4),
        ),
        (3, 7, 11),
    ),
}


def randomised(model: nn.Module) -> nn.Module:
    """Biases and batch norms that are far from the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 3)  # type: ignore[arg-type]
    return model.eval()


@cache
def traced(name: str, groups: str = "all") -> rf.PrunableGraph:
    torch.manual_seed(1)
    make, shape = NETWORKS[name]
    return rf.PrunableGraph.trace(randomised(make()), torch.randn(1, *shape), groups=groups)


def images_for(graph: rf.PrunableGraph, count: int = IMAGES) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(count, *graph.nodes[0].shape),
        torch.randint(graph.nodes[-1].shape[0], (count,)),
    )


def random_subnet(graph: rf.PrunableGraph, rng: np.random.Generator) -> rf.Subnet:
    """Random widths and, other than `graph.subnet`, random channels."""
    return graph.subnet_of(
        [np.sort(rng.permutation(w)[: rng.integers(1, w + 1)]) for w in graph.full_widths]
    )


def hostile_subnets(graph: rf.PrunableGraph) -> list[rf.Subnet]:
    rng = np.random.default_rng(0)
    last = graph.subnet_of([[w - 1] for w in graph.full_widths])
    narrow = graph.subnet(np.ones_like(graph.full_widths))
    return [graph.full_subnet(), narrow, last, random_subnet(graph, rng), random_subnet(graph, rng)]


@torch.no_grad()
def truth(model: nn.Module, subnet: rf.Subnet, images: Tensor) -> Tensor:
    """Logits of the whole module in float64, with zeros in all that makes a pruned channel."""
    zeroed = copy.deepcopy(model).double().eval()
    state = zeroed.state_dict()
    for group, kept in zip(subnet.graph.groups, subnet.kept, strict=True):
        for member in group.members:
            state[member.tensor][np.delete(member.rows, kept, axis=0).reshape(-1)] = 0
    return zeroed(images.double())


def assert_logits(result: Tensor, expected: Tensor, bound: float = 1e-4) -> None:
    assert result.shape == expected.shape
    assert result.dtype == torch.float32
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    assert bool(((result.double() - expected).abs() <= bound * scale).all())  # NaN is not
