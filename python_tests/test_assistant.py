"""assistant.py: it learns rewards of past runs and of its own, across networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import through_file
from known_rewards import ASSISTANT, finished, search

from rlal_fast import transfer
from rlal_fast.assistant import Assistant, AssistantConfig
from rlal_fast.errors import InputError
from rlal_fast.head_start import rank_correlation
from rlal_fast.history.past_run import PastRun
from rlal_fast.replay import Episodes, ReplayBuffer
from rlal_fast.seeds import generator
from rlal_fast.transfer import HistoryConfig


@pytest.fixture(scope="module")
def source() -> PastRun:
    return finished(pruned_flops=0.35)


def episodes(run: PastRun) -> Episodes:
    found = transfer.lessons(run, HistoryConfig(), "profile")
    assert found is not None
    return found


def unseen(count: int = 60, **settings: float) -> Episodes:
    """Random episodes of a new run."""
    trainer = search(**settings)
    return trainer.env.rollout(trainer.random_agent, count, None, generator(3, "unseen")).episodes


def correlation(assistant: Assistant, of: Episodes) -> float:
    predicted = assistant.predict(of.states, of.actions, None)
    assert predicted.shape == (2 * assistant.config.copies, len(of.rewards))
    return rank_correlation(predicted.mean(0).double().numpy(), of.rewards.double().numpy())


def replay_of(of: Episodes, count: int) -> ReplayBuffer:
    replay = ReplayBuffer(count, of.states.shape[1], of.states.shape[2])
    replay.add(Episodes(*(tensor[:count] for tensor in vars(of).values())), 0)
    return replay


def test_it_knows_nothing_at_first() -> None:
    assistant = Assistant(ASSISTANT)
    assert not assistant.ready
    found = unseen()
    assert not assistant.predict(found.states, found.actions, None).any()


def test_past_runs_teach_it_about_another_budget(source: PastRun) -> None:
    assistant = Assistant(ASSISTANT)
    assistant.study([episodes(source)], generator(0, "t"))
    assert assistant.ready
    assert correlation(assistant, unseen(pruned_flops=0.5)) > 0.6


def test_a_network_with_another_number_of_groups_teaches_it_too(source: PastRun) -> None:
    other = finished(arch="resnet20", pruned_flops=0.5)
    assistant = Assistant(ASSISTANT)
    assistant.study([episodes(source), episodes(other)], generator(0, "t"))
    for network in ("resnet8", "resnet20"):
        assert correlation(assistant, unseen(arch=network)) > 0.4, network


def test_it_learns_from_its_own_run() -> None:
    assistant, found = Assistant(ASSISTANT), unseen(120)
    for epoch in range(6):
        assistant.update(replay_of(found, 60), generator(epoch, "t"))
    rest = Episodes(*(tensor[60:] for tensor in vars(found).values()))
    assert assistant.ready
    assert correlation(assistant, rest) > 0.7


def test_past_runs_that_mislead_lose_its_trust(source: PastRun) -> None:
    misled, found = Assistant(ASSISTANT), unseen(120)
    taught = episodes(source)
    wrong = Episodes(taught.states, taught.actions, taught.low, taught.high, -taught.rewards)
    misled.study([wrong], generator(0, "t"))
    rest = Episodes(*(tensor[60:] for tensor in vars(found).values()))
    assert misled.trust == 1
    assert correlation(misled, rest) < -0.4
    for epoch in range(6):
        misled.update(replay_of(found, 60), generator(epoch, "t"))
    assert misled.trust < 0.2
    assert correlation(misled, rest) > 0.6


def test_it_goes_on_bit_for_bit(source: PastRun) -> None:
    first, second = Assistant(ASSISTANT, 1), Assistant(ASSISTANT, 2)
    replay = replay_of(unseen(), 30)
    first.study([episodes(source)], generator(0, "t"))
    first.update(replay, generator(1, "t"))
    second.load_state_dict(through_file(first.state_dict()))
    for assistant in (first, second):
        assistant.update(replay, generator(2, "t"))
    found = unseen()
    ours, theirs = (a.predict(found.states, found.actions, None) for a in (first, second))
    assert torch.equal(ours, theirs)


def test_rank_correlation_is_spearmans_with_ties_at_their_mean() -> None:
    a, b = np.array([1.0, 2.0, 2.0, 4.0]), np.array([10.0, 30.0, 20.0, 40.0])
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
    assert rank_correlation(a, b) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert rank_correlation(a, -b) == pytest.approx(-4.5 / np.sqrt(4.5 * 5))
    assert rank_correlation(a, np.ones(4)) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("copies", 0),
        ("hidden", 0),
        ("embedding", 0),
        ("profile_hidden", ()),
        ("lr", 0.0),
        ("weight_decay", -1.0),
        ("batch_size", 0),
        ("history_steps", -1),
        ("steps_per_epoch", -1),
        ("reward_spread_floor", 0.0),
        ("trust_prior", 0.0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"AssistantConfig.{name} = "):
        AssistantConfig(**{name: value})
