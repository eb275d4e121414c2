"""The names of the sets that a trained model is asked about, in every spelling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from data.base import DataError
from data.sets import ALIASES, SPECS, canonical_name
from runs.names import FOLDER, TITLES

ALL_OOD = ("svhn", "cifar10interp", "cifar100", "celeba")  # the columns of the HDGE paper's Table 1
NO_DOWNLOAD = ("interp", "photos", "uniform", "gaussian")  # `all` of a model of the digits
OUT = [name for name in (*TITLES, "interp") if name not in SPECS]  # no splits to choose from
_SPLIT_TITLES = {"test": "test", "train": "training", "valid": "validation"}
_ALIASES = {**ALIASES, "cifar": "cifar10", "cifar_interp": "cifar10interp"}
_SET = re.compile(rf"({'|'.join([*SPECS, *ALIASES, 'cifar'])})(?:_?(train|test|valid))?")
_FOLDER_SPLIT = re.compile(r"folder(?:_(train|test|valid))?:(.+)", re.DOTALL)


class Place(NamedTuple):
    """What a name stands for. Sets without splits have "test"."""

    dataset: str  # as in SPECS, folder:PATH, or one of OUT, or <dataset>.npz
    split: str  # "test", "train" or "valid"


def canonical_evaluation_name(
    name: str,
    in_dataset: str = "cifar10",
    *,
    data_root: str | Path | None = None,
    flag: str = "--dataset",
) -> str:
    """One spelling for each set: "cifar10_test", "svhn_train", "celeba", "folder:PATH", ...

    Opens nothing. A bare name is its test split; the interpolations of a CIFAR-10 model
    (`in_dataset`) are "cifar10interp". With a `data_root`, any <data_root>/<name>.npz has a name.
    Raises DataError, with the flag that the name was given for, for an unknown set.
    """
    place = locate(name, data_root=data_root, flag=flag)
    if place.dataset == "interp":
        return "cifar10interp" if canonical_name(in_dataset) == "cifar10" else "interp"
    return split_name(*place)


def split_name(dataset: str, split: str = "test") -> str:
    """The canonical name of a split ("test", "train", "valid") of a training set or folder."""
    if dataset.startswith(FOLDER):
        path = dataset.removeprefix(FOLDER)
        return f"folder:{path}" if split == "test" else f"folder_{split}:{path}"
    dataset = _ALIASES.get(dataset, dataset)
    return f"{dataset}_{split}" if dataset in SPECS else dataset


def all_ood(in_dataset: str) -> tuple[str, ...]:
    """What `all` stands for: the paper's four, CIFAR-10 in the place of the model's own set.

    For the digits: the sets that need no download. Raises DataError for an unknown set.
    """
    in_dataset = canonical_name(in_dataset)
    if in_dataset == "digits":
        return NO_DOWNLOAD
    return tuple("cifar10" if name == in_dataset else name for name in ALL_OOD)


def locate(name: str, *, data_root: str | Path | None = None, flag: str = "--dataset") -> Place:
    """What a name stands for, unread; arguments and errors as `canonical_evaluation_name`."""
    if match := _FOLDER_SPLIT.fullmatch(name):
        return Place(FOLDER + match[2], match[1] or "test")
    if match := _SET.fullmatch(name):
        return Place(_ALIASES.get(match[1], match[1]), match[2] or "test")
    name = _ALIASES.get(name, name)
    if name in OUT:
        return Place(name, "test")
    plain = name and Path(name).name == name  # a name, not a way out of data_root
    if plain and data_root is not None and archive(data_root, name).is_file():
        return Place(name, "test")
    known = ", ".join([*SPECS, *OUT, FOLDER + "PATH"])
    raise DataError(
        f"{flag} {name}: unknown data set; give one of {known} (the first {len(SPECS)} also as "
        "<name>_test, <name>_train, <name>_valid), or the <name> of a <data_root>/<name>.npz"
    )


def archive(data_root: str | Path, dataset: str) -> Path:
    return Path(data_root).expanduser() / f"{dataset}.npz"


def title(place: Place, in_dataset: str) -> str:
    """The set in pictures and tables: "CIFAR-10 (test)", "CelebA", the last part of a folder."""
    if place.dataset == "interp":
        return f"{_plain_title(canonical_name(in_dataset))} interpolations"
    plain = _plain_title(place.dataset)
    if place.dataset in SPECS or place.split != "test":
        return f"{plain} ({_SPLIT_TITLES[place.split]})"
    return plain


def _plain_title(dataset: str) -> str:
    if dataset.startswith(FOLDER):
        return Path(dataset.removeprefix(FOLDER)).expanduser().resolve().name or dataset
    return TITLES.get(dataset, dataset)
