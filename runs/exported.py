"""A model as a folder to be uploaded: model.safetensors, and config.json about it.

safetensors holds tensors and nothing that could run, and needs the package of that name; the format
has no checksum, so config.json has that of the file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from runs.checkpoint import CheckpointError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOLD = ("settings", "progress", "environment")  # of config.json
DATA = "data."  # before the names of the tensors that are hashes of images
FILLED = "memories.queue.queue_filled"
START = "memories.replay_buffer.start."  # before the names of the Gaussians that chains begin from


def weights_file(path: Path) -> Path:
    """The file of weights, where `path` may be the folder that holds it."""
    return path / WEIGHTS if path.is_dir() and (path / WEIGHTS).exists() else path


def write(folder: Path, state: dict[str, Any]) -> None:
    """`state`: model_state_dict, objective, and what JSON can hold. The folder
    is made. Raises CheckpointError without the package, OSError where it cannot be written."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise CheckpointError("to export needs safetensors: pip install safetensors") from None
    about: dict[str, Any] = {name: state[name] for name in TOLD}
    tensors, images = dict(state["model_state_dict"]), state.get("data")
    if isinstance(images, dict):  # checkpoints of earlier versions have a line, or nothing
        tensors |= {DATA + n: t for n, t in images.items() if isinstance(t, torch.Tensor)}
        images = {n: v for n, v in images.items() if not isinstance(v, torch.Tensor)}
    if images:
        about["data"] = images
    objective = state.get("objective", {})
    tensors |= {n: t for n, t in objective.items() if n.startswith(START)}
    content = save({name: t.contiguous() for name, t in tensors.items()})
    if FILLED in objective:
        about["queue_filled"] = int(state["objective"][FILLED])
    about["sha256"] = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(content)
    (folder / CONFIG).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> tuple[dict[str, Any], str]:
    """Return what `write` was given, as far as a checkpoint has it (of a file without config.json
    its tensors alone), and the sha256 of the file of weights.

    Raises CheckpointError for a file that is damaged or no model, and without the package.
    """
    try:
        from safetensors.torch import load
    except ImportError:
        raise CheckpointError(f"{path} needs safetensors: pip install safetensors") from None
    config = path.with_name(CONFIG)
    try:
        content = path.read_bytes()
        about = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        sha256 = hashlib.sha256(content).hexdigest()
        if about.get("sha256") not in (None, sha256):
            raise ValueError("its checksum is another")
        tensors, images = load(content), about.get("data")
        hashes = {name: tensors.pop(name) for name in list(tensors) if name.startswith(DATA)}
        if isinstance(images, dict):
            images |= {name.removeprefix(DATA): tensor for name, tensor in hashes.items()}
        objective = {name: tensors.pop(name) for name in list(tensors) if name.startswith(START)}
        state: dict[str, Any] = {"model_state_dict": tensors}
        if images:
            state["data"] = images
        for name in TOLD:
            if isinstance(about.get(name), dict):
                state[name] = about[name]
        if "queue_logit" in state["model_state_dict"]:
            objective[FILLED] = torch.tensor([int(about["queue_filled"])])
        if objective:
            state["objective"] = objective
    except Exception as error:  # whatever the bytes of a file that is none make of the reader
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no model ({reason}): use another") from None
    return state, sha256
