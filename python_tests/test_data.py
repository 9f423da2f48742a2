"""Splits, preprocessing and ImageData on tensors; the readers are in test_data_sources.py."""

import math

import numpy as np
import pytest
import torch

from rlal_fast.data import Augmentation, ImageData, Normalisation, Split
from rlal_fast.data.splits import apportion, keep_rows, limited_rows
from rlal_fast.errors import InputError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(labels, channels=1, height=3, width=5):
    """Images whose first two pixels spell out their row, so that splits can be traced back."""
    labels = torch.as_tensor(labels)
    images = torch.randint(
        0, 256, (len(labels), channels, height, width), generator=generator(), dtype=torch.uint8
    )
    rows = torch.arange(len(labels))
    images[:, 0, 0, 0] = (rows % 256).to(torch.uint8)
    images[:, 0, 0, 1] = (rows // 256).to(torch.uint8)
    return images, labels


def rows_of(split):
    return (split.images[:, 0, 0, 0].int() + 256 * split.images[:, 0, 0, 1].int()).tolist()


LABELS = [0] * 300 + [1] * 151 + [2] * 47 + [3] * 2


# --- stratified choices ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_apportion_is_exact_bounded_and_close_to_proportional(seed):
    draw = generator(seed)
    counts = torch.randint(2, 90, (7,), generator=draw).tolist()
    least, most = [1] * 7, [count - 1 for count in counts]
    total = int(torch.randint(7, sum(most) + 1, (1,), generator=draw))
    shares = apportion(counts, total, least, most)
    assert sum(shares) == total
    for share, count, high in zip(shares, counts, most, strict=True):
        exact = total * count / sum(counts)
        assert 1 <= share <= high
        assert abs(share - exact) < 2 or share in (1, high)


def test_apportion_without_bounds_rounds_by_largest_remainder():
    assert apportion([5, 3, 2], 5, [0, 0, 0], [5, 3, 2]) == [3, 1, 1]
    assert apportion([500] * 10, 500, [1] * 10, [499] * 10) == [50] * 10


def test_reward_split_is_stratified_and_disjoint():
    data = ImageData.from_tensors(numbered(LABELS), numbered([0, 1, 2, 3]))
    assert torch.bincount(data.reward.labels).tolist() == [30, 15, 4, 1]
    train, reward = rows_of(data.train), rows_of(data.reward)
    assert sorted(train + reward) == list(range(500))
    assert train == sorted(train)
    for split, rows in ((data.train, train), (data.reward, reward)):
        assert split.labels.tolist() == [LABELS[row] for row in rows]
    assert rows_of(data.test) == [0, 1, 2, 3]


def test_reward_split_is_fixed_by_the_seed():
    def rows(seed):
        data = ImageData.from_tensors(numbered(LABELS), numbered([0, 1]), seed=seed)
        return rows_of(data.reward)

    before = torch.random.get_rng_state()
    assert rows(3) == rows(3)
    assert rows(3) != rows(4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_fewer_reward_images_are_a_stratified_part_of_the_same_split():
    data = ImageData.from_tensors(numbered(LABELS), numbered([0, 1, 2, 3]))
    few = data.with_reward_images(25)
    assert torch.bincount(few.reward.labels).tolist() == [15, 8, 2]  # none of the smallest class
    assert few.train is data.train
    assert few.test is data.test
    rows = rows_of(few.reward)
    assert few.reward.labels.tolist() == [LABELS[row] for row in rows]
    assert rows == rows_of(data.with_reward_images(25).reward)
    assert set(rows) < set(rows_of(data.with_reward_images(40).reward)) < set(rows_of(data.reward))
    assert rows != rows_of(data.with_reward_images(25, seed=1).reward)
    assert rows_of(data.with_reward_images(50).reward) == rows_of(data.reward)
    for count in (0, 51):
        with pytest.raises(InputError, match=rf"reward_images is {count}.*give 1\.\.50"):
            data.with_reward_images(count)


def test_a_class_absent_from_train_is_allowed_when_named():
    data = ImageData.from_tensors(
        numbered([0, 0, 2, 2]), numbered([1]), classes=["a", "b", "c"], reward_fraction=0.01
    )
    assert data.num_classes == 3
    assert data.reward.labels.tolist() == [0, 2]


def test_own_reward_split_leaves_train_whole():
    data = ImageData.from_tensors(numbered([0, 1]), numbered([1]), reward=numbered([1, 1, 0]))
    assert (len(data.train), len(data.reward), len(data.test)) == (2, 3, 1)


def test_limited_rows_is_a_stratified_subset():
    labels = torch.tensor(LABELS)
    rows = limited_rows(labels, 50, seed=1)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.bincount(labels[rows]).tolist() == [29, 15, 4, 2]
    assert torch.equal(rows, limited_rows(labels, 50, seed=1))
    assert not torch.equal(rows, limited_rows(labels, 50, seed=2))
    assert limited_rows(labels, 10**6, seed=1).tolist() == list(range(500))
    with pytest.raises(InputError, match=r"train_limit 7 .* at least 8"):
        limited_rows(labels, 7, seed=1)


def test_keep_rows_moves_more_than_one_chunk():
    images, labels = numbered([0, 1, 2] * 1700)
    rows = torch.arange(5100)[torch.rand(5100, generator=generator()) < 0.8]
    expected = images[rows]
    kept = keep_rows(Split(images, labels), rows)
    assert torch.equal(kept.images, expected)
    assert torch.equal(kept.labels, labels[rows])
    assert kept.images.data_ptr() == images.data_ptr()


# --- normalisation --------------------------------------------------------------------------------


def test_fit_agrees_with_float64_on_all_pixels_at_once():
    images, _ = numbered([0] * 2500, channels=3)
    pixels = images.numpy().astype(np.float64) / 255
    fitted = Normalisation.fit(images)
    np.testing.assert_allclose(fitted.mean, pixels.mean((0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(fitted.std, pixels.std((0, 2, 3)), rtol=1e-13)


def test_fit_of_float_images_survives_a_large_offset():
    images = torch.randn(2500, 2, 3, 4, generator=generator()) + 1000
    pixels = images.numpy().astype(np.float64)
    fitted = Normalisation.fit(images)
    np.testing.assert_allclose(fitted.mean, pixels.mean((0, 2, 3)), rtol=1e-13)
    np.testing.assert_allclose(fitted.std, pixels.std((0, 2, 3)), rtol=1e-11)


def test_fit_is_exact_where_the_answer_is_known():
    half = torch.zeros(2, 2, 2, 2, dtype=torch.uint8)
    half[0, 0] = 255
    assert Normalisation.fit(half) == Normalisation((0.5, 0.0), (0.5, 1.0))


def test_normalisation_scales_bytes_and_takes_floats_as_they_are():
    images, _ = numbered([0] * 4, channels=2)
    normalisation = Normalisation((0.25, 0.5), (0.1, 0.2))
    mean, std = torch.tensor([0.25, 0.5]), torch.tensor([0.1, 0.2])
    expected = (images.float() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalisation(images), expected)
    floats = images.float() / 255
    before = floats.clone()
    torch.testing.assert_close(normalisation(floats), expected)
    assert torch.equal(floats, before)


def test_normalised_train_split_has_mean_0_and_deviation_1():
    data = ImageData.from_tensors(numbered(LABELS, channels=3), numbered([0, 1], channels=3))
    normalised = data.normalised(data.train)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        normalised.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.0,)), ((0.5, 0.5), (1.0,)), ((math.nan,), (1.0,)), ((), ())]
)
def test_normalisation_refuses_what_cannot_divide(mean, std):
    with pytest.raises(InputError):
        Normalisation(mean, std)


def test_normalisation_refuses_other_channels():
    with pytest.raises(InputError, match=r"\[4, 3, 3, 5\].*\[N, 1, H, W\]"):
        Normalisation((0.5,), (1.0,))(numbered([0] * 4, channels=3)[0])


# --- augmentation ---------------------------------------------------------------------------------


def placements(image, padding, flip):
    """Every window of one image, by a plain loop: (dy, dx, mirrored) -> pixels."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    windows = {}
    for dy in range(2 * padding + 1):
        for dx in range(2 * padding + 1):
            window = padded[:, dy : dy + height, dx : dx + width]
            windows[dy, dx, False] = window
            if flip:
                windows[dy, dx, True] = window[:, :, ::-1]
    return windows


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("padding", "flip", "size"),
    [(2, True, (3, 7, 4)), (1, False, (1, 4, 9)), (0, True, (3, 5, 6)), (3, True, (2, 4, 4))],
)
def test_augmentation_yields_every_window_and_nothing_else(padding, flip, size, dtype):
    images = torch.randint(1, 256, (400, *size), generator=generator()).to(dtype)
    augmented = Augmentation(padding, flip)(images, generator(5))
    assert augmented.dtype == dtype
    assert augmented.shape == images.shape
    seen = []
    for image, result in zip(images.numpy(), augmented.numpy(), strict=True):
        matches = [
            place
            for place, window in placements(image, padding, flip).items()
            if np.array_equal(window, result)
        ]
        assert len(matches) == 1
        seen.append(matches[0])
    possible = (2 * padding + 1) ** 2 * (2 if flip else 1)
    assert len(set(seen)) > 0.9 * possible
    mirrored = sum(place[2] for place in seen) / len(seen)
    assert 0.4 < mirrored < 0.6 if flip else mirrored == 0


def test_augmentation_is_fixed_by_its_generator_alone():
    images, _ = numbered([0] * 64, channels=3, height=8, width=8)
    augment = Augmentation(4, True)
    first = augment(images, generator(1))
    torch.rand(7)
    assert torch.equal(first, augment(images, generator(1)))
    assert not torch.equal(first, augment(images, generator(2)))


def test_no_augmentation_returns_the_images():
    images, _ = numbered([0] * 3)
    assert torch.equal(Augmentation()(images, generator()), images)


def test_negative_padding_is_refused():
    with pytest.raises(InputError, match="-1"):
        Augmentation(crop_padding=-1)


# --- batches --------------------------------------------------------------------------------------


def plain_data(count):
    labels = [0, 1] * (count // 2) + [1] * (count % 2)
    images, targets = numbered(labels)
    return ImageData.from_tensors((images, targets), numbered([0, 1]), reward=numbered([0, 1]))


@pytest.mark.parametrize("count", [32, 33, 34, 47, 15, 2])
def test_an_epoch_shows_every_image_once(count):
    data = plain_data(count)
    batches = list(data.train_batches(16, generator(3)))
    assert len(batches) == data.train_batch_count(16)
    assert all(images.dtype == torch.float32 for images, _ in batches)
    dropped = 1 if count % 16 == 1 else 0
    assert [len(labels) for _, labels in batches[:-1]] == [16] * (len(batches) - 1)
    assert len(batches[-1][1]) > 1
    shown = torch.cat([images for images, _ in batches])
    expected = data.normalised(data.train)
    # every shown image is a training image with that image's label
    same = (shown[:, None] == expected[None]).all(-1).all(-1).all(-1)
    assert same.sum(1).tolist() == [1] * (count - dropped)
    rows = same.int().argmax(1)
    assert len(set(rows.tolist())) == count - dropped
    assert torch.equal(data.train.labels[rows], torch.cat([labels for _, labels in batches]))


def test_epochs_are_shuffled_and_fixed_by_the_generator():
    images, labels = numbered(LABELS, channels=3)
    data = ImageData.from_tensors(
        (images, labels), (images, labels), augmentation=Augmentation(2, True)
    )

    def epoch(draw):
        return torch.cat([batch for batch, _ in data.train_batches(64, draw)])

    one = generator(1)
    first, second = epoch(one), epoch(one)
    assert torch.equal(first, epoch(generator(1)))
    assert not torch.equal(first, second)


def test_batches_of_one_are_refused_before_the_first_batch():
    with pytest.raises(InputError, match="batch_size is 1"):
        plain_data(8).train_batches(1, generator())


# --- the user's own tensors -----------------------------------------------------------------------


def test_from_tensors_keeps_shape_names_and_inputs():
    images, labels = numbered(LABELS, channels=2, height=3, width=7)
    before = images.clone()
    data = ImageData.from_tensors(
        (images.to(memory_format=torch.channels_last), labels.to(torch.int32)),
        (images, labels),
        classes=["a", "b", "c", "d"],
        name="mine",
    )
    assert data.image_shape == (2, 3, 7)
    assert data.classes == ("a", "b", "c", "d")
    assert data.name == "mine"
    assert data.train.labels.dtype == torch.int64
    assert data.train.images.is_contiguous()
    assert torch.equal(images, before)
    assert ImageData.from_tensors((images, labels), (images, labels)).classes == tuple("0123")


GOOD = numbered([0, 0, 1, 1])
FLOATS = GOOD[0].float()
NAN = FLOATS.clone()
NAN[0, 0, 0, 0] = math.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": (GOOD[0].numpy(), GOOD[1])}, "train images are a ndarray"),
        ({"test": (GOOD[0], [0, 0, 1, 1])}, "test labels are a list"),
        ({"train": GOOD[0]}, "train is a Tensor, expected a pair"),
        ({"train": (GOOD[0].double(), GOOD[1])}, "train images are torch.float64"),
        ({"test": (GOOD[0], GOOD[1].float())}, "test labels are torch.float32"),
        ({"test": (GOOD[0], GOOD[1].bool())}, "test labels are torch.bool"),
        ({"train": (GOOD[0][0], GOOD[1])}, r"train images have shape \[1, 3, 5\]"),
        ({"train": (GOOD[0][:0], GOOD[1][:0])}, "non-empty"),
        ({"train": (GOOD[0], GOOD[1][:3])}, r"train labels have shape \[3\], expected \[4\]"),
        ({"train": (GOOD[0], GOOD[1][:, None])}, r"train labels have shape \[4, 1\]"),
        ({"test": (GOOD[0], GOOD[1] - 1)}, "test labels hold -1"),
        ({"test": (GOOD[0], GOOD[1] + 1)}, r"test labels hold 2, expected 0\.\.1"),
        ({"reward": (GOOD[0], GOOD[1] + 1)}, "reward labels hold 2"),
        ({"classes": ["a", "a"]}, "class names repeat: a"),
        ({"classes": ["a"]}, "there is 1 class"),
        ({"train": (GOOD[0], GOOD[1] * 0)}, "there is 1 class"),
        ({"test": (GOOD[0][..., :4], GOOD[1])}, r"test images are \[1, 3, 4\] and train"),
        ({"test": (FLOATS, GOOD[1])}, "test images are torch.float32 and train images torch.uint8"),
        ({"train": (NAN, GOOD[1]), "test": (FLOATS, GOOD[1])}, "train images hold NaN"),
        ({"train": numbered([0, 0, 0, 1]), "classes": ["cat", "dog"]}, "class dog has one"),
        ({"reward_fraction": 0.0}, "reward_fraction is 0.0"),
        ({"reward_fraction": math.nan}, "reward_fraction is nan"),
        ({"reward_fraction": 0.9}, "reward_fraction 0.9 of 4 images .* at most 0.5"),
        ({"train": numbered([1]), "reward": GOOD}, "train has one image"),
    ],
)
def test_from_tensors_names_what_is_wrong(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        ImageData.from_tensors(**{"train": GOOD, "test": GOOD, **arguments})
    assert "\n" not in str(caught.value)
