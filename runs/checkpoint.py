"""Checkpoints: written so that a crash cannot destroy one, read so that none can run code.

A file ends with a line "sha256:<64 hex digits>" about all bytes before it, which torch.load ignores
and `read_checkpoint` verifies: torch.load itself does not notice most flipped bits.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch.serialization import get_crc32_options, set_crc32_options

from runs.files import disk_error

LAST, PREVIOUS, BEST = "last_ckpt.pt", "prev_ckpt.pt", "best_valid_ckpt.pt"
DAMAGED = "damaged_ckpt.pt"  # a last checkpoint that could not be read

# What is wrong with the machine and not with the file.
UNREADABLE = (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOMEM, errno.EMFILE)

SEAL = b"sha256:"
SEAL_SIZE = len(SEAL) + 64 + 1  # and a line end
SEALED = "sealed"  # a key within the archive: this file is to end with its checksum


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
            with without_crc32():
                torch.save({**state, SEALED: True}, file)
            file.flush()
            with open(temporary, "rb") as written:
                file.write(seal(digest_of(written, file.tell())))
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


@contextmanager
def without_crc32() -> Iterator[None]:
    """The archive's own checksums take three quarters of torch.save's time, and the seal covers
    every byte."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


def save_link(source: Path, path: Path, keep: Path | None) -> bool:
    """Make `path` a second name of the file at `source`, which was saved just now, in place of
    saving it again; False where the file system has no hard links, and nothing was done.

    keep: as for `save_checkpoint`. Raises OSError with `path` as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
    except OSError:
        return False
    try:
        if keep is not None and path.exists():
            keep_old(path, keep)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


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
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # these say that the file system, a network's perhaps, has no such thing
    finally:
        os.close(descriptor)


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the dict of `read_with_sha256` alone."""
    return read_with_sha256(path, map_location)[0]


def read_with_sha256(
    path: str | Path, map_location: str | torch.device = "cpu"
) -> tuple[dict[str, Any], str]:
    """Return the dict that a checkpoint, or the folder of an exported model, holds, and the sha256
    of the file that it was read from. Nothing in the file is executed.

    The file is opened once: another file that takes its name meanwhile changes neither.

    Raises CheckpointError for a missing, damaged or foreign file, and OSError or an error of the
    memory (see `out_of_memory`) where the file may well be good.
    """
    from runs import exported

    path = exported.weights_file(Path(path))
    if path.suffix == Path(exported.WEIGHTS).suffix:
        return exported.read(path)
    sealed, sha256 = False, ""
    try:
        with open(path, "rb") as file:
            sealed, sha256 = check_seal(file, path)
            refuse_compressed(file, path)
            state = torch.load(file, map_location=map_location, weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError(f"{path} is no file: give the path of a checkpoint (.pt)") from None
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, numbers, strings, lists and dicts, "
            "or is no checkpoint: it was not loaded, since loading it could run code"
        ) from None
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise damaged(path, error) from None
        raise OSError(error.errno, f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # whatever the bytes of a file that is none make of the reader
        if sealed and out_of_memory(error):  # of a file that is whole
            raise
        raise damaged(path, error) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a checkpoint's dict")
    if not all(map(fills_its_data, tensors_of(state))):
        raise CheckpointError(
            f"{path} is damaged or no checkpoint (a tensor exceeds its data): use another"
        )
    if state.pop(SEALED, False) and not sealed:
        raise CheckpointError(
            f"{path} is damaged (its end is missing, or another program has saved it "
            f"with its key {SEALED!r}): use another"
        )
    return state, sha256


def out_of_memory(error: Exception) -> bool:
    """On the CPU PyTorch has no class for it."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def damaged(path: Path, error: Exception) -> CheckpointError:
    reason = next(iter(str(error).strip().splitlines()), "unreadable").split(". ")[0]
    return CheckpointError(f"{path} is damaged or no checkpoint ({reason}): use another")


def digest_of(file: IO[bytes], size: int) -> Any:
    """Return the sha256 object of the next `size` bytes of `file`."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, 1 << 22))):
        digest.update(block)
        size -= len(block)
    return digest


def seal(digest: Any) -> bytes:
    """Return the last line of a checkpoint whose other bytes have this digest."""
    return SEAL + digest.hexdigest().encode() + b"\n"


def check_seal(file: IO[bytes], path: Path) -> tuple[bool, str]:
    """Return whether the file ends with a checksum (files of others, and of earlier versions, have
    none), and the sha256 of all its bytes. The file is at its beginning afterwards.

    Raises CheckpointError where the checksum is not that of the file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = digest_of(file, size - SEAL_SIZE)
    end = file.read()
    file.seek(0)
    sealed = end.startswith(SEAL)
    if sealed and end != seal(digest):
        raise CheckpointError(f"{path} is damaged (its checksum is another): use another")
    digest.update(end)
    return sealed, digest.hexdigest()


def tensors_of(state: Any) -> Iterator[torch.Tensor]:
    """Each once, however deep; what holds itself, or is held often, is looked at once."""
    seen, left = set(), [state]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value


def fills_its_data(tensor: torch.Tensor) -> bool:
    """No element is stored once and counted often, or not at all: that would be a small file for a
    network that fills the memory."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def refuse_compressed(file: IO[bytes], path: Path) -> None:
    """torch.save compresses nothing: an archive that would grow when read is not one of its own,
    and could fill the memory. The file is at its beginning afterwards."""
    if zipfile.is_zipfile(file):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise CheckpointError(
                    f"{path} is damaged or no checkpoint (it is compressed): use another"
                )
    file.seek(0)
