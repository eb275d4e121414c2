"""Read a run folder without trust: a missing or broken file becomes a note on the page."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from reports.page.markup import number, show
from runs.files import file_sha256, read_json, read_rows
from runs.folder import ENVIRONMENTS, LAST, LOG, environments, holds_run
from runs.names import NOISY
from runs.screen import text_of_changes

ROOT = Path(__file__).resolve().parent.parent.parent
T = TypeVar("T")
PROBE = "linear_probe.py"  # a program whose only row of progress.csv is not an epoch

ALL_STEPS = re.compile(r" of ([\d,]+) steps done$", re.M)  # of all epochs, in log.txt
# Question -> keys that its answer must have; with several checkpoints, in each of "models".
KEYS: dict[str, tuple[str, ...]] = {
    "test_clf": ("dataset", "n", "accuracy", "nll"),
    "eval_ece": ("dataset", "n", "accuracy", "ece", "bins", "nll", "brier"),
    "OOD": ("in_dataset", "rows"),
    "logp_hist": ("datasets", "score_fn", "sets"),
    "attack": ("distance", "attack", "n", "rows"),
    "uncond_samples": ("n",),  # a flow's samples take no steps
    "cond_samples": ("n",),
    "fid": ("fid", "inception_score_mean", "n", "sampling", "features"),
}
# Settings that an evaluation takes from the run unless a flag is given. (--guidance is another:
# answers have its value.)
OF_RUN = (
    *("sgld_lr", "sgld_std", "sgld_grad_clip", "sgld_clamp", "chain_start", "reinit_freq"),
    *("contrast_t", "contrast_score"),
)


class NoRun(ValueError):
    """The folder holds no run; the message is one line with the remedy."""


@dataclass
class Model:
    """A checkpoint's part of an answer. `values`: the part's, and those that all models share, such
    as the data set. `own`: the checkpoint belongs to this run. `shown`: the label, in bold for an
    own checkpoint among several models."""

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

    @property
    def overrides(self) -> str:
        """Return the flags that replaced settings of the run, with their values; "" for none."""
        given, run = self.part("settings"), self.part("run")
        changed = [k for k in OF_RUN if given.get(k) is not None and given[k] != run.get(k)]
        return " ".join(f"--{key} {given[key]}" for key in changed)

    def part(self, key: str) -> dict[str, Any]:
        return mapping(self.get(key))

    @property
    def changes(self) -> list[tuple[str, str]]:
        """Return, for each set whose images or classes are not the run's, its name and a text."""
        texts = []
        for name, value in self.part("data").items():
            found, split = mapping(value), name.partition(":")[0]  # of folder_train:PATH
            differences = {k: v for k, v in found.items() if number(v) is not None}
            names = {k: items(found.get(k), str) for k in ("class_names", "run_class_names")}
            differences |= names if all(names.values()) else {}
            part = next((part for part in ("train", "valid") if split.endswith(part)), "test")
            if text := text_of_changes(differences, part):
                texts.append((name, text))
        return texts

    def rows(self, key: str) -> list[dict[str, Any]]:
        """Return the objects of a list; skip other items, and any value that is not a list."""
        return items(self.get(key), dict)


