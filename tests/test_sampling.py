"""Samples: what they climb, where they start, what is stored, and that a run stays as it was."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data import generator_of, to_float
from evaluation.chains import FRESH, ROUNDS
from evaluation.plots import save_labelled_grid
from evaluation.sampling import (
    Sampler,
    Slots,
    check_finite,
    classified,
    fresh_buffer,
    fresh_chains,
    legs_of,
    most_confident,
    sampling_rounds,
    to_uint8,
)
from losses import Chain, ReplayBuffer, langevin
from models import EnergyClassifier

CLASSES, PER_CLASS = 3, 5
SGLD: dict[str, Any] = {"steps": 2, "step_size": 20.0, "noise_std": 0.1}
CHAIN = Chain(**SGLD)
SURE = 60  # times the logits: many q(y|x) are 1
CPU = torch.device("cpu")
LEGS = legs_of(CHAIN, [0, CHAIN.steps])


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
    seed = settings.pop("seed", 0)
    return Sampler(model, buffer, Chain(**{"steps": 2, "noise_std": 0.0} | settings), seed=seed)


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
    model, buffer, stored = model_of(), numbered(), numbered()
    buffer.reinit_freq = stored.reinit_freq = reinit_freq
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
    list(sampling_rounds(model, Slots(stored), CHAIN, rounds=2, chains=4, seed=0))
    both: dict[str, Any] = {"rounds": 2, "chains": 4, "seed": 0, "conditional": True}
    list(sampling_rounds(model, Slots(stored), CHAIN, **both))
    ends = [end for _, end in fresh_chains(model, LEGS, 3, batch_size=2, seed=0)]
    most_confident(model, torch.cat(ends), per_class=2)
    fresh_buffer(6, 3, 0.05, image_size=32, seed=0, device="cpu")
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


def uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.empty(n, 3, 32, 32).uniform_(-1, 1, generator=generator)


def by_hand(model: EnergyClassifier, x: Tensor, y: Tensor | None, g: torch.Generator) -> Tensor:
    model.eval()
    density = model.log_px if y is None else lambda x: model.log_pxy(x, y)
    end = langevin(density, x, generator=g, **SGLD)
    model.train()
    return end


@pytest.mark.parametrize("reinit_freq", [0.0, 0.5])
def test_a_round_draws_climbs_and_stores(reinit_freq: float) -> None:
    model, buffer, expected = model_of(), numbered(), numbered()
    buffer.reinit_freq = expected.reinit_freq = reinit_freq
    generator = generator_of(CPU, 7, ROUNDS)
    count = 0
    for images in sampling_rounds(model, Slots(buffer), CHAIN, rounds=3, chains=4, seed=7):
        before = expected.images.clone()
        start, slots = expected.draw(4, generator=generator)
        end = by_hand(model, start, None, generator)
        torch.testing.assert_close(images, end)
        expected.images[slots] = end
        torch.testing.assert_close(buffer.images, expected.images)
        changed = (buffer.images != before).flatten(1).any(1).nonzero()[:, 0]
        assert torch.equal(changed, slots.sort()[0])
        count += 1
    assert count == 3


@pytest.mark.parametrize("chains", [2, 7, 12, 15])
def test_conditional_rounds_use_and_fill_slots_of_their_class(chains: int) -> None:
    model, buffer = model_of(), numbered()
    labels = torch.arange(chains) % CLASSES
    still = replace(CHAIN, steps=0)
    settings: dict[str, Any] = {"rounds": 1, "chains": chains, "seed": 0, "conditional": True}
    (start,) = sampling_rounds(model, Slots(buffer), still, **settings)
    slots = start[:, 0, 0, 0].long() - 10
    assert torch.equal(slots // PER_CLASS, labels) and len(set(slots.tolist())) == chains
    assert torch.equal(buffer.images, numbered().images)

    chain = Chain(1, 50.0, 0.0)
    (end,) = sampling_rounds(model, Slots(buffer), chain, **settings)
    torch.testing.assert_close(end, ascent(model, start, labels))
    assert (end - start).abs().max() > 0.01
    assert torch.equal(buffer.images[slots], end)
    others = torch.ones(len(buffer.images), dtype=torch.bool).index_fill(0, slots, False)
    assert torch.equal(buffer.images[others], numbered().images[others])


@pytest.mark.parametrize("conditional", [False, True])
def test_more_chains_than_slots_are_refused(conditional: bool) -> None:
    settings: dict[str, Any] = {"rounds": 1, "seed": 0, "conditional": conditional}
    with pytest.raises(ValueError, match="slots"):
        next(sampling_rounds(model_of(), Slots(numbered()), CHAIN, chains=16, **settings))


def test_rounds_can_pause_and_a_seed_decides_them() -> None:
    model = model_of()
    ends = []
    for seed, pause in ((3, 0), (3, 2), (4, 0)):
        buffer = numbered()
        rounds = sampling_rounds(model, Slots(buffer), CHAIN, rounds=5, chains=4, seed=seed)
        list(islice(rounds, pause))
        torch.rand(7)
        assert len(list(rounds)) == 5 - pause
        ends.append(buffer.images)
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_a_fresh_buffer_is_uniform_and_decided_by_its_seed() -> None:
    first, second, other = (
        fresh_buffer(30, 3, 0.25, image_size=32, seed=s, device="cpu") for s in (1, 1, 2)
    )
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)
    assert -1 <= first.images.min() < -0.99 and 0.99 < first.images.max() < 1
    assert abs(first.images.var() - 1 / 3) < 0.01
    assert first.reinit_freq == 0.25 and first.num_classes == 3


@pytest.mark.parametrize("conditional", [False, True])
def test_fresh_chains_against_the_sampler_batch_by_batch(conditional: bool) -> None:
    model = model_of()
    labels = torch.arange(8) % 3 if conditional else None
    batches = list(fresh_chains(model, LEGS, 8, batch_size=4, seed=2, labels=labels))
    for i, (start, end) in enumerate(batches):
        generator = generator_of(CPU, 2, FRESH, i)
        y = None if labels is None else labels[4 * i : 4 * i + 4]
        assert torch.equal(start, uniform(4, generator))
        torch.testing.assert_close(end, by_hand(model, start, y, generator))
    few = None if labels is None else labels[:6]
    parts = list(fresh_chains(model, LEGS, 6, batch_size=4, seed=2, labels=few))
    for some, all_ in zip(zip(*parts, strict=True), zip(*batches, strict=True), strict=True):
        assert [len(part) for part in some] == [4, 2]
        torch.testing.assert_close(torch.cat(some), torch.cat(all_)[:6])


@pytest.mark.parametrize(("batch_size", "scale"), [(4, 1), (500, 1), (500, SURE)])
def test_the_most_confident_against_a_loop(batch_size: int, scale: float) -> None:
    model = model_of()
    model.class_output.bias.data.copy_(torch.tensor([0.6, 0.0, -9.0]))  # nobody is of class 2
    torch.manual_seed(1)
    images = 3 * torch.randn(30, 3, 32, 32)
    rows, counts = most_confident(model, images, per_class=12, batch_size=batch_size)
    model.eval()
    for parameter in model.class_output.parameters():
        parameter.data *= scale
    logits = model(images).double().detach()
    odds = logits - torch.stack(
        [logits[:, [1, 2]], logits[:, [0, 2]], logits[:, [0, 1]]], 1
    ).logsumexp(2)
    of_class: list[list[tuple[float, int]]] = [[], [], []]
    for i in range(30):
        y = int(logits[i].argmax())
        of_class[y].append((float(odds[i, y]), i))
    assert counts.tolist() == [len(members) for members in of_class]
    assert counts[0] > 12 > counts[1] > 0 == counts[2]  # a full row, a padded and an empty one
    for row, members in zip(rows.unflatten(0, (3, 12)), of_class, strict=True):
        chosen = [i for _, i in sorted(members, reverse=True)][:12]
        assert torch.equal(row[: len(chosen)], images[chosen])
        assert (row[len(chosen) :] == -1).all()

    labels, confidence = classified(model, images, batch_size)
    assert torch.equal(labels, logits.argmax(1))
    torch.testing.assert_close(confidence, odds.amax(1))


def test_chains_that_ran_away_are_counted() -> None:
    images = torch.rand(5, 3, 32, 32)
    check_finite(images, 10)
    images[1, 0, 3, 4], images[1, 2, 0, 0], images[3, 1, 1, 1] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(ValueError, match=r"^2 of 5 chains are .* after 10 steps: lower --sgld_lr"):
        check_finite(images, 10)


def test_pixels_come_back_from_the_scale_of_the_network() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(24)[: 2 * 32 * 32 * 3].view(2, 32, 32, 3)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
    odd = torch.tensor([-torch.inf, -1.2, torch.nan, 0.0, 1.003, torch.inf]).view(6, 1, 1, 1)
    assert to_uint8(odd.expand(6, 3, 2, 2))[:, 0, 0, 0].tolist() == [0, 0, 0, 128, 255, 255]


def test_a_labelled_grid_is_written_twice_and_wants_all_its_labels(tmp_path: Path) -> None:
    images = torch.rand(6, 3, 32, 32)
    words: dict[str, Any] = {"row_labels": ["cat", "dog"], "column_labels": ["0", "5", "10"]}
    paths = save_labelled_grid(images, tmp_path / "v1.5", xlabel="SGLD steps", **words)
    assert [path.name for path in paths] == ["v1.5.png", "v1.5.pdf"]
    assert paths[0].read_bytes()[:4] == b"\x89PNG" and paths[1].read_bytes()[:4] == b"%PDF"
    for wrong in ({"row_labels": ["cat"]}, {"columns": 2}):
        with pytest.raises(ValueError, match="labels for"):
            save_labelled_grid(images, tmp_path / "bad", **(words | wrong))
