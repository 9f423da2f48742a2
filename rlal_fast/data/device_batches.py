"""Training batches made on a device: the same as on the CPU, without a wait for each of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from rlal_fast.data.image_data import ImageData
from rlal_fast.data.preprocessing import Draws, normalised

_AHEAD = 4  # batches that may wait in pinned memory for their copy


def placed(data: ImageData, device: torch.device) -> ImageData:
    """The data set with its images on `device`, where they take at most half of its free memory.

    A larger one stays where it is, and is then sent batch by batch.
    """
    if device.type == "cuda" and data.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return data
    return data.to(device)


class DeviceBatches:
    """Shuffled epochs of `data.train` on `device`, augmented and normalised there.

    The batches are those of `ImageData.train_batches` for the same CPU generator: order, crops and
    flips of an epoch are drawn at its start and sent at once. Images that live on the host are sent
    as they are stored (uint8 takes a quarter of float32), through pinned memory where the device is
    a GPU. Nothing waits for the device, but the host keeps at most a few batches ahead of copies.

    Args:
        data: the images, on `device` or on the host.
        device: where the batches are wanted.
    """

    def __init__(self, data: ImageData, device: torch.device) -> None:
        self.data, self.device = data, device
        self._labels = data.train.labels.to(device)
        self._constants = data.normalisation.constants(device)
        self._resident = data.train.images.device == device
        self._sent: deque[torch.cuda.Event] = deque()

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """(float32 [B, C, H, W], int64 [B]) per batch, on the device.

        The last batch may be short; one of a single image is left out (batch norm). Raises
        InputError for a batch_size below 2.
        """
        count = self.data.train_batch_count(batch_size)
        augmentation = self.data.augmentation
        order = torch.randperm(len(self.data.train), generator=generator)
        parts = order.split(batch_size)[:count]
        draws = Draws.joined([augmentation.draw(len(part), generator) for part in parts])
        draws, rows_there = draws.to(self.device), order.to(self.device)
        for number, part in enumerate(parts):
            here = slice(number * batch_size, number * batch_size + len(part))
            images = self._images(part, rows_there[here])
            images = augmentation.apply(images, draws.rows(here))
            yield normalised(images, *self._constants), self._labels[rows_there[here]]

    def _images(self, rows: Tensor, rows_there: Tensor) -> Tensor:
        images = self.data.train.images
        if self._resident:
            return images[rows_there]
        chosen = images[rows.to(images.device)]
        if self.device.type != "cuda":
            return chosen.to(self.device)
        if len(self._sent) == _AHEAD:
            self._sent.popleft().synchronize()
        # the pinned block is given back to torch's cache, which knows when its copy is done
        sent = chosen.pin_memory().to(self.device, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        self._sent.append(event)
        return sent
