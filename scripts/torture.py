#!/usr/bin/env python3
"""Kill, damage, deceive and starve training runs, and count what they survive.

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

from runs.cli import COUNT, WHOLE, Parser  # noqa: E402

SECTIONS = ("kills", "signals", "damage", "hostile", "refusals", "disk", "faults", "repeat")


# fmt: off
def build_parser() -> Parser:
    parser = Parser(prog="torture.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION",
        help="kills: SIGKILL at random moments; signals: SIGTERM and SIGINT; damage: checkpoints "
        "with flipped bits, missing ends and blocks of zeros; hostile: files that want to run "
        "code; refusals: wrong flags; disk: full disks; faults: divergences; repeat: one command "
        "twice (default: all)")
    add("--rounds", type=COUNT, default=20, metavar="N",
        help="how much of it: 20 are 200 kills, 60 signals, 1,600 damages (default: %(default)s)")
    add("--output", type=Path, default=Path("save/torture"), metavar="FOLDER",
        help="torture.json and torture.md are written there (default: %(default)s)")
    add("--seed", type=WHOLE, default=0, metavar="N",
        help="seed of moments and damages (default: %(default)s)")
    return parser


# fmt: on
if __name__ == "__main__":
    ARGS = build_parser().parse_args()

import json  # noqa: E402
import math  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import pickle  # noqa: E402
import random  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import zipfile  # noqa: E402
from argparse import Namespace  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

import losses  # noqa: E402
import train_wrn  # noqa: E402
from losses import sgld  # noqa: E402
from runs import folder as records  # noqa: E402
from runs.checkpoint import LAST, PREVIOUS, CheckpointError, read_checkpoint  # noqa: E402
from runs.screen import print_line  # noqa: E402
from training import divergence, flags  # noqa: E402

PRELOADED = ("torch", "scripts.torture", "torch.utils.tensorboard", "matplotlib.figure")
CONTEXT = multiprocessing.get_context("forkserver")
WORDS = (
    "--dataset digits --pyxce 1 --pxycontrast 1 --pxcontrast 1 --pxsgld 1 --pxysgld 1 --depth 10 "
    "--width 1 --batch_size 8 --sgld_batch_size 8 --n_steps 3 --buffer_size 100 --contrast_k 1280 "
    "--n_valid 100 --dropout_rate .1 --lr 1e-4 --print_every 10 --n_epochs 2 --max_steps 300 "
    "--device cpu --ckpt_minutes .003"
)
STEPS = "300"
CLOCK = ("seconds", "images_per_s")


# ------------------------------------------------------------------------------------------ runs


def child(words: list[str], out: str, fault: str | None) -> None:
    """A training process; its output goes to the file `out`."""
    with open(out, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if fault is not None:
        inject(fault)
    sys.exit(train_wrn.main(*flags.parse(words)))


class Runs:
    """Training processes whose run folders are in `place`."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.random = place, random.Random(seed)

    def words(self, name: str, seed: int, *more: str) -> list[str]:
        where = ("--log_dir", str(self.place), "--id", name, "--seed", str(seed))
        return [*WORDS.split(), *where, *more]

    def start(self, name: str, words: list[str], fault: str | None = None) -> Any:
        arguments = (words, str(self.place / f"{name}.out"), fault)
        process = CONTEXT.Process(target=child, args=arguments)
        process.start()
        return process

    def run(self, name: str, words: list[str], fault: str | None = None) -> int:
        process = self.start(name, words, fault)
        process.join()
        return process.exitcode

    def said(self, name: str) -> str:
        return (self.place / f"{name}.out").read_text(encoding="utf-8", errors="replace")

    def whole(self, seed: int) -> tuple[str, float]:
        """The name of the undisturbed run of this seed, and the seconds that it took."""
        name = f"whole{seed}"
        began = time.monotonic()
        assert self.run(name, self.words(name, seed)) == 0, self.said(name)
        return name, time.monotonic() - began

    def same(self, a: str, b: str) -> bool:
        """Weights, optimiser, queue, buffer, random states, meters, rows and reports."""
        first, second = (self.place / name for name in (a, b))
        return (
            equal(moving(first), moving(second))
            and rows(first) == rows(second)
            and reports(first) == reports(second)
        )


def moving(folder: Path) -> dict[str, Any]:
    state = read_checkpoint(folder / LAST)
    kept = {name: value for name, value in state.items() if name not in ("settings", "progress")}
    return {**kept, "step": state["progress"]["step"]}


def equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def rows(folder: Path) -> list[dict[str, str]]:
    found = records.read_progress(folder)
    return [{name: row[name] for name in row if name not in CLOCK} for row in found]


def reports(folder: Path) -> list[str]:
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if re.match(r"epoch \d+ step", line)]


def row(
    promise: str, reached: int, of: int, what: str, *notes: str, besides: bool = True
) -> dict[str, Any]:
    """`besides`: whether what the notes tell is as it has to be, too."""
    return {"promise": promise, "reached": f"{reached} of {of} {what}", "notes": list(notes),
            "kept": reached == of and besides}  # fmt: skip


# -------------------------------------------------------------------------------------- sections


def kills(runs: Runs, rounds: int) -> Iterator[dict[str, Any]]:
    """Each run is killed 10 times at random moments, then left to end."""
    same = unloadable = killed = 0
    for seed in range(rounds):
        whole, took = runs.whole(seed)
        name = f"killed{seed}"
        runs.run(name, runs.words(name, seed, "--max_steps", "1"))  # there is something to kill
        for _ in range(10):
            process = runs.start(name, ["--resume", str(runs.place / name), "--max_steps", STEPS])
            process.join(runs.random.uniform(0.02, 0.2) * took)
            killed += process.is_alive()
            process.kill()
            process.join()
            for file in (LAST, PREVIOUS):
                unloadable += not loads(runs.place / name / file)
        runs.run(name, ["--resume", str(runs.place / name), "--max_steps", STEPS])
        same += runs.same(whole, name)
    yield row("a killed run ends where it would have ended", same, rounds,
              "runs end with the undisturbed run's bits", f"{killed} SIGKILLs met a living run",
              f"{unloadable} of {20 * rounds} checkpoints unloadable",
              besides=unloadable == 0)  # fmt: skip


def loads(path: Path) -> bool:
    """Or is not there."""
    try:
        read_checkpoint(path)
    except CheckpointError:
        return not path.exists()
    return True


def signals(runs: Runs, rounds: int) -> Iterator[dict[str, Any]]:
    """Ten signals to each run, each with a resume; the last resume runs to the end."""
    right = same = sent = 0
    for seed in range(max(1, math.ceil(rounds * 3 / 10))):
        whole, took = runs.whole(100 + seed)
        name = f"signalled{seed}"
        words = runs.words(name, 100 + seed)
        for _ in range(10):
            number = runs.random.choice((signal.SIGTERM, signal.SIGINT))
            process = runs.start(name, words)
            deadline = time.monotonic() + 60
            while process.is_alive() and not trains(runs, name) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.join(runs.random.uniform(0, 0.08 * took))
            if process.is_alive():
                os.kill(process.pid, number)
                process.join(60)
                sent += 1
                finished = process.exitcode == 0 and "stopped by --max_steps" in runs.said(name)
                right += process.exitcode == 128 + number or finished
            (runs.place / f"{name}.out").unlink()
            words = ["--resume", str(runs.place / name), "--max_steps", STEPS]
        runs.run(name, words)
        same += runs.same(whole, name)
    runs_of = max(1, math.ceil(rounds * 3 / 10))
    yield row("a signal saves", right, sent, "signals with the right exit code",
              f"{same} of {runs_of} runs end with the undisturbed run's bits",
              besides=same == runs_of)  # fmt: skip


def trains(runs: Runs, name: str) -> bool:
    """Its bar has begun, so its signals are heard."""
    out = runs.place / f"{name}.out"
    return out.exists() and "epoch" in out.read_text(errors="replace")


def damage(runs: Runs, rounds: int) -> Iterator[dict[str, Any]]:
    whole, _ = runs.whole(200)
    good, place = (runs.place / whole / LAST).read_bytes(), runs.place / "damaged"
    place.mkdir()
    refused = of = 0
    for damaged in damages(good, runs.random, rounds):
        (place / LAST).write_bytes(damaged)
        of += 1
        refused += refusal(place / LAST)
    used, one_each = 0, list(damages(good, runs.random, 1))
    for _ in range(rounds):
        shutil.rmtree(runs.place / "resumed", ignore_errors=True)
        shutil.copytree(runs.place / whole, runs.place / "resumed")
        (runs.place / "resumed.out").unlink(missing_ok=True)
        (runs.place / "resumed" / LAST).write_bytes(runs.random.choice(one_each))
        code = runs.run("resumed", ["--resume", str(runs.place / "resumed"), "--max_steps", STEPS])
        used += code == 0 and "resuming from" in runs.said("resumed")
        used -= not equal(moving(runs.place / whole), moving(runs.place / "resumed"))
    yield row("a damaged checkpoint is never used", refused, of, "refused in one line",
              f"{used} of {rounds} resumed runs went on from the one before",
              besides=used == rounds)  # fmt: skip


