"""Time on a device, and the time that is left."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch


@dataclass(frozen=True)
class Budget:
    """Ends at a moment of time.monotonic."""

    end: float

    @classmethod
    def of(cls, seconds: float) -> Budget:
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def part(self, share: float) -> Budget:
        """A share of what is left."""
        return Budget.of(self.left * share)


class OverTimeError(Exception):
    """A time limit passed."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OverTimeError in the main thread once the seconds are over, between Python's steps."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise OverTimeError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of one call, by the host's clock, until the device has nothing left to do."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def device_seconds(device: torch.device, work: Callable[[], object], calls: int = 1) -> float:
    """Of one of several calls in a row, by CUDA events: launches of a call hide behind the last.

    On the CPU, by the host's clock.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(calls):
        work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / calls


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and range; nothing of nothing."""
    if not values:
        return {}
    quartiles = [values[0]] * 3
    if len(values) > 1:
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
    names = ("first_quartile", "median", "third_quartile")
    of = dict(zip(names, quartiles, strict=True))
    return {**of, "min": min(values), "max": max(values)}
