"""Two processes beside one with the same batch, all loss terms on: losses and time a step.

    HDGE_DATA_ROOT=... python -m benchmarks.processes --output benchmarks/processes

Trains on real CIFAR-10, on the CPU, while the machine does nothing else. The processes have the
same batches in the same order, and crops, noise and chains of their own: what their curves differ
by is to be held against what two seeds of one process differ by.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runs.style import COLOURS, STYLE
from runs.terms import TERMS

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "train_wrn.py --dataset cifar10 --device cpu --depth 10 --width 1 --batch_size 32 "
    "--sgld_batch_size 32 --n_steps 5 --buffer_size 2000 --contrast_k 8192 --lr 3e-4 "
    "--warmup_iters 50 --sgld_l2 .1 --clip_grad 5 --print_every 10 --n_epochs 1 --max_steps 200 "
    + " ".join(f"--{term} 1" for term in TERMS)
)
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node 2"
# name: (seed, processes, threads of each)
RUNS = {
    "one process": (1, 1, 1),
    "one process, both cores": (1, 1, 2),
    "two processes": (1, 2, 1),
    "one process, another seed": (2, 1, 1),
}
REPORT = re.compile(r"epoch \d+ step (\d+) (.*)")


def command(seed: int, processes: int) -> str:
    start = f"{TORCHRUN} " if processes > 1 else ""
    return f"{start}{FLAGS} --seed {seed}"


def run(name: str, folder: Path) -> dict[str, Any]:
    """One run in a folder of its own: the losses of its reports, and milliseconds a step."""
    seed, processes, threads = RUNS[name]
    words = [*command(seed, processes).split(), "--log_dir", str(folder), "--id", name]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=True)
    curve = []
    for line in (folder / name / "log.txt").read_text(encoding="utf-8").splitlines():
        if report := REPORT.match(line):
            values = report[2].split()
            found = {n: float(v) for n, v in zip(values[::2], values[1::2], strict=True)}
            curve.append({"step": int(report[1]), **found})
    with open(folder / name / "progress.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    variant = json.loads((folder / name / "variant.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "command": f"OMP_NUM_THREADS={threads} python {command(seed, processes)}",
        "ms_a_step": 1000 * variant["batch_size"] / float(row["images_per_s"]),
        "test_acc": float(row["test_acc"]),
        "curve": curve,
        "environment": variant["environment"],
    }


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Mean absolute difference of the reports' losses."""
    pairs = list(zip(one["curve"], other["curve"], strict=True))
    return sum(abs(a["loss"] - b["loss"]) for a, b in pairs) / len(pairs)


def page(runs: Sequence[dict[str, Any]]) -> str:
    first, place = runs[0], runs[0]["environment"]
    lines = [
        "# Two processes beside one",
        "",
        "    python -m benchmarks.processes --output benchmarks/processes",
        "",
        f"WRN-10-1 on CIFAR-10, batch 32, all loss terms, 5 SGLD steps, 200 steps, float32; "
        f"{place['device']}, torch {place['torch_build']}, commit {place['git_commit']}. A small "
        "network: what travels between processes counts for more than it would with a larger one.",
        "",
        "| run | ms a step | times one process | loss from that of one process, mean distance |",
        "| --- | ---: | ---: | ---: |",
    ]
    for each in runs:
        far = "-" if each is first else f"{apart(first, each):.3f}"
        ratio = first["ms_a_step"] / each["ms_a_step"]
        lines.append(f"| {each['name']} | {each['ms_a_step']:.0f} | {ratio:.2f} | {far} |")
    lines += ["", "![The losses](losses.png)", "", "```"]
    lines += [each["command"] for each in runs]
    return "\n".join([*lines, "```", ""])


def save_picture(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel for the sum and one for each term; means of 10 steps."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(11, 6))
        figure.set_layout_engine("constrained")
        FigureCanvasAgg(figure)
        names = ["loss", *(f"{term}/loss" for term in TERMS)]
        for axes, name in zip(figure.subplots(2, 3).flat, names, strict=True):
            for each, colour, line in zip(runs, COLOURS, ("-", ":", "--", "-"), strict=False):
                steps = [row["step"] for row in each["curve"]]
                values = [row[name] for row in each["curve"]]
                axes.plot(steps, values, line, color=colour, lw=1.4, label=each["name"])
            axes.set(title=name.removesuffix("/loss") if "/" in name else "sum", xlabel="step")
        figure.axes[2].legend(loc="lower right")
        figure.savefig(path, dpi=130, metadata={"Software": None})


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="gets record, page, picture")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(name, Path(folder)) for name in RUNS]
    args.output.mkdir(parents=True, exist_ok=True)
    record = json.dumps(runs, indent=1) + "\n"
    (args.output / "processes.json").write_text(record, encoding="utf-8")
    (args.output / "README.md").write_text(page(runs), encoding="utf-8")
    save_picture(runs, args.output / "losses.png")


if __name__ == "__main__":
    main()
