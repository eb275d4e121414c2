"""Batches: against a per-sample reference, by property and by the statistics of the noise."""

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
def test_augment_is_a_reflected_crop_and_mirror_and_every_one_occurs(flip: bool) -> None:
    """Each result equals exactly one reference crop of the image that the index names."""
    images, index = made_up_images(3), torch.arange(1600 if flip else 800) % 2
    generator = torch.Generator().manual_seed(1)
    batch = data.augment(images, index, sigma=0.0, flip=flip, generator=generator).numpy()
    references = [reference_crops(image) for image in images.numpy()]
    chosen = []
    for i, result in zip(index.tolist(), batch, strict=True):
        (match,) = np.flatnonzero((references[i] == result).all(axis=(1, 2, 3)))
        chosen.append(CANDIDATES[match])
    assert set(chosen) == {candidate for candidate in CANDIDATES if flip or not candidate[2]}
    assert abs(np.mean([mirrored for *_, mirrored in chosen]) - flip / 2) < 0.05


def test_augment_noise_is_gaussian_of_width_sigma_and_from_the_generator_alone() -> None:
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


def test_batches_are_channels_last_float32_from_minus_one_to_one() -> None:
    images = torch.cat([torch.zeros(1, 32, 32, 3), torch.full((1, 32, 32, 3), 255)]).byte()
    evaluation, _ = next(
        data.evaluation_batches(Split(images, torch.zeros(2)), batch_size=2, sigma=0.0)
    )
    for batch in (
        data.to_float(images),
        data.augment(images, torch.arange(2), sigma=0.0, flip=True),
        evaluation,
    ):
        assert batch.shape == (2, 3, 32, 32) and batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert (batch[0] == -1).all() and (batch[1] == 1).all()


def test_evaluation_noise_belongs_to_the_image_not_to_the_batch() -> None:
    split = Split(made_up_images(257), torch.arange(257))

    def walk(batch_size: int, seed: int = 0) -> torch.Tensor:
        batches = list(data.evaluation_batches(split, batch_size=batch_size, sigma=0.03, seed=seed))
        assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
        return torch.cat([images for images, _ in batches])

    reference = walk(100)
    for batch_size in (1, 7, 100, 256, 1000):
        assert torch.equal(walk(batch_size), reference)
    noise = (reference - data.to_float(split.images)) / 0.03
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise[:100] * noise[100:200]).mean()) < 0.01  # the blocks differ
    assert not torch.equal(walk(100, seed=1), reference)


def test_evaluation_without_noise_is_the_image_and_an_empty_split_has_no_batches() -> None:
    split, before = Split(made_up_images(5), torch.arange(5)), torch.get_rng_state()
    images = torch.cat([x for x, _ in data.evaluation_batches(split, batch_size=2, sigma=0.0)])
    assert torch.equal(images, data.to_float(split.images))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(data.evaluation_batches(split.first(0), batch_size=2, sigma=0.1)) == []


def test_epoch_order_is_a_pure_function_of_seed_and_epoch() -> None:
    first = data.epoch_order(1000, seed=5, epoch=3)
    torch.randn(7)  # the default generator moves on and must not matter
    assert torch.equal(data.epoch_order(1000, seed=5, epoch=3), first)
    assert torch.equal(first.sort().values, torch.arange(1000))
    others = [(5, 4), (6, 3), (3, 5)]
    assert not any(torch.equal(data.epoch_order(1000, seed=s, epoch=e), first) for s, e in others)
