"""GFLOP/s of each kernel and of whole networks on one thread, beside the machine's own peak.

    pytest -n0 benchmarks/bench_kernels.py
    pytest -n0 benchmarks/bench_kernels.py -k networks --result kernels

A kernel runs as the first operation of a program, again and again on one block of images, and only
its own seconds count; a network runs as in a search. Each must agree with the float64 twin
before it is timed. The peak is that of an assembly loop of fused multiply-adds, measured right
before and right after; convolutions are counted as direct ones, so Winograd's can exceed it.
RLAL_FAST_ISA chooses the instruction set.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import Row, Table
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import rlal_fast as rf
from rlal_fast.agents import RandomAgent
from rlal_fast.env import PruningEnv
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import native, reference
from rlal_fast.recalibration import recalibrate
from rlal_fast.subnet import Subnet

_ROUNDS = 15


@dataclass(frozen=True)
class Case:
    """A convolution of `inputs` to `outputs` channels on images of size x size."""

    inputs: int
    outputs: int
    kernel: int
    size: int
    stride: int = 1
    depthwise: bool = False

    def __str__(self) -> str:
        kind = "depthwise" if self.depthwise else "conv"
        shape = f"{self.inputs} to {self.outputs}, {self.size}x{self.size}"
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{kind} {self.kernel}x{self.kernel}{stride}, {shape}"


CASES = [
    *(Case(i, o, 3, 32) for i, o in ((16, 7), (10, 16), (11, 5), (1, 1), (16, 16))),
    *(Case(i, o, 3, 16) for i, o in ((32, 14), (17, 32))),
    *(Case(i, o, 3, 8) for i, o in ((64, 45), (41, 64))),
    *(Case(i, o, 3, s) for i, o, s in ((39, 64, 56), (119, 128, 28), (103, 256, 14), (97, 512, 7))),
    Case(16, 23, 3, 32, stride=2),
    Case(64, 119, 3, 56, stride=2),
    Case(3, 64, 7, 224, stride=2),
    *(Case(i, o, 1, s) for i, o, s in ((7, 90, 32), (24, 129, 32), (129, 24, 32), (326, 254, 4))),
    *(Case(i, o, 1, s) for i, o, s in ((1023, 1017, 2), (261, 96, 14), (160, 191, 7))),
    Case(64, 128, 1, 56, stride=2),
    *(Case(c, c, 3, s, depthwise=True) for c, s in ((90, 32), (277, 8), (192, 7), (1, 17))),
    Case(109, 109, 3, 32, stride=2, depthwise=True),
]


class OneLayer(nn.Module):
    """The layer of a case, and the least that makes a network of it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        groups = case.inputs if case.depthwise else 1
        self.layer = nn.Conv2d(
            case.inputs, case.outputs, case.kernel, case.stride, case.kernel // 2, groups=groups
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).relu().mean((2, 3))


class Clock:
    """Seconds that a benchmarked call says it took, as pytest-benchmark's timer."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def measure(benchmark: BenchmarkFixture, table: Table, name: str, error: float, work: Work) -> None:
    """Times `work`, with the peak before and after each round."""
    assert error < 1e-4, f"{name} disagrees with its twin: {error:.1e}"
    clock, peaks = Clock(), []
    benchmark._timer = clock

    def run() -> None:
        peaks.append(native.extension().fma_peak())
        clock.now += work.seconds()

    benchmark.pedantic(run, rounds=_ROUNDS, warmup_rounds=1)
    peaks.append(native.extension().fma_peak())
    taken = benchmark.stats.stats.sorted_data
    first, median, third = statistics.quantiles(taken, n=4)
    peak = statistics.median(peaks)
    rates = [work.operations / seconds / 1e9 for seconds in (third, median, first)]
    share = rates[1] * 1e9 / peak if peak else 0.0
    benchmark.extra_info.update(gflops=rates[1], peak_gflops=peak / 1e9, share_of_peak=share)
    table.append(Row(name, rates[1], (rates[0], rates[2]), share, error))


@dataclass(frozen=True)
class Work:
    """A call that says how long it took, and its multiply-adds times two."""

    seconds: Callable[[], float]
    operations: float


def relative_error(graph: PrunableGraph, subnet: Subnet, images: torch.Tensor) -> float:
    """Of the native logits, against the float64 twin."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    found = rf.Evaluator(graph, images, labels, "native").logits(subnet).double()
    state = {name: t.double() for name, t in graph.model.state_dict().items()}
    kept = graph.kept_positions(subnet)
    truth = reference.subnet_logits(graph.nodes, state, kept, images.double())
    return float((found - truth).abs().max() / truth.abs().max())


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(benchmark: BenchmarkFixture, table: Table, case: Case) -> None:
    images = torch.randn(16, case.inputs, case.size, case.size)
    graph = PrunableGraph.trace(OneLayer(case).eval(), images[:1])
    full = graph.full_subnet()
    macs = int(rf.count_macs(graph, graph.full_widths[None])[0])
    times = max(1, round(2e8 / macs / len(images)))  # some milliseconds a round
    evaluator = rf.Evaluator(graph, images, torch.zeros(len(images), dtype=torch.int64), "native")
    laid_out = vars(evaluator)["_backend"]
    mask = laid_out._masks([full])

    def seconds() -> float:
        return sum(laid_out._images.profile(mask)[0] for _ in range(times))

    error = relative_error(graph, full, images)
    measure(benchmark, table, str(case), error, Work(seconds, 2.0 * macs * len(images) * times))


@pytest.mark.parametrize(
    "arch", ["resnet56", "resnet20", "mobilenet_v2", "mobilenet_v1", "torchvision/resnet18"]
)
def test_networks(benchmark: BenchmarkFixture, table: Table, arch: str) -> None:
    """Eight random sub-networks within half of the multiply-adds, in one call."""
    size, count = (224, 32) if arch.startswith("torchvision") else (32, 320)
    images, labels = torch.randn(count, 3, size, size), torch.zeros(count, dtype=torch.int64)
    model = rf.models.create(arch, 10).eval()
    recalibrate(model, images[:32])  # else random weights give every image nearly the same logits
    graph = PrunableGraph.trace(model, images[:1])
    evaluator = rf.Evaluator(graph, images, labels, "native")
    env = PruningEnv(graph, Budget(graph.cost, 0.5), evaluator)
    generator = torch.Generator().manual_seed(0)
    subnets = env.rollout(RandomAgent(0.8), 8, None, generator).subnets
    widths = np.stack([subnet.widths for subnet in subnets])
    macs = int(rf.count_macs(graph, widths).sum()) * count

    def seconds() -> float:
        start = time.perf_counter()
        evaluator.accuracies(subnets)
        return time.perf_counter() - start

    error = max(relative_error(graph, subnet, images[:16]) for subnet in subnets[:2])
    name = f"{arch}, 8 sub-networks of 50 %, {size}x{size}"
    measure(benchmark, table, name, error, Work(seconds, 2.0 * macs))
