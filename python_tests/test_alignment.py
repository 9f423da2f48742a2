"""alignment.py: the penalty against plain loops over channels, and what its gradient pushes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlal_fast.alignment import AlignmentPenalty, MaskedAlignment
from rlal_fast.graph import PrunableGraph
from rlal_fast.models import create
from rlal_fast.subnet import Subnet

Places = list[tuple[str, int]]  # (parameter, row) of everything that produces one channel


class Inverted(nn.Module):
    """Expand, depthwise, project, add; biases, and a linear layer with a hidden group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.expand = nn.Conv2d(5, 11, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(11)
        self.depthwise = nn.Conv2d(11, 11, 3, padding=1, groups=11)
        self.bn2 = nn.BatchNorm2d(11)
        self.project = nn.Conv2d(11, 5, 1)
        self.fc1 = nn.Linear(5, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu6(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        x = x + self.project(y)
        return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1))))


EXPANDED = ["expand.weight", "bn1.weight", "bn1.bias", "depthwise.weight", "depthwise.bias"]
EXPANDED += ["bn2.weight", "bn2.bias"]
INVERTED_INTERNAL: dict[str, list[Places]] = {
    "expand": [[(name, c) for name in EXPANDED] for c in range(11)],
    "fc1": [[("fc1.weight", c), ("fc1.bias", c)] for c in range(7)],
}
INVERTED_ALL = {
    "stem": [
        [("stem.weight", c), ("stem.bias", c), ("project.weight", c), ("project.bias", c)]
        for c in range(5)
    ],
    **INVERTED_INTERNAL,
}


def with_norm(conv: str, row: int) -> Places:
    bn = conv.replace("conv", "bn")
    return [(f"{conv}.weight", row), (f"{bn}.weight", row), (f"{bn}.bias", row)]


RESNET_INTERNAL: dict[str, list[Places]] = {
    f"layer{i}.0.conv1": [with_norm(f"layer{i}.0.conv1", c) for c in range(width)]
    for i, width in ((1, 16), (2, 32), (3, 64))
}
# Option A pads 8 zero channels on both sides of the first stream's 16, then 16 on both sides of 32.
STREAM1: list[Places] = [
    [
        *with_norm("conv1", c),
        *with_norm("layer1.0.conv2", c),
        *with_norm("layer2.0.conv2", 8 + c),
        *with_norm("layer3.0.conv2", 24 + c),
    ]
    for c in range(16)
]
STREAM2: list[Places] = [
    [*with_norm("layer2.0.conv2", c), *with_norm("layer3.0.conv2", 16 + c)]
    for c in (*range(8), *range(24, 32))
]
STREAM3 = [with_norm("layer3.0.conv2", c) for c in (*range(16), *range(48, 64))]
RESNET_ALL = {
    "conv1": STREAM1,
    "layer2.0.conv2": STREAM2,
    "layer3.0.conv2": STREAM3,
    **RESNET_INTERNAL,
}
CASES = {
    "inverted-internal": ("inverted", "internal", INVERTED_INTERNAL),
    "inverted-all": ("inverted", "all", INVERTED_ALL),
    "resnet8-internal": ("resnet8", "internal", RESNET_INTERNAL),
    "resnet8-all": ("resnet8", "all", RESNET_ALL),
}


def make(network: str, groups: str) -> PrunableGraph:
    torch.manual_seed(3)
    model = Inverted() if network == "inverted" else create("resnet8", 3, 2)
    for name, parameter in model.named_parameters():  # batch norms start at 1 and 0
        if "bn" in name:
            nn.init.normal_(parameter)
    return PrunableGraph.trace(model, torch.zeros(1, 2, 8, 8), groups=groups)


def structure(graph: PrunableGraph, seed: int = 0) -> Subnet:
    """A random one; among its groups one keeps all and one keeps a single channel."""
    random = np.random.default_rng(seed)
    widths = [int(random.integers(1, group.width)) for group in graph.groups]
    widths[0], widths[-1] = graph.groups[0].width, 1
    kept = [
        np.sort(random.permutation(group.width)[:width])
        for group, width in zip(graph.groups, widths, strict=True)
    ]
    return graph.subnet_of(list(kept))


def removed_places(subnet: Subnet, table: dict[str, list[Places]]) -> list[Places]:
    assert sorted(group.name for group in subnet.graph.groups) == sorted(table)
    return [
        places
        for group, kept in zip(subnet.graph.groups, subnet.kept, strict=True)
        for channel, places in enumerate(table[group.name])
        if channel not in kept
    ]


