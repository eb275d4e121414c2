"""The record of a run's images in its checkpoint, and how other images differ from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.base import DataError, DataSet
from data.sets import load
from data.splits import hold_out
from runs import processes as distributed


@dataclass(frozen=True)
class Record:
    """A run's images, as its checkpoint records them."""

    fingerprint: str = ""  # DataSet.fingerprint()
    class_names: tuple[str, ...] = ()
    train: Tensor | None = None  # image_hashes
    test: Tensor | None = None
    valid: Tensor | None = None  # indices into train

    @classmethod
    def of(cls, dataset: DataSet, n_valid: int | None) -> Record:
        """Make the record of a run that holds out `n_valid` training images; None: the default."""
        valid = hold_out(dataset, n_valid)[1]
        names, train, test = dataset.class_names, dataset.train.hashes, dataset.test.hashes
        return cls(dataset.fingerprint(), names, train, test, valid)

    @classmethod
    def read(cls, state: Any) -> Record:
        """Make a record of `state`, of a checkpoint; an empty one of None.

        Raises ValueError for what no run has written.
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
        """Return strings, a list and tensors for a checkpoint; None if it is empty."""
        if self.train is None:
            return None
        named = {name: getattr(self, name) for name in ("fingerprint", "train", "test", "valid")}
        return {**named, "class_names": list(self.class_names)}

    def hashes(self, part: str) -> Tensor:
        """Return those of the run's "train", "valid" or "test" images; "train" includes "valid"."""
        assert self.train is not None and self.test is not None
        if part == "valid":
            return self.train[self.valid]
        return self.train if part == "train" else self.test

    def trained_on(self) -> Tensor:
        """Return the hashes of the training images that were not held out for validation."""
        assert self.train is not None
        kept = torch.ones(len(self.train), dtype=torch.bool)
        kept[self.valid] = False
        return self.train[kept]

    def others(self, now: Record) -> str | None:
        """Return in words how test images and class names of `now`, whose training images are the
        same, differ from these; None if they do not."""
        return said(self.compare(now.test, "test", now.class_names), "test")

    def compare(
        self,
        hashes: Tensor | None,
        part: str | None,
        class_names: tuple[str, ...] | None,
        *,
        whole: bool = True,
    ) -> dict[str, Any]:
        """Return how images of these `hashes` differ from the run's `part`; None: they are another
        set's.

        `whole`: whether they are all images of their set. Returns n; trained_on, how many were
        trained on; of a part, new and missing, how many of them the run's part does not have and
        how many it has besides; the run's class names and these, where they differ. {} where the
        record has no hashes or the images have none.
        """
        if self.train is None or hashes is None:
            return {}
        found: dict[str, Any] = {"n": len(hashes)}
        if part != "train":
            found["trained_on"] = int(torch.isin(hashes, self.trained_on()).sum())
        if part is None:
            return found
        ours = self.hashes(part)
        found["new"] = int((~torch.isin(hashes, ours)).sum())
        if whole:
            found["missing"] = int((~torch.isin(ours, hashes)).sum())
        if class_names is not None and class_names != self.class_names:
            found |= {"class_names": list(class_names), "run_class_names": list(self.class_names)}
        return found


def said(differences: dict[str, Any], part: str | None) -> str | None:
    """Return the differences that `Record.compare` found in words; None for none."""
    kind = {"train": "training", "valid": "validation", "test": "test"}.get(part or "", "")
    n, parts = differences.get("n", 0), []
    for key, text in (
        ("trained_on", f"of {n:,} images were trained on"),
        ("new", f"of {n:,} images are not among the run's {kind} images"),
        ("missing", f"of the run's {kind} images are missing"),
    ):
        if count := differences.get(key):
            parts.append(f"{count:,} {text}")
    if "class_names" in differences:
        ours, theirs = (
            ", ".join(names[:10]) + (f", ... ({len(names)} in all)" if names[10:] else "")
            for names in (differences["class_names"], differences["run_class_names"])
        )
        parts.append(f"its classes are {ours}; the run's were {theirs}, in this order")
    return "; ".join(parts) or None


def same_training_images(record: Record, name: str, data_root: str, size: int) -> bool:
    """Return whether the data set `name` has the training images of the record, both in images of
    size x size."""
    if not record.fingerprint:
        return False
    try:
        found = distributed.in_turn(lambda: load(name, data_root, size=size))
    except DataError:
        return False
    return found.fingerprint() == record.fingerprint
