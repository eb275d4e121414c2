"""Time and memory of calls, and the machine's peak, measured on one device in one process."""

from __future__ import annotations

import contextlib
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from training.machine import keep_freed_memory, set_malloc

SHORTEST_TURN = 0.05  # seconds: what takes less is called several times a turn
WARMED_UP = 0.5  # seconds: what takes less is called once, untimed, before its turn
LEAST_TURNS = 3

Place = tuple[Any, str, str]  # owner, name of what is called, part that its time belongs to


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median over turns, and the quartiles."""

    median: float
    low: float
    high: float
    turns: int


def clock(device: torch.device) -> float:
    """time.perf_counter() once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def alternate(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    turns: int,
    seconds: float = math.inf,
) -> dict[str, Timing]:
    """Time calls that were warmed up, turn by turn, in an order that is reversed each time, so
    that whatever else the machine does meets all of them alike.

    After `seconds` no further turn begins, if there were 3. A turn is one call, or as many as take
    50 ms, after one that is not timed: caches and allocator are as the others left them. What takes
    half a second or more would not notice: the call that found out how long it takes is a turn.
    """
    names, began = list(calls), time.monotonic()
    took = {name: time_of(call, device) for name, call in calls.items()}
    repeats = {name: calls_a_turn(once) for name, once in took.items()}
    found = {name: [once] if once >= WARMED_UP else [] for name, once in took.items()}
    for turn in range(turns):
        if turn >= LEAST_TURNS and time.monotonic() - began > seconds:
            break
        for name in names if turn % 2 == 0 else reversed(names):
            if len(found[name]) > turn:
                continue
            if took[name] < WARMED_UP:
                calls[name]()
            started = clock(device)
            for _ in range(repeats[name]):
                calls[name]()
            found[name].append((clock(device) - started) / repeats[name])
    return {name: timing(values) for name, values in found.items()}


def time_of(call: Callable[[], object], device: torch.device) -> float:
    started = clock(device)
    call()
    return clock(device) - started


def calls_a_turn(once: float) -> int:
    return max(1, min(1000, math.ceil(SHORTEST_TURN / max(once, 1e-9))))


def timing(values: Sequence[float]) -> Timing:
    low = high = middle = statistics.median(values)
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(middle, low, high, len(values))


def matrix_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best of 10 products of two (size, size) matrices: the peak that a step's rate
    is compared with."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(10):
        started = clock(device)
        a @ b
        times.append(clock(device) - started)
    return 2 * size**3 / min(times[2:])


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """float32 products and convolutions on a GPU in TF32, or not."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


# ---------------------------------------------------------------------------------------- memory


@contextmanager
def malloc_as_found(device: torch.device) -> Iterator[None]:
    """On a CPU, the memory allocator of a program that does not set it up as this project's do:
    with the largest thresholds that glibc comes to by itself."""
    if device.type != "cpu":
        yield
        return
    set_malloc(trim_threshold=2**26, mmap_threshold=2**25)
    try:
        yield
    finally:
        keep_freed_memory()


def extra_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that the call needs at most, above what was allocated before it: of the GPU's
    allocations, or of this process' resident memory on Linux. None where the system cannot tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps for later would hide what is needed
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
        resident = status("VmRSS")
        call()
        return max(0, status("VmHWM") - resident)
    except OSError:
        call()
        return None


def status(name: str) -> int:
    """Bytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def free_memory(device: torch.device) -> float:
    """Bytes; infinite where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return math.inf


# ----------------------------------------------------------------------------------------- parts


@contextmanager
def watched(
    spent: dict[str, float], places: Sequence[Place], device: torch.device
) -> Iterator[None]:
    """While it lasts, the seconds within calls of owner.name are added to spent[part], for each
    (owner, name, part). A watched call within another one counts as the other's."""
    inside = [False]

    def watch(call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if inside[0]:
                return call(*args, **kwargs)
            inside[0] = True
            started = clock(device)
            try:
                return call(*args, **kwargs)
            finally:
                spent[part] = spent.get(part, 0.0) + clock(device) - started
                inside[0] = False

        return timed

    with ExitStack() as stack:
        for owner, name, part in places:
            call = watch(getattr(owner, name), part)
            stack.enter_context(mock.patch.object(owner, name, call))
        yield
