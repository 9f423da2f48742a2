"""`rlal compare`: agents side by side, the same number of evaluations, several seeds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rlal_fast.cli_options import DATA, DEVICE, FINETUNING, LOOP, NETWORK, WEIGHTS
from rlal_fast.commands.settings import Settings, joint_config, load_data
from rlal_fast.errors import InputError

if TYPE_CHECKING:
    from rlal_fast.comparison import Plan, ResultsFolder
    from rlal_fast.data import ImageData
    from rlal_fast.history.past_run import PastRun

Goal = tuple[float | None, str]  # the level, or else whose mean best reward it is
Number = TypeVar("Number", int, float)
_EVALUATIONS = 400  # by default
_MOST_SEEDS = 10_000


@click.command()
@NETWORK
@DATA
@click.option("--reward-images", type=int, help="Score on so many of them only [all].")
@click.option(
    "--split-seed",
    default=0,
    help="Seed of the split: the --seed that --init was trained with, or it has seen the rewards.",
)
@click.option(
    "--agents",
    default="uniform,random,evolutionary,ddpg,sac,sac-ee",
    help="Also ddpg-ee, sac-paper, sac-paper-ee, sac-assisted; -ee: with the environment model. "
    "In joint training also sac-unaligned, sac-unaligned-ee; their weights are not aligned. "
    "They learn from --history: sac-transfer, sac-augmented, sac-assistant, sac-history, "
    "sac-history-augmented; each with parts of what `rlal run --from-history` does.",
)
@click.option("--pruned-flops", default="0.5", help="Fractions of the FLOPs, e.g. 0.35,0.5,0.65.")
@click.option("--episodes-per-epoch", default="10", help="Values of P, e.g. 5,10,15.")
@click.option("--seeds", default="5", help="How many from 0 up, or which: 0,3,7 or 5-9.")
@click.option(
    "--evaluations",
    type=int,
    help=f"Of a run on standing weights; its last epoch has what P leaves [{_EVALUATIONS}].",
)
@click.option(
    "--epochs", default=0, help="Epochs of joint training; 0: the weights of --init stand still."
)
@LOOP
@WEIGHTS
@FINETUNING
@DEVICE
@click.option(
    "--out",
    type=click.Path(),
    help="Folder of the results; finished runs are kept [runs/compare-<arch>-<dataset>].",
)
@click.option(
    "--level", type=float, help="Reward to reach, in 0..1 [mean best reward of random search]."
)
@click.option(
    "--level-of",
    metavar="AGENT",
    help="That agent's mean best reward is the level [random].",
)
@click.option(
    "--history",
    "history_file",
    type=click.Path(),
    metavar="FILE",
    help="Past runs to learn from, as `rlal history export` wrote them.",
)
@click.option("--report-only", is_flag=True, help="Table and pictures of what --out has.")
@click.option("-q", "--quiet", is_flag=True, help="Show the tables only.")
@click.pass_context
def compare(
    context: click.Context,
    /,
    out: str | None,
    level: float | None,
    level_of: str | None,
    report_only: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Compare agents at the same number of evaluations, on the same weights.

    With --init and --epochs 0 the trained weights stand still; with --epochs above 0 they are
    trained and pruned jointly, once per run. What is interrupted goes on with the same call, and
    several calls may work on one --out at once.
    """
    from rlal_fast.comparison import ResultsFolder
    from rlal_fast.comparison.summary import BASELINE

    if level is not None and not 0 < level <= 1:
        raise InputError(f"level={level} must be a reward, above 0 and at most 1")
    if level is not None and level_of is not None:
        raise InputError("the level is either --level or the reward of --level-of: give one")
    goal = level, level_of or BASELINE
    path = Path(out) if out is not None else _default_folder(settings)
    with ResultsFolder(path) as folder:
        if report_only:
            _report(folder, goal, None)
        else:
            _compare(folder, settings, goal, quiet)


