"""Where a run trains: a name from the settings -> a torch device that is there."""

from __future__ import annotations

import re

import torch

from rlal_fast.errors import InputError


def check_name(name: str) -> None:
    """Raises InputError unless `name` is "cpu", "cuda", "cuda:<number>" or "auto"."""
    if not re.fullmatch(r"cpu|auto|cuda(:\d{1,3})?", name):
        raise InputError(f"device={name!r} must be 'cpu', 'cuda', 'cuda:<number>' or 'auto'")


def resolve(name: str) -> torch.device:
    """The device called `name`, a GPU with its number; "auto" is a GPU where there is one.

    Raises:
        InputError: no such name, or no such device here (with what there is).
    """
    check_name(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "sees no GPU" if torch.version.cuda or torch.version.hip else "is built for the CPU"
        raise InputError(
            f"device={name!r} was asked for, but torch {torch.__version__} {built} here: choose "
            "device='cpu' (--device cpu), or run where torch.cuda.is_available()"
        )
    number = torch.device(name).index
    number = torch.cuda.current_device() if number is None else number
    if number >= torch.cuda.device_count():
        raise InputError(
            f"device={name!r} was asked for, but there are {torch.cuda.device_count()} GPUs, "
            f"'cuda:0' to 'cuda:{torch.cuda.device_count() - 1}': choose one of them"
        )
    return torch.device("cuda", number)


def describe(device: torch.device) -> str:
    """For reports: "cpu", or "cuda:0, NVIDIA H200"."""
    if device.type == "cpu":
        return "cpu"
    return f"{device}, {torch.cuda.get_device_name(device)}"


def of(model: torch.nn.Module) -> torch.device:
    """The device of a module's parameters; the CPU for one without."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
