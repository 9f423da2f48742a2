"""Seconds to score many sub-networks of one network: the native evaluator against its peers.

    python benchmarks/bench_episode.py --weights full.safetensors --data-dir DIR --subnets 8

Every system scores the same random sub-networks, all within the budget, on the same images with the
same threads in fp32, set-up inside the clock (masking, cutting, folding, exporting, compiling).
They take turns, some sub-networks each. Before the clock starts, each must give the logits of the
float64 reference, and each peer has found the batch size and mode that suit it best here. Without
--data-dir the images are random: speed is the same, accuracies mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peers
import torch
from held import ISAS, hold_to
from machine import describe, write_result
from systems import Native, PerSubnet, System, Turn, best_setting, logit_error
from torch import Tensor, nn

import rlal_fast as rf
from rlal_fast import compaction, data
from rlal_fast.agents import RandomAgent
from rlal_fast.env import PruningEnv
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet

_OURS = "rlal_fast"
_LARGEST_ERROR = 1e-4


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--weights", help="full weights (.safetensors); else random ones")
    parser.add_argument("--data-dir", help="an image folder; its reward split is used")
    parser.add_argument("--image-size", type=int, default=32, help="of random images")
    parser.add_argument("--classes", type=int, default=10, help="without --data-dir")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--subnets", type=int, default=8)
    parser.add_argument("--turn", type=int, default=4, help="sub-networks in one turn")
    parser.add_argument("--pruned-flops", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    known = ",".join(peers.ENTRIES)
    parser.add_argument("--peers", default=known, help=f"of {known}; default: all")
    parser.add_argument("--compiled", type=int, default=2, help="sub-networks for torch.compile")
    parser.add_argument("--isa", choices=ISAS, help="hold every system to this instruction set")
    parser.add_argument("--result", help="name of the file under results/")
    args = parser.parse_args(given)
    args.peers = [name for name in args.peers.split(",") if name]
    if unknown := set(args.peers) - set(peers.ENTRIES):
        parser.error(f"unknown peers {', '.join(sorted(unknown))}: known are {known}")
    return args


def main() -> None:
    args = arguments()
    hold_to(args.isa)
    result = measure(args)
    _print(result)
    if args.result:
        print(write_result(args.result, result).name)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; what it returns is what `write_result` stores."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images, labels, classes = _images(args)
    args.images = len(images)  # there may be fewer than asked for
    graph = _network(args, images, classes)
    subnets = _subnets(graph, args, images[:1], labels[:1])
    missing = {key: why for key in args.peers if (why := peers.missing(key, args.isa))}
    installed = [key for key in args.peers if key not in missing]
    systems, errors = _systems(installed, graph, images, labels, subnets)
    turns = _take_turns(systems, subnets, args)
    kept = graph.cost.macs([subnet.widths for subnet in subnets]).mean()
    return {
        "settings": _settings(args),
        "network": {
            "image_size": images.shape[-1],
            "macs": int(graph.cost.macs(graph.full_widths)),
            "macs_kept": float(kept),
        },
        "versions": _versions(installed),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "missing": {peers.ENTRIES[key].title: why for key, why in missing.items()},
        "rows": [_row(key, systems[key], turns, errors[key], args.turn) for key in systems],
    }


def _systems(
    keys: list[str], graph: PrunableGraph, images: Tensor, labels: Tensor, subnets: list[Subnet]
) -> tuple[dict[str, System], dict[str, float]]:
    """Ours and the peers with their best settings, and the errors of their logits."""
    few, threads = _few(images, labels), torch.get_num_threads()
    systems: dict[str, System] = {_OURS: Native(graph, images, labels)}
    errors = {_OURS: _checked(Native(graph, *few), graph, subnets[:2], images)}
    for key in keys:
        setting = best_setting(peers.load(key), graph, images, subnets[0], threads)
        torch.set_num_threads(threads)
        small = PerSubnet(key, graph, *few, setting)
        errors[key] = _checked(small, graph, subnets[:2], images)
        systems[key] = PerSubnet(key, graph, images, labels, setting)
    return systems, errors


def _network(args: argparse.Namespace, images: Tensor, classes: int) -> PrunableGraph:
    model = rf.models.create(args.arch, classes).eval()
    if args.weights:
        compaction.load_full(model, args.weights)
    else:
        _calibrate(model, images[:32])
    return PrunableGraph.trace(model, images[:1])


def _images(args: argparse.Namespace) -> tuple[Tensor, Tensor, int]:
    """Images, labels and the number of classes."""
    if args.data_dir:
        found = data.load("imagefolder", args.data_dir)
        images, labels = found.normalised(found.reward), found.reward.labels
        return images[: args.images], labels[: args.images], found.num_classes
    images = torch.randn(args.images, 3, args.image_size, args.image_size)
    return images, torch.randint(0, args.classes, (args.images,)), args.classes


@torch.no_grad()
def _calibrate(model: nn.Module, images: Tensor) -> None:
    """Statistics of random weights, so that images differ in their logits and ranges are usual."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    model.eval()


