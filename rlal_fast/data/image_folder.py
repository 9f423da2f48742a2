"""Folders of images, one per class, decoded once to uint8 in parallel.

The layout is that of torchvision's ImageFolder: DIR/train/<class>/** and DIR/test/<class>/** (or
val/). Class and file order is sorted; files are images by their extension; names that start with a
dot are ignored. Greyscale and palette images become RGB; EXIF orientation is not applied.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rlal_fast.data.splits import Split, keep_rows, limited_rows, named
from rlal_fast.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Progress = Callable[[int, int], None]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_FILES_PER_TASK = 32
_LAYOUT = "{0}/train/<class>/* and {0}/test/<class>/*"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoding:
    """How files become pixels.

    image_size: the shorter side is resized to it (bilinear, antialiased) and the centre square is
        kept; None keeps images as they are, which then must all have one size.
    on_corrupt: "stop" raises InputError at a file that cannot be decoded, "skip" logs and drops it.
    memory_limit_gib: the most that the decoded images of all splits may take, in GiB.
    progress: called with (files done, files in all) from the calling thread.
    """

    image_size: int | None = None
    on_corrupt: str = "stop"
    memory_limit_gib: float = 8.0
    progress: Progress | None = None


class _Undecodable(Exception):
    """One image file that cannot become pixels; the message names it."""


def read_image_folder(
    data_dir: Path, decoding: Decoding, train_limit: int | None, seed: int
) -> tuple[Split, Split, tuple[str, ...]]:
    """(train, test, classes), images uint8 [N, 3, H, W].

    train_limit keeps a stratified subset of the training files, chosen by the seed before decoding.
    Raises InputError: a folder that is missing or empty, classes that differ, mixed sizes, a
    corrupt file, too much memory.
    """
    if not data_dir.is_dir():
        raise InputError(
            f"the folder {data_dir} does not exist, expected {_LAYOUT.format(data_dir)}"
        )
    train_dir, test_dir = data_dir / "train", data_dir / "test"
    if not test_dir.is_dir() and (data_dir / "val").is_dir():
        test_dir = data_dir / "val"
    listings = {folder: _list_classes(folder) for folder in (train_dir, test_dir)}
    _check_same_classes(train_dir, test_dir, listings)
    classes = tuple(listings[train_dir])
    train_files, train_labels = _flatten(listings[train_dir])
    test_files, test_labels = _flatten(listings[test_dir])
    rows = limited_rows(train_labels, train_limit, seed)
    train_files, train_labels = [train_files[i] for i in rows.tolist()], train_labels[rows]

    images, bad = _decode(train_files + test_files, decoding)
    n = len(train_files)
    train = _without(Split(images[:n], train_labels), [i for i in bad if i < n])
    test = _without(Split(images[n:], test_labels), [i - n for i in bad if i >= n])
    for folder, split in ((train_dir, train), (test_dir, test)):
        left = torch.bincount(split.labels, minlength=len(classes)).tolist()
        if 0 in left:
            raise InputError(
                f"every image read from {folder / classes[left.index(0)]} is corrupt, expected at "
                "least one that can be decoded: replace the files"
            )
    return train, test, classes


def _list_classes(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted."""
    if not folder.is_dir():
        raise InputError(
            f"the folder {folder} does not exist, expected {_LAYOUT.format(folder.parent)}"
        )
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise InputError(
            f"{folder} holds no class folder, expected {_LAYOUT.format(folder.parent)}"
        )
    classes = {name: _list_images(folder / name) for name in names}
    for name, files in classes.items():
        if not files:
            raise InputError(
                f"{folder / name} holds no image, expected files ending in "
                f"{', '.join(EXTENSIONS)}: add images or remove the folder"
            )
    return classes


def _list_images(folder: Path) -> list[Path]:
    files = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            Path(parent, name)
            for name in names
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(files)


def _check_same_classes(
    train_dir: Path, test_dir: Path, listings: dict[Path, dict[str, list[Path]]]
) -> None:
    train, test = listings[train_dir], listings[test_dir]
    only_train = [name for name in train if name not in test]
    only_test = [name for name in test if name not in train]
    if only_train or only_test:
        found = [
            f"only in {folder}: {named(names)}"
            for folder, names in ((train_dir, only_train), (test_dir, only_test))
            if names
        ]
        raise InputError(
            f"the classes differ, {'; '.join(found)}: expected the same folders in both"
        )
    if len(train) == 1:
        raise InputError(
            f"{train_dir} holds one class, {next(iter(train))}, expected two or more: "
            "one folder per class"
        )


