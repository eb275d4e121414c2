"""The types that every other file of this package speaks."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from runs.cli import Mistake


class DataError(Mistake):
    """A user's mistake in one line that names the flag, the value and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class SetError(DataError):
    """A mistake about the files of one set: `said` without the flag and the name that it is about,
    so that a caller can put those that the user gave in front."""

    def __init__(self, name: str, said: str, flag: str = "--dataset") -> None:
        super().__init__(f"{flag} {name}: {said}")
        self.name, self.said, self.flag = name, said, flag

    def __reduce__(self) -> tuple[type[SetError], tuple[str, str, str]]:
        """Processes send their errors to each other."""
        return SetError, (self.name, self.said, self.flag)


class Split(NamedTuple):
    """Images, the labels that belong to them and a hash of each, in one order. Images and labels
    are on one device, the hashes on the CPU."""

    images: Tensor  # uint8 (N, size, size, 3)
    labels: Tensor  # int64 (N,)
    hashes: Tensor | None = None  # int64 (N,), see data.record; None for images that are made

    def to(self, device: torch.device | str) -> Split:
        return self._replace(images=self.images.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor) -> Split:
        """The images of `index`, int64 (n,) on any device."""
        here = index.to(self.labels.device)
        hashes = None if self.hashes is None else self.hashes[index.cpu()]
        return Split(self.images[here], self.labels[here], hashes)

    def first(self, n: int | None) -> Split:
        """The first n images; None: all."""
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
    reader: int = 1  # see data.record

    def fingerprint(self) -> str:
        """Tells other training images, or another order, from these: their number, and a checksum
        of pixels and labels."""
        tensors = self.train.images, self.train.labels
        images, labels = (tensor.cpu().contiguous().numpy().data for tensor in tensors)
        return (
            f"{len(self.train.labels):,} images, crc32 {zlib.crc32(labels, zlib.crc32(images)):08x}"
        )

    def to(self, device: torch.device | str) -> DataSet:
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class Spec:
    """What is known of a set without opening its images; the sizes are the published ones."""

    num_classes: int
    train_size: int
    test_size: int
    flips: bool
    grey: bool = False  # whether <name>.npz may hold N x H x W images
