"""Context managers that change the mode of a model and restore it, also after an exception."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def kept(objects: Iterable[Any], attribute: str) -> Iterator[None]:
    """Restore the attribute of every object."""
    before = [(each, getattr(each, attribute)) for each in objects]
    try:
        yield
    finally:
        for each, value in before:
            setattr(each, attribute, value)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode; restore each sub-module's own mode afterwards."""
    with kept(model.modules(), "training"):
        model.eval()
        yield


@contextmanager
def sampling_mode(model: nn.Module, statistics: str = "jem") -> Iterator[None]:
    """Set evaluation mode and let the images of a chain take gradients, but no parameter.

    This also saves the activations that the weights' gradients would need. With `statistics`
    "batch", batch norm normalises by the chains' own statistics, which it does not remember.
    """
    parameters = list(model.parameters())
    with kept(parameters, "requires_grad"), eval_mode(model), batch_statistics_only(model):
        if statistics == "batch":
            for layer in batch_norms(model):
                layer.train()
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield


@contextmanager
def scoring_mode(model: nn.Module, statistics: str = "jem") -> Iterator[None]:
    """Set the mode in which a training step scores SGLD samples.

    Batch norm normalises by the samples' own statistics, which it does not remember, or, with
    `statistics` "running" or "frozen", by the running ones. All other layers keep their mode.
    """
    layers = batch_norms(model)
    with batch_statistics_only(model), kept(layers, "training"):
        if statistics in ("running", "frozen"):
            for layer in layers:
                layer.eval()
        yield


def batch_norms(model: nn.Module) -> list[nn.Module]:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [module for module in model.modules() if isinstance(module, norms)]


@contextmanager
def batch_statistics_only(model: nn.Module) -> Iterator[None]:
    """Let batch norm layers in train mode normalise by the batch without remembering it.

    SGLD samples must not enter the running statistics, which are those of the data. Layers in
    eval mode use their running statistics as ever.
    """
    layers: list[Any] = batch_norms(model)
    with kept(layers, "track_running_stats"):
        for layer in layers:
            layer.track_running_stats = False
        yield
