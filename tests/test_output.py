"""What a run and an evaluation leave on a terminal and in log files."""

import contextlib
import errno
import fcntl
import io
import os
import re
import shlex
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import eval_wrn_ebm
import train_wrn
from evaluation import flags as eval_flags
from runs import screen
from runs.checkpoint import read_checkpoint
from training import flags

ROOT = Path(__file__).resolve().parent.parent


def rows_of(text: str, columns: int) -> list[str]:
    """The rows that a terminal shows, without the empty ones."""
    rows, row, column = [""], 0, 0
    for char in text:
        if char == "\r":
            column = 0
        elif char == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        else:
            assert char.isprintable(), repr(char)
            if column == columns:
                row, column = row + 1, 0
                rows += [""] * (row == len(rows))
            rows[row] = f"{rows[row][:column]:{column}}{char}{rows[row][column + 1 :]}"
            column += 1
    return [row.rstrip() for row in rows if row.strip()]


def wrapped(lines: list[str], columns: int) -> list[str]:
    return [line[i : i + columns].rstrip() for line in lines for i in range(0, len(line), columns)]


class Terminal:
    """A terminal that stderr is connected to, and stdout unless it is `piped`."""

    def __init__(self, columns: int, piped: bool = False) -> None:
        self.columns, self.read = columns, bytearray()
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.out = os.open(os.devnull, os.O_WRONLY) if piped else os.dup(self.slave)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        thread = threading.Thread(target=self.collect, daemon=True)
        thread.start()
        try:
            with open(self.out, "w") as stdout, open(os.dup(self.slave), "w") as stderr:
                with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                    yield
        finally:
            os.close(self.slave)
            thread.join(20)
            os.close(self.master)

    def collect(self) -> None:
        with contextlib.suppress(OSError):  # the last writer has closed it
            while found := os.read(self.master, 4096):
                self.read += found

    @property
    def rows(self) -> list[str]:
        return rows_of(self.read.decode(), self.columns)


def words_of(train: Any, folder: Path, more: str = "") -> list[str]:
    words = [*train.BASE.split(), "--data_root", str(train.data), "--log_dir", str(folder)]
    return [*words, *"--id run --pyxce 1 --pxysgld 1 --n_epochs 3".split(), *more.split()]


def said(folder: Path) -> list[str]:
    """The lines of log.txt that are on the screen, too."""
    lines = (folder / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not re.match(r"epoch \d+ step", line)]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_bar_and_record_do_not_share_a_row(columns: int, train: Any, tmp_path: Path) -> None:
    terminal = Terminal(columns)
    with terminal.attached():
        assert train_wrn.main(*flags.parse(words_of(train, tmp_path))) == 0
    rows, lines = terminal.rows, said(tmp_path)
    (bar,) = [row for row in rows if "img" in row and "%" in row]
    assert re.match(r"epoch 2 \(last 2\): 100%\|", bar) and len(bar) <= columns
    rows.remove(bar)
    assert rows == wrapped(lines, columns)
    epochs = [line.partition(",")[0] for line in lines if line.startswith("epoch")]
    assert epochs == ["epoch 0", "epoch 1", "epoch 2"]  # as progress.csv and the bar have them
    assert "evaluating" in terminal.read.decode()


@pytest.mark.parametrize("piped", [False, True])
def test_a_line_clears_the_bar_which_comes_back_later(piped: bool) -> None:
    """A pipe's reader, as `| tee`, shows the line when it likes: the bar must not be back yet."""
    terminal = Terminal(80, piped)
    with terminal.attached(), screen.make_bar(100, desc="a bar", leave=False) as bar:
        screen.print_line("a line", sys.stdout)
        bar.disable = True  # nothing is drawn any more
    assert "a bar" in terminal.read.decode() and terminal.rows == ["a line"] * (not piped)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_bar_is_drawn_below_lines(stream: str) -> None:
    terminal = Terminal(80)
    with terminal.attached(), screen.make_bar(100, desc="a bar") as bar:
        screen.print_line("a line", getattr(sys, stream))
        bar.update(50)
    assert terminal.rows[0] == "a line" and terminal.rows[1].startswith("a bar:  50%|")