def _flatten(classes: dict[str, list[Path]]) -> tuple[list[Path], torch.Tensor]:
    files = list(chain.from_iterable(classes.values()))
    sizes = torch.tensor([len(members) for members in classes.values()])
    return files, torch.repeat_interleave(torch.arange(len(sizes)), sizes)


def _without(split: Split, bad: list[int]) -> Split:
    """The split without its rows `bad`, in its own memory."""
    if not bad:
        return split
    good = torch.ones(len(split), dtype=torch.bool)
    good[bad] = False
    return keep_rows(split, good.nonzero()[:, 0])


def _decode(files: Sequence[Path], decoding: Decoding) -> tuple[torch.Tensor, list[int]]:
    """Pixels uint8 [N, 3, H, W] of the files, and the rows of those dropped as corrupt."""
    first, shape = _first_decodable(files, decoding)
    _check_memory(len(files), shape, decoding.memory_limit_gib)
    images = torch.empty(len(files), *shape, dtype=torch.uint8)
    pixels = images.numpy()

    def decode_rows(rows: range) -> list[tuple[int, str]]:
        failures = []
        for i in rows:
            try:
                image = _pixels(files[i], decoding.image_size)
            except _Undecodable as error:
                failures.append((i, str(error)))
                continue
            if image.shape != shape:
                raise InputError(_mixed_sizes(first, shape, files[i], image.shape))
            pixels[i] = image
        return failures

    bad: list[int] = []
    tasks = [
        range(start, min(start + _FILES_PER_TASK, len(files)))
        for start in range(0, len(files), _FILES_PER_TASK)
    ]
    # as many threads as torch was given: one knob. map() keeps the order, so that the file an error
    # names does not depend on timing, and cancels what is left when an error leaves the loop.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for task, failures in zip(tasks, pool.map(decode_rows, tasks), strict=True):
            for i, reason in failures:
                _report_corrupt(reason, decoding)
                bad.append(i)
            if decoding.progress is not None:
                decoding.progress(task.stop, len(files))
    return images, bad


def _check_memory(count: int, shape: tuple[int, ...], limit_gib: float) -> None:
    gib = count * shape[0] * shape[1] * shape[2] / 2**30
    if gib > limit_gib:
        raise InputError(
            f"{count} images of {shape[2]}x{shape[1]} need {gib:.3g} GiB decoded, more than "
            f"memory_limit_gib {limit_gib:g}: give a smaller image_size, a train_limit or a larger "
            "limit"
        )


def _first_decodable(files: Sequence[Path], decoding: Decoding) -> tuple[Path, tuple[int, ...]]:
    """The first file that can be decoded and its shape (3, H, W), which all others must share."""
    for file in files:
        try:
            return file, _pixels(file, decoding.image_size).shape
        except _Undecodable as error:
            if decoding.on_corrupt == "stop":
                _report_corrupt(str(error), decoding)
    raise InputError(
        f"none of the {len(files)} images can be decoded, {files[0]} for one: replace the files"
    )


def _report_corrupt(reason: str, decoding: Decoding) -> None:
    if decoding.on_corrupt == "stop":
        raise InputError(f"{reason}: replace or remove the file, or choose on_corrupt 'skip'")
    _log.warning("%s: skipped", reason)


def _mixed_sizes(
    first: Path, shape: tuple[int, ...], other: Path, other_shape: tuple[int, ...]
) -> str:
    return (
        f"images have different sizes, {first} is {shape[2]}x{shape[1]} and {other} is "
        f"{other_shape[2]}x{other_shape[1]}, expected one: give an image_size to resize and crop to"
    )


def _pixels(path: Path, image_size: int | None) -> np.ndarray:
    """uint8 [3, H, W]. Raises _Undecodable."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise InputError(
            "images are decoded by Pillow, which is not installed: pip install 'rlal_fast[demo]'"
        ) from error
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                # Pillow would clip 16 bits to 8 without a word
                raise _Undecodable(
                    f"{path} has more than 8 bits per channel (mode {opened.mode}), expected 8"
                )
            image = opened.convert("RGB")
    except (_Undecodable, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, EOFError, struct.error, ...
        reason = " ".join(str(error).replace(str(path), "it").split())
        raise _Undecodable(
            f"{path} cannot be decoded ({reason or type(error).__name__})"
        ) from error
    if image_size is not None:
        image = _resized(image, image_size)
    return np.asarray(image).transpose(2, 0, 1)


def _resized(image: Image, size: int) -> Image:
    """The shorter side to `size`, then the centre square."""
    from PIL.Image import Resampling

    shorter = min(image.size)
    if shorter != size:
        width, height = (size * side // shorter for side in image.size)
        image = image.resize((width, height), Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
