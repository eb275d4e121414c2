"""The starts of chains: Gaussians against numpy, chosen by the labels of the chains."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from losses import GaussianStart, ReplayBuffer, UniformStart, new_start
from losses.start import FIT
from runs.names import STARTS

D = 3 * FIT * FIT
CLASSES = 4


def pictures(n: int = 120) -> tuple[Tensor, Tensor]:
    """Make uint8 (n, 32, 32, 3) whose brightness tells the class; class 3 has no image, and label
    -1 stands where a label may not be used."""
    random = np.random.RandomState(0)
    labels = random.choice([0, 1, 2, -1], n, p=[0.5, 0.3, 0.1, 0.1])
    low = random.randint(0, 90, (n, FIT, FIT, 3)) + 70 * (labels % 4)[:, None, None, None] % 210
    images = low.repeat(4, 1).repeat(4, 2) + random.randint(0, 10, (n, 32, 32, 3))
    return torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels)


def reference(images: Tensor, labels: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Return means (G, D) and covariances (G, D, D), written out."""
    blocks = images.numpy().astype(np.float64) / 127.5 - 1
    low = blocks.reshape(-1, FIT, 4, FIT, 4, 3).mean((2, 4)).transpose(0, 3, 1, 2).reshape(-1, D)
    of_class = [low] if labels is None else [low[labels.numpy() == y] for y in range(CLASSES)]
    total = sum(map(len, of_class))
    covariances = [np.cov(x.T, bias=True) if len(x) else np.zeros((D, D)) for x in of_class]
    pooled = sum(len(x) * c for x, c in zip(of_class, covariances, strict=True)) / total
    means = [x.mean(0) if len(x) else low.mean(0) for x in of_class]
    shares = [D / (D + len(x)) for x in of_class]
    shrunk = [(1 - w) * c + w * pooled for w, c in zip(shares, covariances, strict=True)]
    return np.stack(means), np.stack(shrunk)


def fitted(labelled: bool = True) -> GaussianStart:
    images, labels = pictures()
    start = new_start("class_gaussian" if labelled else "gaussian", CLASSES)
    assert isinstance(start, GaussianStart)
    start.fit(images, labels if labelled else None)
    return start


@pytest.mark.parametrize("labelled", [True, False])
def test_moments_are_those_of_each_class_shrunk_to_all(labelled):
    """A class without images has the mean of all, for which images without a label count, too."""
    images, labels = pictures()
    mean, covariance = reference(images, labels if labelled else None)
    start = fitted(labelled)
    np.testing.assert_allclose(start.mean, mean, rtol=0, atol=1e-6)
    root = start.root.double().numpy()
    np.testing.assert_allclose(root @ root, covariance, rtol=0, atol=1e-6)
    np.testing.assert_allclose(root, root.transpose(0, 2, 1), rtol=0, atol=1e-6)
    if labelled:
        assert not (labels == 3).any() and (labels == -1).any()
        assert np.abs(mean[0] - mean[1]).max() > 0.3


@pytest.mark.parametrize(("groups", "labelled"), [(CLASSES, False), (1, True)])
def test_labels_that_do_not_fit_the_number_of_groups_are_refused(groups, labelled):
    images, labels = pictures()
    with pytest.raises(ValueError, match=f"{groups} groups"):
        GaussianStart(groups).fit(images, labels if labelled else None)


def test_samples_have_these_moments_before_they_are_clipped():
    """Images of the fit's size are not enlarged; a Gaussian so narrow is never clipped."""
    start, y = fitted(), 1
    start.root *= 0.2
    like, labels = torch.empty(5000, 3, FIT, FIT), torch.full((5000,), y)
    low = start.draw(like, labels, torch.Generator().manual_seed(0)).flatten(1).double()
    assert low.abs().max() < 1
    covariance = (start.root[y] @ start.root[y]).double()
    spread = covariance.diagonal().sqrt()
    assert ((low.mean(0) - start.mean[y]) / spread).abs().max() < 0.075  # five standard errors
    difference = (low.T.cov(correction=0) - covariance) / spread.outer(spread)
    assert difference.abs().max() < 0.1 and difference.abs().mean() < 0.017


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("labelled", [True, False])
def test_images_are_within_the_pixel_range_and_from_the_generator(kind, labelled):
    start = UniformStart() if kind == "uniform" else fitted(kind == "class_gaussian")
    if isinstance(start, GaussianStart):
        start.root *= 20  # many pixels are clipped
    like, labels = torch.empty(70, 3, 32, 32), torch.arange(70) % CLASSES if labelled else None
    before = torch.get_rng_state()
    draws = [start.draw(like, labels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    images, same, different = draws
    assert torch.equal(images, same) and not torch.equal(images, different)
    assert torch.equal(torch.get_rng_state(), before)
    assert images.shape == like.shape and images.dtype == like.dtype
    assert -1 <= images.min() < -0.99 and 0.99 < images.max() <= 1
    assert start.draw(like.double(), labels).dtype == torch.float64


def test_a_chain_s_label_decides_its_gaussian():
    """Without spread a chain begins as the mean of its class, enlarged."""
    start, labels = fitted(), torch.arange(600) * 3 % CLASSES  # more than are drawn at once
    start.root.zero_()
    images = start.draw(torch.empty(600, 3, 32, 32), labels)
    means = start.mean.view(-1, 3, FIT, FIT)
    expected = F.interpolate(means, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(images, expected.clamp(-1, 1)[labels])


def test_without_a_label_the_class_is_random():
    start = buffer_of(1, 0.0).start
    images = start.draw(torch.empty(2000, 3, 8, 8), None, torch.Generator().manual_seed(0))
    counts = shades(images).bincount(minlength=CLASSES)
    assert (counts / 500 - 1).abs().max() < 0.2
    torch.manual_seed(0)
    classes = shades(buffer_of(1, 0.0).images)  # a buffer without classes
    assert len(set(classes.tolist())) == CLASSES and not torch.equal(classes, classes.sort()[0])


def buffer_of(num_classes: int, reinit_freq: float) -> ReplayBuffer:
    """Make a buffer whose starts are Gaussians without spread: class y at y / 4 everywhere."""
    start = GaussianStart(CLASSES)
    start.mean.copy_((torch.arange(CLASSES)[:, None] / 4).expand_as(start.mean))
    return ReplayBuffer(40, (3, 8, 8), reinit_freq, num_classes, start)


def shades(images: Tensor) -> Tensor:
    assert torch.equal(images, images[:, :1, :1, :1].expand_as(images))
    return (images[:, 0, 0, 0] * 4).round().long()


@pytest.mark.parametrize("labels", [None, torch.tensor([3, 0, 0, 2])])
def test_a_slot_begins_and_restarts_as_its_class(labels):
    buffer = buffer_of(CLASSES, reinit_freq=1.0)
    classes = torch.arange(40) // 10
    assert torch.equal(shades(buffer.images), classes)
    buffer.images.fill_(9)
    start, slots = buffer.draw(4, labels)
    assert torch.equal(shades(start), classes[slots])
    buffer.images[5:15] = torch.nan
    assert buffer.renew() == 10
    assert torch.equal(shades(buffer.images[5:15]), classes[5:15])
