"""__main__.py: a run's device, and a run in pieces."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from command import here
from gpu import needs_gpu, without_gpu

QUICK = ["--arch", "resnet8", "--train-limit", "60", "--epochs", "2", "--finetune-epochs", "1"]
QUICK += ["--episodes-per-epoch", "2", "--agent-updates", "2", "--threads", "1"]


def test_a_run_in_pieces(tmp_path: Path) -> None:
    """No time at all stops it after every epoch; the device may be said anew."""
    out = tmp_path / "run"
    first = here("run", *QUICK, "--out", out, "-q", "--max-minutes", "0", "--device", "auto")
    told = "stopped after {} of 3 epochs; `rlal run --resume {} --max-minutes 0` goes on\n"
    assert first == (3, told.format(1, out), "")
    again = ["run", "--resume", out, "-q", "--max-minutes", "0", "--device", "cpu", "--no-capture"]
    assert here(*again) == (3, told.format(2, out), "")
    assert here(*again)[0] == 0
    assert json.loads((out / "report.json").read_text())["device"] == "cpu"
    assert yaml.safe_load((out / "config.yaml").read_text())["device"] == "auto"


@needs_gpu
@pytest.mark.parametrize("options", [[], ["--no-capture", "--amp", "off"]], ids=str)
def test_a_run_on_a_gpu(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "run"
    done = here("run", *QUICK, "--out", out, "-q", "--device", "cuda", *options)
    assert done[::2] == (0, "")
    report = json.loads((out / "report.json").read_text())
    assert report["device"].startswith("cuda:0, ")
    assert here("evaluate", out, "--batch-size", "3")[::2] == (0, "")


@without_gpu
def test_a_gpu_that_is_missing_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for device in ("cuda", "cuda:1"):
        status, output, errors = here("run", *QUICK, "--out", out, "--device", device)
        assert (status, output) == (2, "")
        message = rf"error: device='{device}' was asked for, but .*--device cpu.*\n"
        assert re.fullmatch(message, errors)
        assert not out.exists()
