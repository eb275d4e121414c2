#!/usr/bin/env python3
"""Kill, starve and break training runs, and count what they survive.

    python scripts/torture.py --output save/torture
    python scripts/torture.py --sections kills signals --rounds 2

Every run is a small network with all loss terms on scikit-learn's digits, in a process of its own.
Writes torture.json and torture.md: each promise with what was reached.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import COUNT, WHOLE, Parser

SECTIONS = {  # and what each one tests
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
if __name__ == "__main__":  # --help and a mistake are answered before torch is imported
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
from runs import folder as records
from runs.checkpoint import CheckpointError, read_checkpoint
from runs.files import write_json, write_text
from runs.folder import LAST, PREVIOUS
from runs.screen import markdown, print_line
from training import divergence, flags, machine

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "scripts.torture", "torch.utils.tensorboard", "matplotlib.figure"]
)
WORDS = (
    "--dataset digits --pyxce 1 --pxycontrast 1 --pxcontrast 1 --pxsgld 1 --pxysgld 1 --depth 10 "
    "--width 1 --batch_size 8 --sgld_batch_size 8 --n_steps 3 --buffer_size 100 --contrast_k 1280 "
    "--n_valid 100 --dropout_rate .1 --lr 1e-4 --print_every 10 --n_epochs 2 --max_steps 300 "
    "--device cpu --ckpt_minutes .003"
)
CLOCK = ("seconds", "images_per_s")
SAME = "runs end with the undisturbed run's bits"
Fault = tuple[str, int]  # kind, and the number of calls before it
Counts = list[tuple[int, int, str]]  # how many, of how many, do what


def child(words: list[str], out: Path, fault: Fault | None) -> None:
    """Train in this process; the output goes to the file `out`."""
    with open(out, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if fault is not None:
        inject(*fault)
    sys.exit(train_wrn.main(*flags.parse(words)))


class Runs:
    """Training processes whose run folders are in `place`."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.random = place, random.Random(seed)

    def words(self, name: str, seed: int, place: Path | None = None) -> list[str]:
        where = ("--log_dir", str(place or self.place), "--id", name, "--seed", str(seed))
        return [*WORDS.split(), *where]

    def start(self, name: str, words: list[str], fault: Fault | None = None) -> Any:
        process = CONTEXT.Process(target=child, args=(words, self.place / f"{name}.out", fault))
        process.start()
        return process

    def run(self, name: str, words: list[str], fault: Fault | None = None) -> int:
        process = self.start(name, words, fault)
        process.join()
        return process.exitcode

    def said(self, name: str) -> str:
        path = self.place / f"{name}.out"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def disturbed(self, name: str, seed: int, disturb: Callable[[Any, float, str], None]) -> bool:
        """Disturb a run ten times, each time resumed, and let it end; return whether it ends with
        the undisturbed run's bits. `disturb`: of process, seconds that a run takes, and name."""
        began, resume = time.monotonic(), ["--resume", str(self.place / name), "--max_steps", "300"]
        assert self.run("whole", self.words(f"whole{seed}", seed)) == 0, self.said("whole")
        took = time.monotonic() - began
        self.run(name, [*self.words(name, seed), "--max_steps", "1"])  # there is what to resume
        for _ in range(10):
            (self.place / f"{name}.out").unlink()
            process = self.start(name, resume)
            disturb(process, took, name)
            process.join(60)
        self.run(name, resume)
        return equal(left(self.place / f"whole{seed}"), left(self.place / name))


def left(folder: Path, name: str = LAST) -> dict[str, Any]:
    """Return weights, optimiser, queue, buffer, random states, meters, rows and reports of a run,
    without its settings and its speed."""
    state = read_checkpoint(folder / name)
    del state["settings"]
    progress = state.pop("progress")
    rows = records.read_progress(folder)
    text = (folder / "log.txt").read_text(encoding="utf-8")
    return {
        **state,
        **{name: progress[name] for name in ("step", "best_valid")},
        "rows": [{name: row[name] for name in row if name not in CLOCK} for row in rows],
        "reports": re.findall(r"^epoch \d+ step.*", text, re.M),
    }


def equal(a: Any, b: Any) -> bool:
    """Compare bit for bit, through dicts and lists."""
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

    def kill(process: Any, took: float, name: str) -> None:
        process.join(runs.random.uniform(0.02, 0.2) * took)
        count["killed"] += process.is_alive()
        process.kill()
        process.join()
        found = [runs.place / name / file for file in (LAST, PREVIOUS)]
        count["loaded"] += sum(map(loads, found))

    same = sum(runs.disturbed(f"killed{seed}", seed, kill) for seed in range(rounds))
    return [
        (same, rounds, SAME),
        (count["loaded"], 20 * rounds, f"checkpoints load, {count['killed']} SIGKILLs met a run"),
    ]


def loads(path: Path) -> bool:
    """Return whether the checkpoint can be loaded, or is not there."""
    try:
        read_checkpoint(path)
    except CheckpointError:
        return not path.exists()
    return True


