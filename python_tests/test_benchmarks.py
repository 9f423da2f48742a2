"""The benchmarks' peers: whoever is timed beside the evaluator must compute what it computes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rlal_fast as rf
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet

# they are scripts, and so find each other
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_episode
import peers
import plot_results
import reward_prediction
from peers.folded import FoldedNetwork
from peers.fx_network import fx_network
from systems import PerSubnet, best_setting, logit_error

COUNT = 7  # images; with batches of 3 the last is not full


class Everything(nn.Module):
    """Each operation that a traced network can have, with an odd form of most."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 5), (1, 2), (1, 2), bias=True)
        self.norm = nn.BatchNorm2d(8)
        self.dilated = nn.Conv2d(8, 11, 3, padding=2, dilation=2, bias=False)
        self.depthwise = nn.Conv2d(11, 11, 3, padding=1, groups=11, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(11)
        self.narrow = nn.Conv2d(11, 8, 1)
        self.alone = nn.BatchNorm2d(8)
        self.inner = nn.Linear(14 * 3 * 2, 13, bias=False)
        self.last = nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        inside = F.relu6(self.depthwise_norm(self.depthwise(self.dilated(x))))
        x = F.relu(x + self.narrow(inside))
        x = self.alone(F.max_pool2d(x, 3, 2, 1, ceil_mode=True))
        x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=True) + F.avg_pool2d(
            x, 3, 1, 1, ceil_mode=True, count_include_pad=False
        )
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 4))
        x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
        return self.last(F.relu(self.inner(F.dropout(x.flatten(1), 0.5, self.training))))


