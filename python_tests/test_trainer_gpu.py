"""trainer.py on a GPU: whole small joint runs, captured or not, against those of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu import needs_gpu

from rlal_fast.agents import SACConfig
from rlal_fast.data import ImageData, load
from rlal_fast.environment_model import EnvironmentModelConfig
from rlal_fast.joint_config import JointConfig
from rlal_fast.models import create
from rlal_fast.trainer import JointResult, JointTrainer
from rlal_fast.weights import WeightsConfig, accuracy

SMALL: dict[str, Any] = {
    "epochs": 2,
    "episodes_per_epoch": 4,
    "finetune_epochs": 1,
    "agent_updates": 5,
    "sac": SACConfig(hidden=(16,)),
    "environment": EnvironmentModelConfig(8, 8, (16,), steps_per_epoch=5),
}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits", train_limit=200)


def run(data: ImageData, **settings: Any) -> JointResult:
    torch.manual_seed(11)
    config = JointConfig(**{**SMALL, **settings})
    return JointTrainer(create("resnet8", 10, 1), data, config, arch="resnet8").fit()


def on_gpu(data: ImageData, capture: bool, amp: str = "off", **settings: Any) -> JointResult:
    weights = WeightsConfig(batch_size=32, capture=capture, amp=amp)
    return run(data, weights=weights, device="cuda", **settings)


@needs_gpu
@pytest.mark.parametrize("amp", ["off", "auto"])
def test_a_joint_run_on_a_gpu_captured_or_not(digits: ImageData, amp: str) -> None:
    results = [on_gpu(digits, capture, amp) for capture in (True, False)]
    for result in results:
        report = result.report
        assert report.device.startswith("cuda:0, ")
        assert report.macs <= report.macs_full // 2
        assert {p.device.type for p in result.network.parameters()} == {"cpu"}
        images = digits.normalised(digits.test)
        reached = accuracy(result.network, images, digits.test.labels)
        assert report.pruned_accuracy == pytest.approx(reached, abs=0.02)
        assert report.latency_ms["pruned"]["1"] > 0
        assert result.metrics[1]["penalty"] > 0
    losses = [[record["loss"] for record in result.metrics] for result in results]
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=0.1)


@needs_gpu
def test_a_joint_run_on_a_gpu_is_that_of_the_cpu_up_to_rounding(digits: ImageData) -> None:
    cpu = run(digits, weights=WeightsConfig(batch_size=32))
    gpu = on_gpu(digits, True)
    losses = [[record["loss"] for record in result.metrics[:2]] for result in (cpu, gpu)]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


@needs_gpu
@pytest.mark.parametrize("other", [{"agent": "uniform"}, {"alignment": False}], ids=str)
def test_more_runs_on_a_gpu(digits: ImageData, other: dict[str, Any]) -> None:
    settings = {"bn_recalibrate": 32, "groups": "all", "importance": "fpgm", **other}
    result = on_gpu(digits, True, "auto", **settings)
    assert (result.metrics[1]["penalty"] > 0) == ("alignment" not in other)


@needs_gpu
def test_a_model_is_moved_to_where_the_run_is(digits: ImageData) -> None:
    model = create("resnet8", 10, 1).cuda()
    assert JointTrainer(model, digits, JointConfig(**SMALL)).model is model
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    JointTrainer(model, digits, JointConfig(**SMALL, device="cuda"))
    assert {p.device.type for p in model.parameters()} == {"cuda"}
