"""The fused masked convolution as an operation of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rlal_fast.errors import InputError
from rlal_fast.kernels import native, reference

_CLAMPS = {
    None: (-float("inf"), float("inf")),
    "relu": (0.0, float("inf")),
    "relu6": (0.0, 6.0),
}


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept_in: ArrayLike | Tensor,
    kept_out: ArrayLike | Tensor,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    activation: str | None = None,
    backend: str = "native",
) -> Tensor:
    """Convolves with the kept rows and columns of a full weight, adds and activates, in one pass.

    Args:
        x: [N, len(kept_in), H, W]; N may be 0.
        weight: the full weight [C_out, C_in / groups, kH, kW].
        bias: the full bias [C_out], or None.
        kept_in, kept_out: ascending channel indices into the full weight. A depthwise convolution
            (groups = C_out) needs them equal.
        stride, padding, dilation: as in torch.nn.functional.conv2d.
        groups: 1, or C_out for a depthwise convolution.
        residual: added before the activation, [N, len(kept_out), H', W'].
        activation: None, "relu" or "relu6".
        backend: "native" (float32 on the CPU) or "torch", the twin.

    Returns:
        [N, len(kept_out), H', W'] like x. The native backend has no gradient.

    Raises:
        InputError: shapes, indices, types or settings that do not fit together (named).
        ImportError: backend "native" without the extension.
    """
    pairs = {"stride": stride, "padding": padding, "dilation": dilation}
    settings = {name: _pair(name, value) for name, value in pairs.items()}
    inside, outside = _indices("kept_in", kept_in), _indices("kept_out", kept_out)
    _check(x, weight, bias, inside, outside, groups, activation)
    shape = _output_shape(x, weight, len(outside), settings)
    if residual is not None and tuple(residual.shape) != shape:
        raise InputError(
            f"residual must have the result's shape {shape}, not {tuple(residual.shape)}"
        )
    if backend == "torch":
        return reference.masked_conv2d(
            x,
            weight,
            bias,
            inside,
            outside,
            groups=groups,
            residual=residual,
            activation=activation,
            **settings,
        )
    if backend != "native":
        raise InputError(f"backend must be 'native' or 'torch', not {backend!r}")
    return _native(x, weight, bias, inside, outside, groups, residual, activation, settings)


def _native(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept_in: Tensor,
    kept_out: Tensor,
    groups: int,
    residual: Tensor | None,
    activation: str | None,
    settings: dict[str, tuple[int, int]],
) -> Tensor:
    tensors = [t for t in (x, weight, bias, residual) if t is not None]
    for tensor in tensors:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise InputError(
                f"backend 'native' takes float32 on the CPU, not {tensor.dtype} on "
                f"{tensor.device}; use backend='torch'"
            )
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "backend 'native' has no gradient: use torch.no_grad() or backend='torch'"
            )
    full_bias = torch.zeros(weight.shape[0]) if bias is None else bias
    window = [*weight.shape[2:], *settings["stride"], *settings["padding"], *settings["dilation"]]
    low, high = _CLAMPS[activation]
    result = native.extension().masked_conv2d(
        _array(x),
        _array(weight),
        _array(full_bias),
        kept_in.numpy(),
        kept_out.numpy(),
        [int(value) for value in window],
        groups > 1,
        None if residual is None else _array(residual),
        low,
        high,
        torch.get_num_threads(),
    )
    return torch.from_numpy(result)


def _array(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ascontiguousarray(tensor.detach().numpy())


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    least = 0 if name == "padding" else 1
    if len(pair) != 2 or min(pair) < least:
        raise InputError(f"{name} must be one or two integers of at least {least}, not {value}")
    return pair[0], pair[1]


def _indices(name: str, kept: ArrayLike | Tensor) -> Tensor:
    given = np.asarray(kept)
    indices = given.astype(np.int64) if given.dtype.kind in "iu" else np.empty(0)  # no bool mask
    if indices.ndim != 1 or not len(indices) or (np.diff(indices) <= 0).any() or indices[0] < 0:
        shown = " ".join(repr(kept).split())[:80]
        raise InputError(f"{name} must be ascending channel indices, at least one, not {shown}")
    return torch.from_numpy(indices)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept_in: Tensor,
    kept_out: Tensor,
    groups: int,
    activation: str | None,
) -> None:
    if activation not in _CLAMPS:
        raise InputError(f"activation must be None, 'relu' or 'relu6', not {activation!r}")
    if x.ndim != 4 or weight.ndim != 4:
        raise InputError(
            f"x and weight must have four axes, not {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    outputs, inputs = weight.shape[0], weight.shape[1]
    if groups < 1:
        raise InputError(f"groups must be 1 or the output channels ({outputs}), not {groups}")
    if bias is not None and tuple(bias.shape) != (outputs,):
        raise InputError(f"bias must have shape ({outputs},), not {tuple(bias.shape)}")
    if groups > 1:
        if groups != outputs or inputs != 1 or not torch.equal(kept_in, kept_out):
            raise InputError(
                f"groups={groups}: only depthwise convolutions are supported (groups = {outputs} "
                "output channels, kept_in equal to kept_out)"
            )
        inputs = outputs
    for name, kept, full in (("kept_in", kept_in, inputs), ("kept_out", kept_out, outputs)):
        if int(kept[-1]) >= full:
            raise InputError(f"{name} names channel {int(kept[-1])}, the weight has {full}")
    if x.shape[1] != len(kept_in):
        raise InputError(f"x has {x.shape[1]} channels, kept_in names {len(kept_in)}")


def _output_shape(
    x: Tensor, weight: Tensor, channels: int, settings: dict[str, tuple[int, int]]
) -> tuple[int, ...]:
    sizes = []
    for axis in (0, 1):
        reach = settings["dilation"][axis] * (weight.shape[2 + axis] - 1) + 1
        room = x.shape[2 + axis] + 2 * settings["padding"][axis] - reach
        if room < 0 or reach < 1:
            raise InputError(
                f"a kernel of {reach} pixels does not fit into images {tuple(x.shape)}"
            )
        sizes.append(room // settings["stride"][axis] + 1)
    return (x.shape[0], channels, *sizes)
