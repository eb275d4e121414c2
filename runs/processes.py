"""Several processes that work on one run or one question: torchrun starts them, one for each GPU.

Each has a rank from 0 to size - 1. With one process, which needs no torchrun, every function here
returns what it was given and nothing is sent. Small things that the host has to know travel between
the hosts (gloo), never through a GPU's queue, so that nobody waits for a device.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from runs.cli import Mistake, UsageError, first_here, processes
from runs.screen import print_line

T = TypeVar("T")
# Longer than any living process takes: rank 0 may draw pictures, or save to a slow disk. One that
# has died is noticed at once, by its closed connection.
PATIENCE = timedelta(hours=2)
MEETING = timedelta(minutes=10)  # for all to start
LOST = "another process of this run has ended, or cannot be reached"

_hosts: dist.ProcessGroup | None = None  # the group of the hosts, whatever the device
_store: dist.Store | None = None  # a key-value store that all of them share
_parted = False  # this process ends without the others


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Return whether this is the process that writes files and lines."""
    return rank() == 0


@contextlib.contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun has started, if it has; all must come here.

    Raises UsageError where they cannot meet.
    """
    global _hosts, _store
    if processes() == 1 or dist.is_initialized():
        yield
        return
    try:
        store, own, count = next(dist.rendezvous("env://", timeout=MEETING))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=own,
            world_size=count,
            timeout=PATIENCE,
        )
        _hosts = dist.new_group(backend="gloo", timeout=PATIENCE)  # type: ignore[assignment]
    except RuntimeError as error:
        raise UsageError(f"torchrun: the processes cannot meet ({reason(error)})") from None
    _store = dist.PrefixStore("hdge", store)
    yield
    # Not after an error: others may have gone, and to part from them would wait for them.
    if not _parted:
        all_of(None)
        _hosts = _store = None
        dist.destroy_process_group()


def part() -> None:
    """Let this process end without waiting for the others."""
    global _parted
    _parted = True


def own_device(name: str) -> str:
    """Return the device that --device means for this process: of several on a machine, each has a
    GPU of its own. Raises UsageError."""
    if processes() == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    if name not in ("auto", "cuda"):
        raise UsageError(
            f"--device {name}: under torchrun each process has a GPU of its own: give --device cuda"
        )
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if local > gpus:
        raise UsageError(
            f"--nproc_per_node {local}: PyTorch sees {gpus} CUDA GPUs on this machine: start as "
            "many processes, or give --device cpu"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


def first_to_report() -> bool:
    """Return whether this process is the first to report why it ends: one line is enough."""
    if _store is None:  # a mistake that all on this machine notice before they meet
        return first_here()
    try:
        return int(_store.add("spoken", 1)) == 1
    except RuntimeError:  # the process that kept the store has ended
        return True


def say(line: str) -> None:
    """Print a line on the screen, in the first process alone."""
    if first():
        print_line(line, sys.stdout)


def warn(program: str, line: str) -> None:
    """Print a warning on stderr, in the first process alone."""
    if first():
        print_line(f"{program}: warning: {line}", sys.stderr)


def is_lost(error: BaseException) -> bool:
    """Return whether an error is one of communication. PyTorch has no class for gloo's."""
    if size() == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def reason(error: BaseException) -> str:
    """Return an error's message, short and in one line, without gloo's place in its source."""
    return re.sub(r"^\[\S+\] ", "", " ".join(str(error).split()))[:150]


# ---------------------------------------------------------------------------------------- device


@torch.no_grad()
def mean(values: Tensor) -> Tensor:
    """Return the mean over processes of a tensor of floats, the same bits in all of them."""
    if size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / size()


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Average batch norm's running statistics over processes, in one message."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if size() == 1 or not layers:
        return
    found: list[Tensor] = [t for layer in layers for t in (layer.running_mean, layer.running_var)]
    means = mean(torch.cat([t.flatten() for t in found])).split([t.numel() for t in found])
    for t, new in zip(found, means, strict=True):
        t.copy_(new.view_as(t))


@torch.no_grad()
def same(model: nn.Module) -> None:
    """Make parameters and buffers those of rank 0, whatever this machine's own would be."""
    if size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, 0)


# ---------------------------------------------------------------------------------------- hosts


def from_first(value: T) -> T:
    """Return rank 0's value."""
    if size() == 1:
        return value
    boxed = [value if first() else None]
    dist.broadcast_object_list(boxed, 0, group=_hosts)
    return boxed[0]  # type: ignore[return-value]


def to_first(value: T) -> list[T]:
    """Return each process's value, by rank, to rank 0, and [] to the others."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.gather_object(value, found if first() else None, 0, group=_hosts)
    return found if first() else []


def in_turn(load: Callable[[], T]) -> T:
    """Call `load` in the first process of each machine, which may have to download something, and
    then in the others. A Mistake that one raises, all raise."""
    if size() == 1:
        return load()
    found, failed = None, None
    for turn in (True, False):
        try:
            if first_here() == turn:
                found = load()
        except Mistake as error:
            failed = error
        if errors := [each for each in all_of(failed) if each is not None]:
            raise errors[0]
    return found  # type: ignore[return-value]


def all_of(value: T) -> list[T]:
    """Return each process's value, by rank."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value, group=_hosts)
    return found


@torch.no_grad()
def joined(part: Tensor) -> Tensor:
    """Return the parts of all processes, (sum of n, ...), one below the other by rank, on this
    part's device. Their lengths n may differ; an empty part may have any shape of length 0."""
    if size() == 1:
        return part
    parts = [each for each in all_of(part.detach().cpu()) if len(each)]
    return torch.cat(parts).to(part.device) if parts else part


def share(n: int, batch: int = 1) -> range:
    """Return which of n things in a row are this process's: range(first, last, batch), as many
    batches as the others', or one more."""
    batches = -(-n // batch)
    first, last = (batches * (rank() + i) // size() for i in (0, 1))
    return range(first * batch, min(last * batch, n), batch)


def largest(*numbers: int) -> tuple[int, ...]:
    """Return the largest of each number that processes notice by themselves (a signal, the time),
    so that they act together on it."""
    if size() == 1:
        return numbers
    found = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_hosts)
    return tuple(found.tolist())


def mixed(*key: int) -> int:
    """Return a seed from several numbers >= 0."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
