"""Time a training step of this project beside the same step written the straightforward way.

    python scripts/bench.py --preset cpu --output benchmarks/cpu

Both steps are timed in one process, in turns. The results are bench.json and bench.md.

    python scripts/bench.py collect OUT    # gpu.sh's files -> benchmarks/gpu/ and README's table
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from benchmarks import flags

if __name__ == "__main__":  # before the slow import of torch, which --help and mistakes do not need
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
    """Return the preset's name, with `auto` resolved. Raises UsageError for `gpu` on a CPU."""
    if name == "gpu" and device.type != "cuda":
        raise UsageError(f"--preset gpu on {device}: use --preset cpu, or --device cuda")
    return name if name != "auto" else "gpu" if device.type == "cuda" else "cpu"


def work(settings: Namespace) -> int:
    if settings.collect:
        print_line(str(report.collect(Path(settings.collect[1]), settings.output)), sys.stdout)
        return 0
    device = choose_device(settings.device)
    settings = flags.complete(settings, preset_for(settings.preset, device))
    settings.output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "settings": {**vars(settings), "output": str(settings.output), "device": str(device)},
        "environment": environment(device),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    began, bench = time.monotonic(), measure.Bench(settings, device)
    record["peaks"] = bench.rates = measure.peaks(bench)
    record["steps"] = measure.steps(bench)
    record["seconds"] = time.monotonic() - began
    page = report.markdown(record)
    write_json(settings.output / "bench.json", record, indent=1)
    write_text(settings.output / "bench.md", page)
    print_line(page, sys.stdout)
    print_line(f"{settings.output / 'bench.md'} and bench.json", sys.stdout)
    return 0


def main(settings: Namespace) -> int:
    """Return the exit code; a mistake is one line on stderr and code 2."""
    interrupted = f"{PROGRAM}: interrupted: nothing was written"
    lower = "--batch_size or --contrast_k"
    return exit_code(PROGRAM, partial(work, settings), interrupted=interrupted, lower=lower)


if __name__ == "__main__":
    sys.exit(main(COMMAND_LINE))
