"""Each kernel alone, and the whole evaluation, against the least time that they can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_bench.ceilings import Ceilings, tf32
from gpu_bench.clocks import Budget, device_seconds, spread
from gpu_bench.episodes import fastest
from gpu_bench.session import Session
from gpu_bench.systems import LARGEST_ERROR
from gpu_bench.turns import Contender, take_turns
from rlal_fast.errors import InputError
from rlal_fast.kernels import masked_conv2d
from rlal_fast.kernels.cuda import PRECISIONS

_BYTES = 2 << 30  # of input and output together: far more than any cache
_CALLS = 5  # in a row, between two events
_TURNS = 7
_COMPARED = 8  # images
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Layer:
    """A convolution by some channels of a full weight, on images of size x size."""

    kernel: int
    inputs: int
    outputs: int
    size: int
    stride: int = 1
    depthwise: bool = False

    def __str__(self) -> str:
        kind = "depthwise" if self.depthwise else "conv"
        shape = f"{self.inputs} to {self.outputs}, {self.size}x{self.size}"
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{kind} {self.kernel}x{self.kernel}{stride}, {shape}"

    @property
    def out_size(self) -> int:
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    @property
    def floats(self) -> int:
        """Of input and output, per image."""
        return self.inputs * self.size**2 + self.outputs * self.out_size**2

    def operations(self, images: int) -> float:
        inputs = 1 if self.depthwise else self.inputs
        area = self.kernel**2 * self.out_size**2
        return 2.0 * images * area * inputs * self.outputs


LAYERS = (
    Layer(3, 16, 16, 32),
    Layer(3, 64, 45, 8),
    Layer(1, 96, 37, 56),
    Layer(3, 96, 96, 56, depthwise=True),
    Layer(7, 3, 64, 224, stride=2),
)


class Operands:
    """Random images, and a full weight of about half as many channels again as are kept."""

    def __init__(self, layer: Layer, images: int, device: torch.device) -> None:
        torch.manual_seed(0)
        full_in = layer.inputs if layer.inputs <= 4 else layer.inputs * 3 // 2
        full_out = full_in if layer.depthwise else layer.outputs * 3 // 2
        columns = 1 if layer.depthwise else full_in
        self.layer = layer
        self.x = torch.randn(images, layer.inputs, layer.size, layer.size, device=device)
        weight = torch.randn(full_out, columns, layer.kernel, layer.kernel, device=device)
        self.weight = weight / (columns * layer.kernel**2) ** 0.5
        self.bias = torch.randn(full_out, device=device)
        self.kept_in = torch.randperm(full_in)[: layer.inputs].sort().values
        self.kept_out = self.kept_in
        if not layer.depthwise:
            self.kept_out = torch.randperm(full_out)[: layer.outputs].sort().values
        self.window = {"stride": layer.stride, "padding": layer.kernel // 2}

    def run(self, **how: Any) -> Tensor:
        """By `masked_conv2d`."""
        return self._convolved(self.x, self.weight, self.bias, **how)

    def first(self, **how: Any) -> Tensor:
        """The same on a few images."""
        return self._convolved(self.x[:_COMPARED], self.weight, self.bias, **how)

    def truth(self) -> Tensor:
        """By the twin in float64, on a few images."""
        exact = (t.double() for t in (self.x[:_COMPARED], self.weight, self.bias))
        return self._convolved(*exact, backend="torch")

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor, **how: Any) -> Tensor:
        groups = len(weight) if self.layer.depthwise else 1
        kept = self.kept_in, self.kept_out
        how = {**how, **self.window, "groups": groups, "activation": "relu"}
        return masked_conv2d(x, weight, bias, *kept, **how)

    def cudnn(self, precision: str) -> Callable[[], Tensor]:
        """PyTorch's convolution by the compact weight, laid out beforehand; images [N, H, W, C]."""
        dtype = _DTYPES.get(precision, torch.float32)
        rows = self.kept_out.to(self.x.device)
        weight = self.weight[rows]
        if not self.layer.depthwise:
            weight = weight[:, self.kept_in.to(self.x.device)]
        last = torch.channels_last
        x, weight = (t.to(dtype).contiguous(memory_format=last) for t in (self.x, weight))
        bias = self.bias[rows].to(dtype)
        groups = len(weight) if self.layer.depthwise else 1

        def run() -> Tensor:
            with tf32(precision == "tf32"):
                return F.conv2d(x, weight, bias, **self.window, groups=groups).relu_()

        return run


