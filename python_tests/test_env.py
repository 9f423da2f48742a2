"""env.py: every episode ends within the budget, and what is stored is what happened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rlal_fast.agents import DDPG, SAC, Agent, DDPGConfig, RandomAgent, SACConfig, UniformAgent
from rlal_fast.env import PruningEnv, Rollout
from rlal_fast.errors import InputError
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet
from rlal_fast.walk import DYNAMIC_FEATURES, PROFILE_FEATURES, STATIC_FEATURES

IntArray = NDArray[np.int64]
FULL = [5, 7, 11, 17]  # widths of Chain's groups
SETTINGS = [("0", 1, 1), ("0.2", 1, 1), ("0.5", 1, 1), ("0.75", 1, 1), ("0.2", 2, 1), ("0.6", 2, 1)]
SETTINGS += [("0.2", 1, 4), ("0.45", 1, 4), ("0.35", 3, 2)]


class Chain(nn.Module):
    """Every kind of group, and MACs that can be written down by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 5, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(5, 7, 3, stride=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7, bias=False)
        self.conv3 = nn.Conv2d(7, 11, 1)
        self.fc1 = nn.Linear(11, 17)
        self.fc2 = nn.Linear(17, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.depthwise(self.conv2(x)))
        x = F.adaptive_avg_pool2d(F.relu(self.conv3(x)), 1).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


def chain_macs(widths: Sequence[int]) -> int:
    """Of the compact Chain on 1x8x8 images, by hand."""
    a, b, c, d = (int(width) for width in widths)
    return 64 * 9 * a + 16 * 9 * a * b + 16 * 9 * b + 16 * b * c + c * d + d * 3


class KeptShare:
    """Scores a sub-network by its share of kept channels."""

    def accuracies(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]:
        return np.array([subnet.widths.sum() / sum(FULL) for subnet in subnets])


class Fixed:
    """Asks for the same ratios in every episode, whatever the bounds are."""

    name = "fixed"

    def __init__(self, ratios: Sequence[float]) -> None:
        self.ratios: Iterator[float] = iter(ratios)

    def act(
        self, state: Tensor, z: Tensor | None, low: Tensor, high: Tensor, generator: torch.Generator
    ) -> Tensor:
        return torch.full((len(state),), next(self.ratios))

    def update(self, *_: object) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


@pytest.fixture(scope="module")
def graph() -> PrunableGraph:
    torch.manual_seed(1)
    return PrunableGraph.trace(Chain(), torch.zeros(1, 1, 8, 8))


def make_env(
    graph: PrunableGraph, p: float = 0.5, min_width: int = 1, round_to: int = 1
) -> PruningEnv:
    budget = Budget(graph.cost, p, min_width=min_width, round_to=round_to)
    return PruningEnv(graph, budget, KeptShare())


BASIC_SIZE = len(STATIC_FEATURES) + len(DYNAMIC_FEATURES)
STATE_SIZE = BASIC_SIZE + 1 + PROFILE_FEATURES


