"""Names and numbers that flags, data and models share. Nothing slow is imported here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

STARTS = ("uniform", "gaussian", "class_gaussian")  # distributions from which SGLD chains start
NORMS = ("none", "batch", "instance", "layer", "act")
CONTRAST_SCORES = ("algorithm1", "eq13")
PX_LOSSES = ("cd", "bce")
BN_CHAINS = ("jem", "batch", "running", "frozen")
NOISY = ("test_clf", "eval_ece", "OOD", "logp_hist")  # questions that add noise to their images
CONTRAST_STYLES = ("queue", "simclr")
QUEUE_STARTS = ("empty", "random")
ADAM_BETAS = [0.9, 0.999]
SCORES = {  # name -> title; the higher an image's score, the more it looks like training images
    "px": "log q(x)",
    "py": "max q(y|x)",
    "pxy": "max log q(x, y)",
    "pxgrad": "-log |d log q(x)/dx|",
    "pxsim": "contrastive log q(x|y)",
    "knn": "- distance to the k-th neighbour",
    "entropy": "- entropy of q(y|x)",
    "px_logits": "logsumexp f(x)",
}
CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "mnist": 10, "digits": 10}
ALIASES = {"cifar_100": "cifar100"}  # JEM's spelling
IMAGE_SIZE = 32  # side in pixels: the default, also for runs saved without image_size
SMALLEST_IMAGE = 8
FLOWS = {"glow": "Glow", "residual_flow": "Residual Flow"}  # normalising flow -> title
STRIDES = {"wrn": 4, "resnet50": 8}  # side of an image / side of the last feature map
TITLES = {  # data set -> title in pictures and tables
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
FOLDER = "folder:"  # prefix of the path of a user's data set
OPENOOD = "openood"  # a question of --eval; prefix of its image lists, openood:<benchmark>/<set>


def data_root() -> str:
    """Return the default of --data_root, the folder of the data sets."""
    return os.environ.get("HDGE_DATA_ROOT", "./datasets")


def network_title(settings: Mapping[str, Any]) -> str | None:
    """Return the network's title, such as WRN-10-2; None where the settings lack depth or width."""
    arch, depth, width = (settings.get(name) for name in ("arch", "depth", "width"))
    if arch == "resnet50":
        return "ResNet-50"
    if None in (depth, width):
        return None
    if flow := FLOWS.get(str(arch)):
        return f"{flow}, {settings.get('levels')} x {depth} blocks of width {width}"
    return f"WRN-{depth}-{width}"


def misfit_depth(depth: int) -> str | None:
    """Return an error message, with the nearest valid depths, if no WideResNet has this depth; else
    None."""
    if depth >= 10 and depth % 6 == 4:
        return None
    below = (depth - 4) // 6 * 6 + 4
    nearest = f"{below} or {below + 6}" if below >= 10 else "10"
    return f"depth {depth} is not 6n + 4 with n >= 1: use {nearest}"


def misfit_size(size: object, arch: str) -> str | None:
    """Return an error message, with the nearest valid size, if the network cannot take images of
    this size; else None."""
    stride = STRIDES[arch]
    if not isinstance(size, int):
        return f"image_size {size!r} is no whole number: use {IMAGE_SIZE}, for example"
    if size >= SMALLEST_IMAGE and size % stride == 0:
        return None
    nearest = max(SMALLEST_IMAGE, round(size / stride) * stride)
    return (
        f"image_size {size} is not {SMALLEST_IMAGE} or more and a multiple of {stride}, the "
        f"stride of {arch}: use {nearest}, for example"
    )
