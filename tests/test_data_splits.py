"""The choice of the images that test, validate or keep their label."""

import numpy as np
import pytest
import torch

import data
from data import DataError
from data.splits import TEST_BELOW, split_by_hash


def test_the_validation_split_is_the_ancestors_and_disjoint():
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    train, valid = data.split_validation(50000, 5000)
    assert np.random.rand() == expected  # NumPy's global generator is left alone
    assert valid[:5].tolist() == [20308, 37706, 6041, 42143, 23202]  # of NumPy's seed 1234
    assert train.dtype == valid.dtype == torch.int64
    assert torch.equal(torch.cat([train, valid]).sort().values, torch.arange(50000))


def test_the_number_of_validation_images_is_from_0_to_all_but_one():
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
            copies = hashes[index].unique(return_counts=True)[1].max()
            assert len(valid) > n_valid - copies  # fewer by at most the copies of one image


def test_a_labelled_subset_has_the_first_images_of_each_class_in_the_order_of_the_index():
    labels, index = torch.arange(9) % 3, torch.tensor([8, 6, 4, 3, 1, 2, 0])
    assert data.labelled_subset(labels, index, 2, 3).tolist() == [6, 3, 4, 1, 8, 2]
    for per_class, message in ((3, "class 1 has only 2 training images"), (0, "give 1 or more")):
        with pytest.raises(DataError, match=f"--labels_per_class {per_class}: {message}"):
            data.labelled_subset(torch.arange(5) % 2, torch.arange(5), per_class, 2)


def test_images_in_several_classes_take_no_class_its_last_training_image():
    """In random small sets every class trains, equal images share a split, and the order of the
    classes decides nothing."""
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


def test_classes_that_share_no_image_are_split_independently():
    random = np.random.RandomState(0)
    for _ in range(200):
        pool = torch.from_numpy(random.randint(-(2**63), 2**63 - 1, random.randint(2, 7)))
        image = torch.from_numpy(random.randint(0, len(pool), random.randint(2, 9)))
        labels, hashes = image % 3, pool[image]
        _, test = split_by_hash(labels, hashes)
        for label in labels.unique():
            members = set(hashes[labels == label].tolist())
            expected = {value for value in members if value < TEST_BELOW}
            if expected == members:
                expected -= {max(members)}
            elif not expected and len(members) > 1:
                expected = {min(members)}
            assert set(hashes[test][labels[test] == label].tolist()) == expected