def channel_norm(model: nn.Module, places: Places) -> float:
    rows = [model.get_parameter(name)[row].reshape(-1).tolist() for name, row in places]
    return math.sqrt(sum(value * value for row in rows for value in row))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_penalty_is_the_sum_of_the_removed_channels_norms(case: str, seed: int) -> None:
    network, groups, table = CASES[case]
    graph = make(network, groups)
    subnet = structure(graph, seed)
    removed = removed_places(subnet, table)
    assert len(removed) == sum(g.width for g in graph.groups) - subnet.widths.sum()
    expected = sum(channel_norm(graph.model, places) for places in removed)
    penalty = AlignmentPenalty(graph.model, subnet)
    assert penalty().item() == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():  # the weights of each call count, not those of the first
        for parameter in graph.model.parameters():
            parameter.mul_(3)
    assert penalty().item() == pytest.approx(3 * expected, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradient_pushes_the_removed_channels_and_nothing_else(case: str) -> None:
    network, groups, table = CASES[case]
    graph = make(network, groups)
    subnet, model = structure(graph), graph.model
    AlignmentPenalty(model, subnet)().backward()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for places in removed_places(subnet, table):
        norm = channel_norm(model, places)
        for name, row in places:  # d||w|| / dw = w / ||w||
            expected[name][row] = model.get_parameter(name)[row].detach() / norm
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        outside = expected[name] == 0
        assert bool((gradient[outside] == 0).all()), name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_following_the_penalty_empties_the_removed_channels_alone() -> None:
    network, groups, table = CASES["resnet8-internal"]
    graph = make(network, groups)
    subnet, model = structure(graph), graph.model
    removed = removed_places(subnet, table)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    norms = [channel_norm(model, places) for places in removed]
    penalty = AlignmentPenalty(model, subnet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    for places, norm in zip(removed, norms, strict=True):
        # a unit push: each step shortens every channel by the learning rate
        assert channel_norm(model, places) == pytest.approx(abs(norm - 0.3), abs=1e-4)
    touched = {place for places in removed for place in places}
    for name, parameter in model.named_parameters():
        for row in range(len(parameter)):
            if (name, row) not in touched:
                assert torch.equal(parameter[row], before[name][row])


def test_a_channel_that_is_already_zero_has_a_finite_gradient() -> None:
    graph = make("inverted", "all")
    with torch.no_grad():
        for parameter in graph.model.parameters():
            parameter.zero_()
    value = AlignmentPenalty(graph.model, structure(graph))()
    value.backward()
    assert 0 <= value.item() < 1e-4
    for parameter in graph.model.parameters():
        if parameter.grad is not None:
            assert bool((parameter.grad == 0).all())  # also false for nan


@pytest.mark.parametrize("groups", ["internal", "all"])
def test_a_structure_that_keeps_everything_costs_nothing(groups: str) -> None:
    graph = make("inverted", groups)
    value = AlignmentPenalty(graph.model, graph.full_subnet())()
    assert value.item() == 0
    loss = graph.model(torch.ones(2, 2, 8, 8)).sum() + 1e-4 * value
    loss.backward()  # it can be part of a loss all the same


# -- the same by masks -----------------------------------------------------------------------------


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_masks_say_the_same(case: str, channels_last: bool) -> None:
    network, groups, _ = CASES[case]
    graph = make(network, groups)
    model = graph.model
    if channels_last:
        model.to(memory_format=torch.channels_last)
    masked = MaskedAlignment(model, graph)
    for seed in range(3):  # one object, another structure each time
        subnet = structure(graph, seed)
        masked.align_to(subnet)
        plain = AlignmentPenalty(model, subnet)
        assert masked().item() == pytest.approx(plain().item(), rel=1e-6)
        ours, theirs = gradients(model, masked()), gradients(model, plain())
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-6, atol=1e-6, msg=name)
        with torch.no_grad():  # the weights of each call count
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))


def test_masks_of_nothing_and_of_everything() -> None:
    graph = make("inverted", "all")
    masked = MaskedAlignment(graph.model, graph)
    for value in (None, graph.full_subnet(), None):
        assert masked().item() == 0  # at first nothing is pushed
        masked.align_to(value)
        assert masked().item() == 0
        assert all(bool((g == 0).all()) for g in gradients(graph.model, masked()).values())
        masked.align_to(structure(graph))
        assert masked().item() > 0
        masked.align_to(None)


def test_masks_on_weights_that_are_zero_have_a_finite_gradient() -> None:
    graph = make("inverted", "all")
    with torch.no_grad():
        for parameter in graph.model.parameters():
            parameter.zero_()
    masked = MaskedAlignment(graph.model, graph)
    masked.align_to(structure(graph))
    assert 0 <= masked().item() < 1e-4
    assert all(bool((g == 0).all()) for g in gradients(graph.model, masked()).values())
