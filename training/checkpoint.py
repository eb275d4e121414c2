"""Checkpoints: written so that a crash cannot destroy one, read so that none can run code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

LAST, PREVIOUS, BEST = "last_ckpt.pt", "prev_ckpt.pt", "best_valid_ckpt.pt"
DAMAGED = "damaged_ckpt.pt"  # a last checkpoint that could not be read


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message is one line: the file, the reason, the remedy."""


def save_checkpoint(state: dict[str, Any], path: Path, *, keep: Path | None = None) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts) to `path`, whole or not at all.

    It is written beside `path`, flushed to the disk and renamed, so that `path` always is a
    complete file: the old one or the new one. `keep`: where the old one stays.

    Raises OSError (a full disk, a read-only folder) with `path` as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            keep_old(path, keep)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def keep_old(path: Path, keep: Path) -> None:
    """`keep` becomes a second name of the file at `path`: at no moment is there no checkpoint."""
    link = keep.with_name(f".{keep.name}.{os.getpid()}.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # no hard links here: rename, then `keep` is the checkpoint for a moment
        os.replace(path, keep)
        return
    try:
        os.replace(link, keep)
    finally:
        link.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows cannot open folders and does not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: BaseException, path: Path) -> OSError:
    """torch.save hides the operating system's error in the context of a RuntimeError."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    if cause is None:
        raise error
    return OSError(cause.errno, f"cannot write {path}: {cause.strerror or cause}")


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The dict that a checkpoint holds; nothing in the file is executed.

    Raises CheckpointError for a missing, damaged or foreign file.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError(f"{path} is no file: give the path of a checkpoint (.pt)") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, numbers, strings, lists and dicts, "
            "or is no checkpoint: it was not loaded, since loading it could run code"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = next(iter(str(error).strip().splitlines()), "unreadable").split(". ")[0]
        raise CheckpointError(
            f"{path} is damaged or no checkpoint ({reason}): use another"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a checkpoint's dict")
    return state
