"""A run that was stopped at any moment ends as if it had not been (issue part 9)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command import here
from gpu import needs_gpu
from torch import nn

from rlal_fast import checkpoint
from rlal_fast.agents import SACConfig
from rlal_fast.data import ImageData, load
from rlal_fast.environment_model import EnvironmentModelConfig
from rlal_fast.errors import InputError, RunStopped
from rlal_fast.joint_config import JointConfig
from rlal_fast.metrics import Record
from rlal_fast.models import create
from rlal_fast.run_folder import RunFolder
from rlal_fast.screening import ScreeningConfig
from rlal_fast.trainer import JointResult, JointTrainer
from rlal_fast.weights import WeightsConfig

# -- in one process: every epoch, by an exception --------------------------------------------------

CONFIG = JointConfig(
    epochs=4,
    search_epochs=1,
    warmup_epochs=1,
    random_epochs=1,
    episodes_per_epoch=3,
    finetune_epochs=3,
    agent_updates=5,
    structures=3,
    weights=WeightsConfig(batch_size=64),
    sac=SACConfig(hidden=(16,)),
    environment=EnvironmentModelConfig(8, 8, (16,), steps_per_epoch=5),
)
STEPS = [("joint", epoch) for epoch in range(5)] + [("finetune", epoch) for epoch in range(3)]


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load("digits", train_limit=300, reward_fraction=0.5)  # 150 to score on: a race


def start(
    folder: RunFolder,
    data: ImageData,
    model_seed: int,
    stop_at: tuple[str, int],
    config: JointConfig = CONFIG,
) -> list[Record]:
    """Trains until the record of `stop_at`, which is written down but in no checkpoint yet."""
    records: list[Record] = []

    def on_epoch(record: Record) -> None:
        records.append(record)
        if (record["stage"], record["epoch"]) == stop_at:
            raise Stopped

    torch.manual_seed(model_seed)
    trainer = JointTrainer(create("resnet8", 10, 1), data, config, folder=folder, on_epoch=on_epoch)
    with pytest.raises(Stopped):
        trainer.fit()
    return records


def timeless(records: list[Record]) -> list[Record]:
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


@pytest.fixture(scope="module")
def straight(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = RunFolder.create(tmp_path_factory.mktemp("straight") / "run", {})
    return timeless(start(folder, digits, 3, STEPS[-1])), checkpoint.load(folder)


def assert_bit_equal(a: Any, b: Any, place: str = "") -> None:
    assert type(a) is type(b), place
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            if key not in ("seconds", "records"):
                assert_bit_equal(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_bit_equal(x, y, f"{place}[{number}]")
    else:
        assert a == b, place


@pytest.mark.parametrize("stop_at", STEPS[:-1], ids=lambda step: f"{step[0]}{step[1]}")
def test_it_goes_on_after_every_epoch(
    straight: tuple[Any, Any], digits: ImageData, tmp_path: Path, stop_at: tuple[str, int]
) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    before = start(folder, digits, 3, stop_at)
    assert len(folder.read_metrics()) == len(before)
    # its checkpoint decides, not what the new model starts with; without one it starts again
    seed = 3 if stop_at == STEPS[0] else 4
    after = start(folder, digits, seed, STEPS[-1])
    assert (after[0]["stage"], after[0]["epoch"]) == stop_at  # only that epoch is done again
    records, state = straight
    assert timeless(before[:-1] + after) == records
    assert timeless(folder.read_metrics()) == records
    assert_bit_equal(checkpoint.load(folder), state)


@pytest.mark.parametrize("agent", ["ddpg", "evolutionary"])
def test_other_agents_go_on_too(digits: ImageData, tmp_path: Path, agent: str) -> None:
    config = dataclasses.replace(CONFIG, agent=agent, epochs=5)
    straight, cut = (RunFolder.create(tmp_path / name, {}) for name in ("straight", "cut"))
    records = start(straight, digits, 3, ("joint", 5), config)
    assert records[4]["agent"]
    before = start(cut, digits, 3, ("joint", 4), config)
    after = start(cut, digits, 4, ("joint", 5), config)
    assert timeless(before[:-1] + after) == timeless(records)
    assert_bit_equal(checkpoint.load(cut), checkpoint.load(straight))


def test_a_checkpoint_of_another_network_is_refused(digits: ImageData, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    start(folder, digits, 3, STEPS[1])
    other: nn.Module = create("resnet20", 10, 1)
    with pytest.raises(InputError, match=r"was made with full_widths=\[16, 32, 64\]") as caught:
        JointTrainer(other, digits, CONFIG, folder=folder).fit()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_budget_is_refused(digits: ImageData, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    start(folder, digits, 3, STEPS[1])
    smaller = dataclasses.replace(CONFIG, pruned_flops=0.6)
    with pytest.raises(InputError, match=r"pruned_flops=0\.\d+, not 0\.6"):
        JointTrainer(create("resnet8", 10, 1), digits, smaller, folder=folder).fit()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": WeightsConfig(lr=0.05)}, r"weights\.lr=0\.1, not 0\.05"),
        ({"sac": SACConfig(alpha=5.0)}, r"sac\.\w+="),
        ({"screening": ScreeningConfig(candidates=7)}, r"screening\.candidates=4, not 7"),
        ({"environment": EnvironmentModelConfig(embedding=3)}, r"environment\.\w+="),
    ],
    ids=["weights", "sac", "screening", "environment"],
)
def test_a_checkpoint_of_other_inner_settings_is_refused(
    digits: ImageData, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    start(folder, digits, 3, STEPS[1])
    other = dataclasses.replace(CONFIG, **changes)
    with pytest.raises(InputError, match=f"was made with {message}") as caught:
        JointTrainer(create("resnet8", 10, 1), digits, other, folder=folder).fit()
    assert "\n" not in str(caught.value)


def test_a_run_that_grows_forgets_its_fine_tuning(digits: ImageData, tmp_path: Path) -> None:
    folder = tmp_path / "run"  # a path will do
    JointTrainer(create("resnet8", 10, 1), digits, CONFIG, folder=folder).fit()
    longer = dataclasses.replace(CONFIG, epochs=CONFIG.epochs + 2)
    grown = JointTrainer(create("resnet8", 10, 1), digits, longer, folder=folder).fit()
    stages = [record["stage"] for record in grown.metrics]
    last = len(stages) - 1 - stages[::-1].index("joint")
    assert grown.metrics[last]["epoch"] == longer.total_epochs - 1
    assert stages[last + 1 :] == ["finetune"] * longer.finetune


def test_it_stops_at_its_time_limit_and_goes_on(
    straight: tuple[Any, Any], digits: ImageData, tmp_path: Path
) -> None:
    """A limit of no time stops after every epoch; the last one is followed by the end."""

    def go_on() -> JointResult:
        torch.manual_seed(3)
        model = create("resnet8", 10, 1)
        return JointTrainer(model, digits, CONFIG, folder=tmp_path / "run").fit(max_minutes=0)

    for done in range(1, len(STEPS)):
        with pytest.raises(RunStopped) as stopped:
            go_on()
        assert (stopped.value.done, stopped.value.total) == (done, len(STEPS))
        assert str(stopped.value) == f"stopped after {done} of 8 epochs; the same call goes on"
    assert timeless(go_on().metrics) == straight[0]


def test_a_limit_that_is_not_reached_changes_nothing(
    straight: tuple[Any, Any], digits: ImageData, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    trainer = JointTrainer(create("resnet8", 10, 1), digits, CONFIG, folder=tmp_path / "run")
    assert timeless(trainer.fit(max_minutes=60).metrics) == straight[0]


@pytest.mark.parametrize("minutes", [-1.0, float("nan")])
def test_a_limit_that_cannot_be(digits: ImageData, tmp_path: Path, minutes: float) -> None:
    model = create("resnet8", 10, 1)
    trainer = JointTrainer(model, digits, CONFIG, folder=tmp_path / "run")
    with pytest.raises(InputError, match=r"max_minutes=.* must be at least 0"):
        trainer.fit(minutes)
    with pytest.raises(InputError, match="max_minutes needs a folder"):
        JointTrainer(model, digits, CONFIG).fit(1.0)


def test_a_run_goes_on_with_another_way_to_launch_steps(
    straight: tuple[Any, Any], digits: ImageData, tmp_path: Path
) -> None:
    """On the CPU neither amp nor capture does anything."""
    folder = RunFolder.create(tmp_path / "run", {})
    start(folder, digits, 3, STEPS[2])
    weights = dataclasses.replace(CONFIG.weights, capture=False, amp="off")
    config = dataclasses.replace(CONFIG, weights=weights, device="cpu")
    result = JointTrainer(create("resnet8", 10, 1), digits, config, folder=folder).fit()
    assert timeless(result.metrics) == straight[0]


# -- from device to device -------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("devices", [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")], ids=str)
@pytest.mark.parametrize("stop_at", [("joint", 2), ("finetune", 1)], ids=str)
def test_it_goes_on_on_another_device(
    digits: ImageData, tmp_path: Path, devices: tuple[str, str], stop_at: tuple[str, int]
) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    first, second = (dataclasses.replace(CONFIG, device=name) for name in devices)
    before = start(folder, digits, 3, stop_at, first)
    state = torch.load(folder.checkpoint_dir / "last.pt", weights_only=True)  # no map_location
    assert devices_of(state) == {"cpu"}
    after = start(folder, digits, 4, STEPS[-1], second)
    assert (after[0]["stage"], after[0]["epoch"]) == stop_at  # only that epoch is done again
    assert len(before) - 1 + len(after) == len(STEPS)
    assert after[0]["loss"] == pytest.approx(before[-1]["loss"], rel=0.2, abs=0.1)


def devices_of(value: Any) -> set[str]:
    if isinstance(value, torch.Tensor):
        return {value.device.type}
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list | tuple):
        return set().union(*(devices_of(item) for item in items))
    return set()


# -- the command, by SIGKILL -----------------------------------------------------------------------

COMMAND = ["--arch", "resnet8", "--train-limit", "200", "--threads", "1", "--epochs", "3"]
COMMAND += ["--finetune-epochs", "3", "--episodes-per-epoch", "2", "--batch-size", "32"]


@contextmanager
def rlal(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "rlal_fast", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a shell's background job ignores Ctrl-C and hands that down; a user's terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stages(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["stage"] for line in lines]


def outcome(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text())
    for name in ("seconds", "latency_ms", "command"):
        assert report.pop(name)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = ["model/weights.safetensors", "model/network.json", "full.safetensors"]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    return {"report": report, "metrics": timeless(metrics), **digests}


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(folder.rglob("*"))
    }


def kill(folder: Path, reached: Callable[[], bool], *arguments: str | Path) -> None:
    """SIGKILL as soon as the command has `reached` a place, before the run's end."""
    with rlal("run", *arguments, "-q") as process:
        wait_for(process, reached)
        process.send_signal(signal.SIGKILL)
        assert process.communicate(timeout=60)[1] == ""
    assert not (folder / "report.json").exists()


