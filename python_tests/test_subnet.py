"""subnet.py: which channels stay, and what is not a sub-network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from torch import nn

from rlal_fast import models
from rlal_fast.errors import InputError
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet, check_kept, check_widths, most_important

FULL = np.array([1, 5, 17], dtype=np.int64)


@pytest.fixture(scope="module")
def graph() -> PrunableGraph:
    torch.manual_seed(1)
    return PrunableGraph.trace(models.create("resnet8", 10), torch.zeros(1, 3, 8, 8))


def conv(graph: PrunableGraph, name: str) -> nn.Conv2d:
    module = graph.model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


def norms(graph: PrunableGraph, group: int) -> list[float]:
    weight = conv(graph, graph.groups[group].name).weight.detach().double()
    return [float(filters.abs().sum()) for filters in weight]


@pytest.mark.parametrize("width", [1, 5, 7, 11, 16])
def test_the_channels_of_largest_norm_stay_in_order(graph: PrunableGraph, width: int) -> None:
    subnet = graph.subnet([width, 32, 64])
    scores = norms(graph, 0)
    best = sorted(range(16), key=lambda channel: scores[channel])[16 - width :]
    assert subnet.kept[0].tolist() == sorted(best)
    assert subnet.kept[1].tolist() == list(range(32))
    assert subnet.widths.tolist() == [width, 32, 64]
    assert subnet.widths.dtype == subnet.kept[0].dtype == np.int64


def test_ranking_follows_the_current_weights_and_a_subnet_does_not(graph: PrunableGraph) -> None:
    before = graph.subnet([3, 3, 3])
    kept = [indices.tolist() for indices in before.kept]
    with torch.no_grad():
        conv(graph, "layer1.0.conv1").weight[[0, 7, 15]] += 100
    assert graph.subnet([3, 3, 3]).kept[0].tolist() == [0, 7, 15]
    assert [indices.tolist() for indices in before.kept] == kept


def test_many_subnets_at_once_are_those_made_one_by_one(graph: PrunableGraph) -> None:
    widths = np.random.default_rng(0).integers(1, graph.full_widths + 1, (9, 3))
    for importance in ("l1", "random"):
        together = graph.subnets(widths, importance)
        assert together == [graph.subnet(row, importance) for row in widths]
        assert [s.widths.tolist() for s in together] == widths.tolist()
    assert graph.subnets(np.empty((0, 3), dtype=np.int64)) == []


def test_the_full_subnet_keeps_everything(graph: PrunableGraph) -> None:
    full = graph.full_subnet()
    assert full == graph.subnet(graph.full_widths)
    for node, kept in zip(graph.nodes, graph.kept_positions(full), strict=True):
        assert kept.tolist() == list(range(node.shape[0]))


def test_kept_positions_follow_the_channels_through_the_network(graph: PrunableGraph) -> None:
    subnet = graph.subnet_of([[2, 9], [0], [63]])
    kept = {n.name: k for n, k in zip(graph.nodes, graph.kept_positions(subnet), strict=True)}
    for name in ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu"):
        assert kept[name].tolist() == [2, 9]
    assert kept["layer3.0.bn1"].tolist() == [63]
    assert kept["layer1.0.conv2"].tolist() == list(range(16))
    assert kept["fc"].tolist() == list(range(10))


def test_subnets_are_equal_by_what_they_keep_in_one_graph(graph: PrunableGraph) -> None:
    kept: list[ArrayLike] = [[1, 2], [3], [4]]
    one, same, other = graph.subnet_of(kept), graph.subnet_of(kept), graph.subnet([2, 1, 1])
    assert one == same
    assert hash(one) == hash(same)
    assert one != graph.subnet_of([[1, 3], [3], [4]])
    assert one != Subnet(PrunableGraph(graph.model, graph.nodes, "internal", (), ()), one.kept)
    assert one != "subnet"
    assert len({one, same, other}) == 2
    assert repr(one) == "Subnet(widths=[2, 1, 1])"


def test_among_equals_the_earlier_channel_stays() -> None:
    scores = np.array([1.0, 3.0, 1.0, 3.0, 1.0, 0.0])
    expected = [[1], [1, 3], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    for width, indices in enumerate(expected, start=1):
        assert most_important(scores, width).tolist() == indices
    many = np.arange(1280) % 3 == 0  # long enough for a sort that would shuffle equals
    assert most_important(many.astype(np.float64), 500).tolist() == sorted(
        [*range(0, 1280, 3), *[c for c in range(1280) if c % 3][: 500 - 427]]
    )


@pytest.mark.parametrize(
    "widths",
    [
        [1, 5, 17],
        (1, 1, 1),
        np.array([[1, 2, 3]] * 4, dtype=np.int32),
        np.ones((2, 5, 3), np.uint8),
    ],
    ids=["list", "tuple", "int32 rows", "three axes"],
)
def test_integer_widths_of_any_kind_become_int64(widths: ArrayLike) -> None:
    checked = check_widths(widths, FULL)
    assert checked.dtype == np.int64
    assert np.array_equal(checked, np.asarray(widths))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([1, 5], r"integers \[\.\.\., 3\], one per group, not int64 \(2,\)"),
        (3, r"one per group, not int64 \(\)"),
        ([1.0, 5.0, 17.0], "not float64"),
        ([True, True, True], "not bool"),
        ([1, 0, 17], r"width 0 of group 1 is outside 1\.\.5"),
        ([1, 5, 18], r"width 18 of group 2 is outside 1\.\.17"),
        ([[1, 5, 17], [-2, 5, 17]], r"width -2 of group 0 is outside 1\.\.1"),
        (np.array([1, 5, 2**63 + 1], dtype=np.uint64), "of group 2 is outside"),
    ],
)
def test_wrong_widths_are_refused_and_the_group_named(widths: ArrayLike, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_widths(widths, FULL)


def test_a_wrong_number_of_axes_is_refused(graph: PrunableGraph) -> None:
    with pytest.raises(InputError, match="one row, these have 2 axes"):
        graph.subnet([[1, 1, 1]])
    with pytest.raises(InputError, match="one row, these have 0 axes"):
        graph.subnets([1, 1, 1])


GOOD = [[0], [0, 4], [1, 5, 16]]


@pytest.mark.parametrize(
    ("group", "indices"),
    [
        (0, []),
        (0, [1]),
        (1, [-1, 3]),
        (1, [0, 5]),
        (1, [3, 3]),
        (1, [4, 0]),
        (1, [[0, 1]]),
        (1, [0.5, 1.7]),
        (1, [False, True]),
        (2, ["a"]),
        (2, 3),
    ],
    ids=str,
)
def test_wrong_kept_channels_are_refused_and_the_group_named(group: int, indices: Any) -> None:
    kept: list[Any] = list(GOOD)
    kept[group] = indices
    message = f"of group {group} must be ascending indices in 0..{FULL[group] - 1}, not"
    with pytest.raises(InputError, match=message):
        check_kept(kept, FULL)


def test_kept_channels_of_every_group_are_needed() -> None:
    assert [k.tolist() for k in check_kept(list(GOOD), FULL)] == GOOD
    with pytest.raises(InputError, match="kept names 2 groups, the network has 3"):
        check_kept([[0], [0]], FULL)
