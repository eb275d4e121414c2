"""Samples for pictures: what they climb, and that drawing them leaves a run as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluation.sampling import Sampler
from losses import ReplayBuffer
from models import EnergyClassifier

CLASSES, PER_CLASS = 3, 5


class Backbone(nn.Module):
    """Images (N, 3, 32, 32) -> features (N, 6)."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(3072, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear(x.flatten(1)).tanh())


def model_of() -> EnergyClassifier:
    torch.manual_seed(0)
    return EnergyClassifier(Backbone(), CLASSES).train()  # type: ignore[arg-type]


def numbered() -> ReplayBuffer:
    """Slot i holds 10 + i everywhere, and no chain restarts."""
    buffer = ReplayBuffer(CLASSES * PER_CLASS, (3, 32, 32), 0.0, CLASSES)
    numbers = 10.0 + torch.arange(CLASSES * PER_CLASS)
    buffer.images.copy_(numbers[:, None, None, None].expand_as(buffer.images))
    return buffer


def sampler_of(
    model: EnergyClassifier, buffer: ReplayBuffer | None = None, **settings: Any
) -> Sampler:
    chosen = {"steps": 2, "step_size": 1.0, "noise_std": 0.0, "seed": 0} | settings
    return Sampler(model, buffer, **chosen)


def ascent(model: EnergyClassifier, x: Tensor, y: Tensor | None) -> Tensor:
    """One step up log q(x), or up f(x)[y]."""
    model.eval()
    x = x.detach().requires_grad_(True)
    logits = model.logits(x)
    value = logits.logsumexp(1) if y is None else logits[torch.arange(len(y)), y]
    (gradient,) = torch.autograd.grad(value.sum(), x)
    model.train()
    return x.detach() + 50 * gradient


@pytest.mark.parametrize("buffered", [False, True])
def test_chains_climb_the_density_that_is_asked_for(buffered: bool) -> None:
    model = model_of()
    buffer = ReplayBuffer(60, (3, 32, 32), 0.05, CLASSES) if buffered else None
    start, end = (
        sampler_of(model, buffer, steps=steps, step_size=50.0).unconditional(4) for steps in (0, 1)
    )
    torch.testing.assert_close(end, ascent(model, start, None))

    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    start, end = (
        sampler_of(model, buffer, steps=steps, step_size=50.0).conditional(CLASSES, 2)
        for steps in (0, 1)
    )
    torch.testing.assert_close(end, ascent(model, start, labels))
    assert (end - start).abs().max() > 0.1

    other = sampler_of(model, buffer, steps=1, step_size=50.0).conditional(
        CLASSES, 2, lambda x, y: -model.log_pxy(x, y)
    )
    torch.testing.assert_close(other - start, start - end, rtol=0, atol=1e-4)


def test_chains_start_from_slots_of_their_class() -> None:
    sampler = sampler_of(model_of(), numbered(), steps=0)
    slots = sampler.conditional(CLASSES, 4)[:, 0, 0, 0].long() - 10
    assert torch.equal(slots // PER_CLASS, torch.arange(CLASSES).repeat_interleave(4))
    assert len(set(slots.tolist())) == 12
    slots = sampler.unconditional(15)[:, 0, 0, 0].long() - 10
    assert sorted(slots.tolist()) == list(range(15))


def test_without_a_buffer_chains_start_uniform() -> None:
    start = sampler_of(model_of(), steps=0).unconditional(6)
    assert start.shape == (6, 3, 32, 32)
    assert -1 <= start.min() < -0.99 and 0.99 < start.max() < 1
    assert abs(start.var() - 1 / 3) < 0.02


@pytest.mark.parametrize("reinit_freq", [0.0, 0.5])
def test_drawing_leaves_buffer_random_state_and_model_as_they_were(reinit_freq: float) -> None:
    model, buffer = model_of(), numbered()
    buffer.reinit_freq = reinit_freq
    model.f.dropout.eval()
    model.class_output.bias.requires_grad_(False)

    def state() -> tuple[list[Any], list[Tensor]]:
        flags = [m.training for m in model.modules()] + [
            p.requires_grad for p in model.parameters()
        ]
        tensors = [torch.get_rng_state(), buffer.images, *model.parameters()]
        return flags, [tensor.detach().clone() for tensor in tensors]

    flags, tensors = state()
    for each in (buffer, None):
        sampler = sampler_of(model, each, noise_std=0.1)
        sampler.unconditional(4)
        sampler.conditional(CLASSES, 2)
    later_flags, later_tensors = state()
    assert flags == later_flags and all(map(torch.equal, tensors, later_tensors))
    assert buffer.staged == []
    assert all(p.grad is None for p in model.parameters())


def test_a_seed_decides_the_samples() -> None:
    model, buffer = model_of(), numbered()
    first, second, other = (
        sampler_of(model, buffer, noise_std=0.1, seed=seed).unconditional(4) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
