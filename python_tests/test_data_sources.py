"""load(): its arguments, digits and CIFAR-10's own files."""

import hashlib
import pickle
import re
import struct
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from rlal_fast.data import DATASETS, Augmentation, load
from rlal_fast.errors import InputError


def hashes(split):
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in split.images]


# --- digits ---------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_images_in_three_disjoint_splits():
    data = load("digits")
    assert data.image_shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert data.augmentation == Augmentation(0, False)
    source = load_digits()
    expected = [np.rint(image / 16 * 255).astype(np.uint8) for image in source.images]
    labels = {image.tobytes(): label for image, label in zip(expected, source.target, strict=True)}
    splits = (data.train, data.reward, data.test)
    assert len(labels) == 1797  # no image occurs twice, so bytes can stand for rows
    assert sum(len(split) for split in splits) == 1797
    assert len({name for split in splits for name in hashes(split)}) == 1797
    for split in splits:
        assert [labels[image.numpy().tobytes()] for image in split.images] == split.labels.tolist()


def test_digits_are_stratified():
    data = load("digits", reward_fraction=0.1)
    whole = np.bincount(load_digits().target)
    assert torch.bincount(data.test.labels).tolist() == (whole // 5).tolist()
    train = whole - whole // 5
    assert len(data.reward) == round(0.1 * train.sum())
    assert np.abs(torch.bincount(data.reward.labels).numpy() - 0.1 * train).max() < 1


def test_seed_moves_the_reward_split_but_never_the_test_split():
    one, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    assert hashes(one.reward) == hashes(again.reward)
    assert hashes(one.train) == hashes(again.train)
    assert set(hashes(one.reward)) != set(hashes(other.reward))
    assert hashes(one.test) == hashes(other.test)


def test_train_limit_counts_train_and_reward_and_spares_test():
    data, whole = load("digits", train_limit=200), load("digits")
    assert len(data.train) + len(data.reward) == 200
    assert len(data.reward) == 20
    assert hashes(data.test) == hashes(whole.test)
    assert set(hashes(data.train)) <= set(hashes(whole.train)) | set(hashes(whole.reward))
    counts = torch.bincount(torch.cat([data.train.labels, data.reward.labels]))
    assert counts.min() >= 19
    assert counts.max() <= 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "mnist"}, "unknown data set 'mnist', expected one of digits, cifar10, image"),
        ({"data_dir": "somewhere"}, "data_dir somewhere was given, but .* digits is embedded"),
        ({"dataset": "cifar10"}, "cifar10 needs the folder"),
        ({"dataset": "imagefolder"}, "imagefolder needs the folder"),
        ({"image_size": 32}, "image_size 32 was given, but digits"),
        ({"dataset": "imagefolder", "image_size": 0}, "image_size is 0"),
        ({"on_corrupt": "ignore"}, "on_corrupt is 'ignore'"),
        ({"train_limit": 0}, "train_limit is 0"),
        ({"train_limit": 19}, "train_limit 19 is too small for 10 classes, .* at least 20"),
        ({"memory_limit_gib": 0}, "memory_limit_gib is 0"),
        ({"reward_fraction": 1.0}, "reward_fraction is 1.0"),
        ({"crop_padding": -2}, "crop_padding is -2"),
    ],
)
def test_load_names_the_argument_that_cannot_work(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        load(**{"dataset": "digits", **arguments})
    assert "\n" not in str(caught.value)


def test_datasets_are_the_names_load_takes():
    assert DATASETS == ("digits", "cifar10", "imagefolder")


def test_missing_scikit_learn_is_named_with_its_remedy(monkeypatch):
    # None is how Python itself spells "cannot be imported"
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"scikit-learn.*pip install 'rlal_fast\[demo\]'"):
        load("digits")


# --- CIFAR-10 -------------------------------------------------------------------------------------


