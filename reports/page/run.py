"""A run: its settings, rows, pictures and answers, and the commands that ask for more."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reports.page.answer import KEYS, Answer, Model, items, read_json, read_rows
from runs.folder import ENVIRONMENTS, environments

ROOT = Path(__file__).resolve().parent.parent.parent


class NoRun(ValueError):
    """The folder holds no run; the message is one line with the remedy."""


@dataclass
class Run:
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    environments: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def epochs(self) -> int:
        """Epochs that progress.csv has rows of, which count from 0."""
        epochs = [row.get("epoch") or "" for row in self.rows]
        return max((int(text) + 1 for text in epochs if text.isdecimal()), default=0)

    def samples(self) -> dict[str, list[Path]]:
        """Kind of grid (uncond, cond, contrast) -> pictures, in the order of their epochs."""
        found: dict[str, list[Path]] = {}
        for path in sorted((self.folder / "samples").glob("*_*.png")):
            found.setdefault(path.stem.rpartition("_")[0], []).append(path)
        return found

    def checkpoint(self) -> Path | None:
        """The best checkpoint, else the last one, else any."""
        named = [self.folder / f"{name}_ckpt.pt" for name in ("best_valid", "last")]
        return next((p for p in [*named, *sorted(self.folder.glob("*.pt"))] if p.exists()), None)

    def command(self, evaluation: str, *flags: str) -> str | None:
        """What answers this question, run in the project's folder; None without a checkpoint."""
        path = self.checkpoint()
        if path is None:
            return None
        path = path.resolve()
        path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        words = [
            "python",
            "eval_wrn_ebm.py",
            "--load_path",
            str(path),
            "--eval",
            evaluation,
            *flags,
        ]
        data_root = self.settings.get("data_root")
        if isinstance(data_root, str) and data_root != "./datasets":
            words += ["--data_root", data_root]
        return shlex.join(words)


def read_run(folder: Path, eval_folders: Sequence[Path] = ()) -> Run:
    """The run, with the answers in its `eval/` and in the other folders.

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
    run = Run(folder)
    run.settings = read_json(folder / "variant.json", run.notes) or {}
    run.environments = environments(run.settings)
    found, _ = (run.settings.pop(name, None) for name in ENVIRONMENTS)
    run.environment = found if isinstance(found, dict) else {}
    run.rows = read_rows(folder / "progress.csv", run.notes)
    places = {place.resolve(): place for place in (folder / "eval", *eval_folders)}
    for name in KEYS:
        run.answers[name] = []
        for place in places.values():
            for path in _versions(place, name):
                record = read_json(path, run.notes)
                if record is not None:
                    run.answers[name].append(_answer(run, name, path, record))
    return run


def _versions(folder: Path, name: str) -> list[Path]:
    """The newest answer, then those with other settings that it set aside, newest first."""
    old = [(int(m[1]), p) for p in folder.glob(f"{name}-*.json") if (m := _aside(name, p.name))]
    newest = [folder / f"{name}.json"] if (folder / f"{name}.json").exists() else []
    return newest + [path for _, path in sorted(old, reverse=True)]


def _aside(name: str, file: str) -> re.Match[str] | None:
    return re.fullmatch(rf"{name}-([0-9]+)\.json", file)


def _answer(run: Run, name: str, path: Path, record: dict[str, Any]) -> Answer:
    parts = items(record["models"], dict) if "models" in record else [record]
    models = []
    for part in parts:
        checkpoint = str(part.get("checkpoint", ""))
        beside = part is record and path.parent.resolve() == (run.folder / "eval").resolve()
        own = beside or Path(checkpoint).parent.name == run.name  # by name: a run may be moved
        label = str(part.get("label") or Path(checkpoint).parent.name or run.name)
        models.append(Model(label, checkpoint, part, own))
    missing = [
        key
        for key in KEYS[name]
        if not models or any(m.values.get(key, record.get(key)) is None for m in models)
    ]
    return Answer(path, record, models, missing)
