"""From a data set's name to its three splits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rlal_fast.data import cifar10, digits
from rlal_fast.data.image_data import ImageData
from rlal_fast.data.image_folder import Decoding, read_image_folder
from rlal_fast.data.preprocessing import Augmentation, Normalisation
from rlal_fast.data.splits import Split, carve_reward, check_reward_fraction, limited_rows
from rlal_fast.errors import InputError

DATASETS = ("digits", "cifar10", "imagefolder")

_AUGMENTATIONS = {
    "digits": Augmentation(),
    "cifar10": Augmentation(crop_padding=4, flip=True),
    "imagefolder": Augmentation(),
}


def load(
    dataset: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int | None = None,
    reward_fraction: float = 0.1,
    seed: int = 0,
    crop_padding: int | None = None,
    flip: bool | None = None,
    on_corrupt: str = "stop",
    train_limit: int | None = None,
    memory_limit_gib: float = 8.0,
    progress: Callable[[int, int], None] | None = None,
) -> ImageData:
    """One of DATASETS, split into train / reward / test.

    dataset: "digits" (embedded, 8x8 grey), "cifar10" (its python version in data_dir) or
        "imagefolder" (data_dir/train/<class>/*, data_dir/test/<class>/*; val/ is read as test/).
    image_size: imagefolder only: the shorter side is resized to it and the centre square kept; by
        default images keep their own size, which must be the same for all.
    reward_fraction: share of the training images, stratified and fixed by the seed, that becomes
        the reward split (method.md §5).
    crop_padding, flip: see Augmentation; by default 4 pixels and flips for cifar10, else neither.
    on_corrupt: "stop" raises at an image file that cannot be decoded; "skip" logs and drops it.
    train_limit: keep only so many training images (reward split included), stratified.
    memory_limit_gib: the most that decoded images may take, in GiB.
    progress: called with (files done, files in all) while an imagefolder is decoded.

    Raises InputError for every input that cannot work; the message names the culprit.
    """
    _check_arguments(dataset, image_size, on_corrupt, train_limit, memory_limit_gib)
    check_reward_fraction(reward_fraction)  # before a long decoding
    default = _AUGMENTATIONS[dataset]
    augmentation = Augmentation(
        default.crop_padding if crop_padding is None else crop_padding,
        default.flip if flip is None else flip,
    )
    folder = _folder(dataset, data_dir)
    if folder is None:
        (train, test), classes = digits.read_digits(), digits.CLASSES
    elif dataset == "cifar10":
        (train, test), classes = cifar10.read_cifar10(folder), cifar10.CLASSES
    else:
        decoding = Decoding(image_size, on_corrupt, memory_limit_gib, progress)
        train, test, classes = read_image_folder(folder, decoding, train_limit, seed)
    rows = limited_rows(train.labels, train_limit, seed)
    if len(rows) < len(train):
        train = Split(train.images[rows], train.labels[rows])
    # the tensors were made here, so the reward split may be taken out of them in place
    train, reward = carve_reward(train, classes, reward_fraction, seed, in_place=True)
    normalisation = Normalisation.fit(train.images)
    return ImageData(dataset, train, reward, test, classes, normalisation, augmentation)


def _folder(dataset: str, data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder to read, None for the embedded data set."""
    if dataset == "digits":
        if data_dir is not None:
            raise InputError(
                f"data_dir {os.fspath(data_dir)} was given, but the data set digits is embedded: "
                "drop it or choose the data set cifar10 or imagefolder"
            )
        return None
    if data_dir is None:
        raise InputError(f"the data set {dataset} needs the folder that holds it: give data_dir")
    return Path(data_dir)


def _check_arguments(
    dataset: str,
    image_size: int | None,
    on_corrupt: str,
    train_limit: int | None,
    memory_limit_gib: float,
) -> None:
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {dataset!r}, expected one of {', '.join(DATASETS)}")
    if image_size is not None and dataset != "imagefolder":
        raise InputError(
            f"image_size {image_size} was given, but {dataset} images keep their size: drop it"
        )
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size is {image_size}, expected 1 pixel or more")
    if on_corrupt not in ("stop", "skip"):
        raise InputError(f"on_corrupt is {on_corrupt!r}, expected 'stop' or 'skip'")
    if train_limit is not None and train_limit < 1:
        raise InputError(f"train_limit is {train_limit}, expected 1 image or more")
    if not memory_limit_gib > 0:
        raise InputError(f"memory_limit_gib is {memory_limit_gib}, expected a size above 0")
