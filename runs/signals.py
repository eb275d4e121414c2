"""SIGINT and SIGTERM while a run trains: remembered, so that the loop ends it between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
HEARD = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal came in the middle of what leaves nothing behind, such as an evaluation."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, where a program ends at once, with what it has to clean up cleaned up."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    found = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, found)


class Signals:
    """`received`: the number of the first SIGINT or SIGTERM since `listen` began; 0: none.

    A second SIGINT raises KeyboardInterrupt, wherever the program is. `obeyed`: the run was ended
    for it, and did not happen to be complete.
    """

    def __init__(self, program: str, quiet: bool = False) -> None:
        self.program, self.received, self.obeyed = program, 0, False
        self.interrupts, self.quiet = 0, quiet

    @property
    def name(self) -> str:
        return signal.Signals(self.received).name

    @contextmanager
    def listen(self) -> Iterator[None]:
        """A signal that was ignored stays so: nohup and a shell's background ask for that."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        found = {number: signal.getsignal(number) for number in HEARD}
        heard = [number for number in HEARD if found[number] is not signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self.remember)
        try:
            yield
        finally:
            for number in heard:
                signal.signal(number, found[number])

    def remember(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1:
            signal.default_int_handler(number, frame)
        if self.received:
            return
        self.received = number
        if not self.quiet:
            again = " (Ctrl-C: at once)" if number == signal.SIGINT else ""
            line = f"\n{self.program}: {self.name}: the step is finished and saved{again}\n"
            # Not print: the signal may have come in the middle of one, which allows no other. Who
            # reads it may have died of the same signal.
            with suppress(OSError):
                os.write(2, line.encode())

    def hear(self, number: int) -> None:
        """Of a signal that another process of this run has received; 0: of none."""
        if number and not self.received:
            self.received = number

    def polled(self, items: Iterable[T]) -> Iterator[T]:
        """The items, until a signal comes: whoever asks for them then looks at `received`."""
        for item in items:
            if self.received:
                return
            yield item
