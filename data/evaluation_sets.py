"""The sets that a trained model is asked about: their names in every spelling, and their images."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data import generated
from data.base import DataError, DataSet, Split
from data.folder import folder_path, has_classes, list_images, load_folder, read_images
from data.npz import left_out, read_npz
from data.openood import PREFIX, list_file, read_list
from data.published import FILES, read_published
from data.record import Record
from data.sets import SPECS, archive, canonical_name, find, square
from data.splits import hold_out
from runs.cli import did_you_mean
from runs.names import ALIASES, FOLDER, IMAGE_SIZE, TITLES

ALL_OOD = ("svhn", "cifar10interp", "cifar100", "celeba")  # the columns of the HDGE paper's Table 1
NO_DOWNLOAD = ("interp", "photos", "uniform", "gaussian")  # `all` of a model of the digits
OUT = ("cifar10interp", "celeba", "textures", "faces", "uniform", "gaussian", "photos", "interp")
PUBLISHED = {  # test images, and how torchvision's files are read
    "celeba": (19962, "test split of the aligned images"),
    "textures": (1880, "test split 1 of DTD in a fixed random order"),
}
CLASSES = {"textures": 47}
_SPLIT_TITLES = {"test": "test", "train": "training", "valid": "validation"}
_ALIASES = {**ALIASES, "cifar": "cifar10", "cifar_interp": "cifar10interp"}
_SET = re.compile(rf"({'|'.join([*SPECS, *ALIASES, 'cifar'])})(?:_?(train|test|valid))?")
_FOLDER_SPLIT = re.compile(r"folder(?:_(train|test|valid))?:(.+)", re.DOTALL)


class Place(NamedTuple):
    """The set and the split that a name stands for."""

    dataset: str  # as in SPECS, folder:PATH, openood:LIST, or one of OUT, or <dataset>.npz
    split: str = "test"  # or "train" or "valid", of SPECS and folders

    @property
    def name(self) -> str:
        """Return the canonical name: "cifar10_test", "svhn_train", "celeba", "folder:PATH", ..."""
        return split_name(self.dataset, self.split)


def locate(
    name: str, in_dataset: str | None = None, *, data_root: str | Path | None = None
) -> Place:
    """Resolve a name, whose default split is test, without reading a file. With a `data_root`, any
    <data_root>/<name>.npz has a name; `interp` of a CIFAR-10 model (`in_dataset`) is cifar10interp.

    Raises DataError for an unknown set.
    """
    if match := _FOLDER_SPLIT.fullmatch(name):
        return Place(FOLDER + match[2], match[1] or "test")
    if name.startswith(PREFIX):
        return Place(name)
    if match := _SET.fullmatch(name):
        return Place(_ALIASES.get(match[1], match[1]), match[2] or "test")
    plain = _ALIASES.get(name, name)
    if plain == "interp" and in_dataset == "cifar10":
        return Place("cifar10interp")
    if plain in OUT:
        return Place(plain)
    # A name, and not a way out of data_root.
    if plain and Path(plain).name == plain and data_root is not None:
        if archive(data_root, plain).is_file():
            return Place(plain)
    known = [*SPECS, *OUT, FOLDER + "PATH"]
    near = did_you_mean(name, known)
    raise DataError(
        "dataset",
        name,
        f"unknown data set; {near}give one of {', '.join(known)} (the first {len(SPECS)} also as "
        "<name>_test, <name>_train, <name>_valid), or the <name> of a <data_root>/<name>.npz",
    )


def split_name(dataset: str, split: str = "test") -> str:
    """Return the canonical name of a split of a training set or folder."""
    if dataset.startswith(FOLDER):
        path = dataset.removeprefix(FOLDER)
        return dataset if split == "test" else f"folder_{split}:{path}"
    dataset = _ALIASES.get(dataset, dataset)
    return f"{dataset}_{split}" if dataset in SPECS else dataset


def all_ood(in_dataset: str) -> tuple[str, ...]:
    """Return the sets of `all`: the paper's four, CIFAR-10 in place of the model's own set; for the
    digits those that need no files."""
    in_dataset = canonical_name(in_dataset)
    if in_dataset == "digits":
        return NO_DOWNLOAD
    return tuple("cifar10" if name == in_dataset else name for name in ALL_OOD)


def title(place: Place, in_dataset: str) -> str:
    """Return the name for pictures and tables: "CIFAR-10 (test)", "CelebA", a folder's name."""
    dataset = in_dataset if place.dataset == "interp" else place.dataset
    plain = TITLES.get(dataset, dataset)
    if dataset.startswith(FOLDER):
        plain = folder_path(dataset).resolve().name or dataset
    if place.dataset == "interp":
        return f"{plain} interpolations"
    if dataset in SPECS or place.split != "test":
        return f"{plain} ({_SPLIT_TITLES[place.split]})"
    return plain


