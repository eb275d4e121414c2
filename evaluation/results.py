"""What an evaluation leaves on disk: `<folder>/<eval>.json`, and pictures and arrays beside it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import processes as distributed
from runs.cli import UsageError
from runs.files import naming, plain, whole


class Answer:
    """The files of one evaluation, all named `<eval>` or `<eval>_...`.

    An answer that is there already stays: the newest has the plain names, and one that was given
    with other settings is renamed to `<eval>-<n>...` first. The same question asked again
    replaces its own answer. Of several processes the first one alone writes.

    Raises UsageError if the folder cannot be written to: before the work starts.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        self.folder, self.name, self.settings = folder, name, settings
        self.files: list[str] = []
        self.set_aside_done = False
        self.earlier: list[str] = []  # files of the answer that this one replaces
        if not distributed.first():
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{name}.{os.getpid()}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UsageError(
                f"--log_dir: cannot write to {folder} ({error.strerror}): give a folder that is "
                "writable"
            ) from None

    def path(self, name: str) -> Path:
        """Where a file of this answer goes; `name` begins with the evaluation's."""
        self._set_aside()
        if name not in self.files:
            self.files.append(name)
        return self.folder / name

    def add(self, name: str, write: Callable[[Path], Any]) -> None:
        """Write a file by `write(path)`; a failed write says which file it was."""
        if not distributed.first():
            return
        path = self.path(name)
        with naming(path):
            write(path)

    def picture(self, name: str, draw: Callable[[Path], Any]) -> None:
        """A picture that `draw(path)` writes as both path.png and path.pdf."""
        if not distributed.first():
            return
        path = [self.path(name + suffix) for suffix in (".png", ".pdf")][0].with_suffix("")
        with naming(path):
            draw(path)

    def save(self, numbers: dict[str, Any]) -> Path:
        """Write the JSON, whole or not at all; a number that is not finite becomes null."""
        self._set_aside()
        record = {"eval": self.name, **numbers, "settings": self.settings, "files": self.files}
        path = self.folder / f"{self.name}.json"
        with whole(path) as temporary:
            text = json.dumps(plain(record), indent=2, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        for name in self.earlier:
            if name.startswith(self.name) and Path(name).name == name and name not in self.files:
                (self.folder / name).unlink(missing_ok=True)
        return path

    def _set_aside(self) -> None:
        """Rename an earlier answer to other settings, once, before anything is written.

        Its JSON goes last: stopped before that, the answer is set aside again, to the same number.
        """
        if self.set_aside_done:
            return
        self.set_aside_done = True
        path = self.folder / f"{self.name}.json"
        earlier = read(path)
        if earlier is None:
            return
        if earlier.get("settings") == plain(self.settings):
            self.earlier = [str(name) for name in earlier.get("files", [])]
            return
        n = 1
        while (self.folder / f"{self.name}-{n}.json").exists():
            n += 1
        names = [str(name) for name in earlier.get("files", [])]
        renamed = [f"{self.name}-{n}{name.removeprefix(self.name)}" for name in names]
        with whole(self.folder / f"{self.name}-{n}.json") as temporary:
            text = json.dumps({**earlier, "files": renamed}, indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")
            for name, new in zip(names, renamed, strict=True):
                if name.startswith(self.name) and Path(name).name == name:
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(self.folder / name, self.folder / new)
        path.unlink()


def read(path: Path) -> dict[str, Any] | None:
    """An answer; None where there is none, or a file that is none: it is left for its owner, and
    the new one takes its place."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
