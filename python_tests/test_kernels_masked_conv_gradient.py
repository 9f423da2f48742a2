"""masked_conv2d's gradient, native against the twin's in float64; NumPy arrays; its example."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlal_fast.errors import InputError
from rlal_fast.kernels import build_info, masked_conv2d

ISAS = build_info()["isas"]
BACKENDS = ("native", "torch")
ACTIVATIONS = (None, "relu", "relu6")
KEPT: tuple[list[int], list[int]] = ([0, 2, 3, 6], [1, 2, 4])
NAMES = ("x", "weight", "bias", "residual")


def operands(
    size: tuple[int, int] = (7, 9),
    kernel: tuple[int, int] = (3, 3),
    images: int = 5,
    depthwise: bool = False,
    kept: tuple[list[int], list[int]] = KEPT,
    **settings: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random float32 operands that want gradients, and the other arguments."""
    kept_in, kept_out = (kept[0], kept[0]) if depthwise else kept
    settings = {
        **settings,
        "kept_in": kept_in,
        "kept_out": kept_out,
        "groups": 7 if depthwise else 1,
    }
    made: dict[str, Any] = {
        "x": torch.randn(images, len(kept_in), *size),
        "weight": torch.randn(7, 1, *kernel) if depthwise else torch.randn(5, 7, *kernel),
        "bias": torch.randn(7 if depthwise else 5),
    }
    with torch.no_grad():
        made["residual"] = torch.randn_like(call({**made, "residual": None}, settings, "torch"))
    for tensor in made.values():
        tensor.requires_grad_()
    return made, settings


def call(given: dict[str, Any], settings: dict[str, Any], backend: str) -> Tensor:
    return masked_conv2d(**given, **settings, backend=backend)


def detached(given: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in given.items()}


def gradients(
    given: dict[str, Any], settings: dict[str, Any], backend: str, upstream: Tensor
) -> dict[str, Tensor]:
    """d <upstream, result> / d each operand that wants one."""
    wanted = {name: t for name, t in given.items() if t is not None and t.requires_grad}
    result = call(given, settings, backend)
    found = torch.autograd.grad(result, list(wanted.values()), upstream.to(result.dtype))
    return dict(zip(wanted, found, strict=True))


def check(given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Tensor]:
    """Compares native float32 gradients with the twin's in float64; returns the native ones."""
    exact = {
        name: None if t is None else t.detach().double().requires_grad_(t.requires_grad)
        for name, t in given.items()
    }
    upstream = torch.randn_like(call(given, settings, "native"))
    native = gradients(given, settings, "native", upstream)
    expected = gradients(exact, settings, "torch", upstream)
    assert native.keys() == expected.keys()
    for name, gradient in native.items():
        assert gradient.dtype == torch.float32
        scale = float(expected[name].abs().max()) if gradient.numel() else 1.0
        torch.testing.assert_close(
            gradient.double(), expected[name], rtol=1e-4, atol=1e-5 * max(scale, 1e-3), msg=name
        )
    return native


@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        ((1, 1), {}),
        ((3, 3), {"padding": 1}),
        ((3, 3), {"stride": 2, "padding": 1}),
        ((3, 3), {"stride": (1, 3), "padding": (0, 2)}),
        ((3, 3), {"padding": 2, "dilation": 2}),
        ((5, 2), {"stride": (2, 1), "dilation": (1, 3), "padding": (1, 0)}),
        ((1, 7), {"padding": (3, 3)}),
        ((7, 7), {"padding": 3, "stride": 3}),
    ],
    ids=str,
)
def test_gradients_equal_the_twins(
    kernel: tuple[int, int], settings: dict[str, Any], depthwise: bool
) -> None:
    for activation, size in product(ACTIVATIONS, ((7, 9), (11, 8))):
        given, rest = operands(size, kernel, 5, depthwise, activation=activation, **settings)
        check(given, rest)
        check({**given, "bias": None, "residual": None}, rest)


@pytest.mark.parametrize("isa", ISAS)
def test_hostile_sizes(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAL_FAST_ISA", isa)
    sizes: list[tuple[int, int]] = [(1, 1), (1, 17), (17, 1), (5, 5)]
    for size, images, kept in product(sizes, (1, 17), (([0], [4]), (list(range(7)), [0]), KEPT)):
        given, rest = operands(size, (3, 3), images, kept=kept, padding=1, activation="relu6")
        check(given, rest)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_what_is_not_kept_has_a_gradient_of_zero(depthwise: bool, backend: str) -> None:
    given, rest = operands(depthwise=depthwise)
    result = call(given, rest, backend)
    found = gradients(given, rest, backend, torch.ones_like(result))
    mask = torch.zeros_like(found["weight"])
    rows = rest["kept_out"]
    if depthwise:
        mask[rows] = 1
    else:
        mask[np.ix_(rows, rest["kept_in"])] = 1
    assert (found["weight"] != 0).equal(mask.bool())
    assert (found["bias"] != 0).nonzero()[:, 0].tolist() == rows


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "residual", "x bias"])
def test_only_what_wants_a_gradient_gets_one(wanted: str) -> None:
    given, rest = operands(activation="relu")
    for name, tensor in given.items():
        tensor.requires_grad_(name in wanted.split())
    assert set(check(given, rest)) == set(wanted.split())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_has_gradients_of_zero(backend: str) -> None:
    for depthwise in (False, True):
        given, rest = operands(images=0, depthwise=depthwise, activation="relu")
        found = gradients(given, rest, backend, torch.ones_like(call(given, rest, backend)))
        for name, gradient in found.items():
            assert gradient.shape == given[name].shape
            assert not gradient.any()


