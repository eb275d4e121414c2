"""Checkpoints, and models as folders to be uploaded: read so that nothing in them can run.

A checkpoint ends with a line "sha256:<64 hex digits>" about all bytes before it, which torch.load
ignores and `read_checkpoint` verifies: torch.load itself does not notice most flipped bits.

An exported model is a folder with model.safetensors, which holds tensors and nothing that could run
and needs the package of that name, and config.json about it, with the checksum of that file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load, save
from torch.utils.serialization import config as serialization

from runs.cli import Mistake
from runs.files import digest_of, read_json, whole, write_json
from runs.folder import WEIGHTS
from runs.shared import CONFIG, no_checkpoint, weights_file

# What is wrong with the machine and not with the file.
UNREADABLE = (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOMEM, errno.EMFILE)

SEAL = b"sha256:"
SEAL_SIZE = len(SEAL) + 64 + 1  # and a line end
SEALED = "sealed"  # a key within the archive: this file is to end with its checksum

IN_CONFIG = ("settings", "progress", "environment")
DATA = "data."  # before the names of the tensors that are hashes of images
FILLED = "memories.queue.queue_filled"
START = "memories.replay_buffer.start."  # before the names of the Gaussians that chains begin from


class CheckpointError(Mistake):
    """A checkpoint cannot be used; the message is one line: the file, the reason, the remedy."""


def save_checkpoint(state: dict[str, Any], path: Path, *, keep: Path | None = None) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts) to `path`, whole or not at all.

    keep: where the old file stays.

    Raises OSError (a full disk, a read-only folder) with `path` as it was.
    """
    with whole(path, keep=keep) as temporary, open(temporary, "wb") as file:
        # The archive's own checksums take three quarters of the time, and the seal covers all.
        with serialization.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            torch.save({**state, SEALED: True}, file)
        file.flush()
        with open(temporary, "rb") as written:
            file.write(seal(digest_of(written)))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    return read_with_sha256(path)[0]


def read_with_sha256(path: str | Path) -> tuple[dict[str, Any], str]:
    """Return the dict that a checkpoint, or the folder of an exported model, holds, its tensors on
    the CPU, and the sha256 of the file that it was read from. Nothing in the file is executed.

    The file is opened once: another file that takes its name meanwhile changes neither.

    Raises CheckpointError for a missing, damaged or foreign file, and OSError or an error of the
    memory (see `out_of_memory`) where the file may well be good.
    """
    path = weights_file(path)
    if path.suffix == Path(WEIGHTS).suffix:
        return read_exported(path)
    sealed, sha256 = False, ""
    try:
        with open(path, "rb") as file:
            sealed, sha256 = check_seal(file, path)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError(no_checkpoint(path)) from None
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds more than tensors, numbers, strings, lists and dicts, "
            "or is no checkpoint: it was not loaded, since loading it could run code"
        ) from None
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise damaged(path, error.strerror or str(error)) from None
        raise OSError(error.errno, f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # whatever the bytes of a file that is none make of the reader
        if sealed and out_of_memory(error):  # of a file that is whole
            raise
        raise damaged(path, str(error)) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a checkpoint's dict")
    if state.pop(SEALED, False) and not sealed:
        raise CheckpointError(
            f"{path} is damaged (its end is missing, or another program has saved it "
            f"with its key {SEALED!r}): use another"
        )
    return state, sha256


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory is full. On the CPU PyTorch has no class for it."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def damaged(path: Path, reason: str) -> CheckpointError:
    reason = next(iter(reason.strip().splitlines()), "unreadable").split(". ")[0]
    return CheckpointError(f"{path} is damaged or no checkpoint ({reason}): use another")


def seal(digest: Any) -> bytes:
    """Return the last line of a checkpoint whose other bytes have this digest."""
    return SEAL + digest.hexdigest().encode() + b"\n"


def check_seal(file: IO[bytes], path: Path) -> tuple[bool, str]:
    """Return whether the file ends with a checksum, as files of others do not, and the sha256 of
    all its bytes. Leave the file at its beginning.

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


def export(folder: Path, state: dict[str, Any]) -> None:
    """Make a folder of a checkpoint's model_state_dict and objective, and what JSON can hold.

    Raises OSError where the folder cannot be written.
    """
    about: dict[str, Any] = {name: state[name] for name in IN_CONFIG}
    objective, record = state.get("objective", {}), state.get("data")
    tensors = state["model_state_dict"] | {
        n: t for n, t in objective.items() if n.startswith(START)
    }
    if isinstance(record, dict):
        hashes = {name: v for name, v in record.items() if isinstance(v, torch.Tensor)}
        tensors |= {DATA + name: tensor for name, tensor in hashes.items()}
        record = {name: v for name, v in record.items() if name not in hashes}
    if record:
        about["data"] = record
    if FILLED in objective:
        about["queue_filled"] = int(objective[FILLED])
    content = save({name: t.contiguous() for name, t in tensors.items()})
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(content)
    about["sha256"] = hashlib.sha256(content).hexdigest()
    write_json(folder / CONFIG, about, indent=1)


def read_exported(path: Path) -> tuple[dict[str, Any], str]:
    """Return the state that `export` was given (without config.json its tensors alone), and the
    sha256 of the file of weights.

    Raises CheckpointError for a file that is damaged or no model.
    """
    config = path.with_name(CONFIG)
    try:
        content = path.read_bytes()
        about = read_json(config) if config.exists() else {}
        sha256 = hashlib.sha256(content).hexdigest()
        if about.get("sha256") not in (None, sha256):
            raise ValueError("its checksum is another")
        tensors, record = load(content), about.get("data")
        hashes = {name: tensors.pop(name) for name in list(tensors) if name.startswith(DATA)}
        if isinstance(record, dict):
            record |= {name.removeprefix(DATA): tensor for name, tensor in hashes.items()}
        objective = {name: tensors.pop(name) for name in list(tensors) if name.startswith(START)}
        if "queue_logit" in tensors:
            objective[FILLED] = torch.tensor([int(about["queue_filled"])])
        kept = {name: about[name] for name in IN_CONFIG if isinstance(about.get(name), dict)}
    except Exception as error:  # whatever the bytes of a file that is none make of the reader
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no model ({reason}): use another") from None
    more = {name: part for name, part in (("data", record), ("objective", objective)) if part}
    return {"model_state_dict": tensors, **kept, **more}, sha256
