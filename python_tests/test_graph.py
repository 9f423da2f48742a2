"""graph.py: what is tied is pruned together, and pruned means exactly: as if it were zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from rlal_fast import compact, count_macs, models
from rlal_fast.errors import InputError
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet
from rlal_fast.tracing import trace

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A forward function and its layers; whatever it ends in is averaged and classified by `fc`."""

    def __init__(self, forward: Forward, fc: int | nn.Module, **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        self.fc = nn.Linear(fc, 4) if isinstance(fc, int) else fc
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self, x)
        if y.ndim == 4:
            y = F.adaptive_avg_pool2d(y, 1).flatten(1)
        return self.fc(y)


def conv(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def conv_bn(inputs: int, outputs: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        conv(inputs, outputs, bias=False, **options), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def padded(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, before, after))


def read_before_and_after_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    y += net.b(x)
    return net.c(y) + net.d(F.relu_(y))


def branch_of_a_sum(net: Any, x: Tensor) -> Tensor:
    first = net.a(x)
    total = first + net.b(x)
    total = total + net.c(total)
    return net.e(total) + net.d(first)


def tied_twice_with_a_shift(net: Any, x: Tensor) -> Tensor:
    small, wide = net.a(x), net.b(x)
    return net.c(padded(small, 2, 2) + wide) + net.d(padded(small, 4, 0) + wide)


def vgg() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 5), nn.MaxPool2d(2), conv_bn(5, 7), nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(), nn.Linear(7 * 6, 11), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(11, 4),
    )  # fmt: skip


# name -> network, groups {name: width} of "internal" and of "all"; images are 3 x 6 x 8
Case = tuple[Callable[[], nn.Module], dict[str, int], dict[str, int]]
CASES: dict[str, Case] = {
    "chain": (
        lambda: Net(lambda n, x: n.b(F.relu(n.a(x))), a=conv(3, 1), b=conv(1, 17), fc=17),
        {"a": 1, "b": 17},
        {"a": 1, "b": 17},
    ),
    "added-to-itself": (
        lambda: Net(lambda n, x: (lambda y: n.b(y + y))(n.a(x)), a=conv(3, 5), b=conv(5, 7), fc=7),
        {"b": 7},
        {"a": 5, "b": 7},
    ),
    "two-branches": (
        lambda: Net(
            lambda n, x: n.c(F.relu(n.a(x) + n.b(x))),
            a=conv_bn(3, 7), b=conv(3, 7, 1), c=conv(7, 5), fc=5,
        ),
        {"c": 5},
        {"a.0": 7, "c": 5},
    ),
    "added-to-the-input": (
        lambda: Net(lambda n, x: n.b(n.a(x) + x), a=conv(3, 3), b=conv(3, 5), fc=5),
        {"b": 5},
        {"b": 5},
    ),
    "branch-of-a-sum": (
        lambda: Net(
            branch_of_a_sum, a=conv(3, 5), b=conv(3, 5), c=conv(5, 5), d=conv(5, 7), e=conv(5, 7),
            fc=7,
        ),
        {},
        {"a": 5, "e": 7},
    ),
    "in-place-sum": (
        lambda: Net(
            read_before_and_after_in_place, a=conv(3, 5), b=conv(3, 5), c=conv(5, 7), d=conv(5, 7),
            fc=nn.Sequential(nn.Linear(7, 11), nn.ReLU(inplace=True), nn.Linear(11, 4)),
        ),
        {"fc.0": 11},
        {"a": 5, "c": 7, "fc.0": 11},
    ),
    "zeros-beside": (
        lambda: Net(
            lambda n, x: n.c(n.a(x) + padded(n.b(x), 2, 1)),
            a=conv_bn(3, 8), b=conv(3, 5), c=conv(8, 7), fc=7,
        ),
        {"c": 7},
        {"a.0": 3, "a.0#2": 5, "c": 7},
    ),
    "zeros-that-nothing-fills": (
        lambda: Net(lambda n, x: n.b(padded(n.a(x), 2, 3)), a=conv(3, 5), b=conv(10, 7), fc=7),
        {"a": 5, "b": 7},
        {"a": 5, "b": 7},
    ),
    "tied-twice-with-a-shift": (
        lambda: Net(
            tied_twice_with_a_shift, a=conv(3, 4), b=conv(3, 8), c=conv(8, 5), d=conv(8, 5),
            fc=5,
        ),
        {},
        {"a": 2, "b": 2, "c": 5},
    ),
    "depthwise-of-the-images": (
        lambda: Net(lambda n, x: n.b(n.a(x)), a=conv(3, 3, groups=3), b=conv(3, 5), fc=5),
        {"b": 5},
        {"b": 5},
    ),
    "depthwise-beside-a-sum": (
        lambda: Net(
            lambda n, x: (lambda y: n.c(n.b(y)) + n.d(y + y))(n.a(x)),
            a=conv_bn(3, 7), b=conv(7, 7, groups=7), c=conv(7, 5), d=conv(7, 5), fc=5,
        ),
        {},
        {"a.0": 7, "c": 5},
    ),
    "pixels-added-to-a-linear": (
        lambda: Net(
            lambda n, x: n.a(x).flatten(1) + n.b(F.avg_pool2d(x, 6, 2).flatten(1)),
            a=conv(3, 5, stride=(3, 4)), b=nn.Linear(6, 20), fc=20,
        ),
        {},
        {"a": 5},
    ),
    "dead-end": (
        lambda: Net(lambda n, x: (n.b(x), n.a(x))[1], a=conv(3, 5), b=conv(3, 7), fc=5),
        {"b": 7, "a": 5},
        {"b": 7, "a": 5},
    ),
    "vgg": (vgg, {"0.0": 5, "2.0": 7, "5": 11}, {"0.0": 5, "2.0": 7, "5": 11}),
    "resnet8": (
        lambda: models.create("resnet8", 4),
        {"layer1.0.conv1": 16, "layer2.0.conv1": 32, "layer3.0.conv1": 64},
        {
            "conv1": 16, "layer1.0.conv1": 16, "layer2.0.conv1": 32, "layer2.0.conv2": 16,
            "layer3.0.conv1": 64, "layer3.0.conv2": 32,
        },
    ),
}  # fmt: skip
BOTH = pytest.mark.parametrize("coupling", ["internal", "all"])
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def network(make: Callable[[], nn.Module]) -> nn.Module:
    """In double precision and eval mode, with batch norms that do something."""
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (*module.parameters(), module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model


def traced(case: Case, coupling: str) -> PrunableGraph:
    return PrunableGraph.trace(network(case[0]), images(1), groups=coupling)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 6, 8, dtype=torch.float64)


