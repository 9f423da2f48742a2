"""screening.py: which of many candidates are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rlal_fast.agents import UniformAgent
from rlal_fast.errors import InputError
from rlal_fast.replay import Episodes
from rlal_fast.screening import Screening, ScreeningConfig
from rlal_fast.walk import Step


class Opinions:
    """An ensemble with a fixed answer [M, N]."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = torch.tensor(rows)

    def predict(self, states: Tensor, actions: Tensor, z: Tensor | None) -> Tensor:
        return self.rows


def episodes(count: int) -> Episodes:
    return Episodes(torch.zeros(count, 2, 3), *torch.zeros(3, count, 2), torch.zeros(count))


def widths(*first: int) -> np.ndarray:
    return np.array([[w, 5] for w in first], dtype=np.int64)


_BRED = 0.5  # the ratio by which the children are told from the others


def screen(
    rows: list[list[float]], known: frozenset[bytes] = frozenset(), **settings: float
) -> Screening:
    config = ScreeningConfig(**settings)
    return Screening(config, Opinions(rows), UniformAgent(_BRED), a_max=0.6, known=known)


def choose(rows: list[list[float]], seen: np.ndarray, count: int, **settings: float) -> list[int]:
    return screen(rows, **settings).choose(episodes(len(seen)), seen, None, count).tolist()


_ONE_SOURCE = {"explore_share": 0.0, "bred_share": 0.0}


def test_the_best_in_the_mean_are_chosen_best_first() -> None:
    rows = [[0.0, 3.0, 1.0, 2.0], [0.0, 3.0, 2.0, 2.0]]
    assert choose(rows, widths(1, 2, 3, 4), 3, optimism=0.0, **_ONE_SOURCE) == [1, 3, 2]


def test_optimism_prefers_what_the_ensemble_disagrees_on() -> None:
    rows = [[1.0, 0.0], [1.0, 1.9]]
    assert choose(rows, widths(1, 2), 1, optimism=0.0, **_ONE_SOURCE) == [0]
    assert choose(rows, widths(1, 2), 1, optimism=0.5, **_ONE_SOURCE) == [1]


def test_one_opinion_has_no_spread() -> None:
    assert choose([[1.0, 2.0]], widths(1, 2), 2, **_ONE_SOURCE) == [1, 0]


def test_what_is_known_or_there_twice_comes_last() -> None:
    seen = widths(7, 7, 3, 4)
    known = frozenset([widths(3)[0].tobytes()])
    screening = screen([[4.0, 3.0, 2.0, 1.0]], known, **_ONE_SOURCE)
    assert screening.choose(episodes(4), seen, None, 2).tolist() == [0, 3]
    assert screening.choose(episodes(4), seen, None, 4).tolist() == [0, 3, 1, 2]


def test_each_source_has_its_share_of_the_picks_whatever_the_others_promise() -> None:
    promise = [[float(n) for n in range(10)]]
    chosen = choose(promise, widths(*range(10)), 4, explore_share=0.25, bred_share=0.25)
    # candidates 0 and 1 explore, 2..6 are the policy's, 7..9 bred; the policy's come first
    assert chosen == [6, 5, 9, 1]


def test_a_source_that_runs_out_leaves_its_picks_to_the_others() -> None:
    known = frozenset(row.tobytes() for row in widths(7, 8, 9))
    screening = screen([[float(n) for n in range(10)]], known, explore_share=0.25, bred_share=0.25)
    assert screening.choose(episodes(10), widths(*range(10)), None, 4).tolist() == [6, 5, 1, 4]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 10, 40, 100])
def test_sources_come_to_their_share_over_the_epochs(count: int) -> None:
    total = np.zeros(3)
    for epoch in range(200):
        offset = (0.5 + epoch * 0.618034) % 1
        picks = Screening(
            ScreeningConfig(), Opinions([[0.0]]), UniformAgent(_BRED), offset=offset
        ).sources(count)
        parts = np.bincount(picks, minlength=3)
        assert parts.sum() == count
        if count % 10 == 0:
            assert (parts == np.array([0.3, 0.4, 0.3]) * count).all()
        total += parts
    assert total / total.sum() == pytest.approx([0.3, 0.4, 0.3], abs=0.02)


def test_shares_may_come_to_one() -> None:
    for explore, bred in ((0.1, 0.9), (0.2, 0.8), (1.0, 0.0), (0.0, 1.0)):
        parts = np.bincount(
            screen([[0.0]], explore_share=explore, bred_share=bred).sources(10), minlength=3
        )
        assert parts.tolist() == [round(10 * explore), 0, round(10 * bred)]
    assert screen([[0.0]]).sources(0).tolist() == []


def test_candidates_are_explored_bred_or_the_policys() -> None:
    screening = screen([[0.0]], explore_share=0.5, bred_share=0.2, even_spread=0.1)
    wanted, even = torch.full((1000,), 9.0), torch.full((1000,), 0.4)
    step = Step(0, torch.zeros(1000, 3), even, torch.zeros(1000), torch.ones(1000))
    ratios = screening.vary(wanted, step, torch.Generator().manual_seed(0))
    random, near = ratios[:500:2], ratios[1:500:2]
    assert 0 <= random.min() < 0.02
    assert 0.58 < random.max() <= 0.6
    assert 0.3 <= near.min() < 0.31
    assert 0.49 < near.max() <= 0.5
    assert torch.equal(ratios[500:800], wanted[500:800])
    assert bool((ratios[800:] == _BRED).all())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("candidates", 0),
        ("explore_share", 1.5),
        ("bred_share", 0.8),  # beside an explore_share of 0.3
        ("even_spread", 0.0),
        ("optimism", -0.1),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"ScreeningConfig.{name} = {value}"):
        ScreeningConfig(**{name: value})
