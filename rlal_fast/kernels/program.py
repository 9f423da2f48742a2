"""A traced network as the native program's fused operations, and its weights in the form they need.

Batch norms are folded into the convolution before them, additions and activations into the store of
its result, pads and strides of shortcuts into one copy. What cannot be fused becomes an operation
of its own, so every traced network has a program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlal_fast.kernels import native
from rlal_fast.tracing import Node

_ACTIVATIONS = {"relu": (0.0, float("inf")), "relu6": (0.0, 6.0)}
_NO_ACTIVATION = (-float("inf"), float("inf"))
_TRANSPARENT = ("dropout", "flatten")  # the same numbers in the same places, see _rearranging


@dataclass
class _Fused:
    """A chain of nodes that one native operation computes; its result is the last node's output."""

    nodes: list[Node]
    residual: int | None = None  # node added to the result

    @property
    def end(self) -> int:
        return self.nodes[-1].index

    @property
    def norm(self) -> Node | None:
        """Its batch norm; nothing but an addition and an activation can follow it in a chain."""
        return next((node for node in self.nodes if node.op == "batch_norm"), None)


@dataclass
class _Op:
    kind: str
    input: int
    output: int
    residual: int = -1
    window: list[int] = field(default_factory=lambda: [1, 1, 1, 1, 0, 0, 1, 1])
    low: float = _NO_ACTIVATION[0]
    high: float = _NO_ACTIVATION[1]
    count_padding: bool = False
    pad_before: int = 0


@dataclass(frozen=True, eq=False)  # arrays have no single truth of equality
class OpWeights:
    """The full weights of one operation.

    Attributes:
        op: which one.
        weight: float32, shaped as torch's; still to be multiplied by `scale`.
        scale: float64 [C_out], or None for 1. The reader does it in the pass in which it copies,
            and no second copy of a large weight is made here.
        bias: float64 [C_out].
    """

    op: int
    weight: NDArray[np.float32]
    scale: NDArray[np.float64] | None
    bias: NDArray[np.float64]