def random_subnets(graph: PrunableGraph, count: int) -> list[Subnet]:
    """Random channels, not the first or the best ones; the narrowest sub-network too."""
    rng = np.random.default_rng(1)
    widths = [np.ones_like(graph.full_widths)]
    widths += [rng.integers(1, graph.full_widths + 1) for _ in range(count - 1)]

    def some(full: int, width: int) -> np.ndarray:
        return np.sort(rng.permutation(full)[:width])

    return [graph.subnet_of(list(map(some, graph.full_widths, row))) for row in widths]


def zeroed(graph: PrunableGraph, subnet: Subnet) -> nn.Module:
    """The full network in which all weights that produce a removed channel are zero."""
    model = copy.deepcopy(graph.model)
    state = model.state_dict()
    for group, kept in zip(graph.groups, subnet.kept, strict=True):
        removed = np.setdiff1d(np.arange(group.width), kept)
        for member in group.members:
            state[member.tensor][member.rows[removed].reshape(-1)] = 0
    model.load_state_dict(state)
    return model


@BOTH
@EACH
def test_groups_are_what_the_network_ties(case: Case, coupling: str) -> None:
    graph = traced(case, coupling)
    expected = case[1] if coupling == "internal" else case[2]
    assert [(group.name, group.width) for group in graph.groups] == list(expected.items())
    assert graph.full_widths.tolist() == list(expected.values())


@BOTH
@EACH
def test_a_compact_network_computes_what_the_full_one_does_with_zeros(
    case: Case, coupling: str
) -> None:
    graph, x = traced(case, coupling), images(3)
    for subnet in random_subnets(graph, 4):
        with torch.no_grad():
            small = compact(graph.model, subnet)(x)
            torch.testing.assert_close(small, zeroed(graph, subnet)(x.clone()))


