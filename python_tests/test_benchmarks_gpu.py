"""The GPU benchmark: run on the emulator, where all but the times is as on a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rlal_fast as rf
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import cuda
from rlal_fast.recalibration import recalibrate

# they are scripts, and so find each other
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_gpu
import machine
import peers
import sanitize_gpu
from gpu_bench import rewards, systems, tables
from gpu_bench.ceilings import Ceilings
from gpu_bench.clocks import Budget, OverTimeError, spread, time_limit
from gpu_bench.networks import Case, Scene, random_subnets
from gpu_bench.session import Session, device_here
from gpu_bench.turns import Contender, take_turns
from peers.folded import FoldedNetwork
from peers.fx_network import fx_network

BENCHMARKS = Path(bench_gpu.__file__).parent
HERE = device_here()
COUNT = 7  # images; with batches of 3 the last is not full
needs_kernels = pytest.mark.skipif(isinstance(HERE, str), reason=f"{HERE}")
needs_emulator = pytest.mark.skipif(not cuda.emulated(), reason="not built for the emulator")
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}


def traced(arch: str, size: int) -> PrunableGraph:
    model = rf.models.create(arch, 10).eval()
    recalibrate(model, torch.randn(16, 3, size, size))
    return PrunableGraph.trace(model, torch.zeros(1, 3, size, size))


def error(logits: torch.Tensor, truth: torch.Tensor) -> float:
    return float((logits - truth).abs().max() / truth.abs().max())


# -- peers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet8", "mobilenet_v2"])
@pytest.mark.parametrize("key", peers.GPU_ENTRIES)
def test_peers_on_a_device_give_the_logits_of_the_reference(key: str, arch: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if why := peers.missing_on(key, device):
        pytest.skip(why)
    if key == "compiled-fp16" and (arch != "resnet8" or shutil.which("g++") is None):
        pytest.skip("compiling takes too long here, or there is no compiler")
    graph, images = traced(arch, 16), torch.randn(COUNT, 3, 16, 16)
    subnets = random_subnets(graph, 1 if peers.GPU_ENTRIES[key].once else 2, seed=1)
    steps = [FoldedNetwork(graph).cut(subnet) for subnet in subnets]
    truths = [fx_network(cut).double()(images.double()) for cut in steps]
    for mode in peers.load(key).modes:
        peer = peers.load(key)(graph, images.to(device), peers.Setting(3, mode, 1))
        peer.load()
        for subnet, truth in zip(subnets, truths, strict=True):
            logits = peer.prepare(subnet)().clone().cpu()
            assert logits.shape == (COUNT, 10)
            assert logits.dtype == torch.float32
            assert error(logits, truth) < TOLERANCE["fp16" if "fp16" in key else "fp32"]


def test_filled_up_widths_are_multiples_and_change_no_logit() -> None:
    graph, images = traced("mobilenet_v2", 16), torch.randn(COUNT, 3, 16, 16)
    (subnet,) = random_subnets(graph, 1, seed=2)
    cut = FoldedNetwork(graph).cut(subnet)
    filled = FoldedNetwork(graph).cut(subnet, multiple=8)
    rows = [len(step.weight) for step in filled[:-1] if step.weight is not None]
    assert any(len(s.weight) % 8 for s in cut[:-1] if s.weight is not None)
    assert all(count % 8 == 0 for count in rows)
    assert error(fx_network(filled)(images), fx_network(cut)(images)) < 1e-5


class AfterAFlatten(nn.Module):
    """Linear layers that read several pixels of a channel, and one whose width can be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.inner, self.last = nn.Linear(12 * 9, 21), nn.Linear(21, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.inner(torch.relu(self.stem(x)).flatten(1))))


def test_filling_up_reaches_through_a_flatten() -> None:
    graph, images = (
        PrunableGraph.trace(AfterAFlatten().eval(), torch.zeros(1, 3, 5, 5), groups="all"),
        torch.randn(COUNT, 3, 5, 5),
    )
    (subnet,) = graph.subnets([[5, 13]])
    cut, filled = (FoldedNetwork(graph).cut(subnet, multiple) for multiple in (1, 8))
    assert [s.weight.shape[:2] for s in filled if s.weight is not None] == [
        (8, 3),
        (16, 8 * 9),
        (5, 16),
    ]
    assert error(fx_network(filled)(images), fx_network(cut)(images)) < 1e-5


def test_filling_up_leaves_what_a_shortcut_widens() -> None:
    graph = PrunableGraph.trace(
        rf.models.create("resnet8", 10).eval(), torch.zeros(1, 3, 8, 8), groups="all"
    )
    (subnet,) = graph.subnets([np.maximum(graph.full_widths - 3, 1)])
    one, filled = (FoldedNetwork(graph).positions(subnet, multiple) for multiple in (1, 8))
    assert all(np.array_equal(one[index], filled[index]) for index in one)


# -- time ------------------------------------------------------------------------------------------


def test_contenders_take_turns_until_the_budget_is_gone() -> None:
    order: list[str] = []

    def contender(name: str, seconds: float, expected: float, most: int) -> Contender:
        def turn(_number: int) -> float:
            order.append(name)
            time.sleep(seconds)
            return seconds

        return Contender(name, turn, expected, most)

    quick, slow = contender("quick", 0.0, 0.0, 3), contender("slow", 0.0, 0.01, 2)
    endless = contender("endless", 0.0, 1e6, 2)
    take_turns([slow, endless, quick], Budget.of(5))
    assert order == ["quick", "slow", "quick", "slow", "quick"]
    assert quick.left_out == ""
    assert "1000000.0 s" in endless.left_out
    greedy = contender("greedy", 0.3, 0.3, 100)
    take_turns([greedy, *(contender(f"{i}", 0.0, 0.0, 1) for i in range(9))], Budget.of(1.5))
    assert 1 <= len(greedy.seconds) <= 3
    assert greedy.left_out == f"{len(greedy.seconds)} of 100 turns fitted into the time"


def test_a_failure_ends_all_turns() -> None:
    def fail(_number: int) -> float:
        raise RuntimeError("an illegal memory access")

    bad, never = Contender("bad", fail, 0.0, 3), Contender("never", lambda _: 1.0, 1.0, 3)
    take_turns([bad, never], Budget.of(60))
    assert isinstance(bad.error, RuntimeError)
    assert bad.left_out == "failed in turn 1"
    assert not never.seconds


def test_time_limit_stops_what_takes_longer() -> None:
    with pytest.raises(OverTimeError), time_limit(0.05):
        time.sleep(5)
    with time_limit(60):
        pass


def test_spread_is_of_the_values() -> None:
    assert spread([]) == {}
    assert set(spread([2.0]).values()) == {2.0}
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found["first_quartile"], found["median"], found["third_quartile"]) == (2.0, 3.0, 4.0)
    assert (found["min"], found["max"]) == (1.0, 5.0)


def test_floor_is_the_slower_of_moving_and_computing() -> None:
    ceilings = Ceilings(10.0, {"fp32": 2.0, "fp16": 4.0}, 64)
    assert ceilings.floor(100.0, 8.0, "fp32") == 10.0
    assert ceilings.floor(10.0, 8.0, "fp32") == 4.0
    assert ceilings.floor(10.0, 8.0, "fp16") == 2.0


# -- rewards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 1, 2, 3], [1, 2, 2, 3], 0.8),  # 4 pairs agree, 0 do not, one tie on either side
    ],
)
def test_kendall_tau_b(first: list[float], second: list[float], expected: float) -> None:
    assert rewards.kendall_tau_b(first, second) == pytest.approx(expected)


def test_kendall_tau_b_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    one, two = np.random.randint(0, 20, 100), np.random.randint(0, 20, 100)
    expected = stats.kendalltau(one, two).statistic
    assert rewards.kendall_tau_b(one, two) == pytest.approx(expected)
    assert np.isnan(rewards.kendall_tau_b([1, 1], [1, 2]))


# -- the program -----------------------------------------------------------------------------------


