"""device_training.py: epochs on a device are the epochs of WeightTrainer."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu import needs_gpu
from torch import nn

from rlal_fast.alignment import AlignmentPenalty, MaskedAlignment
from rlal_fast.data import Augmentation, ImageData
from rlal_fast.device_training import DeviceTrainer, trainer_for
from rlal_fast.errors import InputError
from rlal_fast.graph import PrunableGraph
from rlal_fast.models import create
from rlal_fast.weights import WeightsConfig, WeightTrainer

FULL_PRECISION = WeightsConfig(lr=0.05, batch_size=16, amp="off")


def make_data(train: int = 105) -> ImageData:
    source = torch.Generator().manual_seed(1)
    images = torch.randint(0, 200, (train + 20, 1, 8, 8), generator=source)
    labels = torch.arange(train + 20) % 3
    images = (images + 20 * labels[:, None, None, None]).to(torch.uint8)
    held = images[train:], labels[train:]
    return ImageData.from_tensors(
        train=(images[:train], labels[:train]),
        reward=held,
        test=held,
        augmentation=Augmentation(1, True),
    )


def network() -> nn.Module:
    torch.manual_seed(5)
    return create("resnet8", 3, 1)


def graph_of(model: nn.Module) -> PrunableGraph:
    return PrunableGraph.trace(copy.deepcopy(model).cpu(), torch.zeros(1, 1, 8, 8))


def settings(**other: Any) -> dict[str, Any]:
    return {"epochs": 3, "seed": 0, "purpose": "joint", **other}


def assert_close(a: nn.Module, b: nn.Module, tolerance: float) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x.cpu(), y.cpu(), rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("train", [105, 97, 9])  # the last batch is short, left out, the only one
def test_epochs_are_those_of_the_cpu(train: int) -> None:
    data, models = make_data(train), [network(), network()]
    first = WeightTrainer(models[0], data, FULL_PRECISION, **settings())
    second = DeviceTrainer(models[1], data, FULL_PRECISION, **settings())
    graph = graph_of(models[1])
    subnet = graph.subnet([3, 9, 20])
    masked = MaskedAlignment(models[1], graph)
    masked.align_to(subnet)
    for epoch in range(2):
        beta = 0.01 * (1 + epoch)
        expected = first.train_epoch(epoch, AlignmentPenalty(models[0], subnet), beta)
        result = second.train_epoch(epoch, masked, beta)
        assert result.loss == pytest.approx(expected.loss, rel=1e-4)
        assert result.penalty == pytest.approx(expected.penalty, rel=1e-5)
        assert result.accuracy == pytest.approx(expected.accuracy, abs=1.5 / train)
        assert result.lr == expected.lr
    assert_close(*models, 1e-3)
    assert not models[1].training
    rates = [t.optimizer.param_groups[0]["lr"] for t in (first, second)]
    assert rates[0] == rates[1]


def test_it_takes_over_from_the_cpu_and_hands_back() -> None:
    """The state of the optimiser is the same in both."""
    data, models = make_data(), [network(), network()]
    straight = WeightTrainer(models[0], data, FULL_PRECISION, **settings())
    for epoch in range(3):
        straight.train_epoch(epoch)
    state: Any = None
    for epoch, kind in enumerate((WeightTrainer, DeviceTrainer, WeightTrainer)):
        trainer = kind(models[1], data, FULL_PRECISION, **settings())
        if state:
            trainer.optimizer.load_state_dict(state)
        trainer.train_epoch(epoch)
        state = copy.deepcopy(trainer.optimizer.state_dict())
    assert_close(*models, 2e-3)


def test_loading_momentum_between_epochs_is_seen() -> None:
    data, models = make_data(), [network(), network()]
    trainers = [DeviceTrainer(m, data, FULL_PRECISION, **settings()) for m in models]
    for trainer in trainers:
        trainer.train_epoch(0)
    trainers[1].optimizer.load_state_dict(copy.deepcopy(trainers[0].optimizer.state_dict()))
    for trainer in trainers:
        trainer.train_epoch(1)
    assert_close(*models, 0.0)


def test_dropout_repeats_and_the_global_generator_is_left_alone() -> None:
    def trained(seed: int) -> nn.Module:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))
        torch.manual_seed(77 + seed)
        before = torch.get_rng_state()
        DeviceTrainer(model, make_data(), FULL_PRECISION, **settings(seed=seed)).train_epoch(0)
        assert torch.equal(torch.get_rng_state(), before)
        return model

    assert_close(trained(0), trained(0), 0.0)
    assert not torch.equal(trained(0)[2].weight, trained(1)[2].weight)  # type: ignore[index]


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    trainer = DeviceTrainer(network(), make_data(), FULL_PRECISION, **settings())
    trainer.train_epoch(0, on_batch=lambda done, total: told.append((done, total)))
    assert told == [(number, 7) for number in range(1, 8)]


@pytest.mark.parametrize(("train", "beta"), [(105, 0.0), (9, 1e30), (9, 1e300)])
def test_divergence_is_said(train: int, beta: float) -> None:
    """In a loss, or in the only step, which no loss has seen."""
    model, config = network(), replace(FULL_PRECISION, lr=1e30)
    trainer = DeviceTrainer(model, make_data(train), config, **settings(epochs=1))
    with pytest.raises(InputError, match=r"lower the learning rate \(now 1e\+30"):
        trainer.train_epoch(0, model.get_parameter("fc.weight").sum, beta)


def test_a_model_on_the_cpu_is_trained_as_ever() -> None:
    trainer = trainer_for(network())(network(), make_data(), FULL_PRECISION, **settings())
    assert type(trainer) is WeightTrainer


# -- on a GPU --------------------------------------------------------------------------------------


def on_gpu(capture: bool, resident: bool = True, amp: str = "off") -> tuple[nn.Module, list[float]]:
    gpu = torch.device("cuda", 0)
    data = make_data().to(gpu) if resident else make_data()
    model = network().to(gpu)
    config = replace(FULL_PRECISION, capture=capture, amp=amp)
    trainer = trainer_for(model)(model, data, config, **settings())
    assert isinstance(trainer, DeviceTrainer)
    graph = graph_of(model)
    masked = MaskedAlignment(model, graph)
    losses = []
    for epoch in range(3):
        masked.align_to(graph.subnet([3, 9, 20]) if epoch else None)
        result = trainer.train_epoch(epoch, masked, 0.01)
        assert (result.penalty > 0) == (epoch > 0)
        losses.append(result.loss)
    return model, losses


@needs_gpu
@pytest.mark.parametrize("resident", [True, False])
def test_captured_or_not_resident_or_not_and_on_the_cpu_it_is_the_same(resident: bool) -> None:
    model = network()
    trainer, graph = WeightTrainer(model, make_data(), FULL_PRECISION, **settings()), None
    graph = graph_of(model)
    expected = [
        trainer.train_epoch(
            epoch, AlignmentPenalty(model, graph.subnet([3, 9, 20])) if epoch else None, 0.01
        ).loss
        for epoch in range(3)
    ]
    for capture in (True, False):
        assert on_gpu(capture, resident)[1] == pytest.approx(expected, rel=0.05)


@needs_gpu
def test_bfloat16_trains_as_well() -> None:
    assert on_gpu(True, amp="auto")[1] == pytest.approx(on_gpu(True)[1], rel=0.1)


@needs_gpu
def test_the_gpus_generator_is_left_alone() -> None:
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    on_gpu(True)
    assert torch.equal(torch.cuda.get_rng_state(), before)


CANNOT_BE_CAPTURED = """
import torch
from torch import nn
from rlal_fast.data import ImageData
from rlal_fast.device_training import DeviceTrainer
from rlal_fast.errors import InputError
from rlal_fast.weights import WeightsConfig

class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)
    def forward(self, x):
        logits = self.layer(x.flatten(1))
        return logits * (1 if logits.sum().item() < 1e9 else 2)

split = torch.randn(48, 1, 8, 8), torch.arange(48) % 3
data = ImageData.from_tensors(train=split, reward=split, test=split)
for capture in (False, True):
    config = WeightsConfig(batch_size=8, lr=0.01, capture=capture)
    trainer = DeviceTrainer(Reads().cuda(), data, config, epochs=1, seed=0, purpose="joint")
    try:
        trainer.train_epoch(0, on_batch=lambda *told: print(*told, flush=True))
    except InputError as error:
        print(error, flush=True)
"""


@needs_gpu
def test_what_cannot_be_captured_is_said_with_the_way_out() -> None:
    """In a process of its own, as a broken capture may spoil what comes after it."""
    call = [sys.executable, "-c", CANNOT_BE_CAPTURED]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300)
    *told, last = done.stdout.splitlines()
    told_by_steps = [f"{number} 6" for number in range(1, 7)]
    assert told == told_by_steps + told_by_steps[:3], done.stderr
    assert re.search(r"cannot be captured as a CUDA graph \(.*--no-capture", last)
