"""`rlal history`: the past runs that new ones can learn from, as tables and files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from rlal_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from rlal_fast.head_start import HeadStart
    from rlal_fast.history.past_run import PastRun
    from rlal_fast.history.store import HistoryStore, RunSummary
    from rlal_fast.trainer import JointTrainer

_BEST = 5  # episodes shown
_CURVE = 12  # rows of the reward curve
_RECALLED = 12  # runs that a new one is given to choose from
_NO_TERMINAL = 200  # columns, where nothing says how many there are: a table is not to be cut


@click.group()
def history() -> None:
    """Past runs, which new ones can learn from.

    They lie in one file: history.db in your data directory, or what RLAL_FAST_HISTORY names.
    """


@history.command("list")
def list_() -> None:
    """List the stored runs, newest first."""
    store = _store()
    runs = store.runs()
    if not runs:
        click.echo(f"no past runs in {store.path}: `rlal run` adds each that it finishes")
        return
    console = _console()
    console.print(_listed(runs))
    console.print(f"{len(runs)} run{'s' * (len(runs) > 1)} in {store.path}", soft_wrap=True)


@history.command()
@click.argument("run_id", metavar="ID")
def show(run_id: str) -> None:
    """Show a run: settings, best episodes, rewards. The beginning of an ID is enough."""
    run = _store().get(run_id)
    console = _console()
    for table in (_settings(run), _best_episodes(run), _curve(run)):
        console.print(table)
        console.print()


@history.command()
@click.argument("run_ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All runs.")
@click.option("--to", type=click.Path(), required=True, metavar="FILE", help="A new file.")
def export(run_ids: tuple[str, ...], everything: bool, to: str) -> None:
    """Write runs to a file, which `rlal history import` reads elsewhere."""
    if everything == bool(run_ids):
        raise InputError("say which runs: either IDs or --all")
    store = _store()
    written = store.export([run.id for run in store.runs()] if everything else run_ids, to)
    click.echo(f"{_counted(len(written))} written to {to}")


@history.command("import")
@click.argument("file", type=click.Path())
def import_(file: str) -> None:
    """Take in the runs of an exported file that are not here yet."""
    store = _store()
    new = store.import_(file)
    click.echo(f"{_counted(len(new))} taken into {store.path}")


@history.command()
@click.argument("run_ids", metavar="[ID]...", nargs=-1)
@click.option("--keep", type=int, help="Only so many of the newest stay.")
@click.option("--older-than", type=float, metavar="DAYS", help="Those stored longer ago go.")
@click.option("--max-mib", type=float, help="The oldest go until the rest takes at most this.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(
    run_ids: tuple[str, ...],
    keep: int | None,
    older_than: float | None,
    max_mib: float | None,
    yes: bool,
) -> None:
    """Remove runs for good: the named ones, or those that a rule is against."""
    rules = (keep, older_than, max_mib)
    if bool(run_ids) == any(rule is not None for rule in rules):
        raise InputError("say what goes: either IDs, or --keep, --older-than and --max-mib")
    store = _store()
    going = store.find(run_ids) if run_ids else store.prunable(*rules)
    if not going:
        click.echo(f"nothing to remove from {store.path}")
        return
    if not yes:
        _console().print(_listed(going))
        _confirm(f"Remove {_counted(len(going))} from {store.path}?")
    # those that were shown: runs that others add meanwhile do not change what the answer was about
    removed = store.remove(run.id for run in going)
    click.echo(f"{_counted(len(removed))} removed from {store.path}")


def recall(choice: str, arch: str, dataset: str) -> list[PastRun]:
    """The past runs that a new one may learn from: none, one, or the newest that are like it.

    Args:
        choice: "off", "auto", or the id of a run.
        arch, dataset: of the new run.
    """
    if choice == "off":
        return []
    store = _store()
    if choice != "auto":
        return [store.get(choice)]

    def unlike(run: RunSummary) -> int:
        return (run.arch != arch) + (run.dataset != dataset)

    likely = sorted(store.runs(), key=unlike)[:_RECALLED]  # the newest first among equals
    return [store.get(run.id) for run in likely]


def check_learned(choice: str, learned: HeadStart) -> None:
    """Refuses a run that was asked for by name and cannot teach what it was asked for."""
    if choice not in ("off", "auto") and (learned.refused or not learned.given):
        reason = learned.refused or "nothing is to be learned from it, or its episodes teach none"
        raise InputError(f"cannot learn from the run {choice}: {reason}")


def remember(trainer: JointTrainer) -> str | None:
    """Stores a finished run and returns its id; None after a line on stderr that it did not work.

    The run's own results are written by then, and stand.
    """
    from rlal_fast import history_record

    try:
        return _store().add(history_record.past_run(trainer))
    except (InputError, OSError) as error:
        click.echo(f"the history does not have this run: {' '.join(str(error).split())}", err=True)
        return None


def _store() -> HistoryStore:
    from rlal_fast.history.store import HistoryStore

    return HistoryStore()


def _confirm(question: str) -> None:
    try:
        sure = click.confirm(question)
    except click.Abort:  # nobody there to answer, or Ctrl-C
        raise InputError("nothing was removed: answer y, or give --yes") from None
    if not sure:
        raise InputError("nothing was removed: it was not confirmed")


def _counted(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


# -- tables ----------------------------------------------------------------------------------------


def _console() -> Console:
    from rich.console import Console

    # no markup, no emoji: a name with [..] or :..: in it is shown as it is
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _NO_TERMINAL
    return console


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Any:
    """Columns of words, which fold where it is narrow, then columns of numbers."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=SIMPLE)
    table.show_edge = table.pad_edge = False
    table.padding = (0, 1, 0, 0)
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _listed(runs: Sequence[RunSummary]) -> Any:
    words = ("id", "created, UTC", "network", "data", "agent")
    numbers = ("pruned", "episodes", "best", "KiB")
    table = _table("", words, numbers)
    table.columns[0].no_wrap = True  # it is what the other commands are given
    table.columns[1].min_width = 10  # folds between date and time
    table.padding = (0, 0, 0, 0)  # 80 columns are not many
    for run in runs:
        table.add_row(
            run.id,
            run.created[:16].replace("T", " "),
            run.arch,
            run.dataset,
            run.agent_name,
            f"{run.pruned_flops:.0%}",
            f"{run.episodes:,}",
            f"{run.best_reward:.2%}",
            f"{math.ceil(run.bytes / 1024):,}",
        )
    return table


