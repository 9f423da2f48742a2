"""racing.py: who is scored on all images, and that the best always is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from evaluator_cases import images_for, random_subnet, traced
from numpy.typing import NDArray
from torch import nn

import rlal_fast as rf
from rlal_fast.racing import Race

IMAGES = 1000


@pytest.fixture(scope="module")
def graph() -> rf.PrunableGraph:
    layers = [nn.Conv2d(1, 40, 1), nn.ReLU(), nn.Flatten(), nn.Linear(160, 3)]
    return rf.PrunableGraph.trace(nn.Sequential(*layers), torch.zeros(1, 1, 2, 2))


class Known:
    """Scores the sub-network of width w by row w of a table of hits [widths, images]."""

    def __init__(self, hits: NDArray[np.bool_]) -> None:
        self.hits = hits
        self.asked: list[tuple[list[int], range]] = []

    def __len__(self) -> int:
        return self.hits.shape[1]

    def accuracies(
        self, subnets: Sequence[rf.Subnet], images: range | None = None
    ) -> NDArray[np.float64]:
        images = range(len(self)) if images is None else images
        widths = [int(s.widths[0]) for s in subnets]
        self.asked.append((widths, images))
        return self.hits[widths, images.start : images.stop].mean(1)


def drawn(*accuracies: float, seed: int = 0) -> Known:
    """Hits at these rates: of width 0, which there is not, then 1, 2, ..."""
    rng = np.random.default_rng(seed)
    return Known(rng.random((len(accuracies) + 1, IMAGES)) < np.array([0.0, *accuracies])[:, None])


def nets(graph: rf.PrunableGraph, *widths: int) -> list[rf.Subnet]:
    return [graph.subnet([width]) for width in widths]


def test_what_is_clearly_behind_is_stopped_after_the_first_images(graph: rf.PrunableGraph) -> None:
    scorer = drawn(0.7, 0.2, 0.68, 0.3)
    race = Race(scorer, 0.25)
    race.start(whole=False)
    found = race.accuracies(nets(graph, 1, 2, 3, 4))
    first, rest = range(250), range(250, 1000)
    assert scorer.asked == [([1, 2, 3, 4], first), ([1], rest), ([3], rest)]
    hits = scorer.hits.astype(float)
    whole, seen = hits.mean(1), hits[:, :250].mean(1)
    assert found.tolist() == [whole[1], seen[2], whole[3], seen[4]]
    assert race.stopped == 2


def test_the_lead_passes_on_and_begins_anew(graph: rf.PrunableGraph) -> None:
    scorer = drawn(0.7, 0.3)
    race = Race(scorer, 0.25)
    race.start(whole=False)
    race.accuracies(nets(graph, 1))
    behind = race.accuracies(nets(graph, 2))
    assert (behind.tolist(), race.stopped) == ([scorer.hits[2, :250].mean()], 1)
    race.start(whole=False)  # other weights: it is the best of those that are known
    assert race.accuracies(nets(graph, 2)).tolist() == [scorer.hits[2].mean()]
    assert race.stopped == 0
    race.start(whole=True)
    found = race.accuracies(nets(graph, 1, 2))
    assert found.tolist() == scorer.hits[1:].mean(1).tolist()
    assert race.stopped == 0


@pytest.mark.parametrize("spread", [0.1, 0.02, 0.0])
@pytest.mark.parametrize("seed", range(20))
def test_the_best_found_is_scored_on_all_images(
    graph: rf.PrunableGraph, seed: int, spread: float
) -> None:
    """What is stopped ends below one that was scored to the end: the best reward is no estimate."""
    rng = np.random.default_rng(seed)
    scorer = drawn(*rng.uniform(0.3 - spread, 0.3 + spread, 40), seed=seed)
    race = Race(scorer, 0.1)
    race.start(whole=False)
    order = rng.permutation(40) + 1
    found = np.concatenate(
        [race.accuracies(nets(graph, *order[i : i + 8])) for i in range(0, 40, 8)]
    )
    finished = {w for widths, part in scorer.asked if part.stop == IMAGES for w in widths}
    best = int(order[found.argmax()])
    assert best in finished
    assert found.max() == scorer.hits[best].mean()
    assert 0 < race.stopped == 40 - len(finished)


def test_equals_and_the_very_first_image_count(graph: rf.PrunableGraph) -> None:
    race = Race(Known(np.ones((4, IMAGES), dtype=bool)), 0.25)
    race.start(whole=False)
    for _ in range(2):
        assert race.accuracies(nets(graph, 1, 2, 3)).tolist() == [1.0] * 3
    assert race.stopped == 0
    race = Race(Known(np.zeros((4, IMAGES), dtype=bool)), 0.25)
    race.start(whole=False)
    assert race.accuracies(nets(graph, 1, 2, 3)).tolist() == [0.0] * 3
    assert race.stopped == 0


@pytest.mark.parametrize(
    ("images", "share", "first"),
    [(1000, 0.25, 250), (1000, 1.0, 1000), (999, 0.25, 250), (1000, 1e-9, 100), (70, 0.25, 70)],
)
def test_how_many_come_first(images: int, share: float, first: int) -> None:
    assert Race(Known(np.ones((1, images), dtype=bool)), share).first == first


def test_no_race_is_one_call(graph: rf.PrunableGraph) -> None:
    scorer = drawn(0.7, 0.2)
    race = Race(scorer, 1.0)
    race.start(whole=False)
    assert race.accuracies(nets(graph, 1, 2)).tolist() == scorer.hits[1:].mean(1).tolist()
    assert scorer.asked == [([1, 2], range(1000))]
    assert race.accuracies([]).tolist() == []
    assert race.stopped == 0


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_with_the_real_evaluator(backend: str) -> None:
    graph, rng = traced("resnet8"), np.random.default_rng(0)
    images, _ = images_for(graph, 330)
    subnets = [random_subnet(graph, rng) for _ in range(12)]
    labels = torch.zeros(330, dtype=torch.int64)
    labels = rf.Evaluator(graph, images, labels, backend).logits(subnets[4]).argmax(1)
    evaluator = rf.Evaluator(graph, images, labels, backend)
    race = Race(evaluator, 0.4)
    race.start(whole=False)
    found, whole = race.accuracies(subnets), evaluator.accuracies(subnets)
    first = evaluator.accuracies(subnets, range(132))
    assert found[4] == whole[4] == 1
    assert 0 < race.stopped < 12
    ended = found == whole
    assert found[~ended].tolist() == first[~ended].tolist()
    assert ended.sum() >= 12 - race.stopped
