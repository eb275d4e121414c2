"""What one command of eval_wrn_ebm.py asks about: its sets, and their batches."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

import data
from evaluation.refinement import refined
from evaluation.results import Answer
from evaluation.trained import Trained, trainable
from training import distributed
from training.flags import UsageError
from training.output import make_bar, print_line


class Asked:
    """The command's settings, its answer's files, and the sets that were loaded for it."""

    def __init__(self, s: Namespace, answer: Answer, device: torch.device) -> None:
        self.s, self.answer, self.device = s, answer, device
        self.sets: dict[tuple[str, str, int | None], data.EvaluationSet] = {}
        self.missing: dict[tuple[str, str, int | None], data.DataError] = {}
        self.about: dict[str, str] = {}
        self.warned: set[str] = set()

    def images(self, name: str, model: Trained, flag: str = "--dataset") -> data.EvaluationSet:
        """The named set, read once. Raises DataError."""
        n_valid = model.settings.get("n_valid")
        n_valid = None if n_valid is None or n_valid < 0 else int(n_valid)
        key = name, model.dataset, n_valid
        if key in self.missing:  # not looked for, or downloaded, again for every checkpoint
            raise self.missing[key]
        if key not in self.sets:
            try:
                found = distributed.in_turn(
                    lambda: data.load_evaluation(
                        name,
                        self.s.data_root,
                        in_dataset=model.dataset or "cifar10",
                        seed=self.s.seed,
                        max_images=self.s.max_images,
                        n_valid=n_valid,
                        flag=flag,
                    ),
                    data.DataError,
                )
            except data.DataError as error:
                self.missing[key] = error
                raise
            self.sets[key] = found._replace(split=found.split.to(self.device))
        found = self.sets[key]
        if self.about.setdefault(found.name, found.about) != found.about:
            self.about[f"{found.name} of {model.label}"] = found.about
        return found

    def warn(self, message: str) -> None:
        """A line on stderr, once."""
        if message not in self.warned and distributed.first():
            print_line(f"eval_wrn_ebm.py: warning: {message}", sys.stderr)
        self.warned.add(message)

    def asked_about(self, model: Trained) -> data.EvaluationSet:
        """--dataset, by default the test split of what the model was trained on."""
        name = known(model) if self.s.dataset is None else self.s.dataset
        return self.images(name, model)

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
            sgld = model.sgld(s)
            plain = refined(
                model.model, plain, steps=s.n_steps, seed=s.seed, first=part.start, **sgld
            )
        images = min(part.stop * size, len(found.split.labels)) - part.start * size
        with bar(images, f"{model.label}: {found.title}") as shown:
            for batch in plain:
                yield batch
                shown.update(len(batch[1]))


def bar(total: int, title: str, unit: str = "img") -> tqdm:
    return make_bar(total, unit, desc=title, leave=False, disable=not distributed.first())


def known(model: Trained) -> str:
    """The set that the model was trained on. Raises UsageError where nobody tells."""
    if not model.dataset:
        raise UsageError(
            f"--dataset is missing: {model.path} does not tell what it was trained on, "
            f"with {model.num_classes} classes"
        )
    return model.dataset
