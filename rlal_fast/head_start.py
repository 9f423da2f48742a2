"""HeadStart: what a joint run makes of past runs, and how it sees that they hurt (method.md §10).

What was learned elsewhere may mislead. So it is on trial first: of the first epochs' episodes, half
are chosen by it, half at random, and all are scored for real, as they would be anyway. If its own
are no better than the random ones, or its predictions do not rank the rewards, it is dropped, and
the run goes on from scratch with these episodes as its first. A past agent that helps has its time,
too: it knows where to begin, and an agent of the run's own finds more from there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlal_fast import transfer
from rlal_fast.agents import SAC, Agent, EvolutionarySearch, EvolutionConfig
from rlal_fast.assistant import Assistant
from rlal_fast.flops import Budget
from rlal_fast.history.past_run import PastRun
from rlal_fast.joint_config import JointConfig
from rlal_fast.replay import ReplayBuffer
from rlal_fast.screening import Ensemble, ScreeningConfig
from rlal_fast.seeds import derived_seed, generator

_OFF, _TRIAL, _KEPT, _DROPPED, _OVER = "off", "trial", "kept", "dropped", "over"


@dataclass(frozen=True)
class Target:
    """What is known of the new run beside its settings."""

    arch: str
    dataset: str
    budget: Budget
    reward_images: int


@dataclass
class _Evidence:
    """Rewards of the episodes on trial, and how well each epoch's were predicted.

    Weights that learn raise all rewards from epoch to epoch, so only those of one epoch are
    compared: a block is an epoch, or as many as it takes until both kinds are in it.
    """

    blocks: list[tuple[list[float], list[float]]] = field(default_factory=list)
    """Rewards of chosen and of random episodes."""
    correlations: list[float] = field(default_factory=list)

    def add(self, chosen: list[float], random: list[float]) -> None:
        """An epoch's."""
        if self.blocks and not all(self.blocks[-1]):
            self.blocks[-1][0].extend(chosen)
            self.blocks[-1][1].extend(random)
        else:
            self.blocks.append((list(chosen), list(random)))

    @property
    def whole(self) -> list[tuple[list[float], list[float]]]:
        """The blocks that have both kinds."""
        return [block for block in self.blocks if all(block)]

    @property
    def episodes(self) -> int:
        return sum(len(chosen) + len(random) for chosen, random in self.whole)

    def means(self) -> tuple[float, float]:
        """Of the chosen and of the random episodes, as if each block had as many of both."""
        weights = [len(c) * len(r) / (len(c) + len(r)) for c, r in self.whole]
        sides = [[float(np.mean(side)) for side in block] for block in self.whole]
        chosen, random = np.average(sides, axis=0, weights=weights)
        return float(chosen), float(random)

    def tells(self, images: int) -> bool:
        """Whether rewards differ by more than they would of as many other images.

        Early in joint training all sub-networks may be about as good as guessing.
        """
        rewards = [np.array(chosen + random) for chosen, random in self.whole]
        squares = sum(float(((r - r.mean()) ** 2).sum()) for r in rewards)
        variance = squares / (self.episodes - len(rewards))
        mean = float(np.concatenate(rewards).mean())
        return variance > mean * (1 - mean) / images


