"""agents/: SAC's equations against independent ones, and problems whose best answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from agent_cases import BEST, BUDGET, COSTS, generator, random_replay, through_file, walk
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from rlal_fast.agents import (
    AGENTS,
    SAC,
    RandomAgent,
    SACConfig,
    UniformAgent,
    create,
)
from rlal_fast.agents.sac import tanh_gaussian
from rlal_fast.errors import InputError
from rlal_fast.mlp import condition_on_epochs, single_thread
from rlal_fast.replay import Episodes, ReplayBuffer, Transitions

# Small and quick; the default sizes and rates are for thousands of updates.
QUICK = replace(
    SACConfig.paper(), scale_rewards=True, hidden=(64, 64), batch_size=128, actor_lr=1e-3
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with single_thread():
        yield


# --- SAC's equations ------------------------------------------------------------------------------


def test_log_pi_and_its_gradient_equal_the_transformed_distribution() -> None:
    g = generator(3)
    mean = torch.randn(200, generator=g, dtype=torch.float64, requires_grad=True)
    log_std = torch.randn(200, generator=g, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(200, generator=g, dtype=torch.float64)
    t, log_pi = tanh_gaussian(mean, log_std, noise)
    expected_t = torch.tanh(mean + log_std.exp() * noise)
    distribution = TransformedDistribution(
        Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)]
    )
    expected = distribution.log_prob(expected_t)
    kept = expected_t.detach().abs() < 1 - 1e-6  # where the reference's atanh is still exact
    assert kept.sum() > 150
    torch.testing.assert_close(log_pi[kept], expected[kept], rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad((log_pi * t)[kept].sum(), [mean, log_std])
    theirs = torch.autograd.grad((expected * expected_t)[kept].sum(), [mean, log_std])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_log_pi_stays_finite_where_tanh_saturates() -> None:
    mean = torch.tensor([-60.0, 60.0], requires_grad=True)
    t, log_pi = tanh_gaussian(mean, torch.zeros(2), torch.zeros(2))
    assert t.abs().tolist() == [1.0, 1.0]
    # Normal's log-density at its mean minus log(1 - tanh^2) = log 4 - 2 |u|.
    torch.testing.assert_close(log_pi, torch.full((2,), -0.9189385 - 1.3862944 + 120.0))
    gradient = torch.autograd.grad(log_pi.sum(), mean)[0]
    torch.testing.assert_close(gradient, torch.tensor([-2.0, 2.0]))


def test_actions_stay_within_bounds_even_where_they_meet() -> None:
    agent = SAC(2, 0, QUICK)
    state = torch.randn(64, 2, generator=generator())
    low = torch.linspace(0.0, 0.5, 64)
    high = low + torch.tensor([0.0, 0.1]).repeat(32)
    for one in (agent, RandomAgent(), UniformAgent(0.3)):
        a = one.act(state, None, low, high, generator(1))
        assert a.shape == (64,)
        assert bool(((a >= low) & (a <= high)).all())
        assert torch.equal(a[::2], low[::2])
    free = agent.act(state, None, torch.zeros(64), torch.ones(64), generator(1))
    assert free.min() >= 0
    assert free.max() <= QUICK.a_max
    assert free.std() > 0.15  # starts out nearly uniform: 0.23 would be exactly so


def test_fixed_actions_train_without_nan() -> None:
    replay = random_replay()
    fixed = replay.state_dict()
    fixed["low"] = fixed["high"] = fixed["actions"]
    replay.load_state_dict(fixed)
    agent = SAC(4, 0, QUICK)
    metrics = agent.update(replay, None, 5, generator())
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    assert all(bool(p.isfinite().all()) for p in agent.actor.parameters())


def test_target_formula_and_no_bootstrap_when_done() -> None:
    config = replace(QUICK, gamma=0.9, alpha=0.3)
    agent = SAC(4, 0, config)
    with torch.no_grad():  # targets that differ from the critics, to tell them apart
        for parameter in agent.target_critics.parameters():
            parameter.add_(0.1)
    batch = random_replay().sample(64, generator(2))
    y = agent.target(batch, None, generator(5))

    mean, log_std = agent._policy(batch.next_state, None)
    u = mean + log_std.exp() * torch.randn(64, generator=generator(5))
    t = torch.tanh(u)
    log_pi = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()]).log_prob(t)
    a = torch.minimum(torch.maximum(config.a_max * (t + 1) / 2, batch.next_low), batch.next_high)
    x = torch.cat([batch.next_state, (2 * a / config.a_max - 1)[:, None]], dim=1)
    q1, q2 = agent.target_critics(x, None)[:, :, 0]
    bootstrapped = batch.reward + 0.9 * (torch.minimum(q1, q2) - 0.3 * log_pi)
    done = batch.done
    assert 0 < done.sum() < 64
    torch.testing.assert_close(y[~done], bootstrapped[~done].detach(), rtol=1e-3, atol=1e-3)
    assert torch.equal(y[done], batch.reward[done])
    assert (y - bootstrapped)[done].abs().min() > 1e-3


def test_losses_have_the_papers_value_and_reach_only_their_networks() -> None:
    agent = SAC(4, 2, QUICK)
    z = torch.randn(2, 2, generator=generator(1)).requires_grad_()
    batch = random_replay().sample(32, generator(2))
    condition = condition_on_epochs(z.detach(), batch.epoch)
    y = torch.randn(32, generator=generator(3))
    x = torch.cat([batch.state, (batch.action / 0.4 - 1)[:, None]], dim=1)
    q1, q2 = agent.critics(x, condition)[:, :, 0]
    loss, _ = agent.critic_loss(batch, condition, y)
    torch.testing.assert_close(loss, (q1 - y).square().mean() + (q2 - y).square().mean())

    a, log_pi = agent.pi(batch.state, condition, batch.low, batch.high, generator(4))
    q1, q2 = agent.Q(agent.critics, batch.state, a, condition)
    loss, metrics = agent.actor_loss(batch, condition, generator(4))
    torch.testing.assert_close(loss, (0.1 * log_pi - torch.minimum(q1, q2)).mean())
    assert metrics["entropy"] == pytest.approx(-float(log_pi.detach().mean()))

    agent.update(random_replay(), z, 2, generator())
    assert z.grad is None  # z is detached for SAC


def test_targets_follow_by_tau() -> None:
    agent = SAC(4, 0, QUICK)
    before = [p.clone() for p in agent.target_critics.parameters()]
    agent.update(random_replay(), None, 1, generator())
    pairs = zip(before, agent.critics.parameters(), strict=True)
    expected = [0.995 * old + 0.005 * new for old, new in pairs]
    for got, want, old in zip(agent.target_critics.parameters(), expected, before, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
        assert not torch.equal(got, old)
        assert not got.requires_grad


def test_reward_scaling_is_the_spread_with_a_floor_and_off_for_the_paper() -> None:
    replay = random_replay()
    scaled = SAC(4, 0, QUICK).update(replay, None, 1, generator())
    assert scaled["reward_scale"] == pytest.approx(replay.return_statistics()[1])
    paper = SACConfig.paper()
    assert not paper.scale_rewards
    plain = SAC(4, 0, replace(QUICK, scale_rewards=False)).update(replay, None, 1, generator())
    assert plain["reward_scale"] == 1.0
    state = replay.state_dict()
    state["rewards"].fill_(0.5)
    replay.load_state_dict(state)
    assert SAC(4, 0, QUICK).update(replay, None, 1, generator())["reward_scale"] == 0.01


def test_the_preset_is_the_papers() -> None:
    c = SACConfig.paper()
    assert (c.actor_lr, c.critic_lr, c.betas, c.alpha) == (1e-4, 1e-3, (0.9, 0.999), 0.1)
    assert (c.gamma, c.tau, c.hidden, c.a_max, c.batch_size) == (1.0, 0.005, (300, 300), 0.8, 256)
    assert (c.critics, c.pessimistic, c.return_weight, c.scale_rewards) == (2, True, 0.0, False)


def test_with_whole_returns_nothing_is_learned_from_the_critics() -> None:
    agent = SAC(4, 0, SACConfig(hidden=(16,)))
    batch = random_replay().sample(64, generator(2))
    assert torch.equal(agent.target(batch, None, generator(5)), batch.episode_return)


def test_the_mean_of_all_critics_counts_unless_pessimistic() -> None:
    batch = random_replay().sample(32, generator(2))
    for pessimistic in (False, True):
        agent = SAC(4, 0, SACConfig(hidden=(16,), critics=3, pessimistic=pessimistic))
        a, log_pi = agent.pi(batch.state, None, batch.low, batch.high, generator(4))
        q = agent.Q(agent.critics, batch.state, a, None)
        assert q.shape == (3, 32)
        loss, _ = agent.actor_loss(batch, None, generator(4))
        value = q.amin(0) if pessimistic else q.mean(0)
        torch.testing.assert_close(loss, (0.1 * log_pi - value).mean())


def test_critics_predict_by_the_last_step_and_learn_to() -> None:
    """Rewards that the last state tells: all critics come near them, and agree."""
    agent = SAC(6, 0, SACConfig(hidden=(64,), batch_size=64))
    replay, g = ReplayBuffer(1000, 4, 6), generator()
    replay.add(walk(RandomAgent(), 300, g), 0)
    agent.update(replay, None, 600, g)
    fresh = walk(RandomAgent(), 200, g)
    predicted = agent.predict(fresh.states, fresh.actions, None)
    assert predicted.shape == (5, 200)
    both = torch.stack([predicted.mean(0), fresh.rewards])
    assert float(torch.corrcoef(both)[0, 1]) > 0.9
    assert float(predicted.std(0).mean()) < 0.3  # rewards were divided by their spread


# --- problems with a known answer -----------------------------------------------------------------


def test_bandit() -> None:
    """One group, reward 1 - (a - 0.3)^2: the policy settles at 0.3."""
    agent, replay, g = SAC(1, 0, QUICK), ReplayBuffer(1000, 1, 1), generator()
    state, low, high = torch.ones(10, 1), torch.zeros(10), torch.full((10,), 0.8)
    for epoch in range(30):
        a = agent.act(state, None, low, high, g)
        rewards = 1 - (a - 0.3).square()
        replay.add(
            Episodes(state[:, None], a[:, None], low[:, None], high[:, None], rewards), epoch
        )
        agent.update(replay, None, 20, g)
    a = agent.act(torch.ones(512, 1), None, torch.zeros(512), torch.full((512,), 0.8), g)
    assert float(a.mean()) == pytest.approx(0.3, abs=0.05)
    assert float(a.std()) < 0.12  # was 0.2 at the start


def test_steps_under_a_budget() -> None:
    """The reward comes at the end only; SAC must get it back to the first step."""
    config = replace(QUICK, alpha=0.03, tau=0.02)
    agent, replay, g = SAC(6, 0, config), ReplayBuffer(1000, 4, 6), generator()
    for epoch in range(30):
        replay.add(walk(RandomAgent() if epoch < 4 else agent, 10, g), epoch)
        agent.update(replay, None, 50, g)
    found = walk(agent, 256, g)
    torch.testing.assert_close(found.actions.sum(1), torch.full((256,), BUDGET))
    best = float(1 - (COSTS * BEST.square()).sum())
    assert best == pytest.approx(0.8537, abs=1e-3)
    assert walk(UniformAgent(BUDGET / 4), 1, g).rewards.item() == pytest.approx(0.712)
    assert float(found.rewards.mean()) > best - 0.03
    assert float(walk(RandomAgent(), 256, g).rewards.mean()) < 0.65


def test_return_weight_helps_where_the_state_hides_earlier_choices() -> None:
    rewards = {}
    for weight in (0.0, 0.3):
        config = replace(QUICK, return_weight=weight)
        agent, replay, g = SAC(6, 0, config), ReplayBuffer(1000, 4, 6), generator()
        for epoch in range(24):
            chooser = RandomAgent() if epoch < 4 else agent
            replay.add(walk(chooser, 10, g, hide_cost=True), epoch)
            agent.update(replay, None, 40, g)
        rewards[weight] = float(walk(agent, 256, g, hide_cost=True).rewards.mean())
    assert rewards[0.3] > rewards[0.0] + 0.04


def drifting_bandit(z_by_epoch: Tensor | None) -> tuple[float, float]:
    """The best ratio is 0.2 in even epochs and 0.6 in odd ones. Mean actions for z[0] and z[1]."""
    z_size = 0 if z_by_epoch is None else z_by_epoch.shape[1]
    agent, replay, g = SAC(1, z_size, QUICK), ReplayBuffer(1000, 1, 1), generator()
    low, high = torch.zeros(10), torch.full((10,), 0.8)
    for epoch in range(30):
        z = None if z_by_epoch is None else z_by_epoch[epoch]
        a = agent.act(torch.ones(10, 1), z, low, high, g)
        rewards = 1 - (a - (0.6 if epoch % 2 else 0.2)).square()
        episodes = Episodes(torch.ones(10, 1, 1), a[:, None], low[:, None], high[:, None], rewards)
        replay.add(episodes, epoch)
        agent.update(replay, z_by_epoch, 30, g)
    low, high = torch.zeros(512), torch.full((512,), 0.8)
    even, odd = (
        float(agent.act(torch.ones(512, 1), z, low, high, g).mean())
        for z in ((None, None) if z_by_epoch is None else z_by_epoch[:2])
    )
    return even, odd


def test_an_optimum_that_only_z_tells() -> None:
    z_by_epoch = torch.eye(2).repeat(15, 1)
    even, odd = drifting_bandit(z_by_epoch)
    assert even == pytest.approx(0.2, abs=0.1)
    assert odd == pytest.approx(0.6, abs=0.1)
    even, odd = drifting_bandit(None)
    assert even == pytest.approx(odd, abs=0.03)


# --- the contract ---------------------------------------------------------------------------------


def test_sac_resumes_bit_for_bit() -> None:
    replay, z = random_replay(), torch.randn(2, 3, generator=generator(1))

    def fresh(seed: int) -> SAC:
        return SAC(4, 3, QUICK, seed)

    straight, g = fresh(0), generator(7)
    straight.update(replay, z, 4, g)
    metrics = straight.update(replay, z, 3, g)

    first, g = fresh(0), generator(7)
    first.update(replay, z, 4, g)
    second = fresh(5)  # other initial weights: everything must come from the file
    second.load_state_dict(through_file(first.state_dict()))
    assert second.update(replay, z, 3, g) == metrics
    assert second.updates == 7
    for name in ("actor", "critics", "target_critics"):
        ours, theirs = getattr(second, name).state_dict(), getattr(straight, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", AGENTS)
def test_same_seed_same_agent_and_the_global_generator_is_left_alone(name: str) -> None:
    replay, z = random_replay(), torch.randn(2, 3, generator=generator(1))
    state = torch.rand(5, 4, generator=generator(2))
    low, high = torch.zeros(5), torch.full((5,), 0.8)

    def play(seed: int) -> tuple[Tensor, dict[str, float]]:
        agent, g = create(name, 4, 3, QUICK, seed), generator(3)
        assert agent.name == name
        metrics = agent.update(replay, z, 2, g)
        agent.load_state_dict(through_file(agent.state_dict()))
        return agent.act(state, z[1], low, high, g), metrics

    before = torch.get_rng_state()
    (a, metrics), (b, again), (c, _) = play(0), play(0), play(1)
    assert torch.equal(a, b)
    assert metrics == again
    assert torch.equal(a, c) == (name not in ("sac", "ddpg"))
    assert bool(metrics) == (name not in ("random", "uniform"))
    assert torch.equal(torch.get_rng_state(), before)


def test_random_agent_is_uniform_up_to_a_max() -> None:
    a = create("random", 1, 0, SACConfig(a_max=0.6)).act(
        torch.zeros(4000, 1), None, torch.zeros(4000), torch.ones(4000), generator()
    )
    assert a.max() <= 0.6
    assert torch.quantile(a, torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx(
        [0.15, 0.3, 0.45], abs=0.02
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="sac, ddpg, evolutionary, random, uniform"):
        create("ddpgg", 1, 0)
    with pytest.raises(InputError, match="uniform ratio"):
        create("uniform", 1, 0, uniform_ratio=1.5)
    with pytest.raises(InputError, match="a_max"):
        SACConfig(a_max=1.0)
    agent = SAC(4, 2, QUICK)
    low, high = torch.zeros(1), torch.ones(1)
    with pytest.raises(InputError, match="z has size 0"):
        agent.act(torch.zeros(1, 4), None, low, high, generator())
    with pytest.raises(InputError, match="state has shape"):
        agent.act(torch.zeros(1, 3), torch.zeros(2), low, high, generator())
    with pytest.raises(InputError, match="epoch 1"):
        agent.update(random_replay(), torch.zeros(1, 2), 1, generator())
    with pytest.raises(InputError, match="has sizes"):
        SAC(4, 0, QUICK).load_state_dict(agent.state_dict())


def test_last_step_of_an_episode_is_the_only_one_that_is_rewarded_or_scaled() -> None:
    """Centring must not turn the zeros before the end into rewards."""
    replay = random_replay()
    seen: list[Transitions] = []

    class Spy(SAC):
        def target(self, batch: Transitions, *rest: Any) -> Tensor:
            seen.append(batch)
            return super().target(batch, *rest)

    Spy(4, 0, QUICK).update(replay, None, 1, generator())
    mean, spread = replay.return_statistics()
    (batch,) = seen
    # episode_return is already on SAC's scale here, so the unscaled one is recomputed below.
    torch.testing.assert_close(batch.reward, torch.where(batch.done, batch.episode_return, 0.0))
    raw = batch.episode_return * spread + mean
    stored = replay.all_returns
    assert (raw[:, None] - stored).abs().amin(1).max() < 1e-5
