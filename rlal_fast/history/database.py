"""The history's file: one SQLite database, made whole or not at all, refused unless it is ours.

Several processes may use it at once: every change is one transaction, which waits for those of
others, and a process killed in one leaves the file as it was before. The rollback journal, not a
write-ahead log, keeps it: that also works on a folder that several machines share.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import platformdirs

from rlal_fast.errors import InputError

VARIABLE = "RLAL_FAST_HISTORY"  # names another file
FORMAT = 1

_APPLICATION = int.from_bytes(b"rlal", "big")
_MAGIC = b"SQLite format 3\0"
_WAIT = 30.0  # seconds for other processes; adding a run takes some tens of milliseconds
# The content lies last: what precedes it is read without it.
_SCHEMA = (
    "CREATE TABLE runs (id TEXT PRIMARY KEY NOT NULL, created TEXT NOT NULL, version TEXT NOT NULL,"
    " arch TEXT NOT NULL, dataset TEXT NOT NULL, agent_name TEXT NOT NULL,"
    " pruned_flops REAL NOT NULL, episodes INTEGER NOT NULL, best_reward REAL NOT NULL,"
    " content_sha256 TEXT NOT NULL, row_sha256 TEXT NOT NULL, content BLOB NOT NULL)",
    "CREATE TRIGGER runs_stay_as_they_are BEFORE UPDATE ON runs"
    " BEGIN SELECT RAISE(ABORT, 'a stored run stays as it is'); END",
)


def default_path() -> Path:
    """The file that RLAL_FAST_HISTORY names, else history.db in the user's data directory.

    Raises:
        InputError: the user has no home directory, so there is no such place.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named).expanduser() if named else _users_folder() / "history.db"
    if not named and not path.is_absolute():
        raise InputError(
            f"no place for the history: this user has no home directory; {VARIABLE} names a file"
        )
    return path


def exists(path: Path) -> bool:
    """Whether anything lies there, if only a link that leads nowhere.

    Raises:
        InputError: this user may not know.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return True


def create(path: Path, fill: Callable[[sqlite3.Connection], None] | None = None) -> bool:
    """Makes a history at `path` and returns True, or False if something lies there already.

    It is made and filled aside and then linked: nobody sees half of one, and of two processes the
    first wins.

    Raises:
        InputError: the folder is missing or cannot be written, or the disk is full.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        if path.parent == _users_folder():
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.is_dir():
            raise InputError(
                f"cannot write {path}: {path.parent} is no folder; make it, or choose another place"
            )
        with (
            storage_errors(path),
            closing(sqlite3.connect(aside, isolation_level=None)) as connection,
        ):
            # what a removed run took goes back to the disk
            connection.execute("PRAGMA auto_vacuum = FULL")
            with transaction(connection, write=True):
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                for statement in _SCHEMA:
                    connection.execute(statement)
                if fill is not None:
                    fill(connection)
        os.link(aside, path)  # unlike a rename, it never replaces what came meanwhile
    except FileExistsError:
        return False
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose a place that can be written"
        ) from error
    finally:
        for leftover in (aside, aside.with_name(f"{aside.name}-journal")):
            with suppress(OSError):
                leftover.unlink()
    return True


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the history that lies there, closed at the end.

    Raises:
        InputError: there is no history of a format that this version reads; or, also while it is
            used, what `storage_errors` speaks of.
    """
    _check_file(path)
    with storage_errors(path):
        address = f"{path.absolute().as_uri()}?mode=rw"  # never creates; where it must, reads only
        with closing(
            sqlite3.connect(address, uri=True, timeout=_WAIT, isolation_level=None)
        ) as connection:
            # what a file that was made to do harm could run
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            _check_kind(connection, path)
            yield connection


@contextmanager
def transaction(connection: sqlite3.Connection, *, write: bool) -> Iterator[None]:
    """All that is done inside happens at one moment, or, if it raises, not at all."""
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk may have ended it already
            connection.execute("ROLLBACK")
        raise


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite raises into an InputError that says what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise InputError(_explained(path, str(error))) from error


def _explained(path: Path, reason: str) -> str:
    # by their words: Python 3.10 does not pass on the codes
    if "locked" in reason:
        return f"{path} was in use by other processes for {_WAIT:.0f} s: try again when they end"
    if "full" in reason or "I/O" in reason:
        return f"cannot write {path} ({reason}): free some space and try again"
    if "readonly" in reason or "unable to open" in reason:
        return (
            f"cannot write {path} ({reason}): make the file and its folder writable, or let "
            f"{VARIABLE} name another file"
        )
    return damaged(path, reason)


def damaged(path: Path, reason: str) -> str:
    """The message about a file of which something is not as it was written."""
    return (
        f"the history {path} is damaged ({reason}): restore it from a copy or an export, or move "
        "it away to begin a new one"
    )


def _users_folder() -> Path:
    return platformdirs.user_data_path("rlal_fast", appauthor=False)


def _check_file(path: Path) -> None:
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file, so no history: give the path of a file")
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise InputError(f"cannot read the history {path}: {error.strerror}") from error
    if start != _MAGIC:
        what = "empty" if not start else "no SQLite database"
        raise InputError(_foreign(path, f"it is {what}"))


def _check_kind(connection: sqlite3.Connection, path: Path) -> None:
    with transaction(connection, write=False):
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        found = connection.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name")
        schema = tuple(sql for (sql,) in found)
    if application != _APPLICATION:
        raise InputError(_foreign(path, "it is the database of another application"))
    if version > FORMAT:
        raise InputError(
            f"the history {path} has format {version}, this version of rlal_fast reads {FORMAT}: "
            f"use a newer one, or let {VARIABLE} name another file"
        )
    if version != FORMAT or schema != _SCHEMA:
        raise InputError(damaged(path, "its tables are not those of a history"))


def _foreign(path: Path, reason: str) -> str:
    return (
        f"{path} is no history of rlal_fast: {reason}; move it away, or let {VARIABLE} name "
        "another file"
    )
