"""history/: files that are damaged, places that cannot be written, and several processes."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from past_runs import contents, flip_in_content, large, past_run

from rlal_fast.errors import InputError
from rlal_fast.history import database
from rlal_fast.history.content import encode
from rlal_fast.history.store import HistoryStore, _insert, _summary

FORK = multiprocessing.get_context("fork")  # another process, without seconds of imports


@pytest.fixture
def store(tmp_path: Path) -> HistoryStore:
    return HistoryStore(tmp_path / "history.db")


# -- files that are damaged, or something else -----------------------------------------------------


@pytest.mark.parametrize("place", [0, 100, 700, -20])
def test_a_flipped_bit_in_a_content(store: HistoryStore, tmp_path: Path, place: int) -> None:
    store.add(past_run(1))
    store.add(past_run(2))
    flip_in_content(store, "000001", place % len(encode(past_run(1))))
    for use in (store.get, lambda run: store.export([run], tmp_path / "new")):
        with pytest.raises(InputError, match=r"history.db is damaged \(the content of run 000001a"):
            use("000001")
    assert not (tmp_path / "new").exists()
    assert store.get("000002").seed == 2
    assert len(store.runs()) == 2
    assert store.remove(["000001"]) == ["000001abcdef"]


def test_a_changed_word_in_the_list(store: HistoryStore) -> None:
    store.add(past_run(1))
    data = store.path.read_bytes()
    assert data.count(b"digits") == 1
    for word in (b"digitz", b"digit\xff"):
        store.path.write_bytes(data.replace(b"digits", word))
        for use in (store.runs, lambda: store.get("000001"), lambda: store.prune(keep=0)):
            with pytest.raises(InputError, match=r"history.db is damaged"):
                use()


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (id TEXT PRIMARY KEY, content BLOB)")
        connection.execute("INSERT INTO runs VALUES ('000001abcdef', x'00')")


def written(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with sqlite3.connect(path) as connection:
            connection.executescript(statement)

    return change


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xaa" * (path.stat().st_size - 100))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda path: path.write_text("words"), "is no history .* no SQLite database; move"),
    "empty": (lambda path: path.write_bytes(b""), "is no history of rlal_fast: it is empty"),
    "half": (lambda path: os.truncate(path, path.stat().st_size // 2), "is damaged"),
    "a page less": (lambda path: os.truncate(path, path.stat().st_size - 4096), "is damaged"),
    "the start": (lambda path: os.truncate(path, 60), "is no history|is damaged"),
    "overwritten": (overwritten, "is damaged .*restore it from a copy or an export"),
    "foreign": (lambda path: (path.unlink(), foreign(path)), "database of another application"),
    "newer": (written("PRAGMA user_version = 2"), "has format 2, this version .* reads 1: use a n"),
    "other tables": (written("CREATE TABLE more (a)"), "its tables are not those of a history"),
    "no tables": (written("DROP TABLE runs"), "its tables are not those of a history"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
    "dead link": (lambda path: (path.unlink(), path.symlink_to("no")), "is not a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_no_history_are_refused_and_kept(store: HistoryStore, case: str) -> None:
    store.add(large(1))
    other = HistoryStore(store.path.with_name("other.db"))
    other.add(past_run(5))
    spoil, message = BAD[case]
    spoil(store.path)
    before = store.path.read_bytes() if store.path.is_file() else b""
    for use in (
        store.runs,
        lambda: store.get("000001"),
        lambda: store.add(past_run(2)),
        lambda: store.remove(["000001"]),
        lambda: store.prune(keep=0),
        lambda: store.import_(other.path),
        lambda: other.import_(store.path),
    ):
        with pytest.raises(InputError, match=message) as refused:
            use()
        assert str(store.path) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert (store.path.read_bytes() if store.path.is_file() else b"") == before
    assert len(other.runs()) == 1
    assert sorted(os.listdir(store.path.parent)) == ["history.db", "other.db"]


# -- where it lies ---------------------------------------------------------------------------------


def test_the_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAL_FAST_HISTORY", str(tmp_path / "a.db"))
    assert HistoryStore().path == tmp_path / "a.db"
    assert HistoryStore("b.db").path == Path("b.db")
    monkeypatch.setenv("RLAL_FAST_HISTORY", str(tmp_path / "none" / "a.db"))
    with pytest.raises(InputError, match=r"none/a.db: .*none is no folder; make it"):
        HistoryStore().add(past_run())
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has its own place, of its own variable")
def test_without_it_the_users_data_directory_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RLAL_FAST_HISTORY")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert HistoryStore().runs() == []
    assert os.listdir(tmp_path) == []
    HistoryStore().add(past_run())
    assert HistoryStore().path == tmp_path / "share" / "rlal_fast" / "history.db"
    assert len(HistoryStore().runs()) == 1


def test_a_list_needs_neither_torch_nor_numpy(store: HistoryStore) -> None:
    store.add(past_run())
    code = (
        "import sys; from rlal_fast.history.store import HistoryStore\n"
        "assert len(HistoryStore(sys.argv[1]).runs()) == 1\n"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    call = [sys.executable, "-c", code, store.path]
    assert subprocess.run(call, check=True, capture_output=True, text=True).stdout == "[]\n"


# -- several processes, and ends of all kinds ------------------------------------------------------


def in_child(work: Callable[[], Any]) -> str:
    """What `work` came to in another process: its result, or its InputError, as text."""
    ours, theirs = FORK.Pipe(duplex=False)

    def child() -> None:
        try:
            theirs.send(str(work()))
        except InputError as error:
            theirs.send(str(error))

    process = FORK.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return str(ours.recv())


def add_many(path: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        HistoryStore(path).add(past_run(number))
        assert HistoryStore(path).get(f"{number:06x}").seed == number


def test_several_processes_write_and_read_at_once(store: HistoryStore) -> None:
    """They also all find that there is no file yet."""
    processes = [FORK.Process(target=add_many, args=(store.path, 100 * k, 12)) for k in range(4)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        for run in store.runs()[:1]:
            assert store.get(run.id).arch == "resnet8"
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(contents(store)) == sorted(
        f"{100 * k + i:06x}abcdef" for k in range(4) for i in range(12)
    )
    assert os.listdir(store.path.parent) == ["history.db"]


def test_killed_again_and_again_while_it_adds(store: HistoryStore) -> None:
    known: dict[str, Any] = {}
    for attempt in range(5):
        first = 1000 * (attempt + 1)
        process = FORK.Process(target=add_many, args=(store.path, first, 500))
        process.start()
        deadline = time.monotonic() + 60
        while len(store.runs()) < len(known) + 2:
            assert time.monotonic() < deadline
        time.sleep(0.005 * attempt)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        now_there = contents(store)
        assert known.items() <= now_there.items()
        assert len(now_there) >= len(known) + 2
        known = now_there
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_killed_with_half_a_run_in_the_file(store: HistoryStore) -> None:
    store.add(past_run(1))
    before = contents(store)
    run = large(2)
    content = encode(run)

    def half() -> None:
        with store._changing() as connection:
            connection.execute("PRAGMA cache_size = 10")  # so that pages go to the file early
            _insert(connection, _summary(run, content), content)
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=half)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    journal = store.path.with_name("history.db-journal")
    assert journal.stat().st_size > 0
    assert store.path.stat().st_size > len(content) // 2
    assert contents(store) == before
    assert not journal.exists()
    store.add(run)
    assert len(store.runs()) == 2


def test_a_store_in_use_for_too_long(store: HistoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(past_run(1))
    monkeypatch.setattr(database, "_WAIT", 0.05)
    with store._changing():
        assert len(store.runs()) == 1  # reading goes on
        with pytest.raises(InputError, match=r"history.db was in use by other processes for"):
            store.add(past_run(2))
    store.add(past_run(2))


@pytest.mark.parametrize("stage", ["new", "another"])
def test_a_full_disk(store: HistoryStore, stage: str) -> None:
    """A file may not grow beyond a limit: for SQLite it is as if the disk were full."""
    if stage == "another":
        store.add(past_run(1))
    before = contents(store)

    def add() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return store.add(large(2))

    message = in_child(add)
    assert re.search(r"cannot write .*history.db \(.*\): free some space and try again", message)
    assert contents(store) == before
    store.add(large(2))
    assert os.listdir(store.path.parent) == ["history.db"]


def test_a_folder_that_cannot_be_written() -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own is closed to others
    store = HistoryStore(folder / "history.db")
    try:
        store.add(past_run(1))
        folder.chmod(0o555)

        def use(path: Path) -> str:
            if os.geteuid() == 0:
                os.setuid(65534)  # root writes anywhere
            there = HistoryStore(path)
            assert len(there.runs()) == (path == store.path)
            return there.add(past_run(2))

        for path in (store.path, folder / "new.db"):
            message = in_child(lambda path=path: use(path))
            assert re.search(f"cannot write {re.escape(str(path))}", message), message
        assert os.listdir(folder) == ["history.db"]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
