"""Samples: the density that they climb, their starts, the slots that keep them, their noise."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data import batches, generator_of, to_float
from evaluation import sampling
from evaluation.sampling import (
    FRESH,
    REFINEMENT,
    ROUNDS,
    Sampler,
    Slots,
    check_finite,
    fresh_chains,
    most_confident,
    refined,
    sampling_rounds,
    to_uint8,
)
from losses import Chain, ReplayBuffer
from models import EnergyClassifier
from tests.test_sgld import Backbone

CLASSES, PER_CLASS = 3, 5
CHAIN = Chain(2, 20.0, 0.1)
STEEP = Chain(1, 50.0, 0.0)
GUIDED = replace(STEEP, guidance=0.2)
CPU = torch.device("cpu")


@pytest.fixture
def model() -> EnergyClassifier:
    torch.manual_seed(0)
    return EnergyClassifier(Backbone(3072, dropout=0.5), CLASSES).train()


def numbered() -> ReplayBuffer:
    """Slot i holds 10 + i everywhere, and no chain restarts."""
    buffer = ReplayBuffer(CLASSES * PER_CLASS, (3, 32, 32), 0.0, CLASSES)
    numbers = 10.0 + torch.arange(CLASSES * PER_CLASS)
    buffer.images.copy_(numbers[:, None, None, None].expand_as(buffer.images))
    return buffer


def uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.empty(n, 3, 32, 32).uniform_(-1, 1, generator=generator)


def climbed(
    model: EnergyClassifier,
    x: Tensor,
    y: Tensor | None,
    generator: torch.Generator | None = None,
    chain: Chain = STEEP,
) -> Tensor:
    """Climb log q(x), or for labels the density with the chain's guidance, in eval mode."""
    model.eval()
    density = model.log_px if y is None else lambda x: model.log_pxy(x, y, chain.guidance)
    end = chain.climb(density, x, generator)
    model.train()
    return end


@pytest.mark.parametrize("buffered", [False, True])
def test_pictures_climb_their_density_from_starts_of_the_seed(buffered, model):
    buffer = ReplayBuffer(60, (3, 32, 32), 0.05, CLASSES) if buffered else None

    def sampler(chain: Chain, seed: int = 3) -> Sampler:
        return Sampler(model, buffer, chain, seed=seed)

    start = sampler(Chain(0)).unconditional(4)
    assert not torch.equal(start, sampler(Chain(0), seed=4).unconditional(4))
    for run in (lambda s: s.unconditional(4), lambda s: s.conditional(CLASSES, 2)):
        assert torch.equal(run(sampler(CHAIN)), run(sampler(CHAIN)))  # no global random state
    torch.testing.assert_close(sampler(STEEP).unconditional(4), climbed(model, start, None))
    if not buffered:
        assert -1 <= start.min() < -0.99 and 0.99 < start.max() < 1
        assert abs(start.var() - 1 / 3) < 0.02

    start, end = (sampler(chain).conditional(CLASSES, 2) for chain in (Chain(0), STEEP))
    torch.testing.assert_close(end, climbed(model, start, torch.tensor([0, 0, 1, 1, 2, 2])))
    assert (end - start).abs().max() > 0.1
    descended = sampler(STEEP).conditional(CLASSES, 2, lambda x, y: -model.log_pxy(x, y))
    torch.testing.assert_close(descended - start, start - end, rtol=0, atol=1e-4)
    unguided = sampler(replace(STEEP, guidance=0.0)).conditional(CLASSES, 2)
    torch.testing.assert_close(unguided, climbed(model, start, None))
    half = sampler(replace(STEEP, guidance=0.5)).conditional(CLASSES, 2)
    torch.testing.assert_close(half, (end + unguided) / 2, rtol=0, atol=1e-4)  # one step is linear


