"""Flows: log p(x) against Jacobians and closed forms, bits per dimension, samples, act norm."""

import math
from itertools import product
from typing import Any

import normflows as nf
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.distributions import Normal

from models import flow as flows
from models.flow import Flow, ResidualBlock

CLASSES, SIDE = 3, 4
BOTH = pytest.mark.parametrize("arch", ["glow", "residual_flow"])
# An image of each of the 256 levels.
GREY = (torch.arange(256).double() / 127.5 - 1)[:, None, None, None].expand(-1, 3, SIDE, SIDE)


def network(arch: str = "glow", levels: int = 2, *, class_cond: bool = True) -> Flow:
    """Build a flow in float64 and eval mode, with no weight at its initial zero."""
    torch.manual_seed(0)
    sizes = {"levels": levels, "depth": 2, "width": 5, "image_size": SIDE, "num_classes": CLASSES}
    model = Flow(arch=arch, class_cond=class_cond, **sizes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for layer in convolutions(model):
            layer.weight *= 5
            layer.compute_weight(update=True, n_iterations=100)
    return model.eval()


def convolutions(model: Flow) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nf.nets.lipschitz.InducedNormConv2d)]


def residual_blocks(model: Flow) -> list[ResidualBlock]:
    return [m for m in model.modules() if isinstance(m, ResidualBlock)]


def images(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (n, 3, SIDE, SIDE), generator=generator).double() / 127.5 - 1


