"""Make batches on the images' device: no worker processes, no loop over samples, no host sync.

`TrainingBatches` makes the batches of each training step; `evaluation_batches` those of a split.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from data.base import DataError, Split
from runs.processes import mixed, share

EVAL_NOISE_BLOCK = 100  # consecutive images whose evaluation noise comes from one generator
_ORDER, _NOISE = 0, 1  # keys that keep two generators of one seed apart


def to_float(images: Tensor) -> Tensor:
    """Return x / 127.5 - 1: uint8 (n, H, W, 3) -> float32 (n, 3, H, W), channels_last."""
    return images.to(torch.float32).div_(127.5).sub_(1.0).permute(0, 3, 1, 2)


def augment(
    images: Tensor, index: Tensor, *, sigma: float, flip: bool, clamp: bool = False
) -> Tensor:
    """Make a training batch: pad by reflection by an eighth of the image's side (4 of 32), crop at
    random, mirror (p = 1/2), scale to [-1, 1], add noise with `noisy`.

    images uint8 (N, size, size, 3) and index int64 (n,) on one device ->
    float32 (n, 3, size, size) in channels_last there. Padding, crop and mirror are one gather.
    """
    n, size, device = len(index), images.shape[1], images.device
    positions = 2 * (size // 8) + 1  # of a crop along an axis
    offsets = torch.randint(positions, (2, n, 1), device=device)
    if flip:
        mirrored = torch.rand(n, 1, device=device) < 0.5
        offsets[1].add_(mirrored, alpha=positions)
    rows, columns = _crops(size, device).index_select(0, offsets.flatten()).view(2, n, size)
    rows += size * torch.arange(n, device=device, dtype=torch.int32)[:, None]
    pixels = torch.add(columns[:, None, :], rows[:, :, None], alpha=size).flatten()
    # One index into a flat list of pixels: four times as fast on the CPU as three into the images.
    cropped = images.index_select(0, index).flatten(0, 2).index_select(0, pixels)
    return noisy(to_float(cropped.view(n, size, size, 3)), sigma, clamp)


def noisy(batch: Tensor, sigma: float, clamp: bool) -> Tensor:
    """Add N(0, sigma^2) noise to images (n, 3, H, H) in place; then, with `clamp`, clamp them to
    [-1, 1]."""
    if sigma > 0:
        batch += _noise(len(batch), batch.shape[-1], sigma, batch.device)
        if clamp:
            batch.clamp_(-1, 1)
    return batch


def evaluation_batches(
    split: Split, *, batch_size: int, sigma: float, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images float32 (n, 3, size, size) in order, not augmented, and labels int64 (n,).

    An image's noise depends on its index and on `seed` >= 0 alone. Images are bit-identical for
    every batch size and call on one kind of device: generators of another kind draw other numbers.
    Each of several processes yields its share of the batches.
    """
    size, device = split.images.shape[1], split.images.device
    part = share(len(split.images), batch_size)
    block, within = divmod(part.start, EVAL_NOISE_BLOCK)
    noise = torch.empty(0, 3, size, size, device=device)
    for start in part:
        batch = to_float(split.images[start : start + batch_size])
        while sigma > 0 and len(noise) < len(batch):
            generator = generator_of(device, seed, _NOISE, block)
            drawn = _noise(EVAL_NOISE_BLOCK, size, sigma, device, generator)
            noise, block, within = torch.cat([noise, drawn[within:]]), block + 1, 0
        if sigma > 0:
            batch += noise[: len(batch)]
            noise = noise[len(batch) :]
        yield batch, split.labels[start : start + batch_size]