@dataclass
class Answer:
    """One evaluation's JSON file, with at least one model. `missing`: keys that it lacks."""

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
        """Return the PNG files beside the answer, in the order in which it lists them."""
        names = [Path(file).name for file in items(self.first.get("files"), str)]
        return [self.path.parent / n for n in names if n.endswith(".png") and "\0" not in n]

    def reports(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (label, "report") for each model whose part has a report."""
        reports = [(model.shown, model.part("report")) for model in self.models]
        return [(label, report) for label, report in reports if report]

    def facts(self) -> list[tuple[str, Any]]:
        """Return the settings that the numbers depend on as (name, value): split, images, noise,
        the rest of the protocol, checkpoint."""
        first, name, n = self.first, self.first.get("eval"), self.first.get("n")
        protocol, noise = first.part("protocol"), first.part("settings").get("sigma")
        images = show(n, ",.0f") if n else None
        facts = [("split", first.get("dataset")), ("images", images)]
        if name in (*NOISY, "attack"):
            facts.append(("sigma", protocol.get("sigma", None if name == "attack" else noise)))
        above = {"version", "n", "dataset", "sigma", *(k for k, v in facts if v is not None)}
        facts += [(k, v) for k, v in protocol.items() if k not in above and not isinstance(v, dict)]
        overrides = dict.fromkeys(m.overrides for m in self.models if m.overrides)
        facts.append(("not the run's", "; ".join(overrides)))
        facts.append(("protocol version", protocol.get("version")))
        paths = [(m.checkpoint.replace("\\", "/").split("/"), m.own) for m in self.models]
        files = ["/".join(parts[-1 if own else -2 :]) for parts, own in paths]
        facts.append(("checkpoint", ", ".join(files)))
        return [(name, value) for name, value in facts if value not in (None, "")]


@dataclass
class Run:
    folder: Path
    settings: dict[str, Any]
    environment: dict[str, Any]  # of the last process
    environments: list[dict[str, Any]]  # of all processes that differ, the oldest first
    rows: list[dict[str, str]]  # of progress.csv
    answers: dict[str, list[Answer]]  # question -> its answers, the newest first
    notes: list[str]  # about missing and broken files

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def is_probe(self) -> bool:
        """Return whether it is a linear probe, whose settings have the terms of its network."""
        return self.settings.get("program") == PROBE

    @property
    def gaps(self) -> list[str]:
        """Return the notes, and a note about each answer that lacks keys."""
        answers = [answer for of_question in self.answers.values() for answer in of_question]
        lacks = [f"{a.path.name} lacks {', '.join(a.missing)}." for a in answers if a.missing]
        return [*self.notes, *lacks]

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
        """Return whether training did all steps of its epochs or of --max_steps, or a probe ended.

        --max_minutes leaves a row of an epoch that it has stopped. Without the number of steps in
        log.txt a row counts as a whole epoch.
        """
        if not self.settings or not (self.folder / LAST).exists():
            return False
        if self.settings.get("program") == PROBE:  # it writes its checkpoint last
            return True
        names = ("max_steps", "n_epochs", "start_epoch")
        limit, epochs, start = (number(self.settings.get(name)) or 0 for name in names)
        try:
            text = (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:  # missing, or another user's
            text = ""
        totals = ALL_STEPS.findall(text)  # by each process
        total = int(totals[-1].replace(",", "")) if totals and epochs else 0
        if limit and total:  # counted from --start_epoch, as the rows' steps are not
            limit = min(total, limit + total * start // epochs)
        if limit:
            return self.steps >= limit
        return 0 < epochs <= self.epochs and self.steps >= total

    def command(self, evaluation: str, *flags: str) -> str | None:
        """Return the command that evaluates the best checkpoint, else the last, else any; None
        without a checkpoint."""
        preferred = [self.folder / f"{name}_ckpt.pt" for name in ("best_valid", "last")]
        paths = [p for p in (*preferred, *sorted(self.folder.glob("*.pt"))) if p.exists()]
        if not paths:
            return None
        path = paths[0].resolve()
        path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        argv = ["python", "eval_wrn_ebm.py", "--load_path", str(path), "--eval", evaluation, *flags]
        data_root = self.settings.get("data_root")
        if isinstance(data_root, str) and data_root != "./datasets":
            argv += ["--data_root", data_root]
        return shlex.join(argv)


def read_run(folder: Path, eval_folders: Sequence[Path] = ()) -> Run:
    """Return the run, with the answers in its `eval/` and in `eval_folders`. Leave out, with a
    note, answers about weights that its checkpoint no longer holds.

    Raises NoRun where the folder has no file of a training run.
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
    processes = environments(settings)
    last, _ = (settings.pop(name, None) for name in ENVIRONMENTS)
    rows: list[dict[str, str]] = _read(folder / "progress.csv", list, notes, "there are no curves")
    whole = [row for row in rows if None not in row and None not in row.values()]
    if len(whole) < len(rows):  # a line that a crash cut off has too few fields
        notes.append(f"progress.csv: {len(rows) - len(whole)} damaged lines are left out.")
    run = Run(folder, settings, mapping(last), processes, whole, {}, notes)
    folders = {path.resolve(): path for path in (folder / "eval", *eval_folders)}.values()
    stems = sorted({path.stem for eval_folder in folders for path in eval_folder.glob("*.json")})
    own_questions = [s for s in stems if s not in KEYS and not re.search("-[0-9]+$", s)]

    @cache
    def hash_of(path: Path) -> str | None:
        try:
            return file_sha256(path)
        except OSError:  # missing, or another user's
            return None

    for name in (*KEYS, *own_questions):
        paths = [path for eval_folder in folders for path in _versions(eval_folder, name)]
        records = [(path, _read(path, dict, notes)) for path in paths]
        answers = [_answer(run, name, path, record) for path, record in records if record]
        stale = [a for a in answers if (model := a.of_run()) and is_stale(run, model, hash_of)]
        outdated = "is about earlier weights: it is left out; ask again."
        notes += [f"{answer.path.name} {outdated}" for answer in stale]
        answers = [answer for answer in answers if answer not in stale]
        if name in KEYS or any(answer.reports() for answer in answers):
            run.answers[name] = answers
    return run


def is_stale(run: Run, model: Model, hash_of: Callable[[Path], Any]) -> bool:
    """Return whether the run's checkpoint has changed since the answer: by its hash or, where the
    answer or the folder has none, by the last step. An answer with neither counts as current."""
    path = run.folder / Path(model.checkpoint).name
    sha256 = model.get("checkpoint_sha256")
    if isinstance(sha256, str) and hash_of(path) is not None:
        return bool(sha256 != hash_of(path))
    step = number(model.part("run").get("step"))
    return path.name == LAST and step is not None and run.last != {} and step != run.steps


def items(value: object, kind: type[T]) -> list[T]:
    """Return the items of this kind in a list; [] of any other value."""
    return [item for item in value if isinstance(item, kind)] if isinstance(value, list) else []


def mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read(path: Path, kind: type[T], notes: list[str], effect: str = "it is left out") -> T:
    """Return the content of a JSON or CSV file. Where it is missing or broken, add a note with the
    effect, and return an empty one."""
    if not path.exists():
        notes.append(f"{path.name} is missing: {effect}.")
        return kind()
    try:
        content = read_json(path) if kind is dict else read_rows(path)
        if isinstance(content, kind):
            return content
        notes.append(f"{path.name} holds no JSON object: {effect}.")
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        notes.append(f"{path.name} cannot be read ({error}): {effect}.")
    return kind()


def _versions(folder: Path, name: str) -> list[Path]:
    """Return the newest answer's file, then those with other settings, the newest first."""
    numbers = {p: p.stem.removeprefix(f"{name}-") for p in folder.glob(f"{name}-*.json")}
    earlier = [path for path, text in numbers.items() if text.isdecimal()]
    newest = [folder / f"{name}.json"] if (folder / f"{name}.json").exists() else []
    return newest + sorted(earlier, key=lambda path: int(numbers[path]), reverse=True)


def _answer(run: Run, name: str, path: Path, record: dict[str, Any]) -> Answer:
    parts = items(record.get("models"), dict)
    in_run = path.parent.resolve() == (run.folder / "eval").resolve()
    models = []
    for part in parts or [record]:
        checkpoint = str(part.get("checkpoint", ""))
        folder = Path(checkpoint).parent.name
        own = (in_run and not parts) or folder == run.name  # by name: a run may have been moved
        label = str(part.get("label") or folder or run.name)
        shown = Markup("<b>{}</b>").format(label) if own and len(parts) > 1 else label
        models.append(Model(label, shown, checkpoint, {**record, **part}, own))
    keys = KEYS.get(name, ())
    missing = [key for key in keys if any(model.get(key) is None for model in models)]
    return Answer(path, models, missing)
