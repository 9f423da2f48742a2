"""The result of a run (method.md §9): one frozen Report, as JSON, web page and picture."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from rlal_fast import plots
from rlal_fast.errors import InputError
from rlal_fast.run_folder import RunFolder

_SVG_WIDTH = 9.0  # inches of the plots before the page scales them


@dataclass(frozen=True)
class Report:
    """What a run achieved. Accuracies and pruned FLOPs are fractions in [0, 1].

    Raises InputError if a fraction lies outside [0, 1] or a group keeps more than it has.
    """

    arch: str
    dataset: str
    seed: int
    baseline_accuracy: float
    """Test accuracy of the full model after joint training."""
    pruned_accuracy: float
    """Test accuracy of the compact network after fine-tuning, if there was any."""
    delta: float
    """pruned_accuracy - baseline_accuracy."""
    macs_full: int
    """Multiply-adds of convolutions and linear layers for one image; FLOPs are twice as many."""
    macs: int
    """The same for the compact network."""
    pruned_flops: float
    """1 - macs / macs_full."""
    pruned_flops_requested: float
    params_full: int
    params: int
    widths: dict[str, list[int]]
    """{group name: [kept, full] channels}, in the order in which the agent walks."""
    latency_ms: dict[str, dict[str, float]]
    """{"full" | "pruned": {batch size, as a string: milliseconds per batch}}."""
    best_reward: float | None
    """Of the chosen structure: accuracy on the reward split, not fine-tuned. None: no episode."""
    episodes: int
    """Sub-networks evaluated for a reward."""
    seconds: dict[str, float]
    """Wall clock: "total", and of it "weights", "validation", "episodes", "agent"."""
    evaluator: str
    """What computed the rewards, e.g. "native avx512, 2 threads"."""
    split_sizes: dict[str, int]
    """Images in "train", "reward", "test"."""
    accuracy_before_finetuning: float | None
    """Test accuracy of the compact network as cut, before fine-tuning."""
    version: str
    """Of rlal_fast."""
    command: str | None = None
    """The command line that started the run; None from Python."""
    device: str = "cpu"
    """Where the weights were trained, e.g. "cuda:0, NVIDIA H200"."""

    def __post_init__(self) -> None:
        for name in (
            "baseline_accuracy",
            "pruned_accuracy",
            "pruned_flops",
            "pruned_flops_requested",
            "best_reward",
            "accuracy_before_finetuning",
        ):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise InputError(f"report: {name} is {value}; expected a fraction from 0 to 1")
        for group, (kept, full) in self.widths.items():
            if not 0 < kept <= full:
                raise InputError(
                    f"report: group {group} keeps {kept} of {full}; expected 1..{full}"
                )

    def to_json(self) -> str:
        """Indented JSON, fields in the order above, [kept, full] on one line each."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        return re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Reads what `to_json` wrote. Raises InputError if it is not JSON or has other fields."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InputError(f"report is not valid JSON ({error}): run `rlal run` again") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            found = set(values) if isinstance(values, dict) else set()
            raise InputError(
                f"report is of another version of rlal_fast: missing {sorted(known - found)}, "
                f"unknown {sorted(found - known)}; read it with the version that wrote it"
            )
        return cls(**values)


def write(report: Report, metrics: Sequence[Mapping[str, Any]], folder: Path | str) -> None:
    """Writes report.png, report.html and, last, report.json into `folder`, each atomically.

    `metrics` are the records of metrics.jsonl. The page lists the settings of the folder's
    config.yaml where there is one. Raises InputError if the disk is full; files of an earlier
    report then stay whole.
    """
    run = RunFolder(folder)
    config = run.config if run.config_path.is_file() else {}
    curves = plots.Curves.from_metrics(metrics)
    title = (
        f"{report.arch} on {report.dataset}: {report.baseline_accuracy:.2%} → "
        f"{report.pruned_accuracy:.2%} with {report.pruned_flops:.1%} of the FLOPs pruned"
    )
    image = plots.picture(
        title, curves, report.baseline_accuracy, report.pruned_accuracy, report.widths
    )
    page = html(report, metrics, config)
    run.write_atomically(run.path / "report.png", image)
    run.write_atomically(run.path / "report.html", page.encode())
    run.write_atomically(run.report_path, report.to_json().encode())


