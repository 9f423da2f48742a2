"""Who can be compared: a name, a line of words, and what it changes in a JointConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlal_fast.joint_config import PRESETS, JointConfig

EMBEDDED = "-ee"  # ends the name of a contender with the environment model


@dataclass(frozen=True)
class Contender:
    """One row of a comparison.

    Attributes:
        description: one line for the reader of a table.
        changes: fields of JointConfig that make it what it is.
        constant: it has one sub-network only, which is scored once per state of the weights.
    """

    description: str
    changes: Mapping[str, Any]
    constant: bool = False

    def config(self, base: JointConfig) -> JointConfig:
        """`base` with this contender in it."""
        config = replace(base, **{"epoch_embedding": False, **self.changes})
        config = replace(config, sac=replace(config.sac, a_max=base.a_max))
        if self.constant:  # it has nothing to fill a replay with, and nothing to repeat
            config = replace(config, episodes_per_epoch=1, random_epochs=0)
        return config


_WITH_MODEL = {"epoch_embedding": True}
_PAPER = {"agent": "sac", **PRESETS["paper"]}

CONTENDERS: dict[str, Contender] = {
    "uniform": Contender("one ratio for all groups", {"agent": "uniform"}, constant=True),
    "random": Contender("random search", {"agent": "random"}),
    "evolutionary": Contender("evolutionary search", {"agent": "evolutionary"}),
    "ddpg": Contender("DDPG, as AMC", {"agent": "ddpg"}),
    "ddpg-ee": Contender("DDPG with the environment model", {"agent": "ddpg", **_WITH_MODEL}),
    "sac": Contender("SAC", {"agent": "sac"}),
    "sac-ee": Contender("SAC with the environment model", {"agent": "sac", **_WITH_MODEL}),
    "sac-paper": Contender("SAC with the paper's settings", _PAPER),
    "sac-paper-ee": Contender(
        "SAC with the paper's settings and the environment model", {**_PAPER, **_WITH_MODEL}
    ),
}


def rank(name: str) -> int:
    """Where a contender stands in tables and legends; one of another version comes last."""
    names = list(CONTENDERS)
    return names.index(name) if name in names else len(names)
