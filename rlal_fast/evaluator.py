"""Evaluator: sub-networks -> accuracies on fixed images (method.md §5), many at a time.

Three backends behind one class: "native" runs the C++ program on the CPU, "cuda" the CUDA kernels,
"torch" the specification (`kernels/reference.py`). "auto" takes cuda for images on a GPU, otherwise
native where the extension is, and `description` says which ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlal_fast.errors import InputError
from rlal_fast.graph import PrunableGraph
from rlal_fast.kernels import cuda, native, reference
from rlal_fast.kernels.cuda import PRECISIONS, CudaProgram
from rlal_fast.kernels.program import NativeProgram
from rlal_fast.subnet import Subnet

BACKENDS = ("auto", "native", "cuda", "torch")


class _Backend(Protocol):
    description: str

    def load_weights(self, state: dict[str, Tensor]) -> None: ...
    def correct(self, subnets: Sequence[Subnet], images: range) -> NDArray[np.int64]: ...
    def logits(self, subnet: Subnet) -> Tensor: ...


class Evaluator:
    """Scores sub-networks of one network on fixed images, in eval mode, without retraining.

    Args:
        graph: the traced network; its model's current weights are loaded.
        images: normalised float32 [N, C, H, W] of the traced size.
        labels: integers [N].
        backend: "native", "cuda", "torch" or "auto". The native backend uses
            torch.get_num_threads() threads. The CUDA backend works on the images' device, or on the
            current one for images on the CPU, in torch's current stream.
        recalibration_images: images like `images`; each sub-network is scored with the mean and
            the unbiased variance of these at its batch norms, in place of the running statistics.
            They pass through it as one batch, each batch norm in training mode, all else in eval
            mode. None: the running statistics.
        precision: of the CUDA backend's weights and activations, sums are float32: "fp32" (exact),
            "tf32", "fp16" or "bf16". The others know "fp32" only.
        path: of the CUDA backend: "whole" carries images through all layers in shared memory,
            "layers" launches each layer, "auto" takes the first where a sub-network fits.

    Raises:
        InputError: images, labels or backend that do not fit (named), or a recalibration that
            cannot be: no batch norm, no images, or one value per channel, which has no variance.
        ImportError: backend "native" without the extension.
    """

    def __init__(
        self,
        graph: PrunableGraph,
        images: Tensor,
        labels: Tensor,
        backend: str = "auto",
        recalibration_images: Tensor | None = None,
        *,
        precision: str = "fp32",
        path: str = "auto",
    ) -> None:
        self.graph = graph
        pixels = _checked_images(graph, images, "images")
        self._labels = _checked_labels(graph, labels, len(pixels))
        recalibration = None
        if recalibration_images is not None:
            recalibration = _checked_images(graph, recalibration_images, "recalibration_images")
            _check_recalibration(graph, len(recalibration))
        self._recalibrated_on = 0 if recalibration is None else len(recalibration)
        backend, self._because = _chosen(backend, pixels)
        _check_settings(backend, precision, path)
        if backend == "cuda":
            self._backend: _Backend = _CudaBackend(
                graph, pixels, self._labels, recalibration, precision, path
            )
        else:
            kind = _NativeBackend if backend == "native" else _TorchBackend
            self._backend = kind(graph, pixels, self._labels, recalibration)
        self.load_weights(graph.model)

    @property
    def description(self) -> str:
        """What runs, e.g. "native avx512", and why "auto" did not take more; for the report."""
        ran = self._backend.description + self._because
        if self._recalibrated_on:
            counted = f"{self._recalibrated_on} image{'s' * (self._recalibrated_on > 1)}"
            return f"{ran}, batch norm recalibrated on {counted}"
        return ran

    def __len__(self) -> int:
        """Number of images."""
        return len(self._labels)

    def load_weights(self, model: nn.Module) -> None:
        """Takes the weights and statistics of `model` (same architecture); nothing is rebuilt.

        Raises:
            InputError: a weight is missing or has another shape.
        """
        given, expected = model.state_dict(), self.graph.model.state_dict()
        for node in self.graph.nodes:
            for name in node.params.values():
                if name not in given or given[name].shape != expected[name].shape:
                    raise InputError(
                        f"the model has no {name} of shape {tuple(expected[name].shape)}: "
                        "it is not the architecture that was traced"
                    )
        self._backend.load_weights(given)

    def accuracies(
        self, subnets: Sequence[Subnet], images: range | None = None
    ) -> NDArray[np.float64]:
        """Top-1 accuracy of each sub-network, float64 [S] in [0, 1], in one native call.

        Args:
            subnets: S of this evaluator's graph.
            images: which of the images, by their numbers, without gaps; None: all of them.

        Raises:
            InputError: a sub-network of another graph, a range that is not of the images, or one
                with no images.
            KeyboardInterrupt: Ctrl-C, within a fraction of a second.
        """
        self._check(subnets)
        images = self._checked_range(images)
        if not subnets:
            return np.empty(0)
        return self._backend.correct(subnets, images) / len(images)

    def logits(self, subnet: Subnet) -> Tensor:
        """Logits float32 [N, classes] of one sub-network."""
        self._check([subnet])
        return self._backend.logits(subnet)

    def _checked_range(self, images: range | None) -> range:
        if images is None:
            images = range(len(self))
        if not isinstance(images, range) or images.step != 1:
            raise InputError(f"images must be a range of step 1, as range(0, 100), not {images!r}")
        if not images:
            raise InputError("an accuracy needs at least one image")
        if images.start < 0 or images.stop > len(self):
            raise InputError(f"{images} is not of the {len(self)} images: give a part of them")
        return images

    def _check(self, subnets: Sequence[Subnet]) -> None:
        if isinstance(subnets, Subnet):
            raise InputError("accuracies takes a list of sub-networks: write [subnet]")
        for subnet in subnets:
            if not isinstance(subnet, Subnet) or subnet.graph is not self.graph:
                raise InputError("the evaluator takes sub-networks made by its own graph")


def _chosen(backend: str, images: Tensor) -> tuple[str, str]:
    """The backend, and what to say where "auto" could not take the one of the images' device."""
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}: known are {', '.join(BACKENDS)}")
    if backend != "auto":
        return backend, ""
    because = ""
    if images.is_cuda:
        reason = cuda.unusable()
        if reason is None:
            return "cuda", ""
        because = f" (not cuda: {reason})"
    return "native" if native.installed() else "torch", because


