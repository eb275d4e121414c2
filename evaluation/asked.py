"""What one command of eval_wrn_ebm.py asks about: its sets, and their batches."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import data
from data.folder import folder_path
from evaluation.refinement import refined
from evaluation.results import Answer
from evaluation.trained import Trained, trainable
from runs import processes as distributed
from runs.cli import UsageError
from runs.names import FOLDER
from runs.screen import make_bar, print_line


class Asked:
    """The command's settings, its answer's files, and the sets that were loaded for it."""

    def __init__(self, s: Namespace, answer: Answer, device: torch.device) -> None:
        self.s, self.answer, self.device = s, answer, device
        self.sets: dict[Any, data.EvaluationSet] = {}
        self.missing: dict[Any, data.DataError] = {}
        self.about: dict[str, str] = {}
        self.warned: set[str] = set()
        self.folders: dict[Any, data.DataSet] = {}
        self.differences: dict[str, dict[str, Any]] = {}  # label of a model -> set -> what differs

    def images(self, name: str, model: Trained, flag: str = "--dataset") -> data.EvaluationSet:
        """The named set, read once, and compared with what the model was trained on. Raises
        DataError."""
        own, size = self.own(model), model.model.image_size
        n_valid = data.held_out_by(model.settings)
        run = model.record.fingerprint, model.record.reader
        key = name, own, size, n_valid, flag == "--dataset", run
        if key in self.missing:  # not looked for, or downloaded, again for every checkpoint
            raise self.missing[key]
        if key not in self.sets:
            try:
                found = distributed.in_turn(
                    lambda: data.load_evaluation(
                        name,
                        self.s.data_root,
                        trained_on=data.TrainedOn(own or "cifar10", size, n_valid, model.record),
                        seed=self.s.seed,
                        max_images=self.s.max_images,
                        strict=flag == "--dataset",
                        folders=self.folders,
                    )
                )
            except data.DataError as error:
                error = error.asked_as(flag.removeprefix("--"), name)
                self.missing[key] = self.moved(error, name, own)
                raise self.missing[key] from None
            if distributed.first():
                print_line(found.about, sys.stdout)
            self.sets[key] = found._replace(split=found.split.to(self.device))
        found = self.sets[key]
        self.compare(found, model, own, flag)
        if self.about.setdefault(found.name, found.about) != found.about:
            self.about[f"{found.name} of {model.label}"] = found.about
        return found

    def own(self, model: Trained) -> str:
        """The data set that the model was trained on: the folder of --dataset where its training
        images are the run's, else what the run names; "" where nobody tells."""
        asked = None if self.s.dataset is None else trainable(self.s.dataset)
        if asked in (None, model.dataset) or not (
            asked.startswith(FOLDER) and model.dataset.startswith(FOLDER)
        ):
            return model.dataset
        if folder_path(asked).resolve() == folder_path(model.dataset).resolve():
            return asked
        size, reader = model.model.image_size, model.record.reader
        key = asked, size, reader, True
        if key not in self.folders and key not in self.missing:
            try:
                self.folders[key] = distributed.in_turn(
                    lambda: data.load(asked, self.s.data_root, size=size, reader=reader)
                )
            except data.DataError as error:
                self.missing[key] = error
        if key in self.missing or self.folders[key].fingerprint() != model.record.fingerprint:
            return model.dataset
        return asked

    def moved(self, error: data.DataError, name: str, own: str) -> data.DataError:
        """The error, with the remedy where it is about the folder that the run names."""
        ours = {data.split_name(own, part) for part in ("train", "valid", "test")}
        if name not in ours or not own.startswith(FOLDER) or folder_path(own).is_dir():
            return error
        said = f"{error.said}; where the images have moved: --dataset folder:PATH"
        return data.DataError(error.setting, error.value, said)

    def compare(self, found: data.EvaluationSet, model: Trained, own: str, flag: str) -> None:
        """Record how the set differs from the run's images, and say so in a line."""
        place = data.locate(found.name, data_root=self.s.data_root)
        both = place.dataset.startswith(FOLDER) and own.startswith(FOLDER)
        ours = place.dataset == own or (flag == "--dataset" and both)
        part = place.split if ours else None
        whole = self.s.max_images is None
        differences = model.record.compare(found.split, part, found.class_names, whole=whole)
        if not differences:
            return
        self.differences.setdefault(model.label, {})[found.name] = differences
        if said := data.said(differences, part):
            self.warn(f"{flag} {found.name} is not as {model.label} was trained with: {said}")

    def warn(self, message: str) -> None:
        """A line on stderr, once."""
        if message not in self.warned and distributed.first():
            print_line(f"eval_wrn_ebm.py: warning: {message}", sys.stderr)
        self.warned.add(message)

    def asked_about(self, model: Trained) -> data.EvaluationSet:
        """--dataset, by default the test split of what the model was trained on."""
        name = self.known(model) if self.s.dataset is None else self.s.dataset
        return self.images(name, model)

    def known(self, model: Trained) -> str:
        """The set that the model was trained on. Raises UsageError where nobody tells."""
        if not (own := self.own(model)):
            raise UsageError(
                f"--dataset is missing: {model.path} does not tell what it was trained on, "
                f"with {model.num_classes} classes"
            )
        return own

    def labelled(self, model: Trained) -> data.EvaluationSet:
        """The same. Raises UsageError for labels that the model does not have."""
        found = self.asked_about(model)
        if found.num_classes is None:
            raise UsageError(f"--dataset {found.name} has no labels: use it with OOD or logp_hist")
        # Any other NPZ may lack images of the last classes: its labels only have to fit.
        fewer = trainable(found.name) is None and found.num_classes < model.num_classes
        if found.num_classes != model.num_classes and not fewer:
            raise UsageError(
                f"--dataset {found.name} has labels of {found.num_classes} classes, the model of "
                f"{model.path} has {model.num_classes}: give the set that it was trained on"
            )
        return found

    def batches(self, found: data.EvaluationSet, model: Trained) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the set with --sigma noise, refined by --n_steps, under a progress bar. Of
        several processes each walks its share of the same batches."""
        s = self.s
        # Refinement makes blocks of its own, each with its own noise: none is to be divided.
        size = data.EVAL_NOISE_BLOCK if s.n_steps else s.batch_size
        part = distributed.share(data.number_of_batches(found.split, size))
        plain: Iterable[tuple[Tensor, Tensor]] = data.evaluation_batches(
            found.split, batch_size=size, sigma=s.sigma, seed=s.seed, part=part
        )
        if s.n_steps:
            chain = model.chain(s, s.n_steps)
            plain = refined(model.model, plain, chain=chain, seed=s.seed, first=part.start)
        images = min(part.stop * size, len(found.split.labels)) - part.start * size
        with bar(images, f"{model.label}: {found.title}") as shown:
            for batch in plain:
                yield batch
                shown.update(len(batch[1]))


def bar(total: int, title: str, unit: str = "img") -> tqdm:
    return make_bar(total, unit, desc=title, leave=False, disable=not distributed.first())
