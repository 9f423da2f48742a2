"""joint_config.py: the defaults of method.md §2 and what cannot work."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlal_fast.agents import SACConfig
from rlal_fast.alignment import default_beta
from rlal_fast.errors import InputError
from rlal_fast.joint_config import PRESETS, JointConfig
from rlal_fast.screening import ScreeningConfig
from rlal_fast.transfer import HistoryConfig


def phases(config: JointConfig) -> list[str]:
    return [config.phase(epoch) for epoch in range(config.total_epochs)]


@pytest.mark.parametrize(
    ("epochs", "warmup", "random", "finetune"),
    [
        (1, 0, 0, 1),
        (7, 0, 0, 1),
        (20, 1, 1, 5),
        (100, 5, 5, 25),
        (200, 10, 10, 50),
        (400, 10, 10, 100),
    ],
)
def test_phases_by_default(epochs: int, warmup: int, random: int, finetune: int) -> None:
    config = JointConfig(epochs=epochs)
    expected = ["warmup"] * warmup + ["random"] * random
    assert phases(config) == expected + ["policy"] * (epochs - len(expected))
    assert config.finetune == finetune


def test_without_epochs_it_only_searches() -> None:
    config = JointConfig(epochs=0)
    assert phases(config) == ["random"] + ["search"] * 19
    assert phases(JointConfig(epochs=0, search_epochs=3, random_epochs=0)) == ["search"] * 3


def test_phases_as_asked() -> None:
    config = JointConfig(
        epochs=5, search_epochs=2, warmup_epochs=1, random_epochs=2, finetune_epochs=0
    )
    expected = ["warmup", "random", "random", "policy", "policy", "search", "search"]
    assert phases(config) == expected
    assert config.finetune == 0


def test_the_papers_settings_are_the_defaults() -> None:
    """method.md §2, §4, §6 to §8."""
    config = JointConfig()
    assert (config.episodes_per_epoch, config.a_max) == (10, 0.8)
    assert PRESETS["paper"]["beta"] == 1e-4
    assert PRESETS["paper"]["beta_growth"] == 0
    cifar = 300 * math.ceil(45_000 / 128)
    assert default_beta(cifar) == pytest.approx(1e-4, rel=0.06)
    weights = config.weights
    assert (weights.lr, weights.momentum, weights.weight_decay) == (0.1, 0.9, 5e-4)
    assert (weights.batch_size, config.finetune_lr) == (128, 0.01)
    assert (config.sac.critic_lr, config.sac.alpha) == (1e-3, 0.1)
    environment = config.environment
    assert (environment.embedding, environment.hidden, environment.decoder) == (
        128,
        128,
        (300, 300),
    )
    assert config.alignment
    assert config.epoch_embedding


def test_a_race_unless_a_start_is_dear() -> None:
    assert JointConfig().race == 0.25
    assert JointConfig(**PRESETS["paper"]).race == 1
    assert JointConfig(bn_recalibrate=8).race == 1
    assert JointConfig(bn_recalibrate=8, race_share=0.5).race == 0.5


def test_the_paper_s_agent_is_a_preset() -> None:
    """method.md §3, §8; the default's differences are measured in benchmarks/agents.md."""
    paper = JointConfig(**PRESETS["paper"])
    assert (paper.sac.actor_lr, paper.sac.critics, paper.sac.return_weight) == (1e-4, 2, 0.0)
    assert paper.state == "basic"
    assert paper.screening.candidates == 1
    assert JointConfig(**PRESETS["default"]) == JointConfig()
    with pytest.raises(InputError, match="state='rich' must be one of"):
        JointConfig(state="rich")


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": -1},
        {"episodes_per_epoch": 0},
        {"structures": 0},
        {"bn_recalibrate": -1},
        {"race_share": 0.0},
        {"race_share": 1.01},
        {"race_share": math.nan},
        {"race_share": "all"},
        {"seed": -1},
        {"seed": 2**63},
        {"search_epochs": -1},
        {"warmup_epochs": -1},
        {"random_epochs": -1},
        {"finetune_epochs": -1},
        {"agent_updates": -1},
        {"finetune_lr": 0.0},
        {"finetune_lr": float("nan")},
        {"beta": -1e-9},
        {"beta": float("nan")},
        {"beta_growth": -0.5},
        {"beta_growth": math.nan},
        {"beta_growth": 1e9},
        {"warmup_epochs": 200},
        {"a_max": 1.0},
        {"a_max": 0.0},
        {"sac": SACConfig(a_max=0.5)},
        {"device": "gpu"},
        {"evaluator_precision": "fp8"},
        {"search_epochs": 0, "epochs": 0},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, Any]) -> None:
    name = next(iter(settings)).removeprefix("search_")
    with pytest.raises(InputError, match=name) as caught:
        JointConfig(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"agent": "evolutionary"},
        {"agent": "ddpg"},
        {"screening": ScreeningConfig(candidates=1)},
        {"sac": SACConfig(scale_rewards=False)},
        PRESETS["paper"],
    ],
    ids=["evolutionary", "ddpg", "one_candidate", "unscaled", "paper"],
)
def test_an_assistant_that_would_do_nothing_is_refused(settings: dict[str, Any]) -> None:
    JointConfig(**settings)
    with pytest.raises(InputError, match=r"the assistant screens .*; or leave the assistant out"):
        JointConfig(**settings, history=HistoryConfig(assistant=True))


@pytest.mark.parametrize(
    "setting",
    [{"epochs": 2.5}, {"epochs": "3"}, {"alignment": 1}, {"seed": True}, {"agent": 3}],
    ids=str,
)
def test_a_setting_of_another_type_is_named(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InputError, match=f"{name}=.* must be of type"):
        JointConfig(**setting)


def test_more_episodes_than_a_replay_holds_are_refused() -> None:
    with pytest.raises(InputError, match="more than 10000000 episodes"):
        JointConfig(episodes_per_epoch=2_000_000_000)


def test_a_number_of_episodes_is_met_exactly() -> None:
    config = JointConfig(epochs=0, search_epochs=3, episodes_per_epoch=10, episodes=25)
    assert [config.episodes_in(epoch) for epoch in range(3)] == [10, 10, 5]
    config = JointConfig(epochs=3, warmup_epochs=1, episodes_per_epoch=4)
    assert [config.episodes_in(epoch) for epoch in range(3)] == [0, 4, 4]


@pytest.mark.parametrize("episodes", [20, 31, 0, -5])
def test_episodes_that_leave_an_epoch_without_or_do_not_fit(episodes: int) -> None:
    with pytest.raises(InputError, match=rf"episodes={episodes} must .* give 21\.\.30, or another"):
        JointConfig(epochs=0, search_epochs=3, episodes_per_epoch=10, episodes=episodes)
