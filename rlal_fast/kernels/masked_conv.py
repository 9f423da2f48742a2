"""The fused masked convolution as an operation of its own, with its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import grad as conv_gradients

from rlal_fast.errors import InputError
from rlal_fast.kernels import cuda, native, reference

_CLAMPS = {
    None: (-float("inf"), float("inf")),
    "relu": (0.0, float("inf")),
    "relu6": (0.0, 6.0),
}
Array = TypeVar("Array", Tensor, NDArray[Any])


@dataclass(frozen=True, eq=False)  # tensors have no single truth of equality
class _Settings:
    """What the operation does, apart from the numbers it does it to; checked."""

    kept_in: Tensor  # int64 [c_in]
    kept_out: Tensor  # int64 [c_out]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str | None


def masked_conv2d(
    x: Array,
    weight: Array,
    bias: Array | None,
    kept_in: ArrayLike | Tensor,
    kept_out: ArrayLike | Tensor,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    residual: Array | None = None,
    activation: str | None = None,
    backend: str = "auto",
    precision: str = "fp32",
) -> Array:
    """Convolves with the kept rows and columns of a full weight, adds and activates, in one pass.

    x, weight, bias and residual are all tensors or all NumPy arrays; the two are never mixed, as a
    gradient would end in an array unseen.

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
        backend: "native" (float32 on the CPU), "cuda" (float32 on a GPU), "torch", the twin, or
            "auto": native or cuda, by where x is.
        precision: of the products of backend "cuda": "fp32" (exact), "tf32", "fp16" or "bf16"; sums
            and results are float32. The others know "fp32" only.

    Returns:
        [N, len(kept_out), H', W'], a tensor or an array as x is. All backends have the gradient of
        x, weight, bias and residual, zero where a weight or bias is not kept; only that of the twin
        is differentiable again.

    Raises:
        InputError: shapes, indices, types or settings that do not fit together (named).
        ImportError: backend "native" without the extension.

    Example:
        A convolution of your own module, of which some channels are trained and the others rest:

        >>> class MaskedConv(torch.nn.Conv2d):
        ...     kept_in, kept_out = [0, 2], [1, 3, 4]
        ...
        ...     def forward(self, x):
        ...         return masked_conv2d(
        ...             x, self.weight, self.bias, self.kept_in, self.kept_out,
        ...             stride=self.stride, padding=self.padding, activation="relu",
        ...         )
        >>> conv = MaskedConv(3, 5, kernel_size=3, padding=1)
        >>> features = conv(torch.randn(8, 2, 6, 6))  # of 2 kept channels, 3 are made
        >>> features.shape
        torch.Size([8, 3, 6, 6])
        >>> features.square().mean().backward()
        >>> conv.weight.grad.abs().sum((1, 2, 3)) > 0
        tensor([False,  True, False,  True,  True])
    """
    pairs = {"stride": stride, "padding": padding, "dilation": dilation}
    window = {name: _pair(name, value) for name, value in pairs.items()}
    inside, outside = _indices("kept_in", kept_in), _indices("kept_out", kept_out)
    settings = _Settings(inside, outside, groups=groups, activation=activation, **window)
    tensors = _tensors({"x": x, "weight": weight, "bias": bias, "residual": residual})
    _check(tensors, settings)
    if backend == "auto":
        backend = "cuda" if tensors["x"].is_cuda else "native"
    _check_backend(tensors, backend, precision)
    operands = tensors["x"], tensors["weight"], tensors.get("bias")
    added = tensors.get("residual")
    result: Tensor
    if backend in _FORWARDS:
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors.values())
        # apply costs 40 us even where it records nothing
        run = _NativeConv.apply if wanted else _NativeConv.forward
        result = run(*operands, added, settings, backend, precision)
    else:
        with reference.exact_float32():
            result = reference.masked_conv2d(*operands, residual=added, **vars(settings))
    return result if isinstance(x, Tensor) else result.numpy()


class _NativeConv(torch.autograd.Function):
    """Forward by the extension, backward by torch on the rows and columns that are kept."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        settings: _Settings,
        backend: str,
        precision: str,
    ) -> Tensor:
        return _FORWARDS[backend](x, weight, bias, residual, settings, precision)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, _, ctx.settings, _, _ = inputs
        ctx.x_shape, ctx.weight_shape = x.shape, weight.shape
        ctx.save_for_backward(
            x if ctx.needs_input_grad[1] else None,
            weight if ctx.needs_input_grad[0] else None,
            output if ctx.settings.activation is not None else None,
        )

    @staticmethod
    @once_differentiable
    @reference.exact_float32()
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, output = ctx.saved_tensors
        settings, needed = ctx.settings, ctx.needs_input_grad
        gradient = _through_activation(gradients[0], output, settings.activation)
        window = (settings.stride, settings.padding, settings.dilation)
        kept_groups = len(settings.kept_out) if settings.groups > 1 else 1
        rows: Any = settings.kept_out
        if settings.groups == 1:
            rows = (settings.kept_out[:, None], settings.kept_in)
        of_x = of_weight = of_bias = None
        if needed[0]:
            of_x = conv_gradients.conv2d_input(
                ctx.x_shape, weight[rows], gradient, *window, kept_groups
            )
        if needed[1]:
            of_weight = gradient.new_zeros(ctx.weight_shape)
            compact = of_weight[rows].shape
            of_weight[rows] = conv_gradients.conv2d_weight(
                x, compact, gradient, *window, kept_groups
            )
        if needed[2]:
            of_bias = gradient.new_zeros(ctx.weight_shape[0])
            of_bias[settings.kept_out] = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, gradient if needed[3] else None, None, None, None


