"""Classifiers under attack, against closed forms, and finite differences."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from evaluation import robustness
from evaluation.robustness import (
    PGD,
    Classifier,
    classifier,
    pixels,
    refined_classifier,
    robust_accuracy,
)
from losses import Chain
from models import EnergyClassifier

CLASSES, SHAPE = 5, (3, 4, 4)
SGLD: dict[str, Any] = {"chain": Chain(3, 0.4, 0.05), "copies": 4, "sigma": 0.1}


class Backbone(nn.Module):
    """Images of any size -> features (N, 8): smooth, and strongly curved."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Dropout(0.5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


def model_of(dtype: torch.dtype = torch.float64) -> EnergyClassifier:
    """In train mode, in which its batch norm and its dropout would spoil every answer."""
    torch.manual_seed(0)
    model = EnergyClassifier(Backbone(), CLASSES).to(dtype)  # type: ignore[arg-type]
    nn.init.normal_(model.class_output.weight, std=8)
    return model.train()


def images(n: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Pixels within [.3, .7]: no attack of these tests reaches 0 or 1 from there."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=generator, dtype=dtype)


def generator_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def answers(classify: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return classify(x).argmax(1)


def loss_gradient(classify: Classifier, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(classify(x), y, reduction="sum"), x)[0]


# ---------------------------------------------------------------------------- the classifiers


def test_pixels_are_the_images_as_bytes_over_255() -> None:
    x01 = torch.arange(256).float() / 255
    ((result, labels),) = pixels([(torch.arange(256).float() / 127.5 - 1, torch.tensor(3))])
    torch.testing.assert_close(result, x01, rtol=0, atol=1e-7)
    assert result.min() == 0 and result.max() == 1 and labels == 3


def test_the_gradient_goes_through_the_scaling() -> None:
    model, x, y, h = model_of(), images(3), torch.arange(3), 1e-6
    direction = torch.randn(x.shape, generator=generator_of(), dtype=x.dtype)

    def loss(x01: Tensor) -> Tensor:
        with torch.no_grad(), models.eval_mode(model):
            return F.cross_entropy(model.logits(x01 * 2 - 1), y, reduction="sum")

    slope = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    gradient = loss_gradient(classifier(model), x, y)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("gradient", ["full", "identity"])
def test_refined_logits_are_the_mean_over_copies_that_climb(gradient: str) -> None:
    """Against a loop over images and steps that draws the same noise."""
    model, x, noise = model_of(), images(2), generator_of(7)
    refine = refined_classifier(model, **SGLD, gradient=gradient, generator=generator_of(7))
    result = refine(x.requires_grad_())
    chains = torch.stack([2 * x.detach()[i // 4] - 1 for i in range(8)])
    chains = chains.contiguous(memory_format=torch.channels_last)
    chains += 0.1 * torch.empty_like(chains).normal_(generator=noise)
    with models.eval_mode(model):
        for _ in range(3):
            slopes = []
            for chain in chains:
                chain = chain[None].clone().requires_grad_()
                slopes.append(torch.autograd.grad(model.log_px(chain).sum(), chain)[0])
            step = torch.randn(chains.shape, generator=noise, dtype=chains.dtype)
            chains = chains + 0.4 * torch.cat(slopes) + 0.05 * step
        expected = torch.stack([model.logits(chains[4 * i : 4 * i + 4]).mean(0) for i in (0, 1)])
    torch.testing.assert_close(result, expected)
    assert (expected - classifier(model)(x)).abs().max() > 0.1  # they did climb


def check_full_gradient(model: EnergyClassifier, x: Tensor, sgld: dict[str, Any]) -> None:
    y, h = torch.arange(len(x)), 1e-6
    direction = torch.randn(x.shape, generator=generator_of(3), dtype=x.dtype)

    def refine(gradient: str = "full") -> Classifier:  # with the same noise every time
        return refined_classifier(model, **sgld, gradient=gradient, generator=generator_of())

    def loss(x01: Tensor) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(refine()(x01), y, reduction="sum")

    slope = (loss(x + h * direction) - loss(x - h * direction)) / (2 * h)
    full, identity = (
        (loss_gradient(refine(gradient), x, y) * direction).sum()
        for gradient in ("full", "identity")
    )
    torch.testing.assert_close(full, slope, rtol=1e-5, atol=0)
    assert abs(identity - slope) > 0.01 * abs(slope)


@pytest.mark.parametrize("clamps", [{}, {"grad_clip": 0.2}, {"clamp": True}])
def test_the_full_gradient_is_that_of_finite_differences(clamps: dict[str, Any]) -> None:
    model = model_of()
    check_full_gradient(model, images(3), SGLD | {"chain": replace(SGLD["chain"], **clamps)})


@pytest.mark.parametrize("clamps", [{"grad_clip": 0.05}, {"clamp": True}])
def test_both_gradients_are_of_the_same_chain(clamps: dict[str, Any]) -> None:
    """The chain that is differentiated is the sampler's, and its clamps change it."""
    model, x = model_of(), images(3).requires_grad_()
    chain, ends = replace(SGLD["chain"], step_size=30.0, **clamps), []
    for gradient, each in (("full", chain), ("identity", chain), ("full", SGLD["chain"])):
        settings = SGLD | {"chain": each, "gradient": gradient}
        ends.append(refined_classifier(model, **settings, generator=generator_of())(x))
    torch.testing.assert_close(ends[0], ends[1])
    assert (ends[0] - ends[2]).abs().max() > 1e-3


def test_the_full_gradient_of_a_wide_resnet_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    model = models.build(depth=10, width=1, num_classes=4).double()
    nn.init.normal_(model.class_output.weight)
    x = torch.rand(2, 3, 8, 8, generator=generator_of(), dtype=torch.float64)
    check_full_gradient(model, x, {"chain": Chain(2, 3.0), "copies": 2})


def test_the_identity_gradient_is_that_at_the_end_of_the_chain() -> None:
    model, x, y = model_of(), images(3), torch.arange(3)
    chain = Chain(2, 0.4, 0.05)
    refine = refined_classifier(
        model, chain=chain, copies=1, gradient="identity", generator=generator_of(5)
    )
    with models.sampling_mode(model):
        start = (2 * x - 1).contiguous(memory_format=torch.channels_last)
        end = chain.climb(model.log_px, start, generator_of(5))
    expected = loss_gradient(classifier(model), (end + 1) / 2, y)
    torch.testing.assert_close(loss_gradient(refine, x, y), expected)


def test_the_chain_is_differentiated_only_where_a_gradient_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, asked = model_of(), images(2), []
    grad = torch.autograd.grad

    def spy(*args: Any, **settings: Any) -> Any:
        asked.append(settings.get("create_graph", False))
        return grad(*args, **settings)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    wanted, free = x.clone().requires_grad_(), x
    for gradient, shown, expected in (("full", wanted, True), ("identity", wanted, False)):
        refine = refined_classifier(model, **SGLD, gradient=gradient, generator=generator_of())
        assert refine(shown).requires_grad and asked == [expected] * 3
        asked.clear()
        assert not refine(free).requires_grad and asked == [False] * 3
        asked.clear()
        with torch.no_grad():
            assert not refine(shown).requires_grad and asked == [False] * 3
        asked.clear()


def test_without_steps_nothing_is_refined() -> None:
    model, x = model_of(), images(3)
    refine = refined_classifier(model, **SGLD | {"chain": Chain(0)}, generator=generator_of())
    assert torch.equal(refine(x), classifier(model)(x))


@pytest.mark.parametrize(
    ("refine", "training"), [(None, True), ("full", True), ("identity", False)]
)
def test_an_attack_leaves_the_model_as_it_was(refine: str | None, training: bool) -> None:
    model, x = model_of().train(training), images(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    classify = classifier(model)
    if refine:
        classify = refined_classifier(model, **SGLD, gradient=refine, generator=generator_of())
    robust_accuracy(classify, [(x, answers(classify, x))], PGD("Linf", 2), [0.1])
    assert all(module.training is training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------- robust accuracy


def linear(dtype: torch.dtype = torch.float64, n: int = 24) -> tuple[Classifier, Tensor, Tensor]:
    """A linear classifier with two classes, images and labels of which one is wrong."""
    weight = torch.randn(2, 48, generator=generator_of(2), dtype=dtype)
    bias = torch.tensor([0.05, -0.05], dtype=dtype) - 0.5 * weight.sum(1)  # 0 at mid-grey

    def classify(x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), weight, bias)

    x = images(n, dtype=dtype)
    y = answers(classify, x)
    y[0] = 1 - y[0]
    return classify, x, y


@pytest.mark.parametrize(("distance", "dual"), [("Linf", 1), ("L2", 2)])
@pytest.mark.parametrize("start", [{}, {"restarts": 3}, {"random_init": True}])
def test_a_linear_model_is_as_robust_as_its_closed_form(
    distance: str, dual: int, start: dict[str, Any]
) -> None:
    """The smallest change that breaks it is margin / ||w_y - w_c||, in the dual norm."""
    classify, x, y = linear()
    logits = classify(x)
    margin = logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])
    zero = classify(torch.zeros_like(x[:1]))
    columns = torch.stack([classify(e.view(1, *SHAPE)) - zero for e in torch.eye(48).double()])
    breaks = margin.squeeze(1) / (columns[:, 0, 0] - columns[:, 0, 1]).norm(dual)
    limits = breaks[breaks > 0].sort().values
    widest = (limits[1:] / limits[:-1]).topk(6).indices  # 40 steps come within 1% of the ball's end
    radii = ((limits[1:] + limits[:-1]) / 2)[widest].sort().values.tolist()
    batches = [(x[:10], y[:10]), (x[10:], y[10:])]
    rows = robust_accuracy(classify, batches, PGD(distance, **start), radii)
    expected = [(breaks > eps).double().mean().item() for eps in radii]
    assert [row["accuracy"] for row in rows] == pytest.approx(expected)
    assert 0 < expected[-1] < expected[0] < 1 and breaks.max() < 3


@pytest.mark.parametrize("distance", ["Linf", "L2"])
def test_accuracy_starts_clean_and_only_falls(distance: str) -> None:
    classify, x = classifier(model_of()), images(40)
    y = answers(classify, x)
    y[:8] = (y[:8] + 1) % CLASSES
    rows = robust_accuracy(
        classify,
        [(x[:30], y[:30]), (x[30:], y[30:])],
        PGD(distance, 5),
        [0.5, 0.02, 0, 0.1, 0.02],
    )
    accuracies = [row["accuracy"] for row in rows]
    assert [row["eps"] for row in rows] == [0, 0.02, 0.1, 0.5]
    assert accuracies[0] == 32 / 40 and accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] < accuracies[0]
    assert robust_accuracy(classify, [], PGD(distance), [0.1]) == []


def test_an_image_counts_only_where_no_restart_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run r of a radius breaks image r alone; survivors are attacked further, and nothing else."""
    seen: list[tuple[float, bool, list[float]]] = []

    def attack(classify: Classifier, x: Tensor, y: Tensor, **settings: Any) -> Tensor:
        ids = x[:, 0, 0, 0]
        seen.append((settings["eps"], settings["random_init"], ids.tolist()))
        return torch.where((ids == ids.min())[:, None, None, None], torch.zeros_like(x), x)

    monkeypatch.setattr(robustness, "pgd", attack)
    x = (torch.arange(1.0, 6.0) / 8)[:, None, None, None].expand(5, *SHAPE)
    rows = robust_accuracy(
        lambda x: torch.stack([x.sum((1, 2, 3)), x.new_full((len(x),), 0.1)], 1),  # 0s are wrong
        [(x, torch.tensor([1, 0, 0, 0, 0]))],  # the first is wrong from the start
        PGD("Linf", restarts=2),
        [0, 0.1, 0.2],
    )
    assert [row["accuracy"] for row in rows] == [4 / 5, 2 / 5, 0]
    assert [(eps, random, len(ids)) for eps, random, ids in seen] == [
        (0.1, False, 4),
        (0.1, True, 3),
        (0.2, False, 2),
        (0.2, True, 1),
    ]
