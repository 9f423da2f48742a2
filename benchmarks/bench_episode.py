"""Seconds to score many sub-networks of one network: the native evaluator against PyTorch.

    python benchmarks/bench_episode.py --weights full.safetensors --data-dir DIR --subnets 100

Every system scores the same random sub-networks, all within the budget, on the same images with the
same threads, set-up inside the clock (masking, cutting, compiling, packing). They take turns, a few
sub-networks each; before the clock starts, each must give the logits of the float64 reference.
Without --data-dir the images are random: speed is the same, accuracies mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch._inductor.config
from machine import describe, write_result
from torch import Tensor, nn

import rlal_fast as rf
from rlal_fast import compaction, data
from rlal_fast.agents import RandomAgent
from rlal_fast.env import PruningEnv
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import reference
from rlal_fast.subnet import Subnet

Scored = tuple[float, Tensor]  # accuracy, logits of the first images
_CHECKED = 64


class Native:
    """rlal_fast: all sub-networks of a turn in one call.

    Each turn makes a new evaluator: laying out the images, folding and transforming the weights are
    set-up, and so are inside its clock, although a run pays the first once and the rest per epoch.
    """

    name = "rlal_fast native"

    def __init__(self, graph: PrunableGraph, images: Tensor, labels: Tensor) -> None:
        self.given = graph, images, labels

    def accuracies(self, subnets: list[Subnet]) -> list[float]:
        return Evaluator(*self.given, "native").accuracies(subnets).tolist()

    def logits(self, subnet: Subnet) -> Tensor:
        return Evaluator(*self.given, "native").logits(subnet)[:_CHECKED]


class Torch:
    """A PyTorch way: `prepare` makes a module of a sub-network, then batches go through it."""

    def __init__(
        self,
        name: str,
        prepare: Callable[[Subnet], nn.Module],
        images: Tensor,
        labels: Tensor,
        batch: int,
    ) -> None:
        self.name, self.prepare = name, prepare
        self.batches = list(zip(images.split(batch), labels.split(batch), strict=True))
        self.count, self.first = len(labels), images[:_CHECKED]

    @torch.no_grad()
    def accuracies(self, subnets: list[Subnet]) -> list[float]:
        found = []
        for subnet in subnets:
            module = self.prepare(subnet)
            hits = sum(int((module(x).argmax(1) == y).sum()) for x, y in self.batches)
            found.append(hits / self.count)
        return found

    @torch.no_grad()
    def logits(self, subnet: Subnet) -> Tensor:
        return self.prepare(subnet)(self.first)


def masked(model: nn.Module) -> Callable[[Subnet], nn.Module]:
    """The usual way to try a sub-network: the full network with the removed channels zeroed."""
    copy = rf.compact(model, PrunableGraph.trace(model, _EXAMPLE).full_subnet())
    original = {name: t.clone() for name, t in model.state_dict().items()}

    def prepare(subnet: Subnet) -> nn.Module:
        state = {name: t.clone() for name, t in original.items()}
        for group, kept in zip(subnet.graph.groups, subnet.kept, strict=True):
            removed = np.setdiff1d(np.arange(group.width), kept)
            for member in group.members:
                state[member.tensor][member.rows[removed].reshape(-1)] = 0
        copy.load_state_dict(state)
        return copy

    return prepare


def compiled(model: nn.Module) -> Callable[[Subnet], nn.Module]:
    """torch.compile of the compact network; each sub-network has other shapes, so each compiles."""

    # A sub-network of a search is new: what an earlier run compiled must not be found on disk.
    torch._inductor.config.force_disable_caches = True

    def prepare(subnet: Subnet) -> nn.Module:
        torch.compiler.reset()
        module: nn.Module = torch.compile(rf.compact(model, subnet), dynamic=False)
        return module

    return prepare


def compact_channels_last(model: nn.Module) -> Callable[[Subnet], nn.Module]:
    return lambda subnet: rf.compact(model, subnet).to(memory_format=torch.channels_last)


def check(system: Native | Torch, graph: PrunableGraph, subnet: Subnet, images: Tensor) -> float:
    """Largest logit error relative to the largest logit; a system that is wrong is not timed."""
    state = {name: t.double() for name, t in graph.model.state_dict().items()}
    kept = graph.kept_positions(subnet)
    truth = reference.subnet_logits(graph.nodes, state, kept, images[:_CHECKED].double())
    error = float((system.logits(subnet).double() - truth).abs().max() / truth.abs().max())
    if error > 1e-4:
        raise SystemExit(f"{system.name} disagrees with the reference: {error:.1e}; not timed")
    return error


def best_batch(prepare: Callable[[Subnet], nn.Module], subnet: Subnet, images: Tensor) -> int:
    """Each PyTorch way runs at the batch size that suits it best here."""
    speeds = {}
    part = images[:512]
    for batch in (32, 64, 128, 256, 512):
        module = prepare(subnet)
        with torch.no_grad():
            module(part[:batch])
            start = time.perf_counter()
            for x in part.split(batch):
                module(x)
        speeds[batch] = time.perf_counter() - start
    return min(speeds, key=lambda batch: speeds[batch])


def chunks(subnets: list[Subnet], size: int) -> Iterator[list[Subnet]]:
    for first in range(0, len(subnets), size):
        yield subnets[first : first + size]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--weights", help="full weights (.safetensors); else random ones")
    parser.add_argument("--data-dir", help="an image folder; its reward split is used")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--subnets", type=int, default=100)
    parser.add_argument("--compiled", type=int, default=100, help="sub-networks for torch.compile")
    parser.add_argument("--turn", type=int, default=5, help="sub-networks in one turn")
    parser.add_argument("--pruned-flops", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--result", help="name of the file under results/")
    return parser.parse_args()


_EXAMPLE = torch.zeros(1, 3, 32, 32)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = rf.models.create(args.arch, 10).eval()
    if args.weights:
        compaction.load_full(model, args.weights)
    images, labels = _images(args)
    graph = PrunableGraph.trace(model, _EXAMPLE)
    budget = Budget(graph.cost, args.pruned_flops)
    scorer = Evaluator(graph, images[:1], labels[:1])
    env = PruningEnv(graph, budget, scorer)
    generator = torch.Generator().manual_seed(0)
    subnets = env.rollout(RandomAgent(0.8), args.subnets, None, generator).subnets

    ways = {
        "PyTorch eager, masks": masked(model),
        "PyTorch eager, compact": lambda subnet: rf.compact(model, subnet),
        "PyTorch eager, compact, channels-last": compact_channels_last(model),
    }
    systems: list[Native | Torch] = [Native(graph, images, labels)]
    for name, prepare in ways.items():
        batch = best_batch(prepare, subnets[0], images)
        systems.append(Torch(f"{name}, batch {batch}", prepare, images, labels, batch))
    if args.compiled:
        name = "torch.compile, compact, batch 250, compilation included"
        systems.append(Torch(name, compiled(model), images, labels, 250))
    errors = {system.name: check(system, graph, subnets[0], images) for system in systems}

    times: dict[str, list[float]] = {system.name: [] for system in systems}
    truth: dict[int, list[float]] = {}
    for turn, part in enumerate(chunks(subnets, args.turn)):
        for system in systems:
            if "torch.compile" in system.name and (turn + 1) * args.turn > args.compiled:
                continue
            start = time.perf_counter()
            found = system.accuracies(part)
            times[system.name].append((time.perf_counter() - start) / len(part))
            expected = truth.setdefault(turn, found)
            ties = 1.5 / len(labels)  # an image whose two largest logits are equal to 1e-6
            if max(abs(a - b) for a, b in zip(found, expected, strict=True)) > ties:
                raise SystemExit(f"{system.name} gives {found}, {systems[0].name} {expected}")
        print(
            f"turn {turn + 1}: " + "  ".join(f"{t[-1]:.3f}" for t in times.values() if t),
            flush=True,
        )
    _print(args, times, errors)


def _images(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    if args.data_dir:
        found = data.load("imagefolder", args.data_dir)
        images, labels = found.normalised(found.reward), found.reward.labels
        return images[: args.images], labels[: args.images]
    return torch.randn(args.images, 3, 32, 32), torch.randint(0, 10, (args.images,))


def _print(
    args: argparse.Namespace, times: dict[str, list[float]], errors: dict[str, float]
) -> None:
    ours = next(iter(times.values()))
    rows = []
    machine = describe()
    print(f"{args.arch}, {args.images} images, {machine['threads']} threads, {machine['cpu']}")
    headings = ("system", "s each: median (min-max)", "s per 100", "measured", "ratio", "error")
    print("{:<58}{:>28}{:>11}{:>10}{:>8}{:>9}".format(*headings))
    for name, values in times.items():
        median, mean = statistics.median(values), statistics.mean(values)
        # turn by turn, so that a slow minute of the machine slows both sides of a ratio
        ratio = statistics.median(t / o for t, o in zip(values, ours, strict=False))
        measured = len(values) * args.turn
        spread = f"{median:.3f} ({min(values):.3f}-{max(values):.3f})"
        error = errors[name]
        print(f"{name:<58}{spread:>28}{100 * mean:>11.1f}{measured:>10}{ratio:>8.2f}{error:>9.1e}")
        rows.append(
            {
                "system": name,
                "seconds_per_subnet": {"median": median, "min": min(values), "max": max(values)},
                "seconds_per_100": 100 * mean,
                "subnets_measured": measured,
                "times_ours": ratio,
                "relative_logit_error": error,
            }
        )
    if args.result:
        paths = ("weights", "data_dir")
        settings = {
            k: Path(v).name if k in paths and v else v for k, v in sorted(vars(args).items())
        }
        print(write_result(args.result, {"settings": settings, "rows": rows}).name)


if __name__ == "__main__":
    main()
