"""The five normalisations that a WideResNet can be built with (`--norm`)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.modes import eval_mode


class ActNorm(nn.Module):
    """Activation normalisation: y = scale * (x + loc), with a loc and a scale for each channel.

    Kingma and Dhariwal, "Glow" (2018), section 3.1. The layer is the identity until
    `initialise_act_norm` sets loc and scale from the first labelled batch, so that y has mean 0 and
    standard deviation 1. From then on both are trained like any parameter.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, channels, H, W)` to the same shape and type."""
        # Under bf16 autocast loc and scale stay float32; the cast keeps activations in bf16.
        return (self.scale * (x + self.loc)).to(x.dtype)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set loc = -mean(x) and scale = 1 / (std(x) + 1e-6) for each channel of x."""
        std, mean = torch.std_mean(x.to(self.loc.dtype), dim=(0, 2, 3), keepdim=True)
        self.loc.copy_(-mean)
        self.scale.copy_(1 / (std + 1e-6))
        self.initialized.fill_(1)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": lambda channels: nn.BatchNorm2d(channels, momentum=0.9),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "act": ActNorm,
}


def make_norm(name: str, channels: int) -> nn.Module:
    """Make the normalisation `name` for `(N, channels, H, W)`. Raises ValueError for a name that is
    not in `NORMS`."""
    if name not in NORMS:
        raise ValueError(f"norm {name!r} is unknown: take one of {', '.join(NORMS)}")
    return NORMS[name](channels)


def initialise_act_norm(model: nn.Module, images: Tensor) -> None:
    """Set the act norm layers of `model`, first to last, from one batch `(N, 3, H, W)`.

    The batch runs through the model once, in eval mode (no dropout), and a layer's input comes from
    layers that are already set. Layers that were set before do not change; if all were, the model
    does not run. The ancestors read `initialized` in every forward pass, for which the host waits
    for the GPU; here no forward pass reads it.
    """
    layers = [m for m in model.modules() if isinstance(m, ActNorm) and not m.initialized]
    if not layers:
        return

    def initialise(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, ActNorm)
        layer.initialise(inputs[0])

    hooks = [layer.register_forward_pre_hook(initialise) for layer in layers]
    try:
        # Eager: torch.compile would build a graph for this single call.
        with torch.compiler.set_stance("force_eager"), eval_mode(model), torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
