"""Shared by all tests: one thread per worker, as they run in parallel, and one seed."""

from __future__ import annotations

import itertools
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


_HISTORIES = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _history_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For fixtures that outlive a test: no run that is made here gets into the user's history."""
    os.environ["RLAL_FAST_HISTORY"] = str(tmp_path_factory.getbasetemp() / "history.db")


@pytest.fixture(autouse=True)
def _history(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own; beside tmp_path, as some look at all that lies in there."""
    path = tmp_path_factory.getbasetemp() / f"history-{next(_HISTORIES)}.db"
    monkeypatch.setenv("RLAL_FAST_HISTORY", str(path))
