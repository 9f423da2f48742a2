"""Systems under the clock: several sub-networks in, accuracies and seconds out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from peers import ENTRIES, Peer, Setting, load
from torch import Tensor

from rlal_fast.evaluator import Evaluator
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import reference
from rlal_fast.subnet import Subnet


@dataclass(frozen=True)
class Turn:
    """What scoring some sub-networks gave and took.

    Attributes:
        accuracies: one per sub-network.
        setup, run: seconds per sub-network. Set-up is all before the first image: cutting, folding,
            exporting, compiling, laying out the images.
    """

    accuracies: list[float]
    setup: float
    run: float

    @property
    def seconds(self) -> float:
        return self.setup + self.run


class System(Protocol):
    """Scores sub-networks of one network on fixed images."""

    title: str
    setting: str

    def turn(self, subnets: Sequence[Subnet]) -> Turn: ...

    def logits(self, subnets: Sequence[Subnet]) -> list[Tensor]: ...


class Native:
    """rlal_fast: all sub-networks of a turn in one call.

    Each turn makes a new evaluator: laying out the images, folding and transforming the weights are
    its set-up, although a search pays the first once and the rest per epoch. What a sub-network
    needs of its own happens inside the call and counts as running.
    """

    title, setting = "rlal_fast native", "all of a turn in one call"

    def __init__(self, graph: PrunableGraph, images: Tensor, labels: Tensor) -> None:
        self._given = graph, images, labels

    def turn(self, subnets: Sequence[Subnet]) -> Turn:
        start = time.perf_counter()
        evaluator = Evaluator(*self._given, "native")
        ready = time.perf_counter()
        accuracies = evaluator.accuracies(subnets).tolist()
        end = time.perf_counter()
        return Turn(accuracies, (ready - start) / len(subnets), (end - ready) / len(subnets))

    def logits(self, subnets: Sequence[Subnet]) -> list[Tensor]:
        evaluator = Evaluator(*self._given, "native")
        return [evaluator.logits(subnet) for subnet in subnets]


class PerSubnet:
    """A peer: set up anew for each sub-network; weights and images are laid out once per turn."""

    def __init__(
        self,
        key: str,
        graph: PrunableGraph,
        images: Tensor,
        labels: Tensor,
        setting: Setting,
    ) -> None:
        self.title, self.setting = ENTRIES[key].title, str(setting)
        self._threads, self._labels = setting.threads, labels
        self._peer = load(key)(graph, images, setting)

    def turn(self, subnets: Sequence[Subnet]) -> Turn:
        torch.set_num_threads(self._threads)
        start = time.perf_counter()
        self._peer.load()
        loaded = time.perf_counter()
        setup, run, accuracies = loaded - start, 0.0, []
        for subnet in subnets:
            start = time.perf_counter()
            predict = self._peer.prepare(subnet)
            ready = time.perf_counter()
            hits = int((predict().argmax(1) == self._labels).sum())
            setup, run = setup + ready - start, run + time.perf_counter() - ready
            accuracies.append(hits / len(self._labels))
        return Turn(accuracies, setup / len(subnets), run / len(subnets))

    def logits(self, subnets: Sequence[Subnet]) -> list[Tensor]:
        self._peer.load()
        return [self._peer.prepare(subnet)() for subnet in subnets]


def logit_error(logits: Tensor, graph: PrunableGraph, subnet: Subnet, images: Tensor) -> float:
    """Largest error against the float64 reference, relative to the largest logit."""
    state = {name: t.double() for name, t in graph.model.state_dict().items()}
    kept = graph.kept_positions(subnet)
    truth = reference.subnet_logits(graph.nodes, state, kept, images.double())
    return float((logits.double() - truth).abs().max() / truth.abs().max())


def best_setting(
    peer: type[Peer], graph: PrunableGraph, images: Tensor, subnet: Subnet, threads: int
) -> Setting:
    """The setting with which a peer is ready first, by trial on some of the images."""
    part = images[: max(32, 256 * 32 * 32 // images[0, 0].numel())]
    fitting = [size for size in peer.batches if size <= len(part)]
    candidates = [
        Setting(size, mode, threads, workers)
        for size in fitting or [len(part)]
        for mode in peer.modes
        for workers in ({1, threads} if peer.workers else {1})
    ]
    seconds: dict[Setting, float] = {}
    for setting in candidates:
        seconds[setting] = _trial(peer(graph, part, setting), subnet, len(images) / len(part))
    best = min(seconds.values())
    close = [setting for setting in candidates if seconds[setting] < 1.25 * best]
    for setting in close if len(close) > 1 and best < 10 else []:
        again = _trial(peer(graph, part, setting), subnet, len(images) / len(part))
        seconds[setting] = min(seconds[setting], again)
    return min(seconds, key=lambda setting: seconds[setting])


def _trial(peer: Peer, subnet: Subnet, times: float) -> float:
    """Seconds for `times` as many images; the first pass may still set things up."""
    peer.load()
    start = time.perf_counter()
    predict = peer.prepare(subnet)
    predict()
    first = time.perf_counter() - start
    start = time.perf_counter()
    predict()
    return first + (times - 1) * (time.perf_counter() - start)
