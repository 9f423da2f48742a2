"""trainer.py: whole small runs of the joint loop, RLAL Alg. 1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from gpu import without_gpu
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rlal_fast.agents import SACConfig
from rlal_fast.compaction import compact, parameter_count
from rlal_fast.data import ImageData, Split, load
from rlal_fast.environment_model import EnvironmentModelConfig
from rlal_fast.errors import InputError
from rlal_fast.joint_config import JointConfig
from rlal_fast.metrics import Record
from rlal_fast.models import create
from rlal_fast.trainer import JointResult, JointTrainer
from rlal_fast.weights import WeightsConfig, WeightTrainer, accuracy

SMALL: dict[str, Any] = {
    "epochs": 3,
    "episodes_per_epoch": 4,
    "finetune_epochs": 1,
    "agent_updates": 5,
    "weights": WeightsConfig(batch_size=32),
    "sac": SACConfig(hidden=(16,)),
    "environment": EnvironmentModelConfig(8, 8, (16,), steps_per_epoch=5),
}
GROUPS = ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]


class JointPartDone(Exception):
    """Raised by `joint_part` in the first epoch of fine-tuning: what follows costs seconds."""


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits", train_limit=200)


def make(data: ImageData, **settings: Any) -> JointTrainer:
    torch.manual_seed(11)
    model = create("resnet8", data.num_classes, data.image_shape[0])
    return JointTrainer(model, data, JointConfig(**{**SMALL, **settings}), arch="resnet8")


def joint_part(data: ImageData, **settings: Any) -> tuple[JointTrainer, list[Record]]:
    """A trainer after its joint epochs, and all records up to the first of the fine-tuning."""
    trainer, records = make(data, **settings), []

    def on_epoch(record: Record) -> None:
        records.append(record)
        if record["stage"] == "finetune":
            raise JointPartDone

    trainer.on_epoch = on_epoch
    with pytest.raises(JointPartDone):
        trainer.fit()
    return trainer, records


def without_seconds(records: list[Record]) -> list[Record]:
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


def bit_equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def torch_macs(network: nn.Module, data: ImageData) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, *data.image_shape))
    return counter.get_total_flops() // 2


@pytest.fixture(scope="module")
def run(digits: ImageData) -> tuple[JointTrainer, JointResult]:
    trainer = make(digits)
    return trainer, trainer.fit()


# -- a whole run -----------------------------------------------------------------------------------


def test_report_tells_what_can_be_measured_again(
    run: tuple[JointTrainer, JointResult], digits: ImageData
) -> None:
    trainer, result = run
    report, images = result.report, digits.normalised(digits.test)
    assert report.macs_full == torch_macs(trainer.model, digits)
    assert report.macs == torch_macs(result.network, digits)
    assert report.macs <= math.floor(Fraction(1, 2) * report.macs_full)
    assert report.pruned_flops == 1 - report.macs / report.macs_full
    assert report.pruned_flops_requested == 0.5
    assert report.baseline_accuracy == accuracy(trainer.model, images, digits.test.labels)
    assert report.pruned_accuracy == accuracy(result.network, images, digits.test.labels)
    assert report.delta == report.pruned_accuracy - report.baseline_accuracy
    cut = compact(trainer.model, result.structure)
    assert report.accuracy_before_finetuning == accuracy(cut, images, digits.test.labels)
    assert not bit_equal(cut, result.network)  # it was fine-tuned
    assert report.params_full == parameter_count(trainer.model)
    assert report.params == parameter_count(result.network)
    assert list(report.widths) == GROUPS
    widths = [[int(c), full] for c, full in zip(result.structure.widths, (16, 32, 64), strict=True)]
    assert list(report.widths.values()) == widths
    assert (report.arch, report.dataset, report.seed) == ("resnet8", "digits", 0)
    assert report.split_sizes == {"train": 180, "reward": 20, "test": 355}
    assert report.episodes == 12


def test_report_has_every_field_of_the_contract(run: tuple[JointTrainer, JointResult]) -> None:
    report = dataclasses.asdict(run[1].report)
    for name in ("arch", "dataset", "seed", "baseline_accuracy", "pruned_accuracy", "delta"):
        assert report[name] is not None
    for name in ("macs_full", "macs", "pruned_flops", "params_full", "params", "widths"):
        assert report[name]
    assert set(report["latency_ms"]) == {"full", "pruned"}
    for latency in report["latency_ms"].values():
        assert list(latency) == ["1", "256"]
        assert min(latency.values()) > 0
    seconds = report["seconds"]
    assert set(seconds) == {"total", "weights", "validation", "episodes", "agent"}
    assert min(seconds.values()) > 0
    assert seconds["total"] >= sum(spent for part, spent in seconds.items() if part != "total")
    assert "native" in report["evaluator"]
    assert "1 thread" in report["evaluator"]


def test_records_follow_the_algorithm(run: tuple[JointTrainer, JointResult]) -> None:
    result = run[1]
    *joint, tuned = result.metrics
    assert [(r["stage"], r["epoch"], r["phase"]) for r in joint] == [
        ("joint", epoch, "policy") for epoch in range(3)
    ]
    assert (tuned["stage"], tuned["epoch"], tuned["lr"]) == ("finetune", 0, 0.01)
    assert joint[0]["lr"] == 0.1
    assert joint[0]["penalty"] == 0  # no structure yet
    assert joint[1]["penalty"] > 0
    assert joint[-1]["loss"] < joint[0]["loss"]
    for record in joint:
        assert len(record["rewards"]) == 4
        assert 0 <= record["environment_loss"] < 1
        assert record["structure_reward"] >= max(record["rewards"])
        assert set(record["agent"]) >= {"critic_loss", "actor_loss", "entropy"}
    assert result.report.best_reward == joint[-1]["structure_reward"]
    assert joint[-1]["structure_widths"] == result.structure.widths.tolist()


def test_the_network_describes_itself(
    run: tuple[JointTrainer, JointResult], digits: ImageData
) -> None:
    network = run[1].network
    assert not network.training
    metadata = network.metadata
    assert metadata["arch"] == "resnet8"
    assert metadata["dataset"] == "digits"
    assert metadata["classes"] == list("0123456789")
    assert metadata["normalisation"]["mean"] == list(digits.normalisation.mean)
    assert metadata["normalisation"]["std"] == list(digits.normalisation.std)


def test_same_seed_same_network_and_the_test_split_has_no_say(
    run: tuple[JointTrainer, JointResult], digits: ImageData
) -> None:
    """The second run's test images are poison: whoever looks at them before the end is infected."""
    poison = Split(torch.full(digits.test.images.shape, float("nan")), digits.test.labels)
    torch.manual_seed(99)
    again = make(dataclasses.replace(digits, test=poison))
    torch.manual_seed(98)  # nor has the global generator
    result = again.fit()
    assert bit_equal(result.network, run[1].network)
    assert bit_equal(again.model, run[0].model)
    assert result.structure.widths.tolist() == run[1].structure.widths.tolist()
    assert without_seconds(result.metrics) == without_seconds(run[1].metrics)
    assert result.report.best_reward == run[1].report.best_reward
    assert result.report.pruned_accuracy != run[1].report.pruned_accuracy  # the poison works


