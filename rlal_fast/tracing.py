"""model -> nodes: one torch.export trace, reduced to the dozen operations that a pruner must
understand.

A `Node` speaks of one image: its shape has no batch axis, so the same trace serves any batch size.
Everything after this module (graph, twin, native program, compact network) reads nodes only, never
the original class.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from rlal_fast.errors import InputError

_BATCH = 2  # a trace with two images tells a flatten that mixes images from one that does not


@dataclass(frozen=True)
class Node:
    """One operation of a network.

    Attributes:
        index: position in the list of nodes; every input comes earlier.
        op: "input", "conv", "linear", "batch_norm", "relu", "relu6", "add", "max_pool", "avg_pool",
            "global_pool", "flatten", "pad_channels", "subsample" or "dropout".
        name: its place in the model, e.g. "layer1.0.conv1"; unique.
        inputs: indices of the nodes whose outputs it reads.
        shape: of its output for one image: (C, H, W), or (F,) after flatten.
        attrs: the operation's constants; plain numbers and lists, so they can be stored as JSON.
        params: role ("weight", "bias", "mean", "var") -> name in the model's state dict.
    """

    index: int
    op: str
    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)


def trace(model: nn.Module, example_input: Tensor) -> tuple[Node, ...]:
    """Traces `model` in eval mode for images like `example_input` [N >= 1, C, H, W].

    The model's mode, weights and statistics are left as they were.

    Raises:
        InputError: the input is not a float batch of images, torch.export cannot follow the model,
            or it contains an operation that cannot be pruned yet (named, with its place).
    """
    if example_input.ndim != 4 or 0 in example_input.shape or not example_input.is_floating_point():
        raise InputError(
            "example_input must be float images [N, C, H, W] with N >= 1, "
            f"not {example_input.dtype} {tuple(example_input.shape)}"
        )
    batch = example_input[:1].expand(_BATCH, -1, -1, -1).contiguous()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        program = torch.export.export(model, (batch,), strict=False)
    except Exception as error:  # torch.export raises many types, all about the model given
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(
            f"{type(model).__name__} cannot be traced for images "
            f"{tuple(example_input.shape)}: {reason}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    return _Reader(program).read()


def _args(fx_node: fx.Node) -> tuple[Any, ...]:
    """Positional arguments; their kinds are ATen's and are not worth a type each."""
    return fx_node.args


