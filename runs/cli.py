"""The ground of every command line: the parser, its number types, and a user's mistakes.

Nothing heavy is imported here, so that `--help` and a mistaken flag are answered at once.
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

# What torchrun sets in the environment of each process that it starts.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def processes() -> int:
    """Return how many processes torchrun has started for this command; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(n in os.environ for n in TORCHRUN) else 1


def first_here() -> bool:
    """Return whether this process is the first on its machine."""
    return processes() == 1 or os.environ["LOCAL_RANK"] == "0"


def rank_is_0() -> bool:
    """Return whether this process prints the lines that all would print before they meet."""
    return processes() == 1 or os.environ["RANK"] == "0"


class Mistake(ValueError):
    """A mistake that the user can mend: one line, for stderr, and exit code 2."""


class UsageError(Mistake):
    """A mistake on the command line: names the flag, its value and the remedy."""


@contextmanager
def fits(flag: str) -> Iterator[None]:
    """Raise UsageError where memory does not suffice for what the flag makes large: PyTorch's
    allocator raises a RuntimeError."""
    try:
        yield
    except (RuntimeError, MemoryError):
        raise UsageError(f"{flag} does not fit in memory: use a smaller number") from None


def open_streams() -> None:
    """Connect stdout and stderr to nowhere where a shell's `>&-` or `2>&-` has closed them. Python
    has None for them, and the next file to be opened would get the number that libraries write to.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.set_inheritable(nowhere, True)  # as the number that it takes is
            setattr(sys, name, open(nowhere, "w"))  # noqa: SIM115


SYNONYMS = {"--learning_rate": "--lr"}  # other programs' names, unlike ours


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean X? ", with the known name that is nearest whatever its case; "" where
    none is near."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(SYNONYMS.get(word, word).lower(), names, 1)
    return f"did you mean {names[near[0]]}? " if near else ""


class Parser(argparse.ArgumentParser):
    source = ""  # begins an error message: the file of the flags, if not the command line
    fixed: Sequence[str] = ()  # names of flags that may not change when a run is resumed
    verify: Callable[[argparse.Namespace], None]  # checks the settings against each other
    recipes = False  # @NAME on the command line stands for a recipe's flags
    words: Sequence[str] = ()  # of the command line

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
        """Also refuse a word, or a default from the environment, that is not UTF-8, such as a path
        in another encoding: neither log.txt nor TensorBoard could hold it."""
        words, flag = sys.argv[1:] if args is None else list(args), "the command line:"
        self.words = words
        for word in words:
            flag = word.partition("=")[0] if word.startswith("--") else flag
            if word == f"{flag}=--":  # of which argparse before Python 3.13 makes an empty list
                self.error(f"{flag} --: that is no value: give another")
            self.check(check_utf8, flag, word)
        found = super().parse_args(words, namespace)
        for name, value in vars(found).items():
            if isinstance(value, str):
                self.check(check_utf8, f"--{name}", value)
        if isinstance(device := vars(found).get("device"), str):
            self.check(check_device, device)
        return found

    def check(self, rule: Callable[..., Any], *values: Any) -> None:
        """End the program with a line where the rule raises a Mistake."""
        try:
            rule(*values)
        except Mistake as error:
            self.error(str(error))

    def error(self, message: str) -> NoReturn:
        """Print one line, without the usage text that would hide it, and exit with code 2. Of
        several processes on a machine, which all notice the same, one prints."""
        if first_here():
            from runs.screen import one_line, print_line

            near = self.meant(message).rstrip()
            message += f": {near}" if near else ""
            told = f"{self.prog}: error: {self.source}{message} (all flags: --help)"
            print_line(one_line(told), sys.stderr)
        sys.exit(2)

    def uncaught(self, kind: type[BaseException], *error: Any) -> None:
        """Print a line in place of a traceback for Ctrl-C, as while PyTorch is imported, and for a
        machine that cannot import it: it is missing, or memory or file handles do not suffice."""
        lacks = issubclass(kind, ImportError | MemoryError | OSError)
        if not (lacks or issubclass(kind, KeyboardInterrupt)):
            return sys.__excepthook__(kind, *error)
        from runs.screen import print_line

        if not lacks:
            return print_line(f"{self.prog}: interrupted", sys.stderr)
        told = f"{kind.__name__}: {' '.join(str(error[0]).split())[:300]}"
        if issubclass(kind, ModuleNotFoundError):
            told += ": install what pyproject.toml lists, or activate where it is"
        print_line(f"{self.prog}: error: {told}", sys.stderr)
        sys.exit(2)

    def meant(self, message: str) -> str:
        """Return `did_you_mean` of the choice, or of the first unknown flag, that argparse's
        message is about."""
        if choice := re.search(r"invalid choice: '(.*?)'.*\(choose from (.*)\)", message):
            return did_you_mean(choice[1], re.findall(r"[^', ]+", choice[2]))
        if message.startswith(("unrecognized arguments", "the following arguments are required")):
            known = {flag for parser in self.family() for flag in parser._option_string_actions}
            given = [word.partition("=")[0] for word in self.words if word.startswith("--")]
            return next((did_you_mean(flag, known) for flag in given if flag not in known), "")
        return ""

    def family(self) -> Iterator[argparse.ArgumentParser]:
        """Yield this parser and those of its actions, as of `tables.py compare`."""
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from action.choices.values()


def check_utf8(flag: str, value: str) -> None:
    """Raise UsageError for a value that holds bytes of another encoding than Python's for names."""
    try:
        value.encode()
    except UnicodeEncodeError:
        here = sys.getfilesystemencoding()
        told = "is not UTF-8: rename it, or give another"
        told = told if here == "utf-8" else f"is read as {here}: set PYTHONUTF8=1"
        raise UsageError(f"{flag} {value!a} {told}") from None