@needs_emulator
def test_the_whole_program_on_the_emulator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    given = ["--emulated", "--quick", "--budget", "120", "--output", str(path)]
    assert bench_gpu.main(given) == 0
    result = json.loads(path.read_text())
    assert result["failures"] == []
    assert list(result["sections"]) == ["resnet8", "kernels", "joint", "rewards"]
    rows = result["sections"]["resnet8"]["rows"]
    timed = [row for row in rows if "turns" in row]
    for precision in cuda.PRECISIONS:
        for path_name in ("whole", "layers"):
            mine = [r for r in timed if r["system"] == f"rlal_fast-{precision}-{path_name}"]
            assert [row["subnets_per_call"] for row in mine] == [1, 2]
    for row in timed:
        seconds = row["seconds_per_subnet"]
        assert 0 < seconds["first_quartile"] <= seconds["median"] <= seconds["third_quartile"]
        assert row["relative_logit_difference"] <= systems.LARGEST_ERROR[row["precision"]]
        assert row["predictions_compared"] == 12
    assert {row["system"] for row in rows} >= set(peers.GPU_ENTRIES)
    shown = capsys.readouterr().out
    assert "PyTorch CUDA graph, compact, folded, fp16: needs a GPU" in shown
    assert "needs real images: --data-dir" in shown
    again = json.loads(json.dumps(result))  # what the file holds can be shown too
    tables.show(again)


@needs_emulator
def test_it_goes_on_without_what_lost_the_device(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    lost = "resnet8/rlal_fast-fp32-whole"
    machine.write_result(
        path, {"sections": {"kernels": {"rows": []}}, "failures": ["lost"], "lost": [lost]}
    )
    given = ["--emulated", "--quick", "--sections", "resnet8,kernels", "--peers", ""]
    assert bench_gpu.main([*given, "--continue", "--output", str(path)]) == 1
    result = json.loads(path.read_text())
    assert result["failures"] == ["lost"]
    assert result["sections"]["kernels"] == {"rows": []}
    rows = {row["system"]: row for row in result["sections"]["resnet8"]["rows"]}
    assert "lost the device" in rows["rlal_fast-fp32-whole"]["left_out"]
    assert rows["rlal_fast-fp32-layers"]["turns"] > 0


@needs_kernels
def test_wrong_logits_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(Case("tiny", "resnet8", 10, 6, 8, 6, (1,)), _device())
    (subnet,) = scene.subnets(1, 0)
    system = systems.ours(scene, "fp32", "layers")
    truth = scene.truth(subnet)
    assert systems.agreement(system, scene, {subnet: truth})["differing_predictions"] == 0
    truth[3, 2] += 0.01 * truth.abs().max()
    with pytest.raises(systems.DisagreesError, match=r"relative logit difference 1\.0e-02"):
        systems.agreement(system, scene, {subnet: truth})


def _device() -> torch.device:
    assert isinstance(HERE, torch.device)
    return HERE


@needs_kernels
def test_sanitize_gpu_runs_every_precision_and_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize_gpu.main(["--images", "3", "--image-size", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(cuda.PRECISIONS)
    assert all("largest logit error" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_gpu.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("bench_gpu: ")
    python = {**os.environ, "PYTHON": sys.executable}
    found = subprocess.run(
        [BENCHMARKS / "run_gpu.sh"], env=python, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("run_gpu: no ")


def test_unknown_sections_and_peers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--sections", "--peers"):
        with pytest.raises(SystemExit, match="2"):
            bench_gpu.arguments([option, "nobody"])
        assert "nobody" in capsys.readouterr().err


def test_a_lost_device_is_told_from_a_failed_system() -> None:
    session = Session(torch.device("cpu"), quick=True, peers=[])
    session.check_device("resnet8")  # a CPU is never lost
    assert session.described(RuntimeError("first\nsecond")) == "RuntimeError: first"


def test_commit_of_sources_without_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAL_FAST_COMMIT", "0123456789ab")
    assert machine.describe()["commit"] == "0123456789ab"
    monkeypatch.delenv("RLAL_FAST_COMMIT")
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.describe()["commit"] == "unknown"
