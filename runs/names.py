"""Names and numbers that flags, data and models share. Nothing heavy is imported here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

STARTS = ("uniform", "gaussian", "class_gaussian")  # of chains
NORMS = ("none", "batch", "instance", "layer", "act")
CONTRAST_SCORES = ("algorithm1", "eq13")
CONTRAST_STYLES = ("queue", "simclr")
QUEUE_STARTS = ("empty", "random")
ADAM_BETAS = [0.9, 0.999]
SCORES = {  # of an image, the higher the more it looks like the training images; their titles
    "px": "log q(x)",
    "py": "max q(y|x)",
    "pxy": "max f(x)[y]",
    "pxgrad": "-log |d log q(x)/dx|",
    "pxsim": "contrastive log q(x|y)",
    "knn": "- distance to the k-th neighbour",
    "entropy": "- entropy of q(y|x)",
    "px_logits": "logsumexp f(x)",
}
CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "mnist": 10, "digits": 10}
ALIASES = {"cifar_100": "cifar100"}  # JEM's spelling
IMAGE_SIZE = 32  # default side in pixels, and that of runs whose settings do not have it
SMALLEST_IMAGE = 8
FLOWS = {"glow": "Glow", "residual_flow": "Residual Flow"}  # normalising flows; their titles
STRIDES = {"wrn": 4, "resnet50": 8}  # pixels of an image to a pixel of the last feature map
TITLES = {  # of data sets, in pictures and tables
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "digits": "digits",
    "cifar10interp": "CIFAR-10 interpolations",
    "celeba": "CelebA",
    "textures": "Textures",
    "mnist": "MNIST",
    "faces": "faces (not CelebA)",
    "uniform": "uniform noise",
    "gaussian": "Gaussian noise",
    "photos": "photographs",
    "tinyimagenet": "TinyImageNet",
    "places365": "Places365",
}
FOLDER = "folder:"  # and a path: a data set of the user's own
OPENOOD = "openood"  # a question; openood:<benchmark>/<set> are the images of one of its lists


def data_root() -> str:
    """Return the folder of the images where --data_root is not given."""
    return os.environ.get("HDGE_DATA_ROOT", "./datasets")


def network_title(settings: Mapping[str, Any]) -> str | None:
    """Return WRN-10-2, say; None where the settings do not tell."""
    arch, depth, width = (settings.get(name) for name in ("arch", "depth", "width"))
    if arch == "resnet50":
        return "ResNet-50"
    if None in (depth, width):
        return None
    if flow := FLOWS.get(str(arch)):
        return f"{flow}, {settings.get('levels')} x {depth} blocks of width {width}"
    return f"WRN-{depth}-{width}"


def misfit_depth(depth: int) -> str | None:
    """Return why there is no WideResNet of this depth, in a line with those that are near; None if
    there is one."""
    if depth >= 10 and depth % 6 == 4:
        return None
    below = (depth - 4) // 6 * 6 + 4
    near = f"{below} or {below + 6}" if below >= 10 else "10"
    return f"depth {depth} is not 6n + 4 with n >= 1: use {near}"


def misfit_size(size: object, arch: str) -> str | None:
    """Return why the network cannot take images of this size, in a line with the nearest size that
    it can take; None if it can."""
    stride = STRIDES[arch]
    if not isinstance(size, int):
        return f"image_size {size!r} is no whole number: use {IMAGE_SIZE}, for example"
    if size >= SMALLEST_IMAGE and size % stride == 0:
        return None
    near = max(SMALLEST_IMAGE, round(size / stride) * stride)
    return (
        f"image_size {size} is not {SMALLEST_IMAGE} or more and a multiple of {stride}, the "
        f"stride of {arch}: use {near}, for example"
    )
