"""flops.py and csrc/core/cost.cpp: MACs are exactly those that torch counts."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rlal_fast import compact, count_macs, models
from rlal_fast.errors import InputError
from rlal_fast.flops import ChannelCount, CostTable, LayerCost
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import reference

IntArray = NDArray[np.int64]
CIFAR = (
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "mobilenet_v1",
    "mobilenet_v2",
)
TORCHVISION = ("torchvision/resnet18", "torchvision/resnet34", "torchvision/mobilenet_v2")


def torch_macs(network: nn.Module, images: torch.Tensor) -> int:
    """What torch's own counter says of one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    macs, odd = divmod(counter.get_total_flops(), 2)
    assert not odd
    return macs


@cache
def traced(name: str, groups: str) -> tuple[PrunableGraph, torch.Tensor]:
    """A network on images that are small, to be quick, and not square."""
    images = torch.zeros(1, 3, *((11, 17) if name in CIFAR else (33, 47)))
    model = models.create(name, 10).eval()
    return PrunableGraph.trace(model, images, groups=groups), images


def random_widths(full: IntArray, count: int, seed: int = 0) -> IntArray:
    """Widths [count, G], of which the first are all ones."""
    widths = np.random.default_rng(seed).integers(1, full + 1, (count, len(full)))
    widths[0] = 1
    return widths


# -- against torch's counter ----------------------------------------------------------------------


def check_against_compact_networks(name: str, groups: str, count: int) -> None:
    graph, images = traced(name, groups)
    widths = random_widths(graph.full_widths, count)
    counted = [torch_macs(compact(graph.model, s), images) for s in graph.subnets(widths)]
    assert count_macs(graph, widths).tolist() == counted


@pytest.mark.parametrize("name", CIFAR + TORCHVISION)
def test_full_macs_are_those_of_the_original_network(name: str) -> None:
    graph, images = traced(name, "internal")
    assert int(count_macs(graph, graph.full_widths)) == torch_macs(graph.model, images)


@pytest.mark.parametrize("name", CIFAR + TORCHVISION)
def test_macs_of_100_random_widths_are_those_of_the_compact_network(
    name: str, without_initialisation: None
) -> None:
    check_against_compact_networks(name, "internal", 100)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", *TORCHVISION])
def test_macs_with_residual_streams_are_those_of_the_compact_network(
    name: str, without_initialisation: None
) -> None:
    check_against_compact_networks(name, "all", 20)


