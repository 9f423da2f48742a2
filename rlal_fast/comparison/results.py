"""The folder of a comparison, which several processes may share.

    settings.json   what all rows have in common, and under "contenders" what only one's have;
                    another comparison is refused
    results.jsonl   one line per finished run
    .lock           whose bytes are claimed: the first to write, one per run that is under way

POSIX only (record locks).
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rlal_fast.errors import InputError
from rlal_fast.run_folder import storage_errors, write_atomically

_WRITER = 0  # the byte of .lock that a writer holds; runs have higher ones
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Which run: the key of a row."""

    agent: str
    pruned_flops: float
    episodes_per_epoch: int
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.agent}, {self.pruned_flops:.4g} of the FLOPs pruned, "
            f"P = {self.episodes_per_epoch}, seed {self.seed}"
        )


@dataclass(frozen=True)
class Row:
    """One finished run. Accuracies and rewards are in [0, 1], rounded to 6 digits.

    Attributes:
        evaluations: sub-networks that were scored.
        best_reward: of the structure found, under the last epoch's weights.
        test_accuracy: of that structure as cut, not fine-tuned; nothing was chosen by it.
        widths: kept channels of each group.
        pruned_flops_reached: the fraction of the FLOPs that it prunes.
        rewards: per epoch, of each episode in order; in joint training perhaps of a part of the
            reward images, see `racing.py`.
        structure_rewards: per epoch, of the best structure under that epoch's weights; None before
            the first episode.
        full_accuracies: per epoch, of the full network on the reward split.
        seconds: weights, validation, episodes, agent, total.
        evaluator: what scored, and on how many threads.
        commit: of the environment's RLAL_FAST_COMMIT, if that is set.
        full_test_accuracy: of the full network; None if the structure was not fine-tuned.
        finetuned_test_accuracy: of the structure after fine-tuning, likewise.
    """

    agent: str
    pruned_flops: float
    episodes_per_epoch: int
    seed: int
    evaluations: int
    best_reward: float
    test_accuracy: float
    widths: list[int]
    pruned_flops_reached: float
    rewards: list[list[float]]
    structure_rewards: list[float | None]
    full_accuracies: list[float]
    seconds: dict[str, float]
    evaluator: str
    version: str
    commit: str | None
    full_test_accuracy: float | None = None
    finetuned_test_accuracy: float | None = None

    @property
    def job(self) -> Job:
        return Job(self.agent, self.pruned_flops, self.episodes_per_epoch, self.seed)


# What is read of settings.json, whatever else is in it.
_READ = {
    "arch",
    "bn_recalibrate",
    "dataset",
    "evaluations",
    "epochs",
    "reward_images",
    "contenders",
}