def damages(good: bytes, chance: random.Random, rounds: int) -> Iterator[bytes]:
    for _ in range(50 * rounds):
        at = chance.randrange(len(good))
        yield good[:at] + bytes([good[at] ^ (1 << chance.randrange(8))]) + good[at + 1 :]
    for _ in range(15 * rounds):
        yield good[: chance.randrange(len(good))]
    for _ in range(15 * rounds):
        size = min(len(good), 1 << chance.randrange(6, 16))
        at = chance.randrange(len(good) - size)
        if any(good[at : at + size]):
            yield good[:at] + bytes(size) + good[at + size :]
        else:  # zeros already: another damage
            yield good[:at] + b"\x01" * size + good[at + size :]


def refusal(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        return "\n" not in str(error) and str(path) in str(error)
    return False


class Evil:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile(runs: Runs, rounds: int) -> Iterator[dict[str, Any]]:
    place = runs.place / "hostile"
    place.mkdir()
    mark = place / "executed"
    calls = {
        "system": (os.system, f"touch {mark}"),
        "exec": (exec, f"open({str(mark)!r}, 'w')"),
        "eval": (eval, f"open({str(mark)!r}, 'w')"),
        "open": (open, str(mark), "w"),
        "subprocess": (subprocess.call, ["touch", str(mark)]),
        "popen": (os.popen, f"touch {mark}"),
    }
    files: dict[str, bytes] = {}
    for name, (function, *arguments) in calls.items():
        evil = Evil(function, *arguments)
        for protocol in (0, 2, 4):
            files[f"{name}-{protocol}"] = pickle.dumps({"model_state_dict": evil}, protocol)
        torch.save({"model_state_dict": evil}, place / "a")
        files[f"{name}-zip"] = (place / "a").read_bytes()
        torch.save({"weights": evil}, place / "a", _use_new_zipfile_serialization=False)
        files[f"{name}-legacy"] = (place / "a").read_bytes()
    refused = tracebacks = 0
    for name, content in files.items():
        path = place / f"{name}.pt"
        path.write_bytes(content)
        refused += refusal(path)
        code = runs.run(name, runs.words(f"h-{name}", 0, "--load_path", str(path)))
        tracebacks += code != 2 or "Traceback" in runs.said(name)
    for name, content in archives(place).items():
        (place / f"{name}.pt").write_bytes(content)
        refused += refusal(place / f"{name}.pt")
        files[name] = content
    np.savez(place / "cifar10.npz", train_images=np.array([Evil(*calls["system"])], dtype=object))
    code = runs.run("npz", runs.words("npz", 0, "--dataset", "cifar10", "--data_root", str(place)))
    refused += code == 2
    tracebacks += "Traceback" in runs.said("npz")
    yield row("a foreign file runs no code", refused, len(files) + 1, "refused in one line",
              f"{int(mark.exists())} executed, {tracebacks} tracebacks",
              besides=not mark.exists() and tracebacks == 0)  # fmt: skip


def archives(place: Path) -> dict[str, bytes]:
    """Bombs, and archives of others."""
    found = {}
    torch.save({"weights": torch.zeros(2**22)}, place / "a")
    with zipfile.ZipFile(place / "a") as plain:
        with zipfile.ZipFile(place / "b", "w", zipfile.ZIP_DEFLATED) as bomb:
            for name in plain.namelist():
                bomb.writestr(name, plain.read(name))
        found["bomb"] = (place / "b").read_bytes()
        with zipfile.ZipFile(place / "b", "w") as other:
            other.writestr("../../escaped", b"x")
        found["path"] = (place / "b").read_bytes()
    torch.save({"model_state_dict": {"class_output.weight": torch.zeros(1).expand(10, 2**33)}},
               place / "a")  # fmt: skip
    found["expanded"] = (place / "a").read_bytes()
    found["text"], found["empty"] = b"hello\n", b""
    return found


def refusals(runs: Runs, rounds: int) -> Iterator[dict[str, Any]]:
    """Wrong values of every flag, in processes of their own, as a user gives them."""
    lines, wanted = [], 10 * rounds
    for program, words in (
        ("train_wrn.py", ["--dataset", "digits", "--pyxce", "1"]),
        ("eval_wrn_ebm.py", ["--load_path", "x.pt", "--eval", "OOD"]),
        ("baselines/train_contrastive.py", ["--dataset", "digits", "--method", "supcon"]),
        ("baselines/train_adversarial.py", ["--dataset", "digits"]),
    ):
        text = subprocess.run([sys.executable, ROOT / program, "--help"], capture_output=True,
                              text=True, check=True).stdout  # fmt: skip
        for flag in sorted(set(re.findall(r"^  (--\w+)(?:, --\w+)? [A-Z{\[6]", text, re.M))):
            lines += [(program, [*words, flag, bad], flag) for bad in ("-7.5e9", "x", "nan", "")]
    names = {"--log_dir", "--save_dir", "--id", "--data_root", "--load_path", "--labels"}
    names |= {"--resume", "--dataset", "--datasets", "--ood_dataset", "--inception_weights"}
    names |= {"--fid_model"}  # any text is one
    lines = [line for line in lines if line[2] not in names]
    runs.random.shuffle(lines)
    right, slow, left = 0, 0, set(os.listdir(ROOT))
    for program, words, flag in lines[:wanted]:
        began = time.monotonic()
        told = subprocess.run([sys.executable, ROOT / program, *words], cwd=ROOT,
                              capture_output=True, text=True)  # fmt: skip
        slow += time.monotonic() - began > 2
        said = told.stderr.strip().splitlines()
        right += told.returncode == 2 and len(said) == 1 and flag in said[0]
    new = set(os.listdir(ROOT)) - left
    yield row("bad flags are refused", right, min(wanted, len(lines)),
              "with exit code 2 and one line that names the flag", f"{slow} took more than 2 s",
              f"{len(new)} files left behind", besides=slow == 0 and not new)  # fmt: skip


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """Whether `place` is a file system of this many bytes while it lasts; to mount takes root."""
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
                             capture_output=True).returncode == 0  # fmt: skip
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def disk(runs: Runs, rounds: int) -> Iterator[dict[str, Any]]:
    whole, _ = runs.whole(300)
    needed = (runs.place / whole / LAST).stat().st_size
    good = told = of = 0
    for i in range(rounds):
        place = runs.place / "disk"
        with small_disk(place, int(needed * (1.1 + 2.2 * i / rounds))) as mounted:
            if not mounted:
                break
            of += 1
            inner = Runs(place, 0)
            out = f"disk{i}"
            words = inner.words("run", 300)
            code = runs.run(out, words)
            said = [line for line in runs.said(out).splitlines() if "error:" in line]
            told += code == 2 and len(said) == 1 and str(place) in said[0] and "free" in said[0]
            found = [place / "run" / name for name in (LAST, PREVIOUS)]
            good += all(map(loads, found)) and not list((place / "run").glob(".*.tmp"))
    if of == 0:
        yield row("a full disk destroys nothing", 0, rounds, "sizes", "to mount one takes root")
        return
    yield row("a full disk destroys nothing", good, of, "sizes leave all checkpoints loadable",
              f"{told} of {of} end with one line, with file and free space",
              besides=told == of)  # fmt: skip


