"""Resize images of any size to the uint8 RGB images that the network reads, and hash them."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.base import Split

CHUNK = 1000  # images held as float32 at once


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize the centre square: uint8 (N, H, W, 3) -> uint8 (N, size, size, 3).

    Enlarging is bilinear. Shrinking is bilinear with antialias: the triangle of weights is as wide
    as two of the new pixels, so that every old pixel has a weight.
    """
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return images.contiguous()
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top : top + side, left : left + side]
    resized = []
    for chunk in square.permute(0, 3, 1, 2).split(CHUNK):
        planes = F.interpolate(chunk.float(), size=(size, size), mode="bilinear", antialias=True)
        resized.append(planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(resized).contiguous()


def resized_split(images: Tensor, labels: Tensor, size: int) -> Split:
    """Resize images uint8 (N, H, W, 3), and hash them at their original size."""
    return Split(resize_batch(images, size), labels, image_hashes(images.numpy()))


def decoded_split(pictures: Iterable[tuple[Any, int]], n: int, size: int) -> Split:
    """Resize n pairs (PIL image in RGB, label); hash the images at their original size."""
    from PIL import Image, ImageOps

    images = np.empty((n, size, size, 3), dtype=np.uint8)
    labels = torch.empty(n, dtype=torch.int64)

    def pixels() -> Iterable[np.ndarray]:
        for i, (picture, label) in enumerate(pictures):
            fitted = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
            images[i], labels[i] = np.asarray(fitted), label
            yield np.asarray(picture)

    hashes = image_hashes(pixels())
    return Split(torch.from_numpy(images), labels, hashes)


def image_hashes(images: Iterable[np.ndarray]) -> Tensor:
    """Return int64 (N,): BLAKE2b, 64 bits, of each image's shape and pixels, uint8 (H, W, 3)."""
    hashes = np.fromiter(map(_digest, images), dtype=np.uint64)
    return torch.from_numpy(hashes.view(np.int64))


def _digest(image: np.ndarray) -> int:
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(image).data)
    return int.from_bytes(digest.digest(), "little")
