"""Scores a few sub-networks in every precision and on both paths; for compute-sanitizer.

    compute-sanitizer --error-exitcode 1 python benchmarks/sanitize_gpu.py

Small, as each kernel runs many times slower under it. Exit status 1: logits differ from those of
the torch twin by more than the precision explains. 2: no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from gpu_bench.networks import random_subnets
from gpu_bench.session import device_here
from gpu_bench.systems import LARGEST_ERROR

import rlal_fast as rf
from rlal_fast.errors import InputError
from rlal_fast.evaluator import Evaluator
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels.cuda import PRECISIONS
from rlal_fast.recalibration import recalibrate

_SUBNETS = 3


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet8", help="any that rlal_fast.models knows")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=16)
    parser.add_argument("--paths", default="whole,layers")
    args = parser.parse_args(given)
    device = device_here()
    if isinstance(device, str):
        print(f"sanitize_gpu: {device}", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    images = torch.randn(args.images, 3, args.image_size, args.image_size)
    labels = torch.arange(args.images) % 10
    model = rf.models.create(args.arch, 10).eval()
    recalibrate(model, torch.randn(64, *images.shape[1:]))
    graph = PrunableGraph.trace(model, images[:1])
    subnets = random_subnets(graph, _SUBNETS, seed=0)
    # on the CPU, so that no kernel but ours runs under the sanitizer
    twin = Evaluator(graph, images, labels, "torch")
    truths = [twin.logits(subnet) for subnet in subnets]
    failed = False
    for precision in PRECISIONS:
        for path in args.paths.split(","):
            try:
                evaluator = Evaluator(graph, images, labels, "cuda", precision=precision, path=path)
                evaluator.accuracies(subnets)
            except InputError as error:
                print(f"{args.arch} {precision} {path}: left out: {error}")
                continue
            errors = [
                float((evaluator.logits(subnet) - truth).abs().max() / truth.abs().max())
                for subnet, truth in zip(subnets, truths, strict=True)
            ]
            good = all(error <= LARGEST_ERROR[precision] for error in errors)  # nan is not
            failed |= not good
            note = "" if good else "  too large"
            print(f"{args.arch} {precision} {path}: largest logit error {max(errors):.1e}{note}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