class ResultsFolder:
    """The rows of one comparison. A context manager: its claims end with it.

    The locks are the process's own: open one folder once per process. Nothing is touched before
    `share` or `append`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._handle: int | None = None
        self._warned: set[int] = set()

    def __enter__(self) -> ResultsFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @property
    def results_path(self) -> Path:
        return self.path / "results.jsonl"

    @property
    def settings_path(self) -> Path:
        return self.path / "settings.json"

    def settings(self) -> dict[str, Any]:
        """What the rows have in common. Raises InputError where no comparison lies."""
        try:
            found = json.loads(self.settings_path.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{self.path} holds no comparison: give the --out of an earlier `rlal compare`"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.settings_path} ({error}): restore it") from error
        if not isinstance(found, dict):
            raise InputError(f"{self.settings_path} holds no settings: restore it")
        if missing := sorted(_READ - found.keys()):
            raise InputError(
                f"{self.settings_path} lacks {', '.join(missing)}: it is damaged or of another "
                "version of rlal_fast; restore it, or give another --out"
            )
        return found

    def share(self, settings: Mapping[str, Any]) -> None:
        """Begins a comparison with these settings, or joins one that has the same.

        Contenders may join later; each keeps its own settings. Raises InputError, naming the first
        difference, if the folder's are others.
        """
        self._check_unused()  # before a lock file is left in a stranger's folder
        ours = json.loads(json.dumps(settings))
        with self.writing():
            theirs = self.settings() if self.settings_path.exists() else ours
            if difference := _difference(ours, theirs):
                raise InputError(
                    f"{self.path} compares with {difference}: its rows would not be comparable; "
                    "give the same settings, or another --out"
                )
            both = theirs | {"contenders": theirs["contenders"] | ours["contenders"]}
            if both != theirs or not self.settings_path.exists():
                write_atomically(self.settings_path, (json.dumps(both, indent=1) + "\n").encode())

    def rows(self) -> list[Row]:
        """Every finished run once; of two rows of one run the first.

        A line that a kill has torn is left out, with a warning in the log. Raises InputError for a
        line of another version.
        """
        try:
            lines = self.results_path.read_bytes().split(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise InputError(f"cannot read {self.results_path}: {error.strerror}") from error
        found: dict[Job, Row] = {}
        for number, line in enumerate(lines, start=1):
            row = self._row(number, line) if line.strip() else None
            if row is not None:
                found.setdefault(row.job, row)
        return list(found.values())

    def append(self, row: Row) -> None:
        """Adds a line, in one write and synced. Raises InputError on a full disk."""
        line = json.dumps(dataclasses.asdict(row)).encode() + b"\n"
        with storage_errors(self.results_path), self.writing():
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            handle = os.open(self.results_path, flags, 0o666)
            try:
                if self._torn(handle):
                    line = b"\n" + line  # what was torn stays a line of its own
                if os.write(handle, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            finally:
                os.close(handle)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One process at a time: for files that are written as a whole."""
        handle = self._locks()
        with storage_errors(self.path):
            fcntl.lockf(handle, fcntl.LOCK_EX, 1, _WRITER)
        try:
            yield
        finally:
            fcntl.lockf(handle, fcntl.LOCK_UN, 1, _WRITER)

    @contextmanager
    def claim(self, job: Job) -> Iterator[bool]:
        """True if the run is this process's to make, False while another one makes it.

        The system lets go of a claim however its process ends.
        """
        name = json.dumps(dataclasses.astuple(job)).encode()
        byte = 1 + int.from_bytes(hashlib.sha256(name).digest()[:7], "big")
        handle = self._locks()
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(handle, fcntl.LOCK_UN, 1, byte)

    def _locks(self) -> int:
        if self._handle is None:
            with storage_errors(self.path):
                try:
                    self.path.mkdir(parents=True, exist_ok=True)
                except (FileExistsError, NotADirectoryError):
                    raise InputError(
                        f"{self.path} is, or lies under, a file: give a folder"
                    ) from None
                self._handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        return self._handle

    def _check_unused(self) -> None:
        if not self.path.is_dir() or self.settings_path.exists():
            return
        others = {entry.name for entry in self.path.iterdir()} - {".lock", ".settings.json.part"}
        if others:
            raise InputError(
                f"{self.path} is not empty (it holds {min(others)}) and no comparison: give "
                "another folder as --out"
            )

    @staticmethod
    def _torn(handle: int) -> bool:
        """Whether the file does not end with a whole line."""
        size = os.lseek(handle, 0, os.SEEK_END)
        return size > 0 and os.pread(handle, 1, size - 1) != b"\n"

    def _row(self, number: int, line: bytes) -> Row | None:
        try:
            found = json.loads(line)
        except ValueError:
            if number not in self._warned:
                self._warned.add(number)
                _log.warning("%s, line %d is torn: left out", self.results_path, number)
            return None
        fields = dataclasses.fields(Row)
        names = [field.name for field in fields if field.default is dataclasses.MISSING]
        missing = [name for name in names if not isinstance(found, dict) or name not in found]
        if missing:
            raise InputError(
                f"{self.results_path}, line {number} lacks {missing[0]}: it is of another version "
                "of rlal_fast; give another --out"
            )
        return Row(**{field.name: found[field.name] for field in fields if field.name in found})


def _difference(ours: Any, theirs: Any, name: str = "") -> str | None:
    """The first setting in which two trees differ, in words; contenders may be there or not."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return None if ours == theirs else f"{name}={theirs}, not {ours}"
    names = list(ours) if name == "contenders" else [*ours, *(k for k in theirs if k not in ours)]
    for key in names:
        if name == "contenders" and key not in theirs:
            continue
        inner = f"{name}.{key}" if name else key
        if found := _difference(ours.get(key), theirs.get(key), inner):
            return found
    return None
