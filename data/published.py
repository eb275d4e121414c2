"""The files that the authors of a set publish, read by torchvision."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from data.base import SetError, Split
from data.folder import resize
from data.record import image_hashes
from data.resize import resize_batch
from data.splits import TEST_SEED

FILES = {
    "cifar10": "cifar-10-python.tar.gz or its folder cifar-10-batches-py/",
    "cifar100": "cifar-100-python.tar.gz or its folder cifar-100-python/",
    "svhn": "train_32x32.mat and test_32x32.mat",
    "celeba": "celeba/ with img_align_celeba/ and its five list files",
    "textures": "dtd/dtd/ with images/ and labels/",
    "mnist": "MNIST/raw/ with its four files",
}
CONNECT_SECONDS = 30  # torchvision itself waits for ever where packets are dropped


def load_published(
    name: str, data_root: Path, size: int
) -> tuple[Split, Split, tuple[str, ...] | None]:
    """Train and test split and, where torchvision knows them, the class names.

    Downloads what is missing. Raises DataError, which says which files to put where, without a
    network, with damaged files or where `data_root` cannot be written.
    """
    train, classes = load_published_split(name, data_root, "train", size)
    test, _ = load_published_split(name, data_root, "test", size)
    return train, test, classes


def load_published_split(
    name: str, data_root: Path, split: str, size: int
) -> tuple[Split, tuple[str, ...] | None]:
    """The "train" or "test" split of CIFAR, SVHN or MNIST alone, otherwise as `load_published`."""
    try:
        dataset = _open(name, data_root, split)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        raise _missing(name, data_root, error) from error
    classes = getattr(dataset, "classes", None)
    return _split(dataset, name, size), tuple(classes) if classes else None


def load_published_ood(
    name: str, data_root: Path, size: int, first: int | None = None
) -> tuple[Split, int]:
    """The test split of celeba or textures (DTD, partition 1), and how many images it has.

    The `first` images alone are read, each as its centre square. DTD's file goes from class to
    class, so it is read in a fixed random order. CelebA has no labels (-1). Raises DataError as
    `load_published`.
    """
    try:
        dataset = _open(name, data_root, "test")
        order = np.arange(len(dataset))
        if name == "textures":
            order = np.random.RandomState(TEST_SEED).permutation(len(dataset))
        split = _decode(dataset, order[:first].tolist(), size)
        return split, len(dataset)
    except Exception as error:  # a download of Google Drive's, or a decoder, may raise anything
        raise _missing(name, data_root, error) from error


def _missing(name: str, data_root: Path, error: Exception) -> SetError:
    return SetError(
        name,
        f"its files are not whole in {data_root} and could not be downloaded "
        f"({error}); put {FILES[name]}, or {name}.npz, there, or give another --data_root",
    )


def _open(name: str, root: Path, split: str) -> Any:
    try:
        return _torchvision(name, root, split, download=False)
    except RuntimeError:  # missing or damaged
        with _patience(CONNECT_SECONDS), contextlib.redirect_stdout(io.StringIO()):
            return _torchvision(name, root, split, download=True)


def _torchvision(name: str, root: Path, split: str, *, download: bool) -> Any:
    from torchvision import datasets  # takes seconds, so only who needs it waits

    if name == "svhn":
        return datasets.SVHN(root, split=split, download=download)
    if name == "celeba":
        return datasets.CelebA(root, split=split, target_type=[], download=download)
    if name == "textures":
        return datasets.DTD(root, split=split, download=download)
    if name == "mnist":
        return datasets.MNIST(root, train=split == "train", download=download)
    cifar = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return cifar(root, train=split == "train", download=download)


def _split(dataset: Any, name: str, size: int) -> Split:
    """The arrays, resized: no PIL, no loop over samples. CIFAR is NHWC, SVHN is NCHW, and MNIST's
    28 x 28 grey images are padded to 32 x 32 first."""
    if name == "mnist":
        grey = F.pad(dataset.data, (2, 2, 2, 2))
        images, labels = grey[..., None].expand(-1, -1, -1, 3), dataset.targets.long()
    elif name == "svhn":
        images = torch.from_numpy(dataset.data).permute(0, 2, 3, 1)
        labels = torch.from_numpy(dataset.labels)
    else:
        images = torch.from_numpy(dataset.data)
        labels = torch.from_numpy(np.array(dataset.targets, dtype=np.int64))
    images = images.contiguous()
    return Split(resize_batch(images, size), labels, image_hashes(images.numpy()))


def _decode(dataset: Any, index: list[int], size: int) -> Split:
    """The images of `index`, one by one: these sets are JPEG files of any size."""
    images = np.empty((len(index), size, size, 3), dtype=np.uint8)
    labels = torch.full((len(index),), -1)

    def decoded() -> Iterator[np.ndarray]:
        for row, i in enumerate(index):
            image, label = dataset[i]
            rgb = image.convert("RGB")
            images[row] = resize(rgb, size)
            if label is not None:
                labels[row] = label
            yield np.asarray(rgb)

    hashes = image_hashes(decoded())
    return Split(torch.from_numpy(images), labels, hashes)


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
