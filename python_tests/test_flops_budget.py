"""flops.Budget and its bounds in csrc/core/cost.cpp: within the budget, and all of it used."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rlal_fast import models
from rlal_fast.errors import InputError
from rlal_fast.flops import Budget, ChannelCount, CostTable, LayerCost
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import reference

IntArray = NDArray[np.int64]
SETTINGS = [  # a_max, min_width, round_to
    (0.8, 1, 1),
    (0.57, 3, 1),  # 0.57 * 100 is less than 57 in doubles
    (0.8, 1, 8),
    (0.9, 6, 4),
    (1.0, 1, 1),
    (0.3, 1, 5),
]
AT_SETTINGS = pytest.mark.parametrize("setting", SETTINGS, ids=str)
Setting = tuple[float, int, int]


def random_widths(cost: CostTable, count: int, seed: int) -> IntArray:
    full = cost.full_widths
    return np.random.default_rng(seed).integers(1, full + 1, (count, len(full)))


@pytest.fixture(scope="module", params=["resnet20", "mobilenet_v2"])
def graphs(request: pytest.FixtureRequest) -> dict[str, PrunableGraph]:
    """A network with each coupling."""
    graph = PrunableGraph.trace(models.create(request.param, 10), torch.zeros(1, 3, 11, 17))
    choices = [("internal", ()), ("all", ()), ("none", ("*",))]
    return {
        coupling: PrunableGraph(graph.model, graph.nodes, coupling, (), exclude)
        for coupling, exclude in choices
    }


# -- against the twin -----------------------------------------------------------------------------


def random_cost(seed: int) -> CostTable:
    """A made-up network: every form of channel count that a graph can produce, hostile widths."""
    rng = np.random.default_rng(seed)
    full = rng.choice([1, 2, 5, 7, 11, 17, 64, 100], size=rng.integers(1, 7)).astype(np.int64)

    def channels(*needed: int) -> ChannelCount:
        others = [int(g) for g in np.flatnonzero(rng.random(len(full)) < 0.2) if g not in needed]
        terms = tuple((g, int(rng.integers(1, 5))) for g in (*needed, *others))
        return ChannelCount(int(rng.integers(0 if terms else 1, 4)), terms)

    places = [*range(len(full)), *rng.integers(0, len(full), size=3).tolist()]
    layers = [
        LayerCost(f"layer{i}", int(rng.integers(1, 300)), channels(g), channels())
        for i, g in enumerate(places)
    ]
    return CostTable(tuple(layers), full)


@pytest.mark.parametrize("seed", range(10))
def test_native_count_is_the_twin_s(seed: int) -> None:
    cost = random_cost(seed)
    widths = random_widths(cost, 50, seed)
    macs = cost.macs(widths)
    assert macs.dtype == np.int64
    assert macs.tolist() == reference.count_macs(cost, widths).tolist()


def allowed_widths(full: int, setting: Setting) -> list[int]:
    """By definition: multiples of round_to and the full width, not below the smallest."""
    a_max, min_width, round_to = setting
    least = max(min_width, full - math.floor(Fraction(str(a_max)) * full))
    return [w for w in range(1, full + 1) if w == full or (w >= least and w % round_to == 0)]


def budget_of(cost: CostTable, fraction: float | Fraction, setting: Setting) -> Budget:
    a_max, min_width, round_to = setting
    return Budget(cost, fraction, a_max=a_max, min_width=min_width, round_to=round_to)  # type: ignore[arg-type]


def budgets(cost: CostTable, setting: Setting) -> list[Budget]:
    """From nothing to prune to the most that can be pruned."""
    least = [allowed_widths(full, setting)[0] for full in cost.full_widths.tolist()]
    most = 1 - Fraction(int(cost.macs(least)), int(cost.macs(cost.full_widths)))
    return [budget_of(cost, most * part / 8, setting) for part in (0, 1, 4, 6, 7, 8)]


@AT_SETTINGS
@pytest.mark.parametrize("seed", range(4))
def test_native_bounds_are_the_twin_s(seed: int, setting: Setting) -> None:
    cost = random_cost(seed)
    widths = random_widths(cost, 5, seed)
    for budget in budgets(cost, setting):
        for group in range(len(cost.full_widths)):
            low, high = budget.bounds(widths, group)
            expected = [
                reference.budget_bounds(
                    cost, row, group, budget.min_widths, setting[2], budget.macs
                )
                for row in widths
            ]
            assert list(zip(low.tolist(), high.tolist(), strict=True)) == expected


# -- the budget -----------------------------------------------------------------------------------


def line(*full: int) -> CostTable:
    """One MAC per channel."""
    one = ChannelCount(1, ())
    layers = (LayerCost(str(g), 1, ChannelCount(0, ((g, 1),)), one) for g in range(len(full)))
    return CostTable(tuple(layers), np.array(full, dtype=np.int64))


@AT_SETTINGS
def test_the_smallest_widths_are_the_smallest_allowed(setting: Setting) -> None:
    full = (1, 2, 5, 7, 11, 16, 17, 64, 100)
    smallest = budget_of(line(*full), 0, setting).min_widths
    assert smallest.tolist() == [allowed_widths(f, setting)[0] for f in full]


def play(budget: Budget, ratios: NDArray[np.float64]) -> IntArray:
    """Episodes [P, G] of the actions `ratios` [P, G]."""
    widths = np.zeros(ratios.shape, dtype=np.int64)
    for group in range(ratios.shape[1]):
        low, high = budget.bounds(widths, group)
        widths[:, group] = budget.width(ratios[:, group], group, low, high)
    return widths


def actions(groups: int, episodes: int, seed: int) -> NDArray[np.float64]:
    """Timid, greedy and mixed episodes, and the two extremes."""
    rng = np.random.default_rng(seed)
    ratios = rng.random((episodes, groups)) ** rng.choice([0.2, 1, 5], size=(episodes, 1))
    ratios[0], ratios[1] = 0, 1
    return ratios


def check_spent(budget: Budget, widths: IntArray, setting: Setting) -> None:
    """All within the budget, and one step more of the last pruned group would exceed it."""
    allowed = [allowed_widths(full, setting) for full in budget.full_widths.tolist()]
    for row, macs in zip(widths, reference.count_macs(budget.cost, widths), strict=True):
        assert macs <= budget.macs
        assert all(width in few for width, few in zip(row.tolist(), allowed, strict=True))
        pruned = np.flatnonzero(row < budget.full_widths)
        if len(pruned) and macs < budget.macs:
            wider = row.copy()
            wider[pruned[-1]] = next(w for w in allowed[pruned[-1]] if w > row[pruned[-1]])
            assert int(reference.count_macs(budget.cost, wider[None])[0]) > budget.macs


@AT_SETTINGS
@pytest.mark.parametrize("seed", range(8))
def test_every_episode_meets_the_budget_and_spends_it(seed: int, setting: Setting) -> None:
    cost = random_cost(seed)
    for budget in budgets(cost, setting):
        check_spent(budget, play(budget, actions(len(cost.full_widths), 40, seed)), setting)


@pytest.mark.parametrize("coupling", ["internal", "all"])
def test_every_episode_on_a_network_meets_the_budget_and_spends_it(
    graphs: dict[str, PrunableGraph], coupling: str
) -> None:
    cost = graphs[coupling].cost
    for budget in budgets(cost, SETTINGS[0]):
        check_spent(budget, play(budget, actions(len(cost.full_widths), 20, 1)), SETTINGS[0])


@AT_SETTINGS
@pytest.mark.parametrize("seed", range(4))
def test_an_action_is_changed_only_where_the_budget_demands_it(seed: int, setting: Setting) -> None:
    cost = random_cost(seed)
    full = cost.full_widths

    def macs(row: IntArray, group: int, width: int, rest: IntArray) -> int:
        ends = np.concatenate([row[:group], [width], rest[group + 1 :]])
        return int(reference.count_macs(cost, ends[None])[0])

    for budget in budgets(cost, setting):
        ratios = actions(len(full), 12, seed)
        for wish, row in zip(ratios, play(budget, ratios), strict=True):
            for group, got in enumerate(row.tolist()):
                allowed = allowed_widths(int(full[group]), setting)
                asked = int(full[group]) - math.floor(wish[group] * full[group] + 1e-6)
                if abs(got - asked) == min(abs(width - asked) for width in allowed):
                    continue
                if got < asked:  # a wider one could not end within the budget any more
                    wider = next(w for w in allowed if w > got)
                    assert macs(row, group, wider, budget.min_widths) > budget.macs
                else:  # a narrower one would leave some of the budget unused, whatever follows
                    narrower = next(w for w in reversed(allowed) if w < got)
                    assert macs(row, group, narrower, full) < budget.macs


@pytest.mark.parametrize("full", [1, 2, 5, 7, 11, 17, 64, 100, 576, 1280])
def test_a_width_comes_back_from_its_own_ratio(full: int) -> None:
    budget = Budget(line(full), 0, a_max=1.0)
    widths = np.arange(1, full + 1)
    low, high = np.ones_like(widths), np.full_like(widths, full)
    assert budget.width(1 - widths / full, 0, low, high).tolist() == widths.tolist()


@pytest.mark.parametrize(
    ("ratio", "round_to", "low", "high", "width"),
    [
        (0.0, 1, 1, 17, 17),
        (0.5, 1, 1, 17, 9),  # floor of what is removed
        (0.058, 1, 1, 17, 17),
        (1.0, 1, 3, 17, 3),
        (0.0, 8, 8, 17, 17),  # the full width is allowed though it is no multiple
        (0.2, 8, 8, 17, 16),
        (0.5, 8, 8, 17, 8),
        (0.2, 8, 8, 8, 8),  # rounded first, bounded after
        (0.9, 8, 16, 17, 16),
        (-3.0, 1, 1, 17, 17),
        (7.0, 1, 1, 17, 1),
    ],
)
def test_a_ratio_is_floored_then_rounded_then_bounded(
    ratio: float, round_to: int, low: int, high: int, width: int
) -> None:
    budget = Budget(line(17), 0, round_to=round_to)
    got = budget.width(np.array([ratio] * 3), 0, np.array([low] * 3), np.array([high] * 3))
    assert got.dtype == np.int64
    assert got.tolist() == 3 * [width]


@pytest.mark.parametrize(
    ("full", "fraction", "expected"),
    [
        (1000, 0.9, 100),  # (1 - 0.9) * 1000 is 99.99999999999998 in doubles
        (1000, 0.35, 650),
        (10**15 + 7, 0.1, 900_000_000_000_006),
        (1000, np.float32(0.9), 100),
        (1000, np.float64(0.7), 300),
        (1000, 1e-05, 999),
        (1000, Fraction(1, 3), 666),
        (1000, 0, 1000),
        (7, 0.5, 3),
    ],
)
def test_the_budget_is_exactly_the_fraction_written(
    full: int, fraction: float, expected: int
) -> None:
    budget = Budget(line(full), fraction, a_max=1.0)
    assert (budget.macs_full, budget.macs) == (full, expected)


@AT_SETTINGS
@pytest.mark.parametrize("seed", range(8))
def test_an_unreachable_budget_names_the_range_and_its_end_works(
    seed: int, setting: Setting
) -> None:
    cost = random_cost(seed)
    pattern = r"=0\.9999999 cannot be reached: with a_max=.*round_to=.* the range is 0 to 0\.\d{4}$"
    with pytest.raises(InputError, match=pattern) as raised:
        budget_of(cost, 0.9999999, setting)
    end = str(raised.value).rpartition(" ")[2]
    budget = budget_of(cost, float(end), setting)
    check_spent(budget, play(budget, actions(len(cost.full_widths), 5, seed)), setting)
    with pytest.raises(InputError, match=f"0 to {end}"):
        budget_of(cost, float(Fraction(end) + Fraction(1, 10000)), setting)


@pytest.mark.parametrize(
    ("fraction", "options", "message"),
    [
        (1.0, {}, r"pruned_flops must be in \[0, 1\), e\.g\. 0\.5, not 1\.0"),
        (-0.1, {}, "not -0.1"),
        (50, {}, "not 50"),
        (math.nan, {}, "not nan"),
        (0.5, {"a_max": 1.1}, r"a_max=1\.1 must be in \[0, 1\]"),
        (0.5, {"a_max": math.nan}, "a_max=nan"),
        (0.5, {"min_width": 0}, "min_width=0"),
        (0.5, {"round_to": 0}, "round_to=0 at least 1"),
        (0.1, {"a_max": 0.0}, r"the range is 0 to 0\.0000"),
    ],
)
def test_impossible_settings_are_refused(
    fraction: float, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Budget(line(5, 7), fraction, **options)  # type: ignore[arg-type]


def test_a_network_without_groups_has_nothing_to_prune(graphs: dict[str, PrunableGraph]) -> None:
    whole, cost = graphs["internal"].cost, graphs["none"].cost
    assert Budget(cost, 0).macs == int(whole.macs(whole.full_widths))
    with pytest.raises(InputError, match=r"the range is 0 to 0\.0000"):
        Budget(cost, 0.1)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.7])
def test_the_uniform_ratio_is_the_smallest_that_meets_the_budget(
    graphs: dict[str, PrunableGraph], fraction: float
) -> None:
    cost = graphs["internal"].cost
    budget = Budget(cost, fraction)
    ratio = budget.uniform_ratio()
    step = round(ratio * 10000)
    assert ratio == step / 10000

    def macs(step: int) -> int:
        removed = [math.floor(Fraction(step, 10000) * full) for full in cost.full_widths.tolist()]
        return int(cost.macs(cost.full_widths - removed))

    assert macs(step) <= budget.macs
    assert step == 0 or macs(step - 1) > budget.macs


def test_the_uniform_ratio_does_not_exceed_a_max() -> None:
    third = 1 / 3  # not a multiple of 1e-4: no smaller one removes a channel of three
    assert Budget(line(3), third, a_max=third).uniform_ratio() == third


@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("fraction", [0.1, 0.35, 0.5, 0.7])
def test_fitted_ratios_meet_another_budget_and_no_more(
    graphs: dict[str, PrunableGraph], fraction: float, round_to: int
) -> None:
    cost = graphs["internal"].cost
    budget, rng = Budget(cost, fraction, round_to=round_to), np.random.default_rng(0)
    ratios = rng.uniform(0.05, 0.8, (20, len(cost.full_widths)))
    if fraction < 0.7:  # else the others cannot make up for a group that stays whole
        ratios[0, 0] = 0.0
    found = budget.fitted(ratios)

    def macs(ratios: NDArray[np.floating]) -> NDArray[np.int64]:
        groups = range(len(cost.full_widths))
        least, full = budget.min_widths, budget.full_widths
        widths = [budget.width(ratios[:, g], g, least[g : g + 1], full[g : g + 1]) for g in groups]
        return cost.macs(np.stack(widths, axis=1))

    assert found.shape == ratios.shape
    assert (found[0, 0] == 0) == (ratios[0, 0] == 0)  # not pruned, and not pruned now
    assert ((found >= 0) & (found <= budget.a_max)).all()
    assert (macs(found) <= budget.macs).all()
    less = 1 - (1 - found) ** (0.98 if round_to == 1 else 0.8)
    assert (macs(less) > budget.macs).all()  # a little less removes too little
    order = np.argsort(ratios, axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(found, order, axis=1), axis=1) >= 0).all()
    if round_to == 1:
        assert budget.fitted(found) == pytest.approx(found, abs=2e-3)


def test_hardly_pruned_ratios_are_fitted_too(graphs: dict[str, PrunableGraph]) -> None:
    budget = Budget(graphs["internal"].cost, 0.5)
    found = budget.fitted(np.full((1, len(budget.full_widths)), 0.004))
    assert found[0] == pytest.approx(found[0, 0])
    assert budget.uniform_ratio() == pytest.approx(found[0, 0], abs=0.01)


def test_ratios_of_which_none_prunes_cannot_be_fitted() -> None:
    budget = Budget(line(10, 10), 0.5)
    assert (budget.fitted(np.zeros((3, 2))) <= budget.a_max).all()
    assert budget.fitted(np.zeros((0, 2))).shape == (0, 2)
    assert budget.fitted(np.ones((1, 2)))[0] == pytest.approx([0.5, 0.5], abs=1e-3)
