"""Ways to run a model for a while and to give it back as it was, also after an exception."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every sub-module has its own previous mode again."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def sampling_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and the parameters take no gradient: only the images of a chain do.

    This also spares the activations that the weights' gradients would need. Afterwards each
    parameter's `requires_grad` is what it was.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with eval_mode(model):
        try:
            for parameter, _ in before:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, requires_grad in before:
                parameter.requires_grad_(requires_grad)


@contextmanager
def batch_statistics_only(model: nn.Module) -> Iterator[None]:
    """Batch norm layers in train mode normalise by the batch, but do not remember it.

    For SGLD samples: they must not enter the running statistics, which are those of the data.
    Layers in eval mode use their running statistics as ever.
    """
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    layers = [module for module in model.modules() if isinstance(module, norms)]
    before = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer, track in zip(layers, before, strict=True):
            layer.track_running_stats = track
