"""Parse command lines: the parser of every program, types of numbers, and errors of the user.

Imports nothing slow, such as torch, so that `--help` and errors in flags are printed at once.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from runs.names import SMALLEST_IMAGE

# Environment variables that torchrun sets in each process that it starts.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def processes() -> int:
    """Return the number of processes that torchrun has started; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(n in os.environ for n in TORCHRUN) else 1


def first_here() -> bool:
    """Return whether this process is the first on its machine."""
    return processes() == 1 or os.environ["LOCAL_RANK"] == "0"


def rank_is_0() -> bool:
    """Return whether this process has rank 0, even before torch.distributed is initialised."""
    return processes() == 1 or os.environ["RANK"] == "0"


class Mistake(ValueError):
    """An error that the user can mend. It has a one-line message for stderr and exit code 2."""


class UsageError(Mistake):
    """An error on the command line. Its message names the flag, its value and the remedy."""


@contextmanager
def fits(flag: str) -> Iterator[None]:
    """Raise UsageError, which names `flag`, where the block runs out of memory: PyTorch's allocator
    raises a RuntimeError."""
    try:
        yield
    except (RuntimeError, MemoryError):
        raise UsageError(f"{flag} does not fit in memory: use a smaller number") from None


def open_streams() -> None:
    """Open os.devnull as stdout and stderr where a shell's `>&-` or `2>&-` has closed them. A file
    that is opened later would otherwise get descriptor 1 or 2, which libraries write to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.set_inheritable(descriptor, True)  # as descriptors 1 and 2 are by default
            setattr(sys, name, open(descriptor, "w"))  # noqa: SIM115


SYNONYMS = {"--learning_rate": "--lr"}  # names in other programs, too unlike ours for difflib


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return "did you mean X? ", where X is the name closest to `word`, ignoring case; return ""
    where no name is close."""
    by_lower = {name.lower().strip("-"): name for name in names}  # dashes make all flags similar
    matches = difflib.get_close_matches(SYNONYMS.get(word, word).lower().strip("-"), by_lower, 1)
    return f"did you mean {by_lower[matches[0]]}? " if matches else ""


class Parser(argparse.ArgumentParser):
    """Parse a program's flags. Report every error in one line on stderr, with exit code 2."""

    source = ""  # begins an error message: the file of the flags, if not the command line
    fixed: Sequence[str] = ()  # names of flags that may not change when a run is resumed
    verify: Callable[[argparse.Namespace], None]  # checks the settings against each other
    recipes = False  # whether @NAME on the command line stands for a recipe's flags
    argv: Sequence[str] = ()  # the command line that was parsed last

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        open_streams()
        super().__init__(*args, **kwargs)
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = self.uncaught
        # Before Python 3.14 argparse takes -1e9 for an unknown flag.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.I)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        """Parse the command line. Refuse a value, or a default from the environment, that is not
        UTF-8, such as a path in another encoding: neither log.txt nor TensorBoard could hold it."""
        argv, flag = sys.argv[1:] if args is None else list(args), "the command line:"
        self.argv = argv
        for argument in argv:
            flag = argument.partition("=")[0] if argument.startswith("--") else flag
            if argument == f"{flag}=--":  # argparse before Python 3.13 reads it as an empty list
                self.error(f"{flag} --: that is no value: give another")
            self.check(check_utf8, flag, argument)
        settings = super().parse_args(argv, namespace)
        for name, value in vars(settings).items():
            if isinstance(value, str):
                self.check(check_utf8, f"--{name}", value)
        if isinstance(device := vars(settings).get("device"), str):
            self.check(check_device, device)
        return settings

    def check(self, rule: Callable[..., Any], *values: Any) -> None:
        """Call `rule(*values)`. If it raises a Mistake, print its message and exit with code 2."""
        try:
            rule(*values)
        except Mistake as error:
            self.error(str(error))

    def error(self, message: str) -> NoReturn:
        """Print one line, without the usage text that would hide it, and exit with code 2. All
        processes on a machine come here with the same error; the first of them prints it."""
        if first_here():
            from runs.screen import one_line, print_line

            suggestion = self.suggest(message).rstrip()
            message += f": {suggestion}" if suggestion else ""
            line = f"{self.prog}: error: {self.source}{message} (all flags: --help)"
            print_line(one_line(line), sys.stderr)
        sys.exit(2)

    def uncaught(self, kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        """Print one line instead of a traceback, as sys.excepthook, for Ctrl-C and for ImportError,
        MemoryError and OSError. All of these can interrupt the import of PyTorch."""
        failed = issubclass(kind, ImportError | MemoryError | OSError)
        if not (failed or issubclass(kind, KeyboardInterrupt)):
            return sys.__excepthook__(kind, error, traceback)
        from runs.screen import print_line

        if not failed:
            return print_line(f"{self.prog}: interrupted", sys.stderr)
        message = f"{kind.__name__}: {' '.join(str(error).split())[:300]}"
        if issubclass(kind, ModuleNotFoundError):
            message += (
                ": install the packages that pyproject.toml lists, or activate their environment"
            )
        print_line(f"{self.prog}: error: {message}", sys.stderr)
        sys.exit(2)

    def suggest(self, message: str) -> str:
        """Return `did_you_mean` for the invalid choice, or first unknown flag, in the message."""
        if choice := re.search(r"invalid choice: '(.*?)'.*\(choose from (.*)\)", message):
            return did_you_mean(choice[1], re.findall(r"[^', ]+", choice[2]))
        if message.startswith(("unrecognized arguments", "the following arguments are required")):
            flags = {flag for parser in self.parsers() for flag in parser._option_string_actions}
            given = [word.partition("=")[0] for word in self.argv if word.startswith("--")]
            return next((did_you_mean(flag, flags) for flag in given if flag not in flags), "")
        return ""

    def parsers(self) -> Iterator[argparse.ArgumentParser]:
        """Yield this parser and its subparsers, such as that of `tables.py compare`."""
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def check_utf8(flag: str, value: str) -> None:
    """Raise UsageError for a value with bytes that Python could not decode as a file name."""
    try:
        value.encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        reason = "is not UTF-8: rename it, or give another"
        reason = reason if encoding == "utf-8" else f"is read as {encoding}: set PYTHONUTF8=1"
        raise UsageError(f"{flag} {value!a} {reason}") from None


def check_device(name: str) -> None:
    """Raise UsageError for a malformed device name. Only PyTorch knows which devices exist."""
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d?))?", name):
        raise UsageError(f"--device {name} is unknown: use auto, cpu, cuda or cuda:N")


LARGEST_INT64 = 2**63 - 1
LONGEST_NAME = 255  # bytes, on nearly every file system
LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


def number(
    kind: Callable[[str], float],
    *,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> Callable[[str], Any]:
    """Return a type for argparse: an int or a float within [low, high], without low if open_low and
    without high if open_high, that a tensor of int64 or of float32 can hold."""
    noun = "a whole number" if kind is int else "a number"
    largest = min(high, LARGEST_INT64 if kind is int else LARGEST_FLOAT32)
    lower_bound = f"{'above' if open_low else 'at least'} {low:g}"
    both_bounds = f"{lower_bound} and {'below' if open_high else 'at most'} {largest:g}"
    bounds = both_bounds if high < math.inf else lower_bound

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}: give one {bounds}") from None
        large_enough = low < value if open_low else low <= value
        small_enough = value < largest if open_high else value <= largest
        if not (large_enough and small_enough):  # nan fails this too
            raise argparse.ArgumentTypeError(
                f"{text} is out of range: give {noun} {both_bounds if value >= largest else bounds}"
            )
        return value

    return parse


def switch(text: str) -> bool:
    """Read the 0 or 1 that follows a switch of HDGE. JEM's switches are bare flags."""
    if text not in ("0", "1", "0.0", "1.0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1: give 0, 1 or nothing (= 1)")
    return float(text) == 1


