"""The parts of scripts/gpu.sh but its tests: each saves what it measures as it goes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

import data
import eval_wrn_ebm
import losses
import models
import train_wrn
from benchmarks import flags, measure
from evaluation import flags as questions
from runs.files import read_json, write_json
from runs.screen import print_line
from training import cost
from training import flags as train_flags
from training.build import build_model
from training.machine import choose_device, environment

Row = dict[str, Any]


COMPILED, GRAPH = "compiled", "CUDA graph of a step"
CASES = (  # a training step's name, and the flags of scripts/bench.py that make it
    ("CE", "--terms CE"),
    ("HDGE", "--terms HDGE --straightforward"),
    ("HDGE", "--terms HDGE --straightforward --classes 100"),
    ("JEM", "--terms JEM --straightforward"),
    (flags.STABLE, f"--terms {flags.STABLE}"),
    ("HDGE+JEM", "--terms HDGE+JEM"),
    ("HDGE, batch x 4", "--terms HDGE --batch_size 256"),
    ("HDGE, without bf16", "--terms HDGE --amp off"),
    (f"HDGE, {COMPILED}", "--terms HDGE --compile on"),
)
WAYS = ("as in training", GRAPH, COMPILED)  # to run a chain
PROFILED = ("HDGE", "JEM")
LARGEST = 10  # kernels that the profile names
NO_TIME = "no time was left"
# The network that is trained, and the one whose features compare its samples.
NETWORK = "--depth 16 --width 4 --batch_size 128 --buffer_size 1000"
JUDGE = (
    "--dataset cifar10 --pyxce 1 --depth 16 --width 2 --norm batch --optimizer sgd --lr .1 "
    "--batch_size 128 --weight_decay 5e-4 --sigma 0"
)
REHEARSED = "--dataset digits --image_size 16 --depth 10 --width 1 --batch_size 32"
REHEARSED_CHAINS = "--buffer_size 100 --sgld_batch_size 32"
QUESTIONS = (  # the most telling ones first
    "test_clf --sigma 0",
    "cond_samples --fresh_samples --buffer_size {images} --sgld_batch_size {images} "
    "--n_sample_steps 1 --n_steps 40 --guidance .1 --fid_model {judge}",
    "OOD --score_fn px py --ood_dataset {sets} --max_images {images} --sigma 0",
    "fid --fid_features model --fid_model {judge} --n_samples {images} "
    "--n_steps 40 --chain_lengths 0 5 40 100",
    "eval_ece --sigma 0",
)


@dataclass
class Part:
    """The flags, the folder of the runs, when to end (of time.monotonic()), and what archives the
    runs; `found`: what OUT's bench.json has."""

    g: Namespace
    runs: Path
    until: float
    archive: Callable[[], None]
    device: torch.device = field(init=False)
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = choose_device("cpu" if self.g.rehearse else "cuda")
        with suppress(FileNotFoundError):
            self.found = read_json(self.g.out / "bench.json")

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until

    def save(self, **more: Any) -> None:
        self.found.update(more)
        write_json(self.g.out / "bench.json", self.found)

    def work_off(self, work: Sequence[tuple[str, str, Callable[[], list[Row]]]]) -> None:
        """Save the rows of each (section, name, function) as soon as they are measured. Name those
        for which there was no time, also where this is killed, or no memory."""
        found: dict[str, list[Row]] = {section: [] for section, *_ in work}
        left_out = {f"{section}: {name}": NO_TIME for section, name, _ in work}
        left_out = self.found.get("left_out", {}) | left_out
        self.save(left_out=left_out)
        for section, name, rows in work:
            if self.late:
                return
            what = f"{section}: {name}"
            measure.say(what)
            try:
                found[section] += rows()
                del left_out[what]
            except Exception as error:  # of memory, a compiler or CUDA: the others are measured
                left_out[what] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.save(**found)

    def bench(self, words: str = "") -> measure.Bench:
        """Return the benchmark of these flags and its preset for a GPU, or of a small network to
        rehearse; of one step without the straightforward one, and not compiled."""
        preset = "quick" if self.g.rehearse else "gpu"
        own = f"--preset {preset} --device {self.device.type} --no-straightforward --compile off"
        own += " --workers 0" * self.g.rehearse
        b = flags.parse([*own.split(), *words.split()])
        return measure.Bench(flags.complete(b, preset), self.device)


def run(name: str, part: Part) -> None:
    parts = {"machine": machine, "steps": steps, "profile": profile, "training": training}
    settings = {**vars(part.bench().b), "output": "", "device": str(part.device)}
    part.save(settings=settings, environment=environment(part.device))
    parts[name](part)


