"""checkpoint.py: what is saved comes back; what is damaged is said in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rlal_fast import checkpoint
from rlal_fast.errors import InputError
from rlal_fast.run_folder import RunFolder

STATE: dict[str, Any] = {
    "joint": {"weights": torch.arange(35.0).view(5, 7), "seconds": {"total": 0.1 + 0.2}},
    "finetune": None,
    "records": [{"epoch": 0, "rewards": [1 / 3, 0.5], "phase": "warmup", "ok": True}],
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {"seed": 0})


def file_of(folder: RunFolder) -> Path:
    (path,) = folder.checkpoint_dir.iterdir()
    return path


def stored(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_no_checkpoint_is_none(folder: RunFolder) -> None:
    assert checkpoint.load(folder) is None
    folder.checkpoint_dir.mkdir()
    assert checkpoint.load(folder) is None


def test_the_last_one_comes_back(folder: RunFolder) -> None:
    checkpoint.save(folder, {"joint": "earlier"})
    checkpoint.save(folder, STATE)
    loaded = checkpoint.load(folder)
    assert loaded is not None
    assert torch.equal(loaded["joint"]["weights"], STATE["joint"]["weights"])
    assert loaded["joint"]["seconds"] == {"total": 0.1 + 0.2}
    assert loaded["records"] == STATE["records"]
    assert loaded["finetune"] is None
    assert len(os.listdir(folder.checkpoint_dir)) == 1


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_pickled_code_is_not_run(folder: RunFolder, tmp_path: Path) -> None:
    checkpoint.save(folder, STATE)
    mark = tmp_path / "bang"
    file_of(folder).write_bytes(stored({"format": 2, "joint": Bomb(mark)}))
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.load(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x80\x02.",
        b"PK\x03\x04",
        bytes(range(256)),
        stored(torch.zeros(3)),
        stored([1, 2]),
        stored({"joint": {}}),
        stored(None),
    ],
    ids=["empty", "text", "pickle", "zip", "noise", "tensor", "list", "no_format", "none"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_one_is_said_in_one_line(folder: RunFolder, content: bytes) -> None:
    checkpoint.save(folder, STATE)
    path = file_of(folder)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read \(\w+.*\): delete it") as caught:
        checkpoint.load(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torn_one_is_refused_wherever_it_ends(folder: RunFolder) -> None:
    checkpoint.save(folder, STATE)
    path = file_of(folder)
    whole = path.read_bytes()
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match="cannot be read"):
            checkpoint.load(folder)


def test_another_format_is_named(folder: RunFolder) -> None:
    checkpoint.save(folder, STATE)
    file_of(folder).write_bytes(stored({**STATE, "format": 1}))
    with pytest.raises(InputError, match="has format 1, this version reads 5"):
        checkpoint.load(folder)


def test_a_full_disk_keeps_the_old_one(folder: RunFolder) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    checkpoint.save(folder, STATE)
    path = file_of(folder)
    path.with_name(f".{path.name}.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"no space left .*rlal run --resume"):
        checkpoint.save(folder, {"joint": torch.zeros(300_000)})
    loaded = checkpoint.load(folder)
    assert loaded is not None
    assert loaded["records"] == STATE["records"]