class FusedNetwork:
    """A traced network as fused operations on tensors, as the native programs take it.

    Args:
        nodes: a traced network.
        positions: for each node, the channel class of each output channel.

    Attributes:
        tensors: height, width and channel classes of each.
        ops: the fields of `_Op` of each.
    """

    def __init__(self, nodes: Sequence[Node], positions: Sequence[NDArray[np.int64]]) -> None:
        self._nodes = _rearranging(nodes)
        self._chains = _fuse(self._nodes)
        self._tensor_of: dict[int, int] = {}  # node -> native tensor
        self.tensors = self._tensors(positions)
        self.ops = [vars(self._lower(chain)) for chain in self._chains]

    def weights(
        self, state: Mapping[str, Tensor], recalibrate: bool = False
    ) -> Iterator[OpWeights]:
        """The full weights of a state dict, batch norms folded in unless `recalibrate`."""
        for index, chain in enumerate(self._chains):
            folded = _fold(chain, state, None if recalibrate else chain.norm)
            if folded is not None:
                yield OpWeights(index, *folded)

    def norms(self) -> Iterator[tuple[int, Node]]:
        """Operations that end in a batch norm."""
        for index, chain in enumerate(self._chains):
            if chain.norm is not None:
                yield index, chain.norm

    # -- lowering ----------------------------------------------------------------------------------

    def _tensors(self, positions: Sequence[NDArray[np.int64]]) -> list[dict[str, Any]]:
        """One tensor for the images and one per chain; transparent nodes share their input's."""
        shapes: list[tuple[int, int]] = []
        classes: list[NDArray[np.int64]] = []
        ends = {0} | {chain.end for chain in self._chains}
        for node in self._nodes:
            if node.op in _TRANSPARENT and node.index not in ends:
                self._tensor_of[node.index] = self._tensor_of.get(node.inputs[0], -1)
            elif node.index in ends:
                self._tensor_of[node.index] = len(shapes)
                height, width = node.shape[1:] if len(node.shape) == 3 else (1, 1)
                shapes.append((height, width))
                classes.append(positions[node.index])
        return [
            {"height": h, "width": w, "classes": c.tolist()}
            for (h, w), c in zip(shapes, classes, strict=True)
        ]

    def _lower(self, chain: _Fused) -> _Op:
        first = chain.nodes[0]
        op = _Op("affine", self._tensor_of[first.inputs[0]], self._tensor_of[chain.end])
        if chain.residual is not None:
            op.residual = self._tensor_of[chain.residual]
        for node in chain.nodes:
            if node.op in _ACTIVATIONS:
                op.low, op.high = _ACTIVATIONS[node.op]
        if first.op in ("conv", "linear", "rearrange"):
            op.kind = "depthwise" if first.attrs.get("depthwise", False) else "conv"
            op.window = self._window(first)
        elif first.op in ("max_pool", "avg_pool", "global_pool"):
            op.kind = "max_pool" if first.op == "max_pool" else "avg_pool"
            op.window = self._window(first)
            # without padding torch counts the pixels that are there, also at a ceil_mode edge
            counted = first.attrs.get("count_include_pad", False)
            op.count_padding = bool(counted and any(first.attrs["padding"]))
        elif first.op in ("subsample", "pad_channels"):
            op.kind = "select"
            for node in chain.nodes:
                op.pad_before += node.attrs.get("before", 0)
                stride = node.attrs.get("stride", [1, 1])
                op.window[2], op.window[3] = op.window[2] * stride[0], op.window[3] * stride[1]
        return op

    def _window(self, node: Node) -> list[int]:
        attrs = node.attrs
        if "kernel" in attrs:
            dilation = attrs.get("dilation", [1, 1])
            return [*attrs["kernel"], *attrs["stride"], *attrs["padding"], *dilation]
        source = self._nodes[node.inputs[0]]
        while source.op in _TRANSPARENT:  # a linear layer reads all pixels of what was flattened
            source = self._nodes[source.inputs[0]]
        size = source.shape[1:] if len(source.shape) == 3 else (1, 1)
        return [*size, 1, 1, 0, 0, 1, 1]


class NativeProgram:
    """The CPU evaluator's view of a network.

    Args:
        nodes, positions: as for `FusedNetwork`.
        class_count: number of channel classes.
    """

    def __init__(
        self, nodes: Sequence[Node], positions: Sequence[NDArray[np.int64]], class_count: int
    ) -> None:
        self._network = FusedNetwork(nodes, positions)
        self.native = native.extension().Program(
            self._network.tensors, self._network.ops, class_count
        )

    def load_weights(self, state: Mapping[str, Tensor], recalibrate: bool = False) -> None:
        """Folds and hands over the full weights of a state dict; nothing is rebuilt.

        With `recalibrate` the program must be run with recalibration images only: the weights and
        biases of its batch norms are not folded but handed over, to be applied after statistics
        that are measured for each sub-network.
        """
        threads = torch.get_num_threads()
        for own in self._network.weights(state, recalibrate):
            bias = own.bias.astype(np.float32)
            self.native.set_weights(own.op, own.weight, bias, own.scale, threads)
        for op, norm in self._network.norms() if recalibrate else ():
            scale, shift = (_float32(state[norm.params[role]]) for role in ("weight", "bias"))
            self.native.set_norm(op, scale, shift, norm.attrs["eps"])


def _readers(nodes: Sequence[Node]) -> dict[int, list[Node]]:
    readers: dict[int, list[Node]] = {node.index: [] for node in nodes}
    for node in nodes:
        for source in node.inputs:
            readers[source].append(node)
    return readers


