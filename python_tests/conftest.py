"""Shared by all tests: one thread per worker, as they run in parallel, and one seed."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, for subprocesses too

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    torch.set_num_threads(1)
