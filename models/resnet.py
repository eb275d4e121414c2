"""The ResNet-50 of the paper's Table 1, for images as small as CIFAR's."""

import torch
from torch import Tensor, nn


class ResNet50(nn.Module):
    """Images `(N, 3, H, W)` in [-1, 1] to features `(N, 2048)`.

    torchvision's resnet50 (He et al., 2015), untrained and with its own batch norm, but the stem
    is a 3x3 convolution of stride 1 without max pool, as usual for CIFAR: the last map of a 32x32
    image is 4x4.
    """

    num_features = 2048

    def __init__(self) -> None:
        from torchvision.models import resnet50  # here, since importing it takes seconds

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
        # float32 at least: a mean of bf16 activations would be rounded to 8 bits.
        return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
