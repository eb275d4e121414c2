"""The sets to train on, by name."""

from __future__ import annotations

from pathlib import Path

import torch

from data.base import DataError, DataSet, Spec
from data.digits import load_digits
from data.folder import FOLDER, folder_path, list_folder, load_folder, sizes
from data.npz import left_out, read_npz, trainable
from data.published import load_published
from data.record import READER
from runs.names import IMAGE_SIZE

ALIASES = {"cifar_100": "cifar100"}  # JEM's spelling
SPECS = {
    "cifar10": Spec(num_classes=10, train_size=50000, test_size=10000, flips=True),
    "cifar100": Spec(num_classes=100, train_size=50000, test_size=10000, flips=True),
    "svhn": Spec(num_classes=10, train_size=73257, test_size=26032, flips=False),
    "mnist": Spec(num_classes=10, train_size=60000, test_size=10000, flips=False, grey=True),
    "digits": Spec(num_classes=10, train_size=1437, test_size=360, flips=False),
}
# Of red, green and blue in [0, 1], over the published training images.
MEANS = {
    "cifar10": (0.4914, 0.4822, 0.4465),
    "cifar100": (0.5071, 0.4865, 0.4409),
    "svhn": (0.4377, 0.4438, 0.4728),
}
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


def canonical_name(name: str) -> str:
    """The name without its aliases. Raises DataError, listing the known sets, for an unknown."""
    name = ALIASES.get(name, name)
    if name in SPECS or (name.startswith(FOLDER) and name != FOLDER):
        return name
    known = ", ".join([*SPECS, FOLDER + "PATH"])
    raise DataError(f"--dataset {name}: unknown data set; give one of {known}")


def describe(name: str) -> Spec:
    """Classes and nominal sizes without opening an image; a folder's files are counted, and where
    it has no train/ and test/, the sizes are what is expected: the images' hashes divide them.

    Raises DataError for an unknown name and for a folder that `load` would refuse unread.
    """
    name = canonical_name(name)
    if name.startswith(FOLDER):
        listing = list_folder(folder_path(name))
        return Spec(len(listing.class_names), *sizes(listing), flips=True)
    return SPECS[name]


def load(
    name: str, data_root: str | Path, *, size: int = IMAGE_SIZE, reader: int = READER
) -> DataSet:
    """Read a set: `<data_root>/<name>.npz` if that exists, else torchvision's files in data_root.

    Images of another size become size x size: see data.resize. Their hashes are of them before.
    digits are bundled with scikit-learn and folder:PATH is read from PATH; `reader`: see
    data.record. Raises DataError for every defect of what is found there.
    """
    name = canonical_name(name)
    if name.startswith(FOLDER):
        return load_folder(name, size=size, reader=reader)

    spec = SPECS[name]
    root = Path(data_root).expanduser()
    archive = root / f"{name}.npz"
    class_names: tuple[str, ...] | None = None
    source = "published files"
    if name == "digits":
        train, test = load_digits(size)
        source = "scikit-learn"
    elif archive.exists():
        splits = trainable(archive, read_npz(archive, spec.num_classes, size=size, grey=spec.grey))
        train, test = splits["train"], splits["test"]
        source = archive.name + left_out(archive)
    else:
        train, test, class_names = load_published(name, root, size)
    class_names = class_names or _class_names(name, spec.num_classes)
    counts = f"{len(train.labels):,} training and {len(test.labels):,} test images"
    about = f"{name}: {counts} of {source}"
    if size != IMAGE_SIZE:
        about += f", as {size} x {size}"
    return DataSet(name, spec.num_classes, class_names, spec.flips, train, test, about, reader)


def doubt(dataset: DataSet) -> str | None:
    """One line where the training images' mean colour is far from that of the published set: more
    than .05 away, and more than a random part of the set would be. A doubt is no refusal."""
    if dataset.name not in MEANS:
        return None
    images = dataset.train.images
    some = images[:: -(-len(images) // 5000)]
    mean = some.double().mean((0, 1, 2)).cpu() / 255
    published = torch.tensor(MEANS[dataset.name], dtype=torch.float64)
    if (mean - published).abs().max() <= 0.05 + 0.5 / len(some) ** 0.5:
        return None
    ours, theirs = ("/".join(f"{value:.2f}" for value in colour) for colour in (mean, published))
    return (
        f"--dataset {dataset.name}: the mean colour of its training images is {ours}, of the "
        f"published ones {theirs}: is this the right file?"
    )


def _class_names(name: str, num_classes: int) -> tuple[str, ...]:
    if name == "cifar10":
        return tuple(CIFAR10_CLASSES.split())
    return tuple(str(label) for label in range(num_classes))
