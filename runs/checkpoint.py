"""Read and write checkpoints and exported models. Reading executes no code of a file.

The last line of a checkpoint is "sha256:<64 hex digits>", the checksum of all bytes before it.
`read_checkpoint` verifies it. torch.load ignores it, and does not notice most flipped bits.

An exported model is a folder: model.safetensors holds tensors alone; config.json holds all other
values, such as the settings, and the checksum of model.safetensors.
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

# Errors of the machine: the file may be good.
UNREADABLE = (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOMEM, errno.EMFILE)

# In messages of CUDA and Triton, of cuBLAS, and of cuDNN, which finds no engine for a convolution
# if there is no memory for any engine's workspace.
GPU_IS_FULL = ("out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine")

SEAL = b"sha256:"
SEAL_SIZE = len(SEAL) + 64 + 1  # and a line end
SEALED = "sealed"  # a key of the saved dict: the file must end with its checksum

IN_CONFIG = ("settings", "progress", "environment")  # keys of a checkpoint that go to config.json
DATA = "data."  # prefix of an exported model's tensors of image hashes
FILLED = "memories.queue.queue_filled"  # the number of filled slots of the queue
START = "memories.replay_buffer.start."  # prefix of the Gaussians from which chains start


class CheckpointError(Mistake):
    """A checkpoint cannot be used; the message is one line: the file, the reason, the remedy."""


def save_checkpoint(state: dict[str, Any], path: Path, *, keep: Path | None = None) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts) to `path`, whole or not at all.

    keep: the path under which the old file stays.

    Raises OSError (a full disk, a read-only folder) and leaves `path` unchanged.
    """
    with whole(path, keep=keep) as temporary, open(temporary, "wb") as file:
        # The zip archive's own checksums would take three quarters of the time. The seal suffices.
        with serialization.patch("save.compute_crc32", False):  # type: ignore[attr-defined]
            torch.save({**state, SEALED: True}, file)
        file.flush()
        with open(temporary, "rb") as written:
            file.write(seal(digest_of(written)))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    return read_with_sha256(path)[0]


def read_with_sha256(path: str | Path) -> tuple[dict[str, Any], str]:
    """Return the dict of a checkpoint or of an exported model, with its tensors on the CPU, and the
    sha256 of the file. No code in the file is executed.

    The file is opened once: a file that replaces it meanwhile changes neither result.

    Raises CheckpointError for a missing, damaged or foreign file, and OSError or an out-of-memory
    error (see `out_of_memory`) where the file may be good.
    """
    path = weights_file(path)
    if path.suffix == Path(WEIGHTS).suffix:
        return read_exported(path)
    sealed = False
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
    except Exception as error:  # the bytes of a foreign file can raise any error in torch.load
        if sealed and out_of_memory(error):  # the checksum has shown that the file is intact
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


def out_of_memory(error: Exception) -> str:
    """Return a clause about the memory that is full where an error means that, else "". PyTorch has
    a class for the errors of its own allocator on a GPU alone."""
    message = str(error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in message:
        return "the memory is full"
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full"
    if isinstance(error, RuntimeError) and any(part in message for part in GPU_IS_FULL):
        return f"the GPU's memory is full ({message.splitlines()[0]})"
    return ""


def damaged(path: Path, reason: str) -> CheckpointError:
    reason = next(iter(reason.strip().splitlines()), "unreadable").split(". ")[0]
    return CheckpointError(f"{path} is damaged or no checkpoint ({reason}): use another")


def seal(digest: Any) -> bytes:
    """Return the last line of a checkpoint. digest: sha256 object of all bytes before it."""
    return SEAL + digest.hexdigest().encode() + b"\n"


def check_seal(file: IO[bytes], path: Path) -> tuple[bool, str]:
    """Return whether the file ends with a checksum, which files of the JEM and HDGE code lack, and
    the sha256 of all its bytes. Leave the file at its beginning.

    Raises CheckpointError for a wrong checksum.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = digest_of(file, size - SEAL_SIZE)
    last_line = file.read()
    file.seek(0)
    sealed = last_line.startswith(SEAL)
    if sealed and last_line != seal(digest):
        raise CheckpointError(f"{path} is damaged (its checksum is wrong): use another")
    digest.update(last_line)
    return sealed, digest.hexdigest()


def export(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint's weights, queue, chain starts and image hashes to model.safetensors in a
    new folder, and settings, progress, environment and the rest of the data record to config.json.

    Raises OSError where the folder cannot be written.
    """
    config: dict[str, Any] = {name: state[name] for name in IN_CONFIG}
    objective, record = state.get("objective", {}), state.get("data")
    starts = {name: tensor for name, tensor in objective.items() if name.startswith(START)}
    tensors = state["model_state_dict"] | starts
    if isinstance(record, dict):
        hashes = {name: v for name, v in record.items() if isinstance(v, torch.Tensor)}
        tensors |= {DATA + name: tensor for name, tensor in hashes.items()}
        record = {name: v for name, v in record.items() if name not in hashes}
    if record:
        config["data"] = record
    if FILLED in objective:
        config["queue_filled"] = int(objective[FILLED])
    content = save({name: t.contiguous() for name, t in tensors.items()})
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(content)
    config["sha256"] = hashlib.sha256(content).hexdigest()
    write_json(folder / CONFIG, config, indent=1)


def read_exported(path: Path) -> tuple[dict[str, Any], str]:
    """Return the state that `export` has written to model.safetensors and config.json, and the
    sha256 of model.safetensors. Without config.json the state holds tensors alone.

    Raises CheckpointError for a file that is damaged or no model.
    """
    config_path = path.with_name(CONFIG)
    try:
        content = path.read_bytes()
        config = read_json(config_path) if config_path.exists() else {}
        sha256 = hashlib.sha256(content).hexdigest()
        if config.get("sha256") not in (None, sha256):
            raise ValueError("its checksum is wrong")
        tensors, record = load(content), config.get("data")
        hashes = {name: tensors.pop(name) for name in list(tensors) if name.startswith(DATA)}
        if isinstance(record, dict):
            record |= {name.removeprefix(DATA): tensor for name, tensor in hashes.items()}
        objective = {name: tensors.pop(name) for name in list(tensors) if name.startswith(START)}
        if "queue_filled" in config:
            objective[FILLED] = torch.tensor([int(config["queue_filled"])])
        metadata = {name: config[name] for name in IN_CONFIG if isinstance(config.get(name), dict)}
    except Exception as error:  # the bytes of a foreign file can raise any error in the readers
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no model ({reason}): use another") from None
    optional = {name: part for name, part in (("data", record), ("objective", objective)) if part}
    return {"model_state_dict": tensors, **metadata, **optional}, sha256
