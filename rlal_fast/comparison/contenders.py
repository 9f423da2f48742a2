"""Who can be compared: a name, a line of words, and what it changes in a JointConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlal_fast.agents import DDPGConfig, EvolutionConfig
from rlal_fast.joint_config import PRESETS, JointConfig
from rlal_fast.transfer import HistoryConfig

EMBEDDED = "-ee"  # ends the name of a contender with the environment model


@dataclass(frozen=True)
class Contender:
    """One row of a comparison.

    Attributes:
        description: one line for the reader of a table.
        changes: fields of JointConfig that make it what it is.
        constant: it has one sub-network only, which is scored once per state of the weights.
        joint: it differs from another one in the training of weights.
        learns: it is given the comparison's past runs, and is nothing without them.
    """

    description: str
    changes: Mapping[str, Any]
    constant: bool = False
    joint: bool = False
    learns: bool = False

    def config(self, base: JointConfig) -> JointConfig:
        """`base` with this contender in it."""
        config = replace(base, **{"epoch_embedding": False, **self.changes})
        config = replace(config, sac=replace(config.sac, a_max=base.a_max))
        if self.constant:  # it has nothing to fill a replay with, and nothing to repeat
            config = replace(config, episodes_per_epoch=1, random_epochs=0)
        return config

    def reads(self, base: JointConfig) -> dict[str, Any]:
        """The settings that matter to it and not to every other one, by their names."""
        config = self.config(base)
        found: dict[str, Any] = {}
        if config.agent in ("ddpg", "sac"):
            found["state"] = config.state
        if config.agent == "ddpg":
            found["ddpg"] = asdict(DDPGConfig(a_max=base.a_max))
        if config.agent == "sac":
            found["sac"] = asdict(config.sac)
            walked = config.screening.candidates
            found["screening"] = asdict(config.screening) if walked > 1 else {"candidates": 1}
        if config.agent == "evolutionary" or (config.agent == "sac" and walked > 1):
            found["evolution"] = asdict(EvolutionConfig(a_max=base.a_max))
        if config.epoch_embedding:
            found["environment"] = asdict(config.environment)
        if self.joint:
            found["alignment"] = config.alignment
        if "history" in self.changes:
            history = asdict(config.history)
            blank = ("assistant", "critics_screen", "predicted_episodes")
            found["history"] = history if self.learns else {name: history[name] for name in blank}
            found["assistant"] = asdict(config.assistant)
        return found


_WITH_MODEL = {"epoch_embedding": True}
_UNALIGNED = {"alignment": False}


def _learner(description: str, **what: bool) -> Contender:
    changes = {"agent": "sac", "history": HistoryConfig(**{"transfer": False, **what})}
    return Contender(description, changes, learns=True)


_AMC = {"agent": "ddpg", "state": "basic"}  # its state does not tell all earlier ratios
_PAPER = {"agent": "sac", **PRESETS["paper"]}
for _name in (
    "beta",
    "beta_growth",
    "race_share",
):  # how weights are trained and scored is the comparison's
    _PAPER.pop(_name)

CONTENDERS: dict[str, Contender] = {
    "uniform": Contender("one ratio for all groups", {"agent": "uniform"}, constant=True),
    "random": Contender("random search", {"agent": "random"}),
    "evolutionary": Contender("evolutionary search", {"agent": "evolutionary"}),
    "ddpg": Contender("DDPG, as AMC", _AMC),
    "ddpg-ee": Contender("DDPG with the environment model", {**_AMC, **_WITH_MODEL}),
    "sac": Contender("SAC", {"agent": "sac"}),
    "sac-ee": Contender("SAC with the environment model", {"agent": "sac", **_WITH_MODEL}),
    "sac-unaligned": Contender(
        "SAC, weights not aligned with the structure", {"agent": "sac", **_UNALIGNED}, joint=True
    ),
    "sac-unaligned-ee": Contender(
        "SAC with the environment model, weights not aligned",
        {"agent": "sac", **_WITH_MODEL, **_UNALIGNED},
        joint=True,
    ),
    "sac-paper": Contender("SAC with the paper's settings", _PAPER),
    "sac-paper-ee": Contender(
        "SAC with the paper's settings and the environment model", {**_PAPER, **_WITH_MODEL}
    ),
    "sac-assisted": Contender(
        "SAC with an assistant that knows no past run",
        {"agent": "sac", "history": HistoryConfig(assistant=True)},
    ),
    "sac-transfer": _learner("SAC that begins with a past agent", transfer=True),
    "sac-augmented": _learner("the same, trained on past episodes first", augmented=True),
    "sac-assistant": _learner("SAC with an assistant that past runs taught", assistant=True),
    "sac-history": _learner(
        "SAC with a past agent and an assistant", transfer=True, assistant=True
    ),
    "sac-history-augmented": _learner(
        "the same, the agent trained on past episodes first", augmented=True, assistant=True
    ),
}


def rank(name: str) -> int:
    """Where a contender stands in tables and legends; one of another version comes last."""
    names = list(CONTENDERS)
    return names.index(name) if name in names else len(names)
