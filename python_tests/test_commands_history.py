"""commands/history.py: what `rlal history` shows and asks, and what `rlal run` leaves there."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import here
from past_runs import past_run, plain

from rlal_fast.history.store import HistoryStore

QUICK = ["--arch", "resnet8", "--train-limit", "60", "--epochs", "2", "--finetune-epochs", "0"]
QUICK += ["--episodes-per-epoch", "3", "--agent-updates", "2", "--threads", "1", "-q"]


def fine(*arguments: str | Path) -> str:
    status, out, err = here("history", *arguments)
    assert (status, err) == (0, "")
    return out


def refused(*arguments: str | Path) -> str:
    status, _, err = here("history", *arguments)
    assert status == 2
    assert re.fullmatch(r"error: [^\n]+\n", err)
    return err


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def store() -> HistoryStore:
    """The user's, with three runs."""
    store = HistoryStore()
    for number, arch in enumerate(("resnet8", "torchvision/mobilenet_v2", "a [b] :smile:")):
        store.add(past_run(number, days_ago=3.5 - number, arch=arch))
    return store


# -- list and show ---------------------------------------------------------------------------------


def test_an_empty_history_says_where_it_would_lie() -> None:
    out = fine("list")
    assert out == f"no past runs in {HistoryStore().path}: `rlal run` adds each that it finishes\n"
    assert not HistoryStore().path.exists()


def test_list_has_a_line_for_each(store: HistoryStore) -> None:
    heading, _, *lines, where = fine("list").splitlines()
    words = "id created, UTC network data agent pruned episodes best KiB"
    assert heading.split() == words.split()
    assert [line.split()[0] for line in lines] == [f"{number:06x}abcdef" for number in (2, 1, 0)]
    assert "a [b] :smile:" in lines[0]
    run = store.get("000001")
    assert lines[1].split() == [
        *(run.id, run.created[:10], run.created[11:16], "torchvision/mobilenet_v2", "digits"),
        *("sac", "50%", "6", f"{run.rewards.max():.2%}", "3"),
    ]
    assert where == f"3 runs in {store.path}"


@pytest.mark.parametrize("columns", [80, 100])
def test_a_narrow_terminal_folds_names_but_no_id_and_no_number(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    out = re.sub(r"\x1b\[[\d;]*m", "", fine("list"))
    assert max(map(len, out.splitlines()[:-1])) <= columns
    for run in store.runs():
        assert re.search(rf"^{run.id} .* 6 +{run.best_reward:.2%} +3 *$", out, re.M), out


def test_show_has_settings_episodes_and_rewards() -> None:
    rewards = np.array([0.25, 0.75, 0.5, 0.75, 0.875, 0.5], dtype=np.float32)
    widths = np.array([[1, 1], [4, 100], [9, 9], [4, 100], [16, 300], [7, 77]], dtype=np.int32)
    HistoryStore().add(past_run(5, rewards=rewards, widths=widths))
    out = fine("show", "0000")
    for words in ("run 000005abcdef", "digits, 100 images", "resnet8, 2 groups", "6 in 4 epochs"):
        assert words in out
    best = [line.split() for line in out.split("best episodes")[1].splitlines()[3:9]]
    assert [line[0] for line in best] == ["4", "3", "4", "3", "2", "full"]  # epochs, from 1
    assert best[0][1:] == ["87.50%", "0.00%", "16", "300"]
    assert best[1][1] == "75.00%"
    assert best[1][3:] == ["4", "100"]  # once, though it came twice
    macs = 576 * 3 * 4 + 144 * 100 * 4 + 10 * 4 * 100
    full = 576 * 3 * 16 + 144 * 300 * 16 + 10 * 4 * 300
    assert best[1][2] == f"{1 - macs / full:.2%}"
    curve = [line.split() for line in out.split("full network")[1].splitlines()[2:6]]
    assert curve == [
        ["1", "0", "10.00%"],
        ["2", "2", "75.00%", "50.00%", "30.00%"],
        ["3", "2", "75.00%", "62.50%", "50.00%"],
        ["4", "2", "87.50%", "68.75%", "62.50%"],
    ]


def test_many_epochs_are_shown_together() -> None:
    baselines = np.linspace(0, 1, 200, dtype=np.float32)
    HistoryStore().add(past_run(5, baselines=baselines))
    lines = fine("show", "000005").split("full network")[1].splitlines()[2:]
    assert [line.split()[0] for line in lines if line][:2] == ["1-17", "18-34"]
    assert lines[11].split()[0] == "188-200"


# -- export, import, prune -------------------------------------------------------------------------


def test_export_and_import(
    store: HistoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, everything = tmp_path / "some.db", tmp_path / "all.db"
    assert fine("export", "000001", "--to", some) == f"1 run written to {some}\n"
    assert fine("export", "--all", "--to", everything) == f"3 runs written to {everything}\n"
    expected = plain(store.get("000001"))
    other = tmp_path / "other.db"
    monkeypatch.setenv("RLAL_FAST_HISTORY", str(other))
    assert fine("import", some) == f"1 run taken into {other}\n"
    assert fine("import", everything) == f"2 runs taken into {other}\n"
    assert plain(HistoryStore().get("000001")) == expected
    assert "some.db is there already" in refused("export", "--all", "--to", some)
    assert "either IDs or --all" in refused("export", "--to", "x")
    assert "either IDs or --all" in refused("export", "000001", "--all", "--to", "x")
    assert "no file nowhere" in refused("import", "nowhere")


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--keep", "1"], "2"),
        (["--older-than", "3"], "21"),
        (["--older-than", "2", "--keep", "3"], "2"),
        (["--max-mib", "0"], ""),
        (["000001", "000002ab"], "0"),
    ],
    ids=str,
)
def test_prune(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch, arguments: list[str], left: str
) -> None:
    answer(monkeypatch, "n\n")
    assert "nothing was removed: it was not confirmed" in refused("prune", *arguments)
    assert len(store.runs()) == 3
    answer(monkeypatch, "y\n")
    out = fine("prune", *arguments)
    gone = 3 - len(left)
    words = "1 run" if gone == 1 else f"{gone} runs"
    assert f"Remove {words} from {store.path}? [y/N]:" in out
    assert out.endswith(f"{words} removed from {store.path}\n")
    assert "".join(run.id[5] for run in store.runs()) == left


