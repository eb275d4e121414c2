"""The evaluations' own pictures, beside the records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reports.tables.records import writing
from reports.tables.titles import natural
from runs.cli import UsageError


def copy_pictures(tables: Mapping[str, Any], folder: Path, results: Path) -> list[Path]:
    """The evaluations' own pictures of the figures, from one seed, as <table>[-n].png: in place of
    those that were copied earlier, where there are new ones."""
    copied = []
    for name, table in tables.items():
        pictures = [
            path
            for place, question, _ in table.overlays
            for path in first_seed(folder, place, f"{question.split()[0]}.png")
        ]
        samples = [q.split()[0] for q in table.questions if q.split()[0].endswith("_samples")]
        for row in table.rows if samples else ():
            for run in first_seed(folder, row, "eval"):
                pictures += last_grids(run, samples)
        targets = []
        for i, path in enumerate(pictures):
            target = results / (f"{name}.png" if len(pictures) == 1 else f"{name}-{i + 1}.png")
            with writing(target) as temporary:
                temporary.write_bytes(read(path))
            targets.append(target)
        for stale in set(copies_of(name, results)) - set(targets) if targets else ():
            stale.unlink()
        copied += targets
    return copied


def copies_of(name: str, results: Path) -> list[Path]:
    """The copied pictures of a table, in their order."""
    found = [path for path in results.glob("*.png") if is_copy(name, path.stem)]
    return sorted(found, key=lambda path: natural(path.stem))


def is_copy(name: str, stem: str) -> bool:
    return re.fullmatch(rf"{re.escape(name)}(-[0-9]+)?", stem) is not None


def read(picture: Path) -> bytes:
    """Raises UsageError where it cannot be read."""
    try:
        return picture.read_bytes()
    except OSError as error:
        raise UsageError(
            f"--root: cannot read {picture} ({error.strerror}): remove it, or let it be read"
        ) from None


def first_seed(folder: Path, name: str, within: str) -> list[Path]:
    """<folder>/<name>-s<seed>/<within> of the lowest seed that has it, in a list; [] of none."""
    seeds = [path for path in folder.glob(f"{name}-s*") if path.name[len(name) + 2 :].isdecimal()]
    found = [path / within for path in seeds if (path / within).exists()]
    return sorted(found, key=lambda path: int(path.parent.name.rpartition("-s")[2]))[:1]


def last_grids(folder: Path, questions: Sequence[str]) -> list[Path]:
    """Of each kind of grid the one after most SGLD steps."""
    kinds: dict[str, tuple[int, Path]] = {}
    for question in questions:
        for path in folder.glob(f"{question}_*.png"):  # not those set aside: <question>-1_...
            kind, _, steps = path.stem.rpartition("_")
            key = (kind, int(steps)) if steps.isdecimal() else (path.stem, 0)
            if key[0] not in kinds or kinds[key[0]][0] < key[1]:
                kinds[key[0]] = key[1], path
    return [path for _, (_, path) in sorted(kinds.items())]