def test_non_contiguous_operands_and_gradients() -> None:
    given, rest = operands(activation="relu6", padding=1)
    strided: dict[str, Any] = {
        name: torch.stack([t, t], -1)[..., 1].detach().requires_grad_() for name, t in given.items()
    }
    strided["x"] = given["x"].detach().contiguous(memory_format=torch.channels_last)
    strided["x"].requires_grad_()
    assert not any(t.is_contiguous() for t in strided.values())
    check(strided, rest)
    result = call(given, rest, "native")
    whole = gradients(given, rest, "native", torch.full_like(result, 2.0))
    broadcast = gradients(given, rest, "native", torch.tensor(2.0).expand_as(result))
    assert all(torch.equal(whole[name], broadcast[name]) for name in NAMES)


def test_an_operand_that_occurs_twice_gets_the_sum() -> None:
    x, weight = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(3, 3, 1, 1)
    exact = x.detach().double().requires_grad_()
    for tensor, backend in ((x, "native"), (exact, "torch")):
        kernel = weight.to(tensor.dtype)
        kept = [0, 1, 2]
        result = masked_conv2d(tensor, kernel, None, kept, kept, residual=tensor, backend=backend)
        result.square().sum().backward()
    torch.testing.assert_close(x.grad, exact.grad.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_at_the_kinks_and_at_nan_it_is_torchs_gradient(activation: str) -> None:
    values = torch.tensor([-1.0, -0.0, 0.0, 3.0, 6.0, 7.0, float("nan"), float("inf")])
    found = []
    for backend in BACKENDS:
        x = values.reshape(1, 1, 1, -1).clone().requires_grad_()
        one = torch.ones(1, 1, 1, 1)
        result = masked_conv2d(x, one, None, [0], [0], activation=activation, backend=backend)
        found += torch.autograd.grad(result, x, torch.full_like(result, 5.0))
    assert torch.equal(*found)
    assert found[0].unique().tolist() == [0.0, 5.0]


def test_a_gradient_of_nan_stays_where_it_is() -> None:
    """Upstream NaN at a place that the activation holds does not reach the operands."""
    given, rest = operands(activation="relu")
    result = call(given, rest, "native")
    upstream = torch.where(result > 0, 1.0, float("nan"))
    assert upstream.isnan().any()
    assert all(g.isfinite().all() for g in gradients(given, rest, "native", upstream).values())


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
def test_the_twin_passes_torchs_own_check(depthwise: bool, activation: str | None) -> None:
    given, rest = operands(
        (4, 5), (3, 2), 2, depthwise, stride=(1, 2), padding=1, activation=activation
    )
    exact = [t.detach().double().requires_grad_() for t in given.values()]

    def run(*tensors: Tensor) -> Tensor:
        return call(dict(zip(NAMES, tensors, strict=True)), rest, "torch")

    assert run(*exact).dtype == torch.float64
    assert torch.autograd.gradcheck(run, exact)


def test_the_native_gradient_is_not_differentiable_again() -> None:
    given, rest = operands(activation="relu")
    x = given["x"]
    loss = call(given, rest, "native").square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice.*once_differentiable"):
        gradient.sum().backward()


def test_without_grad_nothing_is_recorded() -> None:
    given, rest = operands()
    recorded = call(given, rest, "native")
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            result = call(given, rest, "native")
        assert not result.requires_grad
        assert torch.equal(result, recorded)
    assert recorded.requires_grad
    assert not call(detached(given), rest, "native").requires_grad


def test_operands_changed_before_backward_are_noticed() -> None:
    for name in ("x", "weight"):
        given, rest = operands()
        result = call(given, rest, "native")
        with torch.no_grad():
            given[name].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.sum().backward()


def test_torch_func_takes_the_gradient_too() -> None:
    given, rest = operands(activation="relu")
    upstream = torch.ones_like(call(given, rest, "native"))
    expected = gradients(given, rest, "native", upstream)["weight"]
    fixed = detached(given)

    def loss(weight: Tensor) -> Tensor:
        return call({**fixed, "weight": weight}, rest, "native").sum()

    assert torch.equal(torch.func.grad(loss)(fixed["weight"]), expected)


# -- the example -----------------------------------------------------------------------------------


def test_the_example_runs_as_shown() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(masked_conv2d, globs={"torch": torch, "masked_conv2d": masked_conv2d})
    outcome = doctest.DocTestRunner().run(example)
    assert outcome.attempted >= 5
    assert outcome.failed == 0


def test_masked_training_learns_what_is_kept_and_leaves_the_rest() -> None:
    """As a network without the pruned channels learns, step by step, under both backends."""
    losses: dict[str, list[float]] = {}
    for backend in BACKENDS:
        torch.manual_seed(5)
        weight = torch.nn.Parameter(torch.randn(5, 7, 3, 3))
        bias = torch.nn.Parameter(torch.randn(5))
        before = weight.detach().clone()
        optimizer = torch.optim.SGD([weight, bias], lr=0.05)
        x, target = torch.randn(16, len(KEPT[0]), 6, 6), torch.rand(16, len(KEPT[1]), 6, 6)
        losses[backend] = []
        for _ in range(20):
            made = masked_conv2d(
                x, weight, bias, *KEPT, padding=1, activation="relu", backend=backend
            )
            loss = (made - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[backend].append(loss.item())
        moved = (weight.detach() != before).any(-1).any(-1)
        expected = torch.zeros(5, 7, dtype=torch.bool)
        expected[np.ix_(KEPT[1], KEPT[0])] = True
        assert torch.equal(moved, expected)
    assert losses["native"] == pytest.approx(losses["torch"], rel=1e-3)
    assert losses["native"][-1] < 0.5 * losses["native"][0]


# -- NumPy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_in_array_out(backend: str) -> None:
    given, rest = operands(activation="relu", stride=2)
    expected = call(given, rest, backend).detach().numpy()
    arrays: Any = {name: t.detach().numpy() for name, t in given.items()}
    result = masked_conv2d(**arrays, **rest, backend=backend)
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)
    bare = masked_conv2d(**{**arrays, "bias": None, "residual": None}, **rest, backend=backend)
    assert isinstance(bare, np.ndarray)
    assert bare.shape == expected.shape
    empty = {**arrays, "x": arrays["x"][:0], "residual": arrays["residual"][:0]}
    assert masked_conv2d(**empty, **rest, backend=backend).shape == (0, *expected.shape[1:])


FORMS: dict[str, Callable[[Any], Any]] = {
    "fortran order": np.asfortranarray,
    "negative strides": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", [*FORMS, "read-only"])
def test_arrays_of_any_layout(form: str) -> None:
    given, rest = operands()
    expected = call(given, rest, "native").detach().numpy()
    arrays: Any = {name: t.detach().numpy().copy() for name, t in given.items()}
    before = {name: array.copy() for name, array in arrays.items()}
    for name, array in arrays.items():
        if form == "read-only":
            array.setflags(write=False)
        else:
            arrays[name] = FORMS[form](array)
    np.testing.assert_array_equal(masked_conv2d(**arrays, **rest), expected)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])  # nothing is written into them


