"""One process at a time in a folder. Nothing heavy is imported here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from runs.cli import UsageError


@contextlib.contextmanager
def alone(folder: Path, *, flag: str, program: str) -> Iterator[None]:
    """Make the folder and, while this lasts, lock it: the system unlocks it for a process that
    dies. On Windows, and on file systems without locks, nothing is locked.

    Raises UsageError, one line that names `flag`, where another process has the lock or nothing
    can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")  # noqa: SIM115
    except OSError as error:
        raise UsageError(
            f"{flag}: cannot write to {folder} ({error.strerror}): give a folder that is writable"
        ) from None
    with file:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{flag}: another {program} works in {folder}: wait for it to end, or give "
                    "another folder"
                ) from None
            except OSError:
                pass  # this file system has none
        yield
