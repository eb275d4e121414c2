"""Train the models of the papers' tables and evaluate them, each job once.

    python scripts/experiments.py run table1_ood --scale small --seeds 1 2 3
    python scripts/experiments.py show table1_ood --scale paper
    python scripts/experiments.py cost table1_ood
    python scripts/experiments.py sweep --vary contrast_t .05 .1 .2 --seeds 1 2 3 -- @hdge

scripts/rows.py declares experiments, questions and tables. Finished runs and existing answers are
skipped, interrupted runs are resumed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta
from itertools import chain, product
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import COUNT, WHOLE, Parser, UsageError, check_utf8, given_flags, open_streams
from runs.files import alone
from runs.folder import LAST, PREVIOUS, holds_run
from runs.screen import print_line
from scripts import done, rows
from scripts.rows import Ask, Job, Point, Table, Train

# Programs are forked from a server process that has imported the slow modules already.
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PROCESSES: Any = multiprocessing.get_context(METHOD)
PROCESSES.set_forkserver_preload(
    ["torch", "torchvision", "matplotlib.figure", "scipy.linalg", "torch.utils.tensorboard"]
)
KILLED = -1
INTERRUPTED = 130  # exit code of Ctrl-C
GRACE = 10.0  # seconds that programs have to save their state after Ctrl-C


def end_with_parent() -> None:
    """Wait for the parent process to end, then interrupt this process: it would go on training in a
    run folder that the next call of experiments.py resumes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)


def only_gpu(device: int, visible: str | None) -> str:
    """Return the value of CUDA_VISIBLE_DEVICES that leaves the GPU `device`, counted from 0 in the
    inherited value `visible`, such as a scheduler's, if there is one; "" where that has fewer."""
    return str(device) if visible is None else "".join(visible.split(",")[device : device + 1])


