"""HistoryStore: past runs in one file, which several processes may use at once (method.md §10)."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from rlal_fast.errors import InputError
from rlal_fast.history import database

if TYPE_CHECKING:
    from rlal_fast.history.past_run import PastRun

_MIB = 2**20
_SHOWN = 8  # ids in a message
# The table's columns but for the last, in the order of RunSummary, whose last field is the size.
_COLUMNS = (
    "id, created, version, arch, dataset, agent_name, pruned_flops, episodes, best_reward, "
    "content_sha256"
)
_LIST = f"SELECT {_COLUMNS}, length(content), row_sha256 FROM runs"
_INSERT = f"INSERT INTO runs ({_COLUMNS}, row_sha256, content) VALUES ({', '.join('?' * 12)})"


@dataclass(frozen=True)
class RunSummary:
    """What a list shows of a stored run; the fields it shares with PastRun mean the same."""

    id: str
    created: str
    version: str
    arch: str
    dataset: str
    agent_name: str
    pruned_flops: float
    episodes: int
    best_reward: float
    sha256: str  # of its content
    bytes: int  # that its content takes in the file


class HistoryStore:
    """The past runs of a user. A stored run never changes; it can be removed.

    Nothing is opened or made before the first call. Every method may raise InputError: the file is
    damaged, of another application or of a newer version, its folder is missing or cannot be
    written, or the disk is full. What it was about then is as it was before.

    Args:
        path: the file; None: the one that RLAL_FAST_HISTORY names, else history.db in the user's
            data directory. The first `add` or `import_` makes it.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = database.default_path() if path is None else Path(path)

    def __repr__(self) -> str:
        return f"HistoryStore({str(self.path)!r})"

    def add(self, run: PastRun) -> str:
        """Stores `run` and returns its id. Raises InputError if there is a run of that id."""
        from rlal_fast.history.content import encode  # numpy and torch: a list does without

        content = encode(run)
        with self._changing() as connection:
            if connection.execute("SELECT 1 FROM runs WHERE id = ?", (run.id,)).fetchone():
                raise InputError(f"{self.path} holds the run {run.id} already, and a run stays")
            _insert(connection, _summary(run, content), content)
        return run.id

    def runs(self) -> list[RunSummary]:
        """All runs, newest first; none if there is no file yet."""
        with self._reading() as connection:
            return [] if connection is None else _summaries(connection, self.path)

    def find(self, run_ids: Iterable[str]) -> list[RunSummary]:
        """The runs of these ids (or unique beginnings), in this order, each once.

        Raises:
            InputError: one of them means no run, or several.
        """
        with self._reading() as connection:
            return self._resolved(connection, list(run_ids))

    def get(self, run_id: str) -> PastRun:
        """The run of this id, or of the only one that begins so.

        Raises:
            InputError: none does, or several do; its content is not what was stored.
        """
        with self._reading() as connection:
            (found,) = self._resolved(connection, [run_id])
            assert connection is not None  # else nothing was found
            content = _content(connection, self.path, found)
        return _decoded(found, content, self.path)

    def remove(self, run_ids: Iterable[str]) -> list[str]:
        """Removes these runs (ids or unique beginnings), all or none, and returns their ids."""
        wanted = list(run_ids)
        if not (wanted and database.exists(self.path)):
            return [run.id for run in self._resolved(None, wanted)]  # makes no file to say so
        with self._changing() as connection:
            return _delete(connection, self._resolved(connection, wanted))

    def prune(
        self,
        keep: int | None = None,
        older_than_days: float | None = None,
        max_mib: float | None = None,
    ) -> list[str]:
        """Removes what `prunable` names, oldest first, and returns the ids."""
        if not self.prunable(keep, older_than_days, max_mib):
            return []
        with self._changing() as connection:
            runs = _summaries(connection, self.path)
            return _delete(connection, _prunable(runs, keep, older_than_days, max_mib))

    def prunable(
        self,
        keep: int | None = None,
        older_than_days: float | None = None,
        max_mib: float | None = None,
    ) -> list[RunSummary]:
        """The runs that one of the rules is against, oldest first.

        Args:
            keep: only so many of the newest stay.
            older_than_days: what was stored longer ago goes.
            max_mib: the oldest go until the content of the others takes at most this.

        Raises:
            InputError: no rule, or a negative one.
        """
        rules = {"keep": keep, "older_than_days": older_than_days, "max_mib": max_mib}
        if all(value is None for value in rules.values()):
            raise InputError(f"say what goes: one of {', '.join(rules)}")
        for name, value in rules.items():
            if value is not None and not value >= 0:  # nan is not
                raise InputError(f"{name}={value} must be at least 0")
        return _prunable(self.runs(), keep, older_than_days, max_mib)

    def export(self, run_ids: Iterable[str], file: Path | str) -> list[str]:
        """Writes these runs (ids or unique beginnings) to a new file and returns their ids.

        The file is a history of its own: `import_` reads it, and RLAL_FAST_HISTORY may name it.

        Raises:
            InputError: no run is named, or `file` is there already.
        """
        wanted, file = list(run_ids), Path(file)
        if not wanted:
            raise InputError("there is no run to export: name one, see `rlal history list`")
        with self._reading() as connection:
            found = self._resolved(connection, wanted)
            assert connection is not None  # else nothing was found

            def fill(target: sqlite3.Connection) -> None:
                for run in found:
                    _insert(target, run, _content(connection, self.path, run))

            if database.exists(file) or not database.create(file, fill):
                raise InputError(f"{file} is there already: give the name of a new file")
        return [run.id for run in found]

    def import_(self, file: Path | str) -> list[str]:
        """Takes in the runs of an exported file and returns the ids of those that were not here.

        Raises:
            InputError: one of them is damaged, or differs from the run of that id that is here;
                nothing is taken in.
        """
        source = HistoryStore(file)
        with source._reading() as theirs:  # which stands still meanwhile
            if theirs is None:
                raise InputError(f"no file {file}: give one that `rlal history export` wrote")
            offered = _summaries(theirs, source.path)[::-1]
            for run in offered:  # before ours is locked: this takes its time
                _decoded(run, _content(theirs, source.path, run), source.path)
            if not self._missing(offered, self.runs(), file):
                return []  # and nothing is made or locked
            with self._changing() as ours:
                new = self._missing(offered, _summaries(ours, self.path), file)
                for run in new:
                    _insert(ours, run, _content(theirs, source.path, run))
        return [run.id for run in new]

    def _missing(
        self, offered: Sequence[RunSummary], runs: Sequence[RunSummary], file: Path | str
    ) -> list[RunSummary]:
        """Those of `offered`, found in `file`, that are not among our `runs`."""
        here = {run.id: run for run in runs}
        for run in offered:
            if run != here.get(run.id, run):
                raise InputError(
                    f"{file} has another run of the id {run.id} than {self.path}: one of them is "
                    "not what was stored first"
                )
        return [run for run in offered if run.id not in here]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """One moment of the file; None if there is none yet."""
        if not database.exists(self.path):
            yield None
            return
        with (
            database.opened(self.path) as connection,
            database.transaction(connection, write=False),
        ):
            yield connection

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        if not database.exists(self.path):
            database.create(self.path)
        with (
            database.opened(self.path) as connection,
            database.transaction(connection, write=True),
        ):
            yield connection

    def _resolved(
        self, connection: sqlite3.Connection | None, wanted: Sequence[str]
    ) -> list[RunSummary]:
        """The runs whose ids `wanted` begin, each once, in that order."""
        runs = [] if connection is None else _summaries(connection, self.path)
        found: dict[str, RunSummary] = {}
        for word in wanted:
            fitting = [run for run in runs if word and run.id.startswith(word)]
            if len(fitting) > 1:
                raise InputError(
                    f"several runs in {self.path} begin {word!r}: {_named(fitting)}; say more of it"
                )
            if not fitting:
                there = f"it has {_named(runs)}" if runs else "it has none yet"
                raise InputError(f"no run in {self.path} begins {word!r}: {there}")
            found[fitting[0].id] = fitting[0]
        return list(found.values())


