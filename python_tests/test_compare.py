"""`rlal compare`: what it runs, what it runs again, and bad input as one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from command import here

from rlal_fast import compaction, data, models
from rlal_fast.agents import SACConfig
from rlal_fast.commands.compare import compare
from rlal_fast.comparison import (
    CONTENDERS,
    Job,
    Network,
    Plan,
    ResultsFolder,
    report,
    run,
)
from rlal_fast.comparison.summary import course, evaluations_to
from rlal_fast.data import ImageData
from rlal_fast.errors import InputError
from rlal_fast.joint_config import JointConfig
from rlal_fast.recalibration import image_count, recalibrate, training_sample
from rlal_fast.weights import accuracy

TINY = ["--arch", "resnet8", "--train-limit", "100", "--reward-fraction", "0.3", "--threads", "1"]
TINY += ["--reward-images", "20", "--agent-updates", "1", "--environment-steps", "1"]
FEW = ["--evaluations", "7", "--episodes-per-epoch", "3", "--seeds", "2"]
ALL = [*FEW, "--agents", "uniform,random,sac-ee"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "full.safetensors"
    compaction.save_full(models.create("resnet8", 10, 1), path)
    return path


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return data.load("digits", train_limit=100, reward_fraction=0.3).with_reward_images(20)


# -- runs ------------------------------------------------------------------------------------------


def test_a_comparison_is_made_once_and_goes_on(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "results [b]"  # shown as it is
    call = ["compare", *TINY, *ALL, "--init", weights, "--out", out]
    status, shown, errors = here(*call)
    assert (status, errors) == (0, "")
    lines = [line for line in shown.splitlines() if re.match(r"\d/5 ", line)]
    assert [line.split(":")[0] for line in lines] == [
        "1/5  uniform, 0.5 of the FLOPs pruned, P = 1, seed 0",
        "2/5  random, 0.5 of the FLOPs pruned, P = 3, seed 0",
        "3/5  sac-ee, 0.5 of the FLOPs pruned, P = 3, seed 0",
        "4/5  random, 0.5 of the FLOPs pruned, P = 3, seed 1",
        "5/5  sac-ee, 0.5 of the FLOPs pruned, P = 3, seed 1",
    ]
    assert f"table: {out / 'table.md'}" in shown
    rows = ResultsFolder(out).rows()
    for found in rows:
        sizes = [1] if found.agent == "uniform" else [3, 3, 1]  # the last epoch has what is left
        assert [len(part) for part in found.rewards] == sizes
        assert found.evaluations == sum(sizes)
        assert found.best_reward == max(max(part) for part in found.rewards)
        assert found.structure_rewards[-1] == found.best_reward
        assert found.pruned_flops_reached >= 0.5
        assert len(set(found.full_accuracies)) == 1  # the weights stand still
    before = (out / "results.jsonl").read_bytes()
    assert str(tmp_path).encode() not in before + (out / "settings.json").read_bytes()
    for name in ("best-reward.svg", "best-reward.png", "table.md"):
        assert (out / name).stat().st_size > 500

    status, shown, _ = here(*call, "-q")  # nothing is left to do
    assert status == 0
    assert not re.search(r"^\d/5 ", shown, re.M)
    assert (out / "results.jsonl").read_bytes() == before
    status, shown, _ = here(*call, "--seeds", "2-2", "--agents", "random", "--level", "0.01")
    assert status == 0
    assert "1/1  random" in shown
    assert (out / "results.jsonl").read_bytes().startswith(before)
    random = [row for row in ResultsFolder(out).rows() if row.agent == "random"]
    assert len(random) == 3
    firsts = [evaluations_to(0.01, course(row, joint=False)) for row in random]
    reached = [first for first in firsts if first is not None]
    assert f" {mean(reached):.0f} ({len(reached)} of 3) " in (out / "table.md").read_text()


def test_the_test_accuracy_is_that_of_the_compact_network(
    weights: Path, digits: ImageData, tmp_path: Path
) -> None:
    from rlal_fast.graph import PrunableGraph

    network, plan = Network("resnet8", weights), Plan(("random",), seeds=(3,), evaluations=4)
    with ResultsFolder(tmp_path) as folder:
        (found,) = run(plan, network, digits, folder)
    model = network.create(digits, 3)
    graph = PrunableGraph.trace(model, torch.zeros(1, *digits.image_shape))
    small = compaction.compact(model, graph.subnet(found.widths))
    sample = training_sample(digits, image_count(None, model, digits, standing=True), seed=3)
    assert sample is not None  # the weights stand still
    recalibrate(small, sample)
    for split, expected in (
        (digits.test, found.test_accuracy),
        (digits.reward, found.best_reward),
    ):
        reached = accuracy(small, split.images, split.labels, digits.normalisation)
        assert reached == pytest.approx(expected, abs=1e-5)


def test_joint_training_has_p_episodes_in_each_epoch_after_the_warm_up(
    digits: ImageData, tmp_path: Path
) -> None:
    base = JointConfig(epochs=3, warmup_epochs=1, random_epochs=1, agent_updates=1)
    base = replace(base, finetune_epochs=0)
    plan = Plan(("uniform", "random"), (0.3,), (2, 4), (0,), evaluations=None, base=base)
    with ResultsFolder(tmp_path) as folder:
        rows = run(plan, Network("resnet8"), digits, folder)
        report.write(folder)
    assert [(r.agent, r.episodes_per_epoch, r.evaluations) for r in rows] == [
        ("uniform", 1, 2),
        ("random", 2, 4),
        ("random", 4, 8),
    ]
    for found in rows:
        assert [len(part) for part in found.rewards] == [0, *[found.episodes_per_epoch] * 2]
        assert found.structure_rewards[0] is None
        assert found.best_reward == found.structure_rewards[-1]
        points = course(found, joint=True)
        assert [at for at, _ in points] == [found.episodes_per_epoch, found.evaluations]
        assert found.finetuned_test_accuracy is None
    assert (tmp_path / "epochs-random.svg").exists()


def test_structures_of_joint_training_are_fine_tuned(digits: ImageData, tmp_path: Path) -> None:
    base = JointConfig(epochs=4, warmup_epochs=0, random_epochs=1, agent_updates=1, beta=0.05)
    agents = ("random", "sac", "sac-unaligned")
    plan = Plan(agents, (0.3,), (2,), (0,), evaluations=None, base=base)
    epochs: list[int] = []
    with ResultsFolder(tmp_path) as folder:
        rows = run(plan, Network("resnet8"), digits, folder, on_start=lambda _, n: epochs.append(n))
        report.write(folder)
        settings = folder.settings()
    assert epochs == [5, 5, 5]  # one of them is fine-tuning
    for found in rows:
        assert len(found.rewards) == 4
        assert found.full_test_accuracy is not None
        assert 0 <= found.full_test_accuracy <= 1
        # one epoch of fine-tuning changes which of 797 test images are seen right
        assert found.finetuned_test_accuracy != found.test_accuracy
    _, aligned, unaligned = rows
    assert unaligned.full_test_accuracy != aligned.full_test_accuracy
    assert unaligned.rewards[0] == aligned.rewards[0]  # nothing is aligned before an episode
    assert settings["contenders"]["sac-unaligned"]["alignment"] is False
    assert "alignment" not in settings["contenders"]["sac"]
    assert (settings["finetune_epochs"], settings["finetune_lr"]) == (1, 0.01)
    assert "| fine-tuned | full network |" in (tmp_path / "table.md").read_text()


def test_structures_on_standing_weights_are_fine_tuned_if_asked(
    weights: Path, digits: ImageData, tmp_path: Path
) -> None:
    network, base = Network("resnet8", weights), JointConfig(epochs=0)
    plain = Plan(("uniform", "random"), (0.3,), (2,), (0,), 4, base)
    tuned = replace(plain, base=replace(base, finetune_epochs=1, finetune_lr=0.02))
    rows, settings = [], []
    for number, plan in enumerate((plain, tuned)):
        with ResultsFolder(tmp_path / str(number)) as folder:
            rows.append(run(plan, network, digits, folder))
            report.write(folder)
            settings.append(folder.settings())
    for bare, found in zip(*rows, strict=True):  # what is searched is the same
        assert (bare.rewards, bare.widths) == (found.rewards, found.widths)
        assert bare.finetuned_test_accuracy is None
        assert found.finetuned_test_accuracy is not None
    full, whole = rows[1][0].full_test_accuracy, network.create(digits, 0).eval()
    split = digits.test
    expected = accuracy(whole, split.images, split.labels, digits.normalisation)
    assert full == pytest.approx(expected, abs=1e-5)
    assert settings[0].keys() < settings[1].keys()
    assert (settings[1]["finetune_epochs"], settings[1]["finetune_lr"]) == (1, 0.02)
    table = (tmp_path / "1" / "table.md").read_text()
    assert "| fine-tuned | full network |" in table
    assert "for the search" not in table
    assert "fine-tuned |" not in (tmp_path / "0" / "table.md").read_text()


def test_contenders_are_what_they_are_called() -> None:
    base = JointConfig(epochs=0, a_max=0.7)
    configs = {name: contender.config(base) for name, contender in CONTENDERS.items()}
    for name, config in configs.items():
        assert config.agent == name.split("-")[0]
        assert config.epoch_embedding == name.endswith("-ee")
        assert config.sac.a_max == 0.7
        scaled = SACConfig.paper().scale_rewards if "paper" in name else SACConfig().scale_rewards
        assert config.sac.scale_rewards == scaled
        published = "paper" in name or name.startswith("ddpg")
        assert config.state == ("basic" if published else "profile")
    (helped,) = [option.help for option in compare.params if option.name == "agents"]  # type: ignore[attr-defined]
    (default,) = [option.default for option in compare.params if option.name == "agents"]
    assert set(CONTENDERS) == set(re.findall(r"[a-z]+(?:-[a-z]+)*", default)) | {
        name for name in CONTENDERS if f" {name}," in helped or f" {name};" in helped
    }


@pytest.mark.parametrize("evaluations", [1, 4, 5, 29, 30])
def test_all_have_the_same_number_of_evaluations(evaluations: int) -> None:
    plan = Plan(("random", "uniform"), (0.5,), (1, 5, 50), (0, 1), evaluations)
    counts = {job: plan.evaluations_of(job) for job in plan.jobs()}
    assert len(counts) == 7  # the uniform one once
    assert set(counts.values()) <= {1, evaluations}
    assert [job for job in counts if job.agent == "uniform"] == [Job("uniform", 0.5, 1, 0)]


# -- the folder ------------------------------------------------------------------------------------


def test_a_comparison_of_other_weights_or_images_is_refused(
    weights: Path, digits: ImageData, tmp_path: Path
) -> None:
    plan, network = Plan(("uniform",), evaluations=3), Network("resnet8", weights)
    with ResultsFolder(tmp_path / "out") as folder:
        run(plan, network, digits, folder)
        run(plan, network, digits, folder)
        moved = tmp_path / "moved.safetensors"
        moved.write_bytes(weights.read_bytes())
        run(plan, Network("resnet8", moved), digits, folder)  # the same weights elsewhere
        torch.manual_seed(1)
        compaction.save_full(models.create("resnet8", 10, 1), moved)
        with pytest.raises(InputError, match="compares with init_sha256="):
            run(plan, Network("resnet8", moved), digits, folder)
        others = data.load("digits", train_limit=100, reward_fraction=0.3, seed=1)
        with pytest.raises(InputError, match="compares with reward_sha256="):
            run(plan, network, others.with_reward_images(20), folder)
        with pytest.raises(InputError, match="compares with evaluations=3, not 4"):
            run(replace(plan, evaluations=4), network, digits, folder)


def test_a_contender_of_other_settings_is_refused_and_the_others_are_not(
    weights: Path, digits: ImageData, tmp_path: Path
) -> None:
    plan, network = Plan(("sac",), evaluations=3), Network("resnet8", weights)
    # as a later version's defaults might be: its "sac" would be another one
    later = replace(plan.base, sac=replace(plan.base.sac, critics=7))
    with ResultsFolder(tmp_path / "out") as folder:
        run(plan, network, digits, folder)
        for agent in ("random", "ddpg"):
            run(replace(plan, agents=(agent,), base=later), network, digits, folder)
        for agents in (("sac",), ("uniform", "sac")):
            with pytest.raises(InputError, match=r"with contenders.sac.sac.critics=5, not 7"):
                run(replace(plan, agents=agents, base=later), network, digits, folder)
        assert {row.agent for row in folder.rows()} == {"sac", "random", "ddpg"}
        contenders = folder.settings()["contenders"]
        assert list(contenders) == ["sac", "random", "ddpg"]
        assert contenders["random"] == {}
        assert set(contenders["ddpg"]) == {"state", "ddpg"}
        assert set(contenders["sac"]) == {"state", "sac", "screening", "evolution"}


def test_what_a_contender_does_not_read_is_not_in_its_settings() -> None:
    base = JointConfig(epochs=4)
    paper, assisted = CONTENDERS["sac-paper"].reads(base), CONTENDERS["sac-assisted"].reads(base)
    assert paper["screening"] == {"candidates": 1}
    assert "evolution" not in paper
    assert set(assisted["history"]) == {"assistant", "critics_screen", "predicted_episodes"}
    assert "lasting" in CONTENDERS["sac-assistant"].reads(base)["history"]
    assert CONTENDERS["evolutionary"].reads(base)["evolution"]["population"] == 16
    assert CONTENDERS["sac-unaligned"].reads(base)["alignment"] is False


def test_a_folder_of_an_earlier_version_is_left_alone(
    weights: Path, digits: ImageData, tmp_path: Path
) -> None:
    plan, network = Plan(("uniform",), evaluations=3), Network("resnet8", weights)
    with ResultsFolder(tmp_path) as folder:
        run(plan, network, digits, folder)
        settings = folder.settings()
        del settings["contenders"]
        before = json.dumps(settings)
        folder.settings_path.write_text(before)
        with pytest.raises(InputError, match=r"lacks contenders: .* another version of rlal_fast"):
            run(replace(plan, agents=("random",)), network, digits, folder)
        assert folder.settings_path.read_text() == before


def test_two_processes_share_the_runs_of_one_folder(
    weights: Path, digits: ImageData, tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rlal_fast import data\n"
        "from rlal_fast.comparison import *\n"
        "digits = data.load('digits', train_limit=100, reward_fraction=0.3)\n"
        "plan = Plan(('random', 'ddpg'), seeds=tuple(range(8)), evaluations=12)\n"
        "with ResultsFolder(sys.argv[2]) as folder:\n"
        "    print('ready', flush=True)\n"
        "    run(plan, Network('resnet8', Path(sys.argv[1])), digits.with_reward_images(20),\n"
        "        folder, on_row=lambda row, _: print(row.job, flush=True))\n"
    )
    plan = Plan(("random", "ddpg"), seeds=tuple(range(8)), evaluations=12)
    call = [sys.executable, "-c", script, str(weights), str(tmp_path)]
    ours: list[str] = []
    with (
        subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as other,
        ResultsFolder(tmp_path) as folder,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        network = Network("resnet8", weights)
        run(plan, network, digits, folder, on_row=lambda row, _: ours.append(str(row.job)))
        theirs = other.communicate(timeout=120)[0].splitlines()
    assert other.returncode == 0
    assert sorted(ours + theirs) == sorted(map(str, plan.jobs()))  # none twice, none left out
    with ResultsFolder(tmp_path) as folder:
        assert len(folder.rows()) == len(folder.results_path.read_bytes().splitlines()) == 16


def test_what_another_process_is_at_is_left_to_it(
    weights: Path, digits: ImageData, tmp_path: Path
) -> None:
    holder = (
        "import sys; from rlal_fast.comparison.results import *\n"
        "with ResultsFolder(sys.argv[1]) as f, f.claim(Job('random', 0.5, 10, 0)) as ours:\n"
        "    print(ours, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path)]
    plan = Plan(("random",), seeds=(0, 1), evaluations=3)
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other,
        ResultsFolder(tmp_path) as folder,
    ):
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        rows = run(plan, Network("resnet8", weights), digits, folder)
        assert [found.seed for found in rows] == [1]
        other.kill()  # and what a killed one was at is free again
        other.wait()
        rows = run(plan, Network("resnet8", weights), digits, folder)
        assert [found.seed for found in rows] == [0, 1]


# -- bad input -------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[str], str]] = {
    "agent": (["--agents", "sac,dqn"], "unknown agent 'dqn': known are uniform, random, evol"),
    "unaligned": (
        ["--agents", "sac-unaligned"],
        "sac-unaligned differs in how weights are trained",
    ),
    "tuning": (["--finetune-epochs", "-1"], "finetune_epochs=-1 must be at least 0"),
    "no-agent": (["--agents", ""], "unknown agent ''"),
    "twice": (["--agents", "sac,sac"], "agents holds a value twice: sac, sac"),
    "ratio": (["--pruned-flops", "0.5,half"], "pruned_flops='0.5,half' must be numbers of type fl"),
    "unreachable": (["--pruned-flops", "0.5,0.99"], "cannot be reached"),
    "p": (["--episodes-per-epoch", "0"], "episodes_per_epoch=0 must be at least 1"),
    "p-text": (["--episodes-per-epoch", "5;10"], "episodes_per_epoch='5;10' must be numbers"),
    "seeds": (["--seeds", "0"], "seeds=0 must be 1 to 10000 of them, such as 5 or 5-9"),
    "seeds-text": (["--seeds", "5-"], "seeds='5-' must be numbers of type int"),
    "negative-seed": (["--seeds", "0,-1"], "seed=-1 must be at least 0"),
    "evaluations": (["--evaluations", "0"], "evaluations=0 must be at least 1"),
    "both": (["--epochs", "2"], "evaluations are for weights that stand still.*epochs=2"),
    "images": (["--reward-images", "31"], r"reward_images is 31, .* has 30 images: give 1\.\.30"),
    "level": (["--level", "60"], r"level=60\.0 must be a reward, above 0 and at most 1"),
    "level-of": (["--level-of", "sac-typo"], "is to be sac-typo's reward, which is not compared"),
    "init": (["--init", "nowhere.safetensors"], "cannot read nowhere.safetensors: No such file"),
    "report": (["--report-only"], "no folder .*out: give the --out of an earlier `rlal compare`"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_leaves_no_folder(
    weights: Path, tmp_path: Path, what: str
) -> None:
    given, message = BAD[what]
    out = tmp_path / "out"
    status, _, errors = here("compare", *TINY, *ALL, "--init", weights, "--out", out, *given)
    assert status == 2
    assert re.fullmatch(r"error: [^\n]+\n", errors)
    assert re.search(message, errors), errors
    assert not out.exists()


@pytest.mark.parametrize("off", [["--no-alignment"], ["--beta", "0"]])
def test_an_ablation_of_what_is_off_is_refused(tmp_path: Path, off: list[str]) -> None:
    call = ["compare", *TINY, "--agents", "sac-unaligned", "--epochs", "3", *off]
    status, _, errors = here(*call, "--out", tmp_path / "out")
    assert status == 2
    assert "sac-unaligned differs by the alignment, which is switched off for all" in errors
    assert not (tmp_path / "out").exists()


def test_standing_weights_are_somebodys() -> None:
    status, _, errors = here("compare", *TINY)
    assert status == 2
    assert "agents are compared on a trained network: give its weights by --init" in errors


def test_a_folder_of_something_else(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    call = ["compare", *TINY, *ALL, "--init", weights, "--out"]
    status, _, errors = here(*call, tmp_path)
    assert status == 2
    assert "is not empty (it holds thesis.tex) and no comparison" in errors
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    status, _, errors = here(*call, tmp_path / "thesis.tex")
    assert status == 2
    assert "is, or lies under, a file: give a folder" in errors
    status, _, errors = here("compare", "--report-only", "--out", tmp_path)
    assert status == 2
    assert "holds no comparison" in errors