def machine(part: Part) -> None:
    """Save the GPU's name, versions, matrix rates and the bandwidth of a copy in memory."""
    if part.device.type == "cuda":
        about, driver = torch.cuda.get_device_properties(part.device), ""
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError):  # it is not everywhere
            told = subprocess.run(query, capture_output=True, text=True, check=False)
            driver = told.stdout.partition("\n")[0]
        part.save(machine={
            "name": about.name, "memory": about.total_memory,
            "multiprocessors": about.multi_processor_count, "driver": driver or None,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        })  # fmt: skip
    part.save(peaks=measure.peaks(part.bench()))
    source = torch.rand(2**24 if part.g.rehearse else 2**28, device=part.device)
    target = torch.empty_like(source)
    seconds = min(measure.alternate({"": lambda: target.copy_(source)}, turns=8)[""])
    part.save(copy_bytes_per_s=2 * 4 * source.numel() / seconds)


# ------------------------------------------------------------------------------- steps and chains


def steps(part: Part) -> None:
    """Measure each step of CASES and each of WAYS to run a chain, those that are compiled last."""
    rates = part.found.get("peaks") or measure.peaks(part.bench())
    ways = [way for way in WAYS if way != GRAPH or part.device.type == "cuda"]
    work: list[tuple[str, str, Callable[[], list[Row]]]] = [
        *(
            ("steps", f"{name} ({words})", partial(step_rows, part, name, words, rates))
            for name, words in CASES
        ),
        *(("chain", way, partial(chain_rows, part, way)) for way in ways),
    ]
    part.work_off(sorted(work, key=lambda item: COMPILED in item[1]))


def step_rows(part: Part, name: str, words: str, rates: dict[str, float]) -> list[Row]:
    """Return the rows of a step and, of those asked for, its straightforward twin."""
    bench = part.bench(words)
    bench.rates = rates
    found = measure.step_rows(bench, bench.b.terms[0], bench.b.classes[0])
    return [{**row, "terms": name} for row in found]


def chain_rows(part: Part, way: str) -> list[Row]:
    """Return the row of a chain that is run in one of WAYS: its first and its median seconds."""
    bench = part.bench("--compile on" * (way == COMPILED))
    s = flags.step_settings(bench.b, "JEM", 10)
    x = torch.rand(s.sgld_batch_size, 3, 32, 32, device=part.device) * 2 - 1
    x = x.contiguous(memory_format=torch.channels_last)
    model = build_model(s, 10, part.device).eval().requires_grad_(False)
    chain = losses.Chain.of(s)
    started = measure.clock()
    call = captured(chain, model, x) if way == GRAPH else partial(chain.climb, model.log_px, x)
    call()
    first = measure.clock() - started
    times = measure.alternate({"": call}, turns=bench.b.turns, seconds=bench.b.seconds)[""]
    flop = 2 * s.n_steps * s.sgld_batch_size * bench.forward_flops(10)
    return [{"way": way, "steps": s.n_steps, "flop": flop, "first": first,
             "seconds": median(times)}]  # fmt: skip


def captured(
    chain: losses.Chain, model: models.EnergyClassifier, x: torch.Tensor
) -> Callable[[], object]:
    """Capture one Langevin step as a CUDA graph; return the chain: as many replays of it."""
    one, held = losses.Chain(1, chain.step_size, chain.noise_std), x.clone()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what only the first calls do must not be captured
            one.climb(model.log_px, held)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held.copy_(one.climb(model.log_px, held))

    def replays() -> None:
        held.copy_(x)
        for _ in range(chain.steps):
            graph.replay()

    return replays


# ------------------------------------------------------------------------------------ the profile


def profile(part: Part) -> None:
    """Measure for a step of HDGE and of JEM: the kernels that take most time, the share of the time
    in which the GPU is idle, and how often the host waits."""
    bench = part.bench()

    def rows(terms: str) -> list[Row]:
        with measure.contenders(bench, terms, 10) as (_, found):
            return [{"terms": terms, **profiled(found[flags.PROJECT].step, part.device)}]

    part.work_off([("profile", terms, partial(rows, terms)) for terms in PROFILED])


def profiled(step: Callable[[], None], device: torch.device) -> Row:
    """Return what torch.profiler sees of one step, after three that warm up."""
    gpu = device.type == "cuda"
    for _ in range(3):
        step()
    measure.clock()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as seen:
        with record_function("whole step"):
            step()
        measure.clock()
    every = list(seen.events() or [])
    where = DeviceType.CUDA if gpu else DeviceType.CPU
    events = [e for e in every if e.device_type == where and not e.is_user_annotation]
    kernels: dict[str, list[float]] = {}
    for event in events:
        took = event.time_range.elapsed_us() if gpu else event.self_cpu_time_total
        kernels.setdefault(event.name, []).append(took)
    busy = sum(map(sum, kernels.values()))
    begins = min(e.time_range.start for e in events)
    span = max(e.time_range.end for e in events) - begins
    on_host = [e for e in every if e.device_type == DeviceType.CPU]
    (whole,) = (e.time_range for e in on_host if e.name == "whole step")
    # Of cudaStreamSynchronize and its like; the wait after the step is this function's own.
    waits = sum("Synchronize" in e.name and e.time_range.start < whole.end for e in on_host)
    largest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:LARGEST]
    return {
        "span": span / 1e6,
        "idle": max(0.0, 1 - busy / span) if gpu else None,
        "waits": waits if gpu else None,
        "launches": len(events),
        "kernels": [
            {"name": name, "calls": len(times), "share": sum(times) / busy}
            for name, times in largest
        ],
    }