def _rearranging(nodes: Sequence[Node]) -> list[Node]:
    """A flatten of whole images that others than linear layers read becomes an operation.

    A linear layer reads the pixels where they are; every other reader wants one value per channel.
    Such networks are rare: the operation is a convolution by the identity.
    """
    readers = _readers(nodes)

    def only_linear(node: Node) -> bool:
        return bool(readers[node.index]) and all(
            reader.op == "linear" or (reader.op == "dropout" and only_linear(reader))
            for reader in readers[node.index]
        )

    return [
        replace(node, op="rearrange")
        if node.op == "flatten"
        and nodes[node.inputs[0]].shape[1:] != (1, 1)
        and not only_linear(node)
        else node
        for node in nodes
    ]


def _fuse(nodes: Sequence[Node]) -> list[_Fused]:
    """Partitions the nodes into chains, in an order in which every chain's inputs come first."""
    readers = _readers(nodes)
    layers = [node for node in nodes if node.op in ("conv", "linear")]
    # Layers first, the last ones before the others: an addition joins the later of its two
    # operands, whose other operand is then complete.
    order = [*reversed(layers), *(node for node in nodes if node not in layers)]
    taken: set[int] = set()
    chains = []
    for node in order:
        if node.index not in taken and node.op not in ("input", *_TRANSPARENT):
            chains.append(_chain(node, readers, taken))
            taken.update(member.index for member in chains[-1].nodes)
    return sorted(chains, key=lambda chain: chain.end)


_FOLLOWERS: dict[str, tuple[str, ...]] = {  # what may join a chain, in this order
    "conv": ("batch_norm", "add", "activation"),
    "linear": ("activation",),
    "batch_norm": ("add", "activation"),
    "add": ("activation",),
    "subsample": ("subsample", "subsample", "pad_channels"),
}


def _chain(start: Node, readers: Mapping[int, list[Node]], taken: set[int]) -> _Fused:
    chain = _Fused([start], residual=start.inputs[1] if start.op == "add" else None)
    followers = list(_FOLLOWERS.get(start.op, ()))
    while True:
        last = chain.nodes[-1]
        if len(readers[last.index]) != 1 or readers[last.index][0].index in taken:
            return chain
        node = readers[last.index][0]
        kind = "activation" if node.op in _ACTIVATIONS else node.op
        if kind not in followers:
            return chain
        followers = followers[followers.index(kind) + 1 :]
        if kind == "add":
            chain.residual = next(i for i in node.inputs if i != last.index)
        chain.nodes.append(node)


_Weights = tuple[NDArray[np.float32], NDArray[np.float64] | None, NDArray[np.float64]]


def _fold(chain: _Fused, state: Mapping[str, Tensor], norm: Node | None) -> _Weights | None:
    """Weight, scale and bias (see OpWeights) of a chain with `norm` folded in.

    Numpy, because torch may wake its threads for a handful of numbers.
    """
    first = chain.nodes[0]
    width = first.shape[0]
    if first.op == "rearrange":
        return np.eye(width, dtype=np.float32), None, np.zeros(width)
    if first.op == "batch_norm" and norm is not None:
        return np.ones(width, dtype=np.float32), *_affine(norm, state)
    if first.op in ("batch_norm", "add", *_ACTIVATIONS):
        return np.ones(width, dtype=np.float32), None, np.zeros(width)
    if first.op not in ("conv", "linear"):
        return None
    weight = _float32(state[first.params["weight"]])
    name = first.params.get("bias")
    bias = _float64(state[name]) if name else np.zeros(len(weight))
    if norm is None:
        return weight, None, bias
    scale, shift = _affine(norm, state)
    return weight, scale, bias * scale + shift


def _affine(
    norm: Node, state: Mapping[str, Tensor]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A batch norm in eval mode as scale and shift, [C] each."""
    weight, bias, mean, var = (
        _float64(state[norm.params[role]]) for role in ("weight", "bias", "mean", "var")
    )
    with np.errstate(all="ignore"):  # what is no number stays so, as in torch
        scale = weight / np.sqrt(var + norm.attrs["eps"])
        return scale, bias - mean * scale


def _float64(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _float32(tensor: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().cpu().float().numpy())
