"""device.py: names of devices, and what is said of those that are not there."""

from __future__ import annotations

import pytest
import torch
from gpu import needs_gpu, without_gpu
from torch import nn

from rlal_fast import device
from rlal_fast.errors import InputError


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "mps"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"must be 'cpu', 'cuda', 'cuda:<number>' or 'auto'"):
        device.check_name(name)


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:0", "cuda:17", "auto"])
def test_known_names(name: str) -> None:
    device.check_name(name)


def test_the_cpu_is_always_there() -> None:
    assert device.resolve("cpu") == torch.device("cpu")
    assert device.describe(device.resolve("cpu")) == "cpu"
    assert device.of(nn.Linear(2, 3)) == device.of(nn.ReLU()) == torch.device("cpu")


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_missing_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match=rf"'{name}' was asked for, but .*--device cpu") as caught:
        device.resolve(name)
    assert "\n" not in str(caught.value)


@without_gpu
def test_auto_is_the_cpu_without_a_gpu() -> None:
    assert device.resolve("auto") == torch.device("cpu")


@needs_gpu
def test_a_gpu_has_its_number() -> None:
    assert device.resolve("cuda").index == torch.cuda.current_device()
    assert device.resolve("auto").type == "cuda"
    assert device.resolve("cuda:0") == torch.device("cuda", 0)
    assert device.describe(device.resolve("cuda:0")).startswith("cuda:0, ")


@needs_gpu
def test_a_gpu_beyond_the_last_is_one_line() -> None:
    with pytest.raises(InputError, match=r"'cuda:99' was asked for, but there are \d+ GPUs"):
        device.resolve("cuda:99")
