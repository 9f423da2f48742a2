"""Compact networks and full weights on disk: without pickle, bit for bit, and damage is named."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import rlal_fast as rf
from rlal_fast.compaction import CompactNetwork, load_full, save_full

SHAPE = (3, 6, 7)
FILES = ["network.json", "weights.safetensors"]


class Local(nn.Module):
    """A class that another process cannot import."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 9, 3, padding=1)
        self.bn = nn.BatchNorm2d(9)
        self.b = nn.Conv2d(9, 7, 3, 2, padding=1, bias=False)
        self.head = nn.Linear(7 * 3 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.bn(self.a(x)))
        return self.head(nn.functional.dropout(self.b(x), 0.3, self.training).flatten(1))


@cache
def graph() -> rf.PrunableGraph:
    torch.manual_seed(2)
    model = Local()
    model(3 * torch.randn(20, *SHAPE) + 1)  # moves the statistics
    return rf.PrunableGraph.trace(model.eval(), torch.randn(1, *SHAPE), groups="all")


def small(*widths: int) -> CompactNetwork:
    return rf.compact(graph().model, graph().subnet(np.array(widths or (4, 6))))


IMAGES = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(0))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_loaded_network_has_the_same_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    network = small().to(dtype)
    rf.save(network.train(), tmp_path / "new" / "folder")
    loaded = rf.load(tmp_path / "new" / "folder")
    assert not loaded.training
    assert network.training
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert torch.equal(loaded(IMAGES.to(dtype)), network.eval()(IMAGES.to(dtype)))
    state, expected = loaded.state_dict(), network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_two_plain_files_and_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    network = small()
    rf.save(network, tmp_path)
    assert torch.equal(rf.load(tmp_path)(IMAGES), network(IMAGES))
    assert sorted(contents(tmp_path)) == FILES
    description = json.loads((tmp_path / FILES[0]).read_text())
    assert description["format"] == 1
    assert description["rlal_fast"] == rf.__version__


def test_another_process_needs_no_original_class(tmp_path: Path) -> None:
    network = small()
    rf.save(network, tmp_path / "n")
    np.save(tmp_path / "x.npy", IMAGES.numpy())
    script = (
        "import sys, numpy, torch, rlal_fast as rf; folder = sys.argv[1];"
        "network = rf.load(folder + '/n'); x = torch.from_numpy(numpy.load(folder + '/x.npy'));"
        "numpy.save(folder + '/y.npy', network(x).detach().numpy())"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)
    result = torch.from_numpy(np.load(tmp_path / "y.npy"))
    assert torch.equal(result, network(IMAGES).detach())


def test_metadata_travels_and_may_be_added(tmp_path: Path) -> None:
    rf.save(small(), tmp_path, {"normalisation": {"mean": [0.5], "std": [0.25]}, "note": "ä"})
    loaded = rf.load(tmp_path)
    assert loaded.metadata["normalisation"] == {"mean": [0.5], "std": [0.25]}
    assert loaded.metadata["note"] == "ä"
    assert loaded.metadata["widths"] == {"a": [4, 9], "b": [6, 7]}
    assert loaded.metadata["input_shape"] == [3, 6, 7]
    rf.save(loaded, tmp_path / "again")  # and nothing is lost on the way
    first = contents(tmp_path / "again")
    rf.save(rf.load(tmp_path / "again"), tmp_path / "again")
    assert contents(tmp_path / "again") == first
    rf.save(loaded, tmp_path, {"note": 2})
    assert rf.load(tmp_path).metadata["note"] == 2
    assert loaded.metadata["note"] == "ä"


def test_saving_again_replaces_both_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    rf.save(small(9, 7), tmp_path)
    narrow = small(1, 1)
    rf.save(narrow, tmp_path)
    assert torch.equal(rf.load(tmp_path)(IMAGES), narrow(IMAGES))
    assert sorted(contents(tmp_path)) == FILES


@pytest.mark.parametrize("bad", [{"x": object()}, {"x": float("nan")}], ids=["object", "nan"])
def test_what_json_cannot_hold_leaves_the_old_network(bad: dict[str, Any], tmp_path: Path) -> None:
    rf.save(small(), tmp_path)
    before = contents(tmp_path)
    with pytest.raises((TypeError, ValueError)):
        rf.save(small(1, 1), tmp_path, bad)
    assert contents(tmp_path) == before


def test_a_failed_write_leaves_the_old_network(tmp_path: Path) -> None:
    """A full disk, played by a limit on the size of files."""
    rf.save(small(), tmp_path)
    before = contents(tmp_path)
    script = (
        "import resource, signal, sys, rlal_fast as rf; network = rf.load(sys.argv[1]);"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "rf.save(network, sys.argv[1], {'changed': True})"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "InputError" in result.stderr.splitlines()[-1]
    assert {name: data for name, data in contents(tmp_path).items() if name in FILES} == before


def test_only_compact_networks_are_saved_and_only_into_folders(tmp_path: Path) -> None:
    with pytest.raises(rf.InputError, match=r"made by rlal_fast\.compact, not Local"):
        rf.save(graph().model, tmp_path / "n")
    assert not (tmp_path / "n").exists()
    (tmp_path / "file").write_text("here")
    with pytest.raises(rf.InputError, match="cannot write"):
        rf.save(small(), tmp_path / "file")


def edit_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        description = json.loads((folder / FILES[0]).read_text())
        change(description)
        (folder / FILES[0]).write_text(json.dumps(description))

    return damage


def edit_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / FILES[1])
        change(tensors)
        safetensors.torch.save_file(tensors, folder / FILES[1])

    return damage


