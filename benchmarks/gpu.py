"""What scripts/gpu.sh runs: a GPU's tests, the speed of a step, a profile, and a training run.

Each part is a process of its own with its share of the minutes; it writes into OUT as it goes.
OUT has eight files at most: log.txt, parts.json, tests.xml, bench.json, and run.tar.0, .1, ...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

BEGAN = time.monotonic()
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

import json  # noqa: E402
import math  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import tarfile  # noqa: E402
import tempfile  # noqa: E402
import traceback  # noqa: E402
from argparse import Namespace  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from functools import partial  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

from benchmarks import flags, sheets  # noqa: E402
from runs.cli import POSITIVE, Parser, UsageError  # noqa: E402
from runs.files import write_json  # noqa: E402
from runs.names import data_root  # noqa: E402
from runs.screen import print_line  # noqa: E402

PROGRAM = "gpu.sh"
SHARES = {"machine": 15, "tests": 60, "steps": 150, "profile": 20, "training": 0}  # s of 9 minutes
SPARE = 20  # seconds at the end, for the archive and for a part that ends late
LATE = "took too long"  # in place of an exit code: what it had measured is there
PIECE = 15 * 2**20  # bytes of a file of the archive


class Case(NamedTuple):
    """A training step: its terms and classes, what is `times` the preset's, flags of the machine,
    and whether the straightforward step is timed beside it."""

    name: str
    terms: str
    classes: int = 10
    times: dict[str, int] = {}  # noqa: RUF012
    machine: dict[str, str] = {}  # noqa: RUF012
    beside: bool = False


CASES = (
    Case("CE", "CE"),
    Case("HDGE", "HDGE", beside=True),
    Case("HDGE", "HDGE", 100, beside=True),
    Case("JEM", "JEM", beside=True),
    Case(flags.STABLE, flags.STABLE),
    Case("HDGE+JEM", "HDGE+JEM"),
    Case("HDGE, batch x 4", "HDGE", times={"batch_size": 4}),
    Case("HDGE, float32", "HDGE", machine={"amp": "off"}),
    Case("HDGE, compiled", "HDGE", machine={"compile": "on"}),
)
GRAPH, COMPILED = "CUDA graph of a step", "compiled"
WAYS = ("as in training", GRAPH, COMPILED)  # to run a chain
PROFILED = ("HDGE", "JEM")
LARGEST = 10  # kernels that the profile names
WAITS = ("Synchronize", "_local_scalar_dense")  # in the names of calls by which the host waits
# The network that is trained, and the one whose features compare its samples.
NETWORK = "--depth 16 --width 4 --batch_size 128 --buffer_size 1000"
JUDGE = (
    "--dataset cifar10 --pyxce 1 --depth 16 --width 2 --norm batch --optimizer sgd --lr .1 "
    "--batch_size 128 --weight_decay 5e-4 --sigma 0"
)
SMALL = "--depth 10 --width 1 --batch_size 32 --buffer_size 100 --sgld_batch_size 32"
SMALL_JUDGE = "--depth 10 --width 1 --batch_size 32"
SHORT_DIGITS = "--dataset digits --image_size 16"  # of a rehearsal without CIFAR-10
QUESTIONS = (  # the most telling ones first
    "test_clf --sigma 0",
    "cond_samples --fresh_samples --buffer_size {images} --sgld_batch_size {images} "
    "--n_sample_steps 1 --n_steps 40 --fid_model {judge}",
    "OOD --score_fn px py --ood_dataset {sets} --max_images {images} --sigma 0",
    "fid --fid_features model --fid_model {judge} --sampling class --n_samples {images} "
    "--n_steps 40 --chain_lengths 0 5 40 100",
    "eval_ece --sigma 0",
)


# fmt: off
def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, allow_abbrev=False, description=(
        "Say in minutes how this code runs on a GPU. Then: python scripts/bench.py collect OUT"))
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder of the results; empty, or not there yet")
    add("--minutes", type=POSITIVE, default=None, metavar="MINUTES",
        help="time for all parts together (default: 9; 3 with --rehearse)")
    add("--rehearse", action="store_true", help="the same parts on the CPU, with small networks")
    add("--parts", nargs="+", choices=tuple(SHARES), default=list(SHARES), metavar="PART",
        help=f"some of {', '.join(SHARES)} (default: all)")
    add("--data_root", type=Path, default=Path(data_root()), metavar="FOLDER",
        help="with cifar10.npz, or sheets of benchmarks/sheets.py, or torchvision's files "
        "(default: $HDGE_DATA_ROOT, else ./datasets)")
    add("--calls", type=POSITIVE, default=1, metavar="N",
        help="calls that the training is planned for: the next ones --resume (default: 1)")
    add("--resume", type=Path, default=None, metavar="OLD",
        help="train on from the run.tar.* in this folder, an earlier call's OUT")
    add("--part", default=None, metavar="PART SECONDS WORK", nargs=3,
        help="for gpu.sh itself: one part in this process, with a folder for large files")
    return parser


# fmt: on
# ------------------------------------------------------------------------------------- the parts


def settings(g: Namespace, **changes: Any) -> Namespace:
    """Return the flags of the benchmark, those of the network made smaller to rehearse."""
    preset = "quick" if g.rehearse else "gpu"
    b = flags.parse(["--preset", preset, "--device", "cpu" if g.rehearse else "cuda"])
    vars(b).update({"compile": "off", "workers": 0, **changes})
    return flags.complete(b, preset)


def machine(g: Namespace, save: Callable[..., None], until: float, work: Path) -> None:
    """Save the machine's name, versions, matrix rates and the bandwidth of a copy in memory."""
    import torch

    from benchmarks import measure
    from training.machine import choose_device, environment

    device = choose_device("cpu" if g.rehearse else "cuda")
    bench = measure.Bench(settings(g), device)
    facts: dict[str, Any] = {"environment": environment(device), "load": None}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False)
        facts["machine"] = {
            "name": about.name,
            "memory": about.total_memory,
            "multiprocessors": about.multi_processor_count,
            "driver": driver.stdout.strip() or None,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    save(settings={**vars(bench.b), "output": "", "device": str(device)}, **facts)
    save(peaks=measure.peaks(bench))
    source = torch.rand(2**24 if g.rehearse else 2**30, device=device)
    target = torch.empty_like(source)
    seconds = min(measure.alternate({"": lambda: target.copy_(source)}, turns=8)[""])
    save(copy_bytes_per_s=2 * 4 * source.numel() / seconds)


def steps(g: Namespace, save: Callable[..., None], until: float, work: Path) -> None:
    """Save a row for each step of CASES and each of WAYS to run a chain, as soon as it is measured,
    those that are compiled last. Name the rows for which there was no time or no memory."""
    from benchmarks import measure
    from training.machine import choose_device

    device = choose_device("cpu" if g.rehearse else "cuda")
    rates = measured(g.out).get("peaks") or measure.peaks(measure.Bench(settings(g), device))
    found: dict[str, list[dict[str, Any]]] = {"steps": [], "chain": []}
    left_out: list[str] = []
    ways = WAYS if device.type == "cuda" else [way for way in WAYS if way != GRAPH]
    last = [case for case in CASES if "compile" in case.machine]
    work_list: list[tuple[str, str, Callable[[], list[dict[str, Any]]]]] = [
        *(
            ("steps", c.name, partial(step_rows, g, c, device, rates))
            for c in CASES
            if c not in last
        ),
        *(("chain", way, partial(chain_rows, g, way, device)) for way in ways if way != COMPILED),
        *(("steps", c.name, partial(step_rows, g, c, device, rates)) for c in last),
        *(("chain", way, partial(chain_rows, g, way, device)) for way in ways if way == COMPILED),
    ]
    for section, name, rows in work_list:
        measure.say(f"{section}: {name}")
        try:
            if time.monotonic() > until:
                raise TimeoutError("no time was left")
            found[section] += rows()
        except Exception as error:  # of memory, a compiler or CUDA: the others are measured still
            why = " ".join(f"{type(error).__name__}: {error}".split())
            left_out.append(f"{section}, {name}: {why[:200]}")
        save(**found, left_out=left_out)


def step_rows(
    g: Namespace, case: Case, device: Any, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Return the rows of a step and, of those asked for, its straightforward twin."""
    from benchmarks import measure

    bench = measure.Bench(settings(g, straightforward=case.beside, **case.machine), device)
    bench.rates = rates
    changes = {name: times * getattr(bench.b, name) for name, times in case.times.items()}
    with measure.contenders(bench, case.terms, case.classes, **changes) as (s, contenders):
        first = {}
        for label, contender in contenders.items():
            started = measure.clock()
            contender.step()
            first[label] = measure.clock() - started
        calls = {label: contender.step for label, contender in contenders.items()}
        times = measure.alternate(calls, turns=bench.b.turns, seconds=bench.b.seconds)
        named = {"terms": case.name, "classes": case.classes}
        rows = measure.step_rows(bench, contenders, times, named, s)
    return [{**row, "first": first[row["contender"]]} for row in rows]


def chain_rows(g: Namespace, way: str, device: Any) -> list[dict[str, Any]]:
    """Return the row of a chain that is run in one of WAYS: its first and its median seconds."""
    import torch

    import losses
    from benchmarks import measure
    from training.build import build_model

    bench = measure.Bench(settings(g, compile="on" if way == COMPILED else "off"), device)
    s = flags.step_settings(bench.b, "JEM", 10)
    x = torch.rand(s.sgld_batch_size, 3, 32, 32, device=device) * 2 - 1
    x = x.contiguous(memory_format=torch.channels_last)
    chain, model = losses.Chain.of(s), build_model(s, 10, device).eval().requires_grad_(False)

    def climb() -> object:
        return chain.climb(model.log_px, x)

    def graph() -> Callable[[], object]:
        """Capture one Langevin step; a chain is as many replays of it."""
        one, held = losses.Chain(1, chain.step_size, chain.noise_std), x.clone()
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(3):  # what only the first calls do must not be captured
                one.climb(model.log_px, held)
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            held.copy_(one.climb(model.log_px, held))

        def replays() -> None:
            held.copy_(x)
            for _ in range(chain.steps):
                captured.replay()

        return replays

    started = measure.clock()
    call = graph() if way == GRAPH else climb
    call()
    first = measure.clock() - started
    times = measure.alternate({"": call}, turns=bench.b.turns, seconds=bench.b.seconds)[""]
    flop = 2 * s.n_steps * s.sgld_batch_size * bench.forward_flops(10)
    median = sorted(times)[len(times) // 2]
    return [{"way": way, "steps": s.n_steps, "flop": flop, "first": first, "seconds": median}]


def profile(g: Namespace, save: Callable[..., None], until: float, work: Path) -> None:
    """Save for a step of HDGE and of JEM: the kernels that take most time, the share of the time in
    which the GPU is idle, and the calls by which the host waits."""
    from benchmarks import measure
    from training.machine import choose_device

    device = choose_device("cpu" if g.rehearse else "cuda")
    bench = measure.Bench(settings(g, straightforward=False), device)
    rows: list[dict[str, Any]] = []
    for terms in PROFILED:
        if time.monotonic() < until:
            measure.say(f"profile: {terms}")
            with measure.contenders(bench, terms, 10) as (_, found):
                rows.append({"terms": terms, **profiled(found[flags.PROJECT].step, device)})
            save(profile=rows)


def profiled(step: Callable[[], None], device: Any) -> dict[str, Any]:
    """Return what torch.profiler sees of one step, after three that warm up."""
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity

    gpu = device.type == "cuda"
    for _ in range(3):
        step()
    if gpu:
        torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with torch.profiler.profile(activities=activities) as seen:
        step()
        waits = 0 if gpu else None  # counted below, before the profiler itself waits
    where = DeviceType.CUDA if gpu else DeviceType.CPU
    events = [e for e in seen.events() or [] if e.device_type == where and not e.is_user_annotation]
    kernels: dict[str, list[float]] = {}
    for event in events:
        kernels.setdefault(event.name, []).append(
            event.time_range.elapsed_us() if gpu else event.self_cpu_time_total
        )
    busy = sum(sum(times) for times in kernels.values())
    begins = min(e.time_range.start for e in events)
    span = max(e.time_range.end for e in events) - begins
    if gpu:
        last = max(e.time_range.start for e in events)
        calls = [e for e in seen.events() or [] if any(wait in e.name for wait in WAITS)]
        waits = sum(e.device_type == DeviceType.CPU and e.time_range.start < last for e in calls)
    largest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:LARGEST]
    return {
        "span": span / 1e6,
        "idle": max(0.0, 1 - busy / span) if gpu else None,
        "waits": waits,
        "launches": len(events),
        "kernels": [
            {"name": name, "calls": len(times), "share": sum(times) / busy}
            for name, times in largest
        ],
    }


def training(g: Namespace, save: Callable[..., None], until: float, work: Path) -> None:
    """Train a judge, then M-JEM for as many epochs as there is time for; ask about it. Save each
    answer as it comes; `work` gets the run folders."""
    import eval_wrn_ebm
    import train_wrn
    from evaluation import flags as questions
    from training import flags as train_flags

    def run(words: Sequence[str]) -> None:
        print_line(f"python train_wrn.py {' '.join(words)}", sys.stdout)
        train_wrn.main(*train_flags.parse(words))

    left = until - time.monotonic()
    place = ["--log_dir", str(work), "--compile", "off"]
    place += ["--data_root", str(g.data_root), "--device", "cpu" if g.rehearse else "cuda"]
    small = g.rehearse and not has_cifar10(g.data_root)
    data = SHORT_DIGITS.split() if small else []
    judge, jem = work / "judge", work / "m-jem"
    if not (judge / "last_ckpt.pt").exists():
        words = [*JUDGE.split(), *(SMALL_JUDGE.split() if g.rehearse else []), *data]
        run([*words, *planned(words, place, min(60, 0.15 * left)), *place, "--seed", "9",
             "--id", judge.name])  # fmt: skip
    left = until - time.monotonic()
    seconds = left - max(0.2 * left, min(40, 0.5 * left))  # the rest is for the questions
    if (jem / "last_ckpt.pt").exists():
        limit = ["--max_minutes", str(seconds / 60), "--data_root", str(g.data_root)]
        run(["--resume", str(jem), *limit])
    else:
        words = ["@m-jem", *(SMALL if g.rehearse else NETWORK).split(), *data]
        plan = planned(words, place, seconds, g.calls)
        run([*words, *plan, *place, "--seed", "1", "--id", jem.name, "--plot_cond"])
    archive(g.out, work)
    shutil.rmtree(jem / "eval", ignore_errors=True)  # an earlier call's, of fewer steps
    answers: dict[str, Any] = {}
    there = [name for name in ("svhn", "cifar100") if (g.data_root / f"{name}.npz").exists()]
    sets = " ".join([*([] if small else ["cifar10interp"]), *there, "uniform"])
    for question in QUESTIONS:
        images = 100 if g.rehearse else 1000
        words = question.format(judge=judge / "last_ckpt.pt", images=images, sets=sets).split()
        words = ["--load_path", str(jem / "last_ckpt.pt"), "--eval", *words]
        words += ["--data_root", str(g.data_root), *place[-2:]]
        if time.monotonic() > until:
            answers[words[3]] = {"left_out": "no time was left"}
        else:
            eval_wrn_ebm.main(*questions.parse(words))
            answer = jem / "eval" / f"{words[3]}.json"
            if answer.exists():
                answers[words[3]] = json.loads(answer.read_text(encoding="utf-8"))
        rows = (jem / "progress.csv").read_text(encoding="utf-8").splitlines()
        variant = json.loads((jem / "variant.json").read_text(encoding="utf-8"))
        save(training={"progress": rows, "settings": variant, "answers": answers})
    archive(g.out, work)


def has_cifar10(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("cifar10.npz", "cifar-10-batches-py"))


def planned(
    words: Sequence[str], place: Sequence[str], seconds: float, calls: float = 1
) -> list[str]:
    """Return the flags of the schedule that fills the seconds of so many calls, from the time that
    a step takes here: epochs, warm-up, decays at 30, 60 and 90 % of them, and a limit."""
    import data
    import models
    import train_wrn
    from training import cost
    from training import flags as train_flags
    from training.build import build_model
    from training.machine import choose_device

    s, _ = train_flags.parse([*words, *place])
    dataset = data.load(s.dataset, s.data_root, size=s.image_size)
    n = len(dataset.train.labels)
    per_epoch = data.steps_per_epoch(n - data.default_n_valid(n), s.batch_size)
    model = build_model(s, dataset.num_classes, choose_device(s.device))
    spec = data.describe(s.dataset)
    step = cost.time_steps(model, s, spec, 5, train_wrn.train_step)
    evaluated = (n + len(dataset.test.labels)) / s.batch_size * step / 3  # a forward pass of each
    epochs = max(4, int(0.9 * calls * seconds / (per_epoch * step + evaluated)))
    decays = sorted({max(1, round(share * epochs)) for share in (0.3, 0.6, 0.9)})
    warm_up = max(1, min(1000, per_epoch * epochs // 10))
    print_line(
        f"{s.arch}-{s.depth}-{s.width}: {1000 * step:.1f} ms a step, "
        f"{models.forward_flops(model) / 1e9:.3g} GFLOP a forward pass of an image",
        sys.stdout,
    )
    return ["--n_epochs", str(epochs), "--decay_epochs", *map(str, decays), "--warmup_iters",
            str(warm_up), "--max_minutes", str(seconds / 60)]  # fmt: skip


# --------------------------------------------------------------------------------- all of them


def say(message: str) -> None:
    print_line(f"{time.monotonic() - BEGAN:4.0f} s  {message}", sys.stdout)


def measured(out: Path) -> dict[str, Any]:
    """Return the content of bench.json so far."""
    path = out / "bench.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def archive(out: Path, work: Path, piece: int = PIECE) -> None:
    """Write the run folders, without the files that neither resuming nor a page needs, as one tar
    in pieces that are small enough to be fetched."""
    left = ("prev_ckpt.pt", "best_valid_ckpt.pt", ".npz", ".pdf")

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if member.name.endswith(left) or "tfevents" in member.name else member

    with tempfile.TemporaryFile(dir=work) as file:
        # A checkpoint may be a second name of one that is left out.
        with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
            for folder in sorted(path for path in work.iterdir() if path.is_dir()):
                tar.add(folder, folder.name, filter=kept)
        file.seek(0)
        number = 0
        while some := file.read(piece):
            (out / f"run.tar.{number}").write_bytes(some)
            number += 1


def unpack_archive(old: Path, work: Path) -> None:
    """Unpack the run.tar.* of an earlier call. Raises UsageError."""
    pieces = sorted(old.glob("run.tar.*"), key=lambda path: int(path.suffix[1:]))
    if not pieces:
        raise UsageError(f"--resume {old}: it has no run.tar.0: give the OUT of an earlier call")
    with tempfile.TemporaryFile(dir=work) as file:
        for piece in pieces:
            file.write(piece.read_bytes())
        file.seek(0)
        with tarfile.open(fileobj=file) as tar:
            tar.extractall(work, filter="data")


def main(argv: Sequence[str]) -> int:
    """Run the parts one after another. Return the exit code: 0 if each ended well, else 1."""
    parser = build_parser()
    g = parser.parse_args(argv)
    if g.part is not None:
        name, seconds, work = g.part
        return run_part(g, name, float(seconds), Path(work))
    try:
        g.out, g.data_root = g.out.resolve(), g.data_root.resolve()
        check(g)
        with tempfile.TemporaryDirectory() as work:
            if g.resume is not None:
                unpack_archive(g.resume, Path(work))
            return run_parts(g, argv, Path(work))
    except (UsageError, OSError) as error:
        parser.error(str(error))


def check(g: Namespace) -> None:
    """Raise UsageError for a machine without a GPU, and for a folder that has files already."""
    if g.out.exists() and any(g.out.iterdir()):
        raise UsageError(f"OUT {g.out} has files already: give another folder, or empty it")
    try:
        import torch
    except ImportError as error:
        raise UsageError(f"{error}: set PYTHON to a Python that has PyTorch") from None
    if not g.rehearse and not torch.cuda.is_available():
        raise UsageError(
            "PyTorch sees no GPU here: run it on a machine that has one, or --rehearse"
        )
    g.out.mkdir(parents=True, exist_ok=True)


def run_parts(g: Namespace, argv: Sequence[str], work: Path) -> int:
    """Run each part in a process of its own, ended when its share of the time is over."""
    minutes = g.minutes or (3.0 if g.rehearse else 9.0)
    end = BEGAN + 60 * minutes - SPARE
    if list(g.data_root.glob("*-*-*.webp")):
        sheets.unpack(g.data_root, work / "images")
        g.data_root = work / "images"
    ended: dict[str, Any] = {"command": ["bash", "scripts/gpu.sh", *argv], "parts": {}}
    runs = work / "runs"
    runs.mkdir()
    for folder in [path for path in work.iterdir() if (path / "last_ckpt.pt").exists()]:
        folder.rename(runs / folder.name)
    for name in g.parts:
        share = max(15, SHARES[name] * minutes / 9) if SHARES[name] else math.inf
        seconds = max(1.0, min(share, end - time.monotonic()))
        print_line(
            f"{time.monotonic() - BEGAN:4.0f} s  {name}: {seconds:.0f} s at most", sys.stdout
        )
        started = time.monotonic()
        code = call_part(g, name, seconds, runs)
        spent = time.monotonic() - started
        ended["parts"][name] = {"exit_code": code, "seconds": round(spent, 1)}
        write_json(g.out / "parts.json", {**ended, "seconds": round(time.monotonic() - BEGAN, 1)})
    told = ", ".join(f"{name} {part['exit_code']}" for name, part in ended["parts"].items())
    say(f"exit codes: {told}; in {g.out}")
    return int(any(part["exit_code"] not in (0, LATE) for part in ended["parts"].values()))


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
        process = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            return process.wait(seconds + 5)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
            return LATE
        except BaseException:
            process.kill()
            raise


def run_part(g: Namespace, name: str, seconds: float, work: Path) -> int:
    """Run one part in this process; its measurements go to bench.json as they come."""
    parts = {"machine": machine, "steps": steps, "profile": profile, "training": training}
    found = measured(g.out)

    def save(**more: Any) -> None:
        found.update(more)
        write_json(g.out / "bench.json", found)

    try:
        parts[name](g, save, BEGAN + seconds - 5, work)
        return 0
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
