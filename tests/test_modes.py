"""Modes, chains, scores and attacks leave a model in its earlier state."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluation import sampling
from evaluation.classification import classification, predictions
from evaluation.generation import model_extractor, read
from evaluation.robustness import PGD, classifier, robust_accuracy
from evaluation.scores import feature_bank, scores
from losses import Chain, Contrastive, ContrastScore, LogitQueue, ReplayBuffer
from losses.sgld import langevin
from models import (
    EnergyClassifier,
    batch_statistics_only,
    build,
    eval_mode,
    sampling_mode,
    scoring_mode,
)
from runs.names import SCORES


def mixed() -> EnergyClassifier:
    """Return a model in train mode, with a stage in eval mode and a parameter without gradient."""
    model = build(depth=10, width=1, norm="batch", dropout_rate=0.3).train()
    model.f.layer2.eval()
    model.f.conv1.weight.requires_grad_(False)
    return model


def state(model: nn.Module) -> tuple[list[bool], list[bool], list[object]]:
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [getattr(module, "track_running_stats", None) for module in model.modules()],
    )


MODES = [
    *(eval_mode, sampling_mode, batch_statistics_only, scoring_mode),
    *(partial(sampling_mode, statistics="batch"), partial(scoring_mode, statistics="running")),
]


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_restores_the_model_also_after_an_interruption(mode):
    model = mixed()
    before = state(model)
    assert len(set(before[0])) == len(set(before[1])) == 2
    with suppress(KeyboardInterrupt), mode(model):
        assert state(model) != before
        raise KeyboardInterrupt
    assert state(model) == before


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {n: t.clone() for n, t in model.state_dict().items() if n.endswith(names)}


@pytest.mark.parametrize("mode", [sampling_mode, scoring_mode])
@pytest.mark.parametrize("statistics", ["jem", "batch", "running", "frozen"])
def test_batch_norm_takes_batch_or_running_statistics_and_moves_none(mode, statistics):
    """Dropout depends on the mode alone, whatever batch norm does."""
    model = build(depth=10, width=1, norm="batch").train()
    model(torch.randn(8, 3, 32, 32))
    before, x = statistics_of(model), torch.randn(4, 3, 32, 32) * 3 + 1
    with eval_mode(model):
        by_running = model(x)
        with batch_statistics_only(model):  # nothing is in train mode
            assert torch.equal(model(x), by_running)
    with batch_statistics_only(model):
        by_batch = model(x)
    assert not torch.allclose(by_batch, by_running)
    of_batch = statistics == "batch" or (mode is scoring_mode and statistics == "jem")
    with mode(model, statistics):
        torch.testing.assert_close(model(x), by_batch if of_batch else by_running)
        assert model.f.training is (mode is scoring_mode)
    assert all(torch.equal(before[name], t) for name, t in statistics_of(model).items())
    torch.testing.assert_close(by_batch, model(x))  # as in train mode, which moves statistics
    assert not any(before[name].equal(t) for name, t in statistics_of(model).items())


def test_a_chain_between_forward_and_backward_pass_changes_no_gradient():
    model, images = build(depth=10, width=1), torch.rand(2, 3, 32, 32)
    model.amp = True

    def gradients(chain: bool) -> list[Tensor]:
        model.zero_grad()
        loss = model.log_px(images).sum()
        if chain:
            with sampling_mode(model):
                langevin(model.log_px, images, steps=2, step_size=1.0, noise_std=0.01)
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, with_chain = gradients(False), gradients(True)
    assert len(plain) == len(with_chain) and all(map(torch.equal, plain, with_chain))


CHAIN = Chain(2, 20.0, 0.1)


def sampled(model: EnergyClassifier, x: Tensor, y: Tensor) -> None:
    with torch.random.fork_rng():
        buffer = ReplayBuffer(20, (3, 32, 32), 0.5, 10)
    images = buffer.images.clone()
    for source in (buffer, None):
        sampler = sampling.Sampler(model, source, CHAIN, seed=0)
        sampler.unconditional(4)
        sampler.conditional(10, 1)
    assert buffer.images.equal(images) and buffer.staged == []  # a Sampler only reads it
    slots, rounds = sampling.Slots(buffer), {"rounds": 2, "chains": 4, "seed": 0}
    for conditional in (False, True):
        list(sampling.sampling_rounds(model, slots, CHAIN, **rounds, conditional=conditional))
    for pair in sampling.fresh_chains(model, CHAIN, range(0, 3, 2), seen=[0, 2], seed=0):
        sampling.most_confident(model, torch.cat(pair))


def refined(model: EnergyClassifier, x: Tensor, y: Tensor) -> None:
    before = state(model)
    for images, _ in sampling.refined(model, [(x, y)] * 2, CHAIN, seed=0):
        assert not images.requires_grad and state(model) == before  # between two blocks, too


def scored(model: EnergyClassifier, x: Tensor, y: Tensor) -> None:
    bank, term = feature_bank(model, [(x, y)]), Contrastive(ContrastScore(), LogitQueue(10, 8))
    scores(model, [(x, y)], SCORES, contrastive=term, bank=bank, k=3)
    assert not bank.requires_grad


def attacked(model: EnergyClassifier, x: Tensor, y: Tensor, gradient: str, steps: int) -> None:
    random = torch.Generator()
    classify = classifier(model, Chain(steps), gradient=gradient, copies=2, generator=random)
    with torch.no_grad():
        right = classify(x / 2 + 0.5).argmax(1)
    robust_accuracy(classify, [(x, right)], [PGD("Linf", 2)], [0.1], generator=random)


MEASURES: dict[str, Callable[[EnergyClassifier, Tensor, Tensor], Any]] = {
    "samples": sampled,
    "refined images": refined,
    "scores": scored,
    "classification": lambda model, x, y: classification(model, [(x, y)]),
    "predictions": lambda model, x, y: predictions(model, [(x, y)]),
    "features": lambda model, x, y: read(sampling.to_uint8(x), model_extractor(model)),
    "attack": partial(attacked, gradient="full", steps=0),
    "attack through the chain": partial(attacked, gradient="full", steps=2),
    "attack past the chain": partial(attacked, gradient="identity", steps=2),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_restores_the_model(name):
    """It changes neither the random state nor the images, and no gradient stays."""
    model, x, y = mixed(), torch.rand(4, 3, 16, 16) * 2 - 1, torch.arange(4)
    before, tensors = state(model), {n: t.clone() for n, t in model.state_dict().items()}
    images, random = x.clone(), torch.get_rng_state()
    MEASURES[name](model, x, y)
    assert torch.get_rng_state().equal(random)
    assert state(model) == before and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensors[n], t) for n, t in model.state_dict().items())
    assert x.equal(images) and not x.requires_grad and x.grad is None