class Pooled(nn.Module):
    """A network that ends in a global pool, as most do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU6(),
            nn.Conv2d(6, 9, 1, bias=False),
            nn.BatchNorm2d(9),
        )
        self.classifier = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def traced(model: nn.Module) -> tuple[PrunableGraph, Tensor, list[Subnet]]:
    """A network whose statistics are not those of initialisation, images, two sub-networks."""
    images = torch.randn(COUNT, 3, 23, 19)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        model.train()(images)
    graph = PrunableGraph.trace(model.eval(), images[:1], groups="all")
    widths = torch.tensor(graph.full_widths)
    subnets = graph.subnets([(widths * part).ceil().int().tolist() for part in (0.7, 0.4)])
    return graph, images, subnets


@pytest.mark.parametrize("network", [Everything, Pooled])
@pytest.mark.parametrize("key", peers.ENTRIES)
def test_peers_give_the_logits_of_the_reference(key: str, network: type[nn.Module]) -> None:
    if why := peers.missing(key):
        pytest.skip(why)
    if key == "compiled" and (network is Everything or shutil.which("g++") is None):
        pytest.skip("compiling takes too long here, or there is no compiler")
    graph, images, subnets = traced(network())
    if key == "compiled":
        del subnets[1:]  # seconds each
    labels = torch.zeros(COUNT, dtype=torch.int64)
    peer = peers.load(key)
    for mode in peer.modes:
        for workers in (1, 2) if peer.workers else (1,):
            setting = peers.Setting(3, mode, workers, workers)
            system = PerSubnet(key, graph, images, labels, setting)
            for logits, subnet in zip(system.logits(subnets), subnets, strict=True):
                assert logits.shape == (COUNT, 5)
                assert logit_error(logits, graph, subnet, images) < 1e-5


def test_a_turn_counts_right_answers_and_seconds() -> None:
    graph, images, subnets = traced(Pooled())
    labels = torch.arange(COUNT) % 5
    setting = peers.Setting(3, "channels-last", 1)
    start = time.perf_counter()
    turn = PerSubnet("folded", graph, images, labels, setting).turn(subnets)
    elapsed = time.perf_counter() - start
    expected = Evaluator(graph, images, labels, "torch").accuracies(subnets)
    assert turn.accuracies == pytest.approx(expected.tolist())
    assert turn.setup > 0
    assert turn.run > 0
    assert 0.5 * elapsed < len(subnets) * turn.seconds < elapsed


def test_folded_network_leaves_the_images_alone() -> None:
    graph, images, subnets = traced(Everything())
    before = images.clone()
    fx_network(FoldedNetwork(graph).cut(subnets[0]))(images)
    assert images.equal(before)


def test_logit_error_sees_one_wrong_logit() -> None:
    graph, images, subnets = traced(Pooled())
    logits = fx_network(FoldedNetwork(graph).cut(subnets[0]))(images)
    assert logit_error(logits, graph, subnets[0], images) < 1e-5
    logits[COUNT - 1, 2] += 0.01 * logits.abs().max()
    assert logit_error(logits, graph, subnets[0], images) == pytest.approx(0.01, rel=0.02)


def test_trial_chooses_among_what_a_peer_can_do() -> None:
    graph, images, subnets = traced(Pooled())
    setting = best_setting(peers.load("folded"), graph, images, subnets[0], threads=2)
    assert setting.batch == 2  # of its sizes the only one that seven images fill
    assert setting.mode in ("channels-first", "channels-last")
    assert setting.workers in (1, 2)


def test_an_absent_package_or_an_unheld_peer_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = peers.Entry("Nobody", "nobody", "Nobody", ("no_such_package",), isas=())
    monkeypatch.setitem(peers.ENTRIES, "nobody", entry)
    assert peers.missing("nobody") == "no_such_package not installed"
    assert peers.missing("folded") is None
    assert peers.missing("folded", "avx2") is None
    monkeypatch.setitem(peers.ENTRIES, "nobody", peers.Entry("Nobody", "nobody", "Nobody", isas=()))
    assert peers.missing("nobody", "avx2") == "cannot be held to avx2"


def test_a_whole_run_and_its_picture(capsys: pytest.CaptureFixture[str]) -> None:
    given = "--arch resnet8 --images 21 --subnets 3 --turn 2 --threads 1 --peers folded,masked"
    result = bench_episode.measure(bench_episode.arguments(given.split()))
    assert [row["system"] for row in result["rows"]] == ["rlal_fast", "folded", "masked"]
    for row in result["rows"]:
        assert row["subnets_measured"] == 3
        assert row["relative_logit_error"] < 1e-5
        low, middle, high = (row["seconds_per_subnet"][name] for name in ("min", "median", "max"))
        assert 0 < low <= middle <= high
    assert result["rows"][0]["times_ours"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert 0 < result["network"]["macs_kept"] <= 0.5 * result["network"]["macs"]
    result["missing"] = {"Nobody": "not installed"}
    (axes,) = plot_results.draw([result]).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [row["title"] for row in result["rows"]]
    for bar, row in zip(axes.patches, result["rows"], strict=True):
        assert bar.get_width() == row["times_ours"]["median"]


def test_wrong_answers_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "--arch resnet8 --images 5 --subnets 1 --turn 1 --threads 1 --peers folded"
    monkeypatch.setattr(bench_episode, "logit_error", lambda *_: 1.0)
    with pytest.raises(SystemExit, match="disagrees with the reference"):
        bench_episode.measure(bench_episode.arguments(given.split()))


def test_held_to_avx2_says_so() -> None:
    if "avx2" not in rf.build_info()["isas"]:
        pytest.skip("this machine has no AVX2")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from held import hold_to; hold_to('avx2');"
        "import torch, rlal_fast;"
        "print(torch.backends.cpu.get_cpu_capability(), rlal_fast.build_info()['isa'])"
    )
    command = [sys.executable, "-c", code, str(Path(peers.__file__).parents[1])]
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    assert found.stdout.split() == ["AVX2", "avx2"]


def test_sub_networks_to_predict_begin_even_and_end_far_from_it_within_the_budget() -> None:
    graph = PrunableGraph.trace(rf.models.create("resnet20", 10, 3), torch.zeros(1, 3, 32, 32))
    budget = Budget(graph.cost, 0.5)
    widths = np.stack([s.widths for s in reward_prediction.draw(graph, budget, 12)])
    used = budget.cost.macs(widths) / budget.macs
    assert ((used > 0.9) & (used <= 1)).all()  # what differs is not how much is pruned
    unlike = np.std(widths / budget.full_widths, axis=1)
    assert unlike[0] < 0.05
    assert unlike[6:].mean() > 2 * unlike[1:6].mean()


def test_a_score_is_compared_with_what_is_left() -> None:
    left = np.array([0.7, 0.8, 0.5, 0.6, 0.1, 0.2, 0.3, 0.4])
    assert reward_prediction.compare(left / 3, left) == pytest.approx((1, 0.75))
    assert reward_prediction.compare(-left, left) == pytest.approx((-1, 0.15))
    correlation, best = reward_prediction.compare(np.full(8, 0.1), left)
    assert (correlation, best) == pytest.approx((0, 0.75))  # ties: the first ones
