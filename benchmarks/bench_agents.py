"""Best reward of each agent on a trained network whose weights stand still, at equal evaluations.

    python benchmarks/bench_agents.py --weights full.safetensors --data-dir DIR --evaluations 200

Every agent walks through the same environment under the same exact budget (`JointTrainer` with
epochs=0), so all its sub-networks are within it. The test accuracy of the best structure, not
fine-tuned, stands beside its reward; nothing was chosen by it. Uniform ratios are one sub-network.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from machine import write_result

import rlal_fast as rf
from rlal_fast import compaction, data


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--weights", required=True, help="full weights (.safetensors)")
    parser.add_argument("--data-dir", required=True, help="an image folder")
    parser.add_argument("--pruned-flops", type=float, default=0.5)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--episodes-per-epoch", type=int, default=10)
    parser.add_argument(
        "--reward-fraction", type=float, default=0.1, help="fewer: quicker, noisier"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--agents",
        nargs="+",
        default=["uniform", "random", "evolutionary", "ddpg", "sac", "sac-ee"],
        help="of agents.AGENTS; -ee: with the environment model",
    )
    parser.add_argument("--result", help="name of the file under results/")
    return parser.parse_args()


def search(
    args: argparse.Namespace, images: data.ImageData, agent: str, seed: int
) -> rf.JointResult:
    model = rf.models.create(args.arch, images.num_classes)
    compaction.load_full(model, args.weights)
    rounds = 1 if agent == "uniform" else args.evaluations // args.episodes_per_epoch
    config = rf.JointConfig(
        epochs=0,
        search_epochs=rounds,
        episodes_per_epoch=1 if agent == "uniform" else args.episodes_per_epoch,
        random_epochs=0 if agent == "uniform" else None,
        finetune_epochs=0,
        pruned_flops=args.pruned_flops,
        agent=agent.removesuffix("-ee"),
        epoch_embedding=agent.endswith("-ee"),
        seed=seed,
    )
    return rf.JointTrainer(model, images, config).fit()


def main() -> None:
    args = arguments()
    images = data.load("imagefolder", args.data_dir, reward_fraction=args.reward_fraction)
    rows: list[dict[str, Any]] = []
    for agent in args.agents:
        for seed in range(1 if agent == "uniform" else args.seeds):
            result = search(args, images, agent, seed)
            report = result.report
            assert report.pruned_flops >= args.pruned_flops
            rewards = [reward for record in result.metrics for reward in record["rewards"]]
            rows.append(
                {
                    "agent": agent,
                    "seed": seed,
                    "evaluations": report.episodes,
                    "best_reward": report.best_reward,
                    "mean_reward": statistics.mean(rewards),
                    "test_accuracy": report.accuracy_before_finetuning,
                    "widths": result.structure.widths.tolist(),
                    "pruned_flops": report.pruned_flops,
                    "seconds": report.seconds,
                }
            )
            print(
                f"{agent:<12} seed {seed}  {report.episodes:>4} evaluations  best reward "
                f"{report.best_reward:.4f}  mean of all {statistics.mean(rewards):.4f}  test "
                f"{report.accuracy_before_finetuning:.4f}  widths {rows[-1]['widths']}",
                flush=True,
            )
    for agent in args.agents:
        best = [row["best_reward"] for row in rows if row["agent"] == agent]
        spread = statistics.stdev(best) if len(best) > 1 else 0.0
        print(f"{agent:<12} mean of best {statistics.mean(best):.4f} +- {spread:.4f}")
    if args.result:
        settings = {**vars(args), "weights": Path(args.weights).name, "data_dir": None}
        print(write_result(args.result, {"settings": settings, "rows": rows}).name)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
