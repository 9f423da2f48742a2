"""weights.py: one epoch of SGD is what its formulas say, and the same each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlal_fast.data import Augmentation, ImageData
from rlal_fast.errors import InputError
from rlal_fast.models import create
from rlal_fast.seeds import generator
from rlal_fast.weights import EpochResult, WeightsConfig, WeightTrainer, accuracy


def make_data(train: int = 41) -> ImageData:
    images = torch.randn(train + 22, 2, 5, 7, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(train + 22) % 3
    images[:, 0] += labels[:, None, None]
    parts = [(images[s], labels[s]) for s in (slice(11), slice(11, 22), slice(22, None))]
    return ImageData.from_tensors(train=parts[2], reward=parts[0], test=parts[1])


def linear(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(70, 3))


def trainer(
    model: nn.Module | None = None,
    data: ImageData | None = None,
    *,
    epochs: int = 3,
    seed: int = 0,
    purpose: str = "joint",
    **settings: Any,
) -> WeightTrainer:
    config = WeightsConfig(**{"batch_size": 16, **settings})
    return WeightTrainer(
        model or linear(), data or make_data(), config, epochs=epochs, seed=seed, purpose=purpose
    )


def learning_rates(made: WeightTrainer, epochs: list[int]) -> list[float]:
    """What the optimiser used in each step."""
    rates: list[float] = []
    for epoch in epochs:
        made.train_epoch(
            epoch, on_batch=lambda *_: rates.append(made.optimizer.param_groups[0]["lr"])
        )
    return rates


@pytest.mark.parametrize(("images", "epochs"), [(41, 3), (32, 5), (33, 1), (7, 2)])
def test_learning_rate_is_one_cosine_over_all_steps(images: int, epochs: int) -> None:
    made = trainer(data=make_data(images), epochs=epochs, lr=0.3)
    rates = learning_rates(made, list(range(epochs)))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(rates))
    for rate in rates:
        assert rate == pytest.approx(schedule.get_last_lr()[0], rel=1e-6, abs=1e-9)
        optimizer.step()
        schedule.step()
    assert rates[0] == 0.3
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


def test_learning_rate_depends_on_the_epoch_alone() -> None:
    """So that a resumed run goes on along the same curve."""
    whole = learning_rates(trainer(), [0, 1, 2])
    assert learning_rates(trainer(), [2]) == whole[-3:]
    assert trainer().train_epoch(1).lr == whole[3]


@pytest.mark.parametrize(
    ("momentum", "decay"), [(0.9, 5e-2), (0.9, 0.0), (0.5, 1e-2), (0.0, 1e-2)], ids=str
)
def test_steps_are_sgd_with_nesterov_momentum_and_weight_decay(
    momentum: float, decay: float
) -> None:
    data, made = make_data(), trainer(lr=0.2, momentum=momentum, weight_decay=decay)
    weights = [p.detach().clone().double() for p in made.model.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    rates = learning_rates(trainer(lr=0.2), [0, 1])
    for epoch in (0, 1):
        made.train_epoch(epoch)
        for images, labels in data.train_batches(16, generator(0, "joint", epoch)):
            leaves = [w.clone().requires_grad_() for w in weights]
            F.cross_entropy(F.linear(images.flatten(1).double(), *leaves), labels).backward()
            rate = rates.pop(0)
            for w, v, leaf in zip(weights, velocity, leaves, strict=True):
                assert leaf.grad is not None
                g = leaf.grad + decay * w
                v.mul_(momentum).add_(g)
                w.sub_(rate * (g + momentum * v))
    for trained, expected in zip(made.model.parameters(), weights, strict=True):
        torch.testing.assert_close(trained.detach().double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("images", [41, 33, 16, 5], ids=str)
def test_result_is_the_mean_over_images(images: int) -> None:
    data = make_data(images)
    made = trainer(data=data, lr=1e-12)  # the weights stand still
    result = made.train_epoch(0)
    inputs, labels = data.normalised(data.train), data.train.labels
    seen = torch.cat([y for _, y in data.train_batches(16, generator(0, "joint", 0))])
    logits = made.model(inputs)
    if len(seen) == len(labels):  # a last batch of a single image is left out
        assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert result.accuracy == (logits.argmax(1) == labels).sum().item() / images
    else:
        assert len(seen) == len(labels) - 1
    assert result.penalty == 0


def test_penalty_is_weighed_by_beta_and_reported_unweighed() -> None:
    def norm(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: model.get_parameter("2.weight").square().sum() / 2

    settings: dict[str, Any] = {"momentum": 0.0, "lr": 0.2, "epochs": 1}
    decayed = trainer(weight_decay=0.07, **settings)
    decayed.model.get_parameter("2.bias").requires_grad_(False)
    penalised = trainer(weight_decay=0.0, **settings)
    penalised.model.get_parameter("2.bias").requires_grad_(False)
    first = norm(penalised.model)().item()
    decayed.train_epoch(0)
    result = penalised.train_epoch(0, norm(penalised.model), beta=0.07)
    # the gradient of beta/2 |w|^2 is that of weight decay
    torch.testing.assert_close(
        penalised.model.get_parameter("2.weight"), decayed.model.get_parameter("2.weight")
    )
    assert result.penalty == pytest.approx(first, rel=0.5)
    unpushed = trainer(weight_decay=0.0, **settings)
    assert unpushed.train_epoch(0, norm(unpushed.model), beta=0.0).penalty > 0
    plain = trainer(weight_decay=0.0, **settings)
    plain.train_epoch(0)
    assert bit_equal(unpushed.model, plain.model)


def bit_equal(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def train_resnet(
    seed: int = 0, purpose: str = "joint", epochs: tuple[int, ...] = (0, 1)
) -> tuple[nn.Module, list[EpochResult]]:
    torch.manual_seed(7)
    data = make_data()
    data = ImageData(**{**vars(data), "augmentation": Augmentation(1, True)})
    made = trainer(create("resnet8", 3, 2), data, seed=seed, purpose=purpose)
    torch.manual_seed(seed + 1000 * len(purpose))  # the global generator must not matter
    return made.model, [made.train_epoch(epoch) for epoch in epochs]


def test_training_repeats_bit_for_bit() -> None:
    model, results = train_resnet()
    again, same = train_resnet()
    assert results == same
    assert bit_equal(model, again)
    for other in (
        train_resnet(seed=1),
        train_resnet(purpose="finetune"),
        train_resnet(epochs=(0,)),
    ):
        assert not bit_equal(model, other[0])


def test_dropout_repeats_too_and_the_global_generator_is_left_alone() -> None:
    models = [linear(0.5) for _ in range(3)]
    states = []
    for number, model in enumerate(models):
        torch.manual_seed(number)
        before = torch.get_rng_state()
        trainer(model, seed=number // 2).train_epoch(0)
        states.append(torch.equal(before, torch.get_rng_state()))
    assert states == [True, True, True]
    assert bit_equal(models[0], models[1])
    assert not bit_equal(models[0], models[2])


def test_progress_and_mode() -> None:
    told: list[tuple[int, int]] = []
    made = trainer(create("resnet8", 3, 2))
    made.train_epoch(0, on_batch=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert not made.model.training


@pytest.mark.parametrize(
    ("images", "beta"), [(41, 0.0), (11, 1e30)], ids=["in_the_loss", "in_the_only_step"]
)
def test_divergence_is_said_at_once(images: int, beta: float) -> None:
    made = trainer(data=make_data(images), lr=1e30, epochs=1)
    weight = made.model.get_parameter("2.weight")
    with pytest.raises(InputError, match=r"lower the learning rate \(now 1e\+30") as caught:
        made.train_epoch(0, weight.sum, beta)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_a_number_stops_the_training() -> None:
    model = linear()
    with torch.no_grad():
        model.get_parameter("2.weight")[0, 0] = float("nan")
    with pytest.raises(InputError, match="loss became nan"):
        trainer(model).train_epoch(0)


@pytest.mark.parametrize("batch", [1, 3, 11, 500])
def test_accuracy_counts_hits_in_eval_mode(batch: int) -> None:
    data, model = make_data(), create("resnet8", 3, 2)
    images, labels = data.normalised(data.test), data.test.labels
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    measured = accuracy(model, images, labels, batch_size=batch)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        hits = [model(x[None]).argmax() == y for x, y in zip(images, labels, strict=True)]
    assert measured == sum(map(int, hits)) / len(labels)
    assert not model.training


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 0},
        {"lr": float("nan")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"weight_decay": -1e-9},
        {"weight_decay": float("nan")},
        {"batch_size": 1},
        {"amp": "on"},
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=name):
        WeightsConfig(**settings)
