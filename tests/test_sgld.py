"""Langevin dynamics against closed forms, and the two SGLD terms against their definition."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losses import (
    Chain,
    ConditionalSGLD,
    CrossEntropy,
    MarginalSGLD,
    Objective,
    ReplayBuffer,
    Step,
    langevin,
)
from models import EnergyClassifier

CLASSES, PER_CLASS, SHAPE = 3, 8, (3, 2, 2)
SGLD = {"steps": 4, "step_size": 0.3, "noise_std": 0.0}


class Backbone(nn.Module):
    """Images (N, 3, 2, 2) -> features (N, 8)."""

    num_features = 8

    def __init__(self, *, norm: bool, dropout: float) -> None:
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8) if norm else nn.Identity()]
        self.layers = nn.Sequential(*layers, nn.Tanh(), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def model_of(*, norm: bool = True, dropout: float = 0.0, uncond: bool = False) -> EnergyClassifier:
    """float64, in train mode; with a norm, its running statistics are not those of a batch."""
    torch.manual_seed(0)
    model = EnergyClassifier(Backbone(norm=norm, dropout=dropout), CLASSES, uncond=uncond).double()  # type: ignore[arg-type]
    nn.init.normal_(model.class_output.weight, std=2)
    model.train()
    for _ in range(3):
        model.features(3 * images(16) + 1)
    return model


def images(n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64) * 2 - 1


def buffer_of(reinit_freq: float = 0.0) -> ReplayBuffer:
    return ReplayBuffer(CLASSES * PER_CLASS, SHAPE, reinit_freq, CLASSES).double()


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


def gradients(value: Tensor, model: nn.Module) -> list[Tensor]:
    parameters = list(model.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    pairs = zip(found, parameters, strict=True)
    return [torch.zeros_like(p) if gradient is None else gradient for gradient, p in pairs]


# ------------------------------------------------------------------------------------- langevin


def quadratic(x: Tensor) -> Tensor:
    return -0.5 * x.square().flatten(1).sum(1)


def test_langevin_follows_the_gradient_exactly_when_noise_is_off() -> None:
    x0 = images(4)
    x = langevin(quadratic, x0, steps=5, step_size=0.1, noise_std=0.0)
    torch.testing.assert_close(x, x0 * 0.9**5)


def test_each_image_is_a_chain_of_its_own() -> None:
    x0 = images(4)
    many, alone = (langevin(lambda x: -x.pow(4).sum((1, 2, 3)), x, **SGLD) for x in (x0, x0[2:3]))
    torch.testing.assert_close(many[2:3], alone)


def test_without_gradient_the_noise_adds_up() -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.full((20_000, 3), 2.0)
    for steps in (1, 4):
        x = langevin(
            lambda x: 0 * x.sum(1),
            x0,
            steps=steps,
            step_size=1.0,
            noise_std=0.3,
            generator=generator,
        )
        noise = (x - x0) / (0.3 * math.sqrt(steps))  # 60,000 numbers
        assert abs(noise.mean()) < 0.02 and abs(noise.var() - 1) < 0.03
        assert abs((noise.abs() < 1).float().mean() - 0.6827) < 0.01


def test_long_chains_reach_the_stationary_variance() -> None:
    """x <- (1 - a) x + b n is autoregressive: its variance tends to b^2 / (1 - (1 - a)^2)."""
    x = langevin(
        quadratic,
        torch.zeros(20_000, 3),
        steps=40,
        step_size=0.2,
        noise_std=0.5,
        generator=torch.Generator().manual_seed(0),
    )
    assert abs(x.var() / (0.25 / (1 - 0.8**2)) - 1) < 0.03
    assert abs(x.mean()) < 0.02


@pytest.mark.parametrize("requires_grad", [False, True])
def test_langevin_leaves_its_input_alone(requires_grad: bool) -> None:
    x0 = images(4).requires_grad_(requires_grad)
    before = x0.detach().clone()
    x = langevin(quadratic, x0, steps=3, step_size=0.1, noise_std=0.1)
    assert torch.equal(x0, before) and x0.requires_grad is requires_grad and x0.grad is None
    assert not x.requires_grad and not torch.equal(x, before)


def test_langevin_gives_no_parameter_a_gradient() -> None:
    model = model_of()
    langevin(model.log_px, images(4), **SGLD)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_langevin_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        x = langevin(quadratic, torch.ones(2, 3), steps=5, step_size=0.1, noise_std=0.0)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(x, torch.full((2, 3), 0.9**5))


def test_langevin_is_reproducible_from_its_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (
        langevin(
            quadratic,
            torch.ones(2, 3),
            steps=5,
            step_size=0.1,
            noise_std=0.1,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------------------------- terms


def climbed(
    name: str, model: EnergyClassifier, start: Tensor, slots: Tensor, labels: Tensor
) -> Tensor:
    """Where the chains of a term must end, written out: the slots say which class is climbed."""
    model.eval()
    x = start
    for _ in range(SGLD["steps"]):
        x = x.detach().requires_grad_(True)
        logits = model.logits(x)
        y = {"pxysgld": labels, "class_cond": slots // PER_CLASS}.get(name)
        density = logits.logsumexp(1) if y is None else logits[torch.arange(len(y)), y]
        x = x + SGLD["step_size"] * torch.autograd.grad(density.sum(), x)[0]
    model.train()
    return x.detach()


@pytest.mark.parametrize("name", ["pxsgld", "class_cond", "pxysgld"])
def test_the_chains_climb_the_density_that_is_named_in_eval_mode(name: str) -> None:
    """With batch norm and dropout: in train mode the chains would end elsewhere."""
    model, buffer = model_of(dropout=0.5), buffer_of()
    x, y = labelled()
    term_of(name, buffer)(Step.forward(model, x, y))
    ((slots, samples, _),) = buffer.staged
    expected = climbed(name, model, buffer.images[slots], slots, y)
    torch.testing.assert_close(samples, expected)
    assert (samples - buffer.images[slots]).abs().max() > 0.1
    if name == "pxysgld":
        assert torch.equal(slots // PER_CLASS, y)


@pytest.mark.parametrize("unlabelled", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["pxsgld", "class_cond", "pxysgld"])
def test_the_loss_is_samples_less_data_and_so_is_its_gradient(
    name: str, norm: bool, unlabelled: bool
) -> None:
    """Scores in train mode; labelled images, a second batch and samples are separate passes."""
    model, buffer = model_of(norm=norm), buffer_of()
    x, y = labelled()
    second = images(6, seed=2) if unlabelled else None
    loss, metrics = term_of(name, buffer)(Step.forward(model, x, y, second))
    ((_, samples, _),) = buffer.staged

    if name == "pxysgld":
        data, fake = (model.logits(each)[torch.arange(5), y].mean() for each in (x, samples))
    else:
        real = x if second is None else second
        data, fake = (model.logits(each).logsumexp(1).mean() for each in (real, samples))
    torch.testing.assert_close(loss, fake - data)
    assert loss.abs() > 0.01
    torch.testing.assert_close(metrics["log_q_data"], data)
    torch.testing.assert_close(metrics["log_q_samples"], fake)
    parts = zip(gradients(loss, model), gradients(fake, model), gradients(data, model), strict=True)
    for gradient, of_fake, of_data in parts:
        torch.testing.assert_close(gradient, of_fake - of_data)


@pytest.mark.parametrize("name", ["pxsgld", "class_cond", "pxysgld"])
def test_the_l2_penalty_is_of_every_log_density(name: str) -> None:
    model, buffer = model_of(), buffer_of()
    x, y = labelled()
    term = term_of(name, buffer)
    term.l2 = 0.3
    loss, _ = term(Step.forward(model, x, y))
    ((_, samples, _),) = buffer.staged
    if name == "pxysgld":
        data, fake = (model.logits(each)[torch.arange(5), y] for each in (x, samples))
    else:
        data, fake = (model.logits(each).logsumexp(1) for each in (x, samples))
    penalty = 0.3 * (sum(v**2 for v in fake) / len(fake) + sum(v**2 for v in data) / len(data))
    torch.testing.assert_close(loss, fake.mean() - data.mean() + penalty)


def test_the_separate_head_is_what_an_uncond_model_climbs_and_scores() -> None:
    model, buffer = model_of(uncond=True, norm=False), buffer_of()
    x, y = labelled()
    loss, _ = term_of("pxsgld", buffer, steps=1)(Step.forward(model, x, y))
    ((slots, samples, _),) = buffer.staged
    head = model.energy_output
    assert head is not None

    def energy(x: Tensor) -> Tensor:
        return head(model.f(x)).squeeze(1)

    start = buffer.images[slots].requires_grad_(True)
    (up,) = torch.autograd.grad(energy(start).sum(), start)
    torch.testing.assert_close(samples, (start + 0.3 * up).detach())
    torch.testing.assert_close(loss, energy(samples).mean() - energy(x).mean())
    assert all(not gradient.any() for gradient in gradients(loss, model.class_output))


@pytest.mark.parametrize("name", ["pxsgld", "class_cond", "pxysgld"])
def test_the_model_is_given_back_as_it_was(name: str) -> None:
    model, x, y = model_of(dropout=0.5), *labelled()
    model.f.layers[2].eval()
    model.f.layers[1].bias.requires_grad_(False)

    def state() -> tuple[list[bool], list[bool], list[Any]]:
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [getattr(module, "track_running_stats", None) for module in model.modules()],
        )

    before = state()
    term_of(name, buffer_of())(Step.forward(model, x, y))
    assert state() == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_chains_spare_the_gradients_of_the_parameters() -> None:
    model, x, y = model_of(), *labelled()
    step, passes = Step.forward(model, x, y), []
    weight = model.f.layers[1].weight
    model.f.register_forward_hook(lambda *_: passes.append((model.training, weight.requires_grad)))
    term_of("pxysgld", buffer_of())(step)
    assert passes == [(False, False)] * SGLD["steps"] + [(True, True)]


@pytest.mark.parametrize("name", ["pxsgld", "class_cond", "pxysgld"])
def test_only_the_labelled_pass_moves_running_statistics(name: str) -> None:
    model, x, y = model_of(), *labelled()
    norm = model.f.layers[2]
    step = Step.forward(model, x, y, images(6, seed=2))
    before = [buffer.clone() for buffer in norm.buffers()]
    assert before[-1] == 4  # three when it was made, and the labelled pass
    loss, _ = term_of(name, buffer_of())(step)
    loss.backward()
    assert all(map(torch.equal, norm.buffers(), before))


def test_class_conditional_labels_are_uniform() -> None:
    model, x, y = model_of(norm=False), *labelled()
    buffer, counts = buffer_of(), torch.zeros(CLASSES)
    term = term_of("class_cond", buffer, steps=0)
    for _ in range(300):
        term(Step.forward(model, x, y))
    for slots, *_ in buffer.staged:
        counts += (slots // PER_CLASS).bincount(minlength=CLASSES)
    assert counts.sum() == 2100
    assert (counts / 700 - 1).abs().max() < 0.12  # three standard errors: 0.093


@pytest.mark.parametrize("name", ["pxsgld", "class_cond", "pxysgld"])
def test_samples_go_back_to_their_slots_once_the_step_commits(name: str) -> None:
    model, buffer, (x, y) = model_of(), buffer_of(), labelled()
    objective = Objective({"ce": (1.0, CrossEntropy()), "sgld": (1.0, term_of(name, buffer))})
    step = Step.forward(model, x, y)
    before = buffer.images.clone()
    objective(step)
    assert torch.equal(buffer.images, before)
    ((slots, samples, _),) = buffer.staged
    objective.commit(step)
    assert torch.equal(buffer.images[slots], samples) and buffer.staged == []
    untouched = torch.ones(len(before), dtype=torch.bool)
    untouched[slots] = False
    assert torch.equal(buffer.images[untouched], before[untouched])


def test_the_noise_of_a_term_is_as_wide_as_it_says() -> None:
    model, buffer = model_of(norm=False), ReplayBuffer(3000, SHAPE, 0.0, CLASSES).double()
    term = MarginalSGLD(buffer, Chain(1, 0.0, 0.07), chains=3000)
    term(Step.forward(model, *labelled()))
    ((slots, samples, _),) = buffer.staged
    noise = (samples - buffer.images[slots]) / 0.07
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.02


@pytest.mark.parametrize("name", ["pxsgld", "pxysgld"])
def test_chains_are_normalised_by_statistics_that_hold_their_step_s_batch(name: str) -> None:
    """One forward pass of the data serves all terms, so it comes before the chains."""
    model = model_of()
    norm = model.f.layers[2]
    means = [norm.running_mean.clone()]  # type: ignore[union-attr,operator]
    term = term_of(name, buffer_of())
    log_px, log_pxy = model.log_px, model.log_pxy

    def watched(density: Any) -> Any:
        def of(*given: Tensor) -> Tensor:
            means.append(norm.running_mean.clone())  # type: ignore[union-attr,operator]
            return density(*given)

        return of

    model.log_px, model.log_pxy = watched(log_px), watched(log_pxy)  # type: ignore[method-assign]
    data = images(6)
    batch = model.f.layers[:2](data).mean(0).detach()  # type: ignore[index]
    term(Step.forward(model, data, torch.arange(6) % CLASSES))
    expected = torch.lerp(means[0], batch, 0.1)
    assert len(means) > 1 + SGLD["steps"]
    assert all(torch.allclose(mean, expected) for mean in means[1:])
