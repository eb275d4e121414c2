"""Where the images of an evaluation set come from: files, a seed, or scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.base import DataSet, SetError, Spec, Split
from data.evaluation_names import Place, archive
from data.folder import FOLDER, folder_path, has_classes, list_images, load_folder, read_images
from data.generated import (
    GAUSSIAN_STD,
    NOISE_IMAGES,
    gaussian_noise,
    interpolate,
    interpolation_pairs,
    photo_patches,
    uniform_noise,
)
from data.npz import left_out, read_npz
from data.published import FILES, load_published_ood, load_published_split
from data.record import Record
from data.sets import SPECS, load
from data.splits import hold_out
from runs.names import IMAGE_SIZE

PUBLISHED = {  # test images, and how torchvision's files are read
    "celeba": (19962, "test split of the aligned images"),
    "textures": (1880, "test split 1 of DTD in a fixed random order"),
}
CLASSES = {"textures": 47}


class Found(NamedTuple):
    """What a source gave, before it is named."""

    split: Split
    total: int  # images of the whole split, of which `split` may be the first
    num_classes: int | None
    source: str
    class_names: tuple[str, ...] | None = None  # of a folder


class Asked(NamedTuple):
    """What a set depends on besides its name."""

    root: Path
    in_dataset: str
    size: int  # of the images' side, in pixels
    run: Record
    seed: int
    n_valid: int | None
    strict: bool  # whether the set is asked about as a data set, and not as an OOD set
    folders: dict[Any, DataSet]  # those that were read already, by name, size and reader

    @property
    def resized(self) -> str:
        return f"centre square, bilinear with antialias to {self.size} x {self.size}"


def find(place: Place, asked: Asked, first: int | None) -> Found:
    """The `first` images of a place. Raises DataError."""
    dataset, in_dataset, seed, size = place.dataset, asked.in_dataset, asked.seed, asked.size
    if dataset.startswith(FOLDER):
        return _folder(place, asked, first)
    if dataset in SPECS:
        return _training_set(place, asked, first)
    if dataset in ("interp", "cifar10interp"):
        parent = Place(in_dataset if dataset == "interp" else "cifar10", "test")
        whole = find(parent, asked, None)
        return _interpolations(whole, seed, first)
    if dataset in ("uniform", "gaussian"):
        return _noise(dataset, seed, size, first)
    if dataset == "photos":
        patches = photo_patches(size)
        source = f"patches of {size} x {size} on a grid over scikit-learn's two photographs"
        return Found(_unlabelled(patches[:first]), len(patches), None, source)
    return _other_set(dataset, asked, first)


def _folder(place: Place, asked: Asked, first: int | None) -> Found:
    """A folder to train on has its splits; any other is all of its images, without labels. The
    folder that the run was trained on is never taken for such a one."""
    own, reader = place.dataset == asked.in_dataset, asked.run.reader
    path = folder_path(place.dataset)
    if not own and place.split == "test" and path.is_dir() and not has_classes(path):
        listing = list_images(path)
        files = listing.parts["all"]
        source = f"all images below the folder, in a fixed random order, {asked.resized}"
        source += f"; {listing.about()}"
        return Found(read_images(files[:first], asked.size, reader), len(files), None, source)
    key = place.dataset, asked.size, reader, own or asked.strict
    if key not in asked.folders:
        asked.folders[key] = load_folder(
            place.dataset,
            size=asked.size,
            reader=reader,
            allow_empty=not (own or asked.strict),
        )
    dataset = asked.folders[key]
    split, source = _part(dataset, place, asked)
    n, names = dataset.num_classes, dataset.class_names
    source += f", {asked.resized}; {dataset.about.removeprefix(place.dataset + ': ')}"
    return Found(split.first(first), len(split.labels), n, source, names)


def _part(dataset: DataSet, place: Place, asked: Asked) -> tuple[Split, str]:
    """A split of a set to train on, and what it is. Of images that are no longer those of the run,
    the validation images are those that the run held out, as far as they are there."""
    if place.split != "valid":
        if place.split == "test":
            return dataset.test, "test images"
        return dataset.train, "training images"
    run, train = asked.run, dataset.train
    if place.dataset == asked.in_dataset and run.train is not None:
        assert train.hashes is not None
        if not torch.equal(run.train, train.hashes):
            held_out = torch.isin(train.hashes, run.hashes("valid")).nonzero().squeeze(1)
            return train.take(held_out), "those that the run held out of its training images"
    return train.take(hold_out(dataset, asked.n_valid)[1]), "held out of the training images"


def _training_set(place: Place, asked: Asked, first: int | None) -> Found:
    dataset, part = place.dataset, "test" if place.split == "test" else "train"
    spec, file = SPECS[dataset], archive(asked.root, dataset)
    if dataset == "digits":
        whole = getattr(load(dataset, asked.root, size=asked.size), part)
        source = f"scikit-learn's 8 x 8 digits, bilinear to {asked.size} x {asked.size}"
    elif file.exists():
        whole = _from_archive(file, part, spec, asked.size)
        source = file.name + left_out(file)
    else:
        whole = load_published_split(dataset, asked.root, part, asked.size)[0]
        source = "the published files"
        if dataset == "mnist":
            source += ", 28 x 28 padded to 32 x 32, grey as RGB"
    if dataset != "digits" and asked.size != IMAGE_SIZE:
        source += f", {asked.resized}"
    source += _shortage(len(whole.images), spec.test_size if part == "test" else spec.train_size)
    if place.split == "valid":
        read = DataSet(dataset, spec.num_classes, (), spec.flips, whole, whole.first(0))
        whole, said = _part(read, place, asked)
        source += f", {said}"
    return _cut(whole, first, spec.num_classes, source)


def _other_set(dataset: str, asked: Asked, first: int | None) -> Found:
    """<dataset>.npz, its test images or else its training images; or what torchvision reads."""
    file, size = archive(asked.root, dataset), asked.size
    if file.exists():
        part, splits = "test", read_npz(file, CLASSES.get(dataset), ("test",), size=size)
        if "test" not in splits or not len(splits["test"].images):
            part, splits = "train", read_npz(file, CLASSES.get(dataset), ("train",), size=size)
        if part not in splits:
            raise _lacking(file, "test_images nor train_images")
        whole = splits[part]
        highest = int(whole.labels.max()) if len(whole.labels) else -1
        source = f"{part} images of {file.name}, {asked.resized} where they have another size"
        source += left_out(file, (part,))
        if dataset in PUBLISHED and part == "test":
            source += _shortage(len(whole.images), PUBLISHED[dataset][0])
        return _cut(whole, first, CLASSES.get(dataset, highest + 1), source)
    if dataset not in FILES:
        raise SetError(
            dataset,
            f"there is no {file.name} in {asked.root}; put it there "
            "(test_images: uint8 N x H x W x 3), or give another --data_root",
        )
    split, total = load_published_ood(dataset, asked.root, size, first)
    source = f"{PUBLISHED[dataset][1]}, {asked.resized}"
    return _cut(split, first, CLASSES.get(dataset), source)._replace(total=total)


def _interpolations(whole: Found, seed: int, first: int | None) -> Found:
    images, n = whole.split.images, whole.total
    if n < 2:
        raise SetError("interp", f"has no images: a pair takes 2 test images, there is {n}")
    a, b = interpolation_pairs(n, seed)
    means = interpolate(images[a[:first]], images[b[:first]])
    source = (
        "means of two different test images, rounded half up to uint8, "
        f"{n:,} pairs of seed {seed}; {whole.source}"
    )
    return Found(_unlabelled(means), n, None, source)


def _noise(dataset: str, seed: int, size: int, first: int | None) -> Found:
    n = NOISE_IMAGES if first is None else min(first, NOISE_IMAGES)
    if dataset == "uniform":
        images, values = uniform_noise(n, seed, size), "U{0, ..., 255}"
    else:
        images = gaussian_noise(n, seed, size)
        values = f"N(0, {GAUSSIAN_STD}^2) in units of [-1, 1], clipped, as uint8"
    source = f"every value {values}, seed {seed}"
    return Found(_unlabelled(images), NOISE_IMAGES, None, source)


def _from_archive(file: Path, part: str, spec: Spec, size: int) -> Split:
    splits = read_npz(file, spec.num_classes, (part,), size=size, grey=spec.grey)
    if part not in splits:
        raise _lacking(file, f"{part}_images")
    return splits[part]


def _lacking(file: Path, what: str) -> SetError:
    return SetError(
        file.stem,
        f"{file.name} in {file.parent} has no {what}; add them, or give another set or split",
    )


def _shortage(n: int, published: int) -> str:
    """Said wherever it applies, so that nobody takes a part of a set for the set."""
    return "" if n == published else f" (this copy has {n:,}, the published split {published:,})"


def _unlabelled(images: Tensor) -> Split:
    return Split(images, torch.full((len(images),), -1))


def _cut(whole: Split, first: int | None, num_classes: int | None, source: str) -> Found:
    """The first images of a split; without a number of classes where an image has no label."""
    labelled = bool((whole.labels >= 0).all())
    return Found(whole.first(first), len(whole.images), num_classes if labelled else None, source)
