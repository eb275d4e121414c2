"""Measure training steps: rows of plain numbers in seconds, bytes and FLOP."""

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
from runs.cli import UsageError
from runs.screen import print_line
from training.build import build_model, fit_start
from training.cost import run_on, step_flops
from training.divergence import Guard
from training.machine import keep_freed_memory, set_malloc

Row = dict[str, Any]
Call = Callable[[], object]

BEGAN = time.monotonic()
IMAGES = 10_000  # made-up images from which the batches are drawn
SHORTEST_TURN, WARMED_UP = 0.05, 0.5  # seconds; see `alternate`
LEAST_TURNS = 3
COPIES = 2.5  # copies of the (N, C, K) tensor that the straightforward step holds at once


def log(message: str) -> None:
    print_line(f"{time.monotonic() - BEGAN:5.0f} s  {message}", sys.stderr)


# ------------------------------------------------------------------------------------ contenders


@dataclass
class Contender:
    """A training step: `learn` takes the batch that `draw` makes. It costs `flops` FLOP in number
    format `format`. `check` raises if a step was skipped; `close` ends the processes of `draw`."""

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
    """The flags, images and networks of a benchmark. A network serves all steps with its number of
    classes, so that it is compiled once."""

    args: Namespace
    device: torch.device
    images: Tensor = field(init=False)  # made-up, (IMAGES, 32, 32, 3) uint8, on the host
    rates: dict[str, float] = field(default_factory=dict)  # `peaks`, for the rows' shares
    project: dict[int, models.EnergyClassifier] = field(default_factory=dict)  # by classes
    plain: dict[int, straightforward.Classifier] = field(default_factory=dict)  # by classes

    def __post_init__(self) -> None:
        torch.manual_seed(self.args.seed)
        self.images = torch.randint(256, (IMAGES, 32, 32, 3), dtype=torch.uint8)

    def labels(self, classes: int) -> Tensor:
        return torch.arange(len(self.images)) % classes

    def dataset(self, classes: int, sigma: float) -> straightforward.Images:
        transform = straightforward.pipeline(sigma=sigma, flip=True)
        return straightforward.Images(self.images.numpy(), self.labels(classes).numpy(), transform)

    def forward_flops(self, classes: int) -> int:
        """Count the FLOP of a forward pass of one image."""
        size = {"depth": self.args.depth, "width": self.args.width}
        return models.forward_flops(models.build(**size, num_classes=classes))

    def room_for(self, s: Namespace, classes: int) -> bool:
        """Return whether there is memory for the straightforward queue term."""
        needed = COPIES * 4 * s.batch_size * classes * s.contrast_k if s.pxycontrast > 0 else 0
        if needed <= free_memory(self.device):
            return True
        log(f"  the straightforward step needs {needed / 2**30:.1f} GiB, which are not free")
        return False


@contextmanager
def contenders(
    bench: Bench, terms: str, classes: int, *, with_tf32: bool = False
) -> Iterator[tuple[Namespace, dict[str, Contender]]]:
    """Yield the settings of the step, and by label the contenders that fit in memory. `with_tf32`:
    on a GPU also the straightforward step in TF32."""
    s = step_settings(bench.args, terms, classes)
    by_label = {PROJECT: project(bench, s, classes)}
    if bench.args.straightforward and terms != STABLE and bench.room_for(s, classes):
        by_label[STRAIGHT] = plain(bench, s, classes)
        if with_tf32 and bench.device.type == "cuda":
            by_label[STRAIGHT_TF32] = plain(bench, s, classes, in_tf32=True)
    try:
        yield s, by_label
    finally:
        for contender in by_label.values():
            contender.close()
        by_label.clear()
        gc.collect()


def project(bench: Bench, s: Namespace, classes: int) -> Contender:
    """Return train_wrn.py's step, with its divergence guard and with batches made on the device."""
    device = bench.device
    if classes not in bench.project:
        bench.project[classes] = build_network(s, classes, device)
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


def build_network(s: Namespace, classes: int, device: torch.device) -> models.EnergyClassifier:
    """Build the network of the settings. Raises UsageError where --compile on compiles nothing:
    the eager network's row would be called compiled."""
    model = build_model(s, classes, device)
    if s.compile == "on" and model.f._compiled_call_impl is None:
        raise UsageError(
            "--compile on: nothing was compiled: install what is missing, or leave it out"
        )
    return model