@pytest.fixture
def without_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers about to be overwritten are not drawn at random first: half of the time here."""
    for layer in (nn.Conv2d, nn.Linear):
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)


@pytest.mark.parametrize("name", CIFAR[:5])
def test_full_macs_of_cifar_resnets_follow_the_paper_s_table(name: str) -> None:
    """He et al. 2016, §4.2, with shortcuts that cost nothing; images of 11x17, 6x9, 3x5 pixels."""
    blocks = (int(name.removeprefix("resnet")) - 2) // 6
    layers = [(3, 16, 11 * 17), *2 * blocks * [(16, 16, 11 * 17)]]
    layers += [(16, 32, 6 * 9), *(2 * blocks - 1) * [(32, 32, 6 * 9)]]
    layers += [(32, 64, 3 * 5), *(2 * blocks - 1) * [(64, 64, 3 * 5)]]
    expected = sum(9 * c_in * c_out * pixels for c_in, c_out, pixels in layers) + 64 * 10
    graph, _ = traced(name, "internal")
    assert int(count_macs(graph, graph.full_widths)) == expected


@pytest.mark.parametrize(
    ("name", "classes", "size", "millions"),
    [  # method.md §11; V1 keeps its first stride, so its 112 is the paper's 224
        ("resnet20", 10, 32, 40.55),
        ("resnet56", 10, 32, 125.49),
        ("mobilenet_v1", 1000, 112, 568.74),
        ("torchvision/resnet18", 1000, 224, 1814.07),
        ("torchvision/resnet34", 1000, 224, 3663.76),
        ("torchvision/mobilenet_v2", 1000, 224, 300.77),
    ],
)
def test_full_macs_are_the_published_ones(
    name: str, classes: int, size: int, millions: float
) -> None:
    with torch.device("meta"):
        model, images = models.create(name, classes).eval(), torch.zeros(1, 3, size, size)
        graph = PrunableGraph.trace(model, images)
        macs = int(count_macs(graph, graph.full_widths))
        assert round(macs / 1e6, 2) == millions
        assert macs == torch_macs(model, images)


# -- on its own -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "torchvision/resnet18"])
def test_native_count_of_networks_is_the_twin_s(name: str) -> None:
    cost = traced(name, "all")[0].cost
    widths = random_widths(cost.full_widths, 10)
    assert cost.macs(widths).tolist() == reference.count_macs(cost, widths).tolist()


def test_counts_beyond_doubles_are_exact() -> None:
    layer = LayerCost("wide", 2**31 - 1, ChannelCount(1, ((0, 3),)), ChannelCount(0, ((1, 7),)))
    cost = CostTable((layer,), np.array([9999, 10007], dtype=np.int64))
    for widths in ([9999, 10007], [9998, 10007], [1, 1]):
        expected = (2**31 - 1) * (1 + 3 * widths[0]) * 7 * widths[1]
        assert int(cost.macs(widths)) == expected
    assert int(cost.macs([9999, 10007])) > 2**53


@pytest.mark.parametrize("shape", [(), (0,), (1,), (4,), (2, 5)], ids=str)
def test_counts_have_the_shape_of_the_widths(shape: tuple[int, ...]) -> None:
    graph, _ = traced("resnet20", "internal")
    widths = np.broadcast_to(graph.full_widths, (*shape, 9))
    macs = count_macs(graph, widths)
    assert macs.shape == shape
    assert (macs == count_macs(graph, list(graph.full_widths))).all()


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([16] * 8, "one per group, not int64"),
        ([16.0] * 9, "must be integers"),
        ([16] * 8 + [65], r"width 65 of group 8 is outside 1\.\.64"),
        ([16] * 3 + [0] * 6, r"width 0 of group 3 is outside 1\.\.32"),
    ],
    ids=["too few", "floats", "too wide", "zero"],
)
def test_wrong_widths_are_refused(widths: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        count_macs(traced("resnet20", "internal")[0], widths)


# -- as text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "torchvision/mobilenet_v2"])
def test_a_cost_table_comes_back_from_json(name: str) -> None:
    cost = traced(name, "all")[0].cost
    again = CostTable.from_json(cost.to_json())
    assert again.layers == cost.layers
    assert again.full_widths.dtype == np.int64
    widths = random_widths(cost.full_widths, 10)
    assert again.macs(widths).tolist() == cost.macs(widths).tolist()


LAYER = (
    '{"name": "a", "area": 9, "out": {"constant": 0, "terms": [[0, 1]]},'
    ' "inputs": {"constant": 3, "terms": []}}'
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[0, 1]]", "[[1, 1]]", r"terms \(\(1, 1\),\) name a group that is not among 1"),
        ("[[0, 1]]", "[[0]]", "not a cost table as CostTable.to_json writes it"),
        ("[[0, 1]]", "7", "not a cost table"),
        ('"area": 9', '"area": -9', "-9 is not a whole number from 0 on"),
        ('"area": 9', '"area": 9.5', "9.5 is not a whole number"),
        ('"area": 9', '"area": true', "True is not a whole number"),
        ('"area": 9', '"areas": 9', "not a cost table .*'area'"),
        ('"area": 9', '"area": 1000000000000000000', "MACs, more than int64 holds"),
        ('"a"', "5", "a layer's name is 5"),
        ("[16]", "[0]", "0 is not a whole number from 1 on"),
        ("[16]", '"16"', "'1' is not a whole number"),
        ("}", "", "not a cost table"),
    ],
    ids=str,
)
def test_text_that_is_no_cost_table(old: str, new: str, message: str) -> None:
    text = f'{{"full_widths": [16], "layers": [{LAYER}]}}'
    assert int(CostTable.from_json(text).macs([16])) == 9 * 16 * 3
    with pytest.raises(InputError, match=message):
        CostTable.from_json(text.replace(old, new))
