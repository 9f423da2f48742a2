"""What a run writes down per epoch: metrics.jsonl and TensorBoard scalars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlal_fast.run_folder import RunFolder

Record = dict[str, Any]


class MetricsLog:
    """The records of a run, in memory and, with a folder, on disk.

    Args:
        folder: where to write; None keeps them in memory.
        records: what a checkpoint knows; anything later on disk is dropped, so that a resumed run
            writes each epoch once.
    """

    def __init__(self, folder: RunFolder | None, records: list[Record]) -> None:
        self.records = list(records)
        self._folder = folder
        self._writer: Any = None
        if folder is not None:
            folder.rewrite_metrics(self.records)

    def append(self, record: Record) -> None:
        """Adds one epoch's record."""
        self.records.append(record)
        if self._folder is None:
            return
        self._folder.append_metrics(record)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, so on first use

            self._writer = SummaryWriter(  # type: ignore[no-untyped-call]
                str(self._folder.tensorboard_dir), purge_step=len(self.records) - 1
            )
        for name, value in _scalars(record):
            self._writer.add_scalar(name, value, len(self.records) - 1)
        self._writer.flush()

    def close(self) -> None:
        """Ends the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record as (tag, value); tags start with the stage."""
    prefix = prefix or f"{record['stage']}/"
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)
        elif name == "rewards" and value:
            yield prefix + "reward/best", max(value)
            yield prefix + "reward/mean", sum(value) / len(value)