def latents(model: Flow, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the latents at each scale, and the log determinant."""
    return model.flow.inverse_and_log_det(((x + 1) * 127.5 + 0.5) / 256 - 0.5)


def log_normal(model: Flow, z: list[Tensor], y: int | None) -> Tensor:
    """Return the latents' log density by PyTorch's Normal, of a mean and deviation a channel."""
    total = torch.zeros(len(z[0]), dtype=torch.float64)
    for base, part in zip(model.flow.q0, z, strict=True):
        mean, log_std = (
            p * torch.exp(3 * p_logs)
            for p, p_logs in ((base.loc, base.loc_logs), (base.log_scale, base.log_scale_logs))
        )
        if y is not None:
            mean = mean + base.loc_cc[y][:, None, None]
            log_std = log_std + base.log_scale_cc[y][:, None, None]
        total += Normal(mean, log_std.exp()).log_prob(part).sum((1, 2, 3))
    return total


@pytest.mark.parametrize(("levels", "class_cond"), [*product((1, 2), (True, False))])
def test_glow_s_log_p_is_the_change_of_variables(levels, class_cond):
    """A unit of x has 127.5 levels v = 127.5 (x + 1): log p(v) = log p(x) - D log 127.5."""
    model, x = network(levels=levels, class_cond=class_cond), images(1)
    d = x.numel()
    assert model.dimensions == d
    j = jacobian(lambda x: torch.cat([z.flatten() for z in latents(model, x)[0]]), x)
    constant = j.reshape(d, d).slogdet()[1] - d * math.log(127.5)
    classes = range(CLASSES) if class_cond else [None]
    log_p = torch.stack([log_normal(model, latents(model, x)[0], y) for y in classes], 1)
    expected = log_p + constant - math.log(len(classes))
    torch.testing.assert_close(model.logits(x), expected, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(model.log_px(x), expected.logsumexp(1), rtol=1e-10, atol=1e-8)


@BOTH
def test_logits_are_each_class_s_log_p(arch):
    model, x = network(arch), images(5)
    z, log_det = latents(model, x)
    log_p = torch.stack([log_normal(model, z, y) + log_det for y in range(CLASSES)], 1)
    expected = log_p - model.dimensions * math.log(256) - math.log(CLASSES)
    torch.testing.assert_close(model.logits(x), expected)
    labels = torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(model.log_pxy(x, labels), expected[range(5), labels])
    torch.testing.assert_close(model.classify(x), expected.log_softmax(1))
    with torch.no_grad():
        assert torch.equal(model.logits(x)[2:], model.logits(x[2:]))  # in any batch


@BOTH
def test_the_inverse_undoes_the_flow(arch):
    model, x = network(arch), images(5)
    h, _ = model.flow.forward_and_log_det(latents(model, x)[0])
    torch.testing.assert_close((h + 0.5) * 256 - 0.5, (x + 1) * 127.5, rtol=0, atol=0.01)


def block() -> tuple[ResidualBlock, Tensor, Any]:
    """Return a block whose probes are all unit vectors, so that traces are exact; its input; and
    log det(I + J) by brute force, with its graph."""
    residual = residual_blocks(network("residual_flow", 1))[0]
    x = 3 + torch.randn(1, 12, 2, 2, dtype=torch.float64)
    d = x.numel()
    residual.probe = torch.eye(d, dtype=torch.float64).view(d, 12, 2, 2)
    j = jacobian(residual.g, x, create_graph=True).view(d, d)
    assert 0.1 < torch.linalg.matrix_norm(j, 2) < 1
    return residual, x.repeat(d, 1, 1, 1), (torch.eye(d, dtype=torch.float64) + j).slogdet()[1]


def estimate(residual: ResidualBlock, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return residual.log_det(x, residual.g(x), graph=True).sum()


def test_a_residual_block_s_series_and_its_gradient_are_the_log_determinant_s(monkeypatch):
    residual, x, expected = block()
    monkeypatch.setattr(flows, "TERMS", 150)
    series = estimate(residual, x)
    torch.testing.assert_close(series, expected, rtol=1e-9, atol=0)
    weights = [p for name, p in residual.g.named_parameters() if "weight" in name or "beta" in name]
    ours, exact = (torch.autograd.grad(log_det, weights) for log_det in (series, expected))
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=1e-9)


def test_cut_at_random_the_series_is_right_on_average(monkeypatch):
    residual, x, expected = block()
    residual.train()
    monkeypatch.setattr(torch, "randn_like", lambda _: residual.probe)
    mean = torch.zeros((), dtype=torch.float64)
    for n in range(1, 60):  # of probability 2^-n
        monkeypatch.setattr(Tensor, "geometric_", lambda self, p, n=n: self.fill_(n))
        mean += estimate(residual, x).detach() / 2**n
    torch.testing.assert_close(mean, expected.detach(), rtol=1e-6, atol=0)


def test_a_training_step_draws_the_probe_and_keeps_the_block_contractive():
    model = network("residual_flow").train()
    with torch.no_grad():
        for layer in convolutions(model):
            layer.weight *= 50
        first, second = (model.logits(images(2)) for _ in range(2))
        assert not torch.equal(first, second)
        for _ in range(20):
            model.logits(images(2))
    for residual in residual_blocks(model):
        j = jacobian(residual.g, torch.randn(residual.probe.shape, dtype=torch.float64))
        d = residual.probe.numel()
        assert torch.linalg.matrix_norm(j.view(d, d), 2) < 1


class Plain(nn.Module):
    """The identity as a flow: its latents h are independent and have this density."""

    def __init__(self, log_density: Any) -> None:
        super().__init__()
        self.log_density, self.q0, self.h = log_density, [self], torch.zeros(0)

    def inverse_and_log_det(self, h: Tensor) -> tuple[list[Tensor], Tensor]:
        self.h = h
        return [h], h.new_zeros(len(h))

    def log_prob(self, h: Tensor, y: Tensor | None) -> Tensor:
        return self.log_density(h).sum((1, 2, 3))


def plain(log_density: Any) -> Flow:
    model = network(class_cond=False)
    model.flow = Plain(log_density)
    return model


def test_a_uniform_model_has_8_bits():
    model = plain(lambda h: torch.where(h.abs() <= 0.5, 0.0, -torch.inf))
    for training in (False, True):
        bits = model.train(training).bits(model.log_px(GREY))
        torch.testing.assert_close(bits, torch.full((256,), 8.0, dtype=torch.float64))


def test_the_levels_of_a_pixel_share_its_probability():
    """Check that p(v) of 256 levels sums to 1, and that bits are their mean -log2 p(v)."""
    model = plain(Normal(0.05, 0.08).log_prob)
    log_p = model.log_px(GREY) / model.dimensions  # of one pixel and colour
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
    edges = (torch.arange(257).double() / 256 - 0.5 - 0.05) / (0.08 * math.sqrt(2))
    share = torch.erf(edges).diff() / 2
    bits = model.bits(model.log_px(GREY))
    torch.testing.assert_close(bits[60:200], -share.log2()[60:200], rtol=0, atol=3e-3)


def test_training_draws_a_colour_within_its_level_and_evaluation_takes_the_middle():
    model, x = plain(torch.zeros_like), images(200)
    model.train().logits(x)
    u = (model.flow.h + 0.5) * 256 - (x + 1) * 127.5
    assert u.min() > -1e-9 and u.max() < 1 + 1e-9
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    model.eval().logits(x)
    torch.testing.assert_close((model.flow.h + 0.5) * 256, (x + 1) * 127.5 + 0.5)


@BOTH
def test_samples_are_images_of_their_class_and_depend_on_the_seed_alone(arch):
    model, labels = network(arch), torch.arange(30) % CLASSES
    model.initialise(images(50))
    with torch.no_grad():
        for base in model.flow.q0:
            base.loc_cc.copy_(torch.arange(CLASSES)[:, None] * 0.5 - 0.5)
            base.log_scale_cc.fill_(-4)
    before = torch.get_rng_state()
    samples = model.sample(30, labels, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(samples, model.sample(30, labels, 5))
    assert not torch.equal(samples, model.sample(30, labels, 6))
    level = (samples + 1) * 127.5
    torch.testing.assert_close(level, level.round())
    assert samples.shape == (30, 3, SIDE, SIDE) and samples.abs().max() <= 1
    assert len(level.round().unique()) > 10
    whole = ((level > 0.5) & (level < 254.5)).flatten(1).all(1)  # clipping changes an image
    assert whole.sum() > 5
    assert torch.equal(model.logits(samples[whole]).argmax(1), labels[whole])
    assert network(arch, class_cond=False).sample(2, None, 1).shape == (2, 3, SIDE, SIDE)


def test_the_first_batch_alone_sets_every_act_norm():
    model, x, outputs = network(), images(50), list[Tensor]()
    norms = [m for m in model.modules() if isinstance(m, nf.flows.ActNorm)]
    model.initialise(x)
    with torch.no_grad():
        for direction in ("inverse", "forward"):  # of the flow, and within a block's network
            for norm in norms:
                inner = getattr(norm, direction)
                setattr(norm, direction, lambda z, f=inner: (outputs.append(f(z)[0]), f(z))[1])
        logits = model.logits(x)
    assert len(outputs) == len(norms) == 2 * 2 * 3
    for z in outputs:
        assert z.mean((0, 2, 3)).abs().max() < 1e-6
        assert (z.std((0, 2, 3)) - 1).abs().max() < 1e-3
    model.logits(images(3))
    assert torch.equal(model.logits(x), logits)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_size 4 is no multiple of 8"):
        network(levels=3)