@BOTH
@EACH
def test_macs_are_those_of_the_compact_network(case: Case, coupling: str) -> None:
    graph = traced(case, coupling)
    for subnet in random_subnets(graph, 4):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            compact(graph.model, subnet)(images(1))
        assert 2 * int(count_macs(graph, subnet.widths)) == counter.get_total_flops()


def test_option_a_ties_the_middle_channels_of_the_wider_stages() -> None:
    graph = traced(CASES["resnet8"], "all")
    filters = {
        (group.name, m.tensor): m.rows.ravel().tolist()
        for group in graph.groups
        for m in group.members
        if m.kind == "filter"
    }
    stream = [layer.name for layer in graph.groups[0].layers]
    assert stream == ["conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"]
    assert filters["conv1", "layer1.0.conv2.weight"] == list(range(16))
    assert filters["conv1", "layer2.0.conv2.weight"] == list(range(8, 24))
    assert filters["conv1", "layer3.0.conv2.weight"] == list(range(24, 40))
    outer = [*range(8), *range(24, 32)]
    assert filters["layer2.0.conv2", "layer2.0.conv2.weight"] == outer
    assert filters["layer2.0.conv2", "layer3.0.conv2.weight"] == [16 + c for c in outer]
    assert filters["layer3.0.conv2", "layer3.0.conv2.weight"] == [*range(16), *range(48, 64)]


