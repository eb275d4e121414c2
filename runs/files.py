"""Read, write and lock files. A file is written whole or not at all. Nothing slow is imported."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from runs.cli import UsageError

LEFTOVERS = ".*.tmp"  # temporary files of a process that was killed


@contextmanager
def whole(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Yield the path of a temporary file to write; then flush that file to the disk and rename it
    to `path`. At any moment `path` is the whole old file or the whole new file.

    keep: the path under which the old file stays.

    Raises OSError, which names `path`, and leaves `path` unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                second_name(path, keep)
            os.replace(temporary, path)
            if os.name != "nt":  # Windows cannot open folders, and needs no flush after a rename
                sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # it would hide the first error: a read-only disk
            temporary.unlink(missing_ok=True)


def second_name(path: Path, name: Path, *, keep: Path | None = None) -> None:
    """Make `name` a hard link to the file `path` or, where the file system has no hard links, a
    copy. For `keep` and errors see `whole`."""
    with whole(name, keep=keep) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of files to the disk, so that a rename in it outlasts a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # the codes above: a file system, such as a network's, that flushes no folders
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise a failed write's OSError with the file's name and, if the disk is full, the free space.

    torch.save hides the operating system's error in the context of a RuntimeError.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        free = ""
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                free = f" ({shutil.disk_usage(path.parent).free / 2**20:,.1f} MiB are free there)"
        message = f"cannot write {path}: {cause.strerror or cause}{free}"
        raise OSError(cause.errno, message) from error


def plain(value: Any) -> Any:
    """Convert a value for JSON: str for keys and paths, lists for tuples, None for nan and inf."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_text(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError or ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, as text; [] where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return digest_of(file).hexdigest()


def digest_of(file: IO[bytes], size: int = 2**63) -> Any:
    """Return the sha256 object of the next `size` bytes of a file."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, 1 << 22))):
        digest.update(block)
        size -= len(block)
    return digest


def unwritable(flag: str, folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{flag}: cannot write to {folder} ({error.strerror}): give a folder that is writable"
    )


def check_writable(flag: str, folder: Path) -> None:
    """Raise UsageError where a folder can be neither written to nor made. Leave no file behind."""
    paths = (folder, *folder.absolute().parents)
    try:
        with tempfile.TemporaryFile(dir=next(path for path in paths if path.exists())):
            pass
    except OSError as error:
        raise unwritable(flag, folder, error) from None


@contextmanager
def alone(folder: Path, *, flag: str, program: str) -> Iterator[None]:
    """Make the folder, and lock it while the block runs. The operating system removes the lock of a
    process that dies. Windows and file systems without locks lock nothing.

    Raises UsageError, which names `flag`, where another process holds the lock or the folder cannot
    be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")  # noqa: SIM115
    except OSError as error:
        raise unwritable(flag, folder, error) from None
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
                pass  # this file system has no locks
        yield
