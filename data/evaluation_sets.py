"""Resolve the names of the sets that a trained model is evaluated on, and read or make them."""

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
NO_DOWNLOAD = ("interp", "photos", "uniform", "gaussian")  # `all` for a model of the digits
# Sets beside SPECS, which a model can be evaluated on but not trained on.
OUT = ("cifar10interp", "celeba", "textures", "faces", "uniform", "gaussian", "photos", "interp")
PUBLISHED = {  # number of test images, description of torchvision's files
    "celeba": (19962, "test split of the aligned images"),
    "textures": (1880, "test split 1 of DTD in a fixed random order"),
}
CLASSES = {"textures": 47}
_SPLIT_TITLES = {"test": "test", "train": "training", "valid": "validation"}
_ALIASES = {**ALIASES, "cifar": "cifar10", "cifar_interp": "cifar10interp"}
_SET = re.compile(rf"({'|'.join([*SPECS, *ALIASES, 'cifar'])})(?:_?(train|test|valid))?")
_FOLDER_SPLIT = re.compile(r"folder(?:_(train|test|valid))?:(.+)", re.DOTALL)


class Selection(NamedTuple):
    """The data set and the split that a name stands for."""

    dataset: str  # a key of SPECS, folder:PATH, openood:LIST, a member of OUT, or an NPZ's name
    split: str = "test"  # "train" or "valid" for SPECS and folders alone

    @property
    def name(self) -> str:
        """Return the canonical name: "cifar10_test", "svhn_train", "celeba", "folder:PATH", ..."""
        return split_name(self.dataset, self.split)


