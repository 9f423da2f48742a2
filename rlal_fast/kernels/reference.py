"""The pure-torch twins of every native operation: the specification.

They are written to be plainly right, not fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rlal_fast.tracing import Node

if TYPE_CHECKING:
    from rlal_fast.flops import ChannelCount, CostTable

IntArray = NDArray[np.int64]
Statistics = dict[int, tuple[Tensor, Tensor]]
"""Batch norm's node -> (mean [c], variance [c]) on the channels that stay."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """Products of float32 are not rounded to TF32 on a GPU, as cuDNN does unless it is told."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def masked_conv2d(
    x: Tensor,  # [N, len(kept_in), H, W]
    weight: Tensor,  # [C_out, C_in / groups, kH, kW]
    bias: Tensor | None,  # [C_out]
    kept_in: Tensor,  # [c_in]
    kept_out: Tensor,  # [c_out]
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    residual: Tensor | None = None,  # [N, len(kept_out), H', W']
    activation: str | None = None,
) -> Tensor:  # [N, len(kept_out), H', W']
    """Convolution by the rows `kept_out` and columns `kept_in` of a full weight."""
    depthwise = groups > 1
    compact = weight[kept_out] if depthwise else weight[kept_out][:, kept_in]
    kept_bias = None if bias is None else bias[kept_out]
    kept_groups = len(kept_out) if depthwise else 1
    out = F.conv2d(x, compact, kept_bias, stride, padding, dilation, kept_groups)
    if residual is not None:
        out = out + residual
    return activate(out, activation)


def activate(x: Tensor, activation: str | None) -> Tensor:
    """None, "relu" or "relu6"."""
    if activation == "relu":
        return F.relu(x)
    return F.relu6(x) if activation == "relu6" else x


