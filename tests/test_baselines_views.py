"""Random views of images, pairs of them, and LARS."""

import math
from typing import Any

import pytest
import torch

import data
from baselines import views
from baselines.lars import LARS


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_images(n: int) -> torch.Tensor:
    return torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator())


WHOLE = {"AREA": (1, 1), "RATIO": (1, 1)}
STILL = {**WHOLE, "JITTER": (0, 0, 0, 0), "P_GREY": 0}


def view(
    images: torch.Tensor, index: Any, seed: int = 0, strength: Any = None, **options: Any
) -> torch.Tensor:
    """Views of the images of an index, or of the first image, `index` times."""
    index = torch.zeros(index, dtype=torch.long) if isinstance(index, int) else torch.tensor(index)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (strength or {}).items():
            patch.setattr(views, name, value)
        options = {"flip": False, "sigma": 0.0, **options}
        return views.random_view(images, index, generator=generator(seed), **options)


def test_no_strength_is_the_image_with_noise_and_range_is_kept():
    images = noise_images(5)
    same = view(images, [3, 0, 3], strength=STILL)
    assert torch.allclose(same, data.to_float(images)[[3, 0, 3]], atol=1e-5)
    noise = view(images, [3, 0, 3], sigma=0.5, strength=STILL) - same
    assert abs(noise.std().item() - 0.5) < 0.02 and abs(noise.mean().item()) < 0.02
    x = view(images, [0, 1, 2, 3, 4] * 20, flip=True)
    assert x.shape == (100, 3, 32, 32) and x.dtype == torch.float32
    assert x.min() >= -1 and x.max() <= 1 and x.std() > 0.2
    assert x.is_contiguous(memory_format=torch.channels_last)


def equal(x: torch.Tensor, image: torch.Tensor) -> int:
    """Count the images of x that equal `image`, or the image at the same index of it."""
    return int(((x - image).abs().amax((1, 2, 3)) < 1e-4).sum())


def test_mirror_grey_and_jitter_have_their_probabilities():
    images = noise_images(1)
    image, still = data.to_float(images), view(images, 400, flip=True, strength=STILL)
    plain = equal(still, image)
    assert plain + equal(still, image.flip(3)) == 400 and 160 < plain < 240
    x = view(images, 1000, strength=WHOLE)
    assert 150 < equal(x, x.mean(1, keepdim=True)) < 250  # grey: .2
    assert 110 < equal(x, image) < 210  # neither: (1 - .8) (1 - .2)


def test_views_of_one_image_differ_and_the_seed_decides():
    images, before = noise_images(2), torch.get_rng_state()
    first, again = (view(images, 30, seed=1, flip=True, sigma=0.1) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert torch.pdist(first.flatten(1)).min() > 1


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


def test_where_no_box_fits_the_box_is_the_whole_image(monkeypatch):
    monkeypatch.setattr(views, "AREA", (1, 1))
    monkeypatch.setattr(views, "RATIO", (2, 2.1))
    assert torch.stack(views.random_boxes(5, generator())).tolist() == [[0] * 5] * 2 + [[1] * 5] * 2


def test_a_crop_is_the_box():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    box = [torch.tensor([part]) for part in (0.25, 0.5, 0.5, 0.25)]  # left, top, width, height
    cropped, inside = views.crop(x, *box, torch.tensor([False])), x[:, :, 4:6, 2:6]
    assert cropped.min() >= inside.min() - 8 and cropped.max() <= inside.max() + 8
    assert cropped.mean() == pytest.approx(inside.mean().item())
    assert torch.allclose(views.crop(x, *box, torch.tensor([True])), cropped.flip(3))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_adjustments_are_torchvisions_image_by_image(name):
    reference = pytest.importorskip("torchvision.transforms.functional")
    amounts = (0.0, 0.1, -0.1, 0.5) if name == "hue" else (1.0, 0.6, 1.4)
    x = noise_images(len(amounts)).permute(0, 3, 1, 2).float() / 255
    x[:, :, :4] = 0.5  # grey pixels have no hue
    x[:, :, 4:6] = 0
    adjust = getattr(reference, f"adjust_{name}")
    adjusted = getattr(views, f"adjust_{name}")(x, torch.tensor(amounts))
    theirs = torch.stack([adjust(*pair) for pair in zip(x, amounts, strict=True)])
    assert torch.allclose(adjusted, theirs, atol=2e-5)
    assert torch.allclose(adjusted[0], x[0], atol=1e-5)
    assert torch.allclose(views.grey(x), reference.rgb_to_grayscale(x), atol=1e-6)


def batches_of(images: torch.Tensor, index: Any, *sizes: Any) -> views.ViewBatches:
    split, index = data.Split(images, torch.arange(len(images))), torch.tensor(index)
    return views.ViewBatches(split, index, index, *sizes, flip=True, unlabelled=False)


def test_a_batch_has_two_views_of_each_image_and_depends_on_seed_and_step_alone():
    def make(seed: int = 1) -> views.ViewBatches:
        return batches_of(noise_images(10), [1, 2, 3, 4, 5, 6, 7], 3, seed, 0.03)

    batches = make()
    steps = [batches(step) for step in range(4)]
    for x, y, _ in steps:
        assert x.shape == (6, 3, 32, 32) and torch.equal(y[:3], y[3:])
        assert not torch.allclose(x[:3], x[3:])
    epochs = [{*a[1].tolist(), *b[1].tolist()} for a, b in (steps[:2], steps[2:])]
    assert all(len(epoch) == 6 and epoch <= {*range(1, 8)} for epoch in epochs)
    for step in (3, 0, 2, 1):  # fresh batches, in any order of the steps
        x, y, _ = make()(step)
        assert torch.equal(x, steps[step][0]) and torch.equal(y, steps[step][1])
    assert not torch.equal(make(2)(0)[0], steps[0][0])
    assert len({x.sum().item() for x, *_ in steps}) == 4


def test_both_views_show_the_image_of_their_label():
    # Black stays black and white stays bright, with every change.
    images = torch.zeros(8, 32, 32, 3, dtype=torch.uint8)
    images[::2] = 255
    x, y, _ = batches_of(images, [*range(8)], 8, 1, 0)(0)
    bright = x.mean((1, 2, 3)) > 0
    assert torch.equal(bright, y % 2 == 0) and int(bright.sum()) == 8


def test_lars_is_its_formula():
    w = torch.tensor([[3.0, 0.0], [0.0, 4.0]], requires_grad=True)  # norm 5
    bias = torch.tensor([1.0, 2.0], requires_grad=True)
    norm = torch.full((1, 2, 1, 1), 2.0, requires_grad=True)
    unused = torch.ones(2, 2, requires_grad=True)
    lars = LARS([w, bias, norm, unused], lr=0.5, weight_decay=0.1)
    expected, velocity = w.detach().clone(), torch.zeros(2, 2)
    for _ in range(3):
        w.grad, bias.grad = torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.tensor([1.0, -1.0])
        norm.grad = torch.ones_like(norm)
        trust = 0.001 * expected.norm() / (2 + 0.1 * expected.norm())
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