def test_the_users_own_data_and_the_shortest_run() -> None:
    """Float images of another size, three channels, odd counts, E = 1, P = 1."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(101, 3, 7, 11, generator=generator), torch.arange(101) % 5
    data = ImageData.from_tensors(
        train=(images[:71], labels[:71].to(torch.int32)),
        test=(images[71:], labels[71:].to(torch.uint8)),
        classes=["a", "b", "c", "d", "e"],
        name="mine",
    )
    settings = {"epochs": 1, "episodes_per_epoch": 1, "weights": WeightsConfig(batch_size=17)}
    torch.manual_seed(1)
    model = create("resnet8", 5, 3)
    result = JointTrainer(model, data, JointConfig(**{**SMALL, **settings})).fit()
    assert [(r["stage"], r["epoch"]) for r in result.metrics] == [("joint", 0), ("finetune", 0)]
    report = result.report
    assert (report.arch, report.dataset, report.episodes) == ("ResNetCifar", "mine", 1)
    assert report.macs == torch_macs(result.network, data) <= report.macs_full // 2
    assert result.network(data.normalised(data.test)).shape == (30, 5)


# -- the joint part, under many settings -----------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "settings"),
    [
        ("0", {}),
        ("0.35", {"agent": "random", "evaluator": "torch"}),
        ("0.65", {"agent": "uniform", "importance": "bn_scale"}),
        ("0.5", {"agent": "ddpg"}),
        ("0.4", {"agent": "evolutionary"}),
        ("0.5", {"groups": "all", "importance": "fpgm"}),
        ("0.5", {"round_to": 8, "min_width": 5, "importance": "l2"}),
        ("0.3", {"exclude": ("layer3*",), "importance": "random", "a_max": 0.9}),
    ],
    ids=["none", "random", "uniform", "ddpg", "evolutionary", "all-groups", "rounded", "excluded"],
)
def test_every_budget_is_met_exactly(digits: ImageData, p: str, settings: dict[str, Any]) -> None:
    trainer, records = joint_part(digits, epochs=2, pruned_flops=float(p), **settings)
    budget = math.floor((1 - Fraction(p)) * torch_macs(trainer.model, digits))
    assert trainer.structures.subnets
    for subnet in trainer.structures.subnets:
        assert torch_macs(compact(trainer.model, subnet), digits) <= budget
    best = trainer.structures.best
    assert best is not None
    assert records[-2]["structure_widths"] == best.widths.tolist()
    if "round_to" in settings:
        assert all(c % 8 == 0 for subnet in trainer.structures.subnets for c in subnet.widths)
    if "exclude" in settings:
        assert [group.name for group in trainer.graph.groups] == GROUPS[:2]


def test_phases_take_their_turns(digits: ImageData) -> None:
    settings = {"epochs": 4, "search_epochs": 2, "warmup_epochs": 1, "random_epochs": 1}
    trainer, records = joint_part(digits, **settings)
    joint = records[:-1]
    phases = ["warmup", "random", "policy", "policy", "search", "search"]
    assert [r["phase"] for r in joint] == phases
    assert joint[0]["rewards"] == []
    assert joint[0]["structure_widths"] is None
    assert joint[0]["structure_reward"] is None
    assert joint[0]["environment_loss"] is None
    assert joint[0]["agent"] == {}
    assert [len(r["rewards"]) for r in joint[1:]] == [4] * 5
    assert trainer.episodes == trainer.replay.episode_count == 20
    assert trainer.replay.all_epochs.tolist() == [e for e in range(1, 6) for _ in range(4)]
    assert trainer.environment is not None
    assert trainer.environment.epochs == 6
    for record in joint[4:]:  # the weights stand still
        assert record["loss"] is record["lr"] is record["penalty"] is None
        assert record["reward_split_accuracy"] == joint[3]["reward_split_accuracy"]


def test_without_epochs_the_weights_stay_as_they_are(digits: ImageData) -> None:
    torch.manual_seed(11)
    untouched = create("resnet8", 10, 1)
    trainer, records = joint_part(digits, epochs=0, search_epochs=3)
    assert bit_equal(trainer.model, untouched)
    assert [r["phase"] for r in records[:-1]] == ["search"] * 3
    best = trainer.structures.best
    assert best is not None
    rewards = [reward for r in records[:-1] for reward in r["rewards"]]
    assert records[-2]["structure_reward"] == max(rewards)  # no reward went stale


def test_rewards_are_of_the_current_weights_on_the_reward_split(digits: ImageData) -> None:
    trainer, records = joint_part(digits)
    images, labels = digits.normalised(digits.reward), digits.reward.labels
    assert records[-2]["reward_split_accuracy"] == accuracy(trainer.model, images, labels)
    for subnet, reward in zip(trainer.structures.subnets, trainer.structures.rewards, strict=True):
        assert accuracy(compact(trainer.model, subnet), images, labels) == reward


@pytest.fixture(scope="module")
def more_digits() -> ImageData:
    """With enough reward images for a race."""
    return load("digits", train_limit=800, reward_fraction=0.5)


@pytest.mark.parametrize("seed", [0, 1, 106])
def test_what_falls_behind_is_stopped_and_the_best_never(more_digits: ImageData, seed: int) -> None:
    settings: dict[str, Any] = {"epochs": 4, "search_epochs": 1, "episodes_per_epoch": 8}
    trainer = make(more_digits, **settings, finetune_epochs=0, seed=seed)
    records: list[Record] = []

    def check(record: Record) -> None:
        records.append(record)
        best = trainer.structures
        assert trainer.evaluator.accuracies(best.subnets[:1]).tolist() == best.rewards[:1].tolist()
        assert record["structure_reward"] == best.rewards[0] >= max(record["rewards"])

    trainer.on_epoch = check
    trainer.search()
    assert sum(record["stopped_early"] for record in records) > 8
    assert records[-1]["phase"] == "search"
    assert records[-1]["stopped_early"] == 0  # weights that stand still: all are scored on all


def test_all_are_scored_on_all_images_if_asked(more_digits: ImageData) -> None:
    trainer = make(more_digits, episodes_per_epoch=8, race_share=1.0)
    trainer.search()
    assert [record["stopped_early"] for record in trainer.log.records] == [0] * 3


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_structures_are_remembered(digits: ImageData, count: int) -> None:
    trainer, _ = joint_part(digits, structures=count, agent="random")
    assert len(trainer.structures.subnets) == count
    assert np.all(np.diff(trainer.structures.rewards) <= 0)


# -- ablations, determinism ------------------------------------------------------------------------


def test_without_epoch_embedding(digits: ImageData) -> None:
    trainer, records = joint_part(digits, epoch_embedding=False)
    assert trainer.environment is None
    assert [r["environment_loss"] for r in records[:-1]] == [None] * 3
    assert "critic_loss" in records[0]["agent"]  # the agent learns all the same
    actors = [t.agent.state_dict()["actor"] for t in (trainer, make(digits))]
    values = [sum(tensor.numel() for tensor in actor.values()) for actor in actors]
    assert values[1] - values[0] == 8 * 16  # from z to the first layer


def test_without_alignment_is_alignment_of_weight_zero(digits: ImageData) -> None:
    off, records = joint_part(digits, alignment=False)
    zero, _ = joint_part(digits, beta=0.0)
    assert [r["penalty"] for r in records[:-1]] == [0.0] * 3
    assert bit_equal(off.model, zero.model)


def test_a_short_training_pushes_as_far_as_a_long_one(digits: ImageData) -> None:
    short, long = make(digits, epochs=2), make(digits, epochs=20)
    steps = 2 * digits.train_batch_count(short.config.weights.batch_size)
    assert short.beta == pytest.approx(10 / steps)
    assert long.beta == pytest.approx(short.beta / 10)
    assert make(digits, beta=0.25).beta == 0.25
    assert make(digits, epochs=0, search_epochs=1).beta >= 0  # nothing to push


@pytest.mark.parametrize("growth", [0.0, 2.0])
def test_the_push_grows_from_epoch_to_epoch(
    digits: ImageData, growth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    betas: list[float] = []
    train_epoch = WeightTrainer.train_epoch

    def seen(self: WeightTrainer, epoch: int, *given: Any, **named: Any) -> Any:
        betas.extend(given[1:2])  # fine-tuning gives none
        return train_epoch(self, epoch, *given, **named)

    monkeypatch.setattr(WeightTrainer, "train_epoch", seen)
    trainer, _ = joint_part(digits, beta_growth=growth)
    if growth:
        assert betas == pytest.approx([trainer.beta * x**2 * 3 / 35 for x in (1, 3, 5)])
    assert sum(betas) / len(betas) == pytest.approx(trainer.beta)
    if not growth:
        assert betas == [trainer.beta] * 3


@pytest.mark.parametrize("agent", ["sac", "ddpg", "evolutionary", "random"])
def test_every_agent_keeps_to_the_runs_largest_ratio(digits: ImageData, agent: str) -> None:
    trainer = make(digits, agent=agent, a_max=0.95)
    states, nothing = torch.zeros(4000, trainer.env.state_size), torch.zeros(4000)
    source, z = torch.Generator().manual_seed(0), torch.zeros(8)
    ratios = trainer.agent.act(states, z, nothing, nothing + 0.95, source)
    assert 0.9 < float(ratios.max()) <= 0.95


def test_alignment_shrinks_what_the_structure_drops(digits: ImageData) -> None:
    # uniform widths throughout, so that what is summed differs by beta alone
    free, pushed = (
        [r["penalty"] for r in joint_part(digits, agent="uniform", beta=beta)[1][:-1]]
        for beta in (0.0, 0.5)
    )
    assert free[0] == pushed[0] == 0
    assert pushed[2] < pushed[1] < free[1]
    assert pushed[2] < 0.8 * free[2]


def test_another_seed_is_another_run(digits: ImageData) -> None:
    first, second = joint_part(digits), joint_part(digits, seed=1)
    assert not bit_equal(first[0].model, second[0].model)
    assert [r["rewards"] for r in first[1][:-1]] != [r["rewards"] for r in second[1][:-1]]


def test_progress_is_told(digits: ImageData) -> None:
    told: list[tuple[int, int]] = []
    trainer = make(digits, epochs=2)
    trainer.on_batch = lambda done, total: told.append((done, total))

    def stop(record: Record) -> None:
        if record["stage"] == "finetune":
            raise JointPartDone

    trainer.on_epoch = stop
    with pytest.raises(JointPartDone):
        trainer.fit()
    assert told == [(batch, 6) for batch in range(1, 7)] * 3


# -- what is refused -------------------------------------------------------------------------------


class Squashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.sigmoid(self.conv(x)).mean((2, 3)))


def no_hidden_layer() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (lambda: create("resnet8", 7, 1), {}, "7 outputs, the data set 10 classes"),
        (no_hidden_layer, {}, "no group that can be pruned"),
        (Squashed, {}, "sigmoid"),
        (lambda: create("resnet8", 10, 3), {}, "channels|traced|shape"),
        (None, {"exclude": ("*",)}, "no group that can be pruned"),
        (None, {"pruned_flops": 0.99}, r"pruned_flops=0.99 cannot be reached.* range is 0 to 0\.7"),
        (None, {"pruned_flops": 1.0}, "pruned_flops must be in"),
        (None, {"agent": "dqn"}, "unknown agent 'dqn'.*sac"),
        (None, {"importance": "magic"}, "unknown importance 'magic'.*l1"),
        (None, {"evaluator": "gpu"}, "unknown backend 'gpu'.*native"),
        (None, {"groups": "some"}, "groups must be .*not 'some'"),
        (None, {"include": ("nowhere*",)}, "'nowhere.' matches no group"),
        (None, {"a_max": 1.5}, "a_max=1.5"),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(
    digits: ImageData,
    model: Callable[[], nn.Module] | None,
    settings: dict[str, Any],
    message: str,
) -> None:
    made = model() if model else create("resnet8", 10, 1)
    with pytest.raises(InputError, match=message) as caught:
        JointTrainer(made, digits, JointConfig(**{**SMALL, **settings}))
    assert "\n" not in str(caught.value)


@without_gpu
def test_a_device_that_is_missing_is_refused_before_it_starts(digits: ImageData) -> None:
    with pytest.raises(InputError, match=r"device='cuda' was asked for, but .*--device cpu"):
        make(digits, device="cuda")
    assert make(digits, device="auto").device == torch.device("cpu")


def test_a_criterion_that_does_not_fit_is_refused_before_it_starts(digits: ImageData) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    with pytest.raises(InputError, match="'bn_scale' needs a batch norm"):
        JointTrainer(model, digits, JointConfig(**SMALL, importance="bn_scale"))
