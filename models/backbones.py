"""The networks that map images to features: WideResNet, and ResNet-50 for the paper's Table 1."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.norms import make_norm
from runs.names import misfit_depth

SLOPE = 0.2  # slope of LeakyReLU below zero


class Block(nn.Module):
    """y = conv2(act(norm2(dropout(conv1(act(norm1(x))))))) + shortcut(x).

    `shortcut` is a 1x1 convolution of the raw input where the shape changes, else the identity.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int, norm: str, dropout_rate: float
    ) -> None:
        super().__init__()
        self.bn1 = make_norm(norm, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.dropout = nn.Dropout(dropout_rate) if dropout_rate > 0 else nn.Identity()
        self.bn2 = make_norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut.append(nn.Conv2d(channels_in, channels, 1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, channels_in, H, W)` to `(N, channels, H / stride, W / stride)`."""
        h = self.dropout(self.conv1(F.leaky_relu(self.bn1(x), SLOPE)))
        # In place: bn2's output has no other reader. To keep it for the backward pass would take a
        # quarter of the saved activations.
        h = self.conv2(F.leaky_relu(self.bn2(h), SLOPE, inplace=True))
        return h + self.shortcut(x)


class WideResNet(nn.Module):
    """Images `(N, 3, H, W)` in [-1, 1] to features `(N, 64 * width)`.

    Zagoruyko and Komodakis, "Wide Residual Networks" (2016), as JEM and HDGE use it: LeakyReLU, no
    normalisation by default, a bias in every convolution, and a block's stride in `conv2`.

    Arguments:
        depth: number of layers, 6n + 4 with n >= 1: n blocks in each of the three stages.
        width: factor of the stages' 16, 32 and 64 channels, 1 or more.
        norm: one of `runs.names.NORMS`.
        dropout_rate: share of activations dropped between a block's convolutions, in [0, 1).

    Raises ValueError, with a message of one sentence, for an argument outside its range.
    """

    def __init__(
        self, depth: int = 28, width: int = 10, *, norm: str = "none", dropout_rate: float = 0.0
    ) -> None:
        super().__init__()
        _check(depth, width, dropout_rate)
        self.num_features = 64 * width

        def stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
            shapes = [(channels_in, stride)] + [(channels, 1)] * ((depth - 4) // 6 - 1)
            return nn.Sequential(*(Block(c, channels, s, norm, dropout_rate) for c, s in shapes))

        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.layer1 = stage(16, 16 * width, stride=1)
        self.layer2 = stage(16 * width, 32 * width, stride=2)
        self.layer3 = stage(32 * width, 64 * width, stride=2)
        self.bn1 = make_norm(norm, 64 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)  # (N, 16, H, W)
        x = self.layer1(x)  # (N, 16 * width, H, W)
        x = self.layer2(x)  # (N, 32 * width, H / 2, W / 2)
        x = self.layer3(x)  # (N, 64 * width, H / 4, W / 4)
        x = F.leaky_relu(self.bn1(x), SLOPE)
        return pooled(x)


class ResNet50(nn.Module):
    """Images `(N, 3, H, W)` in [-1, 1] to features `(N, 2048)`.

    torchvision's resnet50 (He et al., 2015), untrained, with torchvision's batch norm. The stem is
    a 3x3 convolution of stride 1 without max pool, as usual for CIFAR: the last feature map of a
    32x32 image is 4x4.
    """

    num_features = 2048

    def __init__(self) -> None:
        from torchvision.models import resnet50  # slow import: only for this network

        super().__init__()
        net = resnet50(weights=None)
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1, self.relu = net.bn1, net.relu
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 64, H, W)
        x = self.layer2(self.layer1(x))  # (N, 512, H / 2, W / 2)
        x = self.layer4(self.layer3(x))  # (N, 2048, H / 8, W / 8)
        return pooled(x)


def pooled(x: Tensor) -> Tensor:
    """Return the mean (N, C) of a feature map (N, C, H, W) in float32 or wider: in bf16 the mean
    would be rounded to 8 bits."""
    return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def _check(depth: int, width: int, dropout_rate: float) -> None:
    if message := misfit_depth(depth):
        raise ValueError(message)
    if width < 1:
        raise ValueError(f"width {width} is too small: take 1 or more")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate {dropout_rate} is outside [0, 1): take a share like 0.3")
