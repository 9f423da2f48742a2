"""The episodes of one epoch: who walks them, and which of them are scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlal_fast import agents, joint_state
from rlal_fast.env import Rollout, joined
from rlal_fast.replay import ReplayBuffer
from rlal_fast.screening import Screening
from rlal_fast.seeds import generator
from rlal_fast.walk import IntArray, Step, rewarded

if TYPE_CHECKING:
    from rlal_fast.trainer import JointTrainer

_GOLDEN = (5**0.5 - 1) / 2  # its multiples fill [0, 1) evenly, however many there are


def explore(trainer: JointTrainer, epoch: int, phase: str) -> Rollout:
    """Walks and scores the episodes of an epoch.

    Args:
        trainer: whose environment and agents. What they learn comes later; but the race, the
            trial's evidence, and an agent's count of its own episodes go on.
        epoch: 0-based.
        phase: as `HeadStart.phase` gives it.
    """
    config = trainer.config
    z = trainer.environment.z()[epoch] if trainer.environment else None
    source, count = generator(config.seed, "episodes", epoch), config.episodes_in(epoch)
    if phase == "random":
        return trainer.env.rollout(trainer.random_agent, count, z, source)
    screening = _screening(trainer, epoch)
    if phase != "trial":
        return trainer.env.rollout(trainer.agent, count, z, source, screening)
    random = random_episodes(epoch, count)
    parts = []
    if count > random:
        parts.append(trainer.env.rollout(trainer.agent, count - random, z, source, screening))
    if random:
        parts.append(trainer.env.rollout(trainer.random_agent, random, z, source))
    rollout = joined(parts)
    ensemble = trainer.head_start.ensemble(trainer.agent)
    episodes = rollout.episodes
    predicted = ensemble.predict(episodes.states, episodes.actions, z) if ensemble else None
    trainer.head_start.witness(rollout.rewards, np.arange(count) < count - random, predicted)
    return rollout


def random_episodes(epoch: int, count: int) -> int:
    """How many of an epoch's `count` episodes on trial are random: half of them.

    An odd one over goes to each in turn, as in a, b, b, a, so that rewards that rise with the
    weights favour neither.
    """
    return (count + (epoch % 4 in (1, 2))) // 2


def with_predictions(trainer: JointTrainer, epoch: int) -> ReplayBuffer:
    """The replay, with episodes of the policy beside it whose rewards the assistant predicted."""
    replay, assistant = trainer.replay, trainer.head_start.assistant
    count = trainer.config.history.predicted_episodes
    if assistant is None or not assistant.ready or not count:
        return replay
    z = trainer.environment.z()[epoch] if trainer.environment else None
    source, env = generator(trainer.config.seed, "predicted episodes", epoch), trainer.env

    def choose(step: Step, low: IntArray, high: IntArray) -> IntArray:
        ratios = trainer.agent.act(step.state, z, step.low, step.high, source)
        return env.budget.width(ratios.numpy(), step.group, low, high)

    _, walked = env.walk.walk(count, choose)
    size = replay.episode_count + count
    both = ReplayBuffer(size, replay.groups, replay.state_size)
    both.load_state_dict(replay.state_dict())
    both.add(rewarded(walked, assistant.rewards(walked, replay).numpy()), epoch)
    return both


def _screening(trainer: JointTrainer, epoch: int) -> Screening | None:
    config, agent = trainer.config, trainer.agent
    if not isinstance(agent, agents.SAC) or config.screening.candidates == 1:
        return None
    ensemble = trainer.head_start.ensemble(agent)
    if ensemble is None:
        return None
    known: frozenset[bytes] = frozenset()
    if epoch >= config.epochs:  # weights that stand still give the same reward again
        widths = joint_state.past_widths(trainer)
        same = trainer.replay.all_epochs.numpy() >= config.epochs - 1
        known = frozenset(row.tobytes() for row in widths[same])
    return Screening(
        trainer.head_start.screening(config.screening),
        ensemble,
        trainer.head_start.breeder(trainer.replay),
        config.a_max,
        known,
        (0.5 + epoch * _GOLDEN) % 1,
    )
