"""What the command line shows: progress while it runs, a summary at the end.

On a terminal a bar and one line per epoch; elsewhere plain lines; with --quiet nothing but the
result.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rlal_fast.report import Report

Shown = TypeVar("Shown", bound="BarDisplay")


class BarDisplay:
    """Lines, and on a terminal a bar. A context manager: the bar lives inside it.

    Args:
        quiet: neither of them.
        description: what stands before the bar at first.
    """

    def __init__(self, quiet: bool, description: str = "") -> None:
        self.console = plain_console(quiet)
        self._bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self._bar = progress_bar(self.console)
            self._task = self._bar.add_task(description, total=None)

    def __enter__(self: Shown) -> Shown:
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


class Display(BarDisplay):
    """Shows a run.

    Args:
        quiet: show nothing while it runs.
        epochs: joint epochs in all.
        finetune_epochs: epochs of fine-tuning in all.
    """

    def __init__(self, quiet: bool, epochs: int, finetune_epochs: int) -> None:
        super().__init__(quiet, "batches")
        self._epochs = {"joint": epochs, "finetune": finetune_epochs}

    def on_batch(self, done: int, total: int) -> None:
        """Batches of the running epoch."""
        if self._bar:
            self._bar.update(self._task, description="training", completed=done, total=total)

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """One line for a finished epoch."""
        total = self._epochs[record["stage"]]
        words = [f"{record.get('phase', 'finetune'):<8} epoch {record['epoch'] + 1:>3}/{total}"]
        if record["loss"] is not None:
            words.append(f"loss {record['loss']:.3f}  train {record['train_accuracy']:.1%}")
        words.append(f"reward split {record['reward_split_accuracy']:.1%}")
        if record.get("rewards"):
            words.append(f"episodes best {max(record['rewards']):.1%}")
        if record.get("structure_reward") is not None:
            words.append(f"structure {record['structure_reward']:.1%}")
        words.append(f"{sum(record['seconds'].values()):.1f} s")
        self.console.print("  ".join(words))


def plain_console(quiet: bool) -> Console:
    """No markup, no emoji: a path with [..] or :..: in it is shown as it is."""
    return Console(quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)


def progress_bar(console: Console) -> Progress:
    """A bar that is gone when it ends."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def summary(report: Report) -> Table:
    """The headline figures of a report."""
    table = Table(title=f"{report.arch} on {report.dataset}, seed {report.seed}")
    for heading in ("", "full", "pruned", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row(
        "test accuracy",
        f"{report.baseline_accuracy:.2%}",
        f"{report.pruned_accuracy:.2%}",
        f"{100 * report.delta:+.2f} points",
    )
    table.add_row(
        "MACs per image", f"{report.macs_full:,}", f"{report.macs:,}", f"-{report.pruned_flops:.2%}"
    )
    fewer = 1 - report.params / report.params_full
    table.add_row("parameters", f"{report.params_full:,}", f"{report.params:,}", f"-{fewer:.2%}")
    for batch, full in report.latency_ms["full"].items():
        pruned = report.latency_ms["pruned"][batch]
        table.add_row(
            f"latency, batch {batch}", f"{full:.2f} ms", f"{pruned:.2f} ms", f"{full / pruned:.2f}x"
        )
    return table
