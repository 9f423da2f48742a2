"""Command line: `rlal run|compare|history|evaluate|flops|info`.

Options become a plain dict, the dict becomes config.yaml, and everything slow is imported only
then.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlal_fast._version import __version__
from rlal_fast.cli_options import (
    DATA,
    DEVICE,
    DIGITS_EPOCHS,
    EPOCHS,
    FINETUNING,
    LOOP,
    NETWORK,
    SEARCH,
    TRAINING,
    WEIGHTS,
)
from rlal_fast.commands.compare import compare
from rlal_fast.commands.history import check_learned, history, recall, remember
from rlal_fast.commands.settings import Settings, joint_config, load_data
from rlal_fast.errors import InputError, RunStopped
from rlal_fast.run_folder import RunFolder

if TYPE_CHECKING:
    from rlal_fast.console import Display
    from rlal_fast.trainer import JointTrainer

_PATHS = ("data_dir", "init")
_NOT_SETTINGS = ("out", "resume", "quiet", "max_minutes")  # said anew at each call
_MAY_CHANGE = ("device", "capture", "history")  # what a resumed run may be given anew
# What the folder of a run by an earlier version may lack.
_LATER = {"history": True, "from_history": "off"}
_LATER |= {"transfer": True, "augmented": False, "assistant": False}
_STOPPED = 3  # exit status of a run that --max-minutes stopped


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="rlal")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train a convolutional network and prune it at the same time."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@NETWORK
@DATA
@SEARCH
@LOOP
@WEIGHTS
@FINETUNING
@TRAINING
@DEVICE
@click.option("--out", type=click.Path(), help="Folder of the run [a new one under runs/].")
@click.option(
    "--resume", type=click.Path(), metavar="FOLDER", help="Go on with an interrupted run."
)
@click.option(
    "--max-minutes",
    type=float,
    help=f"Stop after the epoch that passes this, with exit status {_STOPPED}; --resume goes on.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show the result only.")
@click.pass_context
def run(
    context: click.Context,
    /,
    out: str | None,
    resume: str | None,
    max_minutes: float | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train a network and prune it at the same time.

    Without options: a small ResNet on scikit-learn's handwritten digits, half of the FLOPs pruned.
    """
    limit = _Limit(max_minutes)
    if resume is not None:
        anew = _settings_anew(context)
        folder = _open(resume)
        if folder.finished:
            click.echo(f"{folder.path} is finished: see {folder.path / 'report.html'}")
            return
        with folder.lock():
            _run_job(folder, {**_LATER, **folder.config, **anew}, quiet, limit, new=False)
        return
    folder = RunFolder.create(out, _plain(settings))
    with folder.lock():
        _run_job(folder, folder.config, quiet, limit, new=True)


class _Limit:
    """The time limit of this process, counted from when the command began."""

    def __init__(self, minutes: float | None) -> None:
        if minutes is not None and not minutes >= 0:
            raise InputError(f"max_minutes={minutes} must be at least 0")
        self.minutes, self._began = minutes, time.monotonic()

    def left(self) -> float | None:
        """Minutes that are left, at least 0; None without a limit."""
        if self.minutes is None:
            return None
        return max(0.0, self.minutes - (time.monotonic() - self._began) / 60)


def _open(path: str) -> RunFolder:
    folder = RunFolder.open(path)
    missing = {str(p.name) for p in run.params} - {*_NOT_SETTINGS, *_LATER} - set(folder.config)
    if missing:
        raise InputError(
            f"{folder.config_path} lacks {', '.join(sorted(missing))}: it was edited, or is of "
            "another version of rlal_fast"
        )
    return folder


def _settings_anew(context: click.Context) -> Settings:
    """What a resumed run is given beside its folder.

    It has its settings; others than those of _MAY_CHANGE would be silently without effect.
    """
    anew: Settings = {}
    for name, value in context.params.items():
        given = context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        if given and name in _MAY_CHANGE:
            anew[name] = value
        elif given and name not in ("resume", "quiet", "max_minutes"):
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"--resume takes its settings from the run's config.yaml: leave out {flag}"
            )
    return anew


def _plain(settings: Settings) -> Settings:
    """Settings as config.yaml stores them: defaults filled in, paths absolute, no tuples."""
    plain: Settings = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    for name in _PATHS:
        if plain[name] is not None:
            plain[name] = str(Path(plain[name]).absolute())
    if plain["epochs"] is None:
        plain["epochs"] = DIGITS_EPOCHS if plain["dataset"] == "digits" else EPOCHS
    return {**plain, "command": shlex.join(["rlal", *sys.argv[1:]]), "version": __version__}


def _run_job(
    folder: RunFolder, settings: Settings, quiet: bool, limit: _Limit, *, new: bool
) -> None:
    import dataclasses

    from rlal_fast import compaction, report
    from rlal_fast.console import summary

    try:
        trainer, display = _prepare(folder, settings, quiet)
    except Exception:
        if new:
            folder.discard()  # nothing was done yet: the same --out can be asked for again
        raise
    again = shlex.join(["rlal", "run", "--resume", str(folder.path)])
    display.console.print(f"run folder: {folder.path}  (interrupted? {again})")
    if settings["device"] == "auto":
        display.console.print(f"device: {trainer.device}")
    learned = trainer.head_start.summary()
    if learned is None and new and settings["from_history"] == "auto":
        learned = "nothing, as no past run can teach what was asked for"
    if learned is not None:
        display.console.print(f"from the history: {learned}")
    try:
        with display:
            result = trainer.fit(limit.left())
    except RunStopped as stop:
        click.echo(
            f"stopped after {stop.done} of {stop.total} epochs; "
            f"`{again} --max-minutes {limit.minutes:g}` goes on"
        )
        sys.exit(_STOPPED)
    if trainer.head_start.reason is not None:
        display.console.print(f"what past runs taught was dropped: {trainer.head_start.reason}")
    compaction.save(result.network, folder.model_dir)
    compaction.save_full(trainer.model, folder.path / "full.safetensors")
    finished = dataclasses.replace(result.report, command=settings["command"])
    report.write(finished, result.metrics, folder.path)
    run_id = remember(trainer) if settings["history"] else None
    if run_id is not None:
        display.console.print(f"in the history: {run_id}  (rlal history show {run_id})")
    display.console.quiet = False
    display.console.print(summary(finished))
    display.console.print(f"report: {folder.path / 'report.html'}   network: {folder.model_dir}")


