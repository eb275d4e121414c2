"""End a program: handle signals, choose the exit code and, unless it is 0, print one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from runs import processes as distributed
from runs.checkpoint import out_of_memory
from runs.cli import Mistake
from runs.screen import one_line, print_line

ENDS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator:
    """Install the handler of these signals inside the block, if this is the main thread: Python
    delivers signals to no other. Signals that nohup or a shell's `&` ignores stay ignored."""
    main = threading.current_thread() is threading.main_thread()
    active = [number for number in numbers if main and signal.getsignal(number) != signal.SIG_IGN]
    earlier_handlers = {number: signal.signal(number, handler) for number in active}
    try:
        yield
    finally:
        for number, earlier in earlier_handlers.items():
            signal.signal(number, earlier)


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Raise KeyboardInterrupt: the program ends at once, but its `finally` blocks still run."""
    raise KeyboardInterrupt(number)


def exit_code(
    program: str, work: Callable[[], int], *, interrupted: str, lower: str | None = None
) -> int:
    """Call `work` and return its exit code; 1 if another process was lost; 2 for a user's mistake,
    a failed disk or full memory; 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

    interrupted: the line to print after a signal.
    lower: the flags to lower where memory is full; None: raise the out-of-memory error.
    """
    try:
        with handled(terminate, *ENDS):
            return work()
    except (Mistake, OSError) as error:
        tell(one_line(f"{program}: error: {error}"), alone=not isinstance(error, Mistake))
        return 2
    except (RuntimeError, MemoryError) as error:
        if distributed.is_lost(error):
            tell(f"{program}: error: {distributed.LOST} ({distributed.reason(error)})")
            return 1
        full = out_of_memory(error)
        if lower is None or not full:
            raise
        tell(f"{program}: error: {full}: lower {lower}", alone=True)
        return 2
    except KeyboardInterrupt as error:
        tell(interrupted)
        return 128 + (error.args[0] if error.args else signal.SIGINT)


def tell(line: str, *, alone: bool = False) -> None:
    """Print a line on stderr. Where several processes end, only the first to call this prints.
    `alone`: see `first_to_report`."""
    if distributed.first_to_report(alone=alone):
        print_line(line, sys.stderr)


def leave(code: int) -> NoReturn:
    """Exit with `code`. Under torchrun exit without clean-up, which would wait for messages that a
    failed process no longer sends."""
    if distributed.size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class Signals:
    """Remember SIGINT, SIGTERM and SIGHUP, so that a loop can end between two steps. A second
    SIGINT raises KeyboardInterrupt at once.

    received: the number of the first signal; 0 before any signal.
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
            # print would fail if the signal has interrupted another print. The write itself fails
            # if the same signal has ended the reader of stderr, such as `tee`.
            with suppress(OSError):
                os.write(2, line.encode())

    def receive(self, number: int) -> None:
        """Remember the number of a signal that any process of this run has received; ignore 0."""
        self.received = self.received or number
