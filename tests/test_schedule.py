"""The learning rate: warm-up and decays."""

from argparse import Namespace

import pytest

from training.session import learning_rate

TABLE = [
    # steps taken, epoch, warmup_iters, decay_epochs, rate / base
    (0, 0, -1, (160, 180), 1.0),  # no warm-up
    (0, 0, 0, (160, 180), 1.0),
    (0, 0, 1000, (160, 180), 0.0),
    (250, 0, 1000, (160, 180), 0.25),
    (5000, 7, 1000, (160, 180), 1.0),  # never above the base
    (99_999, 159, -1, (160, 180), 1.0),
    (99_999, 160, -1, (160, 180), 0.3),
    (99_999, 180, -1, (160, 180), 0.09),
    (99_999, 170, -1, (180, 160), 0.3),  # unsorted
    (99_999, 185, -1, (160, 160), 0.09),  # an epoch that is named twice counts twice
    (99_999, 185, -1, (), 1.0),
    (0, 0, -1, (0,), 0.3),
    (50, 170, 100, (160, 180), 0.15),  # warm-up and decay together
]


@pytest.mark.parametrize(("steps_taken", "epoch", "warmup", "decay_epochs", "factor"), TABLE)
def test_the_rate_follows_warm_up_and_decays(steps_taken, epoch, warmup, decay_epochs, factor):
    """The rate depends on the arguments alone: a run from epoch 185 on is past both decays."""
    s = Namespace(lr=2e-4, warmup_iters=warmup, decay_epochs=decay_epochs, decay_rate=0.3)
    assert learning_rate(s, steps_taken, epoch) == pytest.approx(2e-4 * factor, rel=1e-12)
