"""Which images validate or keep their label, and the order of an epoch."""

import numpy as np
import pytest
import torch

import data
from data import DataError


def test_epoch_order_is_a_pure_function_of_seed_and_epoch() -> None:
    first = data.epoch_order(1000, seed=5, epoch=3)
    torch.randn(7)  # the default generator moves on and must not matter
    assert torch.equal(data.epoch_order(1000, seed=5, epoch=3), first)
    assert torch.equal(first.sort().values, torch.arange(1000))
    others = [(5, 4), (6, 3), (3, 5)]
    assert not any(torch.equal(data.epoch_order(1000, seed=s, epoch=e), first) for s, e in others)


def test_validation_split_is_the_ancestors_and_disjoint() -> None:
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    train, valid = data.split_validation(50000, 5000)
    assert np.random.rand() == expected  # NumPy's global generator is left alone
    assert valid[:5].tolist() == [20308, 37706, 6041, 42143, 23202]  # as NumPy has it
    assert train.dtype == valid.dtype == torch.int64
    assert torch.equal(torch.cat([train, valid]).sort().values, torch.arange(50000))
    again = data.split_validation(50000, 5000)
    assert torch.equal(again[0], train) and torch.equal(again[1], valid)


@pytest.mark.parametrize(("n", "expected"), [(50000, 5000), (73257, 5000), (1437, 143), (9, 0)])
def test_default_n_valid(n: int, expected: int) -> None:
    assert data.default_n_valid(n) == expected


def test_validation_may_be_empty_but_not_everything() -> None:
    train, valid = data.split_validation(10, 0)
    assert (len(train), len(valid)) == (10, 0)
    for n_valid in (10, -1):
        with pytest.raises(DataError, match=f"--n_valid {n_valid}: give a number from 0 to 9"):
            data.split_validation(10, n_valid)


def test_labelled_subset_takes_the_first_of_each_class_in_the_order_of_the_index() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    index = torch.tensor([8, 6, 4, 3, 1, 2, 0])
    subset = data.labelled_subset(labels, index, 2, 3)
    assert subset.tolist() == [6, 3, 4, 1, 8, 2]
    assert labels[subset].bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("per_class", "message"), [(3, "class 1 has only 2 training images"), (0, "give 1 or more")]
)
def test_labelled_subset_refuses_what_it_cannot_give(per_class: int, message: str) -> None:
    labels = torch.tensor([0, 1, 0, 1, 0])
    with pytest.raises(DataError, match=f"--labels_per_class {per_class}: {message}"):
        data.labelled_subset(labels, torch.arange(5), per_class, 2)
