"""The figures of a finished joint run, and what its network says about itself."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from rlal_fast import device
from rlal_fast._version import __version__
from rlal_fast.compaction import CompactNetwork, parameter_count
from rlal_fast.latency import measure
from rlal_fast.report import Report
from rlal_fast.subnet import Subnet

if TYPE_CHECKING:
    from rlal_fast.trainer import JointTrainer


def description(trainer: JointTrainer) -> dict[str, Any]:
    """What someone who loads the network needs to use it."""
    data = trainer.data
    return {
        "arch": trainer.arch,
        "dataset": data.name,
        "classes": list(data.classes),
        "normalisation": {
            "mean": list(data.normalisation.mean),
            "std": list(data.normalisation.std),
        },
    }


def make(
    trainer: JointTrainer,
    structure: Subnet,
    small: CompactNetwork,
    accuracies: tuple[float, float, float],
) -> Report:
    """Measures latencies and puts the report together.

    Args:
        structure: what the network was cut to.
        small: the compact network, on the CPU.
        accuracies: on the test split: of the full network, of the compact one as cut, and of the
            compact one after fine-tuning.
    """
    baseline, as_cut, pruned = accuracies
    budget, config, graph = trainer.budget, trainer.config, trainer.graph
    macs = int(graph.cost.macs(structure.widths))
    return Report(
        arch=trainer.arch,
        dataset=trainer.data.name,
        seed=config.seed,
        baseline_accuracy=baseline,
        pruned_accuracy=pruned,
        delta=pruned - baseline,
        macs_full=budget.macs_full,
        macs=macs,
        pruned_flops=1 - macs / budget.macs_full,
        pruned_flops_requested=config.pruned_flops,
        params_full=parameter_count(trainer.model),
        params=parameter_count(small),
        widths={
            group.name: [int(width), group.width]
            for group, width in zip(graph.groups, structure.widths, strict=True)
        },
        latency_ms=_latencies(trainer, small),
        best_reward=float(trainer.structures.rewards[0]),
        episodes=trainer.episodes,
        seconds=trainer.elapsed(),
        evaluator=f"{trainer.evaluator.description}, {torch.get_num_threads()} threads",
        split_sizes={
            name: len(getattr(trainer.data, name)) for name in ("train", "reward", "test")
        },
        accuracy_before_finetuning=as_cut,
        version=__version__,
        device=device.describe(trainer.device),
    )


def _latencies(trainer: JointTrainer, small: CompactNetwork) -> dict[str, dict[str, float]]:
    """On the CPU, wherever the training took place."""
    full = trainer.model
    if trainer.device.type != "cpu":  # a copy: a captured step needs the weights where they are
        full = copy.deepcopy(full).cpu()
    return measure({"full": full, "pruned": small}, trainer.data.image_shape)
