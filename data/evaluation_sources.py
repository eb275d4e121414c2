"""Where the images of an evaluation set come from: files, a seed, or scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.base import DataError, Split
from data.digits import load_digits
from data.evaluation_names import Place, archive
from data.folder import list_folder, list_images, read_images
from data.generated import (
    GAUSSIAN_STD,
    NOISE_IMAGES,
    gaussian_noise,
    interpolate,
    interpolation_pairs,
    photo_patches,
    uniform_noise,
)
from data.npz import read_npz
from data.published import FILES, load_published_ood, load_published_split
from data.sets import FOLDER, SPECS
from data.splits import default_n_valid, split_validation

RESIZED = "centre square, bilinear with antialias to 32 x 32"
PUBLISHED = {  # test images, and how torchvision's files are read
    "celeba": (19962, f"test split of the aligned images, {RESIZED}"),
    "textures": (1880, f"test split 1 of DTD in a fixed random order, {RESIZED}"),
    "mnist": (10000, "test split, 28 x 28 padded to 32 x 32, grey as RGB"),
}
CLASSES = {"textures": 47, "mnist": 10}


class Found(NamedTuple):
    """What a source gave, before it is named."""

    split: Split
    total: int  # images of the whole split, of which `split` may be the first
    num_classes: int | None
    source: str


def find(
    place: Place, root: Path, in_dataset: str, *, seed: int, first: int | None, n_valid: int | None
) -> Found:
    """The `first` images of a place. Raises DataError, which speaks of `--dataset`."""
    dataset = place.dataset
    if dataset.startswith(FOLDER):
        return _folder(place, first, n_valid)
    if dataset in SPECS:
        return _training_set(place, root, first, n_valid)
    if dataset in ("interp", "cifar10interp"):
        parent = Place(in_dataset if dataset == "interp" else "cifar10", "test")
        whole = find(parent, root, in_dataset, seed=seed, first=None, n_valid=None)
        return _interpolations(whole, seed, first)
    if dataset in ("uniform", "gaussian"):
        return _noise(dataset, seed, first)
    if dataset == "photos":
        patches = photo_patches()
        source = "patches of 32 x 32 on a grid over scikit-learn's two photographs"
        return Found(_unlabelled(patches[:first]), len(patches), None, source)
    return _other_set(dataset, root, first)


def _folder(place: Place, first: int | None, n_valid: int | None) -> Found:
    """A folder to train on has its splits; any other is all of its images, without labels."""
    path = Path(place.dataset.removeprefix(FOLDER)).expanduser()
    try:
        listing = list_folder(path)
    except DataError:
        if place.split != "test" or not path.is_dir():
            raise
        files = list_images(path)
        source = f"all images below the folder, in a fixed random order, {RESIZED}"
        return Found(read_images(files[:first]), len(files), None, source)
    if place.split == "test":
        files, source = listing.test, "test images"
    else:
        files, source = listing.train, "training images"
    if place.split == "valid":
        files = [files[i] for i in _validation_index(len(files), n_valid).tolist()]
        source = "held out of the training images"
    num_classes = len(listing.class_names)
    return Found(read_images(files[:first]), len(files), num_classes, f"{source}, {RESIZED}")


def _training_set(place: Place, root: Path, first: int | None, n_valid: int | None) -> Found:
    dataset, part = place.dataset, "test" if place.split == "test" else "train"
    spec, file = SPECS[dataset], archive(root, dataset)
    if dataset == "digits":
        train, test = load_digits()
        whole = test if part == "test" else train
        source = "scikit-learn's 8 x 8 digits, bilinear to 32 x 32"
    elif file.exists():
        whole, source = _from_archive(file, part, spec.num_classes), file.name
    else:
        whole, source = load_published_split(dataset, root, part)[0], "the published files"
    source += _shortage(len(whole.images), spec.test_size if part == "test" else spec.train_size)
    if place.split == "valid":
        index = _validation_index(len(whole.images), n_valid)
        whole = Split(whole.images[index], whole.labels[index])
        source += ", held out of the training images"
    return _cut(whole, first, spec.num_classes, source)


def _other_set(dataset: str, root: Path, first: int | None) -> Found:
    """<dataset>.npz, its test images or else its training images; or what torchvision reads."""
    file = archive(root, dataset)
    if file.exists():
        part, splits = "test", read_npz(file, CLASSES.get(dataset), splits=("test",))
        if "test" not in splits or not len(splits["test"].images):
            part, splits = "train", read_npz(file, CLASSES.get(dataset), splits=("train",))
        if part not in splits:
            raise _lacking(file, "test_images nor train_images")
        whole = splits[part]
        highest = int(whole.labels.max()) if len(whole.labels) else -1
        source = f"{part} images of {file.name}, {RESIZED} where they have another size"
        if dataset in PUBLISHED and part == "test":
            source += _shortage(len(whole.images), PUBLISHED[dataset][0])
        return _cut(whole, first, CLASSES.get(dataset, highest + 1), source)
    if dataset not in FILES:
        raise DataError(
            f"--dataset {dataset}: there is no {file.name} in {root}; put it there "
            "(test_images: uint8 N x H x W x 3), or give another --data_root"
        )
    split, total = load_published_ood(dataset, root, first)
    return _cut(split, first, CLASSES.get(dataset), PUBLISHED[dataset][1])._replace(total=total)


def _interpolations(whole: Found, seed: int, first: int | None) -> Found:
    images, n = whole.split.images, whole.total
    if n < 2:
        raise DataError(
            f"--dataset interp: has no images: a pair takes 2 test images, there is {n}"
        )
    a, b = interpolation_pairs(n, seed)
    means = interpolate(images[a[:first]], images[b[:first]])
    source = (
        "means of two different test images, rounded half up to uint8, "
        f"{n:,} pairs of seed {seed}; {whole.source}"
    )
    return Found(_unlabelled(means), n, None, source)


def _noise(dataset: str, seed: int, first: int | None) -> Found:
    n = NOISE_IMAGES if first is None else min(first, NOISE_IMAGES)
    if dataset == "uniform":
        images, values = uniform_noise(n, seed), "U{0, ..., 255}"
    else:
        images = gaussian_noise(n, seed)
        values = f"N(0, {GAUSSIAN_STD}^2) in units of [-1, 1], clipped, as uint8"
    source = f"every value {values}, seed {seed}"
    return Found(_unlabelled(images), NOISE_IMAGES, None, source)


def _from_archive(file: Path, part: str, num_classes: int) -> Split:
    splits = read_npz(file, num_classes, splits=(part,))
    if part not in splits:
        raise _lacking(file, f"{part}_images")
    return splits[part]


def _lacking(file: Path, what: str) -> DataError:
    return DataError(
        f"--dataset {file.stem}: {file.name} in {file.parent} has no {what}; "
        "add them, or give another set or split"
    )


def _shortage(n: int, published: int) -> str:
    """Said wherever it applies, so that nobody takes a part of a set for the set."""
    return "" if n == published else f" (this copy has {n:,}, the published split {published:,})"


def _validation_index(n: int, n_valid: int | None) -> Tensor:
    return split_validation(n, default_n_valid(n) if n_valid is None else n_valid)[1]


def _unlabelled(images: Tensor) -> Split:
    return Split(images, torch.full((len(images),), -1))


def _cut(whole: Split, first: int | None, num_classes: int | None, source: str) -> Found:
    """The first images of a split; without a number of classes where an image has no label."""
    labelled = bool((whole.labels >= 0).all())
    split = Split(whole.images[:first], whole.labels[:first])
    return Found(split, len(whole.images), num_classes if labelled else None, source)