def test_killed_and_killed_again_it_ends_the_same(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert here("run", *COMMAND, "--out", straight, "-q")[::2] == (0, "")

    # before the first checkpoint: most likely torch is being imported
    kill(broken, (broken / "config.yaml").exists, *COMMAND, "--out", broken)
    assert sorted(os.listdir(broken)) == [".lock", "config.yaml"]
    kill(broken, lambda: "joint" in stages(broken), "--resume", broken)
    kill(broken, lambda: "finetune" in stages(broken), "--resume", broken)

    assert here("run", "--resume", broken, "-q")[::2] == (0, "")
    assert outcome(broken) == outcome(straight)
    assert stages(broken) == ["joint"] * 3 + ["finetune"] * 3
    (broken / "report.json").unlink()  # as if it was killed just before it wrote the last file
    assert here("run", "--resume", broken, "-q")[::2] == (0, "")
    assert outcome(broken) == outcome(straight)

    before = snapshot(broken)
    status, output, errors = here("run", "--resume", broken)
    assert (status, errors) == (0, "")
    assert "is finished" in output
    assert snapshot(broken) == before


def test_a_run_has_one_process_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    endless = ["--epochs", "5000"]  # whatever the machine does meanwhile, it is still running
    with rlal("run", *COMMAND, *endless, "--out", folder) as process:
        wait_for(process, (folder / "metrics.jsonl").exists)
        status, output, errors = here("run", "--resume", folder)
        assert (status, output, errors.count("\n")) == (2, "", 1)
        assert f"in use by another process (pid {process.pid})" in errors
        status, output, errors = here("run", *COMMAND, "--out", folder)
        assert (status, output, errors.count("\n")) == (2, "", 1)
        assert "holds another run" in errors
        assert (folder / "config.yaml").exists()  # refusing has not discarded the other's folder
        wait_for(process, lambda: "joint" in stages(folder))
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert errors.strip() == "interrupted; `rlal run --resume FOLDER` continues a run"