COUNT = number(int, low=1)
WHOLE = number(int, low=0)
OR_OFF = number(int, low=-1)
WEIGHT = number(float, low=0)
POSITIVE = number(float, low=0, open_low=True)
DECAY = number(float, low=0, high=1, open_high=True)
# Far above any network in use, and small enough that PyTorch can build the modules.
DEEPEST, WIDEST = 6 * 200 + 4, 10_000
DEPTH = number(int, low=1, high=DEEPEST)
IMAGE_SIDE = number(int, low=SMALLEST_IMAGE)
WIDTH = number(int, low=1, high=WIDEST)
# Scores are float32 and as large as log(classes). Divided by a smaller temperature, their rounding
# error would be a visible part of the loss (5e-7 / 1e-4 = .005); by a much smaller one, all of it.
TEMPERATURE = number(float, low=1e-4)
# --threads, the same in all programs. It depends on the machine, so a resumed run does not keep it.
THREADS: dict[str, Any] = {
    "type": number(int, low=1, high=1024),  # PyTorch crashes with many more
    "metavar": "N",
    "help": "threads of the CPU; 1 is much faster where other programs keep the cores busy "
    "(default: PyTorch's, one a core; ours)",
}


def adder(
    parser: argparse.ArgumentParser, title: str, about: str | None = None
) -> Callable[..., None]:
    """Make a group of flags in the help text. Return a function that adds a flag to it."""
    declare = parser.add_argument_group(title, about).add_argument

    def add(
        flag: str,  # names, and the unit of each value: "--n_steps N"
        kind: Any,  # a type of argparse, a tuple of choices, or bool for a switch
        default: Any,
        source: str | None,
        about: str,
        *,
        shown: str | None = "%(default)s",  # the default in the help text; None: not in it
        **extra: Any,  # further arguments of add_argument
    ) -> None:
        names = [word for word in flag.split() if word.startswith("--")]
        units = flag.split()[len(names) :]
        if kind is bool:  # a switch that is on by default has a --no- form
            extra.setdefault("action", argparse.BooleanOptionalAction if default else "store_true")
            if shown == "%(default)s":
                shown = "on" if default else None
        else:
            extra["choices" if isinstance(kind, tuple) else "type"] = kind
            extra["metavar"] = tuple(units) if len(units) > 1 else "".join(units) or None
        notes = "; ".join(note for note in (shown and f"default: {shown}", source) if note)
        declare(*names, default=default, help=f"{about} ({notes})" if notes else about, **extra)

    return add


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> set[str]:
    """Return the names of the flags on a command line. Remove the defaults of `parser`."""
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser._defaults.clear()
    return set(vars(parser.parse_args(argv)))


def check_id(name: str | None) -> None:
    if name is None:
        return
    if not name.strip() or "/" in name or "\\" in name or name in (".", ".."):
        raise UsageError(f"--id {name!r} is no folder name: give one without slashes")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UsageError(
            f"--id {name[:20]}... is longer than a folder name may be: "
            f"give {LONGEST_NAME} bytes at most"
        )


def check_shared(flag: str, value: int, factor: int = 1, factor_text: str = "") -> None:
    """Raise UsageError for a value that is not divisible by the number of processes times `factor`,
    which `factor_text` names in the message."""
    count = processes()
    if value % (count * factor):
        nearest = max(1, round(value / (count * factor))) * count * factor
        raise UsageError(
            f"{flag} {value} is not divisible by the {count} processes{factor_text}: use "
            f"{nearest}, for example"
        )
