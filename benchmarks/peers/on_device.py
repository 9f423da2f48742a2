"""PyTorch's ways on the device of the images: masked, compact, as a CUDA graph, and compiled.

The network that is measured stays on the CPU, where sub-networks are cut; each peer takes its
weights to the images. All of it works on CPU tensors too, but for the graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from peers import Setting
from peers.batching import joined, whole_batches
from peers.device_network import DeviceNetwork
from peers.folded import FoldedNetwork
from peers.fx_network import fx_network
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet

_BATCHES = (250, 500, 1000, 2500, 5000)
_LAST = torch.channels_last
_FORMATS = {"channels-first": torch.contiguous_format, "channels-last": _LAST}
_EXACT, _FILLED = "channels-last", "channels-last, widths filled up to 8"


class _Batches:
    """Images in the precision and memory format of a peer, and modules that work on them."""

    def __init__(self, images: Tensor, setting: Setting, dtype: torch.dtype) -> None:
        self._images, self._size, self._dtype = images, setting.batch, dtype
        self.format = _FORMATS[setting.mode.split(",")[0]]
        self.batches: Sequence[Tensor] = ()

    def load(self, *, whole: bool = False) -> None:
        """`whole`: the last batch is filled up, for what is compiled for one shape."""
        laid_out = self._images.to(self._dtype).contiguous(memory_format=self.format)
        self.batches = laid_out.split(self._size)
        if whole:
            parts = whole_batches(laid_out, self._size)
            self.batches = [part.contiguous(memory_format=self.format) for part in parts]

    def taken(self, module: nn.Module) -> nn.Module:
        return module.to(self._images.device, self._dtype, memory_format=self.format)

    @torch.inference_mode()
    def logits(self, module: Callable[[Tensor], Tensor]) -> Tensor:
        parts = [module(batch) for batch in self.batches]
        return joined(parts, len(self._images)).float()


class _Masked:
    """The full network with the removed channels zeroed: one copy and one product per tensor."""

    batches, modes, workers = _BATCHES, tuple(_FORMATS), False
    dtype: ClassVar[torch.dtype]

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None:
        self._graph, self._device = graph, images.device
        self._batches = _Batches(images, setting, self.dtype)

    def load(self) -> None:
        self._batches.load()
        self._module = self._batches.taken(copy.deepcopy(self._graph.model).eval())
        state = self._module.state_dict()
        names = {member.tensor for group in self._graph.groups for member in group.members}
        self._masked = {name: state[name] for name in sorted(names)}
        self._full = [tensor.clone() for tensor in self._masked.values()]

    @torch.no_grad()
    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        kept = {name: np.ones(len(t), dtype=np.float32) for name, t in self._masked.items()}
        for group, channels in zip(self._graph.groups, subnet.kept, strict=True):
            removed = np.setdiff1d(np.arange(group.width), channels)
            for member in group.members:
                kept[member.tensor][member.rows[removed].reshape(-1)] = 0
        masks = torch.from_numpy(np.concatenate(list(kept.values())))
        masks = masks.to(self._device, self.dtype)  # all in one transfer
        tensors = list(self._masked.values())
        parts = masks.split([len(tensor) for tensor in tensors])
        shaped = [
            part.view(-1, *[1] * (t.ndim - 1)) for part, t in zip(parts, tensors, strict=True)
        ]
        torch._foreach_copy_(tensors, self._full)
        torch._foreach_mul_(tensors, shaped)
        return lambda: self._batches.logits(self._module)


class MaskedSingle(_Masked):
    dtype = torch.float32


class MaskedHalf(_Masked):
    dtype = torch.float16


class _Folded:
    """The compact network, batch norms folded and activations in place; cut on the device."""

    batches, workers = _BATCHES, False
    modes: ClassVar[tuple[str, ...]] = (_EXACT, _FILLED)
    dtype: ClassVar[torch.dtype] = torch.float16

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None:
        self._graph, self._device, self._setting = graph, images.device, setting
        self._batches = _Batches(images, setting, self.dtype)

    @property
    def _multiple(self) -> int:
        return 8 if self._setting.mode == _FILLED else 1

    def load(self) -> None:
        place = self._device, self.dtype, self._batches.format
        self._network = DeviceNetwork(FoldedNetwork(self._graph), *place)
        self._batches.load()

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        module = self._network.cut(subnet, self._multiple)
        return lambda: self._batches.logits(module)


class FoldedSingle(_Folded):
    modes = tuple(_FORMATS)
    dtype = torch.float32


class FoldedHalf(_Folded):
    """In half precision."""


class GraphHalf(_Folded):
    """One CUDA graph of all batches; a sub-network has other shapes, so each is captured anew."""

    _last: torch.cuda.CUDAGraph | None = None

    def load(self) -> None:
        super().load()
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        here = torch.cuda.current_stream(self._device)
        module = self._network.cut(subnet, self._multiple)
        self._stream.wait_stream(here)
        # torch.cuda.graph() would also collect garbage and empty the allocator's cache each time,
        # which costs more than the capture.
        with torch.cuda.stream(self._stream):
            self._batches.logits(module)  # what is set up on first use must not be captured
            torch.cuda.synchronize(self._device)
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool)
            try:
                logits = self._batches.logits(module)
            finally:
                graph.capture_end()
        here.wait_stream(self._stream)
        self._last = graph  # the graph before lived until here, and so its pool lives on

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


class CompiledHalf(_Folded):
    """torch.compile, for one sub-network: compiling takes a minute or more."""

    modes = (_FILLED,)

    def load(self) -> None:
        self._folded = FoldedNetwork(self._graph)
        self._batches.load(whole=True)

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        torch.compiler.reset()
        network = fx_network(self._folded.cut(subnet, self._multiple))
        module = torch.compile(self._batches.taken(network), dynamic=False)
        with torch.inference_mode():
            module(self._batches.batches[0])  # compiles
        return lambda: self._batches.logits(module)
