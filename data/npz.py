"""Read a set from one NPZ file: `{train,test}_images` and `{train,test}_labels`."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.base import DataError, Split
from data.images import resized_split
from runs.names import IMAGE_SIZE

SPLITS = ("train", "test")
Arrays = dict[str, np.ndarray]


def read_npz(
    path: Path,
    num_classes: int | None = None,
    splits: Sequence[str] = SPLITS,
    *,
    size: int = IMAGE_SIZE,
    grey: bool = False,
) -> dict[str, Split]:
    """Read the `splits` that the file has, and no other array; resize images to size x size.

    `grey`: also read N x H x W images, as RGB with three equal channels. Labels are 0 to
    num_classes - 1, or -1 for no label; a file without labels gives -1. Raises DataError, naming
    the file, for a damaged file and for a wrong dtype, shape, length or range.
    """
    arrays = _read(path, splits)
    loaded = {}
    for split in splits:
        if f"{split}_images" in arrays:
            images = _images(path, f"{split}_images", arrays, grey)
            labels = _labels(path, f"{split}_labels", arrays, len(images), num_classes)
            loaded[split] = resized_split(images, labels, size)
    return loaded


def left_out(path: Path, splits: Sequence[str] = SPLITS) -> str:
    """Return "; left out of <file>: <arrays>" for arrays that `splits` do not use, else ""."""
    with np.load(path, allow_pickle=False) as archive:
        unused = sorted(set(archive.files) - _wanted(splits))
    return f"; left out of {path.name}: {', '.join(unused)}" if unused else ""


def trainable(path: Path, splits: dict[str, Split]) -> dict[str, Split]:
    """Return `splits`, with an empty "test" where the file has no test images.

    Raises DataError if an image has no label, or if there are no training images.
    """
    if "train" not in splits or len(splits["train"].images) == 0:
        problem = "has no train_images, so it cannot be trained on"
        raise _defect(path, problem, "add them, or take the file away to use torchvision's")
    for name, split in splits.items():
        if (split.labels < 0).any():
            problem = f"has unlabelled {name} images (-1), so it cannot be trained on"
            remedy = f"give {name}_labels of 0 and above, or leave these images out"
            raise _defect(path, problem, remedy)
    return {"test": splits["train"].first(0), **splits}


def _read(path: Path, splits: Sequence[str]) -> Arrays:
    remedy = "write it again with numpy.savez"
    try:
        if not zipfile.is_zipfile(path):
            raise _defect(path, "is not an NPZ file, or was cut off", remedy)
        with np.load(path, allow_pickle=False) as archive:
            wanted = _wanted(splits).intersection(archive.files)
            return {name: np.asarray(archive[name]) for name in wanted}
    except DataError:
        raise
    except Exception as error:  # damaged bytes can raise any error in the readers of zip and npy
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _defect(path, f"cannot be read ({reason})", remedy) from error


def _wanted(splits: Sequence[str]) -> set[str]:
    return {f"{split}_{kind}" for split in splits for kind in ("images", "labels")}


def _images(path: Path, key: str, arrays: Arrays, grey: bool) -> Tensor:
    array = arrays[key]
    if grey and array.ndim == 3:
        array = np.repeat(array[..., None], 3, axis=3)
    if array.dtype != np.uint8:
        raise _defect(path, f"{key} is {array.dtype}", "store uint8 from 0 to 255")
    if array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape[1:]:
        remedy = "store N x H x W x 3" + (" or N x H x W" if grey else "")
        raise _defect(path, f"{key} has shape {array.shape}", remedy)
    return torch.from_numpy(array)


def _labels(path: Path, key: str, arrays: Arrays, n: int, num_classes: int | None) -> Tensor:
    array = arrays.get(key, np.full(n, -1))
    if array.dtype.kind not in "iu":
        raise _defect(path, f"{key} is {array.dtype}", "store int64")
    if array.shape != (n,):
        raise _defect(path, f"{key} has shape {array.shape} for {n} images", f"store ({n},)")
    highest = np.iinfo(np.int64).max if num_classes is None else num_classes - 1
    if n and (array.min() < -1 or array.max() > highest):
        problem = f"{key} runs from {array.min()} to {array.max()}"
        raise _defect(path, problem, f"store 0 to {highest}, or -1 for no label")
    return torch.from_numpy(array.astype(np.int64))


def _defect(path: Path, problem: str, remedy: str) -> DataError:
    return DataError("data_root", path.parent, f"{path.name} {problem}; {remedy}")
