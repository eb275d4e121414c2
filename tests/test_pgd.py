"""PGD against its definition and torchattacks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation import NotFinite
from evaluation import pgd as attacks
from evaluation.pgd import Classifier, pgd
from models import EnergyClassifier

SHAPE = (3, 8, 8)
BALLS = [("Linf", 0.05), ("L2", 0.3)]


def network(dtype: torch.dtype = torch.float64, classes: int = 5) -> EnergyClassifier:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    backbone = nn.Sequential(*layers)
    backbone.num_features = 8  # type: ignore[assignment]
    model = EnergyClassifier(backbone, classes)  # type: ignore[arg-type]
    nn.init.normal_(model.class_output.weight, std=30)
    with torch.no_grad():  # no class is far ahead of the others on all images
        model.class_output.bias.copy_(-model(images(64, torch.float32)).mean(0))
    return model.to(dtype)


def images(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.3 + 0.4 * torch.rand(n, *SHAPE, generator=generator_of(1), dtype=dtype)


def generator_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def answers(classify: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return classify(x).argmax(1)


@pytest.mark.parametrize(("distance", "eps"), BALLS)
@pytest.mark.parametrize("random_init", [True, False])
def test_every_image_is_attacked_on_its_own(distance: str, eps: float, random_init: bool) -> None:
    classify, x = network(), images(4)
    y = answers(classify, x)
    settings: dict[str, Any] = {"distance": distance, "eps": eps, "steps": 8}
    many = pgd(classify, x, y, **settings)
    torch.testing.assert_close(pgd(classify, x[2:3], y[2:3], **settings), many[2:3])
    assert torch.equal(pgd(classify, x, y, **settings | {"eps": 0}), x)
    first, same, other = (
        pgd(classify, x, y, **settings, random_init=random_init, generator=generator_of(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same) and torch.equal(first, other) is not random_init


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("margin", [0, 10, 17, 100, 200])
def test_the_direction_is_cross_entropy_s_at_every_margin(margin: float, classes: int) -> None:
    """float32 against cross-entropy in float64; the label leads by `margin`."""
    logits = torch.randn(8, classes, generator=generator_of())
    y = torch.arange(8) % classes
    best = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    logits.scatter_(1, y[:, None], (best + margin)[:, None])
    ours = logits.requires_grad_()
    (found,) = torch.autograd.grad(attacks.loss(ours, y).sum(), ours)
    exact = logits.detach().double().softmax(1)
    exact.scatter_(1, y[:, None], 0)  # the label's part is q(y|x) - 1, which float64 rounds to 0
    exact.scatter_(1, y[:, None], -exact.sum(1, keepdim=True))
    exact /= exact.norm(dim=1, keepdim=True)
    assert (F.normalize(found.double()) * exact).sum(1).min() > 0.9999


@pytest.mark.parametrize(("distance", "eps"), [("Linf", 0.01), ("L2", 0.1)])
def test_a_confident_model_is_no_more_robust(distance: str, eps: float) -> None:
    """Outputs multiplied by 128 decide the same."""
    model, x = network(torch.float32), images(64, torch.float32)
    y, right = answers(model, x), []
    for scale in (1, 128):
        found = pgd(lambda x: scale * model(x), x, y, distance=distance, eps=eps, steps=10)  # noqa: B023
        right.append((answers(model, found) == y).float().mean())
    assert 0.05 < right[0] < 0.95 and right[1] <= right[0] + 0.03


@pytest.mark.parametrize(("distance", "eps"), BALLS)
def test_attacks_keep_to_the_ball_and_to_the_pixels(distance: str, eps: float) -> None:
    """float32, from images that touch 0 and 1, steps far beyond the ball."""
    classify = network(torch.float32)
    x = torch.rand(8, 3, 32, 32, generator=generator_of()).mul(2).sub(0.5).clamp(0, 1)
    for random_init in (True, False):
        adversarial = pgd(
            classify,
            x,
            answers(classify, x),
            distance=distance,
            eps=eps,
            steps=3,
            step=3 * eps,
            random_init=random_init,
            generator=generator_of(),
        )
        size = (adversarial.double() - x.double()).flatten(1)
        size = size.abs().amax(1) if distance == "Linf" else size.norm(dim=1)
        assert size.max() <= eps + 1e-6 and size.min() > 0.5 * eps
        assert adversarial.min() >= 0 and adversarial.max() <= 1


@pytest.mark.parametrize(("distance", "eps"), BALLS)
@pytest.mark.parametrize("fault", ["ball", "range", "nan"])
def test_what_leaves_the_ball_or_the_pixels_raises(
    monkeypatch: pytest.MonkeyPatch, distance: str, eps: float, fault: str
) -> None:
    wrong = {"ball": 1.2 * eps, "range": -0.05 * eps, "nan": float("nan")}[fault]
    for name in ("_project_linf", "_project_l2"):
        monkeypatch.setattr(attacks, name, lambda x, moved, eps: x + wrong)
    x, y = images(2), torch.zeros(2, dtype=torch.int64)
    x[0, 0, 0, 0] = 0
    said = f"in {distance} from its original, {eps} is allowed"
    error, said = (NotFinite, "not finite") if fault == "nan" else (AssertionError, said)
    with pytest.raises(error, match=said):
        pgd(network(), x, y, distance=distance, eps=eps, steps=2)
    pgd(network(), x, y, distance=distance, eps=eps, steps=2, check=False)  # nobody looks


@pytest.mark.parametrize(("distance", "eps"), BALLS)
def test_random_starts_fill_the_ball_evenly(distance: str, eps: float) -> None:
    x = torch.full((4000, 3, 1, 1), 0.5, dtype=torch.float64)
    offset = attacks._random_offset(x, distance, eps, generator_of()).flatten(1) / eps
    if distance == "Linf":
        assert offset.abs().max() <= 1 and abs(offset.var() - 1 / 3) < 0.01
    else:
        volume = offset.norm(dim=1) ** 3  # of the ball up to the point: uniform in [0, 1]
        assert volume.max() <= 1 and abs(volume.mean() - 0.5) < 0.02
        assert abs(volume.var() - 1 / 12) < 0.005
    assert (offset.mean(0).abs() < 0.03).all()


def test_l2_steps_have_length_one_however_small_the_gradient() -> None:
    gradient = torch.randn(3, *SHAPE, generator=generator_of())
    direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    scale = torch.tensor([1e-30, 1.0, 1e30])[:, None, None, None]
    torch.testing.assert_close(attacks._unit(gradient * scale), direction)
    assert torch.equal(attacks._unit(torch.zeros(2, *SHAPE)), torch.zeros(2, *SHAPE))


@pytest.mark.parametrize("settings", [{"distance": "L1"}, {"eps": -0.1}, {"steps": 0}])
def test_an_attack_that_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    attack: dict[str, Any] = {"distance": "Linf", "eps": 0.1} | settings
    classify, x, y = network(), images(2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="L1|-0.1|0 steps"):
        pgd(classify, x, y, **attack)


@pytest.mark.parametrize(("distance", "name", "eps"), [("Linf", "PGD", 0.05), ("L2", "PGDL2", 0.3)])
def test_torchattacks_makes_the_same_images(distance: str, name: str, eps: float) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is a test extra")

    classify = network(torch.float32).eval()
    x = images(16, dtype=torch.float32)
    y = answers(classify, x)
    theirs = getattr(torchattacks, name)(
        classify, eps=eps, alpha=2.5 * eps / 40, steps=40, random_start=False
    )(x, y)
    ours = pgd(classify, x, y, distance=distance, eps=eps)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (answers(classify, ours) != y).any()