def python_2_pickle(images, labels):
    """A batch file as Python 2's cPickle wrote them, opcode by opcode."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    pixels = images.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + number(len(images)) + number(3072) + b"\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNN" + number(-1) + number(-1) + b"K\x00tb"
        b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


@pytest.fixture
def cifar_dir(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        images = random.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(python_2_pickle(images, [*range(10), *range(10)]))
    return tmp_path


def torchvision_reads(root, train):
    """What torchvision makes of the same files; only its list of checksums is ours."""
    folder = root / CIFAR10.base_folder
    names = pickle.dumps({"label_names": list("abcdefghij")})
    (folder / "batches.meta").write_bytes(names)

    def listed(files):
        return [[f, hashlib.md5((folder / f).read_bytes()).hexdigest()] for f in files]

    class OurFiles(CIFAR10):
        train_list = listed([f"data_batch_{k}" for k in range(1, 6)])
        test_list = listed(["test_batch"])
        meta = {  # noqa: RUF012  (torchvision's own form)
            "filename": "batches.meta",
            "key": "label_names",
            "md5": hashlib.md5(names).hexdigest(),
        }

    return OurFiles(root, train=train)


def test_cifar10_agrees_with_torchvision(cifar_dir):
    data = load("cifar10", cifar_dir, train_limit=None)
    assert data.image_shape == (3, 32, 32)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert " ".join(data.classes) == names
    assert data.augmentation == Augmentation(crop_padding=4, flip=True)
    assert (len(data.train), len(data.reward), len(data.test)) == (90, 10, 20)
    theirs = torchvision_reads(cifar_dir, train=False)
    assert np.array_equal(data.test.images.numpy().transpose(0, 2, 3, 1), theirs.data)
    assert data.test.labels.tolist() == theirs.targets
    theirs = torchvision_reads(cifar_dir, train=True)
    ours = set(zip(hashes(data.train), data.train.labels.tolist(), strict=True))
    ours |= set(zip(hashes(data.reward), data.reward.labels.tolist(), strict=True))
    expected = torch.from_numpy(theirs.data.transpose(0, 3, 1, 2).copy())
    names = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in expected]
    assert ours == set(zip(names, theirs.targets, strict=True))


def test_cifar10_takes_the_inner_folder_and_other_augmentation(cifar_dir):
    data = load("cifar10", str(cifar_dir / "cifar-10-batches-py"), crop_padding=0, flip=False)
    assert len(data.test) == 20
    assert data.augmentation == Augmentation(0, False)


def test_cifar10_reads_batches_that_python_3_wrote(cifar_dir):
    images = np.arange(20 * 3072).reshape(20, 3072).astype(np.uint8)
    file = cifar_dir / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(pickle.dumps({"data": images, "labels": [1] * 20}, protocol=2))
    data = load("cifar10", cifar_dir)
    assert np.array_equal(data.test.images.numpy().reshape(20, 3072), images)


def test_cifar10_says_which_file_it_misses(cifar_dir, tmp_path):
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "no"))):
        load("cifar10", tmp_path / "no")
    (cifar_dir / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"data_batch_3 is missing.*cifar-10-python\.tar\.gz"):
        load("cifar10", cifar_dir)


class RunsCode:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        python_2_pickle(np.zeros((20, 3072), np.uint8), [0] * 20)[:-5000],
        pickle.dumps({"labels": [0]}),
        pickle.dumps({"data": RunsCode(), "labels": [0]}),
        pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]}, protocol=2),
        pickle.dumps({"data": np.zeros((1, 784), np.uint8), "labels": [0]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, protocol=2),
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, protocol=2),
    ],
    ids=["empty", "cut", "no data", "code", "floats", "mnist", "too few labels", "label 10"],
)
def test_cifar10_names_a_damaged_file(cifar_dir, content, capsys):
    (cifar_dir / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(InputError, match=r"test_batch .*unpack the archive again"):
        load("cifar10", cifar_dir)
    assert capsys.readouterr().out == ""


def test_crops_wider_than_the_images_are_refused_before_anything_runs() -> None:
    assert load("digits", crop_padding=8).augmentation.crop_padding == 8
    with pytest.raises(InputError, match=r"crop_padding is 9, wider than the images \(8 x 8\)"):
        load("digits", crop_padding=9)
