"""What scripts/gpu.sh runs: each of benchmarks/gpu_parts.py in a process, with its share of time.

OUT has eight files at most: log.txt, parts.json, tests.xml, bench.json, and run.zip.0, .1, ...
"""

from __future__ import annotations

import io
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import COUNT, POSITIVE, Parser, UsageError
from runs.files import read_json, write_json
from runs.names import data_root
from runs.screen import print_line

PROGRAM = "gpu.sh"
# Seconds of 9 minutes; training has what the others leave.
SHARES = {"machine": 15.0, "tests": 60.0, "steps": 150.0, "profile": 20.0, "training": math.inf}
SPARE = 20  # seconds at the end, for a part that ends late and for the archive
LATE = "took too long"  # in place of an exit code: what it had measured is there
GRACE = 8  # seconds for a late part to write what it has
PIECE = 15 * 2**20  # bytes of a file of the archive
LEFT_OUT = ("prev_ckpt.pt", "best_valid_ckpt.pt", "*.npz", "*.pdf", "*tfevents*")  # of the archive


# fmt: off
def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, allow_abbrev=False, description=(
        "Say in minutes how this code runs on a GPU. Then: python scripts/bench.py collect OUT"))
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder of the results; empty, or not there yet")
    add("--minutes", type=POSITIVE, default=None, metavar="MINUTES",
        help="time for all parts together (default: 9; 3 with --rehearse)")
    add("--rehearse", action="store_true",
        help="the same parts on the CPU, with small networks and scikit-learn's digits")
    add("--parts", nargs="+", choices=tuple(SHARES), default=list(SHARES), metavar="PART",
        help=f"some of {', '.join(SHARES)} (default: all)")
    add("--data_root", type=Path, default=Path(data_root()), metavar="FOLDER",
        help="with cifar10.npz, or a part of it by benchmarks/subset.py, or torchvision's files "
        "(default: $HDGE_DATA_ROOT, else ./datasets)")
    add("--calls", type=COUNT, default=1, metavar="N",
        help="calls that the training is planned for: the next ones --resume (default: 1)")
    add("--resume", type=Path, default=None, metavar="OLD",
        help="train on from this folder, an earlier call's OUT; what that has measured is kept")
    add("--part", default=None, metavar=("PART", "SECONDS", "RUNS"), nargs=3,
        help="for gpu.sh itself: one part in this process, with the folder of the runs")
    return parser


# fmt: on
def main(argv: Sequence[str]) -> int:
    """Run the parts one after another. Return the exit code: 0 if each ended well, else 1; 2 for a
    mistake, 130 for Ctrl-C, 143 for SIGTERM."""
    parser = build_parser()
    g = parser.parse_args(argv)
    try:
        from runs.endings import exit_code
    except ImportError as error:
        parser.error(f"{error}: set PYTHON to a Python that has PyTorch")
    if g.part is not None:
        return run_part(g, *g.part)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background has none
    stopped = f"{PROGRAM}: interrupted: {g.out} has what there is"
    return exit_code(PROGRAM, partial(run_parts, g, argv), interrupted=stopped)


def check(g: Namespace) -> None:
    """Raise UsageError for what a part would find missing, and for a folder that is in use."""
    import torch

    if g.out.exists() and any(g.out.iterdir()):
        raise UsageError(f"OUT {g.out} has files already: give another folder, or empty it")
    if not g.rehearse and not torch.cuda.is_available():
        raise UsageError(
            "PyTorch sees no GPU here: run it on a machine that has one, or --rehearse"
        )
    names = ("cifar10.npz", "cifar-10-batches-py", "cifar-10-python.tar.gz")
    found = any((g.data_root / name).exists() for name in names)
    if "training" in g.parts and not g.rehearse and not found:
        raise UsageError(
            f"--data_root {g.data_root} has no CIFAR-10: give another, or --parts without training"
        )


