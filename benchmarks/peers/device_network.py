"""A folded network on a device: sub-networks are cut there, by one indexing per weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.folded import FoldedNetwork, Step, resized
from peers.fx_network import call_of, owned_results
from peers.padded import mixes
from rlal_fast.subnet import Subnet


@dataclass(frozen=True)
class _Call:
    """A function, the steps whose results it reads, and after which of them none reads them."""

    function: Callable[..., Tensor]
    inputs: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    output: int
    done_with: tuple[int, ...]


class DeviceNetwork:
    """Full weights of a folded network on a device.

    Args:
        network: on the CPU.
        device, dtype, memory_format: of its weights.
    """

    def __init__(
        self,
        network: FoldedNetwork,
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        self._network, self._device, self._format = network, device, memory_format
        self._full = {
            index: [None if a is None else torch.from_numpy(a).to(device, dtype) for a in arrays]
            for index, arrays in network.extended.items()
        }
        self._owned = owned_results(network.steps)
        last = {source: step.index for step in network.steps for source in step.inputs}
        self._done_with = {
            step.index: tuple(source for source in set(step.inputs) if last[source] == step.index)
            for step in network.steps
        }

    @torch.no_grad()
    def cut(self, subnet: Subnet, multiple: int) -> Callable[[Tensor], Tensor]:
        """Images [N, C, H, W] -> logits [N, classes] of a sub-network, in the weights' dtype."""
        positions = self._network.positions(subnet, multiple)
        sizes = [len(rows) for rows in positions.values()]
        flat = torch.from_numpy(np.concatenate([*positions.values()]))
        # all lists in one transfer; negative ones count from the end, as in NumPy
        indices = dict(zip(positions, flat.to(self._device).split(sizes), strict=True))
        calls = [
            self._call(self._cut(step, indices, positions[step.index]))
            for step in self._network.steps
            if step.node.op != "input"
        ]
        return _Program(calls)

    def _cut(self, step: Step, indices: dict[int, Tensor], rows: np.ndarray) -> Step:
        if step.index not in self._full:
            return resized(step, rows)
        full, bias = self._full[step.index]
        assert full is not None
        where = indices[step.index]
        columns = indices[step.inputs[0]] if mixes(step) else None
        weight = full[where] if columns is None else full[where[:, None], columns]
        if weight.ndim == 4:
            weight = weight.contiguous(memory_format=self._format)
        return replace(step, weight=weight, bias=None if bias is None else bias[where])

    def _call(self, step: Step) -> _Call:
        tensors = [tensor for tensor in (step.weight, step.bias) if tensor is not None]
        called = call_of(step, tensors, step.inputs[0] in self._owned)
        return _Call(called[0], step.inputs, *called[1:], step.index, self._done_with[step.index])


class _Program:
    """Calls in a row."""

    def __init__(self, calls: Sequence[_Call]) -> None:
        self._calls = calls

    def __call__(self, images: Tensor) -> Tensor:
        values = {0: images}
        for call in self._calls:
            inputs = [values[source] for source in call.inputs]
            values[call.output] = call.function(*inputs, *call.arguments, **call.options)
            for source in call.done_with:
                del values[source]
        return values[self._calls[-1].output]
