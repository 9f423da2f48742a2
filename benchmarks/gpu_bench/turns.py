"""Contenders that take turns under one clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpu_bench.clocks import Budget


@dataclass(eq=False)
class Contender:
    """Something that is timed.

    Attributes:
        name: for messages.
        measure: does its work in a round and gives the seconds that count.
        expected: wall seconds of a turn, from what was seen before the clock started.
        most: turns at most.
        seconds: what `measure` gave.
        left_out: why it had no turn, or fewer than it might have had.
    """

    name: str
    measure: Callable[[int], float]
    expected: float
    most: int
    seconds: list[float] = field(default_factory=list)
    left_out: str = ""
    error: Exception | None = None  # that ended its turns


def take_turns(contenders: Sequence[Contender], budget: Budget) -> None:
    """Interleaved, so that a slow moment slows all alike.

    Everyone has a first turn if time allows, the cheap ones first; after that, whoever has used
    up three times an equal share of the budget waits.
    """
    share = 3 * budget.left / max(1, len(contenders))
    spent = dict.fromkeys(contenders, 0.0)
    waiting = sorted(contenders, key=lambda contender: contender.expected)
    number = 0
    while waiting:
        for contender in list(waiting):
            late = contender.expected > budget.left
            greedy = number > 0 and spent[contender] + contender.expected > share
            if late or greedy or number >= contender.most:
                waiting.remove(contender)
                _say_why(contender, budget, number)
                continue
            start = time.perf_counter()
            try:
                contender.seconds.append(contender.measure(number))
            except Exception as error:
                contender.error, contender.left_out = error, f"failed in turn {number + 1}"
                return  # what follows a failed kernel may be wrong
            contender.expected = time.perf_counter() - start
            spent[contender] += contender.expected
        number += 1


def _say_why(contender: Contender, budget: Budget, turns: int) -> None:
    if not turns:
        contender.left_out = (
            f"a turn takes about {contender.expected:.1f} s, {budget.left:.1f} s were left"
        )
    elif turns < contender.most:
        contender.left_out = f"{turns} of {contender.most} turns fitted into the time"
