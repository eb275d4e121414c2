"""Langevin dynamics against closed forms, and the two SGLD terms against their definition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losses import Chain, ConditionalSGLD, MarginalSGLD, ReplayBuffer, Step, langevin
from models import EnergyClassifier
from tests.pairwise import pairwise

CLASSES, PER_CLASS, SHAPE = 3, 8, (3, 2, 2)
TERMS = ("pxsgld", "class_cond", "pxysgld")
SGLD = {"steps": 4, "step_size": 0.3, "noise_std": 0.0}


class Backbone(nn.Module):
    """Map images of `values` numbers to features (N, 8)."""

    num_features = 8

    def __init__(self, values: int = 12, *, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(values, 8), nn.BatchNorm1d(8) if norm else nn.Identity()]
        self.layers = nn.Sequential(*layers, nn.Tanh(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def model_of(*, norm: bool = True, dropout: float = 0.0, uncond: bool = False) -> EnergyClassifier:
    """Build a float64 model in train mode; its norm's statistics are not those of a batch."""
    torch.manual_seed(0)
    model = EnergyClassifier(Backbone(norm=norm, dropout=dropout), CLASSES, uncond=uncond).double()
    nn.init.normal_(model.class_output.weight, std=2)
    model.train()
    for _ in range(3):
        model.features(3 * images(16) + 1)
    return model


def images(n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64) * 2 - 1


def buffer_of() -> ReplayBuffer:
    return ReplayBuffer(CLASSES * PER_CLASS, SHAPE, 0.0, CLASSES).double()


def term_of(
    name: str, buffer: ReplayBuffer, options: dict[str, Any] | None = None, **settings: Any
) -> MarginalSGLD | ConditionalSGLD:
    chain, options = Chain(**(SGLD | settings)), options or {}
    if name == "pxysgld":
        return ConditionalSGLD(buffer, chain, **options)
    marginal: dict[str, Any] = {"chains": 7, "class_conditional": name == "class_cond"}
    return MarginalSGLD(buffer, chain, **marginal, **options)


def labelled(n: int = 5) -> tuple[Tensor, Tensor]:
    return images(n), torch.arange(n) * 2 % CLASSES


