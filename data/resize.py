"""Batches of images of any size to the 32 x 32 that the networks read."""

import torch
import torch.nn.functional as F
from torch import Tensor

from data.base import SIZE

CHUNK = 1000  # images held as float32 at once


def resize_batch(images: Tensor) -> Tensor:
    """The centre square, bilinear with antialias: uint8 (N, H, W, 3) -> uint8 (N, 32, 32, 3)."""
    height, width = images.shape[1:3]
    if (height, width) == (SIZE, SIZE):
        return images.contiguous()
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top : top + side, left : left + side]
    return torch.cat([_resize(chunk) for chunk in square.split(CHUNK)])


def _resize(square: Tensor) -> Tensor:
    planes = square.permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
