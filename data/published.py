"""Read through torchvision the files that the authors of a set publish."""

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

FILES = {  # name of a set -> torchvision's class, the files that it reads
    "cifar10": ("CIFAR10", "cifar-10-python.tar.gz or its folder cifar-10-batches-py/"),
    "cifar100": ("CIFAR100", "cifar-100-python.tar.gz or its folder cifar-100-python/"),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat"),
    "celeba": ("CelebA", "celeba/ with img_align_celeba/ and its five list files"),
    "textures": ("DTD", "dtd/dtd/ with images/ and labels/"),
    "mnist": ("MNIST", "MNIST/raw/ with its four files"),
}
CONNECT_SECONDS = 30  # torchvision sets no timeout and would wait forever for dropped packets


def read_published(
    name: str, data_root: Path, part: str, size: int, first: int | None = None
) -> tuple[Split, int, tuple[str, ...] | None]:
    """Return the "train" or "test" split of a set of FILES, its number of images, and its class
    names or None if torchvision has none.

    Downloads missing files. Reads only the `first` images of celeba, which has no labels (-1), and
    of textures (partition 1 of DTD). Raises DataError, naming the files and their folder, if the
    files are damaged, or missing and cannot be downloaded to `data_root`.
    """
    try:
        dataset = _open(name, data_root, part)
        classes = tuple(getattr(dataset, "classes", ())) or None
        if name in ("celeba", "textures"):
            order = np.arange(len(dataset))
            if name == "textures":  # its list is sorted by class
                order = np.random.RandomState(TEST_SEED).permutation(len(dataset))
            index = order[:first].tolist()
            items = (dataset[i] for i in index)
            pictures = ((image.convert("RGB"), -1 if y is None else y) for image, y in items)
            return decoded_split(pictures, len(index), size), len(order), classes
    except Exception as error:  # Google Drive's downloads and decoders may raise any error
        raise DataError(
            "dataset",
            name,
            f"its files are not whole in {data_root} and could not be downloaded ({error}); "
            f"put {FILES[name][1]}, or {name}.npz, there, or give another --data_root",
        ) from error
    split = _arrays(dataset, name, size)  # after `try`: full memory is not a missing file
    return split, len(split.labels), classes


def _open(name: str, root: Path, part: str) -> Any:
    from torchvision import datasets  # slow import: only on this path

    has_split = name in ("svhn", "celeba", "textures")
    options: dict[str, Any] = {"split": part} if has_split else {"train": part == "train"}
    if name == "celeba":
        options["target_type"] = []
    constructor, new_root = getattr(datasets, FILES[name][0]), not root.exists()
    try:
        return constructor(root, download=False, **options)
    except RuntimeError:  # missing or damaged
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(CONNECT_SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return constructor(root, download=True, **options)
        finally:
            socket.setdefaulttimeout(timeout)
            for folder in (*sorted(root.rglob("*"), reverse=True), root) if new_root else ():
                with contextlib.suppress(OSError):  # removes empty folders alone
                    folder.rmdir()


def _arrays(dataset: Any, name: str, size: int) -> Split:
    """Make a split of torchvision's arrays: CIFAR in NHWC, SVHN in NCHW, MNIST in 28 x 28 grey
    pixels, which are padded to 32 x 32 first."""
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
