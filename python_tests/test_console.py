"""console.py: plain lines, a bar on a terminal, nothing when quiet, and the summary."""

from __future__ import annotations

import re

import pytest

from rlal_fast.console import Display, summary
from rlal_fast.report import Report

JOINT = {
    "stage": "joint",
    "epoch": 6,
    "phase": "policy",
    "loss": 1.23456,
    "train_accuracy": 0.5,
    "reward_split_accuracy": 0.625,
    "rewards": [0.25, 0.375],
    "structure_reward": 0.4375,
    "seconds": {"weights": 2.0, "episodes": 0.5, "agent": 1.0},
}
WARMUP = {**JOINT, "epoch": 0, "phase": "warmup", "rewards": [], "structure_reward": None}
SEARCH = {**JOINT, "epoch": 9, "phase": "search", "loss": None, "train_accuracy": None}
TUNE = {
    "stage": "finetune",
    "epoch": 2,
    "loss": 0.5,
    "train_accuracy": 0.75,
    "reward_split_accuracy": 0.875,
    "seconds": {"weights": 3.0},
}
LINES = [
    "warmup   epoch   1/10  loss 1.235  train 50.0%  reward split 62.5%  3.5 s",
    "policy   epoch   7/10  loss 1.235  train 50.0%  reward split 62.5%  episodes best 37.5%"
    "  structure 43.8%  3.5 s",
    "search   epoch  10/10  reward split 62.5%  episodes best 37.5%  structure 43.8%  3.5 s",
    "finetune epoch   3/5  loss 0.500  train 75.0%  reward split 87.5%  3.0 s",
]
REPORT = Report(
    arch="torchvision/resnet18",
    dataset="[b]cats[/b]",
    seed=7,
    baseline_accuracy=0.9341,
    pruned_accuracy=0.9386,
    delta=0.0045,
    macs_full=1_000_000,
    macs=499_000,
    pruned_flops=0.501,
    pruned_flops_requested=0.5,
    params_full=80_000,
    params=20_000,
    widths={"conv1": [3, 16]},
    latency_ms={"full": {"1": 3.0, "256": 100.0}, "pruned": {"1": 2.0, "256": 40.0}},
    best_reward=0.9,
    episodes=10,
    seconds={"total": 1.0, "weights": 0.5, "episodes": 0.2, "agent": 0.1},
    evaluator="torch reference",
    split_sizes={"train": 10, "reward": 5, "test": 5},
    accuracy_before_finetuning=0.5,
    version="0",
)


def show(quiet: bool) -> Display:
    """What `rlal run` does with it: once for the images, once for the epochs."""
    display = Display(quiet, epochs=10, finetune_epochs=5)
    with display:
        display.on_decode(1, 3)
    with display:
        for record in (WARMUP, JOINT, SEARCH, TUNE):
            display.on_batch(2, 4)
            display.on_epoch(record)
    return display


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(quiet=False)
    assert capsys.readouterr() == ("\n".join(LINES) + "\n", "")


def test_quiet_shows_nothing_until_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    display = show(quiet=True)
    assert capsys.readouterr() == ("", "")
    display.console.quiet = False
    display.console.print("the result")
    assert capsys.readouterr().out == "the result\n"


def test_a_terminal_has_a_bar_beside_the_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's way to say: this is a terminal
    monkeypatch.setenv("TERM", "xterm")
    show(quiet=False)
    output = capsys.readouterr().out
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", output)
    assert "2/4" in text
    for line in LINES:
        assert line in text
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") > 0  # the cursor is shown again
    show(quiet=True)
    assert capsys.readouterr().out == ""


def test_summary_has_the_headline_figures(capsys: pytest.CaptureFixture[str]) -> None:
    Display(False, 1, 1).console.print(summary(REPORT))
    output = capsys.readouterr().out
    assert "torchvision/resnet18 on [b]cats[/b], seed 7" in output
    rows = [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in output.splitlines() if "│" in line]
    assert rows == [
        ["test accuracy", "93.41%", "93.86%", "+0.45 points"],
        ["MACs per image", "1,000,000", "499,000", "-50.10%"],
        ["parameters", "80,000", "20,000", "-75.00%"],
        ["latency, batch 1", "3.00 ms", "2.00 ms", "1.50x"],
        ["latency, batch 256", "100.00 ms", "40.00 ms", "2.50x"],
    ]


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Display(False, 1, 1).console.print("runs/a[/b] :smile: [red]x")
    assert capsys.readouterr().out == "runs/a[/b] :smile: [red]x\n"
