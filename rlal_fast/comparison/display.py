"""What `rlal compare` shows: a line per finished run, a bar on a terminal, then tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlal_fast.comparison.results import Job, Row
from rlal_fast.comparison.summary import Line
from rlal_fast.comparison.tables import rich_tables
from rlal_fast.console import BarDisplay

_WIDTH = 180  # of the tables where there is no terminal: nothing is folded


class ComparisonDisplay(BarDisplay):
    """Shows a comparison.

    Args:
        quiet: show nothing but the tables.
        runs: how many the plan has.
    """

    def __init__(self, quiet: bool, runs: int) -> None:
        super().__init__(quiet)
        self._runs = runs

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
        tuned = row.finetuned_test_accuracy
        fine_tuned = "" if tuned is None else f", fine-tuned {tuned:.2%}"
        self.console.print(
            f"{finished:>{len(str(self._runs))}}/{self._runs}  {row.job}: best reward "
            f"{row.best_reward:.2%}, test {row.test_accuracy:.2%}{fine_tuned}, "
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
