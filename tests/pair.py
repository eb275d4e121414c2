"""Two processes that are connected as torchrun's are, for tests of programs on several devices.

They are started once for all tests: `pair(function, *args)` runs a function that can be imported in
both, at the same time, and returns its results by rank.
"""

import contextlib
import errno
import io
import multiprocessing
import os
import runpy
import socket
import sys
import traceback
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

PATIENCE = 120  # seconds: a collective in which one process takes no part never ends


def refuse_network() -> None:
    """Let no test of this process reach another machine: a set that is missing stays missing."""
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(errno.ENETUNREACH, "tests use no network")
        connect(self, address)

    socket.socket.connect = local  # type: ignore[method-assign, assignment]


class Pair:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.ends, self.processes = [], []
        for rank in range(2):
            here, there = context.Pipe()
            variables = {"arguments": (rank, port, there)}
            process = context.Process(
                target=runpy.run_path, args=(__file__, variables, "started"), daemon=True
            )
            process.start()
            self.ends.append(here)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        for end in self.ends:
            end.send((function, args))
        answers = []
        for rank, end in enumerate(self.ends):
            if not end.poll(PATIENCE):
                self.close()
                raise TimeoutError(f"rank {rank} of {function.__name__} does not answer")
            answers.append(end.recv())
        for good, value in answers:
            if not good:
                raise AssertionError(value)
        return [value for _, value in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def serve(rank: int, port: int, end: Connection) -> None:
    tests = types.ModuleType("tests")  # no package; an installed one may have the name
    tests.__path__ = [str(Path(__file__).parent)]
    sys.modules["tests"] = tests
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in names.items()}
    refuse_network()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "MPLBACKEND": "Agg"}

    from runs import processes as distributed
    from training.machine import choose_device

    with distributed.together(choose_device("cpu")):
        while True:
            function, args = end.recv()
            store = distributed._store
            assert store is not None
            store.set("spoken", "0")  # each call is a run of its own
            distributed.all_of(None)
            try:
                answer = True, function(*args)
            except Exception:
                answer = False, traceback.format_exc()
            end.send(answer)


def train(words: list[str]) -> tuple[int, str, str]:
    """train_wrn.py with these flags, in the processes of a pair: exit code, output, errors."""
    import train_wrn
    from training import flags

    return outcome(lambda: train_wrn.main(*flags.parse(words)))


def ask(words: list[str]) -> tuple[int, str, str]:
    """eval_wrn_ebm.py with these flags likewise: exit code, output, errors."""
    import eval_wrn_ebm
    from evaluation import flags

    return outcome(lambda: eval_wrn_ebm.main(*flags.parse(words)))


def outcome(program: Callable[[], int]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = program()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def raises(error: BaseException) -> Callable[..., NoReturn]:
    """Make a function that raises the error, whatever it is called with."""

    def function(*_: Any, **__: Any) -> NoReturn:
        raise error

    return function


def refusal(program: Callable[..., Any], *args: Any) -> str:
    """The one line with which a program refuses its input, with exit code 2."""
    code, _, err = outcome(lambda: program(*args))
    assert code == 2 and err.count("\n") == 1, err
    return err.rstrip("\n")


if __name__ == "started":
    serve(*arguments)  # noqa: F821
