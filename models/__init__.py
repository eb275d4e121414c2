"""The density: networks from images to logits, and the logits read as log densities."""

from models.energy import ARCHITECTURES, EnergyClassifier, build, forward_flops
from models.load import (
    load,
    load_weights,
    network_settings,
    network_shape,
    network_weights,
)
from models.modes import batch_statistics_only, eval_mode, sampling_mode
from models.norms import NORMS, initialise_act_norm
from models.resnet import ResNet50
from models.wide_resnet import WideResNet

__all__ = [
    "ARCHITECTURES",
    "NORMS",
    "EnergyClassifier",
    "ResNet50",
    "WideResNet",
    "batch_statistics_only",
    "build",
    "eval_mode",
    "forward_flops",
    "initialise_act_norm",
    "load",
    "load_weights",
    "network_settings",
    "network_shape",
    "network_weights",
    "sampling_mode",
]
