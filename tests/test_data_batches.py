"""Batches: against a per-sample reference, by property and by the statistics of the noise."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import data
from data import Split

N = 50  # images of the training batches


def made_up_images(n: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)


def reference_crops(image: np.ndarray, flips: tuple[int, ...]) -> dict[bytes, int]:
    """Map each result for an image to its mirroring: NumPy's reflect padding by an eighth of the
    side, slicing, mirroring, x / 127.5 - 1."""
    size, pad, crops = len(image), len(image) // 8, {}
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    for y, x, flip in product(range(2 * pad + 1), range(2 * pad + 1), flips):
        crop = padded[y : y + size, x : x + size][:, :: 1 - 2 * flip].transpose(2, 0, 1)
        crops[(crop.astype(np.float32) / np.float32(127.5) - 1).tobytes()] = flip
    return crops


@pytest.mark.parametrize(("size", "flips"), [(32, (0, 1)), (32, (0,)), (12, (0,)), (40, (0,))])
def test_augment_is_a_reflected_crop_and_mirror_and_every_one_occurs(size, flips):
    """Each result is a reference crop of the image that the index names."""
    images, index = made_up_images(3, size), torch.arange(4000) % 2
    torch.manual_seed(1)
    augmented = data.augment(images, index, sigma=0.0, flip=len(flips) == 2)
    assert augmented.is_contiguous(memory_format=torch.channels_last)
    references = [reference_crops(image, flips) for image in images.numpy()]
    results = [(i, x.tobytes()) for i, x in zip(index.tolist(), augmented.numpy(), strict=True)]
    mirrored = [references[i][crop] for i, crop in results]
    assert {crop for _, crop in results} == references[0].keys() | references[1].keys()
    assert abs(np.mean(mirrored) - np.mean(flips)) < 0.05


def test_augment_noise_is_gaussian_of_width_sigma_and_from_the_global_generator():
    def augmented(sigma: float) -> torch.Tensor:
        torch.manual_seed(2)
        return data.augment(made_up_images(32), torch.arange(32), sigma=sigma, flip=True)

    clean, noisy = augmented(0.0), augmented(0.03)
    assert torch.equal(noisy, augmented(0.03))
    noise = (noisy - clean) / 0.03  # 98,304 numbers
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.01
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
    for seed, epoch in ((5, 4), (6, 3), (3, 5)):
        assert not torch.equal(data.epoch_order(1000, seed=seed, epoch=epoch), first)


def batches_of(images: Any = None, **changes: Any) -> data.TrainingBatches:
    """Batches of 25 of 50 images. Image i is of the shade i, and its label is i, too."""
    if images is None:
        images = torch.arange(N, dtype=torch.uint8)[:, None, None, None].expand(N, 32, 32, 3)
    index = torch.arange(N - 1, -1, -2)
    settings = {"index": index, "labelled": index, "batch_size": 4, "seed": 0, "sigma": 0.0}
    settings |= {"flip": True, "unlabelled": False}
    return data.TrainingBatches(Split(images, torch.arange(N)), **(settings | changes))


def shades(images: torch.Tensor) -> list[int]:
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def labels_of(batches: data.TrainingBatches, steps: range) -> list[list[int]]:
    """Return the labels of each step, which are those of its images."""
    drawn = [batches(step) for step in steps]
    assert all(shades(images) == labels.tolist() for images, labels, _ in drawn)
    return [labels.tolist() for _, labels, _ in drawn]


def test_an_epoch_shows_every_image_at_most_once_and_epochs_all_of_them():
    batches = batches_of()
    assert batches.steps_per_epoch == 6 and batches(0)[2] is None
    orders = []
    for epoch in range(10):
        epoch_labels = labels_of(batches, range(6 * epoch, 6 * epoch + 6))
        assert all(len(batch) == 4 for batch in epoch_labels)
        orders.append(sum(epoch_labels, []))
        assert len(set(orders[-1])) == 24
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert set(sum(orders, [])) == set(batches.index.tolist())


@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_step_depends_on_seed_and_step_alone(unlabelled):
    """Not on the order of the steps, as after a resume, nor on the global random state."""
    forward, jumping = (batches_of(unlabelled=unlabelled) for _ in range(2))
    expected = {step: forward(step) for step in range(20)}
    torch.manual_seed(99)
    for step in (19, 3, 4, 0, 12, 11, 19):
        _, labels, second = jumping(step)
        assert torch.equal(labels, expected[step][1])
        if unlabelled:
            assert shades(second) == shades(expected[step][2])
    of_seed_1 = labels_of(batches_of(seed=1), range(20))
    assert of_seed_1 != [labels.tolist() for _, labels, _ in expected.values()]


def test_no_epoch_of_the_second_batch_repeats_an_order_of_the_first():
    batches = batches_of(unlabelled=True, batch_size=25, augmented=(False, False))
    orders = {tuple(shades(images)) for step in range(4) for images in batches(step)[::2]}
    assert len(orders) == 8


@pytest.mark.parametrize(("size", "augmented"), [(None, True), (7, False), (25, True)])
def test_the_second_batch_is_of_all_images_in_an_order_of_its_own(size, augmented):
    """Its size and augmentation are its own; the first batch is the same as without it."""
    plain = batches_of()
    batches = batches_of(unlabelled=True, second_size=size, augmented=(True, augmented))
    n, agree, second_order = size or 4, 0, []
    for step in range(25 // n):
        images, labels, second = batches(step)
        assert shades(images) == labels.tolist() == plain(step)[1].tolist()
        assert second is not None and second.shape == (n, 3, 32, 32)
        second_order += shades(second)
        agree += sum(a == b for a, b in zip(labels.tolist(), shades(second), strict=False))
    assert len(set(second_order)) == len(second_order)
    assert set(second_order) <= set(batches.index.tolist())
    assert agree < 6  # by chance 1
    options = {"unlabelled": True, "second_size": 6, "augmented": (True, augmented)}
    parts = [batches_of(**options, part=(i, 2))(1)[2] for i in (0, 1)]
    assert shades(torch.cat(parts)) == shades(batches_of(**options)(1)[2])


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("augment_second", [True, False])
def test_both_batches_are_clamped_after_the_noise(clamp, augment_second):
    options = {"sigma": 1.0, "clamp": clamp, "augmented": (True, augment_second)}
    white = torch.full((N, 32, 32, 3), 255, dtype=torch.uint8)
    first, _, second = batches_of(white, unlabelled=True, batch_size=25, **options)(0)
    for images in (first, second):
        noise = images - 1
        assert abs((noise >= 0).float().mean() - 0.5) < 0.01
        assert (noise.max() == 0 and noise.min() == -2) if clamp else noise.max() > 1
        assert abs((noise < -1).float().mean() - 0.1587) < 0.01


@pytest.mark.parametrize("flip", [True, False])
def test_an_augmented_batch_is_flipped_and_the_other_has_the_images_themselves(flip):
    ramp = torch.arange(32, dtype=torch.uint8)[None, None, :, None].expand(N, 32, 32, 3)
    options = {"batch_size": 25, "unlabelled": True, "augmented": (True, False)}
    first, _, second = batches_of(ramp, flip=flip, **options)(0)
    rising = (first[:, 0, 0, 20] > first[:, 0, 0, 10]).float().mean()
    assert 0.2 < rising < 0.8 if flip else rising == 1
    assert torch.equal(second, data.to_float(ramp[:25]))


def test_few_labels_cycle_and_the_epoch_stays_as_long():
    few = torch.tensor([1, 3, 5, 7, 9, 11, 13, 15, 17])
    batches = batches_of(labelled=few, unlabelled=True)
    assert batches.steps_per_epoch == 6
    steps_labels = labels_of(batches, range(12))
    assert all(len(batch) == 4 for batch in steps_labels)
    for first, second in zip(steps_labels[::2], steps_labels[1::2], strict=True):
        assert len({*first, *second}) == 8  # a cycle is two batches of four from nine
    assert set(sum(steps_labels, [])) == set(few.tolist())
    second_images = {image for step in range(12) for image in shades(batches(step)[2])}
    assert len(second_images) > 20  # the second batch is of all images
    fewer = batches_of(labelled=torch.tensor([1, 3]))  # than a batch
    assert fewer.steps_per_epoch == 6
    assert all(sorted(batch) == [1, 3] for batch in labels_of(fewer, range(6)))


def test_a_batch_may_be_all_images_and_no_more():
    assert len(batches_of(batch_size=25)(0)[1]) == 25
    odd = {"labelled": torch.tensor([1, 3, 5]), "part": (0, 2)}
    for changes, message in (
        ({"batch_size": 26}, r"--batch_size 26: exceeds the 25 .*use 25 at most"),
        ({"unlabelled": True, "second_size": 26}, "--px_batch_size 26: exceeds the 25 .*use 25"),
        (odd, "--labels_per_class: 3 labelled .* by the 2 processes"),
    ):
        with pytest.raises(data.DataError, match=message):
            batches_of(**changes)
