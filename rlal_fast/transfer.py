"""What past runs teach before a new one begins: its agent, and lessons (method.md §10).

A state means the same in any network, so the agent of one run can start another. Rewards do not:
they are taken relative to the full network's of their epoch, then centred and divided by their
spread within the run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlal_fast.agents import SAC
from rlal_fast.errors import InputError
from rlal_fast.flops import Budget
from rlal_fast.history.past_run import PastRun
from rlal_fast.replay import Episodes, ReplayBuffer
from rlal_fast.walk import STATIC_FEATURES, Walk

_NETWORKS = ("actor", "critics", "target_critics")
_CHUNK = 10  # steps on one run's episodes before the next one's turn


@dataclass(frozen=True)
class HistoryConfig:
    """What a joint run learns from the past runs that it is given.

    Raises:
        InputError: a value is outside its range.
    """

    # The agent of the past run that fits best starts the new one, and the children of its best
    # episodes are among the first candidates.
    transfer: bool = True
    augmented: bool = False  # that agent is first trained on the episodes of all of them
    assistant: bool = False  # an assistant screens candidates; without past runs it starts blank
    critics_screen: bool = True  # beside the assistant, SAC's critics screen, too
    predicted_episodes: int = 0
    """Episodes per epoch that SAC learns from as if the assistant's predictions were rewards."""
    augmented_steps: int = 1500
    parents: int = 10  # best episodes of the past run whose children are candidates on trial
    candidates: int = 30
    """Episodes walked for each one that is scored, at least, while what was learned has its time:
    it ranks them better than the critics of a run that has just begun."""
    lasting: int = 100
    """Episodes after which that time is over, and an agent of the run's own, trained on all of
    them, takes the past agent's place. That one finds good structures soon and the best ones late:
    benchmarks/history.md."""
    least_baseline: float = 0.95
    """Episodes of an epoch whose full network reached less than this share of what it reached in
    the run's last epoch are left out: their rewards are of weights that were still to learn."""
    least_use: float = 0.8  # of a budget that an episode was not made for, to be taken as its own
    trial_episodes: int = 20  # after so many, half of them random, what does not help is dropped
    longest_trial: int = 100  # episodes, while rewards differ by no more than by chance

    def __post_init__(self) -> None:
        checks = {
            "predicted_episodes": self.predicted_episodes >= 0,
            "augmented_steps": self.augmented_steps >= 1,
            "parents": self.parents >= 1,
            "candidates": self.candidates >= 1,
            "lasting": self.lasting >= 1,
            "least_baseline": 0 <= self.least_baseline <= 1,
            "least_use": 0 <= self.least_use <= 1,
            "trial_episodes": self.trial_episodes >= 2,
            "longest_trial": self.longest_trial >= self.trial_episodes,
        }
        for name, valid in checks.items():
            if not valid:
                raise InputError(f"HistoryConfig.{name} = {getattr(self, name)} is out of range")


# -- which run -------------------------------------------------------------------------------------


def ranked(
    runs: Sequence[PastRun], arch: str, dataset: str, groups: int, pruned_flops: float
) -> list[PastRun]:
    """Runs, the one most like a new one first.

    What counts, in this order: the same architecture and data set (both, then one of them); the
    number of groups (its ratio); the fraction of FLOPs to prune; more episodes.
    """

    def unlike(run: PastRun) -> tuple[float, ...]:
        return (
            (run.arch != arch) + (run.dataset != dataset),
            abs(math.log(len(run.features) / groups)),
            abs(run.pruned_flops - pruned_flops),
            -len(run.rewards),
        )

    return sorted(runs, key=unlike)


def unusable(run: PastRun, agent: Any) -> str | None:
    """Why the agent of `run` cannot start `agent`, as the end of a sentence; None: it can."""
    if not isinstance(agent, SAC):
        return f"only sac can begin with a past agent, not {agent.name}"
    if run.agent_name != "sac":
        return f"its agent is {run.agent_name}, not sac"
    if run.agent_state is None:
        return "it kept no agent"
    if run.feature_names != STATIC_FEATURES:
        return "its states are of another version of rlal_fast"
    ours, theirs = agent.state_dict(), run.agent_state
    for name in _NETWORKS:
        expected, found = _sizes(ours[name]), _sizes(theirs.get(name))
        if found != expected:
            return (
                f"its {name} has layers {_layers(found)}, the new one's {_layers(expected)}: "
                "their preset or a setting of SAC differs"
            )
    return None


def start(agent: SAC, run: PastRun) -> None:
    """Gives `agent` the networks of `run`'s, which must not be `unusable`; Adam starts anew.

    z begins without weight: it comes from the run's own environment model, which starts anew, too.
    """
    assert run.agent_state is not None
    ours = copy.deepcopy(agent.state_dict())
    for name in _NETWORKS:
        ours[name] |= {k: v for k, v in run.agent_state[name].items() if k != "z_weight"}
    agent.load_state_dict(ours)
    agent.updates = 1  # its critics know something: they may screen from the first epoch on
    _forget_z(agent)


