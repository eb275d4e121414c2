"""Rows are written once, and only a run's own files are removed."""

import errno
import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import folder as records
from runs.folder import (
    Records,
    RunFolderError,
    check_free,
    create_run_folder,
    read_progress,
    read_settings,
    write_settings,
)
from training import machine

CPU = torch.device("cpu")


def written(folder: Path, epochs: Any) -> None:
    book = Records(folder)
    for epoch in epochs:
        book.row({"epoch": epoch, "step": 5 * epoch + 5, "loss": epoch / 10, "valid_acc": ""})
        book.line(f"epoch {epoch}")
    book.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    written(tmp_path, range(3))
    yield tmp_path


def epochs(folder: Path) -> list[str]:
    return [row["epoch"] for row in read_progress(folder)]


def test_rows_and_lines_are_on_the_disk_once_they_are_written(tmp_path):
    book = Records(tmp_path)
    for epoch in range(3):
        book.row({"epoch": epoch, "loss": 0.5} if epoch != 1 else {"loss": 0.5, "epoch": epoch})
        assert epochs(tmp_path) == [str(i) for i in range(epoch + 1)]
    text = (tmp_path / "progress.csv").read_text()
    assert text.split() == ["epoch,loss", "0,0.5", "1,0.5", "2,0.5"]
    book.line("first")
    assert (tmp_path / "log.txt").read_text() == "first\n" and book.flush() == 6
    book.close()


def test_tensorboard_s_thread_leaves_its_error_to_the_next_call(capsys):
    from tensorboard.summary.writer import event_file_writer

    full = OSError(errno.ENOSPC, "No space left on device")
    thread = event_file_writer._AsyncWriterThread.__new__(event_file_writer._AsyncWriterThread)
    threading.Thread.__init__(thread)
    for error, who, quiet in (
        (full, thread, True),
        (ValueError("a mistake"), thread, False),
        (full, threading.current_thread(), False),
    ):
        told = threading.ExceptHookArgs((type(error), error, None, who))
        records.quiet_writers(told)
        assert (capsys.readouterr().err == "") == quiet


@pytest.mark.parametrize(
    ("step", "row", "losses"),
    [
        (15, (3, 20), "0.0 0.1 0.2 9"),
        (7, (1, 10), "0.0 9"),  # an epoch that was only begun
        (15, (2, 17), "0.0 0.1 9"),  # its row stays until the epoch has its own
        (0, (0, 5), "9"),
    ],
)
def test_a_resumed_run_keeps_the_rows_up_to_its_step(step, row, losses, folder):
    book = Records(folder, resume_from=(step, len("epoch 0\nepoch 1\n")))
    book.row({"epoch": row[0], "step": row[1], "loss": 9, "valid_acc": ""})
    book.line("resumed")
    book.close()
    assert [row["loss"] for row in read_progress(folder)] == losses.split()
    assert (folder / "log.txt").read_text() == "epoch 0\nepoch 1\nresumed\n"


@pytest.mark.parametrize(
    "spoilt", [b"\xff\xfe", b"epoch,step\n0,ten\n", b"a,b\n0,1\n", b"epoch,step\n0"]
)
def test_a_spoilt_progress_is_refused_and_stays(spoilt, folder):
    (folder / "progress.csv").write_bytes(spoilt)
    with pytest.raises(RunFolderError, match=r"^--resume: .*progress\.csv cannot be read \("):
        Records(folder, resume_from=(15, 0))
    assert (folder / "progress.csv").read_bytes() == spoilt


def test_overwriting_removes_the_run_s_own_files_alone(folder):
    write_settings(folder, {"lr": 1}, machine.environment(CPU))
    own = ["best_valid_ckpt.pt", "ckpt_3.pt", "last_ckpt.pt", "samples/cond_0001.png", "curves.png"]
    mine = ["notes.txt", "samples/notes.txt", "eval/OOD.json", "mine.pt", "ckpt_final.pt"]
    for name in own + mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    with pytest.raises(RunFolderError, match="--overwrite"):
        check_free(folder, overwrite=False)
    check_free(folder, overwrite=True)
    assert len(list(folder.rglob("*.*"))) == len(own + mine) + 4  # nothing was removed
    create_run_folder(folder, overwrite=True)
    left = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert left == sorted(mine)


@pytest.mark.parametrize("known", [("environment",), ("environment", "environments")])
def test_a_resumed_run_remembers_where_its_earlier_processes_ran(known, tmp_path):
    settings, path = {"lr": 1e-4, "id": None, "decay_epochs": [1, 2]}, tmp_path / "variant.json"

    def ran(commit: str) -> dict[str, Any]:
        write_settings(tmp_path, settings, {"git_commit": commit})
        return json.loads(path.read_text())

    variant = ran("first")
    kept = {name: variant[name] for name in ("lr", *known)}  # an older version: the last alone
    path.write_text(json.dumps(kept))
    for commit, expected in (
        ("first", ["first"]),
        ("second", ["first", "second"]),
        ("second", ["first", "second"]),
        ("first", ["first", "second"]),
    ):
        variant = ran(commit)
        assert variant["environment"]["git_commit"] == commit
        assert [each["git_commit"] for each in variant["environments"]] == expected
    assert read_settings(tmp_path) == settings and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\xff"])
def test_settings_that_cannot_be_read_are_refused_in_one_line(content, tmp_path):
    if content is not None:
        (tmp_path / "variant.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunFolderError, match=f"--resume: {tmp_path}") as caught:
        read_settings(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["last_ckpt.pt", "mine.pt", "params.txt", "notes.txt"])
def test_a_run_of_another_program_is_a_run_and_is_never_emptied(name, tmp_path):
    (tmp_path / name).write_text("precious")
    with nullcontext() if name == "notes.txt" else pytest.raises(RunFolderError, match="--overw"):
        check_free(tmp_path, overwrite=False)
    create_run_folder(tmp_path, overwrite=False)
    assert (tmp_path / name).read_text() == "precious" and (tmp_path / "samples").is_dir()


def test_the_file_to_start_from_is_not_overwritten(tmp_path):
    file = tmp_path / "run" / ".." / "run" / "best_valid_ckpt.pt"
    (tmp_path / "run").mkdir()
    with pytest.raises(RunFolderError, match="--load_path"):
        check_free(tmp_path / "run", overwrite=True, load_path=str(file))
    check_free(tmp_path / "run", overwrite=True, load_path=str(tmp_path / "other" / file.name))
