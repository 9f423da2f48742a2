"""__main__.py: the commands, and bad input as one line on stderr with exit status 2."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from rlal_fast import __version__
from rlal_fast.__main__ import main

QUICK = ["--arch", "resnet8", "--train-limit", "60", "--epochs", "2", "--finetune-epochs", "1"]
QUICK += ["--episodes-per-epoch", "2", "--agent-updates", "2", "--threads", "1"]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def rlal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process; an exception that escapes would be a traceback."""

    def command(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rlal", *map(str, arguments)])
        status = 0
        capfd.readouterr()
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Outcome(status, *capfd.readouterr())

    return command


def assert_refused(outcome: Outcome, message: str) -> None:
    assert outcome.status == 2
    assert outcome.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", outcome.err)
    assert re.search(message, outcome.err), outcome.err
    assert "Traceback" not in outcome.err


# -- runs that work --------------------------------------------------------------------------------


def test_a_refused_run_corrected_evaluated_and_searched_again(
    rlal: Command, tmp_path: Path
) -> None:
    out = tmp_path / "a run [/b] :smile:"  # shown as it is, though rich has uses for such names
    assert_refused(rlal("run", *QUICK, "--out", out, "--pruned-flops", "0.99"), "cannot be reached")
    done = rlal("run", *QUICK, "--out", out, "-q")
    assert (done.status, done.err) == (0, "")
    report = json.loads((out / "report.json").read_text())
    assert f"{report['macs']:,}" in done.out
    assert f"{report['pruned_accuracy']:.2%}" in done.out
    assert f"report: {out / 'report.html'}   network: {out / 'model'}\n" in done.out
    assert "epoch" not in done.out  # quiet: the result only
    assert report["macs"] <= report["macs_full"] // 2
    assert report["command"].startswith("rlal run --arch resnet8 ")
    assert {"report.html", "report.png", "tensorboard", "checkpoint", "model"} <= set(
        os.listdir(out)
    )

    measured = rlal("evaluate", out, "--batch-size", "3")
    assert (measured.status, measured.err) == (0, "")
    assert f"test accuracy {report['pruned_accuracy']:.2%}\n" in measured.out
    assert f"{report['params']:,} parameters" in measured.out
    assert re.search(r"latency \d+\.\d\d ms per batch of 3\n", measured.out)

    weights = out / "full.safetensors"
    search = ["--init", weights, "--epochs", "0", "--search-epochs", "2", "--finetune-epochs", "0"]
    shown = rlal("run", *QUICK, *search, "--out", tmp_path / "search")
    assert (shown.status, shown.err) == (0, "")
    assert_plain_progress(shown.out, tmp_path / "search")
    before, after = (
        safetensors.torch.load_file(file) for file in (weights, tmp_path / "search" / weights.name)
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = json.loads((tmp_path / "search" / "report.json").read_text())
    assert again["baseline_accuracy"] == report["baseline_accuracy"]
    assert again["pruned_accuracy"] == again["accuracy_before_finetuning"]


def assert_plain_progress(output: str, folder: Path) -> None:
    assert "\x1b" not in output  # not a terminal: no bar, no colours
    first, *lines = output.splitlines()
    assert first == f"run folder: {folder}  (interrupted? rlal run --resume {folder})"
    assert lines[0].startswith("search   epoch   1/2  reward split ")
    assert lines[1].startswith("search   epoch   2/2  reward split ")
    assert not lines[2].startswith("search")


@pytest.mark.parametrize(
    ("arguments", "macs"),
    [
        # 64 pixels of 16 channels, 16 of 32, 4 of 64
        (
            ["--arch", "resnet8", "--image-size", "8", "--in-channels", "1"],
            64 * 9 * (16 + 2 * 16 * 16)
            + 16 * 9 * (16 * 32 + 32 * 32)
            + 4 * 9 * (32 * 64 + 64 * 64)
            + 640,
        ),
        (["--arch", "mobilenet_v2", "--num-classes", "7", "--image-size", "17"], None),
        (["--arch", "torchvision/resnet18", "--groups", "all", "--image-size", "65"], None),
        ([], None),
    ],
    ids=["resnet8", "mobilenet_v2", "torchvision", "defaults"],
)
def test_flops_agree_with_torch(rlal: Command, arguments: list[str], macs: int | None) -> None:
    outcome = rlal("flops", *arguments)
    assert (outcome.status, outcome.err) == (0, "")
    found = re.search(
        r"ours: ([\d,]+) MACs = ([\d,]+) FLOPs; torch.utils.flop_counter: ([\d,]+) FLOPs",
        outcome.out,
    )
    assert found is not None
    ours, doubled, theirs = (int(number.replace(",", "")) for number in found.groups())
    assert doubled == 2 * ours == theirs
    assert macs is None or ours == macs
    assert "prunable groups" in outcome.out


def test_version_and_help(rlal: Command) -> None:
    assert rlal("--version") == (0, f"rlal, version {__version__}\n", "")
    for arguments in ([], ["--help"], ["-h"]):
        status, out, err = rlal(*arguments)
        assert (status, err) == (0, "")
        for command in ("run", "flops", "evaluate", "compare", "info"):
            assert re.search(rf"^  {command} ", out, re.M)
    assert "[default: resnet20]" in rlal("run", "--help").out


def test_info_says_what_was_built(rlal: Command) -> None:
    status, out, err = rlal("info")
    assert (status, err) == (0, "")
    assert f"version: {__version__}\n" in out
    assert re.search(r"^compiler: \S", out, re.M)


def test_without_out_each_run_gets_a_new_folder(
    rlal: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(rlal("run", "--arch", "nope"), "unknown architecture")
    assert list((tmp_path / "runs").iterdir()) == []  # and a refused one leaves none


def killed_before_torch(folder: Path, *options: str | Path) -> Path:
    """A run that a SIGKILL ended at the moment when it began to import torch."""
    fake = folder.with_name("imported_first")
    fake.mkdir(exist_ok=True)
    (fake / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    call = [sys.executable, "-m", "rlal_fast", "run", "--out", folder.name, *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(fake)}
    done = subprocess.run(call, env=environment, cwd=folder.parent, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert sorted(os.listdir(folder)) == [".lock", "config.yaml"]
    return folder


def test_config_is_complete_before_torch_is_imported(tmp_path: Path) -> None:
    folder = killed_before_torch(tmp_path / "out", "--init", "w.pt", "--include", "a*")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["init"] == str(tmp_path / "w.pt")  # so that it can be resumed from elsewhere
    assert config["include"] == ["a*"]
    assert (config["dataset"], config["epochs"], config["beta"]) == ("digits", 24, None)
    assert config["command"] == "rlal run --out out --init w.pt --include 'a*'"
    assert config["version"] == __version__


# -- bad input -------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[str], str]] = {
    "unreachable": (["--pruned-flops", "0.99"], r"cannot be reached.* range is 0 to 0\.7\d+"),
    "budget-above-1": (["--pruned-flops", "50"], r"pruned_flops must be in \[0, 1\).*not 50"),
    "arch": (["--arch", "resnet9"], "unknown architecture 'resnet9': known are resnet8, resnet20"),
    "torchvision": (["--arch", "torchvision/no"], "unknown torchvision network 'no': known are"),
    "dataset": (["--dataset", "mnist"], "unknown data set 'mnist'.*digits, cifar10, imagefolder"),
    "agent": (["--agent", "dqn"], "unknown agent 'dqn'.*sac, ddpg, evolutionary, random, uniform"),
    "importance": (["--importance", "best"], "unknown importance 'best'.*l1, l2"),
    "preset": (["--preset", "fast"], "unknown preset 'fast'.*default, paper"),
    "evaluator": (["--evaluator", "gpu"], "unknown backend 'gpu'.*native"),
    "groups": (["--groups", "some"], "groups must be 'internal' or 'all', not 'some'"),
    "include": (["--include", "block*"], "'block.' matches no group; groups are layer1.0.conv1"),
    "exclude-all": (["--exclude", "*"], "no group that can be pruned"),
    "no-data-dir": (["--dataset", "imagefolder"], "needs the folder that holds it"),
    "data-dir": (["--dataset", "cifar10", "--data-dir", "nowhere"], "nowhere.* is missing"),
    "data-dir-unused": (["--data-dir", "x"], "data_dir x was given|data_dir .*embedded"),
    "init-missing": (["--init", "none.pt"], "cannot read the weights .*none.pt"),
    "epochs": (["--epochs", "-1"], "epochs=-1 must be at least 0"),
    "not-a-number": (["--epochs", "many"], "'--epochs': 'many' is not a valid integer"),
    "no-such-option": (["--prune", "0.5"], "No such option.*--prune"),
    "seed": (["--seed", "99999999999999999999"], r"seed=9+ must be below 2\*\*63"),
    "recalibrate": (["--bn-recalibrate", "-1"], "bn_recalibrate=-1 must be at least 0"),
    "recalibrate-more": (["--bn-recalibrate", "61"], "bn_recalibrate=61 asks for more than the 50"),
    "threads": (["--threads", "0"], r"threads=0 must be in 1\.\.1024"),
    "too-many-threads": (["--threads", "99999999999"], r"threads=9+ must be in 1\.\.1024"),
    "batch-size": (["--batch-size", "1"], "batch_size=1 must be at least 2"),
    "device": (["--device", "gpu"], r"device='gpu' must be 'cpu', 'cuda', .* or 'auto'"),
    "amp": (["--amp", "on"], "amp='on' must be 'auto' or 'off'"),
    "precision": (["--evaluator-precision", "int8"], "evaluator_precision='int8' must be one of"),
    "max-minutes": (["--max-minutes", "-1"], "max_minutes=-1.0 must be at least 0"),
    "lr": (["--lr", "0"], "lr=0.0 must be positive"),
    "finetune-lr": (["--finetune-lr", "nan"], "finetune_lr=nan must be positive"),
    "beta": (["--beta", "nan"], "beta=nan"),
    "warmup": (["--warmup-epochs", "2"], "warmup_epochs=2 leaves none of 2 epochs"),
    "a-max": (["--a-max", "2"], "a_max"),
    "reward-fraction": (["--reward-fraction", "1"], "reward_fraction is 1.0"),
    "train-limit": (["--train-limit", "3"], "train_limit 3 is too small for 10 classes"),
    "on-corrupt": (["--on-corrupt", "ignore"], "on_corrupt is 'ignore'.*'stop' or 'skip'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_one_line_and_leave_the_folder_free(
    rlal: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    assert_refused(rlal("run", *QUICK, "--out", "run", *arguments), message)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"hello", "resnet20", "numbers"], ids=str)
def test_wrong_weights_to_start_from(rlal: Command, tmp_path: Path, content: bytes | str) -> None:
    file, out = tmp_path / "weights.pt", tmp_path / "run"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        from rlal_fast.models import create

        torch.save(create("resnet20", 10, 1).state_dict() if content == "resnet20" else [1], file)
    outcome = rlal("run", *QUICK, "--out", out, "--init", file)
    assert_refused(outcome, rf"the weights {re.escape(str(file))} do not fit ResNetCifar: \S")
    assert not out.exists()


def draw(folder: Path, classes: dict[str, int], size: tuple[int, int] = (8, 8)) -> None:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", size, (20 * number, 90, 200)).save(folder / name / f"{number}.png")


def images_that_cannot_work(folder: Path, what: str) -> str:
    """Makes the folder and returns the message that it should cause."""
    if what == "empty":
        folder.mkdir()
        return "train"
    draw(folder / "train", {"cat": 4, "dog": 4})
    draw(folder / "test", {"cat": 2, "cow" if what == "classes" else "dog": 2})
    if what == "classes":
        return "cow|dog"
    if what == "corrupt":
        (folder / "train" / "cat" / "2.png").write_bytes(b"no image")
        return r"train/cat/2\.png"
    draw(folder / "train" / "dog" / "..", {"emu": 2}, (9, 9))
    draw(folder / "test", {"emu": 2}, (9, 9))
    return "size"


@pytest.mark.parametrize("what", ["empty", "classes", "corrupt", "mixed_sizes"])
def test_images_that_cannot_work(rlal: Command, tmp_path: Path, what: str) -> None:
    message = images_that_cannot_work(tmp_path / "images", what)
    arguments = ["--arch", "resnet8", "--dataset", "imagefolder", "--data-dir", tmp_path / "images"]
    assert_refused(rlal("run", *arguments, "--out", tmp_path / "run"), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("what", ["run", "other_things", "file", "full_disk"])
def test_out_that_cannot_be_used(rlal: Command, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    if what == "file":
        out.write_text("words")
        message = "is, or lies under, a file"
    else:
        out.mkdir()
        name, message = {
            "run": ("config.yaml", "holds another run: .*--resume"),
            "other_things": ("thesis.txt", "is not empty"),
            "full_disk": (".config.yaml.part", "no space left on device"),
        }[what]
        if what == "full_disk":
            if not Path("/dev/full").exists():
                pytest.skip("needs /dev/full")
            (out / name).symlink_to("/dev/full")
        else:
            (out / name).write_text("words")
    assert_refused(rlal("run", *QUICK, "--out", out), message)
    if what in ("run", "other_things"):
        assert (out / name).read_text() == "words"


@pytest.mark.parametrize(
    "options",
    [["--seed", "1"], ["--out", "x"], ["--no-alignment"], ["--include", "a"], ["--epochs", "2"]],
    ids=lambda options: options[0],
)
def test_resume_takes_no_other_settings(rlal: Command, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0")
    flag = options[0].replace("--no-", "--")
    assert_refused(rlal("run", "--resume", tmp_path, *options), f"leave out {flag}")
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_folders_that_hold_no_such_run(rlal: Command, tmp_path: Path) -> None:
    for command in (["evaluate"], ["run", "--resume"]):
        assert_refused(rlal(*command, tmp_path / "nowhere"), "no run folder .*nowhere")
        assert_refused(rlal(*command, tmp_path), "has no config.yaml, so it is no run's folder")
    assert_refused(rlal("evaluate"), "Missing argument 'FOLDER'")


def test_a_config_that_lost_settings(rlal: Command, tmp_path: Path) -> None:
    folder = killed_before_torch(tmp_path / "run")
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(("preset:", "threads:"))]
    (folder / "config.yaml").write_text("".join(kept))
    for command in (["evaluate"], ["run", "--resume"]):
        assert_refused(rlal(*command, folder), "config.yaml lacks preset, threads: ")


def test_an_unfinished_run_is_not_evaluated(rlal: Command, tmp_path: Path) -> None:
    folder = killed_before_torch(tmp_path / "run")
    assert_refused(rlal("evaluate", folder), f"is not finished.*--resume {folder}")
    assert_refused(rlal("evaluate", folder, "--batch-size", "0"), "batch sizes must be at least 1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flops", "--arch", "nope"], "unknown architecture 'nope'"),
        (["flops", "--image-size", "-5"], "image_size=-5 must be at least 1"),
        (["flops", "--image-size", "0"], "image_size=0 must be at least 1"),
        (["flops", "--num-classes", "0"], "num_classes=0"),
        (["prune"], "No such command"),
        (["--nope"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_bad_calls(rlal: Command, arguments: list[str], message: str) -> None:
    assert_refused(rlal(*arguments), message)


def process(call: list[str], **environment: str) -> Outcome:
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_the_installed_script_and_the_module_are_the_same_command(tmp_path: Path) -> None:
    script = shutil.which("rlal", path=str(Path(sys.executable).parent))
    assert script is not None, "pip install . makes the script"
    for call in ([script], [sys.executable, "-m", "rlal_fast"]):
        assert process([*call, "--version"]) == (0, f"rlal, version {__version__}\n", "")
    bad = process([sys.executable, "-m", "rlal_fast", "run", "--out", f"{tmp_path}/x", "--lr", "x"])
    assert_refused(bad, "'--lr': 'x' is not a valid float")


def test_an_instruction_set_that_cannot_run_here() -> None:
    outcome = process([sys.executable, "-m", "rlal_fast", "info"], RLAL_FAST_ISA="mmx")
    assert_refused(outcome, r"instruction set 'mmx' \(RLAL_FAST_ISA\) cannot run here")


def test_a_compiled_part_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "_rlal_fast.py").write_text("def version(): return '0.0.1'")
    out = tmp_path / "run"
    call = [sys.executable, "-m", "rlal_fast", "run", *QUICK, "--out", str(out)]
    outcome = process(call, PYTHONPATH=str(tmp_path))
    assert_refused(outcome, "its compiled part 0.0.1: run `pip install .`")
    assert not out.exists()
