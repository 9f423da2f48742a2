"""Evaluator: both backends against the plain module, in float64, with zeros as pruned channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluator_cases import (
    IMAGES,
    NETWORKS,
    assert_logits,
    hostile_subnets,
    images_for,
    random_subnet,
    traced,
    truth,
)

import rlal_fast as rf

ISAS = rf.build_info()["isas"]


@pytest.mark.parametrize("groups", ["internal", "all"])
@pytest.mark.parametrize("name", NETWORKS)
def test_both_backends_equal_the_module_with_zeroed_channels(name: str, groups: str) -> None:
    graph = traced(name, groups)
    images, labels = images_for(graph, 3 if name == "torchvision" else IMAGES)
    native = rf.Evaluator(graph, images, labels, "native")
    twin = rf.Evaluator(graph, images, labels, "torch")
    subnets = hostile_subnets(graph)
    expected = [truth(graph.model, subnet, images) for subnet in subnets]
    for subnet, logits in zip(subnets, expected, strict=True):
        assert_logits(native.logits(subnet), logits)
        assert_logits(twin.logits(subnet), logits)
    hits = [float((logits.argmax(1) == labels).double().mean()) for logits in expected]
    assert native.accuracies(subnets).tolist() == hits
    assert twin.accuracies(subnets).tolist() == hits
    if groups == "all" and len(graph.groups):  # or nothing would have been pruned above
        assert any(not torch.equal(expected[0], other) for other in expected[1:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "name",
    [
        "resnet8",
        "mobilenet_v2",
        "4x4 tiles",
        "one column of 4x4 tiles",
        "avg_pool ceil",
        "max_pool padded, ceil",
        "pre-activation",
    ],
)
def test_every_instruction_set(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAL_FAST_ISA", isa)
    graph = traced(name)
    images, labels = images_for(graph, 17)
    evaluator = rf.Evaluator(graph, images, labels, "native")
    assert evaluator.description == f"native {isa}"
    for subnet in hostile_subnets(graph):
        assert_logits(evaluator.logits(subnet), truth(graph.model, subnet, images))


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAL_FAST_ISA", "sse9")
    graph = traced("resnet8")
    for backend in ("native", "auto"):  # no silent fallback
        with pytest.raises(ValueError, match=r"'sse9' \(RLAL_FAST_ISA\).*portable"):
            rf.Evaluator(graph, *images_for(graph), backend)


def test_any_number_of_images() -> None:
    graph = traced("resnet8")
    images, labels = images_for(graph, 33)
    subnets = hostile_subnets(graph)
    expected = truth(graph.model, subnets[3], images)
    whole = rf.Evaluator(graph, images, labels, "native").logits(subnets[3])
    for count, backend in ((c, b) for c in (1, 15, 16, 17, 33) for b in ("native", "torch")):
        evaluator = rf.Evaluator(graph, images[:count], labels[:count], backend)
        assert len(evaluator) == count
        logits = evaluator.logits(subnets[3])
        assert_logits(logits, expected[:count])
        assert backend == "torch" or torch.equal(logits, whole[:count])
        hits = expected[:count].argmax(1) == labels[:count]
        assert evaluator.accuracies(subnets)[3] == pytest.approx(float(hits.double().mean()))


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_no_images_have_logits_but_no_accuracy(backend: str) -> None:
    graph = traced("resnet8")
    evaluator = rf.Evaluator(graph, *images_for(graph, 0), backend)
    assert evaluator.logits(graph.full_subnet()).shape == (0, 10)
    with pytest.raises(rf.InputError, match="at least one image"):
        evaluator.accuracies([graph.full_subnet()])


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_many_subnets_in_one_call_equal_single_calls(backend: str) -> None:
    graph, rng = traced("resnet8"), np.random.default_rng(3)
    evaluator = rf.Evaluator(graph, *images_for(graph, 21), backend)
    subnets = [random_subnet(graph, rng) for _ in range(37)]  # the native call packs 16 at a time
    together = evaluator.accuracies(subnets)
    assert together.dtype == np.float64
    assert together.tolist() == [float(evaluator.accuracies([s])[0]) for s in subnets]
    assert len(set(together.tolist())) > 2
    assert evaluator.accuracies([]).shape == (0,)


@pytest.mark.parametrize("recalibrated", [False, True])
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_parts_of_the_images(backend: str, recalibrated: bool) -> None:
    graph, rng = traced("resnet8"), np.random.default_rng(5)
    images, labels = images_for(graph, 37)
    subnets = [random_subnet(graph, rng) for _ in range(18)]
    others = images_for(graph, 9)[0] if recalibrated else None
    evaluator = rf.Evaluator(graph, images, labels, backend, others)
    right = torch.stack([evaluator.logits(s).argmax(1) for s in subnets]) == labels
    assert evaluator.accuracies(subnets).tolist() == right.double().mean(1).tolist()
    for part in (range(37), range(1), range(5, 7), range(15, 17), range(16, 32), range(36, 37)):
        expected = right[:, part.start : part.stop].double().mean(1)
        assert evaluator.accuracies(subnets, part).tolist() == expected.tolist()
    assert evaluator.accuracies([], range(3)).shape == (0,)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (range(0), "at least one image"),
        (range(3, 2), "at least one image"),
        (range(-1, 2), r"range\(-1, 2\) is not of the 5 images"),
        (range(4, 6), r"range\(4, 6\) is not of the 5 images"),
        (range(0, 4, 2), "range of step 1"),
        (slice(0, 2), "range of step 1"),
    ],
)
def test_a_part_that_is_none_of_the_images(part: range, message: str) -> None:
    graph = traced("resnet8")
    for backend in ("native", "torch"):
        evaluator = rf.Evaluator(graph, *images_for(graph), backend)
        with pytest.raises(rf.InputError, match=message):
            evaluator.accuracies([graph.full_subnet()], part)


def test_threads_do_not_change_a_bit() -> None:
    graph, rng = traced("operand read later"), np.random.default_rng(4)
    subnets = [random_subnet(graph, rng) for _ in range(20)]
    images, labels = images_for(graph, 50)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        evaluator = rf.Evaluator(graph, images, labels, "native")
        results.append((evaluator.accuracies(subnets), [evaluator.logits(s) for s in subnets]))
    for accuracies, logits in results[1:]:
        assert accuracies.tolist() == results[0][0].tolist()
        assert all(torch.equal(a, b) for a, b in zip(logits, results[0][1], strict=True))
