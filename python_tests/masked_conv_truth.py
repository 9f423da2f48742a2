"""What masked_conv2d must give: a full float64 convolution that prunes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def truth(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept_in: Sequence[int],
    kept_out: Sequence[int],
    *,
    groups: int = 1,
    residual: Tensor | None = None,
    activation: str | None = None,
    **settings: Any,
) -> Tensor:
    """Nothing is cut: pruned inputs are zeros, pruned outputs are computed and left out."""
    channels = weight.shape[1] * groups
    whole = torch.zeros(x.shape[0], channels, *x.shape[2:], dtype=torch.float64)
    whole[:, list(kept_in)] = x.detach().double()
    full_bias = None if bias is None else bias.double()
    out = F.conv2d(whole, weight.detach().double(), full_bias, groups=groups, **settings)
    out = out[:, list(kept_out)]
    if residual is not None:
        out = out + residual.double()
    low, high = {None: (None, None), "relu": (0, None), "relu6": (0, 6)}[activation]
    return out if low is None else out.clamp(low, high)


def assert_close(result: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    assert result.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    torch.testing.assert_close(result.double(), expected, rtol=bound, atol=bound * max(scale, 1e-3))


def some(count: int, full: int) -> list[int]:
    """`count` of `full` channels, ascending, by the seed of the test."""
    return sorted(torch.randperm(full)[:count].tolist())


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def result_size(
    size: tuple[int, int], kernel: tuple[int, int], padding: Any, stride: Any, dilation: Any = 1
) -> tuple[int, int] | None:
    """Height and width of the result, None where the kernel does not fit."""
    axes = zip(size, kernel, pair(padding), pair(stride), pair(dilation), strict=True)
    rooms = [(s + 2 * p - d * (k - 1) - 1, t) for s, k, p, t, d in axes]
    return None if min(r for r, _ in rooms) < 0 else tuple(r // t + 1 for r, t in rooms)  # type: ignore[return-value]
