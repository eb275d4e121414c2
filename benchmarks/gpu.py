"""The program of scripts/gpu.sh: run each part in a process of its own, with its share of the time.

The parts are the tests for a GPU and the functions of benchmarks/gpu_parts.py. OUT gets log.txt,
parts.json, tests.xml, bench.json, and run.zip.0, .1, ...: eight files at most.
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
from runs.files import LEFTOVERS, read_json, write_json
from runs.names import data_root
from runs.screen import print_line

PROGRAM = "gpu.sh"
# The parts, and the seconds of each if all have 9 minutes; the training gets the rest.
SHARES = {"machine": 15.0, "tests": 60.0, "steps": 150.0, "profile": 20.0, "training": math.inf}
SPARE = 20  # seconds at the end, for a part that ends late and for the archive
LATE = "took too long"  # instead of an exit code; measurements up to then are in OUT
GRACE = 8  # seconds for a late part to write its results
PIECE = 15 * 2**20  # bytes of a file of the archive
NOT_ARCHIVED = ("prev_ckpt.pt", "best_valid_ckpt.pt", "*.npz", "*.pdf", "*tfevents*", LEFTOVERS)


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
    """Run the parts one after another. Return the exit code: 0 if no part failed, else 1; 2 for a
    mistake, 130 for Ctrl-C, 143 for SIGTERM."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        from runs.endings import exit_code
    except ImportError as error:
        parser.error(f"{error}: set PYTHON to a Python that has PyTorch")
    if args.part is not None:
        return run_part(args, *args.part)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs begin without it
    interrupted = f"{PROGRAM}: interrupted: the results so far are in {args.out}"
    return exit_code(PROGRAM, partial(run_parts, args, argv), interrupted=interrupted)


def check(args: Namespace) -> None:
    """Raise UsageError where OUT has files, or a GPU or data set is missing that a part needs."""
    import torch

    if args.out.exists() and any(args.out.iterdir()):
        raise UsageError(f"OUT {args.out} has files already: give another folder, or empty it")
    if not args.rehearse and not torch.cuda.is_available():
        raise UsageError(
            "PyTorch sees no GPU here: run it on a machine that has one, or --rehearse"
        )
    root, names = args.data_root, ("cifar10.npz", "cifar-10-batches-py", "cifar-10-python.tar.gz")
    has_data = any((root / name).exists() for name in names)
    if "training" in args.parts and not args.rehearse and not has_data:
        raise UsageError(
            f"--data_root {root} has no CIFAR-10: give another, or --parts without training"
        )


def run_parts(args: Namespace, argv: Sequence[str]) -> int:
    """Run each part in a process of its own; end the process when its share of the time is over."""
    minutes = args.minutes or (3.0 if args.rehearse else 9.0)
    end, names = BEGAN + 60 * minutes - SPARE, [name for name in SHARES if name in args.parts]
    args.out, args.data_root = args.out.resolve(), args.data_root.resolve()
    check(args)
    with tempfile.TemporaryDirectory() as work:
        runs = Path(work)
        record: dict[str, Any] = {"parts": {}, "seconds": 0.0}
        if args.resume is not None:
            record = restore_call(args, runs)
        args.out.mkdir(parents=True, exist_ok=True)
        record["command"], before = ["bash", "scripts/gpu.sh", *argv], record["seconds"]

        def save(name: str, code: int | str, seconds: float) -> None:
            record["parts"][name] = {"exit_code": code, "seconds": round(seconds, 1)}
            record["seconds"] = round(before + time.monotonic() - BEGAN, 1)
            write_json(args.out / "parts.json", record)

        for name in names:
            seconds = max(1.0, min(max(15, SHARES[name] * minutes / 9), end - time.monotonic()))
            log(f"{name}: {seconds:.0f} s at most")
            began = time.monotonic()
            save(name, "was interrupted", 0)  # stays there if this program is killed
            try:
                code = call_part(args, name, seconds, runs)
            finally:  # also after Ctrl-C: OUT then has the checkpoints up to now
                if name == "training":
                    archive(args.out, runs)
            save(name, code, time.monotonic() - began)
    codes = {name: record["parts"][name]["exit_code"] for name in names}
    log(f"exit codes: {', '.join(f'{name} {codes[name]}' for name in names)}; in {args.out}")
    return int(any(code not in (0, LATE) for code in codes.values()))