def make_agent(name: str, z_size: int = 0) -> Agent:
    if name == "sac":
        return SAC(STATE_SIZE, z_size, SACConfig(hidden=(16,)), seed=3)
    if name == "ddpg":
        return DDPG(STATE_SIZE, z_size, DDPGConfig(hidden=(16,)), seed=3)
    return RandomAgent(0.8) if name == "random" else UniformAgent(0.3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def budget_by_hand(p: str) -> int:
    return math.floor((1 - Fraction(p)) * chain_macs(FULL))


def bounds_by_hand(prefix: list[int], budget: int, least: list[int], to: int) -> tuple[int, int]:
    """method.md §4, by trying every width."""
    g, after = len(prefix), len(prefix) + 1
    allowed = [c for c in range(least[g], FULL[g] + 1) if c % to == 0 or c == FULL[g]]
    fits = [c for c in allowed if chain_macs([*prefix, c, *least[after:]]) <= budget]
    enough = [c for c in allowed if chain_macs([*prefix, c, *FULL[after:]]) >= budget]
    high = max(fits)
    return min(min(enough, default=high), high), high


def least_by_hand(min_width: int, round_to: int) -> list[int]:
    smallest = [max(min_width, full - int(0.8 * full)) for full in FULL]
    return [min(full, -(-c // round_to) * round_to) for c, full in zip(smallest, FULL, strict=True)]


def test_the_hand_written_macs_are_the_networks(graph: PrunableGraph) -> None:
    assert graph.full_widths.tolist() == FULL
    for widths in (FULL, [1, 1, 1, 1], [3, 7, 2, 17]):
        assert int(graph.cost.macs(np.array(widths))) == chain_macs(widths)


@pytest.mark.parametrize("name", ["random", "sac", "ddpg", "uniform"])
@pytest.mark.parametrize(("p", "min_width", "round_to"), SETTINGS)
def test_every_episode_ends_within_the_budget(
    graph: PrunableGraph, name: str, p: str, min_width: int, round_to: int
) -> None:
    least = least_by_hand(min_width, round_to)
    env = make_env(graph, float(p), min_width, round_to)
    rollout = env.rollout(make_agent(name), 17, None, generator())
    assert rollout.widths.shape == (17, len(FULL))
    for widths, subnet in zip(rollout.widths.tolist(), rollout.subnets, strict=True):
        assert subnet.widths.tolist() == widths
        assert chain_macs(widths) <= budget_by_hand(p)
        for c, low, full in zip(widths, least, FULL, strict=True):
            assert low <= c <= full
            assert c % round_to == 0 or c == full


@pytest.mark.parametrize("name", ["random", "sac", "uniform"])
@pytest.mark.parametrize(("p", "round_to"), [("0.5", 1), ("0.4", 4)])
def test_stored_actions_are_the_executed_ratios_within_the_stored_bounds(
    graph: PrunableGraph, name: str, p: str, round_to: int
) -> None:
    env = make_env(graph, float(p), round_to=round_to)
    rollout = env.rollout(make_agent(name), 11, None, generator(4))
    stored, least = rollout.episodes, least_by_hand(1, round_to)
    for e, widths in enumerate(rollout.widths.tolist()):
        for g, full in enumerate(FULL):
            low, high = bounds_by_hand(widths[:g], budget_by_hand(p), least, round_to)
            assert low <= widths[g] <= high
            assert stored.actions[e, g] == pytest.approx(1 - widths[g] / full, abs=1e-6)
            assert stored.low[e, g] == pytest.approx(1 - high / full, abs=1e-6)
            assert stored.high[e, g] == pytest.approx(1 - low / full, abs=1e-6)
    # exactly, so that a learner may rely on it
    assert bool((stored.low <= stored.actions).all() and (stored.actions <= stored.high).all())


def expected_static() -> NDArray[np.float64]:
    index = [0, 1 / 3, 2 / 3, 1]
    kind = [0, 0.5, 0, 1]
    inputs = np.array([1, 5, 7, 11]) / 11
    outputs = np.array(FULL) / 17
    kernel = [1, 1, 1 / 3, 1 / 3]
    stride = [0.5, 1, 0.5, 0.5]
    size = np.array([8, 4, 4, 1]) / 8
    parameters = np.array([45, 7 * 5 * 9 + 7 * 9, 77, 187]) / 378
    macs = np.array([64 * 45, 16 * 9 * 35 + 16 * 9 * 7, 16 * 77, 187]) / 6048
    return np.stack([index, kind, inputs, outputs, kernel, stride, size, parameters, macs], axis=1)


def expected_dynamic(widths: list[int], g: int, budget: int) -> list[float]:
    full, least = chain_macs(FULL), least_by_hand(1, 1)
    now = chain_macs([*widths[:g], *FULL[g:]])
    return [
        (full - now) / full,
        max(now - budget, 0) / full,
        (now - chain_macs([*widths[:g], *least[g:]])) / full,
        1 - widths[g - 1] / FULL[g - 1] if g else 0.0,
    ]


@pytest.mark.parametrize("name", ["random", "sac", "uniform"])
@pytest.mark.parametrize("p", ["0.1", "0.6"])
def test_states_mean_what_the_method_says(graph: PrunableGraph, name: str, p: str) -> None:
    rollout = make_env(graph, float(p)).rollout(make_agent(name), 7, None, generator(5))
    states = rollout.episodes.states.double().numpy()
    assert states.shape == (7, len(FULL), STATE_SIZE)
    assert states.min() >= 0
    assert states.max() <= 1
    for episode, widths in zip(states, rollout.widths.tolist(), strict=True):
        parts = np.split(episode, [len(STATIC_FEATURES), BASIC_SIZE, BASIC_SIZE + 1], axis=1)
        static, dynamic, even, profile = parts
        np.testing.assert_allclose(static, expected_static(), atol=1e-6)
        expected = [expected_dynamic(widths, g, budget_by_hand(p)) for g in range(len(FULL))]
        np.testing.assert_allclose(dynamic, expected, atol=1e-6)
        for g in range(len(FULL)):
            np.testing.assert_allclose(profile[g], expected_profile(widths, g), atol=1e-5)
            assert even_meets_the_budget(float(even[g, 0]), widths, g, budget_by_hand(p))


def expected_profile(widths: list[int], g: int) -> list[float]:
    """Slot k is the mean over its depths of the ratio decided there, 0 where none is yet."""
    fine = 64  # depths looked at per slot: FULL has 4 groups, so no border lies within a slot
    ratios = [1 - widths[i] / FULL[i] if i < g else 0.0 for i in range(len(FULL))]
    depths = [(i + 0.5) / (PROFILE_FEATURES * fine) for i in range(PROFILE_FEATURES * fine)]
    at = [ratios[int(depth * len(FULL))] for depth in depths]
    return [sum(at[k * fine : (k + 1) * fine]) / fine for k in range(PROFILE_FEATURES)]


def even_meets_the_budget(even: float, widths: list[int], g: int, budget: int) -> bool:
    """The even ratio fits, or is a_max; one a little smaller does not fit, or is 0."""

    def cost(ratio: float) -> int:
        least = least_by_hand(1, 1)
        later = [
            max(full - math.floor(ratio * full + 1e-6), small)
            for full, small in zip(FULL[g:], least[g:], strict=True)
        ]
        return chain_macs([*widths[:g], *later])

    smaller = even - 0.8 / 256
    fits = cost(even) <= budget or even >= 0.8 - 1e-6
    return fits and (smaller < 1e-6 or cost(smaller - 1e-6) > budget)


def test_a_basic_state_ends_before_the_profile(graph: PrunableGraph) -> None:
    budget = Budget(graph.cost, 0.5)
    basic = PruningEnv(graph, budget, KeptShare(), state="basic")
    rich = PruningEnv(graph, budget, KeptShare())
    assert (basic.state_size, rich.state_size) == (BASIC_SIZE, STATE_SIZE)
    ours, theirs = (env.rollout(RandomAgent(0.8), 3, None, generator(1)) for env in (basic, rich))
    assert torch.equal(ours.episodes.states, theirs.episodes.states[:, :, :BASIC_SIZE])
    with pytest.raises(InputError, match="state='all' must be one of"):
        PruningEnv(graph, budget, KeptShare(), state="all")


@pytest.mark.parametrize("groups", [1, 2, 7, 9, 27, 32, 54])
def test_each_group_has_its_share_of_the_profile(groups: int) -> None:
    from rlal_fast.walk import places

    places = places(groups)
    np.testing.assert_allclose(places.sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(places.sum(1), PROFILE_FEATURES / groups, rtol=1e-5)
    if groups <= PROFILE_FEATURES:  # then the profile tells every ratio
        assert np.linalg.matrix_rank(places) == groups


def test_the_kind_of_a_group_means_the_same_in_every_network() -> None:
    class Mobile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 1)
            self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.adaptive_avg_pool2d(self.depthwise(self.conv(x)), 1).flatten(1))

    graph = PrunableGraph.trace(Mobile(), torch.zeros(1, 1, 5, 5))
    env = PruningEnv(graph, Budget(graph.cost, 0.2), KeptShare())
    states = env.rollout(UniformAgent(0.5), 1, None, generator()).episodes.states
    # the same 0.5 as in Chain, although there is no linear group here
    assert states[0, 0, STATIC_FEATURES.index("kind")] == 0.5
    assert states[0, 0, STATIC_FEATURES.index("index")] == 0  # a single group divides by nothing


def test_who_asks_for_nothing_prunes_only_what_the_budget_forces(graph: PrunableGraph) -> None:
    env = make_env(graph, 0.5)
    (widths,) = env.rollout(Fixed([0.0] * 4), 1, None, generator()).widths.tolist()
    budget, least = budget_by_hand("0.5"), least_by_hand(1, 1)
    for g in range(len(FULL)):
        wider = [*widths[:g], widths[g] + 1, *least[g + 1 :]]
        assert widths[g] == FULL[g] or chain_macs(wider) > budget


def test_who_asks_for_everything_stops_at_the_budget(graph: PrunableGraph) -> None:
    env = make_env(graph, 0.4)
    (widths,) = env.rollout(Fixed([1.0] * 4), 1, None, generator()).widths.tolist()
    budget = budget_by_hand("0.4")
    assert chain_macs(widths) <= budget
    # one more channel in the last group would already be too much: nothing was pruned needlessly
    assert chain_macs([*widths[:3], widths[3] + 1]) > budget


@pytest.mark.parametrize("asked", [0.0, 0.29, 0.5, 1.0], ids=str)
def test_a_ratio_within_the_bounds_is_floored_to_channels(
    graph: PrunableGraph, asked: float
) -> None:
    env = make_env(graph, 0.01)  # next to no budget: only the bounds by a_max remain
    rollout = env.rollout(Fixed([asked, 0.0, 0.0, 0.0]), 1, None, generator())
    least = least_by_hand(1, 1)
    low, high = bounds_by_hand([], budget_by_hand("0.01"), least, 1)
    assert rollout.widths[0, 0] == min(max(FULL[0] - math.floor(asked * FULL[0]), low), high)


def same(a: Rollout, b: Rollout) -> bool:
    tensors = zip(vars(a.episodes).values(), vars(b.episodes).values(), strict=True)
    return (
        np.array_equal(a.widths, b.widths)
        and a.subnets == b.subnets
        and np.array_equal(a.rewards, b.rewards)
        and all(torch.equal(x, y) for x, y in tensors)
    )


@pytest.mark.parametrize("name", ["random", "sac"])
def test_same_seed_same_episode(graph: PrunableGraph, name: str) -> None:
    z = torch.randn(6, generator=generator(9)) if name == "sac" else None
    agent = make_agent(name, 6)
    first, again, other = (make_env(graph).rollout(agent, 5, z, generator(s)) for s in (8, 8, 9))
    assert same(first, again)
    assert not np.array_equal(first.widths, other.widths)


def test_the_policy_sees_the_epochs_z(graph: PrunableGraph) -> None:
    agent = make_agent("sac", 6)
    shifted = [
        make_env(graph).rollout(agent, 5, torch.full((6,), scale), generator(1)).widths.tolist()
        for scale in (0.0, 30.0)
    ]
    assert shifted[0] != shifted[1]


def test_rewards_are_the_scorers_and_channels_stay_by_importance() -> None:
    torch.manual_seed(2)
    model = Chain().eval()
    graph = PrunableGraph.trace(model, torch.zeros(1, 1, 8, 8))
    images, labels = torch.randn(41, 1, 8, 8), torch.randint(3, (41,))
    evaluator = Evaluator(graph, images, labels, "torch")
    env = PruningEnv(graph, Budget(graph.cost, 0.3), evaluator, "l1")
    with torch.no_grad():  # rank by the weights of now, not of the tracing
        model.conv3.weight.copy_(torch.randn_like(model.conv3.weight))
    evaluator.load_weights(model)
    rollout = env.rollout(RandomAgent(0.8), 5, None, generator(3))
    assert rollout.rewards.dtype == np.float64
    for p, subnet in enumerate(rollout.subnets):
        predicted = evaluator.logits(subnet).argmax(1)
        assert rollout.rewards[p] == (predicted == labels).sum().item() / 41
        assert rollout.episodes.rewards[p] == np.float32(rollout.rewards[p])
        norms = [sum(abs(w) for w in filters) for filters in model.conv3.weight.flatten(1).tolist()]
        best = sorted(range(11), key=lambda c: -norms[c])[: rollout.widths[p, 2]]
        assert subnet.kept[2].tolist() == sorted(best)


@pytest.mark.parametrize(("p", "least", "step"), SETTINGS)
def test_episodes_follow_from_their_widths_bit_for_bit(p: str, least: int, step: int) -> None:
    graph = PrunableGraph.trace(Chain(), torch.zeros(1, 1, 8, 8), groups="all")
    budget = Budget(graph.cost, float(p), min_width=least, round_to=step)
    env = PruningEnv(graph, budget, KeptShare())
    source = torch.Generator().manual_seed(0)
    parts = [env.rollout(RandomAgent(0.8), count, None, source) for count in (7, 1, 5)]
    again = env.episodes(
        np.concatenate([part.widths for part in parts]),
        np.concatenate([part.rewards for part in parts]),
    )
    for name, tensor in vars(again).items():
        assert torch.equal(tensor, torch.cat([getattr(part.episodes, name) for part in parts]))
