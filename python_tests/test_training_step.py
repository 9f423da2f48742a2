"""training_step.py: the steps of torch.optim.SGD, with nothing read back from the device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu import needs_gpu
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rlal_fast.alignment import MaskedAlignment
from rlal_fast.graph import PrunableGraph
from rlal_fast.models import create
from rlal_fast.training_step import TrainingStep


class WhatRuns(TorchDispatchMode):
    """Names of the operations in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def batches(count: int, size: int = 8, device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(4)
    return [
        (
            torch.randn(size, 1, 8, 8, generator=source).to(device),
            torch.randint(0, 3, (size,), generator=source).to(device),
        )
        for _ in range(count)
    ]


def network(device: str = "cpu") -> nn.Module:
    torch.manual_seed(6)
    model = create("resnet8", 3, 1).to(device, memory_format=torch.channels_last)
    return model.train()


def sgd(model: nn.Module, momentum: float = 0.9, decay: float = 1e-2) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), lr=7.0, momentum=momentum, weight_decay=decay, nesterov=momentum > 0
    )


def squares_of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: torch.stack([p.square().sum() for p in model.parameters()]).sum()


def rate(value: float, device: str = "cpu") -> Tensor:
    return torch.tensor(value, device=device)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("decay", [1e-2, 0.0])
def test_steps_and_their_state_are_those_of_torch(momentum: float, decay: float) -> None:
    ours, theirs = network(), network()
    optimizers = [sgd(model, momentum, decay) for model in (ours, theirs)]
    step = TrainingStep(ours, optimizers[0])
    losses = []
    for number, (images, labels) in enumerate(batches(4)):
        step(images, labels, rate(0.1 / (number + 1)), whole=True)
        loss = F.cross_entropy(theirs(images), labels)
        losses.append(loss.item())
        optimizers[1].param_groups[0]["lr"] = 0.1 / (number + 1)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert step.sums[0].item() == pytest.approx(8 * sum(losses), rel=1e-5)
    if momentum:
        assert states[0].keys() == states[1].keys()
        for number, state in states[0].items():
            torch.testing.assert_close(
                state["momentum_buffer"],
                states[1][number]["momentum_buffer"],
                rtol=1e-3,
                atol=1e-4,
            )


def test_it_goes_on_from_loaded_momentum() -> None:
    whole, parts = network(), network()
    optimizer = sgd(whole)
    step = TrainingStep(whole, optimizer)
    given = batches(4)
    for images, labels in given:
        step(images, labels, rate(0.1), whole=True)
    first = sgd(parts)
    for images, labels in given[:2]:
        TrainingStep(parts, first)(images, labels, rate(0.1), whole=True)
    second = sgd(parts)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step = TrainingStep(parts, second)
    for images, labels in given[2:]:
        step(images, labels, rate(0.1), whole=True)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


def test_sums_are_over_images_and_frozen_weights_stay() -> None:
    model = network()
    model.get_parameter("fc.weight").requires_grad_(False)
    before = model.get_parameter("fc.weight").clone()
    step = TrainingStep(model, sgd(model), lambda: torch.tensor(3.0))
    (images, labels), (more, others) = batches(2)
    step(images, labels, rate(1e-12), whole=True)
    step(more[:3], others[:3], rate(1e-12), whole=False)
    loss, pushed, hits = step.sums.tolist()
    assert pushed == 3.0 * 11
    assert hits in range(12)
    assert loss > 0
    assert torch.equal(model.get_parameter("fc.weight"), before)


