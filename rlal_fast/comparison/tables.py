"""The table of a comparison, in Markdown and for a terminal: the same cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table

from rlal_fast.comparison.summary import BASELINE, Line

_RL_SHARE = "of them for the search"
_TUNED = {"fine-tuned", "full network"}  # where structures are fine-tuned
_HEADINGS = (
    "agent",
    "P",
    "evaluations",
    "seeds",
    "best reward",
    "of each seed",
    "test accuracy",
    "fine-tuned",
    "full network",
    "mean of all episodes",
    "evaluations to the level",
    "until the mean is there",
    "seconds",
    _RL_SHARE,
)
_LEFT = {"agent", "of each seed"}


def is_joint(settings: Mapping[str, Any]) -> bool:
    """Whether a comparison's weights were trained while its agents searched."""
    return settings["evaluations"] is None


def _is_tuned(settings: Mapping[str, Any]) -> bool:
    return is_joint(settings) or bool(settings.get("finetune_epochs"))


def heading(settings: Mapping[str, Any]) -> str:
    """What was compared, in one line."""
    if is_joint(settings):
        how = f"{settings['epochs']} epochs of joint training"
    else:
        how = f"{settings['evaluations']} evaluations on weights that stand still"
    count = settings["bn_recalibrate"]
    statistics = f" (batch norm of {count})" if count else ""
    return (
        f"{settings['arch']} on {settings['dataset']}: {how}, "
        f"{settings['reward_images']} reward images{statistics}"
    )


def markdown(
    settings: Mapping[str, Any],
    lines: Sequence[Line],
    level: float | None,
    level_of: str = BASELINE,
) -> str:
    """The whole of table.md."""
    parts = [f"# {heading(settings)}", _legend(level, level_of, settings)]
    for title, own in _sections(lines):
        names = _headings(settings)
        marks = ["---" if name in _LEFT else "---:" for name in names]
        rows = [names, marks, *(_cells(line, names) for line in own)]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        parts += [f"## {title}", _levels(own), table]
    return "\n\n".join(part for part in parts if part) + "\n"


def rich_tables(settings: Mapping[str, Any], lines: Sequence[Line]) -> list[Table]:
    """One table per pruned-FLOPs fraction."""
    tables = []
    for title, own in _sections(lines):
        table = Table(title=f"{heading(settings)}; {title}", caption=_levels(own) or None)
        names = _headings(settings)
        for name in names:
            table.add_column(name, justify="left" if name in _LEFT else "right")
        for line in own:
            table.add_row(*_cells(line, names))
        tables.append(table)
    return tables


def _headings(settings: Mapping[str, Any]) -> list[str]:
    left_out = set() if is_joint(settings) else {_RL_SHARE}  # nothing but the search takes time
    if not _is_tuned(settings):
        left_out |= _TUNED
    return [name for name in _HEADINGS if name not in left_out]


def _sections(lines: Sequence[Line]) -> Iterator[tuple[str, list[Line]]]:
    for ratio, own in groupby(lines, key=lambda line: line.pruned_flops):
        yield f"{_percent(ratio, 4)} % of the FLOPs pruned", list(own)


def _legend(level: float | None, level_of: str, settings: Mapping[str, Any]) -> str:
    whose = "random search" if level_of == BASELINE else level_of
    said = f"the mean best reward of {whose}" if level is None else f"{_percent(level)} %"
    count = settings["bn_recalibrate"]
    statistics = f", with batch norm statistics of {count} training images" if count else ""
    words = (
        "Accuracies in %, mean ± standard deviation over seeds. Best reward: on the reward split"
        f"{statistics}; test accuracy: of the same structure as cut, not fine-tuned, by which "
        f"nothing was chosen. P: episodes per epoch. The level: {said}; its evaluations are the "
        "mean of the seeds that reach it. Until the mean is there: evaluations until the mean of "
        "all seeds' best rewards is at it"
    )
    words += "." if level is not None else f", and those of {whose} as a multiple of them."
    if _is_tuned(settings):
        words += (
            " Fine-tuned, full network: test accuracies of the fine-tuned structure and of the "
            "network it was cut from. Seconds: without fine-tuning"
        )
        search = "; for the search: to score sub-networks and train the agent"
        words += f"{search if is_joint(settings) else ''}."
    return words


def _levels(own: Sequence[Line]) -> str:
    """The levels of one section in a line; empty where there is none."""
    found = {line.level for line in own if line.level is not None}
    if len(found) < 2:
        return "".join(f"Level: {_percent(level)} %." for level in found)
    by_p = {_p(line): _percent(line.level) for line in own if line.level is not None}
    return "Level: " + ", ".join(f"{level} % at P = {p}" for p, level in by_p.items()) + "."


def _cells(line: Line, headings: Sequence[str]) -> list[str]:
    seeds = len(line.bests)
    each = ", ".join(f"{seed}: {_percent(best)}" for seed, best in line.bests.items())
    cells = [
        line.agent,
        _p(line),
        str(line.evaluations),
        str(seeds),
        _spread(line.best_mean, line.best_deviation),
        each,
        _spread(line.test_mean, line.test_deviation),
        _spread(*line.finetuned) if line.finetuned else "–",
        _spread(*line.full) if line.full else "–",
        _percent(line.mean_of_all),
        _to_level(line, seeds),
        _mean_to_level(line),
        f"{line.seconds:.1f}",
        f"{100 * line.rl_share:.1f} %",
    ]
    return [cell for name, cell in zip(_HEADINGS, cells, strict=True) if name in headings]


def _p(line: Line) -> str:
    return str(line.episodes_per_epoch)


def _to_level(line: Line, seeds: int) -> str:
    if line.level is None:
        return "–"
    if line.evaluations_to_level is None:
        return f"never (0 of {seeds})"
    return f"{line.evaluations_to_level:.0f} ({line.reached} of {seeds})"


def _mean_to_level(line: Line) -> str:
    if line.level is None:
        return "–"
    if line.mean_to_level is None:
        return "never"
    return f"{line.mean_to_level}" + (f" ({line.speed_up:.1f}x)" if line.speed_up else "")


def _spread(mean: float, deviation: float | None) -> str:
    return _percent(mean) + ("" if deviation is None else f" ± {_percent(deviation)}")


def _percent(value: float | None, digits: int = 0) -> str:
    """In percent: two decimals, or as few as so many significant digits need."""
    if value is None:
        return "–"
    return f"{100 * value:.{digits}g}" if digits else f"{100 * value:.2f}"
