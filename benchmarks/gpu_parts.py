"""The parts of scripts/gpu.sh, except its tests. Each part saves every measurement at once."""

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
from evaluation import flags as eval_flags
from runs.files import file_sha256, read_json, write_json
from runs.screen import print_line
from scripts.done import answered
from training import cost
from training import flags as train_flags
from training.build import build_model
from training.machine import choose_device, environment

Row = dict[str, Any]

COMPILED, GRAPH = "compiled", "CUDA graph of a step"
CASES = (  # a training step's name in the table, and its flags of scripts/bench.py
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
WAYS = ("as in training", GRAPH, COMPILED)  # ways to run a chain
PROFILED = ("HDGE", "JEM")
LARGEST = 10  # number of kernels in the profile's table
NO_TIME = "no time was left"
NO_STEP = "no step or no time was left: give --calls 2 to the first call"
# Flags of the trained network, and of the judge: a classifier whose features the FID uses.
NETWORK = "--depth 16 --width 4 --batch_size 128 --buffer_size 1000"
JUDGE = (
    "--dataset cifar10 --pyxce 1 --depth 16 --width 2 --norm batch --optimizer sgd --lr .1 "
    "--batch_size 128 --weight_decay 5e-4 --sigma 0"
)
REHEARSED = "--dataset digits --image_size 16 --depth 10 --width 1 --batch_size 32"
REHEARSED_CHAINS = "--buffer_size 100 --sgld_batch_size 32"
QUESTIONS = (  # flags of eval_wrn_ebm.py, in order of importance: time may run out
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
    """A part's flags, the folder of its runs, and its time limit."""

    args: Namespace
    runs: Path
    deadline: float  # in time.monotonic()
    archive: Callable[[], None]  # writes the runs to OUT
    device: torch.device = field(init=False)
    record: dict[str, Any] = field(default_factory=dict)  # the content of OUT's bench.json

    def __post_init__(self) -> None:
        self.device = choose_device("cpu" if self.args.rehearse else "cuda")
        with suppress(FileNotFoundError):
            self.record = read_json(self.args.out / "bench.json")

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    def save(self, **entries: Any) -> None:
        self.record.update(entries)
        write_json(self.args.out / "bench.json", self.record)

    def measure_all(self, tasks: Sequence[tuple[str, str, Callable[[], list[Row]]]]) -> None:
        """Save the rows of each task (section, name, function) as soon as they are measured, and as
        "left_out" the tasks that fail or that, after the deadline or a kill, are not measured."""
        sections: dict[str, list[Row]] = {section: [] for section, *_ in tasks}
        unmeasured = {f"{section}: {name}": NO_TIME for section, name, _ in tasks}
        left_out = self.record.get("left_out", {}) | unmeasured
        self.save(left_out=left_out)
        for section, name, rows in tasks:
            if self.late:
                return
            title = f"{section}: {name}"
            measure.log(title)
            try:
                sections[section] += rows()
                del left_out[title]
            except Exception as error:  # of memory, a compiler or CUDA: go on with the next task
                left_out[title] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.save(**sections, left_out=left_out)

    def bench(self, options: str = "") -> measure.Bench:
        """Return the benchmark of these options of scripts/bench.py. Defaults: the preset for a GPU
        or a rehearsal, no straightforward step, no compilation."""
        preset = "quick" if self.args.rehearse else "gpu"
        argv = f"--preset {preset} --device {self.device.type} --no-straightforward --compile off"
        argv += " --workers 0" * self.args.rehearse
        args = flags.parse(f"{argv} {options}".split())
        return measure.Bench(flags.complete(args, preset), self.device)


def run(name: str, part: Part) -> None:
    parts = {"machine": machine, "steps": steps, "profile": profile, "training": training}
    settings = {**vars(part.bench().args), "output": "", "device": str(part.device)}
    part.save(settings=settings, environment=environment(part.device))
    parts[name](part)


def machine(part: Part) -> None:
    """Save the GPU's name, versions, matrix rates and the bandwidth of a copy in memory."""
    if part.device.type == "cuda":
        gpu, driver = torch.cuda.get_device_properties(part.device), ""
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with suppress(OSError):  # not every machine has nvidia-smi
            process = subprocess.run(query, capture_output=True, text=True, check=False)
            driver = process.stdout.partition("\n")[0]
        part.save(machine={
            "name": gpu.name, "memory": gpu.total_memory,
            "multiprocessors": gpu.multi_processor_count, "driver": driver or None,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        })  # fmt: skip
    part.save(peaks=measure.peaks(part.bench()))
    source = torch.rand(2**24 if part.args.rehearse else 2**28, device=part.device)
    target = torch.empty_like(source)
    seconds = min(measure.alternate({"": lambda: target.copy_(source)}, turns=8)[""])
    part.save(copy_bytes_per_s=2 * 4 * source.numel() / seconds)


# ------------------------------------------------------------------------------- steps and chains


def steps(part: Part) -> None:
    """Measure each training step of CASES and a chain in each of WAYS; compiled tasks are last."""
    rates = part.record.get("peaks") or measure.peaks(part.bench())
    part.save(peaks=rates)  # not in the record unless the part `machine` has run
    ways = [way for way in WAYS if way != GRAPH or part.device.type == "cuda"]
    tasks: list[tuple[str, str, Callable[[], list[Row]]]] = [
        *(
            ("steps", f"{name} ({options})", partial(step_rows, part, name, options, rates))
            for name, options in CASES
        ),
        *(("chain", way, partial(chain_rows, part, way)) for way in ways),
    ]
    part.measure_all(sorted(tasks, key=lambda task: COMPILED in task[1]))


def step_rows(part: Part, name: str, options: str, rates: dict[str, float]) -> list[Row]:
    """Return the row of a step and, with --straightforward, of the straightforward step."""
    bench = part.bench(options)
    bench.rates = rates
    rows = measure.step_rows(bench, bench.args.terms[0], bench.args.classes[0])
    return [{**row, "terms": name} for row in rows]


def chain_rows(part: Part, way: str) -> list[Row]:
    """Return the row of a chain run in one of WAYS: seconds of the first call, and the median."""
    bench = part.bench("--compile on" * (way == COMPILED))
    s = flags.step_settings(bench.args, "JEM", 10)
    x = torch.rand(s.sgld_batch_size, 3, 32, 32, device=part.device) * 2 - 1
    x = x.contiguous(memory_format=torch.channels_last)
    model = measure.build_network(s, 10, part.device).eval().requires_grad_(False)
    chain = losses.Chain.of(s)
    started = measure.clock()
    call = capture(chain, model, x) if way == GRAPH else partial(chain.climb, model.log_px, x)
    call()
    first = measure.clock() - started
    times = measure.alternate({"": call}, turns=bench.args.turns, seconds=bench.args.seconds)[""]
    flop = 2 * s.n_steps * s.sgld_batch_size * bench.forward_flops(10)
    return [{"way": way, "steps": s.n_steps, "flop": flop, "first": first,
             "seconds": median(times)}]  # fmt: skip


def capture(
    chain: losses.Chain, model: models.EnergyClassifier, x: torch.Tensor
) -> Callable[[], object]:
    """Capture one Langevin step as a CUDA graph. Return a function that runs the chain from x: it
    replays the graph chain.steps times."""
    step, samples = losses.Chain(1, chain.step_size, chain.noise_std), x.clone()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # the graph must not contain the set-up work of first calls
            step.climb(model.log_px, samples)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        samples.copy_(step.climb(model.log_px, samples))

    def replay() -> None:
        samples.copy_(x)
        for _ in range(chain.steps):
            graph.replay()

    return replay


# ------------------------------------------------------------------------------------ the profile


def profile(part: Part) -> None:
    """Profile a step of HDGE and of JEM: the kernels that take most time, the share of the time in
    which the GPU is idle, and how often the host waits."""
    bench = part.bench()

    def rows(terms: str) -> list[Row]:
        with measure.contenders(bench, terms, 10) as (_, by_label):
            return [{"terms": terms, **profile_step(by_label[flags.PROJECT].step, part.device)}]

    part.measure_all([("profile", terms, partial(rows, terms)) for terms in PROFILED])


def profile_step(step: Callable[[], None], device: torch.device) -> Row:
    """Return the row of one step under torch.profiler, after three steps to warm up."""
    gpu = device.type == "cuda"
    for _ in range(3):
        step()
    measure.clock()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        with record_function("whole step"):
            step()
        measure.clock()
    events = list(profiler.events() or [])
    kernel_device = DeviceType.CUDA if gpu else DeviceType.CPU
    launches = [e for e in events if e.device_type == kernel_device and not e.is_user_annotation]
    kernels: dict[str, list[float]] = {}  # microseconds of each launch, by kernel
    for event in launches:
        duration = event.time_range.elapsed_us() if gpu else event.self_cpu_time_total
        kernels.setdefault(event.name, []).append(duration)
    busy = sum(map(sum, kernels.values()))
    begin = min(e.time_range.start for e in launches)
    span = max(e.time_range.end for e in launches) - begin
    on_host = [e for e in events if e.device_type == DeviceType.CPU]
    (whole,) = (e.time_range for e in on_host if e.name == "whole step")
    # Calls such as cudaStreamSynchronize, without the call of measure.clock() after the step.
    waits = sum("Synchronize" in e.name and e.time_range.start < whole.end for e in on_host)
    largest = sorted(kernels.items(), key=lambda kernel: -sum(kernel[1]))[:LARGEST]
    return {
        "span": span / 1e6,
        "idle": max(0.0, 1 - busy / span) if gpu else None,
        "waits": waits if gpu else None,
        "launches": len(launches),
        "kernels": [
            {"name": name, "calls": len(times), "share": sum(times) / busy}
            for name, times in largest
        ],
    }


# ----------------------------------------------------------------------------------- the training


def training(part: Part) -> None:
    """Train a judge, then M-JEM for as many epochs as fit in the time, and evaluate M-JEM. Of a
    training that fails, evaluate the last checkpoint. Where a resumed M-JEM takes no step, list it
    as left out, and keep its answers."""
    data_flags = ["--data_root", str(part.args.data_root)]
    common = [*data_flags, "--device", part.device.type]
    new_run = [*common, "--log_dir", str(part.runs), "--compile", "off"]
    small = REHEARSED.split() if part.args.rehearse else []
    judge, jem = part.runs / "judge", part.runs / "m-jem"
    seconds = min(60, 0.15 * (part.deadline - time.monotonic()))
    if (judge / "last_ckpt.pt").exists():  # nothing is left to do unless the call was interrupted
        train(part, judge, [*resume(judge, seconds), *data_flags])
    else:
        argv = [*JUDGE.split(), *small]
        schedule = plan([*argv, *new_run], seconds)
        train(part, judge, [*argv, *schedule, *new_run, "--seed", "9", "--id", judge.name])
    total = part.deadline - time.monotonic()
    seconds = total - max(0.2 * total, min(40, 0.5 * total))  # the rest is for `evaluate`
    if (last := jem / "last_ckpt.pt").exists():
        before = file_sha256(last)
        train(part, jem, [*resume(jem, seconds), *data_flags])
        if file_sha256(last) != before:
            shutil.rmtree(jem / "eval", ignore_errors=True)  # of an earlier call, after fewer steps
        else:
            part.save(left_out={f"train: {jem.name}": NO_STEP} | part.record["left_out"])
    else:
        size = [*small, *REHEARSED_CHAINS.split()] if small else NETWORK.split()
        argv = ["@m-jem", *size]
        schedule = plan([*argv, *new_run], seconds, part.args.calls)
        argv += [*schedule, *new_run, "--seed", "1", "--id", jem.name, "--plot_cond"]
        train(part, jem, argv)
    part.archive()
    evaluate(part, jem, judge, common)


def resume(folder: Path, seconds: float) -> list[str]:
    """Return the flags that train the run in `folder` for so many seconds more."""
    return ["--resume", str(folder), "--max_minutes", str(seconds / 60)]


def train(part: Part, folder: Path, argv: Sequence[str]) -> None:
    """Train the run in `folder`. List it as left out if it fails: a signal is no failure."""

    def run_training() -> list[Row]:
        print_line(f"python train_wrn.py {' '.join(argv)}", sys.stdout)
        if (code := train_wrn.main(*train_flags.parse(argv))) in (1, 2):
            raise RuntimeError(f"exit code {code}: its numbers are of its last checkpoint")
        return []

    part.measure_all([("train", folder.name, run_training)])


def evaluate(part: Part, jem: Path, judge: Path, common: Sequence[str]) -> None:
    """Run the QUESTIONS on M-JEM that are not answered yet; archive the runs with the results after
    each question."""
    root = part.args.data_root
    optional = [name for name in ("svhn", "cifar100") if (root / f"{name}.npz").exists()]
    sets = " ".join(["cifar10interp", *optional] * (not part.args.rehearse) + ["uniform"])
    images = 100 if part.args.rehearse else 1000

    def flags_of(question: str) -> list[str]:
        argv = question.format(judge=judge / "last_ckpt.pt", images=images, sets=sets).split()
        return ["--load_path", str(jem / "last_ckpt.pt"), "--eval", *argv, *common]

    def run_question(argv: list[str]) -> list[Row]:
        print_line(f"python eval_wrn_ebm.py {' '.join(argv)}", sys.stdout)
        if code := eval_wrn_ebm.main(*eval_flags.parse(argv)):
            raise RuntimeError(f"exit code {code}")
        part.archive()
        return []

    asked = {question.split()[0]: flags_of(question) for question in QUESTIONS}
    open_ones = {q: argv for q, argv in asked.items() if not answered(jem / "eval", ["", *argv])}
    part.measure_all([("ask", q, partial(run_question, argv)) for q, argv in open_ones.items()])


def plan(argv: Sequence[str], seconds: float, calls: float = 1) -> list[str]:
    """Return the flags of a schedule that fills `calls` calls of so many seconds, by the measured
    time of a step: epochs, warm-up, decays at 30, 60 and 90 % of the epochs, and a time limit."""
    s, _ = train_flags.parse(argv)
    dataset, spec = data.load(s.dataset, s.data_root, size=s.image_size), data.describe(s.dataset)
    model = build_model(s, dataset.num_classes, choose_device(s.device))
    n, forward = len(dataset.train.labels), models.forward_flops(model)
    n_valid = data.default_n_valid(n)
    per_epoch = data.steps_per_epoch(n - n_valid, s.batch_size)
    # The evaluation of an epoch costs as much as this many training steps.
    eval_steps = (n_valid + len(dataset.test.labels)) * forward / cost.step_flops(forward, s)
    step_seconds = cost.time_steps(model, s, spec, 5, train_wrn.train_step)
    epochs = max(4, int(0.9 * calls * seconds / ((per_epoch + eval_steps) * step_seconds)))
    decays = sorted({max(1, round(share * epochs)) for share in (0.3, 0.6, 0.9)})
    warm_up = max(1, min(1000, per_epoch * epochs // 10))
    return ["--n_epochs", str(epochs), "--decay_epochs", *map(str, decays), "--warmup_iters",
            str(warm_up), "--max_minutes", str(seconds / 60)]  # fmt: skip
