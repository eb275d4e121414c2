"""Sets in the files that their authors publish, which torchvision reads, and the bundled digits."""

import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch

import data
from data import DataError, EvaluationSets
from data.images import resize_batch
from data.published import FILES
from runs.names import CLASSES
from tests.test_data_folder import paint
from tests.test_evaluation_sets import reds

RANDOM = np.random.RandomState(0)


def test_digits_are_real_stratified_and_the_same_every_time(tmp_path):
    digits, again = (data.load("digits", tmp_path) for _ in range(2))
    train, test = digits.train, digits.test
    assert train.images.shape == (1437, 32, 32, 3) and test.images.shape == (360, 32, 32, 3)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert digits.class_names == tuple("0123456789") and not digits.flips
    assert test.labels.bincount().tolist() == [36] * 10
    assert len(test.labels[:60].unique()) == 10  # the first images of the split show every class
    assert len(torch.cat([train.hashes, test.hashes]).unique()) == 1797  # no image is in both
    assert torch.equal(again.test.images, test.images)
    assert torch.equal(again.train.labels, train.labels)
    # A nearest-neighbour classifier needs images that belong to their labels.
    nearest = torch.cdist(*(split.images.flatten(1).float() for split in (test, train))).argmin(1)
    assert (train.labels[nearest] == test.labels).float().mean() > 0.97


