"""The files of an evaluation: `<folder>/<eval>.json`, and pictures and arrays beside it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation import figures
from runs import processes as distributed
from runs.files import naming, plain, read_json, whole, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Results:
    """The files of one evaluation, all named `<eval>` or `<eval>_...`.

    Earlier results with other settings are first renamed to `<eval>-<n>...`; earlier results with
    the same settings are replaced. Of several processes only the first writes.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self.folder, self.name, self.settings = folder, name, settings
        self.files: list[str] = []
        self.replaced: list[str] | None = None  # files of earlier results with these settings
        if distributed.first():
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """List a file among these results and return its path; `name` begins with `<eval>`."""
        self._set_aside()
        if name not in self.files:
            self.files.append(name)
        return self.folder / name

    def add(self, name: str, write: Callable[..., Any], /, *args: Any, **more: Any) -> None:
        """Write a file by `write(path, *args, **more)`. An OSError names the file."""
        if distributed.first():
            path = self.path(name)
            with naming(path):
                write(path, *args, **more)

    def picture(self, name: str, draw: Callable[..., Figure], /, *args: Any, **more: Any) -> None:
        """Write the figure that `draw(*args, **more)` returns, as PNG and PDF."""
        if distributed.first():
            path = self.path(f"{name}.png").with_suffix("")
            self.path(f"{name}.pdf")
            with naming(path):
                figures.save(path, draw, *args, **more)

    def save(self, numbers: dict[str, Any]) -> Path:
        """Write the JSON, whole or not at all, with null for numbers that are not finite; then
        delete the replaced results' files that were not written again. Return the JSON's path."""
        replaced = self._set_aside()
        record = {"eval": self.name, **numbers, "settings": self.settings, "files": self.files}
        path = self.folder / f"{self.name}.json"
        write_json(path, plain(record))
        for name in replaced:
            if self._owns(name) and name not in self.files:
                (self.folder / name).unlink(missing_ok=True)
        return path

    def _owns(self, name: str) -> bool:
        """Return whether `name`, from a JSON file, is a plain file name of this evaluation."""
        return name.startswith(self.name) and Path(name).name == name

    def _set_aside(self) -> list[str]:
        """Rename earlier results with other settings, once, before a file is written. Return the
        files of earlier results with the same settings. `<eval>.json` is renamed last: a process
        that is killed before leaves n free, and the next goes on renaming with this n."""
        if self.replaced is not None:
            return self.replaced
        self.replaced = []
        path = self.folder / f"{self.name}.json"
        try:
            earlier = read_json(path)
            names = [str(name) for name in earlier.get("files", [])]
        except (OSError, ValueError, AttributeError, TypeError):
            return []  # no earlier results, or a damaged JSON, which `save` overwrites
        if earlier.get("settings") == plain(self.settings):
            self.replaced = names
            return names
        n = 1
        while (self.folder / f"{self.name}-{n}.json").exists():
            n += 1
        number = f"{self.name}-{n}"
        renamed = [
            name if name.startswith(number) else number + name.removeprefix(self.name)
            for name in names
        ]
        with whole(path) as temporary:
            text = json.dumps({**earlier, "files": renamed}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")
            for name, new_name in zip(names, renamed, strict=True):
                if self._owns(name):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(self.folder / name, self.folder / new_name)
        os.replace(path, self.folder / f"{number}.json")
        return []
