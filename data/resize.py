"""Batches of images of any size to the size that the network reads."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1000  # images held as float32 at once


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize the centre square: uint8 (N, H, W, 3) -> uint8 (N, size, size, 3).

    Enlarging is bilinear. Shrinking is bilinear with antialias: the triangle of weights is as wide
    as two of the new pixels, so that every old pixel counts.
    """
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return images.contiguous()
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top : top + side, left : left + side]
    return torch.cat([_resize(chunk, size) for chunk in square.split(CHUNK)])


def _resize(square: Tensor, size: int) -> Tensor:
    planes = square.permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, size=(size, size), mode="bilinear", antialias=True)
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
