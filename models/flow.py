"""Normalising flows, Glow and Residual Flow: models of log p(x) without an unknown log Z."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.energy import EnergyClassifier
from runs.cli import UsageError

LEVELS = 256  # values of a pixel's colour
TERMS = 20  # of a residual block's series in eval mode
CERTAIN = 2  # terms in train mode, before a random number (1 or more) of further terms
POWER_ITERATIONS = 5  # per training step, to keep a residual block contractive
TOLERANCE, MAX_ITERATIONS = 1e-6, 1000  # of the iteration that inverts a residual block


class Flow(EnergyClassifier):
    """A flow as a classifier: its logits are log p(x, y), so that log p(x) is their logsumexp.

    A colour v in 0..255 gets noise u in [0, 1): h = (v + u) / 256 - 1/2. With z = flow(h),

        log p(h) = log N(z; mean, deviation) + log |det dz/dh|
        log p(x) = log p(h) - D log 256, in nats, D = 3 S^2

    so that p(x) is a density per level^D: the mean of log p(x) over uniform u is a lower bound on
    the log-probability of the 8-bit image. In train mode u is drawn; in eval mode u is 1/2, and
    log p(x) is a function of x. With `class_cond` mean and deviation depend on the class, and all
    classes are equally likely: log p(x, y) = log p(x|y) - log C. Without it logits are (N, 1).

    glow: Kingma and Dhariwal, "Glow" (2018); the determinant is exact. residual_flow: Chen et al.,
    "Residual flows for invertible generative modeling" (2019); see `ResidualBlock`.

    Arguments:
        arch: glow or residual_flow.
        levels: number of scales (S/2, S/4, ... pixels); after each, half of the channels leave.
        depth: blocks at each scale; width: channels within a block's network.
        num_classes: number of classes C of the data, also without class_cond.

    Raises UsageError without normflows, and ValueError if 2^levels does not divide image_size.
    """

    def __init__(
        self,
        *,
        arch: str,
        levels: int,
        depth: int,
        width: int,
        num_classes: int,
        class_cond: bool,
        image_size: int,
    ) -> None:
        nn.Module.__init__(self)
        try:
            import normflows as nf
        except ImportError:
            raise UsageError(f"{arch} needs normflows: pip install normflows") from None
        if image_size < 1 or image_size % 2**levels:
            raise ValueError(f"image_size {image_size} is no multiple of {2**levels} = 2^levels")
        self.image_size, self.class_cond, self.classes = image_size, class_cond, num_classes
        self.energy_output = None
        bases, flows = [], []
        for level in range(levels, 0, -1):  # normflows counts from the latent side
            channels, side = 3 * 2 ** (level + 1), image_size // 2**level
            blocks: list[Any] = []
            for _ in range(depth):
                if arch == "glow":  # use_lu=True calls a function that PyTorch deprecates
                    block = nf.flows.GlowBlock(channels, width, use_lu=False, net_actnorm=True)
                    blocks.append(block)
                else:
                    net = nf.nets.LipschitzCNN([channels, width, width, channels], [3, 1, 3])
                    residual = ResidualBlock(net, (1, channels, side, side))
                    blocks += [residual, nf.flows.ActNorm((channels, 1, 1))]
            flows.append([*blocks, nf.flows.Squeeze()])
            shape = (channels if level == levels else channels // 2, side, side)
            bases.append(nf.distributions.GlowBase(shape, num_classes if class_cond else None))
        merges = [nf.flows.Merge() for _ in flows[1:]]
        self.flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=class_cond)
        for layer in self.modules():
            if isinstance(layer, nf.flows.ActNorm):
                del layer.data_dep_init_done  # a buffer: every pass would wait for the GPU
                layer.data_dep_init_done = True

    @property
    def num_classes(self) -> int:
        return self.classes

    @property
    def dimensions(self) -> int:
        return 3 * self.image_size**2

    def features(self, x: Tensor) -> Tensor:
        """Return log p(x, y) for every class, `(N, C)`; without class_cond log p(x), `(N, 1)`."""
        u = torch.rand_like(x) if self.training else 0.5
        h = ((x + 1) * 127.5 + u) / LEVELS - 0.5
        z, log_det = self.flow.inverse_and_log_det(h.contiguous())
        labels = [x.new_full((len(x),), y, dtype=torch.int64) for y in range(self.classes)]
        log_base = [self._log_base(z, y) for y in (labels if self.class_cond else [None])]
        constant = self.dimensions * math.log(LEVELS) + math.log(len(log_base))
        return torch.stack(log_base, 1) + log_det[:, None] - constant

    def _log_base(self, z: list[Tensor], y: Tensor | None) -> Tensor:
        return sum(base.log_prob(part, y) for base, part in zip(self.flow.q0, z, strict=True))

    def logits_from(self, features: Tensor) -> Tensor:
        return features

    def bits(self, log_p: Any) -> Any:
        """Return bits per dimension, -log p / (D log 2), for log p in nats."""
        return -log_p / (self.dimensions * math.log(2))

    @torch.no_grad()
    def initialise(self, images: Tensor) -> None:
        """Set the act norm layers, until now identities, so that their outputs for these images
        `(N, 3, S, S)` have mean 0 and deviation 1."""
        layers: list[Any] = [m for m in self.modules() if hasattr(m, "data_dep_init_done")]
        for layer in layers:
            layer.data_dep_init_done = False
        self.logits(images)
        for layer in layers:
            layer.data_dep_init_done = True

    @torch.no_grad()
    def sample(self, n: int, labels: Tensor | None, seed: int) -> Tensor:
        """Draw n images `(n, 3, S, S)`, of classes `labels` (n,) if class_cond, by the inverse of
        the flow. Colours are rounded down to levels. The global random state does not change."""
        device = next(self.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            h, _ = self.flow.sample(n, labels)
        return ((h + 0.5) * LEVELS).floor().clamp(0, LEVELS - 1) / 127.5 - 1


class ResidualBlock(nn.Module):
    """z = x + g(x), Lip(g) < 1; log |det dz/dx| = sum_k (-1)^(k+1) tr(J^k) / k, J = dg/dx.

    A probe v of random signs estimates the traces: E v'J^k v = tr J^k (Hutchinson). Train mode
    draws v anew and cuts the series at a random term; each term is divided by the probability that
    it is reached, so the estimate is unbiased (Chen et al. 2019, Theorem 1). Gradients come from
    the Neumann series (Theorem 2). In eval mode v is the same for every image, and the series has
    `TERMS` terms: log p(x) is an estimate, but a function of x.

    Directions are named as in normflows: `inverse` maps images to latents. The host waits for
    a GPU in every pass, since normflows' layers read their sizes from the device.
    """

    probe: Tensor

    def __init__(self, g: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.g = g
        self.g(torch.zeros(shape))  # sets the layers' sizes, which the state dict must have
        self.register_buffer("probe", torch.randn(shape).sign())

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        graph = torch.is_grad_enabled()
        if self.training:
            for layer in self.g.net:
                if hasattr(layer, "compute_weight"):
                    layer.compute_weight(update=True, n_iterations=POWER_ITERATIONS)
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            g = self.g(x)
            log_det = self.log_det(x, g, graph)
            z = x + g
        return (z, log_det) if graph else (z.detach(), log_det.detach())

    def log_det(self, x: Tensor, g: Tensor, graph: bool) -> Tensor:
        """Return the estimate `(N,)` of log det(I + dg/dx), with its gradient if `graph`."""
        probe, terms = self.probe.expand_as(x), TERMS
        if self.training:
            probe = torch.randn_like(x).sign()
            terms = CERTAIN + int(torch.empty(1).geometric_(0.5))  # on the CPU: no wait for a GPU
        vector, series, value = probe, probe, x.new_zeros(len(x))
        for k in range(1, terms + 1):
            (vector,) = torch.autograd.grad(g, x, vector, retain_graph=True)  # v'J^k
            weight = (-1.0) ** k * (2.0 ** max(0, k - CERTAIN - 1) if self.training else 1)
            value = value - weight / k * (vector * probe).flatten(1).sum(1)
            series = series + weight * vector
        if not graph:
            return value
        (product,) = torch.autograd.grad(g, x, series, create_graph=True)  # v'(I + J)^-1 J
        surrogate = (product * probe).flatten(1).sum(1)  # only its gradient counts
        return value + surrogate - surrogate.detach()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Solve x = z - g(x) by iteration. The determinant is NaN: samples do not need it."""
        x = z
        for _ in range(MAX_ITERATIONS):
            before, x = x, z - self.g(x)
            if (x - before).abs().max() <= TOLERANCE:
                break
        return x, z.new_full((len(z),), math.nan)
