"""`folder:PATH`: one sub-folder a class, any image size; `train/` and `test/` above them if wanted.

Without these two, a fixed stratified fifth is the test split. Hidden files are ignored, and so are
files whose ending is not an image's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.base import SIZE, DataError, Split
from data.splits import TEST_SEED, stratified_split

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
Files = list[tuple[Path, int]]  # an image and its class


class Listing(NamedTuple):
    """The files of a folder before any is opened."""

    class_names: tuple[str, ...]
    train: Files
    test: Files


def list_folder(path: Path) -> Listing:
    """Classes in the order of their names, both splits in a fixed random order.

    Raises DataError: no such folder, fewer than two classes, a class without images, classes
    that differ between train/ and test/.
    """
    if not path.is_dir():
        raise _defect(path, "is not a folder" if path.exists() else "does not exist")
    if not all((path / split).is_dir() and _folders(path / split) for split in ("train", "test")):
        class_names, files = _list_classes(path)
        labels = np.array([label for _, label in files])
        train, test = stratified_split(labels, [_a_fifth(n) for n in np.bincount(labels)])
        return Listing(class_names, [files[i] for i in train], [files[i] for i in test])

    (class_names, train_files), (test_names, test_files) = (
        _list_classes(path / split) for split in ("train", "test")
    )
    if odd := set(class_names) ^ set(test_names):
        raise _defect(path, f"has {', '.join(sorted(odd))} in only one of train/ and test/")
    return Listing(class_names, _shuffled(train_files), _shuffled(test_files))


def list_images(path: Path) -> Files:
    """Every image below `path`, without a class (-1), in a fixed random order.

    For folders that are looked at and not learnt from. Empty where there is none.
    """
    found = []
    for folder, inner, names in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    images = sorted(file for file in found if file.suffix.lower() in ENDINGS)
    return _shuffled([(file, -1) for file in images])


def read_images(files: Sequence[tuple[Path, int]]) -> Split:
    """Decode every file once. Raises DataError naming the first that is unreadable."""
    images = np.empty((len(files), SIZE, SIZE, 3), dtype=np.uint8)
    for i, (file, _) in enumerate(files):
        images[i] = _read_image(file)
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    return Split(torch.from_numpy(images), labels)


def shrink(image: Any) -> np.ndarray:
    """A PIL image -> uint8 (32, 32, 3): RGB, centre square, bilinear with antialias."""
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.BILINEAR))


def _list_classes(path: Path) -> tuple[tuple[str, ...], Files]:
    folders = _folders(path)
    if len(folders) < 2:
        raise _defect(path, f"has {len(folders)} class folders, at least 2 are needed")
    files: Files = []
    for label, folder in enumerate(folders):
        found = [f for f in _visible(folder) if f.suffix.lower() in ENDINGS and f.is_file()]
        if not found:
            raise _defect(path, f"has no image in its class folder {folder.name}")
        files += [(file, label) for file in found]
    return tuple(folder.name for folder in folders), files


def _folders(path: Path) -> list[Path]:
    return [entry for entry in _visible(path) if entry.is_dir()]


def _visible(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise _defect(path, f"cannot be listed ({error.strerror})") from error


def _a_fifth(n: int) -> int:
    """Test images of a class of n; training keeps at least one, and testing too where n > 1."""
    return max(n // 5, min(1, n - 1))


def _shuffled(files: Files) -> Files:
    order = np.random.RandomState(TEST_SEED).permutation(len(files))
    return [files[i] for i in order]


def _read_image(file: Path) -> np.ndarray:
    """uint8 (32, 32, 3): the first frame."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {image.mode} where 8 bits a channel are read")
            return shrink(image)
    except Exception as error:  # a decoder may raise anything when a file is damaged
        raise DataError(
            f"--dataset folder: cannot read the image {file} ({error}); replace or remove it"
        ) from error


def _defect(path: Path, found: str) -> DataError:
    return DataError(
        f"--dataset folder: {path} {found}; give a folder with one sub-folder of images "
        "a class, or with such folders in train/ and in test/"
    )