def _forget_z(agent: SAC) -> None:
    with torch.no_grad():
        for net in (agent.actor, agent.critics, agent.target_critics):
            if net.z_weight is not None:
                net.z_weight.zero_()


def _sizes(state: Any) -> dict[str, tuple[int, ...]]:
    """The sizes of a network's tensors but those of z; empty if it is none."""
    if not isinstance(state, dict):
        return {}
    return {
        name: tuple(value.shape) if isinstance(value, Tensor) else ()
        for name, value in state.items()
        if name != "z_weight"
    }


def _layers(sizes: dict[str, tuple[int, ...]]) -> str:
    return " ".join("x".join(map(str, s)) for n, s in sizes.items() if "weight" in n) or "none"


def best_ratios(run: PastRun, config: HistoryConfig, groups: int) -> NDArray[np.float64]:
    """Ratios [N, groups] of the best distinct episodes of `run`, best first.

    N is config.parents, or fewer where the run has no more. A network of another number of groups
    gets the ratios of the same relative depth.
    """
    late = _late(run, config)
    if not late.any():
        late[:] = True
    gains = np.where(late, run.rewards - run.baselines[run.epochs], -np.inf)
    rows: dict[bytes, int] = {}
    for row in np.argsort(-gains, kind="stable")[: late.sum()]:
        rows.setdefault(run.widths[row].tobytes(), int(row))
    chosen = list(rows.values())[: config.parents]
    ratios: NDArray[np.float64] = 1 - run.widths[chosen] / run.cost.full_widths
    theirs, ours = ((np.arange(n) + 0.5) / n for n in (ratios.shape[1], groups))
    return np.stack([np.interp(ours, theirs, row) for row in ratios])


# -- lessons ---------------------------------------------------------------------------------------


def lessons(
    run: PastRun, config: HistoryConfig, state: str, pruned_flops: Sequence[float] = ()
) -> Episodes | None:
    """The episodes of `run` that are worth learning from, with rewards on the common scale.

    Args:
        run: a past run.
        config: what is worth it.
        state: "profile" or "basic", as the new run's walk has it.
        pruned_flops: other budgets under which episodes that meet them, and use most of them, are
            walked as well.

    Returns:
        None if the states would mean something else, or too few episodes are left to compare.
    """
    late = _late(run, config)
    if run.feature_names != STATIC_FEATURES or late.sum() < 2:
        return None
    widths = run.widths[late].astype(np.int64)
    rewards = _standardised((run.rewards - run.baselines[run.epochs])[late])
    if rewards is None:
        return None
    parts = [_walk(run, run.pruned_flops, state).episodes(widths, rewards)]
    for fraction in dict.fromkeys(pruned_flops):
        if fraction == run.pruned_flops:
            continue
        try:
            walk = _walk(run, fraction, state)
        except InputError:  # that network cannot be pruned so far
            continue
        macs, budget = run.cost.macs(widths), walk.budget.macs
        meets = (macs <= budget) & (macs >= config.least_use * budget)
        if meets.any():
            parts.append(walk.episodes(widths[meets], rewards[meets]))
    return Episodes(*(torch.cat([getattr(p, n) for p in parts]) for n in vars(parts[0])))


def _late(run: PastRun, config: HistoryConfig) -> NDArray[np.bool_]:
    """Which episodes [N] were scored by weights that had learned nearly all they would."""
    found: NDArray[np.bool_] = (
        run.baselines[run.epochs] >= config.least_baseline * run.baselines[-1]
    )
    return found


def _standardised(rewards: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Mean 0, deviation 1; None if they are all the same."""
    spread = float(rewards.std())
    return None if spread == 0 else ((rewards - rewards.mean()) / spread).astype(np.float32)


def _walk(run: PastRun, pruned_flops: float, state: str) -> Walk:
    budget = Budget(
        run.cost,
        pruned_flops,
        a_max=run.a_max,
        min_width=run.min_width,
        round_to=run.round_to,
    )
    return Walk(run.features, budget, state)


def train(agent: SAC, pooled: Sequence[Episodes], steps: int, generator: torch.Generator) -> None:
    """Trains `agent` offline on several runs' lessons, in turns, as on a replay of its own.

    z stays without weight: of past epochs there is none.
    """
    replays = []
    for episodes in pooled:
        count, groups, size = episodes.states.shape
        replays.append(ReplayBuffer(count, groups, size))
        replays[-1].add(episodes, 0)
    z = torch.zeros(1, agent.z_size) if agent.z_size else None
    _forget_z(agent)
    for turn in range(math.ceil(steps / _CHUNK)):
        replay = replays[turn % len(replays)]
        agent.update(replay, z, min(_CHUNK, steps - turn * _CHUNK), generator)
