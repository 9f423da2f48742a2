"""Pictures of a run: rewards, accuracies, widths; as themed SVG for the HTML report and as one PNG.

Each `draw_*` fills one matplotlib Axes that it is given. No pyplot, no global state: the house
style is set inside `rc_context` and gone afterwards. matplotlib is imported on first use.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart with any colour vision. In the SVG each becomes the CSS
# variable --plot-<name>, which the page sets for its light and dark theme: so none occurs twice.
COLOURS = {
    "ink": "#24292f",
    "faint": "#d7dbe0",
    "blue": "#0072b2",
    "orange": "#e69f00",
    "red": "#d55e00",
    "green": "#009e73",
    "track": "#e6e9ed",
    "warmup": "#e9eaec",
    "random": "#fbecd0",
    "policy": "#f0f6fb",
    "finetune": "#dcf1ea",
}

_PHASES = {  # phase of a record -> (colour, words)
    "warmup": ("warmup", "warm-up"),
    "random": ("random", "random episodes"),
    "trial": ("random", "past runs on trial"),
    "policy": ("policy", "policy episodes"),
    "search": ("policy", "search only"),
    "finetune": ("finetune", "fine-tuning (pruned)"),
}
_FEW = 40  # up to so many points, each gets a marker: a line of one point would be invisible
_MANY = 6000  # from so many on, dots are stored as pixels, not as one SVG element each
_NAME_LENGTH = 40


@dataclass(frozen=True)
class Span:
    """A stretch of the x axis: `start` <= x < `stop`, numbers counted from 1."""

    phase: str
    start: int
    stop: int


@dataclass(frozen=True)
class Curves:
    """What the plots need of metrics.jsonl. Missing numbers are nan.

    rewards [episodes]; structure: per epoch (episodes so far, reward under that epoch's weights);
    train, held_out [epochs]: the full model, then from `finetune_from` on the pruned network.
    """

    rewards: list[float]
    structure: list[tuple[int, float]]
    episode_spans: list[Span]
    train: list[float]
    held_out: list[float]
    epoch_spans: list[Span]
    finetune_from: int

    @classmethod
    def from_metrics(cls, metrics: Sequence[Mapping[str, Any]]) -> Curves:
        """Reads the trainer's records, in the order of epochs."""
        joint = [record for record in metrics if record.get("stage") != "finetune"]
        tuned = [record for record in metrics if record.get("stage") == "finetune"]
        rewards: list[float] = []
        structure: list[tuple[int, float]] = []
        phases: list[str] = []
        for record in joint:
            new = [_number(reward) for reward in record.get("rewards") or ()]
            rewards += new
            phases += [str(record.get("phase", "policy"))] * len(new)
            now = _number(record.get("structure_reward"))
            if rewards and not math.isnan(now):
                structure.append((len(rewards), now))
        epochs = [*joint, *tuned]
        names = [str(record.get("phase", "policy")) for record in joint] + ["finetune"] * len(tuned)
        return cls(
            rewards=rewards,
            structure=structure,
            episode_spans=_spans(phases),
            train=[_number(record.get("train_accuracy")) for record in epochs],
            held_out=[_number(record.get("reward_split_accuracy")) for record in epochs],
            epoch_spans=_spans(names),
            finetune_from=len(joint),
        )

    @property
    def best_so_far(self) -> list[float]:
        """Highest reward up to each episode, as scored when it was seen."""
        best, course = math.nan, []
        for reward in self.rewards:
            if math.isnan(best) or reward > best:
                best = reward
            course.append(best)
        return course


def draw_rewards(axes: Axes, curves: Curves) -> None:
    """Reward per episode, the best so far, and the chosen structure under each epoch's weights."""
    count = len(curves.rewards)
    if not count:
        _say(axes, "No episode was evaluated in this run.")
        return
    numbers = range(1, count + 1)
    _shade(axes, curves.episode_spans)
    axes.plot(
        numbers,
        curves.rewards,
        linestyle="none",
        marker="o",
        markersize=3.6 if count <= 300 else 2.2,
        markeredgewidth=0,
        color=COLOURS["blue"],
        alpha=0.75 if count <= 300 else 0.4,
        rasterized=count > _MANY,
        zorder=3,
        label="one episode",
    )
    axes.plot(
        numbers,
        curves.best_so_far,
        drawstyle="steps-post",
        color=COLOURS["ink"],
        linewidth=1.6,
        marker="_" if count == 1 else None,
        label="best so far, as scored then",
    )
    if curves.structure:
        at, values = zip(*curves.structure, strict=True)
        axes.plot(
            at,
            values,
            color=COLOURS["orange"],
            label="chosen structure, current weights",
            **_dots(len(at)),
        )
    _finish(axes, count, "episode", "reward (accuracy on the reward split)")


def draw_accuracy(axes: Axes, curves: Curves, baseline: float, pruned: float) -> None:
    """Accuracy per epoch of the full, then the pruned network; `baseline`, `pruned`: test split."""
    joint, total = curves.finetune_from, len(curves.train)
    _shade(axes, curves.epoch_spans)
    for values, colour, label in (
        (curves.train, "blue", "training images (augmented)"),
        (curves.held_out, "orange", "reward split"),
    ):
        for start, stop in (
            (0, joint),
            (joint, total),
        ):  # two networks: the line must not join them
            points = values[start:stop]
            if any(not math.isnan(value) for value in points):
                axes.plot(
                    range(start + 1, stop + 1),
                    points,
                    color=COLOURS[colour],
                    label=label,
                    **_dots(len(points)),
                )
                label = "_again"  # matplotlib leaves out of the legend what starts with "_"
    for x, value, colour, marker, label in (
        (max(joint, 1), baseline, "ink", "D", "full, test"),
        (max(total, 1), pruned, "red", "*", "pruned, test"),
    ):
        axes.plot(
            [x],
            [value],
            linestyle="none",
            marker=marker,
            markersize=11 if marker == "*" else 6.5,
            color=COLOURS[colour],
            label=f"{label}: {value:.2%}",
            zorder=5,
        )
    _finish(axes, max(total, 1), "epoch", "accuracy")


def draw_widths(axes: Axes, widths: Mapping[str, Sequence[int]]) -> None:
    """Kept share of each group's channels, `widths` {group: (kept, full)}, first group on top.

    Shares, not channels: a group of 16 stays legible beside one of 960; counts at the right.
    """
    rows = range(len(widths))
    kept = [100.0 * now / max(full, 1) for now, full in widths.values()]
    bar: dict[str, Any] = {"height": 0.68, "linewidth": 0}
    axes.barh(rows, [100.0] * len(kept), color=COLOURS["track"], label="full width", **bar)
    axes.barh(rows, kept, color=COLOURS["blue"], label="kept", **bar)
    for row, (now, full) in zip(rows, widths.values(), strict=True):
        axes.text(102, row, f"{now} / {full}", va="center", ha="left", fontsize=8)
    axes.set_yticks(rows, [_short(name) for name in widths], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(widths) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter("{x:.0f}%")
    axes.set_xlabel("channels kept, of the group's full width (counts at the right)")
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    _legend(axes)


def widths_height(groups: int) -> float:
    """Inches that `draw_widths` needs for its rows to be readable."""
    return 1.15 + 0.215 * max(groups, 2)


def svg(draw: Callable[[Axes], object], *, width: float, height: float, label: str) -> str:
    """One plot as an <svg> element for an HTML page; sizes in inches, `label` for screen readers.

    Colours are CSS variables --plot-<name> with `COLOURS` as fallback; no background.
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(style()):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]  # without the XML declaration: it stands inside a page
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<g id="\w+_\d+">', "<g>", text
    )  # several plots share one page, and ids are unique
    text = re.sub(r'(<svg [^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--plot-{name}, {colour})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1).strip()


def picture(
    title: str, curves: Curves, baseline: float, pruned: float, widths: Mapping[str, Sequence[int]]
) -> bytes:
    """The three plots on one light PNG: rewards over accuracies, and widths at the right."""
    import matplotlib
    from matplotlib.figure import Figure

    file = io.BytesIO()
    height = min(max(8.0, 0.8 + widths_height(len(widths))), 40.0)
    with matplotlib.rc_context(style()):
        figure = Figure(figsize=(14, height), layout="constrained", facecolor="white")
        figure.suptitle(title, fontsize=13, fontweight="bold")
        halves: Any = figure.subfigures(1, 2, width_ratios=(8, 6), wspace=0.03)
        left, right = halves
        above, below = left.subfigures(2, 1, hspace=0.03)
        # A few groups on the full height would be slabs: they get rows, and the rest stays white.
        used = min(1.0, (0.8 + 0.42 * len(widths) + 0.5) / height)
        if used < 0.9:
            right, _ = right.subfigures(2, 1, height_ratios=(used, 1 - used))
        axes = []
        for part, words in (
            (above, "Reward of each sub-network"),
            (below, "Accuracy per epoch"),
            (right, "Channels kept in each group"),
        ):
            part.suptitle(words, fontsize=11)
            axes.append(part.add_subplot())
        draw_rewards(axes[0], curves)
        draw_accuracy(axes[1], curves, baseline, pruned)
        draw_widths(axes[2], widths)
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def style() -> Any:  # matplotlib types its keys one by one
    """The house style upon matplotlib's own defaults, whatever the user's matplotlibrc says."""
    import matplotlib

    quiet = {
        key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key
    }
    ink, faint = COLOURS["ink"], COLOURS["faint"]
    return quiet | {
        "font.size": 9,
        "text.color": ink,
        "text.parse_math": False,  # a "$" in a name is a "$"
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": faint,
        "grid.linewidth": 0.6,
        "xtick.color": ink,
        "ytick.color": ink,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "lines.linewidth": 1.5,
        "figure.constrained_layout.w_pad": 0.09,
        "figure.constrained_layout.h_pad": 0.09,
        "svg.hashsalt": "rlal_fast",
    }


def _finish(axes: Axes, count: int, x_label: str, y_label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0.5 - 0.01 * count, count + 0.5 + 0.01 * count)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}%")
    axes.grid(False, axis="x")
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the axes, where it can never hide a point: one row of curves, one row of shades."""
    from matplotlib.patches import Patch

    handles = axes.get_legend_handles_labels()[0]
    shades = [handle for handle in handles if isinstance(handle, Patch)]
    curves = [handle for handle in handles if handle not in shades]
    rows = [row for row in (curves, shades) if row]
    columns = max(map(len, rows))
    blank = Patch(visible=False, label=" ")
    padded = [[*row, *[blank] * (columns - len(row))] for row in rows]
    legend = axes.legend(
        handles=[row[column] for column in range(columns) for row in padded],  # filled by columns
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        borderpad=0.2,
        columnspacing=1.4,
        handlelength=1.6,
        handletextpad=0.6,
    )
    for handle in legend.legend_handles:
        if handle is not None and handle.get_alpha() is not None:  # the faint dots
            handle.set(markersize=4.5, alpha=1)


def _shade(axes: Axes, spans: Sequence[Span]) -> None:
    seen: set[str] = set()
    for span in spans:
        colour, words = _PHASES.get(span.phase, ("warmup", span.phase))
        axes.axvspan(
            span.start - 0.5,
            span.stop - 0.5,
            facecolor=COLOURS[colour],
            edgecolor="none",
            zorder=0,
            label="_again" if words in seen else words,
        )
        seen.add(words)


def _spans(phases: Sequence[str]) -> list[Span]:
    spans: list[Span] = []
    for number, phase in enumerate(phases, start=1):
        if spans and spans[-1].phase == phase:
            spans[-1] = Span(phase, spans[-1].start, number + 1)
        else:
            spans.append(Span(phase, number, number + 1))
    return spans


def _dots(count: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if count <= _FEW else {}


def _say(axes: Axes, words: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes)


def _short(name: str) -> str:
    """Long names lose their beginning: the end of a module's path tells it from its neighbours."""
    return name if len(name) <= _NAME_LENGTH else f"…{name[1 - _NAME_LENGTH :]}"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
