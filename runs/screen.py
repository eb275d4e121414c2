"""Lines on a screen that may be closed. Nothing heavy is imported here."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)  # a pipe, or a terminal that was closed


class Unread:
    """A stream that nobody may be reading any more, as `| tee` that Ctrl-C has ended or a terminal
    that was closed: that is no reason to end a run. None: it was closed from the start."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with self.unless_gone():
            if self.stream is not None:
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self.unless_gone():
            if self.stream is not None:
                self.stream.flush()

    @contextmanager
    def unless_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                raise
            self.let_go()

    def let_go(self) -> None:
        """What is still in the stream's buffer would fail at exit."""
        assert self.stream is not None
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def print_line(message: str, stream: TextIO | None) -> None:
    """Print `message` on a line of its own: progress bars are cleared, and drawn again at their
    next update.

    tqdm.write would clear them for the very streams stdout and stderr alone. It also draws them
    again at once, which is before `| tee` has shown the line.
    """
    bars: Any = sys.modules.get("tqdm")  # to import it here would slow down what draws no bar
    with nullcontext() if bars is None else bars.tqdm.get_lock():
        for bar in list(getattr(bars.tqdm, "_instances", ())) if bars else ():
            bar.clear(nolock=True)
        print(message, file=Unread(stream), flush=True)
