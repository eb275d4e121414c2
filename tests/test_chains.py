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
    """Nor an image's on what follows it."""
    settings: dict[str, Any] = {"chain": Chain(2, 50.0, 0.1), "block": 10}
    expected, _ = joined(refined(model, batches_of(23, 23), **settings))
    for n, size in ((23, 7), (23, 10), (23, 1), (13, 6)):
        out = list(refined(model, batches_of(n, size), **settings))
        assert [len(images) for images, _ in out] == [*(n // 10 * [10]), 3]
        images, labels = joined(iter(out))
        torch.testing.assert_close(images, expected[:n], rtol=0, atol=1e-5)
        assert torch.equal(labels, torch.arange(n) % 3)


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
