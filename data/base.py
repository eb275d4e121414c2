"""Types of the whole package."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from runs.cli import Mistake


class DataError(Mistake):
    """A user's mistake about one setting, in one line: "--<setting> <value>: <said>".

    `said` is what is wrong, and the remedy.
    """

    def __init__(self, setting: str, value: object, said: str) -> None:
        super().__init__(setting, value, said)  # processes send their errors to each other
        self.setting, self.value, self.said = setting, value, " ".join(said.splitlines())

    def __str__(self) -> str:
        value = "" if self.value is None else f" {self.value}"
        return f"--{self.setting}{value}: {self.said}"

    def asked_as(self, setting: str, name: str) -> DataError:
        """Return the error with the setting and the name that a program was given a data set by. An
        error about another setting stays as it is."""
        return DataError(setting, name, self.said) if self.setting == "dataset" else self


class Split(NamedTuple):
    """Images, their labels and their hashes. Images and labels are on one device, hashes on the
    CPU."""

    images: Tensor  # uint8 (N, size, size, 3)
    labels: Tensor  # int64 (N,)
    hashes: Tensor | None = None  # int64 (N,), see data.images; None for images that are made

    def to(self, device: torch.device | str) -> Split:
        return self._replace(images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor) -> Split:
        """Return the images of `index`, int64 (n,) on any device."""
        here = index.to(self.labels.device)
        hashes = None if self.hashes is None else self.hashes[index.cpu()]
        return Split(self.images[here], self.labels[here], hashes)

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
    about: str = ""  # one line: how many images were read, of what, and what was left out

    def fingerprint(self) -> str:
        """Return the number of the training images and a checksum of their pixels and labels, in
        their order."""
        tensors = self.train.images, self.train.labels
        images, labels = (tensor.cpu().contiguous().numpy().data for tensor in tensors)
        checksum = zlib.crc32(labels, zlib.crc32(images))
        return f"{len(self.train.labels):,} images, crc32 {checksum:08x}"

    def to(self, device: torch.device | str) -> DataSet:
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class Spec:
    """The facts about a set that need no images; the sizes are the published ones."""

    num_classes: int
    train_size: int
    test_size: int
    flips: bool
    grey: bool = False  # whether <name>.npz may hold N x H x W images
