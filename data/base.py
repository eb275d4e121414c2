"""Types that the whole package uses: splits, data sets and the error of a user's mistake."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from runs.cli import Mistake


class DataError(Mistake):
    """A user's mistake about one setting, in one line: "--<setting> <value>: <message>".

    `message` names the defect and its remedy. A `value` of None is left out of the line.
    """

    def __init__(self, setting: str, value: object, message: str) -> None:
        super().__init__(setting, value, message)  # as pickle needs them: processes exchange errors
        self.setting, self.value = setting, value
        self.message = " ".join(message.splitlines())

    def __str__(self) -> str:
        value = "" if self.value is None else f" {self.value}"
        return f"--{self.setting}{value}: {self.message}"

    def renamed(self, setting: str, name: str) -> DataError:
        """Return the error with the flag and the name by which the user gave the data set. Return
        an error about any other setting unchanged."""
        return DataError(setting, name, self.message) if self.setting == "dataset" else self


class Split(NamedTuple):
    """Images, their labels and their hashes. Images and labels are on one device, hashes on the
    CPU."""

    images: Tensor  # uint8 (N, size, size, 3)
    labels: Tensor  # int64 (N,)
    hashes: Tensor | None = None  # int64 (N,), see data.images; None for generated images

    def to(self, device: torch.device | str) -> Split:
        return self._replace(images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor) -> Split:
        """Return the images of `index`, int64 (n,) on any device."""
        index_here = index.to(self.labels.device)
        hashes = None if self.hashes is None else self.hashes[index.cpu()]
        return Split(self.images[index_here], self.labels[index_here], hashes)

    def first(self, n: int | None) -> Split:
        """Return the first n images; None: all."""
        hashes = None if self.hashes is None else self.hashes[:n]
        return Split(self.images[:n], self.labels[:n], hashes)


@dataclass(frozen=True)
class DataSet:
    """A labelled set to train on. `test` is empty (N = 0) where the source has no test images."""

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    flips: bool  # whether a mirrored image still shows its class
    train: Split
    test: Split
    about: str = ""  # one line: number of images read, their source, files or arrays left out

    def fingerprint(self) -> str:
        """Return the number of training images and a checksum of their pixels and labels, in
        order."""
        tensors = self.train.images, self.train.labels
        images, labels = (tensor.cpu().contiguous().numpy().data for tensor in tensors)
        checksum = zlib.crc32(labels, zlib.crc32(images))
        return f"{len(self.train.labels):,} images, crc32 {checksum:08x}"

    def to(self, device: torch.device | str) -> DataSet:
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class Spec:
    """Facts about a set that are known before an image is read. Sizes count images."""

    num_classes: int
    train_size: int
    test_size: int
    flips: bool
    grey: bool = False  # whether <name>.npz may hold N x H x W images
