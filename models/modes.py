"""Ways to run a model for a while and to give it back as it was, also after an exception."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
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
def sampling_mode(model: nn.Module, statistics: str = "jem") -> Iterator[None]:
    """Evaluation mode, and the parameters take no gradient: only the images of a chain do.

    This also spares the activations that the weights' gradients would need. Afterwards each
    parameter's `requires_grad` is what it was. With `statistics` "batch", batch norm normalises by
    the chains' own statistics, which it does not remember.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with eval_mode(model), cast_once(model), batch_statistics_only(model):
        if statistics == "batch":
            for layer in batch_norms(model):
                layer.train()
        try:
            for parameter, _ in before:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, requires_grad in before:
                parameter.requires_grad_(requires_grad)


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Convolutions of a network that runs in bf16 (`amp`) have bf16 weights while it lasts.

    Autocast would round the same weights in every step of a chain: what it remembers are those that
    take a gradient. The parameters themselves stay as they are, for what computes with them later.
    A compiled network is left alone, which would be compiled again.
    """
    backbone = getattr(model, "f", None)
    if not getattr(model, "amp", False) or getattr(backbone, "_compiled_call_impl", None):
        yield
        return
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    before = [(module, dict(module._parameters)) for module in convolutions]
    try:
        for module, parameters in before:
            for name, value in parameters.items():
                if value is not None:
                    rounded = value.detach().to(torch.bfloat16)
                    module._parameters[name] = rounded  # type: ignore[assignment]
        yield
    finally:
        for module, parameters in before:
            module._parameters.update(parameters)


@contextmanager
def scoring_mode(model: nn.Module, statistics: str = "jem") -> Iterator[None]:
    """How SGLD samples are scored in a training step: batch norm normalises by the samples' own
    statistics, which it does not remember, or, with `statistics` "running" or "frozen", by the
    running ones. Everything else stays in the mode that it is in."""
    layers = batch_norms(model)
    before = [layer.training for layer in layers]
    with batch_statistics_only(model):
        try:
            if statistics in ("running", "frozen"):
                for layer in layers:
                    layer.eval()
            yield
        finally:
            for layer, training in zip(layers, before, strict=True):
                layer.training = training


def batch_norms(model: nn.Module) -> list[nn.Module]:
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return [module for module in model.modules() if isinstance(module, norms)]


@contextmanager
def batch_statistics_only(model: nn.Module) -> Iterator[None]:
    """Batch norm layers in train mode normalise by the batch, but do not remember it.

    For SGLD samples: they must not enter the running statistics, which are those of the data.
    Layers in eval mode use their running statistics as ever.
    """
    layers: list[Any] = batch_norms(model)
    before = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer, track in zip(layers, before, strict=True):
            layer.track_running_stats = track