def test_chains_start_from_slots_of_their_class(model):
    sampler = Sampler(model, numbered(), Chain(0), seed=0)
    slots = sampler.conditional(CLASSES, 4)[:, 0, 0, 0].long() - 10
    assert torch.equal(slots // PER_CLASS, torch.arange(CLASSES).repeat_interleave(4))
    assert len(set(slots.tolist())) == 12
    slots = sampler.unconditional(15)[:, 0, 0, 0].long() - 10
    assert sorted(slots.tolist()) == list(range(15))


def test_a_round_draws_climbs_and_stores(model):
    buffer, expected = numbered(), numbered()
    buffer.reinit_freq = expected.reinit_freq = 0.5
    generator, count = generator_of(CPU, 7, ROUNDS), 0
    for images in sampling_rounds(model, Slots(buffer), CHAIN, rounds=3, chains=4, seed=7):
        before = expected.images.clone()
        start, slots = expected.draw(4, generator=generator)
        end = climbed(model, start, None, generator, CHAIN)
        torch.testing.assert_close(images, end)
        expected.images[slots] = end
        torch.testing.assert_close(buffer.images, expected.images)
        changed = (buffer.images != before).flatten(1).any(1).nonzero()[:, 0]
        assert torch.equal(changed, slots.sort()[0])
        count += 1
    assert count == 3


@pytest.mark.parametrize("chains", [2, 7, 15])
def test_conditional_rounds_use_and_fill_slots_of_their_class(chains, model):
    buffer, labels = numbered(), torch.arange(chains) % CLASSES
    settings: dict[str, Any] = {"rounds": 1, "chains": chains, "seed": 0, "conditional": True}
    (start,) = sampling_rounds(model, Slots(buffer), Chain(0), **settings)
    slots = start[:, 0, 0, 0].long() - 10
    assert torch.equal(slots // PER_CLASS, labels) and len(set(slots.tolist())) == chains
    assert torch.equal(buffer.images, numbered().images)

    (end,) = sampling_rounds(model, Slots(buffer), GUIDED, **settings)
    torch.testing.assert_close(end, climbed(model, start, labels, chain=GUIDED))
    assert (end - start).abs().max() > 0.01
    assert torch.equal(buffer.images[slots], end)
    undrawn = torch.ones(len(buffer.images), dtype=torch.bool).index_fill(0, slots, False)
    assert torch.equal(buffer.images[undrawn], numbered().images[undrawn])


class Rising(nn.Module):
    """log q(x) = log q(x, y) = sum of the pixels: a chain rises by its step size each step."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def log_px(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1).sum(1)

    def log_pxy(self, x: Tensor, y: Tensor, guidance: float = 1.0) -> Tensor:
        return self.log_px(x) + guidance * y


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("reinit_freq", [0.0, 0.4])
def test_slots_keep_the_start_of_their_present_chain(conditional, reinit_freq):
    buffer = ReplayBuffer(24, (3, 4, 4), reinit_freq, 3)
    buffer.images.copy_((100.0 + torch.arange(24))[:, None, None, None].expand(24, 3, 4, 4))
    first, slots = buffer.images.clone(), Slots(buffer)
    settings: dict[str, Any] = {"rounds": 9, "chains": 6, "seed": 0, "conditional": conditional}
    list(sampling_rounds(Rising(), slots, Chain(1, 0.5, 0.0), **settings))
    risen = (buffer.images - slots.starts).flatten(1)
    turns = (risen / 0.5).round()
    torch.testing.assert_close(risen, 0.5 * turns, rtol=0, atol=1e-5)
    assert (turns == turns[:, :1]).all() and (turns[:, 0] > 0).equal(slots.drawn)
    kept = (slots.starts == first).flatten(1).all(1)
    assert slots.starts[~kept].abs().amax().item() <= 1 if reinit_freq else kept.all()
    assert turns[:, 0].sum() == 9 * 6 if not reinit_freq else turns[~kept].max() > 1


@pytest.mark.parametrize("conditional", [False, True])
def test_fresh_chains_depend_on_the_generator_of_their_batch(conditional, model):
    """A chain's images depend neither on later chains nor on later steps."""
    labels, guided = torch.arange(8) % 3 if conditional else None, replace(CHAIN, guidance=0.2)

    def run(n: int, steps: int, seen: list[int]) -> list[Tensor]:
        y = None if labels is None else labels[:n]
        chain = replace(guided, steps=steps)
        batches = fresh_chains(model, chain, range(0, n, 4), seen=seen, seed=2, labels=y)
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    start, end = run(8, 2, [0, 2])
    for i in range(2):
        generator, batch = generator_of(CPU, 2, FRESH, i), slice(4 * i, 4 * i + 4)
        y = None if labels is None else labels[batch]
        assert torch.equal(start[batch], uniform(4, generator))
        expected = climbed(model, start[batch], y, generator, guided)
        torch.testing.assert_close(end[batch], expected)
    assert all(map(torch.equal, run(8, 3, [0, 2]), (start, end)))
    few = run(6, 3, [0, 2, 3])
    assert torch.equal(few[0], start[:6]) and not torch.equal(few[1], few[2])
    torch.testing.assert_close(few[1], end[:6])


def test_the_noise_of_a_refined_image_belongs_to_its_index(model, monkeypatch):
    """Each kind of noise has a stream that no other kind has."""
    streams = {sampling.BUFFER, ROUNDS, FRESH, REFINEMENT, sampling.INVERSE}
    assert len(streams) == 5 and streams.isdisjoint({batches._ORDER, batches._NOISE})
    monkeypatch.setattr(sampling, "EVAL_NOISE_BLOCK", 4)
    # Noise --sigma may have taken them out of [-1, 1].
    x, y = 1.5 * uniform(8, torch.Generator().manual_seed(0)), torch.arange(8)
    blocks = [(x[:4], y[:4]), (x[4:], y[4:])]
    whole = list(refined(model, blocks, CHAIN, seed=5))
    for i, (images, labels) in enumerate(whole):
        assert torch.equal(labels, blocks[i][1])
        # In another layout, so up to 1e-5 apart; with other noise it would be .1.
        end = climbed(model, blocks[i][0], None, generator_of(CPU, 5, REFINEMENT, i), CHAIN)
        torch.testing.assert_close(images, end, rtol=0, atol=1e-4)
    ((images, _),) = refined(model, [(x[4:7], y[4:7])], CHAIN, seed=5, first=1)
    torch.testing.assert_close(images, whole[1][0][:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 60])  # 60: many q(y|x) are 1
def test_images_are_sorted_by_confidence_within_their_class(scale, model):
    model.class_output.bias.data.copy_(torch.tensor([0.6, 0.0, -9.0]))  # no image is of class 2
    for parameter in model.class_output.parameters():
        parameter.data *= scale
    images = 3 * torch.randn(30, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    order = most_confident(model, images, batch_size=4)
    logits = model.eval()(images).double().detach()
    expected: list[list[tuple[float, int]]] = [[], [], []]
    for i, row in enumerate(logits):
        y = int(row.argmax())
        expected[y].append((-float(row[y] - row[torch.arange(3) != y].logsumexp(0)), i))
    assert [o.tolist() for o in order] == [[i for _, i in sorted(of)] for of in expected]
    assert len(order[0]) > len(order[1]) > 0 == len(order[2])


def test_chains_that_ran_away_are_counted():
    images = torch.rand(5, 3, 32, 32)
    check_finite(images, 10)
    images[1, 0, 3, 4], images[1, 2, 0, 0], images[3, 1, 1, 1] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(ValueError, match=r"^2 of 5 chains are .* after 10 steps: lower --sgld_lr"):
        check_finite(images, 10)


def test_pixels_come_back_from_the_scale_of_the_network():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(24)[: 2 * 32 * 32 * 3].view(2, 32, 32, 3)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
    odd = torch.tensor([-torch.inf, -1.2, torch.nan, 0.0, 1.003, torch.inf]).view(6, 1, 1, 1)
    assert to_uint8(odd.expand(6, 3, 2, 2))[:, 0, 0, 0].tolist() == [0, 0, 0, 128, 255, 255]
