"""Each score against its formula, image by image, on a tiny network."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation import scores as module
from evaluation.scores import feature_bank, scores
from losses import Contrastive, ContrastScore, LogitQueue
from models import EnergyClassifier, build
from runs.names import SCORES

N, CLASSES = 23, 10


def network(**settings: Any) -> EnergyClassifier:
    """Build a network whose head spreads the logits as a trained head does."""
    torch.manual_seed(0)
    model = build(depth=10, width=1, num_classes=CLASSES, **settings)
    with torch.no_grad():
        model.class_output.weight.mul_(40)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> EnergyClassifier:
    return network()


def images(n: int = N, seed: int = 1) -> Tensor:
    """Draw images of 16 x 16 pixels, on which the network is faster."""
    return torch.empty(n, 3, 16, 16).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))


def batches(x: Tensor, size: int = 50) -> Iterator[tuple[Tensor, Tensor]]:
    """Split images into batches, with labels that no model has: no score may read them."""
    return ((part, torch.full((len(part),), 10**9)) for part in x.split(size))


def term(filled: int = 40, size: int = 64, **settings: Any) -> Contrastive:
    queue = LogitQueue(CLASSES, size)
    generator = torch.Generator().manual_seed(3)
    queue.enqueue(5 * torch.randn(filled, CLASSES, generator=generator))
    return Contrastive(ContrastScore(**settings), queue)


@torch.no_grad()
def test_scores_of_the_logits(model):
    values = scores(model, batches(images()), ["px", "py", "pxy", "entropy", "px_logits"])
    for n, logits in enumerate(model.logits(images()).double().tolist()):
        total = math.fsum(math.exp(logit) for logit in logits)
        q = [math.exp(logit) / total for logit in logits]
        expected = {"px": math.log(total), "px_logits": math.log(total), "pxy": max(logits)}
        expected |= {"py": max(q), "entropy": math.fsum(p * math.log(p) for p in q)}
        for name, value in expected.items():
            assert values[name][n] == pytest.approx(
                value, abs=1e-6 if name in ("py", "entropy") else 1e-5
            )
    assert values["entropy"].std() > 0.01 and values["py"].std() > 0.01


@pytest.mark.parametrize("uncond", [False, True])
def test_pxgrad_is_the_slope_of_log_px(uncond):
    """Along its own gradient log q(x) rises by the gradient's norm, by central differences."""
    model = network(uncond=uncond).double()
    values = scores(model, batches(images(3).double()), ["pxgrad"])["pxgrad"]
    for n, x in enumerate(images(3).double()[:, None]):
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(model.log_px(x).sum(), x)
        step = 1e-4 * gradient / gradient.norm()
        with torch.no_grad():
            slope = (model.log_px(x + step) - model.log_px(x - step)).item() / 2e-4
        assert values[n] == pytest.approx(-math.log(slope), abs=1e-4)


def test_pxgrad_of_a_flat_density_is_finite():
    model = network()
    torch.nn.init.zeros_(model.class_output.weight)
    values = scores(model, batches(images(3)), ["pxgrad"])["pxgrad"]
    assert np.isfinite(values).all() and (values > 80).all()


@pytest.mark.parametrize(
    ("filled", "settings"),
    [
        (40, {}),
        (64, {"kind": "eq13", "normalize": False}),
        (40, {"marginal": True}),
        (64, {"smoothing": 0.3}),
        (40, {"kind": "eq13", "smoothing": 0.1}),
    ],
)
@torch.no_grad()
def test_pxsim_is_log_k_minus_the_loss(model, filled, settings):
    """For y = argmax f(x), written out; K counts the filled slots alone."""
    contrastive = term(filled, **settings)
    queue = contrastive.memories["queue"].queue_logit.double()[:, :filled].T
    logits = model.logits(images()).double()
    values = scores(model, batches(images()), ["pxsim"], contrastive=contrastive)["pxsim"]

    def similarity(f: Tensor, y: int) -> float:
        u = f if settings.get("normalize") is False else f / f.norm()
        spread = settings.get("smoothing", 0.0)
        mark = torch.full((CLASSES,), spread / (CLASSES - 1), dtype=torch.float64)
        mark[y] = 1 - spread
        if settings.get("marginal"):
            mark[:] = 1
        eq13 = settings.get("kind") == "eq13"
        score = (mark * u.exp()).sum().log() if eq13 else (mark * u).logsumexp(0)
        return score.item() / 0.1

    for n in range(N):
        y = int(logits[n].argmax())
        positive = similarity(logits[n], y)
        negatives = [similarity(f, y) for f in queue]
        top = max([positive, *negatives])
        total = math.fsum(math.exp(s - top) for s in [positive, *negatives])
        loss = -positive + top + math.log(total)
        assert values[n] == pytest.approx(math.log(filled) - loss, abs=1e-4)