def _named(runs: Sequence[RunSummary]) -> str:
    more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
    return ", ".join(run.id for run in runs[:_SHOWN]) + more


def _prunable(
    runs: Sequence[RunSummary], keep: int | None, days: float | None, max_mib: float | None
) -> list[RunSummary]:
    """Of runs, newest first, those to remove, oldest first."""
    stay = len(runs) if keep is None else min(keep, len(runs))
    if days is not None:
        # an age, not a date: there are more days than dates
        ages = [datetime.now(timezone.utc) - datetime.fromisoformat(run.created) for run in runs]
        young = [age / timedelta(days=1) <= days for age in ages]
        stay = min(stay, young.index(False) if False in young else stay)
    if max_mib is not None:
        while sum(run.bytes for run in runs[:stay]) > max_mib * _MIB:
            stay -= 1
    return list(runs[stay:])[::-1]


# -- rows ------------------------------------------------------------------------------------------


def _summary(run: PastRun, content: bytes) -> RunSummary:
    return RunSummary(
        id=run.id,
        created=run.created,
        version=run.version,
        arch=run.arch,
        dataset=run.dataset,
        agent_name=run.agent_name,
        pruned_flops=float(run.pruned_flops),
        episodes=len(run.rewards),
        best_reward=float(run.rewards.max()),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )


def _insert(connection: sqlite3.Connection, run: RunSummary, content: bytes) -> None:
    *columns, _ = astuple(run)
    connection.execute(_INSERT, (*columns, _seal(run), content))


def _delete(connection: sqlite3.Connection, runs: Sequence[RunSummary]) -> list[str]:
    connection.executemany("DELETE FROM runs WHERE id = ?", [(run.id,) for run in runs])
    return [run.id for run in runs]


def _summaries(connection: sqlite3.Connection, path: Path) -> list[RunSummary]:
    """Of all runs in the file `path`, newest first, each checked against its checksum."""
    runs = []
    with database.storage_errors(path):
        for *columns, seal in connection.execute(f"{_LIST} ORDER BY created DESC, rowid DESC"):
            run = RunSummary(*columns)
            if seal != _seal(run):
                raise InputError(
                    database.damaged(path, f"the row of run {run.id!r:.20} is not as written")
                )
            runs.append(run)
    return runs


def _content(connection: sqlite3.Connection, path: Path, run: RunSummary) -> bytes:
    """The content of a run that is in the file `path`, checked against its checksum."""
    with database.storage_errors(path):
        row = connection.execute("SELECT content FROM runs WHERE id = ?", (run.id,)).fetchone()
    content = row[0] if row else None
    if not isinstance(content, bytes) or hashlib.sha256(content).hexdigest() != run.sha256:
        raise InputError(
            database.damaged(path, f"the content of run {run.id} is not what was written")
        )
    return content


def _decoded(summary: RunSummary, content: bytes, path: Path) -> PastRun:
    from rlal_fast.history.content import decode

    try:
        run = decode(content)
    except InputError as error:
        raise InputError(database.damaged(path, f"run {summary.id}: {error}")) from error
    if _summary(run, content) != summary:
        raise InputError(database.damaged(path, f"run {summary.id} is listed as another"))
    return run


def _seal(run: RunSummary) -> str:
    """A checksum of what is listed, the checksum of the content included."""
    return hashlib.sha256(json.dumps(astuple(run), default=repr).encode()).hexdigest()
