"""Where the time of a step goes, by kind of operation, as torch.profiler sees it on a CPU.

    python -m benchmarks.shares --preset cpu --workers 0

Prints a Markdown table; the flags are scripts/bench.py's. Convolutions are what neither step can
do without: their share says how much faster a step could become at most.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import data
from benchmarks import flags
from benchmarks.contenders import Networks, contenders
from benchmarks.measure import project_term
from runs.screen import print_line
from training.machine import choose_device

# Of an operation's name, the first that it contains; an operation's time is without its parts'.
KINDS = {
    "convolution_backward": "convolutions, backward",
    "convolution": "convolutions, forward",
    "leaky_relu": "LeakyReLU, both ways",
    "normal_": "normal random numbers",
    "copy_": "copies and changes of layout",
    "index": "gathers and scatters",
}
REST = "everything else"
SMALL = 200  # calls of what takes a millisecond, for one profile


Shares = tuple[float, int, dict[str, float]]  # milliseconds, operations, kind -> share of the time


class Counter(TorchDispatchMode):
    """Counts the operations that reach a kernel, views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def shares(call: Callable[[], object], calls: int = 1) -> Shares:
    """Of a call that was warmed up; its time is the mean of `calls`."""
    with Counter() as counter:
        call()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(calls):
            call()
    kinds = {kind: 0.0 for kind in [*KINDS.values(), REST]}
    for event in found.key_averages():
        kind = next((KINDS[part] for part in KINDS if part in event.key), REST)
        kinds[kind] += event.self_cpu_time_total
    total = sum(kinds.values())
    shared = {kind: spent / total for kind, spent in kinds.items()}
    return total / 1000 / calls, counter.operations, shared


def measured(b: Namespace) -> dict[str, Shares]:
    device = choose_device("cpu")
    networks, found = Networks.of(b, device), {}
    for terms in b.terms:
        s = flags.step_settings(b, terms, b.classes[0])
        for name, contender in contenders(networks, s, b.classes[0]).items():
            contender.step()
            found[f"{terms}, {name}"] = shares(contender.step)
            contender.close()
    index = torch.arange(b.batch_size)
    small: dict[str, Callable[[], object]] = {
        "augmented images": lambda: data.augment(networks.images, index, sigma=0.03, flip=True)
    }
    for classes in b.classes:
        s = flags.step_settings(b, "HDGE", classes)
        logits = torch.randn(b.batch_size, classes, requires_grad=True)
        small[f"queue term, {classes} classes"] = project_term(s, logits, index % classes)
    for name, call in small.items():
        call()
        found[name] = shares(call, SMALL)
    return found


def markdown(found: dict[str, Shares]) -> str:
    kinds = [*KINDS.values(), REST]
    lines = [
        f"| | ms | operations | {' | '.join(kinds)} |",
        f"| --- |{' ---: |' * (len(kinds) + 2)}",
    ]
    for name, (ms, operations, shared) in found.items():
        cells = " | ".join(f"{100 * shared[kind]:.1f}%" for kind in kinds)
        took = f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"
        lines.append(f"| {name} | {took} | {operations:,} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    b = flags.parse(sys.argv[1:])
    found = measured(flags.complete(b, "cpu" if b.preset == "auto" else b.preset))
    print_line(markdown(found), sys.stdout)
