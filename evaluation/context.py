"""The context of eval_wrn_ebm.py's questions: settings, evaluation sets, batches, screen, files."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import data
from data.folder import folder_path
from evaluation.loading import LoadedModel, trainable
from evaluation.results import Results
from evaluation.sampling import refined
from runs import processes as distributed
from runs.cli import UsageError
from runs.names import FOLDER
from runs.screen import Row, listed, make_bar, markdown, text_of_changes

if TYPE_CHECKING:
    from tqdm import tqdm

NOT_PRINTED = ("label", "checkpoint_sha256")  # keys of a result that `say_values` skips
IN_DISTRIBUTION = "in-distribution"  # why a model's own set is left out as OOD set


class Context:
    """The state that the questions of one command share.

    s: the parsed flags; files: writes the answer's files; sets_used: set -> `EvaluationSet.about`;
    differences: model's label -> set -> `Record.compare` of the set with the run's images;
    scores: "model's label/set/score" -> float64 (N,); program: the name that begins a warning.
    """

    program = "eval_wrn_ebm.py"

    def __init__(self, s: Namespace, files: Results, device: torch.device) -> None:
        self.s, self.files, self.device = s, files, device
        self.sets_used: dict[str, str] = {}
        self.differences: dict[str, dict[str, Any]] = {}
        self.scores: dict[str, np.ndarray] = {}
        # Keys as in `images`; a value is the set, or the error that reading it raised.
        self._sets: dict[Any, data.EvaluationSet | data.DataError] = {}
        self._folders: dict[Any, data.DataSet] = {}
        self._warnings: set[str] = set()

    def images(
        self, name: str, model: LoadedModel, flag: str = "--dataset", *, by_class: bool = False
    ) -> data.EvaluationSet:
        """Return the set `name`, read once, and `compare` it. `by_class`: its labels are read, so
        they must be the run's, see `check_labels`. Raises DataError, and UsageError for labels."""
        s, run_set, strict = self.s, model.dataset, flag == "--dataset"
        name = with_run_path(name, run_set)
        run = run_set or "cifar10", model.network.image_size, data.held_out_by(model.settings)
        key = name, *run, strict, model.record.fingerprint
        if key not in self._sets:  # a missing set is not searched or downloaded again either
            try:
                root = Path(os.path.expanduser(s.data_root))
                sets = data.EvaluationSets(root, *run, model.record, s.seed, self._folders)
                read = distributed.in_turn(lambda: sets.load(name, s.max_images, strict=strict))
                self.say(read.about)
                self._sets[key] = read._replace(split=read.split.to(self.device))
            except data.DataError as error:
                error = error.renamed(flag.removeprefix("--"), name)
                self._sets[key] = with_remedy_for_moved_folder(error, name, run_set)
        eval_set = self._sets[key]
        if isinstance(eval_set, data.DataError):
            raise eval_set
        if by_class:
            self.check_labels(eval_set, model)
        self.compare(eval_set, model, flag)
        if self.sets_used.setdefault(eval_set.name, eval_set.about) != eval_set.about:
            self.sets_used[f"{eval_set.name} of {model.label}"] = eval_set.about
        return eval_set

    def compare(self, eval_set: data.EvaluationSet, model: LoadedModel, flag: str) -> None:
        """Record how the set's images differ from the run's images, and warn about it."""
        dataset, split = data.locate(eval_set.name, data_root=self.s.data_root)
        folders = dataset.startswith(FOLDER) and model.dataset.startswith(FOLDER)
        # A folder that is given as --dataset counts as the run's folder, wherever it is now.
        same_set = dataset == model.dataset or (flag == "--dataset" and folders)
        part, whole = split if same_set else None, self.s.max_images is None
        hashes, class_names = eval_set.split.hashes, eval_set.class_names
        differences = model.record.compare(hashes, part, class_names, whole=whole)
        if not differences:
            return
        self.differences.setdefault(model.label, {})[eval_set.name] = differences
        if text := text_of_changes(differences, part):
            self.warn(
                f"{flag} {eval_set.name} differs from the images of {model.label}'s run: {text}"
            )

    def check_labels(self, eval_set: data.EvaluationSet, model: LoadedModel) -> None:
        """Raise UsageError where class names show that a label of a folder is not the run's: a name
        has another number, or the run's training images have other labels under other names."""
        names, of_run = eval_set.class_names, model.record.class_names
        if names is None or not of_run or names == of_run:
            return
        renumbered = any(n in names and names.index(n) != y for y, n in enumerate(of_run))
        dataset, record = data.locate(eval_set.name).dataset, model.record
        for key, folder in self._folders.items():
            hashes, of_run_images = folder.train.hashes, record.train
            if key[0] != dataset or hashes is None or of_run_images is None:
                continue
            if torch.equal(hashes, of_run_images):
                renumbered |= folder.fingerprint() != record.fingerprint
        if renumbered:
            raise UsageError(
                f"--dataset {eval_set.name}: its classes are {listed(names)}; the run's were "
                f"{listed(of_run)}, in this order, and their numbers differ: name the class "
                "folders so that they sort as the run's"
            )

    def training_set(self, model: LoadedModel) -> str:
        """Return the name of the model's training set. Raises UsageError if it is unknown."""
        if not model.dataset:
            value = "is missing" if self.s.dataset is None else self.s.dataset
            raise UsageError(
                f"--dataset {value}: {model.path} does not name its training set, of "
                f"{model.num_classes} classes"
            )
        return model.dataset

    def own_set(self, model: LoadedModel, remedy: str) -> str:
        """Return the name of the model's training set. Raises UsageError, with `remedy`, if
        --dataset is another set."""
        run_set = self.training_set(model)
        if self.s.dataset is not None and trainable(self.s.dataset) != run_set:
            raise UsageError(
                f"--dataset {self.s.dataset}: {model.path} was trained on {run_set}; {remedy}"
            )
        return run_set

    def evaluation_set(self, model: LoadedModel, *, by_class: bool = False) -> data.EvaluationSet:
        """Return the set of --dataset, by default the test split of the model's training set."""
        name = self.training_set(model) if self.s.dataset is None else self.s.dataset
        return self.images(name, model, by_class=by_class)

    def warn_of_other_data(self, model: LoadedModel) -> None:
        """Warn if the model was not trained on --dataset; `compare` warns about two folders."""
        name, run_set = self.s.dataset, model.dataset
        dataset = name and (trainable(name) or name)
        differs = dataset and run_set and dataset != run_set
        if differs and not (dataset.startswith(FOLDER) and run_set.startswith(FOLDER)):
            self.warn(f"--dataset {name}: {model.label} was trained on {run_set}")

    def warn_of_untrained_head(self, model: LoadedModel) -> None:
        if model.untrained_head:
            remedy = "baselines/linear_probe.py fits one"
            self.warn(f"{model.path}: its class head is untrained: {remedy}")

    def labelled_set(self, model: LoadedModel) -> data.EvaluationSet:
        """Return `evaluation_set`. Raises UsageError if labels are missing or of other classes."""
        eval_set = self.evaluation_set(model, by_class=True)
        name, classes = eval_set.name, eval_set.num_classes
        if classes is None:
            raise UsageError(f"--dataset {name} has no labels: use it with OOD or logp_hist")
        # An NPZ that is no training set may lack images of the last classes.
        fewer = trainable(name) is None and classes < model.num_classes
        if classes != model.num_classes and not fewer:
            raise UsageError(
                f"--dataset {name} has labels of {classes} classes, the model of "
                f"{model.path} has {model.num_classes}: give the set that it was trained on"
            )
        self.warn_of_untrained_head(model)
        return eval_set

    def ood_sets(
        self, model: LoadedModel, inside: data.EvaluationSet
    ) -> tuple[list[data.EvaluationSet], list[dict[str, str]]]:
        """Return the sets of --ood_dataset, and {"ood_dataset", "reason"} of each set left out.
        Raises UsageError if no set is left, and with one model for the in-distribution set."""
        names = list[str]()
        for name in self.s.ood_dataset:
            if name == "all":
                names += data.all_ood(trainable(inside.name) or self.training_set(model))
            else:
                names.append(name)
        sets, skipped = self.available(names, model, "--ood_dataset")
        for name in [name for name, eval_set in sets.items() if eval_set.name == inside.name]:
            if len(self.s.load_path) == 1:
                raise UsageError(f"--ood_dataset {name} is the in-distribution set: give another")
            # It stays an OOD set of the models that were trained on another set.
            skipped.append({"ood_dataset": name, "reason": IN_DISTRIBUTION})
            del sets[name]
        if not sets:
            flag = f"--ood_dataset {' '.join(self.s.ood_dataset)}"
            raise UsageError(f"{flag}: no set is left for {model.path}: give another")
        return list({eval_set.name: eval_set for eval_set in sets.values()}.values()), skipped

    def available(
        self, names: Sequence[str], model: LoadedModel, flag: str
    ) -> tuple[dict[str, data.EvaluationSet], list[dict[str, str]]]:
        """Return the sets that can be read, by their names, and {"ood_dataset", "reason"} of each
        set that cannot, after a warning. Raises UsageError if no set can be read, and DataError for
        an unknown name."""
        for name in names:
            try:
                data.locate(name, model.dataset, data_root=self.s.data_root)
            except data.DataError as error:
                raise error.renamed(flag.removeprefix("--"), name) from None
        sets, reasons = dict[str, data.EvaluationSet](), dict[str, str]()
        for name in names:
            try:
                sets[name] = self.images(name, model, flag)
            except data.DataError as error:
                reasons[name] = str(error)
        if not sets:
            raise UsageError("; ".join(reasons.values()))
        for reason in reasons.values():
            self.warn(f"left out: {reason}")
        return sets, [{"ood_dataset": n, "reason": reason} for n, reason in reasons.items()]

    def say_what_is_left_out(self, results: Sequence[Row]) -> None:
        """Print the names of the sets that were left out because they cannot be read."""
        skipped = [entry for result in results for entry in result.get("skipped", ())]
        names = [entry["ood_dataset"] for entry in skipped if entry["reason"] != IN_DISTRIBUTION]
        if names:
            self.say(f"left out, see the warnings above: {', '.join(dict.fromkeys(names))}")

    def share_of(self, eval_set: data.EvaluationSet) -> range:
        """Return this process's share of the images, range(first, last, batch size)."""
        # Refinement draws one noise tensor per block of images, so a block must stay whole.
        size = data.EVAL_NOISE_BLOCK if self.s.n_steps else self.s.batch_size
        return distributed.share(len(eval_set.split.labels), size)

    def batches(
        self, eval_set: data.EvaluationSet, model: LoadedModel
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's share of the set in batches (images, labels), with --sigma noise and
        refined by --n_steps, under a progress bar."""
        s, part = self.s, self.share_of(eval_set)
        batches: Iterable[tuple[Tensor, Tensor]] = data.evaluation_batches(
            eval_set.split, batch_size=part.step, sigma=s.sigma, seed=s.seed
        )
        if s.n_steps:
            chain, first = model.chain(s.n_steps), part.start // part.step
            batches = refined(model.network, batches, chain, seed=s.seed, first=first)
        with self.bar(part.stop - part.start, f"{model.label}: {eval_set.title}") as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch[1]))

    def bar(self, total: int, title: str, unit: str = "img") -> tqdm:
        return make_bar(total, unit, desc=title, leave=False, disable=not distributed.first())

    def say(self, text: str) -> None:
        distributed.say(text)

    def warn(self, message: str) -> None:
        """Print a warning on stderr, once."""
        if message not in self._warnings:
            distributed.warn(self.program, message)
        self._warnings.add(message)

    def table(self, rows: Sequence[Row], columns: Sequence[str]) -> None:
        """Print `columns` of the rows; with several models also a row's "label", as "model"."""
        columns = ["model", *columns] if len(self.s.load_path) > 1 else columns
        self.say(markdown([{**row, "model": row["label"]} for row in rows], columns))

    def say_values(self, result: Row) -> None:
        """Print each number and each string of a result on a line of its own."""
        for name, value in result.items():
            if not (value is None or isinstance(value, list | dict) or name in NOT_PRINTED):
                text = f"{value:.6g}" if isinstance(value, float) else f"{value}"
                self.say(f"{name:22} {text}")

    def save_images(
        self, name: str, images: Tensor, starts: Tensor | None, labels: Tensor | None = None
    ) -> None:
        """Write images and the starts of their chains, uint8 (N, H, W, 3), and labels (N,), in the
        format of a data set's NPZ, so that it can be read as a set."""
        tensors = {"test_images": images, "start_images": starts, "test_labels": labels}
        arrays: dict[str, Any] = {k: x.cpu().numpy() for k, x in tensors.items() if x is not None}
        self.files.add(name, np.savez_compressed, **arrays)


def with_run_path(name: str, run_set: str) -> str:
    """Return `name`; if it is a split of the run's folder, with the path as `run_set` spells it."""
    folders = [x for x in (trainable(name), run_set) if x and x.startswith(FOLDER)]
    if len(folders) < 2 or len({folder_path(folder).resolve() for folder in folders}) > 1:
        return name
    return data.split_name(run_set, data.locate(name).split)


def with_remedy_for_moved_folder(error: data.DataError, name: str, run_set: str) -> data.DataError:
    """Return the error; if the run's folder is gone, with a hint how to give its new path."""
    in_run_folder = run_set.startswith(FOLDER) and trainable(name) == run_set
    if not in_run_folder or folder_path(run_set).is_dir():
        return error
    message = f"{error.message}; if the folder has moved, give --dataset folder:PATH"
    return data.DataError(error.setting, error.value, message)
