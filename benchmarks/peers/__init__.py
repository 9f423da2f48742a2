"""The systems that the evaluator is measured against: one way each to score a sub-network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet


@dataclass(frozen=True)
class Setting:
    """What a trial chooses for a peer.

    Attributes:
        batch: images per call.
        mode: the peer's own alternatives, e.g. a memory format or a performance hint.
        threads: of all its work together.
        workers: how many batches are computed at once, each with threads / workers threads.
    """

    batch: int
    mode: str
    threads: int
    workers: int = 1

    def __str__(self) -> str:
        at_once = f"{self.workers} at once" if self.workers > 1 else ""
        return ", ".join(filter(None, (f"batch {self.batch}", self.mode, at_once)))


class Peer(Protocol):
    """Scores sub-networks of one network on fixed images.

    Attributes:
        batches, modes: what a trial may choose from.
        workers: whether it can compute several batches at once in threads of its caller.
    """

    batches: ClassVar[tuple[int, ...]]
    modes: ClassVar[tuple[str, ...]]
    workers: ClassVar[bool]

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None: ...

    def load(self) -> None:
        """Once for many sub-networks: takes the model's weights and lays out the images."""

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        """Sets one sub-network up; what it returns gives the logits [N, classes] of all images."""


@dataclass(frozen=True)
class Entry:
    """A peer by name: it can be named as missing where its packages are.

    Attributes:
        title: its name in tables and pictures.
        module, peer: where its class is.
        packages: what must be installed.
        isas: instruction sets to which environment variables can hold it, see `held.py`.
        provider: what ONNX Runtime must have been built with.
        needs_gpu: whether it does not run on CPU tensors, as in a trial of the benchmark itself.
        once: whether one sub-network must do, as its set-up takes so long.
    """

    title: str
    module: str
    peer: str
    packages: tuple[str, ...] = ()
    isas: tuple[str, ...] = ("avx2",)
    provider: str = ""
    needs_gpu: bool = False
    once: bool = False


ENTRIES = {
    "masked": Entry("PyTorch eager, masked", "pytorch", "Masked"),
    "compact": Entry("PyTorch eager, compact", "pytorch", "Compact"),
    "folded": Entry("PyTorch eager, compact, folded", "pytorch", "Folded"),
    "compiled": Entry("torch.compile, compact, folded, frozen", "pytorch", "Compiled"),
    "onnxruntime": Entry(
        "ONNX Runtime", "onnx_runtime", "OnnxRuntime", ("onnx", "onnxruntime"), isas=()
    ),
    "openvino": Entry("OpenVINO", "open_vino", "OpenVino", ("onnx", "openvino")),
}

GPU_ENTRIES = {
    "masked-fp32": Entry("PyTorch eager, masked, fp32", "on_device", "MaskedSingle"),
    "masked-fp16": Entry("PyTorch eager, masked, fp16", "on_device", "MaskedHalf"),
    "folded-fp32": Entry("PyTorch eager, compact, folded, fp32", "on_device", "FoldedSingle"),
    "folded-fp16": Entry("PyTorch eager, compact, folded, fp16", "on_device", "FoldedHalf"),
    "graph-fp16": Entry(
        "PyTorch CUDA graph, compact, folded, fp16", "on_device", "GraphHalf", needs_gpu=True
    ),
    "compiled-fp16": Entry(
        "torch.compile, compact, folded, fp16", "on_device", "CompiledHalf", once=True
    ),
    "onnxruntime-cuda": Entry(
        "ONNX Runtime CUDA, fp32",
        "onnx_runtime_gpu",
        "OnnxRuntimeCuda",
        ("onnx", "onnxruntime"),
        provider="CUDAExecutionProvider",
    ),
    "tensorrt-fp16": Entry(
        "ONNX Runtime TensorRT, fp16",
        "onnx_runtime_gpu",
        "TensorRt",
        ("onnx", "onnxruntime"),
        provider="TensorrtExecutionProvider",
        needs_gpu=True,
        once=True,
    ),
}
"""Peers on the device of the images that they are given."""


def missing(key: str, isa: str | None = None) -> str | None:
    """Why a peer cannot run here, held to an instruction set or not; None if it can."""
    entry = ENTRIES[key]
    absent = [package for package in entry.packages if find_spec(package) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    if isa is not None and isa not in entry.isas:
        return f"cannot be held to {isa}"
    return None


def missing_on(key: str, device: torch.device) -> str | None:
    """Why a peer of GPU_ENTRIES cannot run on a device; None if it can."""
    entry = GPU_ENTRIES[key]
    if entry.needs_gpu and device.type != "cuda":
        return "needs a GPU"
    absent = [package for package in entry.packages if find_spec(package) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    if entry.provider and device.type == "cuda":
        import onnxruntime  # seconds, and only where it is asked for

        if entry.provider not in onnxruntime.get_available_providers():
            return f"the installed onnxruntime is built without {entry.provider}"
    return None


def load(key: str) -> type[Peer]:
    """The class of a peer; its packages are imported now."""
    entry = ENTRIES[key] if key in ENTRIES else GPU_ENTRIES[key]
    found: type[Peer] = getattr(import_module(f"peers.{entry.module}"), entry.peer)
    return found
