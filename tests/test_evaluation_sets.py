"""Sets to evaluate on: their names, splits, titles and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data
from data import DataError, EvaluationSet
from tests.test_data_folder import make_classes, paint

RANDOM = np.random.RandomState(0)


def made_up(n: int, height: int = 32, width: int = 32) -> np.ndarray:
    return RANDOM.randint(0, 256, (n, height, width, 3)).astype(np.uint8)


def load(
    name: str, root: Path = Path("nowhere"), n: int | None = None, **run: Any
) -> EvaluationSet:
    return data.EvaluationSets(root, **run).load(name, n)


def reds(loaded: EvaluationSet) -> list[int]:
    """Return the red of images of one colour each."""
    images = loaded.split.images
    assert (images == images[:, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def refusal(name: str, root: Path, **run: Any) -> str:
    with pytest.raises(DataError) as caught:
        data.EvaluationSets(root, **run).load(name, strict=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SPELLINGS = {
    "cifar10_test": "cifar10 cifar10_test cifar10test cifar cifar_test",
    "cifar10_train": "cifar10_train cifar10train cifar_train",
    "cifar10_valid": "cifar10_valid cifar_valid",
    "cifar100_test": "cifar100 cifar_100 cifar100test cifar_100_test",
    "svhn_test": "svhn svhn_test svhntest",
    "digits_test": "digits",
    "mnist_test": "mnist mnist_test mnisttest",
    "cifar10interp": "cifar10interp cifar_interp interp",
    "folder:a/b": "folder:a/b folder_test:a/b",
    "folder_train:a/b": "folder_train:a/b",
    **{name: name for name in "celeba textures faces uniform gaussian photos".split()},
}


def test_every_spelling_has_one_canonical_name():
    for canonical, spellings in SPELLINGS.items():
        for name in [*spellings.split(), canonical]:
            assert data.locate(name, "cifar10").name == canonical
    assert data.locate("interp", "digits").name == "interp"
    assert data.locate("cifar_interp", "digits").name == "cifar10interp"
    assert data.split_name("cifar_100", "train") == "cifar100_train"


@pytest.mark.parametrize(
    "name", ["places365", "", "cifar10_", "folder:", "folder_all:x", "faces_x"]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name, tmp_path):
    message = refusal(name, tmp_path)
    assert message.startswith(f"--dataset {name}: unknown data set; ")
    assert ("did you mean faces? give one of cifar10" in message) == (name == "faces_x")
    assert all(part in message for part in ("celeba", "interp", "folder:PATH", "_valid"))


def test_all_stands_for_the_papers_four_without_the_model_s_own_set():
    four = ("svhn", "cifar10interp", "cifar100", "celeba")
    assert data.all_ood("cifar10") == data.all_ood("folder:x") == four
    assert data.all_ood("cifar_100") == ("svhn", "cifar10interp", "cifar10", "celeba")
    assert data.all_ood("svhn") == ("cifar10", "cifar10interp", "cifar100", "celeba")
    assert data.all_ood("digits") == ("interp", "photos", "uniform", "gaussian")


def test_splits_of_an_archive(tmp_path):
    train, test, labels = made_up(50), made_up(4), np.arange(50) % 10
    arrays = {"train_images": train, "train_labels": labels}
    np.savez(tmp_path / "cifar10.npz", **arrays, test_images=test, test_labels=labels[:4])
    loaded = load("cifar_test", tmp_path)
    assert loaded.name == "cifar10_test" and loaded.title == "CIFAR-10 (test)"
    assert (loaded.split.images.numpy() == test).all() and loaded.num_classes == 10
    assert loaded.split.labels.tolist() == [0, 1, 2, 3] and loaded.split.labels.dtype == torch.int64
    expected = "4 images; cifar10.npz (this copy has 4, the published split 10,000)"
    assert loaded.about == f"CIFAR-10 (test): {expected}"

    loaded = load("cifar10_train", tmp_path, 7)
    assert (loaded.split.images.numpy() == train[:7]).all() and "first 7 of 50 " in loaded.about
    assert len(load("cifar10_train", tmp_path).split.images) == 50

    for n_valid, n in ((None, 5), (12, 12)):  # by default a tenth
        held_out = data.split_validation(50, n)[1].numpy()
        loaded = load("cifar10_valid", tmp_path, n_valid=n_valid)
        assert loaded.title == "CIFAR-10 (validation)"
        assert (loaded.split.images.numpy() == train[held_out]).all()
        assert loaded.split.labels.tolist() == labels[held_out].tolist()
    for n_valid, message in ((0, "has no images"), (50, "--n_valid 50: ")):
        assert message in refusal("cifar10_valid", tmp_path, n_valid=n_valid)


def test_only_the_split_that_is_asked_for_is_read(tmp_path):
    pickled = np.array([None])  # refused as soon as it is read
    np.savez(tmp_path / "svhn.npz", test_images=made_up(2), train_images=pickled)
    assert len(load("svhn", tmp_path).split.images) == 2
    assert "svhn.npz cannot be read" in refusal("svhn_train", tmp_path)


def test_an_archive_without_a_split_serves_the_other_splits(tmp_path):
    np.savez(tmp_path / "svhn.npz", test_images=made_up(3), test_labels=np.array([1, -1, 2]))
    loaded = load("svhn", tmp_path)
    assert loaded.split.labels.tolist() == [1, -1, 2] and loaded.num_classes is None
    for name in ("svhn_train", "svhn_valid"):
        expected = f"--dataset {name}: svhn.npz in {tmp_path} has no train_images; "
        assert refusal(name, tmp_path).startswith(expected)
    np.savez(tmp_path / "svhn.npz", test_images=made_up(0))
    assert refusal("svhn", tmp_path).startswith("--dataset svhn: has no images")
    (tmp_path / "svhn.npz").write_bytes(b"not an archive")
    assert refusal("svhn", tmp_path).startswith(f"--data_root {tmp_path}: svhn.npz is not")


def test_any_archive_is_a_set_by_its_name(tmp_path):
    """Take its test images, else its training images, as 32 x 32 after the centre square."""
    test, train = made_up(3, 32, 40), made_up(2)
    np.savez(tmp_path / "mine.npz", test_images=test, train_images=train, more_images=train)
    loaded = load("mine", tmp_path)
    assert "left out of mine.npz: more_images, train_images" in loaded.about
    assert (loaded.split.images.numpy() == test[:, :, 4:36]).all()
    assert (loaded.name, loaded.title, loaded.num_classes) == ("mine", "mine", None)
    assert loaded.split.labels.tolist() == [-1, -1, -1] and "centre square" in loaded.about
    np.savez(tmp_path / "mine.npz", train_images=train, train_labels=np.array([4, 0]))
    loaded = load("mine", tmp_path, 1)
    assert (loaded.split.images.numpy() == train[:1]).all() and loaded.num_classes == 5
    np.savez(tmp_path / "mine.npz", other=train)
    assert "--dataset mine: mine.npz" in refusal("mine", tmp_path)
    (tmp_path / "below").mkdir()
    assert "unknown data set" in refusal("../mine", tmp_path / "below")


def test_a_set_that_needs_an_archive_names_it(tmp_path):
    for root in (tmp_path, Path("~no-such-user")):
        expected = f"--dataset faces: there is no faces.npz in {root}; put it there"
        assert refusal("faces", root).startswith(expected)
    np.savez(tmp_path / "faces.npz", test_images=made_up(1))
    loaded = load("faces", tmp_path)
    assert loaded.title == "faces (not CelebA)" and loaded.about.startswith(loaded.title)


def test_a_folder_of_classes_keeps_its_splits_and_labels(tmp_path):
    make_classes(tmp_path, {"apple": 10, "bear": 10})
    whole = data.load(f"folder:{tmp_path}", tmp_path)
    held_out = data.hold_out(whole, 3)[1]
    for name, images, labels, title in (
        (f"folder:{tmp_path}", whole.test.images, whole.test.labels, ""),
        (f"folder_train:{tmp_path}", whole.train.images, whole.train.labels, " (training)"),
        (f"folder_valid:{tmp_path}", whole.train.images[held_out], whole.train.labels[held_out],
         " (validation)"),
    ):  # fmt: skip
        loaded = load(name, n_valid=3)
        assert torch.equal(loaded.split.images, images) and torch.equal(loaded.split.labels, labels)
        assert (loaded.name, loaded.title, loaded.num_classes) == (name, tmp_path.name + title, 2)


def test_a_folder_without_classes_is_a_set_without_labels(tmp_path):
    folder = tmp_path / "a: b"  # a colon as in the messages
    names = [*(f"{i}.png" for i in range(6)), "deep/er/6.png", ".hidden/7.png", ".8.png"]
    for i, name in enumerate(names):
        paint(folder / name, (i, 0, 0), size=(40, 32))
    (folder / "notes.txt").write_text("no image")
    loaded = load(f"folder:{folder}")
    order = reds(loaded)
    assert sorted(order) == list(range(7)) and order != sorted(order)
    assert loaded.num_classes is None and (loaded.split.labels == -1).all()
    (folder / f"{order[-1]}.png").write_bytes(b"broken")  # beyond the first 3: never opened
    first = load(f"folder:{folder}", n=3)
    assert reds(first) == order[:3] and "3 of 7" in first.about
    (tmp_path / "empty").mkdir()
    for name, part in (
        (f"folder:{folder}", "cannot read the image"),
        (f"folder_train:{folder}", "has 1 class folders"),
        (f"folder:{tmp_path / 'empty'}", "has no images (all images below"),
        (f"folder:{tmp_path / 'none'}", "does not exist"),
    ):
        message = refusal(name, tmp_path)
        assert message.startswith(f"--dataset {name}: ") and part in message
