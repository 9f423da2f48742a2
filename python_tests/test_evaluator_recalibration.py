"""Evaluator with recalibration_images, both backends against torch's own batch norm modules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from networks import Net, conv
from torch import Tensor, nn
from torch.nn import functional as F

import rlal_fast as rf
from rlal_fast.kernels import cuda, reference

BACKENDS = ("torch", "native", *(["cuda"] if cuda.unusable() is None else []))


def every_chain() -> nn.Module:
    """Batch norms after a convolution, alone, before additions and activations, on padding."""

    def run(n: Any, x: Tensor) -> Tensor:
        x = F.relu6(n.second(n.first(n.stem(x))))  # two in a row: the second one is alone
        y = n.alone(x)  # read twice: nothing can join its chain
        y = F.relu(n.b_bn(n.b(F.relu(y))) + y)  # convolution, batch norm, addition, activation
        z = F.relu(n.added(y) + y)  # batch norm, addition, activation
        z = F.pad(z[:, :, ::2, ::2], (0, 0, 0, 0, 2, 1))  # constant zeros have a variance of 0
        z = n.drop(F.max_pool2d(n.dw_bn(n.dw(n.padded(z))), 2, 1))
        return n.fc(F.relu(z).mean((2, 3)))

    norms = {name: nn.BatchNorm2d(6) for name in ("first", "second", "alone", "b_bn", "added")}
    norms |= {name: nn.BatchNorm2d(9) for name in ("padded", "dw_bn")}
    layers = {"stem": conv(3, 6), "b": conv(6, 6, bias=False), "dw": conv(9, 9, groups=9)}
    return Net(run, **layers, **norms, drop=nn.Dropout(0.5), fc=nn.Linear(9, 4))


def bias_and_linear() -> nn.Module:
    """Pixels that a linear layer reads one by one, and a convolution without a batch norm."""
    first = [conv(3, 8, stride=2), nn.BatchNorm2d(8, eps=0.1), nn.ReLU()]
    second = [conv(8, 5), nn.ReLU(), conv(5, 7, 1), nn.BatchNorm2d(7, momentum=None)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(7 * 3 * 4, 6))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "resnet8": (lambda: rf.models.create("resnet8", 10), (3, 9, 13)),
    "resnet8 down to 1x1": (lambda: rf.models.create("resnet8", 10), (3, 4, 4)),
    "resnet20 digits": (lambda: rf.models.create("resnet20", 10, in_channels=1), (1, 8, 8)),
    "mobilenet_v1": (lambda: rf.models.create("mobilenet_v1", 10), (3, 11, 8)),
    "mobilenet_v2": (lambda: rf.models.create("mobilenet_v2", 10), (3, 8, 11)),
    "every chain": (every_chain, (3, 9, 7)),
    "bias and linear": (bias_and_linear, (3, 5, 7)),
}


# A channel that hardly varies on a small batch is divided by almost sqrt(eps), layer after layer:
# with torch's own 1e-5 a MobileNet on these images loses all digits of float32, in torch too.
EPS = 0.03


def randomised(model: nn.Module, eps: float = EPS) -> nn.Module:
    """Batch norms that are far from the identity, with statistics far from any batch's."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps if module.eps == 1e-5 else module.eps
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=3)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.1, 9)  # type: ignore[arg-type]
    return model.eval()


@cache
def traced(name: str, eps: float = EPS) -> rf.PrunableGraph:
    torch.manual_seed(1)
    make, shape = NETWORKS[name]
    return rf.PrunableGraph.trace(randomised(make(), eps), torch.randn(1, *shape), groups="all")


def own(graph: rf.PrunableGraph) -> rf.PrunableGraph:
    """A graph whose model a test may change."""
    mine = copy.copy(graph)
    mine.model = copy.deepcopy(graph.model)
    return mine


def images_for(graph: rf.PrunableGraph, count: int) -> tuple[Tensor, Tensor]:
    images = 1.5 * torch.randn(count, *graph.nodes[0].shape) + 0.5
    return images, torch.randint(graph.nodes[-1].shape[0], (count,))


def hostile_subnets(graph: rf.PrunableGraph) -> list[rf.Subnet]:
    rng, full = np.random.default_rng(0), graph.full_widths
    narrow = graph.subnet(np.ones_like(full))
    odd = graph.subnet_of([np.sort(rng.permutation(w)[: rng.integers(1, w + 1)]) for w in full])
    return [graph.full_subnet(), narrow, odd, graph.subnet_of([[w - 1] for w in full])]


