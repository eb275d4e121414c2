"""Sets to train on: their names, and how `<data_root>/<name>.npz` is read or refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import data
from data import DataError, Spec

Arrays = dict[str, np.ndarray]


def make_arrays(n_train: int = 6, n_test: int = 4) -> Arrays:
    random = np.random.RandomState(0)
    return {
        "train_images": random.randint(0, 256, (n_train, 32, 32, 3)).astype(np.uint8),
        "test_images": random.randint(0, 256, (n_test, 32, 32, 3)).astype(np.uint8),
        "train_labels": np.arange(n_train),
        "test_labels": np.arange(n_test)[::-1].copy(),
    }


def refusal(name: str, root: Path) -> str:
    """Return the line with which `load` refuses."""
    with pytest.raises(DataError) as caught:
        data.load(name, root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["imagenet", "fashion", "folder:", ""])
def test_an_unknown_set_is_refused_with_the_names_of_all_sets(name, tmp_path):
    (tmp_path / "fashion.npz").touch()  # a file does not make a set trainable
    message = refusal(name, tmp_path)
    assert message.startswith(f"--dataset {name}: unknown data set")
    assert all(known in message for known in ("cifar10", "cifar100", "svhn", "digits", "folder:"))
    with pytest.raises(DataError, match="unknown data set"):
        data.describe(name)


def test_an_npz_of_32_x_32_is_read_unchanged(tmp_path):
    arrays = make_arrays()
    np.savez(tmp_path / "cifar10.npz", **arrays)
    loaded = data.load("cifar10", tmp_path)
    assert (loaded.name, loaded.num_classes, loaded.flips) == ("cifar10", 10, True)
    assert loaded.class_names[0] == "airplane" and loaded.class_names[9] == "truck"
    assert (loaded.train.images.numpy() == arrays["train_images"]).all()
    assert loaded.test.labels.tolist() == [3, 2, 1, 0]
    assert loaded.to("cpu").train.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_an_npz_without_test_images_trains_and_without_training_images_does_not(tmp_path):
    arrays = {key: value for key, value in make_arrays().items() if key.startswith("train")}
    for name in ("cifar_100", "cifar100"):  # the alias names no file
        np.savez(tmp_path / f"{name}.npz", **arrays)
    loaded = data.load("cifar_100", tmp_path)
    assert loaded.name == "cifar100" and len(loaded.class_names) == 100
    assert len(loaded.train.images) == 6 and len(loaded.test.images) == 0
    assert data.describe("cifar_100") == Spec(100, 50000, 10000, flips=True)
    assert len(data.load("digits", "~no-such-user").test.labels) == 360  # it needs no files
    path = tmp_path / "svhn.npz"
    np.savez(path, test_images=make_arrays()["test_images"])
    splits = data.read_npz(path)
    assert splits.keys() == {"test"} and splits["test"].labels.tolist() == [-1] * 4
    assert "svhn.npz has no train_images" in refusal("svhn", tmp_path)
    np.savez(path, **make_arrays(n_train=0))
    assert "svhn.npz has no train_images" in refusal("svhn", tmp_path)


DEFECTS: list[tuple[str, Callable[[np.ndarray], np.ndarray], str]] = [
    ("train_images", lambda a: a / 255, "train_images is float64; store uint8"),
    ("test_images", lambda a: a[..., 0], "test_images has shape (4, 32, 32); store N x H x W x 3"),
    ("test_images", lambda a: a.transpose(0, 3, 1, 2), "test_images has shape (4, 3, 32, 32); "),
    ("train_labels", lambda a: a[1:], "train_labels has shape (5,) for 6 images; store (6,)"),
    ("train_labels", lambda a: a * 0.5, "train_labels is float64; store int64"),
    ("test_labels", lambda a: a + 7, "test_labels runs from 7 to 10; store 0 to 9"),
    ("train_labels", lambda a: a - 2, "train_labels runs from -2 to 3; store 0 to 9"),
    ("test_labels", lambda a: a - 1, "has unlabelled test images (-1), so it cannot be trained on"),
    ("train_labels", lambda a: np.array([{}] * 6), "cannot be read (Object arrays cannot be"),
]


@pytest.mark.parametrize(("key", "change", "expected"), DEFECTS)
def test_a_defect_of_an_npz_is_one_line_that_names_the_file(key, change, expected, tmp_path):
    arrays = make_arrays()
    np.savez(tmp_path / "cifar10.npz", **{**arrays, key: change(arrays[key])})
    message = refusal("cifar10", tmp_path)
    assert message.startswith(f"--data_root {tmp_path}: cifar10.npz {expected}")
    assert "; " in message  # the remedy


def test_a_damaged_npz_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **make_arrays())
    whole = path.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for content, problem in (
        (flipped, "cannot be read (Bad CRC-32"),
        (whole[: len(whole) // 2], "is not an NPZ file"),
        (b"", "is not an NPZ file"),
    ):
        path.write_bytes(content)
        message = refusal("cifar10", tmp_path)
        assert message.startswith(f"--data_root {tmp_path}: cifar10.npz {problem}")


def test_grey_images_are_read_of_mnist_alone(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (10, 28, 28)).astype(np.uint8)
    for name in ("mnist", "cifar10"):
        np.savez(tmp_path / f"{name}.npz", train_images=images, train_labels=np.arange(10))
    pixels = data.load("mnist", tmp_path, size=28).train.images.numpy()
    assert pixels.shape == (10, 28, 28, 3) and (pixels == images[..., None]).all()
    assert data.load("mnist", tmp_path).train.images.shape == (10, 32, 32, 3)
    assert refusal("cifar10", tmp_path).endswith("; store N x H x W x 3")
