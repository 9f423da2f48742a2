"""load("imagefolder"): folders of images, compared with torchvision's own reader."""

import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import CenterCrop, Compose, Resize

from rlal_fast.data import Augmentation, load
from rlal_fast.data.image_folder import EXTENSIONS
from rlal_fast.errors import InputError


def save(path, seed, size=(6, 4), mode="RGB"):
    """A PNG of random pixels; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Two classes of 40 and 20 training images and 3 test images each, 6 wide and 4 high."""
    root = tmp_path / "images"
    for k, (name, count) in enumerate({"cat": 40, "dog": 20}.items()):
        for i in range(count):
            save(root / "train" / name / f"{i:03}.png", 1000 * k + i)
        for i in range(3):
            save(root / "test" / name / f"{i:03}.png", 1000 * k + 500 + i)
    return root


def test_imagefolder_agrees_with_torchvision(folder):
    save(folder / "train" / "cat" / "inner" / "deep.PNG", 77)  # nested folders, any case
    (folder / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load("imagefolder", folder)
    assert data.classes == ("cat", "dog")
    assert data.image_shape == (3, 4, 6)
    assert (len(data.train), len(data.reward), len(data.test)) == (55, 6, 6)
    assert torch.bincount(data.reward.labels).tolist() == [4, 2]
    assert data.augmentation == Augmentation(0, False)
    for split, name in (((data.train, data.reward), "train"), ((data.test,), "test")):
        theirs = ImageFolder(folder / name)
        expected = {(np.asarray(image).transpose(2, 0, 1).tobytes(), k) for image, k in theirs}
        ours = [
            (image.numpy().tobytes(), int(k))
            for part in split
            for image, k in zip(part.images, part.labels, strict=True)
        ]
        assert len(ours) == len(theirs)
        assert set(ours) == expected


def test_extensions_are_torchvisions():
    assert set(EXTENSIONS) == set(IMG_EXTENSIONS)


def test_imagefolder_order_does_not_depend_on_threads(folder):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(load("imagefolder", folder, seed=3, train_limit=30))
    finally:
        torch.set_num_threads(before)
    one, two = results
    assert torch.equal(one.train.images, two.train.images)
    assert torch.equal(one.reward.images, two.reward.images)
    assert len(one.train) + len(one.reward) == 30
    assert torch.bincount(torch.cat([one.train.labels, one.reward.labels])).tolist() == [20, 10]


def test_imagefolder_reports_progress_to_the_end(folder):
    calls = []
    load("imagefolder", folder, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (66, 66)
    assert calls == sorted(calls)
    assert len(calls) > 1


def test_val_is_read_as_test_unless_there_is_a_test_folder(folder):
    for i in range(5):
        for name in ("cat", "dog"):
            save(folder / "val" / name / f"{i}.png", 9000 + i)
    assert len(load("imagefolder", folder).test) == 6
    (folder / "test").rename(folder / "elsewhere")
    assert len(load("imagefolder", folder).test) == 10


def test_grey_images_become_rgb(folder):
    pixels = save(folder / "test" / "cat" / "000.png", 5, mode="L")
    data = load("imagefolder", folder)
    assert np.array_equal(data.test.images[0].numpy(), np.stack([pixels] * 3))


def test_image_size_resizes_and_crops_as_torchvision_does(folder):
    save(folder / "test" / "cat" / "000.png", 5, size=(40, 20))
    save(folder / "test" / "cat" / "001.png", 6, size=(10, 30))
    data = load("imagefolder", folder, image_size=10)
    assert data.image_shape == (3, 10, 10)
    transform = Compose([Resize(10), CenterCrop(10)])
    theirs = [np.asarray(transform(image)) for image, _ in ImageFolder(folder / "test")]
    assert np.array_equal(data.test.images.numpy().transpose(0, 2, 3, 1), np.stack(theirs))


def corrupt(path):
    path.write_bytes(path.read_bytes()[:-40])  # a whole header, too few pixels


def test_corrupt_image_stops_and_is_named(folder):
    corrupt(folder / "train" / "dog" / "007.png")
    with pytest.raises(InputError, match=r"dog.007\.png cannot be decoded") as caught:
        load("imagefolder", folder)
    assert "\n" not in str(caught.value)


def test_corrupt_images_are_skipped_on_request(folder, caplog):
    whole = load("imagefolder", folder)
    bad = [folder / "train" / "cat" / "000.png", folder / "train" / "dog" / "007.png"]
    bad.append(folder / "test" / "dog" / "001.png")
    lost = [Image.open(path).convert("RGB") for path in bad]
    lost = {np.asarray(image).transpose(2, 0, 1).tobytes() for image in lost}
    for path in bad[:2]:
        corrupt(path)
    bad[2].write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING, logger="rlal_fast"):
        data = load("imagefolder", folder, on_corrupt="skip")
    for path in bad:
        assert sum(str(path) in record.getMessage() for record in caplog.records) == 1
    assert len(data.train) + len(data.reward) == 58
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1]

    def pairs(*splits):
        return {
            (image.numpy().tobytes(), int(k))
            for split in splits
            for image, k in zip(split.images, split.labels, strict=True)
        }

    for ours, theirs in (
        (pairs(data.train, data.reward), pairs(whole.train, whole.reward)),
        (pairs(data.test), pairs(whole.test)),
    ):
        assert ours == {pair for pair in theirs if pair[0] not in lost}