def _check_settings(backend: str, precision: str, path: str) -> None:
    for name, value, known in (("precision", precision, PRECISIONS), ("path", path, cuda.PATHS)):
        if value not in known:
            raise InputError(f"unknown {name} {value!r}: known are {', '.join(known)}")
        if value != known[0] and backend != "cuda":
            raise InputError(
                f"{name} {value!r} is for backend 'cuda', not for {backend!r}: leave it out, or "
                "choose backend 'cuda'"
            )


class _NativeBackend:
    def __init__(
        self, graph: PrunableGraph, images: Tensor, labels: Tensor, recalibration: Tensor | None
    ) -> None:
        self._graph, self._labels = graph, labels.cpu().numpy()
        self._program = NativeProgram(graph.nodes, graph.positions, graph.class_count)
        self._images = self._laid_out(images)
        self._recalibration = None if recalibration is None else self._laid_out(recalibration)
        self.description = f"native {self._program.native.isa}"

    def _laid_out(self, images: Tensor) -> native.Images:
        pixels = np.ascontiguousarray(images.cpu().numpy())
        return native.extension().Images(self._program.native, pixels, torch.get_num_threads())

    def load_weights(self, state: dict[str, Tensor]) -> None:
        self._program.load_weights(state, recalibrate=self._recalibration is not None)

    def correct(self, subnets: Sequence[Subnet], images: range) -> NDArray[np.int64]:
        masks, threads = _masks(self._graph, subnets), torch.get_num_threads()
        return self._images.correct(
            self._labels, masks, threads, self._recalibration, images.start, images.stop
        )

    def logits(self, subnet: Subnet) -> Tensor:
        masks, threads = _masks(self._graph, [subnet]), torch.get_num_threads()
        return torch.from_numpy(self._images.logits(masks, threads, self._recalibration))


def _masks(graph: PrunableGraph, subnets: Sequence[Subnet]) -> NDArray[np.uint8]:
    """Channel classes that stay, [S, classes]."""
    return np.stack([graph.kept_classes(s) for s in subnets]).astype(np.uint8)


