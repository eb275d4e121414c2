"""How a program ends: signals, the exit code and, unless that is 0, one line on stderr."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import torch

from runs import processes as distributed
from runs.checkpoint import out_of_memory
from runs.cli import Mistake
from runs.screen import one_line, print_line

ENDS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator:
    """Handle these signals inside, where this is the main thread, to which signals come. Leave one
    alone that is ignored: nohup and a shell's background ask for that."""
    main = threading.current_thread() is threading.main_thread()
    heard = [number for number in numbers if main and signal.getsignal(number) != signal.SIG_IGN]
    found = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, before in found.items():
            signal.signal(number, before)


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """End the program at once, with what it has to clean up cleaned up."""
    raise KeyboardInterrupt(number)


def exit_code(
    program: str, work: Callable[[], int], *, interrupted: str, lower: str | None = None
) -> int:
    """Return what `work` returns; 2 for a user's mistake, a disk that failed or a memory that is
    full, 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

    interrupted: the line for all signals.
    lower: the flags that take memory; None: an error of a full memory is raised.
    """
    try:
        with handled(terminate, *ENDS):
            return work()
    except (Mistake, OSError) as error:
        tell(one_line(f"{program}: error: {error}"))
        return 2
    except (RuntimeError, MemoryError) as error:
        if distributed.is_lost(error):
            tell(f"{program}: error: {distributed.LOST} ({distributed.reason(error)})")
            return 1
        gpu = isinstance(error, torch.OutOfMemoryError)
        if lower is None or not (gpu or out_of_memory(error)):
            raise
        memory = "the GPU's memory" if gpu else "the memory"
        tell(f"{program}: error: {memory} is full: lower {lower}")
        return 2
    except KeyboardInterrupt as error:
        tell(interrupted)
        return 128 + (error.args[0] if error.args else signal.SIGINT)


def tell(line: str) -> None:
    """Print a line on stderr; of several processes that end, only the first one does."""
    if distributed.first_to_report():
        print_line(line, sys.stderr)


def leave(code: int) -> NoReturn:
    """End the process. One of several ends at once: others that have failed no longer send what a
    regular exit would wait for."""
    if distributed.size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class Signals:
    """Remember SIGINT, SIGTERM and SIGHUP, so that a loop can end between two steps.

    `received`: the number of the first one since `listen` began; 0: none. A second SIGINT raises
    KeyboardInterrupt, wherever the program is.
    """

    def __init__(self, program: str, quiet: bool = False) -> None:
        self.program, self.quiet = program, quiet
        self.received = self.interrupts = 0

    @property
    def name(self) -> str:
        return signal.Signals(self.received).name

    @contextmanager
    def listen(self) -> Iterator[None]:
        with handled(self.remember, signal.SIGINT, *ENDS):
            yield

    def remember(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            signal.default_int_handler(number, frame)
        if self.received:
            return
        self.receive(number)
        if not self.quiet:
            again = " (Ctrl-C: at once)" if number == signal.SIGINT else ""
            line = f"\n{self.program}: {self.name}: the step is finished and saved{again}\n"
            # Not print: the signal may have come in the middle of one, which allows no other. Who
            # reads it may have died of the same signal.
            with suppress(OSError):
                os.write(2, line.encode())

    def receive(self, number: int) -> None:
        """Remember a signal that this process, or another one of its run, has received; 0: none."""
        self.received = self.received or number
