"""How fast sub-networks are scored on a GPU, against PyTorch's ways and against the chip itself.

    benchmarks/run_gpu.sh          builds, tests, measures
    python benchmarks/bench_gpu.py measures with what is built

End-to-end times (a call until its results are on the host) are taken by the host's clock between
two waits for the device, kernels by CUDA events. Every contender agrees with the float64 twin
before any clock starts, and contenders take turns in one process. Results go to a JSON file after
each section; what did not fit into the time is named there and in the table.

Exit status 1: something disagreed or failed. 2: no GPU. 75: a kernel lost the device; the same
command with --continue goes on without it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peers
import torch
from gpu_bench import ceilings, episodes, joint, kernels, rewards, tables
from gpu_bench.clocks import Budget
from gpu_bench.networks import Case
from gpu_bench.session import LostDeviceError, Session, device_here
from machine import ROOT, describe, write_result

from rlal_fast.errors import InputError

_LOST = 75
CASES = (
    Case("resnet56", "resnet56", 10, 5000, 32, checked=500, compiled=True),
    Case("mobilenet_v2", "mobilenet_v2", 10, 5000, 32, checked=200),
    Case("resnet18-224", "torchvision/resnet18", 1000, 3000, 224, checked=32),
    Case("mobilenet_v2-224", "torchvision/mobilenet_v2", 1000, 3000, 224, checked=32),
)
EMULATED = (Case("resnet8", "resnet8", 10, 6, 8, checked=6, per_call=(1, 2)),)
# The part of the time that a section has, of what it and those after it share.
_WEIGHTS = {
    "resnet56": 30,
    "kernels": 12,
    "joint": 14,
    "mobilenet_v2": 14,
    "resnet18-224": 14,
    "mobilenet_v2-224": 12,
    "rewards": 4,
}
_EMULATED_WEIGHTS = {"resnet8": 50, "kernels": 20, "joint": 20, "rewards": 10}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=300, help="seconds for all sections")
    parser.add_argument("--sections", default="", help=f"of {','.join(_WEIGHTS)}; default: all")
    known = ",".join(peers.GPU_ENTRIES)
    parser.add_argument("--peers", default=known, help=f"of {known}; default: all")
    parser.add_argument("--data-dir", type=Path, help="real images, for joint epochs and rewards")
    parser.add_argument("--dataset", default="cifar10", help="what --data-dir holds")
    parser.add_argument("--quick", action="store_true", help="few turns, a fifth of the images")
    parser.add_argument("--emulated", action="store_true", help="on the CPU: times mean nothing")
    parser.add_argument("--output", type=Path, help="default: results/gpu-<device>.json")
    parser.add_argument(
        "--continue", dest="goes_on", action="store_true", help="see exit status 75"
    )
    args = parser.parse_args(given)
    args.peers = [key for key in args.peers.split(",") if key]
    weights = _EMULATED_WEIGHTS if args.emulated else _WEIGHTS
    args.sections = [name for name in args.sections.split(",") if name] or list(weights)
    for what, names, choices in (
        ("sections", args.sections, weights),
        ("peers", args.peers, peers.GPU_ENTRIES),
    ):
        if unknown := set(names) - set(choices):
            parser.error(f"unknown {what} {', '.join(sorted(unknown))}: there are {[*choices]}")
    return args


def main(given: Sequence[str] | None = None) -> int:
    args = arguments(given)
    device = device_here()
    if isinstance(device, str):
        print(f"bench_gpu: {device}", file=sys.stderr)
        return 2
    if args.emulated != (device.type == "cpu"):
        built = "a GPU" if device.type == "cuda" else "the emulator, whose times mean nothing"
        change = "leave out --emulated" if args.emulated else "add --emulated to try it out"
        print(f"bench_gpu: the extension is built for {built}: {change}", file=sys.stderr)
        return 2
    # fp32 means fp32, of the peers too: cuDNN's convolutions would else round to tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    path = args.output or ROOT / "benchmarks" / "results" / f"gpu-{_slug(device)}.json"
    before = json.loads(path.read_text()) if args.goes_on and path.exists() else {}
    session = Session(
        device, args.quick, args.peers, before.get("failures", []), before.get("lost", [])
    )
    result = {
        "settings": _settings(args),
        "clocks": {
            "episodes": "host clock, from a call until its results are on the host",
            "kernels, ceilings": "host clock" if session.emulated else "CUDA events",
            "joint": "host clock, by the run itself",
        },
        "sections": before.get("sections", {}),
        "failures": session.failures,
        "lost": session.lost,
    }
    try:
        _run(args, session, result, path)
    except LostDeviceError as error:
        session.lost.append(error.what)
        session.failures.append(str(error))
        write_result(path, result)
        print(f"bench_gpu: {error}; --continue goes on without it", file=sys.stderr)
        return _LOST
    except KeyboardInterrupt:
        session.failures.append("stopped from outside before all sections were measured")
    limits = ceilings.Ceilings(**result["ceilings"]) if "ceilings" in result else None
    result["evaluations"] = kernels.evaluations(result["sections"], limits) if limits else []
    write_result(path, result)
    tables.show({"machine": describe(), **result})
    print(f"written: {path.name}")
    return 1 if session.failures else 0


def _run(args: argparse.Namespace, session: Session, result: dict[str, Any], path: Path) -> None:
    """Fills `result`, and the file after each section."""
    budget, sections = Budget.of(args.budget), result["sections"]
    limits = ceilings.measure(session)
    result["ceilings"] = asdict(limits)
    write_result(path, result)
    weights = _EMULATED_WEIGHTS if session.emulated else _WEIGHTS
    waiting = [name for name in weights if name in args.sections and name not in sections]
    while waiting:
        share = weights[waiting[0]] / sum(weights[name] for name in waiting)
        name, part = waiting.pop(0), budget.part(share)
        print(f"{name}: {part.left:.0f} s of {budget.left:.0f} s", flush=True)
        sections[name] = _section(name, args, session, limits, part)
        write_result(path, result)


def _section(
    name: str,
    args: argparse.Namespace,
    session: Session,
    limits: ceilings.Ceilings,
    budget: Budget,
) -> dict[str, Any]:
    """Raises LostDeviceError; everything else that fails is a row that says so."""
    if name in session.lost:
        return {"left_out": "lost the device in an earlier attempt"}
    real = args.data_dir, args.dataset
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "kernels": lambda: {"rows": kernels.measure(session, limits, budget)},
        "joint": lambda: joint.measure(session, budget, *real),
        "rewards": lambda: rewards.measure(session, *real),
    }
    cases = {case.name: case for case in (*CASES, *EMULATED)}
    if name in cases:
        case = _smaller(cases[name]) if session.quick and not session.emulated else cases[name]
        makers[name] = lambda: episodes.measure(case, session, budget)
    try:
        return makers[name]()
    except LostDeviceError:
        raise
    except InputError as error:
        return {"left_out": f"not available: {error}"}
    except Exception as error:
        session.failures.append(f"{name}: {session.described(error)}")
        session.check_device(name)
        return {"left_out": f"failed: {session.described(error)}"}
    finally:
        if not session.emulated:
            torch.cuda.empty_cache()  # the next one's peers choose batch sizes that fill it


def _smaller(case: Case) -> Case:
    kept = {key: value for key, value in vars(case).items() if key != "images"}
    return Case(**kept, images=case.images // 5)


def _slug(device: torch.device) -> str:
    if device.type == "cpu":
        return "emulated"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    places = ("data_dir", "output")  # they are nobody's business
    return {
        key: getattr(value, "name", value) if key in places else value
        for key, value in sorted(vars(args).items())
    }


if __name__ == "__main__":
    # what ends this program from outside leaves the time to show what there is
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = main()
    sys.stdout.flush()
    if status == _LOST:
        os._exit(status)  # what tidies up after CUDA would fail, and change the status
    sys.exit(status)