class _CudaBackend:
    def __init__(
        self,
        graph: PrunableGraph,
        images: Tensor,
        labels: Tensor,
        recalibration: Tensor | None,
        precision: str,
        path: str,
    ) -> None:
        device = cuda.device_for(images)
        self._graph, self._labels = graph, labels.to(device)
        self._program = CudaProgram(
            graph.nodes,
            graph.positions,
            graph.class_count,
            device,
            precision,
            path,
            recalibration,
        )
        self._images = self._program.load_images(images)
        self.description = f"cuda {precision}, {self._program.device_name}"

    def load_weights(self, state: dict[str, Tensor]) -> None:
        self._program.load_weights(state)

    def correct(self, subnets: Sequence[Subnet], images: range) -> NDArray[np.int64]:
        masks = _masks(self._graph, subnets)
        return self._program.correct(self._images, self._labels, masks, images)

    def logits(self, subnet: Subnet) -> Tensor:
        masks = _masks(self._graph, [subnet])
        return self._program.logits(self._images, len(self._labels), masks).cpu()


class _TorchBackend:
    """On the images' device."""

    description = "torch reference"
    _BATCH = 500

    def __init__(
        self, graph: PrunableGraph, images: Tensor, labels: Tensor, recalibration: Tensor | None
    ) -> None:
        self._graph, self._images, self._labels = graph, images, labels
        self._recalibration = recalibration
        if images.is_cuda:
            self.description = f"torch reference, {torch.cuda.get_device_name(images.device)}"
        self._state: dict[str, Tensor] = {}

    def load_weights(self, state: dict[str, Tensor]) -> None:
        # a float32 copy, as the native backend makes one: later training must not change what is
        # evaluated, and a model in another precision is scored on the same images
        self._state = {
            name: tensor.detach().to(self._images.device, torch.float32, copy=True)
            for name, tensor in state.items()
        }

    def correct(self, subnets: Sequence[Subnet], images: range) -> NDArray[np.int64]:
        part = slice(images.start, images.stop)
        labels, pixels = self._labels[part].cpu(), self._images[part]
        hits = [int((self._logits(s, pixels).argmax(1) == labels).sum()) for s in subnets]
        return np.array(hits, dtype=np.int64)

    def logits(self, subnet: Subnet) -> Tensor:
        return self._logits(subnet, self._images)

    @torch.no_grad()
    @reference.exact_float32()
    def _logits(self, subnet: Subnet, images: Tensor) -> Tensor:
        kept = self._graph.kept_positions(subnet)
        subnet_of = self._graph.nodes, self._state, kept
        statistics = None
        if self._recalibration is not None:
            statistics = reference.subnet_statistics(*subnet_of, self._recalibration)
        parts = [
            reference.subnet_logits(*subnet_of, batch, statistics)
            for batch in images.split(self._BATCH)
        ]
        return torch.cat(parts).cpu()


def _checked_images(graph: PrunableGraph, images: Tensor, name: str) -> Tensor:
    shape = graph.nodes[0].shape
    if not isinstance(images, Tensor) or images.ndim != 4 or tuple(images.shape[1:]) != shape:
        given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"{name} must be a tensor [N, {', '.join(map(str, shape))}], not {given}")
    if images.dtype != torch.float32:
        raise InputError(f"{name} must be float32 and normalised, not {images.dtype}")
    return images.detach()


def _check_recalibration(graph: PrunableGraph, count: int) -> None:
    norms = [node for node in graph.nodes if node.op == "batch_norm"]
    if not norms:
        raise InputError(
            "the network has no batch norm to recalibrate: leave out recalibration_images "
            "(bn_recalibrate=0)"
        )
    if not count:
        raise InputError("recalibration_images must hold at least one image: hand in some, or None")
    for node in norms:
        if count * node.shape[1] * node.shape[2] == 1:
            raise InputError(
                f"one image gives batch norm {node.name} one value per channel, which has no "
                "variance: recalibrate on two images or more"
            )


def _checked_labels(graph: PrunableGraph, labels: Tensor, count: int) -> Tensor:
    whole = isinstance(labels, Tensor) and not labels.is_floating_point()
    if not whole or tuple(labels.shape) != (count,):
        raise InputError(f"labels must be an integer tensor [{count}], one per image")
    classes = graph.nodes[-1].shape[0]
    if count and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise InputError(
            f"labels must be in 0..{classes - 1}, found {int(labels.min())}..{int(labels.max())}"
        )
    return labels.detach().to(torch.int64).contiguous()
