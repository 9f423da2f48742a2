"""Pictures of a comparison: best reward against evaluations and against epochs, SVG and PNG.

A line is a mean over seeds, its band the worst and the best of them. matplotlib is imported on
first use, without pyplot, and styled as in plots.py.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rlal_fast.plots import COLOURS, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; dashes and order tell the rest.
_PURPLE, _SKY, _GREY = "#cc79a7", "#56b4e9", "#a3a9b0"
_AGENTS = {
    "uniform": COLOURS["ink"],
    "random": _GREY,
    "evolutionary": COLOURS["green"],
    "ddpg": COLOURS["orange"],
    "sac": COLOURS["blue"],
    "sac-paper": _PURPLE,
}
# For contenders that have no colour of their own: first what nobody has, then what nobody here has.
_OTHERS = (_SKY, COLOURS["red"], *(colour for name, colour in _AGENTS.items() if name != "sac"))
_BY_P = (COLOURS["blue"], COLOURS["orange"], COLOURS["green"], COLOURS["red"], _PURPLE, _SKY)
_EMBEDDED = "-ee"
_WIDE = "random"  # others often begin as it does: it must show beside what covers it
_DASHED, _DOTTED = (0, (4, 2)), (0, (1, 1.5))
_SETTLED = 0.05  # the share of a course after which its values set the scale
_FEW = 12  # up to so many points, each gets a marker
_COLUMNS = 3  # of a legend, below each panel
_TITLE = 60  # characters of it, above each panel
_LOG_FROM = 8  # epochs of the longest course over those of the shortest: then a log axis


@dataclass(frozen=True)
class Course:
    """Best reward so far of one contender, over its seeds.

    at: evaluations or epochs, ascending; values: per seed, one best reward at each of `at`;
    constant: it knows one sub-network, whatever P is.
    """

    agent: str
    pruned_flops: float
    episodes_per_epoch: int
    at: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    constant: bool = False

    def mean(self) -> list[float]:
        return [math.fsum(column) / len(column) for column in zip(*self.values, strict=True)]

    def low(self) -> list[float]:
        return [min(column) for column in zip(*self.values, strict=True)]

    def high(self) -> list[float]:
        return [max(column) for column in zip(*self.values, strict=True)]


def by_evaluations(courses: Sequence[Course], title: str, y_label: str) -> Figure:
    """Agents against each other: a row of panels per P, a column per pruned-FLOPs fraction."""
    panels = sorted({c.episodes_per_epoch for c in courses if not c.constant} or {1})
    colours, dash = _colours(courses), _dashes(courses)
    figure, axes = _panels(title, courses, len(panels))
    for row, p in enumerate(panels):
        for column, ratio in enumerate(_ratios(courses)):
            own = [course for course in map(partial(_beside, p), courses) if course is not None]
            own = [course for course in own if course.pruned_flops == ratio]
            words = f", P = {p}" if len(panels) > 1 else ""
            _panel(axes[row][column], own, lambda c: colours[_base(c.agent)], dash)
            axes[row][column].set_title(f"{100 * ratio:.4g} % of the FLOPs pruned{words}")
            axes[row][column].set_xlabel("evaluations" if row == len(panels) - 1 else "")
        axes[row][0].set_ylabel(y_label)
    _legend(figure, axes, courses)
    return figure


def by_epochs(courses: Sequence[Course], title: str, y_label: str) -> Figure:
    """What P does to one agent: a column per pruned-FLOPs fraction, a line per P.

    Courses with the environment model are solid beside those without it, which are dashed.
    """
    from matplotlib.ticker import MaxNLocator

    ps = sorted({course.episodes_per_epoch for course in courses})
    colours = {p: _BY_P[number % len(_BY_P)] for number, p in enumerate(ps)}
    figure, axes = _panels(title, courses, 1)
    dash = _dashes(courses)
    longest = [len(course.at) for course in courses]
    for panel, ratio in zip(axes[0], _ratios(courses), strict=True):
        own = [course for course in courses if course.pruned_flops == ratio]
        own.sort(key=lambda course: course.episodes_per_epoch)  # a legend is filled by columns
        _panel(panel, own, lambda c: colours[c.episodes_per_epoch], dash, name=_name_by_p)
        panel.set_title(f"{100 * ratio:.4g} % of the FLOPs pruned")
        if max(longest) >= _LOG_FROM * min(longest):
            _log_axis(panel)
        else:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.set_xlabel("epochs")
    axes[0][0].set_ylabel(y_label)
    _legend(figure, axes, courses, columns=len(ps))
    return figure


def files(draw: Callable[[], Figure]) -> dict[str, bytes]:
    """The picture as {"svg": ..., "png": ...}, in the house style, the same bytes each time."""
    import matplotlib

    found = {}
    with matplotlib.rc_context(style()):
        figure = draw()
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=120, metadata=metadata)
            found[kind] = file.getvalue()
    return found


def _panels(title: str, courses: Sequence[Course], rows: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    columns = len(_ratios(courses))
    figure = Figure(
        figsize=(max(6.4, 4.4 * columns + 0.4), 3.4 * rows + 1.0),
        layout="constrained",
        facecolor="white",
    )
    lines = textwrap.fill(title, max(_TITLE, _TITLE * columns))
    figure.suptitle(lines, fontsize=11, fontweight="bold")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _panel(
    axes: Axes,
    courses: Sequence[Course],
    colour: Callable[[Course], str],
    dash: Callable[[Course], Any],
    name: Callable[[Course], str] = lambda course: course.agent,
) -> None:
    for course in courses:
        look: dict[str, Any] = {"color": colour(course), "linestyle": dash(course)}
        if course.agent == _WIDE:
            look["linewidth"] = 3.0
        if len(course.at) == 1 and course.constant:
            axes.axhline(course.mean()[0], label=name(course), linewidth=1.2, **look)
            continue
        if len(course.at) <= _FEW:
            look |= {"marker": "o", "markersize": 3}
        shown = _corners(course)
        axes.plot(shown.at, shown.mean(), label=name(course), **look)
        if len(course.values) > 1:
            band = {"color": look["color"], "alpha": 0.1, "linewidth": 0}
            axes.fill_between(shown.at, shown.low(), shown.high(), **band)
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}%")
    axes.margins(x=0.02)
    _scale(axes, courses)


def _corners(course: Course) -> Course:
    """The course without the points between two equal ones: most of the file's size is these."""
    columns = list(zip(*course.values, strict=True))
    inner = range(1, len(columns) - 1)
    flat = {i for i in inner if columns[i - 1] == columns[i] == columns[i + 1]}
    if len(columns) <= _FEW:
        flat = set()  # each has its marker
    kept = [i for i in range(len(columns)) if i not in flat]
    values = tuple(tuple(one[i] for i in kept) for one in course.values)
    return replace(course, at=tuple(course.at[i] for i in kept), values=values)