def signals(runs: Runs, rounds: int) -> Counts:
    """Send SIGTERM and SIGINT at random moments."""
    count: Counter[str] = Counter()
    of = math.ceil(rounds * 3 / 10)

    def send(process: Any, took: float, name: str) -> None:
        while process.is_alive() and "steps done" not in runs.said(name):
            time.sleep(0.02)  # its last line before the first step
        process.join(runs.random.uniform(0, 0.08 * took))
        if process.is_alive():
            number = runs.random.choice((signal.SIGTERM, signal.SIGINT))
            os.kill(process.pid, number)
            process.join(60)
            finished = process.exitcode == 0 and "stopped by --max_steps" in runs.said(name)
            count["right"] += finished or process.exitcode == 128 + number

    seeds = range(100, 100 + of)
    same = sum(runs.disturbed(f"signalled{seed}", seed, send) for seed in seeds)
    return [
        (count["right"], 10 * of, "signals with the right exit code"),
        (same, of, SAME),
    ]


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """Mount a file system of this size at `place`, and yield whether that worked; it takes root."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def disk(runs: Runs, rounds: int) -> Counts:
    """Train on disks that hold from one checkpoint to three."""
    assert runs.run("whole", runs.words("whole", 300)) == 0, runs.said("whole")
    needed, place = (runs.place / "whole" / LAST).stat().st_size, runs.place / "disk"
    good = told = 0
    for i in range(rounds):
        with small_disk(place, int(needed * (1.1 + 2.2 * i / rounds))) as mounted:
            if not mounted:
                return [(0, rounds, "sizes: to mount one takes root")]
            code = runs.run(f"disk{i}", runs.words("run", 300, place))
            said = [line for line in runs.said(f"disk{i}").splitlines() if "error:" in line]
            told += code == 2 and len(said) == 1 and str(place) in said[0] and "free" in said[0]
            found = [place / "run" / name for name in (LAST, PREVIOUS)]
            good += all(map(loads, found)) and not list((place / "run").glob(".*.tmp"))
    return [
        (good, rounds, "sizes leave all checkpoints loadable"),
        (told, rounds, "end with one line, with file and free space"),
    ]


def endless_energy(_: Any, term: Any, data: torch.Tensor, samples: torch.Tensor) -> Any:
    told = {"log_q_data": data.mean() * math.inf, "log_q_samples": samples.mean()}
    return told["log_q_data"], told


def nan_in_one(real: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    samples = real(*args, **kwargs)
    samples[0, 0, 0, 0] = math.nan
    return samples


def nan_in_half(real: Any, buffer: losses.ReplayBuffer, *args: Any, **kwargs: Any) -> Any:
    buffer.images[: len(buffer.images) // 2] = math.nan
    return real(buffer, *args, **kwargs)


# kind: (owner and name of what goes wrong, what it does instead)
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "loss": (losses.CrossEntropy, "forward", lambda _, term, s: (s.logits.sum() * math.nan, {})),
    "energy": (losses.MarginalSGLD, "divergence", endless_energy),
    "chain": (sgld, "langevin", nan_in_one),
    "longer": (sgld, "langevin", lambda real, f, x, **k: real(
        f, x, **{**k, "step_size": 1e3 * k["step_size"], "noise_std": 1e3})),
    "rows": (losses.ReplayBuffer, "draw", nan_in_half),
}  # fmt: skip


def inject(kind: str, at: int) -> None:
    """Make one call go wrong: the one after `at` others."""
    owner, name, spoilt = FAULTS[kind]
    real, calls = getattr(owner, name), itertools.count()

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            return spoilt(real, *args, **kwargs)
        return real(*args, **kwargs)

    setattr(owner, name, call)
    divergence.SNAPSHOT_EVERY = 20


def faults(runs: Runs, rounds: int) -> Counts:
    """Make one call of a run go wrong: it heals, and log.txt has what happened."""
    finished = logged = 0
    count = math.ceil(rounds * 1.5)
    for i, kind in zip(range(count), itertools.cycle(FAULTS)):
        name = f"fault{i}"
        code = runs.run(name, runs.words(name, i), (kind, runs.random.randrange(1, 298)))
        state = read_checkpoint(runs.place / name / LAST)
        weights = state["model_state_dict"].values()
        finished += code == 0 and all(bool(tensor.isfinite().all()) for tensor in weights)
        text = (runs.place / name / "log.txt").read_text(encoding="utf-8")
        events = re.findall(r"^diverged at step \d+ \(.*: back to step .*; restart", text, re.M)
        restarts = state["progress"]["restarts"]
        logged += len(events) == restarts and (restarts > 0 or kind == "longer")
    return [
        (finished, count, "runs with a fault finish, and are finite"),
        (logged, count, "log each event with cause and action"),
    ]


def main(args: Namespace) -> int:
    """Return 0 where every promise was kept, else 1."""
    args.output.mkdir(parents=True, exist_ok=True)
    found, began = [], time.monotonic()
    sections = {"kills": kills, "signals": signals, "disk": disk, "faults": faults}
    for section in args.sections:
        print_line(section, sys.stderr)
        with tempfile.TemporaryDirectory() as place:
            counts = sections[section](Runs(Path(place), args.seed), args.rounds)
        reached = "; ".join(f"{n} of {of} {what}" for n, of, what in counts)
        kept = all(n == of for n, of, _ in counts)
        row = {"promise": SECTIONS[section], "reached": reached, "kept": kept}
        found.append({"section": section, **row})
        print_line(f"  {reached}", sys.stderr)
    where, seconds = machine.environment(torch.device("cpu")), time.monotonic() - began
    words = f"--sections {' '.join(args.sections)} --rounds {args.rounds}"
    command = f"python scripts/torture.py {words}"
    record = {"command": command, "seconds": seconds, "environment": where, "promises": found}
    write_json(args.output / "torture.json", record, indent=1)
    place = f"{where['device']}, PyTorch {where['torch_build']}, commit {where['git_commit']}"
    text = (
        f"# What a run survives\n\n    {command}\n\n{place}; {seconds / 60:.0f} minutes\n\n"
        f"{markdown(found, ('promise', 'reached'))}\n"
    )
    write_text(args.output / "torture.md", text)
    print_line(text, sys.stdout)
    return 0 if all(row["kept"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(ARGS))