def _on_the_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    settings: _Settings,
    precision: str,
) -> Tensor:
    full_bias = torch.zeros(weight.shape[0]) if bias is None else bias
    result = native.extension().masked_conv2d(
        _array(x),
        _array(weight),
        _array(full_bias),
        settings.kept_in.numpy(),
        settings.kept_out.numpy(),
        [*weight.shape[2:], *settings.stride, *settings.padding, *settings.dilation],
        settings.groups > 1,
        None if residual is None else _array(residual),
        *_CLAMPS[settings.activation],
        torch.get_num_threads(),
    )
    return torch.from_numpy(result)


def _on_a_gpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    settings: _Settings,
    precision: str,
) -> Tensor:
    return cuda.masked_conv2d(
        x,
        weight,
        bias,
        residual,
        (settings.kept_in, settings.kept_out),
        [*weight.shape[2:], *settings.stride, *settings.padding, *settings.dilation],
        settings.groups > 1,
        _CLAMPS[settings.activation],
        precision,
    )


_FORWARDS = {"native": _on_the_cpu, "cuda": _on_a_gpu}


def _through_activation(gradient: Tensor, output: Tensor | None, activation: str | None) -> Tensor:
    """Zero where the activation holds its value; NaN lets the gradient pass, as in torch."""
    if output is None:
        return gradient
    flat = output <= 0
    if activation == "relu6":
        flat |= output >= 6
    return gradient.masked_fill(flat, 0)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().numpy())


# -- what is checked -------------------------------------------------------------------------------


def _tensors(given: dict[str, Any]) -> dict[str, Tensor]:
    """What was given, as tensors; arrays in the same memory where torch can read that."""
    given = {k: v for k, v in given.items() if v is not None or k in ("x", "weight")}
    kind = np.ndarray if isinstance(given["x"], np.ndarray) else Tensor
    if not all(isinstance(value, kind) for value in given.values()):
        kinds = ", ".join(f"{name} a {type(value).__name__}" for name, value in given.items())
        raise InputError(f"the operands must be all tensors or all NumPy arrays, not {kinds}")
    return {k: v if isinstance(v, Tensor) else _from_numpy(k, v) for k, v in given.items()}


