"""The joint energy-based classifier: one network, four densities."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.backbones import ResNet50, WideResNet
from models.modes import batch_norms
from runs.names import IMAGE_SIZE, STRIDES, misfit_size


class EnergyClassifier(nn.Module):
    """A backbone with a linear head f(x), whose outputs are log densities up to a shared log Z.

        log q(y|x) = f(x)[y] - LSE_c f(x)[c]
        log q(x,y) = f(x)[y]
        log q(x)   = LSE_c f(x)[c]

    Grathwohl et al., "Your classifier is secretly an energy based model" (2020), equations 2-6.
    With `uncond`, a second, scalar head e(x) is log q(x) instead, and
    log q(x,y) = e(x) + log q(y|x).

    Images are `(N, 3, S, S)` in [-1, 1], labels int64 `(N,)` in [0, C). `features` runs the
    backbone once; `logits_from`, `log_px_from` and `log_pxy_from` compute the densities from its
    output. `amp` runs the backbone's convolutions in bf16; pooling, heads and log densities stay
    float32, since bf16 values near 60 are 0.25 apart. `image_size` is S, the side of training
    images and of samples; the network accepts other sizes, too.

    Arguments:
        backbone: maps images to features `(N, D)` and has `num_features` = D.
        num_classes: C.
        uncond: adds `energy_output`, the separate head for log q(x).

    Raises ValueError for fewer than 2 classes.
    """

    amp: bool = False
    frozen_statistics: bool = False  # keep batch norm in eval mode, also in training
    image_size: int = IMAGE_SIZE

    def __init__(
        self, backbone: WideResNet | ResNet50, num_classes: int, *, uncond: bool = False
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes {num_classes} is too small: a classifier needs 2")
        self.f = backbone
        self.class_output = nn.Linear(backbone.num_features, num_classes)
        self.energy_output = nn.Linear(backbone.num_features, 1) if uncond else None

    @property
    def num_classes(self) -> int:
        return self.class_output.out_features

    def train(self, mode: bool = True) -> EnergyClassifier:
        super().train(mode)
        if self.frozen_statistics:
            for layer in batch_norms(self):
                layer.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """Return the backbone's features, `(N, D)`."""
        bf16 = torch.autocast(x.device.type, torch.bfloat16) if self.amp else nullcontext()
        with bf16:
            return self.f(x)

    def logits_from(self, features: Tensor) -> Tensor:
        """Return f(x), `(N, C)`, from `features(x)`."""
        return self.class_output(features)

    def log_px_from(self, features: Tensor, logits: Tensor) -> Tensor:
        """Return log q(x) + log Z, `(N,)`, from `features(x)` and f(x)."""
        if self.energy_output is not None:
            return self.energy_output(features).squeeze(1)
        return logits.logsumexp(1)

    def log_pxy_from(
        self, features: Tensor, logits: Tensor, y: Tensor, guidance: float = 1.0
    ) -> Tensor:
        """Return `log_pxy`, `(N,)`, from `features(x)`, f(x) and labels `(N,)`."""
        f_y = logits.gather(1, y[:, None]).squeeze(1)
        if self.energy_output is None and guidance == 1:
            return f_y
        log_py = f_y - logits.logsumexp(1)
        return self.log_px_from(features, logits) + guidance * log_py

    def logits(self, x: Tensor) -> Tensor:
        """Return f(x), `(N, C)`."""
        return self.logits_from(self.features(x))

    forward = logits

    def classify(self, x: Tensor) -> Tensor:
        """Return log q(y|x) for every class, `(N, C)`."""
        return self.logits(x).log_softmax(1)

    def log_px(self, x: Tensor) -> Tensor:
        """Return log q(x) + log Z, `(N,)`."""
        features = self.features(x)
        return self.log_px_from(features, self.logits_from(features))

    def log_pxy(self, x: Tensor, y: Tensor, guidance: float = 1.0) -> Tensor:
        """Return log q(x) + guidance * log q(y|x) + log Z, `(N,)`. With guidance 1 this is
        log q(x, y) + log Z: f(x)[y], or with `uncond` e(x) + log q(y|x)."""
        features = self.features(x)
        return self.log_pxy_from(features, self.logits_from(features), y, guidance)


class Pixels(nn.Module):
    """The classifier for images in [0, 1], as attack libraries give them: x01 -> f(2 x01 - 1)."""

    def __init__(self, model: EnergyClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x01: Tensor) -> Tensor:
        return self.model.logits(2 * x01 - 1)


def build(
    *,
    arch: str = "wrn",
    depth: int = 28,
    width: int = 10,
    norm: str = "none",
    dropout_rate: float = 0.0,
    num_classes: int = 10,
    uncond: bool = False,
    image_size: int = IMAGE_SIZE,
) -> EnergyClassifier:
    """Build a classifier with PyTorch's default initialisation.

    `arch` is "wrn" or "resnet50". ResNet-50 ignores depth, width, norm and dropout_rate.
    Raises ValueError, with a message of one sentence, for an argument outside its range.
    """
    if arch not in STRIDES:
        raise ValueError(f"arch {arch!r} is unknown: take one of {', '.join(STRIDES)}")
    if message := misfit_size(image_size, arch):
        raise ValueError(message)
    backbone: WideResNet | ResNet50
    if arch == "resnet50":
        backbone = ResNet50()
    else:
        backbone = WideResNet(depth, width, norm=norm, dropout_rate=dropout_rate)
    model = EnergyClassifier(backbone, num_classes, uncond=uncond)
    model.image_size = image_size
    return model


def forward_flops(model: EnergyClassifier) -> int:
    """Count the FLOP of one forward pass of one image of `model.image_size`.

    Counts 2 for each multiply-add of convolutions and matrix products, as is usual. Runs a copy of
    the model on PyTorch's meta device: its tensors have shapes and no memory, nothing is computed.
    """
    tensors = chain(model.parameters(), model.buffers())
    shapes = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    on_meta = copy.deepcopy(model, shapes).eval()  # takes meta tensors from its memo `shapes`
    on_meta.amp = False  # the meta device has no autocast, which changes no count
    shape = (1, 3, model.image_size, model.image_size)
    image = torch.empty(shape, device="meta", dtype=next(model.parameters()).dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        on_meta.log_px(image)
    return counter.get_total_flops()
