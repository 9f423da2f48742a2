"""One picture of all results/episode-*.json: how many times our seconds each peer takes.

    python benchmarks/plot_results.py

Writes results/episodes.png and results/episodes.svg, and prints the figures as a Markdown table.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
from machine import ROOT
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlal_fast.plots import COLOURS

RESULTS = ROOT / "benchmarks" / "results"
_COLUMNS = 3
_LEFT = 0.6  # of the smallest ratio: where bars begin on the logarithmic axis
_INK, _BAR, _BEST, _OURS = (COLOURS[name] for name in ("ink", "faint", "orange", "blue"))


def results(folder: Path) -> list[dict[str, Any]]:
    """What bench_episode.py stored, in the order of file names; files of another form are named."""
    found = []
    for path in sorted(folder.glob("episode-*.json")):
        result = json.loads(path.read_text())
        if all("times_ours" in row and "title" in row for row in result["rows"]):
            found.append(result)
        else:
            print(f"{path.name} is left out: its rows have no titles, run the benchmark again")
    return found


def draw(given: list[dict[str, Any]]) -> Figure:
    """One panel per result; the same peers and the same scale in all."""
    rows = [row for result in given for row in result["rows"] if row["times_ours"]]
    titles = list(dict.fromkeys(row["title"] for row in rows))
    ratios = [row["times_ours"]["median"] for row in rows]
    columns = min(_COLUMNS, len(given))
    lines = math.ceil(len(given) / columns)
    figure = Figure(figsize=(2.6 + 3.6 * columns, 0.5 + 2.6 * lines), layout="constrained")
    figure.suptitle("Seconds per sub-network, set-up included, as a multiple of rlal_fast's")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, result in zip(panels, given, strict=False):
        _panel(axes, result, titles)
    for axes in panels[len(given) :]:
        axes.set_axis_off()
    panels[0].set_xscale("log")
    panels[0].set_xlim(_LEFT * min(ratios), 3 * max(ratios))
    panels[0].set_ylim(len(titles) - 0.4, -0.6)
    return figure


def _panel(axes: Axes, result: dict[str, Any], titles: list[str]) -> None:
    timed = {row["title"]: row for row in result["rows"] if row["times_ours"]}
    peers = {title: row for title, row in timed.items() if row["system"] != "rlal_fast"}
    best = min((row["times_ours"]["median"] for row in peers.values()), default=0)
    for place, title in enumerate(titles):
        if title not in timed:
            why = result["missing"].get(title, "not measured")
            axes.text(1.1, place, why, va="center", color=_INK, fontsize=8, style="italic")
            continue
        ratio = timed[title]["times_ours"]["median"]
        colour = _OURS if title not in peers else _BEST if ratio == best else _BAR
        axes.barh(place, ratio, color=colour)
        axes.text(ratio * 1.08, place, f"{ratio:.2f}", va="center", color=_INK, fontsize=9)
    axes.set_yticks(range(len(titles)), titles)
    axes.axvline(1, color=_INK, linewidth=0.8)
    axes.set_title(_heading(result), fontsize=9, color=_INK)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    axes.tick_params(axis="y", labelsize=9, length=0)


def _heading(result: dict[str, Any]) -> str:
    settings, size = result["settings"], result["network"]["image_size"]
    threads = f"{settings['threads']} thread" + ("s" if settings["threads"] > 1 else "")
    held = f", {settings['isa']}" if settings["isa"] else ""
    name = settings["arch"].removeprefix("torchvision/")
    return f"{name}, {settings['images']} images of {size} x {size}, {threads}{held}"


def table(given: list[dict[str, Any]]) -> str:
    """The same in Markdown: our seconds and each peer's ratio, with their ranges over the turns."""
    titles = list(dict.fromkeys(row["title"] for result in given for row in result["rows"]))
    lines = [
        "| network | " + " | ".join(titles) + " |",
        "|" + "---|" * (len(titles) + 1),
    ]
    for result in given:
        rows = {row["title"]: row for row in result["rows"] if row["times_ours"]}
        cells = [_cell(rows[title]) if title in rows else "" for title in titles]
        lines.append(f"| {_heading(result)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    values = row["seconds_per_subnet" if row["system"] == "rlal_fast" else "times_ours"]
    if row["system"] == "rlal_fast":
        return f"{values['median']:.3f} s ({values['min']:.3f} to {values['max']:.3f})"
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def main() -> None:
    given = results(RESULTS)
    if not given:
        raise SystemExit(f"no results of bench_episode.py in {RESULTS}: run it with --result")
    # names that do not change from run to run, so that a picture changes only with its figures
    with matplotlib.rc_context({"svg.hashsalt": "episodes"}):
        figure = draw(given)
        figure.savefig(RESULTS / "episodes.png", dpi=140)
        figure.savefig(RESULTS / "episodes.svg", metadata={"Date": None})
    print(table(given))


if __name__ == "__main__":
    main()