class _Reader:
    """Walks an exported program once and writes nodes."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        self.graph = program.graph
        self.tensor_names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.user_inputs = set(signature.user_inputs)
        self.nodes: list[Node] = []
        self.node_of: dict[fx.Node, int] = {}
        self.names: set[str] = set()

    def read(self) -> tuple[Node, ...]:
        for fx_node in self.graph.nodes:
            if fx_node.op == "placeholder":
                self._placeholder(fx_node)
            elif fx_node.op == "call_function":
                self._call(fx_node)
            elif fx_node.op == "output":
                self._output(fx_node)
        return tuple(self.nodes)

    def _placeholder(self, fx_node: fx.Node) -> None:
        if fx_node.name in self.user_inputs:
            self._add(fx_node, "input", (), name="input")
        elif fx_node.name not in self.tensor_names:
            raise InputError(
                f"the network uses a constant tensor ({fx_node.name}) that is neither a parameter "
                "nor a buffer; register it as a buffer or move it out of the network"
            )

    def _output(self, fx_node: fx.Node) -> None:
        (results,) = _args(fx_node)
        if not isinstance(results, tuple | list) or len(results) != 1:
            raise InputError("the network must return one tensor of logits [N, classes]")
        last = self.nodes[self.node_of[results[0]]]
        if len(last.shape) != 1:
            raise InputError(
                f"the network must return logits [N, classes], not of shape {last.shape} per image"
            )
        if last.index != len(self.nodes) - 1:
            raise InputError(
                f"the network computes {self.nodes[-1].name} after its output and does not use it"
            )

    def _call(self, fx_node: fx.Node) -> None:
        target = "getitem" if fx_node.target is operator.getitem else str(fx_node.target)
        name = target.removeprefix("aten.").rsplit(".", 1)[0] if target != "getitem" else target
        in_place = name.endswith("_") and not name.startswith("_")
        handler = _HANDLERS.get(name.removesuffix("_") if in_place else name)
        if handler is None:
            raise self.refusal(fx_node, "is not supported yet")
        before = dict(self.node_of)
        handler(self, fx_node)
        if in_place:
            self._mutated(fx_node, before)

    def _mutated(self, fx_node: fx.Node, before: dict[fx.Node, int]) -> None:
        """An in-place operation changes its operand for every later reader."""
        operand = before[_args(fx_node)[0]]
        if self.nodes[operand].op in ("flatten", "subsample"):
            raise self.refusal(fx_node, "writes into a view of another tensor")
        for other, index in before.items():
            if index == operand:
                self.node_of[other] = self.node_of[fx_node]

    # -- what the handlers use ---------------------------------------------------------------------

    def place(self, fx_node: fx.Node) -> str:
        stack = list(fx_node.meta.get("nn_module_stack", {}).values())
        return str(stack[-1][0]) if stack and stack[-1][0] else ""

    def refusal(self, fx_node: fx.Node, why: str) -> InputError:
        place = self.place(fx_node) or "the network's forward"
        return InputError(f"operation {fx_node.target} in {place} {why}, so it cannot be pruned")

    def input(self, fx_node: fx.Node, position: int = 0) -> Node:
        operand = _args(fx_node)[position]
        if not isinstance(operand, fx.Node) or operand not in self.node_of:
            raise self.refusal(fx_node, f"reads {operand}, which is not an activation,")
        return self.nodes[self.node_of[operand]]

    def tensor_name(self, fx_node: fx.Node, operand: Any) -> str | None:
        if operand is None:
            return None
        if not isinstance(operand, fx.Node) or operand.name not in self.tensor_names:
            raise self.refusal(fx_node, "has weights that are computed instead of stored")
        return self.tensor_names[operand.name]

    def shape(self, fx_node: fx.Node) -> tuple[int, ...]:
        value = fx_node.meta["val"]
        value = value[0] if isinstance(value, tuple | list) else value
        if value.ndim == 0 or value.shape[0] != _BATCH:
            raise self.refusal(fx_node, "mixes the images of a batch")
        return tuple(int(size) for size in value.shape[1:])

    def alias(self, fx_node: fx.Node) -> None:
        self.node_of[fx_node] = self.input(fx_node).index

    def emit(
        self, fx_node: fx.Node, op: str, *inputs: Node, attrs: Any = None, params: Any = None
    ) -> None:
        params = {role: tensor for role, tensor in (params or {}).items() if tensor is not None}
        if "weight" in params:
            name = params["weight"].rpartition(".")[0] or params["weight"]
        else:
            name = ".".join(filter(None, (self.place(fx_node), op)))
        indices = tuple(node.index for node in inputs)
        self._add(fx_node, op, indices, name, attrs or {}, params)

    def _add(
        self,
        fx_node: fx.Node,
        op: str,
        inputs: tuple[int, ...],
        name: str,
        attrs: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        if params and name in self.names:
            raise InputError(
                f"{name} is applied more than once; layers that share weights cannot be pruned yet"
            )
        unique, count = name, 2
        while unique in self.names:
            unique, count = f"{name}_{count}", count + 1
        self.names.add(unique)
        index = len(self.nodes)
        shape = self.shape(fx_node)
        self.nodes.append(Node(index, op, unique, inputs, shape, attrs or {}, params or {}))
        self.node_of[fx_node] = index


# -- one handler per ATen operation: argument positions as in PyTorch's native_functions.yaml
# ---------


def _argument(fx_node: fx.Node, position: int, name: str, default: Any) -> Any:
    if len(_args(fx_node)) > position:
        return _args(fx_node)[position]
    return fx_node.kwargs.get(name, default)


def _pair(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value, value]
    numbers = [int(v) for v in value]
    return numbers * 2 if len(numbers) == 1 else numbers


def _conv(reader: _Reader, fx_node: fx.Node) -> None:
    source = reader.input(fx_node)
    transposed_form = str(fx_node.target).startswith("aten.convolution")
    groups = _argument(fx_node, 8 if transposed_form else 6, "groups", 1)
    if transposed_form and _args(fx_node)[6]:
        raise reader.refusal(fx_node, "is transposed")
    padding = _argument(fx_node, 4, "padding", 0)
    if isinstance(padding, str):
        raise reader.refusal(fx_node, f"has padding={padding!r} (give numbers)")
    channels = reader.shape(fx_node)[0]
    if groups != 1 and not groups == channels == source.shape[0]:
        raise reader.refusal(fx_node, f"has {groups} groups (only 1 or depthwise)")
    params = {
        "weight": reader.tensor_name(fx_node, _args(fx_node)[1]),
        "bias": reader.tensor_name(fx_node, _argument(fx_node, 2, "bias", None)),
    }
    weight = _args(fx_node)[1].meta["val"]
    attrs = {
        "kernel": [int(k) for k in weight.shape[2:]],
        "stride": _pair(_argument(fx_node, 3, "stride", 1)),
        "padding": _pair(padding),
        "dilation": _pair(_argument(fx_node, 5, "dilation", 1)),
        "depthwise": groups != 1,
    }
    reader.emit(fx_node, "conv", source, attrs=attrs, params=params)


def _linear(reader: _Reader, fx_node: fx.Node) -> None:
    source = reader.input(fx_node)
    if len(source.shape) != 1:
        raise reader.refusal(fx_node, "is applied to more than one position per image")
    params = {
        "weight": reader.tensor_name(fx_node, _args(fx_node)[1]),
        "bias": reader.tensor_name(fx_node, _argument(fx_node, 2, "bias", None)),
    }
    reader.emit(fx_node, "linear", source, params=params)


def _batch_norm(reader: _Reader, fx_node: fx.Node) -> None:
    source = reader.input(fx_node)
    functional = "no_training" in str(fx_node.target)
    momentum, eps = (
        (_args(fx_node)[5], _args(fx_node)[6])
        if functional
        else (_args(fx_node)[6], _args(fx_node)[7])
    )
    roles = ("weight", "bias", "mean", "var")
    params = {
        role: reader.tensor_name(fx_node, tensor)
        for role, tensor in zip(roles, _args(fx_node)[1:5], strict=True)
    }
    if None in params.values() or len(source.shape) != 3:
        raise reader.refusal(fx_node, "lacks affine weights, running statistics or a spatial input")
    attrs = {"eps": float(eps), "momentum": float(momentum)}
    reader.emit(fx_node, "batch_norm", source, attrs=attrs, params=params)


def _add(reader: _Reader, fx_node: fx.Node) -> None:
    first, second = reader.input(fx_node), reader.input(fx_node, 1)
    if first.shape != second.shape or fx_node.kwargs.get("alpha", 1) != 1:
        raise reader.refusal(fx_node, "broadcasts or scales its operands")
    reader.emit(fx_node, "add", first, second)


def _clamp(reader: _Reader, fx_node: fx.Node) -> None:
    low, high = _argument(fx_node, 1, "min_val", -1), _argument(fx_node, 2, "max_val", 1)
    if (low, high) != (0, 6):
        raise reader.refusal(fx_node, f"clamps to [{low}, {high}] (only [0, 6])")
    reader.emit(fx_node, "relu6", reader.input(fx_node))


def _max_pool(reader: _Reader, fx_node: fx.Node) -> None:
    kernel = _pair(_args(fx_node)[1])
    attrs = {
        "kernel": kernel,
        "stride": _pair(_argument(fx_node, 2, "stride", kernel) or kernel),
        "padding": _pair(_argument(fx_node, 3, "padding", 0)),
        "ceil_mode": bool(_argument(fx_node, 5, "ceil_mode", False)),
    }
    if _pair(_argument(fx_node, 4, "dilation", 1)) != [1, 1]:
        raise reader.refusal(fx_node, "is dilated")
    reader.emit(fx_node, "max_pool", reader.input(fx_node), attrs=attrs)


def _avg_pool(reader: _Reader, fx_node: fx.Node) -> None:
    kernel = _pair(_args(fx_node)[1])
    attrs = {
        "kernel": kernel,
        "stride": _pair(_argument(fx_node, 2, "stride", kernel) or kernel),
        "padding": _pair(_argument(fx_node, 3, "padding", 0)),
        "ceil_mode": bool(_argument(fx_node, 4, "ceil_mode", False)),
        "count_include_pad": bool(_argument(fx_node, 5, "count_include_pad", True)),
    }
    if _argument(fx_node, 6, "divisor_override", None) is not None or (
        attrs["ceil_mode"] and attrs["count_include_pad"] and any(attrs["padding"])
    ):
        raise reader.refusal(fx_node, "counts its window in an unusual way")
    reader.emit(fx_node, "avg_pool", reader.input(fx_node), attrs=attrs)


def _adaptive_pool(reader: _Reader, fx_node: fx.Node) -> None:
    source, size = reader.input(fx_node), _pair(_args(fx_node)[1])
    height, width = source.shape[1:]
    if size == [1, 1]:
        reader.emit(fx_node, "global_pool", source)
    elif size == [height, width]:
        reader.alias(fx_node)
    elif height % size[0] or width % size[1]:
        raise reader.refusal(fx_node, f"pools {height}x{width} to {size}, which do not divide")
    else:
        kernel = [height // size[0], width // size[1]]
        attrs = {
            "kernel": kernel,
            "stride": kernel,
            "padding": [0, 0],
            "ceil_mode": False,
            "count_include_pad": True,
        }
        reader.emit(fx_node, "avg_pool", source, attrs=attrs)


def _mean(reader: _Reader, fx_node: fx.Node) -> None:
    source = reader.input(fx_node)
    axes = {axis % 4 for axis in _args(fx_node)[1]} if len(source.shape) == 3 else set()
    if axes != {2, 3}:
        raise reader.refusal(fx_node, "averages over something else than all pixels")
    if len(reader.shape(fx_node)) == 3:
        reader.emit(fx_node, "global_pool", source)
        return
    index, name = len(reader.nodes), ".".join(filter(None, (reader.place(fx_node), "global_pool")))
    while name in reader.names:
        name += "_"
    reader.names.add(name)
    pooled = Node(index, "global_pool", name, (source.index,), (source.shape[0], 1, 1))
    reader.nodes.append(pooled)
    reader.emit(fx_node, "flatten", pooled)


def _reshape(reader: _Reader, fx_node: fx.Node) -> None:
    source, shape = reader.input(fx_node), reader.shape(fx_node)
    if shape == source.shape:
        reader.alias(fx_node)
    elif shape == (math.prod(source.shape),):
        reader.emit(fx_node, "flatten", source)
    else:
        raise reader.refusal(fx_node, f"reshapes {source.shape} to {shape} (only flattening)")


def _pad(reader: _Reader, fx_node: fx.Node) -> None:
    source, amounts = reader.input(fx_node), [int(n) for n in _args(fx_node)[1]]
    mode, value = _argument(fx_node, 2, "mode", "constant"), _argument(fx_node, 3, "value", None)
    if str(fx_node.target).startswith("aten.constant_pad_nd"):
        mode, value = "constant", _argument(fx_node, 2, "value", 0)
    spatial, channels = amounts[:4], amounts[4:6]
    odd = any(spatial) or len(channels) != 2 or min(channels) < 0 or any(amounts[6:])
    if odd or mode != "constant" or value not in (None, 0) or len(source.shape) != 3:
        raise reader.refusal(fx_node, f"pads {amounts} ({mode}) (only zero channels)")
    reader.emit(
        fx_node, "pad_channels", source, attrs={"before": channels[0], "after": channels[1]}
    )


def _slice(reader: _Reader, fx_node: fx.Node) -> None:
    source, axis = reader.input(fx_node), int(_argument(fx_node, 1, "dim", 0))
    start, end = _argument(fx_node, 2, "start", None) or 0, _argument(fx_node, 3, "end", None)
    step = int(_argument(fx_node, 4, "step", 1))
    size = (_BATCH, *source.shape)[axis]
    whole = start == 0 and (end is None or end >= size)
    if whole and step == 1:
        reader.alias(fx_node)
    elif whole and axis in (2, 3) and len(source.shape) == 3:
        stride = [step, 1] if axis == 2 else [1, step]
        reader.emit(fx_node, "subsample", source, attrs={"stride": stride})
    else:
        raise reader.refusal(fx_node, f"takes [{start}:{end}:{step}] of axis {axis}")


def _getitem(reader: _Reader, fx_node: fx.Node) -> None:
    if _args(fx_node)[1] != 0:
        raise reader.refusal(fx_node, "uses a second result")
    reader.alias(fx_node)


def _dropout(reader: _Reader, fx_node: fx.Node) -> None:
    reader.emit(fx_node, "dropout", reader.input(fx_node), attrs={"p": float(_args(fx_node)[1])})


def _simple(op: str) -> Callable[[_Reader, fx.Node], None]:
    return lambda reader, fx_node: reader.emit(fx_node, op, reader.input(fx_node))


_HANDLERS: dict[str, Callable[[_Reader, fx.Node], None]] = {
    "conv2d": _conv,
    "convolution": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "getitem": _getitem,
    "relu": _simple("relu"),
    "hardtanh": _clamp,
    "relu6": _simple("relu6"),
    "add": _add,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_pool,
    "mean": _mean,
    "view": _reshape,
    "reshape": _reshape,
    "flatten": _reshape,
    "squeeze": _reshape,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "slice": _slice,
    "dropout": _dropout,
    "clone": _Reader.alias,
    "contiguous": _Reader.alias,
    "alias": _Reader.alias,
    "detach": _Reader.alias,
}
