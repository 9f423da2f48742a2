"""OpenVINO's CPU plugin on an ONNX model made in memory."""

from __future__ import annotations

from collections.abc import Callable

import openvino
import torch
from torch import Tensor

from peers import Setting
from peers.batching import joined, whole_batches
from peers.folded import FoldedNetwork
from peers.onnx_model import onnx_model
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet


class OpenVino:
    """One compiled model per sub-network, for a fixed batch size; its own streams run batches."""

    batches, modes, workers = (1, 2, 4, 8, 16, 32, 64, 128), ("LATENCY", "THROUGHPUT"), False

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None:
        self._graph, self._images, self._setting = graph, images, setting
        self._core = openvino.Core()
        self._config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": setting.mode,
            "INFERENCE_NUM_THREADS": setting.threads,
        }

    def load(self) -> None:
        self._network = FoldedNetwork(self._graph)
        self._memory = whole_batches(self._images, self._setting.batch)
        self._batches = [openvino.Tensor(b.numpy(), shared_memory=True) for b in self._memory]

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        model = onnx_model(self._network.cut(subnet), self._setting.batch)
        compiled = self._core.compile_model(self._core.read_model(model, b""), "CPU", self._config)
        # Requests in turn and not openvino.AsyncInferQueue: its callbacks may wait for the
        # interpreter's lock while whoever deletes the queue holds it and waits for them.
        count = 1 + compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")  # one is waiting
        requests = [compiled.create_infer_request() for _ in range(count)]
        return lambda: joined(self._results(requests), len(self._images))

    def _results(self, requests: list[openvino.InferRequest]) -> list[Tensor]:
        results: list[Tensor] = []
        for position, batch in enumerate(self._batches):
            request = requests[position % len(requests)]
            if position >= len(requests):
                results.append(_result(request))
            request.start_async(batch, share_inputs=True)
        for position in range(len(results), len(self._batches)):
            results.append(_result(requests[position % len(requests)]))
        return results


def _result(request: openvino.InferRequest) -> Tensor:
    request.wait()
    return torch.from_numpy(request.get_output_tensor().data.copy())
