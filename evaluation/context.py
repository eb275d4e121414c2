"""The common ground of the questions of one command: settings, sets and batches, screen, files."""

from __future__ import annotations

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
from runs.screen import Row, make_bar, markdown

if TYPE_CHECKING:
    from tqdm import tqdm

UNSAID = ("label", "checkpoint_sha256")  # on the screen
IN_DISTRIBUTION = "in-distribution"  # why a set is left out for one of several models


class Context:
    """
    s: the settings; files: those of the answer; sets_used: name -> what was read, in a line;
    differences: label of a model -> set -> how it differs from what the run was trained with;
    scores: "label of a model/set/score" -> float64 (N,).
    """

    def __init__(self, s: Namespace, files: Results, device: torch.device) -> None:
        self.s, self.files, self.device = s, files, device
        self.sets_used: dict[str, str] = {}
        self.differences: dict[str, dict[str, Any]] = {}
        self.scores: dict[str, np.ndarray] = {}
        # A set, or the error of a set that cannot be had.
        self._sets: dict[Any, data.EvaluationSet | data.DataError] = {}
        self._folders: dict[Any, data.DataSet] = {}
        self._warnings: set[str] = set()

    def images(self, name: str, model: LoadedModel, flag: str = "--dataset") -> data.EvaluationSet:
        """Return the named set, read once and compared with what the model was trained on. Raises
        DataError."""
        s, own, strict = self.s, model.dataset, flag == "--dataset"
        name = as_the_run_says(name, own)
        run = own or "cifar10", model.network.image_size, data.held_out_by(model.settings)
        key = name, *run, strict, model.record.fingerprint
        if key not in self._sets:  # nor looked for, or downloaded, again for every checkpoint
            try:
                root = Path(s.data_root).expanduser()
                sets = data.EvaluationSets(root, *run, model.record, s.seed, self._folders)
                read = distributed.in_turn(lambda: sets.load(name, s.max_images, strict=strict))
                self.say(read.about)
                self._sets[key] = read._replace(split=read.split.to(self.device))
            except data.DataError as error:
                error = error.asked_as(flag.removeprefix("--"), name)
                self._sets[key] = where_moved(error, name, own)
        found = self._sets[key]
        if isinstance(found, data.DataError):
            raise found
        self.compare(found, model, flag)
        if self.sets_used.setdefault(found.name, found.about) != found.about:
            self.sets_used[f"{found.name} of {model.label}"] = found.about
        return found

    def compare(self, found: data.EvaluationSet, model: LoadedModel, flag: str) -> None:
        """Record how the set differs from the run's images, and say so in a line."""
        place = data.locate(found.name, data_root=self.s.data_root)
        both = place.dataset.startswith(FOLDER) and model.dataset.startswith(FOLDER)
        ours = place.dataset == model.dataset or (flag == "--dataset" and both)
        part = place.split if ours else None
        whole = self.s.max_images is None
        differences = model.record.compare(found.split.hashes, part, found.class_names, whole=whole)
        if not differences:
            return
        self.differences.setdefault(model.label, {})[found.name] = differences
        if said := data.said(differences, part):
            self.warn(f"{flag} {found.name} is not as {model.label} was trained with: {said}")

    def known(self, model: LoadedModel) -> str:
        """Return the set that the model was trained on. Raises UsageError if it is unknown."""
        if not model.dataset:
            asked = "is missing" if self.s.dataset is None else self.s.dataset
            raise UsageError(
                f"--dataset {asked}: {model.path} does not tell what it was trained on, with "
                f"{model.num_classes} classes"
            )
        return model.dataset

    def own_set(self, model: LoadedModel, remedy: str) -> str:
        """Return the set that the model was trained on. Raises UsageError, with the remedy, if
        --dataset is another set."""
        own = self.known(model)
        if self.s.dataset is not None and trainable(self.s.dataset) != own:
            raise UsageError(
                f"--dataset {self.s.dataset}: {model.path} was trained on {own}; {remedy}"
            )
        return own

    def asked_set(self, model: LoadedModel) -> data.EvaluationSet:
        """Return --dataset, by default the test split of what the model was trained on."""
        name = self.known(model) if self.s.dataset is None else self.s.dataset
        return self.images(name, model)

    def warn_of_other_data(self, model: LoadedModel) -> None:
        """Warn of a --dataset that the model was not trained on; of folders `compare` does."""
        asked, own = self.s.dataset, model.dataset
        base = asked and (trainable(asked) or asked)
        if base and own and base != own and not all(x.startswith(FOLDER) for x in (base, own)):
            self.warn(f"--dataset {asked}: {model.label} was trained on {own}")

    def labelled_set(self, model: LoadedModel) -> data.EvaluationSet:
        """Return `asked_set`. Raises UsageError for labels that the model does not have."""
        found = self.asked_set(model)
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

    def ood_sets(
        self, model: LoadedModel, inside: data.EvaluationSet
    ) -> tuple[list[data.EvaluationSet], list[dict[str, str]]]:
        """Return the sets of --ood_dataset, and those left out. Raises UsageError if none is left,
        and for the in-distribution set itself."""
        asked, names = self.s.ood_dataset, list[str]()
        for name in asked:
            if name == "all":
                names += data.all_ood(trainable(inside.name) or self.known(model))
            else:
                names.append(name)
        found, skipped = self.available(names, model, "--ood_dataset")
        for own in [name for name, each in found.items() if each.name == inside.name]:
            if len(self.s.load_path) == 1:
                raise UsageError(f"--ood_dataset {own} is the in-distribution set: give another")
            # One model's own set is another's OOD set.
            skipped.append({"ood_dataset": own, "reason": IN_DISTRIBUTION})
            del found[own]
        if not found:
            raise UsageError(
                f"--ood_dataset {' '.join(asked)}: no set is left for {model.path}: give another"
            )
        return list({each.name: each for each in found.values()}.values()), skipped

    def available(
        self, names: Sequence[str], model: LoadedModel, flag: str
    ) -> tuple[dict[str, data.EvaluationSet], list[dict[str, str]]]:
        """Return the sets that can be had, by these names, and the others with the reason, which a
        line on stderr says. Raises UsageError if there is none, and DataError for a name that no
        set has."""
        for name in names:
            try:
                data.locate(name, model.dataset, data_root=self.s.data_root)
            except data.DataError as error:
                raise error.asked_as(flag.removeprefix("--"), name) from None
        found, reasons = dict[str, data.EvaluationSet](), dict[str, str]()
        for name in names:
            try:
                found[name] = self.images(name, model, flag)
            except data.DataError as error:
                reasons[name] = str(error)
        if not found:
            raise UsageError("; ".join(reasons.values()))
        for reason in reasons.values():
            self.warn(f"left out: {reason}")
        return found, [{"ood_dataset": n, "reason": reason} for n, reason in reasons.items()]

    def say_what_is_left_out(self, results: Sequence[Row]) -> None:
        """Print the names of the sets that no model was asked about."""
        told = [each for result in results for each in result.get("skipped", ())]
        names = [each["ood_dataset"] for each in told if each["reason"] != IN_DISTRIBUTION]
        if names:
            self.say(f"left out, see the warnings above: {', '.join(dict.fromkeys(names))}")

    def share_of(self, found: data.EvaluationSet) -> range:
        """Return the images, range(first, last, batch size), that this process takes."""
        # A block that is refined has noise of its own, and must not be divided.
        size = data.EVAL_NOISE_BLOCK if self.s.n_steps else self.s.batch_size
        return distributed.share(len(found.split.labels), size)

    def batches(
        self, found: data.EvaluationSet, model: LoadedModel
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of the set with --sigma noise, refined by --n_steps, under a progress bar.
        Of several processes each walks its share of the same batches."""
        s, part = self.s, self.share_of(found)
        batches: Iterable[tuple[Tensor, Tensor]] = data.evaluation_batches(
            found.split, batch_size=part.step, sigma=s.sigma, seed=s.seed
        )
        if s.n_steps:
            chain, first = model.chain(s.n_steps), part.start // part.step
            batches = refined(model.network, batches, chain, seed=s.seed, first=first)
        with self.bar(part.stop - part.start, f"{model.label}: {found.title}") as shown:
            for batch in batches:
                yield batch
                shown.update(len(batch[1]))

    def bar(self, total: int, title: str, unit: str = "img") -> tqdm:
        return make_bar(total, unit, desc=title, leave=False, disable=not distributed.first())

    def say(self, text: str) -> None:
        distributed.say(text)

    def warn(self, message: str) -> None:
        """Print a warning on stderr, once."""
        if message not in self._warnings:
            distributed.warn("eval_wrn_ebm.py", message)
        self._warnings.add(message)

    def table(self, rows: Sequence[Row], columns: Sequence[str]) -> None:
        """Print these columns of rows with a "label"; the label, too, of several models."""
        named = [{**row, "model": row["label"]} for row in rows]
        first = ["model"] if len(self.s.load_path) > 1 else []
        self.say(markdown(named, [*first, *columns]))

    def say_values(self, result: Row) -> None:
        """Print the numbers and names of a result, a line each."""
        for name, value in result.items():
            if not (value is None or isinstance(value, list | dict) or name in UNSAID):
                text = f"{value:.6g}" if isinstance(value, float) else f"{value}"
                self.say(f"{name:22} {text}")

    def save_images(
        self, name: str, images: Tensor, starts: Tensor | None, labels: Tensor | None = None
    ) -> None:
        """Write images uint8 (N, H, W, 3), and where their chains began, under the names that a
        data set has, so that it can be one."""
        sets = {"test_images": images, "start_images": starts, "test_labels": labels}
        arrays: dict[str, Any] = {k: x.cpu().numpy() for k, x in sets.items() if x is not None}
        self.files.add(name, np.savez_compressed, **arrays)


def as_the_run_says(name: str, own: str) -> str:
    """Return the split's name. A split of the run's own folder gets the path that the run has,
    however the name writes it."""
    folders = [each for each in (trainable(name), own) if each and each.startswith(FOLDER)]
    if len(folders) < 2 or len({folder_path(each).resolve() for each in folders}) > 1:
        return name
    return data.split_name(own, data.locate(name).split)


def where_moved(error: data.DataError, name: str, own: str) -> data.DataError:
    """Return the error, with the remedy if it is about the folder that the run names."""
    ours = {data.split_name(own, part) for part in ("train", "valid", "test")}
    if name not in ours or not own.startswith(FOLDER) or folder_path(own).is_dir():
        return error
    said = f"{error.said}; where the images have moved: --dataset folder:PATH"
    return data.DataError(error.setting, error.value, said)
