"""Exchange values between the processes of a run or an evaluation; torchrun starts one per GPU.

Each process has a rank from 0 to size - 1. Without torchrun there is one process, and no function
sends anything. Python values travel from CPU to CPU (gloo) and not through the queue of a GPU
(NCCL), so that no process waits for a device.
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
# Longer than a living process keeps another waiting: rank 0 may draw pictures or save to a slow
# disk. A dead process is noticed at once, by its closed connection.
PATIENCE = timedelta(hours=2)
MEETING = timedelta(minutes=10)  # for all processes to start
LOST = "another process of this run has ended, or cannot be reached"

_cpu_group: dist.ProcessGroup | None = None  # group of all processes, gloo even where GPUs use NCCL
_store: dist.Store | None = None  # key-value store that all processes share
_parted = False  # whether this process ends without waiting for the other processes


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Return whether this process has rank 0, which alone writes files and prints."""
    return rank() == 0


@contextlib.contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Connect torchrun's processes, if any, while the block runs. All processes must call this.

    Raises UsageError where the processes cannot connect.
    """
    global _cpu_group, _store
    if processes() == 1 or dist.is_initialized():
        yield
        return
    try:
        store, own_rank, world_size = next(dist.rendezvous("env://", timeout=MEETING))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=own_rank,
            world_size=world_size,
            timeout=PATIENCE,
        )
        _cpu_group = dist.new_group(backend="gloo", timeout=PATIENCE)  # type: ignore[assignment]
    except RuntimeError as error:
        raise UsageError(f"torchrun: the processes cannot meet ({reason(error)})") from None
    _store = dist.PrefixStore("hdge", store)
    yield
    # Not after an error, which leaves at `yield`: this would wait for processes that have ended.
    if not _parted:
        all_of(None)
        _cpu_group = _store = None
        dist.destroy_process_group()


def part() -> None:
    """Let this process end without waiting for the other processes."""
    global _parted
    _parted = True


def own_device(name: str) -> str:
    """Return the device of this process for --device `name`. Under torchrun each process on a
    machine has a GPU of its own. Raises UsageError."""
    if processes() == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    if name not in ("auto", "cuda"):
        raise UsageError(
            f"--device {name}: under torchrun each process has a GPU of its own: give --device cuda"
        )
    local_size, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if local_size > gpus:
        raise UsageError(
            f"--nproc_per_node {local_size}: PyTorch sees {gpus} CUDA GPUs on this machine: start "
            "as many processes, or give --device cpu"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


def first_to_report(*, alone: bool = False) -> bool:
    """Return whether this process is the first to report why the run ends: one line suffices.

    alone: whether, before the processes are connected, this one may be the only one with its error,
        such as a full GPU; all processes on a machine have the same Mistake.
    """
    if _store is None:
        return alone or first_here()
    try:
        return int(_store.add("spoken", 1)) == 1
    except RuntimeError:  # the process that held the store has ended
        return True


def say(line: str) -> None:
    """Print a line on stdout, in the first process alone."""
    if first():
        print_line(line, sys.stdout)


def warn(program: str, line: str) -> None:
    """Print a warning on stderr, in the first process alone."""
    if first():
        print_line(f"{program}: warning: {line}", sys.stderr)


def is_lost(error: BaseException) -> bool:
    """Return whether an error comes from communication: PyTorch has no class for gloo's errors."""
    if size() == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def reason(error: BaseException) -> str:
    """Return an error's message in one short line, without gloo's "[file:line]" before it."""
    return re.sub(r"^\[\S+\] ", "", " ".join(str(error).split()))[:150]


# ------------------------------------------------------------------------- tensors on the device


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
    """Average batch norm's running statistics over processes, with one all-reduce."""
    layers: list[Any] = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if size() == 1 or not layers:
        return
    buffers: list[Tensor] = [t for layer in layers for t in (layer.running_mean, layer.running_var)]
    means = mean(torch.cat([t.flatten() for t in buffers])).split([t.numel() for t in buffers])
    for buffer, average in zip(buffers, means, strict=True):
        buffer.copy_(average.view_as(buffer))


@torch.no_grad()
def same(model: nn.Module) -> None:
    """Copy rank 0's parameters and buffers to all processes: machines may round differently."""
    if size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, 0)


# ----------------------------------------------------------------------------- values on the CPU


def from_first(value: T) -> T:
    """Return rank 0's value."""
    if size() == 1:
        return value
    values = [value if first() else None]
    dist.broadcast_object_list(values, 0, group=_cpu_group)
    return values[0]  # type: ignore[return-value]


def to_first(value: T) -> list[T]:
    """Return the values of all processes, by rank, in rank 0; [] in the other processes."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.gather_object(value, values if first() else None, 0, group=_cpu_group)
    return values if first() else []


def in_turn(load: Callable[[], T]) -> T:
    """Call `load` in the first process of each machine, where it may download files, and then in
    the other processes. A Mistake in any process is raised in all of them."""
    if size() == 1:
        return load()
    value, mistake = None, None
    for first_turn in (True, False):
        try:
            if first_here() == first_turn:
                value = load()
        except Mistake as error:
            mistake = error
        if mistakes := [error for error in all_of(mistake) if error is not None]:
            raise mistakes[0]
    return value  # type: ignore[return-value]


def all_of(value: T) -> list[T]:
    """Return the values of all processes, by rank, in every process."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value, group=_cpu_group)
    return values


@torch.no_grad()
def joined(part: Tensor) -> Tensor:
    """Concatenate the parts (n, ...) of all processes by rank, to (sum of n, ...) on this part's
    device. The lengths n may differ; an empty part may have any shape of length 0."""
    if size() == 1:
        return part
    parts = [tensor for tensor in all_of(part.detach().cpu()) if len(tensor)]
    return torch.cat(parts).to(part.device) if parts else part


def share(n: int, batch: int = 1) -> range:
    """Return this process's part of n items as range(start, stop, batch), the starts of its
    batches. Their number differs by at most 1 between processes."""
    batches = -(-n // batch)
    start, stop = (batches * (rank() + i) // size() for i in (0, 1))
    return range(start * batch, min(stop * batch, n), batch)


def largest(*numbers: int) -> tuple[int, ...]:
    """Return the maximum over processes of each number. A signal or a time limit that only some
    processes have noticed thus reaches all of them in the same step."""
    if size() == 1:
        return numbers
    maxima = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(maxima, dist.ReduceOp.MAX, group=_cpu_group)
    return tuple(maxima.tolist())


def mixed(*key: int) -> int:
    """Return a seed that is a hash of several numbers >= 0."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
