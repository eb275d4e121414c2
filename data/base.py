"""The types that every other file of this package speaks."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

SIZE = 32  # every image is SIZE x SIZE x 3


class DataError(ValueError):
    """A user's mistake in one line that names the flag, the value and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class Split(NamedTuple):
    """Images and the labels that belong to them, in one order, on one device."""

    images: Tensor  # uint8 (N, 32, 32, 3)
    labels: Tensor  # int64 (N,)

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DataSet:
    """A labelled set to train on. `test` is empty (N = 0) where the source has no test images."""

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    flips: bool  # whether a mirrored image still shows its class
    train: Split
    test: Split

    def fingerprint(self) -> str:
        """Tells other training images, or another order, from these: their number, and a checksum
        of pixels and labels."""
        images, labels = (tensor.cpu().contiguous().numpy().data for tensor in self.train)
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