def gradients(value: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    parameters = list(model.parameters())
    return torch.autograd.grad(
        value, parameters, allow_unused=True, retain_graph=True, materialize_grads=True
    )


def log_densities(
    name: str, model: EnergyClassifier, x: Tensor, y: Tensor, samples: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log q of data and samples, written out for both kinds of head."""

    def of(x: Tensor) -> Tensor:
        logits, head = model.logits(x), model.energy_output
        log_px = logits.logsumexp(1) if head is None else head(model.f(x)).squeeze(1)
        if name != "pxysgld":
            return log_px
        return log_px + logits.log_softmax(1)[torch.arange(len(y)), y]

    return of(x), of(samples)


def quadratic(x: Tensor) -> Tensor:
    return -0.5 * x.square().flatten(1).sum(1)


def test_long_chains_reach_the_stationary_variance():
    """x <- (1 - a) x + b n is autoregressive: its variance tends to b^2 / (1 - (1 - a)^2)."""
    x = langevin(quadratic, torch.zeros(20_000, 3), steps=40, step_size=0.2, noise_std=0.5)
    assert abs(x.var() / (0.25 / (1 - 0.8**2)) - 1) < 0.03
    assert abs(x.mean()) < 0.02


@pytest.mark.parametrize("enabled", [True, False])
def test_langevin_leaves_its_input_the_parameters_and_the_random_state_alone(enabled):
    x0, model = images(4).requires_grad_(enabled), model_of()
    before, state = x0.detach().clone(), torch.get_rng_state()
    settings: dict[str, Any] = {"steps": 3, "step_size": 0.1, "noise_std": 0.1}
    with torch.set_grad_enabled(enabled):
        x = langevin(model.log_px, x0, generator=torch.Generator(), **settings)
        assert torch.is_grad_enabled() is enabled
    assert torch.equal(x0, before) and x0.requires_grad is enabled and x0.grad is None
    assert not x.requires_grad and not torch.equal(x, before)
    assert not langevin(model.log_px, x0, **{**settings, "steps": 0}).requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("grad_clip", [math.inf, 0.3])
@pytest.mark.parametrize("clamp", [False, True])
def test_the_gradient_is_clamped_then_the_step_the_noise_and_the_pixels(grad_clip, clamp):
    """Each image is a chain of its own."""
    x, noise = images(6).float(), torch.Generator().manual_seed(4)
    expected = x.clone()
    for _ in range(3):
        step = torch.randn(x.shape, generator=noise)
        slope = -4 * expected**3
        slope = torch.where(slope.abs() > grad_clip, grad_clip * slope.sign(), slope)
        expected = expected + 0.1 * slope + 0.5 * step
        if clamp:
            expected = expected.minimum(torch.ones(())).maximum(-torch.ones(()))
    chain = Chain(3, 0.1, 0.5, grad_clip, clamp)
    end = chain.climb(lambda x: -x.pow(4).sum((1, 2, 3)), x, torch.Generator().manual_seed(4))
    torch.testing.assert_close(end, expected)
    assert (end.abs().max() == 1) == clamp


@pytest.mark.parametrize(("name", "uncond", "norm"), pairwise(TERMS, (False, True), (True, False)))
def test_chains_climb_the_density_of_their_term_in_eval_mode(name, uncond, norm):
    """With batch norm and dropout chains in train mode would end elsewhere. A slot tells the class
    that its chain climbs."""
    model, buffer = model_of(norm=norm, dropout=0.5, uncond=uncond), buffer_of()
    x, y = labelled()
    term_of(name, buffer)(Step.forward(model, x, y))
    ((slots, samples, _),) = buffer.staged
    classes, climbed = slots // PER_CLASS, "pxsgld" if name == "pxsgld" else "pxysgld"
    model.eval()
    end = buffer.images[slots]
    for _ in range(SGLD["steps"]):
        end = end.detach().requires_grad_(True)
        density, _ = log_densities(climbed, model, end, classes, end)
        end = end + SGLD["step_size"] * torch.autograd.grad(density.sum(), end)[0]
    torch.testing.assert_close(samples, end.detach())
    assert (samples - buffer.images[slots]).abs().max() > 0.1
    assert name != "pxysgld" or torch.equal(classes, y)


CASES = pairwise(TERMS, ("cd", "bce"), (0.0, 0.3), (False, True), (False, True), (False, True))


@pytest.mark.parametrize(("name", "loss", "l2", "norm", "second", "uncond"), CASES)
def test_the_loss_and_its_gradient_are_those_of_the_formula(name, loss, l2, norm, second, uncond):
    """Scores in train mode; labelled images, a second batch and samples are separate passes."""
    model, buffer = model_of(norm=norm, uncond=uncond), buffer_of()
    x, y = labelled()
    unlabelled = images(6, seed=2) if second else None
    term = term_of(name, buffer, {"loss": loss, "l2": l2})
    value, metrics = term(Step.forward(model, x, y, unlabelled))
    ((_, samples, _),) = buffer.staged
    real = x if unlabelled is None or name == "pxysgld" else unlabelled
    data, fake = log_densities(name, model, real, y, samples)
    expected = fake.mean() - data.mean()
    if loss == "bce":
        expected = -data.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean()
    expected = expected + l2 * (data**2).mean() + l2 * (fake**2).mean()
    torch.testing.assert_close(value, expected)
    assert value.abs() > 0.01
    torch.testing.assert_close(metrics["log_q_data"], data.mean())
    torch.testing.assert_close(metrics["log_q_samples"], fake.mean())
    for gradient, truth in zip(gradients(value, model), gradients(expected, model), strict=True):
        torch.testing.assert_close(gradient, truth)


def test_class_conditional_labels_are_uniform():
    model, x, y = model_of(norm=False), *labelled()
    buffer, counts = buffer_of(), torch.zeros(CLASSES)
    term = term_of("class_cond", buffer, steps=0)
    for _ in range(300):
        term(Step.forward(model, x, y))
    for slots, *_ in buffer.staged:
        counts += (slots // PER_CLASS).bincount(minlength=CLASSES)
    assert counts.sum() == 2100
    assert (counts / 700 - 1).abs().max() < 0.12  # three standard errors: 0.093


@pytest.mark.parametrize("statistics", ["jem", "batch", "running", "frozen"])
@pytest.mark.parametrize("name", ["pxsgld", "pxysgld"])
def test_chains_and_scores_use_the_statistics_of_the_setting(name, statistics):
    """Chains run with batch norm in train or eval mode and take no parameter's gradient; then the
    samples are scored. Neither moves running statistics."""
    model, buffer, (x, y) = model_of(), buffer_of(), labelled()
    model.frozen_statistics = statistics == "frozen"
    norm: Any = model.train().f.layers[2]
    step, passes = Step.forward(model, x, y, images(6, seed=2)), []
    before = [tensor.clone() for tensor in norm.buffers()]
    weight = model.f.layers[1].weight
    hook = model.f.register_forward_hook(
        lambda *_: passes.append((norm.training, weight.requires_grad))
    )
    loss, metrics = term_of(name, buffer, {"statistics": statistics})(step)
    loss.backward()
    hook.remove()
    in_chains, in_scores = statistics == "batch", statistics in ("jem", "batch")
    data = [(norm.training, True)] * (name == "pxsgld")
    assert passes == [(in_chains, False)] * SGLD["steps"] + [(in_scores, True)] + data
    assert all(map(torch.equal, norm.buffers(), before))
    ((_, samples, _),) = buffer.staged
    norm.training, norm.track_running_stats = in_scores, False
    _, fake = log_densities(name, model, x, y, samples)
    torch.testing.assert_close(metrics["log_q_samples"], fake.mean())


@pytest.mark.parametrize("distinct", [10_000, 4, 1])
def test_auc_is_scikit_learn_s_ties_included(distinct):
    from sklearn.metrics import roc_auc_score

    random = torch.Generator().manual_seed(distinct)
    data = (torch.randint(distinct, (30,), generator=random) + distinct // 5).float()
    samples = torch.randint(distinct, (21,), generator=random).float()
    term = term_of("pxsgld", buffer_of())
    _, metrics = term.divergence(data.clone().requires_grad_(), samples)
    expected = roc_auc_score([1] * 30 + [0] * 21, torch.cat([data, samples]))
    assert metrics["auc"].item() == pytest.approx(expected, abs=1e-6)
    assert not metrics["auc"].requires_grad


@pytest.mark.parametrize("name", TERMS)
def test_age_travel_and_clamped_shares_are_those_of_the_chains(name):
    model, buffer, (x, y) = model_of(), buffer_of(), labelled()
    x[0, 0], x[1, 0, 0, 0] = 1.0, -1.3  # 5 of 60 pixels
    buffer.updates.fill_(9)
    buffer.began.copy_(torch.arange(len(buffer.began)) % 7)
    term = term_of(name, buffer, step_size=0.3, noise_std=1.0, clamp=True)
    _, metrics = term(Step.forward(model, x, y))
    ((slots, samples, began),) = buffer.staged
    assert torch.equal(began, slots % 7)
    torch.testing.assert_close(metrics["age"], (9.0 - slots % 7).float().mean())
    distance = (samples - buffer.images[slots]).square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(metrics["travel"], distance.mean())
    share = sum(abs(pixel) == 1 for pixel in samples.flatten().tolist()) / samples.numel()
    assert metrics["clamped"].item() == pytest.approx(share) and 0 < share < 1
    assert metrics["clamped_data"].item() == pytest.approx(5 / 60)
    _, metrics = term_of("pxsgld", buffer_of())(Step.forward(model, x, y, images(6)))
    assert metrics["clamped_data"] == 0  # of the images that log q(x) is fitted to
