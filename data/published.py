"""The files that the authors of a set publish, read by torchvision."""

import contextlib
import io
import socket
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from data.base import DataError, Split
from data.images import decoded_split, resized_split
from data.splits import TEST_SEED

FILES = {  # torchvision's class of a set, and what it reads
    "cifar10": ("CIFAR10", "cifar-10-python.tar.gz or its folder cifar-10-batches-py/"),
    "cifar100": ("CIFAR100", "cifar-100-python.tar.gz or its folder cifar-100-python/"),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat"),
    "celeba": ("CelebA", "celeba/ with img_align_celeba/ and its five list files"),
    "textures": ("DTD", "dtd/dtd/ with images/ and labels/"),
    "mnist": ("MNIST", "MNIST/raw/ with its four files"),
}
CONNECT_SECONDS = 30  # torchvision itself waits for ever where packets are dropped


def read_published(
    name: str, data_root: Path, part: str, size: int, first: int | None = None
) -> tuple[Split, int, tuple[str, ...] | None]:
    """Return the "train" or "test" split of a set of FILES, its number of images, and, where
    torchvision knows them, the class names.

    Downloads what is missing. Of celeba, which has no labels (-1), and textures (partition 1 of
    DTD) the `first` images alone are read. Raises DataError, which says which files to put where,
    without a network, with damaged files or where `data_root` cannot be written.
    """
    try:
        dataset = _open(name, data_root, part)
        classes = tuple(getattr(dataset, "classes", ())) or None
        if name in ("celeba", "textures"):
            order = np.arange(len(dataset))
            if name == "textures":  # its file goes from class to class
                order = np.random.RandomState(TEST_SEED).permutation(len(dataset))
            index = order[:first].tolist()
            read = (dataset[i] for i in index)
            pictures = ((image.convert("RGB"), -1 if y is None else y) for image, y in read)
            return decoded_split(pictures, len(index), size), len(order), classes
    except Exception as error:  # a download of Google Drive's, or a decoder, may raise anything
        raise DataError(
            "dataset",
            name,
            f"its files are not whole in {data_root} and could not be downloaded ({error}); "
            f"put {FILES[name][1]}, or {name}.npz, there, or give another --data_root",
        ) from error
    split = _arrays(dataset, name, size)  # a memory that is full is no missing file
    return split, len(split.labels), classes


def _open(name: str, root: Path, part: str) -> Any:
    from torchvision import datasets  # takes seconds, so only who needs it waits

    by_name = name in ("svhn", "celeba", "textures")
    options: dict[str, Any] = {"split": part} if by_name else {"train": part == "train"}
    if name == "celeba":
        options["target_type"] = []
    kind, made = getattr(datasets, FILES[name][0]), not root.exists()
    try:
        return kind(root, download=False, **options)
    except RuntimeError:  # missing or damaged
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(CONNECT_SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return kind(root, download=True, **options)
        finally:
            socket.setdefaulttimeout(before)
            for folder in (*sorted(root.rglob("*"), reverse=True), root) if made else ():
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()


def _arrays(dataset: Any, name: str, size: int) -> Split:
    """Read whole arrays: CIFAR is NHWC, SVHN is NCHW, and MNIST's 28 x 28 grey images are padded to
    32 x 32 first."""
    if name == "mnist":
        grey = F.pad(dataset.data, (2, 2, 2, 2))
        images, labels = grey[..., None].expand(-1, -1, -1, 3), dataset.targets.long()
    elif name == "svhn":
        images = torch.from_numpy(dataset.data).permute(0, 2, 3, 1)
        labels = torch.from_numpy(dataset.labels)
    else:
        images = torch.from_numpy(dataset.data)
        labels = torch.from_numpy(np.array(dataset.targets, dtype=np.int64))
    return resized_split(images.contiguous(), labels, size)