def locate(
    name: str, in_dataset: str | None = None, *, data_root: str | Path | None = None
) -> Selection:
    """Resolve a name without reading a file; the default split is test. With a `data_root`, the
    name of any <data_root>/<name>.npz is valid. `interp` is cifar10interp for in_dataset cifar10.

    Raises DataError for an unknown set.
    """
    if match := _FOLDER_SPLIT.fullmatch(name):
        return Selection(FOLDER + match[2], match[1] or "test")
    if name.startswith(PREFIX):
        return Selection(name)
    if match := _SET.fullmatch(name):
        return Selection(_ALIASES.get(match[1], match[1]), match[2] or "test")
    plain = _ALIASES.get(name, name)
    if plain == "interp" and in_dataset == "cifar10":
        return Selection("cifar10interp")
    if plain in OUT:
        return Selection(plain)
    # A plain file name: a path could lead out of data_root.
    if plain and Path(plain).name == plain and data_root is not None:
        if archive(data_root, plain).is_file():
            return Selection(plain)
    names = [*SPECS, *OUT, FOLDER + "PATH"]
    hint = did_you_mean(name, names)
    raise DataError(
        "dataset",
        name,
        f"unknown data set; {hint}give one of {', '.join(names)} (the first {len(SPECS)} also as "
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
    """Return the sets that `all` stands for: the HDGE paper's four, with CIFAR-10 in place of the
    model's own set; for the digits the sets that need no files."""
    in_dataset = canonical_name(in_dataset)
    if in_dataset == "digits":
        return NO_DOWNLOAD
    return tuple("cifar10" if name == in_dataset else name for name in ALL_OOD)


def title(selection: Selection, in_dataset: str) -> str:
    """Return a set's name in pictures and tables: "CIFAR-10 (test)", "CelebA", a folder's name."""
    dataset = in_dataset if selection.dataset == "interp" else selection.dataset
    plain = TITLES.get(dataset, dataset)
    if dataset.startswith(FOLDER):
        plain = folder_path(dataset).resolve().name or dataset
    if selection.dataset == "interp":
        return f"{plain} interpolations"
    if dataset in SPECS or selection.split != "test":
        return f"{plain} ({_SPLIT_TITLES[selection.split]})"
    return plain


class EvaluationSet(NamedTuple):
    """A set to evaluate on, with at least one image."""

    split: Split  # images uint8 (N, size, size, 3), labels int64 (N,): -1 for no label
    total: int  # number of images of the whole split
    num_classes: int | None  # None where an image has no label
    source: str  # one line: source, split, crop and resizing, pairs, seed
    class_names: tuple[str, ...] | None = None  # None unless the set is a folder with classes
    name: str = ""  # canonical: "cifar10_test", "celeba", "interp", "folder:PATH"
    title: str = ""  # for pictures and tables: "CIFAR-10 (test)", "faces (not CelebA)"

    @property
    def about(self) -> str:
        n = len(self.split.images)
        count = f"{n:,}" if n == self.total else f"the first {n:,} of {self.total:,}"
        return f"{self.title}: {count} images; {self.source}"


@dataclass(frozen=True)
class EvaluationSets:
    """Read or make the sets that a trained model is evaluated on.

    A set is <root>/<name>.npz where that file exists; it may lack training images or labels. Else
    it is torchvision's own files in `root`, downloaded where missing. Images are resized before
    they are interpolated; noise images and patches are made at `size`. `seed` >= 0 chooses pairs
    and noise images, the same for every max_images. No global random state is read or changed.
    """

    root: Path
    dataset: str = "cifar10"  # the model's training set: a key of SPECS or folder:PATH
    size: int = IMAGE_SIZE  # side of the images in pixels
    n_valid: int | None = None  # number of images of `_valid` splits; None: the default number
    record: Record = Record()  # of the run's images, with the images that it held out
    seed: int = 1
    folders: dict[Any, DataSet] = field(default_factory=dict)  # cache of the folders read

    def load(
        self, name: str, max_images: int | None = None, *, strict: bool = True
    ) -> EvaluationSet:
        """Read or make the set called `name`, with the first `max_images` of its split. `strict`:
        refuse a folder that has a class without images, as training does.

        Raises DataError about `name` for unknown, missing or damaged sets, missing splits, and sets
        without images.
        """
        selection = locate(name, self.dataset, data_root=self.root)
        try:
            loaded = self.read(selection, max_images, strict)
        except DataError as error:
            raise error.renamed("dataset", name) from error
        if not len(loaded.split.images):
            raise DataError("dataset", name, f"has no images ({loaded.source}); give another set")
        return loaded._replace(name=selection.name, title=title(selection, self.dataset))

    def read(self, selection: Selection, first: int | None, strict: bool = True) -> EvaluationSet:
        """Read the first `first` images of a selection; None: all."""
        dataset = selection.dataset
        if dataset.startswith(FOLDER):
            return self.folder(selection, first, strict)
        if dataset.startswith(PREFIX):
            source = f"{list_file(dataset)} of OpenOOD, shorter side to 32, centre cut out"
            return _cut(read_list(dataset, self.root, self.size), first, None, source)
        if dataset in SPECS:
            return self.training_set(selection, first)
        if dataset in ("interp", "cifar10interp"):
            parent = self.dataset if dataset == "interp" else "cifar10"
            return self.interpolations(self.read(Selection(parent), None), first)
        if dataset in ("uniform", "gaussian", "photos"):
            return self.generate(dataset, first)
        return self.other_set(dataset, first)

    def folder(self, selection: Selection, first: int | None, strict: bool) -> EvaluationSet:
        """Read a split of a folder with class folders, or all images below a folder without them,
        unlabelled. The run's training folder always counts as a folder with class folders."""
        of_run, size = selection.dataset == self.dataset, self.size
        strict = strict or of_run
        path = folder_path(selection.dataset)
        if not of_run and selection.split == "test" and path.is_dir() and not has_classes(path):
            listing = list_images(path)
            files = listing.parts["all"]
            source = f"all images below the folder, in a fixed random order, {square(size)}"
            source += f"; {listing.about()}"
            return EvaluationSet(read_images(files[:first], size), len(files), None, source)
        key = selection.dataset, size, strict
        if key not in self.folders:
            self.folders[key] = load_folder(selection.dataset, size=size, allow_empty=not strict)
        dataset = self.folders[key]
        split, source = self.part(dataset, selection)
        source += f", {square(size)}; {dataset.about.removeprefix(selection.dataset + ': ')}"
        cut = _cut(split, first, dataset.num_classes, source)
        return cut._replace(class_names=dataset.class_names)

    def part(self, dataset: DataSet, selection: Selection) -> tuple[Split, str]:
        """Return a split of a training set and its description. The validation split of the run's
        own set has the images that the run held out, as far as the set still has them."""
        if selection.split == "test":
            return dataset.test, "test images"
        if selection.split == "train":
            return dataset.train, "training images"
        record, train = self.record, dataset.train
        if selection.dataset == self.dataset and record.train is not None:
            assert train.hashes is not None and record.valid is not None
            if torch.equal(record.train, train.hashes):
                return train.take(record.valid), "held out of the training images"
            held_out = torch.isin(train.hashes, record.hashes("valid")).nonzero().squeeze(1)
            return train.take(held_out), "those that the run held out of its training images"
        return train.take(hold_out(dataset, self.n_valid)[1]), "held out of the training images"

    def training_set(self, selection: Selection, first: int | None) -> EvaluationSet:
        name, part = selection.dataset, "test" if selection.split == "test" else "train"
        spec = SPECS[name]
        splits, source, _ = find(name, self.root, (part,), size=self.size)
        if part not in splits:
            raise self.missing_arrays(name, f"{part}_images")
        whole = splits[part]
        published_size = spec.test_size if part == "test" else spec.train_size
        source += _shortage(len(whole.images), published_size)
        if selection.split == "valid":
            dataset = DataSet(name, spec.num_classes, (), spec.flips, whole, whole.first(0))
            whole, description = self.part(dataset, selection)
            source += f", {description}"
        return _cut(whole, first, spec.num_classes, source)

    def other_set(self, name: str, first: int | None) -> EvaluationSet:
        """Read <name>.npz, its test images or else its training images, or torchvision's files."""
        file, size = archive(self.root, name), self.size
        if file.exists():
            part, splits = "test", read_npz(file, CLASSES.get(name), ("test",), size=size)
            if "test" not in splits or not len(splits["test"].images):
                part, splits = "train", read_npz(file, CLASSES.get(name), ("train",), size=size)
            if part not in splits:
                raise self.missing_arrays(name, "test_images nor train_images")
            whole = splits[part]
            highest = int(whole.labels.max()) if len(whole.labels) else -1
            source = f"{part} images of {file.name}, {square(size)} where they have another size"
            source += left_out(file, (part,))
            if name in PUBLISHED and part == "test":
                source += _shortage(len(whole.images), PUBLISHED[name][0])
            return _cut(whole, first, CLASSES.get(name, highest + 1), source)
        if name not in FILES:
            problem = f"there is no {file.name} in {self.root}; put it there"
            remedy = "(test_images: uint8 N x H x W x 3), or give another --data_root"
            raise DataError("dataset", name, f"{problem} {remedy}")
        split, total, _ = read_published(name, self.root, "test", size, first)
        source = f"{PUBLISHED[name][1]}, {square(size)}"
        return _cut(split, first, CLASSES.get(name), source)._replace(total=total)

    def missing_arrays(self, name: str, arrays: str) -> DataError:
        problem = f"{name}.npz in {self.root} has no {arrays}"
        return DataError("dataset", name, f"{problem}; add them, or give another set or split")

    def interpolations(self, whole: EvaluationSet, first: int | None) -> EvaluationSet:
        images, n = whole.split.images, whole.total
        if n < 2:
            problem = f"has no images: a pair takes 2 test images, there is {n}"
            raise DataError("dataset", "interp", problem)
        a, b = generated.interpolation_pairs(n, self.seed)
        means = generated.interpolate(images[a[:first]], images[b[:first]])
        source = (
            "means of two different test images, rounded half up to uint8, "
            f"{n:,} pairs of seed {self.seed}; {whole.source}"
        )
        return _unlabelled(means, n, source)

    def generate(self, name: str, first: int | None) -> EvaluationSet:
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
    """Return a note for a set whose number of images is not the published split's; else ""."""
    return "" if n == published else f" (this copy has {n:,}, the published split {published:,})"


def _unlabelled(images: Tensor, total: int, source: str) -> EvaluationSet:
    return EvaluationSet(Split(images, torch.full((len(images),), -1)), total, None, source)


def _cut(whole: Split, first: int | None, num_classes: int | None, source: str) -> EvaluationSet:
    """Return the `first` images of a split. An image without a label sets num_classes to None."""
    classes = num_classes if (whole.labels >= 0).all() else None
    return EvaluationSet(whole.first(first), len(whole.images), classes, source)