def run_parts(g: Namespace, argv: Sequence[str]) -> int:
    """Run each part in a process of its own, ended when its share of the time is over."""
    minutes = g.minutes or (3.0 if g.rehearse else 9.0)
    end, names = BEGAN + 60 * minutes - SPARE, [name for name in SHARES if name in g.parts]
    g.out, g.data_root = g.out.resolve(), g.data_root.resolve()
    check(g)
    with tempfile.TemporaryDirectory() as work:
        runs = Path(work)
        ended: dict[str, Any] = {"parts": {}, "seconds": 0.0}
        if g.resume is not None:
            ended = resumed(g, runs)
        g.out.mkdir(parents=True, exist_ok=True)
        ended["command"], before = ["bash", "scripts/gpu.sh", *argv], ended["seconds"]

        def note(name: str, code: int | str, seconds: float) -> None:
            ended["parts"][name] = {"exit_code": code, "seconds": round(seconds, 1)}
            ended["seconds"] = round(before + time.monotonic() - BEGAN, 1)
            write_json(g.out / "parts.json", ended)

        for name in names:
            seconds = max(1.0, min(max(15, SHARES[name] * minutes / 9), end - time.monotonic()))
            say(f"{name}: {seconds:.0f} s at most")
            began = time.monotonic()
            note(name, "was interrupted", 0)  # for a kill of this program
            code = call_part(g, name, seconds, runs)
            if name == "training":
                archive(g.out, runs)
            note(name, code, time.monotonic() - began)
    codes = {name: ended["parts"][name]["exit_code"] for name in names}
    told = ", ".join(f"{name} {code}" for name, code in codes.items())
    say(f"exit codes: {told}; in {g.out}")
    return int(any(code not in (0, LATE) for code in codes.values()))


def resumed(g: Namespace, runs: Path) -> dict[str, Any]:
    """Take over what an earlier call has trained and measured. Return its parts.json."""
    unpack_archive(g.resume, runs)
    g.out.mkdir(parents=True, exist_ok=True)
    for name in ("bench.json", "tests.xml"):
        if (g.resume / name).exists():
            shutil.copy(g.resume / name, g.out)
    return dict(read_json(g.resume / "parts.json"))


def say(message: str) -> None:
    print_line(f"{time.monotonic() - BEGAN:4.0f} s  {message}", sys.stdout)


def call_part(g: Namespace, name: str, seconds: float, runs: Path) -> int | str:
    """Run the part with its output in log.txt. Return its exit code, or that it took too long."""
    words = [sys.executable, str(Path(__file__)), str(g.out), "--data_root", str(g.data_root)]
    words += [*(["--rehearse"] if g.rehearse else []), "--calls", str(g.calls)]
    words += ["--part", name, str(seconds), str(runs)]
    if name == "tests":
        tests = sorted((ROOT / "tests").glob("test_*.py"))
        marked = [path for path in tests if "mark.gpu" in path.read_text(encoding="utf-8")]
        words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"]
        words += [f"--junitxml={g.out / 'tests.xml'}", *map(str, marked)]
    with open(g.out / "log.txt", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(seconds + 5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # tests and training then write what they have
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return LATE
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            process.wait()


def run_part(g: Namespace, name: str, seconds: str, runs: str) -> int:
    """Run one part in this process; its measurements go to bench.json as they come."""
    from benchmarks import gpu_parts

    try:
        until, keep = BEGAN + float(seconds) - 5, partial(archive, g.out, Path(runs))
        gpu_parts.run(name, gpu_parts.Part(g, Path(runs), until, keep))
        return 0
    except Exception:
        traceback.print_exc()
        return 1


# ----------------------------------------------------------------------------------- the archive


def archive(out: Path, runs: Path, piece: int = PIECE) -> None:
    """Write the run folders, without the files that neither resuming nor a page needs, as one zip
    in pieces that are small enough to be fetched."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as pack:
        for path in sorted(runs.rglob("*")):
            if path.is_file() and not any(map(path.match, LEFT_OUT)):
                pack.write(path, path.relative_to(runs))
    packed = whole.getvalue()
    parts = [packed[at : at + piece] for at in range(0, len(packed), piece)]
    for i, part in enumerate(parts):
        (out / f".run.zip.{i}").write_bytes(part)
    for i in range(len(parts)):  # only now: a kill while they are written leaves those before
        (out / f".run.zip.{i}").replace(out / f"run.zip.{i}")
    for old in out.glob("run.zip.*"):
        if int(old.suffix[1:]) >= len(parts):
            old.unlink()


def unpack_archive(old: Path, runs: Path) -> None:
    """Unpack the run.zip.* of an earlier call. Raises UsageError."""
    pieces = sorted(old.glob("run.zip.*"), key=lambda path: int(path.suffix[1:]))
    if not pieces:
        raise UsageError(f"{old} has no run.zip.0: give the OUT of a call that has trained")
    whole = io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))
    try:
        if int(pieces[-1].suffix[1:]) != len(pieces) - 1:
            raise zipfile.BadZipFile("a piece is missing")
        with zipfile.ZipFile(whole) as pack:
            pack.extractall(runs)
    except zipfile.BadZipFile as error:
        raise UsageError(f"{old}: run.zip.* is not whole ({error})") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
