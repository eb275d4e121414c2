"""Nearest training images, variety, precision and recall against brute force."""

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation import neighbours
from evaluation.neighbours import compare_with_training, nearest, precision_recall


def pictures(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, 2, 3), generator=generator).to(torch.uint8)


def features(n: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def distances(a: Tensor, b: Tensor, unit: float = 1.0) -> np.ndarray:
    x, y = (images.flatten(1).double().numpy() / unit for images in (a, b))
    return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))


@pytest.mark.parametrize("largest", [1, 130, 2**24])
@pytest.mark.parametrize("k", [1, 2])
def test_nearest_against_brute_force(k, largest, monkeypatch):
    monkeypatch.setattr(neighbours, "LARGEST", largest)
    images, bank = pictures(9), pictures(20, seed=1)
    images[3] = bank[17]
    expected = distances(images, bank, 255)
    distance, index = nearest(images, bank, k)
    assert index.tolist() == expected.argsort(1)[:, k - 1].tolist()
    np.testing.assert_allclose(distance, np.sort(expected, 1)[:, k - 1], rtol=1e-6)
    assert k == 2 or distance[3] == 0
    # The same bits whatever the chunks.
    x, b = images.flatten(1).float() / 255, bank.flatten(1).float() / 255
    assert distance.equal((x[:, None] - b).norm(dim=2).sort(1).values[:, k - 1])


def test_samples_are_compared_with_the_training_images_of_their_class():
    labels, data_labels = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([1, 0] * 6)
    samples, starts, data = pictures(5), pictures(5, 1), pictures(12, 2)
    numbers, index = compare_with_training(samples, starts, labels, data, data_labels)
    far: dict[str, list[float]] = {"samples": [], "starts": [], "data": []}
    apart: dict[str, list[float]] = {name: [] for name in far}
    for y in (0, 1):
        of_y, data_of_y = (np.flatnonzero(x == y) for x in (labels, data_labels))
        bank, n = data[data_of_y], len(of_y)
        spaced = np.arange(n) * 6 // n
        nearest_of_y = data_of_y[distances(samples[of_y], bank).argmin(1)]
        assert index[of_y].tolist() == nearest_of_y.tolist()
        sets = {"samples": samples[of_y], "starts": starts[of_y], "data": bank[spaced]}
        for name, images in sets.items():
            to_bank = distances(images, bank, 255)
            if name == "data":
                to_bank[range(n), spaced] = np.inf  # an image is not its own neighbour
            far[name] += to_bank.min(1).tolist()
            apart[name].append(distances(images, images, 255)[np.triu_indices(n, 1)].mean())
    near = {name: np.mean(values) for name, values in far.items()}
    near |= {f"samples_over_{n}": near["samples"] / near[n] for n in ("starts", "data")}
    variety = {name: np.mean(values) for name, values in apart.items()}
    variety["samples_over_data"] = variety["samples"] / variety["data"]
    assert numbers["nearest"] == pytest.approx(near, rel=1e-6)
    assert numbers["variety"] == pytest.approx(variety, rel=1e-6)


def test_one_sample_has_no_variety_and_a_copy_no_distance():
    data, labels = pictures(6), torch.tensor([0, 0, 0, 1, 1, 1])
    numbers, index = compare_with_training(data[[5]], data[[4]], labels[[5]], data, labels)
    assert index.tolist() == [5] and numbers["variety"]["samples"] is None
    assert numbers["nearest"]["samples"] == numbers["nearest"]["starts"] == 0
    assert numbers["nearest"]["samples_over_starts"] is None  # 0 / 0
    with pytest.raises(ValueError, match="class 1 has 1 training images"):
        compare_with_training(data[[5]], data[[4]], labels[[5]], data[:4], labels[:4])


SETS = {
    "apart": (features(30), features(40, 1)),
    "wide": (features(30, scale=3), features(40, 1)),
    "narrow": (features(40, scale=0.1), features(11, 1)),
    "copies": (features(9).repeat(5, 1), torch.cat([features(9), features(9, 1)])),
    "all the same": (torch.ones(8, 4), torch.ones(5, 4)),
    "tiny": (features(4), features(5, 1)),
}


@pytest.mark.parametrize("largest", [50, 2**24])
@pytest.mark.parametrize("name", SETS)
def test_precision_and_recall_against_brute_force(name, largest, monkeypatch):
    monkeypatch.setattr(neighbours, "LARGEST", largest)
    samples, real = SETS[name]

    def covered(a: Tensor, b: Tensor) -> float:
        """Return the share of a within the distance of some b to its 3rd neighbour in b."""
        radii = np.sort(distances(b, b), 1)[:, 3]
        return float((distances(a, b) <= radii).any(1).mean())

    expected = covered(samples, real), covered(real, samples)
    assert precision_recall(samples, real) == pytest.approx(expected)
    radii = neighbours.neighbour_radii(real)
    assert precision_recall(samples, real, radii=radii) == pytest.approx(expected)
    assert precision_recall(samples[:3], real) == precision_recall(real, real[:3]) == (None, None)