@pytest.mark.parametrize("whole", [True, False])
def test_cifars_published_files(whole, tmp_path, monkeypatch, capsys):
    """Read two images a batch; the test split also where the training batches are missing."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6) if whole), "test_batch"]
    pixels = RANDOM.randint(0, 256, (2 * len(names), 3, 32, 32)).astype(np.uint8)
    for i, name in enumerate(names):
        batch = {"data": pixels[2 * i : 2 * i + 2].reshape(2, -1), "labels": [i, 9 - i]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # torchvision compares checksums with those of the real files; None switches that off
    monkeypatch.setattr(CIFAR10, "train_list", [[name, None] for name in names[:-1]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[-1], None]])
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    expected = pixels.transpose(0, 2, 3, 1)
    test = EvaluationSets(tmp_path).load("cifar10")
    assert (test.split.images.numpy() == expected[-2:]).all() and "published" in test.about
    assert test.split.labels.tolist() == ([5, 4] if whole else [0, 9])
    if whole:
        loaded = data.load("cifar10", tmp_path)
        assert (loaded.train.images.numpy() == expected[:10]).all()
        assert torch.equal(loaded.test.images, test.split.images)
        assert loaded.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
        assert loaded.class_names == tuple("abcdefghij")
    assert capsys.readouterr().out == ""


def test_svhns_published_files(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    pixels = RANDOM.randint(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    labels = np.array([[1], [10], [2]])  # the file's 10 is the digit 0
    for split in ("train", "test"):
        arrays = {"X": pixels.transpose(1, 2, 3, 0), "y": labels}
        savemat(tmp_path / f"{split}_32x32.mat", arrays)
    loaded = data.load("svhn", tmp_path)
    assert (loaded.train.images.numpy() == pixels).all() and loaded.train.images.is_contiguous()
    assert loaded.test.labels.tolist() == [1, 0, 2] and loaded.test.labels.dtype == torch.int64
    assert not loaded.flips


def test_mnists_published_files_are_padded(tmp_path):
    digits = RANDOM.randint(0, 256, (3, 28, 28)).astype(np.uint8)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        shape = np.array([0x803, 3, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(shape + digits.tobytes())
        labels = np.array([0x801, 3], dtype=">i4").tobytes() + bytes([7, 0, 9])
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    loaded = EvaluationSets(tmp_path).load("mnist", 2)
    padded = np.pad(digits[:2], ((0, 0), (2, 2), (2, 2)))
    assert (loaded.split.images.numpy() == padded[..., None]).all()
    assert loaded.split.labels.tolist() == [7, 0] and loaded.num_classes == 10
    assert "the first 2 of 3 images" in loaded.about
    plain, half = (data.load("mnist", tmp_path, size=size) for size in (32, 16))
    assert torch.equal(plain.train.images[:2], loaded.split.images)
    assert torch.equal(half.train.images, resize_batch(plain.train.images, 16))
    assert torch.equal(half.test.hashes, plain.test.hashes)
    assert half.train.labels.tolist() == [7, 0, 9]


def test_celebas_published_files(tmp_path, monkeypatch):
    from torchvision.datasets import CelebA

    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    folder = tmp_path / "celeba"
    parts = [0, 2, 1, 2, 2]  # 2: test
    for i in range(5):
        paint(folder / "img_align_celeba" / f"{i}.jpg", (40 * i, 0, 0), size=(178, 218))
    (folder / "img_align_celeba" / "4.jpg").write_bytes(b"broken")
    rows = [f"{i}.jpg {part}" for i, part in enumerate(parts)]
    for name in ("list_eval_partition", "identity_CelebA"):
        (folder / f"{name}.txt").write_text("\n".join(rows))
    for name in ("list_bbox_celeba", "list_landmarks_align_celeba", "list_attr_celeba"):
        (folder / f"{name}.txt").write_text("\n".join(["5", "heading", *rows]))
    loaded = EvaluationSets(tmp_path).load("celeba", 2)
    assert reds(loaded) == pytest.approx([40, 120], abs=3)  # JPEG is not exact
    assert loaded.split.labels.tolist() == [-1, -1] and loaded.num_classes is None
    assert "the first 2 of 3 images" in loaded.about and "centre square" in loaded.about
    with pytest.raises(DataError, match="cannot identify"):
        EvaluationSets(tmp_path).load("celeba")


def test_the_textures_published_files(tmp_path):
    kinds = [f"kind{i:02}" for i in range(8)]
    for i, kind in enumerate(kinds):
        paint(tmp_path / "dtd" / "dtd" / "images" / kind / "a.png", (i, 0, 0), size=(50, 40))
    labels = tmp_path / "dtd" / "dtd" / "labels"
    labels.mkdir()
    (labels / "test1.txt").write_text("\n".join(f"{kind}/a.png" for kind in kinds))
    loaded = EvaluationSets(tmp_path).load("textures")
    order = reds(loaded)
    assert sorted(order) == list(range(8)) and order != sorted(order)  # not kind after kind
    assert loaded.split.labels.tolist() == order and loaded.num_classes == 47
    first = EvaluationSets(tmp_path).load("textures", 3)
    assert reds(first) == order[:3] and "3 of 8" in first.about
    small = EvaluationSets(tmp_path, size=16).load("textures")
    assert small.split.images.shape == (8, 16, 16, 3) and "16 x 16" in small.about
    assert torch.equal(small.split.hashes, loaded.split.hashes)


@pytest.mark.parametrize("name", [*FILES, "cifar10interp"])
@pytest.mark.parametrize("failure", [URLError("not\nknown"), RuntimeError("not known")])
def test_a_failed_download_is_named_with_its_remedy(name, failure, tmp_path, monkeypatch, capsys):
    from torchvision import datasets

    folder = tmp_path / "new"

    def no_network(self: object) -> None:
        print("Downloading ...")  # as torchvision did
        (folder / "raw").mkdir(parents=True)
        raise failure

    kind, files = FILES[name.removesuffix("interp")]
    method = "_download" if kind == "DTD" else "download"
    monkeypatch.setattr(getattr(datasets, kind), method, no_network)
    with pytest.raises(DataError) as caught:
        data.load(name, folder) if name in CLASSES else EvaluationSets(folder).load(name)
    assert not folder.exists()
    message = str(caught.value)
    assert message.startswith(f"--dataset {name}: ") and "\n" not in message
    assert all(part in message for part in (f"{tmp_path}", files, ".npz", "not known"))
    assert capsys.readouterr() == ("", "")
