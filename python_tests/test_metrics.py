"""metrics.py: each epoch once, in metrics.jsonl and in TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

from rlal_fast.metrics import MetricsLog, Record
from rlal_fast.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {"seed": 0})


def record(epoch: int, loss: float = 0.5, stage: str = "joint") -> Record:
    return {
        "stage": stage,
        "epoch": epoch,
        "phase": "policy",
        "loss": loss,
        "lr": None,
        "rewards": [0.25, 0.75, 0.5],
        "structure_widths": [3, 4],
        "agent": {"q": -1.5},
        "seconds": {"weights": 2.0},
        "flag": True,
    }


def scalars(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    events: Any = event_accumulator.EventAccumulator(str(folder.tensorboard_dir))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def log(folder: RunFolder | None, known: list[Record], new: list[Record]) -> MetricsLog:
    metrics = MetricsLog(folder, known)
    for one in new:
        metrics.append(one)
    metrics.close()
    return metrics


def test_every_record_is_a_line_and_numbers_are_scalars(folder: RunFolder) -> None:
    records = [record(0), record(1, 0.25), record(0, 0.125, "finetune")]
    assert log(folder, [], records).records == records == folder.read_metrics()
    found = scalars(folder)
    assert found["joint/loss"] == [(0, 0.5), (1, 0.25)]
    assert found["finetune/loss"] == [(2, 0.125)]  # one axis for the whole run
    assert found["joint/reward/best"] == [(0, 0.75), (1, 0.75)]
    assert found["joint/reward/mean"] == [(0, 0.5), (1, 0.5)]
    assert found["joint/agent/q"] == [(0, -1.5), (1, -1.5)]
    assert found["joint/seconds/weights"] == [(0, 2.0), (1, 2.0)]
    joint = {tag.removeprefix("joint/") for tag in found if tag.startswith("joint/")}
    numbers = {"epoch", "loss", "reward/best", "reward/mean", "agent/q", "seconds/weights"}
    assert joint == numbers  # neither None, nor text, nor lists, nor a truth value


def test_an_epoch_without_episodes_has_no_reward(folder: RunFolder) -> None:
    log(folder, [], [{**record(0), "rewards": []}])
    assert "joint/reward/best" not in scalars(folder)


def test_each_line_is_there_when_append_returns(folder: RunFolder) -> None:
    metrics = MetricsLog(folder, [])
    for epoch in range(3):
        metrics.append(record(epoch))
        assert [r["epoch"] for r in folder.read_metrics()] == list(range(epoch + 1))
        assert scalars(folder)["joint/epoch"][-1] == (epoch, epoch)
    metrics.close()
    metrics.close()  # twice does no harm


@pytest.mark.parametrize("known", [0, 2, 4])
def test_a_resumed_run_writes_each_epoch_once(folder: RunFolder, known: int) -> None:
    first = [record(epoch, 1.0) for epoch in range(4)]
    log(folder, [], first)
    started = int(time.time())
    while int(time.time()) == started:  # TensorBoard orders its files by the second
        time.sleep(0.01)
    # the checkpoint knows fewer epochs than were written down before the kill
    again = [record(epoch, 2.0) for epoch in range(known, 5)]
    log(folder, first[:known], again)
    assert folder.read_metrics() == [*first[:known], *again]
    losses = [(epoch, 1.0 if epoch < known else 2.0) for epoch in range(5)]
    assert scalars(folder)["joint/loss"] == losses


def test_without_a_folder_records_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = [record(0)]
    metrics = log(None, known, [record(1)])
    assert metrics.records == [record(0), record(1)]
    assert known == [record(0)]  # the caller's list is its own
    assert list(tmp_path.iterdir()) == []
