"""The evaluations' own pictures, beside the records."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def copy_pictures(tables: Mapping[str, Any], folder: Path, results: Path) -> list[Path]:
    """The evaluations' own pictures of the figures, from one seed, as <table>[-n].png."""
    copied = []
    for name, table in tables.items():
        pictures = [
            path
            for place, question, _ in table.overlays
            for path in sorted((folder / place).glob(f"{question.split()[0]}.png"))
        ]
        samples = [q.split()[0] for q in table.questions if q.split()[0].endswith("_samples")]
        for row in table.rows if samples else ():
            runs = sorted(folder.glob(f"{row}-s[0-9]*"), key=lambda run: (len(run.name), run.name))
            pictures += [path for run in runs[:1] for path in last_grids(run / "eval", samples)]
        for i, path in enumerate(pictures):
            target = results / (f"{name}.png" if len(pictures) == 1 else f"{name}-{i + 1}.png")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            copied.append(target)
    return copied


def last_grids(folder: Path, questions: Sequence[str]) -> list[Path]:
    """Of each kind of grid the one after most SGLD steps."""
    kinds: dict[str, tuple[int, Path]] = {}
    for question in questions:
        for path in folder.glob(f"{question}*.png"):
            kind, _, steps = path.stem.rpartition("_")
            key = (kind, int(steps)) if steps.isdecimal() else (path.stem, 0)
            if key[0] not in kinds or kinds[key[0]][0] < key[1]:
                kinds[key[0]] = key[1], path
    return [path for _, (_, path) in sorted(kinds.items())]