def restore_call(args: Namespace, runs: Path) -> dict[str, Any]:
    """Copy runs and measurements from --resume, an earlier call's OUT. Return its parts.json."""
    unpack_archive(args.resume, runs)
    args.out.mkdir(parents=True, exist_ok=True)
    for pattern in ("bench.json", "tests.xml", "run.zip.*"):  # without training the archive stays
        for path in args.resume.glob(pattern):
            shutil.copy(path, args.out)
    return dict(read_json(args.resume / "parts.json"))


def log(message: str) -> None:
    print_line(f"{time.monotonic() - BEGAN:4.0f} s  {message}", sys.stdout)


def call_part(args: Namespace, name: str, seconds: float, runs: Path) -> int | str:
    """Run a part in a process with its output in log.txt. Return its exit code, or LATE."""
    command = [sys.executable, str(Path(__file__)), str(args.out)]
    command += ["--data_root", str(args.data_root), "--calls", str(args.calls)]
    command += ["--rehearse"] * args.rehearse + ["--part", name, str(seconds), str(runs)]
    if name == "tests":
        tests = sorted((ROOT / "tests").glob("test_*.py"))
        marked = [str(path) for path in tests if "mark.gpu" in path.read_text(encoding="utf-8")]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs"]
        command += ["-p", "no:cacheprovider", f"--junitxml={args.out / 'tests.xml'}", *marked]
    with open(args.out / "log.txt", "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(seconds + 5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # tests and training then write their results
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return LATE
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also the processes that the part started
            process.wait()
            for leftover in args.out.glob(LEFTOVERS):  # the kill has interrupted a write to OUT
                leftover.unlink()


def run_part(args: Namespace, name: str, seconds: str, runs: str) -> int:
    """Run a part in this process; save each measurement at once. Return the exit code."""
    from benchmarks import gpu_parts

    try:
        deadline, archive_runs = BEGAN + float(seconds) - 5, partial(archive, args.out, Path(runs))
        gpu_parts.run(name, gpu_parts.Part(args, Path(runs), deadline, archive_runs))
        return 0
    except Exception:
        traceback.print_exc()
        return 1


# ----------------------------------------------------------------------------------- the archive


def archive(out: Path, runs: Path, piece: int = PIECE) -> None:
    """Write the run folders, without the files that neither resuming nor a page needs, as one zip,
    cut into files of `piece` bytes that are small enough to be fetched."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archived:
        for path in sorted(runs.rglob("*")):
            if path.is_file() and not any(map(path.match, NOT_ARCHIVED)):
                archived.write(path, path.relative_to(runs))
    content = buffer.getvalue()
    pieces = [content[start : start + piece] for start in range(0, len(content), piece)]
    for i, part in enumerate(pieces):
        (out / f".run.zip.{i}.tmp").write_bytes(part)
    for i in range(len(pieces)):  # after all are written: a kill before leaves the old archive
        (out / f".run.zip.{i}.tmp").replace(out / f"run.zip.{i}")
    for path in out.glob("run.zip.*"):
        if int(path.suffix[1:]) >= len(pieces):
            path.unlink()


def unpack_archive(out: Path, runs: Path) -> None:
    """Unpack the run.zip.* of an earlier call's OUT to `runs`. Raises UsageError."""
    pieces = sorted(out.glob("run.zip.*"), key=lambda path: int(path.suffix[1:]))
    if not pieces:
        raise UsageError(f"{out} has no run.zip.0: give the OUT of a call that has trained")
    buffer = io.BytesIO(b"".join(piece.read_bytes() for piece in pieces))
    try:
        if int(pieces[-1].suffix[1:]) != len(pieces) - 1:
            raise zipfile.BadZipFile("a piece is missing")
        with zipfile.ZipFile(buffer) as archived:
            archived.extractall(runs)
    except zipfile.BadZipFile as error:
        raise UsageError(f"{out}: run.zip.* is not whole ({error})") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
