"""The CUDA evaluator against the plain module in float64, in each precision and on both paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cuda_device import DEVICE, EMULATED, PRECISIONS
from evaluator_cases import (
    NETWORKS,
    assert_logits,
    hostile_subnets,
    images_for,
    random_subnet,
    traced,
    truth,
)
from networks import Net, conv
from torch import Tensor, nn
from torch.nn import functional as F

import rlal_fast as rf
from rlal_fast.kernels.cuda import CudaProgram

LARGE = ("torchvision", "mobilenet_v1", "mobilenet_v2", "resnet20 digits")  # slow in the emulator


def evaluator(graph: rf.PrunableGraph, images: Tensor, labels: Tensor, **how: Any) -> rf.Evaluator:
    return rf.Evaluator(graph, images.to(DEVICE), labels.to(DEVICE), "cuda", **how)


@pytest.mark.parametrize("path", ["auto", "layers"])
@pytest.mark.parametrize("groups", ["internal", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_equals_the_module_with_zeroed_channels(name: str, groups: str, path: str) -> None:
    graph = traced(name, groups)
    images, labels = images_for(graph, 2 if name in LARGE else 5)
    subnets = hostile_subnets(graph)
    expected = [truth(graph.model, subnet, images) for subnet in subnets]
    scored = evaluator(graph, images, labels, path=path)
    for subnet, logits in zip(subnets, expected, strict=True):
        assert_logits(scored.logits(subnet), logits, PRECISIONS["fp32"])
    hits = [float((logits.argmax(1) == labels).double().mean()) for logits in expected]
    assert scored.accuracies(subnets).tolist() == hits


@pytest.mark.parametrize("path", ["auto", "layers"])
@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_reduced_precision_is_near(name: str, precision: str, path: str) -> None:
    graph = traced(name)
    images, labels = images_for(graph, 1 if name in LARGE else 3)
    scored = evaluator(graph, images, labels, precision=precision, path=path)
    subnets = hostile_subnets(graph)
    for subnet in subnets[1::2] if name in LARGE and EMULATED else subnets:
        expected = truth(graph.model, subnet, images)
        assert_logits(scored.logits(subnet), expected, PRECISIONS[precision])


def small_integers(n: Any, x: Tensor) -> Tensor:
    x = F.relu6(n.a(x))
    x = F.relu6(n.c(F.relu6(n.b(x))) + x)
    x = F.relu6(n.d(F.max_pool2d(x, 2)))
    x = F.relu6(n.separable(x))
    return n.fc(F.avg_pool2d(x, 2).flatten(1))


@pytest.mark.parametrize("path", ["whole", "layers"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_small_integers_are_exact_in_every_precision(precision: str, path: str) -> None:
    """No number on the way needs more than 8 bits, so any difference is a mistake."""
    layers = {
        "a": conv(3, 13),
        "b": conv(13, 37, kernel=1),
        "c": conv(37, 13),
        "d": conv(13, 19, stride=2),
        "separable": conv(19, 19, groups=19),
        "fc": nn.Linear(19 * 4, 11),
    }
    model = Net(small_integers, **layers).eval()
    for parameter in model.parameters():
        nn.init.trunc_normal_(parameter, std=0.6, a=-1.4, b=1.4)
        parameter.data.round_()
    graph = rf.PrunableGraph.trace(model, torch.zeros(1, 3, 15, 16), groups="all")
    images = torch.randint(-3, 4, (3, 3, 15, 16)).float()
    labels = torch.randint(11, (3,))
    scored = evaluator(graph, images, labels, precision=precision, path=path)
    for subnet in hostile_subnets(graph):
        expected = truth(model, subnet, images)
        assert torch.equal(scored.logits(subnet).double(), expected)
    assert float(expected.abs().max()) > 3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_no_window_reads_has_no_say(precision: str) -> None:
    model = nn.Sequential(
        conv(5, 9, kernel=1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    graph = rf.PrunableGraph.trace(model.eval(), torch.zeros(1, 5, 7, 7), groups="all")
    images, labels = torch.randn(2, 5, 7, 7), torch.tensor([0, 0])
    read = images[:, :, ::2, ::2].clone()
    images[:] = float("nan")
    images[:, :, ::2, ::2] = read
    scored = evaluator(graph, images, labels, precision=precision)
    expected = truth(model, graph.full_subnet(), images)
    assert_logits(scored.logits(graph.full_subnet()), expected, PRECISIONS[precision])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_any_number_of_images(precision: str) -> None:
    """More and fewer than a block carries; in layers, one batch and several."""
    graph = traced("resnet20 digits")
    images, labels = images_for(graph, 33)
    subnet = hostile_subnets(graph)[3]
    expected = truth(graph.model, subnet, images)
    whole = evaluator(graph, images, labels, precision=precision).logits(subnet)
    for count in (1, 7, 33):
        for path in ("whole", "layers"):
            how = {"precision": precision, "path": path}
            scored = evaluator(graph, images[:count], labels[:count], **how)
            logits = scored.logits(subnet)
            assert_logits(logits, expected[:count], PRECISIONS[precision])
            if path == "whole":
                assert torch.equal(logits, whole[:count])
            hits = float((logits.argmax(1) == labels[:count]).double().mean())
            assert scored.accuracies([subnet]).tolist() == [hits]


@pytest.mark.parametrize("bytes_for_activations", [1, 60_000])
def test_layers_in_many_batches(
    bytes_for_activations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded batch is launched again until all images have passed, a part of one at last."""
    monkeypatch.setattr("rlal_fast.kernels.cuda._ACTIVATION_BYTES", bytes_for_activations)
    graph = traced("operand read later")
    images, labels = images_for(graph, 11)
    scored = evaluator(graph, images, labels, path="layers")
    subnets = hostile_subnets(graph)
    for subnet in subnets:
        assert_logits(scored.logits(subnet), truth(graph.model, subnet, images), 1e-5)
    twin = rf.Evaluator(graph, images, labels, "torch")
    assert scored.accuracies(subnets).tolist() == twin.accuracies(subnets).tolist()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_parts_of_the_images(precision: str) -> None:
    graph, rng = traced("resnet8"), np.random.default_rng(5)
    images, labels = images_for(graph, 37)
    subnets = [random_subnet(graph, rng) for _ in range(5)]
    for path in ("whole", "layers"):
        scored = evaluator(graph, images, labels, precision=precision, path=path)
        right = torch.stack([scored.logits(s).argmax(1) for s in subnets]) == labels
        for part in (range(37), range(1), range(5, 7), range(15, 33), range(36, 37)):
            expected = right[:, part.start : part.stop].double().mean(1)
            assert scored.accuracies(subnets, part).tolist() == expected.tolist()


