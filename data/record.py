"""Record a run's images in its checkpoint, and compare other images with the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.base import DataError, DataSet
from data.sets import load
from data.splits import hold_out
from runs import processes as distributed
from runs.screen import text_of_changes


@dataclass(frozen=True)
class Record:
    """The images and classes of a run: hashes int64 (N,) as `image_hashes` returns them."""

    fingerprint: str = ""  # DataSet.fingerprint()
    class_names: tuple[str, ...] = ()
    train: Tensor | None = None  # hashes of the training images, validation images included
    test: Tensor | None = None  # hashes of the test images
    valid: Tensor | None = None  # indices into train

    @classmethod
    def of(cls, dataset: DataSet, n_valid: int | None) -> Record:
        """Make the record of a run that holds out `n_valid` training images; None: the default."""
        valid = hold_out(dataset, n_valid)[1]
        names, train, test = dataset.class_names, dataset.train.hashes, dataset.test.hashes
        return cls(dataset.fingerprint(), names, train, test, valid)

    @classmethod
    def read(cls, state: Any) -> Record:
        """Make a record from a checkpoint's `state`; None makes an empty record.

        Raises ValueError for a state that `state()` cannot have returned.
        """
        if state is None:
            return cls()
        try:
            names = tuple(str(name) for name in state["class_names"])
            train, test, valid = (state[name].long() for name in ("train", "test", "valid"))
            train[valid]  # the indices fit
            return cls(str(state["fingerprint"]), names, train, test, valid)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"its record of the data cannot be used ({error})") from None

    def state(self) -> dict[str, Any] | None:
        """Return strings, a list and tensors for a checkpoint; None if the record is empty."""
        if self.train is None:
            return None
        fields = {name: getattr(self, name) for name in ("fingerprint", "train", "test", "valid")}
        return {**fields, "class_names": list(self.class_names)}

    def hashes(self, part: str) -> Tensor:
        """Return the hashes of the "train", "valid" or "test" images; "train" includes "valid"."""
        assert self.train is not None and self.test is not None
        if part == "valid":
            return self.train[self.valid]
        return self.train if part == "train" else self.test

    def trained_on(self) -> Tensor:
        """Return the hashes of the training images that were not held out for validation."""
        assert self.train is not None
        trained = torch.ones(len(self.train), dtype=torch.bool)
        trained[self.valid] = False
        return self.train[trained]

    def other_classes(self, other: Record) -> bool:
        """Return whether both records name their classes, and not equally. Numbers are no names:
        they stand where a set's files have none."""
        numbers = tuple(map(str, range(len(self.class_names))))
        both = self.class_names, other.class_names
        return all(names not in ((), numbers) for names in both) and both[0] != both[1]

    def differences_from(self, now: Record) -> str | None:
        """Return as text how the test images and class names of `now` differ from the record's, or
        None if they do not. `now` has the same training images."""
        return text_of_changes(self.compare(now.test, "test", now.class_names), "test")

    def compare(
        self,
        hashes: Tensor | None,
        part: str | None,
        class_names: tuple[str, ...] | None,
        *,
        whole: bool = True,
    ) -> dict[str, Any]:
        """Compare images, given by their `hashes`, with the run's `part`; None: of another set.

        `whole`: whether the hashes are of all images of their set. Returns numbers of images: n,
        all; trained_on (not for "train"), those that the run trained on; new (with a part), those
        that the part lacks; missing (with a part and `whole`), those that only the part has. Adds
        both class names where they differ. Returns {} if the record or the images have no hashes.
        """
        if self.train is None or hashes is None:
            return {}
        result: dict[str, Any] = {"n": len(hashes)}
        if part != "train":
            result["trained_on"] = int(torch.isin(hashes, self.trained_on()).sum())
        if part is None:
            return result
        of_run = self.hashes(part)
        result["new"] = int((~torch.isin(hashes, of_run)).sum())
        if whole:
            result["missing"] = int((~torch.isin(of_run, hashes)).sum())
        if class_names is not None and class_names != self.class_names:
            result |= {"class_names": list(class_names), "run_class_names": list(self.class_names)}
        return result


def same_training_images(record: Record, name: str, data_root: str, size: int) -> bool:
    """Return whether the data set `name`, read in images of size x size, has the training images of
    the record. Return False if it cannot be read."""
    if not record.fingerprint:
        return False
    try:
        dataset = distributed.in_turn(lambda: load(name, data_root, size=size))
    except DataError:
        return False
    return dataset.fingerprint() == record.fingerprint
