"""Data sets as uint8 tensors, their splits, and batches that are made on the network's device.

`load(name, data_root)` reads a whole set into memory and `Split.to(device)` moves it to the device.
`augment` makes a training batch there; `evaluation_batches` yields a split without augmentation.
`EvaluationSets` reads or makes the images that a trained model is evaluated on. A user's mistake
raises `DataError`: one line with the setting, its value and the remedy.
"""

from data.base import DataError, DataSet, Spec, Split
from data.batches import (
    EVAL_NOISE_BLOCK,
    TrainingBatches,
    augment,
    check_labelled,
    epoch_order,
    evaluation_batches,
    generator_of,
    steps_per_epoch,
    to_float,
)
from data.evaluation_sets import (
    EvaluationSet,
    EvaluationSets,
    all_ood,
    locate,
    split_name,
)
from data.folder import read_images
from data.npz import read_npz
from data.record import Record, same_training_images
from data.sets import canonical_name, describe, load
from data.splits import default_n_valid, held_out_by, hold_out, labelled_subset, split_validation