def cut(name: str, keep: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(keep * len(data))])

    return damage


def operation(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda d: next(step for step in d["operations"] if step["op"] == kind)


CONV = operation("conv")
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda f: (f / FILES[0]).unlink(), "holds no saved network"),
    "no weights": (lambda f: (f / FILES[1]).unlink(), "holds no saved network"),
    "truncated json": (cut(FILES[0], 0.7), "is damaged"),
    "empty json": (cut(FILES[0], 0), "is damaged"),
    "a list": (lambda f: (f / FILES[0]).write_text("[]"), "is damaged"),
    "not text": (lambda f: (f / FILES[0]).write_bytes(b"\xff\xfe\x00"), "is damaged"),
    "truncated weights": (cut(FILES[1], 0.8), "is damaged"),
    "truncated header": (cut(FILES[1], 0.02), "is damaged"),
    "empty weights": (cut(FILES[1], 0), "is damaged"),
    "a huge header": (
        lambda f: (f / FILES[1]).write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
        "is damaged",
    ),
    "format 2": (edit_json(lambda d: d.update(format=2)), "has format 2, not 1: read it with"),
    "a later format": (
        lambda f: (f / FILES[0]).write_text('{"format": 7, "anything": []}'),
        "has format 7, not 1",
    ),
    "no format": (edit_json(lambda d: d.pop("format")), "is damaged: KeyError"),
    "no operations": (edit_json(lambda d: d.pop("operations")), "is damaged"),
    "operations a number": (edit_json(lambda d: d.update(operations=3)), "is damaged"),
    "operation without inputs": (edit_json(lambda d: CONV(d).pop("inputs")), "is damaged"),
    "inputs out of range": (edit_json(lambda d: CONV(d).update(inputs=[99])), "is damaged"),
    "layer without a size": (edit_json(lambda d: CONV(d).pop("kernel")), "is damaged"),
    "layer of another size": (edit_json(lambda d: CONV(d).update(out_channels=5)), "is damaged"),
    "impossible layer": (edit_json(lambda d: CONV(d).update(out_channels=-1)), "is damaged"),
    "metadata a text": (edit_json(lambda d: d.update(metadata="abc")), "is damaged"),
    "a tensor missing": (edit_weights(lambda t: t.pop("b.weight")), r"missing: \{'b.weight': "),
    "a tensor more": (
        edit_weights(lambda t: t.update(extra=torch.zeros(2))),
        r"missing: \{\}, unexpected: \{'extra': ",
    ),
    "a tensor of another shape": (
        edit_weights(lambda t: t.update({"a.bias": torch.zeros(2)})),
        r"missing: \{'a.bias': \(4,\)\}, unexpected: \{'a.bias': \(2,\)\}",
    ),
    "no tensors": (edit_weights(lambda t: t.clear()), "is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    rf.save(small(), tmp_path)
    damage, message = DAMAGE[name]
    damage(tmp_path)
    with pytest.raises(rf.InputError, match=message) as caught:
        rf.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    rf.save(small(), tmp_path)
    edit_json(lambda d: operation("relu")(d).update(op="gelu"))(tmp_path)
    with pytest.raises(rf.InputError, match=r"unknown operation 'gelu' .*: update"):
        rf.load(tmp_path)(IMAGES)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(rf.InputError, match="nowhere holds no saved network"):
        rf.load(tmp_path / "nowhere")


# -- all weights of an ordinary model --------------------------------------------------------------


def test_full_weights_go_to_disk_and_back(tmp_path: Path) -> None:
    model = graph().model
    save_full(model, tmp_path / "deep" / "full.safetensors")
    torch.save(model.state_dict(), tmp_path / "full.pt")
    for file in (tmp_path / "deep" / "full.safetensors", str(tmp_path / "full.pt")):
        fresh = Local().eval()
        assert not torch.equal(fresh(IMAGES), model(IMAGES))
        load_full(fresh, file)
        assert torch.equal(fresh(IMAGES), model(IMAGES))
        state = fresh.state_dict()
        assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())


def test_full_weights_of_a_channels_last_model(tmp_path: Path) -> None:
    model = Local().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_full(model, tmp_path / "w.safetensors")
    fresh = Local()
    load_full(fresh, tmp_path / "w.safetensors")
    assert torch.equal(fresh.b.weight, model.b.weight)


def test_full_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good, empty = tmp_path / "w.safetensors", tmp_path / "empty.pt"
    save_full(Local(), good)
    empty.touch()
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-9])
    torch.save(Local(), tmp_path / "object.pt")  # a pickled module is never executed
    torch.save([1, 2], tmp_path / "list.pt")
    fails = {
        "w.safetensors": (nn.Linear(2, 2), r"w.safetensors do not fit Linear: .*Missing key"),
        "cut.safetensors": (Local(), "cut.safetensors do not fit Local"),
        "empty.pt": (Local(), "empty.pt"),
        "object.pt": (Local(), "object.pt do not fit Local: Weights only load failed"),
        "list.pt": (Local(), "list.pt do not fit Local"),
        "none.pt": (Local(), "cannot read the weights .*none.pt"),
        "none.safetensors": (Local(), "cannot read the weights .*none.safetensors"),
    }
    for name, (model, message) in fails.items():
        with pytest.raises(rf.InputError, match=message) as caught:
            load_full(model, tmp_path / name)
        assert "\n" not in str(caught.value), name
