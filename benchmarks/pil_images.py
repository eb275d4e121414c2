"""Batches as the ancestors make them: PIL and torchvision, image by image, in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

PAD = 4  # pixels of reflection on every side


class Images(Dataset[tuple[Tensor, int]]):
    """uint8 images (n, 32, 32, 3) and labels (n,), each transformed when it is asked for."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def pipeline(*, sigma: float, flip: bool) -> Any:
    """PIL image -> float32 (3, 32, 32): pad, crop, mirror, scale to [-1, 1], N(0, sigma^2)."""
    from torchvision import transforms  # takes seconds to import

    return transforms.Compose(
        [
            transforms.Pad(PAD, padding_mode="reflect"),
            transforms.RandomCrop(32),
            *([transforms.RandomHorizontalFlip()] if flip else []),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            transforms.Lambda(partial(add_noise, sigma=sigma)),
        ]
    )


def add_noise(image: Tensor, sigma: float) -> Tensor:
    return image + sigma * torch.randn_like(image)


def endless(dataset: Images, batch_size: int, workers: int) -> Generator[list[Tensor], None, None]:
    """[images (N, 3, 32, 32), labels (N,)] on the host, epoch after epoch."""
    loader = DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader
