"""Runs what the papers' tables need: experiments and questions, each once.

    python scripts/experiments.py run table1_ood --scale small --seeds 1 2 3
    python scripts/experiments.py show table1_ood --scale paper

What they are is in scripts/rows.py. What is done is not done again: a finished run or an answer
about it is skipped, an interrupted run is resumed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import runpy
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import COUNT, WHOLE, Parser, UsageError, check_utf8, open_streams  # noqa: E402
from runs.files import alone  # noqa: E402
from runs.screen import print_line  # noqa: E402
from scripts.done import (  # noqa: E402
    answered,
    finished,
    other_recipe,
    read_json,
    resumable,
)
from scripts.rows import (  # noqa: E402
    EXPERIMENTS,
    JUDGES,
    PROBE,
    REFERENCE,
    SCALES,
    TABLES,
    Table,
    ask_command,
    before,
    folder,
    judge,
    overlay,
    question_words,
    rows_at,
    train_command,
)

# Programs are forked from a process that has imported what takes seconds to import.
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PROCESSES: Any = multiprocessing.get_context(METHOD)
PROCESSES.set_forkserver_preload(
    ["torch", "torchvision", "matplotlib.figure", "scipy.linalg", "torch.utils.tensorboard"]
)
KILLED = -1


def end_with_parent() -> None:
    """Interrupt this program when the one that started it is gone: nobody waits for it, and it
    would train on in a folder that the next call resumes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)


def run_program(words: Sequence[str], log: Path, device: int | None, sender: Any) -> None:
    """`python <words>` in this process, which is its own; sends its exit code."""
    with open(log, "ab") as file:
        open_streams()
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    os.chdir(ROOT)
    program = ROOT / words[0]
    sys.argv, sys.path[0] = list(words), str(program.parent)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background has none
    threading.Thread(target=end_with_parent, daemon=True).start()
    code: object = 1
    try:
        runpy.run_path(str(program), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BrokenPipeError):  # the parent may have ended
        sender.send(code if isinstance(code, int) else 1)


class Jobs:
    """Runs each experiment and question at most once, several at a time if asked to."""

    def __init__(self, root: Path, scale: str, jobs: int, gpus: Sequence[int]) -> None:
        self.root, self.scale = root, scale
        self.pool = ThreadPoolExecutor(max(1, jobs))
        self.devices: queue.Queue[int | None] = queue.Queue()
        for i in range(max(1, jobs)):
            self.devices.put(gpus[i % len(gpus)] if gpus else None)
        self.trained: dict[tuple[str, int], Future[bool]] = {}
        self.asked: dict[tuple[str, tuple[tuple[str, int], ...]], Future[bool]] = {}
        self.hashes: dict[Path, str] = {}
        self.failed: list[str] = []
        self.stopped = False  # by Ctrl-C: nothing more is begun

    def train(self, name: str, seed: int) -> Future[bool]:
        """Submit the experiment, after the one that it starts from, unless it is already."""
        key = name, seed
        if key not in self.trained:
            start = before(self.scale, name)
            first = [] if start is None else [self.train(start, seed)]
            self.trained[key] = self._after(
                first, lambda: self._train(name, seed, first), f"{name}-s{seed}"
            )
        return self.trained[key]

    def _after(
        self, first: Sequence[Future[bool]], work: Callable[[], bool], what: str
    ) -> Future[bool]:
        """Submit `work` once all of `first` are done: nothing waits in the pool."""
        result: Future[bool] = Future()
        left, lock = [len(first)], threading.Lock()

        def run() -> None:
            try:
                result.set_result(not self.stopped and work())
            except Exception as error:  # a disk that is full, say: the other jobs go on
                result.set_result(self._fail(f"{what}: {type(error).__name__}: {error}"))

        def one_is_done(_: Future[bool]) -> None:
            with lock:
                left[0] -= 1
                last = left[0] == 0
            if last:
                self.pool.submit(run)

        for future in first:
            future.add_done_callback(one_is_done)
        if not first:
            self.pool.submit(run)
        return result

    def _train(self, name: str, seed: int, first: Sequence[Future[bool]]) -> bool:
        run = folder(self.root, self.scale, name, seed)
        if not all(future.result() for future in first):
            return self._fail(f"{run.name}: what it starts from has failed")
        words = train_command(self.root, self.scale, name, seed)
        other = other_recipe(run, words)
        if other is not None:
            return self._fail(
                f"{run.name}: the recipe has {other}: move {run} away, or give another --root"
            )
        if finished(run):
            print_line(f"{run.name}: trained already", sys.stdout)
            return True
        if (run / "diverged.txt").exists():
            return self._fail(
                f"{run.name}: diverged ({run / 'diverged.txt'}): the same seed would again; give "
                "another seed, or change the recipe and remove the folder"
            )
        if resumable(run) and EXPERIMENTS[name].program != PROBE:
            steps = (read_json(run / "variant.json") or {}).get("max_steps")
            limit = ["--max_steps", str(steps)] if steps else []  # --resume forgets it
            words = [EXPERIMENTS[name].program, "--resume", str(run), *limit]
        elif run.exists():
            words.append("--overwrite")  # stopped before its first checkpoint
        code, error = self._run(words, run)
        if code == 1 and "diverged at step" in error and run.exists():
            (run / "diverged.txt").write_text(error, encoding="utf-8")
        return code == 0 or self._fail(f"{run.name}: {said(code, error, run)}")

    def ask(
        self, question: str, runs: Sequence[tuple[str, int]], answer: Path | None = None
    ) -> Future[bool]:
        """Submit a question about runs, which are trained before it, unless it is already.
        `answer`: its folder."""
        key = question, tuple(runs)
        if key not in self.asked:
            first = [self.train(*run) for run in runs]
            if REFERENCE in question_words(self.scale, question):
                first.append(self.train(*judge(self.scale)))
            self.asked[key] = self._after(
                first, lambda: self._ask(question, runs, answer, first), question
            )
        return self.asked[key]

    def _ask(
        self,
        question: str,
        runs: Sequence[tuple[str, int]],
        answer: Path | None,
        first: Sequence[Future[bool]],
    ) -> bool:
        done = [future.result() for future in first]
        there = [run for run, trained in zip(runs, done, strict=False) if trained]
        if not there or not all(done[len(runs) :]):
            return False
        paths = [folder(self.root, self.scale, *run) / "last_ckpt.pt" for run in there]
        words = ask_command(self.root, self.scale, paths, question, answer)
        place = answer or paths[0].parent / "eval"
        what = f"{place.parent.name} {place.name}" if answer is None else place.name
        if answered(place, words, self.hashes):
            print_line(f"{what}: {question.split()[0]} answered already", sys.stdout)
            return True
        code, error = self._run(words, place, what)
        return code == 0 or self._fail(f"{what}: {question}: {said(code, error, place)}")

    def _run(self, words: list[str], where: Path, what: str = "") -> tuple[int, str]:
        """Runs the program; its output goes to <where>.log, its last line of errors comes back."""
        log = log_of(where)
        log.parent.mkdir(parents=True, exist_ok=True)
        start = log.stat().st_size if log.exists() else 0
        print_line(f"{what or where.name}: {shlex.join(words)}", sys.stdout)
        device = self.devices.get()
        try:
            receiver, sender = PROCESSES.Pipe(duplex=False)
            process = PROCESSES.Process(target=run_program, args=(words, log, device, sender))
            process.start()
            sender.close()
            try:
                code = receiver.recv()
            except EOFError:  # it was killed
                code = KILLED
            process.join()
        finally:
            self.devices.put(device)
        with open(log, encoding="utf-8", errors="replace") as file:
            file.seek(start)
            text = file.read().replace("\r", "\n")
        lines = [line for line in text.splitlines() if f"{Path(words[0]).name}: " in line]
        return code, lines[-1] if code and lines else ""

    def _fail(self, message: str) -> bool:
        if not self.stopped:
            print_line(f"FAILED {message}", sys.stderr)
        self.failed.append(message)
        return False


def log_of(where: Path) -> Path:
    return where.with_name(where.name + ".log")


def said(code: int, error: str, where: Path) -> str:
    """Why a program has failed; where it did not say, where to look."""
    ended = "was killed" if code == KILLED else f"exit code {code}"
    return f"{ended}: {error.strip() or f'see {log_of(where)}'}"


def only(name: str, scale: str, rows: Sequence[str] = ()) -> Table:
    """The table with those of its rows that the scale has; where `rows` is not empty, with these
    of them.

    Raises UsageError where none is left.
    """
    table = TABLES[name]
    there = rows_at(scale, table.rows)
    if not there:
        scales = " or ".join(each for each in SCALES if rows_at(each, table.rows))
        raise UsageError(f"--scale {scale} has no rows of {name}: use {scales}")
    chosen = tuple(row for row in there if not rows or row in rows)
    if not chosen:
        raise UsageError(
            f"--rows {' '.join(rows)}: {name} has none of them at scale {scale}: use some of "
            f"{', '.join(there)}"
        )
    overlays = tuple((place, q, rows_at(scale, names)) for place, q, names in table.overlays)
    return Table(chosen, table.questions, overlays)


def check_seeds(scale: str, seeds: Sequence[int]) -> None:
    """Raises UsageError for the seed of a network that judges samples and is no row."""
    if JUDGES.get(scale) in seeds:
        raise UsageError(
            f"--seeds {JUDGES[scale]}: cross-entropy of that seed judges samples at scale {scale}: "
            "give others"
        )


def run(tables: Sequence[Table], jobs: Jobs, seeds: Sequence[int]) -> int:
    """Everything that the tables need; the exit code is 1 if anything failed, 130 for Ctrl-C."""
    answers: list[Future[bool]] = []
    for table in tables:
        for seed in seeds:
            for row in table.rows:
                answers += [jobs.ask(q, [(row, seed)]) for q in table.questions]
                answers.append(jobs.train(row, seed))
            for place, question, rows in table.overlays:
                # What was trained before is shown beside the rows that were chosen.
                shown = [
                    row
                    for row in rows
                    if row in table.rows or finished(folder(jobs.root, jobs.scale, row, seed))
                ]
                answer = overlay(jobs.root, jobs.scale, place, seed)
                if any(row in table.rows for row in shown):
                    answers.append(jobs.ask(question, [(row, seed) for row in shown], answer))
    try:
        for future in answers:
            future.result()
    except KeyboardInterrupt:  # the programs have heard it, too
        jobs.stopped = True
        wait(answers)
        print_line("interrupted: the same command goes on from here", sys.stderr)
        return 130
    return 1 if jobs.failed else 0


def show(tables: Mapping[str, Table], root: Path, scale: str, seeds: Sequence[int]) -> None:
    """Every command, in an order in which they can be run, to be read or copied."""
    shown = set[str]()

    def command(words: Sequence[str]) -> None:
        line = f"python {shlex.join(words)}"
        if line not in shown:
            shown.add(line)
            print_line(line, sys.stdout)

    def train(name: str, seed: int) -> Path:
        start = before(scale, name)
        if start is not None:
            train(start, seed)
        command(train_command(root, scale, name, seed))
        return folder(root, scale, name, seed) / "last_ckpt.pt"

    for name, table in tables.items():
        print_line(f"# {name}", sys.stdout)
        for seed in seeds:
            paths = {row: train(row, seed) for row in table.rows}
            for question in table.questions:
                if REFERENCE in question_words(scale, question):
                    train(*judge(scale))
                for path in paths.values():
                    command(ask_command(root, scale, [path], question))
            for place, question, rows in table.overlays:
                chosen = [paths[row] for row in rows if row in paths]
                if chosen:
                    where = overlay(root, scale, place, seed)
                    command(ask_command(root, scale, chosen, question, where))


def build_parser() -> Parser:
    parser = Parser(prog="experiments.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("action", choices=("run", "show"), help="run what is not done yet, or show the commands")
    add("tables", nargs="+", choices=(*TABLES, "all"), metavar="TABLE",
        help="one or several of " + ", ".join(TABLES)
        + "; all: those that the scale has rows of")  # fmt: skip
    add("--scale", choices=tuple(SCALES), default="paper",
        help=f"one of {', '.join(SCALES)} (default: %(default)s)")  # fmt: skip
    add("--seeds", nargs="+", type=WHOLE, default=[1], metavar="SEED", help="one run for each")
    add("--rows", nargs="+", choices=tuple(EXPERIMENTS), default=[], metavar="EXPERIMENT",
        help="only these rows of the tables, such as ce jem hdge (default: all)")  # fmt: skip
    add("--root", type=Path, default=Path("save/tables"), metavar="FOLDER",
        help="runs are in <root>/<scale>/<experiment>-s<seed> (default: %(default)s)")  # fmt: skip
    add("--jobs", type=COUNT, default=1, metavar="N", help="programs at a time (default: 1)")
    add("--gpus", nargs="+", type=WHOLE, default=[], metavar="GPU",
        help="give each job one of these GPUs, in turn")  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> int:
    """The exit code; 2 for a mistake, with one line on stderr."""
    parser = build_parser()
    args = parser.parse_args(argv)
    names = list(dict.fromkeys(args.tables))
    if "all" in names:
        names = [name for name, table in TABLES.items() if rows_at(args.scale, table.rows)]
    root = args.root.expanduser().resolve()  # programs run in the repository's folder
    n = max(args.jobs, len(args.gpus))
    try:
        check_utf8("--root", str(root))
        check_seeds(args.scale, args.seeds)
        tables = {name: only(name, args.scale, args.rows) for name in names}
        if args.action == "show":
            show(tables, args.root, args.scale, args.seeds)
            return 0
        if n > 1:  # else every program would start a thread on every core
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
        with alone(root / args.scale, flag="--root", program="experiments.py"):
            return run(list(tables.values()), Jobs(root, args.scale, n, args.gpus), args.seeds)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
