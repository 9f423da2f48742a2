"""importance.py: every criterion against its formula, written with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlal_fast import models
from rlal_fast.errors import InputError
from rlal_fast.graph import PrunableGraph
from rlal_fast.importance import CRITERIA, GroupWeights, criterion


def weights(channels: int, *, layers: int = 2, group: int = 0) -> GroupWeights:
    """Producing layers of different fan-in, one batch norm."""
    filters = tuple(torch.randn(channels, 3 + 5 * layer) for layer in range(layers))
    return GroupWeights(filters, (torch.randn(channels),), group)


def rows(tensor: Tensor) -> list[list[float]]:
    return [[float(v) for v in row] for row in tensor]


def expected(name: str, group: GroupWeights) -> list[float]:
    layers = [rows(f) for f in group.filters]
    channels = range(len(layers[0]))
    if name == "l1":
        return [sum(abs(v) for layer in layers for v in layer[c]) for c in channels]
    if name == "l2":
        return [math.sqrt(sum(v * v for layer in layers for v in layer[c])) for c in channels]
    if name == "fpgm":
        return [
            sum(math.dist(layer[c], other) for layer in layers for other in layer) for c in channels
        ]
    return [sum(abs(float(s[c])) for s in group.scales) for c in channels]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("channels", [1, 5, 17, 64])
@pytest.mark.parametrize("name", ["l1", "l2", "bn_scale", "fpgm"])
def test_a_score_is_its_formula(name: str, channels: int, layers: int) -> None:
    group = weights(channels, layers=layers)
    scores = criterion(name)(group)
    assert scores.shape == (channels,)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(expected(name, group), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_small_differences_of_single_precision_weights_are_not_lost(name: str) -> None:
    filters = torch.ones(2, 100_000)
    filters[1, 7] += torch.finfo(torch.float32).eps
    first, second = criterion(name)(GroupWeights((filters,), (), 0)).tolist()
    assert second > first


def test_fpgm_drops_the_filter_in_the_middle_of_the_others() -> None:
    corners = torch.tensor([[4.0, 4.0], [4.0, -4.0], [-4.0, 4.0], [-4.0, -4.0]])
    filters = torch.cat([corners, torch.tensor([[0.1, 0.2]])])
    assert criterion("fpgm")(GroupWeights((filters,), (), 0)).argmin() == 4


def test_bn_scale_without_a_batch_norm_names_the_group() -> None:
    group = GroupWeights((torch.randn(4, 3),), (), 6)
    with pytest.raises(InputError, match="needs a batch norm behind every group, group 6 has none"):
        criterion("bn_scale")(group)


def test_random_is_fixed_for_a_group_and_differs_between_groups() -> None:
    rank = criterion("random")
    first = rank(weights(64))
    torch.manual_seed(5)
    assert torch.equal(rank(weights(64)), first)
    assert not torch.equal(rank(weights(64, group=1)), first)
    assert len(first.unique()) == 64


def test_an_unknown_criterion_is_refused_with_those_that_exist() -> None:
    with pytest.raises(
        InputError, match="unknown importance 'L1': known are l1, l2, bn_scale, fpgm"
    ):
        criterion("L1")


# -- through the graph ---------------------------------------------------------------------------


def model_and_graph(groups: str) -> tuple[nn.Module, PrunableGraph]:
    model = models.create("resnet8", 10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
    return model, PrunableGraph.trace(model, torch.zeros(1, 3, 8, 8), groups=groups)


def test_an_inner_group_is_scored_by_its_one_convolution() -> None:
    model, graph = model_and_graph("internal")
    state = model.state_dict()
    for group, l1, scale in zip(
        graph.groups, graph.importance("l1"), graph.importance("bn_scale"), strict=True
    ):
        weight = state[f"{group.name}.weight"].double()
        assert l1 == pytest.approx(weight.abs().sum((1, 2, 3)).numpy(), rel=1e-12)
        bn = group.name.replace("conv", "bn")
        assert scale == pytest.approx(state[f"{bn}.weight"].abs().numpy(), rel=1e-6)


def test_a_residual_stream_is_scored_by_all_layers_that_write_into_it() -> None:
    model, graph = model_and_graph("all")
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    group = graph.groups[0]
    assert group.name == "conv1"
    expected_l1, expected_scale = np.zeros(16), np.zeros(16)
    for place, offset in (("", 0), ("layer1.0.", 0), ("layer2.0.", 8), ("layer3.0.", 24)):
        number = 1 if place == "" else 2
        rows = slice(offset, offset + 16)  # option A pads half of the new channels in front
        expected_l1 += state[f"{place}conv{number}.weight"][rows].abs().sum((1, 2, 3)).numpy()
        expected_scale += state[f"{place}bn{number}.weight"][rows].abs().numpy()
    assert graph.importance("l1")[0] == pytest.approx(expected_l1, rel=1e-12)
    assert graph.importance("bn_scale")[0] == pytest.approx(expected_scale, rel=1e-6)


def test_depthwise_filters_do_not_count_and_their_batch_norms_do() -> None:
    model = models.create("mobilenet_v1", 10)
    graph = PrunableGraph.trace(model, torch.zeros(1, 3, 8, 8), include=["features.0"])
    before, scale = graph.importance("l1")[0], graph.importance("bn_scale")[0]
    with torch.no_grad():
        model.get_parameter("features.3.weight").mul_(100)
        model.get_parameter("features.4.weight").mul_(100)
    assert np.array_equal(graph.importance("l1")[0], before)
    assert graph.importance("bn_scale")[0] == pytest.approx(scale + 99, rel=1e-6)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_every_group_and_leaves_the_weights(name: str) -> None:
    model, graph = model_and_graph("all")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    scores = graph.importance(name)
    assert [len(s) for s in scores] == graph.full_widths.tolist()
    assert all(s.dtype == np.float64 and np.isfinite(s).all() for s in scores)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
