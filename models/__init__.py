"""The density: networks from images to logits, and the logits read as log densities."""

from models.backbones import ResNet50, WideResNet
from models.energy import EnergyClassifier, Pixels, build, forward_flops
from models.flow import Flow
from models.load import (
    RunSettings,
    averaged_weights,
    from_checkpoint,
    load,
    load_weights,
    network_settings,
    network_shape,
    network_weights,
    read_images,
    run_settings,
)
from models.modes import batch_statistics_only, eval_mode, sampling_mode, scoring_mode
from models.norms import initialise_act_norm
