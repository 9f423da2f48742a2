"""recalibration.py, and joint runs with bn_recalibrate: scoring, resuming, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlal_fast.agents import SACConfig
from rlal_fast.compaction import compact
from rlal_fast.data import Augmentation, ImageData, load
from rlal_fast.environment_model import EnvironmentModelConfig
from rlal_fast.errors import InputError
from rlal_fast.joint_config import JointConfig
from rlal_fast.metrics import Record
from rlal_fast.models import create
from rlal_fast.recalibration import image_count, recalibrate, training_sample
from rlal_fast.trainer import JointResult, JointTrainer
from rlal_fast.weights import WeightsConfig, accuracy

SMALL: dict[str, Any] = {
    "epochs": 3,
    "episodes_per_epoch": 4,
    "finetune_epochs": 0,
    "agent_updates": 5,
    "evaluator": "torch",
    "bn_recalibrate": 40,
    "weights": WeightsConfig(batch_size=32),
    "sac": SACConfig(hidden=(16,)),
    "environment": EnvironmentModelConfig(8, 8, (16,), steps_per_epoch=5),
}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits", train_limit=200)


def make(data: ImageData, folder: Path | None = None, **settings: Any) -> JointTrainer:
    torch.manual_seed(11)
    model = create("resnet8", data.num_classes, data.image_shape[0])
    return JointTrainer(model, data, JointConfig(**{**SMALL, **settings}), folder=folder)


@pytest.fixture(scope="module")
def run(digits: ImageData) -> tuple[JointTrainer, JointResult]:
    trainer = make(digits)
    return trainer, trainer.fit()


def without_seconds(records: list[Record]) -> list[Record]:
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


def bit_equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# -- the images ------------------------------------------------------------------------------------


def wide_data(dtype: torch.dtype = torch.uint8) -> ImageData:
    """Every image has a brightness of its own, so that it can be told from the others."""
    images = torch.arange(40).to(dtype)[:, None, None, None].expand(40, 1, 4, 4).contiguous()
    labels = torch.arange(40) % 2
    augmentation = Augmentation(crop_padding=2, flip=True)
    pair = (images, labels)
    return ImageData.from_tensors(pair, pair, pair, augmentation=augmentation)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_a_sample_is_of_the_training_split_normalised_and_not_augmented(dtype: torch.dtype) -> None:
    data = wide_data(dtype)
    everything = data.normalised(data.train)
    sample = training_sample(data, 25, seed=3)
    assert sample is not None
    assert sample.dtype == torch.float32
    rows = [int((everything == image).flatten(1).all(1).nonzero()) for image in sample]
    assert len(set(rows)) == 25  # each at most once
    assert rows != sorted(rows)
    whole = training_sample(data, 40, seed=3)
    assert whole is not None
    assert torch.equal(whole[:25], sample)  # the first ones of one order
    assert torch.equal(whole.sort(0).values, everything.sort(0).values)


def test_a_sample_depends_on_the_seed_alone() -> None:
    data = wide_data()
    first = training_sample(data, 9, seed=3)
    torch.manual_seed(77)
    assert torch.equal(training_sample(data, 9, seed=3), first)  # type: ignore[arg-type]
    assert not torch.equal(training_sample(data, 9, seed=4), first)  # type: ignore[arg-type]
    assert training_sample(data, 0, seed=3) is None


def images_of(size: int, count: int) -> ImageData:
    pair = (torch.zeros(count, 3, size, size, dtype=torch.uint8), torch.arange(count) % 2)
    return ImageData.from_tensors(pair, pair, pair)


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [(32, 500, 128), (8, 500, 128), (48, 500, 56), (64, 500, 32), (224, 60, 32), (32, 9, 9)],
)
def test_standing_weights_are_recalibrated_by_default(size: int, count: int, expected: int) -> None:
    data = images_of(size, count)
    assert image_count(None, norm_net(), data, standing=True) == expected
    assert image_count(None, norm_net(), data, standing=False) == 0
    assert image_count(None, nn.Sequential(nn.Conv2d(3, 4, 3)), data, standing=True) == 0
    for standing in (True, False):
        assert image_count(17, norm_net(), data, standing=standing) == 17
        assert image_count(0, norm_net(), data, standing=standing) == 0


# -- one module ------------------------------------------------------------------------------------


def norm_net() -> nn.Sequential:
    norms = nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3, momentum=None)
    return nn.Sequential(norms[0], nn.Dropout(0.5), norms[1], nn.Flatten(), nn.Linear(12, 2))


def test_recalibrate_takes_mean_and_unbiased_variance_of_one_batch() -> None:
    network, images = norm_net(), torch.randn(5, 3, 2, 2) * 3 + 1
    network[0].weight.data = torch.tensor([2.0, -3.0, 0.5])  # type: ignore[union-attr]
    network[0].bias.data = torch.tensor([1.0, 0.0, -4.0])  # type: ignore[union-attr]
    before = copy.deepcopy(network)
    network.train()
    network[2].eval()
    recalibrate(network, images)
    first, second = network[0], network[2]
    pixels = images.transpose(0, 1).flatten(1)  # [3, 20]
    torch.testing.assert_close(first.running_mean, pixels.mean(1))
    torch.testing.assert_close(first.running_var, pixels.var(1))
    normalised = (pixels - pixels.mean(1, keepdim=True)) / pixels.var(1, correction=0)[:, None].add(
        1e-5
    ).sqrt()
    seen = normalised * torch.tensor([[2.0], [-3.0], [0.5]]) + torch.tensor([[1.0], [0.0], [-4.0]])
    torch.testing.assert_close(second.running_mean, seen.mean(1))  # no dropout between them
    torch.testing.assert_close(second.running_var, seen.var(1))
    assert [m.training for m in network] == [True, True, False, True, True]
    assert (first.momentum, second.momentum) == (0.3, None)
    weights = zip(network.parameters(), before.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) and ours.grad is None for ours, theirs in weights)


def test_recalibrate_leaves_modes_alone_when_it_fails() -> None:
    network = norm_net().train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        recalibrate(network, torch.randn(1, 3, 1, 1))
    assert all(module.training for module in network.modules())
    assert network[0].momentum == 0.3


# -- joint runs ------------------------------------------------------------------------------------


def score(trainer: JointTrainer, network: nn.Module, sample: Tensor) -> float:
    recalibrate(network, sample)
    data = trainer.data
    return accuracy(network, data.normalised(data.reward), data.reward.labels)


def test_rewards_are_of_recalibrated_networks(run: tuple[JointTrainer, JointResult]) -> None:
    trainer, result = run
    sample = training_sample(trainer.data, 40, seed=0)
    assert sample is not None
    structures = trainer.structures
    for subnet, reward in zip(structures.subnets, structures.rewards, strict=True):
        assert score(trainer, compact(trainer.model, subnet), sample) == reward
    full = copy.deepcopy(trainer.model)
    assert score(trainer, full, sample) == result.metrics[-1]["reward_split_accuracy"]


def test_the_network_that_was_scored_is_the_one_that_comes_out(
    run: tuple[JointTrainer, JointResult],
) -> None:
    trainer, result = run
    reward, test = trainer.data.reward, trainer.data.test
    normalise = trainer.data.normalisation
    small, report = result.network, result.report
    assert accuracy(small, reward.images, reward.labels, normalise) == report.best_reward
    reached = accuracy(small, test.images, test.labels, normalise)
    assert reached == report.accuracy_before_finetuning == report.pruned_accuracy
    assert report.evaluator == ("torch reference, batch norm recalibrated on 40 images, 1 threads")


def test_the_full_model_keeps_its_running_statistics(
    digits: ImageData,
) -> None:
    """Without alignment no reward moves a weight: other rewards must leave the same model."""
    plain, scored = (make(digits, bn_recalibrate=n, alignment=False) for n in (0, 40))
    plain.fit()
    scored.fit()
    assert bit_equal(plain.model, scored.model)
    rewards = [[r["rewards"] for r in t.log.records] for t in (plain, scored)]
    assert rewards[0] != rewards[1]


@pytest.mark.parametrize(("epochs", "images"), [(0, 128), (3, 0)])
def test_the_default_depends_on_whether_weights_stand_still(
    digits: ImageData, epochs: int, images: int
) -> None:
    chosen = make(digits, epochs=epochs, bn_recalibrate=None)
    sample = training_sample(digits, images, seed=0)
    assert (chosen.recalibration is None) == (sample is None)
    if sample is not None:
        assert chosen.recalibration is not None
        assert torch.equal(chosen.recalibration, sample)
        assert chosen.evaluator.description.startswith(
            "torch reference, batch norm recalibrated on 128 images"
        )


class Stopped(Exception):
    pass


def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    run: tuple[JointTrainer, JointResult], digits: ImageData, tmp_path: Path
) -> None:
    def stop(record: Record) -> None:
        if record["epoch"] == 1:
            raise Stopped

    first = make(digits, tmp_path / "run")
    first.on_epoch = stop
    with pytest.raises(Stopped):
        first.fit()
    torch.manual_seed(5)
    result = make(digits, tmp_path / "run").fit()
    assert bit_equal(result.network, run[1].network)
    assert without_seconds(result.metrics) == without_seconds(run[1].metrics)
    with pytest.raises(InputError, match="was made with bn_recalibrate=40, not 41"):
        make(digits, tmp_path / "run", bn_recalibrate=41).fit()


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (-1, "bn_recalibrate=-1 must be at least 0"),
        (181, "bn_recalibrate=181 asks for more than the 180 training images"),
        (2.5, "bn_recalibrate=2.5 must be of type int"),
        (True, "bn_recalibrate=True must be of type int"),
    ],
    ids=str,
)
def test_a_number_of_images_that_cannot_be(digits: ImageData, count: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(digits, bn_recalibrate=count)
    assert "\n" not in str(caught.value)


def test_networks_that_cannot_be_recalibrated_are_refused_before_it_starts() -> None:
    data = wide_data()
    plain = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    with pytest.raises(InputError, match=r"no batch norm to recalibrate.*bn_recalibrate=0"):
        JointTrainer(plain, data, JointConfig(**SMALL))
    with pytest.raises(InputError, match=r"one image gives batch norm layer3\.0\.bn1 one value"):
        make(data, bn_recalibrate=1)
