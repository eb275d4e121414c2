"""Several processes that work on one run or one question: what torchrun starts, one for each GPU.

Each has a rank from 0 to size - 1. With one process, which needs no torchrun, everything here gives
back what it was given and nothing is sent. Small things that the host has to know travel between
the hosts (gloo), never through a GPU's queue, so that nobody waits for a device.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from runs.cli import UsageError, processes
from runs.screen import print_line

T = TypeVar("T")
# Nobody waits so long for a living process: rank 0 may be drawing pictures, or saving to a slow
# disk. One that has died is noticed at once, by its closed connection.
PATIENCE = timedelta(hours=2)
MEETING = timedelta(minutes=10)  # until all have started
GRACE = 10.0  # seconds in which a process may notice by itself that another one has ended
LOST = "another process of this run has ended, or cannot be reached"

_hosts: dist.ProcessGroup | None = None  # the group of the hosts, whatever the device
_store: dist.Store | None = None  # where all can leave a word for all
_parted = False  # this process ends without the others


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the process that writes and speaks."""
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
    if device.type == "cuda":
        torch.cuda.set_device(device)
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
        watcher = watch_neighbour()
    except RuntimeError as error:
        raise UsageError(f"torchrun: the processes cannot meet ({reason(error)})") from None
    _store = dist.PrefixStore("hdge", store)
    yield
    # Not after an error: others may have gone, and to part from them would wait for them.
    if not _parted:
        watcher()
        _hosts = _store = None
        dist.destroy_process_group()


def watch_neighbour() -> Callable[[], None]:
    """A thread that waits for a word from the next process, which comes when all is done: what
    comes before is that this process has died. The main thread may not notice, as it may be waiting
    for a GPU that waits for the dead one's; then the thread ends the process. Returns what says the
    word."""
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=365))

    def watch() -> None:
        try:
            dist.recv(torch.zeros(1), (rank() + 1) % size(), group=group)
        except RuntimeError as error:
            time.sleep(GRACE)
            if may_speak():
                print_line(f"error: {LOST} ({reason(error)})", sys.stderr)
            os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def done() -> None:
        all_of(None)
        dist.send(torch.zeros(1), (rank() - 1) % size(), group=group)
        thread.join()

    return done


def part() -> None:
    """This process ends, whatever the others do: they are not waited for."""
    global _parted
    _parted = True


def own_device(name: str) -> str:
    """The device that --device means for this process: on a machine with several processes, each
    has a GPU of its own. Raises UsageError."""
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


def may_speak() -> bool:
    """Whether this process is the first that has to tell why it ends: one line is enough."""
    if processes() == 1:
        return True
    if _store is None:  # a mistake that all on this machine have noticed before they met
        return os.environ["LOCAL_RANK"] == "0"
    try:
        return int(_store.add("spoken", 1)) == 1
    except RuntimeError:  # whoever kept the store has ended
        return True


def is_lost(error: BaseException) -> bool:
    """An error of what travels between processes. PyTorch has no class of its own for gloo's."""
    if size() == 1 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def reason(error: BaseException) -> str:
    """What an error says, short and in one line; gloo begins with a place in its source."""
    return re.sub(r"^\[\S+\] ", "", " ".join(str(error).split()))[:150]


# ---------------------------------------------------------------------------------------- device


