"""data/device_batches.py: the batches of ImageData.train_batches, made on a device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu import needs_gpu

from rlal_fast.data import Augmentation, ImageData
from rlal_fast.data.device_batches import DeviceBatches, placed
from rlal_fast.errors import InputError
from rlal_fast.seeds import generator

CPU = torch.device("cpu")


def make(images: int = 41, dtype: torch.dtype = torch.uint8, padding: int = 0) -> ImageData:
    source = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (images + 8, 3, 5, 7), generator=source).to(dtype)
    labels = torch.arange(images + 8) % 4
    held = slice(images, None)
    return ImageData.from_tensors(
        train=(pixels[:images], labels[:images]),
        reward=(pixels[held], labels[held]),
        test=(pixels[held], labels[held]),
        augmentation=Augmentation(padding, flip=padding > 1),
    )


def assert_same_batches(data: ImageData, batches: DeviceBatches, size: int) -> None:
    for epoch in (0, 1):
        expected = list(data.train_batches(size, generator(3, "joint", epoch)))
        made = list(batches.epoch(size, generator(3, "joint", epoch)))
        assert [len(labels) for _, labels in made] == [len(labels) for _, labels in expected]
        for (images, labels), (wanted, those) in zip(made, expected, strict=True):
            assert images.device == labels.device == batches.device
            assert torch.equal(labels.cpu(), those)
            torch.testing.assert_close(images.cpu(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [2, 8, 20, 41, 99])  # 8 and 20 leave a single image behind
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_batches_are_those_of_the_cpu(size: int, padding: int, dtype: torch.dtype) -> None:
    data = make(41, dtype, padding)
    assert_same_batches(data, DeviceBatches(data, CPU), size)


def test_flips_alone() -> None:
    data = replace(make(), augmentation=Augmentation(0, True))
    assert_same_batches(data, DeviceBatches(data, CPU), 16)


def test_batches_of_one_image_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size is 1"):
        next(DeviceBatches(make(), CPU).epoch(1, generator(0, "joint")))


def test_a_small_data_set_is_moved_whole() -> None:
    data = make()
    there = placed(data, CPU)
    assert there.train.images is data.train.images
    assert (there.classes, there.normalisation) == (data.classes, data.normalisation)
    assert data.nbytes == sum(len(s) for s in (data.train, data.reward, data.test)) * 3 * 5 * 7


@needs_gpu
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("padding", [0, 2])
def test_batches_made_on_a_gpu(resident: bool, padding: int) -> None:
    """From images there and from images that are sent; more batches than may be under way."""
    gpu, data = torch.device("cuda", 0), make(41, torch.uint8, padding)
    there = placed(data, gpu) if resident else data
    assert there.train.images.device == (gpu if resident else CPU)
    assert_same_batches(data, DeviceBatches(there, gpu), 3)


@needs_gpu
def test_a_gpu_is_not_waited_for() -> None:
    gpu = torch.device("cuda", 0)
    batches = DeviceBatches(placed(make(padding=2), gpu), gpu)
    source = batches.epoch(8, generator(0, "joint"))
    next(source)  # the epoch's draws are sent before its first batch
    try:
        torch.cuda.set_sync_debug_mode("error")
        assert len(list(source)) == 4
    finally:
        torch.cuda.set_sync_debug_mode("default")
