"""How fast a training step is, beside the step written the straightforward way.

    python scripts/bench.py --preset cpu --output benchmarks/cpu

Both are timed in one process, in turns. Writes bench.json and bench.md.

    python scripts/bench.py collect OUT    # of scripts/gpu.sh: benchmarks/gpu/ and README's table
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from benchmarks import flags

if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    COMMAND_LINE = flags.parse(sys.argv[1:])

import os
import time
from argparse import Namespace
from functools import partial
from typing import Any

import torch

from benchmarks import measure, report
from runs.cli import UsageError
from runs.endings import exit_code
from runs.files import write_json, write_text
from runs.screen import print_line
from training.machine import choose_device, environment

PROGRAM = "bench.py"


def preset_for(name: str, device: torch.device) -> str:
    """Return the preset, `auto` resolved. Raises UsageError for the GPU's preset on a CPU."""
    if name == "gpu" and device.type != "cuda":
        raise UsageError(f"--preset gpu on {device}: use --preset cpu, or --device cuda")
    return name if name != "auto" else "gpu" if device.type == "cuda" else "cpu"


def work(b: Namespace) -> int:
    if b.collect:
        print_line(str(report.collect(Path(b.collect[1]), b.output)), sys.stdout)
        return 0
    device = choose_device(b.device)
    b = flags.complete(b, preset_for(b.preset, device))
    if b.compile != "off":  # one network meets several batch sizes, and is compiled for each
        torch._dynamo.config.recompile_limit = 64
    b.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "settings": {**vars(b), "output": str(b.output), "device": str(device)},
        "environment": environment(device),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    began, bench = time.monotonic(), measure.Bench(b, device)
    found["peaks"] = bench.rates = measure.peaks(bench)
    found["steps"] = measure.steps(bench)
    found["seconds"] = time.monotonic() - began
    page = report.markdown(found)
    write_json(b.output / "bench.json", found, indent=1)
    write_text(b.output / "bench.md", page)
    print_line(page, sys.stdout)
    print_line(f"{b.output / 'bench.md'} and bench.json", sys.stdout)
    return 0


def main(b: Namespace) -> int:
    """Return the exit code; a mistake is one line on stderr and code 2."""
    interrupted = f"{PROGRAM}: interrupted: nothing was written"
    lower = "--batch_size or --contrast_k"
    return exit_code(PROGRAM, partial(work, b), interrupted=interrupted, lower=lower)


if __name__ == "__main__":
    sys.exit(main(COMMAND_LINE))