def measure(session: Session, ceilings: Ceilings, budget: Budget) -> list[dict[str, Any]]:
    """A row for each layer and precision, ours and PyTorch's.

    Raises:
        LostDeviceError: a kernel failed for good.
    """
    rows: list[dict[str, Any]] = []
    layers = [Layer(3, 6, 5, 8), Layer(3, 9, 9, 8, depthwise=True)] if session.emulated else LAYERS
    if "kernels" in session.lost:
        return [{"left_out": "lost the device in an earlier attempt"}]
    for number, layer in enumerate(layers):
        images = 3 if session.emulated else max(1, _BYTES // (4 * layer.floats))
        rows += _layer(layer, images, session, ceilings, budget.part(1 / (len(layers) - number)))
    return rows


def _layer(
    layer: Layer, images: int, session: Session, ceilings: Ceilings, budget: Budget
) -> list[dict[str, Any]]:
    operands = Operands(layer, images, session.device)
    truth = operands.truth()
    pairs: list[tuple[dict[str, Any], Contender]] = []
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        how = {"backend": "cuda", "precision": precision}
        for system in ("rlal_fast", "PyTorch"):
            row = {"layer": str(layer), "images": images, "system": system, "precision": precision}
            rows.append(row)
            try:
                work = few = operands.cudnn(precision)
                if system == "rlal_fast":
                    work, few = partial(operands.run, **how), partial(operands.first, **how)
                row |= _agreement(few(), truth, precision, f"{layer}, {system}", session)
                pairs.append((row, _contender(row, work, session)))
            except (
                InputError,
                TypeError,
                RuntimeError,
            ) as error:  # TypeError: no such argument
                row["left_out"] = f"not available: {session.described(error)}"
                session.check_device("kernels")
    take_turns([contender for _, contender in pairs], budget)
    for row, contender in pairs:
        row |= {"seconds": spread(contender.seconds), "turns": len(contender.seconds)}
        row["left_out"] = contender.left_out or row.get("left_out", "")
        row |= _against(layer, row, ceilings)
        if contender.error is not None:
            session.failures.append(f"{contender.name}: {session.described(contender.error)}")
            session.check_device("kernels")
    return rows


def _agreement(
    found: Tensor, truth: Tensor, precision: str, name: str, session: Session
) -> dict[str, Any]:
    error = float((found[: len(truth)].double() - truth).abs().max() / truth.abs().max())
    if not error <= LARGEST_ERROR[precision]:
        session.failures.append(f"{name} {precision}: relative difference {error:.1e}")
        raise InputError(f"disagrees with the reference by {error:.1e}")
    return {"relative_difference": error}


def _contender(row: dict[str, Any], work: Callable[[], Tensor], session: Session) -> Contender:
    calls = 1 if session.emulated else _CALLS
    once = device_seconds(session.device, work)  # on all images for the first time

    def turn(_number: int) -> float:
        return device_seconds(session.device, work, calls)

    name = f"{row['layer']}, {row['system']} {row['precision']}"
    return Contender(name, turn, once * calls, 2 if session.quick else _TURNS)


def _against(layer: Layer, row: dict[str, Any], ceilings: Ceilings) -> dict[str, Any]:
    """Bytes are those of the tensors that the operation takes and gives: ours are float32."""
    size = 4
    if row["system"] == "PyTorch" and row["precision"] in _DTYPES:
        size = 2
    moved, operations = size * row["images"] * layer.floats, layer.operations(row["images"])
    floor = ceilings.floor(moved, operations, row["precision"])
    found = {"floor_seconds": floor, "bytes": moved, "operations": operations}
    if row["seconds"]:
        found["times_floor"] = row["seconds"]["median"] / floor
    return found


def evaluations(sections: dict[str, Any], ceilings: Ceilings) -> list[dict[str, Any]]:
    """The whole evaluation of each network, our fastest row of each precision.

    Only the images count as bytes: nothing else has to pass through the device's memory.
    """
    rows = []
    for name, section in sections.items():
        for precision in PRECISIONS:
            row = fastest(section, precision) if "macs_kept" in section else None
            if row is None:
                continue
            case = section["case"]
            stored = 2 if precision in _DTYPES else 4
            moved = float(stored * case["images"] * 3 * case["size"] ** 2)
            operations = 2.0 * section["macs_kept"] * case["images"]
            floor, taken = ceilings.floor(moved, operations, precision), row["seconds_per_subnet"]
            rows.append(
                {
                    "network": name,
                    "precision": precision,
                    "setting": f"{row['setting']}, {row['subnets_per_call']} a call",
                    "seconds": taken,
                    "floor_seconds": floor,
                    "times_floor": taken["median"] / floor,
                    "operations": operations,
                }
            )
    return rows
