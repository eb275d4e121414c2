"""Batches: against a per-sample reference, by property and by the statistics of the noise."""

from typing import Any

import numpy as np
import pytest
import torch

import data
from data import Split

CANDIDATES = [
    (y, x, mirrored) for y in range(9) for x in range(9) for mirrored in (False, True)
]  # every offset and mirroring that `augment` may choose


def made_up_images(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)


def reference_crops(image: np.ndarray) -> np.ndarray:
    """All 162 results for one image: NumPy's reflect padding, slicing, mirroring, x / 127.5 - 1."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    crops = []
    for y, x, mirrored in CANDIDATES:
        crop = padded[y : y + 32, x : x + 32]
        crops.append(crop[:, ::-1] if mirrored else crop)
    return np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1


@pytest.mark.parametrize("flip", [True, False])
def test_augment_is_a_reflected_crop_and_mirror_and_every_one_occurs(flip):
    """Each result equals exactly one reference crop of the image that the index names."""
    images, index = made_up_images(3), torch.arange(1600 if flip else 800) % 2
    generator = torch.Generator().manual_seed(1)
    augmented = data.augment(images, index, sigma=0.0, flip=flip, generator=generator)
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    references = [reference_crops(image) for image in images.numpy()]
    chosen = []
    for i, result in zip(index.tolist(), augmented.numpy(), strict=True):
        (match,) = np.flatnonzero((references[i] == result).all(axis=(1, 2, 3)))
        chosen.append(CANDIDATES[match])
    assert set(chosen) == {candidate for candidate in CANDIDATES if flip or not candidate[2]}
    assert abs(np.mean([mirrored for *_, mirrored in chosen]) - flip / 2) < 0.05


def test_augment_noise_is_gaussian_of_width_sigma_and_from_the_generator_alone():
    before = torch.get_rng_state()

    def augmented(sigma: float) -> torch.Tensor:
        random = torch.Generator().manual_seed(2)
        images, index = made_up_images(32), torch.arange(32)
        return data.augment(images, index, sigma=sigma, flip=True, generator=random)

    clean, noisy = augmented(0.0), augmented(0.03)
    assert torch.equal(noisy, augmented(0.03)) and torch.equal(torch.get_rng_state(), before)
    noise = (noisy - clean) / 0.03  # 98,304 numbers
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise.abs() < 1).float().mean() - 0.6827) < 0.01


def test_evaluation_noise_belongs_to_the_image_not_to_the_batch():
    split, before = Split(made_up_images(257), torch.arange(257)), torch.get_rng_state()

    def walk(batch_size: int, seed: int = 0) -> torch.Tensor:
        batches = list(data.evaluation_batches(split, batch_size=batch_size, sigma=0.03, seed=seed))
        assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
        return torch.cat([images for images, _ in batches])

    reference = walk(100)
    assert reference.is_contiguous(memory_format=torch.channels_last)
    for batch_size in (1, 7, 100, 256, 1000):
        assert torch.equal(walk(batch_size), reference)
    noise = (reference - data.to_float(split.images)) / 0.03
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise[:100] * noise[100:200]).mean()) < 0.01  # the blocks differ
    assert not torch.equal(walk(100, seed=1), reference)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(data.evaluation_batches(split.first(0), batch_size=2, sigma=0.1)) == []


def test_epoch_order_is_a_pure_function_of_seed_and_epoch():
    first = data.epoch_order(1000, seed=5, epoch=3)
    torch.randn(7)  # the default generator moves on and must not matter
    assert torch.equal(data.epoch_order(1000, seed=5, epoch=3), first)
    assert torch.equal(first.sort().values, torch.arange(1000))
    others = [(5, 4), (6, 3), (3, 5)]
    assert not any(torch.equal(data.epoch_order(1000, seed=s, epoch=e), first) for s, e in others)


# ---------------------------------------------------------------------------------- training runs

N = 50


def split() -> Split:
    """Image i is of the shade i, and its label is i too: a batch tells which images it shows."""
    shades = torch.arange(N, dtype=torch.uint8)[:, None, None, None].expand(N, 32, 32, 3)
    return Split(shades, torch.arange(N))


def batches_of(**changes: Any) -> data.TrainingBatches:
    index = torch.arange(N - 1, -1, -2)  # 25 of the 50
    settings = {
        "index": index,
        "labelled": index,
        "batch_size": 4,
        "seed": 0,
        "sigma": 0.0,
        "flip": True,
        "unlabelled": False,
    }
    return data.TrainingBatches(split(), **(settings | changes))


def shown(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def labelled(batches: data.TrainingBatches, steps: range) -> list[list[int]]:
    seen = []
    for step in steps:
        images, labels, _ = batches(step)
        assert shown(images) == labels.tolist()
        seen.append(labels.tolist())
    return seen


def test_an_epoch_shows_every_image_at_most_once_and_epochs_all_of_them():
    batches = batches_of()
    assert batches.steps_per_epoch == 6 and batches(0)[2] is None
    orders = []
    for epoch in range(10):
        seen = labelled(batches, range(6 * epoch, 6 * epoch + 6))
        assert all(len(batch) == 4 for batch in seen)
        orders.append(sum(seen, []))
        assert len(set(orders[-1])) == 24
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert set(sum(orders, [])) == set(batches.index.tolist())


@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_step_depends_on_seed_and_step_alone(unlabelled):
    """In any order of asking, as after a resume; not on the global random state."""
    forward, jumping = (batches_of(unlabelled=unlabelled) for _ in range(2))
    expected = {step: forward(step) for step in range(20)}
    torch.manual_seed(99)
    for step in (19, 3, 4, 0, 12, 11, 19):
        _, labels, second = jumping(step)
        assert torch.equal(labels, expected[step][1])
        if unlabelled:
            assert shown(second) == shown(expected[step][2])
    others = labelled(batches_of(seed=1), range(20))
    assert others != [labels.tolist() for _, labels, _ in expected.values()]


def test_no_epoch_of_the_second_batch_repeats_an_order_of_the_first():
    batches = batches_of(unlabelled=True, batch_size=25, augmented=(False, False))
    orders = {tuple(shown(images)) for step in range(4) for images in batches(step)[::2]}
    assert len(orders) == 8


@pytest.mark.parametrize(("size", "augmented"), [(None, True), (7, False), (25, True)])
def test_the_second_batch_is_of_all_images_in_an_order_of_its_own(size, augmented):
    """Of its own size and augmentation; the first batch is as without it."""
    plain = batches_of()
    batches = batches_of(unlabelled=True, second_size=size, augmented=(True, augmented))
    n, agree = size or 4, 0
    seen: list[int] = []
    for step in range(25 // n):
        expected, labels, _ = plain(step)
        images, same, second = batches(step)
        assert torch.equal(labels, same) and shown(images) == shown(expected)
        assert second is not None and second.shape == (n, 3, 32, 32)
        seen += shown(second)
        agree += sum(a == b for a, b in zip(labels.tolist(), shown(second), strict=False))
    assert len(set(seen)) == len(seen) and set(seen) <= set(batches.index.tolist())
    assert agree < 6  # by chance 1
    options = {"unlabelled": True, "second_size": 6, "augmented": (True, augmented)}
    parts = [batches_of(**options, part=(i, 2))(1)[2] for i in (0, 1)]
    assert shown(torch.cat(parts)) == shown(batches_of(**options)(1)[2])


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("augment_second", [True, False])
def test_both_batches_are_clamped_after_the_noise(clamp, augment_second):
    batches = batches_of(
        sigma=1.0, unlabelled=True, batch_size=25, clamp=clamp, augmented=(True, augment_second)
    )
    batches.train = Split(torch.full((N, 32, 32, 3), 255, dtype=torch.uint8), torch.arange(N))
    first, _, second = batches(0)
    for images in (first, second):
        noise = images - 1
        assert abs((noise >= 0).float().mean() - 0.5) < 0.01
        assert (noise.max() == 0 and noise.min() == -2) if clamp else noise.max() > 1
        assert abs((noise < -1).float().mean() - 0.1587) < 0.01


@pytest.mark.parametrize("flip", [True, False])
def test_what_is_augmented_is_flipped_and_the_rest_is_the_image_itself(flip):
    ramp = torch.arange(32, dtype=torch.uint8)[None, None, :, None].expand(N, 32, 32, 3)
    batches = batches_of(flip=flip, batch_size=25, unlabelled=True, augmented=(True, False))
    batches.train = Split(ramp, torch.arange(N))
    first, _, second = batches(0)
    rising = (first[:, 0, 0, 20] > first[:, 0, 0, 10]).float().mean()
    assert 0.2 < rising < 0.8 if flip else rising == 1
    assert torch.equal(second, data.to_float(ramp[:25]))


def test_few_labels_cycle_and_the_epoch_stays_as_long():
    few = torch.tensor([1, 3, 5, 7, 9, 11, 13, 15, 17])
    batches = batches_of(labelled=few, unlabelled=True)
    assert batches.steps_per_epoch == 6
    seen = labelled(batches, range(12))
    assert all(len(batch) == 4 for batch in seen)
    for cycle in range(6):  # two batches of four from nine
        pair = seen[2 * cycle] + seen[2 * cycle + 1]
        assert len(set(pair)) == 8 and set(pair) <= set(few.tolist())
    assert set(sum(seen, [])) == set(few.tolist())
    others = {image for step in range(12) for image in shown(batches(step)[2])}
    assert len(others) > 20  # the second batch is of all images
    fewer = batches_of(labelled=torch.tensor([1, 3]))  # than a batch
    assert fewer.steps_per_epoch == 6
    assert all(sorted(batch) == [1, 3] for batch in labelled(fewer, range(6)))


def test_a_batch_may_be_all_images_and_no_more():
    assert len(batches_of(batch_size=25)(0)[1]) == 25
    with pytest.raises(data.DataError, match=r"--batch_size 26: exceeds the 25 .*use 25 at most"):
        batches_of(batch_size=26)
    with pytest.raises(
        data.DataError, match=r"--px_batch_size 26: exceeds the 25 .*use 25 at most"
    ):
        batches_of(unlabelled=True, second_size=26)
    with pytest.raises(
        data.DataError, match="--labels_per_class: 3 labelled .* by the 2 processes"
    ):
        batches_of(labelled=torch.tensor([1, 3, 5]), part=(0, 2))
