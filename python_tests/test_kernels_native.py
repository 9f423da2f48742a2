"""The extension itself: how it is found, what it refuses, and how a network becomes its program."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rlal_fast as rf
from rlal_fast.kernels import build_info, masked_conv2d, native
from rlal_fast.kernels.program import NativeProgram

ISAS = build_info()["isas"]


@pytest.fixture
def _fresh() -> Iterator[None]:
    native.extension.cache_clear()
    yield
    native.extension.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_a_missing_extension_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_rlal_fast", None)
    for call in (native.extension, native.build_info, rf.build_info):
        with pytest.raises(ImportError, match=r"cannot be loaded .*pip install .*C\+\+17"):
            call()


@pytest.mark.usefixtures("_fresh")
def test_an_extension_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = SimpleNamespace(version=lambda: "0.0.0-old")
    monkeypatch.setitem(sys.modules, "_rlal_fast", stale)
    with pytest.raises(ImportError, match=r"its compiled part 0\.0\.0-old: run `pip install"):
        native.extension()


def test_build_info_tells_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLAL_FAST_ISA", raising=False)
    info = build_info()
    assert info.keys() - {"cuda_architectures"} == {"version", "compiler", "isas", "isa", "cuda"}
    assert info["version"] == rf.__version__
    assert info["isas"][-1] == "portable"  # runs everywhere
    assert info["isa"] == info["isas"][0]  # the best
    assert set(info["isas"]) <= {"avx512", "avx2", "neon", "portable"}
    if info["cuda"]:  # the toolkit's version
        assert re.fullmatch(r"\d+\.\d+.*|emulated", info["cuda"])
        assert info["cuda_architectures"]
    for name in info["isas"]:
        monkeypatch.setenv("RLAL_FAST_ISA", name)
        assert build_info()["isa"] == name
    monkeypatch.setenv("RLAL_FAST_ISA", "")
    assert build_info()["isa"] == info["isas"][0]


@pytest.mark.usefixtures("_fresh")
def test_an_unknown_instruction_set_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAL_FAST_ISA", "mmx")
    one = torch.ones(1, 1, 1, 1)
    message = rf"'mmx' \(RLAL_FAST_ISA\) cannot run here.*offer {', '.join(ISAS)}$"
    for call in (build_info, lambda: masked_conv2d(one, one, None, [0], [0])):
        with pytest.raises(rf.InputError, match=message):
            call()


# -- a program made by hand: images [2, 3, 3] -> 1x1 convolution -> global pool -> 3 logits --------


def tensor(size: int, classes: list[int]) -> dict[str, Any]:
    return {"height": size, "width": size, "classes": classes}


def operation(kind: str, source: int, output: int, kernel: int, **changes: Any) -> dict[str, Any]:
    plain = {
        "kind": kind,
        "input": source,
        "output": output,
        "residual": -1,
        "window": [kernel, kernel, 1, 1, 0, 0, 1, 1],
        "low": -float("inf"),
        "high": float("inf"),
        "count_padding": False,
        "pad_before": 0,
    }
    return {**plain, **changes}


TENSORS = [tensor(3, [0, 1]), tensor(3, [2, 3, 4]), tensor(1, [2, 3, 4])]
OPERATIONS = [operation("conv", 0, 1, 1), operation("avg_pool", 1, 2, 3)]
WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)
BIAS = np.array([1, 2, 3], dtype=np.float32)


def hand_made() -> native.Program:
    program = native.extension().Program(TENSORS, OPERATIONS, 5)
    program.set_weights(0, WEIGHTS, BIAS)
    return program


def test_a_program_made_by_hand_computes_the_known_answer() -> None:
    images = np.random.default_rng(0).normal(size=(5, 2, 3, 3)).astype(np.float32)
    blocks = native.extension().Images(hand_made(), images, 1)
    expected = images.astype(np.float64).mean((2, 3)) @ WEIGHTS.T.astype(np.float64) + BIAS
    keep_all, keep_first = np.ones((1, 5), np.uint8), np.array([[1, 0, 1, 1, 1]], np.uint8)
    np.testing.assert_allclose(blocks.logits(keep_all, 2), expected, rtol=1e-5)
    images[:, 1] = 0  # as if that channel were not there
    expected = images.astype(np.float64).mean((2, 3)) @ WEIGHTS.T.astype(np.float64) + BIAS
    np.testing.assert_allclose(blocks.logits(keep_first, 1), expected, rtol=1e-5)
    labels = expected.argmax(1)
    masks = np.concatenate([keep_first] * 40)
    assert blocks.correct(labels, masks, 2).tolist() == [5] * 40
    assert blocks.correct(labels, masks[:0], 2).tolist() == []
    for first, end in ((0, 5), (0, 0), (2, 2), (5, 5), (1, 4)):
        assert blocks.correct(labels, masks, 2, None, first, end).tolist() == [end - first] * 40


def bad_program(**changes: Any) -> None:
    operations = [{**OPERATIONS[0], **changes}, OPERATIONS[1]]
    native.extension().Program(TENSORS, operations, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "softmax"}, "unknown operation 'softmax'"),
        ({"window": [1, 1]}, "a window is"),
        ({"input": 3}, "tensor that does not exist"),
        ({"input": -1}, "tensor that does not exist"),
        ({"output": 0}, "tensor that does not exist"),
        ({"residual": 3}, "tensor that does not exist"),
    ],
    ids=str,
)
def test_a_program_that_would_crash_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bad_program(**changes)


def test_an_empty_program_or_unknown_classes_are_refused() -> None:
    make = native.extension().Program
    for tensors in ([], TENSORS):
        with pytest.raises(ValueError, match="needs tensors and operations"):
            make(tensors, [], 5)
    with pytest.raises(ValueError, match="channel class is out of range"):
        make(TENSORS, OPERATIONS, 4)


def test_weights_that_do_not_fit_are_refused() -> None:
    program = hand_made()
    for weights, bias in ((WEIGHTS[:2], BIAS), (WEIGHTS, BIAS[:2])):
        with pytest.raises(ValueError, match="operation 0 has 6 weights and 3 biases"):
            program.set_weights(0, weights, bias)
    for op in (1, 2, -1):
        with pytest.raises(ValueError, match=f"operation {op} has no weights"):
            program.set_weights(op, WEIGHTS, BIAS)
    with pytest.raises(TypeError):
        program.set_weights(0, WEIGHTS.astype(np.float64), BIAS)


def test_images_masks_and_labels_that_do_not_fit_are_refused() -> None:
    extension, images = native.extension(), np.zeros((4, 2, 3, 3), np.float32)
    for wrong in (images[0], images[:, :1], images[:, :, :2], images[..., :2]):
        with pytest.raises(ValueError, match="images must be float32"):
            extension.Images(hand_made(), np.ascontiguousarray(wrong), 1)
    with pytest.raises(TypeError):
        extension.Images(hand_made(), images.astype(np.float64), 1)
    blocks = extension.Images(hand_made(), images, 1)
    labels, masks = np.zeros(4, np.int64), np.ones((1, 5), np.uint8)
    for wrong in (masks[0], masks[:, :4]):
        with pytest.raises(ValueError, match="masks must be uint8"):
            blocks.correct(labels, np.ascontiguousarray(wrong), 1)
    with pytest.raises(ValueError, match="one label per image"):
        blocks.correct(labels[:3], masks, 1)
    for first, end in ((-1, 2), (3, 2), (0, 5), (5, 5)):
        with pytest.raises(ValueError, match="first and end must be a range of the images"):
            blocks.correct(labels, masks, 1, None, first, end)
    with pytest.raises(ValueError, match="logits are of one sub-network"):
        blocks.logits(np.ones((2, 5), np.uint8), 1)
    with pytest.raises(TypeError):
        blocks.correct(labels.astype(np.int32), masks.astype(np.float32), 1)


def test_a_program_without_weights_is_refused_in_every_call() -> None:
    extension = native.extension()
    bare = extension.Program(TENSORS, OPERATIONS, 5)
    blocks = extension.Images(bare, np.zeros((4, 2, 3, 3), np.float32), 1)
    masks = np.ones((3, 5), np.uint8)
    for threads in (1, 4):  # an exception from any thread arrives here
        with pytest.raises(ValueError, match="operation 0 has no weights yet"):
            blocks.correct(np.zeros(4, np.int64), masks, threads)
    with pytest.raises(ValueError, match="operation 0 has no weights yet"):
        blocks.logits(masks[:1], 1)


def test_images_keep_their_program_alive() -> None:
    blocks = native.extension().Images(hand_made(), np.ones((4, 2, 3, 3), np.float32), 1)
    masks = np.ones((1, 5), np.uint8)
    expected = WEIGHTS.sum(1) + BIAS
    np.testing.assert_allclose(blocks.logits(masks, 1), [expected] * 4, rtol=1e-6)


# -- from a network to its program ----------------------------------------------------------------


def kinds(model: nn.Module, *shape: int) -> list[str]:
    """Operation kinds of the program made for a network."""
    made: list[str] = []
    graph = rf.PrunableGraph.trace(model, torch.randn(1, *shape))
    with pytest.MonkeyPatch.context() as patch:
        real = native.extension()

        def record(tensors: Any, operations: Any, classes: int) -> native.Program:
            made.extend(op["kind"] for op in operations)
            return real.Program(tensors, operations, classes)

        patch.setattr(native, "extension", lambda: SimpleNamespace(Program=record))
        NativeProgram(graph.nodes, graph.positions, graph.class_count)
    return made


def test_batch_norms_additions_and_activations_cost_no_operation() -> None:
    # 7 convolutions; the two strided shortcuts are one copy each
    resnet = kinds(rf.models.create("resnet8", 10), 3, 8, 8)
    assert sorted(resnet) == sorted(["conv"] * 7 + ["select"] * 2 + ["avg_pool", "conv"])
    mobile = kinds(rf.models.create("mobilenet_v2", 10), 3, 16, 16)
    assert mobile.count("depthwise") == 17
    assert set(mobile) == {"conv", "depthwise", "avg_pool"}
    assert len(mobile) == 17 + 2 + 16 + 17 + 2  # depthwise, ends, expansions, projections, head


def test_flatten_and_dropout_cost_no_operation_before_a_linear_layer() -> None:
    head = [
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(4 * 9, 8),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(8, 2),
    ]
    assert kinds(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *head), 1, 5, 5) == ["conv"] * 3
    bare = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(4 * 9, 2))
    assert kinds(bare, 1, 5, 5) == ["conv", "conv", "affine", "conv"]
