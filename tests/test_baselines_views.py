"""Random views of images, pairs of them, and LARS."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import data
from baselines import views
from baselines.lars import LARS


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_images(n: int) -> torch.Tensor:
    random = np.random.RandomState(0)
    return torch.from_numpy(random.randint(0, 256, (n, 32, 32, 3)).astype(np.uint8))


WHOLE = {"AREA": (1, 1), "RATIO": (1, 1)}
STILL = {**WHOLE, "JITTER": (0, 0, 0, 0), "P_GREY": 0}


def view(
    images: torch.Tensor, index: Any, seed: int = 0, strength: Any = None, **given: Any
) -> torch.Tensor:
    """Views of the images with these numbers, or of the first image so many times."""
    index = torch.zeros(index, dtype=torch.long) if isinstance(index, int) else torch.tensor(index)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (strength or {}).items():
            patch.setattr(views, name, value)
        return views.random_view(
            images, index, generator=generator(seed), **{"flip": False, "sigma": 0.0, **given}
        )


def test_no_strength_is_the_image_with_noise_and_range_is_kept():
    images = noise_images(5)
    same = view(images, [3, 0, 3], strength=STILL)
    assert torch.allclose(same, data.to_float(images)[[3, 0, 3]], atol=1e-5)
    noise = view(images, [3, 0, 3], sigma=0.5, strength=STILL) - same
    assert abs(noise.std().item() - 0.5) < 0.02 and abs(noise.mean().item()) < 0.02
    found = view(images, [0, 1, 2, 3, 4] * 20, flip=True)
    assert found.shape == (100, 3, 32, 32) and found.dtype == torch.float32
    assert found.min() >= -1 and found.max() <= 1 and found.std() > 0.2
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_mirrored_half_of_the_time():
    images = noise_images(1)
    found, x = view(images, 400, flip=True, strength=STILL), data.to_float(images)
    plain = (found - x).abs().amax((1, 2, 3)) < 1e-4
    mirror = (found - x.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert bool((plain ^ mirror).all()) and 160 < int(plain.sum()) < 240


def test_views_of_one_image_differ_and_the_seed_decides():
    images, before = noise_images(2), torch.get_rng_state()
    first = view(images, 30, seed=1, flip=True, sigma=0.1)
    assert torch.equal(first, view(images, 30, seed=1, flip=True, sigma=0.1))
    distance = torch.cdist(first.flatten(1), first.flatten(1)) + 1e3 * torch.eye(30)
    assert distance.min() > 1 and torch.equal(before, torch.get_rng_state())


def test_grey_and_jitter_are_as_likely_as_said():
    images = noise_images(1)
    found = view(images, 1000, strength=WHOLE)
    grey = (found.amax(1) - found.amin(1)).amax((1, 2)) < 1e-5
    untouched = (found - data.to_float(images)).abs().amax((1, 2, 3)) < 1e-4
    assert 150 < int(grey.sum()) < 250  # p = .2
    assert 110 < int(untouched.sum()) < 210  # (1 - .8) (1 - .2)


def test_boxes_lie_in_the_image_and_have_the_area_and_ratio():
    left, top, width, height = views.random_boxes(4000, generator())
    assert min(left.min(), top.min()) >= 0
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    area, ratio = width * height, width / height
    assert area.min() >= 0.2 - 1e-6 and area.max() <= 1 + 1e-6
    assert ratio.min() >= 0.75 - 1e-5 and ratio.max() <= 4 / 3 + 1e-5
    # Few large boxes of a ratio other than 1 fit, so that the mean is below that of U(.2, 1).
    transform = pytest.importorskip("torchvision.transforms").RandomResizedCrop
    torch.manual_seed(0)
    image = torch.empty(3, 320, 320)
    drawn = [transform.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    theirs = torch.tensor([[h * w / 320**2, math.log(w / h), j / 320] for _, j, h, w in drawn])
    ours = torch.stack([area, ratio.log(), left], 1)
    assert torch.allclose(ours.mean(0), theirs.mean(0), atol=0.015)
    assert torch.allclose(ours.std(0), theirs.std(0), atol=0.015)


def test_nothing_fits_takes_the_whole(monkeypatch):
    monkeypatch.setattr(views, "AREA", (1, 1))
    monkeypatch.setattr(views, "RATIO", (2, 2.1))
    left, top, width, height = views.random_boxes(5, generator())
    assert left.tolist() == top.tolist() == [0] * 5 and width.tolist() == height.tolist() == [1] * 5


def test_crop_is_the_box():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    box = [torch.tensor([part]) for part in (0.25, 0.5, 0.5, 0.25)]  # left, top, width, height
    found = views.crop(x, *box, torch.tensor([False]))
    inside = x[:, :, 4:6, 2:6]
    assert found.min() >= inside.min() - 8 and found.max() <= inside.max() + 8
    assert found.mean() == pytest.approx(inside.mean().item())
    assert torch.allclose(views.crop(x, *box, torch.tensor([True])), found.flip(3))


@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("brightness", (1.0, 0.6, 1.4)),
        ("contrast", (1.0, 0.6, 1.4)),
        ("saturation", (1.0, 0.6, 1.4)),
        ("hue", (0.0, 0.1, -0.1, 0.5)),
    ],
)
def test_adjustments_are_torchvisions_image_by_image(name, amounts):
    reference = pytest.importorskip("torchvision.transforms.functional")
    x = noise_images(len(amounts)).permute(0, 3, 1, 2).float() / 255
    x[:, :, :4] = 0.5  # grey pixels have no hue
    x[:, :, 4:6] = 0
    adjust = getattr(views, f"adjust_{name}")
    found = adjust(x, torch.tensor(amounts))
    for image, amount, ours in zip(x, amounts, found, strict=True):
        theirs = getattr(reference, f"adjust_{name}")(image, amount)
        assert torch.allclose(ours, theirs, atol=2e-5)
    assert torch.allclose(found[0], x[0], atol=1e-5)
    assert torch.allclose(views.grey(x), reference.rgb_to_grayscale(x), atol=1e-6)


def of(split: data.Split, index: torch.Tensor, *given: Any) -> views.ViewBatches:
    return views.ViewBatches(split, index, index, *given, flip=True, unlabelled=False)


def test_view_batches():
    index = torch.tensor([1, 2, 3, 4, 5, 6, 7])

    def make(seed: int = 1) -> views.ViewBatches:
        return of(data.Split(noise_images(10), torch.arange(10)), index, 3, seed, 0.03)

    batches = make()
    seen = [batches(step) for step in range(4)]
    for x, y, _ in seen:
        assert x.shape == (6, 3, 32, 32) and torch.equal(y[:3], y[3:])
        assert not torch.allclose(x[:3], x[3:])
    first, second = ({*a[1].tolist(), *b[1].tolist()} for a, b in (seen[:2], seen[2:]))
    assert len(first) == len(second) == 6 and first <= set(index.tolist())
    for step in (3, 0, 2, 1):  # a fresh one, at any step
        x, y, _ = make()(step)
        assert torch.equal(x, seen[step][0]) and torch.equal(y, seen[step][1])
    assert not torch.equal(make(2)(0)[0], seen[0][0])
    assert len({x.sum().item() for x, *_ in seen}) == 4


def test_pairs_show_one_image():
    # Black stays black and white stays bright, whatever is done to them.
    images = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
    images[::2] = 255
    split = data.Split(images, torch.arange(8))
    x, y, _ = of(split, torch.arange(8), 8, 1, 0)(0)
    bright = x.mean((1, 2, 3)) > 0
    assert torch.equal(bright, y % 2 == 0) and int(bright.sum()) == 8


def test_lars_is_its_formula():
    w = torch.tensor([[3.0, 0.0], [0.0, 4.0]], requires_grad=True)  # norm 5
    bias = torch.tensor([1.0, 2.0], requires_grad=True)
    norm = torch.full((1, 2, 1, 1), 2.0, requires_grad=True)
    unused = torch.ones(2, 2, requires_grad=True)
    lars = LARS([w, bias, norm, unused], lr=0.5, momentum=0.9, weight_decay=0.1, eta=0.01)
    expected, velocity = w.detach().clone(), torch.zeros(2, 2)
    for _ in range(3):
        w.grad, bias.grad = torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.tensor([1.0, -1.0])
        norm.grad = torch.ones_like(norm)
        trust = 0.01 * expected.norm() / (2 + 0.1 * expected.norm())
        velocity = 0.9 * velocity + 0.5 * trust * (w.grad + 0.1 * expected)
        expected = expected - velocity
        lars.step()
        assert torch.allclose(w.detach(), expected, atol=1e-6)
    steps = 0.5 * (1 + 1.9 + 2.71)  # of plain momentum: no decay, no trust ratio
    assert torch.allclose(bias.detach(), torch.tensor([1.0 - steps, 2.0 + steps]))
    assert torch.allclose(norm.detach(), torch.full((1, 2, 1, 1), 2.0 - steps))
    assert torch.equal(unused.detach(), torch.ones(2, 2)) and unused not in lars.state


def test_lars_skips_a_diverged_step():
    w = torch.zeros(2, 2, requires_grad=True)
    lars = LARS([w], lr=1.0)
    w.grad, lars.found_inf = torch.full((2, 2), math.nan), torch.tensor(1.0)
    lars.step()
    assert not w.any() and not lars.state[w]["momentum"].any()
    w.grad, lars.found_inf = torch.ones(2, 2), torch.tensor(0.0)
    lars.step()
    assert torch.equal(w.detach(), -torch.ones(2, 2))  # trust 1: a zero weight must move
    with pytest.raises(ValueError, match="lr -1"):
        LARS([w], lr=-1)
