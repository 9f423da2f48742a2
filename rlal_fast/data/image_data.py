"""ImageData: the three splits of a data set, ready for training and for rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlal_fast.data.preprocessing import Augmentation, Normalisation
from rlal_fast.data.splits import (
    Split,
    apportion,
    carve_reward,
    checked_split,
    named,
    stratified_rows,
)
from rlal_fast.errors import InputError


@dataclass(frozen=True, eq=False)  # tensors have no single truth of equality
class ImageData:
    """Train, reward and test images of one size (method.md §1, §5).

    train, reward, test: disjoint splits of images [N, C, H, W]; the weights see `train`, rewards
    are measured on `reward`, and `test` is for reports alone. classes: the names of labels 0..K-1.
    normalisation: fitted to `train`; augmentation: for training batches only.
    """

    name: str
    train: Split
    reward: Split
    test: Split
    classes: tuple[str, ...]
    normalisation: Normalisation
    augmentation: Augmentation

    def __post_init__(self) -> None:
        _, height, width = self.image_shape
        padding = self.augmentation.crop_padding
        if padding > max(height, width):
            raise InputError(
                f"crop_padding is {padding}, wider than the images ({height} x {width}): a crop "
                "could show nothing; give at most their size"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    def train_batches(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One shuffled epoch: (float32 [B, C, H, W] augmented and normalised, int64 [B]) per batch.

        The last batch may be short; it is left out if it has a single image, on which batch norm
        cannot train. Order and augmentation are fixed by the generator. Raises InputError for a
        batch_size below 2.
        """
        self.train_batch_count(batch_size)  # checks batch_size now rather than at the first batch
        return self._epoch(batch_size, generator)

    def _epoch(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.train.images, self.train.labels
        order = torch.randperm(len(self.train), generator=generator, device=generator.device)
        for batch in order.to(images.device).split(batch_size):
            if len(batch) > 1:
                augmented = self.augmentation(images[batch], generator)
                yield self.normalisation(augmented), labels[batch]

    def train_batch_count(self, batch_size: int) -> int:
        """The number of batches in an epoch of `train_batches`. Raises InputError below 2."""
        if batch_size < 2:
            raise InputError(f"batch_size is {batch_size}, expected 2 or more for batch norm")
        whole, rest = divmod(len(self.train), batch_size)
        return whole + (rest > 1)

    @property
    def nbytes(self) -> int:
        """Memory that the images of all splits take."""
        return sum(split.images.nbytes for split in (self.train, self.reward, self.test))

    def to(self, device: torch.device) -> ImageData:
        """The same data set with its splits on `device`; shared where they are there already."""
        train, reward, test = (split.to(device) for split in (self.train, self.reward, self.test))
        return replace(self, train=train, reward=reward, test=test)

    def with_reward_images(self, count: int, seed: int = 0) -> ImageData:
        """The same train and test splits, and `count` of the reward images: cheaper, noisier.

        Stratified and fixed by the seed. Raises InputError for more images than there are.
        """
        labels = self.reward.labels
        if not 1 <= count <= len(labels):
            raise InputError(
                f"reward_images is {count}, but the reward split has {len(labels)} images: give "
                f"1..{len(labels)}, or hold out more by reward_fraction"
            )
        present = torch.bincount(labels.cpu()).tolist()
        shares = apportion(present, count, [0] * len(present), present)
        rows = stratified_rows(labels, shares, seed).to(labels.device)
        return replace(self, reward=Split(self.reward.images[rows], labels[rows]))

    def normalised(self, split: Split) -> Tensor:
        """The split's images as a network takes them, float32 [N, C, H, W], not augmented."""
        return self.normalisation(split.images)

    @classmethod
    def from_tensors(
        cls,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        reward: tuple[Tensor, Tensor] | None = None,
        classes: Sequence[str] | None = None,
        reward_fraction: float = 0.1,
        seed: int = 0,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  (frozen, so shared safely)
        name: str = "custom",
    ) -> ImageData:
        """The user's own data: pairs of images, uint8 or float32 [N, C, H, W], and labels [N].

        Without `reward`, a stratified `reward_fraction` of the training images becomes the reward
        split, fixed by the seed. `classes` names the labels; by default they are "0", "1", ... up
        to the largest training label. uint8 spans 0..1 after scaling, float32 is taken as it is;
        both are then normalised by the training split's mean and deviation. The tensors are not
        modified.
        Raises InputError where shapes, types, labels or sizes do not fit.
        """
        splits = {"train": checked_split("train", *_pair("train", train))}
        splits["test"] = checked_split("test", *_pair("test", test))
        if reward is not None:
            splits["reward"] = checked_split("reward", *_pair("reward", reward))
        for where, split in splits.items():
            _check_like_train(where, split, splits["train"])
        names = _class_names(classes, splits["train"])
        for where, split in splits.items():
            _check_labels(where, split, names)
        if reward is None:
            splits["train"], splits["reward"] = carve_reward(
                splits["train"], names, reward_fraction, seed, in_place=False
            )
        elif len(splits["train"]) < 2:
            raise InputError("train has one image, expected two or more for batch norm")
        normalisation = Normalisation.fit(splits["train"].images)
        return cls(
            name,
            splits["train"],
            splits["reward"],
            splits["test"],
            names,
            normalisation,
            augmentation,
        )


def _pair(where: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(f"{where} is a {type(pair).__name__}, expected a pair (images, labels)")
    return pair[0], pair[1]


def _check_like_train(where: str, split: Split, train: Split) -> None:
    if split.images.shape[1:] != train.images.shape[1:]:
        raise InputError(
            f"{where} images are {list(split.images.shape[1:])} and train images "
            f"{list(train.images.shape[1:])} ([C, H, W]), expected one size: resize them"
        )
    if split.images.dtype != train.images.dtype:
        raise InputError(
            f"{where} images are {split.images.dtype} and train images {train.images.dtype}, "
            "expected one type, as uint8 is scaled by 1/255 and float32 is not: convert one"
        )


def _class_names(classes: Sequence[str] | None, train: Split) -> tuple[str, ...]:
    if classes is None:
        names = tuple(str(k) for k in range(int(train.labels.max()) + 1))
    else:
        names = tuple(str(name) for name in classes)
    if len(names) < 2:
        raise InputError(f"there is {len(names)} class, expected two or more to tell apart")
    if len(set(names)) != len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"class names repeat: {named(repeated)}; give every class its own name")
    return names


def _check_labels(where: str, split: Split, names: tuple[str, ...]) -> None:
    largest = int(split.labels.max())
    if largest >= len(names):
        raise InputError(
            f"{where} labels hold {largest}, expected 0..{len(names) - 1} for {len(names)} "
            "classes: correct the labels or hand in all class names"
        )
