"""ONNX Runtime's providers for GPUs, on images and logits that stay on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from peers import Setting
from peers.batching import joined, whole_batches
from peers.folded import FoldedNetwork
from peers.onnx_model import INPUT, OUTPUT, onnx_model
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet


class _OnDevice:
    """One session per sub-network, for a fixed batch size; for images on the CPU, its CPU one."""

    batches, workers = (250, 500, 1000, 2500, 5000), False
    modes: ClassVar[tuple[str, ...]] = ("widths filled up to 8",)
    provider: ClassVar[str]
    options: ClassVar[dict[str, Any]]

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None:
        self._graph, self._images, self._setting = graph, images, setting
        self._device = images.device

    def load(self) -> None:
        self._network = FoldedNetwork(self._graph)
        batches = [*self._images.split(self._setting.batch)]
        batches[-1] = whole_batches(batches[-1], self._setting.batch)[0]
        self._batches = [batch.contiguous() for batch in batches]

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        steps = self._network.cut(subnet, multiple=8)
        provider: Any = "CPUExecutionProvider"
        if self._device.type == "cuda":
            device = {"device_id": self._device.index or 0}
            provider = (self.provider, {**self.options, **device})
        model = onnx_model(steps, self._setting.batch)
        session = onnxruntime.InferenceSession(model, providers=[provider])
        classes = steps[-1].node.shape[0]

        def run(batch: Tensor) -> Tensor:
            logits = torch.empty(len(batch), classes, device=self._device)
            binding = session.io_binding()
            place = self._device.type, self._device.index or 0, np.float32
            binding.bind_input(INPUT, *place, tuple(batch.shape), batch.data_ptr())
            binding.bind_output(OUTPUT, *place, tuple(logits.shape), logits.data_ptr())
            session.run_with_iobinding(binding)  # waits for its end
            return logits

        def logits() -> Tensor:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # it has a stream of its own
            return joined([run(batch) for batch in self._batches], len(self._images))

        return logits


class OnnxRuntimeCuda(_OnDevice):
    """In fp32, as its models are; fp16 would need a converter."""

    provider, options = "CUDAExecutionProvider", {"use_tf32": 0}


class TensorRt(_OnDevice):
    provider, options = "TensorrtExecutionProvider", {"trt_fp16_enable": True}
