"""latency.measure: positive medians for every batch, and networks left as they were."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from rlal_fast.latency import measure


class Slow(nn.Module):
    """Takes a known time and remembers what it was given."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.norm = nn.BatchNorm2d(3)
        self.seen: list[tuple[tuple[int, ...], bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        self.seen.append((tuple(x.shape), self.training, torch.is_grad_enabled()))
        return self.norm(x)


def test_each_network_has_its_own_time_for_each_batch() -> None:
    networks = {"slow": Slow(0.02), "fast": Slow(0.004)}
    result = measure(networks, (3, 5, 7), batch_sizes=(1, 4), seconds=0.05)
    assert {name: list(times) for name, times in result.items()} == {
        "slow": ["1", "4"],
        "fast": ["1", "4"],
    }
    for times in result.values():
        assert all(isinstance(value, float) and value > 0 for value in times.values())
    assert min(result["slow"].values()) >= 20
    assert min(result["fast"].values()) >= 4
    for network in networks.values():
        assert {shape for shape, _, _ in network.seen} == {(1, 3, 5, 7), (4, 3, 5, 7)}
        assert not any(training or grad for _, training, grad in network.seen)
        assert len(network.seen) >= 2 * 4  # a first pass and at least three turns per batch size


def test_at_least_three_turns_however_short_the_time() -> None:
    network = Slow(0.0)
    result = measure({"n": network}, (3, 2, 2), batch_sizes=(2,), seconds=0.0)
    assert result["n"]["2"] > 0
    assert len(network.seen) == 4


def test_modes_and_statistics_are_left_alone() -> None:
    mixed = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()))
    mixed.train()
    mixed[0].eval()  # a frozen batch norm
    resting = nn.BatchNorm2d(3).eval()
    before = [tensor.clone() for tensor in mixed.state_dict().values()]
    state = torch.get_rng_state()
    measure({"mixed": mixed, "resting": resting}, (3, 4, 4), batch_sizes=(1, 2), seconds=0.0)
    assert [module.training for module in mixed.modules()] == [True, False, True, True, True]
    assert not resting.training
    assert all(torch.equal(a, b) for a, b in zip(mixed.state_dict().values(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3)).train()
    with pytest.raises(RuntimeError):
        measure({"n": network}, (5, 8, 8), batch_sizes=(1,), seconds=0.0)
    assert network.training