def _subnets(
    graph: PrunableGraph, args: argparse.Namespace, image: Tensor, label: Tensor
) -> list[Subnet]:
    """What a search draws at first: random episodes within the budget."""
    env = PruningEnv(graph, Budget(graph.cost, args.pruned_flops), Evaluator(graph, image, label))
    generator = torch.Generator().manual_seed(0)
    return env.rollout(RandomAgent(0.8), args.subnets, None, generator).subnets


def _few(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Enough to compare logits by; 64-bit convolutions of large images are slow."""
    count = 61 if images.shape[-1] <= 64 else 5  # odd: the last batch is never full
    return images[:count], labels[:count]


def _checked(system: System, graph: PrunableGraph, subnets: list[Subnet], images: Tensor) -> float:
    """A system that is wrong is not timed; the second sub-network finds what the first left."""
    found = zip(system.logits(subnets), subnets, strict=True)
    error = max(logit_error(logits, graph, s, images[: len(logits)]) for logits, s in found)
    print(f"{system.title} ({system.setting}): largest logit error {error:.1e}", flush=True)
    if error > _LARGEST_ERROR:
        raise SystemExit(f"{system.title} disagrees with the reference; nothing is timed")
    return error


def _take_turns(
    systems: dict[str, System], subnets: list[Subnet], args: argparse.Namespace
) -> dict[str, list[Turn]]:
    """Interleaved: a slow minute of the machine slows all systems alike."""
    turns: dict[str, list[Turn]] = {key: [] for key in systems}
    for first in range(0, len(subnets), args.turn):
        part = subnets[first : first + args.turn]
        for key, system in systems.items():
            mine = part[: max(0, args.compiled - first)] if key == "compiled" else part
            if mine:
                turns[key].append(system.turn(mine))
                _agree(system.title, turns[key][-1], turns[_OURS][-1], args.images)
        each = (f"{key} {found[-1].seconds:.3f}" for key, found in turns.items() if found)
        print(f"{first + len(part)} of {len(subnets)}, s each: {', '.join(each)}", flush=True)
    return turns


def _agree(title: str, turn: Turn, ours: Turn, images: int) -> None:
    ties = 1.5 / images  # an image whose two largest logits are equal to 1e-6
    for theirs, expected in zip(turn.accuracies, ours.accuracies, strict=False):
        if abs(theirs - expected) > ties:
            raise SystemExit(f"{title} finds an accuracy of {theirs}, rlal_fast {expected}")


def _row(
    key: str, system: System, turns: dict[str, list[Turn]], error: float, size: int
) -> dict[str, Any]:
    mine = turns[key]
    pairs = zip(mine, turns[_OURS], strict=False)
    return {
        "system": key,
        "title": system.title,
        "setting": system.setting,
        "seconds_per_subnet": _spread([turn.seconds for turn in mine]),
        "setup_seconds_per_subnet": _spread([turn.setup for turn in mine]),
        "run_seconds_per_subnet": _spread([turn.run for turn in mine]),
        # turn by turn, as a slow minute of the machine slows both sides of a ratio
        "times_ours": _spread([turn.seconds / ours.seconds for turn, ours in pairs]),
        "subnets_measured": sum(len(turn.accuracies) for turn in mine),
        "relative_logit_error": error,
        "setup_is_paid": f"once per turn of {size}" if key == _OURS else "per sub-network",
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    paths = ("weights", "data_dir")  # their places are nobody's business
    return {k: Path(v).name if k in paths and v else v for k, v in sorted(vars(args).items())}


def _versions(keys: list[str]) -> dict[str, str]:
    packages = {name for key in keys for name in peers.ENTRIES[key].packages}
    return {name: version(name) for name in sorted({"torch", *packages})}


def _print(result: dict[str, Any]) -> None:
    settings, network, machine = result["settings"], result["network"], describe()
    print(
        f"\n{settings['arch']}, {network['macs_kept'] / network['macs']:.1%} of "
        f"{network['macs']:,} MACs kept, {settings['images']} images, {settings['threads']} "
        f"threads, {machine['cpu']}, held to {settings['isa'] or 'nothing'}"
    )
    headings = ("system", "setting", "s each: median (min-max)", "set-up", "run")
    layout = "{:<40}{:<38}{:>26}{:>9}{:>9}{:>27}{:>10}{:>9}"
    print(layout.format(*headings, "times ours", "measured", "error"))
    for row in result["rows"]:
        if row["subnets_measured"]:
            print(layout.format(row["title"], row["setting"], *_figures(row)))
    for title, why in result["missing"].items():
        print(f"{title}: {why}")
    print(f"rlal_fast pays its set-up {result['rows'][0]['setup_is_paid']}, the others each time")


def _figures(row: dict[str, Any]) -> list[str]:
    seconds, ratio = row["seconds_per_subnet"], row["times_ours"]
    return [
        f"{seconds['median']:.3f} ({seconds['min']:.3f}-{seconds['max']:.3f})",
        f"{row['setup_seconds_per_subnet']['median']:.3f}",
        f"{row['run_seconds_per_subnet']['median']:.3f}",
        f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
        f"{row['subnets_measured']}",
        f"{row['relative_logit_error']:.1e}",
    ]


if __name__ == "__main__":
    main()
