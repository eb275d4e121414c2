"""The sections of the benchmark; each returns rows of plain numbers: seconds, bytes, FLOP."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch

import data
import losses
from benchmarks import pil_images, plain_network, straightforward
from benchmarks.contenders import PROJECT, STRAIGHT, Contender, Networks, contenders
from benchmarks.flags import step_settings
from benchmarks.timing import (
    alternate,
    clock,
    extra_memory,
    free_memory,
    malloc_as_found,
    matrix_rate,
    tf32,
    watched,
)
from runs.screen import print_line

Row = dict[str, Any]
BEGAN = time.monotonic()
PARTS = (
    *("data", "forward passes", "sampling", "contrastive term", "backward pass", "optimiser"),
    "rest",
)
PART_STEPS = 3  # whose median counts, so that the first one warms up
GROWTH_TURNS = 3
GROWS = {"contrast_k": "HDGE", "n_steps": "JEM", "batch_size": "HDGE"}
COPIES = 2.5  # of the (N, C, K) tensor that the straightforward step holds at once


def say(message: str) -> None:
    print_line(f"{time.monotonic() - BEGAN:5.0f} s  {message}", sys.stderr)


def peaks(b: Namespace, device: torch.device) -> dict[str, float]:
    """Number format -> FLOP/s of a large matrix product: what the steps' rates are shares of."""
    say(f"peak: products of {b.matrix} x {b.matrix} matrices")
    found = {}
    with tf32(False):
        found["float32"] = matrix_rate(b.matrix, torch.float32, device)
    if device.type == "cuda":
        with tf32(True):
            found["TF32"] = matrix_rate(b.matrix, torch.float32, device)
    if device.type == "cuda" or b.amp == "bf16":
        found["bf16"] = matrix_rate(b.matrix, torch.bfloat16, device)
    return found


def fitting(
    networks: Networks, s: Namespace, classes: int, *, both: bool = False
) -> dict[str, Contender]:
    """The contenders that there is memory for."""
    found = contenders(networks, s, classes, both=both)
    needed = COPIES * 4 * s.batch_size * classes * s.contrast_k if s.pxycontrast > 0 else 0
    if needed > free_memory(networks.device):
        say(f"  the straightforward step needs {needed / 2**30:.1f} GiB, which are not free")
        return {PROJECT: found[PROJECT]}
    return found


def close(found: dict[str, Contender]) -> None:
    for contender in found.values():
        contender.close()
    gc.collect()  # the cycles of the contenders before these


def steps(networks: Networks, rates: dict[str, float]) -> list[Row]:
    """A row a step and contender: seconds, images/s, FLOP, share of the peak, memory."""
    b, device, rows = networks.b, networks.device, []
    asked = []
    for terms in b.terms:
        asked += [(terms, classes) for classes in b.classes[: None if terms == "HDGE" else 1]]
    for terms, classes in asked:
        say(f"step: {terms}, {classes} classes")
        s = step_settings(b, terms, classes)
        found = fitting(networks, s, classes, both=True)
        calls: dict[str, Callable[[], object]] = {n: c.step for n, c in found.items()}
        for call in calls.values():
            call()  # what only a first step does: the optimiser's state, compilation, the sums
        memory = {name: extra_memory(call, device) for name, call in calls.items()}
        times = alternate(calls, device, turns=b.turns, seconds=b.seconds)
        for name, contender in found.items():
            contender.check()
            spent = times[name]
            rate = contender.flops / spent.median
            rows.append(
                {
                    **{"terms": terms, "classes": classes, "contender": name},
                    **{"seconds": spent.median, "low": spent.low, "high": spent.high},
                    **{"turns": spent.turns, "images_per_s": s.batch_size / spent.median},
                    **{"ratio": spent.median / times[PROJECT].median, "flop": contender.flops},
                    **{"format": contender.format, "share": rate / rates[contender.format]},
                    "memory": memory[name],
                }
            )
        close(found)
        del found, calls
    return rows


def parts(networks: Networks, rates: dict[str, float]) -> list[Row]:
    """Seconds of each part of a step, and the share of the peak while sampling. On a GPU the host
    waits at both ends of a part, so that all of them together take longer than the step does."""
    b, device, classes, rows = networks.b, networks.device, networks.b.classes[0], []
    for terms in b.terms:
        say(f"parts of a step: {terms}")
        s = step_settings(b, terms, classes)
        sampled = 2 * s.n_steps * s.sgld_batch_size * networks.forward_flops(classes)
        found = fitting(networks, s, classes)
        for name, contender in found.items():
            seen: dict[str, list[float]] = {part: [] for part in PARTS}
            for _ in range(PART_STEPS):
                spent: dict[str, float] = {}
                started = clock(device)
                with watched(spent, contender.parts, device):
                    contender.step()
                spent["rest"] = clock(device) - started - sum(spent.values())
                for part in PARTS:
                    seen[part].append(spent.get(part, 0.0))
            medians = {part: statistics.median(values) for part, values in seen.items()}
            share = None
            if s.pxsgld > 0:
                share = sampled / medians["sampling"] / rates[contender.format]
            row = {"terms": terms, "classes": classes, "contender": name, "parts": medians}
            rows.append({**row, "sampling_share": share})
        close(found)
        del found
    return rows