def html(
    report: Report, metrics: Sequence[Mapping[str, Any]], config: Mapping[str, Any] | None = None
) -> str:
    """The report as one self-contained page: no script, no font, no image from elsewhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("rlal_fast"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, points=_points, count=_count, ms=_milliseconds, duration=_duration
    )
    pictures = {name: Markup(text) for name, text in _svgs(report, metrics).items()}
    return environment.get_template("report.html").render(
        report=report,
        plots=pictures,
        config=list(_flat(config or {})),
        latencies=_latencies(report),
        tuned=any(record.get("stage") == "finetune" for record in metrics),
        shares=_time_shares(report.seconds),
        error=_standard_error(report),
    )


def _svgs(report: Report, metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    curves = plots.Curves.from_metrics(metrics)
    return {
        "rewards": plots.svg(
            partial(plots.draw_rewards, curves=curves),
            width=_SVG_WIDTH,
            height=3.9,
            label="Reward of each episode and best reward so far",
        ),
        "accuracy": plots.svg(
            partial(
                plots.draw_accuracy,
                curves=curves,
                baseline=report.baseline_accuracy,
                pruned=report.pruned_accuracy,
            ),
            width=_SVG_WIDTH,
            height=3.9,
            label="Accuracy per epoch of the full and the pruned network",
        ),
        "widths": plots.svg(
            partial(plots.draw_widths, widths=report.widths),
            width=_SVG_WIDTH,
            height=plots.widths_height(len(report.widths)),
            label="Channels kept in each group; the numbers are in the table of groups",
        ),
    }


@dataclass(frozen=True)
class _Latency:
    batch: int
    full: float
    pruned: float

    @property
    def speed_up(self) -> float:
        return self.full / self.pruned if self.pruned > 0 else math.nan


def _latencies(report: Report) -> list[_Latency]:
    full, pruned = report.latency_ms.get("full", {}), report.latency_ms.get("pruned", {})
    return [
        _Latency(int(batch), full[batch], pruned[batch])
        for batch in sorted(full.keys() & pruned.keys(), key=int)
    ]


def _time_shares(seconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """(what, seconds, share of the total) for each part; the remainder as "everything else"."""
    words = {
        "weights": "training weights",
        "validation": "validating the full network",
        "episodes": "evaluating sub-networks",
        "agent": "agent and environment model",
    }
    parts = [(words.get(name, name), spent) for name, spent in seconds.items() if name != "total"]
    known = sum(spent for _, spent in parts)
    total = max(seconds.get("total", known), known)
    parts.append(("everything else", total - known))
    return [(what, spent, spent / total if total > 0 else 0.0) for what, spent in parts]


def _standard_error(report: Report) -> float:
    """Of one accuracy measured on the test split: sqrt(p (1 - p) / n)."""
    images = max(report.split_sizes.get("test", 0), 1)
    p = report.pruned_accuracy
    return math.sqrt(p * (1 - p) / images)


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", "not set" if value is None else str(value)))
    return rows


def _percent(fraction: float | None, digits: int = 2) -> str:
    return "not measured" if fraction is None else f"{100 * fraction:.{digits}f} %"


def _points(fraction: float) -> str:
    """A difference of accuracies in percentage points, always signed; never "-0.00"."""
    value = round(100 * fraction, 2)
    return f"{'−' if value < 0 else '+'}{abs(value):.2f}"


def _count(number: int) -> str:
    """1234567 -> "1.23 M"; exact below 10,000."""
    if number < 10_000:
        return f"{number:,}"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number / 1e3:.1f} k"


def _milliseconds(value: float) -> str:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} ms"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