def epoch_order(n: int, *, seed: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a random permutation of n, int64 (n,): a pure function of (seed, epoch), both >= 0."""
    generator = generator_of(torch.device("cpu"), seed, _ORDER, epoch)
    return torch.randperm(n, generator=generator).to(device)


def generator_of(device: torch.device, *key: int) -> torch.Generator:
    """Make a generator whose seed is a hash of all the numbers of `key` (each >= 0)."""
    return torch.Generator(device).manual_seed(mixed(*key))


def steps_per_epoch(images: int, batch_size: int, flag: str = "batch_size") -> int:
    """Return floor(images / batch_size). Raises DataError if that is 0."""
    if images < batch_size:
        problem = f"exceeds the {images} training images of an epoch; use {images} at most"
        raise DataError(flag, batch_size, problem)
    return images // batch_size


def check_labelled(images: int, processes: int) -> None:
    """Raise DataError for a batch of labelled images that the processes cannot share equally."""
    if images % processes:
        problem = f"{images} labelled images are not divisible by the {processes} processes"
        raise DataError("labels_per_class", None, f"{problem}: use another number")


@dataclass
class TrainingBatches:
    """Make the batches of each training step.

    The indices of a batch are a pure function of (seed, step), so a resumed run continues in the
    middle of an epoch. Crops, flips and noise come from the global generator. An epoch is
    floor(len(index) / batch_size) steps. `labelled` are the members of `index` whose labels may be
    used; they cycle, in batches of min(batch_size, len(labelled)). Raises DataError for fewer
    images than one batch, and for a labelled batch that the processes cannot share equally.
    """

    streams: ClassVar[int] = 2  # orders of images per epoch: of the labelled and the second batch

    train: Split
    index: Tensor
    labelled: Tensor
    batch_size: int
    seed: int
    sigma: float
    flip: bool
    unlabelled: bool  # whether a step has a second batch, of all images in an order of its own
    part: tuple[int, int] = (0, 1)  # (i, n): this is process i of n that share each batch
    clamp: bool = False  # whether to clamp images to [-1, 1], after the noise
    second_size: int | None = None  # size of the second batch; None: batch_size
    augmented: tuple[bool, bool] = (True, True)  # for each batch: whether to crop and mirror it
    _orders: dict[int, tuple[int, Tensor]] = field(default_factory=dict)  # stream -> cycle, order

    def __post_init__(self) -> None:
        self.steps_per_epoch = steps_per_epoch(len(self.index), self.batch_size)
        if self.unlabelled and self.second_size is not None:
            steps_per_epoch(len(self.index), self.second_size, "px_batch_size")
        check_labelled(min(len(self.labelled), self.batch_size), self.part[1])

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (images, labels, unlabelled images or None) of a step, augmented."""
        index = self._chosen(self.labelled, step, 0, self.batch_size)
        unlabelled = None
        if self.unlabelled:
            second = self._chosen(self.index, step, 1, self.second_size or self.batch_size)
            unlabelled = self._images(second, self.augmented[1])
        return self._images(index, self.augmented[0]), self.train.labels[index], unlabelled

    def _chosen(self, index: Tensor, step: int, stream: int, size: int) -> Tensor:
        """Return the members of `index` in a step's batch that this process takes. Each stream and
        each cycle (pass over `index`) has an order of its own."""
        size = min(size, len(index))
        cycle, position = divmod(step, len(index) // size)
        if self._orders.get(stream, (-1,))[0] != cycle:
            epoch = self.streams * cycle + stream
            order = epoch_order(len(index), seed=self.seed, epoch=epoch, device=index.device)
            self._orders[stream] = (cycle, index[order])
        part, parts = self.part
        first, last = (position * size + size * i // parts for i in (part, part + 1))
        return self._orders[stream][1][first:last]

    def _images(self, index: Tensor, augmented: bool) -> Tensor:
        if not augmented:
            return noisy(to_float(self.train.images[index]), self.sigma, self.clamp)
        return augment(self.train.images, index, sigma=self.sigma, flip=self.flip, clamp=self.clamp)


@lru_cache
def _crops(size: int, device: torch.device) -> Tensor:
    """Return int32 (2 * (2 * pad + 1), size): for each offset the pixels of a crop along one axis,
    then the same crops mirrored. Reflection does not repeat the edge: position -1 is pixel 1 and,
    for size 32, position 32 is pixel 30. int32 halves int64's memory traffic."""
    last, pad = size - 1, size // 8
    padded = torch.arange(-pad, size + pad, dtype=torch.int32)
    crops = (last - (last - padded.abs()).abs()).unfold(0, size, 1)
    return torch.cat([crops, crops.flip(1)]).to(device)


def _noise(
    n: int, size: int, sigma: float, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draw N(0, sigma^2), float32 (n, 3, size, size) in channels_last."""
    # Noise is scaled before it is added: add(alpha=) may fuse both differently at the end of a
    # vector, but evaluation noise must have the same bits at every batch size.
    noise = torch.empty(n, size, size, 3, device=device)
    return noise.normal_(0, sigma, generator=generator).permute(0, 3, 1, 2)