def plain(bench: Bench, s: Namespace, classes: int, *, in_tf32: bool = False) -> Contender:
    """Return the straightforward step on batches made by PIL. With JEM a step draws two batches,
    the second for log q(x)."""
    device = bench.device
    if classes not in bench.plain:
        model = straightforward.Classifier(s.depth, s.width, classes)
        bench.plain[classes] = model.to(device)
    state = straightforward.build(s, bench.plain[classes], classes, device)
    dataset, streams = bench.dataset(classes, s.sigma), 2 if s.pxsgld > 0 else 1
    loaders = [
        straightforward.endless(dataset, s.batch_size, bench.args.workers) for _ in range(streams)
    ]

    def learn(batches: list[list[Tensor]]) -> None:
        (images, labels), *second = batches
        with tf32(in_tf32), default_malloc(device):
            straightforward.train_step(state, images, labels, second[0][0] if second else None)

    def close() -> None:
        """End the worker processes. The garbage collector would delete a loader's queues first, and
        then wait 5 seconds in vain for each process."""
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
    """Wait for the GPU to finish all queued work, and return time.perf_counter()."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def alternate(
    calls: Mapping[str, Call], *, turns: int, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Time the functions `calls` in turns; return by name the seconds per call of every turn.

    The order is reversed every turn, so that other load on the machine affects all alike. An
    untimed call of each comes first: it creates the optimiser's state, compiles, sums the queue.

    A turn times one call of each function. If it takes less than WARMED_UP seconds, the caches and
    the allocator, as other functions left them, may have slowed it: the turn then times as many
    further calls as take SHORTEST_TURN. After `seconds` no turn begins but the first LEAST_TURNS.
    """
    began, names = time.monotonic(), list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
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
            times[name].append(spent / number)
    return times


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Compute float32 matrix products and convolutions on a GPU in TF32, or in full precision."""
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def default_malloc(device: torch.device) -> Iterator[None]:
    """Set glibc's malloc thresholds to the largest values that glibc chooses by itself; this
    project's programs set larger values."""
    if device.type == "cpu":
        set_malloc(trim_threshold=2**26, mmap_threshold=2**25)
    try:
        yield
    finally:
        if device.type == "cpu":
            keep_freed_memory()


def extra_memory(call: Call, device: torch.device) -> int | None:
    """Return the peak memory of `call` in bytes, above the memory in use before it: of the GPU's
    allocations, or of this process' resident memory on Linux. Return None on other systems."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory cached by glibc would hide the call's own use
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset the peak, VmHWM
        resident = proc_bytes("/proc/self/status", "VmRSS")
        call()
        return max(0, proc_bytes("/proc/self/status", "VmHWM") - resident)
    except OSError:
        return None


def free_memory(device: torch.device) -> float:
    """Return the free memory in bytes; infinity on a system without /proc/meminfo."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return proc_bytes("/proc/meminfo", "MemAvailable")
    except OSError:
        return math.inf


def proc_bytes(path: str, name: str) -> int:
    """Return the bytes in the line `name` of a file of Linux's /proc. Raises OSError without it."""
    match = re.search(rf"^{name}: +(\d+) kB", Path(path).read_text(encoding="ascii"), re.M)
    if match is None:
        raise OSError(f"{path} has no {name}")
    return int(match[1]) * 1024


def peaks(bench: Bench) -> dict[str, float]:
    """Return the peak FLOP/s by number format: the best of 8 products of two large matrices."""
    size, gpu = bench.args.matrix, bench.device.type == "cuda"
    log(f"peak: products of {size} x {size} matrices")

    def rate(dtype: torch.dtype, in_tf32: bool = False) -> float:
        a, b = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
        with tf32(in_tf32):
            return 2 * size**3 / min(alternate({"": lambda: a @ b}, turns=8)[""])

    rates = {"float32": rate(torch.float32)}
    if gpu:
        rates["TF32"] = rate(torch.float32, in_tf32=True)
    if gpu or bench.args.amp == "bf16":
        rates["bf16"] = rate(torch.bfloat16)
    return rates


# -------------------------------------------------------------------------------------- sections


def steps(bench: Bench) -> list[Row]:
    """Return the rows of all terms: HDGE with each number of classes, the rest with the first."""
    args, rows = bench.args, []
    for terms in args.terms:
        for classes in args.classes[: None if terms == "HDGE" else 1]:
            log(f"step: {terms}, {classes} classes")
            rows += step_rows(bench, terms, classes, with_tf32=True)
    return rows


def step_rows(bench: Bench, terms: str, classes: int, *, with_tf32: bool = False) -> list[Row]:
    """Return a row per contender: seconds, images/s, FLOP, share of the peak, memory; with
    --compile on also the seconds of the first step. `with_tf32`: as in `contenders`."""
    rows: list[Row] = []
    with contenders(bench, terms, classes, with_tf32=with_tf32) as (s, by_label):
        calls = {label: contender.step for label, contender in by_label.items()}
        head: Row = {"terms": terms, "classes": classes}
        if bench.args.compile == "on":
            started = clock()
            calls[PROJECT]()
            head["first"] = clock() - started
        times = alternate(calls, turns=bench.args.turns, seconds=bench.args.seconds)
        for label, contender in by_label.items():
            memory = extra_memory(contender.step, bench.device)  # of one more step
            contender.check()
            low, median, high = np.percentile(times[label], (25, 50, 75)).tolist()
            rate = contender.flops / median
            rows.append({
                **head, "contender": label,
                "seconds": median, "low": low, "high": high, "turns": len(times[label]),
                "images_per_s": s.batch_size / median,
                "ratio": median / statistics.median(times[PROJECT]),
                "flop": contender.flops, "format": contender.format,
                "share": rate / bench.rates[contender.format], "memory": memory,
            })  # fmt: skip
    return rows
