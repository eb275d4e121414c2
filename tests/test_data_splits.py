"""Which images test, validate or keep their label."""

import numpy as np
import pytest
import torch

import data
from data import DataError
from data.splits import TEST_BELOW, split_by_hash


def test_validation_split_is_the_ancestors_and_disjoint():
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


def test_validation_may_be_empty_but_not_everything():
    train, valid = data.split_validation(10, 0)
    assert (len(train), len(valid)) == (10, 0)
    for n_valid in (10, -1):
        with pytest.raises(DataError, match=f"--n_valid {n_valid}: give a number from 0 to 9"):
            data.split_validation(10, n_valid)
    assert [data.default_n_valid(n) for n in (50000, 73257, 1437, 9)] == [5000, 5000, 143, 0]


def test_equal_images_of_a_folder_validate_together_or_train_together():
    random = np.random.RandomState(0)
    for _ in range(50):
        hashes = torch.from_numpy(random.randint(-(2**63), 2**63 - 1, 8)[random.randint(0, 8, 20)])
        train = data.Split(torch.arange(20), torch.zeros(20), hashes)
        folder = data.DataSet("folder:x", 1, ("a",), True, train, train)
        for n_valid in (0, 3, 10):
            index, valid = data.hold_out(folder, n_valid)
            assert torch.equal(torch.cat([index, valid]).sort().values, torch.arange(20))
            assert not torch.isin(hashes[index], hashes[valid]).any() and len(valid) <= n_valid
            kept = hashes[index].unique(return_counts=True)[1].max()
            assert len(valid) > n_valid - kept  # no more than the images that the line is between


def test_labelled_subset_takes_the_first_of_each_class_in_the_order_of_the_index():
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    index = torch.tensor([8, 6, 4, 3, 1, 2, 0])
    subset = data.labelled_subset(labels, index, 2, 3)
    assert subset.tolist() == [6, 3, 4, 1, 8, 2]
    assert labels[subset].bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("per_class", "message"), [(3, "class 1 has only 2 training images"), (0, "give 1 or more")]
)
def test_labelled_subset_refuses_what_it_cannot_give(per_class, message):
    labels = torch.tensor([0, 1, 0, 1, 0])
    with pytest.raises(DataError, match=f"--labels_per_class {per_class}: {message}"):
        data.labelled_subset(labels, torch.arange(5), per_class, 2)


def test_images_in_several_classes_take_no_class_its_last_training_image():
    """Of small sets at random: every class trains, equal images are on one side, and the names of
    the classes, which order them, decide nothing."""
    random = np.random.RandomState(0)
    for _ in range(500):
        pool = random.randint(-(2**63), 2**63 - 1, random.randint(2, 7))
        hashes = torch.from_numpy(random.choice(pool, random.randint(2, 9)))
        labels = torch.from_numpy(random.randint(0, 3, len(hashes)))
        train, test = split_by_hash(labels, hashes)
        assert set(labels[train].tolist()) == set(labels.tolist())
        assert not torch.isin(hashes[train], hashes[test]).any()
        assert len(train) + len(test) == len(labels)
        renamed, _ = split_by_hash(2 - labels, hashes)
        assert set(renamed.tolist()) == set(train.tolist())


def test_classes_that_share_no_image_are_split_each_by_itself():
    random = np.random.RandomState(0)
    for _ in range(200):
        pool = torch.from_numpy(random.randint(-(2**63), 2**63 - 1, random.randint(2, 7)))
        image = torch.from_numpy(random.randint(0, len(pool), random.randint(2, 9)))
        labels, hashes = image % 3, pool[image]
        _, test = split_by_hash(labels, hashes)
        for label in labels.unique():
            own = hashes[labels == label]
            expected = set(own[own < TEST_BELOW].tolist())
            if expected == set(own.tolist()):
                expected -= {own.max().item()}
            elif not expected and len(own.unique()) > 1:
                expected = {own.min().item()}
            assert set(hashes[test][labels[test] == label].tolist()) == expected
