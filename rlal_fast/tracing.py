"""model -> nodes: one torch.export trace, reduced to the dozen operations that a pruner must
understand.

A `Node` speaks of one image: its shape has no batch axis, so the same trace serves any batch size.
Everything after this module (graph, twin, native program, compact network) reads nodes only, never
the original class.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from rlal_fast.aten import HANDLERS, VIEWS, arguments
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
    if not isinstance(example_input, Tensor):
        raise InputError(
            "example_input must be a tensor of images [N, C, H, W], e.g. "
            f"torch.zeros(1, 3, 32, 32), not {type(example_input).__name__}"
        )
    if example_input.ndim != 4 or 0 in example_input.shape or not example_input.is_floating_point():
        raise InputError(
            "example_input must be float images [N, C, H, W] with N >= 1, "
            f"not {example_input.dtype} {tuple(example_input.shape)}"
        )
    batch = example_input[:1].expand(_BATCH, -1, -1, -1).contiguous()
    modes = [(module, module.training) for module in model.modules()]
    torch_log = logging.getLogger("torch._subclasses.fake_tensor")
    logging_disabled, torch_log.disabled = torch_log.disabled, True  # what it logs is raised too
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
        torch_log.disabled = logging_disabled
        for module, training in modes:
            module.training = training
    return tuple(_with_momentum(model, node) for node in Reader(program).read())


def _with_momentum(model: nn.Module, node: Node) -> Node:
    """A batch norm's momentum as its module has it: a trace in eval mode loses None."""
    if node.op != "batch_norm":
        return node
    module = dict(model.named_modules()).get(node.name)
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return node
    return replace(node, attrs={**node.attrs, "momentum": module.momentum})


class Reader:
    """Walks an exported program once and writes nodes."""

    batch = _BATCH

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        self.graph = program.graph
        self.tensor_names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.user_inputs = set(signature.user_inputs)
        self.nodes: list[Node] = []
        self.node_of: dict[fx.Node, int] = {}
        self.memory: dict[fx.Node, fx.Node] = {}  # tensor -> the first one in the same memory
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
            self.emit(fx_node, "input")
        elif fx_node.name not in self.tensor_names:
            raise InputError(
                f"the network uses a constant tensor ({fx_node.name}) that is neither a parameter "
                "nor a buffer; register it as a buffer or move it out of the network"
            )

    def _output(self, fx_node: fx.Node) -> None:
        results: Any = arguments(fx_node)[0]
        if not isinstance(results, tuple | list) or len(results) != 1:
            raise InputError("the network must return one tensor of logits [N, classes]")
        if results[0] not in self.node_of:
            raise InputError(f"the network must return logits [N, classes], not {results[0]}")
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
        name = name.removesuffix("_") if in_place else name
        handler = HANDLERS.get(name)
        if handler is None:
            raise self.refusal(fx_node, "is not supported yet")
        before = dict(self.node_of)
        handler(self, fx_node)
        if in_place:
            self._mutated(fx_node, before)
        if in_place or name in VIEWS:
            source = arguments(fx_node)[0]
            self.memory[fx_node] = self.memory.get(source, source)

    def _mutated(self, fx_node: fx.Node, before: dict[fx.Node, int]) -> None:
        """An in-place operation changes its operand, and every view of it, for later readers."""
        operand = arguments(fx_node)[0]
        memory = self.memory.get(operand, operand)
        for other, index in before.items():
            if self.memory.get(other, other) is not memory:
                continue
            if index == before[operand]:
                self.node_of[other] = self.node_of[fx_node]
            elif any(user not in self.node_of for user in other.users):
                raise self.refusal(fx_node, "writes into a tensor of which a view is read later")

    # -- what the handlers use ---------------------------------------------------------------------

    def place(self, fx_node: fx.Node) -> str:
        stack = list(fx_node.meta.get("nn_module_stack", {}).values())
        return str(stack[-1][0]) if stack and stack[-1][0] else ""

    def refusal(self, fx_node: fx.Node, why: str) -> InputError:
        place = self.place(fx_node) or "the network's forward"
        return InputError(f"operation {fx_node.target} in {place} {why}, so it cannot be pruned")

    def input(self, fx_node: fx.Node, position: int = 0) -> Node:
        operand = arguments(fx_node)[position]
        if not isinstance(operand, fx.Node) or operand not in self.node_of:
            raise self.refusal(fx_node, f"reads {operand}, which is not an activation")
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
        self,
        fx_node: fx.Node,
        op: str,
        *inputs: Node,
        attrs: Mapping[str, Any] | None = None,
        params: Mapping[str, str | None] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Adds a node; it is what later operations read where they name `fx_node`.

        Its name is the place of its weight or, without one, its module's place and operation.
        """
        stored = {role: tensor for role, tensor in (params or {}).items() if tensor is not None}
        if "weight" in stored:
            name = stored["weight"].removesuffix(".weight")
            if name in self.names:
                raise InputError(
                    f"{name} is applied more than once; layers that share weights cannot be "
                    "pruned yet"
                )
        else:
            name = ".".join(filter(None, (self.place(fx_node), op)))
        unique, count = name, 2
        while unique in self.names:
            unique, count = f"{name}_{count}", count + 1
        self.names.add(unique)
        indices = tuple(node.index for node in inputs)
        made = shape or self.shape(fx_node)
        node = Node(len(self.nodes), op, unique, indices, made, attrs or {}, stored)
        self.nodes.append(node)
        self.node_of[fx_node] = node.index
