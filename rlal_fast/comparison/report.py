"""What is left of a comparison for the reader: table.md and the pictures, beside the rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlal_fast import comparison_plots
from rlal_fast.comparison import tables
from rlal_fast.comparison.contenders import CONTENDERS, EMBEDDED, rank
from rlal_fast.comparison.results import ResultsFolder, Row
from rlal_fast.comparison.summary import BASELINE, Line, course, summarise
from rlal_fast.comparison_plots import Course
from rlal_fast.errors import InputError
from rlal_fast.run_folder import write_atomically


def write(
    folder: ResultsFolder, level: float | None = None, level_of: str = BASELINE
) -> list[Line]:
    """Writes table.md and the pictures of all finished runs; returns the table's figures.

    Raises:
        InputError: there is no finished run, none of `level_of` (random search, the default, may
            be missing: then no level is given), or a file cannot be written.
    """
    settings, rows = folder.settings(), folder.rows()
    if not rows:
        raise InputError(f"{folder.path} has no finished run yet: nothing to report")
    if level_of != BASELINE:
        check_level_of(level_of, {row.agent for row in rows})
    joint = tables.is_joint(settings)
    lines = summarise(rows, joint, level, level_of)
    with folder.writing():
        table = tables.markdown(settings, lines, level, level_of)
        write_atomically(folder.path / "table.md", table.encode())
        _write_pictures(folder.path, settings, rows, joint)
    return lines


def check_level_of(agent: str, there: Collection[str]) -> None:
    """Raises InputError unless `agent`, whose reward is to be the level, is one of `there`."""
    if agent not in there:
        raise InputError(
            f"the level is to be {agent}'s reward, which is not compared: level-of must be one of "
            f"{', '.join(sorted(there, key=rank))}"
        )


def _write_pictures(
    folder: Path, settings: Mapping[str, Any], rows: Sequence[Row], joint: bool
) -> None:
    title = tables.heading(settings)
    label = "best reward (under each epoch's weights)" if joint else "best reward so far"
    agents = courses(rows, joint)
    pictures = {"best-reward": partial(comparison_plots.by_evaluations, agents, title, label)}
    epochs = courses(rows, joint, by_epochs=True)
    for base in dict.fromkeys(c.agent.removesuffix(EMBEDDED) for c in epochs):
        own = [c for c in epochs if c.agent.removesuffix(EMBEDDED) == base]
        if len({c.episodes_per_epoch for c in own}) > 1:
            pictures[f"epochs-{base}"] = partial(
                comparison_plots.by_epochs, own, f"{base}. {title}", label
            )
    for name, draw in pictures.items():
        for kind, content in comparison_plots.files(draw).items():
            write_atomically(folder / f"{name}.{kind}", content)


def courses(rows: Sequence[Row], joint: bool, *, by_epochs: bool = False) -> list[Course]:
    """Best reward so far of each contender at each fraction and P, in the order of the table."""
    groups: dict[tuple[str, float, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (rank(row.agent), row.agent, row.seed)):
        key = row.agent, row.pruned_flops, row.episodes_per_epoch
        groups.setdefault(key, []).append(row)
    found = []
    for key, own in groups.items():
        points = [_by_epoch(row) if by_epochs else course(row, joint) for row in own]
        at = tuple(place for place, _ in points[0])
        values = tuple(tuple(value for _, value in one) for one in points)
        constant = key[0] in CONTENDERS and CONTENDERS[key[0]].constant
        found.append(Course(*key, at, values, constant))
    return found


def _by_epoch(row: Row) -> list[tuple[int, float]]:
    """(epoch from 1, reward of the structure), for each epoch that knows one.

    While the weights stand still that is the best reward so far.
    """
    rewards = enumerate(row.structure_rewards, start=1)
    return [(epoch, reward) for epoch, reward in rewards if reward is not None]