class HeadStart:
    """What past runs give to a new one. Without any it gives nothing.

    Args:
        run_config: the new run's settings, and in them what is learned from past ones.
        runs: the past runs; the agent comes from the one that fits best of those whose agent can.
        target: the new run.
        agent: the new run's agent, which is given what was learned.

    Attributes:
        parents: ratios [N, G] of that run's best episodes, fitted to the new budget, or None.
        source: id of the run whose agent was transferred, or None.
        refused: why the best-matching run's agent could not be, or None.
        lessons: how many runs' episodes were learned from.
        assistant: what predicts rewards beside the agent, or None.
        status: "off", "trial", "kept", "dropped", or "over" when its time is: the run's own agent
            has taken over, while an assistant goes on as one of several that screen.
        reason: why it was dropped, or None.
    """

    def __init__(
        self,
        run_config: JointConfig,
        runs: Sequence[PastRun],
        target: Target,
        agent: Agent,
    ) -> None:
        self.config, self._run_config, self._target = run_config.history, run_config, target
        self.assistant = self._blank_assistant()
        self.source: str | None = None
        self.parents: Tensor | None = None
        self.refused: str | None = None
        self.reason: str | None = None
        self.lessons = 0
        self._evidence = _Evidence()
        runs = transfer.ranked(
            runs, target.arch, target.dataset, self._groups, run_config.pruned_flops
        )
        taught = self._teach_agent(agent, runs)
        taught |= self._teach_assistant(runs)
        self.status = _TRIAL if taught else _OFF

    @property
    def _groups(self) -> int:
        return len(self._target.budget.full_widths)

    def _blank_assistant(self) -> Assistant | None:
        if not self.config.assistant:
            return None
        return Assistant(
            self._run_config.assistant, derived_seed(self._run_config.seed, "assistant")
        )

    def _teach_agent(self, agent: Agent, runs: Sequence[PastRun]) -> bool:
        config = self.config
        if not (config.transfer or config.augmented) or not runs:
            return False
        reasons = {run.id: transfer.unusable(run, agent) for run in runs}
        fitting = [run for run in runs if reasons[run.id] is None]
        self.refused = reasons[runs[0].id]
        if not fitting or not isinstance(agent, SAC):
            return False
        transfer.start(agent, fitting[0])
        self.source = fitting[0].id
        ratios = transfer.best_ratios(fitting[0], config, self._groups)
        self.parents = torch.from_numpy(self._target.budget.fitted(ratios)).float()
        if config.augmented:
            pooled = self._lessons(runs)
            if pooled:
                source = generator(self._run_config.seed, "augmented transfer")
                transfer.train(agent, pooled, config.augmented_steps, source)
        return True

    def _teach_assistant(self, runs: Sequence[PastRun]) -> bool:
        pooled = self._lessons(runs) if self.assistant is not None else []
        if not pooled or self.assistant is None:
            return False
        self.assistant.study(pooled, generator(self._run_config.seed, "assistant's lessons"))
        return True

    def _lessons(self, runs: Sequence[PastRun]) -> list[Any]:
        other = (self._run_config.pruned_flops,) if self.config.augmented else ()
        found = [transfer.lessons(run, self.config, self._run_config.state, other) for run in runs]
        lessons = [lesson for lesson in found if lesson is not None]
        self.lessons = len(lessons)
        return lessons

    @property
    def given(self) -> bool:
        """Whether past runs gave anything that is not dropped."""
        return self.status in (_TRIAL, _KEPT)

    def summary(self) -> str | None:
        """What was learned, in words for the user; None: nothing was to be."""
        parts = [] if self.source is None else [f"the agent of run {self.source}"]
        if self.lessons:
            parts.append(f"episodes of {self.lessons} run{'s' * (self.lessons > 1)}")
        return ", ".join(parts) if parts else self.refused

    # -- in the run --------------------------------------------------------------------------------

    def phase(self, phase: str) -> str:
        """The phase of an epoch: what was learned needs no random episodes, but a trial."""
        if phase == "warmup" or self.status in (_OFF, _DROPPED):
            return phase
        if self.status == _TRIAL:
            return _TRIAL
        return "policy" if phase == "random" else phase

    def ensemble(self, agent: Agent) -> Ensemble | None:
        """What predicts rewards now; None if nothing has been learned yet."""
        found: list[Ensemble] = []
        if self.assistant is not None and self.assistant.ready:
            found.append(self.assistant)
        wanted = self.config.critics_screen or not found
        if wanted and isinstance(agent, SAC) and agent.updates:
            found.append(agent)
        if not found:
            return None
        return found[0] if len(found) == 1 else _Together(found)

    def screening(self, config: ScreeningConfig) -> ScreeningConfig:
        """The run's screening, of more candidates while what was learned is of use."""
        if not self.given or config.candidates == 1:
            return config
        return replace(config, candidates=max(config.candidates, self.config.candidates))

    def breeder(self, replay: ReplayBuffer) -> EvolutionarySearch:
        """Whose children are candidates: the past run's best while on trial, then the run's own."""
        found = EvolutionarySearch(EvolutionConfig(a_max=self._run_config.a_max))
        if self.status == _TRIAL and self.parents is not None:
            found.adopt(self.parents)
        elif replay.episode_count:  # else the children are random
            found.choose_parents(replay)
        return found

    def witness(
        self,
        rewards: NDArray[np.floating],
        chosen: NDArray[np.bool_],
        predicted: Tensor | None,
    ) -> None:
        """Takes down an epoch of the trial.

        Args:
            rewards: [P].
            chosen: bool [P], whether an episode was chosen by what was learned, or is random.
            predicted: [M, P] what was predicted of them before they were scored.
        """
        self._evidence.add(rewards[chosen].tolist(), rewards[~chosen].tolist())
        if predicted is not None and len(rewards) > 1:
            self._evidence.correlations.append(
                rank_correlation(predicted.mean(0).double().numpy(), rewards)
            )

    def judge(self, episodes: int) -> bool:
        """Ends the trial if it has enough episodes, and the past agent's time.

        Args:
            episodes: of the run so far.

        Returns:
            Whether a new agent is to take over.
        """
        if self.status == _KEPT and episodes >= self.config.lasting:
            self.status = _OVER
            return self.source is not None
        seen = self._evidence
        if self.status != _TRIAL or seen.episodes < self.config.trial_episodes:
            return False
        tells = seen.tells(self._target.reward_images)
        if not tells and seen.episodes < self.config.longest_trial:
            return False
        chosen, random = seen.means()
        correlation = np.mean(seen.correlations) if seen.correlations else 1.0
        if chosen <= random:
            self.reason = (
                f"its episodes are no better than random ones: {chosen:.3f} against {random:.3f}"
            )
        elif correlation <= 0:
            self.reason = f"it does not rank the rewards: rank correlation {correlation:.2f}"
        self.status = _KEPT if self.reason is None else _DROPPED
        if self.reason is not None:
            self.assistant = self._blank_assistant()
        return self.reason is not None

    def learn(self, replay: ReplayBuffer, epoch: int) -> None:
        """Teaches the assistant what the run's own episodes were worth.

        One that is new, in place of a dropped one, takes the steps of all epochs so far.
        """
        if self.assistant is not None:
            source = generator(self._run_config.seed, "assistant", epoch)
            rounds = 1 if self.assistant.updates else len(replay.epochs)
            self.assistant.update(replay, source, rounds)

    def record(self) -> str | None:
        """For an epoch's record: the status, with the reason why something was dropped."""
        if self.status == _OFF:
            return None
        return self.status if self.reason is None else f"{self.status}: {self.reason}"

    def state_dict(self) -> dict[str, Any]:
        """All that later epochs depend on."""
        return {
            "status": self.status,
            "source": self.source,
            "reason": self.reason,
            "parents": self.parents,
            "evidence": copy.deepcopy(vars(self._evidence)),
            "assistant": self.assistant.state_dict() if self.assistant else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, bit for bit, from what `state_dict` returned; past runs are not asked again."""
        self.status, self.source, self.reason = state["status"], state["source"], state["reason"]
        self.parents = state["parents"]
        self._evidence = _Evidence(**copy.deepcopy(state["evidence"]))
        if self.assistant and state["assistant"] is not None:
            self.assistant.load_state_dict(state["assistant"])


class _Together:
    """Several ensembles as one, each with the same say however many opinions it has."""

    def __init__(self, ensembles: Sequence[Ensemble]) -> None:
        self._ensembles = ensembles

    def predict(self, states: Tensor, actions: Tensor, z: Tensor | None) -> Tensor:
        opinions = [ensemble.predict(states, actions, z) for ensemble in self._ensembles]
        most = max(len(one) for one in opinions)
        # 10 opinions beside 5: the five count twice
        return torch.cat([one[torch.arange(most) % len(one)] for one in opinions])


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's, ties at their mean rank; 0 where one of them is constant."""
    ours, theirs = _ranks(a), _ranks(b)
    if ours.std() == 0 or theirs.std() == 0:
        return 0.0
    return float(np.corrcoef(ours, theirs)[0, 1])


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return middle