def _settings(run: PastRun) -> Any:
    table = _table(f"run {run.id}", ("", " "), ())
    table.show_header = False
    kept = "kept" if run.agent_state is not None else "not kept"
    for name, value in (
        ("created", f"{run.created[:19].replace('T', ' ')} UTC by rlal_fast {run.version}"),
        ("network", f"{run.arch}, {len(run.cost.full_widths)} groups ({run.groups})"),
        ("data", f"{run.dataset}, {run.reward_images:,} images for rewards"),
        ("pruned FLOPs", f"{run.pruned_flops:.2%}, as asked"),
        ("widths", f"a_max {run.a_max:g}, at least {run.min_width}, multiples of {run.round_to}"),
        ("importance", run.importance),
        ("seed", str(run.seed)),
        ("agent", f"{run.agent_name}, its state is {kept}"),
        ("episodes", f"{len(run.rewards):,} in {len(run.baselines)} epochs"),
    ):
        table.add_row(name, value)
    return table


def _best_episodes(run: PastRun) -> Any:
    """The best different ones, the newest of equals."""
    import numpy as np

    order = np.lexsort((-np.arange(len(run.rewards)), -run.rewards))
    _, first = np.unique(run.widths[order], axis=0, return_index=True)
    best = order[np.sort(first)[:_BEST]]
    table = _table("best episodes", ("epoch", "reward", "pruned", "widths"), ())
    full = run.cost.full_widths
    pruned = 1 - run.cost.macs(run.widths[best]) / int(run.cost.macs(full))
    for episode, share in zip(best, pruned, strict=True):
        widths = " ".join(map(str, run.widths[episode]))
        table.add_row(
            str(run.epochs[episode] + 1), f"{run.rewards[episode]:.2%}", f"{share:.2%}", widths
        )
    table.add_row("full", "", "", " ".join(map(str, full)))
    return table


def _curve(run: PastRun) -> Any:
    """Rewards, epochs taken together where they are many."""
    epochs, span = len(run.baselines), math.ceil(len(run.baselines) / _CURVE)
    numbers = ("episodes", "best", "mean", "full network")
    table = _table("rewards", ("epochs" if span > 1 else "epoch",), numbers)
    for start in range(0, epochs, span):
        end = min(start + span, epochs)
        rewards = run.rewards[(start <= run.epochs) & (run.epochs < end)]
        best, mean = (f"{rewards.max():.2%}", f"{rewards.mean():.2%}") if rewards.size else ("", "")
        table.add_row(
            str(end) if end == start + 1 else f"{start + 1}-{end}",
            f"{len(rewards):,}",
            best,
            mean,
            f"{run.baselines[start:end].mean():.2%}",
        )
    return table
