"""CIFAR-10 from its "python version" files, the ones torchvision.datasets.CIFAR10 reads too."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlal_fast.data.splits import Split
from rlal_fast.errors import InputError

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
FOLDER = "cifar-10-batches-py"
_TRAIN = tuple(f"data_batch_{k}" for k in range(1, 6))
_TEST = ("test_batch",)
_HARMLESS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


def read_cifar10(data_dir: Path) -> tuple[Split, Split]:
    """(train, test), images uint8 [N, 3, 32, 32].

    The files are in data_dir/cifar-10-batches-py or in data_dir itself. Raises InputError where
    one is missing or damaged.
    """
    folder = data_dir / FOLDER
    if not folder.is_dir() and (data_dir / _TEST[0]).is_file():
        folder = data_dir
    missing = [name for name in (*_TRAIN, *_TEST) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder / missing[0]} is missing, expected the python version of CIFAR-10 in "
            f"{folder}: unpack cifar-10-python.tar.gz in {folder.parent} "
            "(https://www.cs.toronto.edu/~kriz/cifar.html)"
        )
    return _read(folder, _TRAIN), _read(folder, _TEST)


def _read(folder: Path, names: tuple[str, ...]) -> Split:
    parts = [_read_batch(folder / name) for name in names]
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return Split(torch.from_numpy(images), torch.from_numpy(labels))


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="latin1").load()
        images = np.asarray(batch["data"])
        labels = np.asarray(batch["labels"], dtype=np.int64)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(
            f"{path} is not a batch of CIFAR-10 ({type(error).__name__}): unpack the archive again"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise InputError(
            f"{path} holds {images.dtype} {list(images.shape)}, expected uint8 [N, 3072]: "
            "unpack the archive again"
        )
    if labels.shape != images.shape[:1] or not np.isin(labels, range(10)).all():
        raise InputError(
            f"{path} holds labels that are not one of 0..9 per image: unpack the archive again"
        )
    return images.reshape(-1, 3, 32, 32), labels


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of dicts, lists and arrays; refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        if name == "_reconstruct":
            # its home was renamed in numpy 2; the public array knows where it is now
            return np.zeros(0).__reduce__()[0]
        return super().find_class(module, name)
