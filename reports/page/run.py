"""A run folder, read without trust: what is missing or broken becomes a note on the page."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from reports.page.markup import number, show
from runs.files import read_json, read_rows
from runs.folder import ENVIRONMENTS, LAST, environments, holds_run

ROOT = Path(__file__).resolve().parent.parent.parent
T = TypeVar("T")
PROBE = "linear_probe.py"  # a program whose only row of progress.csv is no epoch

# Evaluation -> what its answer must have; with several checkpoints, in each of "models".
KEYS: dict[str, tuple[str, ...]] = {
    "test_clf": ("dataset", "n", "accuracy", "nll"),
    "eval_ece": ("dataset", "n", "accuracy", "ece", "bins", "nll", "brier"),
    "OOD": ("in_dataset", "rows"),
    "logp_hist": ("datasets", "score_fn", "sets"),
    "attack": ("distance", "attack", "n", "rows"),
    "uncond_samples": ("n", "steps"),
    "cond_samples": ("n", "steps"),
    "fid": ("fid", "inception_score_mean", "n", "sampling", "features"),
}
NOISY = ("test_clf", "eval_ece", "OOD", "logp_hist")  # the others take their images as they are


class NoRun(ValueError):
    """The folder holds no run; the message is one line with the remedy."""


@dataclass
class Model:
    """One checkpoint's part of an answer, with what stands above all models, such as their data
    set. `own`: the checkpoint belongs to this run. `shown`: the label, bold if it is such a model
    among several."""

    label: str
    shown: str
    checkpoint: str
    values: dict[str, Any]
    own: bool

    def get(self, key: str) -> Any:
        return self.values.get(key)

    @property
    def refined(self) -> float:
        """Return the SGLD steps that changed the images before they were evaluated."""
        noisy = self.get("eval") in NOISY
        steps = self.part("protocol").get("n_steps") if noisy else self.get("n_steps_refine")
        return number(steps) or 0

    def part(self, key: str) -> dict[str, Any]:
        return mapping(self.get(key))

    def rows(self, key: str) -> list[dict[str, Any]]:
        """Return a list of objects; whatever else stands in its place is passed over."""
        return items(self.get(key), dict)


@dataclass
class Answer:
    """One evaluation's JSON file; it has a model at least."""

    path: Path
    models: list[Model]
    missing: list[str]

    @property
    def names(self) -> str:
        return ", ".join(model.label for model in self.models)

    @property
    def first(self) -> Model:
        return self.models[0]

    def of_run(self) -> Model | None:
        return next((model for model in self.models if model.own), None)

    def pictures(self) -> list[Path]:
        """Return the answer's PNG files, beside it, in its order."""
        names = [Path(file).name for file in items(self.first.get("files"), str)]
        return [self.path.parent / n for n in names if n.endswith(".png") and "\0" not in n]

    def reports(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (model, section) for each section that the answer brings with it."""
        found = [(model.shown, model.part("report")) for model in self.models]
        return [(label, told) for label, told in found if told]

    def facts(self) -> list[tuple[str, Any]]:
        """Return what the numbers depend on as (name, value), in the order of a reader's
        questions: split, images, noise, the rest of the protocol, checkpoint."""
        first, name, n = self.first, self.first.get("eval"), self.first.get("n")
        agreed, noise = first.part("protocol"), first.part("settings").get("sigma")
        images = show(n, ",.0f") if n else None
        found = [("split", first.get("dataset")), ("images", images)]
        if name in (*NOISY, "attack"):
            found.append(("sigma", agreed.get("sigma", None if name == "attack" else noise)))
        above = {"version", "n", "dataset", "sigma", *(k for k, v in found if v is not None)}
        found += [(k, v) for k, v in agreed.items() if k not in above and not isinstance(v, dict)]
        found.append(("protocol version", agreed.get("version")))
        paths = [(m.checkpoint.replace("\\", "/").split("/"), m.own) for m in self.models]
        files = ["/".join(parts[-1 if own else -2 :]) for parts, own in paths]
        found.append(("checkpoint", ", ".join(files)))
        return [(name, value) for name, value in found if value not in (None, "")]


@dataclass
class Run:
    folder: Path
    settings: dict[str, Any]
    environment: dict[str, Any]
    environments: list[dict[str, Any]]
    rows: list[dict[str, str]]  # of progress.csv
    answers: dict[str, list[Answer]]  # of each question, the newest first
    notes: list[str]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def last(self) -> dict[str, str]:
        """Return the last row of progress.csv that has an epoch and a step; {} without one."""
        rows = (row for row in reversed(self.rows) if row.get("epoch", "").isdecimal())
        return next((row for row in rows if row.get("step", "").isdecimal()), {})

    @property
    def epochs(self) -> int:
        return int(self.last.get("epoch", -1)) + 1

    @property
    def steps(self) -> int:
        return int(self.last.get("step", 0))

    @property
    def finished(self) -> bool:
        """Return whether the last epoch, or --max_steps, or a probe's checkpoint is on the disk."""
        if not self.settings or not (self.folder / LAST).exists():
            return False
        if self.settings.get("program") == PROBE:  # its checkpoint is the last that it writes
            return True
        steps, epochs = (self.settings.get(name) for name in ("max_steps", "n_epochs"))
        return self.steps >= steps if steps else epochs is not None and self.epochs >= epochs

    def command(self, evaluation: str, *flags: str) -> str | None:
        """Return the command that answers this question, about the best checkpoint, else the last
        one, else any; None without a checkpoint."""
        named = [self.folder / f"{name}_ckpt.pt" for name in ("best_valid", "last")]
        found = [p for p in (*named, *sorted(self.folder.glob("*.pt"))) if p.exists()]
        if not found:
            return None
        path = found[0].resolve()
        path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        words = ["python", "eval_wrn_ebm.py", "--load_path", str(path), "--eval", evaluation]
        words += flags
        data_root = self.settings.get("data_root")
        if isinstance(data_root, str) and data_root != "./datasets":
            words += ["--data_root", data_root]
        return shlex.join(words)


def read_run(folder: Path, eval_folders: Sequence[Path] = ()) -> Run:
    """Return the run, with the answers in its `eval/` and in the other folders.

    Raises NoRun where the folder holds none of what a training run leaves.
    """
    if not folder.is_dir():
        raise NoRun(f"RUN_FOLDER {folder} is not a folder: give the folder of a training run")
    if not holds_run(folder):
        raise NoRun(
            f"RUN_FOLDER {folder} holds no run (neither variant.json nor progress.csv): "
            "give the folder that train_wrn.py wrote, <log_dir>/<id>"
        )
    notes: list[str] = []
    unknown = "the settings of this run are unknown"
    settings: dict[str, Any] = _read(folder / "variant.json", dict, notes, unknown)
    ran = environments(settings)
    here, _ = (settings.pop(name, None) for name in ENVIRONMENTS)
    rows: list[dict[str, str]] = _read(folder / "progress.csv", list, notes, "there are no curves")
    whole = [row for row in rows if None not in row and None not in row.values()]
    if len(whole) < len(rows):  # a line that a crash cut off has too few fields
        notes.append(f"progress.csv: {len(rows) - len(whole)} damaged lines are left out.")
    run = Run(folder, settings, mapping(here), ran, whole, {}, notes)
    places = {place.resolve(): place for place in (folder / "eval", *eval_folders)}.values()
    others = sorted(p.stem for place in places for p in place.glob("*.json") if p.stem not in KEYS)
    for name in (*KEYS, *(other for other in others if "-" not in other)):
        paths = [path for place in places for path in _versions(place, name)]
        read = [(path, _read(path, dict, notes)) for path in paths]
        found = [_answer(run, name, path, record) for path, record in read if record]
        if name in KEYS or any(answer.reports() for answer in found):
            run.answers[name] = found
    return run


def items(found: object, kind: type[T]) -> list[T]:
    """Return the items of this kind of what should be a list; the others are passed over."""
    return [item for item in found if isinstance(item, kind)] if isinstance(found, list) else []


def mapping(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _read(path: Path, kind: type[T], notes: list[str], effect: str = "it is left out") -> T:
    """Return what a JSON or CSV file holds; nothing, and a note with the effect, where it is
    missing or broken."""
    if not path.exists():
        notes.append(f"{path.name} is missing: {effect}.")
        return kind()
    try:
        found = read_json(path) if kind is dict else read_rows(path)
        if isinstance(found, kind):
            return found
        notes.append(f"{path.name} holds no JSON object: {effect}.")
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read ({error}): {effect}.")
    return kind()


def _versions(folder: Path, name: str) -> list[Path]:
    """Return the newest answer, then those with other settings that it set aside, newest first."""
    numbers = {p: p.stem.removeprefix(f"{name}-") for p in folder.glob(f"{name}-*.json")}
    aside = [path for path, text in numbers.items() if text.isdecimal()]
    newest = [folder / f"{name}.json"] if (folder / f"{name}.json").exists() else []
    return newest + sorted(aside, key=lambda path: int(numbers[path]), reverse=True)


def _answer(run: Run, name: str, path: Path, record: dict[str, Any]) -> Answer:
    several = items(record.get("models"), dict)
    beside = path.parent.resolve() == (run.folder / "eval").resolve()
    models = []
    for part in several or [record]:
        checkpoint = str(part.get("checkpoint", ""))
        folder = Path(checkpoint).parent.name
        own = (beside and not several) or folder == run.name  # by name: a run may be moved
        label = str(part.get("label") or folder or run.name)
        shown = Markup("<b>{}</b>").format(label) if own and len(several) > 1 else label
        models.append(Model(label, shown, checkpoint, {**record, **part}, own))
    needed = KEYS.get(name, ())
    missing = [key for key in needed if any(model.get(key) is None for model in models)]
    return Answer(path, models, missing)
