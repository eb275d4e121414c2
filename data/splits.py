"""Which images train, validate, test or keep their label: fixed by seeds of their own.

Nothing here reads or moves a global random state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.base import DataError, DataSet
from runs.names import FOLDER

VALIDATION_SEED = 1234  # the ancestors' (HDGE utils.py, JEM train_wrn_ebm.py)
TEST_SEED = 4321  # ours, for the sets that come without a test split
TEST_BELOW = -(2**63) + 2**64 // 5  # of hashes, int64: a fifth of them


def default_n_valid(n: int) -> int:
    """Return the number of validation images by default: 5000, of small sets a tenth."""
    return min(5000, n // 10)


def split_validation(n: int, n_valid: int) -> tuple[Tensor, Tensor]:
    """Return train and validation indices into n images, int64 (n - n_valid,) and (n_valid,).

    The first `n_valid` of a permutation of seed 1234 validate. Raises DataError unless
    0 <= n_valid < n."""
    if not 0 <= n_valid < n:
        raise DataError("n_valid", n_valid, f"give a number from 0 to {n - 1} ({n} images)")
    order = torch.from_numpy(np.random.RandomState(VALIDATION_SEED).permutation(n)).long()
    return order[n_valid:], order[:n_valid]


def hold_out(dataset: DataSet, n_valid: int | None) -> tuple[Tensor, Tensor]:
    """Apply `split_validation` to a set's training images; `n_valid` None: the default number.

    Of a folder the images with the lowest last 32 bits of their hashes validate, whatever the
    files' names. Equal images are on one side: a few less than `n_valid` may validate.
    """
    n = len(dataset.train.labels)
    train, valid = split_validation(n, default_n_valid(n) if n_valid is None else n_valid)
    if dataset.name.startswith(FOLDER):
        assert dataset.train.hashes is not None
        keys = dataset.train.hashes & 0xFFFFFFFF
        order = keys.argsort(stable=True)
        held = int((keys < keys[order[len(valid)]]).sum())
        return order[held:].sort().values, order[:held]
    return train, valid


def labelled_subset(labels: Tensor, index: Tensor, per_class: int, num_classes: int) -> Tensor:
    """Return the first `per_class` members of `index` of each class, class after class.

    labels int64 (N,), index int64 (n,) into it -> int64 (per_class * num_classes,). Raises
    DataError where a class has fewer."""
    if per_class < 1:
        said = "give 1 or more, or -1 to use every label"
        raise DataError("labels_per_class", per_class, said)
    members = [index[labels[index] == label] for label in range(num_classes)]
    fewest, poorest = min((len(member), label) for label, member in enumerate(members))
    if fewest < per_class:
        said = f"class {poorest} has only {fewest} training images; give at most {fewest}"
        raise DataError("labels_per_class", per_class, f"{said}, or -1 to use every label")
    return torch.cat([member[:per_class] for member in members])


def split_by_hash(labels: Tensor, hashes: Tensor) -> tuple[Tensor, Tensor]:
    """Return train and test indices, int64, by rising hash; the lowest fifth of hashes is test.

    A class without a test image gives that with its lowest hash, if it has two images that differ;
    then a class without a training image takes that with its highest back. An image's side depends
    on no name and, but for these, on no other image; equal images are on one side, whatever their
    class. One image more makes no training image a test image, unless it was its class's only one.
    """
    is_test = hashes < TEST_BELOW
    classes = [labels == label for label in labels.unique()]
    lowest = [
        hashes[own].min().item()
        for own in classes
        if not is_test[own].any() and hashes[own].min() < hashes[own].max()
    ]
    is_test |= torch.isin(hashes, torch.tensor(lowest, dtype=torch.int64))
    highest = [hashes[own].max().item() for own in classes if is_test[own].all()]
    is_test &= ~torch.isin(hashes, torch.tensor(highest, dtype=torch.int64))
    order = order_by_hash(labels, hashes)
    return order[~is_test[order]], order[is_test[order]]


def order_by_hash(labels: Tensor, hashes: Tensor) -> Tensor:
    """Return int64 (N,): by rising hash, equal images by their labels."""
    return torch.from_numpy(np.lexsort((labels.numpy(), hashes.numpy())))


def stratified_split(
    labels: np.ndarray, test_counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return train and test indices, each in a fixed random order, so that the first N images show
    all classes; `test_counts[c]` images of class c are for test."""
    order = np.random.RandomState(TEST_SEED).permutation(len(labels))
    is_test = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(test_counts):
        is_test[np.flatnonzero(labels[order] == label)[:count]] = True
    return order[~is_test], order[is_test]


def held_out_by(settings: Mapping[str, Any]) -> int | None:
    """Return the --n_valid of a run's settings; None: the default number."""
    n_valid = settings.get("n_valid")
    return None if n_valid is None or n_valid < 0 else int(n_valid)
