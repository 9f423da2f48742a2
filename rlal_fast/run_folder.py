"""The folder of one run: what lies where, and writes that a kill or a full disk cannot spoil.

    config.yaml       what was asked, written first
    metrics.jsonl     one record per epoch
    tensorboard/      the same as scalars
    checkpoint/       where --resume goes on
    model/            the compact network
    report.png, report.html, report.json     written last, in this order

Nothing here imports torch: the command line claims the folder before the slow imports. POSIX only
(flock).
"""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from rlal_fast.errors import InputError

Content = bytes | Callable[[BinaryIO], None]

_CONFIG = "config.yaml"
_LOCK = ".lock"
# What a killed `create` may have left: a folder with nothing else is still an empty one.
_LEFTOVERS = frozenset({_LOCK, f".{_CONFIG}.part"})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class RunFolder:
    """One run's folder. The constructor touches nothing: see `create` and `open`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._config: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, out: Path | str | None, config: Mapping[str, Any]) -> RunFolder:
        """Claims a folder for a new run and writes its config.yaml (plain values, order kept).

        Without `out` the folder is runs/<arch>-<dataset>-<date>-<time>[-n] under the current
        directory and always a new one, however many processes ask at once.

        Raises InputError if `out` holds anything already or cannot be written.
        """
        folder = cls(_new_folder(config) if out is None else out)
        if out is not None:
            with storage_errors(folder.path):
                _make_folder(folder.path)
        folder._check_unused()
        with folder.lock():
            folder._check_unused()  # another process may have come between look and lock
            text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            folder.write_atomically(folder.config_path, text.encode())
        return folder

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The folder of an earlier run. Raises InputError if it or its config cannot be read."""
        folder = cls(path)
        if not folder.path.is_dir():
            raise InputError(
                f"no run folder {folder.path}: give the folder of an earlier `rlal run`"
            )
        folder._config = folder._read_config()
        return folder

    @property
    def config(self) -> dict[str, Any]:
        """What config.yaml says, as yaml reads it (tuples have become lists)."""
        if self._config is None:
            self._config = self._read_config()
        return self._config

    @property
    def config_path(self) -> Path:
        return self.path / _CONFIG

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoint_dir(self) -> Path:
        return self.path / "checkpoint"

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    @property
    def tensorboard_dir(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report_path(self) -> Path:
        return self.path / "report.json"

    @property
    def finished(self) -> bool:
        """Whether the run is complete: report.json is the last file that a run writes."""
        return self.report_path.is_file()

    def discard(self) -> None:
        """Takes back `create`, for a run that was refused before it did anything."""
        for path in (self.config_path, self.metrics_path, self.path / _LOCK):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            self.path.rmdir()  # stays where somebody put something into it

    def write_atomically(self, path: Path, content: Content) -> None:
        """`write_atomically`, whose InputError on a full disk says how to go on with this run."""
        with storage_errors(path, resume=self.path if self.config_path.is_file() else None):
            _replace(path, content)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl, synced; if that fails the file is as it was.

        What JSON lacks (nan, infinities) becomes null. Raises InputError on a full disk.
        """
        line = _json_line(record)
        with storage_errors(self.metrics_path, resume=self.path):
            _append_line(self.metrics_path, line)

    def rewrite_metrics(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replaces metrics.jsonl: a resumed run keeps only what its checkpoint knows."""
        self.write_atomically(self.metrics_path, b"".join(map(_json_line, records)))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; none if there is no file; a torn last line is left out.

        Raises InputError if an earlier line is not a JSON object.
        """
        try:
            lines = self.metrics_path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"cannot read {self.metrics_path}: {_reason(error)}") from error
        lines.pop()  # what follows the last newline: nothing, or the start of a torn line
        records: list[dict[str, Any]] = []
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                records.append(record)
            elif number < len(lines):  # the last one may be the wreck of a power cut
                raise InputError(
                    f"{self.metrics_path}, line {number}: expected one JSON object per line; "
                    "restore the file or remove that line"
                )
        return records

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process; the system lets go of it however the process ends.

        Raises InputError if another process (or another holder in this one) works on the run.
        """
        lock_path = self.path / _LOCK
        with storage_errors(lock_path):
            handle = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._acquire(handle, lock_path)
            yield
        finally:
            os.close(handle)

    def _acquire(self, handle: int, lock_path: Path) -> None:
        with storage_errors(lock_path):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
                raise InputError(
                    f"{self.path} is in use by another process (pid {holder}): "
                    "wait until it ends, stop it, or use another --out"
                ) from None
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())

    def _check_unused(self) -> None:
        try:
            names = {entry.name for entry in self.path.iterdir()} - _LEFTOVERS
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {_reason(error)}") from error
        if _CONFIG in names:
            raise InputError(
                f"{self.path} holds another run: go on with it by "
                f"`rlal run --resume {shlex.quote(str(self.path))}`, "
                "or give another --out"
            )
        if names:
            raise InputError(
                f"{self.path} is not empty (it holds {min(names)}): give another folder as --out"
            )

    def _read_config(self) -> dict[str, Any]:
        try:
            config = yaml.safe_load(self.config_path.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{self.path} has no {_CONFIG}, so it is no run's folder: "
                "give the folder of an earlier `rlal run`"
            ) from None
        except OSError as error:
            raise InputError(f"cannot read {self.config_path}: {_reason(error)}") from error
        except yaml.YAMLError as error:
            first_line = str(error).splitlines()[0]
            raise InputError(
                f"cannot read {self.config_path}: not valid YAML ({first_line}); restore it"
            ) from error
        if not isinstance(config, dict):
            raise InputError(
                f"cannot read {self.config_path}: expected settings as `name: value` lines, "
                f"got {type(config).__name__}; restore it"
            )
        return config


