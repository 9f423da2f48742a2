"""Does the native evaluator scale? With sub-networks, with threads, and in memory.

    python benchmarks/bench_scaling.py --result scaling-resnet56

Turns of one, ten and a hundred sub-networks on one and on all threads, interleaved, each round on
the same sub-networks. Also the share that preparation has: folding and transforming the weights
once per epoch, packing once per sub-network.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
from machine import describe, write_result

import rlal_fast as rf
from rlal_fast.agents import RandomAgent
from rlal_fast.env import PruningEnv
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet56")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--result", default="")
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = (
        torch.randn(args.images, 3, 32, 32),
        torch.zeros(args.images, dtype=torch.int64),
    )
    graph = PrunableGraph.trace(rf.models.create(args.arch, 10).eval(), images[:1])
    evaluator = Evaluator(graph, images, labels, "native")
    env = PruningEnv(graph, Budget(graph.cost, 0.5), Evaluator(graph, images[:1], labels[:1]))
    subnets = env.rollout(RandomAgent(0.8), 100, None, torch.Generator().manual_seed(0)).subnets

    def seconds(count: int, threads: int) -> float:
        """Per sub-network, over all hundred, `count` in a call."""
        torch.set_num_threads(threads)
        start = time.perf_counter()
        for first in range(0, len(subnets), count):
            evaluator.accuracies(subnets[first : first + count])
        return (time.perf_counter() - start) / len(subnets)

    evaluator.accuracies(subnets[:2])
    before = peak_mebibytes()
    kinds = [(1, args.threads), (10, args.threads), (100, args.threads), (100, 1)]
    times: dict[tuple[int, int], list[float]] = {kind: [] for kind in kinds}
    for _ in range(args.rounds):
        for kind in kinds:
            times[kind].append(seconds(*kind))
    grown = peak_mebibytes() - before
    torch.set_num_threads(1)
    start = time.perf_counter()
    evaluator.load_weights(graph.model)
    load = time.perf_counter() - start

    # one block of images, whose own work is known, and else only what precedes it
    lanes = {"avx512": 16, "avx2": 8}.get(describe()["rlal_fast"]["isa"], 4)
    few = Evaluator(graph, images[:lanes], labels[:lanes], "native")
    few.accuracies(subnets)
    start = time.perf_counter()
    few.accuracies(subnets)
    alone = statistics.median(times[(100, 1)])
    pack = (time.perf_counter() - start) / len(subnets) - alone * lanes / args.images

    def ratio(a: tuple[int, int], b: tuple[int, int]) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    many = (100, args.threads)
    found = {
        "one_call_of_100_against_100_of_one": ratio(many, (1, args.threads)),
        "one_call_of_100_against_10_of_ten": ratio(many, (10, args.threads)),
        "threads": args.threads,
        "speed_up_by_threads": ratio((100, 1), many),
        "peak_memory_grown_mebibytes": grown,
        "load_weights_seconds_per_epoch": load,
        "pack_seconds_per_subnet": pack,
        "pack_share_of_5000_images": pack / (alone * 5000 / args.images),
        "seconds_per_subnet_one_thread": alone,
    }
    print(f"{args.arch}, {args.images} images, {describe()['cpu']}")
    for (count, threads), values in times.items():
        spread = f"{min(values):.4f} to {max(values):.4f}"
        print(f"{count:>4} a call, {threads} threads: {statistics.median(values):.4f} s ({spread})")
    for name, value in found.items():
        print(f"{name}: {value:.4g}")
    if args.result:
        write_result(args.result, {"settings": vars(args), "found": found})


if __name__ == "__main__":
    main()
