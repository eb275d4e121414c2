"""The five normalisations that a WideResNet can be built with (`--norm`)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.modes import eval_mode


class ActNorm(nn.Module):
    """Activation normalisation: y = scale * (x + loc), one loc and scale a channel.

    Kingma and Dhariwal, "Glow" (2018), section 3.1. The first labelled batch sets both so that y
    has mean 0 and standard deviation 1 (`initialise_act_norm`); from then on they are parameters
    like any other. Until then the layer is the identity.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` to the same shape and type."""
        # The parameters are float32 in bf16 autocast: without the cast all that follows would be.
        return (self.scale * (x + self.loc)).to(x.dtype)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """loc = -mean(x), scale = 1 / (std(x) + 1e-6), over all but the channels."""
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
    """Make the normalisation `name` of `(N, channels, H, W)`. Raises ValueError for a name that
    `NORMS` does not have."""
    if name not in NORMS:
        raise ValueError(f"norm {name!r} is unknown: take one of {', '.join(NORMS)}")
    return NORMS[name](channels)


def initialise_act_norm(model: nn.Module, images: Tensor) -> None:
    """Set the act norm layers of `model`, first to last, from one batch `(N, 3, H, W)`.

    Each layer sees the batch as the layers before it, already set, pass it on, in eval mode (no
    dropout). Layers that are already set do not change, and a model whose layers are all set is
    not run. The ancestors read `initialized` in every forward pass, which stops a GPU each time;
    no forward pass here does.
    """
    layers = [m for m in model.modules() if isinstance(m, ActNorm) and not m.initialized]
    if not layers:
        return

    def initialise(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(layer, ActNorm)
        layer.initialise(inputs[0])

    hooks = [layer.register_forward_pre_hook(initialise) for layer in layers]
    try:
        # Compiled it would be a graph of its own, for one call.
        with torch.compiler.set_stance("force_eager"), eval_mode(model), torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
