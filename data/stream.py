"""The batches of a training run, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from data.base import DataError, Split
from data.batches import augment, epoch_order, noisy, to_float


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return floor(images / batch_size). Raises DataError if that is 0."""
    if images < batch_size:
        said = f"exceeds the {images} training images; use {images} at most"
        raise DataError("batch_size", batch_size, said)
    return images // batch_size


@dataclass
class TrainingBatches:
    """The images of each step: which ones is a pure function of (seed, step), so that a resumed
    run goes on in the middle of an epoch; crops, flips and noise come from the global generator.

    An epoch is floor(len(index) / batch_size) steps. `labelled` are the members of `index` whose
    labels may be used; they cycle, in batches of min(batch_size, len(labelled)).

    Raises DataError if there are fewer images than one batch, and for a batch that the processes
    cannot share equally.
    """

    train: Split
    index: Tensor
    labelled: Tensor
    batch_size: int
    seed: int
    sigma: float
    flip: bool
    unlabelled: bool  # every step has a second batch, of all images in an order of its own
    part: tuple[int, int] = (0, 1)  # (i, n): the i-th of n processes that share each batch
    clamp: bool = False  # to [-1, 1], after the noise
    second_size: int | None = None  # of the second batch; None: batch_size
    augmented: tuple[bool, bool] = (True, True)  # the first and the second are cropped, mirrored
    _orders: dict[int, tuple[int, Tensor]] = field(default_factory=dict)  # stream -> cycle, order

    def __post_init__(self) -> None:
        self.steps_per_epoch = steps_per_epoch(len(self.index), self.batch_size)
        if self.unlabelled and self.second_size is not None and self.second_size > len(self.index):
            n = len(self.index)
            said = f"exceeds the {n} training images of an epoch; use {n} at most"
            raise DataError("px_batch_size", self.second_size, said)
        if len(self.labelled) % self.part[1] and len(self.labelled) < self.batch_size:
            said = (
                f"{len(self.labelled)} labelled images are not divisible by the {self.part[1]} "
                "processes: use another number"
            )
            raise DataError("labels_per_class", None, said)

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return (images, labels, unlabelled images or None) of a step, augmented."""
        return self._batch(step, self.part)

    def whole(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the same of all processes together."""
        return self._batch(step, (0, 1))

    def _batch(self, step: int, part: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
        index = self._chosen(self.labelled, step, 0, part, self.batch_size)
        unlabelled = None
        if self.unlabelled:
            size = self.second_size or self.batch_size
            second = self._chosen(self.index, step, 1, part, size)
            unlabelled = self._images(second, self.augmented[1])
        return self._images(index, self.augmented[0]), self.train.labels[index], unlabelled

    def _chosen(
        self, index: Tensor, step: int, stream: int, part: tuple[int, int], size: int
    ) -> Tensor:
        size = min(size, len(index))
        cycle, place = divmod(step, len(index) // size)
        if self._orders.get(stream, (-1,))[0] != cycle:
            epoch = 2 * cycle + stream  # the two streams never share an order
            order = epoch_order(len(index), seed=self.seed, epoch=epoch, device=index.device)
            self._orders[stream] = (cycle, index[order])
        first, last = (place * size + size * i // part[1] for i in (part[0], part[0] + 1))
        return self._orders[stream][1][first:last]

    def _images(self, index: Tensor, augmented: bool) -> Tensor:
        if not augmented:
            return noisy(to_float(self.train.images[index]), self.sigma, self.clamp)
        return augment(self.train.images, index, sigma=self.sigma, flip=self.flip, clamp=self.clamp)
