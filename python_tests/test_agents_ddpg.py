"""agents/ddpg.py: AMC's equations against independent ones, and problems with a known answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from agent_cases import BEST, COSTS, generator, random_replay, through_file, walk
from torch import Tensor

from rlal_fast.agents import DDPG, DDPGConfig, RandomAgent
from rlal_fast.agents.ddpg import truncated_normal
from rlal_fast.errors import InputError
from rlal_fast.mlp import single_thread
from rlal_fast.replay import Episodes, ReplayBuffer

QUICK = DDPGConfig(hidden=(64, 64), actor_lr=1e-3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with single_thread():
        yield


def bandit(agent: DDPG, best: float, low: float = 0.0, high: float = 0.8) -> float:
    """One group, reward 1 - (a - best)^2: what the agent settles at where all is allowed."""
    replay, g = ReplayBuffer(1000, 1, 1), generator()
    state, least, most = torch.zeros(10, 1), torch.full((10,), low), torch.full((10,), high)
    for epoch in range(30):
        a = agent.act(state, None, least, most, g)
        rewards = 1 - (a - best).square()
        replay.add(
            Episodes(state[:, None], a[:, None], least[:, None], most[:, None], rewards), epoch
        )
        agent.update(replay, None, 20, g)
    return float(agent.act(torch.zeros(1, 1), None, torch.zeros(1), torch.ones(1), g))


# --- problems with a known answer -----------------------------------------------------------------


def test_bandit() -> None:
    agent = DDPG(1, 0, QUICK)
    assert bandit(agent, 0.3) == pytest.approx(0.3, abs=0.05)
    assert float(agent.sigmas(1)) == 1e-6  # 300 episodes later it hardly explores


def test_steps_under_a_budget() -> None:
    agent, replay, g = DDPG(7, 0, QUICK), ReplayBuffer(1000, 4, 7), generator()
    for epoch in range(30):
        chooser = RandomAgent() if epoch < 4 else agent
        replay.add(walk(chooser, 10, g, index_first=True), epoch)
        agent.update(replay, None, 50, g)
    found = walk(agent, 64, g, index_first=True)
    torch.testing.assert_close(found.actions.sum(1), torch.full((64,), 1.6))
    best = float(1 - (COSTS * BEST.square()).sum())
    assert float(found.rewards.mean()) > best - 0.04  # random: 0.58, uniform: 0.71, best: 0.85


# --- AMC's equations ------------------------------------------------------------------------------


def test_defaults_are_amcs() -> None:
    c = DDPGConfig()
    assert (c.actor_lr, c.critic_lr, c.gamma, c.tau) == (1e-4, 1e-3, 1.0, 0.01)
    assert (c.hidden, c.batch_size, c.sigma, c.sigma_decay) == ((300, 300), 64, 0.5, 0.95)
    assert (c.baseline_decay, c.a_max) == (0.5, 0.8)


@pytest.mark.parametrize(("mean", "sigma"), [(0.5, 0.5), (0.05, 0.3), (1.0, 0.1), (0.7, 5.0)])
def test_noise_is_a_truncated_normal(mean: float, sigma: float) -> None:
    count = 20000
    drawn = truncated_normal(torch.full((count,), mean), torch.full((count,), sigma), generator())
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    proposals = mean + sigma * torch.randn(40 * count, generator=generator(1), dtype=torch.float64)
    kept = proposals[(proposals >= 0) & (proposals <= 1)]
    shares = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    expected = torch.quantile(kept[:100000], shares)
    torch.testing.assert_close(torch.quantile(drawn, shares), expected, rtol=0, atol=0.015)


def test_noise_that_is_gone_leaves_the_mean() -> None:
    mean = torch.tensor([0.0, 1e-30, 0.3, 1.0])
    drawn = truncated_normal(mean, torch.full((4,), 1e-6), generator())
    torch.testing.assert_close(drawn.float(), mean, rtol=0, atol=1e-5)


def test_noise_decays_from_episode_to_episode_not_from_group_to_group() -> None:
    agent, low, high = DDPG(2, 0, QUICK), torch.zeros(3), torch.full((3,), 0.8)
    begin, later = torch.tensor([[0.0, 1.0]] * 3), torch.tensor([[0.5, 1.0]] * 3)
    for state in (begin, later, later):
        agent.act(state, None, low, high, generator())
        assert agent.sigmas(3).tolist() == pytest.approx([0.5, 0.5 * 0.95, 0.5 * 0.95**2])
    agent.act(begin, None, low, high, generator())
    assert agent.sigmas(3)[0].item() == pytest.approx(0.5 * 0.95**3)


def test_target_has_the_return_at_every_step_and_no_bootstrap_when_done() -> None:
    agent = DDPG(4, 0, replace(QUICK, gamma=0.9))
    with torch.no_grad():  # targets that differ from the networks, to tell them apart
        for network in (agent.target_actor, agent.target_critic):
            for parameter in network.parameters():
                parameter.add_(0.05)
    agent.baseline = 0.3
    batch = random_replay().sample(64, generator(2))
    y = agent.target(batch, None)

    a = 0.8 * torch.sigmoid(agent.target_actor(batch.next_state, None)[0, :, 0])
    a = torch.minimum(torch.maximum(a, batch.next_low), batch.next_high)
    x = torch.cat([batch.next_state, (a / 0.8)[:, None]], dim=1)
    bootstrapped = batch.episode_return - 0.3 + 0.9 * agent.target_critic(x, None)[0, :, 0]
    done = batch.done
    assert 0 < done.sum() < 64
    torch.testing.assert_close(y[~done], bootstrapped[~done].detach())
    assert torch.equal(y[done], batch.episode_return[done] - 0.3)


def test_baseline_is_a_moving_average_of_the_minibatches() -> None:
    agent, replay = DDPG(4, 0, QUICK), random_replay()
    agent.update(replay, None, 3, generator(7))
    means = []

    class Spy(DDPG):
        def _move_baseline(self, mean: float) -> None:
            means.append(mean)
            super()._move_baseline(mean)

    spy = Spy(4, 0, QUICK)
    spy.update(replay, None, 3, generator(7))
    assert agent.baseline == spy.baseline
    assert spy.baseline == pytest.approx(0.25 * means[0] + 0.25 * means[1] + 0.5 * means[2])


def test_targets_follow_by_tau() -> None:
    agent = DDPG(4, 0, QUICK)
    for target, network in (("target_actor", "actor"), ("target_critic", "critic")):
        before = [p.clone() for p in getattr(agent, target).parameters()]
        agent.update(random_replay(), None, 1, generator())
        pairs = zip(before, getattr(agent, network).parameters(), strict=True)
        expected = [0.99 * old + 0.01 * new for old, new in pairs]
        found = list(getattr(agent, target).parameters())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        assert not any(p.requires_grad for p in found)


def test_gradient_is_that_of_q_within_the_bounds() -> None:
    agent, batch = DDPG(4, 0, QUICK), random_replay().sample(32, generator(2))
    free = replace(batch, low=torch.zeros(32), high=torch.full((32,), 0.8))
    loss = agent.actor_gradient(free, None)
    ours = [p.grad.clone() for p in agent.actor.parameters() if p.grad is not None]
    mu = 0.8 * torch.sigmoid(agent.actor(free.state, None)[0, :, 0])
    q = agent.critic(torch.cat([free.state, (mu / 0.8)[:, None]], dim=1), None)
    torch.testing.assert_close(loss, -q.mean().detach())
    theirs = torch.autograd.grad(-q.mean(), list(agent.actor.parameters()))
    torch.testing.assert_close(ours, list(theirs))
    assert all(p.grad is None for p in agent.critic.parameters())


@pytest.mark.parametrize(("low", "high"), [(0.7, 0.75), (0.05, 0.1)])
@pytest.mark.parametrize("slope", [-1.0, 1.0])
def test_past_a_bound_only_what_leads_back_is_learned(
    low: float, high: float, slope: float
) -> None:
    """The actor begins near 0.4, outside of these bounds."""

    class Sloped(DDPG):
        def Q(self, critic: object, state: Tensor, action: Tensor, condition: object) -> Tensor:
            return slope * action

    agent, batch = Sloped(4, 0, QUICK), random_replay().sample(32, generator(2))
    narrow = replace(batch, low=torch.full((32,), low), high=torch.full((32,), high))
    agent.actor_gradient(narrow, None)
    moved = any(bool(p.grad.any()) for p in agent.actor.parameters() if p.grad is not None)
    assert moved == (slope > 0 if low > 0.4 else slope < 0)


# --- the contract ---------------------------------------------------------------------------------


def test_actions_stay_within_bounds_even_where_they_meet() -> None:
    low = torch.linspace(0.0, 0.5, 64)
    high = low + torch.tensor([0.0, 0.1]).repeat(32)
    a = DDPG(2, 0, QUICK).act(
        torch.randn(64, 2, generator=generator()), None, low, high, generator()
    )
    assert bool(((a >= low) & (a <= high)).all())
    assert torch.equal(a[::2], low[::2])


@pytest.mark.parametrize("z_size", [0, 3])
def test_it_goes_on_bit_for_bit_from_its_state(z_size: int) -> None:
    replay = random_replay()
    z = torch.randn(2, z_size, generator=generator(1)) if z_size else None
    state, low, high = torch.zeros(5, 4), torch.zeros(5), torch.full((5,), 0.8)

    def first_part(agent: DDPG) -> DDPG:
        agent.act(state, None if z is None else z[0], low, high, generator(3))
        agent.update(replay, z, 4, generator(7))
        return agent

    def second_part(agent: DDPG) -> tuple[dict[str, float], list[float]]:
        metrics = agent.update(replay, z, 3, generator(8))
        one_z = None if z is None else z[1]
        ratios = [
            agent.act(state + step, one_z, low, high, generator(9)) for step in (0.0, 1.0, 0.0)
        ]
        return metrics, torch.cat(ratios).tolist()

    saved = through_file(first_part(DDPG(4, z_size, QUICK)).state_dict())
    again = DDPG(4, z_size, QUICK, seed=5)  # other weights: everything must come from the file
    again.load_state_dict(saved)
    assert second_part(again) == second_part(first_part(DDPG(4, z_size, QUICK)))
    assert again.updates == 7


def test_an_optimum_that_only_z_tells() -> None:
    agent, replay, g = DDPG(1, 2, QUICK), ReplayBuffer(1000, 1, 1), generator()
    z_by_epoch, low, high = torch.eye(2).repeat(15, 1), torch.zeros(10), torch.full((10,), 0.8)
    for epoch in range(30):
        a = agent.act(torch.zeros(10, 1), z_by_epoch[epoch], low, high, g)
        rewards = 1 - (a - (0.6 if epoch % 2 else 0.2)).square()
        episodes = Episodes(torch.zeros(10, 1, 1), a[:, None], low[:, None], high[:, None], rewards)
        replay.add(episodes, epoch)
        agent.update(replay, z_by_epoch, 20, g)
    even, odd = (float(agent.act(torch.zeros(10, 1), z, low, high, g).mean()) for z in torch.eye(2))
    assert even == pytest.approx(0.2, abs=0.1)
    assert odd == pytest.approx(0.6, abs=0.1)


def test_bad_input_is_refused() -> None:
    agent = DDPG(4, 2, QUICK)
    low, high = torch.zeros(1), torch.ones(1)
    with pytest.raises(InputError, match="z has size 0"):
        agent.act(torch.zeros(1, 4), None, low, high, generator())
    with pytest.raises(InputError, match="z has size 2"):
        DDPG(4, 0, QUICK).update(random_replay(), torch.zeros(2, 2), 1, generator())
    with pytest.raises(InputError, match="state has shape"):
        agent.act(torch.zeros(1, 3), torch.zeros(2), low, high, generator())
    with pytest.raises(InputError, match="epoch 1"):
        agent.update(random_replay(), torch.zeros(1, 2), 1, generator())
    with pytest.raises(InputError, match="has sizes"):
        DDPG(4, 0, QUICK).load_state_dict(agent.state_dict())
    with pytest.raises(InputError, match="replay is empty"):
        DDPG(1, 0, QUICK).update(ReplayBuffer(5, 2, 1), None, 1, generator())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("actor_lr", 0.0),
        ("critic_lr", float("nan")),
        ("gamma", 1.5),
        ("tau", 0.0),
        ("hidden", ()),
        ("batch_size", 0),
        ("sigma", 0.0),
        ("sigma_decay", 1.1),
        ("baseline_decay", 1.0),
        ("a_max", 1.0),
    ],
)
def test_bad_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"DDPGConfig\.{name} = .* is out of range"):
        DDPGConfig(**{name: value})  # type: ignore[arg-type]
