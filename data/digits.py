"""scikit-learn's bundled digits: 1797 real images of 8 x 8, nothing to download."""

import numpy as np
import torch

from data.base import Split
from data.record import image_hashes
from data.resize import resize_batch
from data.splits import stratified_split

TEST_PER_CLASS = 36  # of 174 to 183


def load_digits(size: int) -> tuple[Split, Split]:
    """Train (1437) and test (360, 36 a class), size x size RGB, in a fixed random order."""
    from sklearn import datasets  # takes seconds, so only who needs it waits

    bundled = datasets.load_digits()
    grey = torch.from_numpy(np.rint(bundled.images * (255 / 16)).astype(np.uint8))
    images = grey[..., None].expand(-1, -1, -1, 3)
    labels = torch.from_numpy(bundled.target.astype(np.int64))
    whole = Split(resize_batch(images, size), labels, image_hashes(images.numpy()))
    train, test = stratified_split(bundled.target, [TEST_PER_CLASS] * 10)
    return whole.take(torch.from_numpy(train)), whole.take(torch.from_numpy(test))
