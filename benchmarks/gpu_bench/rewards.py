"""Do reduced precisions rank sub-networks as fp32 does? On a trained network and real images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT

import rlal_fast as rf
from gpu_bench.networks import random_subnets
from gpu_bench.session import Session
from rlal_fast import compaction, data
from rlal_fast.evaluator import Evaluator
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels.cuda import PRECISIONS

NETWORK = ROOT / "benchmarks" / "networks" / "resnet20-cifar10jpeg.safetensors"


def measure(
    session: Session, data_dir: Path | None, dataset: str, count: int = 200
) -> dict[str, Any]:
    """Accuracies of random sub-networks at 50 %, each precision against fp32.

    Raises:
        InputError: the data or the network cannot be read.
    """
    if data_dir is None:
        return {"left_out": "needs real images: --data-dir"}
    found = data.load(dataset, data_dir)
    model = rf.models.create("resnet20", found.num_classes).eval()
    compaction.load_full(model, NETWORK)
    images, labels = found.normalised(found.test), found.test.labels
    if session.emulated:
        images, labels, count = images[:8], labels[:8], 4
    graph = PrunableGraph.trace(model, images[:1])
    given = graph, images.to(session.device), labels.to(session.device), "cuda"
    subnets = random_subnets(graph, count, seed=0)
    scores = {p: Evaluator(*given, precision=p).accuracies(subnets) for p in PRECISIONS}
    exact = scores["fp32"]
    rows = [
        {
            "precision": precision,
            "kendall_tau_b": kendall_tau_b(exact, scores[precision]),
            "mean_absolute_difference_in_points": 100 * _mean(np.abs(scores[precision] - exact)),
            "largest_difference_in_points": 100 * float(np.abs(scores[precision] - exact).max()),
            "same_best": bool(scores[precision].argmax() == exact.argmax()),
        }
        for precision in PRECISIONS
        if precision != "fp32"
    ]
    return {
        "network": NETWORK.stem,
        "data": found.name,
        "images": len(labels),
        "subnets": len(subnets),
        "accuracies_fp32": {"mean": _mean(exact), "min": exact.min(), "max": exact.max()},
        "rows": rows,
        "left_out": "",
    }


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation that accounts for ties; not a number if one side is all ties."""
    one, two = (np.asarray(values, dtype=np.float64) for values in (first, second))
    upper = np.triu_indices(len(one), 1)
    signs = [np.sign(values[:, None] - values[None, :])[upper] for values in (one, two)]
    untied = [float(np.abs(sign).sum()) for sign in signs]
    if not all(untied):
        return float("nan")
    return float((signs[0] * signs[1]).sum() / np.sqrt(untied[0] * untied[1]))


def _mean(values: np.ndarray) -> float:
    return float(values.mean())
