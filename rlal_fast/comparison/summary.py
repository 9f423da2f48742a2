"""Rows -> the figures of a comparison's table, and the courses of its pictures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from rlal_fast.comparison.contenders import CONTENDERS, rank
from rlal_fast.comparison.results import Row

_SAME = 1e-9  # a mean of equal numbers may end in another last bit
BASELINE = "random"  # whose mean best reward is the level by default


@dataclass(frozen=True)
class Line:
    """One contender at one pruned-FLOPs fraction and P, over its seeds.

    Deviations are those of a sample, None for a single seed. `level` is the reward that counts as
    reached, None where nothing sets it; evaluations_to_level: mean over the `reached` seeds that
    got there, None if none did. Seeds that never do make that mean look good; mean_to_level counts
    them: the evaluations until the mean of all seeds' best rewards so far is at the level, None if
    it never is. speed_up: how many times as many the contender takes whose level it is, None where
    one of them never arrives.
    """

    agent: str
    pruned_flops: float
    episodes_per_epoch: int
    bests: Mapping[int, float]  # per seed
    best_mean: float
    best_deviation: float | None
    test_mean: float
    test_deviation: float | None
    finetuned: tuple[float, float | None] | None  # the same structures' after fine-tuning
    full: tuple[float, float | None] | None  # and the full networks'
    mean_of_all: float  # of every episode's reward
    level: float | None
    reached: int
    evaluations_to_level: float | None
    mean_to_level: int | None
    speed_up: float | None
    evaluations: int  # of one run
    seconds: float  # of one run, mean
    rl_share: float  # of them that episodes and agent took, in 0..1


def course(row: Row, joint: bool) -> list[tuple[int, float]]:
    """(evaluations so far, best reward so far), ascending.

    While weights move, an old reward says nothing of the structure's worth now: the best reward is
    then that of the chosen structure under each epoch's weights, once an epoch.
    """
    if joint:
        counts = accumulate(len(rewards) for rewards in row.rewards)
        return [
            (count, reward)
            for count, reward in zip(counts, row.structure_rewards, strict=True)
            if reward is not None
        ]
    flat = [reward for rewards in row.rewards for reward in rewards]
    return list(enumerate(accumulate(flat, max), start=1))


def evaluations_to(level: float, course: Sequence[tuple[int, float]]) -> int | None:
    """Evaluations until the course is at `level` for the first time; None if it never is."""
    return next((count for count, reward in course if reward >= level - _SAME), None)


def mean_course(rows: Sequence[Row], joint: bool) -> list[tuple[int, float]]:
    """The mean over rows of their courses, at the evaluations that all of them know."""
    known = [dict(course(row, joint)) for row in rows]
    counts = set.intersection(*map(set, known))
    return [(count, statistics.fmean(one[count] for one in known)) for count in sorted(counts)]


def levels(
    rows: Sequence[Row], joint: bool, agent: str = BASELINE
) -> dict[tuple[float, int], float]:
    """The level of each (pruned_flops, P): the mean best reward of `agent`.

    For random search over all P where the weights stand still, as they do not change it; in joint
    training runs of another P have another number of evaluations. One that knows a single
    sub-network gives the level to each P.
    """
    found: dict[tuple[float, int], float] = {}
    constant = agent in CONTENDERS and CONTENDERS[agent].constant
    own_p = (joint or agent != BASELINE) and not constant
    reference = [row for row in rows if row.agent == agent]
    for row in rows:
        key = row.pruned_flops, row.episodes_per_epoch
        bests = [
            other.best_reward
            for other in reference
            if other.pruned_flops == row.pruned_flops
            and (not own_p or other.episodes_per_epoch == row.episodes_per_epoch)
        ]
        if bests:
            found[key] = statistics.fmean(bests)
    return found


def summarise(
    rows: Sequence[Row], joint: bool, level: float | None = None, level_of: str = BASELINE
) -> list[Line]:
    """One line per contender, by pruned_flops, P and the contenders' order.

    Args:
        rows: finished runs.
        joint: whether weights were trained while agents searched.
        level: the reward that counts as reached; None: see `levels`.
        level_of: the contender whose mean best reward it is then.
    """
    groups: dict[tuple[float, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.pruned_flops, row.episodes_per_epoch, row.agent), []).append(row)
    by_default = levels(rows, joint, level_of)
    lines = []
    for key in sorted(groups, key=lambda key: (key[0], key[1], rank(key[2]), key[2])):
        found = by_default.get(key[:2]) if level is None else level
        lines.append(_line(sorted(groups[key], key=lambda row: row.seed), joint, found))
    return [_beside(line, lines, level_of) for line in lines]


def _beside(line: Line, lines: Sequence[Line], level_of: str) -> Line:
    """`line` with its speed-up."""
    for other in lines:
        same = other.episodes_per_epoch == line.episodes_per_epoch and other.agent == level_of
        same = same and other.pruned_flops == line.pruned_flops
        if same and other.mean_to_level and line.mean_to_level:
            return replace(line, speed_up=other.mean_to_level / line.mean_to_level)
    return line


def _line(rows: Sequence[Row], joint: bool, level: float | None) -> Line:
    first = rows[0]
    bests, tests = [row.best_reward for row in rows], [row.test_accuracy for row in rows]
    reached: list[int] = []
    mean_to_level = None
    if level is not None:
        mean_to_level = evaluations_to(level, mean_course(rows, joint))
        counts = [evaluations_to(level, course(row, joint)) for row in rows]
        reached = [count for count in counts if count is not None]
    return Line(
        first.agent,
        first.pruned_flops,
        first.episodes_per_epoch,
        bests={row.seed: row.best_reward for row in rows},
        best_mean=statistics.fmean(bests),
        best_deviation=statistics.stdev(bests) if len(rows) > 1 else None,
        test_mean=statistics.fmean(tests),
        test_deviation=statistics.stdev(tests) if len(rows) > 1 else None,
        finetuned=_spread_of(row.finetuned_test_accuracy for row in rows),
        full=_spread_of(row.full_test_accuracy for row in rows),
        mean_of_all=statistics.fmean(r for row in rows for rs in row.rewards for r in rs),
        level=level,
        reached=len(reached),
        evaluations_to_level=statistics.fmean(reached) if reached else None,
        mean_to_level=mean_to_level,
        speed_up=None,
        evaluations=first.evaluations,
        seconds=statistics.fmean(row.seconds["total"] for row in rows),
        rl_share=statistics.fmean(map(_rl_share, rows)),
    )


def _spread_of(values: Iterable[float | None]) -> tuple[float, float | None] | None:
    """Mean and deviation; None if a run has no value."""
    known = list(values)
    found = [value for value in known if value is not None]
    if len(found) < len(known):
        return None
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None


def _rl_share(row: Row) -> float:
    """What a run spent on its episodes and its agent, of all its time."""
    rl = row.seconds["episodes"] + row.seconds["agent"]
    return rl / max(row.seconds["total"], rl, 1e-9)
