"""ONNX Runtime's CPU provider on an ONNX model made in memory."""

from __future__ import annotations

from collections.abc import Callable

import onnxruntime
import torch
from torch import Tensor

from peers import Setting
from peers.batching import Workers, joined, whole_batches
from peers.folded import FoldedNetwork
from peers.onnx_model import INPUT, onnx_model
from rlal_fast.graph import PrunableGraph
from rlal_fast.subnet import Subnet


class OnnxRuntime:
    """One session per sub-network, for a fixed batch size; several threads may run it at once."""

    batches, modes, workers = (1, 2, 4, 8, 16, 32, 64, 128), ("",), True

    def __init__(self, graph: PrunableGraph, images: Tensor, setting: Setting) -> None:
        self._graph, self._images, self._setting = graph, images, setting
        self._workers = Workers(setting)
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = setting.threads // setting.workers
        self._options.inter_op_num_threads = 1
        self._options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL

    def load(self) -> None:
        self._network = FoldedNetwork(self._graph)
        self._batches = whole_batches(self._images, self._setting.batch)

    def prepare(self, subnet: Subnet) -> Callable[[], Tensor]:
        model = onnx_model(self._network.cut(subnet), self._setting.batch)
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(model, self._options, providers=providers)

        def logits(batch: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {INPUT: batch.numpy()})[0])

        return lambda: joined(self._workers.map(logits, self._batches), len(self._images))
