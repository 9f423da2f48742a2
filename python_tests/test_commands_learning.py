"""`rlal run --from-history` and `rlal compare --history`: which past runs they are given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from command import here
from known_rewards import finished, search
from past_runs import past_run

from rlal_fast import compaction, models
from rlal_fast.agents import SACConfig
from rlal_fast.commands.history import check_learned, recall
from rlal_fast.comparison import CONTENDERS, Plan, ResultsFolder
from rlal_fast.errors import InputError
from rlal_fast.history.store import HistoryStore

QUICK = ["run", "--arch", "resnet8", "--train-limit", "60", "--epochs", "1", "--threads", "1"]
QUICK += ["--search-epochs", "2", "--warmup-epochs", "0", "--agent-updates", "2", "-q"]
COMPARE = ["compare", "--arch", "resnet8", "--train-limit", "100", "--reward-fraction", "0.3"]
COMPARE += ["--reward-images", "20", "--agent-updates", "2", "--threads", "1", "--seeds", "1"]
COMPARE += ["--evaluations", "6", "--episodes-per-epoch", "3"]
LEARNERS = "sac,sac-transfer"


def refused(*arguments: str | Path) -> str:
    status, _, errors = here(*arguments)
    assert status == 2
    assert re.fullmatch(r"error: [^\n]+\n", errors)
    return errors


def records(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["stage"] == "joint"]


# -- rlal run --------------------------------------------------------------------------------------


def test_a_run_begins_with_what_the_last_one_learned(tmp_path: Path) -> None:
    for name, more in (("a", []), ("b", ["--from-history", "auto"])):
        status, shown, errors = here(*QUICK, *more, "--out", tmp_path / name)
        assert (status, errors) == (0, "")
        assert "report:" in shown
    assert [record["history"] for record in records(tmp_path / "a")] == [None] * 3
    assert records(tmp_path / "b")[0]["phase"] == "trial"


def test_a_run_that_is_not_there_or_cannot_teach_is_one_line(tmp_path: Path) -> None:
    call = [*QUICK, "--out", tmp_path / "a", "--from-history"]
    assert "begins 'abc': it has none yet" in refused(*call, "abc")
    run_id = HistoryStore().add(past_run(3, agent_name="ddpg"))
    assert f"cannot learn from the run {run_id}: its agent is ddpg" in refused(*call, run_id)
    assert not (tmp_path / "a").exists()  # the same --out can be asked for again


def test_auto_without_any_past_run_starts_from_scratch(tmp_path: Path) -> None:
    status, _, errors = here(*QUICK, "--from-history", "auto", "--out", tmp_path / "a")
    assert (status, errors) == (0, "")
    assert [record["history"] for record in records(tmp_path / "a")] == [None] * 3


def test_auto_is_given_the_newest_of_the_most_alike() -> None:
    store = HistoryStore()
    for number in range(14):
        store.add(past_run(number, days_ago=20 - number, arch="vgg"))
    alike = [store.add(past_run(20 + number, days_ago=30 + number)) for number in range(2)]
    found = [run.id for run in recall("auto", "resnet8", "digits")]
    assert found[:2] == alike
    assert found[2:] == [past_run(number).id for number in range(13, 3, -1)]
    assert [run.id for run in recall(alike[1], "resnet8", "digits")] == [alike[1]]
    assert recall("off", "resnet8", "digits") == []


def test_a_named_run_must_teach_what_is_asked_for() -> None:
    run = finished(search_epochs=2)
    check_learned(run.id, search([run]).head_start)
    check_learned("auto", search().head_start)
    check_learned("off", search().head_start)
    with pytest.raises(InputError, match=f"cannot learn from the run {run.id}: its actor has"):
        check_learned(run.id, search([run], state="basic").head_start)


# -- rlal compare ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "full.safetensors"
    compaction.save_full(models.create("resnet8", 10, 1), path)
    return path


def test_contenders_learn_from_a_file(weights: Path, tmp_path: Path) -> None:
    store = HistoryStore()
    run = finished(search_epochs=2, sac=SACConfig())
    store.export([store.add(run)], tmp_path / "runs.db")
    call = [*COMPARE, "--init", weights, "--out", tmp_path / "out", "-q", "--agents", LEARNERS]
    assert "sac-transfer learns from past runs: give some by --history" in refused(*call)
    learned = [*call, "--history", tmp_path / "runs.db"]
    status, _, errors = here(*learned, "--level-of", "sac")
    assert (status, errors) == (0, "")
    rows = ResultsFolder(tmp_path / "out").rows()
    assert [row.agent for row in rows] == LEARNERS.split(",")
    assert "the mean best reward of sac;" in (tmp_path / "out" / "table.md").read_text()
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    told = settings["contenders"]["sac-transfer"]["history_sha256"]
    assert re.fullmatch("[0-9a-f]{64}", told)

    store.export([store.add(past_run(7))], tmp_path / "other.db")
    assert "history_sha256" in refused(*call, "--history", tmp_path / "other.db")
    assert "either --level or" in refused(*learned, "--level-of", "sac", "--level", "0.5")
    assert f"no file {tmp_path / 'none.db'}" in refused(*call, "--history", tmp_path / "none.db")
    unread = [*call[:-1], "sac,random", "--history", tmp_path / "runs.db"]
    assert "none of the agents learns from past runs" in refused(*unread)
    empty = HistoryStore(tmp_path / "empty.db")
    empty.remove([empty.add(past_run(8))])
    assert "holds no past run" in refused(*call, "--history", tmp_path / "empty.db")


def test_only_those_that_learn_are_given_past_runs() -> None:
    plan = Plan(("sac", "sac-assisted", "sac-history"), seeds=(0,), history=(past_run(),))
    given = {job.agent: len(plan.past_runs(job)) for job in plan.jobs()}
    assert given == {"sac": 0, "sac-assisted": 0, "sac-history": 1}
    parts = {
        name: (config.history.transfer, config.history.augmented, config.history.assistant)
        for name, config in ((n, CONTENDERS[n].config(plan.base)) for n in CONTENDERS)
        if name.startswith("sac-") and CONTENDERS[name].learns
    }
    assert parts == {
        "sac-transfer": (True, False, False),
        "sac-augmented": (False, True, False),
        "sac-assistant": (False, False, True),
        "sac-history": (True, False, True),
        "sac-history-augmented": (False, True, True),
    }
