"""transfer.py: which past run, what is worth learning from it, and its agent in a new run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from known_rewards import finished, search
from past_runs import past_run as made_up

from rlal_fast import agents, transfer
from rlal_fast.agents import SAC, SACConfig
from rlal_fast.errors import InputError
from rlal_fast.flops import Budget
from rlal_fast.history.past_run import PastRun
from rlal_fast.seeds import generator
from rlal_fast.transfer import HistoryConfig
from rlal_fast.walk import Walk

SMALL = SACConfig(hidden=(32,), batch_size=32)


@pytest.fixture(scope="module")
def source() -> PastRun:
    return finished(pruned_flops=0.35)


def agent(state_size: int, z_size: int = 0, config: SACConfig = SMALL) -> SAC:
    return SAC(state_size, z_size, config, seed=5)


def size() -> int:
    return search().env.state_size


# --- which run ---


def test_the_run_most_like_the_new_one_comes_first() -> None:
    wanted = [
        made_up(1, pruned_flops=0.5),
        made_up(2, pruned_flops=0.3),
        made_up(3, arch="resnet56"),
        made_up(4, arch="resnet56", dataset="cifar10"),
    ]
    for order in ([3, 1, 0, 2], [2, 0, 3, 1]):
        ranked = transfer.ranked([wanted[i] for i in order], "resnet8", "digits", 2, 0.55)
        assert [run.id for run in ranked] == [run.id for run in wanted]


def test_more_episodes_decide_between_equals() -> None:
    few, many = made_up(1), made_up(2)
    few = dataclasses.replace(
        few, widths=few.widths[:3], rewards=few.rewards[:3], epochs=few.epochs[:3]
    )
    ranked = transfer.ranked([few, many], "resnet8", "digits", 2, 0.5)
    assert [run.id for run in ranked] == [many.id, few.id]


# --- the agent ---


@pytest.mark.parametrize("z_size", [0, 3])
def test_it_acts_and_predicts_as_in_its_own_run(source: PastRun, z_size: int) -> None:
    theirs, ours = agent(size()), agent(size(), z_size)
    assert source.agent_state is not None
    theirs.load_state_dict(source.agent_state)
    assert transfer.unusable(source, ours) is None
    transfer.start(ours, source)
    states, z = torch.rand(5, size()), torch.ones(z_size) if z_size else None
    ends = torch.zeros(5), torch.full((5,), 0.8)
    expected = theirs.act(states, None, *ends, generator(0, "t"))
    assert torch.allclose(ours.act(states, z, *ends, generator(0, "t")), expected)
    opinions = ours.predict(states[:, None], ends[1][:, None], z)
    assert torch.allclose(opinions, theirs.predict(states[:, None], ends[1][:, None], None))
    assert ours.updates > 0  # its critics screen from the first epoch on
    assert not ours.state_dict()["actor_adam"]["state"]  # Adam starts anew


def test_weights_of_z_are_not_taken_over() -> None:
    run = finished(epoch_embedding=True, search_epochs=3)
    ours = agent(size(), 8)
    transfer.start(ours, run)
    for net in (ours.actor, ours.critics, ours.target_critics):
        assert net.z_weight is not None
        assert not net.z_weight.any()


def test_what_the_new_run_learns_does_not_reach_the_past_one(source: PastRun) -> None:
    ours = agent(size())
    transfer.start(ours, source)
    assert source.agent_state is not None
    before = source.agent_state["actor"]["weights.0"].clone()
    with torch.no_grad():
        ours.actor.weights[0].add_(1)
    assert torch.equal(source.agent_state["actor"]["weights.0"], before)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"agent_name": "ddpg"}, "its agent is ddpg, not sac"),
        ({"agent_state": None}, "it kept no agent"),
        ({"agent_state": {"actor": 3}}, "its actor has layers none"),
        ({"feature_names": tuple("abcdefghi")}, "of another version"),
    ],
)
def test_what_cannot_start_a_new_agent_is_named(
    source: PastRun, changes: dict[str, object], reason: str
) -> None:
    found = transfer.unusable(dataclasses.replace(source, **changes), agent(size()))
    assert found is not None
    assert reason in found


def test_other_sizes_and_other_agents_are_named(source: PastRun) -> None:
    wide = agent(size(), config=SACConfig(hidden=(48,)))
    assert "1x46x32" in str(transfer.unusable(source, wide))
    assert "1x46x48" in str(transfer.unusable(source, wide))
    evolution = agents.create("evolutionary", size(), 0)
    assert "not evolutionary" in str(transfer.unusable(source, evolution))


# --- parents ---


def test_the_best_episodes_are_parents_once_each(source: PastRun) -> None:
    twice = dataclasses.replace(
        source,
        widths=np.concatenate([source.widths, source.widths]),
        rewards=np.concatenate([source.rewards, source.rewards]),
        epochs=np.concatenate([source.epochs, source.epochs]),
    )
    full = source.cost.full_widths
    found = transfer.best_ratios(twice, HistoryConfig(parents=4), len(full))
    assert len(found) == 4
    assert len(np.unique(found, axis=0)) == 4
    best = source.widths[source.rewards.argmax()]
    assert found[0] == pytest.approx(1 - best / full)
    everything = transfer.best_ratios(source, HistoryConfig(parents=1000), len(full))
    assert len(everything) == len(np.unique(source.widths, axis=0))


def test_parents_of_another_depth_have_the_ratios_of_their_place(source: PastRun) -> None:
    groups = len(source.cost.full_widths)
    ours = transfer.best_ratios(source, HistoryConfig(), groups)
    thrice = transfer.best_ratios(source, HistoryConfig(), 3 * groups)
    assert thrice.shape == (len(ours), 3 * groups)
    assert thrice[:, 1::3] == pytest.approx(ours)  # the middle one of three lies where it did
    one = transfer.best_ratios(source, HistoryConfig(), 1)
    assert ((one[:, 0] >= ours.min(1)) & (one[:, 0] <= ours.max(1))).all()


def test_parents_are_of_weights_that_had_learned(source: PastRun) -> None:
    run = while_it_trained(source)
    config = HistoryConfig(least_baseline=0.9, parents=1000)
    found = transfer.best_ratios(run, config, len(run.cost.full_widths))
    late = 1 - run.widths[run.epochs >= 3] / run.cost.full_widths
    assert len(found) == len(np.unique(late, axis=0))
    gains = (run.rewards - run.baselines[run.epochs])[run.epochs >= 3]
    assert found[0] == pytest.approx(late[gains.argmax()])


# --- lessons ---


def test_lessons_are_the_episodes_with_standardised_rewards(source: PastRun) -> None:
    lesson = transfer.lessons(source, HistoryConfig(), "profile")
    assert lesson is not None
    assert len(lesson.rewards) == len(source.rewards)
    assert abs(float(lesson.rewards.mean())) < 1e-5
    assert float(lesson.rewards.std(correction=0)) == pytest.approx(1, abs=1e-4)
    order = np.argsort(source.rewards, kind="stable")
    assert (np.diff(lesson.rewards.numpy()[order]) >= 0).all()


def test_rewards_are_relative_to_their_epochs_network(source: PastRun) -> None:
    run = while_it_trained(source)
    lesson = transfer.lessons(run, HistoryConfig(least_baseline=0), "profile")
    assert lesson is not None
    relative = run.rewards - run.baselines[run.epochs]
    expected = (relative - relative.mean()) / relative.std()
    assert lesson.rewards.numpy() == pytest.approx(expected, abs=1e-4)


def test_epochs_whose_weights_were_still_to_learn_are_left_out(source: PastRun) -> None:
    run = while_it_trained(source)
    lesson = transfer.lessons(run, HistoryConfig(least_baseline=0.9), "profile")
    assert lesson is not None
    assert len(lesson.rewards) == int((run.epochs >= 3).sum())
    assert transfer.lessons(run, HistoryConfig(least_baseline=1), "profile") is None


def while_it_trained(run: PastRun) -> PastRun:
    """The same as of a joint run: the full network gets better from epoch to epoch."""
    baselines = np.array([0.1, 0.2, 0.3, 0.76, 0.78, 0.8], dtype=np.float32)
    rewards = run.rewards.copy()
    rewards[run.epochs == 5] = 0.5  # nothing to tell apart in the last one
    return dataclasses.replace(run, baselines=baselines, rewards=rewards)


def test_episodes_are_walked_again_under_budgets_they_meet(source: PastRun) -> None:
    # 0.4 is more than they prune, 0.999 more than can be
    lesson = transfer.lessons(source, HistoryConfig(), "profile", (0.35, 0.2, 0.4, 0.999))
    assert lesson is not None
    budget = Budget(source.cost, 0.2)
    macs = source.cost.macs(source.widths)
    meets = (macs <= budget.macs) & (macs >= 0.8 * budget.macs)
    assert meets.any()
    count = len(source.rewards)
    assert len(lesson.rewards) == count + meets.sum()
    walked = Walk(source.features, budget).episodes(
        source.widths[meets].astype(np.int64), lesson.rewards[:count].numpy()[meets]
    )
    for name, tensor in vars(walked).items():
        assert torch.equal(getattr(lesson, name)[count:], tensor), name


def test_lessons_teach_an_agent_whatever_the_number_of_groups(source: PastRun) -> None:
    other = finished(arch="resnet20", pruned_flops=0.5, search_epochs=3)
    pooled = [transfer.lessons(run, HistoryConfig(), "profile") for run in (source, other)]
    ours = agent(size(), 3)
    lesson = pooled[0]
    assert lesson is not None
    assert pooled[1] is not None

    def error() -> float:
        opinions = ours.predict(lesson.states, lesson.actions, torch.ones(3)).mean(0)
        return float((opinions - lesson.rewards).square().mean())

    before = error()
    transfer.train(ours, [one for one in pooled if one], 200, generator(0, "t"))
    assert ours.updates == 200
    assert error() < 0.7 * before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("predicted_episodes", -1),
        ("augmented_steps", 0),
        ("parents", 0),
        ("candidates", 0),
        ("lasting", 0),
        ("least_baseline", 1.1),
        ("least_use", -0.1),
        ("trial_episodes", 1),
        ("longest_trial", 19),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"HistoryConfig.{name} = {value}"):
        HistoryConfig(**{name: value})