def test_the_weight_of_the_penalty_may_change() -> None:
    ours, theirs = network(), network()
    step, optimizer = TrainingStep(ours, sgd(ours), squares_of(ours)), sgd(theirs)
    for (images, labels), beta in zip(batches(3), (0.0, 0.5, 0.02), strict=True):
        step.beta.fill_(beta)
        step(images, labels, rate(0.1), whole=True)
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.zero_grad()
        (F.cross_entropy(theirs(images), labels) + beta * squares_of(theirs)()).backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_and_leaves_the_weights_in_float32() -> None:
    models = [network(), network()]
    steps = [
        TrainingStep(model, sgd(model), amp=amp)
        for model, amp in zip(models, (None, torch.bfloat16), strict=True)
    ]
    for images, labels in batches(2):
        for step in steps:
            step(images, labels, rate(0.01), whole=True)
    assert steps[0].sums[0].item() == pytest.approx(steps[1].sums[0].item(), rel=0.05)
    assert not torch.equal(steps[0].sums, steps[1].sums)
    assert {p.dtype for p in models[1].parameters()} == {torch.float32}


def test_nothing_is_read_back() -> None:
    """A value that the host reads stops a GPU, and a capture."""
    model = network()
    graph = PrunableGraph.trace(model, torch.zeros(1, 1, 8, 8))
    penalty = MaskedAlignment(model, graph)
    penalty.align_to(graph.subnet([3, 5, 7]))
    step = TrainingStep(model, sgd(model), penalty)
    step.beta.fill_(1e-4)
    with WhatRuns() as ran:
        step(*batches(1)[0], rate(0.1), whole=True)
    assert any("convolution" in name for name in ran.names)
    shapes_that_depend_on_values = ("nonzero", "masked_select", "unique", "_local_scalar", "item")
    assert not [n for n in ran.names if any(word in n for word in shapes_that_depend_on_values)]


# -- on a GPU --------------------------------------------------------------------------------------


def run(model: nn.Module, capture: bool, count: int = 8, seed: int = 0) -> TrainingStep:
    """`count` whole batches and a short one, on a stream of their own."""
    graph = PrunableGraph.trace(copy.deepcopy(model).cpu(), torch.zeros(1, 1, 8, 8))
    penalty = MaskedAlignment(model, graph)
    step = TrainingStep(model, sgd(model), penalty, capture=capture)
    step.beta.fill_(0.1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.manual_seed(seed)
    with torch.cuda.stream(stream):
        for number, (images, labels) in enumerate(batches(count, device="cuda")):
            if number == count - 2:  # after the capture: mask and weight are read anew
                penalty.align_to(graph.subnet(graph.full_widths // 2))
                step.beta.fill_(0.2)
            step(images, labels, rate(0.05 / (1 + number), "cuda"), whole=True)
        step(images[:5], labels[:5], rate(0.01, "cuda"), whole=False)
    torch.cuda.synchronize()
    return step


@needs_gpu
def test_a_captured_step_is_the_same_step() -> None:
    models = [network("cuda"), network("cuda")]
    steps = [run(model, capture) for model, capture in zip(models, (True, False), strict=True)]
    assert steps[0]._graph is not None
    assert steps[1]._graph is None
    torch.testing.assert_close(steps[0].sums[:2], steps[1].sums[:2], rtol=1e-2, atol=1e-2)
    assert steps[0].sums[2].item() == pytest.approx(steps[1].sums[2].item(), abs=2)
    assert steps[0].sums[1] > 0
    for (name, a), b in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2, msg=name)
    tracked = [t for n, t in models[0].state_dict().items() if n.endswith("num_batches_tracked")]
    assert {int(t) for t in tracked} == {9}


@needs_gpu
def test_dropout_is_drawn_anew_in_each_replay_and_follows_the_seed() -> None:
    def trained(seed: int) -> Tensor:
        torch.manual_seed(1)
        layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()
        model = nn.Sequential(*layers, nn.Dropout(0.5), nn.Linear(128, 3)).cuda().train()
        run(model, True, seed=seed)
        return model[-1].weight.detach()

    first, again, other = trained(0), trained(0), trained(1)
    torch.testing.assert_close(first, again, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(first, other, rtol=1e-3, atol=1e-4)


@needs_gpu
def test_a_gpu_is_not_waited_for() -> None:
    model = network("cuda")
    step = TrainingStep(model, sgd(model))
    given, lr = batches(3, device="cuda"), rate(0.1, "cuda")
    step(*given[0], lr, whole=True)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for images, labels in given:
            step(images, labels, lr, whole=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
