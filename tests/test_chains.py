"""Refinement before an evaluation: what the images climb, and that batching changes nothing."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data import Split, batches, evaluation_batches, generator_of
from evaluation import chains
from evaluation.chains import refined
from losses import Chain, langevin
from models import EnergyClassifier, build


@pytest.fixture(scope="module")
def model() -> EnergyClassifier:
    torch.manual_seed(0)
    return build(depth=10, width=1, num_classes=3, norm="batch", dropout_rate=0.5).train()


def split_of(n: int) -> Split:
    numbers = np.random.default_rng(0)
    images = torch.from_numpy(numbers.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))
    return Split(images, torch.arange(n) % 3)


def batches_of(n: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return evaluation_batches(split_of(n), batch_size=batch_size, sigma=0.0)


def joined(pairs: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*pairs, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_no_steps_pass_the_batches_through(model: EnergyClassifier) -> None:
    given = list(batches_of(10, 4))
    passed = list(refined(model, given, chain=Chain(0, noise_std=1.0)))
    assert all(a is b for a, b in zip(passed, given, strict=True))


def test_results_do_not_depend_on_the_batches_that_come_in(model: EnergyClassifier) -> None:
    n = 23
    expected, labels = joined(refined(model, batches_of(n, n), chain=Chain(2, 50.0), block=10))
    assert len(expected) == n and torch.equal(labels, torch.arange(n) % 3)
    for size in (7, 10, 1, 15):
        out = list(refined(model, batches_of(n, size), chain=Chain(2, 50.0), block=10))
        assert [len(images) for images, _ in out] == [10, 10, 3]
        images, labels = joined(iter(out))
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
        assert torch.equal(labels, torch.arange(n) % 3)


def test_an_image_is_refined_alike_whatever_follows_it(model: EnergyClassifier) -> None:
    settings: dict[str, Any] = {"chain": Chain(3, noise_std=0.1), "block": 10}
    many, _ = joined(refined(model, batches_of(20, 6), **settings))
    few, _ = joined(refined(model, batches_of(13, 6), **settings))
    torch.testing.assert_close(few, many[:13], rtol=0, atol=1e-5)


def test_one_step_without_noise_is_the_gradient(model: EnergyClassifier) -> None:
    x, _ = joined(batches_of(6, 6))
    (refined_x, _), *_ = refined(model, [(x, x)], chain=Chain(1, 30.0, 0.0))
    model.eval()
    leaf = x.clone().requires_grad_(True)
    model.logits(leaf).logsumexp(1).sum().backward()
    model.train().zero_grad(set_to_none=True)
    assert leaf.grad is not None and (30 * leaf.grad).abs().max() > 0.01
    # Another batch and layout round otherwise, across LeakyReLU's kink: 1e-4 in 30 gradients.
    torch.testing.assert_close(refined_x, x + 30 * leaf.grad, rtol=0, atol=1e-3)


def test_noise_has_the_asked_size_and_differs_between_images_and_blocks(
    model: EnergyClassifier,
) -> None:
    x = torch.zeros(8, 3, 32, 32)
    given = [(x, torch.zeros(8))]
    settings: dict[str, Any] = {"chain": Chain(4, 0.0, 0.1), "block": 4}
    noise, _ = joined(refined(model, given, **settings))
    assert abs(noise.std() - 0.1 * 2) < 0.005  # four draws: variances add
    assert len({image.sum().item() for image in noise}) == 8
    again, _ = joined(refined(model, given, **settings))
    other, _ = joined(refined(model, given, seed=1, **settings))
    assert torch.equal(noise, again) and not torch.equal(noise, other)


def test_chains_have_a_generator_that_evaluation_noise_has_not(model: EnergyClassifier) -> None:
    streams = {chains.BUFFER, chains.ROUNDS, chains.FRESH, chains.REFINEMENT}
    assert len(streams) == 4 and streams.isdisjoint({batches._ORDER, batches._NOISE})

    x, y = joined(batches_of(8, 8))
    settings: dict[str, Any] = {"steps": 2, "step_size": 1.0, "noise_std": 0.1}
    moved, _ = joined(refined(model, [(x, y)], block=4, seed=5, chain=Chain(**settings)))
    model.eval()
    for i in range(2):
        generator = generator_of(torch.device("cpu"), 5, chains.REFINEMENT, i)
        end = langevin(model.log_px, x[4 * i : 4 * i + 4], generator=generator, **settings)
        # In another layout, so up to 1e-5 apart; with other noise it would be .1.
        torch.testing.assert_close(moved[4 * i : 4 * i + 4], end, rtol=0, atol=1e-4)
    model.train()


def test_model_and_random_state_stay_as_they_were(model: EnergyClassifier) -> None:
    model.f.bn1.eval()  # type: ignore[operator]
    model.class_output.bias.requires_grad_(False)
    images, _ = joined(batches_of(6, 6))

    def state() -> tuple[list[bool], list[Tensor]]:
        flags = [m.training for m in model.modules()]
        flags += [p.requires_grad for p in model.parameters()]
        tensors = [torch.get_rng_state(), images, *model.state_dict().values()]
        return flags, [tensor.detach().clone() for tensor in tensors]

    flags, tensors = state()
    moved = refined(model, [(images, images)] * 3, chain=Chain(2), block=6)
    for refined_images, _ in islice(moved, 2):  # and between two batches, and if it ends early
        assert not refined_images.requires_grad
        assert state()[0] == flags
    later_flags, later_tensors = state()
    assert later_flags == flags and all(map(torch.equal, tensors, later_tensors))
    assert all(p.grad is None for p in model.parameters())
