"""Attacks and the classifiers that they attack, compared with definitions, closed forms, finite
differences and torchattacks; AutoAttack compared with PGD."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from evaluation import NotFinite, robustness
from evaluation.classification import log_odds_against
from evaluation.robustness import PGD, AutoAttack, Classifier, classifier, robust_accuracy
from losses import Chain
from models import EnergyClassifier
from runs.cli import UsageError

CLASSES, SHAPE = 5, (3, 5, 5)
BALLS = [("Linf", 0.05), ("L2", 0.3)]
SGLD: dict[str, Any] = {"chain": Chain(3, 0.4, 0.05), "copies": 4, "sigma": 0.1}


def generator_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def answers(classify: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return classify(x).argmax(1)


def backbone(*, noisy: bool = False) -> nn.Sequential:
    """Return a smooth, strongly curved map from images of any size to features (N, 8)."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8) if noisy else nn.Identity()]
    layers += [nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5 * noisy)]
    network = nn.Sequential(*layers)
    network.num_features = 8
    return network


@pytest.fixture
def model() -> EnergyClassifier:
    """A model in train mode, in which its batch norm and its dropout would spoil every answer."""
    model = EnergyClassifier(backbone(noisy=True), CLASSES).double()
    nn.init.normal_(model.class_output.weight, std=8)
    return model.train()


