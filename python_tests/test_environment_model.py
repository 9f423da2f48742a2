"""environment_model.py: a reward that moves from epoch to epoch, and what z makes of it."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlal_fast.environment_model import (
    EnvironmentModel,
    EnvironmentModelConfig,
    EpochEmbeddings,
)
from rlal_fast.errors import InputError
from rlal_fast.mlp import MLP, single_thread
from rlal_fast.replay import Episodes, ReplayBuffer

QUICK = EnvironmentModelConfig(
    embedding=16, hidden=16, decoder=(64, 64), steps_per_epoch=40, batch_size=128
)
GROUPS, STATE = 2, 3


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with single_thread():
        yield


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reward_of(actions: Tensor, epoch: int) -> Tensor:
    """Rises with the epoch, and so does the ratio that is best: no fixed function of (s, a)."""
    best = 0.1 + 0.05 * epoch
    return 0.3 + 0.05 * epoch - (actions - best).square().mean(1)


def episodes_of(epoch: int, count: int, g: torch.Generator) -> Episodes:
    # One action for both steps, so that each (s, a) determines the reward but for the epoch.
    actions = 0.8 * torch.rand(count, 1, generator=g).expand(count, GROUPS)
    states = torch.zeros(count, GROUPS, STATE)
    states[:, 1, 0] = 1
    zeros = torch.zeros(count, GROUPS)
    return Episodes(states, actions, zeros, zeros + 0.8, reward_of(actions, epoch))


def trained(epochs: int, config: EnvironmentModelConfig = QUICK) -> tuple[Any, ReplayBuffer]:
    model, replay, g = (
        EnvironmentModel(STATE, config),
        ReplayBuffer(1000, GROUPS, STATE),
        generator(),
    )
    for epoch in range(epochs):
        model.begin_epoch()
        replay.add(episodes_of(epoch, 20, g), epoch)
        model.update(replay, g)
    return model, replay


def test_it_predicts_the_latest_epoch_better_than_a_model_without_z() -> None:
    epochs = 8
    model, replay = trained(epochs)
    fresh = episodes_of(epochs - 1, 200, generator(5))

    g = generator(1)
    plain = MLP(STATE + 1, 0, QUICK.decoder, 1, g)
    adam = torch.optim.Adam(plain.parameters(), QUICK.lr)
    for _ in range(epochs * QUICK.steps_per_epoch):
        batch = replay.sample(QUICK.batch_size, g)
        x = torch.cat([batch.state, batch.action[:, None]], dim=1)
        loss = (plain(x, None)[0, :, 0] - batch.episode_return).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()

    target = fresh.rewards[:, None].expand(-1, GROUPS)
    x = torch.cat([fresh.states, fresh.actions[..., None]], dim=2).reshape(-1, STATE + 1)
    with torch.no_grad():
        without = float((plain(x, None)[0, :, 0] - target.reshape(-1)).square().mean())
    error = float((model.predict(fresh.states, fresh.actions, epochs - 1) - target).square().mean())
    assert error < 0.25 * without
    # And it has not forgotten the first epoch, whose rewards are lower.
    old = episodes_of(0, 200, generator(6))
    old_target = old.rewards[:, None].expand(-1, GROUPS)
    old_error = (model.predict(old.states, old.actions, 0) - old_target).square().mean()
    assert float(old_error) < 0.25 * float(old_target.var() + (old_target - target).square().mean())


def test_the_loss_falls() -> None:
    model, replay = EnvironmentModel(STATE, QUICK), ReplayBuffer(100, GROUPS, STATE)
    model.begin_epoch()
    replay.add(episodes_of(0, 50, generator()), 0)
    losses = [model.update(replay, generator(i))["environment_loss"] for i in range(4)]
    assert losses[-1] < 0.1 * losses[0]


def test_every_step_is_trained_on_its_episodes_reward() -> None:
    config = replace(QUICK, steps_per_epoch=1)
    model, replay = EnvironmentModel(STATE, config), ReplayBuffer(100, GROUPS, STATE)
    model.begin_epoch()
    replay.add(episodes_of(0, 10, generator()), 0)
    batch = replay.sample(config.batch_size, generator(3))
    expected = (model.predict(batch.state, batch.action, 0) - batch.episode_return).square().mean()
    loss = model.update(replay, generator(3))["environment_loss"]
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_psi_starts_as_a_copy_with_a_fresh_adam_state() -> None:
    model, _ = trained(2)
    before = model.embeddings.state_dict()
    model.begin_epoch()
    after = model.embeddings.state_dict()
    assert model.epochs == 3
    assert torch.equal(after["psi"][2], before["psi"][1])
    assert not torch.equal(before["psi"][0], before["psi"][1])
    assert after["steps"].flatten().tolist() == [
        2 * QUICK.steps_per_epoch,
        QUICK.steps_per_epoch,
        0,
    ]
    for name in ("mean", "square"):
        assert torch.equal(after[name][:2], before[name])
        assert before[name].any()
        assert not after[name][2].any()


def test_embedding_adam_is_torchs_for_each_epoch() -> None:
    g = generator(2)
    ours = EpochEmbeddings(4, 1e-2, (0.9, 0.999))
    rows: list[tuple[nn.Parameter, torch.optim.Optimizer]] = []
    for _ in range(3):
        row = torch.randn(4, generator=g)
        ours.append(row)
        parameter = nn.Parameter(row.clone())
        rows.append((parameter, torch.optim.Adam([parameter], 1e-2, (0.9, 0.999))))
        for _ in range(5):
            gradient = torch.randn(len(rows), 4, generator=g)
            ours.psi.grad = gradient
            ours.step()
            for (parameter, adam), row_gradient in zip(rows, gradient, strict=True):
                parameter.grad = row_gradient.clone()
                adam.step()
    torch.testing.assert_close(ours.psi.detach(), torch.stack([p.detach() for p, _ in rows]))


def test_z_is_the_gru_over_the_epochs_so_far() -> None:
    model, _ = trained(3)
    z = model.z()
    assert z.shape == (3, model.z_size)
    assert not z.requires_grad
    psi = model.embeddings.psi.detach()
    for epoch in range(3):
        torch.testing.assert_close(z[epoch], model.gru(psi[: epoch + 1])[0][-1].detach())
    model.begin_epoch()
    torch.testing.assert_close(model.z()[:3], z)
    assert model.z().shape == (4, model.z_size)
    assert EnvironmentModel(STATE, QUICK).z().shape == (0, QUICK.hidden)


def test_a_share_of_newest_rewards_trains_on_them_alone() -> None:
    config = replace(QUICK, steps_per_epoch=1, newest_share=1.0)
    model, replay = EnvironmentModel(STATE, config), ReplayBuffer(100, GROUPS, STATE)
    for epoch in range(2):
        model.begin_epoch()
        replay.add(episodes_of(epoch, 10, generator(epoch)), epoch)
    batch = replay.sample(config.batch_size, generator(3), newest_share=1.0)
    assert set(batch.epoch.tolist()) == {1}
    expected = (model.predict(batch.state, batch.action, 1) - batch.episode_return).square().mean()
    loss = model.update(replay, generator(3))["environment_loss"]
    assert loss == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(InputError, match="newest_share"):
        EnvironmentModelConfig(newest_share=1.5)


def test_predict_keeps_leading_shapes() -> None:
    model, _ = trained(2)
    g = generator()
    states, actions = torch.rand(4, 5, STATE, generator=g), torch.rand(4, 5, generator=g)
    predicted = model.predict(states, actions, 1)
    assert predicted.shape == (4, 5)
    torch.testing.assert_close(predicted[2, 3], model.predict(states[2, 3], actions[2, 3], 1))
    assert not torch.allclose(predicted, model.predict(states, actions, 0))


def test_it_resumes_bit_for_bit_and_grows() -> None:
    model, replay = trained(3)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = EnvironmentModel(STATE, QUICK, seed=8)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.z(), model.z())
    for one in (model, other):
        one.begin_epoch()
    replay.add(episodes_of(3, 20, generator(4)), 3)
    assert other.update(replay, generator(7)) == model.update(replay, generator(7))
    assert torch.equal(other.z(), model.z())
    for key, tensor in model.decoder.state_dict().items():
        assert torch.equal(other.decoder.state_dict()[key], tensor)


def test_a_model_saved_before_its_first_epoch_starts_the_same() -> None:
    model = EnvironmentModel(STATE, QUICK, seed=1)
    other = EnvironmentModel(STATE, QUICK, seed=2)
    other.load_state_dict(model.state_dict())
    for one in (model, other):
        one.begin_epoch()
    assert torch.equal(other.z(), model.z())
    assert other.z().any()


def test_a_seed_fixes_it_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    (a, _), (b, _) = trained(2), trained(2)
    assert torch.equal(a.z(), b.z())
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_input_is_refused() -> None:
    model, replay = trained(1)
    with pytest.raises(InputError, match="not begun"):
        model.predict(torch.zeros(1, STATE), torch.zeros(1), 1)
    with pytest.raises(InputError, match="states have shape"):
        model.predict(torch.zeros(1, STATE + 1), torch.zeros(1), 0)
    replay.add(episodes_of(1, 5, generator()), 1)  # begin_epoch() was forgotten
    with pytest.raises(InputError, match="begin_epoch"):
        model.update(replay, generator())
    with pytest.raises(InputError, match="empty"):
        model.update(ReplayBuffer(4, GROUPS, STATE), generator())
    with pytest.raises(InputError, match="other sizes"):
        EnvironmentModel(STATE + 1, QUICK).load_state_dict(model.state_dict())
    with pytest.raises(InputError, match="decoder"):
        EnvironmentModelConfig(decoder=())