def subnet_logits(
    nodes: Sequence[Node],
    state: Mapping[str, Tensor],
    kept: Sequence[IntArray],
    images: Tensor,  # [N, C, H, W]
    statistics: Statistics | None = None,
) -> Tensor:  # [N, classes]
    """Runs a sub-network node by node, in eval mode, in the dtype of images and weights.

    Args:
        nodes: a traced network.
        state: its full weights.
        kept: for each node, the channels of its output that stay.
        images: normalised images.
        statistics: of every batch norm, in place of the running ones (`subnet_statistics`).
    """

    def normalise(node: Node, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
        mean, var = stored["mean"], stored["var"]
        if statistics is not None:
            mean, var = statistics[node.index]
        return F.batch_norm(x, mean, var, stored["weight"], stored["bias"], eps=node.attrs["eps"])

    return _walk(nodes, state, kept, images, normalise)


def subnet_statistics(
    nodes: Sequence[Node],
    state: Mapping[str, Tensor],
    kept: Sequence[IntArray],
    images: Tensor,  # [N, C, H, W]
) -> Statistics:
    """Batch norm recalibration: the statistics of a sub-network on one batch of images.

    While the images pass, each batch norm normalises by the mean and the biased variance of the
    batch itself. What is returned are the mean and the unbiased variance: the running statistics
    of torch's modules with momentum None after a reset and one forward in training mode.

    Args:
        nodes, state, kept: as for `subnet_logits`; running statistics in `state` have no say.
        images: normalised images; N * H * W at least 2 at each batch norm.
    """
    found: Statistics = {}

    def normalise(node: Node, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
        found[node.index] = (x.mean((0, 2, 3)), x.var((0, 2, 3)))
        scale, shift, eps = stored["weight"], stored["bias"], node.attrs["eps"]
        return F.batch_norm(x, None, None, scale, shift, training=True, eps=eps)

    _walk(nodes, state, kept, images, normalise)
    return found


def _walk(
    nodes: Sequence[Node],
    state: Mapping[str, Tensor],
    kept: Sequence[IntArray],
    images: Tensor,
    normalise: Callable[[Node, Tensor, Mapping[str, Tensor]], Tensor],
) -> Tensor:
    indices = [torch.from_numpy(positions) for positions in kept]
    last_reader = {source: node.index for node in nodes for source in node.inputs}
    values: dict[int, Tensor] = {}
    for node in nodes:
        inputs = [values[source] for source in node.inputs]
        if node.op == "batch_norm":
            here = indices[node.index]
            stored = {role: state[name][here] for role, name in node.params.items()}
            values[node.index] = normalise(node, inputs[0], stored)
        else:
            values[node.index] = _run(node, inputs, state, indices, images)
        for source in node.inputs:  # a batch of images is large: what is read no more is let go
            if last_reader[source] == node.index:
                values.pop(source, None)
    return values[nodes[-1].index]


def _run(
    node: Node,
    inputs: list[Tensor],
    state: Mapping[str, Tensor],
    kept: Sequence[Tensor],
    images: Tensor,
) -> Tensor:
    here, attrs = kept[node.index], node.attrs
    params = {role: state[name] for role, name in node.params.items()}
    if node.op == "input":
        return images
    if node.op == "conv":
        return masked_conv2d(
            inputs[0],
            params["weight"],
            params.get("bias"),
            kept[node.inputs[0]],
            here,
            stride=tuple(attrs["stride"]),
            padding=tuple(attrs["padding"]),
            dilation=tuple(attrs["dilation"]),
            groups=params["weight"].shape[0] if attrs["depthwise"] else 1,
        )
    if node.op == "linear":
        bias = params.get("bias")
        weight = params["weight"][here][:, kept[node.inputs[0]]]
        return F.linear(inputs[0], weight, None if bias is None else bias[here])
    return _run_weightless(node, inputs, kept)


def _run_weightless(node: Node, inputs: list[Tensor], kept: Sequence[Tensor]) -> Tensor:
    x, attrs = inputs[0], node.attrs
    if node.op in ("relu", "relu6"):
        return activate(x, node.op)
    if node.op == "add":
        return x + inputs[1]
    if node.op == "max_pool":
        return F.max_pool2d(
            x, attrs["kernel"], attrs["stride"], attrs["padding"], ceil_mode=attrs["ceil_mode"]
        )
    if node.op == "avg_pool":
        return F.avg_pool2d(
            x,
            attrs["kernel"],
            attrs["stride"],
            attrs["padding"],
            attrs["ceil_mode"],
            attrs["count_include_pad"],
        )
    if node.op == "global_pool":
        return x.mean((2, 3), keepdim=True)
    if node.op == "flatten":
        return x.flatten(1)
    if node.op == "pad_channels":
        full = node.shape[0] - attrs["before"] - attrs["after"]
        before = int((kept[node.index] < attrs["before"]).sum())
        after = int((kept[node.index] >= attrs["before"] + full).sum())
        return F.pad(x, (0, 0, 0, 0, before, after))
    if node.op == "subsample":
        return x[:, :, :: attrs["stride"][0], :: attrs["stride"][1]]
    assert node.op == "dropout", node.op
    return x


def count_macs(cost: CostTable, widths: IntArray) -> IntArray:  # [S, G] -> [S]
    """Multiply-adds of compact networks, one layer after the other, in Python integers."""

    def channels(form: ChannelCount, row: IntArray) -> int:
        return form.constant + sum(times * int(row[group]) for group, times in form.terms)

    totals = [
        sum(
            layer.area * channels(layer.out, row) * channels(layer.inputs, row)
            for layer in cost.layers
        )
        for row in widths
    ]
    return np.array(totals, dtype=np.int64)


def budget_bounds(
    cost: CostTable,
    widths: IntArray,  # [G]
    group: int,
    min_widths: IntArray,  # [G]
    round_to: int,
    budget: int,
) -> tuple[int, int]:
    """Low and high of method.md §4 by trying every allowed width."""
    full = cost.full_widths
    first, last = int(min_widths[group]), int(full[group])
    allowed = sorted({*range(first, last, round_to), last})

    def macs(width: int, rest: IntArray) -> int:
        row = np.concatenate([widths[:group], [width], rest[group + 1 :]])
        return int(count_macs(cost, row[None])[0])

    fitting = [w for w in allowed if macs(w, min_widths) <= budget]
    enough = [w for w in allowed if macs(w, full) >= budget]
    high = max(fitting, default=first)
    return min(min(enough, default=last), high), high
