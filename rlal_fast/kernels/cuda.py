"""The CUDA evaluator's view of a network: memory and streams are torch's, kernels the extension's.

An extension that was built for the emulator (RLAL_FAST_CUDA=emulated) runs the same kernels on the
CPU, for tests: its device is then torch's "cpu".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlal_fast.errors import InputError
from rlal_fast.kernels import native
from rlal_fast.kernels.program import FusedNetwork

if TYPE_CHECKING:
    from rlal_fast.tracing import Node

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
PATHS = ("auto", "whole", "layers")

_PACKED_BYTES = 256 << 20
"""Compact weights of the sub-networks that are prepared at once, about."""
_AT_ONCE = 32
"""Sub-networks that are prepared at once, at most: the next ones while these are run."""
_ACTIVATION_BYTES = 1 << 30
"""Activations of sub-networks that do not fit into shared memory, at most."""


def emulated() -> bool:
    """Whether the kernels run on the CPU."""
    return native.installed() and native.extension().build_info()["cuda"] == "emulated"


@cache
def unusable() -> str | None:
    """Why the CUDA kernels cannot run here, as half a sentence; None if they can."""
    if not native.installed():
        return "rlal_fast's compiled part is not installed"
    extension = native.extension()
    if not extension.build_info()["cuda"]:
        return "rlal_fast was built without CUDA: install it where nvcc is found"
    try:
        if not extension.cuda_device_count():
            return "there is no CUDA device"
    except RuntimeError as error:
        return str(error)
    if not extension.cuda_emulated() and not torch.cuda.is_available():
        return "torch finds no CUDA device (torch.cuda.is_available() is False)"
    return None


def device_for(tensor: Tensor) -> torch.device:
    """Where the kernels work on behalf of a tensor: its own device, or the current one.

    Raises:
        InputError: the CUDA kernels cannot run here; the message says why.
    """
    reason = unusable()
    if reason is not None:
        raise InputError(
            f"backend 'cuda' cannot run here: {reason}; backend 'native' runs on the CPU"
        )
    if emulated():
        return torch.device("cpu")
    return tensor.device if tensor.is_cuda else torch.device("cuda", torch.cuda.current_device())


def place(device: torch.device) -> tuple[int, int]:
    """A device's index and torch's current stream on it, as the extension takes them."""
    if device.type != "cuda":
        return 0, 0
    index = torch.cuda.current_device() if device.index is None else device.index
    return index, torch.cuda.current_stream(device).cuda_stream


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device, ordered on the current stream; from pinned memory, so that it does not
    wait for what the stream still has to do."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class CudaProgram:
    """A network on a device, with its full weights.

    Args:
        nodes, positions: as for `FusedNetwork`.
        class_count: number of channel classes.
        device: where weights and images lie (see `device_for`).
        precision: one of PRECISIONS.
        path: "whole" carries images through a sub-network in shared memory, "layers" launches each
            layer, "auto" takes the first where a sub-network fits.
        recalibration_images: as `Evaluator`'s; each sub-network is run with their statistics.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        positions: Sequence[NDArray[np.int64]],
        class_count: int,
        device: torch.device,
        precision: str = "fp32",
        path: str = "auto",
        recalibration_images: Tensor | None = None,
    ) -> None:
        self._network = FusedNetwork(nodes, positions)
        extension = native.extension()
        norm_eps: list[float] = []
        if recalibration_images is not None:
            eps = {op: norm.attrs["eps"] for op, norm in self._network.norms()}
            norm_eps = [eps.get(op, float("nan")) for op in range(len(self._network.ops))]
        self._native = extension.CudaProgram(
            self._network.tensors, self._network.ops, class_count, norm_eps
        )
        self.device, self.precision, self.path = device, precision, path
        self._properties = extension.cuda_properties(place(device)[0])
        self._full = torch.zeros(self._native.full_floats, device=device)
        self._recalibrated_on = 0
        if recalibration_images is not None:
            self._recalibrated_on = len(recalibration_images)
            self._recalibration = self.load_images(recalibration_images)

    @property
    def device_name(self) -> str:
        name: str = self._properties["name"]
        return name

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Folds the full weights of a state dict and sends them to the device in one piece."""
        full = np.empty(self._native.full_floats, dtype=np.float32)
        weights_at, bias_at = self._native.weight_offsets, self._native.bias_offsets
        recalibrate = self._recalibrated_on > 0
        there = _on_cpu(state)
        for own in self._network.weights(there, recalibrate):
            start = weights_at[own.op]
            weight = full[start : start + own.weight.size].reshape(len(own.bias), -1)
            scale = 1.0 if own.scale is None else own.scale[:, None]
            weight[:] = own.weight.reshape(weight.shape) * scale
            full[bias_at[own.op] : bias_at[own.op] + len(own.bias)] = own.bias
        for op, norm in self._network.norms() if recalibrate else ():
            own_pair = [there[norm.params[role]].float().numpy() for role in ("weight", "bias")]
            start = self._native.norm_offsets[op]
            full[start : start + 2 * len(own_pair[0])] = np.concatenate(own_pair)
        self._full = upload(full, self.device)

    def load_images(self, images: Tensor) -> Tensor:
        """Images float32 [N, C, H, W] in the layout and precision of the kernels, uint8 [bytes]."""
        source = images.detach().to(self.device).contiguous()
        count = len(source) * self._native.image_bytes(self.precision)
        loaded = torch.empty(count, dtype=torch.uint8, device=self.device)
        self._native.load_images(
            source.data_ptr(), len(source), self.precision, loaded.data_ptr(), *place(self.device)
        )
        return loaded

    def correct(
        self,
        images: Tensor,
        labels: Tensor,
        masks: NDArray[np.uint8],
        chosen: range | None = None,
    ) -> NDArray[np.int64]:
        """Hits of each sub-network, [S]: images as from `load_images`, labels int64 [N] there;
        among the chosen ones, or all of them."""
        if chosen is not None:
            of_one = self._native.image_bytes(self.precision)
            images = images[chosen.start * of_one : chosen.stop * of_one]
            labels = labels[chosen.start : chosen.stop]
        parts = []
        for part in self._parts(masks):
            counts = torch.empty(len(part), dtype=torch.int32, device=self.device)
            self._evaluate(part, images, labels, counts, None, len(labels))
            parts.append(counts)
        return torch.cat(parts).cpu().numpy().astype(np.int64)

    def logits(self, images: Tensor, count: int, mask: NDArray[np.uint8]) -> Tensor:
        """Logits float32 [count, classes] on the device, of one sub-network [1, classes]."""
        classes = len(self._network.tensors[self._network.ops[-1]["output"]]["classes"])
        logits = torch.empty(count, classes, device=self.device)
        self._evaluate(mask, images, None, None, logits, count)
        return logits

    def plan(self, masks: NDArray[np.uint8]) -> Any:
        """How sub-networks would be run, for benchmarks: `CudaPlan` of the extension."""
        limits = (self._properties[f"shared_of_{part}"] for part in ("multiprocessor", "block"))
        return self._native.plan(masks, self.precision, self.path, *limits)

    def _parts(self, masks: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Keeps the memory of a call flat, and the device busy while the next part is planned."""
        at_once = max(1, min(_AT_ONCE, _PACKED_BYTES // (4 * max(1, self._native.full_floats))))
        for first in range(0, len(masks), at_once):
            yield masks[first : first + at_once]

    def _evaluate(
        self,
        masks: NDArray[np.uint8],
        images: Tensor,
        labels: Tensor | None,
        correct: Tensor | None,
        logits: Tensor | None,
        count: int,
    ) -> None:
        try:
            plan = self.plan(masks)
        except ValueError as error:
            raise InputError(str(error)) from error
        descriptors = upload(plan.descriptors, self.device)
        batch = plan.batch(count, _ACTIVATION_BYTES)
        measured_on = self._recalibrated_on
        sizes = (
            plan.packed_bytes,
            plan.activation_bytes(batch),
            plan.recalibration_bytes(measured_on),
        )
        packed, activations, workspace = (
            torch.empty(size, dtype=torch.uint8, device=self.device) for size in sizes
        )
        memory = (
            *(descriptors, self._full, packed, activations, images, labels, correct, logits),
            *((self._recalibration, workspace) if measured_on else (None, None)),
        )
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in memory]
        plan.evaluate(addresses, count, batch, measured_on, *place(self.device))


def masked_conv2d(
    x: Tensor,  # [N, c_in, H, W]
    weight: Tensor,  # [C_out, C_in / groups, kH, kW]
    bias: Tensor | None,  # [C_out]
    residual: Tensor | None,  # [N, c_out, H', W']
    kept: tuple[Tensor, Tensor],  # [c_in], [c_out]
    window: list[int],  # kernel, stride, padding, dilation
    depthwise: bool,
    clamp: tuple[float, float],
    precision: str,
) -> Tensor:  # [N, c_out, H', W']
    """`kernels.masked_conv2d` by the CUDA kernels, on checked float32 operands of one device."""
    device = device_for(x)
    conv = native.extension().CudaMaskedConv(
        window,
        depthwise,
        *clamp,
        *x.shape[2:],
        weight.shape[1],
        weight.shape[0],
        *(indices.tolist() for indices in kept),
        precision,
    )
    full_bias = weight.new_zeros(len(weight)) if bias is None else bias
    operands = [
        upload(conv.descriptors, device),
        torch.cat([weight.detach().reshape(-1), full_bias.detach()]),
        x.detach().contiguous(),
        None if residual is None else residual.detach().contiguous(),
        torch.empty(conv.workspace_bytes(len(x)), dtype=torch.uint8, device=device),
    ]
    result = torch.empty(len(x), *conv.out_shape, device=device)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*operands, result)]
    conv.run(addresses, len(x), *place(device))
    return result


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict on the CPU, by one copy for each type: hundreds of small ones each wait."""
    kinds: dict[torch.dtype, list[str]] = {}
    for name, tensor in state.items():
        kinds.setdefault(tensor.dtype, []).append(name)
    found: dict[str, Tensor] = {}
    for names in kinds.values():
        if not state[names[0]].is_cuda:
            found.update((name, state[name]) for name in names)
            continue
        flat = torch.cat([state[name].detach().reshape(-1) for name in names]).cpu()
        pieces = flat.split([state[name].numel() for name in names])
        for name, piece in zip(names, pieces, strict=True):
            found[name] = piece.view(state[name].shape)
    return found
