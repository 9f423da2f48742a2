"""What the environment model is worth to SAC when rewards move with the weights (method.md §6).

The whole loop runs on `drifting.py`, where the best reward of every epoch is known; its docstring
has the measurements from which the margins here were taken.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import pytest
import torch
from drifting import (
    A_MAX,
    BUDGET,
    ENVIRONMENT,
    GROUPS,
    SETTINGS,
    Drift,
    best_ratios,
    one_way,
    run,
    still,
    turning,
    walk,
)

from rlal_fast.agents import RandomAgent
from rlal_fast.environment_model import EnvironmentModelConfig

EPOCHS = 24


def regret(
    drift: Drift, environment: EnvironmentModelConfig | None, seed: int
) -> tuple[float, ...]:
    return run(drift, SETTINGS, environment, seed, updates=30).second_half()


def test_rising_rewards_with_a_moving_optimum_need_the_environment_model() -> None:
    drift = one_way(EPOCHS, first_level=0.5)
    without, with_model = (
        [regret(drift, e, seed) for seed in range(3)] for e in (None, ENVIRONMENT)
    )
    # Seeds 0 to 8: mean 0.300 ± 0.027 -> 0.195 ± 0.036, best 0.218 ± 0.029 -> 0.102 ± 0.028, each
    # seed better. The limits are three standard deviations of three seeds' average from these.
    assert mean(r[0] for r in with_model) < 0.9 * mean(r[0] for r in without)
    assert mean(r[1] for r in with_model) < 0.8 * mean(r[1] for r in without)


def test_where_nothing_moves_it_costs_little() -> None:
    drift = still(EPOCHS)
    without, with_model = (regret(drift, e, 0) for e in (None, ENVIRONMENT))
    assert without[0] < 0.06  # both have learned: random episodes have 0.27
    # Seeds 0 to 2: mean 0.018 -> 0.020, best 0.006 -> 0.006; 30 epochs: 0.016 -> 0.024.
    assert with_model[0] < without[0] + 0.02
    assert with_model[1] < without[1] + 0.01


# --- the toy itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 3, 5, 7])
def test_the_best_ratios_are_those_of_a_fine_grid(epoch: int) -> None:
    drift = turning(8, 8, first_level=0.5)
    axis = torch.linspace(0, A_MAX, 81)
    first = torch.cartesian_prod(*[axis] * (GROUPS - 1))
    ratios = torch.cat([first, BUDGET - first.sum(1, keepdim=True)], dim=1)
    last = ratios[:, -1]
    allowed = ratios[(last > -1e-6) & (last < A_MAX + 1e-6)]
    on_grid = float(drift.rewards(allowed, epoch).max())
    assert on_grid - 1e-6 <= drift.best(epoch) < on_grid + 5e-4
    best = best_ratios(drift.costs[epoch])
    assert float(best.sum()) == pytest.approx(BUDGET)
    assert float(best.max()) <= A_MAX + 1e-6


@pytest.mark.parametrize("make", [lambda: turning(8, 8), lambda: one_way(8, 0.5)])
def test_what_was_best_at_first_is_not_later(make: Callable[[], Drift]) -> None:
    drift = make()
    for epoch in (4, 7):
        stale = float(drift.rewards(best_ratios(drift.costs[0]), epoch))
        assert stale < drift.best(epoch) - 0.03


def test_regimes_come_back_and_jump_when_sudden() -> None:
    smooth, sudden = turning(17, 8), turning(17, 8, sudden=True)
    for drift in (smooth, sudden):
        torch.testing.assert_close(drift.costs[:8], drift.costs[8:16])
    assert len(torch.unique(sudden.costs, dim=0)) == GROUPS
    assert len(torch.unique(smooth.costs, dim=0)) == 8


def test_episodes_meet_the_budget_and_none_beats_the_best() -> None:
    drift = one_way(5, first_level=0.5)
    for epoch in range(5):
        found = walk(RandomAgent(A_MAX), 500, drift, epoch, None, torch.Generator().manual_seed(0))
        torch.testing.assert_close(found.actions.sum(1), torch.full((500,), BUDGET))
        assert float(found.rewards.min()) >= 0
        assert drift.best(epoch) - 0.1 < float(found.rewards.max()) <= drift.best(epoch)
