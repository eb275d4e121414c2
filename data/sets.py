"""Read the sets to train on, by their names, from the files where their images are found."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.base import DataError, DataSet, Spec, Split
from data.folder import folder_path, list_folder, load_folder, sizes
from data.images import resized_split
from data.npz import SPLITS, left_out, read_npz, trainable
from data.published import read_published
from data.splits import stratified_split
from runs.names import ALIASES, CLASSES, FOLDER, IMAGE_SIZE

SPECS = {
    "cifar10": Spec(CLASSES["cifar10"], train_size=50000, test_size=10000, flips=True),
    "cifar100": Spec(CLASSES["cifar100"], train_size=50000, test_size=10000, flips=True),
    "svhn": Spec(CLASSES["svhn"], train_size=73257, test_size=26032, flips=False),
    "mnist": Spec(CLASSES["mnist"], train_size=60000, test_size=10000, flips=False, grey=True),
    "digits": Spec(CLASSES["digits"], train_size=1437, test_size=360, flips=False),
}
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
DIGITS_TEST = 36  # test images of each class, of 174 to 183


def canonical_name(name: str) -> str:
    """Resolve aliases. Raises DataError, listing the known sets, for an unknown name."""
    name = ALIASES.get(name, name)
    if name in SPECS or (name.startswith(FOLDER) and name != FOLDER):
        return name
    names = ", ".join([*SPECS, FOLDER + "PATH"])
    raise DataError("dataset", name, f"unknown data set; give one of {names}")


def describe(name: str) -> Spec:
    """Return classes and nominal sizes without opening an image; for a folder see `folder.sizes`.

    Raises DataError for an unknown name and for a folder that `list_folder` refuses.
    """
    name = canonical_name(name)
    if name.startswith(FOLDER):
        listing = list_folder(folder_path(name))
        return Spec(len(listing.class_names), *sizes(listing), flips=True)
    return SPECS[name]


def load(name: str, data_root: str | Path, *, size: int = IMAGE_SIZE) -> DataSet:
    """Read a set of SPECS with `find`, or folder:PATH.

    Images become size x size; their hashes are of the original size. Raises DataError for an
    unknown name and for images that are missing, damaged or without labels.
    """
    name = canonical_name(name)
    if name.startswith(FOLDER):
        return load_folder(name, size=size)
    spec, root = SPECS[name], Path(os.path.expanduser(data_root))
    splits, source, class_names = find(name, root, size=size)
    splits = trainable(archive(root, name), splits)
    if name == "cifar10" and class_names is None:
        class_names = tuple(CIFAR10_CLASSES.split())
    class_names = class_names or tuple(map(str, range(spec.num_classes)))
    train, test = splits["train"], splits["test"]
    counts = f"{len(train.labels):,} training and {len(test.labels):,} test images"
    about = f"{name}: {counts} of {source}"
    return DataSet(name, spec.num_classes, class_names, spec.flips, train, test, about)


def find(
    name: str, root: Path, parts: Sequence[str] = SPLITS, *, size: int
) -> tuple[dict[str, Split], str, tuple[str, ...] | None]:
    """Read the `parts` that a set of SPECS has: scikit-learn's digits, `<root>/<name>.npz` if that
    exists, or else torchvision's files in root. Return the splits, a description of their source,
    and the class names or None if torchvision has none. Raises DataError."""
    if name == "digits":
        return read_digits(size), f"scikit-learn's 8 x 8 digits, bilinear to {size} x {size}", None
    spec, file, class_names = SPECS[name], archive(root, name), None
    if file.exists():
        splits = read_npz(file, spec.num_classes, parts, size=size, grey=spec.grey)
        source = file.name + left_out(file)
    else:
        splits = {}
        for part in parts:
            splits[part], _, class_names = read_published(name, root, part, size)
        source = "the published files"
        source += ", 28 x 28 padded to 32 x 32, grey as RGB" if name == "mnist" else ""
    source += f", {square(size)}" if size != IMAGE_SIZE else ""
    return splits, source, class_names


def archive(data_root: str | Path, dataset: str) -> Path:
    return Path(os.path.expanduser(data_root)) / f"{dataset}.npz"


def square(size: int) -> str:
    return f"centre square, bilinear with antialias to {size} x {size}"


def read_digits(size: int) -> dict[str, Split]:
    """Read scikit-learn's digits, 1797 real images of 8 x 8, as RGB in a fixed random order: 1437
    training images and 360 test images, 36 of each class."""
    from sklearn import datasets  # slow import: only on this path

    digits = datasets.load_digits()
    grey = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(digits.target.astype(np.int64))
    whole = resized_split(grey[..., None].expand(-1, -1, -1, 3), labels, size)
    train, test = stratified_split(digits.target, [DIGITS_TEST] * 10)
    return {
        "train": whole.take(torch.from_numpy(train)),
        "test": whole.take(torch.from_numpy(test)),
    }
