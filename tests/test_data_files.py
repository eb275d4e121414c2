"""The published files and the bundled digits: what is read and what is refused."""

import os
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

import data
from data import DataError
from data.images import resize_batch


def refusal(name: str, root: Path) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(DataError) as caught:
        data.load(name, root)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("--da")  # --dataset or --data_root
    return message


def test_describe_needs_no_files() -> None:
    assert data.describe("cifar10") == data.Spec(10, 50000, 10000, flips=True)
    assert data.describe("cifar_100") == data.Spec(100, 50000, 10000, flips=True)
    assert data.describe("svhn") == data.Spec(10, 73257, 26032, flips=False)
    assert data.describe("mnist") == data.Spec(10, 60000, 10000, flips=False, grey=True)
    assert data.describe("digits") == data.Spec(10, 1437, 360, flips=False)


@pytest.mark.parametrize("name", ["imagenet", "fashion", "folder:", ""])
def test_an_unknown_set_is_refused_with_the_known_ones(name: str, tmp_path: Path) -> None:
    (tmp_path / "fashion.npz").touch()  # a file does not make a set trainable
    message = refusal(name, tmp_path)
    assert message.startswith(f"--dataset {name}: unknown data set")
    assert all(known in message for known in ("cifar10", "cifar100", "svhn", "digits", "folder:"))
    with pytest.raises(DataError, match="unknown data set"):
        data.describe(name)


def test_digits_are_real_stratified_and_the_same_every_time(tmp_path: Path) -> None:
    digits = data.load("digits", tmp_path)
    train, test = digits.train, digits.test
    assert train.images.shape == (1437, 32, 32, 3) and test.images.shape == (360, 32, 32, 3)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert digits.class_names == tuple("0123456789") and not digits.flips
    assert test.labels.bincount().tolist() == [36] * 10
    assert len(test.labels[:60].unique()) == 10  # the first images of the split show every class
    rows = {image.numpy().tobytes() for image in torch.cat([train.images, test.images])}
    assert len(rows) == 1797  # all different: no image is in both splits
    again = data.load("digits", tmp_path)
    assert torch.equal(again.test.images, test.images)
    assert torch.equal(again.train.labels, train.labels)


def test_digits_keep_their_image_and_label_together(tmp_path: Path) -> None:
    """A nearest-neighbour classifier finds the labels, so images and labels belong together."""
    digits = data.load("digits", tmp_path)
    train, test = (split.images.flatten(1).float() for split in (digits.train, digits.test))
    nearest = torch.cdist(test, train).argmin(1)
    assert (digits.train.labels[nearest] == digits.test.labels).float().mean() > 0.97


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Files in CIFAR-10's own format, two images a batch; returns their (12, 3, 32, 32) pixels."""
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    pixels = np.random.RandomState(0).randint(0, 256, (12, 3, 32, 32)).astype(np.uint8)
    for i, name in enumerate(names):
        batch = {"data": pixels[2 * i : 2 * i + 2].reshape(2, -1), "labels": [i, 9 - i]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # torchvision compares checksums with those of the real files; None switches that off
    monkeypatch.setattr(CIFAR10, "train_list", [[name, None] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], None]])
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    return pixels


def test_cifars_own_files_are_read_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = write_cifar10(tmp_path, monkeypatch)
    loaded = data.load("cifar10", tmp_path)
    assert (loaded.train.images.numpy() == pixels[:10].transpose(0, 2, 3, 1)).all()
    assert (loaded.test.images.numpy() == pixels[10:].transpose(0, 2, 3, 1)).all()
    assert loaded.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert loaded.test.labels.tolist() == [5, 4]
    assert loaded.class_names == tuple("abcdefghij")
    assert capsys.readouterr().out == ""


def test_svhns_own_files_are_read_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    pixels = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    for split in ("train", "test"):
        labels = np.array([[1], [10], [2]])  # the file's 10 is the digit 0
        file = {"X": pixels.transpose(1, 2, 3, 0), "y": labels}
        savemat(tmp_path / f"{split}_32x32.mat", file)
    loaded = data.load("svhn", tmp_path)
    assert (loaded.train.images.numpy() == pixels).all() and loaded.train.images.is_contiguous()
    half = data.load("svhn", tmp_path, size=16).train
    assert torch.equal(half.images, resize_batch(loaded.train.images, 16))
    assert torch.equal(half.hashes, loaded.train.hashes)
    assert loaded.test.labels.tolist() == [1, 0, 2] and loaded.test.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "kind", "files"),
    [
        ("cifar10", "CIFAR10", "cifar-10-python.tar.gz or its folder cifar-10-batches-py/"),
        ("cifar100", "CIFAR100", "cifar-100-python.tar.gz or its folder cifar-100-python/"),
        ("svhn", "SVHN", "train_32x32.mat and test_32x32.mat"),
    ],
)
def test_without_a_network_one_line_says_which_files_to_put_where(
    name: str,
    kind: str,
    files: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torchvision import datasets

    def no_network(self: object) -> None:
        print("Downloading ...")  # as torchvision did
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr(getattr(datasets, kind), "download", no_network)
    message = refusal(name, tmp_path)
    assert f"{tmp_path}" in message and files in message and f"{name}.npz" in message
    assert "Name or service not known" in message
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(
    not os.environ.get("HDGE_DATA_ROOT"), reason="HDGE_DATA_ROOT is not set: no real CIFAR-10"
)
def test_the_real_cifar10() -> None:
    loaded = data.load("cifar10", os.environ["HDGE_DATA_ROOT"])
    assert len(loaded.train.images) > 49000 and len(loaded.test.images) > 9900
    pixels = loaded.train.images.float() / 255
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-3, rtol=0)
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-3, rtol=0)
    assert (loaded.train.labels.bincount() - 5000).abs().max() <= 100
