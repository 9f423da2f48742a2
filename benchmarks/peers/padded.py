"""Channel counts filled up to a multiple: tensor cores and cuDNN want multiples of 8 in fp16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from peers.folded import FloatArray, Step


@dataclass(frozen=True)
class _Channels:
    """Of a step's output: as cut, and filled up; the filling comes last."""

    cut: int
    filled: int


def padded(steps: Sequence[Step], multiple: int) -> list[Step]:
    """The same network with more channels, which stay zero: so are the weights that make them.

    Logits stay as they are. Where a filled-up channel count would meet one that cannot be filled
    up (beside the zero channels that a shortcut adds), the steps come back as they are.
    """
    channels: dict[int, _Channels] = {}
    images = {step.index: step.node.shape[1:] for step in steps}
    filled: list[Step] = []
    for step in steps:
        sources = [channels[source] for source in step.inputs]
        areas = [math.prod(images[source]) for source in step.inputs]
        own = _channels(step, sources, areas, 1 if step is steps[-1] else multiple)
        if own is None:
            return list(steps)
        channels[step.index] = own
        filled.append(_filled(step, own.filled, sources))
    return filled


def _channels(
    step: Step, sources: list[_Channels], areas: list[int], multiple: int
) -> _Channels | None:
    """Of a step's output; None where those of its inputs do not fit together."""
    node = step.node
    if node.op == "input":
        return _Channels(node.shape[0], node.shape[0])
    if _mixes(step):
        assert step.weight is not None
        rows = len(step.weight)
        return _Channels(rows, -(-rows // multiple) * multiple)
    first = sources[0]
    if node.op == "flatten":
        return _Channels(first.cut * areas[0], first.filled * areas[0])
    if node.op == "pad_channels":
        total = first.cut + node.attrs["before"] + node.attrs["after"]
        return _Channels(total, total) if first.cut == first.filled else None
    return first if all(source == first for source in sources) else None


def _mixes(step: Step) -> bool:
    """Whether each output channel reads all input channels."""
    node = step.node
    return node.op == "linear" or (node.op == "conv" and not node.attrs["depthwise"])


def _filled(step: Step, rows: int, sources: list[_Channels]) -> Step:
    if step.weight is None:
        return step
    weight = _grown(step.weight, 0, rows)
    if _mixes(step):
        weight = _grown(weight, 1, sources[0].filled)
    bias = None if step.bias is None else _grown(step.bias, 0, rows)
    return replace(step, weight=weight, bias=bias)


def _grown(array: FloatArray, axis: int, count: int) -> FloatArray:
    more = [(0, 0)] * array.ndim
    more[axis] = (0, count - array.shape[axis])
    return np.pad(array, more)