def _compare(folder: ResultsFolder, settings: Settings, goal: Goal, quiet: bool) -> None:
    import torch

    from rlal_fast import comparison, device
    from rlal_fast.comparison import report
    from rlal_fast.comparison.display import ComparisonDisplay
    from rlal_fast.comparison.summary import BASELINE

    if settings["epochs"] == 0 and settings["init"] is None:
        raise InputError(
            "agents are compared on a trained network: give its weights by --init, or train it "
            "with them by --epochs"
        )
    plan = _plan(settings)
    if goal[1] != BASELINE:
        report.check_level_of(goal[1], {*plan.agents, *(r.agent for r in folder.rows())})
    device.resolve(plan.base.device)  # before images are read
    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    network = comparison.Network(
        settings["arch"], None if settings["init"] is None else Path(settings["init"])
    )
    network.fingerprint()  # before images are read, too
    display = ComparisonDisplay(quiet, len(list(plan.jobs())))
    display.console.print(f"results: {folder.path}  (interrupted? the same call goes on)")
    with display:
        data = _images(settings, display.on_decode)
        rows = comparison.run(
            plan,
            network,
            data,
            folder,
            on_start=display.on_start,
            on_epoch=display.on_epoch,
            on_row=display.on_row,
        )
    _report(folder, goal, display)
    if len(rows) < len(list(plan.jobs())):
        display.console.print(
            f"{len(list(plan.jobs())) - len(rows)} runs are under way in another process: the last "
            "one to end reports all"
        )


def _report(folder: ResultsFolder, goal: Goal, display: Any) -> None:
    from rlal_fast.comparison import report
    from rlal_fast.comparison.display import ComparisonDisplay

    display = display or ComparisonDisplay(quiet=False, runs=0)
    if not folder.path.is_dir():
        raise InputError(f"no folder {folder.path}: give the --out of an earlier `rlal compare`")
    lines = report.write(folder, *goal)
    display.tables(folder.settings(), lines)
    display.console.print(
        f"table: {folder.path / 'table.md'}   picture: {folder.path / 'best-reward.svg'}"
    )


def _plan(settings: Settings) -> Plan:
    from rlal_fast.comparison import Plan

    epochs, evaluations = settings["epochs"], settings["evaluations"]
    if epochs == 0 and evaluations is None:
        evaluations = _EVALUATIONS
    own = {"pruned_flops", "episodes_per_epoch"}
    base = {name: value for name, value in settings.items() if name not in own}
    return Plan(
        agents=tuple(name.strip() for name in settings["agents"].split(",")),
        pruned_flops=_numbers("pruned_flops", settings["pruned_flops"], float),
        episodes_per_epoch=_numbers("episodes_per_epoch", settings["episodes_per_epoch"], int),
        seeds=_seeds(settings["seeds"]),
        evaluations=evaluations,
        base=joint_config({**base, "seed": 0, "preset": "default", "candidates": None}),
        history=_past_runs(settings["history_file"]),
    )


def _past_runs(file: str | None) -> tuple[PastRun, ...]:
    """The runs of an exported history, newest first; none without a file."""
    from rlal_fast.history.store import HistoryStore

    if file is None:
        return ()
    if not Path(file).exists():  # the store would take it for an empty one
        raise InputError(f"no file {file}: give one that `rlal history export` wrote")
    store = HistoryStore(file)
    runs = tuple(store.get(run.id) for run in store.runs())
    if not runs:
        raise InputError(f"{file} holds no past run: give one that `rlal history export` wrote")
    return runs


def _images(settings: Settings, progress: Callable[[int, int], None]) -> ImageData:
    seed, count = settings["split_seed"], settings["reward_images"]
    data = load_data({**settings, "seed": seed}, progress)
    return data if count is None else data.with_reward_images(count, seed)


def _default_folder(settings: Settings) -> Path:
    """The same for the same network and data, so that the same call goes on."""
    words = f"compare-{settings['arch']}-{settings['dataset']}"
    return Path("runs", re.sub(r"[^\w.-]+", "-", words))


def _numbers(name: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(word) for word in text.split(","))
    except ValueError:
        raise InputError(
            f"{name}={text!r} must be numbers of type {kind.__name__} with commas between"
        ) from None


def _seeds(text: str) -> tuple[int, ...]:
    """ "5" -> 0..4, "0,3,7" -> these, "5-9" -> 5..9."""
    if found := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = map(int, found.groups())
    elif re.fullmatch(r"\d+", text):
        first, last = 0, int(text) - 1
    else:
        return _numbers("seeds", text, int)
    if not 0 <= last - first < _MOST_SEEDS:
        raise InputError(f"seeds={text} must be 1 to {_MOST_SEEDS} of them, such as 5 or 5-9")
    return tuple(range(first, last + 1))
