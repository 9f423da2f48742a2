"""head_start.py: what past runs bring to a joint run, its trial, and what is left if it hurts."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from known_rewards import ASSISTANT, finished, rewards, search

from rlal_fast import joint_state
from rlal_fast.agents import SACConfig
from rlal_fast.exploration import random_episodes, with_predictions
from rlal_fast.history.past_run import PastRun
from rlal_fast.screening import ScreeningConfig
from rlal_fast.trainer import JointTrainer
from rlal_fast.transfer import HistoryConfig

_EPOCHS = 9
NOTHING = {"transfer": False}
SWITCHES: dict[str, dict[str, Any]] = {
    "transfer": {"transfer": True},
    "augmented": {"transfer": False, "augmented": True},
    "assistant": {"transfer": False, "assistant": True},
    "all": {"transfer": True, "augmented": True, "assistant": True, "predicted_episodes": 5},
}


@pytest.fixture(scope="module")
def source() -> PastRun:
    return finished(pruned_flops=0.35)


@pytest.fixture(scope="module")
def adverse() -> PastRun:
    """A past run of a world in which what was good was bad."""
    return finished(pruned_flops=0.35, adverse=True)


@pytest.fixture(scope="module")
def alone() -> JointTrainer:
    """A run that learned from none."""
    trainer = search(search_epochs=_EPOCHS)
    trainer.search()
    return trainer


def learning(**what: Any) -> HistoryConfig:
    return HistoryConfig(augmented_steps=100, **what)


def statuses(trainer: JointTrainer) -> list[str]:
    return [str(record["history"]) for record in trainer.log.records]


def best(trainer: JointTrainer, episodes: int) -> float:
    return float(np.concatenate(rewards(trainer))[:episodes].max())


@pytest.mark.parametrize("name", SWITCHES)
def test_what_helps_is_kept_and_helps(source: PastRun, alone: JointTrainer, name: str) -> None:
    helped = search([source], learning(**SWITCHES[name]), search_epochs=3)
    helped.search()
    assert statuses(helped) == ["trial", "kept", "kept"]
    assert [record["phase"] for record in helped.log.records[:3]] == ["trial", "trial", "search"]
    assert [record["phase"] for record in alone.log.records[:3]] == ["random", "random", "search"]
    chosen = np.mean([row[:5] for row in rewards(helped)[:2]])
    random = np.mean([row[5:] for row in rewards(helped)[:2]])
    assert chosen > random + 0.02
    assert best(helped, 20) > best(alone, 20)


@pytest.mark.parametrize("name", SWITCHES)
def test_what_hurts_is_dropped_and_the_run_ends_as_well(
    adverse: PastRun, alone: JointTrainer, name: str
) -> None:
    trainer = search([adverse], learning(**SWITCHES[name]), search_epochs=_EPOCHS)
    trainer.search()
    assert trainer.head_start.status == "dropped"
    assert statuses(trainer)[1].startswith("dropped: its episodes are no better than random ones")
    assert [record["phase"] for record in trainer.log.records[:3]] == ["trial", "trial", "search"]
    assert best(trainer, 10 * _EPOCHS) >= best(alone, 10 * _EPOCHS) - 0.02


def test_children_of_past_episodes_are_candidates_while_on_trial(source: PastRun) -> None:
    trainer = search([source], learning())
    start, budget = trainer.head_start, trainer.budget
    assert start.parents is not None
    breeder = start.breeder(trainer.replay)
    assert breeder.state_dict()["parents"] is start.parents
    pruned = start.parents[(start.parents > 0).all(1)].numpy()  # in all groups: they can be fitted
    assert len(pruned)
    kept = np.ceil((1 - pruned) * budget.full_widths - 1e-4).astype(np.int64)
    assert (budget.cost.macs(np.maximum(kept, budget.min_widths)) <= budget.macs).all()
    trainer.search()
    assert start.status == "kept"
    own = start.breeder(trainer.replay).state_dict()["parents"]
    assert bool((own[0] == trainer.replay.all_actions[trainer.replay.all_returns.argmax()]).all())
    without = search([source], learning(**NOTHING, assistant=True)).head_start
    assert without.parents is None
    assert without.breeder(trainer.replay).state_dict()["parents"] is not None


def test_more_candidates_are_walked_while_what_was_learned_is_of_use(
    source: PastRun, adverse: PastRun
) -> None:
    few, many = ScreeningConfig(candidates=2), ScreeningConfig(candidates=50)
    helped, hurt = search([source], learning()), search([adverse], learning())
    for trainer in (helped, hurt):
        start = trainer.head_start
        assert start.screening(few).candidates == 30
        assert start.screening(many).candidates == 50
        assert start.screening(ScreeningConfig(candidates=1)).candidates == 1  # no screening
        trainer.search()
    assert helped.head_start.screening(few).candidates == 30
    assert hurt.head_start.screening(few).candidates == 2
    assert search().head_start.screening(few).candidates == 2


def test_an_agent_of_its_own_takes_over(source: PastRun) -> None:
    trainer = search([source], learning(lasting=40, assistant=True))
    trainer.search()
    assert statuses(trainer) == ["trial", "kept", "kept", "over", "over", "over"]
    # it has learned all epochs' steps when it takes over, and its own from there
    assert trainer.agent.updates == 6 * 40  # type: ignore[attr-defined]
    assert trainer.head_start.assistant is not None
    # it goes on, as it weighs past runs itself
    adam = trainer.head_start.assistant.state_dict()["adam"]["state"]
    expected = 6 * ASSISTANT.steps_per_epoch
    assert {int(state["step"]) for state in adam.values()} == {expected}
    assert {record["phase"] for record in trainer.log.records[2:]} == {"search"}


def test_an_assistant_alone_leaves_the_agent_as_it_is(source: PastRun) -> None:
    few = ScreeningConfig(candidates=2)
    trainer = search([source], learning(**NOTHING, assistant=True, lasting=40), screening=few)
    agent = trainer.agent
    trainer.search()
    assert statuses(trainer)[3:] == ["over"] * 3
    assert trainer.agent is agent
    assert trainer.head_start.screening(few).candidates == 2


def test_after_a_drop_all_is_as_new(adverse: PastRun) -> None:
    trainer = search([adverse], learning(transfer=True, assistant=True), agent_updates=0)
    fresh = search([], learning(assistant=True), agent_updates=0)
    trainer.search()
    ours, theirs = trainer.agent.state_dict(), fresh.agent.state_dict()
    for name, weights in theirs["actor"].items():
        assert torch.equal(ours["actor"][name], weights)
    assert trainer.head_start.assistant is not None
    assert trainer.head_start.assistant.trust == 0


def test_what_past_runs_teach_counts_as_time_of_the_agent(source: PastRun) -> None:
    taught = search([source], learning(augmented=True)).seconds
    assert 0 < search().seconds["agent"] < taught["agent"] <= taught["total"]
    trainer = search([source], learning(augmented=True))
    before = dict(trainer.seconds)
    trainer.search()
    after = trainer.elapsed()
    assert all(after[name] > before[name] for name in ("agent", "episodes", "total"))
    assert after["agent"] + after["episodes"] <= after["total"]


def test_without_past_runs_nothing_changes() -> None:
    plain, willing = search([], HistoryConfig(**NOTHING)), search([], learning(augmented=True))
    for trainer in (plain, willing):
        trainer.search()
    assert rewards(plain) == rewards(willing)
    assert statuses(plain) == ["None"] * 6


def test_past_runs_that_are_not_asked_change_nothing(source: PastRun) -> None:
    plain, given = search(), search([source], HistoryConfig(**NOTHING))
    for trainer in (plain, given):
        trainer.search()
    assert rewards(plain) == rewards(given)


def test_an_assistant_without_past_runs_learns_from_the_run() -> None:
    trainer = search([], learning(assistant=True))
    trainer.search()
    assistant = trainer.head_start.assistant
    assert assistant is not None
    assert assistant.updates == 6
    assert assistant.trust == 0
    assert trainer.head_start.status == "off"


def test_predicted_episodes_are_learned_from_and_not_kept() -> None:
    trainer = search([], learning(assistant=True, predicted_episodes=7))
    trainer._finish_epoch(trainer._joint_epoch(0))
    both = with_predictions(trainer, 0)
    assert (trainer.replay.episode_count, both.episode_count) == (10, 17)
    assert torch.equal(both.all_returns[:10], trainer.replay.all_returns)
    predicted = both.all_returns[10:]
    assert trainer.head_start.assistant is not None
    assert predicted.std() > 0
    assert abs(float(predicted.mean() - trainer.replay.all_returns.mean())) < 0.3
    assert with_predictions(search(), 0).episode_count == 0
    trainer.search()
    assert trainer.replay.episode_count == 60


def test_a_run_whose_agent_fits_is_found_behind_one_whose_agent_does_not(source: PastRun) -> None:
    other = finished(pruned_flops=0.5, sac=SACConfig(hidden=(48,)), search_epochs=3)
    start = search([source, other], learning()).head_start
    assert start.source == source.id
    assert "1x46x48" in str(start.refused)  # the one that is most like it, by its pruned_flops
    alone = search([other], learning()).head_start
    assert alone.source is None
    assert alone.status == "off"


def test_a_few_episodes_an_epoch_are_on_trial_in_turns(source: PastRun) -> None:
    config = HistoryConfig(trial_episodes=4)
    trainer = search([source], config, episodes_per_epoch=1, search_epochs=6)
    trainer.search()
    assert [record["phase"] for record in trainer.log.records] == [*["trial"] * 4, *["search"] * 2]


def test_the_trial_goes_on_while_rewards_say_nothing(source: PastRun) -> None:
    start = search([source], learning(longest_trial=40)).head_start
    half = np.arange(10) < 5
    by_chance = np.linspace(0.495, 0.505, 10)  # 2000 images: 0.011 is the deviation of chance
    for _ in range(3):
        start.witness(by_chance, half, None)
        assert not start.judge(10)
        assert start.status == "trial"
    start.witness(by_chance, half, None)
    assert start.judge(10)
    assert start.status == "dropped"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_rewards_that_rise_with_the_weights_favour_nobody(source: PastRun, count: int) -> None:
    """As the trainer scores them: who gets an odd episode over follows from the epoch."""

    def judged(better: float, first: int) -> str:
        start = search([source], learning(longest_trial=200)).head_start
        epoch = first
        while start.status == "trial":
            kinds = np.arange(count) < count - random_episodes(epoch, count)
            start.witness(0.2 + 0.03 * epoch + better * kinds, kinds, None)
            start.judge(epoch)
            epoch += 1
            assert epoch < 300
        return start.status

    for first in range(4):
        assert judged(0.02, first) == "kept"
        assert judged(-0.02, first) == "dropped"


def test_a_rise_alone_is_no_difference_between_rewards(source: PastRun) -> None:
    start = search([source], learning(longest_trial=60)).head_start
    half = np.arange(10) < 5
    for epoch in range(6):  # all sub-networks of an epoch are worth the same
        assert start.status == "trial"
        start.witness(np.full(10, 0.2 + 0.05 * epoch), half, None)
        start.judge(10)
    assert start.status == "dropped"  # it is no better, but for the time of longest_trial


def test_predictions_that_do_not_rank_the_rewards_are_evidence_enough(source: PastRun) -> None:
    half, found = np.arange(10) < 5, np.linspace(0.9, 0.4, 10)
    for predicted, kept in ((found, True), (-found, False)):
        start = search([source], learning()).head_start
        for _ in range(2):
            start.witness(found, half, torch.from_numpy(predicted)[None])
            dropped = start.judge(10)
        assert dropped != kept
        assert kept or "rank correlation -1.00" in str(start.reason)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_resumed_run_ends_bit_for_bit_the_same_without_its_past_runs(
    source: PastRun, name: str
) -> None:
    config, changes = learning(**SWITCHES[name], lasting=30), {"epoch_embedding": True}
    changes |= {"search_epochs": 5}
    resumed: dict[int, JointTrainer] = {}
    whole = search([source], config, **changes)
    for epoch in range(5):
        if epoch in (1, 2, 3, 4):  # in the middle of the trial, after it, and past its time
            second = search([], config, **changes)
            joint_state.restore(second, copy.deepcopy(joint_state.gather(whole, False)))
            resumed[epoch] = second
        whole._finish_epoch(whole._joint_epoch(epoch))
    assert statuses(whole) == ["trial", "kept", "over", "over", "over"]
    for epoch, second in resumed.items():
        second.search()
        assert rewards(second) == rewards(whole)[epoch:]
        assert statuses(second) == statuses(whole)[epoch:]


def test_a_dropped_one_stays_dropped_in_a_resumed_run(adverse: PastRun) -> None:
    whole = search([adverse], learning())
    first, second = search([adverse], learning()), search([], learning())
    whole.search()
    for epoch in range(2):
        first._finish_epoch(first._joint_epoch(epoch))
    joint_state.restore(second, joint_state.gather(first, False))
    second.search()
    assert rewards(second) == rewards(whole)[2:]
    assert second.head_start.reason == whole.head_start.reason
