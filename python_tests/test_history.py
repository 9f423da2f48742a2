"""history/: what is stored comes back bit for bit, whatever else happens to the file."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from past_runs import COST, contents, flip_in_content, large, past_run, plain

from rlal_fast.errors import InputError
from rlal_fast.history import database
from rlal_fast.history.content import decode, encode
from rlal_fast.history.past_run import new_id, now
from rlal_fast.history.store import HistoryStore, _insert, _summary


@pytest.fixture
def store(tmp_path: Path) -> HistoryStore:
    return HistoryStore(tmp_path / "history.db")


# -- one run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"a": [1, (2.5, "x"), {"b": torch.ones(2, 3), 0: None}], "n": torch.tensor(3), "t": True},
        {"large": torch.linspace(-1, 1, 5000).reshape(50, 100)},
    ],
    ids=["none", "empty", "nested", "large"],
)
def test_a_run_comes_back_bit_for_bit(store: HistoryStore, state: Any) -> None:
    run = past_run(3, state=state)
    assert store.add(run) == run.id
    assert plain(store.get(run.id)) == plain(run)
    (summary,) = store.runs()
    assert (summary.id, summary.created, summary.arch) == (run.id, run.created, "resnet8")
    assert summary.episodes == 6
    assert summary.best_reward == run.rewards.max()
    assert summary.bytes == len(encode(run))


def test_widths_beyond_a_byte_and_beyond_two(store: HistoryStore) -> None:
    for number, most in enumerate((255, 256, 70_000)):
        cost = type(COST)(COST.layers, np.array([16, most], dtype=np.int64))
        widths = np.array([[1, most]] * 6, dtype=np.int32)
        store.add(past_run(number, cost=cost, widths=widths))
        assert plain(store.get(f"{number:06x}").widths) == plain(widths)


def test_2000_episodes_of_27_groups_take_little() -> None:
    source, full = np.random.default_rng(0), np.repeat([16, 32, 64], 9)
    run = past_run(
        cost=type(COST)(COST.layers, full),
        features=np.zeros((27, 2), dtype=np.float32),
        widths=source.integers(1, full + 1, (2000, 27)).astype(np.int32),
        rewards=(source.integers(0, 5001, 2000) / 5000).astype(np.float32),
        epochs=np.repeat(np.arange(200), 10).astype(np.int32),
        baselines=np.linspace(0, 1, 200, dtype=np.float32),
        state=None,
    )
    assert len(encode(run)) < 52_000  # the widths alone hold 5 bits each, 34,000 bytes in all


def array(values: Any, kind: Any = np.float32) -> Any:
    return np.array(values, dtype=kind)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "id": ({"id": "0123"}, "id='0123' must be 12 hexadecimal digits"),
    "created": ({"created": "2026-01-31 12:00"}, "created='2026-01-31 12:00' must be UTC"),
    "local time": ({"created": "2026-01-31T12:00:00.000000+02:00"}, "must be UTC"),
    "no name": ({"arch": ""}, "arch='' must be 1 to 1000 characters"),
    "half a character": ({"dataset": "a\ud800"}, "dataset=.* characters of text"),
    "budget": ({"pruned_flops": 1.0}, r"pruned_flops=1.0 must be in \[0, 1\)"),
    "nan": ({"a_max": float("nan")}, r"a_max=nan must be in \[0, 1\]"),
    "seed": ({"seed": -1}, "seed=-1 must be a whole number from 0 on"),
    "images": ({"reward_images": 0}, "reward_images=0 must be"),
    "names": (
        {"feature_names": ("a",)},
        r"features must be float32 \[2, 1\], not float32 \[2, 2\]",
    ),
    "kind": ({"rewards": np.zeros(6)}, r"rewards must be float32 \[6\], not float64 \[6\]"),
    "list": ({"widths": [[1, 1]] * 6}, r"widths must be int32 \[6, 2\], not list"),
    "fewer": ({"epochs": array([1] * 5, np.int32)}, r"epochs must be int32 \[6\], not int32 \[5\]"),
    "infinite": ({"features": array([[0, np.inf]] * 2)}, "features holds a value that is not"),
    "reward": ({"rewards": array([0.5] * 5 + [1.5])}, r"rewards\[5\] is 1.5, not in 0..1"),
    "baseline": ({"baselines": array([0, -1, 0, 0])}, r"baselines\[1\] is -1.0, not in 0..1"),
    "epoch": ({"epochs": array([4] * 6, np.int32)}, r"epochs\[0\] is 4, not in 0..3"),
    "zero": ({"widths": array([[16, 0]] * 6, np.int32)}, r"widths\[0, 1\] is 0, not in 1..300"),
    "wide": ({"widths": array([[16, 301]] * 6, np.int32)}, r"\[0, 1\] is 301, not in 1..300"),
    "nothing": (
        {"widths": np.zeros((0, 2), np.int32), "rewards": array([]), "epochs": array([], np.int32)},
        "a run of 0 episodes .* teaches nothing",
    ),
    "object": ({"agent_state": {"a": [object()]}}, r"agent_state\['a'\]\[0\] is a object"),
    "numpy": ({"agent_state": {"a": np.float64(1)}}, r"agent_state\['a'\] is a float64"),
    "key": ({"agent_state": {(1, 2): 3}}, r"agent_state has the key \(1, 2\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_no_run_can_be_is_refused(case: str) -> None:
    changes, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        past_run(**changes)


def test_content_that_is_something_else() -> None:
    whole = encode(past_run())
    for content in (b"", b"words", whole[:-40], whole[40:]):
        with pytest.raises(InputError, match="the content is not that of a run"):
            decode(content)


def test_new_ids_and_moments_fit() -> None:
    assert past_run(id=new_id(), created=now()).id != new_id()


# -- the store -------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first(store: HistoryStore) -> None:
    for number, days in enumerate((3, 1, 2, 1e-6)):
        store.add(past_run(number, days_ago=days))
    assert [run.id[:6] for run in store.runs()] == ["000003", "000001", "000002", "000000"]


def test_a_stored_run_stays_as_it_is(store: HistoryStore) -> None:
    store.add(past_run(1))
    before = contents(store)
    with pytest.raises(InputError, match="holds the run 000001abcdef already"):
        store.add(past_run(1, arch="another"))
    with (
        pytest.raises(sqlite3.IntegrityError, match="a stored run stays as it is"),
        sqlite3.connect(store.path) as connection,
    ):
        connection.execute("UPDATE runs SET arch = 'another'")
    assert contents(store) == before


def test_beginnings_of_ids(store: HistoryStore) -> None:
    for number in (0x12, 0x13, 0x20):
        store.add(past_run(number))
    assert store.get("00002").id == "000020abcdef"
    assert [run.id[:6] for run in store.find(["000020", "00001" + "3", "00002"])] == [
        "000020",
        "000013",
    ]
    with pytest.raises(InputError, match=r"several .*begin '00001': 000013abcdef, 000012abcdef;"):
        store.get("00001")
    for unknown in ("1", "", "000012abcdef0", "%"):
        with pytest.raises(InputError, match=f"no run in .* begins '{unknown}': it has 000020"):
            store.get(unknown)
    with pytest.raises(InputError, match="no run in"):
        store.remove(["000020", "ffff"])
    assert len(store.runs()) == 3
    assert store.remove(["000012", "000020abcdef"]) == ["000012abcdef", "000020abcdef"]
    assert [run.id for run in store.runs()] == ["000013abcdef"]


def test_asking_makes_no_file(store: HistoryStore) -> None:
    assert store.runs() == store.prune(keep=0) == store.remove([]) == []
    for ask in (store.get, lambda run: store.remove([run]), lambda run: store.export([run], "x")):
        with pytest.raises(InputError, match="begins 'ab': it has none yet"):
            ask("ab")
    assert list(store.path.parent.iterdir()) == []


RULES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "keep 2": ({"keep": 2}, [0, 1, 2]),
    "keep all": ({"keep": 9}, []),
    "keep none": ({"keep": 0}, [0, 1, 2, 3, 4]),
    "days": ({"older_than_days": 2.5}, [0, 1]),
    "no days": ({"older_than_days": 0}, [0, 1, 2, 3, 4]),
    "forever": ({"older_than_days": 1e300}, []),
    "nothing": ({"max_mib": 0}, [0, 1, 2, 3, 4]),
    "room for all": ({"max_mib": 1}, []),
    "the strictest": ({"keep": 4, "older_than_days": 1.5, "max_mib": 1}, [0, 1, 2]),
}


@pytest.mark.parametrize("case", RULES)
def test_prune_takes_the_oldest(store: HistoryStore, case: str) -> None:
    rules, gone = RULES[case]
    for number in (3, 0, 4, 1, 2):  # stored in any order
        store.add(past_run(number, days_ago=4 - number))
    ids = [f"{number:06x}abcdef" for number in gone]
    assert [run.id for run in store.prunable(**rules)] == ids
    assert store.prune(**rules) == ids
    assert len(store.runs()) == 5 - len(gone)


def test_prune_to_a_size_gives_the_disk_its_space_back(store: HistoryStore) -> None:
    for number in range(3):
        store.add(large(number))
    sizes = [run.bytes for run in store.runs()]
    assert len(store.prune(max_mib=(sizes[0] + sizes[1]) / 2**20)) == 1
    assert len(store.prune(max_mib=(sizes[0] + sizes[1] - 1) / 2**20)) == 1
    assert [run.seed for run in map(store.get, [run.id for run in store.runs()])] == [2]
    assert store.path.stat().st_size < 1.1 * sizes[0]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "say what goes: one of keep, older_than_days, max_mib"),
        ({"keep": -1}, "keep=-1 must be at least 0"),
        ({"max_mib": float("nan")}, "max_mib=nan must be at least 0"),
    ],
    ids=str,
)
def test_rules_that_say_nothing(store: HistoryStore, rules: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.prune(**rules)


# -- from one machine to another -------------------------------------------------------------------


def test_export_and_import(store: HistoryStore, tmp_path: Path) -> None:
    for number in range(4):
        store.add(past_run(number))
    file, other = tmp_path / "some [runs].db", HistoryStore(tmp_path / "other.db")
    assert store.export(["000002", "000000abcdef"], file) == ["000002abcdef", "000000abcdef"]
    other.add(past_run(7))
    other.add(store.get("000002"))
    assert other.import_(file) == ["000000abcdef"]
    assert other.import_(file) == []
    assert {run.id[:6] for run in other.runs()} == {"000000", "000002", "000007"}
    assert plain(other.get("000000")) == plain(store.get("000000"))
    assert HistoryStore(file).import_(store.path) == ["000001abcdef", "000003abcdef"]
    assert store.import_(store.path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "history.db",
        "other.db",
        "some [runs].db",
    ]


def test_export_replaces_nothing(store: HistoryStore, tmp_path: Path) -> None:
    store.add(past_run(1))
    (tmp_path / "thesis.txt").write_text("words")
    for file in (tmp_path / "thesis.txt", store.path, tmp_path):
        with pytest.raises(InputError, match=f"{re.escape(str(file))} is there already"):
            store.export(["000001"], file)
    with pytest.raises(InputError, match="no run to export"):
        store.export([], tmp_path / "new")
    with pytest.raises(InputError, match="missing is no folder"):
        store.export(["000001"], tmp_path / "missing" / "new")
    assert (tmp_path / "thesis.txt").read_text() == "words"
    assert sorted(os.listdir(tmp_path)) == ["history.db", "thesis.txt"]


def test_a_refused_import_changes_nothing(store: HistoryStore, tmp_path: Path) -> None:
    store.add(past_run(1))
    other = HistoryStore(tmp_path / "other.db")
    for number in (3, 2):
        other.add(past_run(number))
    other.add(past_run(1, seed=99))
    before = store.path.read_bytes()
    with pytest.raises(InputError, match=r"other.db has another run of the id 000001abcdef than"):
        store.import_(other.path)
    other.remove(["000001"])
    flip_in_content(other, "000002")
    with pytest.raises(InputError, match=r"other.db is damaged \(the content of run 000002"):
        store.import_(other.path)
    with pytest.raises(InputError, match=r"no file .*nowhere"):
        store.import_(tmp_path / "nowhere")
    assert store.path.read_bytes() == before


def test_a_sealed_run_that_cannot_be_is_not_taken_in(store: HistoryStore, tmp_path: Path) -> None:
    """Checksums that fit say nothing of who made the file."""
    run, other = past_run(1), tmp_path / "other.db"
    lying = _summary(past_run(1, arch="another"), encode(run))
    for listed, content, message in (
        (lying, encode(run), "run 000001abcdef is listed as another"),
        (_summary(run, b"PK"), b"PK", "the content is not that of a run"),
    ):
        other.unlink(missing_ok=True)
        assert database.create(other, lambda c, a=listed, b=content: _insert(c, a, b))
        with pytest.raises(InputError, match=f"other.db is damaged .*{message}"):
            store.import_(other)
    assert store.runs() == []
