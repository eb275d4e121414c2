#!/usr/bin/env python3
"""Kill, starve and break training runs, and count how often they recover.

    python scripts/torture.py --output save/torture
    python scripts/torture.py --sections kills signals --rounds 2

Every run trains a small network with all loss terms on scikit-learn's digits, in its own process.
The results are torture.json and torture.md: each promise and how often it was kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import COUNT, WHOLE, Parser

SECTIONS = {  # section -> the promise that it tests
    "kills": "a killed run ends where it would have ended",
    "signals": "a signal saves",
    "disk": "a full disk destroys nothing",
    "faults": "divergence heals",
}


# fmt: off
def build_parser() -> Parser:
    parser = Parser(prog="torture.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
        help="kills: SIGKILL at random moments; signals: SIGTERM and SIGINT; disk: full disks; "
        "faults: divergences (default: all)")
    add("--rounds", type=COUNT, default=20, metavar="N",
        help="how much of it: 20 are 200 kills, 60 signals, 20 disks and 30 faults "
        "(default: %(default)s)")
    add("--output", type=Path, default=Path("save/torture"), metavar="FOLDER",
        help="torture.json and torture.md are written there (default: %(default)s)")
    add("--seed", type=WHOLE, default=0, metavar="N",
        help="seed of moments and faults (default: %(default)s)")
    return parser


# fmt: on
if __name__ == "__main__":  # before the slow import of torch, which --help and mistakes do not need
    ARGS = build_parser().parse_args()

import itertools
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import losses
import train_wrn
from losses import sgld
from runs.checkpoint import CheckpointError, read_checkpoint
from runs.files import write_json, write_text
from runs.folder import LAST, PREVIOUS, read_progress
from runs.screen import markdown, print_line
from training import divergence, flags, machine

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "scripts.torture", "torch.utils.tensorboard", "matplotlib.figure"]
)
FLAGS = (
    "--dataset digits --pyxce 1 --pxycontrast 1 --pxcontrast 1 --pxsgld 1 --pxysgld 1 --depth 10 "
    "--width 1 --batch_size 8 --sgld_batch_size 8 --n_steps 3 --buffer_size 100 --contrast_k 1280 "
    "--n_valid 100 --dropout_rate .1 --lr 1e-4 --print_every 10 --n_epochs 2 --max_steps 300 "
    "--device cpu --ckpt_minutes .003"
)
CLOCK = ("seconds", "images_per_s")  # columns of progress.csv that differ between equal runs
SAME = "runs end with the undisturbed run's bits"
Fault = tuple[str, int]  # key of FAULTS, and the number of calls before the faulty call
Counts = list[tuple[int, int, str]]  # successes, trials, and the rest of the sentence


def child(argv: list[str], log: Path, fault: Fault | None) -> None:
    """Train in this process, with its output appended to `log`."""
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if fault is not None:
        inject(*fault)
    sys.exit(train_wrn.main(*flags.parse(argv)))


class Runs:
    """Start training processes, with run folders and output files in `folder`."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)

    def argv(self, name: str, seed: int, log_dir: Path | None = None) -> list[str]:
        log_dir = log_dir or self.folder
        return [*FLAGS.split(), "--log_dir", str(log_dir), "--id", name, "--seed", str(seed)]

    def start(self, name: str, argv: list[str], fault: Fault | None = None) -> Any:
        process = CONTEXT.Process(target=child, args=(argv, self.folder / f"{name}.out", fault))
        process.start()
        return process

    def run(self, name: str, argv: list[str], fault: Fault | None = None) -> int:
        process = self.start(name, argv, fault)
        process.join()
        return process.exitcode

    def output(self, name: str) -> str:
        path = self.folder / f"{name}.out"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def disturbed(self, name: str, seed: int, disturb: Callable[[Any, float, str], None]) -> bool:
        """Disturb and resume a run ten times, then let it end. Return whether it ends with the same
        bits as an undisturbed run. `disturb` gets process, seconds of an undisturbed run, name."""
        began, run = time.monotonic(), self.folder / name
        assert self.run("whole", self.argv(f"whole{seed}", seed)) == 0, self.output("whole")
        seconds, resume = time.monotonic() - began, ["--resume", str(run), "--max_steps", "300"]
        self.run(name, [*self.argv(name, seed), "--max_steps", "1"])  # a run folder to resume
        for _ in range(10):
            (self.folder / f"{name}.out").unlink()
            process = self.start(name, resume)
            disturb(process, seconds, name)
            process.join(60)
        self.run(name, resume)
        return equal(left(self.folder / f"whole{seed}"), left(run))


