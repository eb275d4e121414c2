"""How a program ends: its exit code and, unless that is 0, one line on stderr."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

import data
from evaluation import plots
from runs import folder as records
from runs import processes as distributed
from runs.checkpoint import CheckpointError, out_of_memory
from runs.cli import UsageError
from runs.screen import print_line
from runs.signals import Signals, Terminated, terminable
from training.divergence import Diverged
from training.output import Output

MISTAKES = (UsageError, data.DataError, CheckpointError, records.RunFolderError, OSError)


def exit_code(
    program: str, work: Callable[[], int], *, interrupted: str, lower: str | None = None
) -> int:
    """What `work` returns; 2 for a user's mistake, a disk that failed or a memory that is full,
    130 for Ctrl-C, 143 for SIGTERM.

    interrupted: the line for both signals.
    lower: the flags that take memory; None: where it is full, that is raised.
    """
    try:
        with terminable():
            return work()
    except MISTAKES as error:
        tell(f"{program}: error: {error}")
        return 2
    except (RuntimeError, MemoryError) as error:
        if distributed.is_lost(error):
            tell(f"{program}: error: {distributed.LOST} ({distributed.reason(error)})")
            return 1
        full = full_memory(error)
        if lower is None or full is None:
            raise
        tell(f"{program}: error: {full} is full: lower {lower}")
        return 2
    except KeyboardInterrupt as error:
        tell(interrupted)
        return 143 if isinstance(error, Terminated) else 130


def tell(line: str) -> None:
    """On stderr; of several processes that end, the first one tells."""
    if distributed.may_speak():
        print_line(line, sys.stderr)


def leave(code: int) -> NoReturn:
    """End the process: one that has not parted from the others in peace at once, and not after
    what they no longer send."""
    if distributed.size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def full_memory(error: Exception) -> str | None:
    """What is full, if that is what the error says."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory"
    return "the memory" if out_of_memory(error) else None


def run_exit_code(program: str, out: Output, train: Callable[[Signals], str]) -> int:
    """0 once `train` has said why it ended, 1 for a run that diverged, 128 + its number for a
    signal that ended it: 130 for Ctrl-C, 143 for SIGTERM.

    However it ends, its records are closed and its curves drawn.
    """
    # Of several processes none promises what another one's end may prevent.
    signals = Signals(program, quiet=distributed.size() > 1)
    with signals.listen():
        try:
            ending = train(signals)
            out.say(f"{ending}; the run is in {out.folder}")
        except Diverged as error:
            if out.book is not None:
                out.book.line(str(error))
            tell(f"{program}: {error}")
            return 1
        except KeyboardInterrupt:
            distributed.part()
            tell(f"\n{program}: interrupted; {out.last_good()}, --resume goes on")
            return 130
        except RuntimeError as error:
            if not distributed.is_lost(error):
                raise
            distributed.part()
            why = f"{distributed.LOST} ({distributed.reason(error)})"
            tell(f"{program}: {why}; {out.last_good()}, --resume goes on")
            return 1
        finally:
            # Whatever ended the run is what the user must read.
            with contextlib.suppress(OSError, KeyboardInterrupt):
                close(out)
    return 128 + signals.received if signals.obeyed else 0


def close(out: Output) -> None:
    if out.book is None:
        return
    out.book.close()
    rows = records.read_progress(out.folder)
    if rows:
        plots.save_curves(rows, out.folder / "curves.png")
