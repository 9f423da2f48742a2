"""run_folder: claims, locks, atomic writes and what a full disk or a kill leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from rlal_fast.errors import InputError
from rlal_fast.run_folder import RunFolder, write_atomically

CONFIG = {"arch": "torchvision/resnet18", "dataset": "digits", "alpha": 1e-05, "hidden": [300, 300]}
ROOT = Path(__file__).resolve().parents[1]


def start_python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def point_aside_to_full_disk(path: Path) -> None:
    """The file that is written aside lands on /dev/full, which answers ENOSPC to every write."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    path.with_name(f".{path.name}.part").symlink_to("/dev/full")


def test_create_writes_config_in_order_and_open_reads_it(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "run", CONFIG)
    names = re.findall(r"^(\w+):", folder.config_path.read_text(), flags=re.MULTILINE)
    assert names == list(CONFIG)
    assert folder.config == RunFolder.open(folder.path).config == CONFIG
    assert not folder.finished
    assert folder.read_metrics() == []


def test_import_needs_no_torch() -> None:
    code = (
        "import sys, rlal_fast.run_folder\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    output, errors = start_python(code).communicate(timeout=60)
    assert output.strip() == "[]", errors


def test_default_folders_are_always_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunFolder.create(None, CONFIG).path, range(24)))
    assert len(set(made)) == 24
    for path in made:
        assert re.fullmatch(r"torchvision-resnet18-digits-\d{8}-\d{6}(-\d+)?", path.name)
        assert path.parent == Path("runs")
        assert RunFolder.open(path).config == CONFIG


def test_one_of_many_claims_an_empty_folder(tmp_path: Path) -> None:
    def claim(number: int) -> bool:
        try:
            RunFolder.create(tmp_path, {"number": number})
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(24))) == 1


def test_create_refuses_what_is_not_empty(tmp_path: Path) -> None:
    earlier = RunFolder.create(tmp_path / "run", CONFIG)
    with pytest.raises(InputError, match=r"holds another run.*rlal run --resume .*run.*--out"):
        RunFolder.create(earlier.path, {})
    assert earlier.config == RunFolder.open(earlier.path).config

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(InputError, match=r"not empty \(it holds thesis.txt\)"):
        RunFolder.create(tmp_path / "mine", CONFIG)
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]

    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="a file: give a folder"):
            RunFolder.create(path, CONFIG)


