"""Sets that a trained model is asked about, by the names of `data.evaluation_names`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.base import DataError, Split
from data.evaluation_names import canonical_evaluation_name, locate, title
from data.evaluation_sources import find
from data.sets import canonical_name


class EvaluationSet(NamedTuple):
    """A set to evaluate on, whatever it is. At least one image."""

    name: str  # canonical: "cifar10_test", "celeba", "interp", "folder:PATH"
    title: str  # for pictures and tables: "CIFAR-10 (test)", "faces (not CelebA)"
    split: Split  # images uint8 (N, 32, 32, 3), labels int64 (N,): -1 where there is none
    num_classes: int | None  # None where an image has no label
    about: str  # one line: source, split, crop and resizing, pairs, seed, number of images


def load_evaluation(
    name: str,
    data_root: str | Path,
    *,
    in_dataset: str = "cifar10",
    seed: int = 1,
    max_images: int | None = None,
    n_valid: int | None = None,
    flag: str = "--dataset",
) -> EvaluationSet:
    """Read or make the set called `name`; `max_images`: the first N of its split.

    A set is <data_root>/<name>.npz where that exists (test images alone, or images without labels,
    are fine), else torchvision's own files in data_root, downloaded where missing. `in_dataset` is
    the model's training set: what `interp` interpolates. `seed` >= 0 chooses its pairs and the
    noise images, which no number of images changes. `n_valid`: images of the `_valid` splits, as
    in training. No global random state is read or moved.

    Raises DataError, with the `flag` that the name was given for: unknown, missing or damaged sets,
    splits that are not there, sets without images, max_images < 1.
    """
    root = Path(data_root).expanduser()
    in_dataset = canonical_name(in_dataset)
    canonical = canonical_evaluation_name(name, in_dataset, data_root=root, flag=flag)
    if max_images is not None and max_images < 1:
        raise DataError(f"--max_images {max_images}: give 1 or more, or leave it out for all")
    place = locate(canonical, data_root=root)
    with _spoken_of_as(f"{flag} {name}"):
        found = find(place, root, in_dataset, seed=seed, first=max_images, n_valid=n_valid)
    n, heading = len(found.split.images), title(place, in_dataset)
    if n == 0:
        raise DataError(f"{flag} {name}: has no images ({found.source}); give another set")
    count = f"{n:,} images" if n == found.total else f"the first {n:,} of {found.total:,} images"
    about = f"{heading}: {count}; {found.source}"
    return EvaluationSet(canonical, heading, found.split, found.num_classes, about)


@contextlib.contextmanager
def _spoken_of_as(given: str) -> Iterator[None]:
    """Errors about a set's files name the flag and the name as the user gave them."""
    try:
        yield
    except DataError as error:
        said = re.sub(r"^--dataset [^:]*: ", lambda _: f"{given}: ", str(error))
        raise DataError(said) from error
