"""Find the file of a trained model: a path, a name in pretrained/, or a model on Hugging Face.

Nothing slow is imported at the top.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from runs.cli import UsageError, did_you_mean
from runs.folder import BEST, LAST, WEIGHTS

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
HUB = "hf://"
CONFIG = "config.json"  # of an exported model


def weights_file(path: str | Path) -> Path:
    """Return the file that a path or a name stands for.

    A folder stands for the first of these files in it: an exported model's weights, the best and
    the last checkpoint of a run, model.pt. A name stands for the folder of that name in pretrained/
    if there is no such path, hf://owner/name[@revision] for a folder that huggingface_hub
    downloads. Any other path is returned unchanged. Raises UsageError if the download fails.
    """
    folder = downloaded(str(path)) if str(path).startswith(HUB) else Path(path)
    # os.path returns False where pathlib raises: for too long a name, or an unreadable folder.
    if len(folder.parts) == 1 and not os.path.exists(folder) and os.path.isdir(PRETRAINED / folder):
        folder = PRETRAINED / folder
    files = (folder / name for name in (WEIGHTS, BEST, LAST, "model.pt"))
    return next(filter(os.path.isfile, files), folder)


def check_weights(flag: str, path: str) -> None:
    """Raise UsageError where the value `path` of a flag is no checkpoint. Download nothing."""
    if path.startswith(HUB):
        return
    file = weights_file(path)
    try:
        exists = not stat.S_ISDIR(os.stat(file).st_mode)
    except OSError as error:  # other errors are reported when the file is read
        exists = error.errno not in (errno.ENOENT, errno.ENOTDIR)
    if not exists:
        raise UsageError(f"{flag} {no_checkpoint(file)}")


def no_checkpoint(path: Path) -> str:
    """Return why `path` is no checkpoint (no such file, or a folder without a run) and a remedy."""
    reason = "has no checkpoint" if path.is_dir() else "is no file"
    models = PRETRAINED.iterdir() if PRETRAINED.is_dir() else ()
    suggestion = did_you_mean(str(path), [model.name for model in models if model.is_dir()])
    return f"{path} {reason}: {suggestion}give the path of a checkpoint (.pt)"


def name_of(path: str) -> str:
    """Return a short name of a model: that of its folder, or of its hf:// repository."""
    if path.startswith(HUB):
        return path.rpartition("/")[2].partition("@")[0]
    return Path(os.path.abspath(weights_file(path))).parent.name  # of a link, not of its target


def downloaded(name: str) -> Path:
    """Download hf://owner/name[@revision] and return its folder. Only model.safetensors and
    config.json are downloaded, which cannot hold code."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError(f"{name} needs huggingface_hub: pip install huggingface_hub") from None
    repository, _, revision = name.removeprefix(HUB).partition("@")
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=[WEIGHTS, CONFIG]
        )
    except Exception as error:  # of many classes: a bad name, no network, a full disk
        raise UsageError(f"{name}: {' '.join(str(error).split())[:200]}") from None
    return Path(folder)