@pytest.mark.parametrize("largest", [2**25, 1])
@torch.no_grad()
def test_knn_is_minus_the_distance_to_the_kth_neighbour(model, largest, monkeypatch):
    """Also where images are compared with the bank one by one."""
    monkeypatch.setattr(module, "LARGEST", largest)
    bank = feature_bank(model, batches(images(30, seed=2), 7))
    expected = model.features(images(30, seed=2)).double()
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(bank.double(), expected, rtol=0, atol=1e-6)
    for k in (1, 5, 30):
        values = scores(model, batches(images()), ["knn"], bank=bank, k=k)["knn"]
        for n, z in enumerate(model.features(images()).double()):
            distances = sorted((z / z.norm() - row).norm().item() for row in expected)
            assert values[n] == pytest.approx(-distances[k - 1], abs=1e-6)
    # An image of the bank is its own neighbour, to six digits.
    values = scores(model, batches(images(30, seed=2)), ["knn"], bank=bank, k=1)["knn"]
    assert np.abs(values).max() < 1e-6


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_score_depends_on_no_other_score_and_on_no_batch(norm):
    """In float64, in which a pass that keeps a graph and a pass without agree."""
    model, x = network(norm=norm).double(), images().double()
    bank = feature_bank(model, batches(images(60, seed=2).double()))
    memories: dict[str, Any] = {"contrastive": term(), "bank": bank}
    together = scores(model, batches(x, 7), SCORES, **memories)
    assert list(together) == list(SCORES)
    for name in SCORES:
        alone = scores(model, batches(x), [name], **memories)[name]
        assert alone.dtype == np.float64 and alone.shape == (N,)
        np.testing.assert_allclose(alone, together[name], rtol=0, atol=1e-7)


def test_the_backbone_runs_once_and_with_a_gradient_for_pxgrad_alone(model):
    passes = []
    hook = model.f.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    bank = torch.eye(64)[:, : model.f.num_features]
    for names in (SCORES, [name for name in SCORES if name != "pxgrad"]):
        scores(model, batches(images(), 8), names, contrastive=term(), bank=bank, k=1)
    hook.remove()
    assert passes == [True] * 3 + [False] * 3


@torch.no_grad()
def test_scores_of_confident_images_differ():
    """q(y|x) = 1 - 1e-9 and 1 - 1e-12 are the same number in float32."""
    sharp, values = network(), []
    sharp.class_output.weight.zero_()
    for gap in (20.0, 28.0):
        sharp.class_output.bias.copy_(gap * torch.eye(CLASSES)[3])
        values.append(scores(sharp, batches(images(1)), ["py", "entropy"]))
    assert values[0]["py"][0] < values[1]["py"][0] < 1
    assert values[0]["entropy"][0] < values[1]["entropy"][0] < 0


@torch.no_grad()
def test_an_uncond_model_is_scored_by_both_heads():
    model, names = network(uncond=True), ["px", "px_logits", "pxy", "pxsim"]
    values = scores(model, batches(images()), names, contrastive=term())
    logits, log_px = model.logits(images()).double(), model.log_px(images()).double()
    expected = {"px": log_px, "px_logits": logits.logsumexp(1)}
    expected["pxy"] = log_px + logits.log_softmax(1).amax(1)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=0, atol=1e-5)
    alone = scores(model, batches(images()), ["pxy"])["pxy"]
    np.testing.assert_allclose(alone, expected["pxy"], rtol=0, atol=1e-5)
    of_logits = scores(network(), batches(images()), ["pxsim"], contrastive=term())["pxsim"]
    np.testing.assert_allclose(values["pxsim"], of_logits, rtol=0, atol=1e-4)
