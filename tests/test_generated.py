"""Interpolations, noise and patches of photographs: by brute force, closed form and statistics."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import data
from data.generated import interpolate, interpolation_pairs


def images_of(name: str, n: int | None = None, seed: int = 1) -> np.ndarray:
    return data.EvaluationSets(Path("nowhere"), seed=seed).load(name, n).split.images.numpy()


@pytest.mark.parametrize("n", [2, 3, 1000])
def test_pairs_are_of_two_different_images_and_use_every_image_twice(n):
    a, b = interpolation_pairs(n, seed=1)
    assert len(a) == len(b) == n and (a != b).all()
    assert torch.cat([a, b]).bincount(minlength=n).tolist() == [2] * n
    if n > 2:
        assert len({frozenset(pair) for pair in zip(a.tolist(), b.tolist(), strict=True)}) == n
        assert not torch.equal(interpolation_pairs(n, seed=2)[0], a)
    assert torch.equal(interpolation_pairs(n, seed=1)[1], b)


def test_the_mean_is_rounded_half_up_for_every_two_values():
    a, b = (grid.reshape(-1) for grid in np.meshgrid(np.arange(256), np.arange(256)))
    means = interpolate(*(torch.from_numpy(values.astype(np.uint8)) for values in (a, b)))
    assert (means.numpy() == np.floor((a + b) / 2 + 0.5)).all()


def test_interpolations_are_of_the_test_images(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (30, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "cifar10.npz", train_images=pixels[:10], test_images=pixels[10:])
    np.savez(tmp_path / "svhn.npz", train_images=pixels[:10], test_images=pixels[20:])
    loaded = data.EvaluationSets(tmp_path, "cifar10", seed=3).load("interp")
    images, test = loaded.split.images.numpy(), pixels[10:].astype(np.int64)
    means = np.floor((test[:, None] + test[None]) / 2 + 0.5).reshape(400, -1)
    matches = [np.flatnonzero((means == image.reshape(-1)).all(1)).tolist() for image in images]
    pairs = [divmod(match[0], 20) for match in matches]  # every image is one of the 400 means
    assert len(images) == 20 and all(i != j for i, j in pairs)
    assert (loaded.split.labels == -1).all() and loaded.num_classes is None
    assert (loaded.name, loaded.title) == ("cifar10interp", "CIFAR-10 interpolations")
    assert "20 pairs of seed 3" in loaded.about

    first = data.EvaluationSets(tmp_path, "svhn", seed=3).load("cifar_interp", 6).split.images
    assert (first.numpy() == images[:6]).all()
    of_seed_4 = data.EvaluationSets(tmp_path, seed=4).load("interp").split.images
    assert not np.array_equal(of_seed_4, images)
    of_svhn = data.EvaluationSets(tmp_path, "svhn").load("interp")
    assert (of_svhn.title, len(of_svhn.split.images)) == ("SVHN interpolations", 10)
    np.savez(tmp_path / "cifar10.npz", test_images=pixels[:1])
    with pytest.raises(data.DataError, match="^--dataset interp: has no images: a pair takes 2"):
        data.EvaluationSets(tmp_path).load("interp")


@pytest.mark.parametrize("name", ["uniform", "gaussian"])
def test_noise_has_its_distribution_and_is_the_same_for_any_number_of_images(name):
    """Count the 256 values; the tails of the normal are clipped to -1 and 1."""
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    images = images_of(name, 1001)
    assert images.shape == (1001, 32, 32, 3)
    for n in (1, 500, 501):
        assert (images_of(name, n) == images[:n]).all()
    assert (images_of(name, 2, seed=2) != images[:2]).mean() > 0.9
    assert len({image.tobytes() for image in images}) == 1001
    assert (np.random.get_state()[1] == before[0]).all()
    assert torch.equal(torch.get_rng_state(), before[1])
    about = data.EvaluationSets(Path("nowhere")).load(name, 5).about
    assert "the first 5 of 10,000 images" in about and "seed 1" in about

    edges = [(k / 127.5 - 1) / 0.5 for k in np.arange(0.5, 255)]
    cdf = [0.0, *(0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in edges), 1.0]
    expected = images.size * (np.diff(cdf) if name == "gaussian" else np.full(256, 1 / 256))
    counts = np.bincount(images.reshape(-1), minlength=256)
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()  # 5 standard deviations


def test_photos_are_the_patches_of_both_photographs_in_a_mixed_order():
    from sklearn import datasets

    patches = images_of("photos")
    expected = {
        photo[top : top + 32, left : left + 32].tobytes()
        for photo in datasets.load_sample_images().images
        for top in range(5, 421 - 31, 32)  # 427 rows hold 13 patches and 11 rows: 5 are above
        for left in range(0, 640, 32)
    }
    assert patches.shape == (520, 32, 32, 3)
    assert {patch.tobytes() for patch in patches} == expected
    assert (images_of("photos", 10) == patches[:10]).all()
    assert abs(np.diff(patches.mean((1, 2, 3)))).mean() > 30  # neighbours of a photo differ less
    with pytest.raises(data.DataError, match="has no images"):  # larger than a photo
        data.EvaluationSets(Path("nowhere"), size=428).load("photos")
