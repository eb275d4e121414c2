"""Files: written whole or not at all, with an error that names them. Nothing heavy is imported."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def disk_error(error: BaseException, path: Path) -> OSError:
    """The error with the file's name and, of a disk that is full, what is free. torch.save hides
    the operating system's error in the context of a RuntimeError; what has none is raised."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    if cause is None:
        raise error
    free = ""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            free = f" ({shutil.disk_usage(path.parent).free / 2**20:,.1f} MiB are free there)"
    return OSError(cause.errno, f"cannot write {path}: {cause.strerror or cause}{free}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A failed write (a full disk) does not say by itself which file it was."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` once all is written; else nothing is left of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """As JSON has it: str keys, lists, None for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
