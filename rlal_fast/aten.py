"""One handler per ATen operation: what it means for one image, as a node.

Argument positions are those of PyTorch's native_functions.yaml. A handler either emits a node,
declares its result to be its input (`alias`), or refuses with the reason.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import fx

if TYPE_CHECKING:
    from rlal_fast.tracing import Reader


def arguments(fx_node: fx.Node) -> tuple[Any, ...]:
    """Positional arguments; their kinds are ATen's and are not worth a type each."""
    return fx_node.args


# ---------


def _argument(fx_node: fx.Node, position: int, name: str, default: Any) -> Any:
    if len(arguments(fx_node)) > position:
        return arguments(fx_node)[position]
    return fx_node.kwargs.get(name, default)


def _pair(value: Any) -> list[int]:
    if isinstance(value, int):
        return [value, value]
    numbers = [int(v) for v in value]
    return numbers * 2 if len(numbers) == 1 else numbers


def _conv(reader: Reader, fx_node: fx.Node) -> None:
    source = reader.input(fx_node)
    transposed_form = str(fx_node.target).startswith("aten.convolution")
    groups = _argument(fx_node, 8 if transposed_form else 6, "groups", 1)
    if transposed_form and arguments(fx_node)[6]:
        raise reader.refusal(fx_node, "is transposed")
    padding = _argument(fx_node, 4, "padding", 0)
    if isinstance(padding, str):
        raise reader.refusal(fx_node, f"has padding={padding!r} (give numbers)")
    channels = reader.shape(fx_node)[0]
    if groups != 1 and not groups == channels == source.shape[0]:
        raise reader.refusal(fx_node, f"has {groups} groups (only 1 or depthwise)")
    params = {
        "weight": reader.tensor_name(fx_node, arguments(fx_node)[1]),
        "bias": reader.tensor_name(fx_node, _argument(fx_node, 2, "bias", None)),
    }
    weight = arguments(fx_node)[1].meta["val"]
    attrs = {
        "kernel": [int(k) for k in weight.shape[2:]],
        "stride": _pair(_argument(fx_node, 3, "stride", 1)),
        "padding": _pair(padding),
        "dilation": _pair(_argument(fx_node, 5, "dilation", 1)),
        "depthwise": groups != 1,
    }
    reader.emit(fx_node, "conv", source, attrs=attrs, params=params)


def _linear(reader: Reader, fx_node: fx.Node) -> None:
    source = reader.input(fx_node)
    if len(source.shape) != 1:
        raise reader.refusal(fx_node, "is applied to more than one position per image")
    params = {
        "weight": reader.tensor_name(fx_node, arguments(fx_node)[1]),
        "bias": reader.tensor_name(fx_node, _argument(fx_node, 2, "bias", None)),
    }
    reader.emit(fx_node, "linear", source, params=params)


def _batch_norm(reader: Reader, fx_node: fx.Node) -> None:
    source = reader.input(fx_node)
    functional = "no_training" in str(fx_node.target)
    momentum, eps = (
        (arguments(fx_node)[5], arguments(fx_node)[6])
        if functional
        else (arguments(fx_node)[6], arguments(fx_node)[7])
    )
    roles = ("weight", "bias", "mean", "var")
    params = {
        role: reader.tensor_name(fx_node, tensor)
        for role, tensor in zip(roles, arguments(fx_node)[1:5], strict=True)
    }
    if not functional and arguments(fx_node)[5]:
        raise reader.refusal(fx_node, "normalises by the statistics of the batch")
    if None in params.values() or len(source.shape) != 3:
        raise reader.refusal(fx_node, "lacks affine weights, running statistics or a spatial input")
    attrs = {"eps": float(eps), "momentum": float(momentum)}
    reader.emit(fx_node, "batch_norm", source, attrs=attrs, params=params)


def _add(reader: Reader, fx_node: fx.Node) -> None:
    first, second = reader.input(fx_node), reader.input(fx_node, 1)
    if first.shape != second.shape or fx_node.kwargs.get("alpha", 1) != 1:
        raise reader.refusal(fx_node, "broadcasts or scales its operands")
    reader.emit(fx_node, "add", first, second)


def _clamp(reader: Reader, fx_node: fx.Node) -> None:
    low, high = _argument(fx_node, 1, "min_val", -1), _argument(fx_node, 2, "max_val", 1)
    if (low, high) != (0, 6):
        raise reader.refusal(fx_node, f"clamps to [{low}, {high}] (only [0, 6])")
    reader.emit(fx_node, "relu6", reader.input(fx_node))


