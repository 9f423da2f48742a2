"""structures.py: which sub-networks are remembered, and which one is best now."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from rlal_fast.graph import PrunableGraph
from rlal_fast.structures import Structures
from rlal_fast.subnet import Subnet


@pytest.fixture(scope="module")
def graph() -> PrunableGraph:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 7, 1), nn.ReLU(), nn.Conv2d(7, 5, 1), nn.ReLU(), nn.Flatten()]
    return PrunableGraph.trace(nn.Sequential(*layers, nn.Linear(20, 3)), torch.zeros(1, 1, 2, 2))


class Weighing:
    """Scores a sub-network by its first group's width: the weights of some epoch."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.asked: list[list[int]] = []

    def accuracies(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]:
        self.asked.append([int(s.widths[0]) for s in subnets])
        return np.array([self.weight * int(s.widths[0]) for s in subnets], dtype=np.float64)


def firsts(structures: Structures) -> list[int]:
    return [int(subnet.widths[0]) for subnet in structures.subnets]


def nets(graph: PrunableGraph, *firsts: int) -> list[Subnet]:
    return [graph.subnet([width, 3]) for width in firsts]


def offer(structures: Structures, subnets: list[Subnet], *rewards: float) -> None:
    structures.offer(subnets, np.array(rewards, dtype=np.float64))


def test_the_best_are_kept_in_order(graph: PrunableGraph) -> None:
    structures = Structures(3)
    assert structures.best is None
    offer(structures, nets(graph, 1, 2, 3, 4, 5), 0.3, 0.9, 0.1, 0.5, 0.7)
    assert firsts(structures) == [2, 5, 4]
    assert structures.rewards.tolist() == [0.9, 0.7, 0.5]
    assert structures.best is structures.subnets[0]
    offer(structures, nets(graph, 6, 7), 0.8, 0.0)
    assert firsts(structures) == [2, 6, 5]


def test_old_rewards_are_measured_again_before_new_ones_are_compared(graph: PrunableGraph) -> None:
    structures, scorer = Structures(3), Weighing(-0.1)
    offer(structures, nets(graph, 1, 2, 3), 0.1, 0.2, 0.3)
    assert firsts(structures) == [3, 2, 1]
    structures.reevaluate(scorer)  # the weights moved: now fewer channels are better
    assert scorer.asked == [[3, 2, 1]]  # one call for all
    assert firsts(structures) == [1, 2, 3]
    assert structures.rewards.tolist() == pytest.approx([-0.1, -0.2, -0.3])
    offer(structures, nets(graph, 5), -0.15)
    assert firsts(structures) == [1, 5, 2]


def test_nothing_yet_is_nothing_to_measure() -> None:
    scorer = Weighing(1)
    Structures(3).reevaluate(scorer)
    assert scorer.asked == []


def test_each_is_kept_once(graph: PrunableGraph) -> None:
    structures = Structures(5)
    offer(structures, nets(graph, 1, 2, 1, 2, 1), 0.5, 0.6, 0.5, 0.6, 0.5)
    assert firsts(structures) == [2, 1]
    offer(structures, nets(graph, 2, 1), 0.6, 0.5)  # nothing new at all
    assert firsts(structures) == [2, 1]
    other = graph.subnet_of([[0, 6], [0, 1, 2]])  # the widths of one that may be known
    known = graph.subnet_of([[1, 6], [0, 1, 2]])
    offer(structures, [known, other], 0.1, 0.2)
    assert structures.subnets[2:] == [other, known]


def test_among_equals_the_older_stays(graph: PrunableGraph) -> None:
    structures = Structures(2)
    offer(structures, nets(graph, 4, 3), 0.5, 0.5)
    assert firsts(structures) == [4, 3]
    offer(structures, nets(graph, 7, 1), 0.5, 0.5)
    assert firsts(structures) == [4, 3]
    structures.reevaluate(Weighing(0.0))
    assert firsts(structures) == [4, 3]
    offer(structures, nets(graph, 2), 0.1)
    assert firsts(structures) == [2, 4]


def test_among_many_equals_the_order_stays(graph: PrunableGraph) -> None:
    """More than the 16 up to which an unstable sort is stable by accident."""
    structures = Structures(30)
    subnets = [graph.subnet([a, b]) for b in range(1, 6) for a in range(1, 8)]
    offer(structures, subnets, *(float(i % 2) for i in range(35)))
    assert structures.subnets == [*subnets[1::2], *subnets[::2]][:30]


def test_channel_indices_stay_while_the_weights_move(graph: PrunableGraph) -> None:
    structures = Structures(1)
    offer(structures, [graph.subnet([3, 2])], 0.5)
    kept = [indices.tolist() for indices in structures.subnets[0].kept]
    with torch.no_grad():
        for parameter in graph.model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    assert [i.tolist() for i in graph.subnet([3, 2]).kept] != kept  # the ranking did change
    structures.reevaluate(Weighing(1))
    assert [indices.tolist() for indices in structures.subnets[0].kept] == kept


@pytest.mark.parametrize("count", [0, 1, 5])
def test_they_survive_a_checkpoint(graph: PrunableGraph, count: int) -> None:
    structures, loaded = Structures(4), Structures(4)
    offer(structures, nets(graph, *range(1, count + 1)), *(1 / 3 + 0.1 * i for i in range(count)))
    file = io.BytesIO()
    torch.save(structures.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True), graph)
    assert loaded.subnets == structures.subnets
    assert np.array_equal(loaded.rewards, structures.rewards)
    for one in (structures, loaded):  # and go on alike
        offer(one, nets(graph, 6, 7), 0.5, 0.6)
    assert loaded.subnets == structures.subnets
