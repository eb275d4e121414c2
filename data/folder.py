"""Read `folder:PATH`: one sub-folder of images a class, optionally in `train/` and `test/`.

Images have any size. Without `train/` and `test/`, about a fifth is for testing. Classes and images
are found as by torchvision's ImageFolder. Hidden files and other endings are left out and counted.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.base import DataError, DataSet, Split
from data.images import decoded_split
from data.splits import TEST_SEED, order_by_hash, split_by_hash
from runs.cli import UsageError, check_utf8
from runs.names import FOLDER

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
# Sub-folders of these names that contain folders are splits, not classes; see `_list_classes`.
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
Files = list[tuple[Path, int]]  # paths of images and their classes


class Listing(NamedTuple):
    """The images of a folder, listed without opening a file."""

    class_names: tuple[str, ...]
    parts: dict[str, Files]  # "train" and "test", or "all" where the folder does not divide them
    left_out: Counter[str]  # kind of file -> number of files

    def about(self) -> str:
        """Return, for example, "5 images of 8 files; left out: 2 .txt, 1 hidden"."""
        images = sum(map(len, self.parts.values()))
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self.left_out.items()) if n)
        text = f"{images:,} images of {images + self.left_out.total():,} files"
        return f"{text}; left out: {kinds}" if kinds else text


def folder_path(name: str) -> Path:
    # Path.expanduser raises an error where os.path leaves the path of an unknown ~user as it is.
    return Path(os.path.expanduser(name.removeprefix(FOLDER)))


def load_folder(name: str, *, size: int, allow_empty: bool = False) -> DataSet:
    """Read folder:PATH. Raises DataError as `list_folder` does, and for an unreadable image."""
    listing = list_folder(folder_path(name), allow_empty=allow_empty)
    n, names = len(listing.class_names), listing.class_names
    splits = {part: read_images(files, size) for part, files in listing.parts.items()}
    about = f"{name}: {listing.about()}"
    if "all" in splits:
        whole = splits["all"]
        assert whole.hashes is not None
        train, test = map(whole.take, split_by_hash(whole.labels, whole.hashes))
    else:
        train, test = (in_order(splits[part]) for part in ("train", "test"))
    return DataSet(name, n, names, True, train, test, about)


def in_order(split: Split) -> Split:
    """Return the images by rising hash, an order that does not depend on the files' names."""
    assert split.hashes is not None
    return split.take(order_by_hash(split.labels, split.hashes))


def list_folder(path: Path, *, allow_empty: bool = False) -> Listing:
    """List classes in the order of their names, files in the order of their paths.

    Raises DataError for a missing folder, fewer than two classes, splits of other names, a class
    without images unless `allow_empty`, a class whose name is not UTF-8, and classes that differ
    between train/ and test/.
    """
    if not path.is_dir():
        raise _defect(path, "is not a folder" if path.exists() else "does not exist")
    left_out: Counter[str] = Counter()
    if not all((path / split).is_dir() and _folders(path / split) for split in ("train", "test")):
        names, files = _list_classes(path, left_out, allow_empty)
        return Listing(names, {"all": files}, left_out)
    extra = [entry for entry in _entries(path) if entry.name not in ("train", "test")]
    left_out["beside train/ and test/"] += len(extra)
    names, train = _list_classes(path / "train", left_out, allow_empty)
    test_names, test = _list_classes(path / "test", left_out, allow_empty)
    if unmatched := set(names) ^ set(test_names):
        raise _defect(path, f"has {', '.join(sorted(unmatched))} in only one of train/ and test/")
    return Listing(names, {"train": train, "test": test}, left_out)


def has_classes(path: Path) -> bool:
    """Return whether at least two sub-folders hold images, at any depth."""
    return sum(any(_walk(folder, Counter())) for folder in _folders(path)) >= 2


def list_images(path: Path) -> Listing:
    """List every image below `path`, without a class (-1), in a fixed random order."""
    left_out: Counter[str] = Counter()
    files = [(file, -1) for file in sorted(_walk(path, left_out))]
    order = np.random.RandomState(TEST_SEED).permutation(len(files))
    return Listing((), {"all": [files[i] for i in order]}, left_out)


def sizes(listing: Listing) -> tuple[int, int]:
    """Return the numbers of training and test images, estimated where hashes will divide them."""
    if "all" not in listing.parts:
        return len(listing.parts["train"]), len(listing.parts["test"])
    files = listing.parts["all"]
    counts = Counter(label for _, label in files).values()
    test = sum(max(n // 5, min(1, n - 1)) for n in counts)  # a fifth, at least 1, not all
    return len(files) - test, test


def read_images(files: Sequence[tuple[Path, int]], size: int) -> Split:
    """Decode every file once. Raises DataError naming the first unreadable file."""
    pictures = ((read_image(file), label) for file, label in files)
    return decoded_split(pictures, len(files), size)


def _list_classes(
    path: Path, left_out: Counter[str], allow_empty: bool
) -> tuple[tuple[str, ...], Files]:
    folders = _folders(path)
    if len(folders) < 2:
        raise _defect(path, f"has {len(folders)} class folders, at least 2 are needed")
    if {folder.name.lower() for folder in folders} <= SPLITS and any(map(_folders, folders)):
        raise _defect(path, f"has no classes but {' and '.join(f.name for f in folders)}")
    for entry in _entries(path):
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif not entry.is_dir():
            left_out["beside the class folders"] += 1
    files: Files = []
    for label, folder in enumerate(folders):
        try:
            check_utf8("the class", folder.name)
        except UsageError as error:
            raise DataError("dataset", "folder", str(error)) from None
        images = sorted(_walk(folder, left_out))
        if not images and not allow_empty:
            raise _defect(path, f"has no image in its class folder {folder.name}")
        if not images:
            left_out[f"empty class folder {folder.name}"] += 1
        files += [(file, label) for file in images]
    return tuple(folder.name for folder in folders), files


def _walk(folder: Path, left_out: Counter[str], parents: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the images in a folder, at any depth; count all other entries in `left_out`."""
    parents = (*parents, folder.resolve())
    for entry in _entries(folder):
        if entry.name.startswith("."):
            left_out["hidden"] += 1
        elif entry.is_dir():
            if entry.resolve() in parents:
                left_out["links to a folder above"] += 1
            else:
                yield from _walk(entry, left_out, parents)
        elif not entry.is_file():
            left_out["links to nothing"] += 1
        elif entry.suffix.lower() not in ENDINGS:
            left_out[entry.suffix.lower() or "without an ending"] += 1
        else:
            yield entry


def _folders(path: Path) -> list[Path]:
    return [e for e in _entries(path) if e.is_dir() and not e.name.startswith(".")]


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise _defect(path, f"cannot be listed ({error.strerror})") from error


def read_image(file: Path, *, upright: bool = True) -> Any:
    """Read an image's first frame as RGB, turned by its EXIF orientation if `upright`. Raises
    DataError."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {image.mode} where 8 bits a channel are read")
            return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except Exception as error:  # a decoder may raise anything when a file is damaged
        problem = f"cannot read the image {file} ({error}); replace or remove it"
        raise DataError("dataset", "folder", problem) from error


def _defect(path: Path, problem: str) -> DataError:
    remedy = "give a folder with one sub-folder of images a class, or with such folders in train/"
    return DataError("dataset", "folder", f"{path} {problem}; {remedy} and in test/")
