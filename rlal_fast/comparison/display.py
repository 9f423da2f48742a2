"""What `rlal compare` shows: a line per finished run, a bar on a terminal, then tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.progress import Progress

from rlal_fast.comparison.results import Job, Row
from rlal_fast.comparison.summary import Line
from rlal_fast.comparison.tables import rich_tables
from rlal_fast.console import plain_console, progress_bar

_WIDTH = 180  # of the tables where there is no terminal: nothing is folded


class ComparisonDisplay:
    """Shows a comparison. A context manager: the bar lives inside it.

    Args:
        quiet: show nothing but the tables.
        runs: how many the plan has.
    """

    def __init__(self, quiet: bool, runs: int) -> None:
        self.console = plain_console(quiet)
        self._runs = runs
        self._bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self._bar = progress_bar(self.console)
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> ComparisonDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def on_decode(self, done: int, total: int) -> None:
        """Images decoded so far."""
        if self._bar:
            self._bar.update(self._task, description="reading images", completed=done, total=total)

    def on_start(self, job: Job, epochs: int) -> None:
        """A run begins."""
        if self._bar:
            self._bar.reset(self._task, description=str(job), total=epochs)

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch of the run is done."""
        if self._bar:
            self._bar.advance(self._task)

    def on_row(self, row: Row, finished: int) -> None:
        """One line for a finished run."""
        self.console.print(
            f"{finished:>{len(str(self._runs))}}/{self._runs}  {row.job}: best reward "
            f"{row.best_reward:.2%}, test {row.test_accuracy:.2%}, "
            f"{row.evaluations} evaluation{'s' * (row.evaluations > 1)}, "
            f"{row.seconds['total']:.1f} s"
        )

    def tables(self, settings: Mapping[str, Any], lines: Sequence[Line]) -> None:
        """The figures, even if quiet."""
        self.console.quiet = False
        if not self.console.is_terminal:
            self.console.width = _WIDTH
        for table in rich_tables(settings, lines):
            self.console.print(table)