def _max_pool(reader: Reader, fx_node: fx.Node) -> None:
    kernel = _pair(arguments(fx_node)[1])
    attrs = {
        "kernel": kernel,
        "stride": _pair(_argument(fx_node, 2, "stride", kernel) or kernel),
        "padding": _pair(_argument(fx_node, 3, "padding", 0)),
        "ceil_mode": bool(_argument(fx_node, 5, "ceil_mode", False)),
    }
    if _pair(_argument(fx_node, 4, "dilation", 1)) != [1, 1]:
        raise reader.refusal(fx_node, "is dilated")
    reader.emit(fx_node, "max_pool", reader.input(fx_node), attrs=attrs)


def _avg_pool(reader: Reader, fx_node: fx.Node) -> None:
    kernel = _pair(arguments(fx_node)[1])
    attrs: dict[str, Any] = {
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


def _adaptive_pool(reader: Reader, fx_node: fx.Node) -> None:
    source, size = reader.input(fx_node), _pair(arguments(fx_node)[1])
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


def _mean(reader: Reader, fx_node: fx.Node) -> None:
    source, given = reader.input(fx_node), _argument(fx_node, 1, "dim", None) or ()
    axes = {axis % 4 for axis in given} if len(source.shape) == 3 else set()
    if axes != {2, 3}:
        raise reader.refusal(fx_node, "averages over something else than all pixels")
    if len(reader.shape(fx_node)) == 3:
        reader.emit(fx_node, "global_pool", source)
        return
    reader.emit(fx_node, "global_pool", source, shape=(source.shape[0], 1, 1))
    reader.emit(fx_node, "flatten", reader.nodes[-1])


def _reshape(reader: Reader, fx_node: fx.Node) -> None:
    source, shape = reader.input(fx_node), reader.shape(fx_node)
    if shape == source.shape:
        reader.alias(fx_node)
    elif shape == (math.prod(source.shape),):
        reader.emit(fx_node, "flatten", source)
    else:
        raise reader.refusal(fx_node, f"reshapes {source.shape} to {shape} (only flattening)")


def _pad(reader: Reader, fx_node: fx.Node) -> None:
    source, amounts = reader.input(fx_node), [int(n) for n in arguments(fx_node)[1]]
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


def _slice(reader: Reader, fx_node: fx.Node) -> None:
    source, axis = reader.input(fx_node), int(_argument(fx_node, 1, "dim", 0))
    start, end = _argument(fx_node, 2, "start", None) or 0, _argument(fx_node, 3, "end", None)
    step = int(_argument(fx_node, 4, "step", 1))
    size = (reader.batch, *source.shape)[axis]
    if axis == 0 and end is not None and end < sys.maxsize:  # the traced batch may fit by chance
        raise reader.refusal(fx_node, "mixes the images of a batch")
    whole = start == 0 and (end is None or end >= size)
    if whole and step == 1:
        reader.alias(fx_node)
    elif whole and axis in (2, 3) and len(source.shape) == 3:
        stride = [step, 1] if axis == 2 else [1, step]
        reader.emit(fx_node, "subsample", source, attrs={"stride": stride})
    else:
        raise reader.refusal(fx_node, f"takes [{start}:{end}:{step}] of axis {axis}")


def _getitem(reader: Reader, fx_node: fx.Node) -> None:
    if arguments(fx_node)[1] == 0:
        reader.alias(fx_node)
    elif fx_node.users:
        raise reader.refusal(fx_node, "uses a second result")


def _dropout(reader: Reader, fx_node: fx.Node) -> None:
    if arguments(fx_node)[2]:
        raise reader.refusal(fx_node, "drops in evaluation mode too")
    reader.emit(
        fx_node, "dropout", reader.input(fx_node), attrs={"p": float(arguments(fx_node)[1])}
    )


def _alias(reader: Reader, fx_node: fx.Node) -> None:
    reader.alias(fx_node)


def _simple(op: str) -> Callable[[Reader, fx.Node], None]:
    return lambda reader, fx_node: reader.emit(fx_node, op, reader.input(fx_node))


HANDLERS: dict[str, Callable[[Reader, fx.Node], None]] = {
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
    "clone": _alias,
    "contiguous": _alias,
    "alias": _alias,
    "detach": _alias,
}

VIEWS = {
    *("getitem", "view", "reshape", "flatten", "squeeze", "slice"),
    *("dropout", "contiguous", "alias", "detach"),
}
"""Operations whose result may be the memory of their operand (dropout: in evaluation mode)."""
