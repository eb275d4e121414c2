"""What a run and an evaluation leave on a terminal and in log files."""

import contextlib
import errno
import io
import os
import re
import shlex
import subprocess
import sys
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


def words_of(train: Any, folder: Path, more: str = "") -> list[str]:
    words = [*train.BASE.split(), "--data_root", str(train.data), "--log_dir", str(folder)]
    return [*words, *"--id run --pyxce 1 --pxysgld 1 --n_epochs 3".split(), *more.split()]


def said(folder: Path) -> list[str]:
    """The lines of log.txt that are on the screen, too."""
    lines = (folder / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not re.match(r"epoch \d+ step", line)]


@pytest.mark.parametrize("every", [60.0, 0.0])
def test_a_log_file_has_lines_alone(every, train, tmp_path, monkeypatch):
    """Of a run of a few seconds no bar; of a longer one a line now and then."""
    monkeypatch.setattr(screen, "LINE_EVERY", every)
    with open(tmp_path / "log", "w") as file:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            assert train_wrn.main(*flags.parse(words_of(train, tmp_path))) == 0
    text = (tmp_path / "log").read_text()
    bars = [line for line in text.splitlines() if "img" in line and "%" in line]
    assert [line for line in text.splitlines() if line not in bars] == said(tmp_path)
    assert bool(bars) == (every == 0) and all(char.isprintable() or char == "\n" for char in text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_line_clears_the_bar_which_comes_back_at_its_next_update(stream):
    """Not at once: a pipe's reader, as `| tee`, shows the line when it likes."""
    shown = Terminal()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        with screen.make_bar(100, desc="a bar", miniters=1, leave=False) as bar:
            bar.refresh()
            screen.print_line("a line", getattr(sys, stream))
            assert re.search(r"a bar:   0%[^\r]*\r *\ra line\n$", shown.getvalue())
            bar.mininterval = 0
            bar.update(50)
    assert "\ra bar:  50%" in shown.getvalue().partition("a line\n")[2]


class Gone(io.StringIO):
    """A terminal that is closed after its first line."""

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


def ran(name: str, ask: Any, folder: Path) -> int:
    """The exit code of a program."""
    if name == "train":
        return train_wrn.main(*flags.parse(words_of(ask.trainer, folder, "--max_steps 2")))
    words = f"--load_path {ask.checkpoint('hdge')} --eval OOD --ood_dataset svhn --device cpu"
    words += f" --data_root {ask.trainer.data} --log_dir {folder}"
    try:
        return eval_wrn_ebm.main(*eval_flags.parse(words.split() + ["x"] * (name == "mistake")))
    except SystemExit as stop:
        return int(str(stop.code))


@pytest.mark.parametrize("closed", ["from the start", "by its reader", "after a line"])
@pytest.mark.parametrize("name", ["train", "OOD", "mistake"])
def test_what_nobody_reads_costs_no_answer(name, closed, ask, tmp_path):
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


def test_letters_that_a_screen_lacks_are_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    screen.print_line("läuft \u2713", stream)
    assert raw.getvalue() == b"l\\xe4uft \\u2713\n"


def test_lines_and_bars_need_no_stream(monkeypatch):
    screen.print_line("a line", None)
    monkeypatch.setattr(sys, "stderr", None)
    with screen.make_bar(10) as bar:
        bar.update(5)
        screen.rewind(bar, 2)


@pytest.mark.slow
def test_no_file_gets_the_number_of_a_closed_stream(ask, tmp_path):
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
