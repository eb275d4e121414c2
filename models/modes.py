"""Context managers that change a model's mode and restore it, also after an exception."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def restored(objects: Iterable[Any], attribute: str) -> Iterator[None]:
    """Restore the attribute's value in every object at the end."""
    values = [(owner, getattr(owner, attribute)) for owner in objects]
    try:
        yield
    finally:
        for owner, value in values:
            setattr(owner, attribute, value)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode; afterwards restore the mode of every sub-module."""
    with restored(model.modules(), "training"):
        model.eval()
        yield


@contextmanager
def sampling_mode(model: nn.Module, statistics: str = "jem") -> Iterator[None]:
    """Set evaluation mode, and let no parameter require a gradient: only a chain's images have one.

    Without the parameters' gradients autograd stores fewer activations. With `statistics` "batch",
    batch norm uses the chains' batch statistics and does not update the running statistics.
    """
    parameters = list(model.parameters())
    with restored(parameters, "requires_grad"), eval_mode(model), batch_statistics_only(model):
        if statistics == "batch":
            for layer in batch_norms(model):
                layer.train()
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield


@contextmanager
def scoring_mode(model: nn.Module, statistics: str = "jem") -> Iterator[None]:
    """Set the mode in which a training step scores SGLD samples.

    Batch norm uses the samples' batch statistics and does not update the running statistics. With
    `statistics` "running" or "frozen" it uses the running statistics. Other layers keep their mode.
    """
    layers = batch_norms(model)
    with batch_statistics_only(model), restored(layers, "training"):
        if statistics in ("running", "frozen"):
            for layer in layers:
                layer.eval()
        yield


def batch_norms(model: nn.Module) -> list[nn.Module]:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [module for module in model.modules() if isinstance(module, norms)]


@contextmanager
def batch_statistics_only(model: nn.Module) -> Iterator[None]:
    """Stop batch norm layers in train mode from updating their running statistics.

    The running statistics are those of the data: SGLD samples must not enter them. Layers in eval
    mode use their running statistics as usual.
    """
    layers: list[Any] = batch_norms(model)
    with restored(layers, "track_running_stats"):
        for layer in layers:
            layer.track_running_stats = False
        yield
