"""Output of runs and evaluations on terminals, in log files and to closed streams."""

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


def training_argv(train: Any, folder: Path, more: str = "") -> list[str]:
    words = f"{train.BASE} --data_root {train.data} --log_dir {folder} --id run"
    return f"{words} --pyxce 1 --pxysgld 1 --n_epochs 3 {more}".split()


@pytest.mark.parametrize("every", [60.0, 0.0])
def test_a_log_file_has_lines_alone_and_few_of_a_bar(every, train, tmp_path, monkeypatch):
    monkeypatch.setattr(screen, "LINE_EVERY", every)
    with open(tmp_path / "log", "w") as file:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            assert train_wrn.main(*flags.parse(training_argv(train, tmp_path))) == 0
    text = (tmp_path / "log").read_text()
    bars = [line for line in text.splitlines() if "img" in line and "%" in line]
    records = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    on_screen = [line for line in records if not re.match(r"epoch \d+ step", line)]
    assert [line for line in text.splitlines() if line not in bars] == on_screen
    assert bool(bars) == (every == 0) and all(char.isprintable() or char == "\n" for char in text)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_line_clears_the_bar_which_comes_back_at_its_next_update(stream):
    """Drawn at once, the bar could precede the line, which a pipe's reader, as `| tee`, delays."""
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        with screen.make_bar(100, desc="a bar", miniters=1, leave=False) as bar:
            bar.refresh()
            screen.print_line("a line", getattr(sys, stream))
            assert re.search(r"a bar:   0%[^\r]*\r *\ra line\n$", terminal.getvalue())
            bar.mininterval = 0
            bar.update(50)
    assert "\ra bar:  50%" in terminal.getvalue().partition("a line\n")[2]


class Gone(io.StringIO):
    """A terminal that is closed after its first line."""

    def write(self, text: str) -> int:
        if "\n" in self.getvalue():
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


def exit_code(name: str, ask: Any, folder: Path) -> int:
    """Run a program. Return its exit code."""
    if name == "train":
        return train_wrn.main(*flags.parse(training_argv(ask.trainer, folder, "--max_steps 2")))
    words = f"--load_path {ask.checkpoint('hdge')} --eval OOD --ood_dataset svhn --device cpu"
    words += f" --data_root {ask.trainer.data} --log_dir {folder}"
    try:
        return eval_wrn_ebm.main(*eval_flags.parse(words.split() + ["x"] * (name == "mistake")))
    except SystemExit as stop:
        return int(str(stop.code))


@pytest.mark.parametrize("closed", ["from the start", "by its reader", "after a line"])
@pytest.mark.parametrize(
    ("name", "code", "file"),
    [("train", 0, "run/last_ckpt.pt"), ("OOD", 0, "OOD.json"), ("mistake", 2, None)],
)
def test_closed_streams_change_neither_exit_code_nor_files(name, code, file, closed, ask, tmp_path):
    stdout: Any = None
    stderr: Any = None
    if closed == "by its reader":
        read, write = os.pipe()
        os.close(read)
        stdout, stderr = (open(end, "w", buffering=1) for end in (write, os.dup(write)))
    elif closed == "after a line":
        stdout, stderr = Gone(), Gone()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        assert exit_code(name, ask, tmp_path) == code
    assert file is None or (tmp_path / file).stat().st_size


def test_letters_that_a_screen_lacks_are_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    screen.print_line("läuft \u2713", stream)
    assert raw.getvalue() == b"l\\xe4uft \\u2713\n"


@pytest.mark.slow
def test_no_file_gets_the_number_of_a_closed_stream(ask, tmp_path):
    """It would get the text that libraries write to that number."""
    program = (
        "import os, sys; from training import flags; settings = flags.parse(sys.argv[1:]); "
        "os.write(1, b'by a library'); os.write(2, b'by a library'); "
        "import train_wrn; sys.exit(train_wrn.main(*settings))"
    )
    argv = training_argv(ask.trainer, tmp_path, "--max_steps 2")
    command = shlex.join([sys.executable, "-c", program, *argv])
    assert subprocess.run(f"{command} >&- 2>&-", shell=True, cwd=ROOT).returncode == 0
    assert read_checkpoint(tmp_path / "run" / "last_ckpt.pt")["progress"]["step"] == 2