@torch.no_grad()
def mean(values: Tensor) -> Tensor:
    """The mean over processes of a tensor of floats that all have, the same bits in all."""
    if size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / size()


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Batch norm's running statistics become their means over processes, in one message. With
    SyncBatchNorm, and with the same batch, they are the same anyway."""
    if size() == 1:
        return
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    plain = [layer for layer in layers if not isinstance(layer, nn.SyncBatchNorm)]
    found: list[Any] = [t for layer in plain for t in (layer.running_mean, layer.running_var)]
    if found:
        flat = mean(torch.cat([t.flatten() for t in found]))
        for t, new in zip(found, flat.split([t.numel() for t in found]), strict=True):
            t.copy_(new.view_as(t))


@torch.no_grad()
def same(model: nn.Module) -> None:
    """Parameters and buffers become those of rank 0, whatever this machine's own would have
    been."""
    if size() > 1:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, 0)


def replicated(loss: nn.Module, *, find_unused: bool) -> nn.Module:
    """The module in DistributedDataParallel: the gradients of one backward pass after one forward
    pass are averaged over processes while they arrive. Buffers are left alone."""
    if size() == 1:
        return loss
    # Said in the first backward pass of loc and scale of act norm, whose strides either memory
    # format may have.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        # From 2.14 on it says that this name will go, and to keep it where buffers are not shared.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return nn.parallel.DistributedDataParallel(
            loss,
            broadcast_buffers=False,  # the queue is equal, and each has its own replay buffer
            init_sync=False,  # see `same`
            find_unused_parameters=find_unused,
            gradient_as_bucket_view=True,
        )


# ---------------------------------------------------------------------------------------- hosts


def from_first(value: T) -> T:
    """What rank 0 has."""
    if size() == 1:
        return value
    boxed = [value if first() else None]
    dist.broadcast_object_list(boxed, 0, group=_hosts)
    return boxed[0]  # type: ignore[return-value]


def to_first(value: T) -> list[T]:
    """What each process has, by rank: to rank 0. The others get nothing, []."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.gather_object(value, found if first() else None, 0, group=_hosts)
    return found if first() else []


def in_turn(load: Callable[[], T], error: type[Exception]) -> T:
    """`load()` by the first process of each machine, which may have to download something, and then
    by the others. An error of this kind that one raises, all raise."""
    if size() == 1:
        return load()
    found, failed = None, None
    for firsts in (True, False):
        if (os.environ["LOCAL_RANK"] == "0") == firsts:
            try:
                found = load()
            except error as caught:
                failed = caught
        told = [each for each in all_of(failed) if each is not None]
        if told:
            raise told[0]
    return found  # type: ignore[return-value]


def all_of(value: T) -> list[T]:
    """What each process has, by rank."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value, group=_hosts)
    return found


@torch.no_grad()
def joined(part: Tensor) -> Tensor:
    """The parts of all processes, one below the other by rank; their lengths may differ, and one
    that has nothing may give any shape of length 0. On this part's device."""
    if size() == 1:
        return part
    about = all_of((tuple(part.shape), part.dtype))
    lengths = [shape[0] for shape, _ in about]
    if not any(lengths):
        return part
    (_, *rest), dtype = next(each for each in about if each[0][0])
    padded = torch.zeros((max(lengths), *rest), dtype=dtype)
    if len(part):
        padded[: len(part)] = part.detach().cpu()
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded, group=_hosts)
    whole = torch.cat([each[:n] for each, n in zip(found, lengths, strict=True)])
    return whole.to(part.device)


def share(n: int) -> range:
    """Which of n things in a row are this process's: as many as the others', or one more."""
    return range(n * rank() // size(), n * (rank() + 1) // size())


class Agreement:
    """What processes notice apart (a signal, the time), they act on together: the largest number
    that any of them has told."""

    def __init__(self) -> None:
        self.asked: tuple[Any, Tensor] | None = None

    def soon(self, *told: int) -> tuple[int, ...]:
        """What was agreed on when this was last called; zeros the first time. So nobody waits:
        the answer travels while the next step is on its way. One process agrees at once."""
        if size() == 1:
            return told
        before = self.answer() or (0,) * len(told)
        self.ask(told)
        return before

    def now(self, *told: int) -> tuple[int, ...]:
        """What all agree on now. All must call it at the same place, and those who call `soon`
        as often."""
        if size() == 1:
            return told
        before = self.answer() or (0,) * len(told)
        self.ask(told)
        after = self.answer() or ()
        return tuple(map(max, before, after))

    def forget(self) -> None:
        """What `soon` would give next."""
        self.answer()

    def ask(self, told: tuple[int, ...]) -> None:
        numbers = torch.tensor(told, dtype=torch.int64)
        work = dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_hosts, async_op=True)
        self.asked = work, numbers

    def answer(self) -> tuple[int, ...] | None:
        if self.asked is None:
            return None
        work, numbers = self.asked
        self.asked = None
        work.wait()
        return tuple(numbers.tolist())


def mixed(*key: int) -> int:
    """A seed from several numbers >= 0, well mixed."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
