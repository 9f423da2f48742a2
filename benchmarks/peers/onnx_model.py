"""A sub-network as an ONNX model, written node by node: an export takes a second, this takes 10 ms.

The operators are those that runtimes recognise and fuse (Conv + Add + Relu, Clip for ReLU6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from peers.folded import Step

INPUT, OUTPUT = "images", "logits"
_OPSET, _IR_VERSION = 17, 9  # old enough for every runtime in use


def onnx_model(steps: Sequence[Step], batch: int) -> bytes:
    """Serialised model: images [batch, C, H, W] -> logits [batch, classes]."""
    writer = _Writer(steps)
    for step in steps:
        writer.add(step)
    shape = [batch, *steps[0].node.shape]
    graph = helper.make_graph(
        writer.nodes,
        "subnet",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [batch, *steps[-1].node.shape])],
        writer.constants,
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    serialised: bytes = model.SerializeToString()
    return serialised


class _Writer:
    """Turns steps into ONNX nodes; the result of step i is the value "v<i>"."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._shapes = {step.index: step.node.shape for step in steps}
        self._last = steps[-1].index

    def add(self, step: Step) -> None:
        op = step.node.op
        if op == "input":
            return
        if op in _SIMPLE:
            self._emit(step, _SIMPLE[op])
        elif op == "conv":
            self._conv(step)
        elif op == "linear":
            self._emit(step, "Gemm", *self._weights(step), transB=1)
        elif op == "batch_norm":
            self._batch_norm(step)
        elif op == "relu6":
            self._emit(step, "Clip", self._constant("zero", 0.0), self._constant("six", 6.0))
        elif op in ("max_pool", "avg_pool"):
            self._pool(step)
        elif op == "pad_channels":
            attrs = step.node.attrs
            pads = [0, attrs["before"], 0, 0, 0, attrs["after"], 0, 0]
            self._emit(step, "Pad", self._integers(f"p{step.index}", pads))
        elif op == "subsample":
            self._subsample(step)
        else:
            raise NotImplementedError(f"operation {op} has no ONNX form here")

    def _conv(self, step: Step) -> None:
        attrs = step.node.attrs
        assert step.weight is not None
        self._emit(
            step,
            "Conv",
            *self._weights(step),
            kernel_shape=attrs["kernel"],
            strides=attrs["stride"],
            pads=attrs["padding"] * 2,
            dilations=attrs["dilation"],
            group=len(step.weight) if attrs["depthwise"] else 1,
        )

    def _batch_norm(self, step: Step) -> None:
        """Its scale and shift hold mean and variance already."""
        assert step.weight is not None
        mean = self._array(f"m{step.index}", np.zeros_like(step.weight))
        var = self._array(f"s{step.index}", np.ones_like(step.weight))
        self._emit(step, "BatchNormalization", *self._weights(step), mean, var, epsilon=0.0)

    def _subsample(self, step: Step) -> None:
        name = f"p{step.index}"
        rows, columns = step.node.attrs["stride"]
        self._emit(
            step,
            "Slice",
            self._integers(f"{name}starts", [0, 0]),
            self._integers(f"{name}ends", list(self._shapes[step.inputs[0]][1:])),
            self._integers(f"{name}axes", [2, 3]),
            self._integers(f"{name}steps", [rows, columns]),
        )

    def _pool(self, step: Step) -> None:
        """ceil_mode becomes more padding below and on the right: runtimes differ in its meaning."""
        attrs = step.node.attrs
        pads = list(attrs["padding"])
        reached = [
            (out - 1) * stride + kernel - size - pad
            for out, stride, kernel, size, pad in zip(
                step.node.shape[1:],
                attrs["stride"],
                attrs["kernel"],
                self._shapes[step.inputs[0]][1:],
                pads,
                strict=True,
            )
        ]
        ends = [max(pad, need) for pad, need in zip(pads, reached, strict=True)]
        window = {
            "kernel_shape": attrs["kernel"],
            "strides": attrs["stride"],
            "pads": [*pads, *ends],
        }
        if step.node.op == "max_pool":
            self._emit(step, "MaxPool", **window)
        else:  # padding counts or ceil_mode is on, never both where there is padding
            counts = int(attrs["count_include_pad"] and any(pads))
            self._emit(step, "AveragePool", count_include_pad=counts, **window)

    # -- values ------------------------------------------------------------------------------------

    def _emit(self, step: Step, operator: str, *constants: str, **attrs: Any) -> None:
        inputs = [*(self._value(source) for source in step.inputs), *constants]
        self.nodes.append(helper.make_node(operator, inputs, [self._value(step.index)], **attrs))

    def _value(self, index: int) -> str:
        if index == self._last:
            return OUTPUT
        return f"v{index}" if index else INPUT

    def _weights(self, step: Step) -> list[str]:
        assert step.weight is not None
        names = [self._array(f"w{step.index}", step.weight)]
        return names if step.bias is None else [*names, self._array(f"b{step.index}", step.bias)]

    def _integers(self, name: str, numbers: list[int]) -> str:
        return self._array(name, np.array(numbers, dtype=np.int64))

    def _constant(self, name: str, number: float) -> str:
        known = {tensor.name for tensor in self.constants}
        return name if name in known else self._array(name, np.array(number, dtype=np.float32))

    def _array(self, name: str, array: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name


_SIMPLE = {
    "relu": "Relu",
    "add": "Add",
    "global_pool": "GlobalAveragePool",
    "flatten": "Flatten",
}