def growth(networks: Networks) -> list[Row]:
    """Seconds of a step as K, the SGLD steps or the batch grow; the SGLD curve has a batch of its
    own, whose chains are as many."""
    b, device, rows = networks.b, networks.device, []
    classes = b.classes[0]
    for by, values in b.growth.items():
        terms = GROWS[by]
        for value in values:
            say(f"growth: {terms}, --{by} {value}")
            sizes = {"batch_size": b.sgld_growth_batch} if by == "n_steps" else {}
            s = step_settings(b, terms, classes, **{**sizes, by: value})
            found = fitting(networks, s, classes)
            calls: dict[str, Callable[[], object]] = {n: c.step for n, c in found.items()}
            for call in calls.values():
                call()
            times = alternate(calls, device, turns=GROWTH_TURNS, seconds=b.seconds)
            row = {"by": by, "value": value, "terms": terms, "batch_size": s.batch_size}
            rows.append({**row, **seconds({name: time.median for name, time in times.items()})})
            close(found)
            del found, calls
    return rows


def seconds(medians: dict[str, float]) -> Row:
    """Both contenders' seconds and their ratio; None where only the project's was timed."""
    ours, theirs = medians[PROJECT], medians.get(STRAIGHT)
    ratio = None if theirs is None else theirs / ours
    return {PROJECT: ours, STRAIGHT: theirs, "ratio": ratio}


def queue_term(b: Namespace, device: torch.device) -> list[Row]:
    """The contrastive term alone: forward, backward and enqueue, from random logits."""
    rows = []
    for classes in b.classes:
        say(f"queue term: {classes} classes")
        s = step_settings(b, "HDGE", classes)
        logits = torch.randn(s.batch_size, classes, device=device, requires_grad=True)
        labels = torch.arange(s.batch_size, device=device) % classes
        calls = {PROJECT: project_term(s, logits, labels)}
        needed = COPIES * 4 * s.contrast_k * logits.numel()
        if b.straightforward and needed < free_memory(device):
            calls[STRAIGHT] = plain_term(s, logits, labels)
        for call in calls.values():
            call()
        memory = {name: extra_memory(call, device) for name, call in calls.items()}
        times = alternate(calls, device, turns=b.turns, seconds=b.seconds)
        row = {"classes": classes, "contrast_k": s.contrast_k, "batch_size": s.batch_size}
        medians = {name: time.median for name, time in times.items()}
        rows.append({**row, **seconds(medians), "memory": memory})
    return rows


def project_term(s: Namespace, logits: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    objective = losses.build_objective(s, logits.shape[1]).to(logits.device)
    term, queue = objective.terms["pxycontrast"], objective.memories["queue"]
    nothing = torch.empty(0)
    step = losses.Step(None, nothing, labels, nothing, logits)  # type: ignore[arg-type]
    skip = torch.zeros((), dtype=torch.bool, device=logits.device)

    def call() -> None:
        loss, _ = term(step)
        torch.autograd.grad(loss, logits)
        queue.commit(step, skip)  # type: ignore[operator]

    return call


def plain_term(s: Namespace, logits: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    classes = logits.shape[1]
    smallest = plain_network.Classifier(10, 1, classes)
    state = straightforward.build(s, smallest, classes, logits.device)
    targets = straightforward.target_rows(labels, classes, s.smoothing, logits.dtype)

    def call() -> None:
        with malloc_as_found(logits.device):
            loss = straightforward.contrastive(state, logits, targets)
            torch.autograd.grad(loss, logits)
            straightforward.enqueue(state, logits)

    return call


def images(networks: Networks) -> list[Row]:
    """A batch of augmented images, on one core where they are made on the CPU."""
    b, device = networks.b, networks.device
    say("a batch of augmented images")
    held, index = networks.images.to(device), torch.arange(b.batch_size, device=device)
    transform = pil_images.pipeline(sigma=0.03, flip=True)
    dataset = pil_images.Images(networks.images.numpy(), networks.labels(10).numpy(), transform)
    calls: dict[str, Callable[[], object]] = {
        PROJECT: lambda: data.augment(held, index, sigma=0.03, flip=True)
    }
    if b.straightforward:
        calls[STRAIGHT] = lambda: torch.stack([dataset[i][0] for i in range(b.batch_size)])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for call in calls.values():
            call()
        times = alternate(calls, device, turns=max(b.turns, 5), seconds=b.seconds)
    finally:
        torch.set_num_threads(threads)
    medians = {name: time.median for name, time in times.items()}
    return [{"batch_size": b.batch_size, **seconds(medians)}]