def check_device(name: str) -> None:
    """Raise UsageError for a name of no device; whether it is there PyTorch knows."""
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
    """Make a type for argparse: an int or a float within [low, high], without low if open_low and
    without high if open_high, that a tensor of int64 or of float32 can hold."""
    name = "a whole number" if kind is int else "a number"
    most = min(high, LARGEST_INT64 if kind is int else LARGEST_FLOAT32)
    least = f"{'above' if open_low else 'at least'} {low:g}"
    both = f"{least} and {'below' if open_high else 'at most'} {most:g}"
    span = both if high < math.inf else least

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}: give one {span}") from None
        above = low < value if open_low else low <= value
        below = value < most if open_high else value <= most
        if not (above and below):  # nan fails this too
            raise argparse.ArgumentTypeError(
                f"{text} is out of range: give {name} {both if value >= most else span}"
            )
        return value

    return parse


def switch(text: str) -> bool:
    """Read HDGE's 0|1 switches, which JEM has as bare flags."""
    if text not in ("0", "1", "0.0", "1.0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1: give 0, 1 or nothing (= 1)")
    return float(text) == 1


COUNT = number(int, low=1)
WHOLE = number(int, low=0)
OR_OFF = number(int, low=-1)
WEIGHT = number(float, low=0)
POSITIVE = number(float, low=0, open_low=True)
DECAY = number(float, low=0, high=1, open_high=True)
# Far more than anybody trains, and little enough for the network's modules to be made.
DEEPEST, WIDEST = 6 * 200 + 4, 10_000
DEPTH = number(int, low=1, high=DEEPEST)
IMAGE_SIDE = number(int, low=SMALLEST_IMAGE)
WIDTH = number(int, low=1, high=WIDEST)
# Scores are float32 and as large as log(classes): of smaller temperatures their rounding would be
# a visible part of the loss (5e-7 / 1e-4 = .005), and of much smaller ones all of it.
TEMPERATURE = number(float, low=1e-4)
# The same in all programs; no setting of a run: the machine's matter.
THREADS: dict[str, Any] = {
    "type": number(int, low=1, high=1024),  # of many more PyTorch dies
    "metavar": "N",
    "help": "threads of the CPU; 1 is much faster where other programs keep the cores busy "
    "(default: PyTorch's, one a core; ours)",
}


def adder(
    parser: argparse.ArgumentParser, title: str, about: str | None = None
) -> Callable[..., None]:
    """Make a group of the help text. Return a function that adds a flag to it."""
    declare = parser.add_argument_group(title, about).add_argument

    def add(
        flag: str,  # its names, and the unit of its value
        kind: Any,  # a type of argparse, a tuple of choices, or bool: a switch
        default: Any,
        source: str | None,
        about: str,
        *,
        shown: str | None = "%(default)s",  # what help says of the default
        **more: Any,
    ) -> None:
        names = [word for word in flag.split() if word.startswith("--")]
        units = flag.split()[len(names) :]
        if kind is bool:  # one that is on has a --no- form
            more.setdefault("action", argparse.BooleanOptionalAction if default else "store_true")
            if shown == "%(default)s":
                shown = "on" if default else None
        else:
            more["choices" if isinstance(kind, tuple) else "type"] = kind
            more["metavar"] = tuple(units) if len(units) > 1 else "".join(units) or None
        notes = "; ".join(note for note in (shown and f"default: {shown}", source) if note)
        declare(*names, default=default, help=f"{about} ({notes})" if notes else about, **more)

    return add


def given_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> set[str]:
    """Return the names of the flags that a command line gives. `parser` loses its defaults."""
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


def check_shared(flag: str, value: int, of: int = 1, what: str = "") -> None:
    """Raise UsageError for a number that is not divisible by the processes (times `of`, which
    `what` names)."""
    count = processes()
    if value % (count * of):
        near = max(1, round(value / (count * of))) * count * of
        raise UsageError(
            f"{flag} {value} is not divisible by the {count} processes{what}: use {near}, for "
            "example"
        )
