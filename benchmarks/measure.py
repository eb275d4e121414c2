"""Time steps: rows of plain numbers, seconds, bytes, FLOP."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import re
import statistics
import sys
import time
import timeit
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import data
import models
import train_wrn
from benchmarks import straightforward
from benchmarks.flags import PROJECT, STABLE, STRAIGHT, STRAIGHT_TF32, step_settings
from runs.screen import print_line
from training.build import build_model, fit_start
from training.cost import run_on, step_flops
from training.divergence import Guard
from training.machine import keep_freed_memory, set_malloc

Row = dict[str, Any]
Call = Callable[[], object]

BEGAN = time.monotonic()
IMAGES = 10_000  # that the batches are drawn from
SHORTEST_TURN, WARMED_UP = 0.05, 0.5  # seconds
LEAST_TURNS = 3
COPIES = 2.5  # of the (N, C, K) tensor that the straightforward step holds at once


def say(message: str) -> None:
    print_line(f"{time.monotonic() - BEGAN:5.0f} s  {message}", sys.stderr)


# ------------------------------------------------------------------------------------ contenders


@dataclass
class Contender:
    """A training step: `learn` from the batch that `draw` makes. It takes `flops` in numbers of
    `format`. `check` raises if a step was skipped; `close` ends the processes of `draw`."""

    draw: Callable[[], Any]
    learn: Callable[[Any], object]
    flops: float
    format: str
    check: Call = lambda: None
    close: Call = lambda: None

    def step(self) -> None:
        self.learn(self.draw())


@dataclass
class Bench:
    """The flags; made-up images (n, 32, 32, 3), uint8 on the host; FLOP/s of the machine by number
    format; and a network for each contender and number of classes, so that it is compiled once."""

    b: Namespace
    device: torch.device
    images: Tensor = field(init=False)
    rates: dict[str, float] = field(default_factory=dict)
    project: dict[int, models.EnergyClassifier] = field(default_factory=dict)
    plain: dict[int, straightforward.Classifier] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(self.b.seed)
        self.images = torch.randint(256, (IMAGES, 32, 32, 3), dtype=torch.uint8)

    def labels(self, classes: int) -> Tensor:
        return torch.arange(len(self.images)) % classes

    def dataset(self, classes: int, sigma: float) -> straightforward.Images:
        transform = straightforward.pipeline(sigma=sigma, flip=True)
        return straightforward.Images(self.images.numpy(), self.labels(classes).numpy(), transform)

    def forward_flops(self, classes: int) -> int:
        """Count the FLOP of a forward pass of one image."""
        size = {"depth": self.b.depth, "width": self.b.width}
        return models.forward_flops(models.build(**size, num_classes=classes))

    def room_for(self, s: Namespace, classes: int) -> bool:
        """Return whether there is memory for the straightforward queue term."""
        needed = COPIES * 4 * s.batch_size * classes * s.contrast_k if s.pxycontrast > 0 else 0
        if needed <= free_memory(self.device):
            return True
        say(f"  the straightforward step needs {needed / 2**30:.1f} GiB, which are not free")
        return False


@contextmanager
def contenders(
    bench: Bench, terms: str, classes: int, *, both: bool = False
) -> Iterator[tuple[Namespace, dict[str, Contender]]]:
    """Yield the settings of the step, and by name the contenders that there is memory for. `both`:
    on a GPU the straightforward one in TF32, too."""
    s = step_settings(bench.b, terms, classes)
    found = {PROJECT: project(bench, s, classes)}
    if bench.b.straightforward and terms != STABLE and bench.room_for(s, classes):
        found[STRAIGHT] = plain(bench, s, classes)
        if both and bench.device.type == "cuda":
            found[STRAIGHT_TF32] = plain(bench, s, classes, in_tf32=True)
    try:
        yield s, found
    finally:
        for contender in found.values():
            contender.close()
        found.clear()
        gc.collect()


def project(bench: Bench, s: Namespace, classes: int) -> Contender:
    """Return train_wrn.py's step, with its guard and with batches made on the device."""
    device = bench.device
    if classes not in bench.project:
        bench.project[classes] = build_model(s, classes, device)
    model = bench.project[classes].train()
    split, guard = data.Split(bench.images, bench.labels(classes)), Guard(device)
    run, batches = run_on(split, s, model, classes, flips=True)
    fit_start(run, batches)

    def learn(batch: tuple[Tensor, Tensor, Tensor | None]) -> None:
        train_wrn.train_step(run, guard, batch, run.progress.step)
        run.progress.step += 1

    return Contender(
        draw=lambda: batches(run.progress.step),
        learn=learn,
        flops=step_flops(bench.forward_flops(classes), s),
        format="bf16" if model.amp else "TF32" if device.type == "cuda" else "float32",
        check=lambda: guard.raise_if_diverged("nothing is saved here"),
    )


def plain(bench: Bench, s: Namespace, classes: int, *, in_tf32: bool = False) -> Contender:
    """Return the straightforward step, with batches made by PIL: with JEM two, the second one for
    log q(x)."""
    device = bench.device
    if classes not in bench.plain:
        model = straightforward.Classifier(s.depth, s.width, classes)
        bench.plain[classes] = model.to(device)
    state = straightforward.build(s, bench.plain[classes], classes, device)
    dataset, streams = bench.dataset(classes, s.sigma), 2 if s.pxsgld > 0 else 1
    loaders = [
        straightforward.endless(dataset, s.batch_size, bench.b.workers) for _ in range(streams)
    ]

    def learn(batches: list[list[Tensor]]) -> None:
        (images, labels), *second = batches
        with tf32(in_tf32), malloc_as_found(device):
            straightforward.train_step(state, images, labels, second[0][0] if second else None)

    def close() -> None:
        """Left to the garbage collector, the loaders' queues would go first, and each process would
        be waited for in vain, 5 seconds long."""
        for loader in loaders:
            loader.close()

    return Contender(
        draw=lambda: [next(loader) for loader in loaders],
        learn=learn,
        flops=straightforward.step_flops(bench.forward_flops(classes), s),
        format="TF32" if in_tf32 else "float32",
        close=close,
    )


