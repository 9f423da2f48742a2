"""seeds.py: a generator per (seed, purpose, epoch), the same on every machine."""

from __future__ import annotations

import itertools

import pytest
import torch

from rlal_fast.seeds import derived_seed, generator

PURPOSES = ("joint", "finetune", "episodes", "learning", "")


def test_every_purpose_and_epoch_has_its_own_seed() -> None:
    cases = list(itertools.product((0, 1, 2, 2**63 - 1), PURPOSES, range(60)))
    seeds = {derived_seed(*case) for case in cases}
    assert len(seeds) == len(cases)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61  # both words are in use
    assert len({seed & 0x7FFFFFFF for seed in seeds}) > 0.99 * len(cases)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ((0, "joint", 0), 1138135727214295951),
        ((17, "episodes", 5), 7785056522968849249),
    ],
    ids=["first", "later"],
)
def test_a_resumed_run_draws_what_an_earlier_version_drew(
    case: tuple[int, str, int], expected: int
) -> None:
    assert derived_seed(*case) == expected


def test_generators_repeat_and_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    draws = [torch.rand(7, generator=generator(3, "episodes", 4)) for _ in range(2)]
    other = torch.rand(7, generator=generator(3, "episodes", 5))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], other)
    assert torch.equal(torch.get_rng_state(), before)
