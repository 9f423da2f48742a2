"""model + Subnet -> a smaller network, and its way to disk and back (method.md §9).

A compact network is an ordinary `nn.Module` without masks. It is described by plain data (the
traced operations with their new sizes), so it can be stored as JSON + safetensors and loaded
without pickle and without the class it was traced from.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlal_fast._version import __version__
from rlal_fast.errors import InputError
from rlal_fast.graph import PrunableGraph
from rlal_fast.run_folder import write_atomically
from rlal_fast.subnet import Subnet
from rlal_fast.tracing import Node

_FORMAT = 1
_SPEC_FILE, _WEIGHTS_FILE = "network.json", "weights.safetensors"
_SAVED_ROLES = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

Spec = list[dict[str, Any]]


class CompactNetwork(nn.Module):
    """A network made from a list of operations; parameters keep the names they had in the original.

    Args:
        spec: one dict per operation: "op", "name", "inputs" (indices), and its constants.
        metadata: plain data that `save` stores beside it (widths, normalisation, ...).

    Attributes:
        spec, metadata: as given.
    """

    def __init__(self, spec: Spec, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.metadata = dict(metadata or {})
        # Found once: looking a dotted name up in every forward costs as much as a small layer.
        self._layers: list[nn.Module | None] = []
        # Values are kept by name: torch.compile may take a number for one that varies.
        self._sources = [[spec[source]["name"] for source in step["inputs"]] for step in spec]
        last = {name: index for index, names in enumerate(self._sources) for name in names}
        self._done_with = [
            [name for name in dict.fromkeys(names) if last[name] == index]
            for index, names in enumerate(self._sources)
        ]
        for step in spec:
            layer = _layer(step)
            self._layers.append(layer)
            if layer is not None:
                _add_at(self, step["name"], layer)

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, classes]
        values: dict[str, Tensor] = {}
        steps = zip(self.spec, self._layers, self._sources, self._done_with, strict=True)
        for step, layer, sources, done_with in steps:
            inputs = [values[name] for name in sources]
            if layer is not None:
                x = layer(inputs[0])
            elif step["op"] != "input":
                x = self._step(step, inputs)
            values[step["name"]] = x
            for name in done_with:
                del values[name]  # its memory can be reused
        return x

    def _step(self, step: dict[str, Any], inputs: Sequence[Any]) -> Tensor:
        op, x = step["op"], inputs[0]
        if op == "dropout":
            return F.dropout(x, step["p"], self.training)
        if op == "relu":
            return F.relu(x)
        if op == "relu6":
            return F.relu6(x)
        if op == "add":
            return x + inputs[1]
        if op == "max_pool":
            return F.max_pool2d(x, **_pool_arguments(step))
        if op == "avg_pool":
            return F.avg_pool2d(
                x, **_pool_arguments(step), count_include_pad=step["count_include_pad"]
            )
        if op == "global_pool":
            return F.adaptive_avg_pool2d(x, 1)
        if op == "flatten":
            return torch.flatten(x, 1)
        if op == "pad_channels":
            return F.pad(x, (0, 0, 0, 0, step["before"], step["after"]))
        if op == "subsample":
            return x[:, :, :: step["stride"][0], :: step["stride"][1]]
        raise InputError(f"unknown operation {op!r} in the saved network: update rlal_fast")


def compact(model: nn.Module, subnet: Subnet) -> CompactNetwork:
    """Cuts a sub-network out of `model`, physically.

    Args:
        model: the network that `subnet.graph` was traced from, or one of the same architecture.
        subnet: what to keep.

    Returns:
        A smaller module in eval or training mode like `model`, with its dtype, on its device; its
        weights are copies.

    Raises:
        InputError: the model lacks a weight that the graph names, or has it in another shape.
    """
    graph, state = subnet.graph, model.state_dict()
    traced = graph.model.state_dict()
    kept = graph.kept_positions(subnet)
    cut: dict[str, Tensor] = {}
    for node in graph.nodes:
        for role, name in node.params.items():
            if name not in state or state[name].shape != traced[name].shape:
                raise InputError(
                    f"the model has no {name} of shape {tuple(traced[name].shape)}: it is not the "
                    "network that was traced"
                )
            rows = torch.from_numpy(kept[node.index]).to(state[name].device)
            tensor = state[name].detach()[rows]
            if (
                role == "weight"
                and node.op in ("conv", "linear")
                and not node.attrs.get("depthwise")
            ):
                tensor = tensor[:, torch.from_numpy(kept[node.inputs[0]]).to(tensor.device)]
            cut[f"{node.name}.{_SAVED_ROLES[role]}"] = tensor.contiguous()
    network = _build(_spec(graph, kept), _metadata(graph, subnet), cut)
    return network.train(model.training)


def save(
    network: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a compact network into the folder `path`: network.json and weights.safetensors.

    Args:
        network: made by `compact` or `load`.
        path: a folder; made if missing, its two files are replaced.
        metadata: plain data to store beside it, e.g. normalisation; `load` gives it back.

    Raises:
        InputError: not a compact network, or the disk is full.
    """
    if not isinstance(network, CompactNetwork):
        raise InputError(
            f"save takes a network made by rlal_fast.compact, not {type(network).__name__}"
        )
    folder = Path(path)
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    description = {
        "format": _FORMAT,
        "rlal_fast": __version__,
        "metadata": {**network.metadata, **(metadata or {})},
        "operations": network.spec,
    }
    text = json.dumps(description, indent=1, allow_nan=False)
    # lists of numbers on one line each: a person may want to read the widths
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    write_atomically(folder / _WEIGHTS_FILE, safetensors.torch.save(tensors))
    write_atomically(folder / _SPEC_FILE, text.encode())