def test_many_subnets_in_one_call_equal_single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, rng = traced("resnet8"), np.random.default_rng(3)
    images, labels = images_for(graph, 9)
    scored = evaluator(graph, images, labels)
    subnets = [random_subnet(graph, rng) for _ in range(23)]
    alone = [float(scored.accuracies([s])[0]) for s in subnets]
    assert scored.accuracies(subnets).tolist() == alone
    assert len(set(alone)) > 2
    assert scored.accuracies([]).shape == (0,)
    monkeypatch.setattr("rlal_fast.kernels.cuda._PACKED_BYTES", 1_000_000)  # several parts
    assert scored.accuracies(subnets).tolist() == alone


def test_subnets_too_large_for_shared_memory_run_in_layers() -> None:
    """In one call some sub-networks go one way and the others the other."""
    wide = {"a": conv(3, 300), "b": conv(300, 9), "fc": nn.Linear(9, 4)}
    model = Net(lambda n, x: n.fc(F.relu(n.b(F.relu(n.a(x)))).mean((2, 3))), **wide).eval()
    graph = rf.PrunableGraph.trace(model, torch.zeros(1, 3, 16, 17))
    images, labels = images_for(graph, 3)
    scored = evaluator(graph, images, labels)
    rng = np.random.default_rng(0)
    subnets = [graph.subnet([width, 9]) for width in (300, 5, 299, 120, 1)]
    program = CudaProgram(graph.nodes, graph.positions, graph.class_count, DEVICE)
    masks = np.stack([graph.kept_classes(s) for s in subnets]).astype(np.uint8)
    plan = program.plan(masks)
    assert 0 < plan.whole_count < len(subnets)
    twin = rf.Evaluator(graph, images, labels, "torch")
    shuffled = [subnets[i] for i in rng.permutation(len(subnets))]
    for together in (subnets, shuffled):
        assert scored.accuracies(together).tolist() == twin.accuracies(together).tolist()
    for subnet in subnets:
        assert_logits(scored.logits(subnet), truth(model, subnet, images), 1e-5)
    with pytest.raises(rf.InputError, match=r"path 'whole' needs \d+ bytes of shared memory"):
        evaluator(graph, images, labels, path="whole").accuracies(subnets)


