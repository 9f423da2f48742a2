"""agents/evolutionary.py: who becomes a parent, what a child is, and what the search finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from agent_cases import generator, random_replay, through_file, walk
from networks import Net, conv
from numpy.typing import NDArray
from torch import Tensor, nn

from rlal_fast.agents import Agent, EvolutionarySearch, EvolutionConfig, RandomAgent
from rlal_fast.env import PruningEnv
from rlal_fast.errors import InputError
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.replay import Episodes, ReplayBuffer
from rlal_fast.subnet import Subnet

GROUPS = 10
COSTS = torch.linspace(0.05, 1.0, GROUPS)[torch.randperm(GROUPS, generator=generator(4))]
BUDGET = 4.0
FREE = (torch.zeros(5), torch.full((5,), 0.8))


def episodes(actions: list[list[float]], rewards: list[float]) -> Episodes:
    ratios = torch.tensor(actions)
    states = torch.zeros(*ratios.shape, 1)
    return Episodes(
        states, ratios, torch.zeros_like(ratios), 0.8 + 0 * ratios, torch.tensor(rewards)
    )


def replay_of(actions: list[list[float]], rewards: list[float]) -> ReplayBuffer:
    replay = ReplayBuffer(50, len(actions[0]), 1)
    replay.add(episodes(actions, rewards), 0)
    return replay


def walked(agent: Agent, groups: int, count: int = 200, seed: int = 0) -> Tensor:
    """Ratios [P, G] that the agent asks for where everything is allowed."""
    g, low, high = generator(seed), torch.zeros(count), torch.ones(count)
    states = [torch.full((count, 1), group / (groups - 1)) for group in range(groups)]
    return torch.stack([agent.act(state, None, low, high, g) for state in states], dim=1)


def search(agent: Agent, rounds: int, seed: int) -> tuple[float, ReplayBuffer]:
    """Best reward of 10 episodes a round, two rounds of them random, on a toy of ten groups."""
    replay, g = ReplayBuffer(10 * rounds, GROUPS, GROUPS + 3), generator(seed)
    for number in range(rounds):
        chooser = RandomAgent() if number < 2 else agent
        found = walk(chooser, 10, g, index_first=True, costs=COSTS, budget=BUDGET)
        replay.add(found, number)
        agent.update(replay, None, 1, g)
    return float(replay.all_returns.max()), replay


# --- what it finds --------------------------------------------------------------------------------


def test_it_beats_random_search_at_equal_evaluations() -> None:
    best = COSTS.reciprocal()  # least sum(c a^2) at a given sum(a): a ~ 1 / c, at most 0.8
    for _ in range(100):
        best = (best * BUDGET / best.sum()).clamp(max=0.8)
    optimum = float(1 - (COSTS * best.square()).sum())
    for seed in range(5):
        evolved, _ = search(EvolutionarySearch(), 30, seed)
        at_random, _ = search(RandomAgent(), 30, seed)
        assert optimum - evolved < 0.4 * (optimum - at_random)


def test_same_seed_same_episodes() -> None:
    (_, first), (_, second), (_, other) = (search(EvolutionarySearch(), 5, s) for s in (1, 1, 2))
    assert torch.equal(first.all_actions, second.all_actions)
    assert not torch.equal(first.all_actions, other.all_actions)


class KeptShare:
    """Scores a sub-network by the share of channels that it keeps in the first two groups."""

    def accuracies(self, subnets: Sequence[Subnet]) -> NDArray[np.float64]:
        return np.array([subnet.widths[:2].sum() / 40 for subnet in subnets])


def test_every_generation_is_within_the_exact_budget() -> None:
    net = Net(
        lambda m, x: m.fc(m.c(m.b(m.a(x).relu()).relu()).relu().mean((2, 3))),
        a=conv(3, 16),
        b=conv(16, 24),
        c=conv(24, 20),
        fc=nn.Linear(20, 4),
    )
    graph = PrunableGraph.trace(net, torch.zeros(1, 3, 8, 8))
    budget = Budget(graph.cost, 0.5)
    env, agent = PruningEnv(graph, budget, KeptShare()), EvolutionarySearch()
    replay, means = ReplayBuffer(200, 3, env.state_size), []
    for epoch in range(20):
        rollout = env.rollout(agent, 10, None, generator(epoch))
        assert (graph.cost.macs(rollout.widths) <= budget.macs).all()
        replay.add(rollout.episodes, epoch)
        agent.update(replay, None, 1, generator())
        means.append(float(rollout.rewards.mean()))
    assert sum(means[-5:]) / 5 > means[0] + 0.05


# --- parents --------------------------------------------------------------------------------------


def test_parents_are_the_best_distinct_episodes() -> None:
    replay = replay_of([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.1]], [0.5, 0.9, 0.1, 0.7])
    # the same sub-network again, under later weights: this reward counts
    replay.add(episodes([[0.3, 0.4]], [0.6]), 1)
    agent = EvolutionarySearch(EvolutionConfig(population=3))
    metrics = agent.update(replay, None, 1, generator())
    assert metrics == pytest.approx({"parents": 3, "best_parent": 0.7, "worst_parent": 0.5})
    parents = agent.state_dict()["parents"]
    torch.testing.assert_close(parents, torch.tensor([[0.7, 0.1], [0.3, 0.4], [0.1, 0.2]]))


def test_parents_die_of_old_age() -> None:
    replay = replay_of([[0.1, 0.2]], [0.9])
    replay.add(episodes([[0.5, 0.5]], [0.2]), 4)
    for lifetime, expected in ((4, 1), (5, 2)):
        agent = EvolutionarySearch(EvolutionConfig(lifetime=lifetime))
        assert agent.update(replay, None, 1, generator())["parents"] == expected


def test_an_empty_replay_has_no_parents() -> None:
    with pytest.raises(InputError, match="replay is empty"):
        EvolutionarySearch().update(ReplayBuffer(5, 2, 1), None, 1, generator())


# --- children -------------------------------------------------------------------------------------


def test_without_parents_it_is_random_search() -> None:
    state = torch.zeros(5, 3)
    drawn = EvolutionarySearch().act(state, None, *FREE, generator(2))
    assert torch.equal(drawn, RandomAgent().act(state, None, *FREE, generator(2)))


def test_one_gene_at_least_mutates_and_the_rest_are_a_parents() -> None:
    agent = EvolutionarySearch(EvolutionConfig(mutation_rate=0.0, crossover_rate=0.0))
    agent.update(replay_of([[0.4, 0.4, 0.4]], [0.5]), None, 1, generator())
    changed = walked(agent, 3) != 0.4
    assert (changed.sum(1) == 1).all()
    assert (changed.sum(0) > 40).all()  # each gene has its turn


def test_mutation_has_its_rate_and_spread() -> None:
    config = EvolutionConfig(mutation_rate=0.3, mutation_sigma=0.05)
    agent = EvolutionarySearch(config)
    agent.update(replay_of([[0.4] * 10], [0.5]), None, 1, generator())
    change = walked(agent, 10, 2000) - 0.4
    assert float((change != 0).float().mean()) == pytest.approx(0.1 + 0.9 * 0.3, abs=0.01)
    assert float(change[change != 0].std()) == pytest.approx(0.05, abs=0.002)


def test_crossover_mixes_two_parents_and_its_rate_is_kept() -> None:
    replay = replay_of([[0.2] * 20, [0.6] * 20], [0.9, 0.1])
    for rate in (0.0, 0.5, 1.0):
        config = EvolutionConfig(crossover_rate=rate, mutation_rate=0.0, mutation_sigma=1e-6)
        agent = EvolutionarySearch(config)
        agent.update(replay, None, 1, generator())
        better = walked(agent, 20, 1000) < 0.4
        share = better.float().mean(1)
        # a tournament of two takes the better of two parents 3 times in 4
        assert float(share.mean()) == pytest.approx(0.75, abs=0.05)
        # parents differ 3 times in 8
        mixed = float(((share > 0) & (share < 1)).float().mean())
        assert mixed == pytest.approx(rate * 3 / 8, abs=0.05)


def test_children_stay_in_range_and_are_bounded_group_by_group() -> None:
    agent = EvolutionarySearch(EvolutionConfig(mutation_rate=1.0, mutation_sigma=1.0, a_max=0.6))
    agent.update(replay_of([[0.1, 0.5, 0.3]], [0.5]), None, 1, generator())
    asked = walked(agent, 3)
    assert asked.min() == 0
    assert float(asked.max()) == pytest.approx(0.6)
    low = high = torch.full((200,), 0.25)
    assert torch.equal(agent.act(torch.zeros(200, 1), None, low, high, generator()), low)


def test_an_episode_keeps_its_child_until_the_next_begins() -> None:
    agent = EvolutionarySearch()
    agent.update(random_replay(), None, 1, generator())
    state, g = torch.zeros(5, 4), generator(3)
    first = agent.act(state, None, *FREE, g)
    end = torch.cat([torch.ones(5, 1), state[:, 1:]], dim=1)
    last = agent.act(end, None, *FREE, g)
    assert torch.equal(agent.act(end, None, *FREE, g), last)
    assert not torch.equal(agent.act(state, None, *FREE, g), first)


# --- the contract ---------------------------------------------------------------------------------


def test_it_goes_on_bit_for_bit_from_its_state_even_within_an_episode() -> None:
    agent = EvolutionarySearch()
    agent.update(random_replay(), None, 1, generator())
    agent.act(torch.zeros(5, 4), None, *FREE, generator(3))
    again = EvolutionarySearch()
    again.load_state_dict(through_file(agent.state_dict()))
    middle = torch.full((5, 4), 0.5)
    for state in (middle, torch.zeros(5, 4), middle):
        expected = agent.act(state, None, *FREE, generator(5))
        assert torch.equal(again.act(state, None, *FREE, generator(5)), expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("population", 0),
        ("tournament", 0),
        ("crossover_rate", 1.5),
        ("mutation_rate", -0.1),
        ("mutation_sigma", 0.0),
        ("lifetime", 0),
        ("a_max", float("nan")),
    ],
)
def test_bad_settings_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"EvolutionConfig\.{name} = .* is out of range"):
        EvolutionConfig(**{name: value})  # type: ignore[arg-type]