def test_arrays_in_double_precision_have_the_twin() -> None:
    x, weight = np.random.randn(2, 4, 6, 6), np.random.randn(5, 7, 3, 3)
    result = masked_conv2d(x, weight, None, *KEPT, backend="torch")
    assert result.dtype == np.float64
    single = masked_conv2d(x.astype(np.float32), weight.astype(np.float32), None, *KEPT)
    np.testing.assert_allclose(single, result, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"float32 on the CPU, not x of torch\.float64"):
        masked_conv2d(x, weight, None, *KEPT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5, 7, 3, 3)}, "not x a ndarray, weight a Tensor"),
        ({"bias": torch.zeros(5)}, "x a ndarray, .*bias a Tensor"),
        ({"residual": torch.zeros(2, 3, 4, 4)}, "x a ndarray, .*residual a Tensor"),
        ({"x": torch.zeros(2, 4, 6, 6)}, "x a Tensor, weight a ndarray"),
        ({"x": [[[[1.0]]]]}, "not x a list, weight a ndarray"),
        ({"weight": None}, "weight a NoneType"),
        ({"bias": 0.5}, "bias a float"),
        ({"x": np.zeros((2, 4, 6, 6), ">f4")}, r"x is an array of >f4.*astype\(np\.float32\)"),
        ({"x": np.zeros((2, 4, 6, 6), object)}, "x is an array of .O"),
        ({"bias": np.zeros(5, np.int32)}, r"not bias of torch\.int32"),
        ({"x": np.zeros((4, 6, 6), np.float32)}, "four axes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mixtures_and_unreadable_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "x": np.zeros((2, 4, 6, 6), np.float32),
        "weight": np.zeros((5, 7, 3, 3), np.float32),
        "bias": None,
    }
    with pytest.raises(InputError, match=message) as caught:
        masked_conv2d(**{**given, **change}, kept_in=KEPT[0], kept_out=KEPT[1])
    assert "\n" not in str(caught.value)