# ----------------------------------------------------------------------------------- the training


def training(part: Part) -> None:
    """Train a judge, then M-JEM for as many epochs as there is time for, and ask about it."""
    place = ["--data_root", str(part.g.data_root), "--device", part.device.type]
    make = [*place, "--log_dir", str(part.runs), "--compile", "off"]
    small = REHEARSED.split() if part.g.rehearse else []
    judge, jem = part.runs / "judge", part.runs / "m-jem"
    if not (judge / "last_ckpt.pt").exists():
        words = [*JUDGE.split(), *small]
        plan = planned(words, make, min(60, 0.15 * (part.until - time.monotonic())))
        train([*words, *plan, *make, "--seed", "9", "--id", judge.name])
    left = part.until - time.monotonic()
    seconds = left - max(0.2 * left, min(40, 0.5 * left))  # the rest is for the questions
    if (jem / "last_ckpt.pt").exists():
        train(["--resume", str(jem), "--max_minutes", str(seconds / 60), *place[:2]])
    else:
        size = [*small, *REHEARSED_CHAINS.split()] if small else NETWORK.split()
        words = ["@m-jem", *size]
        plan = planned(words, make, seconds, part.g.calls)
        train([*words, *plan, *make, "--seed", "1", "--id", jem.name, "--plot_cond"])
    shutil.rmtree(jem / "eval", ignore_errors=True)  # an earlier call's, of fewer steps
    part.archive()
    ask(part, jem, judge, place)


def train(words: Sequence[str]) -> None:
    print_line(f"python train_wrn.py {' '.join(words)}", sys.stdout)
    train_wrn.main(*train_flags.parse(words))


def ask(part: Part, jem: Path, judge: Path, place: Sequence[str]) -> None:
    """Ask about what was trained; each answer is archived with the run as it comes."""
    there = [name for name in ("svhn", "cifar100") if (part.g.data_root / f"{name}.npz").exists()]
    sets = " ".join(["cifar10interp", *there] * (not part.g.rehearse) + ["uniform"])
    images = 100 if part.g.rehearse else 1000

    def answer(question: str) -> list[Row]:
        words = question.format(judge=judge / "last_ckpt.pt", images=images, sets=sets).split()
        words = ["--load_path", str(jem / "last_ckpt.pt"), "--eval", *words, *place]
        print_line(f"python eval_wrn_ebm.py {' '.join(words)}", sys.stdout)
        if code := eval_wrn_ebm.main(*questions.parse(words)):
            raise RuntimeError(f"exit code {code}")
        part.archive()
        return []

    part.work_off([("ask", each.split()[0], partial(answer, each)) for each in QUESTIONS])


def planned(
    words: Sequence[str], place: Sequence[str], seconds: float, calls: float = 1
) -> list[str]:
    """Return the flags of the schedule that fills the seconds of so many calls, from the time that
    a step takes here: epochs, warm-up, decays at 30, 60 and 90 % of them, and a limit."""
    s, _ = train_flags.parse([*words, *place])
    dataset, spec = data.load(s.dataset, s.data_root, size=s.image_size), data.describe(s.dataset)
    model = build_model(s, dataset.num_classes, choose_device(s.device))
    n, forward = len(dataset.train.labels), models.forward_flops(model)
    n_valid = data.default_n_valid(n)
    per_epoch = data.steps_per_epoch(n - n_valid, s.batch_size)
    evaluated = (n_valid + len(dataset.test.labels)) * forward / cost.step_flops(forward, s)
    step = cost.time_steps(model, s, spec, 5, train_wrn.train_step)
    epochs = max(4, int(0.9 * calls * seconds / ((per_epoch + evaluated) * step)))
    decays = sorted({max(1, round(share * epochs)) for share in (0.3, 0.6, 0.9)})
    warm_up = max(1, min(1000, per_epoch * epochs // 10))
    return ["--n_epochs", str(epochs), "--decay_epochs", *map(str, decays), "--warmup_iters",
            str(warm_up), "--max_minutes", str(seconds / 60)]  # fmt: skip