@pytest.mark.parametrize("path", ["whole", "layers"])
def test_equal_and_missing_numbers_are_counted_as_by_torch(path: str) -> None:
    model = nn.Sequential(conv(1, 70), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    graph = rf.PrunableGraph.trace(model, torch.zeros(1, 1, 3, 3), groups="all")
    images, labels = torch.randn(4, 1, 3, 3), torch.tensor([0, 0, 40, 40])
    whole = graph.full_subnet()
    assert evaluator(graph, images, labels, path=path).accuracies([whole]).tolist() == [0.5]
    with torch.no_grad():
        model[0].bias[40] = float("nan")  # NaN counts as the largest
    assert evaluator(graph, images, labels, path=path).accuracies([whole]).tolist() == [0.5]
    assert evaluator(graph, images, labels, path=path).logits(whole)[:, 40].isnan().all()


def test_weights_move_without_a_new_evaluator() -> None:
    graph = traced("resnet8")
    images, labels = images_for(graph)
    scored = evaluator(graph, images, labels)
    before = scored.logits(graph.full_subnet())
    moved = rf.models.create("resnet8", 10).eval()
    scored.load_weights(moved)
    after = scored.logits(graph.full_subnet())
    with torch.no_grad():
        assert_logits(after, moved.double()(images.double()), 1e-5)
    assert not torch.allclose(before, after)


def test_no_images_have_logits_but_no_accuracy() -> None:
    graph = traced("resnet8")
    scored = evaluator(graph, *images_for(graph, 0))
    assert scored.logits(graph.full_subnet()).shape == (0, 10)
    with pytest.raises(rf.InputError, match="at least one image"):
        scored.accuracies([graph.full_subnet()])


def test_the_description_names_precision_and_device() -> None:
    graph = traced("resnet8")
    scored = evaluator(graph, *images_for(graph), precision="bf16")
    name = "emulated on the CPU" if EMULATED else torch.cuda.get_device_name()
    assert scored.description == f"cuda bf16, {name}"


@pytest.mark.parametrize("path", ["whole", "layers"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_recalibration_in_every_precision(precision: str, path: str) -> None:
    graph = traced("resnet8")
    images, labels = images_for(graph, 3)
    recalibration, _ = images_for(graph, 40)
    twin = rf.Evaluator(graph, images, labels, "torch", recalibration)
    scored = evaluator(
        graph, images, labels, recalibration_images=recalibration, precision=precision, path=path
    )
    for subnet in hostile_subnets(graph)[::3]:
        # what is nearly constant is divided by its own rounding
        bound = max(4 * PRECISIONS[precision], 1e-4)
        assert_logits(scored.logits(subnet), twin.logits(subnet).double(), bound)
