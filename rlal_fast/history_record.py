"""What a finished joint run leaves to the history (method.md §10)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from rlal_fast import joint_state
from rlal_fast._version import __version__
from rlal_fast.history.past_run import PastRun, new_id, now
from rlal_fast.walk import STATIC_FEATURES

if TYPE_CHECKING:
    from rlal_fast.trainer import JointTrainer


def past_run(trainer: JointTrainer) -> PastRun:
    """Its episodes and its agent as they are now, under a new id; later changes do not reach it.

    Raises:
        InputError: the trainer has no episode yet.
    """
    config, budget, episodes = trainer.config, trainer.budget, joint_state.past_episodes(trainer)
    joint = [record for record in trainer.log.records if record["stage"] == "joint"]
    return PastRun(
        id=new_id(),
        created=now(),
        version=__version__,
        arch=trainer.arch,
        dataset=trainer.data.name,
        pruned_flops=config.pruned_flops,
        a_max=budget.a_max,
        min_width=config.min_width,
        round_to=config.round_to,
        importance=config.importance,
        groups=config.groups,
        seed=config.seed,
        reward_images=len(trainer.data.reward),
        feature_names=STATIC_FEATURES,
        features=trainer.env.walk.features,
        cost=trainer.graph.cost,
        widths=episodes["widths"].numpy(),
        rewards=episodes["rewards"].numpy(),
        epochs=episodes["epochs"].numpy().astype(np.int32),
        baselines=np.array([r["reward_split_accuracy"] for r in joint], dtype=np.float32),
        agent_name=config.agent,
        agent_state=copy.deepcopy(trainer.agent.state_dict()),
    )
