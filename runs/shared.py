"""Trained models that are named and not given as a path: the repository's own, and Hugging Face's.

Nothing heavy is imported here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from runs.cli import UsageError, did_you_mean
from runs.folder import BEST, LAST, WEIGHTS

OWN = Path(__file__).resolve().parent.parent / "pretrained"
HUB = "hf://"
CONFIG = "config.json"  # of an exported model


def weights_file(path: str | Path) -> Path:
    """Return the file that a name stands for.

    A folder stands for the weights of an exported model, or the best checkpoint of a run, without
    one the last. The name of a folder of pretrained/ stands for that, where there is no such path,
    and hf://owner/name[@revision] for a folder that huggingface_hub downloads. Any other path
    stands for itself. Raises UsageError for a model that cannot be downloaded.
    """
    folder = downloaded(str(path)) if str(path).startswith(HUB) else Path(path)
    # Where a name is too long or a folder may not be read, os.path returns False, pathlib raises.
    if len(folder.parts) == 1 and not os.path.exists(folder) and os.path.isdir(OWN / folder):
        folder = OWN / folder
    files = (folder / name for name in (WEIGHTS, BEST, LAST, "model.pt"))
    return next(filter(os.path.isfile, files), folder)


def check_weights(flag: str, path: str) -> None:
    """Raise UsageError where a flag names no checkpoint. Nothing is downloaded."""
    if path.startswith(HUB):
        return
    file = weights_file(path)
    try:
        found = not stat.S_ISDIR(os.stat(file).st_mode)
    except OSError as error:  # the reader tells of any other
        found = error.errno not in (errno.ENOENT, errno.ENOTDIR)
    if not found:
        raise UsageError(f"{flag} {no_checkpoint(file)}")


def no_checkpoint(path: Path) -> str:
    """Return why `path` is no checkpoint: a missing file, or a folder of no run; and the remedy."""
    what = "has no checkpoint" if path.is_dir() else "is no file"
    own = [model.name for model in OWN.iterdir() if model.is_dir()] if OWN.is_dir() else []
    near = did_you_mean(str(path), own)
    return f"{path} {what}: {near}give the path of a checkpoint (.pt)"


def name_of(path: str) -> str:
    """Return a short name: of a run or a model its folder's."""
    if path.startswith(HUB):
        return path.rpartition("/")[2].partition("@")[0]
    return weights_file(path).resolve().parent.name


def downloaded(name: str) -> Path:
    """Return the folder of hf://owner/name[@revision], of which only safetensors and settings are
    downloaded: nothing in them can run."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(f"{name} needs huggingface_hub: pip install huggingface_hub") from None
    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG]
        )
    except Exception as error:  # of many kinds: of the name, of the network, of the disk
        raise UsageError(f"{name}: {' '.join(str(error).split())[:200]}") from None
    return Path(folder)