def _scale(axes: Axes, courses: Sequence[Course]) -> None:
    """The first few random sub-networks are far below all that matters: they run off the panel."""
    lows = [course.low()[int(_SETTLED * len(course.at))] for course in courses]
    highs = [max(course.high()) for course in courses]
    if not lows:
        return
    bottom, top = min(lows), max(highs)
    margin = 0.05 * (top - bottom) or 0.01
    axes.set_ylim(bottom - margin, top + margin)


def _log_axis(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def _legend(
    figure: Figure, axes: Any, courses: Sequence[Course], columns: int | None = None
) -> None:
    """One for all panels, below them, where it hides nothing."""
    found: dict[str, Any] = {}
    for panel in axes.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    counts = {len(course.values) for course in courses if not course.constant} or {1}
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts))
    band = "band: worst and best of the seeds" if max(counts) > 1 else None
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=min(len(found), columns or _COLUMNS * axes.shape[1]),
        title=f"mean of {seeds} seeds, {band}" if band else None,
        title_fontsize=8,
        handlelength=2.6,
    )


def _colours(courses: Sequence[Course]) -> dict[str, str]:
    """One for each contender; with and without the environment model it is the same."""
    bases = list(dict.fromkeys(_base(course.agent) for course in courses))
    unknown = [base for base in bases if base not in _AGENTS]
    free = [c for c in _OTHERS if c not in {_AGENTS.get(base) for base in bases}]
    spare = {base: free[number % len(free)] for number, base in enumerate(unknown)}
    return {base: _AGENTS.get(base) or spare[base] for base in bases}


def _base(agent: str) -> str:
    return agent.removesuffix(_EMBEDDED)


def _beside(p: int, course: Course) -> Course | None:
    """The course in the panel of `p`; None if it is of another P.

    One sub-network, scored once an epoch, stands where the others have scored p of them.
    """
    if course.constant:
        return replace(course, at=tuple(p * at for at in course.at))
    return course if course.episodes_per_epoch == p else None


def _dashes(courses: Sequence[Course]) -> Callable[[Course], Any]:
    """Dashed are those whose twin has the environment model; dotted is what stays as it is."""
    names = {course.agent for course in courses}

    def dash(course: Course) -> Any:
        if course.constant:
            return _DOTTED
        return _DASHED if course.agent + _EMBEDDED in names else "-"

    return dash


def _name_by_p(course: Course) -> str:
    return f"{course.agent}, P = {course.episodes_per_epoch}"


def _ratios(courses: Sequence[Course]) -> list[float]:
    return sorted({course.pruned_flops for course in courses})
