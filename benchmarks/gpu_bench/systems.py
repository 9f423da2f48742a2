"""Ours and the peers behind one interface, checked before any clock starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import peers
import torch
from torch import Tensor

from gpu_bench.clocks import host_seconds, synchronize, time_limit
from gpu_bench.networks import Scene
from rlal_fast.evaluator import Evaluator
from rlal_fast.subnet import Subnet

LARGEST_ERROR = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 8e-2}
"""Of a logit, relative to the largest one: what rounding explains, and no more."""
_MOST_PIXELS = 26_000_000  # of a batch: larger ones no longer help, and take much memory
_TRIALS = 3  # batch sizes tried


@dataclass
class System:
    """A way to score sub-networks on the images of a scene.

    Attributes:
        key, title, setting: its name, and what was chosen for it.
        precision: "fp32", "tf32", "fp16" or "bf16".
        logits: of all images, for the check.
        score: all of some sub-networks -> seconds of set-up (0: inside the call) and of running,
            until the host has the results.
        per_call: how many sub-networks `score` is given, each a row of its own.
        load_seconds: what is paid once for many sub-networks; not in `score`.
        once: `score` always runs one sub-network, whose set-up is stated in `setup_once`.
    """

    key: str
    title: str
    setting: str
    precision: str
    logits: Callable[[Subnet], Tensor]
    score: Callable[[Sequence[Subnet]], tuple[float, float]]
    per_call: tuple[int, ...]
    load_seconds: dict[str, float]
    once: bool = False
    setup_once: float = 0.0


class DisagreesError(Exception):
    """A system computes something else than the reference."""


def ours(scene: Scene, precision: str, path: str) -> System:
    """The CUDA evaluator.

    Raises:
        InputError: it has no such path for these sub-networks, or cannot run.
    """
    given = scene.graph, scene.images, scene.labels, "cuda"
    make = partial(Evaluator, *given, precision=precision, path=path)
    evaluator = make()
    model = copy.deepcopy(scene.graph.model).to(scene.device)  # where it is trained
    loading = {
        "images and weights": host_seconds(scene.device, make),
        "weights": host_seconds(scene.device, partial(evaluator.load_weights, model)),
    }

    def score(subnets: Sequence[Subnet]) -> tuple[float, float]:
        return 0.0, host_seconds(scene.device, lambda: evaluator.accuracies(subnets))

    check_accuracies(evaluator, scene)
    return System(
        f"rlal_fast-{precision}-{path}",
        f"rlal_fast {precision}",
        f"path {path}",
        precision,
        evaluator.logits,
        score,
        scene.case.per_call,
        loading,
    )


def check_accuracies(evaluator: Evaluator, scene: Scene) -> None:
    """What is timed counts the right answers of what is checked, also of several in one call."""
    subnets = scene.subnets(3, 0)
    labels = scene.labels.cpu()
    found = evaluator.accuracies(subnets)
    for subnet, accuracy in zip(subnets, found, strict=True):
        expected = float((evaluator.logits(subnet).argmax(1) == labels).double().mean())
        if abs(accuracy - expected) > 1.5 / len(labels):  # one image may be a tie
            raise DisagreesError(f"accuracy {accuracy} in a call of 3, {expected} by its logits")


def of_peer(key: str, scene: Scene, seconds: float) -> System:
    """A peer with the setting that suits it best, found by trial.

    Raises:
        OverTimeError: its set-up or trial takes longer than `seconds`.
    """
    entry, images = peers.GPU_ENTRIES[key], scene.images
    with time_limit(seconds):
        subnet = scene.subnets(1, 0)[0]
        setting = _best_setting(key, scene, subnet)
        peer = peers.load(key)(scene.graph, images, setting)
        loading = {"images and weights": host_seconds(scene.device, peer.load)}
        prepared: dict[Subnet, Callable[[], Tensor]] = {}
        setup = 0.0
        if entry.once:
            setup = host_seconds(
                scene.device, lambda: prepared.setdefault(subnet, peer.prepare(subnet))
            )
            prepared[subnet]()

    def predictor(of: Subnet) -> Callable[[], Tensor]:
        return prepared[subnet] if entry.once else peer.prepare(of)

    def score(subnets: Sequence[Subnet]) -> tuple[float, float]:
        start = time.perf_counter()
        predict = predictor(subnets[0])
        synchronize(scene.device)
        ready = time.perf_counter()
        int((predict().argmax(1) == scene.labels).sum())  # the host waits for it
        return setup or ready - start, time.perf_counter() - ready

    precision = key.rsplit("-", 1)[-1]
    return System(
        key,
        entry.title,
        str(setting),
        precision if precision in LARGEST_ERROR else "fp32",
        lambda of: predictor(of)().clone(),  # a graph writes to the same place again
        score,
        (1,),
        loading,
        entry.once,
        setup,
    )


def _best_setting(key: str, scene: Scene, subnet: Subnet) -> peers.Setting:
    kind = peers.load(key)
    area, count = scene.case.size**2, len(scene.images)
    fitting = [size for size in kind.batches if size <= count and size * area <= _MOST_PIXELS]
    sizes = fitting[-_TRIALS:] or [min(count, _MOST_PIXELS // area)]
    threads = torch.get_num_threads()
    settings = [peers.Setting(size, mode, threads) for mode in kind.modes for size in sizes]
    if len(settings) == 1 or peers.GPU_ENTRIES[key].once:
        return settings[-1]
    seconds = {}
    for setting in settings:
        peer = kind(scene.graph, scene.images, setting)
        peer.load()
        peer.prepare(subnet)()  # the first time sets things up
        seconds[setting] = host_seconds(scene.device, partial(_both, peer, subnet))
    return min(settings, key=lambda setting: seconds[setting])


def _both(peer: peers.Peer, subnet: Subnet) -> None:
    peer.prepare(subnet)()


def agreement(system: System, scene: Scene, truths: dict[Subnet, Tensor]) -> dict[str, Any]:
    """Differences from the reference; the second sub-network finds what the first left behind.

    Raises:
        DisagreesError: a logit differs by more than the precision explains, or is not a number.
    """
    largest, differing, count = 0.0, 0, 0
    for subnet, truth in truths.items():
        logits = system.logits(subnet)[: len(truth)].to(truth)
        error = float((logits - truth).abs().max() / truth.abs().max())
        if not error <= LARGEST_ERROR[system.precision]:  # nan is not
            raise DisagreesError(
                f"relative logit difference {error:.1e}, allowed is "
                f"{LARGEST_ERROR[system.precision]:.0e}"
            )
        largest = max(largest, error)
        differing += int((logits.argmax(1) != truth.argmax(1)).sum())
        count += len(truth)
        if system.once:
            break
    return {
        "relative_logit_difference": largest,
        "differing_predictions": differing,
        "predictions_compared": count,
    }