def test_nothing_left_after_skipping_is_an_error(folder):
    for path in (folder / "test" / "dog").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"test.dog is corrupt"):
        load("imagefolder", folder, on_corrupt="skip")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match="none of the 66 images can be decoded"):
        load("imagefolder", folder, on_corrupt="skip")


def test_images_of_16_bits_are_not_clipped_in_silence(folder):
    path = folder / "train" / "cat" / "003.png"
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(path)
    with pytest.raises(InputError, match=r"003\.png has more than 8 bits"):
        load("imagefolder", folder)


def test_mixed_sizes_name_two_files_and_the_way_out(folder):
    save(folder / "train" / "dog" / "003.png", 1, size=(7, 5))
    with pytest.raises(
        InputError, match=r"000\.png is 6x4 and .*003\.png is 7x5.*give an image_size"
    ):
        load("imagefolder", folder)


def test_memory_limit_says_the_sizes(folder):
    with pytest.raises(InputError, match=r"66 images of 6x4 need .* GiB .* memory_limit_gib 1e-06"):
        load("imagefolder", folder, memory_limit_gib=1e-6)
    load("imagefolder", folder, memory_limit_gib=66 * 72 / 2**30)


def remove(path):
    for inner in path.iterdir():
        inner.unlink()
    path.rmdir()


def without_classes(root):
    for name in ("cat", "dog"):
        remove(root / "train" / name)


def empty_class(root):
    for file in (root / "test" / "dog").iterdir():
        file.rename(file.with_suffix(".txt"))


def one_class(root):
    for split in ("train", "test"):
        remove(root / split / "dog")


def one_image_of_a_class(root):
    for file in sorted((root / "train" / "dog").iterdir())[1:]:
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: root.rename(root.parent / "moved"),
            r"images does not exist, expected .*train",
        ),
        (lambda root: (root / "train").rename(root / "t"), r"train does not exist"),
        (lambda root: (root / "test").rename(root / "t"), r"test does not exist"),
        (without_classes, r"train holds no class folder"),
        (empty_class, r"test.dog holds no image, expected files ending in \.jpg"),
        (one_class, r"train holds one class, cat"),
        (one_image_of_a_class, r"class dog has one training image"),
        (
            lambda root: (root / "test" / "dog").rename(root / "test" / "wolf"),
            r"classes differ, only in .*train: dog; only in .*test: wolf",
        ),
        (
            lambda root: save(root / "train" / "fox" / "0.png", 0),
            r"classes differ, only in .*train: fox: expected",
        ),
    ],
)
def test_imagefolder_names_what_is_wrong_with_the_folder(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        load("imagefolder", folder)
    assert "\n" not in str(caught.value)


def test_hidden_files_and_folders_are_ignored(folder):
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "cat" / "._000.png").write_bytes(b"not an image")
    (folder / "train" / "cat" / ".thumbs").mkdir()
    save(folder / "train" / "cat" / ".thumbs" / "0.png", 3, size=(2, 2))
    data = load("imagefolder", folder)
    assert len(data.train) + len(data.reward) == 60


def test_missing_pillow_is_named_with_its_remedy(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)  # how Python itself spells "cannot be imported"
    with pytest.raises(
        InputError, match=r"Pillow.* not installed: pip install 'rlal_fast\[demo\]'"
    ):
        load("imagefolder", folder)
