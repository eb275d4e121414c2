"""What a run and an evaluation leave on a terminal and in log files."""

import contextlib
import fcntl
import os
import re
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import eval_wrn_ebm
import train_wrn
from evaluation import flags as eval_flags
from training import flags, output


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
    """A terminal that stdout and stderr are connected to, stdout perhaps by a slow `| tee`."""

    def __init__(self, columns: int, tee: bool) -> None:
        self.columns, self.tee, self.read = columns, tee, bytearray()
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.collect)]
        out = os.dup(self.slave)
        if self.tee:
            pipe, out = os.pipe()
            threads.append(threading.Thread(target=self.copy, args=(pipe,)))
        for thread in threads:
            thread.start()
        with open(out, "w") as stdout, open(os.dup(self.slave), "w") as stderr:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                yield
        for thread in threads[1:]:
            thread.join()
        os.close(self.slave)
        threads[0].join()

    def collect(self) -> None:
        with contextlib.suppress(OSError):  # the last writer has closed it
            while found := os.read(self.master, 4096):
                self.read += found

    def copy(self, pipe: int) -> None:
        while found := os.read(pipe, 4096):
            time.sleep(0.005)
            os.write(self.slave, found)

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


@pytest.mark.parametrize("columns, tee", [(60, False), (80, False), (120, False), (80, True)])
def test_bar_and_record_do_not_share_a_row(
    columns: int, tee: bool, train: Any, tmp_path: Path
) -> None:
    terminal = Terminal(columns, tee)
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


def test_a_warning_leaves_the_bar_in_its_row(ask: Any, tmp_path: Path) -> None:
    terminal, checkpoint = Terminal(80, False), str(ask.checkpoint("hdge"))
    words = ["--load_path", checkpoint, "--eval", "OOD", "--ood_dataset", "svhn", "celeba"]
    words += ["--data_root", str(ask.trainer.data), "--log_dir", str(tmp_path), "--device", "cpu"]
    with terminal.attached(), output.make_bar(100, desc="a bar", leave=False) as bar:
        bar.update(50)
        output.print_line("a warning", sys.stderr)
        bar.update(50)
        bar.refresh()
    assert terminal.rows == ["a warning"]
    terminal = Terminal(80, False)
    with terminal.attached():
        assert eval_wrn_ebm.main(*eval_flags.parse(words)) == 0
    assert "img/s" in terminal.read.decode()
    assert not [row for row in terminal.rows if "img" in row or "%|" in row]


@pytest.mark.parametrize("every", [60.0, 0.0])
def test_a_log_file_has_lines_alone(
    every: float, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run of a few seconds no bar; of a longer one a line now and then."""
    monkeypatch.setattr(output, "LINE_EVERY", every)
    with open(tmp_path / "log", "w") as file:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            assert train_wrn.main(*flags.parse(words_of(train, tmp_path))) == 0
    text = (tmp_path / "log").read_text()
    bars = [line for line in text.splitlines() if "img" in line and "%" in line]
    assert [line for line in text.splitlines() if line not in bars] == said(tmp_path)
    assert bool(bars) == (every == 0) and all(char.isprintable() or char == "\n" for char in text)
