"""The table that bench_kernels.py ends with."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pytest
from machine import describe, write_result


@dataclass(frozen=True)
class Row:
    """One kernel or network.

    Attributes:
        gflops: 1e9 floating point operations a second, counted as the direct convolution's.
        spread: the same at the first and third quartile of the rounds.
        share: of the peak of fused multiply-adds that was measured beside it; 0: no such peak.
        error: largest difference from the float64 twin, relative to the largest value.
    """

    name: str
    gflops: float
    spread: tuple[float, float]
    share: float
    error: float


class Table(list[Row]):
    """The rows of a session."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--result", default="", help="name of the file under benchmarks/results")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = Table()


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    return request.config.stash[_KEY]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    rows = config.stash[_KEY]
    if not rows:
        return
    machine = describe()
    terminalreporter.section(f"one thread, {machine['rlal_fast']['isa']}, {machine['cpu']}")
    terminalreporter.line(f"{'':<44}{'GFLOP/s (quartiles)':>24}{'share of peak':>15}{'error':>10}")
    for row in rows:
        speed = f"{row.gflops:.0f} ({row.spread[0]:.0f}-{row.spread[1]:.0f})"
        share = f"{100 * row.share:.0f} %" if row.share else "no FMA"
        terminalreporter.line(f"{row.name:<44}{speed:>24}{share:>15}{row.error:>10.0e}")
    if name := config.getoption("--result"):
        write_result(name, {"rows": [asdict(row) for row in rows]})


_KEY = pytest.StashKey[Table]()
