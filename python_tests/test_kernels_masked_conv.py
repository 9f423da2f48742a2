"""masked_conv2d, native and twin, against a full float64 convolution that prunes nothing."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
import torch
from masked_conv_truth import assert_close, pair, result_size, some, truth
from torch import Tensor

from rlal_fast.errors import InputError
from rlal_fast.kernels import build_info, masked_conv2d

ISAS = build_info()["isas"]
SIZES = (1, 5, 7, 11, 17)
BATCHES = (0, 1, 5, 16, 17)
ACTIVATIONS = (None, "relu", "relu6")
KERNELS = ((1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (5, 2), (2, 3))
STRIDES = (1, 2, 3, (2, 1), (1, 3))


def check(*args: Any, **settings: Any) -> Tensor:
    """Compares both backends with the truth for the same arguments; returns the native result."""
    expected = truth(*args, **settings)
    native = masked_conv2d(*args, **settings)
    assert native.dtype == torch.float32
    assert native.is_contiguous()
    steps = (settings.get("stride", 1), settings.get("dilation", 1))
    winograd = tuple(args[1].shape[1:]) != (1, 3, 3) and tuple(args[1].shape[2:]) == (3, 3)
    winograd &= all(pair(step) == (1, 1) for step in steps)
    # F(4x4, 3x3) loses half a digit to the direct way
    assert_close(native, expected, 3e-5 if winograd else 1e-5)
    assert_close(masked_conv2d(*args, **settings, backend="torch"), expected)
    return native


def check_sizes(kernel: tuple[int, int], depthwise: bool, **settings: Any) -> None:
    """All sizes and batches, with the activations, residuals and biases taking turns."""
    turns = cycle(product(ACTIVATIONS, (False, True), (False, True)))
    full_in, full_out = (7, 7) if depthwise else (9, 14)
    weight = torch.randn(full_out, 1 if depthwise else full_in, *kernel)
    kept_in, kept_out = some(5, full_in), some(11, full_out) if not depthwise else []
    kept_out = kept_in if depthwise else kept_out
    ran = 0
    for size, batch in product((*zip(SIZES, SIZES, strict=True), (5, 11), (17, 1)), BATCHES):
        out = result_size(
            size,
            kernel,
            settings.get("padding", 0),
            settings.get("stride", 1),
            settings.get("dilation", 1),
        )
        activation, with_residual, with_bias = next(turns)
        if out is None:
            continue
        check(
            torch.randn(batch, len(kept_in), *size),
            weight,
            torch.randn(full_out) if with_bias else None,
            kept_in,
            kept_out,
            groups=full_out if depthwise else 1,
            residual=torch.randn(batch, len(kept_out), *out) if with_residual else None,
            activation=activation,
            **settings,
        )
        ran += 1
    assert ran >= 2 * len(BATCHES)


@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("stride", STRIDES, ids=lambda s: "s{}x{}".format(*pair(s)))
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"k{k[0]}x{k[1]}")
def test_sizes_strides_and_same_padding(
    kernel: tuple[int, int], stride: int | tuple[int, int], depthwise: bool
) -> None:
    check_sizes(kernel, depthwise, stride=stride, padding=(kernel[0] // 2, kernel[1] // 2))


@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        ((3, 3), {}),
        ((5, 5), {"stride": 2}),
        ((1, 1), {"padding": 2}),
        ((3, 3), {"padding": (0, 2)}),
        ((3, 3), {"padding": (4, 0), "stride": 2}),
        ((3, 3), {"padding": 7}),
        ((3, 3), {"padding": 2, "dilation": 2}),
        ((3, 3), {"dilation": 2, "stride": (3, 2)}),
        ((3, 1), {"padding": (3, 1), "dilation": (3, 2)}),
        ((7, 7), {"padding": 6, "dilation": (1, 2), "stride": 3}),
    ],
    ids=str,
)
def test_padding_and_dilation(
    kernel: tuple[int, int], settings: dict[str, Any], depthwise: bool
) -> None:
    check_sizes(kernel, depthwise, **settings)


@pytest.mark.parametrize("isa", ISAS)
def test_every_channel_count_of_a_register_tile(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAL_FAST_ISA", isa)
    weight, bias = torch.randn(29, 13, 3, 3), torch.randn(29)
    for count, width in product((*range(1, 20), 29), (1, 7)):  # tiles are 4 or 6 channels
        kept_in, kept_out = some(1 + count % 13, 13), some(count, 29)
        residual = torch.randn(5, count, 4, width)
        x = torch.randn(5, len(kept_in), 4, width)
        settings: dict[str, Any] = {"padding": 1, "residual": residual, "activation": "relu"}
        check(x, weight, bias, kept_in, kept_out, **settings)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("padding", [0, 1])
def test_input_channels_that_go_in_chunks(
    isa: str, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLAL_FAST_ISA", isa)
    for inputs, stride in product((127, 128, 129, 257, 300), (1, 2)):
        weight, bias = torch.randn(31, 320, 1, 1), torch.randn(31)
        kept_in, kept_out = some(inputs, 320), some(26, 31)
        x = torch.randn(3, inputs, 3, 5)
        out = truth(x, weight, bias, kept_in, kept_out, padding=padding, stride=stride)
        settings: dict[str, Any] = {"padding": padding, "stride": stride, "activation": "relu6"}
        residual = torch.randn(out.shape)
        check(x, weight, bias, kept_in, kept_out, residual=residual, **settings)


@pytest.mark.parametrize("isa", ISAS)
def test_every_row_length_of_a_register_tile(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAL_FAST_ISA", isa)
    for kernel, width, stride in product((1, 3), range(1, 20), (1, 2, 3)):
        for channels in (1, 5):  # few channels take longer tiles
            x, weight = torch.randn(3, 2, 3, width), torch.randn(channels, 2, kernel, kernel)
            check(x, weight, None, [0, 1], range(channels), padding=kernel // 2, stride=stride)


@pytest.mark.parametrize("isa", ISAS)
def test_batches_fill_the_lanes_or_not(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAL_FAST_ISA", isa)
    weight = torch.randn(3, 2, 3, 3)
    x = torch.randn(35, 2, 5, 6)
    whole = masked_conv2d(x, weight, None, [0, 1], [0, 2], padding=1)
    for batch in (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33):
        part = masked_conv2d(x[:batch], weight, None, [0, 1], [0, 2], padding=1)
        assert torch.equal(part, whole[:batch])  # an image's result does not depend on the others


@pytest.mark.parametrize("channels", [1, 2, 11, 17])
def test_depthwise_with_every_count_kept(channels: int) -> None:
    weight, bias = torch.randn(channels, 1, 3, 3), torch.randn(channels)
    for count in range(1, channels + 1):
        kept = some(count, channels)
        x, residual = torch.randn(2, count, 6, 5), torch.randn(2, count, 3, 3)
        settings: dict[str, Any] = {"stride": 2, "padding": 1, "residual": residual}
        check(x, weight, bias, kept, kept, groups=channels, activation="relu6", **settings)


def test_non_contiguous_arguments_are_read_where_they_are() -> None:
    x = torch.randn(7, 12, 10, 5).permute(0, 3, 2, 1)[:, :, ::2]  # [7, 5, 5, 12]
    weight = torch.randn(3, 3, 9, 8).permute(3, 2, 0, 1)  # [8, 9, 3, 3]
    bias = torch.randn(16)[::2]
    residual = torch.randn(7, 5, 12, 4).permute(0, 3, 1, 2)
    assert not any(t.is_contiguous() for t in (x, weight, bias, residual))
    before = [t.clone() for t in (x, weight, bias, residual)]
    kept_in, kept_out = [0, 2, 3, 6, 8], [1, 4, 5, 7]
    settings: dict[str, Any] = {"padding": 1, "activation": "relu"}
    check(x, weight, bias, kept_in, kept_out, residual=residual, **settings)
    expanded = torch.randn(1, 1, 1, 1).expand(7, 4, 5, 12)
    check(x, weight, bias, kept_in, kept_out, residual=expanded, **settings)
    for tensor, copy in zip((x, weight, bias, residual), before, strict=True):
        assert torch.equal(tensor, copy)  # nothing is written into the arguments


def test_kept_channels_in_any_integer_form() -> None:
    x, weight = torch.randn(2, 2, 3, 3), torch.randn(4, 5, 1, 1)
    expected = masked_conv2d(x, weight, None, [1, 4], [0, 3])
    for form in (tuple, np.array, torch.tensor, lambda k: np.array(k, dtype=np.uint8)):
        assert torch.equal(masked_conv2d(x, weight, None, form([1, 4]), form([0, 3])), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("place", ["x", "residual", "weight", "bias"])
def test_nan_and_infinity_go_where_torch_lets_them(
    place: str, value: float, activation: str | None
) -> None:
    padding = (
        0 if place == "weight" else 1
    )  # in torch too, it varies whether NaN times padding counts
    tensors = {
        "x": torch.randn(17, 3, 5, 5),
        "weight": torch.randn(4, 5, 3, 3),
        "bias": torch.randn(4),
        "residual": torch.randn(17, 3, 3 + 2 * padding, 3 + 2 * padding),
    }
    clean = {name: tensor.clone() for name, tensor in tensors.items()}
    tensors[place].view(-1)[-7 % tensors[place].numel()] = value
    kept: tuple[list[int], list[int]] = ([0, 2, 4], [0, 1, 3])

    def run(t: dict[str, Tensor], backend: str) -> Tensor:
        return masked_conv2d(
            t["x"],
            t["weight"],
            t["bias"],
            *kept,
            padding=padding,
            residual=t["residual"],
            activation=activation,
            backend=backend,
        )

    native, twin = run(tensors, "native"), run(tensors, "torch")
    torch.testing.assert_close(native, twin, rtol=1e-4, atol=1e-5, equal_nan=True)
    if place in ("x", "residual"):  # neighbours in the same vector register stay clean
        assert torch.equal(native[:16], run(clean, "native")[:16])
        assert activation is not None or not torch.isfinite(native[16]).all()


def test_nan_passes_the_activations() -> None:
    x = torch.full((1, 1, 1, 1), float("nan"))
    for activation, isa in product(ACTIVATIONS, ISAS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RLAL_FAST_ISA", isa)
            result = masked_conv2d(x, torch.ones(1, 1, 1, 1), None, [0], [0], activation=activation)
        assert bool(result.isnan().all()), (activation, isa)


def test_threads_do_not_change_a_bit() -> None:
    x, weight = torch.randn(70, 5, 9, 9), torch.randn(7, 5, 3, 3)
    one = masked_conv2d(x, weight, None, range(5), range(7), padding=1)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert torch.equal(masked_conv2d(x, weight, None, range(5), range(7), padding=1), one), (
            threads
        )


X, W = torch.zeros(2, 2, 5, 5), torch.zeros(4, 3, 3, 3)
GOOD: dict[str, Any] = {"x": X, "weight": W, "bias": None, "kept_in": [0, 2], "kept_out": [1, 3]}
DEPTHWISE: dict[str, Any] = {"weight": torch.zeros(4, 1, 3, 3), "kept_out": [0, 2], "groups": 4}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "three axes": ({"x": X[0]}, "four axes"),
    "weight axes": ({"weight": W[..., 0]}, "four axes"),
    "bias length": ({"bias": torch.zeros(2)}, r"bias must have shape \(4,\), not \(2,\)"),
    "x channels": ({"kept_in": [0]}, "x has 2 channels, kept_in names 1"),
    "kept_in too large": ({"kept_in": [0, 3]}, "kept_in names channel 3, the weight has 3"),
    "kept_out too large": ({"kept_out": [4]}, "kept_out names channel 4, the weight has 4"),
    "kept_out negative": ({"kept_out": [-1, 0]}, "kept_out must be ascending"),
    "kept_in descending": ({"kept_in": [2, 0]}, "kept_in must be ascending"),
    "kept_in twice": ({"kept_in": [1, 1]}, "kept_in must be ascending"),
    "kept_out empty": ({"kept_out": []}, "at least one"),
    "kept_out two axes": ({"kept_out": [[0, 1]]}, "kept_out must be ascending"),
    "kept_out a mask": ({"kept_out": [False, True]}, "kept_out must be ascending"),
    "kept_out floats": ({"kept_out": [0.5, 1.5]}, "kept_out must be ascending"),
    "long kept_in": ({"kept_in": np.arange(900)[::-1]}, "kept_in must be ascending"),
    "stride 0": ({"stride": 0}, "stride must be"),
    "stride of three": ({"stride": (1, 1, 1)}, "stride must be one or two integers"),
    "padding negative": ({"padding": (0, -1)}, "padding must be .* at least 0"),
    "dilation 0": ({"dilation": (0, 1)}, "dilation must be"),
    "padding by name": ({"padding": "same"}, "padding must be .* not 'same'"),
    "stride half": ({"stride": 0.5}, "stride must be .* not 0.5"),
    "groups 0": ({"groups": 0}, "groups must be"),
    "groups 2": ({"groups": 2}, "groups=2: only depthwise"),
    "depthwise, other rows": ({**DEPTHWISE, "kept_out": [0, 1]}, "only depthwise"),
    "depthwise, dense weight": ({**DEPTHWISE, "weight": W}, "only depthwise"),
    "depthwise, too large": ({**DEPTHWISE, "kept_in": [0, 4], "kept_out": [0, 4]}, "channel 4"),
    "activation": ({"activation": "gelu"}, "activation must be .* not 'gelu'"),
    "residual shape": ({"residual": X}, r"residual must .* \(2, 2, 3, 3\), not \(2, 2, 5, 5\)"),
    "kernel too large": ({"dilation": 3}, "kernel of 7 pixels does not fit"),
    "kernel of nothing": ({"weight": torch.zeros(4, 3, 0, 3)}, "does not fit"),
    "no pixels": ({"x": X[:, :, :0]}, "does not fit"),
    "backend": ({"backend": "rocm"}, "backend must be .*'cuda' or 'torch', not 'rocm'"),
    "precision": ({"precision": "fp8"}, "precision must be one of fp32, .* not 'fp8'"),
    "precision of the CPU": (
        {"precision": "fp16"},
        "'fp16' is for backend 'cuda', not for 'native'",
    ),
    "double x": ({"x": X.double()}, "float32 on the CPU, not x of torch.float64"),
    "half weight": ({"weight": W.half()}, "not weight of torch.float16"),
    "double bias": ({"bias": torch.zeros(4).double()}, "not bias of torch.float64"),
    "integer residual": ({"residual": torch.zeros(2, 2, 3, 3, dtype=torch.int64)}, "torch.int64"),
    "meta": ({"x": X.to("meta")}, "on meta"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(name: str) -> None:
    change, message = BAD[name]
    masked_conv2d(**GOOD)
    with pytest.raises(InputError, match=message) as caught:
        masked_conv2d(**{**GOOD, **change})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