def _prepare(folder: RunFolder, settings: Settings, quiet: bool) -> tuple[JointTrainer, Display]:
    """Everything that can be refused, before anything is trained."""
    import torch

    from rlal_fast import checkpoint, compaction, device, models
    from rlal_fast.console import Display
    from rlal_fast.seeds import derived_seed
    from rlal_fast.trainer import JointTrainer

    config = joint_config(settings)
    device.resolve(config.device)  # before images are read
    # sums depend on the number of threads: a resumed run must have as many as it began with
    threads = settings["threads"] or checkpoint.threads(folder)
    if threads is not None:
        torch.set_num_threads(threads)
    display = Display(quiet, config.total_epochs, config.finetune)
    with display:
        data = load_data(settings, display.on_decode)
        torch.manual_seed(derived_seed(config.seed, "model"))
        model = models.create(settings["arch"], data.num_classes, data.image_shape[0])
        begins = not checkpoint.exists(folder)
        if settings["init"] is not None and begins:
            compaction.load_full(model, settings["init"])
        # a resumed run has what it learned in its checkpoint
        choice = settings["from_history"] if begins else "off"
        trainer = JointTrainer(
            model,
            data,
            config,
            folder=folder,
            arch=settings["arch"],
            on_epoch=display.on_epoch,
            on_batch=display.on_batch,
            history=recall(choice, settings["arch"], data.name),
        )
        check_learned(choice, trainer.head_start)
    return trainer, display


@cli.command()
@NETWORK
@click.option("--image-size", type=int, help="Height and width [torchvision: 224, else 32].")
@click.option("--in-channels", default=3, help="Channels of the images.")
@click.option("--num-classes", default=10, help="Outputs of the network.")
def flops(
    arch: str,
    groups: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    image_size: int | None,
    in_channels: int,
    num_classes: int,
) -> None:
    """Show a network's prunable groups and exact MACs, with torch's own count beside them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rlal_fast import models
    from rlal_fast.graph import PrunableGraph

    size = (224 if arch.startswith("torchvision/") else 32) if image_size is None else image_size
    if size < 1:
        raise InputError(f"image_size={size} must be at least 1")
    model = models.create(arch, num_classes, in_channels).eval()
    example = torch.zeros(1, in_channels, size, size)
    graph = PrunableGraph.trace(model, example, groups=groups, include=include, exclude=exclude)
    click.echo(str(graph))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    macs = int(graph.cost.macs(graph.full_widths))
    theirs = counter.get_total_flops()
    click.echo(
        f"ours: {macs:,} MACs = {2 * macs:,} FLOPs; torch.utils.flop_counter: {theirs:,} FLOPs"
    )


@cli.command()
@click.argument("folder", type=click.Path())
@click.option(
    "--batch-size", "batch_sizes", multiple=True, default=(1, 256), help="Of the latency."
)
def evaluate(folder: str, batch_sizes: tuple[int, ...]) -> None:
    """Measure accuracy and latency of a finished run's compact network."""
    if min(batch_sizes) < 1:
        raise InputError(f"batch sizes must be at least 1, not {min(batch_sizes)}")
    found = _open(folder)
    if not found.finished:
        raise InputError(f"{folder} is not finished: go on with it by `rlal run --resume {folder}`")
    import torch

    from rlal_fast import compaction
    from rlal_fast.data import Normalisation
    from rlal_fast.latency import measure
    from rlal_fast.weights import accuracy

    if found.config["threads"] is not None:
        torch.set_num_threads(found.config["threads"])
    # in the memory format in which the report measured it
    network = compaction.load(found.model_dir).to(memory_format=torch.channels_last)
    data = load_data(found.config)
    normalise = Normalisation(**{k: tuple(v) for k, v in network.metadata["normalisation"].items()})
    reached = accuracy(network, data.test.images, data.test.labels, normalise)
    click.echo(f"{found.model_dir}: {compaction.parameter_count(network):,} parameters")
    click.echo(f"test accuracy {reached:.2%}")
    for batch, ms in measure({"net": network}, data.image_shape, batch_sizes)["net"].items():
        click.echo(f"latency {ms:.2f} ms per batch of {batch}")


cli.add_command(compare)
cli.add_command(history)


@cli.command()
def info() -> None:
    """Say what the compiled part was built with and what it can use here."""
    from rlal_fast.kernels import build_info, cuda

    for name, value in build_info().items():
        click.echo(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    click.echo(f"backend cuda: {cuda.unusable() or 'can run here'}")


def main() -> None:
    """Entry point: bad input is one line and exit status 2, Ctrl-C is 130, a time limit 3."""
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; `rlal run --resume FOLDER` continues a run", err=True)
        sys.exit(130)
    except click.ClickException as error:
        _fail(error.format_message())
    except MemoryError:
        _fail("out of memory: use smaller images, a smaller --batch-size or fewer training images")
    except (InputError, OSError, ImportError) as error:
        _fail(str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be imported
            raise
        _fail(f"out of GPU memory: use a smaller --batch-size ({str(error)[:200]})")


def _fail(message: str) -> None:
    click.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
