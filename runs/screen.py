"""Print lines, progress bars and Markdown tables, also on a screen or pipe that may be closed.

Nothing slow is imported at the top.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

Row = Mapping[str, Any]
GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)  # errors of a closed pipe or terminal
LONGEST = 1000  # characters of an error message, in one line
LINE_EVERY = 60.0  # seconds between two lines of a progress bar in a log file


class ClosableStream:
    """Wrap a stream and ignore that its reader has gone (a closed terminal, or `| tee` that Ctrl-C
    has ended), which is no reason to end a run. stream: None if it was closed from the start."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with self.redirect_if_gone():
            if self.stream is not None:
                try:
                    self.stream.write(text)
                except UnicodeEncodeError:  # better an escape sequence than the end of a run
                    encoded = text.encode(self.stream.encoding, "backslashreplace")
                    self.stream.write(encoded.decode(self.stream.encoding))
        return len(text)

    def flush(self) -> None:
        with self.redirect_if_gone():
            if self.stream is not None:
                self.stream.flush()

    @contextmanager
    def redirect_if_gone(self) -> Iterator[None]:
        """If the stream's reader has gone, redirect the stream to os.devnull: else Python would
        fail at exit, when it flushes the stream's buffer."""
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                raise
            with contextlib.suppress(OSError):
                descriptor = os.open(os.devnull, os.O_WRONLY)
                os.dup2(descriptor, self.stream.fileno())  # type: ignore[union-attr]
                os.close(descriptor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class BarLines(ClosableStream):
    """Write a progress bar to a log file, which cannot redraw it: one line with the bar's state
    every `LINE_EVERY` seconds."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(stream)
        self.written_at = time.monotonic()

    def write(self, text: str) -> int:
        line, now = text.strip(), time.monotonic()  # strip \r and the spaces that clear a bar
        if line and now - self.written_at >= LINE_EVERY:
            self.written_at = now
            super().write(line + "\n")
        return len(text)


def make_bar(total: int, unit: str = "img", **options: Any) -> tqdm:
    """Make a progress bar on stderr, `total` units long."""
    from tqdm import tqdm

    terminal = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=unit,
        unit_scale=True,
        file=ClosableStream(sys.stderr) if terminal else BarLines(sys.stderr),
        mininterval=0.2 if terminal else 10.0,
        dynamic_ncols=True,
        **options,
    )


def rewind(bar: tqdm, n: int) -> None:
    """Set the bar back to n. tqdm alone would not redraw it until it is past its old count."""
    bar.n = bar.last_print_n = n
    bar.last_print_t = bar._time()
    bar.refresh()


def print_line(message: str, stream: TextIO | None) -> None:
    """Print `message` on a line of its own. Progress bars are cleared, and drawn again at their
    next update.

    tqdm.write would clear bars on sys.stdout and sys.stderr, but not on a `ClosableStream` around
    them. It also draws bars again at once, before `| tee` has shown the line.
    """
    tqdm: Any = sys.modules.get("tqdm")  # not imported here: programs without bars start faster
    with nullcontext() if tqdm is None else tqdm.tqdm.get_lock():
        for bar in list(getattr(tqdm.tqdm, "_instances", ())) if tqdm else ():
            bar.clear(nolock=True)
        # One write with the line end: programs with several jobs print from threads.
        print(f"{message}\n", end="", file=ClosableStream(stream), flush=True)


def one_line(message: str) -> str:
    """Escape line ends and control characters, which a file's name may have, in a message. Cut the
    middle out of a very long message."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def markdown(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    headers: Mapping[str, str] | None = None,
    digits: int = 4,
) -> str:
    """Return a Markdown table of `columns`, each padded to one width, without a final newline.

    A column of numbers alone is right-aligned; floats have `digits` decimals. A value that is
    missing or None is "-". headers: column -> title, where the title is not the column's key.
    """
    titles = [escaped((headers or {}).get(column, column)) for column in columns]
    lines = [[cell(row.get(column), digits) for column in columns] for row in rows]
    right = [all_numbers([row.get(column) for row in rows]) for column in columns]
    widths = [
        max(3, *(len(line[i]) for line in [titles, *lines]))  # Markdown's rule: at least "---"
        for i in range(len(columns))
    ]
    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]

    def padded_row(cells: Sequence[str]) -> str:
        padded = [
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    return "\n".join(padded_row(line) for line in [titles, rule, *lines])


def listed(class_names: Sequence[str]) -> str:
    """Return the names as text; of more than 10 only the first 10, and their number."""
    more = f", ... ({len(class_names)} in all)" if class_names[10:] else ""
    return ", ".join(class_names[:10]) + more


def text_of_changes(differences: Row, part: str | None) -> str | None:
    """Describe the result of `data.Record.compare` in one line; None if nothing differs."""
    kind = {"train": "training", "valid": "validation", "test": "test"}.get(part or "", "")
    n, texts = differences.get("n", 0), []
    for key, text in (
        ("trained_on", f"of {n:,} images were trained on"),
        ("new", f"of {n:,} images are not among the run's {kind} images"),
        ("missing", f"of the run's {kind} images are missing"),
    ):
        if count := differences.get(key):
            texts.append(f"{count:,} {text}")
    if "class_names" in differences:
        names, of_run = (listed(differences[key]) for key in ("class_names", "run_class_names"))
        texts.append(f"its classes are {names}; the run's were {of_run}, in this order")
    return "; ".join(texts) or None


def reversed_order(rows: Sequence[Row]) -> str | None:
    """Return a line that names the scores and OOD sets with an AUROC below .5 and explains it, or
    None. rows: dicts with score_fn, ood_dataset, auroc and, if there are several models, model."""
    below: dict[str, list[str]] = {}
    for row in rows:
        if row["auroc"] < 0.5:
            score = f"{row['model']}, {row['score_fn']}" if "model" in row else row["score_fn"]
            below.setdefault(score, []).append(row["ood_dataset"])
    if not below:
        return None
    texts = "; ".join(f"{score}: {', '.join(sets)}" for score, sets in below.items())
    return (
        f"AUROC below 0.5 ({texts}): the model scores these images higher than the "
        "in-distribution images, in most pairs; at 0, in all. Where the score is px, it gives "
        "them the higher density q(x)."
    )


def cell(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else escaped(str(value))


def escaped(text: str) -> str:
    """Escape the characters that end a cell or a row in Markdown."""
    return " ".join(text.split()).replace("|", r"\|")


def all_numbers(values: Sequence[Any]) -> bool:
    """Return whether the values are numbers and None, with at least one number."""
    present = [value for value in values if value is not None]
    return bool(present) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in present
    )
