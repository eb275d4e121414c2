"""The WideResNet without normalisation, written plainly, for the straightforward step.

Kept apart from models/, so that what is compared with does not change when the project's own
network becomes faster. The names of the weights are the same: either loads the other's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of LeakyReLU below zero


class Block(nn.Module):
    """y = conv2(act(conv1(act(x)))) + shortcut(x)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(x, SLOPE))
        h = self.conv2(F.leaky_relu(h, SLOPE))
        return h + self.shortcut(x)


class WideResNet(nn.Module):
    """Images (N, 3, H, W) -> features (N, 64 * width)."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6

        def stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
            shapes = [(channels_in, stride)] + [(channels, 1)] * (blocks - 1)
            return nn.Sequential(*(Block(before, channels, s) for before, s in shapes))

        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.layer1 = stage(16, 16 * width, 1)
        self.layer2 = stage(16 * width, 32 * width, 2)
        self.layer3 = stage(32 * width, 64 * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        h = F.leaky_relu(h, SLOPE)
        return F.avg_pool2d(h, h.shape[-1]).flatten(1)


class Classifier(nn.Module):
    """Images (N, 3, H, W) -> logits f(x) (N, C)."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.f = WideResNet(depth, width)
        self.class_output = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.class_output(self.f(x))
