"""Files of a run folder, read without trust: whatever is missing or broken becomes a note."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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

    def part(self, key: str) -> dict[str, Any]:
        found = self.record.get(key)
        return found if isinstance(found, dict) else {}

    def pictures(self) -> list[Path]:
        """The answer's PNG files, beside it, in its order."""
        names = [Path(file).name for file in items(self.record.get("files"), str)]
        return [self.path.parent / n for n in names if n.endswith(".png") and "\0" not in n]

    def value(self, model: Model, key: str) -> Any:
        """What all checkpoints have in common, such as the data set, may stand above them."""
        return model.values.get(key, self.record.get(key))

    def rows(self, model: Model, key: str) -> list[dict[str, Any]]:
        """A list of objects; whatever else stands in its place is passed over."""
        return items(self.value(model, key), dict)

    def of_run(self) -> Model | None:
        return next((model for model in self.models if model.own), None)


def items(found: object, kind: type[T]) -> list[T]:
    """The items of this kind of what should be a list; whatever else there is is passed over."""
    return [item for item in found if isinstance(item, kind)] if isinstance(found, list) else []


def read_json(path: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.name == "variant.json":
            notes.append("variant.json is missing: the settings of this run are unknown.")
        return None
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read and is left out ({error}).")
        return None
    if not isinstance(found, dict):
        notes.append(f"{path.name} holds no JSON object and is left out.")
        return None
    return found


def read_rows(path: Path, notes: list[str]) -> list[dict[str, str]]:
    """A line that a crash cut off has too few fields and is left out."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        notes.append("progress.csv is missing: there are no curves.")
        return []
    except (OSError, ValueError, csv.Error) as error:
        notes.append(f"progress.csv cannot be read ({error}): there are no curves.")
        return []
    whole = [row for row in rows if None not in row and None not in row.values()]
    if len(whole) < len(rows):
        notes.append(f"progress.csv: {len(rows) - len(whole)} damaged lines are left out.")
    return whole