def run_program(command: Sequence[str], log: Path, device: int | None, sender: Any) -> None:
    """Run `python <command>` in this child process with output to `log`, and send its exit code."""
    with open(log, "ab") as file:
        open_streams()
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if device is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = only_gpu(device, visible)
        import torch  # preloaded by the fork server

        if not torch.cuda.is_available():  # --device auto would train on the CPU
            within = "" if visible is None else f" in CUDA_VISIBLE_DEVICES={visible}"
            print(f"{Path(command[0]).name}: --gpus {device}: PyTorch sees no such GPU{within}")
            return sender.send(2)
    os.chdir(ROOT)
    program = ROOT / command[0]
    sys.argv, sys.path[0] = list(command), str(program.parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
    threading.Thread(target=end_with_parent, daemon=True).start()
    code: object = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # `in_process` has blocked it
        runpy.run_path(str(program), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BrokenPipeError):  # the parent may have ended
        sender.send(code if isinstance(code, int) else 1)


class Failed(Exception):
    """A job failed. The message has job and reason; it is empty if a question lacks a model."""


class Runner:
    """Run jobs, up to `jobs` at a time (None: one for each GPU, else 1), each after those that it
    needs."""

    def __init__(
        self, root: Path, scale: str, jobs: int | None = None, gpus: Sequence[int] = ()
    ) -> None:
        self.root, self.scale, self.jobs = root, scale, jobs or max(1, len(gpus))
        # The GPU of each free slot, in turn; None without --gpus.
        slots = range(max(self.jobs, len(gpus)))
        self.devices = [gpus[i % len(gpus)] if gpus else None for i in slots]
        self.done: dict[Job, bool] = {}  # whether each job that has ended succeeded
        self.stopped = False  # by Ctrl-C
        self.plan: list[Job] = []
        self.seconds: dict[bool, list[float]] = {}  # of each question (True) and training (False)

    def run(self, jobs: Iterable[Job]) -> int:
        """Run all jobs, also after failures. Return the exit code: 1 if any failed, 130: Ctrl-C."""
        self.plan = list(jobs)
        waiting, running = self.plan[:], dict[Future[bool], Job]()
        if self.jobs > 1:  # otherwise each program would start a thread on every core
            threads = max(1, (os.cpu_count() or 1) // self.jobs)
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while waiting or running:
                    ready = [
                        job for job in waiting if self.done.keys() >= {*rows.needs(self.scale, job)}
                    ]
                    for job in ready[: self.jobs - len(running)]:
                        waiting.remove(job)
                        running[pool.submit(self.succeeds, job)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        self.done[running.pop(future)] = future.result()
            except KeyboardInterrupt:  # the programs got the signal, too
                self.stopped = True
                with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C
                    wait(running, GRACE if multiprocessing.active_children() else 0)
                while wait(running, 0.1).not_done:
                    for process in multiprocessing.active_children():  # still in a long step
                        process.kill()
                    kill_fork_server()  # a job waits for its imports
                print_line("interrupted: the same command goes on from here", sys.stderr)
                return INTERRUPTED
        return 0 if all(self.done.values()) else 1

    def succeeds(self, job: Job) -> bool:
        """Run a job whose needed jobs have ended. Return whether it succeeded; print its error."""
        try:
            self.ask(job) if isinstance(job, Ask) else self.train(job)
            return True
        except Failed as error:
            message = str(error)
        except Exception as error:  # such as the OSError of a full disk
            title = job.question if isinstance(job, Ask) else f"{job.name}-s{job.seed}"
            message = f"{title}: {type(error).__name__}: {error}"
        if message and not self.stopped:
            print_line(f"FAILED {message}", sys.stderr)
        return False

    def train(self, job: Train | Point) -> None:
        """Train or resume a run, unless it is finished already."""
        run = rows.folder(self.root, self.scale, job.name, job.seed)
        if not all(self.done[start] for start in rows.needs(self.scale, job)):
            raise Failed(f"{run.name}: the run that it starts from has failed")
        command = rows.train_command(self.root, self.scale, job)
        difference = done.other_recipe(run, command, all_flags=isinstance(job, Point))
        if difference is not None:
            raise Failed(
                f"{run.name}: the recipe has {difference}: move {run} away, or give another --root"
            )
        if done.finished(run):
            print_line(f"{run.name}: trained already", sys.stdout)
            return
        if (run / "diverged.txt").exists():
            raise Failed(
                f"{run.name}: diverged ({run / 'diverged.txt'}): the same seed would again; give "
                "another seed, or change the recipe and remove the folder"
            )
        if any((run / n).exists() for n in (LAST, PREVIOUS)) and command[0] != rows.PROBE:
            steps = (done.read_object(run / "variant.json") or {}).get("max_steps")
            given = done.flags_of(command[0]).build_parser().parse_args(command[1:])
            limits = {"max_steps": steps, "max_minutes": given.max_minutes}  # not restored
            flags = [
                word for n, value in limits.items() if value for word in (f"--{n}", str(value))
            ]
            if isinstance(job, Point):  # its limits, too; --load_path is compared by its file
                by_flag = rows.by_flag(job.flags).items()
                flags = [word for flag, w in by_flag if flag != "--load_path" for word in w]
            command = [command[0], "--resume", str(run), *flags]
        elif run.exists():
            command.append("--overwrite")  # the run stopped before its first checkpoint
        code, error = self.call(job, command, run, run.name)
        if code == 1 and "diverged at step" in error and run.exists():
            (run / "diverged.txt").write_text(error, encoding="utf-8")
        if code != 0:
            raise Failed(f"{run.name}: {failure(code, error, run)}")

    def ask(self, job: Ask) -> None:
        """Run a question on the models whose training succeeded, unless it is answered already."""
        trained = [run for run in job.runs if self.done[run]]
        judges = [need for need in rows.needs(self.scale, job) if need not in job.runs]
        if not trained or not all(self.done[judge] for judge in judges):
            raise Failed
        command = rows.ask_command(self.root, self.scale, job, trained)
        folder = rows.folder(self.root, self.scale, trained[0].name, trained[0].seed) / "eval"
        title = f"{folder.parent.name} eval"
        if job.overlay is not None:
            folder = rows.folder(self.root, self.scale, job.overlay, trained[0].seed)
            title = folder.name
        if done.answered(folder, command):
            print_line(f"{title}: {job.question.split()[0]} answered already", sys.stdout)
            return
        code, error = self.call(job, command, folder, title)
        if code != 0:
            raise Failed(f"{title}: {job.question}: {failure(code, error, folder)}")

    def left(self) -> str:
        """Estimate the time of the jobs not yet done, from the mean times of the trainings and of
        the questions that this process has run; "" before any has ended."""
        kinds = Counter(isinstance(job, Ask) for job in self.plan if job not in self.done)
        timed = kinds.keys() & self.seconds.keys()
        if not timed:
            return ""
        seconds = sum(kinds[kind] * fmean(self.seconds[kind]) for kind in timed) / self.jobs
        bound = "about" if timed == kinds.keys() else "more than"
        return f"; {bound} {timedelta(seconds=round(seconds))} left"

    def call(self, job: Job, command: list[str], folder: Path, title: str) -> tuple[int, str]:
        """Run the job's command, with its output in <folder>.log. Return its exit code and, unless
        that is 0, the last error line that it printed."""
        log = log_of(folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        start = log.stat().st_size if log.exists() else 0
        position = f"[{self.plan.index(job) + 1}/{len(self.plan)}]"
        print_line(f"{position} {title}: {shlex.join(command)}{self.left()}", sys.stdout)
        device, began = self.devices.pop(0), time.monotonic()
        try:
            code = in_process(command, log, device)
        finally:
            self.devices.append(device)
        seconds = time.monotonic() - began
        self.seconds.setdefault(isinstance(job, Ask), []).append(seconds)
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            text = file.read().replace("\r", "\n")
        lines = [line for line in text.splitlines() if f"{Path(command[0]).name}: " in line]
        return code, lines[-1] if code and lines else ""


def in_process(command: list[str], log: Path, device: int | None) -> int:
    """Run `run_program` in a child process and return the program's exit code."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=run_program, args=(command, log, device, sender))
    # The fork server inherits the blocked SIGINT: it ignores Ctrl-C only after its slow imports.
    resource_tracker.ensure_running()  # started by the server's start, it would unblock the signal
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    sender.close()
    try:
        code: int = receiver.recv()
    except EOFError:
        code = KILLED
    process.join()
    return code


def kill_fork_server() -> None:
    """Kill the fork server, if there is one. A job that it has not started yet fails."""
    # There is no public name for its process.
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def log_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".log")


def failure(code: int, error: str, folder: Path) -> str:
    """Return a failed program's exit code and its error message, else the path of its log."""
    ended = "was killed" if code == KILLED else f"exit code {code}"
    return f"{ended}: {error.strip() or f'see {log_of(folder)}'}"


def only(name: str, scale: str, chosen: Sequence[str] = ()) -> Table:
    """Return the table with its rows at the scale; of these, if any are chosen, the chosen rows.
    Raises UsageError if no row remains."""
    table = rows.tables_at(scale).get(name)
    if table is None:
        scales = " or ".join(other for other in rows.SCALES if name in rows.tables_at(other))
        raise UsageError(f"--scale {scale} has no rows of {name}: use {scales}")
    remaining = tuple(row for row in table.rows if not chosen or row in chosen)
    if not remaining:
        raise UsageError(
            f"--rows {' '.join(chosen)}: {name} has none of them at scale {scale}: use some of "
            f"{', '.join(table.rows)}"
        )
    return replace(table, rows=remaining)


def plan(table: Table, root: Path, scale: str, seeds: Sequence[int]) -> Iterator[Job]:
    """Yield the table's jobs, each after the jobs that it needs; some occur more than once. An
    overlay has the table's rows and the other rows whose runs in `root` are finished."""

    def with_needs(job: Job) -> Iterator[Job]:
        for needed in rows.needs(scale, job):
            yield from with_needs(needed)
        yield job

    for seed in seeds:
        runs = [Train(row, seed) for row in table.rows]
        jobs: list[Job] = [*runs]
        jobs += [Ask(question, (run,)) for question in table.questions for run in runs]
        for overlay, question, names in table.overlays:
            all_runs = [Train(name, seed) for name in names]
            finished = {run for run in all_runs if done.finished(rows.folder(root, scale, *run))}
            shown = [run for run in all_runs if run in runs or run in finished]
            if set(shown) & set(runs):
                jobs.append(Ask(question, tuple(shown), overlay))
        for job in jobs:
            yield from with_needs(job)


def show(tables: dict[str, Table], root: Path, scale: str, seeds: Sequence[int]) -> None:
    """Print every command, in an order in which they can be run."""
    printed = set[Job]()
    for name, table in tables.items():
        print_line(f"# {name}", sys.stdout)
        for job in plan(table, root, scale, seeds):
            if job not in printed:
                printed.add(job)
                if isinstance(job, Ask):
                    command = rows.ask_command(root, scale, job)
                else:
                    command = rows.train_command(root, scale, job)
                print_line(f"python {shlex.join(command)}", sys.stdout)


def cost(name: str, scale: str) -> str | None:
    """Return the cost of a table, or of all tables, for a seed at a scale: the number of jobs and
    hours of training. The hours follow from the FLOPs at the head of scripts/<name>.sh and from the
    speed of an HDGE step on this machine. None: the scale has no rows of the table."""
    tables = [table for title, table in rows.tables_at(scale).items() if name in (title, "all")]
    if not tables:
        return None
    jobs = {job for table in tables for job in plan(table, Path(), scale, [1])}
    text = (ROOT / "scripts" / f"{name}.sh").read_text(encoding="utf-8")
    flops = re.search(rf"^#   {scale}  ([\d.]+) ([EP])FLOP", text, re.M)
    if flops is None:
        return f"SCALE={scale}: {len(jobs)} jobs, minutes"
    command = [sys.executable, *rows.train_command(Path(), scale, Train("hdge", 1)), "--dry_run"]
    dry_run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    speed = dict(re.findall(r"^(training step|time a step) +([\d.,e+-]+)", dry_run.stdout, re.M))
    if len(speed) < 2:
        return f"SCALE={scale}: {len(jobs)} jobs; no step of it: {dry_run.stderr.strip()}"
    if dry_run.stderr:  # such as the warning that other programs keep the cores busy
        print_line(dry_run.stderr.strip(), sys.stderr)
    teraflop, ms = (float(number.replace(",", "")) for number in speed.values())
    steps = float(flops[1]) * {"E": 1e6, "P": 1e3}[flops[2]] / teraflop
    return f"SCALE={scale}: {len(jobs)} jobs, {steps * ms / 3.6e6:,.1f} hours of training"


def build_parser() -> Parser:
    parser = Parser(prog="experiments.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("action", choices=("run", "show", "cost"),
        help="run the jobs that are not done yet, print the commands, or estimate the hours of a "
        "seed at each scale on this machine; `sweep --help` is about runs of your own")  # fmt: skip
    add("tables", nargs="+", choices=(*rows.TABLES, "all"), metavar="TABLE",
        help="one or several of " + ", ".join(rows.TABLES)
        + "; all: those that the scale has rows of")  # fmt: skip
    add("--scale", choices=tuple(rows.SCALES), default="paper",
        help=f"one of {', '.join(rows.SCALES)} (default: %(default)s)")  # fmt: skip
    add("--rows", nargs="+", choices=tuple(rows.EXPERIMENTS), default=[], metavar="EXPERIMENT",
        help="only these rows of the tables, such as ce jem hdge (default: all)")  # fmt: skip
    add("--root", type=Path, default=Path("save/tables"), metavar="FOLDER",
        help="runs are in <root>/<scale>/<experiment>-s<seed> (default: %(default)s)")  # fmt: skip
    add_jobs(parser)
    return parser


def add_jobs(parser: Parser) -> None:
    """Add the flags that `run` and `sweep` share."""
    add = parser.add_argument
    add("--seeds", nargs="+", type=WHOLE, default=[1], metavar="SEED", help="one run for each")
    add("--jobs", type=COUNT, default=None, metavar="N",
        help="programs at a time (default: one for each of --gpus, else 1)")  # fmt: skip
    add("--gpus", nargs="+", type=WHOLE, default=[], metavar="GPU",
        help="give each job one of these GPUs, in turn, counted from 0 in CUDA_VISIBLE_DEVICES "
        "where that is set")  # fmt: skip


def build_sweep_parser() -> Parser:
    text = "Train with each value of a flag and each seed, and compare the runs."
    usage = "experiments.py sweep --vary FLAG VALUE VALUE ... [flags] -- FLAGS OF EVERY RUN"
    parser = Parser(prog="experiments.py sweep", allow_abbrev=False, description=text, usage=usage)
    add = parser.add_argument
    add("--vary", nargs="+", required=True, metavar=("FLAG", "VALUE"),
        help="a flag of train_wrn.py and its values, such as contrast_t .05 .1 .2; quote a value "
        "of several words. What follows -- are the other flags of every run, such as @hdge "
        "--dataset cifar100; their paths begin in the repository's folder")  # fmt: skip
    add("--root", type=Path, default=Path("save/sweep"), metavar="FOLDER",
        help="runs are in <root>/<flag>-<value>-s<seed> (default: %(default)s)")  # fmt: skip
    add_jobs(parser)
    return parser


def parse_sweep(argv: Sequence[str]) -> tuple[Namespace, list[Point]]:
    """Return the settings of a sweep and its runs, with flags that train_wrn.py accepts. A mistake
    ends the program with one line on stderr and exit code 2."""
    parser = build_sweep_parser()
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    from training import flags, recipe  # not needed for --help

    of_recipe, typed, _ = recipe.expand(argv[end + 1 :], flags.build_parser())
    name, *values = args.vary
    reserved = {"seed", "log_dir", "id", "resume", "overwrite", "dry_run"}
    if name in reserved:
        parser.error(f"--vary {name}: the sweep sets it: give another flag; --seeds has the seeds")
    if name == "image_size":
        parser.error("--vary image_size: no numbers of two sizes are compared: give another flag")
    if taken := sorted((reserved | {name}) & given_flags(flags.build_parser(), typed)):
        parser.error(f"--{taken[0]} is the sweep's own: leave it out after --")
    if len(set(values)) < 2:
        parser.error(f"--vary {name}: give two values or more")
    args.root = Path(os.path.expanduser(args.root)).resolve()
    shared = [*of_recipe, *typed]
    points = [
        Point(f"{name}-{'_'.join(value.split())}", seed, (*shared, f"--{name}", *value.split()))
        for value, seed in product(dict.fromkeys(values), dict.fromkeys(args.seeds))
    ]
    for point in points:
        flags.parse(rows.train_command(args.root, "", point)[1:])
    return args, points


def sweep(argv: Sequence[str]) -> int:
    """Train with each value of a flag and each seed, and print the runs side by side. Return the
    exit code."""
    args, points = parse_sweep(argv)
    from scripts.tables import compare

    try:
        with alone(args.root, flag="--root", program="experiments.py"):
            code = Runner(args.root, "", args.jobs, args.gpus).run(points)
            folders = [rows.folder(args.root, "", point.name, point.seed) for point in points]
            runs = list(filter(holds_run, folders))
            if runs and code != INTERRUPTED:
                print_line(compare(runs, None).rstrip("\n"), sys.stdout)
            return code
    except UsageError as error:
        build_sweep_parser().error(str(error))


def main(argv: Sequence[str]) -> int:
    """Return the exit code; 2 for a mistake, with one line on stderr."""
    if argv[:1] == ["sweep"]:
        return sweep(argv[1:])
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.action == "cost":
        for name, scale in product(args.tables, rows.SCALES):
            if text := cost(name, scale):
                print_line(f"{name}: {text}", sys.stdout)
        return 0
    names = args.tables
    if "all" in names:
        tables_at = rows.tables_at(args.scale)
        # All tables without --rows, and where no table has the rows: the error names the first.
        names = [name for name in tables_at if {*args.rows} & {*tables_at[name].rows}] or tables_at
    # Absolute: programs run in the repository's folder.
    root = Path(os.path.expanduser(args.root)).resolve()
    try:
        check_utf8("--root", str(root))
        tables = {name: only(name, args.scale, args.rows) for name in names}
        if args.action == "show":
            show(tables, args.root, args.scale, args.seeds)
            return 0
        with alone(root / args.scale, flag="--root", program="experiments.py"):
            plans = (plan(table, root, args.scale, args.seeds) for table in tables.values())
            jobs = dict.fromkeys(chain.from_iterable(plans))
            return Runner(root, args.scale, args.jobs, args.gpus).run(jobs)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