@torch.no_grad()
def truth(subnet: rf.Subnet, recalibration: Tensor, model: nn.Module | None = None) -> nn.Module:
    """The compact network in float64 after one batch in torch's training mode, in eval mode."""
    network = rf.compact(model or subnet.graph.model, subnet).double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            module.train()
    network(recalibration.double())
    return network.eval()


def assert_logits(result: Tensor, network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected = network(images.double())
    assert result.dtype == torch.float32
    scale = float(expected.abs().max())
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [2, 5, 17, 33])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_accuracies_are_torchs(name: str, count: int, backend: str) -> None:
    graph = traced(name)
    images, labels = images_for(graph, 19)
    recalibration, _ = images_for(graph, count)
    evaluator = rf.Evaluator(graph, images, labels, backend, recalibration)
    plain = rf.Evaluator(graph, images, labels, backend)
    hits, moved = [], []
    for subnet in hostile_subnets(graph):
        network, logits = truth(subnet, recalibration), evaluator.logits(subnet)
        assert_logits(logits, network, images)
        hits.append(float((network(images.double()).argmax(1) == labels).double().mean()))
        moved.append(float((logits - plain.logits(subnet)).abs().max()))
    assert evaluator.accuracies(hostile_subnets(graph)).tolist() == hits
    assert max(moved) > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["resnet8", "resnet20 digits", "every chain", "bias and linear"])
