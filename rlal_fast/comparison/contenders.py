"""Who can be compared: a name, a line of words, and what it changes in a JointConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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

    def reads(self) -> tuple[str, ...]:
        """The fields of JointConfig that matter to it and not to every other one."""
        names: list[str] = []
        if self.changes["agent"] in ("ddpg", "sac"):
            names.append("state")
        if self.changes["agent"] == "sac":
            names += ["sac", "screening"]
        if self.changes.get("epoch_embedding"):
            names.append("environment")
        if self.joint:
            names.append("alignment")
        if "history" in self.changes:
            names += ["history", "assistant"]
        return tuple(names)


_WITH_MODEL = {"epoch_embedding": True}
_UNALIGNED = {"alignment": False}


def _learner(description: str, **what: bool) -> Contender:
    changes = {"agent": "sac", "history": HistoryConfig(**{"transfer": False, **what})}
    return Contender(description, changes, learns=True)


_AMC = {"agent": "ddpg", "state": "basic"}  # its state does not tell all earlier ratios
_PAPER = {"agent": "sac", **PRESETS["paper"]}

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
