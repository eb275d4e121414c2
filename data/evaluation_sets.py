"""Sets that a trained model is asked about, by the names of `data.evaluation_names`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from data.base import DataError, DataSet, SetError, Split
from data.evaluation_names import canonical_evaluation_name, locate, title
from data.evaluation_sources import Asked, find
from data.record import READER, Record
from data.sets import canonical_name
from runs.names import IMAGE_SIZE


class EvaluationSet(NamedTuple):
    """A set to evaluate on, whatever it is. At least one image."""

    name: str  # canonical: "cifar10_test", "celeba", "interp", "folder:PATH"
    title: str  # for pictures and tables: "CIFAR-10 (test)", "faces (not CelebA)"
    split: Split  # images uint8 (N, size, size, 3), labels int64 (N,): -1 where there is none
    num_classes: int | None  # None where an image has no label
    about: str  # one line: source, split, crop and resizing, pairs, seed, number of images
    class_names: tuple[str, ...] | None = None  # of a folder


def load_evaluation(
    name: str,
    data_root: str | Path,
    *,
    in_dataset: str = "cifar10",
    size: int = IMAGE_SIZE,
    seed: int = 1,
    max_images: int | None = None,
    n_valid: int | None = None,
    flag: str = "--dataset",
    run: Record | None = None,
    folders: dict[Any, DataSet] | None = None,
) -> EvaluationSet:
    """Read or make the set called `name`; `max_images`: the first N of its split.

    A set is <data_root>/<name>.npz where that exists (test images alone, or images without labels,
    are fine), else torchvision's own files in data_root, downloaded where missing. `in_dataset` is
    the model's training set: what `interp` interpolates. `size`: the images' side in pixels: read
    images are resized to it before they are interpolated, noise and patches are made with it.
    `seed` >= 0 chooses its pairs and the noise images, which no number of images changes.
    `n_valid`: images of the `_valid` splits, as in training. `run`: what the model's checkpoint
    tells of its images: with which reader folders are read, and which images it held out.
    `folders` keeps what is read of them for the next call. No global random state is read or moved.

    Raises DataError, with the `flag` that the name was given for: unknown, missing or damaged sets,
    splits that are not there, sets without images, max_images < 1.
    """
    root = Path(data_root).expanduser()
    in_dataset = canonical_name(in_dataset)
    canonical = canonical_evaluation_name(name, in_dataset, data_root=root, flag=flag)
    if max_images is not None and max_images < 1:
        raise DataError(f"--max_images {max_images}: give 1 or more, or leave it out for all")
    place = locate(canonical, data_root=root)
    run = Record(reader=READER) if run is None else run
    folders, strict = {} if folders is None else folders, flag == "--dataset"
    try:
        asked = Asked(root, in_dataset, size, run, seed, n_valid, strict, folders)
        found = find(place, asked, max_images)
    except SetError as error:  # with the flag and the name that the user gave
        raise SetError(name, error.said, flag) from error
    n, heading = len(found.split.images), title(place, in_dataset)
    if n == 0:
        raise DataError(f"{flag} {name}: has no images ({found.source}); give another set")
    count = f"{n:,} images" if n == found.total else f"the first {n:,} of {found.total:,} images"
    about = f"{heading}: {count}; {found.source}"
    names = found.class_names
    return EvaluationSet(canonical, heading, found.split, found.num_classes, about, names)
