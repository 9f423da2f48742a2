"""A network with its batch norms folded, cut to a sub-network: what every good peer starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from peers.padded import IntArray, filled_up, mixes
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet
from rlal_fast.tracing import Node

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One operation of a folded network; numbers of steps are those of its nodes.

    Attributes:
        node: what it computes. Its constants hold for the full network, but "before" and "after" of
            pad_channels for the cut one.
        inputs: numbers of the steps whose results it reads.
        weight, bias: of conv and linear; scale and shift of a batch norm that no convolution took.
    """

    node: Node
    inputs: tuple[int, ...]
    weight: FloatArray | None = None
    bias: FloatArray | None = None

    @property
    def index(self) -> int:
        return self.node.index


class FoldedNetwork:
    """Full weights, folded once; `cut` then only copies rows and columns.

    Folding acts on each output channel alone, so folding first and cutting then gives the same.

    Attributes:
        steps: of the full network.
        extended: by a step's number, its weight and bias with a row and a column of zeros at their
            ends, for `padded.FILLER`.
    """

    def __init__(self, graph: PrunableGraph) -> None:
        self._graph = graph
        self._state = {
            name: tensor.detach().double().numpy()
            for name, tensor in graph.model.state_dict().items()
        }
        self.steps = self._fold()
        self.extended = {
            step.index: (_extended(step.weight, mixes(step)), _extended(step.bias, False))
            for step in self.steps
            if step.weight is not None
        }

    def positions(self, subnet: Subnet, multiple: int = 1) -> dict[int, IntArray]:
        """The channels of each step's output, filled up to a multiple."""
        return filled_up(self.steps, self._graph.kept_positions(subnet), multiple)

    def cut(self, subnet: Subnet, multiple: int = 1) -> list[Step]:
        """The steps of a sub-network with their compact weights, float32 and contiguous."""
        positions = self.positions(subnet, multiple)
        return [self._cut(step, positions) for step in self.steps]

    def _cut(self, step: Step, positions: dict[int, IntArray]) -> Step:
        rows = positions[step.index]
        if step.index not in self.extended:
            return resized(step, rows)
        full, bias = self.extended[step.index]
        assert full is not None
        weight = full[rows]
        if mixes(step):
            weight = weight[:, positions[step.inputs[0]]]
        cut = None if bias is None else bias[rows]
        return replace(step, weight=np.ascontiguousarray(weight), bias=cut)

    def _fold(self) -> list[Step]:
        nodes = self._graph.nodes
        readers = [[reader for reader in nodes if node.index in reader.inputs] for node in nodes]
        stands_for = list(range(len(nodes)))  # node -> the step whose result it is
        steps: list[Step] = []
        for node in nodes:
            inputs = tuple(stands_for[source] for source in node.inputs)
            taken_by = readers[node.index]
            if node.op == "dropout":
                stands_for[node.index] = inputs[0]
            elif node.op == "conv" and [reader.op for reader in taken_by] == ["batch_norm"]:
                stands_for[node.index] = taken_by[0].index
                merged = replace(node, index=taken_by[0].index)
                steps.append(Step(merged, inputs, *self._folded(node, taken_by[0])))
            elif node.op == "batch_norm" and stands_for[node.inputs[0]] == node.index:
                continue
            elif node.op == "batch_norm":
                steps.append(Step(node, inputs, *self._folded(None, node)))
            else:
                steps.append(
                    Step(node, inputs, self._tensor(node, "weight"), self._tensor(node, "bias"))
                )
        return steps

    def _tensor(self, node: Node, role: str) -> FloatArray | None:
        return self._state[node.params[role]].astype(np.float32) if role in node.params else None

    def _folded(self, conv: Node | None, norm: Node) -> tuple[FloatArray, FloatArray]:
        scale, shift, mean, var = (
            self._state[norm.params[role]] for role in ("weight", "bias", "mean", "var")
        )
        scale = scale / np.sqrt(var + norm.attrs["eps"])
        if conv is None:
            return scale.astype(np.float32), (shift - mean * scale).astype(np.float32)
        weight = self._state[conv.params["weight"]] * scale[:, None, None, None]
        bias = self._state[conv.params["bias"]] if "bias" in conv.params else 0.0
        return weight.astype(np.float32), ((bias - mean) * scale + shift).astype(np.float32)


def resized(step: Step, rows: IntArray) -> Step:
    """A step without weights, for the channels `rows` of its output."""
    node = step.node
    if node.op != "pad_channels":
        return step
    before = int((rows < node.attrs["before"]).sum())
    after = int((rows >= node.shape[0] - node.attrs["after"]).sum())
    return replace(step, node=replace(node, attrs={"before": before, "after": after}))


def _extended(array: FloatArray | None, columns: bool) -> FloatArray | None:
    if array is None:
        return None
    more = [(0, 1), (0, int(columns)), *[(0, 0)] * 2][: array.ndim]
    return np.pad(array, more)
