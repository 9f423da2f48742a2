"""scikit-learn's handwritten digits: 1,797 real images of 8x8 that need no download."""

from __future__ import annotations

import numpy as np
import torch

from rlal_fast.data.splits import Split
from rlal_fast.errors import InputError

CLASSES = tuple("0123456789")


def read_digits() -> tuple[Split, Split]:
    """(train, test), images uint8 [N, 1, 8, 8]. Raises InputError where scikit-learn is missing.

    Test is every fifth image of each class in the set's own order: the same whatever the seed and
    the version of any random number generator.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise InputError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'rlal_fast[demo]'"
        ) from error
    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for k in range(len(CLASSES)):
        in_test[(labels == k).nonzero()[4::5, 0]] = True
    return Split(images[~in_test], labels[~in_test]), Split(images[in_test], labels[in_test])
