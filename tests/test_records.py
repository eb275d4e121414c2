"""The files of a run folder: rows are written once, and no other program's files are removed."""

import errno
import json
import threading
from contextlib import nullcontext
from pathlib import Path

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run of 3 epochs of 5 steps."""
    book = Records(tmp_path)
    for epoch in range(3):
        book.row({"epoch": epoch, "step": 5 * epoch + 5, "loss": epoch / 10, "valid_acc": ""})
        book.line(f"epoch {epoch}")
    book.close()
    return tmp_path


def test_rows_and_lines_are_on_the_disk_once_they_are_written(tmp_path):
    book, lines = Records(tmp_path), ["epoch,loss"]
    for epoch in range(3):
        book.row({"epoch": epoch, "loss": 0.5} if epoch != 1 else {"loss": 0.5, "epoch": epoch})
        lines.append(f"{epoch},0.5")
        assert (tmp_path / "progress.csv").read_text().split() == lines
    book.line("first")
    assert (tmp_path / "log.txt").read_text() == "first\n" and book.flush() == 6
    book.close()


def test_only_a_file_error_of_tensorboard_s_thread_is_printed_nowhere(capsys):
    from tensorboard.summary.writer import event_file_writer

    full = OSError(errno.ENOSPC, "No space left on device")
    thread = event_file_writer._AsyncWriterThread.__new__(event_file_writer._AsyncWriterThread)
    threading.Thread.__init__(thread)
    for error, origin, quiet in (
        (full, thread, True),
        (ValueError("a mistake"), thread, False),
        (full, threading.current_thread(), False),
    ):
        records.quiet_writers(threading.ExceptHookArgs((type(error), error, None, origin)))
        assert (capsys.readouterr().err == "") == quiet


@pytest.mark.parametrize(
    ("step", "row", "losses"),
    [
        (15, (3, 20), "0.0 0.1 0.2 9"),
        (7, (1, 10), "0.0 9"),  # an epoch that was only begun
        (15, (2, 17), "0.0 0.1 9"),  # the row stays until its epoch is complete
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
    "content",
    [b"\xff\xfe", b"epoch,step\n0,ten\n", b"a,b\n0,1\n", b"epoch,step\n0", b"epoch,step\n0,5,.9\n"],
)
def test_a_damaged_progress_csv_is_refused_and_stays(content, folder):
    (folder / "progress.csv").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"^--resume: .*progress\.csv cannot be read \("):
        Records(folder, resume_from=(15, 0))
    assert (folder / "progress.csv").read_bytes() == content


def test_overwriting_removes_the_run_s_own_files_alone(folder):
    write_settings(folder, {"lr": 1}, machine.environment(CPU))
    ours = ["best_valid_ckpt.pt", "ckpt_3.pt", "last_ckpt.pt", "samples/cond_1.png", "curves.png"]
    foreign = ["notes.txt", "samples/notes.txt", "eval/OOD.json", "mine.pt", "ckpt_final.pt"]
    for name in ours + foreign:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    with pytest.raises(RunFolderError, match="--overwrite"):
        check_free(folder, overwrite=False)
    check_free(folder, overwrite=True)
    assert len(list(folder.rglob("*.*"))) == len(ours + foreign) + 4  # nothing was removed
    create_run_folder(folder, overwrite=True)
    remaining = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert remaining == sorted(foreign)


@pytest.mark.parametrize("keys", [("environment",), ("environment", "environments")])
def test_a_resumed_run_keeps_the_environments_of_its_earlier_processes(keys, tmp_path):
    """A run of an older version has the last environment alone."""
    settings, path = {"lr": 1e-4, "id": None, "decay_epochs": [1, 2]}, tmp_path / "variant.json"
    commits = []
    for commit in ("first", "first", "second", "second", "first"):
        write_settings(tmp_path, settings, {"git_commit": commit})
        variant = json.loads(path.read_text())
        commits += [commit] * (commit not in commits)
        assert variant["environment"]["git_commit"] == commit
        assert [entry["git_commit"] for entry in variant["environments"]] == commits
        if commits == ["first"]:
            path.write_text(json.dumps({name: variant[name] for name in ("lr", *keys)}))
    assert read_settings(tmp_path) == settings and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\xff"])
def test_settings_that_cannot_be_read_are_refused_in_one_line(content, tmp_path):
    if content is not None:
        (tmp_path / "variant.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunFolderError, match=f"--resume: {tmp_path}") as caught:
        read_settings(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["last_ckpt.pt", "mine.pt", "params.txt", "notes.txt"])
def test_a_checkpoint_or_params_txt_is_a_run_and_no_run_folder_is_emptied(name, tmp_path):
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
