"""How much work the sub-networks of one epoch could share: those that begin with the same widths.

    python benchmarks/prefix_sharing.py runs/r20

Reads the real episodes of a run from its checkpoint. A sub-network whose first k widths are those
of an earlier one of the same epoch could take over the activations of every layer that depends on
these alone. The share of the multiply-adds that this saves is the most that a cache could win, were
it free to fill and to read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

import rlal_fast as rf
from rlal_fast import checkpoint
from rlal_fast.agents import RandomAgent
from rlal_fast.env import PruningEnv
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.run_folder import RunFolder

Widths = NDArray[np.int64]


def depth_of(graph: PrunableGraph) -> list[int]:
    """For each node, how many leading groups decide it: the last group it depends on, plus one."""
    group_of = {c: g.index for g in graph.groups for c in g.classes}
    depths: list[int] = []
    for node, positions in zip(graph.nodes, graph.positions, strict=True):
        own = max((group_of.get(int(c), -1) for c in positions), default=-1) + 1
        depths.append(max([own, *(depths[i] for i in node.inputs)]))
    return depths


def macs_by_depth(graph: PrunableGraph, widths: Widths) -> NDArray[np.float64]:
    """[G + 1]: multiply-adds of the layers that the first k groups decide, and no fewer."""
    depths, kept = depth_of(graph), graph.kept_positions(graph.subnet(widths))
    macs = np.zeros(len(widths) + 1)
    for node in graph.nodes:
        if node.op not in ("conv", "linear"):
            continue
        taps = int(np.prod(node.attrs.get("kernel", [1])))
        inputs = 1 if node.attrs.get("depthwise") else len(kept[node.inputs[0]])
        area = int(np.prod(node.shape[1:]))
        macs[depths[node.index]] += len(kept[node.index]) * inputs * taps * area
    return macs


def saved(graph: PrunableGraph, episodes: Sequence[Widths]) -> float:
    """Share of the multiply-adds of these sub-networks that others of them have computed."""
    total = shared = 0.0
    seen: set[tuple[int, ...]] = set()
    for widths in episodes:
        row = tuple(int(w) for w in widths)
        common = max((k for k in range(1, len(row) + 1) if row[:k] in seen), default=0)
        macs = macs_by_depth(graph, widths)
        total += macs.sum()
        shared += macs[: common + 1].sum() if seen else 0.0  # all share what no group decides
        seen.update(row[:k] for k in range(1, len(row) + 1))
    return shared / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run that has a checkpoint")
    parser.add_argument("--size", type=int, default=32, help="of its images")
    parser.add_argument("--classes", type=int, default=10)
    args = parser.parse_args()
    if not (args.run / "config.yaml").is_file():
        raise SystemExit(f"{args.run} is not the folder of a run: it has no config.yaml")
    arch = yaml.safe_load((args.run / "config.yaml").read_text())["arch"]
    model = rf.models.create(arch, args.classes)
    graph = PrunableGraph.trace(model, torch.zeros(1, 3, args.size, args.size))
    state = checkpoint.load(RunFolder(args.run))
    if state is None:
        raise SystemExit(f"{args.run} has no checkpoint")
    replay = state["joint"]["replay"]
    ratios, epochs = replay["actions"].numpy(), replay["epochs"].numpy()
    widths = np.rint((1 - ratios) * graph.full_widths).astype(np.int64)
    found = [saved(graph, widths[epochs == epoch]) for epoch in np.unique(epochs)]
    per_epoch = int(np.bincount(epochs)[np.unique(epochs)].mean())
    print(
        f"{arch}, {len(found)} epochs of {per_epoch} real episodes: shared "
        f"{100 * np.mean(found):.1f} % of the multiply-adds in the mean, "
        f"{100 * min(found):.1f} % to {100 * max(found):.1f} %; "
        f"{100 * np.mean(found[len(found) // 2 :]):.1f} % in the second half of the run"
    )
    images = torch.zeros(1, 3, args.size, args.size)
    evaluator = Evaluator(graph, images, torch.zeros(1, dtype=torch.int64))
    env = PruningEnv(graph, Budget(graph.cost, 0.5), evaluator)
    for count in (10, 100, 1000):
        drawn = env.rollout(RandomAgent(0.8), count, None, torch.Generator().manual_seed(0)).widths
        print(f"{count} random episodes: {100 * saved(graph, list(drawn)):.1f} %")


if __name__ == "__main__":
    main()
