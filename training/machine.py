"""Set up the device and threads of a program, load its data set, and record its environment."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import data
from evaluation.context import with_remedy_for_moved_folder
from runs import processes as distributed
from runs.cli import UsageError, check_device
from runs.screen import text_of_changes

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def choose_device(name: str, *, exact: bool = False) -> torch.device:
    """Return the device of --device, set up for speed or, if `exact`, for scores to be compared:
    then convolutions do without TF32 and always use the same algorithm. Matrix products, which are
    those of the heads, are float32 in both cases.

    Raises UsageError for an unknown or missing device.
    """
    name = distributed.own_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: PyTorch sees {torch.cuda.device_count()} CUDA GPUs: use --device cpu"
        )
    if device.index is not None:  # PyTorch checks bf16 and waits on the current GPU
        try:
            torch.cuda.set_device(device)
        except RuntimeError as error:  # such as of memory, on a GPU that other programs have filled
            raise RuntimeError(f"--device {name}: {error}") from error
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = not exact
    torch.backends.cudnn.benchmark = not exact
    torch.backends.cudnn.deterministic = exact
    if device.type == "cpu":
        keep_freed_memory()
    return device


def use_threads(s: Namespace, device: torch.device, program: str) -> None:
    """Use the number of --threads, and delete it from the settings: a resumed run may use another.
    Without --threads warn if other programs keep the cores busy."""
    if (threads := vars(s).pop("threads", None)) is not None:
        torch.set_num_threads(threads)
        return
    with suppress(AttributeError, OSError):  # some systems do not report their load
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        # A program of the user that has just ended leaves a load of 1 a core.
        if load > 1.5 * cores and device.type == "cpu" and torch.get_num_threads() > 1:
            busy = f"other programs keep the {cores} cores busy (load {load:.1f})"
            distributed.warn(program, f"{busy}: --threads 1 is faster there")


def load_data(s: Namespace, device: torch.device) -> data.DataSet:
    """Return the data set of --dataset on the device. Raises DataError."""
    with naming_dataset(s):
        dataset = distributed.in_turn(lambda: data.load(s.dataset, s.data_root, size=s.image_size))
    return dataset.to(device)


@contextmanager
def naming_dataset(s: Namespace) -> Iterator[None]:
    """Let a DataError name the value of --dataset, and the remedy for a folder that has moved."""
    try:
        yield
    except data.DataError as error:
        error = error.renamed("dataset", s.dataset)
        raise with_remedy_for_moved_folder(error, s.dataset, s.dataset) from None


def warn_of_leaks(s: Namespace, dataset: data.DataSet, record: data.Record, program: str) -> None:
    """Warn how many validation and test images of `dataset` the checkpoint of --load_path was
    trained on. `record`: the checkpoint's record of its images."""
    valid = data.hold_out(dataset, s.n_valid)[1]
    splits = {"validation": dataset.train.take(valid), "test": dataset.test}
    overlaps = {name: record.compare(split.hashes, None, None) for name, split in splits.items()}
    texts = {name: text_of_changes(found, None) for name, found in overlaps.items()}
    leaks = [f"{name}: {text}" for name, text in texts.items() if text]
    if leaks:
        line = f"--dataset {s.dataset} holds out what --load_path {s.load_path} was trained on"
        distributed.warn(program, f"{line}: {'; '.join(leaks)}")


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory for the next step. By default malloc returns the
    activations' memory to the system and gets it again as zeroed pages, which costs a quarter of an
    SGLD step on a CPU. No result changes. On systems without glibc do nothing."""
    set_malloc(trim_threshold=2**31 - 1, mmap_threshold=2**30)


def set_malloc(*, trim_threshold: int, mmap_threshold: int) -> None:
    """Set glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, in bytes: mallopt(3)."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, trim_threshold)
        if not mallopt(M_MMAP_THRESHOLD, mmap_threshold):  # some versions refuse more than this
            mallopt(M_MMAP_THRESHOLD, min(mmap_threshold, 2**25))


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, commit and device, on which results depend besides the settings. Call this
    before the work: hours later the checkout may have another commit than the running code."""
    packages = ("torch", "torchvision", "numpy", "scipy", "scikit-learn")
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    count = distributed.size()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "torch_build": torch.__version__,
        "git_commit": git_commit(),
        "device": f"{model}, {count} processes" if count > 1 else model,
        "threads": torch.get_num_threads(),
        "processes": count,
    }


def cpu_name() -> str:
    """Return the processor's model or, where the system does not report it, its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """Return the commit of this code, with '+' where files differ from it; None outside a git
    checkout."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+"]
    with suppress(OSError, subprocess.TimeoutExpired):
        git = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        return git.stdout.strip() or None
    return None