def write_atomically(path: Path, content: Content) -> None:
    """Replaces `path` as a whole: a crash at any moment leaves the old file or the new one.

    `content` is the bytes, or a function that writes them to the open binary file it is given.
    Written aside as `.<name>.part`, synced and renamed; missing parent folders are made. One writer
    per path at a time (`RunFolder.lock`): the fixed name lets the next write reclaim what a killed
    one left.

    Raises InputError if the disk is full or the place cannot be written; the old file stays whole.
    """
    with storage_errors(path):
        _replace(path, content)


@contextmanager
def storage_errors(path: Path, *, resume: Path | None = None) -> Iterator[None]:
    """Turns an OSError while writing `path` into an InputError that says what to do.

    With `resume`, the advice for a full disk is to continue that run.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            then = "try again"
            if resume is not None:
                then = f"continue with `rlal run --resume {shlex.quote(str(resume))}`"
            message = f"{_reason(error)} while writing {path}: free some and {then}"
        else:
            message = f"cannot write {path}: {_reason(error)}; choose a place that can be written"
        raise InputError(message) from error


class _File(io.FileIO):
    """Remembers the first failed write: torch.save hides it behind a RuntimeError."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise


def _replace(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    try:
        _write_synced(aside, content)
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    _sync_folder(path.parent)


def _write_synced(path: Path, content: Content) -> None:
    raw = _File(path, "w")
    try:
        with io.BufferedWriter(raw) as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            if raw.failure is not None:  # the function swallowed it: what it wrote is not whole
                raise raw.failure
            os.fsync(file.fileno())
    except Exception as error:
        if raw.failure is not None and raw.failure is not error:
            raise raw.failure from error
        raise


def _append_line(path: Path, line: bytes) -> None:
    with io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+") as file:
        end = _end_of_whole_lines(file)
        try:
            file.truncate(end)
            file.seek(end)
            left = memoryview(line)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                file.truncate(end)
            raise


def _end_of_whole_lines(file: io.FileIO) -> int:
    """Where to append: behind the last newline, so that a torn line never glues to the next one."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return size
    file.seek(0)
    return file.readall().rfind(b"\n") + 1


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json_line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(_finite(record), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _new_folder(config: Mapping[str, Any]) -> Path:
    names = [str(config.get(key, key)) for key in ("arch", "dataset")]
    words = [*names, datetime.now().strftime("%Y%m%d-%H%M%S")]
    stem = "-".join(re.sub(r"[^\w.]+", "-", word).strip("-") for word in words)
    with storage_errors(Path("runs")):
        _make_folder(Path("runs"))
        for number in itertools.count(1):
            path = Path("runs", stem if number == 1 else f"{stem}-{number}")
            with suppress(FileExistsError):
                path.mkdir()
                return path
    raise AssertionError("unreachable: the count has no end")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{path} is, or lies under, a file: give a folder as --out") from None


def _reason(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return reason[:1].lower() + reason[1:]