def inject(fault: str) -> None:
    """Make one of the steps go wrong, once: "kind step"."""
    kind, at = fault.split()
    real, done = train_wrn.train_step, [False]
    originals = (losses.CrossEntropy.forward, losses.MarginalSGLD.divergence, sgld.langevin)

    def step(run: Any, guard: Any, batch: Any, number: int) -> Any:
        if number != int(at) or done[0]:
            return real(run, guard, batch, number)
        done[0] = True
        buffer = run.memory("replay_buffer").images
        if kind == "rows":
            buffer[: len(buffer) // 2] = math.nan
        if kind == "loss":
            losses.CrossEntropy.forward = lambda self, step: (  # type: ignore[method-assign]
                step.logits.sum() * math.nan, {})  # fmt: skip
        if kind == "energy":
            losses.MarginalSGLD.divergence = lambda self, data, samples: (  # type: ignore[method-assign]
                data.mean() * math.inf,
                {"log_q_data": data.mean() * math.inf, "log_q_samples": samples.mean()},
            )
        if kind == "chain":
            sgld.langevin = lambda *a, **k: nan_in_one(originals[2](*a, **k))
        if kind == "longer":
            sgld.langevin = lambda f, x, **k: originals[2](
                f, x, **{**k, "step_size": 1e3 * k["step_size"], "noise_std": 1e3})  # fmt: skip
        try:
            return real(run, guard, batch, number)
        finally:
            losses.CrossEntropy.forward = originals[0]  # type: ignore[method-assign]
            losses.MarginalSGLD.divergence = originals[1]  # type: ignore[method-assign]
            sgld.langevin = originals[2]

    train_wrn.train_step = step
    divergence.SNAPSHOT_EVERY = 20


def nan_in_one(samples: torch.Tensor) -> torch.Tensor:
    samples[0, 0, 0, 0] = math.nan
    return samples


def faults(runs: Runs, rounds: int) -> Iterator[dict[str, Any]]:
    finished = logged = of = 0
    for i in range(math.ceil(rounds * 1.5)):
        kind = ("loss", "energy", "chain", "longer", "rows")[i % 5]
        name = f"fault{i}"
        code = runs.run(name, runs.words(name, i), f"{kind} {runs.random.randrange(1, 298)}")
        of += 1
        state = read_checkpoint(runs.place / name / LAST)
        weights = state["model_state_dict"].values()
        finished += code == 0 and all(bool(tensor.isfinite().all()) for tensor in weights)
        text = (runs.place / name / "log.txt").read_text(encoding="utf-8")
        events = len(
            re.findall(r"^diverged at step \d+ \(.*: back to step .*; restart", text, re.M)
        )
        logged += events == state["progress"]["restarts"] and (events > 0 or kind == "longer")
    yield row("divergence heals", finished, of, "runs with a fault finish, and are finite",
              f"{logged} of {of} log each event with cause and action",
              besides=logged == of)  # fmt: skip


def repeat(runs: Runs, rounds: int) -> Iterator[dict[str, Any]]:
    for name in ("one", "two"):
        assert runs.run(name, runs.words(name, 7, "--max_steps", "100")) == 0, runs.said(name)
    yield row("same seed, same run", int(runs.same("one", "two")), 1, "pair of 100 steps")


# ------------------------------------------------------------------------------------------ main


def main(args: Namespace) -> int:
    CONTEXT.set_forkserver_preload(list(PRELOADED))
    table: dict[str, Callable[[Runs, int], Iterator[dict[str, Any]]]] = {
        **{"kills": kills, "signals": signals, "damage": damage, "hostile": hostile},
        **{"refusals": refusals, "disk": disk, "faults": faults, "repeat": repeat},
    }
    args.output.mkdir(parents=True, exist_ok=True)
    where = records.environment(torch.device("cpu"))
    found, began = [], time.monotonic()
    for section in args.sections:
        print_line(section, sys.stderr)
        with tempfile.TemporaryDirectory() as place:
            for result in table[section](Runs(Path(place), args.seed), args.rounds):
                found.append({"section": section, **result})
                print_line(f"  {result['reached']}; {'; '.join(result['notes'])}", sys.stderr)
    command = (
        f"python scripts/torture.py --sections {' '.join(args.sections)} --rounds {args.rounds}"
    )
    record = {"command": command, "seconds": time.monotonic() - began, "environment": where,
              "promises": found}  # fmt: skip
    (args.output / "torture.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = markdown(record)
    (args.output / "torture.md").write_text(text, encoding="utf-8")
    print_line(text, sys.stdout)
    return 0 if all(result["kept"] for result in found) else 1


def markdown(record: dict[str, Any]) -> str:
    where = record["environment"]
    lines = ["# What a run survives", "", f"    {record['command']}", ""]
    lines += [f"{where['device']}, PyTorch {where['torch_build']}, commit {where['git_commit']}; "
              f"{record['seconds'] / 60:.0f} minutes", ""]  # fmt: skip
    lines += ["| promise | reached |", "|---|---|"]
    for result in record["promises"]:
        lines.append(
            f"| {result['promise']} | {'; '.join([result['reached'], *result['notes']])} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(ARGS))
