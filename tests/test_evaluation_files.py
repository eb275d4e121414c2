"""Evaluation sets in the files that their authors publish, read by torchvision."""

import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

import data
from data import DataError, EvaluationSet
from data.images import resize_batch

RANDOM = np.random.RandomState(0)


def paint(file: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def colours(loaded: EvaluationSet) -> list[tuple[int, int, int]]:
    """Of images that are each of one colour."""
    images = loaded.split.images
    assert (images == images[:, :1, :1]).all()
    return [tuple(colour) for colour in images[:, 0, 0].tolist()]


def refusal(name: str, root: Path) -> str:
    with pytest.raises(DataError) as caught:
        data.load_evaluation(name, root, strict=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_celebas_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CelebA

    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    folder = tmp_path / "celeba"
    parts = [0, 2, 1, 2, 2]  # 2: test
    for i in range(5):
        paint(folder / "img_align_celeba" / f"{i}.jpg", (40 * i, 0, 0), size=(178, 218))
    striped = Image.new("RGB", (178, 218), (0, 255, 0))  # what is not of the centre square
    striped.paste((200, 0, 0), (0, 20, 178, 198))
    striped.save(folder / "img_align_celeba" / "1.jpg", quality=100, subsampling=0)
    (folder / "img_align_celeba" / "4.jpg").write_bytes(b"broken")
    rows = [f"{i}.jpg {part}" for i, part in enumerate(parts)]
    for name in ("list_eval_partition", "identity_CelebA"):
        (folder / f"{name}.txt").write_text("\n".join(rows))
    for name in ("list_bbox_celeba", "list_landmarks_align_celeba", "list_attr_celeba"):
        (folder / f"{name}.txt").write_text("\n".join(["5", "heading", *rows]))
    loaded = data.load_evaluation("celeba", tmp_path, max_images=2)
    inside = torch.tensor([[200, 0, 0], [120, 0, 0]])[:, None, None]
    assert (loaded.split.images[:, 1:31].int() - inside).abs().max() <= 3  # JPEG is not exact
    assert loaded.split.labels.tolist() == [-1, -1] and loaded.num_classes is None
    assert "the first 2 of 3 images" in loaded.about and "centre square" in loaded.about
    assert "cannot identify" in refusal("celeba", tmp_path)


def test_the_textures_own_files(tmp_path: Path) -> None:
    kinds = [f"kind{i:02}" for i in range(8)]
    for i, kind in enumerate(kinds):
        paint(tmp_path / "dtd" / "dtd" / "images" / kind / "a.png", (i, 0, 0), size=(50, 40))
    labels = tmp_path / "dtd" / "dtd" / "labels"
    labels.mkdir()
    (labels / "test1.txt").write_text("\n".join(f"{kind}/a.png" for kind in kinds))
    loaded = data.load_evaluation("textures", tmp_path)
    found = [red for red, _, _ in colours(loaded)]
    assert sorted(found) == list(range(8)) and found != sorted(found)  # not kind after kind
    assert loaded.split.labels.tolist() == found and loaded.num_classes == 47
    first = data.load_evaluation("textures", tmp_path, max_images=3)
    small = data.load_evaluation("textures", tmp_path, trained_on=data.TrainedOn(size=16))
    assert small.split.images.shape == (8, 16, 16, 3) and "16 x 16" in small.about
    assert torch.equal(small.split.hashes, loaded.split.hashes)
    assert [red for red, _, _ in colours(first)] == found[:3] and "3 of 8" in first.about


def test_mnists_own_files_are_padded(tmp_path: Path) -> None:
    digits = RANDOM.randint(0, 256, (3, 28, 28)).astype(np.uint8)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        shape = np.array([0x803, 3, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(shape + digits.tobytes())
        labels = np.array([0x801, 3], dtype=">i4").tobytes() + bytes([7, 0, 9])
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    loaded = data.load_evaluation("mnist", tmp_path, max_images=2)
    padded = np.pad(digits[:2], ((0, 0), (2, 2), (2, 2)))
    assert (loaded.split.images.numpy() == padded[..., None]).all()
    assert loaded.split.labels.tolist() == [7, 0] and loaded.num_classes == 10
    assert "the first 2 of 3 images" in loaded.about
    plain, half = (data.load("mnist", tmp_path, size=size) for size in (32, 16))
    assert torch.equal(plain.train.images[:2], loaded.split.images)
    assert torch.equal(half.train.images, resize_batch(plain.train.images, 16))
    assert torch.equal(half.test.hashes, plain.test.hashes)
    assert half.train.labels.tolist() == [7, 0, 9]


@pytest.mark.parametrize(
    ("name", "kind", "method", "put"),
    [
        ("celeba", "CelebA", "download", "img_align_celeba"),
        ("textures", "DTD", "_download", "dtd/"),
        ("mnist", "MNIST", "download", "MNIST/raw"),
        ("cifar10interp", "CIFAR10", "download", "cifar-10-python.tar.gz"),
    ],
)
@pytest.mark.parametrize("failure", [URLError("not\nknown"), RuntimeError("not known")])
def test_what_cannot_be_downloaded_is_said_in_one_line(
    name: str,
    kind: str,
    method: str,
    put: str,
    failure: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torchvision import datasets

    def no_network(self: object) -> None:
        print("Downloading ...")
        raise failure

    monkeypatch.setattr(getattr(datasets, kind), method, no_network)
    message = refusal(name, tmp_path)
    assert message.startswith(f"--dataset {name}: ") and put in message and "known" in message
    assert f"{tmp_path}" in message and ".npz" in message
    assert capsys.readouterr() == ("", "")


def test_one_split_of_cifars_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training batches are not even there."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = RANDOM.randint(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    batch = {"data": pixels.reshape(2, -1), "labels": [3, 8]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setitem(CIFAR10.meta, "md5", None)
    loaded = data.load_evaluation("cifar10", tmp_path)
    assert (loaded.split.images.numpy() == pixels.transpose(0, 2, 3, 1)).all()
    assert loaded.split.labels.tolist() == [3, 8] and "published files" in loaded.about