def test_logits_are_torchs_with_torchs_epsilon(name: str, backend: str) -> None:
    graph = traced(name, eps=1e-5)
    images, labels = images_for(graph, 6)
    recalibration, _ = images_for(graph, 40)
    evaluator = rf.Evaluator(graph, images, labels, backend, recalibration)
    for subnet in hostile_subnets(graph):
        assert_logits(evaluator.logits(subnet), truth(subnet, recalibration), images)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_twins_statistics_are_torchs(name: str) -> None:
    graph = traced(name)
    recalibration = images_for(graph, 7)[0].double()
    state = {k: v.double() for k, v in graph.model.state_dict().items()}
    for subnet in hostile_subnets(graph):
        kept = graph.kept_positions(subnet)
        found = reference.subnet_statistics(graph.nodes, state, kept, recalibration)
        norms = dict(truth(subnet, recalibration).named_modules())
        assert len(found) == sum(isinstance(m, nn.BatchNorm2d) for m in norms.values())
        for index, (mean, var) in found.items():
            norm: Any = norms[graph.nodes[index].name]
            torch.testing.assert_close(mean, norm.running_mean, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(var, norm.running_var, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_images_scored_have_no_say_in_the_statistics(backend: str) -> None:
    graph = traced("every chain")
    images, labels = images_for(graph, 40)
    recalibration, _ = images_for(graph, 9)
    subnet = hostile_subnets(graph)[2]
    whole = rf.Evaluator(graph, images, labels, backend, recalibration).logits(subnet)
    part = rf.Evaluator(graph, images[:3], labels[:3], backend, recalibration).logits(subnet)
    torch.testing.assert_close(part, whole[:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_statistics_have_no_say_whatever_they_are(backend: str) -> None:
    """Those of a diverged network, too; and weights of 0, which leave the shift alone."""
    graph = own(traced("every chain"))
    images, labels = images_for(graph, 11)
    recalibration, _ = images_for(graph, 8)
    state = graph.model.state_dict()
    state["b_bn.weight"][1:4] = 0
    state["alone.weight"].zero_()
    evaluator = rf.Evaluator(graph, images, labels, backend, recalibration)
    subnets = hostile_subnets(graph)
    before = [evaluator.logits(subnet) for subnet in subnets]
    hostile = [float("nan"), float("inf"), 0.0, -1.0, 1e30, 1e-30]
    for name in ("first", "b_bn", "alone", "added"):
        state[f"{name}.running_var"].copy_(torch.tensor(hostile))
        state[f"{name}.running_mean"].copy_(torch.tensor(hostile).roll(1))
    evaluator.load_weights(graph.model)
    for subnet, expected in zip(subnets, before, strict=True):
        torch.testing.assert_close(evaluator.logits(subnet), expected, rtol=1e-3, atol=1e-3)
        assert_logits(evaluator.logits(subnet), truth(subnet, recalibration), images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_moved_weights_count_from_load_weights_on_and_stay_as_they_are(backend: str) -> None:
    graph = own(traced("resnet8"))
    images, labels = images_for(graph, 20)
    recalibration, _ = images_for(graph, 12)
    evaluator = rf.Evaluator(graph, images, labels, backend, recalibration)
    subnets = hostile_subnets(graph)
    before = evaluator.logits(subnets[2])
    torch.manual_seed(9)
    moved = randomised(rf.models.create("resnet8", 10)).train()
    state = {name: tensor.clone() for name, tensor in moved.state_dict().items()}
    assert torch.equal(evaluator.logits(subnets[2]), before)
    evaluator.load_weights(moved)
    for subnet in subnets:
        assert_logits(evaluator.logits(subnet), truth(subnet, recalibration, moved.eval()), images)
    assert all(torch.equal(state[name], tensor) for name, tensor in moved.state_dict().items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_subnets_in_one_call_equal_single_calls(backend: str) -> None:
    graph, rng = traced("resnet8"), np.random.default_rng(3)
    images, labels = images_for(graph, 21)
    evaluator = rf.Evaluator(graph, images, labels, backend, images_for(graph, 18)[0])
    subnets = [graph.subnet(rng.integers(1, graph.full_widths + 1)) for _ in range(19)]
    together = evaluator.accuracies(subnets).tolist()
    assert together == [float(evaluator.accuracies([s])[0]) for s in subnets]
    assert together == evaluator.accuracies(subnets).tolist()
    assert len(set(together)) > 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_image_serves_where_it_has_many_pixels(backend: str) -> None:
    graph = traced("bias and linear")
    images, labels = images_for(graph, 6)
    one = images_for(graph, 1)[0]
    evaluator = rf.Evaluator(graph, images, labels, backend, one)
    assert_logits(evaluator.logits(graph.full_subnet()), truth(graph.full_subnet(), one), images)
    assert evaluator.description.endswith("batch norm recalibrated on 1 image")


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_spreads_as_in_torch(backend: str) -> None:
    graph = traced("resnet8")
    images, labels = images_for(graph, 4)
    recalibration, _ = images_for(graph, 8)
    recalibration[3, 0, 1, 1] = float("nan")
    evaluator = rf.Evaluator(graph, images, labels, backend, recalibration)
    assert evaluator.logits(graph.full_subnet()).isnan().all()


def test_it_says_what_it_does() -> None:
    graph = traced("resnet8")
    images, labels = images_for(graph, 4)
    evaluator = rf.Evaluator(graph, images, labels, "torch", images)
    assert evaluator.description == "torch reference, batch norm recalibrated on 4 images"
    assert len(evaluator) == 4
    assert rf.Evaluator(graph, images, labels, "torch").description == "torch reference"


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:0], "recalibration_images must hold at least one image"),
        (lambda x: x[0], r"recalibration_images must be a tensor \[N, 3, 4, 4\], not \(3, 4, 4\)"),
        (lambda x: x[..., :3], r"recalibration_images must be .*not \(5, 3, 4, 3\)"),
        (lambda x: x.double(), "recalibration_images must be float32 .*not torch.float64"),
        (lambda x: x.numpy(), "recalibration_images must be .*not ndarray"),
        (lambda x: 5, "recalibration_images must be .*not int"),
        (lambda x: x[:1], r"one image gives batch norm layer3\.0\.bn1 one value per channel"),
    ],
    ids=["none", "one axis less", "size", "double", "array", "count", "one value"],
)
def test_images_that_cannot_recalibrate(
    change: Callable[[Tensor], Any], message: str, backend: str
) -> None:
    graph = traced("resnet8 down to 1x1")
    images, labels = images_for(graph, 5)
    with pytest.raises(rf.InputError, match=message) as caught:
        rf.Evaluator(graph, images, labels, backend, change(images))
    assert "\n" not in str(caught.value)


def test_a_network_without_batch_norm_cannot_be_recalibrated() -> None:
    model = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    graph = rf.PrunableGraph.trace(model, torch.randn(1, 3, 4, 4))
    images, labels = images_for(graph, 5)
    for backend in ("torch", "native"):
        with pytest.raises(rf.InputError, match="no batch norm to recalibrate"):
            rf.Evaluator(graph, images, labels, backend, images)
