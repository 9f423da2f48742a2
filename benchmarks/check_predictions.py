"""Predictions of the native evaluator on a trained network, against torch in double precision.

    python benchmarks/check_predictions.py --data-dir DIR

All test images, the full network and random sub-networks of half its multiply-adds. A prediction
may differ only where the two largest logits are nearer than 1e-5 of the largest: there the order is
rounding. Ends with status 1 if one differs otherwise, or if a logit is off by more than that.
"""

from __future__ import annotations

import argparse
import sys

import torch
import trained
from machine import describe, write_result

from rlal_fast.agents import RandomAgent
from rlal_fast.env import PruningEnv
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import reference

_TIE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    trained.add_options(parser)
    parser.add_argument("--subnets", type=int, default=4)
    parser.add_argument("--result", default="")
    args = parser.parse_args()
    model, found = trained.load(args)
    images, labels = found.normalised(found.test), found.test.labels
    graph = PrunableGraph.trace(model, images[:1])
    evaluator = Evaluator(graph, images, labels, "native")
    drawn = PruningEnv(graph, Budget(graph.cost, 0.5), evaluator).rollout(
        RandomAgent(0.8), args.subnets, None, torch.Generator().manual_seed(0)
    )
    state = {name: t.double() for name, t in model.state_dict().items()}
    rows, failed = [], False
    for name, subnet in [
        ("full", graph.full_subnet()),
        *((f"random {i}", subnet) for i, subnet in enumerate(drawn.subnets)),
    ]:
        kept = graph.kept_positions(subnet)
        truth = torch.cat(
            [
                reference.subnet_logits(graph.nodes, state, kept, part.double())
                for part in images.split(500)
            ]
        )
        ours = evaluator.logits(subnet).double()
        largest = float(truth.abs().max())
        error = float((ours - truth).abs().max()) / largest
        top = truth.topk(2, dim=1).values
        tied = (top[:, 0] - top[:, 1]) < _TIE * largest
        differ = ours.argmax(1) != truth.argmax(1)
        wrong = int((differ & ~tied).sum())
        failed |= wrong > 0 or error > _TIE
        accuracy = float((truth.argmax(1) == labels).double().mean())
        row = {
            "subnet": name,
            "accuracy": accuracy,
            "relative_logit_error": error,
            "ties": int(tied.sum()),
            "predictions_that_differ": int(differ.sum()),
            "of_these_no_tie": wrong,
        }
        rows.append(row)
        print(
            "  ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
        )
    print(f"{len(labels)} test images, {describe()['rlal_fast']['isa']}")
    if args.result:
        write_result(args.result, {"arch": args.arch, "images": len(labels), "rows": rows})
    sys.exit(failed)


if __name__ == "__main__":
    main()
