"""A run folder, read without trust: what is missing or broken becomes a note on the page."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from reports.page.markup import show
from runs.folder import ENVIRONMENTS, environments

ROOT = Path(__file__).resolve().parent.parent.parent
T = TypeVar("T")

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
    """One checkpoint's part of an answer; `own`: the checkpoint belongs to this run."""

    label: str
    checkpoint: str
    values: dict[str, Any]
    own: bool


@dataclass
class Answer:
    """One evaluation's JSON file."""

    path: Path
    record: dict[str, Any]
    models: list[Model]
    missing: list[str]

    @property
    def labels(self) -> list[str]:
        """The models' names, the run's own marked where there are several."""
        bold = Markup("<b>{}</b>") if len(self.models) > 1 else "{}"
        return [bold.format(m.label) if m.own else m.label for m in self.models]

    @property
    def names(self) -> str:
        return ", ".join(model.label for model in self.models)

    @property
    def first(self) -> Model:
        return self.models[0] if self.models else Model("", "", {}, False)

    def of_run(self) -> Model | None:
        return next((model for model in self.models if model.own), None)

    def part(self, key: str) -> dict[str, Any]:
        found = self.record.get(key)
        return found if isinstance(found, dict) else {}

    def value(self, model: Model | None, key: str) -> Any:
        """What all checkpoints have in common, such as the data set, may stand above them."""
        return None if model is None else model.values.get(key, self.record.get(key))

    def rows(self, model: Model, key: str) -> list[dict[str, Any]]:
        """Return a list of objects; whatever else stands in its place is passed over."""
        return items(self.value(model, key), dict)

    def pictures(self) -> list[Path]:
        """Return the answer's PNG files, beside it, in its order."""
        names = [Path(file).name for file in items(self.record.get("files"), str)]
        return [self.path.parent / n for n in names if n.endswith(".png") and "\0" not in n]

    def facts(self) -> list[tuple[str, Any]]:
        """Return what the numbers depend on as (name, value), in the order of a reader's
        questions: split, images, noise, the rest of the protocol, checkpoint."""
        agreed, name, first = self.part("protocol"), self.record.get("eval"), self.first
        n, noise = self.value(first, "n"), self.part("settings").get("sigma")
        found = [
            ("split", self.value(first, "dataset")),
            ("images", show(n, ",.0f") if n else None),
        ]
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
    def epochs(self) -> int:
        """Epochs that progress.csv has rows of, which count from 0."""
        epochs = [row.get("epoch") or "" for row in self.rows]
        return max((int(text) + 1 for text in epochs if text.isdecimal()), default=0)

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
    marks = ("variant.json", "progress.csv", "params.txt")
    if not folder.is_dir():
        raise NoRun(f"RUN_FOLDER {folder} is not a folder: give the folder of a training run")
    if not any((folder / name).exists() for name in marks) and not any(folder.glob("*.pt")):
        raise NoRun(
            f"RUN_FOLDER {folder} holds no run (neither variant.json nor progress.csv): "
            "give the folder that train_wrn.py wrote, <log_dir>/<id>"
        )
    notes: list[str] = []
    settings = _json(folder / "variant.json", notes, "the settings of this run are unknown") or {}
    ran = environments(settings)
    here, _ = (settings.pop(name, None) for name in ENVIRONMENTS)
    rows = _rows(folder / "progress.csv", notes)
    run = Run(folder, settings, here if isinstance(here, dict) else {}, ran, rows, {}, notes)
    places = {place.resolve(): place for place in (folder / "eval", *eval_folders)}.values()
    others = sorted(p.stem for place in places for p in place.glob("*.json") if p.stem not in KEYS)
    for name in (*KEYS, *(other for other in others if "-" not in other)):
        paths = [path for place in places for path in _versions(place, name)]
        read = [(path, record) for path in paths if (record := _json(path, notes)) is not None]
        found = [_answer(run, name, path, record) for path, record in read]
        if name in KEYS or any(answer.part("report") for answer in found):
            run.answers[name] = found
    return run


def items(found: object, kind: type[T]) -> list[T]:
    """Return the items of this kind of what should be a list; the others are passed over."""
    return [item for item in found if isinstance(item, kind)] if isinstance(found, list) else []


def _read(path: Path, parse: Callable[[str], T], notes: list[str], effect: str) -> T | None:
    """Return what a file holds; None, and a note with what that means, where it cannot be read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing: {effect}.")
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read ({error}): {effect}.")
    return None


def _json(path: Path, notes: list[str], effect: str = "it is left out") -> dict[str, Any] | None:
    found = _read(path, lambda text: [json.loads(text)], notes, effect)
    if found and not isinstance(found[0], dict):
        notes.append(f"{path.name} holds no JSON object: {effect}.")
        return None
    return found[0] if found else None


def _rows(path: Path, notes: list[str]) -> list[dict[str, str]]:
    """A line that a crash cut off has too few fields and is left out."""
    rows = (
        _read(
            path,
            lambda text: list(csv.DictReader(io.StringIO(text, newline=""))),
            notes,
            "there are no curves",
        )
        or []
    )
    whole = [row for row in rows if None not in row and None not in row.values()]
    if len(whole) < len(rows):
        notes.append(f"progress.csv: {len(rows) - len(whole)} damaged lines are left out.")
    return whole


def _versions(folder: Path, name: str) -> Iterator[Path]:
    """Yield the newest answer, then those with other settings that it set aside, newest first."""
    if (newest := folder / f"{name}.json").exists():
        yield newest
    numbers = {p: p.stem.removeprefix(f"{name}-") for p in folder.glob(f"{name}-*.json")}
    aside = [path for path, text in numbers.items() if text.isdecimal()]
    yield from sorted(aside, key=lambda path: int(numbers[path]), reverse=True)


def _answer(run: Run, name: str, path: Path, record: dict[str, Any]) -> Answer:
    parts = items(record["models"], dict) if "models" in record else [record]
    models = []
    for part in parts:
        checkpoint = str(part.get("checkpoint", ""))
        beside = part is record and path.parent.resolve() == (run.folder / "eval").resolve()
        own = beside or Path(checkpoint).parent.name == run.name  # by name: a run may be moved
        label = str(part.get("label") or Path(checkpoint).parent.name or run.name)
        models.append(Model(label, checkpoint, part, own))
    answer = Answer(path, record, models, [])
    for key in KEYS.get(name, ()):
        if not models or any(answer.value(model, key) is None for model in models):
            answer.missing.append(key)
    return answer
