"""packed.py: whatever goes in comes out, bit for bit, and weights take less."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from rlal_fast.packed import pack, unpack


def through_a_file(state: Any) -> tuple[Any, int]:
    file = io.BytesIO()
    torch.save(pack(state), file)
    size = file.tell()
    file.seek(0)
    return unpack(torch.load(file, weights_only=True)), size


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


@pytest.mark.parametrize(
    "shape", [(1024,), (1023,), (7, 11, 3, 5), (64, 1, 5, 5), (0, 4), (33, 77)]
)
def test_float32_comes_back_bit_for_bit(shape: tuple[int, ...]) -> None:
    """Every bit pattern may occur: nan with a payload, infinities, -0, denormals."""
    tensor = torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)
    tensor = tensor.view(torch.float32)
    back, _ = through_a_file({"x": [tensor]})
    assert back["x"][0].shape == shape
    assert torch.equal(bits(back["x"][0]), bits(tensor))


def test_channels_last_stays() -> None:
    tensor = torch.randn(17, 9, 3, 3).to(memory_format=torch.channels_last)
    back, _ = through_a_file(tensor)
    assert back.stride() == tensor.stride()
    assert torch.equal(back, tensor)


def test_views_and_other_types_and_plain_values_come_back() -> None:
    large = torch.randn(100, 100)
    state = {
        "part": large[::3, 5:60].t(),
        "double": large.double(),
        "steps": torch.tensor(7.0),
        "bytes": torch.arange(5000).to(torch.uint8),
        0: {"betas": (0.9, 0.999), "none": None, "text": "a", "list": [1, 2.5, True]},
    }
    back, _ = through_a_file(state)
    assert back[0] == state[0]
    assert type(back[0]["betas"]) is tuple
    for name in ("part", "double", "steps", "bytes"):
        assert back[name].dtype == state[name].dtype
        assert torch.equal(back[name], state[name])


def test_gradients_are_not_carried_along() -> None:
    weight = torch.randn(40, 40, requires_grad=True)
    back, _ = through_a_file({"weight": weight})
    assert not back["weight"].requires_grad
    assert torch.equal(back["weight"], weight)


def test_weights_take_less() -> None:
    weights = 0.05 * torch.randn(500, 500)
    _, size = through_a_file(weights)
    assert size < 0.9 * weights.nbytes


def test_damage_is_an_error() -> None:
    packed = pack(torch.randn(64, 64))
    packed["exponents"] = packed["exponents"][:-5]
    with pytest.raises(Exception, match="incomplete"):
        unpack({"state": packed})