def images(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw pixels within [.3, .7]: no attack of these tests reaches 0 or 1 from there."""
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=generator_of(1), dtype=dtype)


def loss(classify: Classifier, x: Tensor) -> Tensor:
    return F.cross_entropy(classify(x), torch.arange(len(x)), reduction="sum")


def loss_gradient(classify: Classifier, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(classify, x), x)[0]


def pgds(distance: str, steps: int = 40, restarts: int = 1, random_init: bool = False) -> list[PGD]:
    return [PGD(distance, steps, random_init=random_init or run > 0) for run in range(restarts)]


@pytest.mark.parametrize("gradient", ["full", "identity"])
def test_refined_logits_are_the_mean_over_copies_that_climb(gradient, model):
    """Compare with a loop over images and steps that draws the same noise."""
    x, noise = images(2), generator_of(7)
    refine = classifier(model, **SGLD, gradient=gradient, generator=generator_of(7))
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
    plain = classifier(model)(x)
    assert (expected - plain).abs().max() > 0.1  # they did climb
    assert torch.equal(classifier(model, Chain(0), sigma=0.1)(x), plain)


def assert_full_gradient(model: EnergyClassifier, x: Tensor, sgld: dict[str, Any]) -> None:
    """Compare with finite differences, with the same noise for both."""
    direction, h = torch.randn(x.shape, generator=generator_of(3), dtype=x.dtype), 1e-6

    def refine(gradient: str = "full") -> Classifier:
        return classifier(model, **sgld, gradient=gradient, generator=generator_of())

    with torch.no_grad():
        slope = loss(refine(), x + h * direction) - loss(refine(), x - h * direction)
    full, identity = (
        (loss_gradient(refine(gradient), x) * direction).sum() for gradient in ("full", "identity")
    )
    torch.testing.assert_close(full, slope / (2 * h), rtol=1e-5, atol=0)
    assert not sgld or abs(identity - full) > 0.01 * abs(full)


@pytest.mark.parametrize("clamps", [None, {}, {"grad_clip": 0.2}, {"clamp": True}])
def test_the_full_gradient_is_that_of_finite_differences(clamps, model):
    sgld = {} if clamps is None else SGLD | {"chain": replace(SGLD["chain"], **clamps)}
    assert_full_gradient(model, images(3), sgld)


def test_the_full_gradient_of_a_wide_resnet_is_that_of_finite_differences():
    torch.manual_seed(0)
    model = models.build(depth=10, width=1, num_classes=4).double()
    nn.init.normal_(model.class_output.weight)
    x = torch.rand(2, 3, 8, 8, generator=generator_of(), dtype=torch.float64)
    assert_full_gradient(model, x, {"chain": Chain(2, 3.0), "copies": 2})


def test_the_identity_gradient_is_that_at_the_end_of_the_chain(model):
    x, chain = images(3), Chain(2, 0.4, 0.05)
    refine = classifier(model, chain, copies=1, gradient="identity", generator=generator_of(5))
    with models.sampling_mode(model):
        start = (2 * x - 1).contiguous(memory_format=torch.channels_last)
        end = chain.climb(model.log_px, start, generator_of(5))
    expected = loss_gradient(classifier(model), (end + 1) / 2)
    torch.testing.assert_close(loss_gradient(refine, x), expected)


def network(dtype: torch.dtype = torch.float64) -> EnergyClassifier:
    model = EnergyClassifier(backbone(), CLASSES)
    nn.init.normal_(model.class_output.weight, std=30)
    with torch.no_grad():  # no class is far ahead of the others on all images
        model.class_output.bias.copy_(-model(images(64, torch.float32)).mean(0))
    return model.to(dtype)


@pytest.mark.parametrize(("distance", "eps"), BALLS)
@pytest.mark.parametrize("random_init", [True, False])
def test_an_attack_depends_on_no_other_image_and_a_random_start_on_the_generator(
    distance, eps, random_init
):
    classify, x, attack = network(), images(4), PGD(distance, 8, random_init=random_init)
    y, still = answers(classify, x), PGD(distance, 8)
    many = still(classify, x, y, eps=eps)
    torch.testing.assert_close(still(classify, x[2:3], y[2:3], eps=eps), many[2:3])
    assert torch.equal(still(classify, x, y, eps=0), x)
    a, b, c = (attack(classify, x, y, eps=eps, generator=generator_of(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b) and torch.equal(a, c) is not random_init


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("margin", [0, 10, 17, 100, 200])
def test_the_gradient_has_cross_entropy_s_direction_at_every_margin(margin, classes):
    """Compare float32 with cross-entropy in float64; the label leads by `margin`."""
    logits = torch.randn(8, classes, generator=generator_of())
    y = torch.arange(8) % classes
    best = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    logits.scatter_(1, y[:, None], (best + margin)[:, None])
    (gradient,) = torch.autograd.grad(log_odds_against(logits.requires_grad_(), y).sum(), logits)
    exact = logits.detach().double().softmax(1)
    exact.scatter_(1, y[:, None], 0)  # the label's part is q(y|x) - 1, which float64 rounds to 0
    exact.scatter_(1, y[:, None], -exact.sum(1, keepdim=True))
    exact /= exact.norm(dim=1, keepdim=True)
    assert (F.normalize(gradient.double()) * exact).sum(1).min() > 0.9999


@pytest.mark.parametrize(("distance", "eps"), BALLS)
@pytest.mark.parametrize("random_init", [True, False])
def test_attacks_keep_to_the_ball_and_to_the_pixels(distance, eps, random_init):
    """In float32, from images that touch 0 and 1, with steps far beyond the ball."""
    classify, attack = network(torch.float32), PGD(distance, 3, 3 * eps, random_init)
    x = torch.rand(8, 3, 32, 32, generator=generator_of()).mul(2).sub(0.5).clamp(0, 1)
    (row,) = robust_accuracy(classify, [(2 * x - 1, answers(classify, x))], [attack], [eps])
    assert row["accuracy"] < 1


def test_the_check_allows_for_the_rounding_of_a_large_ball():
    """Radius 3 of 224 x 224 pixels is usual, and the float32 norm is 3e-6 off."""
    x = torch.full((4, 3, 224, 224), 0.5)
    moved = x + 0.02 * torch.randn(x.shape, generator=generator_of())
    adversarial = robustness._projected(x, moved, "L2", 3.0)
    robustness.check_perturbation(x, adversarial, "L2", 3.0)
    with pytest.raises(AssertionError, match="3 is allowed"):
        robustness.check_perturbation(x, x + 1.0001 * (adversarial - x), "L2", 3.0)


@pytest.mark.parametrize(("distance", "eps"), BALLS)
@pytest.mark.parametrize("fault", ["ball", "range", "nan"])
def test_an_image_beyond_the_ball_or_the_pixels_raises(monkeypatch, distance, eps, fault):
    wrong = {"ball": 1.2 * eps, "range": -0.05 * eps, "nan": float("nan")}[fault]
    monkeypatch.setattr(robustness, "_projected", lambda x, moved, distance, eps: x + wrong)
    classify, x = network(), images(2)
    x[0, 0, 0, 0] = 0
    error, message = AssertionError, f"in {distance} from its original, {eps} is allowed"
    if fault == "nan":
        error, message = NotFinite, "image is not finite"
    with pytest.raises(error, match=message):
        robust_accuracy(classify, [(2 * x - 1, answers(classify, x))], pgds(distance, 2), [eps])


@pytest.mark.parametrize(("distance", "eps"), BALLS)
def test_random_starts_fill_the_ball_evenly(distance, eps):
    x = torch.full((4000, 3, 1, 1), 0.5, dtype=torch.float64)
    offset = robustness._random_offset(x, distance, eps, generator_of()).flatten(1) / eps
    if distance == "Linf":
        assert offset.abs().max() <= 1 and abs(offset.var() - 1 / 3) < 0.01
    else:
        volume = offset.norm(dim=1) ** 3  # of the ball up to the point: uniform in [0, 1]
        assert volume.max() <= 1 and abs(volume.mean() - 0.5) < 0.02
        assert abs(volume.var() - 1 / 12) < 0.005
    assert (offset.mean(0).abs() < 0.03).all()


def test_l2_steps_have_length_one_however_small_the_gradient():
    gradient = torch.randn(3, *SHAPE, generator=generator_of())
    direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    scale = torch.tensor([1e-30, 1.0, 1e30])[:, None, None, None]
    torch.testing.assert_close(robustness._unit(gradient * scale), direction)
    assert torch.equal(robustness._unit(torch.zeros(2, *SHAPE)), torch.zeros(2, *SHAPE))


@pytest.mark.parametrize(("distance", "name", "eps"), [("Linf", "PGD", 0.05), ("L2", "PGDL2", 0.3)])
def test_torchattacks_makes_the_same_images(distance, name, eps):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is a test extra")
    classify = network(torch.float32).eval()
    x = images(16, dtype=torch.float32)
    y = answers(classify, x)
    theirs = getattr(torchattacks, name)(
        classify, eps=eps, alpha=2.5 * eps / 40, steps=40, random_start=False
    )(x, y)
    ours = PGD(distance)(classify, x, y, eps=eps)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (answers(classify, ours) != y).any()


@pytest.mark.parametrize(("distance", "dual"), [("Linf", 1), ("L2", 2)])
@pytest.mark.parametrize("start", [{}, {"restarts": 3}, {"random_init": True}])
def test_a_linear_model_is_as_robust_as_its_closed_form(distance, dual, start):
    """The smallest change that breaks it is margin / ||w_y - w_c||, in the dual norm."""
    weight = torch.randn(2, 75, generator=generator_of(2), dtype=torch.float64)
    bias = torch.tensor([0.05, -0.05], dtype=torch.float64) - 0.5 * weight.sum(1)  # 0 at mid-grey

    def classify(x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), weight, bias)

    x = images(24)
    y = answers(classify, x)
    y[0] = 1 - y[0]  # a misclassified image
    logits = classify(x)
    margin = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])).squeeze(1)
    breaks = margin / (weight[0] - weight[1]).norm(dual)
    limits = breaks[breaks > 0].sort().values
    widest = (limits[1:] / limits[:-1]).topk(6).indices  # 40 steps come within 1% of the ball's end
    radii = ((limits[1:] + limits[:-1]) / 2)[widest].sort().values.tolist()
    batches = [(2 * x[:10] - 1, y[:10]), (2 * x[10:] - 1, y[10:])]
    rows = robust_accuracy(classify, batches, pgds(distance, **start), [*radii[::-1], 0, radii[0]])
    expected = [(breaks > eps).double().mean().item() for eps in (0, *radii)]
    assert [row["eps"] for row in rows] == [0, *radii]
    assert [row["accuracy"] for row in rows] == pytest.approx(expected)
    assert 0 < expected[-1] < expected[1] < 1 and breaks.max() < 3


@dataclass
class Darker:
    """An attack that breaks the darkest image alone, and records its calls."""

    late: bool
    calls: list[tuple[float, bool, int]]
    distance: str = "Linf"

    def __call__(self, classify: Classifier, x: Tensor, y: Tensor, *, eps: float, **_: Any) -> Any:
        self.calls.append((eps, self.late, len(x)))
        darkest = x == x[:, 0, 0, 0].min()
        return torch.where(darkest, x - eps, x)


def test_an_image_counts_where_no_restart_breaks_it_and_survivors_alone_are_attacked():
    calls: list[tuple[float, bool, int]] = []
    x = (torch.arange(1.0, 6.0) / 8)[:, None, None, None].expand(5, *SHAPE)
    rows = robust_accuracy(
        lambda x: F.one_hot((8 * x[:, 0, 0, 0] % 1 != 0).long(), 2).float(),
        [(2 * x - 1, torch.tensor([1, 0, 0, 0, 0]))],  # the first is wrong from the start
        [Darker(late, calls) for late in (False, True)],
        [0, 0.1, 0.2, 0.3],
    )
    assert [row["accuracy"] for row in rows] == [4 / 5, 2 / 5, 0, 0]
    assert calls == [(0.1, False, 4), (0.1, True, 3), (0.2, False, 2), (0.2, True, 1)]


@pytest.fixture
def quick_autoattack(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """AutoAttack with fewer iterations: its 5,000 queries of Square alone take minutes. The value
    lists the versions of the attacks that are made."""
    versions: list[str] = []
    pyautoattack = pytest.importorskip("pyautoattack", reason="pyautoattack is an extra")

    class Quick(pyautoattack.AutoAttack):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            versions.append(self.version)
            self.square.n_queries, self.fab.n_iter = 10, 5
            self.apgd.n_iter = self.apgd_targeted.n_iter = 20
            self.apgd.eot_iter = min(2, self.apgd.eot_iter)

    monkeypatch.setattr(pyautoattack, "AutoAttack", Quick)
    yield versions


@pytest.mark.parametrize(("distance", "eps"), [("Linf", 0.005), ("L2", 0.05)])
def test_autoattack_breaks_the_images_that_pgd_breaks(quick_autoattack, distance, eps):
    model = network(torch.float32).to(memory_format=torch.channels_last)
    x = images(24, dtype=torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)  # pyautoattack cannot take this layout
    classify = model.requires_grad_(False)
    y = answers(classify, x)
    y[0] = (y[0] + 1) % 5
    state, tracer = torch.get_rng_state(), sys.gettrace()
    attack, batches = AutoAttack(distance, 5, batch_size=16), [(2 * x - 1, y)]
    rows, repeated = (robust_accuracy(classify, batches, [attack], [0, eps]) for _ in "12")
    assert torch.equal(torch.get_rng_state(), state) and sys.gettrace() is tracer
    weaker = robust_accuracy(classify, batches, pgds(distance), [eps])[0]["accuracy"]
    clean, accuracy = (row["accuracy"] for row in rows)
    assert rows == repeated and clean == pytest.approx(23 / 24)
    assert 0 < weaker - 2 / 24 <= accuracy <= weaker < clean
    assert set(quick_autoattack) == {"standard"}


def test_autoattack_takes_the_refinement_and_needs_four_classes(quick_autoattack):
    x = images(6, dtype=torch.float32)
    model = network(torch.float32).to(memory_format=torch.channels_last)
    chain = Chain(1, step_size=0.1, noise_std=0)
    refine = classifier(model, chain, copies=2, generator=generator_of())
    attack = AutoAttack("Linf", 5, version="rand")
    rows = robust_accuracy(refine, [(2 * x - 1, answers(refine, x))], [attack], [1e-6, 0.3])
    assert [row["accuracy"] for row in rows] == [1, 0] and set(quick_autoattack) == {"rand"}
    with pytest.raises(UsageError, match="needs 4 classes or more and the model has 3"):
        AutoAttack("L2", classes=3)
