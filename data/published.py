"""CIFAR-10, CIFAR-100 and SVHN in the files that their authors publish, read by torchvision."""

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

from data.base import DataError, Split

FILES = {
    "cifar10": "cifar-10-python.tar.gz or its folder cifar-10-batches-py/",
    "cifar100": "cifar-100-python.tar.gz or its folder cifar-100-python/",
    "svhn": "train_32x32.mat and test_32x32.mat",
}
CONNECT_SECONDS = 30  # torchvision itself waits for ever where packets are dropped


def load_published(name: str, data_root: Path) -> tuple[Split, Split, tuple[str, ...] | None]:
    """Train and test split and, where torchvision knows them, the class names.

    Downloads what is missing. Raises DataError, which says which files to put where, without a
    network, with damaged files or where `data_root` cannot be written.
    """
    try:
        train, test = (_open(name, data_root, split) for split in ("train", "test"))
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        raise DataError(
            f"--dataset {name}: its files are not whole in {data_root} and could not be downloaded "
            f"({error}); put {FILES[name]}, or {name}.npz, there, or give another --data_root"
        ) from error
    classes = getattr(train, "classes", None)
    return _split(train), _split(test), tuple(classes) if classes else None


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
    cifar = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    return cifar(root, train=split == "train", download=download)


def _split(dataset: Any) -> Split:
    """The arrays as they are: no PIL, no loop over samples. CIFAR is NHWC, SVHN is NCHW."""
    images = torch.from_numpy(dataset.data)
    if hasattr(dataset, "labels"):
        return Split(images.permute(0, 2, 3, 1).contiguous(), torch.from_numpy(dataset.labels))
    return Split(images.contiguous(), torch.from_numpy(np.array(dataset.targets, dtype=np.int64)))


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