def _from_numpy(name: str, array: NDArray[Any]) -> Tensor:
    try:
        return torch.from_numpy(np.require(array, requirements=("C", "W")))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} is an array of {array.dtype.str}, which torch cannot read: convert it by "
            f"{name}.astype(np.float32)"
        ) from error


def _check_backend(tensors: dict[str, Tensor], backend: str, precision: str) -> None:
    if backend not in ("torch", *_FORWARDS):
        raise InputError(f"backend must be 'auto', 'native', 'cuda' or 'torch', not {backend!r}")
    if precision not in cuda.PRECISIONS:
        raise InputError(
            f"precision must be one of {', '.join(cuda.PRECISIONS)}, not {precision!r}"
        )
    if precision != "fp32" and backend != "cuda":
        raise InputError(
            f"precision {precision!r} is for backend 'cuda', not for {backend!r}: leave it out, or "
            "choose backend 'cuda'"
        )
    if backend == "torch":
        return
    device = torch.device("cpu") if backend == "native" else cuda.device_for(tensors["x"])
    where = "the CPU" if backend == "native" else str(device)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device != device:
            raise InputError(
                f"backend {backend!r} takes float32 on {where}, not {name} of {tensor.dtype} on "
                f"{tensor.device}: convert it or use backend='torch'"
            )


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    least = 0 if name == "padding" else 1
    try:
        pair = [index(v) for v in (value if isinstance(value, Sequence) else (value, value))]
    except TypeError:
        pair = []
    if len(pair) != 2 or min(pair) < least:
        raise InputError(f"{name} must be one or two integers of at least {least}, not {value!r}")
    return pair[0], pair[1]


def _indices(name: str, kept: ArrayLike | Tensor) -> Tensor:
    given = np.asarray(kept)
    indices = given.astype(np.int64) if given.dtype.kind in "iu" else np.empty(0)  # no bool mask
    if indices.ndim != 1 or not len(indices) or (np.diff(indices) <= 0).any() or indices[0] < 0:
        shown = " ".join(repr(kept).split())[:80]
        raise InputError(f"{name} must be ascending channel indices, at least one, not {shown}")
    return torch.from_numpy(indices)


def _check(tensors: dict[str, Tensor], settings: _Settings) -> None:
    x, weight, bias = tensors["x"], tensors["weight"], tensors.get("bias")
    if settings.activation not in _CLAMPS:
        raise InputError(f"activation must be None, 'relu' or 'relu6', not {settings.activation!r}")
    if x.ndim != 4 or weight.ndim != 4:
        raise InputError(
            f"x and weight must have four axes, not {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (len(weight),):
        raise InputError(f"bias must have shape ({len(weight)},), not {tuple(bias.shape)}")
    _check_channels(x, weight, settings)
    shape = _output_shape(x, weight, settings)
    residual = tensors.get("residual")
    if residual is not None and tuple(residual.shape) != shape:
        raise InputError(
            f"residual must have the result's shape {shape}, not {tuple(residual.shape)}"
        )


def _check_channels(x: Tensor, weight: Tensor, settings: _Settings) -> None:
    outputs, inputs, groups = weight.shape[0], weight.shape[1], settings.groups
    kept_in, kept_out = settings.kept_in, settings.kept_out
    if groups < 1:
        raise InputError(f"groups must be 1 or the output channels ({outputs}), not {groups}")
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


def _output_shape(x: Tensor, weight: Tensor, settings: _Settings) -> tuple[int, ...]:
    sizes = []
    for axis in (0, 1):
        reach = settings.dilation[axis] * (weight.shape[2 + axis] - 1) + 1
        room = x.shape[2 + axis] + 2 * settings.padding[axis] - reach
        if room < 0 or reach < 1:
            raise InputError(
                f"a kernel of {reach} pixels does not fit into images {tuple(x.shape)}"
            )
        sizes.append(room // settings.stride[axis] + 1)
    return (x.shape[0], len(settings.kept_out), *sizes)
