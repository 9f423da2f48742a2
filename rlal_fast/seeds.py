"""Random generators that depend on (seed, purpose, epoch) alone.

So a resumed run draws what the uninterrupted one would have drawn, without storing generator
states.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derived_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """A 63-bit seed; different purposes and epochs give independent ones."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), epoch]).generate_state(2)
    return int(words[0]) << 31 | int(words[1]) >> 1


def generator(seed: int, purpose: str, epoch: int = 0) -> torch.Generator:
    """A CPU generator for one purpose in one epoch."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, epoch))
