"""PyTorch's ways: the masked network, the compact one, folded, and compiled."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch._inductor.config as inductor
from torch import Tensor, nn

import rlal_fast as rf
from peers import Setting
from peers.batching import Workers, joined, whole_batches
from peers.folded import FoldedNetwork
from peers.fx_network import fx_network
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet

_FORMATS = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last}
_BATCHES = (2, 8, 16, 32, 64, 128, 250)


class _Eager:
    """Batches of images through a module; the last batch may be shorter."""

    def __init__(self, images: Tensor, setting: Setting) -> None:
        self._images, self._setting = images, setting
        self._format = _FORMATS[setting.mode]
        self._workers = Workers(setting)

    def load(self) -> None:
        laid_out = self._images.contiguous(memory_format=self._format)
        self._batches = laid_out.split(self._setting.batch)

    def laid_out(self, module: nn.Module) -> nn.Module:
        return module.to(memory_format=self._format)

    def predictor(self, module: nn.Module) -> Callable[[], Tensor]:
        @torch.inference_mode()
        def logits(batch: Tensor) -> Tensor:
            result: Tensor = module(batch)
            return result

        return lambda: joined(self._workers.map(logits, self._batches), len(self._images))


class Masked:
    """The usual way to try a sub-network: the full network with the removed channels zeroed."""

    batches, modes, workers = _BATCHES, tuple(_FORMATS), True

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None:
        self._graph, self._eager = graph, _Eager(images, setting)

    def load(self) -> None:
        self._module = self._eager.laid_out(copy.deepcopy(self._graph.model).eval())
        self._state = self._module.state_dict()
        self._full = {name: tensor.clone() for name, tensor in self._state.items()}
        self._eager.load()

    @torch.no_grad()
    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        for name, tensor in self._full.items():
            self._state[name].copy_(tensor)
        for group, kept in zip(self._graph.groups, subnet.kept, strict=True):
            removed = np.setdiff1d(np.arange(group.width), kept)
            for member in group.members:
                rows = torch.from_numpy(member.rows[removed].reshape(-1))
                self._state[member.tensor][rows] = 0
        return self._eager.predictor(self._module)


class Compact:
    """The smaller network of `rlal_fast.compact`, batch norms and all."""

    batches, modes, workers = _BATCHES, tuple(_FORMATS), True

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None:
        self._graph, self._eager = graph, _Eager(images, setting)

    def load(self) -> None:
        self._eager.load()

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        module = rf.compact(self._graph.model, subnet).eval()
        return self._eager.predictor(self._eager.laid_out(module))


class Folded:
    """The compact network with its batch norms folded and its activations in place."""

    batches, modes, workers = _BATCHES, tuple(_FORMATS), True

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None:
        self._graph, self._eager = graph, _Eager(images, setting)

    def load(self) -> None:
        self._network = FoldedNetwork(self._graph)
        self._eager.load()

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        module = fx_network(self._network.cut(subnet))
        return self._eager.predictor(self._eager.laid_out(module))


class Compiled:
    """torch.compile with frozen weights; each sub-network has other shapes, so each compiles."""

    batches, modes, workers = (16, 64, 250), ("",), False

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None:
        self._graph, self._images, self._setting = graph, images, setting

    def load(self) -> None:
        self._network = FoldedNetwork(self._graph)
        self._batches = whole_batches(self._images, self._setting.batch)

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        torch.compiler.reset()
        module = torch.compile(fx_network(self._network.cut(subnet)), dynamic=False)
        options = {
            "freezing": True,
            # A sub-network of a search is new: what an earlier run compiled must not be found.
            "force_disable_caches": True,
            "compile_threads": self._setting.threads,
        }

        @torch.no_grad()
        def logits() -> Tensor:
            with inductor.patch(options):
                return joined([module(batch) for batch in self._batches], len(self._images))

        with torch.no_grad(), inductor.patch(options), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "dynamo_pgo")  # says that caches are off
            module(self._batches[0])  # compiles
        return logits
