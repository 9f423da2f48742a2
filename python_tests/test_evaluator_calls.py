"""Evaluator: moving weights, ties and NaN, Ctrl-C, threads, refused input, a missing extension."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlal_fast as rf
from rlal_fast.kernels import cuda, masked_conv2d, native

BACKENDS = ["native", "torch", *(["cuda"] if cuda.unusable() is None else [])]
SHAPE = (3, 8, 9)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return rf.models.create("resnet8", 10).eval()


@cache
def shared_graph() -> rf.PrunableGraph:
    """For tests that leave the model alone."""
    return rf.PrunableGraph.trace(network(1), torch.randn(1, *SHAPE))


def own_graph() -> rf.PrunableGraph:
    """A graph whose model a test may change; its trace is the shared one."""
    graph = copy.copy(shared_graph())
    graph.model = copy.deepcopy(graph.model)
    return graph


def images_for(count: int = 20) -> tuple[Tensor, Tensor]:
    return torch.randn(count, *SHAPE), torch.randint(10, (count,))


def half(graph: rf.PrunableGraph) -> rf.Subnet:
    return graph.subnet((graph.full_widths + 1) // 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_count_from_load_weights_on_and_nothing_is_rebuilt(backend: str) -> None:
    graph = own_graph()
    images, labels = images_for()
    evaluator = rf.Evaluator(graph, images, labels, backend)
    subnet, full = half(graph), graph.full_subnet()
    before = [evaluator.logits(subnet), evaluator.logits(full)]
    with torch.no_grad():
        for tensor in graph.model.state_dict().values():
            tensor.mul_(2)
    graph.model.train()
    inner = vars(evaluator)["_backend"]
    program = vars(inner).get("_program")
    assert torch.equal(evaluator.logits(subnet), before[0])
    assert evaluator.accuracies([subnet]) == float((before[0].argmax(1) == labels).double().mean())
    evaluator.load_weights(graph.model)
    assert not torch.equal(evaluator.logits(subnet), before[0])
    with torch.no_grad():
        expected = copy.deepcopy(graph.model).eval()(images)
    error = (evaluator.logits(full) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5
    assert graph.model.training  # and scoring left the mode alone
    assert vars(inner).get("_program") is program
    other = network(5)
    evaluator.load_weights(other)
    with torch.no_grad():
        torch.testing.assert_close(evaluator.logits(full), other(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_another_architecture_are_refused_and_change_nothing(backend: str) -> None:
    graph = shared_graph()
    evaluator = rf.Evaluator(graph, *images_for(), backend)
    before = evaluator.logits(half(graph))
    strangers = {
        "fc.weight of shape \\(10, 64\\)": rf.models.create("resnet8", 9),
        "conv1.weight of shape": rf.models.create("resnet8", 10, in_channels=1),
        "no conv1.weight": rf.models.create("mobilenet_v1", 10),
    }
    for message, stranger in strangers.items():
        with pytest.raises(rf.InputError, match=message):
            evaluator.load_weights(stranger)
    assert torch.equal(evaluator.logits(half(graph)), before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_model_in_another_precision_is_scored_in_float32(
    dtype: torch.dtype, backend: str
) -> None:
    graph = own_graph()
    images, labels = images_for()
    evaluator = rf.Evaluator(graph, images, labels, backend)
    model = network(6).to(dtype)
    evaluator.load_weights(model)
    with torch.no_grad():
        expected = model.float()(images)
    torch.testing.assert_close(
        evaluator.logits(graph.full_subnet()), expected, rtol=1e-4, atol=1e-4
    )


NAN = float("nan")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "logits",
    [
        [1.0, 7.0, 2.0, 7.0],
        [3.0, 3.0, 3.0, 3.0],
        [-1.0, -1.0, -5.0, -2.0],
        [5.0, NAN, 9.0, NAN],
        [NAN, 1.0, 2.0, 3.0],
        [1.0, 2.0, 3.0, NAN],
        [NAN, NAN, NAN, NAN],
        [float("inf"), 1.0, float("inf"), 0.0],
        [-float("inf")] * 4,
        [0.0, -0.0, -1.0, 0.0],
    ],
    ids=str,
)
def test_the_first_of_equal_logits_wins_and_nan_is_largest(
    logits: list[float], backend: str
) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4)
    )
    nn.init.zeros_(model[3].weight)  # type: ignore[arg-type]
    with torch.no_grad():
        model[3].bias.copy_(torch.tensor(logits))  # type: ignore[operator, union-attr]
    graph = rf.PrunableGraph.trace(model, torch.randn(1, 1, 2, 2))
    winner = int(torch.tensor(logits).argmax())
    for label in range(4):
        evaluator = rf.Evaluator(graph, torch.randn(3, 1, 2, 2), torch.full((3,), label), backend)
        assert evaluator.accuracies([graph.full_subnet()]) == [float(label == winner)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_diverged_network_has_nan_logits_as_in_torch(backend: str) -> None:
    graph = own_graph()
    images, labels = images_for()
    images[7, 0, 2, 3] = NAN
    evaluator = rf.Evaluator(graph, images, labels, backend)
    logits = evaluator.logits(graph.full_subnet())
    assert logits[7].isnan().all()
    assert logits[[*range(7), *range(8, 20)]].isfinite().all()
    graph.model.state_dict()["layer2.0.bn1.running_var"].fill_(NAN)
    evaluator.load_weights(graph.model)
    assert evaluator.logits(graph.full_subnet()).isnan().all()
    assert evaluator.accuracies([half(graph)]) == float((labels == 0).double().mean())


def test_python_threads_may_share_an_evaluator_and_do_not_block_each_other() -> None:
    graph = shared_graph()
    evaluator = rf.Evaluator(graph, *images_for(200), "native")
    rng = np.random.default_rng(0)
    subnets = [graph.subnet(rng.integers(1, graph.full_widths + 1)) for _ in range(12)]
    alone = evaluator.accuracies(subnets).tolist()
    ticks = 0
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(evaluator.accuracies, subnets) for _ in range(6)]
        while not all(call.done() for call in calls):
            ticks += 1
            time.sleep(0.002)
    assert [call.result().tolist() for call in calls] == [alone] * 6
    assert ticks > 3  # this thread ran meanwhile


INTERRUPTED = """
import signal, sys, time
import numpy as np, torch
import rlal_fast as rf
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell may ignore it
torch.manual_seed(0)
graph = rf.PrunableGraph.trace(rf.models.create("resnet8", 10), torch.randn(1, 3, 32, 32))
evaluator = rf.Evaluator(graph, torch.randn(512, 3, 32, 32), torch.randint(10, (512,)), "native")
few = [graph.full_subnet()]
before = evaluator.accuracies(few)
print("ready", flush=True)
try:
    evaluator.accuracies(few * 20000)
    print("finished", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
assert evaluator.accuracies(few) == before
print("usable", flush=True)
"""


@pytest.fixture
def long_call() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_ctrl_c_ends_a_call_of_many_minutes_within_a_second(
    long_call: subprocess.Popen[str],
) -> None:
    assert long_call.stdout is not None
    assert long_call.stdout.readline() == "ready\n"
    time.sleep(0.3)
    start = time.perf_counter()
    long_call.send_signal(signal.SIGINT)
    assert long_call.stdout.readline() == "interrupted\n"
    assert time.perf_counter() - start < 1.5
    assert long_call.stdout.readline() == "usable\n"
    assert long_call.wait(20) == 0


IMAGES, LABELS = torch.randn(4, *SHAPE), torch.tensor([0, 9, 3, 3])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[0], LABELS, r"images must be a tensor \[N, 3, 8, 9\], not \(3, 8, 9\)"),
        (IMAGES[:, :, :, :8], LABELS, r"not \(4, 3, 8, 8\)"),
        (IMAGES[:, :1], LABELS, r"not \(4, 1, 8, 9\)"),
        (IMAGES.numpy(), LABELS, "not ndarray"),
        (IMAGES.double(), LABELS, "float32 and normalised, not torch.float64"),
        (IMAGES.to(torch.uint8), LABELS, "not torch.uint8"),
        (IMAGES, LABELS[:3], r"labels must be an integer tensor \[4\]"),
        (IMAGES, LABELS[:, None], r"integer tensor \[4\]"),
        (IMAGES, LABELS.float(), "integer tensor"),
        (IMAGES, LABELS.tolist(), "integer tensor"),
        (IMAGES, LABELS + 1, r"labels must be in 0\.\.9, found 1\.\.10"),
        (IMAGES, LABELS - 1, r"found -1\.\.8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_and_labels_that_do_not_fit(images: Tensor, labels: Tensor, message: str) -> None:
    for backend in BACKENDS:
        with pytest.raises(rf.InputError, match=message):
            rf.Evaluator(shared_graph(), images, labels, backend)


def test_images_and_labels_in_any_layout() -> None:
    graph = shared_graph()
    images, labels = images_for(17)
    plain = rf.Evaluator(graph, images, labels, "native")
    flipped = images.flip(3).contiguous(memory_format=torch.channels_last).flip(3)
    for given, wanted in (
        (flipped, labels.to(torch.uint8)),
        (images.clone().requires_grad_(), labels.int()),
        (torch.stack([images, images], 1)[:, 0], torch.stack([labels, labels], 1)[:, 0]),
    ):
        evaluator = rf.Evaluator(graph, given, wanted, "native")
        assert torch.equal(evaluator.logits(half(graph)), plain.logits(half(graph)))
        assert evaluator.accuracies([half(graph)]) == plain.accuracies([half(graph)])


def test_subnets_of_another_graph_and_unknown_backends_are_refused() -> None:
    graph = shared_graph()
    evaluator = rf.Evaluator(graph, IMAGES, LABELS)
    stranger = own_graph().full_subnet()
    for wrong in ([stranger], [graph.full_subnet(), stranger], [graph.full_widths]):
        with pytest.raises(rf.InputError, match="made by its own graph"):
            evaluator.accuracies(wrong)  # type: ignore[arg-type]
    with pytest.raises(rf.InputError, match="made by its own graph"):
        evaluator.logits(stranger)
    with pytest.raises(
        rf.InputError, match="unknown backend 'rocm': known are auto, native, cuda, torch"
    ):
        rf.Evaluator(graph, IMAGES, LABELS, "rocm")
    for setting in ({"precision": "fp8"}, {"path": "long"}):
        with pytest.raises(rf.InputError, match=f"unknown {next(iter(setting))} '.*': known are"):
            rf.Evaluator(graph, IMAGES, LABELS, "torch", **setting)
    for setting in ({"precision": "fp16"}, {"path": "layers"}):
        with pytest.raises(rf.InputError, match="is for backend 'cuda', not for 'native'"):
            rf.Evaluator(graph, IMAGES, LABELS, "native", **setting)


@pytest.mark.skipif(cuda.unusable() is None, reason="the CUDA kernels can run here")
def test_cuda_that_cannot_run_is_refused_with_the_reason() -> None:
    graph = shared_graph()
    for call in (
        lambda: rf.Evaluator(graph, IMAGES, LABELS, "cuda"),
        lambda: masked_conv2d(IMAGES, IMAGES, None, range(3), [0], backend="cuda"),
    ):
        with pytest.raises(rf.InputError, match=r"backend 'cuda' cannot run here: .+") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.fixture
def _no_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "_rlal_fast", None)
    native.extension.cache_clear()
    yield
    native.extension.cache_clear()


@pytest.mark.usefixtures("_no_extension")
def test_without_the_extension_auto_says_torch_and_native_raises() -> None:
    graph = shared_graph()
    assert rf.Evaluator(graph, IMAGES, LABELS, "auto").description == "torch reference"
    with pytest.raises(ImportError, match="pip install"):
        rf.Evaluator(graph, IMAGES, LABELS, "native")


def test_with_the_extension_auto_is_native() -> None:
    evaluator = rf.Evaluator(shared_graph(), IMAGES, LABELS)
    assert evaluator.description == f"native {rf.build_info()['isa']}"
