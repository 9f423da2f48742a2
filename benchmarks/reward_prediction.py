"""Does the reward tell what is left of a sub-network after fine-tuning?

    python benchmarks/reward_prediction.py --data-dir DIR --pruned-flops 0.65

Sub-networks of one trained network around the even ratio, from nearly even to far from it, all at
one budget. Each is scored as cut, with the full network's batch norm statistics and with its own of
so many training images, then fine-tuned, and its test accuracy is what the scores are compared
with: by Spearman's correlation, and by what is left on average of the quarter of them that a score
prefers.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
import trained
from machine import write_result
from numpy.typing import NDArray

from rlal_fast import compaction, data, finetune
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.head_start import rank_correlation
from rlal_fast.recalibration import training_sample
from rlal_fast.subnet import Subnet
from rlal_fast.weights import WeightsConfig, accuracy

_FARTHEST = 0.5  # deviation of the ratios from the even one
_SEEDS = 3  # samples of images to recalibrate on
_FINETUNE_LR = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    trained.add_options(parser)
    parser.add_argument("--pruned-flops", type=float, default=0.5)
    parser.add_argument("--subnets", type=int, default=24)
    parser.add_argument("--images", type=int, nargs="+", default=[0, 32, 128, 512])
    parser.add_argument("--reward-images", type=int, default=1000)
    parser.add_argument("--train-limit", type=int, default=10000)
    parser.add_argument("--finetune-epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", default="")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, found = trained.load(args, train_limit=args.train_limit, crop_padding=4, flip=True)
    found = found.with_reward_images(args.reward_images)
    graph = PrunableGraph.trace(model, torch.zeros(1, *found.image_shape))
    subnets = draw(graph, Budget(graph.cost, args.pruned_flops), args.subnets)
    scores = {count: score(graph, model, found, subnets, count) for count in args.images}
    left = np.array([tuned(model, found, subnet, args.finetune_epochs) for subnet in subnets])
    result: dict[str, Any] = {
        "settings": {k: v for k, v in vars(args).items() if k not in ("weights", "data_dir")},
        "widths": [subnet.widths.tolist() for subnet in subnets],
        "finetuned": left.round(4).tolist(),
        "scores": {},
    }
    for count, found_scores in scores.items():
        told = [compare(one, left) for one in found_scores]
        result["scores"][count] = {
            "accuracies": found_scores.round(4).tolist(),
            "rank_correlation": [round(one[0], 3) for one in told],
            "finetuned_of_the_best_quarter": [round(one[1], 4) for one in told],
        }
        print(
            f"{count:5d} images: rank correlation {mean([t[0] for t in told])}, the best quarter "
            f"{mean([100 * t[1] for t in told])} %"
        )
    print(f"all of them fine-tuned: {100 * left.mean():.2f} %, the best {100 * left.max():.2f} %")
    if args.result:
        write_result(args.result, result)


def draw(graph: PrunableGraph, budget: Budget, count: int) -> list[Subnet]:
    """The even ratio, then ratios farther and farther from it, all fitted to the budget."""
    source = np.random.default_rng(0)
    spread = np.linspace(0, _FARTHEST, count)[:, None]
    ratios = budget.uniform_ratio() + spread * source.standard_normal((count, len(graph.groups)))
    fitted = budget.fitted(ratios.clip(0.01, budget.a_max))
    widths = np.empty(fitted.shape, dtype=np.int64)
    for group in range(len(graph.groups)):
        only = slice(group, group + 1)
        low, full = budget.min_widths[only], budget.full_widths[only]
        widths[:, group] = budget.width(fitted[:, group], group, low, full)
    assert (budget.cost.macs(widths) <= budget.macs).all()
    return [graph.subnet(row.tolist()) for row in widths]


def score(
    graph: PrunableGraph,
    model: torch.nn.Module,
    images: data.ImageData,
    subnets: list[Subnet],
    count: int,
) -> NDArray[np.float64]:
    """Accuracies [seeds, S] with the statistics of `count` images."""
    rows = []
    for seed in range(_SEEDS if count else 1):
        sample = training_sample(images, count, seed)
        scorer = Evaluator(
            graph, images.normalised(images.reward), images.reward.labels, "auto", sample
        )
        scorer.load_weights(model)
        rows.append(scorer.accuracies(subnets))
    return np.stack(rows)


def tuned(model: torch.nn.Module, images: data.ImageData, subnet: Subnet, epochs: int) -> float:
    """Test accuracy after a short fine-tuning, with the same order of images for all."""
    small = compaction.compact(model, subnet)
    finetune.run(
        small,
        images,
        finetune.config(WeightsConfig(), _FINETUNE_LR),
        epochs=epochs,
        seed=0,
        state=None,
        on_epoch=lambda record, state: None,
    )
    test = images.test
    reached = accuracy(small.eval(), test.images, test.labels, images.normalisation)
    print(f"{' '.join(map(str, subnet.widths.tolist()))}: {100 * reached:.2f} %", flush=True)
    return reached


def compare(scores: NDArray[np.float64], left: NDArray[np.float64]) -> tuple[float, float]:
    """Spearman's correlation, and the mean of `left` where the scores are in the best quarter."""
    best = np.argsort(-scores, kind="stable")[: max(1, len(scores) // 4)]
    return rank_correlation(scores, left), float(left[best].mean())


def mean(values: list[float]) -> str:
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