def left(folder: Path, name: str = LAST) -> dict[str, Any]:
    """Return the state that a run left in its folder: weights, optimiser, queue, buffer, random
    states, meters, rows and reports; not its settings, its seconds and images per second."""
    state = read_checkpoint(folder / name)
    del state["settings"]
    progress = state.pop("progress")
    rows = read_progress(folder)
    text = (folder / "log.txt").read_text(encoding="utf-8")
    return {
        **state,
        **{name: progress[name] for name in ("step", "best_valid")},
        "rows": [{name: row[name] for name in row if name not in CLOCK} for row in rows],
        "reports": re.findall(r"^epoch \d+ step.*", text, re.M),
    }


def equal(a: Any, b: Any) -> bool:
    """Return whether two values are equal bit for bit, through dicts and lists."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.equal(b)
    return type(a) is type(b) and bool(a == b)


def kills(runs: Runs, rounds: int) -> Counts:
    """Kill each run at random moments."""
    count: Counter[str] = Counter()

    def kill(process: Any, seconds: float, name: str) -> None:
        process.join(runs.random.uniform(0.02, 0.2) * seconds)
        count["killed"] += process.is_alive()
        process.kill()
        process.join()
        count["loaded"] += sum(loads(runs.folder / name / file) for file in (LAST, PREVIOUS))

    same = sum(runs.disturbed(f"killed{seed}", seed, kill) for seed in range(rounds))
    return [
        (same, rounds, SAME),
        (count["loaded"], 20 * rounds, f"checkpoints load, {count['killed']} SIGKILLs met a run"),
    ]


def loads(path: Path) -> bool:
    """Return whether the checkpoint can be loaded or does not exist."""
    try:
        read_checkpoint(path)
    except CheckpointError:
        return not path.exists()
    return True


def signals(runs: Runs, rounds: int) -> Counts:
    """Send SIGTERM and SIGINT at random moments."""
    count: Counter[str] = Counter()
    trials = math.ceil(rounds * 3 / 10)

    def send(process: Any, seconds: float, name: str) -> None:
        while process.is_alive() and "steps done" not in runs.output(name):
            time.sleep(0.02)  # until the last line before the first step
        process.join(runs.random.uniform(0, 0.08 * seconds))
        if process.is_alive():
            number = runs.random.choice((signal.SIGTERM, signal.SIGINT))
            os.kill(process.pid, number)
            process.join(60)
            finished = process.exitcode == 0 and "stopped by --max_steps" in runs.output(name)
            count["right"] += finished or process.exitcode == 128 + number

    seeds = range(100, 100 + trials)
    same = sum(runs.disturbed(f"signalled{seed}", seed, send) for seed in seeds)
    return [
        (count["right"], 10 * trials, "signals with the right exit code"),
        (same, trials, SAME),
    ]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a file system of `size` bytes at `folder`. Yield whether that worked: it needs root."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def disk(runs: Runs, rounds: int) -> Counts:
    """Train on disks with room for one to three checkpoints."""
    assert runs.run("whole", runs.argv("whole", 300)) == 0, runs.output("whole")
    size, folder = (runs.folder / "whole" / LAST).stat().st_size, runs.folder / "disk"
    loadable = reported = 0
    for i in range(rounds):
        with small_disk(folder, int(size * (1.1 + 2.2 * i / rounds))) as mounted:
            if not mounted:
                return [(0, rounds, "sizes: to mount one takes root")]
            code = runs.run(f"disk{i}", runs.argv("run", 300, folder))
            errors = [line for line in runs.output(f"disk{i}").splitlines() if "error:" in line]
            one_line = code == 2 and len(errors) == 1
            reported += one_line and str(folder) in errors[0] and "free" in errors[0]
            checkpoints = [folder / "run" / name for name in (LAST, PREVIOUS)]
            loadable += all(map(loads, checkpoints)) and not [*(folder / "run").glob(".*.tmp")]
    return [
        (loadable, rounds, "sizes leave all checkpoints loadable"),
        (reported, rounds, "end with one line, with file and free space"),
    ]


def endless_energy(real: Any, term: Any, data: torch.Tensor, samples: torch.Tensor) -> Any:
    _, metrics = real(term, data, samples)
    metrics["log_q_data"] = data.mean() * math.inf
    return metrics["log_q_data"], metrics


def nan_in_one(real: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    samples = real(*args, **kwargs)
    samples[0, 0, 0, 0] = math.nan
    return samples


def nan_in_half(real: Any, buffer: losses.ReplayBuffer, *args: Any, **kwargs: Any) -> Any:
    buffer.images[: len(buffer.images) // 2] = math.nan
    return real(buffer, *args, **kwargs)


# kind -> (owner, name of its function, stand-in that gets the function and its arguments)
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "loss": (losses.CrossEntropy, "forward", lambda _, term, s: (s.logits.sum() * math.nan, {})),
    "energy": (losses.MarginalSGLD, "divergence", endless_energy),
    "chain": (sgld, "langevin", nan_in_one),
    "longer": (sgld, "langevin", lambda real, f, x, **k: real(
        f, x, **{**k, "step_size": 1e3 * k["step_size"], "noise_std": 1e3})),
    "rows": (losses.ReplayBuffer, "draw", nan_in_half),
}  # fmt: skip


def inject(kind: str, at: int) -> None:
    """Replace call number `at`, counted from 0, of the function of FAULTS[kind] by its stand-in."""
    owner, name, stand_in = FAULTS[kind]
    real, calls = getattr(owner, name), itertools.count()

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            return stand_in(real, *args, **kwargs)
        return real(*args, **kwargs)

    setattr(owner, name, call)
    divergence.SNAPSHOT_EVERY = 20


def faults(runs: Runs, rounds: int) -> Counts:
    """Let one call of each run go wrong: training must recover and log the event."""
    finished = logged = 0
    trials = math.ceil(rounds * 1.5)
    for i, kind in zip(range(trials), itertools.cycle(FAULTS)):
        name = f"fault{i}"
        code = runs.run(name, runs.argv(name, i), (kind, runs.random.randrange(1, 298)))
        state = read_checkpoint(runs.folder / name / LAST)
        weights = state["model_state_dict"].values()
        finished += code == 0 and all(bool(tensor.isfinite().all()) for tensor in weights)
        text = (runs.folder / name / "log.txt").read_text(encoding="utf-8")
        events = re.findall(r"^diverged at step \d+ \(.*: back to step .*; restart", text, re.M)
        restarts = state["progress"]["restarts"]
        logged += len(events) == restarts and (restarts > 0 or kind == "longer")
    return [
        (finished, trials, "runs with a fault finish, and are finite"),
        (logged, trials, "log each event with cause and action"),
    ]


def main(args: Namespace) -> int:
    """Return 0 if every promise was kept, else 1."""
    args.output.mkdir(parents=True, exist_ok=True)
    promises, began = [], time.monotonic()
    sections = {"kills": kills, "signals": signals, "disk": disk, "faults": faults}
    for section in args.sections:
        print_line(section, sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            counts = sections[section](Runs(Path(folder), args.seed), args.rounds)
        reached = "; ".join(f"{n} of {trials} {text}" for n, trials, text in counts)
        kept = all(n == trials for n, trials, _ in counts)
        row = {"promise": SECTIONS[section], "reached": reached, "kept": kept}
        promises.append({"section": section, **row})
        print_line(f"  {reached}", sys.stderr)
    env, seconds = machine.environment(torch.device("cpu")), time.monotonic() - began
    argv = f"--sections {' '.join(args.sections)} --rounds {args.rounds}"
    command = f"python scripts/torture.py {argv}"
    record = {"command": command, "seconds": seconds, "environment": env, "promises": promises}
    write_json(args.output / "torture.json", record, indent=1)
    computer = f"{env['device']}, PyTorch {env['torch_build']}, commit {env['git_commit']}"
    text = (
        f"# What a run survives\n\n    {command}\n\n{computer}; {seconds / 60:.0f} minutes\n\n"
        f"{markdown(promises, ('promise', 'reached'))}\n"
    )
    write_text(args.output / "torture.md", text)
    print_line(text, sys.stdout)
    return 0 if all(row["kept"] for row in promises) else 1


if __name__ == "__main__":
    sys.exit(main(ARGS))