def test_an_evaluation_leaves_its_table_alone(ask: Any, tmp_path: Path) -> None:
    terminal, checkpoint = Terminal(80), str(ask.checkpoint("hdge"))
    words = ["--load_path", checkpoint, "--eval", "OOD", "--ood_dataset", "svhn", "celeba"]
    words += ["--data_root", str(ask.trainer.data), "--log_dir", str(tmp_path), "--device", "cpu"]
    with terminal.attached():
        assert eval_wrn_ebm.main(*eval_flags.parse(words)) == 0
    assert "img/s" in terminal.read.decode()
    assert not [row for row in terminal.rows if "img" in row or "%|" in row]


@pytest.mark.parametrize("every", [60.0, 0.0])
def test_a_log_file_has_lines_alone(
    every: float, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run of a few seconds no bar; of a longer one a line now and then."""
    monkeypatch.setattr(screen, "LINE_EVERY", every)
    with open(tmp_path / "log", "w") as file:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            assert train_wrn.main(*flags.parse(words_of(train, tmp_path))) == 0
    text = (tmp_path / "log").read_text()
    bars = [line for line in text.splitlines() if "img" in line and "%" in line]
    assert [line for line in text.splitlines() if line not in bars] == said(tmp_path)
    assert bool(bars) == (every == 0) and all(char.isprintable() or char == "\n" for char in text)


class Gone(io.StringIO):
    """A terminal that is closed after its first line."""

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


PROGRAMS = ("train", "OOD", "mistake")


def ran(name: str, ask: Any, folder: Path) -> int:
    """The exit code of a program."""
    train, checkpoint = ask.trainer, str(ask.checkpoint("hdge"))
    where = ["--data_root", str(train.data), "--log_dir", str(folder), "--device", "cpu"]
    if name == "train":
        return train_wrn.main(*flags.parse(words_of(train, folder, "--max_steps 2")))
    if name == "mistake":
        try:
            flags.parse(["--depth", "11", "--pyxce", "1"])
        except SystemExit as stop:
            return int(str(stop.code))
    words = ["--load_path", checkpoint, *where, "--eval", "OOD", "--ood_dataset", "svhn"]
    return eval_wrn_ebm.main(*eval_flags.parse(words))


@pytest.mark.parametrize("closed", ["from the start", "by its reader", "after a line"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_nobody_reads_costs_no_answer(
    name: str, closed: str, ask: Any, tmp_path: Path
) -> None:
    stdout: Any = None
    stderr: Any = None
    if closed == "by its reader":
        read, write = os.pipe()
        os.close(read)
        stdout, stderr = (open(end, "w", buffering=1) for end in (write, os.dup(write)))
    elif closed == "after a line":
        stdout, stderr = Gone(), Gone()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = ran(name, ask, tmp_path)
    assert code == (2 if name == "mistake" else 0)
    left = {"train": "run/last_ckpt.pt", "OOD": "OOD.json"}
    assert name not in left or (tmp_path / left[name]).stat().st_size


def test_letters_that_a_screen_lacks_are_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    screen.print_line("läuft \u2713", stream)
    assert raw.getvalue() == b"l\\xe4uft \\u2713\n"


def test_lines_and_bars_need_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    screen.print_line("a line", None)
    monkeypatch.setattr(sys, "stderr", None)
    with screen.make_bar(10) as bar:
        bar.update(5)
        screen.rewind(bar, 2)


@pytest.mark.slow
def test_no_file_gets_the_number_of_a_closed_stream(ask: Any, tmp_path: Path) -> None:
    """It would get what libraries write to that number."""
    words = [*words_of(ask.trainer, tmp_path, "--max_steps 2")]
    program = (
        "import os, sys; from training import flags; given = flags.parse(sys.argv[1:]); "
        "os.write(1, b'by a library'); os.write(2, b'by a library'); "
        "import train_wrn; sys.exit(train_wrn.main(*given))"
    )
    command = shlex.join([sys.executable, "-c", program, *words])
    assert subprocess.run(f"{command} >&- 2>&-", shell=True, cwd=ROOT).returncode == 0
    assert read_checkpoint(tmp_path / "run" / "last_ckpt.pt")["progress"]["step"] == 2
