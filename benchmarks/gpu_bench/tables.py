"""The results of bench_gpu.py as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SYSTEMS = (
    *("system", "setting", "a call", "ms each (quartiles)", "set-up", "run", "load ms", "turns"),
    *("error", "differ"),
)


def show(result: dict[str, Any]) -> None:
    """Prints everything that `bench_gpu.py` writes."""
    gpu = result["machine"].get("gpu", {"name": "emulated on the CPU"})
    print("\n" + ", ".join(f"{key} {value}" for key, value in gpu.items()))
    print(f"torch {result['machine']['torch']}, commit {result['machine']['commit']}")
    ceilings = result.get("ceilings", {"flops": {}, "bytes_per_second": 0.0})
    rates = ", ".join(f"{p} {rate / 1e12:.1f}" for p, rate in ceilings["flops"].items())
    print(f"copy {ceilings['bytes_per_second'] / 1e9:.0f} GB/s; TFLOP/s of a product: {rates}")
    for name, section in result["sections"].items():
        print(f"\n{name}")
        if section.get("left_out"):
            print(f"  {section['left_out']}")
        _SHOW.get(name, _episodes)(section)
    _evaluations(result.get("evaluations", []))
    for failure in result["failures"]:
        print(f"FAILED: {failure}")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    cells = [list(headings), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        # names to the left, figures to the right
        first, *rest = zip(row, widths, strict=True)
        print("  " + "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]))


def _ms(found: dict[str, float], quartiles: bool = False) -> str:
    if not found:
        return "-"
    middle = f"{1e3 * found['median']:.3f}"
    if not quartiles:
        return middle
    low, high = (1e3 * found[name] for name in ("first_quartile", "third_quartile"))
    return f"{middle} ({low:.3f}-{high:.3f})"


def _episodes(section: dict[str, Any]) -> None:
    if "rows" not in section:
        return
    case = section["case"]
    kept = section["macs_kept"] / section["macs"]
    print(f"  {case['images']} images of {case['size']}x{case['size']}, {kept:.1%} of the MACs")
    timed = [row for row in section["rows"] if row.get("seconds_per_subnet")]
    cells = [
        [
            row["title"],
            row["setting"],
            str(row["subnets_per_call"]),
            _ms(row["seconds_per_subnet"], quartiles=True),
            _ms(row["setup_seconds_per_subnet"]),
            _ms(row["run_seconds_per_subnet"]),
            "/".join(f"{1e3 * seconds:.0f}" for seconds in row["load_seconds"].values()),
            str(row["turns"]),
            f"{row['relative_logit_difference']:.0e}",
            f"{row['differing_predictions']}/{row['predictions_compared']}",
        ]
        for row in timed
    ]
    _table(_SYSTEMS, cells)
    for row in section["rows"]:
        if row["left_out"]:
            calls = f", {row['subnets_per_call']} a call" if "subnets_per_call" in row else ""
            print(f"  {row['title']}{calls}: {row['left_out']}")


def _kernels(section: dict[str, Any]) -> None:
    headings = ("layer", "images", "system", "precision", "ms (quartiles)", "floor", "x", "error")
    cells = [
        [
            row["layer"],
            str(row["images"]),
            row["system"],
            row["precision"],
            _ms(row["seconds"], quartiles=True),
            f"{1e3 * row['floor_seconds']:.3f}",
            f"{row['times_floor']:.2f}",
            f"{row['relative_difference']:.0e}",
        ]
        for row in section.get("rows", [])
        if row.get("seconds")
    ]
    _table(headings, cells)
    for row in section.get("rows", []):
        if row["left_out"]:
            names = (row.get(name, "") for name in ("layer", "system", "precision"))
            print(f"  {' '.join(names)}: {row['left_out']}")


def _joint(section: dict[str, Any]) -> None:
    if "epochs" not in section:
        return
    print(
        f"  {section['arch']}, {section['data']}: {section['training_images']} training and "
        f"{section['reward_images']} reward images, batch {section['batch_size']}, "
        f"{section['episodes_per_epoch']} episodes, evaluator {section['evaluator_precision']}"
    )
    parts = list(section["after_the_first"])
    cells = [
        [str(number), *(f"{epoch[part]:.3f}" for part in parts), f"{sum(epoch.values()):.3f}"]
        for number, epoch in enumerate(section["epochs"])
    ]
    _table(("epoch, seconds", *parts, "all"), cells)


def _rewards(section: dict[str, Any]) -> None:
    if "rows" not in section:
        return
    print(f"  {section['network']}, {section['images']} images, {section['subnets']} sub-networks")
    cells = [
        [
            row["precision"],
            f"{row['kendall_tau_b']:.4f}",
            f"{row['mean_absolute_difference_in_points']:.3f}",
            f"{row['largest_difference_in_points']:.3f}",
            "yes" if row["same_best"] else "no",
        ]
        for row in section["rows"]
    ]
    _table(("precision", "tau-b", "mean |points|", "largest", "same best"), cells)


def _evaluations(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    print("\nwhole evaluations against their floor")
    headings = ("network", "precision", "setting", "ms (quartiles)", "floor", "x", "TFLOP/s")
    cells = [
        [
            row["network"],
            row["precision"],
            row["setting"],
            _ms(row["seconds"], quartiles=True),
            f"{1e3 * row['floor_seconds']:.3f}",
            f"{row['times_floor']:.2f}",
            f"{row['operations'] / row['seconds']['median'] / 1e12:.1f}",
        ]
        for row in rows
    ]
    _table(headings, cells)


_SHOW = {"kernels": _kernels, "joint": _joint, "rewards": _rewards}