def test_prune_without_a_question(store: HistoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "")
    assert "answer y, or give --yes" in refused("prune", "--keep", "0")
    assert "say what goes" in refused("prune", "--yes")
    assert "say what goes" in refused("prune", "000001", "--keep", "1", "--yes")
    assert "no run in" in refused("prune", "000009", "--yes")
    assert fine("prune", "--keep", "3") == f"nothing to remove from {store.path}\n"
    assert fine("prune", "--keep", "1", "--yes") == f"2 runs removed from {store.path}\n"


def test_a_damaged_history_is_one_line(store: HistoryStore) -> None:
    store.path.write_bytes(store.path.read_bytes()[:5000])
    for arguments in (["list"], ["show", "0"], ["export", "--all", "--to", "x"], ["import", "x"]):
        error = refused(*arguments)
        assert arguments[0] == "import" or f"{store.path} is damaged" in error


def test_the_command_line_stays_light(store: HistoryStore) -> None:
    code = (
        "import sys\nfrom rlal_fast.__main__ import cli\n"
        "cli.main(['history', 'list'], standalone_mode=False)\n"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 runs in" in done.stdout


# -- what a run leaves -----------------------------------------------------------------------------


def test_a_run_is_remembered_once(tmp_path: Path) -> None:
    """Also what it did before it was interrupted; --no-history then was not the last word."""
    begun = ["--out", tmp_path / "run", "--pruned-flops", "0.4", "--no-history"]
    assert here("run", *QUICK, *begun, "--max-minutes", "0")[0] == 3
    status, out, err = here("run", "--resume", tmp_path / "run", "--history")
    assert (status, err) == (0, "")
    (listed,) = HistoryStore().runs()
    assert f"in the history: {listed.id}  (rlal history show {listed.id})\n" in out
    run = HistoryStore().get(listed.id)
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert (run.arch, run.dataset, run.pruned_flops, run.agent_name) == (
        *("resnet8", "digits", 0.4, "sac"),
    )
    rewards = [reward for record in records for reward in record["rewards"]]
    assert run.rewards.tolist() == pytest.approx(rewards)
    assert run.baselines.tolist() == pytest.approx([r["reward_split_accuracy"] for r in records])
    assert run.epochs.tolist() == [0, 0, 0, 1, 1, 1]
    status, out, _ = here("run", "--resume", tmp_path / "run")
    assert status == 0
    assert "is finished" in out
    assert len(HistoryStore().runs()) == 1


def test_a_run_outlives_a_history_that_cannot_be_written(tmp_path: Path) -> None:
    history, folder = HistoryStore().path, tmp_path / "run"
    history.write_text("words")
    status, out, err = here("run", *QUICK, "--out", folder)
    assert status == 0
    assert re.fullmatch(r"the history does not have this run: [^\n]+ is no history [^\n]+\n", err)
    assert f"report: {folder / 'report.html'}" in out
    assert {"report.json", "report.html", "model"} <= set(os.listdir(folder))
    assert history.read_text() == "words"

    # as if killed just before its last file, by a version that knew of no history; and now it is
    # to leave nothing
    history.unlink()
    config = (folder / "config.yaml").read_text()
    assert "\nhistory: true\n" in config
    (folder / "config.yaml").write_text(config.replace("\nhistory: true\n", "\n"))
    (folder / "report.json").unlink()
    status, _, err = here("run", "--resume", folder, "--no-history")
    assert (status, err) == (0, "")
    assert (folder / "report.json").exists()
    assert not history.exists()
