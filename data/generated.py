"""Make images from a seed, or cut them from scikit-learn's photographs: no download."""

import zlib

import numpy as np
import torch
from torch import Tensor

from data.splits import TEST_SEED

NOISE_IMAGES = 10_000
GAUSSIAN_STD = 0.5  # in units of [-1, 1]: 4.6 % of the values are clipped
CHUNK = 500  # images held as float64 at once


def interpolation_pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n pairs of n >= 2 images, two indices int64 (n,): neighbours on a random circle of all
    images, so that no image is paired with itself and every image is in two pairs."""
    order = torch.from_numpy(_random("interp", seed).permutation(n)).long()
    return order, order.roll(-1)


def interpolate(a: Tensor, b: Tensor) -> Tensor:
    """Return (a + b) / 2 of uint8 images, rounded half up to uint8."""
    return (a | b) - ((a ^ b) >> 1)  # = (a + b + 1) // 2, but a + b would overflow


def uniform_noise(n: int, seed: int, size: int) -> Tensor:
    """Draw every value from U{0, ..., 255}: uint8 (n, size, size, 3). A smaller n gives the first
    images of a larger n."""
    shape = (n, size, size, 3)
    return torch.from_numpy(_random("uniform", seed).randint(0, 256, shape, dtype=np.uint8))


def gaussian_noise(n: int, seed: int, size: int) -> Tensor:
    """Draw images as `uniform_noise` does, from N(0, 0.5^2) in units of [-1, 1], clipped there."""
    random = _random("gaussian", seed)
    images = np.empty((n, size, size, 3), dtype=np.uint8)
    for start in range(0, n, CHUNK):
        chunk = images[start : start + CHUNK]
        values = np.clip(GAUSSIAN_STD * random.standard_normal(chunk.shape), -1, 1)
        chunk[:] = np.rint((values + 1) * 127.5)
    return torch.from_numpy(images)


def photo_patches(size: int) -> Tensor:
    """Cut scikit-learn's two photographs (427 x 640) into patches: uint8 (n, size, size, 3).

    Patches form a centred grid without overlap, in a fixed random order. There are 2 x 13 x 20 of
    32 x 32, and none above 427 x 427.
    """
    from sklearn import datasets  # slow import: only on this path

    tiles = []
    for photo in datasets.load_sample_images().images:
        rows, columns = photo.shape[0] // size, photo.shape[1] // size
        top, left = (photo.shape[0] - rows * size) // 2, (photo.shape[1] - columns * size) // 2
        area = photo[top : top + rows * size, left : left + columns * size]
        grid = area.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
        tiles.append(grid.reshape(-1, size, size, 3))
    patches = np.concatenate(tiles)
    order = np.random.RandomState(TEST_SEED).permutation(len(patches))
    return torch.from_numpy(patches[order])


def _random(name: str, seed: int) -> np.random.RandomState:
    """Return a random state for a kind of image and a seed >= 0. RandomState draws the same numbers
    in every NumPy release; np.random.default_rng may not."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return np.random.RandomState(np.random.MT19937(sequence))
