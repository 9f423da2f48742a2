"""screening.py: which of many candidates are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rlal_fast.errors import InputError
from rlal_fast.replay import Episodes
from rlal_fast.screening import Screening, ScreeningConfig


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


def choose(rows: list[list[float]], seen: np.ndarray, count: int, **settings: float) -> list[int]:
    screening = Screening(ScreeningConfig(**settings), Opinions(rows))
    return screening.choose(episodes(len(seen)), seen, None, count).tolist()


def test_the_best_in_the_mean_are_chosen_best_first() -> None:
    rows = [[0.0, 3.0, 1.0, 2.0], [0.0, 3.0, 2.0, 2.0]]
    assert choose(rows, widths(1, 2, 3, 4), 3, optimism=0.0) == [1, 3, 2]


def test_optimism_prefers_what_the_ensemble_disagrees_on() -> None:
    rows = [[1.0, 0.0], [1.0, 1.9]]
    assert choose(rows, widths(1, 2), 1, optimism=0.0) == [0]
    assert choose(rows, widths(1, 2), 1, optimism=0.5) == [1]


def test_one_opinion_has_no_spread() -> None:
    assert choose([[1.0, 2.0]], widths(1, 2), 2) == [1, 0]


def test_what_is_known_or_there_twice_comes_last() -> None:
    seen = widths(7, 7, 3, 4)
    known = frozenset([widths(3)[0].tobytes()])
    screening = Screening(ScreeningConfig(), Opinions([[4.0, 3.0, 2.0, 1.0]]), known=known)
    assert screening.choose(episodes(4), seen, None, 2).tolist() == [0, 3]
    assert screening.choose(episodes(4), seen, None, 4).tolist() == [0, 3, 1, 2]


def test_shares_of_the_candidates_are_random_or_near_the_even_ratio() -> None:
    config = ScreeningConfig(random_share=0.2, even_share=0.3, even_spread=0.1)
    screening = Screening(config, Opinions([[0.0]]), a_max=0.6)
    wanted, even = torch.full((1000,), 9.0), torch.full((1000,), 0.4)
    ratios = screening.vary(wanted, even, torch.Generator().manual_seed(0))
    rest = ratios[500:]
    assert torch.equal(rest, wanted[500:])
    assert 0 <= ratios[:200].min() < 0.02
    assert 0.58 < ratios[:200].max() <= 0.6
    assert 0.3 <= ratios[200:500].min() < 0.31
    assert 0.49 < ratios[200:500].max() <= 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("candidates", 0),
        ("random_share", 1.5),
        ("even_share", 0.8),  # beside a random_share of 0.25
        ("even_spread", 0.0),
        ("optimism", -0.1),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"ScreeningConfig.{name} = {value}"):
        ScreeningConfig(**{name: value})