# ------------------------------------------------------------------------------- time and memory


def clock() -> float:
    """time.perf_counter() once the GPU has done all that was asked of it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def alternate(
    calls: Mapping[str, Call], *, turns: int, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Time calls turn by turn, in an order that is reversed each time, so that whatever else the
    machine does meets all of them alike; return the seconds a call of each turn. Each is called
    once before, for what only a first call does: the optimiser's state, compilation, the sums.

    A turn is one call, or as many as take 50 ms, after one that is not timed: caches and allocator
    are as the others left them. What takes half a second or more would not notice, and its first
    call counts. After `seconds` no further turn begins, if there were 3.
    """
    began, names = time.monotonic(), list(calls)
    found: dict[str, list[float]] = {name: [] for name in names}
    for call in calls.values():
        call()
    for turn in range(turns):
        if turn >= LEAST_TURNS and time.monotonic() - began > seconds:
            break
        for name in names if turn % 2 == 0 else reversed(names):
            spent, number = timeit.timeit(calls[name], timer=clock, number=1), 1
            if spent < WARMED_UP:
                number = math.ceil(SHORTEST_TURN / spent)
                spent = timeit.timeit(calls[name], timer=clock, number=number)
            found[name].append(spent / number)
    return found


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Compute float32 products and convolutions on a GPU in TF32, or not."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def malloc_as_found(device: torch.device) -> Iterator[None]:
    """Give a CPU's memory allocator the largest thresholds that glibc comes to by itself: this
    project's programs set others."""
    if device.type == "cpu":
        set_malloc(trim_threshold=2**26, mmap_threshold=2**25)
    try:
        yield
    finally:
        if device.type == "cpu":
            keep_freed_memory()


def extra_memory(call: Call, device: torch.device) -> int | None:
    """Return the bytes that the call needs at most, above those allocated before it: of the GPU's
    allocations, or of this process' resident memory on Linux. None where the system cannot tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what glibc keeps for later would hide what is needed
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak
        resident = told("/proc/self/status", "VmRSS")
        call()
        return max(0, told("/proc/self/status", "VmHWM") - resident)
    except OSError:
        return None


def free_memory(device: torch.device) -> float:
    """Return the free bytes; infinity where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return told("/proc/meminfo", "MemAvailable")
    except OSError:
        return math.inf


def told(path: str, name: str) -> int:
    """Return the bytes of a line of Linux's file `path`. Raises OSError if there is none."""
    match = re.search(rf"^{name}: +(\d+) kB", Path(path).read_text(encoding="ascii"), re.M)
    if match is None:
        raise OSError(f"{path} has no {name}")
    return int(match[1]) * 1024


def peaks(bench: Bench) -> dict[str, float]:
    """Return by number format the FLOP/s of the best of 8 products of two large matrices. The
    steps' rates are given as shares of them."""
    size, gpu = bench.b.matrix, bench.device.type == "cuda"
    say(f"peak: products of {size} x {size} matrices")

    def rate(dtype: torch.dtype, in_tf32: bool = False) -> float:
        a, b = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
        with tf32(in_tf32):
            return 2 * size**3 / min(alternate({"": lambda: a @ b}, turns=8)[""])

    found = {"float32": rate(torch.float32)}
    if gpu:
        found["TF32"] = rate(torch.float32, in_tf32=True)
    if gpu or bench.b.amp == "bf16":
        found["bf16"] = rate(torch.bfloat16)
    return found


# -------------------------------------------------------------------------------------- sections


def steps(bench: Bench) -> list[Row]:
    """Return the rows of each step: HDGE with each number of classes, all others with the first."""
    b, rows = bench.b, []
    for terms in b.terms:
        for classes in b.classes[: None if terms == "HDGE" else 1]:
            say(f"step: {terms}, {classes} classes")
            rows += step_rows(bench, terms, classes, both=True)
    return rows


def step_rows(bench: Bench, terms: str, classes: int, *, both: bool = False) -> list[Row]:
    """Return a row a contender: seconds, images/s, FLOP, share of the peak, memory; of what is
    compiled also the seconds of the first step. `both`: as of `contenders`."""
    rows: list[Row] = []
    with contenders(bench, terms, classes, both=both) as (s, found):
        calls = {label: contender.step for label, contender in found.items()}
        named: Row = {"terms": terms, "classes": classes}
        if bench.b.compile == "on":
            started = clock()
            calls[PROJECT]()
            named["first"] = clock() - started
        times = alternate(calls, turns=bench.b.turns, seconds=bench.b.seconds)
        for label, contender in found.items():
            memory = extra_memory(contender.step, bench.device)  # of one more step
            contender.check()
            low, median, high = np.percentile(times[label], (25, 50, 75)).tolist()
            rate = contender.flops / median
            rows.append({
                **named, "contender": label,
                "seconds": median, "low": low, "high": high, "turns": len(times[label]),
                "images_per_s": s.batch_size / median,
                "ratio": median / statistics.median(times[PROJECT]),
                "flop": contender.flops, "format": contender.format,
                "share": rate / bench.rates[contender.format], "memory": memory,
            })  # fmt: skip
    return rows
