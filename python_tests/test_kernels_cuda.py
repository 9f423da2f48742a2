"""masked_conv2d by the CUDA kernels, against a float64 convolution that prunes nothing."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
import torch
from cuda_device import DEVICE, PRECISIONS
from masked_conv_truth import assert_close, result_size, some, truth
from torch import Tensor

from rlal_fast.kernels import masked_conv2d

SHAPES = [  # inputs kept of, outputs kept of
    ((1, 1), (1, 1)),
    ((5, 7), (11, 17)),
    ((17, 17), (5, 5)),
    ((8, 9), (16, 20)),
    ((37, 40), (64, 64)),
    ((3, 3), (70, 90)),
]
WINDOWS: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((1, 1), {}),
    ((3, 3), {"padding": 1}),
    ((3, 3), {"padding": 1, "stride": 2}),
    ((7, 7), {"padding": 3, "stride": 2}),
    ((5, 2), {"padding": (4, 0), "dilation": (2, 3), "stride": (1, 2)}),
]


def moved(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def on_device(*args: Any, precision: str, **settings: Any) -> Tensor:
    settings = {name: moved(value) for name, value in settings.items()}
    args = tuple(moved(value) for value in args)
    return masked_conv2d(*args, backend="cuda", precision=precision, **settings).cpu()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("window", range(len(WINDOWS)))
def test_dense_shapes(window: int, precision: str) -> None:
    kernel, steps = WINDOWS[window]
    turns = cycle(product((None, "relu", "relu6"), (False, True), (True, False), (1, 3)))
    for (inputs, full_in), (outputs, full_out) in SHAPES:
        activation, with_residual, with_bias, batch = next(turns)
        size = result_size((9, 11), kernel, **{"padding": 0, "stride": 1, **steps})
        assert size is not None
        args = (
            torch.randn(batch, inputs, 9, 11),
            torch.randn(full_out, full_in, *kernel) / full_in,
            torch.randn(full_out) if with_bias else None,
            some(inputs, full_in),
            some(outputs, full_out),
        )
        settings = {
            **steps,
            "activation": activation,
            "residual": torch.randn(batch, outputs, *size) if with_residual else None,
        }
        result = on_device(*args, precision=precision, **settings)
        assert result.dtype == torch.float32
        assert_close(result, truth(*args, **settings), PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_depthwise(precision: str) -> None:
    for channels, stride, kernel in ((1, 1, 3), (7, 2, 3), (17, 1, 5), (24, (2, 1), 3)):
        kept = some(channels, 30)
        args = (torch.randn(2, channels, 9, 7), torch.randn(30, 1, kernel, kernel))
        args = (*args, torch.randn(30), kept, kept)
        settings = {"stride": stride, "padding": 1, "groups": 30, "activation": "relu6"}
        result = on_device(*args, precision=precision, **settings)
        assert_close(result, truth(*args, **settings), PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_no_window_reads_has_no_say(precision: str) -> None:
    """Sums are filled up to whole products; what fills them up must not be a pixel that is NaN."""
    for inputs in (3, 5, 11, 17):
        x = torch.randn(2, inputs, 7, 7)
        x[:, :, 1::2] = float("nan")
        x[:, :, :, 1::2] = float("nan")
        args = (x, torch.randn(9, inputs, 1, 1), None, range(inputs), range(9))
        result = on_device(*args, precision=precision, stride=2)
        assert_close(result, truth(*args, stride=2), PRECISIONS[precision])


def test_no_images_and_what_is_not_contiguous() -> None:
    weight = torch.randn(6, 5, 3, 3)
    empty = on_device(torch.empty(0, 5, 4, 4), weight, None, range(5), range(6), precision="fp32")
    assert empty.shape == (0, 6, 2, 2)
    x = torch.randn(4, 8, 7, 5).transpose(0, 1).flip(3).transpose(2, 3)[:, :, ::2]
    args = (x.transpose(0, 1)[:, :5], weight.transpose(2, 3), None, range(5), range(6))
    result = on_device(*args, precision="fp32", padding=1)
    assert_close(result, truth(*args, padding=1), 1e-5)


def test_gradients_are_those_of_the_twin() -> None:
    operands = {
        "x": torch.randn(2, 3, 6, 5),
        "weight": torch.randn(7, 4, 3, 3),
        "bias": torch.randn(7),
        "residual": torch.randn(2, 5, 6, 5),
    }
    gradients = []
    for backend in ("cuda", "torch"):
        leaves = {name: t.to(DEVICE).requires_grad_() for name, t in operands.items()}
        kept: Any = {"kept_in": [0, 1, 3], "kept_out": [0, 2, 3, 5, 6]}
        out = masked_conv2d(**leaves, **kept, padding=1, activation="relu", backend=backend)
        out.square().sum().backward()
        gradients.append({name: leaf.grad for name, leaf in leaves.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-4)