def test_create_takes_a_folder_that_a_killed_create_left(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".config.yaml.part").write_text("arch: ")
    assert RunFolder.create(tmp_path, CONFIG).config == CONFIG
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.yaml"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no config.yaml"),
        (b"a: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- a list", "got list"),
        (b"", "got NoneType"),
        (b"a: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_open_says_what_is_wrong(tmp_path: Path, text: bytes | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(InputError, match=reason) as caught:
        RunFolder.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_open_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        RunFolder.open(tmp_path / "absent")


def test_metrics_survive_append_rewrite_and_torn_lines(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    records = [{"epoch": e, "loss": 0.1 + 0.2 * e, "rewards": [1 / 3]} for e in range(3)]
    for record in records:
        folder.append_metrics(record)
    assert folder.read_metrics() == records

    whole = folder.metrics_path.read_bytes()
    folder.metrics_path.write_bytes(whole + b'{"epoch": 3, "lo')
    assert folder.read_metrics() == records
    folder.append_metrics({"epoch": 3})  # the torn line must not swallow it
    assert folder.read_metrics() == [*records, {"epoch": 3}]

    folder.rewrite_metrics(records)
    assert folder.metrics_path.read_bytes() == whole
    folder.metrics_path.write_bytes(whole + b"\0\0\0\n")
    assert folder.read_metrics() == records
    folder.metrics_path.write_bytes(b"{}\nnonsense\n{}\n")
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2"):
        folder.read_metrics()


def test_metrics_are_standard_json_even_when_training_diverged(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.append_metrics({"loss": float("nan"), "agent": {"q": float("-inf")}, "rewards": (0.5,)})
    assert folder.metrics_path.read_text() == (
        '{"loss": null, "agent": {"q": null}, "rewards": [0.5]}\n'
    )


def test_a_second_holder_is_refused(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    with folder.lock():
        code = (
            "import sys\n"
            "from rlal_fast.errors import InputError\n"
            "from rlal_fast.run_folder import RunFolder\n"
            "try:\n    RunFolder.open(sys.argv[1]).lock().__enter__()\n"
            "except InputError as error:\n    print(error)"
        )
        output, errors = start_python(code, folder.path).communicate(timeout=60)
        assert f"in use by another process (pid {os.getpid()})" in output, errors
        with pytest.raises(InputError, match="in use"), RunFolder(folder.path).lock():
            pass
    with folder.lock():
        pass


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    code = (
        "import sys, time\n"
        "from rlal_fast.run_folder import RunFolder\n"
        "with RunFolder.open(sys.argv[1]).lock():\n    print('held', flush=True); time.sleep(60)"
    )
    process = start_python(code, folder.path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"pid {process.pid}"), folder.lock():
        pass
    process.kill()
    process.communicate(timeout=60)
    with folder.lock():
        pass


def test_atomic_write_replaces_and_makes_parents(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint" / "state.pt"
    write_atomically(path, b"old")
    write_atomically(path, lambda file: torch.save({"x": torch.arange(3)}, file))
    assert torch.load(path, weights_only=True)["x"].tolist() == [0, 1, 2]
    assert os.listdir(path.parent) == ["state.pt"]


def test_atomic_write_keeps_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("no more")

    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError, match="no more"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "content",
    [
        b"new",
        b"new" * 1_000_000,
        lambda file: torch.save(torch.zeros(300_000), file),
    ],
    ids=["small", "large", "torch.save"],
)
def test_full_disk_keeps_the_old_file_and_says_how_to_continue(
    tmp_path: Path, content: object
) -> None:
    folder = RunFolder.create(tmp_path / "my run", CONFIG)
    path = folder.path / "state"
    folder.write_atomically(path, b"old")
    point_aside_to_full_disk(path)
    with pytest.raises(InputError) as caught:
        folder.write_atomically(path, content)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"no space left on device while writing {path}: "
        f"free some and continue with `rlal run --resume '{folder.path}'`"
    )
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(folder.path)) == [".lock", "config.yaml", "state"]


def test_a_writer_that_hides_the_full_disk_is_caught(tmp_path: Path) -> None:
    def hide(file: BinaryIO) -> None:
        with suppress(OSError):
            file.write(b"x" * 1_000_000)

    path = tmp_path / "file"
    point_aside_to_full_disk(path)
    with pytest.raises(InputError, match=r"no space left.*try again"):
        write_atomically(path, hide)
    assert not path.exists()


def test_disk_that_fills_up_while_appending_leaves_whole_lines(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    code = (
        "import resource, sys\n"
        "from rlal_fast.errors import InputError\n"
        "from rlal_fast.run_folder import RunFolder\n"
        "folder = RunFolder.open(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    for epoch in range(100): folder.append_metrics({'epoch': epoch, 'text': 'x' * 90})\n"
        "except InputError as error:\n    print(error)"
    )
    output, errors = start_python(code, folder.path).communicate(timeout=60)
    assert f"while writing {folder.metrics_path}: free some and continue with" in output, errors
    assert folder.metrics_path.read_bytes().endswith(b"\n")
    assert [record["epoch"] for record in folder.read_metrics()] == list(range(8))


def test_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = (
        "import sys, itertools, pathlib\n"
        "from rlal_fast.run_folder import write_atomically\n"
        "for n in itertools.count():\n"
        "    write_atomically(pathlib.Path(sys.argv[1]), bytes([n % 256]) * 2_000_000)\n"
        "    print(n, flush=True)"
    )
    for delay in (0.0, 0.003, 0.011):
        process = start_python(code, path)
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        found = path.read_bytes()
        assert found == found[:1] * 2_000_000


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied; choose a place"):
        RunFolder.create(tmp_path / "run", CONFIG)
