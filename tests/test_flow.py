"""Flows: log p(x) against Jacobians and by hand, bits per dimension, the inverse."""

import math
from itertools import product
from typing import Any

import normflows as nf
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.distributions import Normal

import models
from models import flow as flows
from models.flow import Flow, ResidualBlock

CLASSES, SIDE = 3, 4


def network(arch: str = "glow", levels: int = 2, *, class_cond: bool = True) -> Flow:
    """In float64 and eval mode, with no weight at its initial zero."""
    torch.manual_seed(0)
    sizes = {"levels": levels, "depth": 2, "width": 5, "image_size": SIDE, "num_classes": CLASSES}
    model = Flow(arch=arch, class_cond=class_cond, **sizes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for layer in model.modules():
            if isinstance(layer, nf.nets.lipschitz.InducedNormConv2d):
                layer.weight *= 5
                layer.compute_weight(update=True, n_iterations=100)
    return model.eval()


def images(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (n, 3, SIDE, SIDE), generator=generator).double() / 127.5 - 1


def latents(model: Flow, x: Tensor) -> list[Tensor]:
    return model.flow.inverse_and_log_det(((x + 1) * 127.5 + 0.5) / 256 - 0.5)[0]


def log_normal(model: Flow, z: list[Tensor], y: int | None) -> Tensor:
    """The latents' log density by PyTorch's Normal: mean and deviation a channel, as in Glow."""
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
    """v = 127.5 (x + 1) has 127.5 levels a unit of x: log p(v) = log p(x) - D log 127.5."""
    model, x = network(levels=levels, class_cond=class_cond), images(1)

    def whole(x: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in latents(model, x)])

    d = x.numel()
    assert model.dimensions == d
    log_det = jacobian(whole, x).reshape(d, d).slogdet()[1]
    each = [
        log_normal(model, latents(model, x), y) + log_det - d * math.log(127.5)
        for y in (range(CLASSES) if class_cond else [None])
    ]
    expected = torch.stack(each, 1) - math.log(len(each))
    torch.testing.assert_close(model.logits(x), expected, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(model.log_px(x), expected.logsumexp(1), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("arch", ["glow", "residual_flow"])
def test_logits_are_each_class_s_log_p(arch):
    model, x = network(arch), images(5)
    z, log_det = model.flow.inverse_and_log_det(((x + 1) * 127.5 + 0.5) / 256 - 0.5)
    each = torch.stack([log_normal(model, z, y) + log_det for y in range(CLASSES)], 1)
    expected = each - model.dimensions * math.log(256) - math.log(CLASSES)
    torch.testing.assert_close(model.logits(x), expected)
    labels = torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(model.log_pxy(x, labels), expected[range(5), labels])
    torch.testing.assert_close(model.classify(x), expected.log_softmax(1))
    with torch.no_grad():
        assert torch.equal(model.logits(x)[2:], model.logits(x[2:]))  # whatever else is asked


@pytest.mark.parametrize("arch", ["glow", "residual_flow"])
def test_the_inverse_undoes_the_flow(arch):
    model, x = network(arch), images(5)
    h, _ = model.flow.forward_and_log_det(latents(model, x))
    torch.testing.assert_close((h + 0.5) * 256 - 0.5, (x + 1) * 127.5, rtol=0, atol=0.01)


def block() -> tuple[ResidualBlock, Tensor, Any]:
    """A block whose probes are all unit vectors, so that traces are exact; its input; log det(I +
    J) by brute force, with its graph."""
    found = next(m for m in network("residual_flow", 1).modules() if isinstance(m, ResidualBlock))
    x = 3 + torch.randn(1, 12, 2, 2, dtype=torch.float64)
    d = x.numel()
    found.probe = torch.eye(d, dtype=torch.float64).view(d, 12, 2, 2)
    j = jacobian(found.g, x, create_graph=True).view(d, d)
    assert 0.1 < torch.linalg.matrix_norm(j, 2) < 1
    return found, x.repeat(d, 1, 1, 1), (torch.eye(d, dtype=torch.float64) + j).slogdet()[1]


def estimate(found: ResidualBlock, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return found.log_det(x, found.g(x), graph=True).sum()


def test_a_residual_block_s_series_and_its_gradient_are_the_log_determinant_s(monkeypatch):
    found, x, expected = block()
    monkeypatch.setattr(flows, "TERMS", 150)
    torch.testing.assert_close(estimate(found, x), expected, rtol=1e-9, atol=0)
    weights = [p for name, p in found.g.named_parameters() if "weight" in name or "beta" in name]
    ours, theirs = (torch.autograd.grad(each, weights) for each in (estimate(found, x), expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_cut_at_random_the_series_is_right_on_average(monkeypatch):
    found, x, expected = block()
    found.train()
    monkeypatch.setattr(torch, "randn_like", lambda _: found.probe)
    mean = torch.zeros((), dtype=torch.float64)
    for n in range(1, 60):  # of probability 2^-n
        monkeypatch.setattr(Tensor, "geometric_", lambda self, p, n=n: self.fill_(n))
        mean += estimate(found, x).detach() / 2**n
    torch.testing.assert_close(mean, expected.detach(), rtol=1e-6, atol=0)


def test_a_training_step_draws_the_probe_and_keeps_the_block_contractive():
    model = network("residual_flow").train()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nf.nets.lipschitz.InducedNormConv2d):
                layer.weight *= 50
        first, second = (model.logits(images(2)) for _ in range(2))
        assert not torch.equal(first, second)
        for _ in range(20):
            model.logits(images(2))
    for found in (m for m in model.modules() if isinstance(m, ResidualBlock)):
        j = jacobian(found.g, torch.randn(found.probe.shape, dtype=torch.float64))
        d = found.probe.numel()
        assert torch.linalg.matrix_norm(j.view(d, d), 2) < 1


class Plain(nn.Module):
    """The identity as a flow, whose latents h are independent, of a density of their own."""

    def __init__(self, log_density: Any) -> None:
        super().__init__()
        self.log_density, self.q0, self.seen = log_density, [self], torch.zeros(0)

    def inverse_and_log_det(self, h: Tensor) -> tuple[list[Tensor], Tensor]:
        self.seen = h
        return [h], h.new_zeros(len(h))

    def log_prob(self, h: Tensor, y: Tensor | None) -> Tensor:
        return self.log_density(h).sum((1, 2, 3))


def plain(log_density: Any) -> Flow:
    model = network(class_cond=False)
    model.flow = Plain(log_density)
    return model


def test_a_uniform_model_has_8_bits():
    model = plain(lambda h: torch.where(h.abs() <= 0.5, 0.0, -torch.inf))
    levels = torch.arange(256).double()[:, None, None, None].expand(-1, 3, SIDE, SIDE)
    for training in (False, True):
        bits = model.train(training).bits(model.log_px(levels / 127.5 - 1))
        torch.testing.assert_close(bits, torch.full((256,), 8.0, dtype=torch.float64))


def test_the_levels_of_a_pixel_share_its_probability():
    """p(v) of 256 levels sums to 1, and bits are their mean -log2 p(v)."""
    model = plain(Normal(0.05, 0.08).log_prob)
    levels = torch.arange(256).double()[:, None, None, None].expand(-1, 3, SIDE, SIDE)
    log_p = model.log_px(levels / 127.5 - 1) / model.dimensions  # of one pixel and colour
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-6)
    edges = (torch.arange(257).double() / 256 - 0.5 - 0.05) / (0.08 * math.sqrt(2))
    share = torch.erf(edges).diff() / 2
    bits = model.bits(model.log_px(levels / 127.5 - 1))
    torch.testing.assert_close(bits[60:200], -share.log2()[60:200], rtol=0, atol=3e-3)


def test_training_draws_a_colour_s_place_within_its_level():
    model, x = plain(torch.zeros_like), images(200)
    model.train().logits(x)
    u = (model.flow.seen + 0.5) * 256 - (x + 1) * 127.5
    assert u.min() > -1e-9 and u.max() < 1 + 1e-9
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    model.eval().logits(x)
    torch.testing.assert_close((model.flow.seen + 0.5) * 256, (x + 1) * 127.5 + 0.5)


@pytest.mark.parametrize("arch", ["glow", "residual_flow"])
def test_samples_are_images_of_their_class_and_draw_from_a_seed(arch):
    model, labels = network(arch), torch.arange(30) % CLASSES
    model.initialise(images(50))
    with torch.no_grad():
        for base in model.flow.q0:
            base.loc_cc.copy_(torch.arange(CLASSES)[:, None] * 0.5 - 0.5)
            base.log_scale_cc.fill_(-4)
    before = torch.get_rng_state()
    found = model.sample(30, labels, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found, model.sample(30, labels, 5))
    assert not torch.equal(found, model.sample(30, labels, 6))
    level = (found + 1) * 127.5
    torch.testing.assert_close(level, level.round())
    assert found.shape == (30, 3, SIDE, SIDE) and found.abs().max() <= 1
    assert len(level.round().unique()) > 10
    inside = (level > 0.5) & (level < 254.5)  # what was clipped is another image
    whole = inside.flatten(1).all(1)
    assert whole.sum() > 5
    assert torch.equal(model.logits(found[whole]).argmax(1), labels[whole])
    assert network(arch, class_cond=False).sample(2, None, 1).shape == (2, 3, SIDE, SIDE)


def test_the_first_batch_sets_every_act_norm():
    model, x = network(), images(50)
    seen: list[Tensor] = []
    norms = [m for m in model.modules() if isinstance(m, nf.flows.ActNorm)]
    model.initialise(x)
    with torch.no_grad():
        for direction in ("inverse", "forward"):  # of the flow, and within a block's network
            for norm in norms:
                inner = getattr(norm, direction)
                setattr(norm, direction, lambda z, f=inner: (seen.append(f(z)[0]), f(z))[1])
        model.logits(x)
    assert len(seen) == len(norms) == 2 * 2 * 3
    for z in seen:
        assert z.mean((0, 2, 3)).abs().max() < 1e-6
        assert (z.std((0, 2, 3)) - 1).abs().max() < 1e-3
    other = model.logits(x)
    model.logits(images(3))
    assert torch.equal(model.logits(x), other)  # once


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="image_size 4 is no multiple of 8"):
        network(levels=3)
    assert issubclass(Flow, models.EnergyClassifier)
