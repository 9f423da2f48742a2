"""A split, the checks on a user's own tensors, and the stratified choices between splits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlal_fast.errors import InputError

_LABEL_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_ROWS_PER_MOVE = 1024


@dataclass(frozen=True, eq=False)  # tensors have no single truth of equality
class Split:
    """Images of one size and their classes.

    images: uint8 or float32 [N, C, H, W]; labels: int64 [N], 0..K-1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def to(self, device: torch.device) -> Split:
        """The same on `device`."""
        return Split(self.images.to(device), self.labels.to(device))

    def shuffled(self, generator: torch.Generator) -> Split:
        """The same images in random order: data sets often come class by class."""
        return _rows(self, torch.randperm(len(self), generator=generator))


def checked_split(where: str, images: Tensor, labels: Tensor) -> Split:
    """A user's tensors as a Split; `where` names them in messages ("train").

    images: uint8 or finite float32 [N, C, H, W], N, C, H, W >= 1; labels: any integers [N], >= 0.
    Raises InputError on anything else.
    """
    for kind, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise InputError(
                f"{where} {kind} are a {type(value).__name__}, expected a torch.Tensor: "
                "convert them with torch.as_tensor"
            )
    if images.dtype not in (torch.uint8, torch.float32):
        raise InputError(
            f"{where} images are {images.dtype}, expected torch.uint8 or torch.float32: "
            "convert them"
        )
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(
            f"{where} images have shape {list(images.shape)}, expected a non-empty [N, C, H, W]"
        )
    if labels.dtype not in _LABEL_TYPES:
        raise InputError(
            f"{where} labels are {labels.dtype}, expected integers such as torch.int64"
        )
    if labels.ndim != 1 or labels.shape[0] != images.shape[0]:
        raise InputError(
            f"{where} labels have shape {list(labels.shape)}, expected [{images.shape[0]}]: "
            "one class per image"
        )
    if int(labels.min()) < 0:
        raise InputError(f"{where} labels hold {int(labels.min())}, expected classes from 0 up")
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise InputError(f"{where} images hold NaN or infinity: replace these values first")
    return Split(images.contiguous(), labels.to(torch.int64))


def apportion(
    counts: Sequence[int], total: int, least: Sequence[int], most: Sequence[int]
) -> list[int]:
    """`total` shared over the classes in proportion to `counts`, by largest remainders.

    Each share stays in [least, most]. Needs sum(least) <= total <= sum(most); the shares then sum
    to `total` exactly.
    """
    shares = [total * count / sum(counts) for count in counts]
    chosen = [
        max(low, min(high, int(share)))
        for share, low, high in zip(shares, least, most, strict=True)
    ]
    classes = range(len(counts))
    while sum(chosen) < total:
        k = max((k for k in classes if chosen[k] < most[k]), key=lambda k: shares[k] - chosen[k])
        chosen[k] += 1
    while sum(chosen) > total:
        k = max((k for k in classes if chosen[k] > least[k]), key=lambda k: chosen[k] - shares[k])
        chosen[k] -= 1
    return chosen


def stratified_rows(labels: Tensor, amounts: Sequence[int], seed: int) -> Tensor:
    """Ascending rows of `labels` [N]: amounts[k] random ones of each class k, fixed by the seed."""
    generator = torch.Generator().manual_seed(seed)
    labels = labels.cpu()
    by_class = labels.argsort(stable=True).split(torch.bincount(labels).tolist())
    rows = []
    for members, amount in zip(by_class, amounts, strict=True):
        rows.append(members[torch.randperm(len(members), generator=generator)[:amount]])
    return torch.cat(rows).sort().values


def limited_rows(labels: Tensor, limit: int | None, seed: int) -> Tensor:
    """Rows of a stratified subset of `limit` images, or all where limit is None or not below N.

    Every class keeps at least two images, one to train on and one for the reward split.
    Raises InputError when the limit is too small for that.
    """
    if limit is None or limit >= len(labels):
        return torch.arange(len(labels))
    counts = torch.bincount(labels.cpu()).tolist()
    least = [min(count, 2) for count in counts]
    if limit < sum(least):
        raise InputError(
            f"train_limit {limit} is too small for {sum(n > 0 for n in counts)} classes, which "
            f"need two training images each: give at least {sum(least)}"
        )
    return stratified_rows(labels, apportion(counts, limit, least, counts), seed)


def check_reward_fraction(fraction: float) -> None:
    """Raises InputError for a fraction outside (0, 1)."""
    if not 0.0 < fraction < 1.0:
        raise InputError(f"reward_fraction is {fraction}, expected a fraction between 0 and 1")


def carve_reward(
    train: Split, classes: Sequence[str], fraction: float, seed: int, *, in_place: bool
) -> tuple[Split, Split]:
    """train -> (train, reward): a stratified `fraction` of the images leaves train (method.md §5).

    Every class present gives at least one image and keeps at least one. Fixed by the seed. With
    `in_place` the images given are overwritten, so that a large set is never held twice.
    Raises InputError for a fraction outside (0, 1) or sizes that cannot work.
    """
    check_reward_fraction(fraction)
    counts = torch.bincount(train.labels.cpu()).tolist()
    for k, count in enumerate(counts):
        if count == 1:
            raise InputError(
                f"class {classes[k]} has one training image, expected two or more, as the reward "
                "split takes one: add images of it or hand in a reward split"
            )
    least = [min(count, 1) for count in counts]
    most = [max(count - 1, 0) for count in counts]
    total = max(round(fraction * len(train)), sum(least))
    if total > sum(most):
        raise InputError(
            f"reward_fraction {fraction} of {len(train)} images leaves a class without a training "
            f"image: give at most {math.floor(1000 * sum(most) / len(train)) / 1000}"
        )
    chosen = stratified_rows(train.labels, apportion(counts, total, least, most), seed)
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[chosen] = False
    reward = _rows(train, chosen)
    keep = rest.nonzero()[:, 0]
    return (keep_rows(train, keep) if in_place else _rows(train, keep)), reward


def keep_rows(split: Split, rows: Tensor) -> Split:
    """The split's ascending `rows`, moved to the front of its images, which are overwritten."""
    for start in range(0, len(rows), _ROWS_PER_MOVE):
        # rows ascend, so rows[i] >= i: what is overwritten here was read before
        source = rows[start : start + _ROWS_PER_MOVE].to(split.images.device)
        split.images[start : start + len(source)] = split.images[source]
    return Split(split.images[: len(rows)], split.labels[rows.to(split.labels.device)])


def _rows(split: Split, rows: Tensor) -> Split:
    return Split(
        split.images[rows.to(split.images.device)], split.labels[rows.to(split.labels.device)]
    )


def named(names: Sequence[str], shown: int = 5) -> str:
    """Names for a message, cut after a few: "cat, dog and 7 more"."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
