"""Which images train, validate, test or keep their label: fixed by seeds of their own.

Nothing here reads or moves a global random state.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.base import DataError

VALIDATION_SEED = 1234  # the ancestors' (HDGE utils.py, JEM train_wrn_ebm.py)
TEST_SEED = 4321  # ours, for the sets that come without a test split


def default_n_valid(n: int) -> int:
    """Validation images where `--n_valid` is not given: 5000, of small sets a tenth."""
    return min(5000, n // 10)


def split_validation(n: int, n_valid: int) -> tuple[Tensor, Tensor]:
    """Train and validation indices into n training images, int64, (n - n_valid,) and (n_valid,).

    A permutation of seed 1234, its first `n_valid` validate: the same for every run.
    Raises DataError unless 0 <= n_valid < n.
    """
    if not 0 <= n_valid < n:
        raise DataError(f"--n_valid {n_valid}: give a number from 0 to {n - 1} ({n} images)")
    order = torch.from_numpy(np.random.RandomState(VALIDATION_SEED).permutation(n)).long()
    return order[n_valid:], order[:n_valid]


def labelled_subset(labels: Tensor, index: Tensor, per_class: int, num_classes: int) -> Tensor:
    """The first `per_class` members of `index` of each class, class after class.

    labels int64 (N,), index int64 (n,) into it -> int64 (per_class * num_classes,).
    Raises DataError where a class has fewer.
    """
    flag = f"--labels_per_class {per_class}"
    if per_class < 1:
        raise DataError(f"{flag}: give 1 or more, or -1 to use every label")
    members = [index[labels[index] == label] for label in range(num_classes)]
    counts = [len(member) for member in members]
    if min(counts) < per_class:
        poorest = counts.index(min(counts))
        raise DataError(
            f"{flag}: class {poorest} has only {counts[poorest]} training images; "
            f"give at most {counts[poorest]}, or -1 to use every label"
        )
    return torch.cat([member[:per_class] for member in members])


def stratified_split(
    labels: np.ndarray, test_counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Train and test indices, each in a fixed random order; `test_counts[c]` of class c test.

    The order is shuffled so that the first N images of a split show all classes.
    """
    order = np.random.RandomState(TEST_SEED).permutation(len(labels))
    is_test = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(test_counts):
        is_test[np.flatnonzero(labels[order] == label)[:count]] = True
    return order[~is_test], order[is_test]
