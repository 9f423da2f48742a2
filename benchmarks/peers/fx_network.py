"""A folded sub-network as straight-line PyTorch: no interpretation between the layers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from peers.folded import Step

_FRESH = ("conv", "linear", "batch_norm", "add", "relu", "relu6")  # results in memory of their own


def fx_network(steps: Sequence[Step]) -> fx.GraphModule:
    """Images [N, C, H, W] -> logits [N, classes]; activations overwrite what they read."""
    root, graph = nn.Module(), fx.Graph()
    values: dict[int, fx.Node] = {}
    owned = owned_results(steps)
    for step in steps:
        tensors = []
        for role, array in (("weight", step.weight), ("bias", step.bias)):
            if array is not None:
                root.register_buffer(f"{role}{step.index}", torch.from_numpy(array))
                tensors.append(graph.get_attr(f"{role}{step.index}"))
        if step.node.op == "input":
            values[step.index] = graph.placeholder("images")
            continue
        function, arguments, options = call_of(step, tensors, step.inputs[0] in owned)
        inputs = tuple(values[source] for source in step.inputs)
        values[step.index] = graph.call_function(function, (*inputs, *arguments), options)
    graph.output(values[steps[-1].index])
    return fx.GraphModule(root, graph).eval()


def owned_results(steps: Sequence[Step]) -> set[int]:
    """Steps whose results lie in memory of their own and have one reader, which may overwrite."""
    reads = [source for step in steps for source in step.inputs]
    return {s.index for s in steps if s.node.op in _FRESH and reads.count(s.index) == 1}


def call_of(
    step: Step, tensors: Sequence[Any], overwrite: bool
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A function and what it takes after the activations; `tensors` are its weight and bias."""
    op, attrs = step.node.op, step.node.attrs
    if op == "conv":
        assert step.weight is not None
        geometry = (attrs[name] for name in ("stride", "padding", "dilation"))
        groups = len(step.weight) if attrs["depthwise"] else 1
        bias = tensors[1] if len(tensors) > 1 else None
        return F.conv2d, (tensors[0], bias, *geometry, groups), {}
    if op == "linear":
        return F.linear, tuple(tensors), {}
    if op == "batch_norm":
        return _scaled, tuple(tensors), {}
    if op in ("relu", "relu6"):
        return getattr(F, op), (), {"inplace": overwrite}
    if op == "add":
        return operator.iadd if overwrite else operator.add, (), {}
    if op in ("max_pool", "avg_pool"):
        options = {name: value for name, value in attrs.items() if name != "kernel"}
        return getattr(F, f"{op}2d"), (attrs["kernel"],), options
    return _weightless(step)


def _weightless(step: Step) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    op, attrs = step.node.op, step.node.attrs
    if op == "global_pool":
        return F.adaptive_avg_pool2d, (1,), {}
    if op == "flatten":
        return torch.flatten, (1,), {}
    if op == "pad_channels":
        return F.pad, ((0, 0, 0, 0, attrs["before"], attrs["after"]),), {}
    if op == "subsample":
        rows, columns = attrs["stride"]
        every = (slice(None), slice(None), slice(None, None, rows), slice(None, None, columns))
        return operator.getitem, (every,), {}
    raise NotImplementedError(f"operation {op} has no PyTorch form here")


def _scaled(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift[:, None, None], x, scale[:, None, None])


fx.wrap("_scaled")
