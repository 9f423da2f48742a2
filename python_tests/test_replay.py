"""replay.py: what goes in comes out, in the right order, and survives a save."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from rlal_fast.errors import InputError
from rlal_fast.replay import Episodes, ReplayBuffer

GROUPS, STATE = 3, 2


def numbered(first: int, count: int) -> Episodes:
    """Episodes whose every value tells which episode and step it belongs to."""
    episode = torch.arange(first, first + count, dtype=torch.float32)
    step = torch.arange(GROUPS, dtype=torch.float32)
    action = episode[:, None] + 0.1 * step
    return Episodes(
        states=torch.stack([action + 100, action + 200], dim=2),
        actions=action,
        low=action - 0.01,
        high=action + 0.01,
        rewards=episode + 0.5,
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def through_file(state: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_transition_is_one_step_and_its_successor() -> None:
    replay = ReplayBuffer(10, GROUPS, STATE)
    replay.add(numbered(0, 4), epoch=2)
    replay.add(numbered(4, 2), epoch=5)
    assert len(replay) == 6 * GROUPS
    assert replay.episode_count == 6
    batch = replay.sample(500, generator())

    episode = batch.action.floor()
    step = ((batch.action - episode) * 10).round()
    last = step == GROUPS - 1
    assert set(zip(episode.tolist(), step.tolist(), strict=True)) == {
        (e, s) for e in range(6) for s in range(GROUPS)
    }
    assert torch.equal(batch.done, last)
    torch.testing.assert_close(batch.episode_return, episode + 0.5)
    torch.testing.assert_close(batch.reward, torch.where(last, episode + 0.5, 0.0))
    torch.testing.assert_close(batch.state, batch.action[:, None] + torch.tensor([100.0, 200.0]))
    torch.testing.assert_close(batch.low, batch.action - 0.01)
    torch.testing.assert_close(batch.high, batch.action + 0.01)
    next_action = batch.action + 0.1
    more = ~last
    torch.testing.assert_close(batch.next_state[more], batch.state[more] + 0.1)
    torch.testing.assert_close(batch.next_low[more], next_action[more] - 0.01)
    torch.testing.assert_close(batch.next_high[more], next_action[more] + 0.01)
    for tensor in (batch.next_state, batch.next_low, batch.next_high):
        assert not tensor[last].any()
    assert torch.equal(batch.epoch, torch.where(episode < 4, 2, 5))


def test_the_newest_episodes_stay() -> None:
    replay = ReplayBuffer(4, GROUPS, STATE)
    replay.add(numbered(0, 3), epoch=0)
    replay.add(numbered(3, 3), epoch=1)
    assert replay.all_returns.tolist() == [2.5, 3.5, 4.5, 5.5]
    assert replay.all_epochs.tolist() == [0, 1, 1, 1]
    assert replay.epochs == [0, 1]
    replay.add(numbered(6, 9), epoch=2)  # more at once than the ring holds
    assert replay.all_returns.tolist() == [11.5, 12.5, 13.5, 14.5]
    assert torch.equal(replay.all_actions, numbered(11, 4).actions)
    assert replay.epochs == [2]
    assert len(replay) == 4 * GROUPS
    assert set(replay.sample(100, generator()).episode_return.tolist()) == {11.5, 12.5, 13.5, 14.5}


def test_a_loaded_ring_draws_the_same_steps_and_may_grow() -> None:
    replay = ReplayBuffer(4, GROUPS, STATE)
    replay.add(numbered(0, 6), epoch=0)  # wrapped: the oldest is not in slot 0
    replay.add(numbered(6, 1), epoch=3)
    state = through_file(replay.state_dict())
    for capacity in (4, 9):
        loaded = ReplayBuffer(capacity, GROUPS, STATE)
        loaded.add(numbered(50, 2), epoch=7)  # loading replaces
        loaded.load_state_dict(state)
        assert loaded.epochs == [0, 3]
        ours, theirs = loaded.sample(64, generator(1)), replay.sample(64, generator(1))
        for name, tensor in vars(theirs).items():
            assert torch.equal(getattr(ours, name), tensor), name
    loaded.add(numbered(7, 3), epoch=4)
    assert loaded.all_returns.tolist() == [3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5]
    smaller = ReplayBuffer(2, GROUPS, STATE)
    smaller.load_state_dict(state)
    assert smaller.all_returns.tolist() == [5.5, 6.5]
    smaller.add(numbered(8, 1), epoch=4)
    assert smaller.all_returns.tolist() == [6.5, 8.5]


def test_a_share_of_the_steps_comes_from_the_newest_epoch() -> None:
    replay = ReplayBuffer(10, GROUPS, STATE)
    for epoch in range(4):  # the first two of 12 episodes are overwritten
        replay.add(numbered(3 * epoch, 3), epoch)
    plain = replay.sample(400, generator())
    batch = replay.sample(400, generator(), newest_share=0.75)
    assert set(batch.epoch[:300].tolist()) == {3}
    assert set(batch.action[:300].floor().tolist()) == {9, 10, 11}
    assert torch.equal(batch.action[300:], plain.action[300:])
    assert set(plain.epoch.tolist()) == {0, 1, 2, 3}


def test_only_the_filled_part_is_saved() -> None:
    replay = ReplayBuffer(10_000, GROUPS, STATE)
    replay.add(numbered(0, 2), epoch=0)
    state = replay.state_dict()
    assert state["states"].shape == (2, GROUPS, STATE)
    file = io.BytesIO()
    torch.save(state, file)
    assert file.tell() < 10_000


def test_spread_is_within_epochs() -> None:
    replay = ReplayBuffer(10, GROUPS, STATE)
    assert replay.return_statistics() == (0.0, 0.0)
    one = numbered(0, 1)
    for epoch, rewards in enumerate(([0.1, 0.3], [0.7, 0.9])):
        for reward in rewards:
            episodes = Episodes(one.states, one.actions, one.low, one.high, torch.tensor([reward]))
            replay.add(episodes, epoch)
    mean, spread = replay.return_statistics()
    assert mean == pytest.approx(0.5)
    assert spread == pytest.approx(0.02**0.5)  # of {-0.1, 0.1} around each epoch's own mean


def test_spread_with_one_episode_per_epoch_is_over_all() -> None:
    replay = ReplayBuffer(10, GROUPS, STATE)
    for epoch in range(3):
        replay.add(numbered(epoch, 1), epoch)
    mean, spread = replay.return_statistics()
    assert mean == pytest.approx(1.5)
    assert spread == pytest.approx(1.0)


def test_bad_input_is_refused() -> None:
    replay = ReplayBuffer(4, GROUPS, STATE)
    with pytest.raises(InputError, match="empty"):
        replay.sample(8, generator())
    good = numbered(0, 2)
    with pytest.raises(InputError, match=r"actions has shape \(2, 2\)"):
        replay.add(Episodes(good.states, good.actions[:, :2], good.low, good.high, good.rewards), 0)
    with pytest.raises(InputError, match="not finite"):
        replay.add(Episodes(good.states, good.actions, good.low, good.high, good.rewards / 0), 0)
    with pytest.raises(InputError, match="epoch"):
        replay.add(good, -1)
    with pytest.raises(InputError, match="at least 1"):
        ReplayBuffer(0, GROUPS, STATE)
    assert len(replay) == 0
    replay.add(good, 0)
    other = ReplayBuffer(4, GROUPS + 1, STATE)
    with pytest.raises(InputError, match="states has shape"):
        other.load_state_dict(replay.state_dict())