class EvaluationSet(NamedTuple):
    """A set to evaluate on, of one image at least."""

    split: Split  # images uint8 (N, size, size, 3), labels int64 (N,): -1 where there is none
    total: int  # images of the whole split
    num_classes: int | None  # None where an image has no label
    source: str  # one line: source, split, crop and resizing, pairs, seed
    class_names: tuple[str, ...] | None = None  # of a folder
    name: str = ""  # canonical: "cifar10_test", "celeba", "interp", "folder:PATH"
    title: str = ""  # for pictures and tables: "CIFAR-10 (test)", "faces (not CelebA)"

    @property
    def about(self) -> str:
        n = len(self.split.images)
        count = f"{n:,}" if n == self.total else f"the first {n:,} of {self.total:,}"
        return f"{self.title}: {count} images; {self.source}"


@dataclass(frozen=True)
class EvaluationSets:
    """The sets that a trained model can be asked about.

    A set is <root>/<name>.npz where that exists (test images alone, or images without labels, are
    fine), else torchvision's own files in `root`, downloaded where missing. Images are resized
    before they are interpolated; noise and patches are made in the size. `seed` >= 0 chooses pairs
    and noise images, which no number of images changes. No global random state is read or moved.
    """

    root: Path
    dataset: str = "cifar10"  # that the model was trained on, of SPECS or a folder
    size: int = IMAGE_SIZE  # of the images' side, in pixels
    n_valid: int | None = None  # images of the `_valid` splits; None: the default number
    record: Record = Record()  # of the images that the run held out
    seed: int = 1
    folders: dict[Any, DataSet] = field(default_factory=dict)  # that were read already

    def load(
        self, name: str, max_images: int | None = None, *, strict: bool = True
    ) -> EvaluationSet:
        """Read or make the set called `name`; `max_images`: the first N of its split. `strict`: a
        folder's classes all have images, as for training.

        Raises DataError about `name`: unknown, missing or damaged sets, splits that are not there,
        sets without images.
        """
        place = locate(name, self.dataset, data_root=self.root)
        try:
            found = self.read(place, max_images, strict)
        except DataError as error:
            raise error.asked_as("dataset", name) from error
        if not len(found.split.images):
            raise DataError("dataset", name, f"has no images ({found.source}); give another set")
        return found._replace(name=place.name, title=title(place, self.dataset))

    def read(self, place: Place, first: int | None, strict: bool = True) -> EvaluationSet:
        """Read at least the `first` images of a place; None: all."""
        dataset = place.dataset
        if dataset.startswith(FOLDER):
            return self.folder(place, first, strict)
        if dataset.startswith(PREFIX):
            source = f"{list_file(dataset)} of OpenOOD, shorter side to 32, centre cut out"
            return _cut(read_list(dataset, self.root, self.size), first, None, source)
        if dataset in SPECS:
            return self.training_set(place, first)
        if dataset in ("interp", "cifar10interp"):
            parent = self.dataset if dataset == "interp" else "cifar10"
            return self.interpolations(self.read(Place(parent), None), first)
        if dataset in ("uniform", "gaussian", "photos"):
            return self.made(dataset, first)
        return self.other_set(dataset, first)

    def folder(self, place: Place, first: int | None, strict: bool) -> EvaluationSet:
        """Read a split of a folder to train on, or all images of any other folder, without labels.
        The folder that the run was trained on is never taken for such a one."""
        own, size = place.dataset == self.dataset, self.size
        strict = strict or own
        path = folder_path(place.dataset)
        if not own and place.split == "test" and path.is_dir() and not has_classes(path):
            listing = list_images(path)
            files = listing.parts["all"]
            source = f"all images below the folder, in a fixed random order, {square(size)}"
            source += f"; {listing.about()}"
            return EvaluationSet(read_images(files[:first], size), len(files), None, source)
        key = place.dataset, size, strict
        if key not in self.folders:
            self.folders[key] = load_folder(place.dataset, size=size, allow_empty=not strict)
        dataset = self.folders[key]
        split, source = self.part(dataset, place)
        source += f", {square(size)}; {dataset.about.removeprefix(place.dataset + ': ')}"
        cut = _cut(split, first, dataset.num_classes, source)
        return cut._replace(class_names=dataset.class_names)

    def part(self, dataset: DataSet, place: Place) -> tuple[Split, str]:
        """Return a split of a set to train on, and what it is. Of the run's set the validation
        images are those that the run held out, as far as they are still there."""
        if place.split == "test":
            return dataset.test, "test images"
        if place.split == "train":
            return dataset.train, "training images"
        record, train = self.record, dataset.train
        if place.dataset == self.dataset and record.train is not None:
            assert train.hashes is not None and record.valid is not None
            if torch.equal(record.train, train.hashes):
                return train.take(record.valid), "held out of the training images"
            held_out = torch.isin(train.hashes, record.hashes("valid")).nonzero().squeeze(1)
            return train.take(held_out), "those that the run held out of its training images"
        return train.take(hold_out(dataset, self.n_valid)[1]), "held out of the training images"

    def training_set(self, place: Place, first: int | None) -> EvaluationSet:
        name, part = place.dataset, "test" if place.split == "test" else "train"
        spec = SPECS[name]
        splits, source, _ = find(name, self.root, (part,), size=self.size)
        if part not in splits:
            raise self.lacking(name, f"{part}_images")
        whole = splits[part]
        source += _shortage(
            len(whole.images), spec.test_size if part == "test" else spec.train_size
        )
        if place.split == "valid":
            read = DataSet(name, spec.num_classes, (), spec.flips, whole, whole.first(0))
            whole, said = self.part(read, place)
            source += f", {said}"
        return _cut(whole, first, spec.num_classes, source)

    def other_set(self, name: str, first: int | None) -> EvaluationSet:
        """Read <name>.npz, its test images or else its training images, or torchvision's files."""
        file, size = archive(self.root, name), self.size
        if file.exists():
            part, splits = "test", read_npz(file, CLASSES.get(name), ("test",), size=size)
            if "test" not in splits or not len(splits["test"].images):
                part, splits = "train", read_npz(file, CLASSES.get(name), ("train",), size=size)
            if part not in splits:
                raise self.lacking(name, "test_images nor train_images")
            whole = splits[part]
            highest = int(whole.labels.max()) if len(whole.labels) else -1
            source = f"{part} images of {file.name}, {square(size)} where they have another size"
            source += left_out(file, (part,))
            if name in PUBLISHED and part == "test":
                source += _shortage(len(whole.images), PUBLISHED[name][0])
            return _cut(whole, first, CLASSES.get(name, highest + 1), source)
        if name not in FILES:
            said = f"there is no {file.name} in {self.root}; put it there"
            remedy = "(test_images: uint8 N x H x W x 3), or give another --data_root"
            raise DataError("dataset", name, f"{said} {remedy}")
        split, total, _ = read_published(name, self.root, "test", size, first)
        source = f"{PUBLISHED[name][1]}, {square(size)}"
        return _cut(split, first, CLASSES.get(name), source)._replace(total=total)

    def lacking(self, name: str, what: str) -> DataError:
        said = f"{name}.npz in {self.root} has no {what}"
        return DataError("dataset", name, f"{said}; add them, or give another set or split")

    def interpolations(self, whole: EvaluationSet, first: int | None) -> EvaluationSet:
        images, n = whole.split.images, whole.total
        if n < 2:
            said = f"has no images: a pair takes 2 test images, there is {n}"
            raise DataError("dataset", "interp", said)
        a, b = generated.interpolation_pairs(n, self.seed)
        means = generated.interpolate(images[a[:first]], images[b[:first]])
        source = (
            "means of two different test images, rounded half up to uint8, "
            f"{n:,} pairs of seed {self.seed}; {whole.source}"
        )
        return _unlabelled(means, n, source)

    def made(self, name: str, first: int | None) -> EvaluationSet:
        size = self.size
        if name == "photos":
            patches = generated.photo_patches(size)
            source = f"patches of {size} x {size} on a grid over scikit-learn's two photographs"
            return _unlabelled(patches[:first], len(patches), source)
        total = generated.NOISE_IMAGES
        n = total if first is None else min(first, total)
        if name == "uniform":
            images, values = generated.uniform_noise(n, self.seed, size), "U{0, ..., 255}"
        else:
            images = generated.gaussian_noise(n, self.seed, size)
            values = f"N(0, {generated.GAUSSIAN_STD}^2) in units of [-1, 1], clipped, as uint8"
        return _unlabelled(images, total, f"every value {values}, seed {self.seed}")


def _shortage(n: int, published: int) -> str:
    """Return a note for a set that is not whole, or is larger than the published one."""
    return "" if n == published else f" (this copy has {n:,}, the published split {published:,})"


def _unlabelled(images: Tensor, total: int, source: str) -> EvaluationSet:
    return EvaluationSet(Split(images, torch.full((len(images),), -1)), total, None, source)


def _cut(whole: Split, first: int | None, num_classes: int | None, source: str) -> EvaluationSet:
    """Take the first images, without a number of classes if an image has no label."""
    classes = num_classes if (whole.labels >= 0).all() else None
    return EvaluationSet(whole.first(first), len(whole.images), classes, source)
