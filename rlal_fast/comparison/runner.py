"""Makes the runs of a comparison that its folder lacks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

from rlal_fast._version import __version__
from rlal_fast.comparison.plan import Network, Plan
from rlal_fast.comparison.results import Job, ResultsFolder, Row
from rlal_fast.data import ImageData
from rlal_fast.evaluator import Evaluator
from rlal_fast.flops import Budget
from rlal_fast.metrics import Record
from rlal_fast.subnet import Subnet
from rlal_fast.trainer import JointTrainer

_DIGITS = 6


def run(
    plan: Plan,
    network: Network,
    data: ImageData,
    folder: ResultsFolder,
    *,
    on_start: Callable[[Job, int], None] | None = None,
    on_epoch: Callable[[Record], None] | None = None,
    on_row: Callable[[Row, int], None] | None = None,
) -> list[Row]:
    """Runs what neither the folder has nor another process is at.

    Args:
        plan: which runs.
        network: what is pruned.
        data: its reward split scores; its test split measures each run's structure at the end.
        folder: where the rows are and go.
        on_start: told each run and its number of epochs, before it begins.
        on_epoch: told each epoch's record.
        on_row: told each finished run and how many of the plan's are finished then.

    Returns:
        All rows of the folder that the plan has, in its order.

    Raises:
        InputError: the folder is of other settings, or a run cannot work.
    """
    jobs = list(plan.jobs())
    if _missing(jobs, folder.rows()):
        _check(plan, network, data)
    folder.share(plan.settings(network, data))
    for job in jobs:
        with folder.claim(job) as ours:
            # another process may have finished it while this one was at others
            if not ours or not _missing([job], folder.rows()):
                continue
            if on_start is not None:
                config = plan.config(job)
                on_start(job, config.total_epochs + config.finetune)
            row = _search(plan, job, network, data, on_epoch)
            folder.append(row)
        if on_row is not None:
            on_row(row, len(jobs) - len(_missing(jobs, folder.rows())))
    found = {row.job: row for row in folder.rows()}
    return [found[job] for job in jobs if job in found]


def _missing(jobs: Sequence[Job], rows: Sequence[Row]) -> list[Job]:
    done = {row.job for row in rows}
    return [job for job in jobs if job not in done]


def _check(plan: Plan, network: Network, data: ImageData) -> None:
    """Refuses what the first or a later run would, before the folder is claimed."""
    first, base = next(plan.jobs()), plan.base
    trainer = JointTrainer(network.create(data, first.seed), data, plan.config(first))
    for ratio in plan.pruned_flops:
        Budget(
            trainer.graph.cost,
            ratio,
            a_max=base.a_max,
            min_width=base.min_width,
            round_to=base.round_to,
        )


def _search(
    plan: Plan,
    job: Job,
    network: Network,
    data: ImageData,
    on_epoch: Callable[[Record], None] | None,
) -> Row:
    model = network.create(data, job.seed)
    trainer = JointTrainer(
        model,
        data,
        plan.config(job),
        arch=network.arch,
        on_epoch=on_epoch,
        history=plan.past_runs(job),
    )
    structure = trainer.search()
    seconds = trainer.elapsed()  # without the fine-tuning and the test images
    expected = plan.evaluations_of(job)
    assert trainer.episodes == expected, f"{job}: {trainer.episodes} evaluations, not {expected}"
    records, budget = list(trainer.log.records), trainer.budget  # fine-tuning appends its own
    best, as_cut = float(trainer.structures.rewards[0]), _test_accuracy(trainer, structure)
    full = finetuned = None
    if trainer.config.finetune:
        full, _, finetuned = trainer.finetune().accuracies
    macs = int(trainer.graph.cost.macs(structure.widths))
    return Row(
        job.agent,
        job.pruned_flops,
        job.episodes_per_epoch,
        job.seed,
        evaluations=trainer.episodes,
        best_reward=round(best, _DIGITS),
        test_accuracy=round(as_cut, _DIGITS),
        widths=structure.widths.tolist(),
        pruned_flops_reached=round(1 - macs / budget.macs_full, _DIGITS),
        rewards=[[round(reward, _DIGITS) for reward in r["rewards"]] for r in records],
        structure_rewards=[_rounded(record["structure_reward"]) for record in records],
        full_accuracies=[round(record["reward_split_accuracy"], _DIGITS) for record in records],
        seconds={name: round(value, 3) for name, value in seconds.items()},
        evaluator=f"{trainer.evaluator.description}, {torch.get_num_threads()} threads",
        version=__version__,
        commit=os.environ.get("RLAL_FAST_COMMIT"),
        full_test_accuracy=_rounded(full),
        finetuned_test_accuracy=_rounded(finetuned),
    )


def _test_accuracy(trainer: JointTrainer, structure: Subnet) -> float:
    """Of the structure as cut: by the evaluator, which is several times faster than the network."""
    data, config = trainer.data, trainer.config
    evaluator = Evaluator(
        trainer.graph,
        data.normalised(data.test).to(trainer.device),
        data.test.labels.to(trainer.device),
        config.evaluator,
        trainer.recalibration,
        precision=config.evaluator_precision,
    )
    evaluator.load_weights(trainer.model)
    return float(evaluator.accuracies([structure])[0])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
