"""The options of the commands, in groups: some belong to several of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

DIGITS_EPOCHS, EPOCHS = 24, 200  # by default


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


_option = click.option
NETWORK = _options(
    _option(
        "--arch",
        default="resnet20",
        help="resnet8..110, mobilenet_v1[_0.5], mobilenet_v2 or torchvision/<name>.",
    ),
    _option("--groups", default="internal", help="internal: groups that no addition ties; all."),
    _option(
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Prune only groups named so, e.g. 'layer1.*'.",
    ),
    _option("--exclude", multiple=True, metavar="PATTERN", help="Leave groups named so alone."),
)
DATA = _options(
    _option("--dataset", default="digits", help="digits (embedded), cifar10 or imagefolder."),
    _option("--data-dir", type=click.Path(), help="Folder of the images (cifar10, imagefolder)."),
    _option(
        "--image-size", type=int, help="imagefolder: resize and crop to a square of this size."
    ),
    _option(
        "--reward-fraction", default=0.1, help="Share of the training images held out for rewards."
    ),
    _option("--train-limit", type=int, help="Use only so many training images."),
    _option(
        "--crop-padding", type=int, help="Random crops with this padding [cifar10: 4, else 0]."
    ),
    _option(
        "--flip/--no-flip", default=None, help="Random horizontal flips [cifar10: on, else off]."
    ),
    _option("--on-corrupt", default="stop", help="An image that cannot be read: stop or skip."),
    _option("--memory-limit-gib", default=8.0, help="Most memory that decoded images may take."),
)
# Of `rlal run`; `rlal compare` takes several of most of these at once.
SEARCH = _options(
    _option("--pruned-flops", default=0.5, help="Fraction of the FLOPs to prune."),
    _option(
        "--epochs",
        type=int,
        help=f"Epochs of joint training [digits: {DIGITS_EPOCHS}, else {EPOCHS}].",
    ),
    _option("--episodes-per-epoch", default=10, help="Sub-networks the agent tries per epoch."),
    _option("--search-epochs", type=int, help="Epochs that only search [0; 20 with --epochs 0]."),
    _option("--agent", default="sac", help="sac, ddpg, evolutionary, random or uniform."),
    _option("--preset", default="default", help="default, or paper: SAC as the paper has it."),
    _option(
        "--candidates",
        type=int,
        help="Episodes SAC walks for each it scores [4; paper: 1]; more with a past run's agent.",
    ),
    _option(
        "--epoch-embedding/--no-epoch-embedding", default=True, help="The GRU environment model."
    ),
    _option(
        "--history/--no-history",
        default=True,
        help="Keep episodes and agent for later runs: see `rlal history`.",
    ),
    _option(
        "--from-history",
        default="off",
        metavar="auto|RUN|off",
        help="Learn from past runs: those that fit best, or this one (see `rlal history`).",
    ),
    _option(
        "--transfer/--no-transfer", default=True, help="With it: begin with a past run's agent."
    ),
    _option(
        "--augmented/--no-augmented",
        default=False,
        help="With it: first train that agent on all their episodes, for this budget, too.",
    ),
    _option(
        "--assistant/--no-assistant",
        default=False,
        help="An ensemble, taught by past runs and this one, that picks what is scored.",
    ),
)
LOOP = _options(
    _option("--warmup-epochs", type=int, help="First epochs without episodes [5 %, at most 10]."),
    _option("--random-epochs", type=int, help="Then epochs of random episodes [5 %, at most 10]."),
    _option("--agent-updates", type=int, help="Agent updates per epoch [one per transition]."),
    _option(
        "--alignment/--no-alignment", default=True, help="The soft penalty towards the structure."
    ),
    _option("--beta", type=float, help="Weight of that penalty [10 / steps; paper: 1e-4]."),
    _option(
        "--beta-growth",
        type=float,
        help="Power of the epoch that it grows with, its mean the same [0: steady].",
    ),
    _option("--environment-steps", default=50, help="Updates of that model per epoch."),
    _option("--structures", default=4, help="Best structures evaluated again each epoch."),
    _option(
        "--race-share",
        type=float,
        help="Share of the reward images after which what is clearly behind is stopped [0.25; "
        "paper, and with --bn-recalibrate: 1].",
    ),
    _option("--importance", default="l1", help="l1, l2, bn_scale, fpgm or random."),
    _option(
        "--bn-recalibrate",
        type=int,
        help="Score by batch norm statistics of so many images [0; where weights stand still 128; "
        "paper: 0].",
    ),
    _option("--a-max", default=0.8, help="Largest pruning ratio of a group."),
    _option("--min-width", default=1, help="Fewest channels of a group."),
    _option(
        "--round-to", default=1, help="Widths are multiples of this; 8 or 16 suits many devices."
    ),
)
WEIGHTS = _options(
    _option(
        "--init", type=click.Path(), help="Start from these weights (.safetensors or a state dict)."
    ),
    _option("--lr", default=0.1, help="Learning rate, cosine to 0."),
    _option("--momentum", default=0.9, help="Nesterov momentum."),
    _option("--weight-decay", default=5e-4, help="Weight decay."),
    _option("--batch-size", default=128, help="Images per step."),
    _option("--threads", type=int, help="CPU threads [all cores]."),
)
FINETUNING = _options(
    _option(
        "--finetune-epochs",
        type=int,
        help="Epochs after pruning [a quarter of --epochs; `rlal compare` on standing weights: 0].",
    ),
    _option("--finetune-lr", default=0.01, help="Learning rate of the fine-tuning."),
)
TRAINING = _options(
    _option("--seed", default=0, help="Seed of everything."),
)
DEVICE = _options(
    _option("--device", default="cpu", help="Where to train: cpu, cuda, cuda:<number> or auto."),
    _option("--amp", default="auto", help="On a GPU: auto (bfloat16 where it can) or off."),
    _option(
        "--capture/--no-capture",
        default=True,
        help="On a GPU: launch each training step as one CUDA graph.",
    ),
    _option("--evaluator", default="auto", help="auto, cuda, native or torch."),
    _option("--evaluator-precision", default="fp32", help="Of cuda: fp32, tf32, fp16 or bf16."),
)