@pytest.mark.parametrize(
    ("name", "coupling", "widths"),
    [
        ("resnet20", "internal", 3 * [16] + 3 * [32] + 3 * [64]),
        ("resnet20", "all", [16, 16, 16, 16, 32, 16, 32, 32, 64, 32, 64, 64]),
        ("mobilenet_v1", "internal", [32, 64, 128, 128, 256, 256] + 6 * [512] + 2 * [1024]),
        (
            "mobilenet_v2",
            "internal",
            [32, 16, 96, *2 * [144], *3 * [192], *4 * [384], *3 * [576], *3 * [960], 320, 1280],
        ),
        ("torchvision/resnet18", "internal", [*2 * [64], *2 * [128], *2 * [256], *2 * [512]]),
        ("torchvision/resnet18", "all", [*3 * [64], *3 * [128], *3 * [256], *3 * [512]]),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_groups_of_known_networks(name: str, coupling: str, widths: list[int]) -> None:
    model = models.create(name, 10)
    graph = PrunableGraph.trace(model, torch.zeros(1, 3, 33, 47), groups=coupling)
    assert graph.full_widths.tolist() == widths


@pytest.mark.parametrize("name", ["mobilenet_v2", "torchvision/mobilenet_v2"])
def test_all_adds_the_residual_streams_of_inverted_residuals(name: str) -> None:
    nodes = trace(models.create(name, 10), torch.zeros(1, 3, 32, 32))
    model = nn.Module()
    internal, everything = (PrunableGraph(model, nodes, c, (), ()) for c in ("internal", "all"))
    inner = {group.name for group in internal.groups}
    streams = [g.width for g in everything.groups if g.name not in inner]
    assert streams == [24, 32, 64, 96, 160]
    assert len(everything.groups) == 25
    block = next(g for g in internal.groups if g.width == 144)  # expansion, then depthwise
    kinds = [member.kind for member in block.members]
    assert sorted(kinds) == ["depthwise", "filter", "scale", "scale", "shift", "shift"]


def test_channels_tied_within_a_layer_share_one_decision() -> None:
    graph = traced(CASES["tied-twice-with-a-shift"], "all")
    # a[i] is added to b[2+i] and to b[4+i]: b[2], b[4], b[6] and a[0], a[2] are one
    rows = {m.tensor: m.rows.tolist() for m in graph.groups[0].members if m.kind == "filter"}
    assert rows == {"a.weight": [[0, 2], [1, 3]], "b.weight": [[2, 4, 6], [3, 5, 7]]}
    flat = traced(CASES["pixels-added-to-a-linear"], "all")
    rows = {m.tensor: m.rows.tolist() for m in flat.groups[0].members if m.kind == "filter"}
    assert rows["b.weight"] == [[4 * channel + pixel for pixel in range(4)] for channel in range(5)]


def test_include_and_exclude_choose_groups_by_name() -> None:
    model = models.create("resnet20", 10)
    nodes = trace(model, images(1).float())

    def names(include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> list[str]:
        graph = PrunableGraph(model, nodes, "internal", include, exclude)
        return [group.name for group in graph.groups]

    first = ["layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1"]
    assert names(include=("layer1.*",)) == first
    assert names(include=("layer1.*",), exclude=("*.1.conv1",)) == [first[0], first[2]]
    assert names(exclude=("layer[23].*",)) == first
    assert names(include=("layer3.2.conv1", "layer1.0*")) == [first[0], "layer3.2.conv1"]
    assert names(exclude=("*",)) == []


def test_a_group_that_is_not_chosen_stays_whole() -> None:
    model = models.create("resnet8", 10)
    graph = PrunableGraph.trace(model, images(1).float(), exclude=["layer2.*"])
    small = compact(model, graph.subnet([1, 1]))
    widths = {n: m.out_channels for n, m in small.named_modules() if isinstance(m, nn.Conv2d)}
    inner = [widths[f"layer{stage}.0.conv1"] for stage in (1, 2, 3)]
    assert inner == [1, 32, 1]


@pytest.mark.parametrize("which", ["include", "exclude"])
def test_a_pattern_without_a_group_is_refused_with_the_names(which: str) -> None:
    model = models.create("resnet8", 10)
    with pytest.raises(
        InputError, match=r"'conv1' matches no group; groups are layer1\.0\.conv1, "
    ):
        PrunableGraph.trace(model, torch.zeros(1, 3, 8, 8), **{which: ["layer*", "conv1"]})  # type: ignore[arg-type]


def test_a_second_group_of_a_layer_can_be_chosen_by_its_name() -> None:
    model = network(CASES["zeros-beside"][0])
    graph = PrunableGraph.trace(model, images(1), groups="all", include=["a.0#2"])
    assert [(g.name, g.width) for g in graph.groups] == [("a.0#2", 5)]


def test_another_coupling_is_refused() -> None:
    with pytest.raises(InputError, match="'internal' or 'all', not 'some'"):
        PrunableGraph.trace(models.create("resnet8", 10), torch.zeros(1, 3, 8, 8), groups="some")


def test_a_network_without_groups_is_whole() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48, 4)).double()
    graph = PrunableGraph.trace(model, images(1))
    assert graph.full_widths.shape == (0,)
    assert count_macs(graph, graph.full_widths).tolist() == 3 * 48 * 4
    assert count_macs(graph, np.empty((2, 0), dtype=np.int64)).tolist() == 2 * [3 * 48 * 4]
    assert "0 prunable groups, 576 MACs per image in 1 layers" in str(graph)
    x = images(2)
    torch.testing.assert_close(compact(model, graph.subnet(graph.full_widths))(x), model(x))


def test_printing_a_graph_shows_every_group() -> None:
    graph = PrunableGraph.trace(models.create("resnet8", 10), torch.zeros(1, 3, 8, 8))
    lines = str(graph).splitlines()
    assert lines[0].split() == [
        "#",
        "group",
        "width",
        "kernel",
        "stride",
        "output",
        "MACs",
        "share",
    ]
    area = 8 * 8
    total = (3 * 16 + 2 * 16 * 16) * 9 * area + (16 * 32 + 32 * 32) * 9 * area // 4
    total += (32 * 64 + 64 * 64) * 9 * area // 16 + 640
    inner = 16 * 32 * 9 * area // 4
    row = ["1", "layer2.0.conv1", "32", "3x3", "2", "4x4", f"{inner:,}", f"{inner / total:.1%}"]
    assert lines[2].split() == row
    assert lines[-1] == f"3 prunable groups, {total:,} MACs per image in 8 layers"
    assert graph.group_macs().tolist() == [16 * 16 * 9 * area, inner, 32 * 64 * 9 * area // 16]
