"""Choose the images that train, validate, test or keep their label, by fixed seeds or hashes.

Nothing here reads or changes a global random state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.base import DataError, DataSet
from runs.names import FOLDER

VALIDATION_SEED = 1234  # as in HDGE's utils.py and JEM's train_wrn_ebm.py
TEST_SEED = 4321  # for sets without a test split, and other fixed random orders
TEST_BELOW = -(2**63) + 2**64 // 5  # a fifth of all int64 hashes are lower


def default_n_valid(n: int) -> int:
    """Return the default number of validation images: 5000, or a tenth of a small set."""
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

    Of a folder, the images with the lowest last 32 bits of their hashes validate, independent of
    file names. Equal images stay together, so slightly fewer than `n_valid` may validate.
    """
    n = len(dataset.train.labels)
    train, valid = split_validation(n, default_n_valid(n) if n_valid is None else n_valid)
    if dataset.name.startswith(FOLDER):
        assert dataset.train.hashes is not None
        keys = dataset.train.hashes & 0xFFFFFFFF
        order = keys.argsort(stable=True)
        n_held = int((keys < keys[order[len(valid)]]).sum())
        return order[n_held:].sort().values, order[:n_held]
    return train, valid


def labelled_subset(labels: Tensor, index: Tensor, per_class: int, num_classes: int) -> Tensor:
    """Return the first `per_class` members of `index` of each class, class after class.

    labels int64 (N,), index int64 (n,) into it -> int64 (per_class * num_classes,). Raises
    DataError where a class has fewer."""
    if per_class < 1:
        remedy = "give 1 or more, or -1 to use every label"
        raise DataError("labels_per_class", per_class, remedy)
    members = [index[labels[index] == label] for label in range(num_classes)]
    fewest, smallest = min((len(member), label) for label, member in enumerate(members))
    if fewest < per_class:
        problem = f"class {smallest} has only {fewest} training images; give at most {fewest}"
        raise DataError("labels_per_class", per_class, f"{problem}, or -1 to use every label")
    return torch.cat([member[:per_class] for member in members])


def split_by_hash(labels: Tensor, hashes: Tensor) -> tuple[Tensor, Tensor]:
    """Return train and test indices, int64, by rising hash; the lowest fifth of hashes is test.

    A class without a test image gives up its image of lowest hash, if two of its images differ;
    then a class without a training image takes back its image of highest hash. An image's split
    depends on no file name and, but for these two rules, on no other image. Equal images of any
    class share a split. A new image moves no training image to test but its class's only image.
    """
    is_test = hashes < TEST_BELOW
    classes = [labels == label for label in labels.unique()]
    lowest = [
        hashes[members].min().item()
        for members in classes
        if not is_test[members].any() and hashes[members].min() < hashes[members].max()
    ]
    is_test |= torch.isin(hashes, torch.tensor(lowest, dtype=torch.int64))
    highest = [hashes[members].max().item() for members in classes if is_test[members].all()]
    is_test &= ~torch.isin(hashes, torch.tensor(highest, dtype=torch.int64))
    order = order_by_hash(labels, hashes)
    return order[~is_test[order]], order[is_test[order]]


def order_by_hash(labels: Tensor, hashes: Tensor) -> Tensor:
    """Return indices int64 (N,) by rising hash; equal images are in the order of their labels."""
    return torch.from_numpy(np.lexsort((labels.numpy(), hashes.numpy())))


def stratified_split(
    labels: np.ndarray, test_counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return train and test indices, with `test_counts[c]` test images of class c. Each is in a
    fixed random order, so that the first N images show all classes."""
    order = np.random.RandomState(TEST_SEED).permutation(len(labels))
    is_test = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(test_counts):
        is_test[np.flatnonzero(labels[order] == label)[:count]] = True
    return order[~is_test], order[is_test]


def held_out_by(settings: Mapping[str, Any]) -> int | None:
    """Return the --n_valid of a run's settings; None stands for the default number."""
    n_valid = settings.get("n_valid")
    return None if n_valid is None or n_valid < 0 else int(n_valid)
