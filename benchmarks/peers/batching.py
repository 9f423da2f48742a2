"""Images in batches of one size, and threads that take several batches at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from peers import Setting


def whole_batches(images: Tensor, size: int) -> list[Tensor]:
    """Batches of exactly `size` images; the last is filled up with zeros, see `joined`."""
    batches = list(images.split(size))
    if len(batches[-1]) < size:
        filled = images.new_zeros(size, *images.shape[1:])
        filled[: len(batches[-1])] = batches[-1]
        batches[-1] = filled
    return batches


def joined(results: Sequence[Tensor], count: int) -> Tensor:
    """The results of batches as one tensor, without those of filled-in images."""
    return torch.cat(list(results))[:count]


class Workers:
    """Maps a function over batches, `setting.workers` at a time."""

    def __init__(self, setting: Setting) -> None:
        self._pool = None
        if setting.workers > 1:
            each = setting.threads // setting.workers
            self._pool = ThreadPoolExecutor(setting.workers, initializer=lambda: _use(each))

    def map(self, function: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
        if self._pool is None:
            return [function(batch) for batch in batches]
        return list(self._pool.map(function, batches))


def _use(threads: int) -> None:
    torch.set_num_threads(threads)  # OpenMP's count belongs to the calling thread