def load(path: str | os.PathLike[str]) -> CompactNetwork:
    """Reads what `save` wrote: no pickle, no original class. In eval mode, on the CPU.

    Raises:
        InputError: the folder or one of its files is missing, damaged, or of another format.
    """
    folder = Path(path)
    try:
        description = json.loads((folder / _SPEC_FILE).read_text())
        if description["format"] != _FORMAT:
            raise InputError(
                f"the network in {folder} has format {description['format']!r}, not {_FORMAT}: "
                "read it with the version of rlal_fast that wrote it"
            )
        spec, metadata = description["operations"], description["metadata"]
        tensors = safetensors.torch.load_file(folder / _WEIGHTS_FILE)
    except OSError as error:
        raise InputError(
            f"{folder} holds no saved network ({error}): give the folder that rlal_fast.save wrote"
        ) from error
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise InputError(f"the saved network in {folder} is damaged: {error!r}") from error
    try:
        network = _build(spec, metadata, tensors)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the saved network in {folder} is damaged: {reason}") from error
    return network.eval()


def save_full(model: nn.Module, path: Path) -> None:
    """Writes all weights of an ordinary model as one safetensors file, for `rlal run --init`."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    write_atomically(path, safetensors.torch.save(tensors))


def load_full(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads weights into an ordinary model: safetensors, or a state dict saved by torch.save.

    Raises:
        InputError: no such file, not such a file, or other names or shapes than the model's.
    """
    file = Path(path)
    try:
        if file.suffix == ".safetensors":
            tensors = safetensors.torch.load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(tensors)
    except OSError as error:
        raise InputError(f"cannot read the weights {file}: {error}") from error
    except Exception as error:  # the readers raise many types, all about this file
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"the weights {file} do not fit {type(model).__name__}: {reason}"
        ) from error


def parameter_count(network: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in network.parameters())


def _build(spec: Spec, metadata: Mapping[str, Any], tensors: dict[str, Tensor]) -> CompactNetwork:
    """A network that holds `tensors` themselves: nothing is initialised, no random number drawn."""
    with torch.device("meta"):
        network = CompactNetwork(spec, metadata)
    device = next((tensor.device for tensor in tensors.values()), None)
    for name, buffer in network.named_buffers():
        if name.endswith("num_batches_tracked") and name not in tensors:
            tensors[name] = torch.zeros_like(buffer, device=device)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != given:
        missing = {name: shape for name, shape in expected.items() if given.get(name) != shape}
        unexpected = {name: shape for name, shape in given.items() if expected.get(name) != shape}
        raise KeyError(f"tensors missing: {missing}, unexpected: {unexpected}")
    network.load_state_dict(tensors, assign=True)
    return network


def _spec(graph: PrunableGraph, kept: Sequence[np.ndarray]) -> Spec:
    spec = []
    for node in graph.nodes:
        step: dict[str, Any] = {"op": node.op, "name": node.name, "inputs": list(node.inputs)}
        step.update(node.attrs)
        if node.op in ("conv", "linear"):
            step["in_channels"] = len(kept[node.inputs[0]])
            step["bias"] = "bias" in node.params
        if node.op in ("conv", "linear", "batch_norm"):
            step["out_channels"] = len(kept[node.index])
        if node.op == "pad_channels":
            step["before"], step["after"] = _kept_padding(node, kept[node.index])
        spec.append(step)
    return spec


def _kept_padding(node: Node, kept: np.ndarray) -> tuple[int, int]:
    before, after = node.attrs["before"], node.attrs["after"]
    return int((kept < before).sum()), int((kept >= node.shape[0] - after).sum())


def _metadata(graph: PrunableGraph, subnet: Subnet) -> dict[str, Any]:
    return {
        "input_shape": list(graph.nodes[0].shape),
        "widths": {
            g.name: [len(k), g.width] for g, k in zip(graph.groups, subnet.kept, strict=True)
        },
        "kept": {g.name: k.tolist() for g, k in zip(graph.groups, subnet.kept, strict=True)},
    }


def _layer(step: dict[str, Any]) -> nn.Module | None:
    if step["op"] == "conv":
        return nn.Conv2d(
            step["in_channels"],
            step["out_channels"],
            tuple(step["kernel"]),
            tuple(step["stride"]),
            tuple(step["padding"]),
            tuple(step["dilation"]),
            groups=step["out_channels"] if step["depthwise"] else 1,
            bias=step["bias"],
        )
    if step["op"] == "linear":
        return nn.Linear(step["in_channels"], step["out_channels"], step["bias"])
    if step["op"] == "batch_norm":
        return nn.BatchNorm2d(step["out_channels"], step["eps"], step["momentum"])
    return None


def _pool_arguments(step: dict[str, Any]) -> dict[str, Any]:
    return {
        "kernel_size": step["kernel"],
        "stride": step["stride"],
        "padding": step["padding"],
        "ceil_mode": step["ceil_mode"],
    }


def _add_at(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Registers `layer` under a dotted name: state-dict names stay those of the original."""
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    if last in root._modules:  # a layer inside this one came first
        for child_name, child in root.get_submodule(last).named_children():
            layer.add_module(child_name, child)
    root.add_module(last, layer)
