"""Rows are written once, torn ones are dropped, and only a run's own files are removed."""

import errno
import json
import threading
from collections.abc import Iterator
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
    holds_run,
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


def test_a_row_is_on_the_disk_once_it_is_written(tmp_path: Path) -> None:
    book = Records(tmp_path)
    for epoch in range(3):
        book.row({"epoch": epoch, "loss": 0.5})
        assert epochs(tmp_path) == [str(i) for i in range(epoch + 1)]
    text = (tmp_path / "progress.csv").read_text()
    assert text.splitlines() == ["epoch,loss", "0,0.5", "1,0.5", "2,0.5"]
    book.close()


def test_a_line_is_in_the_log_once_it_is_written(tmp_path: Path) -> None:
    book = Records(tmp_path)
    book.line("first")
    assert (tmp_path / "log.txt").read_text() == "first\n" and book.flush() == 6
    book.close()


def test_tensorboard_s_thread_leaves_its_error_to_the_next_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
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


@pytest.mark.parametrize("torn", ["", "3,20", "3", "\n\n"])
def test_a_torn_last_line_is_dropped(torn: str, folder: Path) -> None:
    with open(folder / "progress.csv", "a") as file:
        file.write(torn)
    book = Records(folder, resume_from=(15, 10**6))
    book.row({"epoch": 3, "step": 20, "loss": 0.3, "valid_acc": 0.5})
    book.close()
    assert epochs(folder) == ["0", "1", "2", "3"]
    assert read_progress(folder)[-1]["valid_acc"] == "0.5"


def test_rows_of_an_epoch_that_was_only_begun_are_dropped(folder: Path) -> None:
    book = Records(folder, resume_from=(7, 10**6))
    book.row({"epoch": 1, "step": 10, "loss": 9, "valid_acc": ""})
    book.close()
    assert [(row["epoch"], row["loss"]) for row in read_progress(folder)] == [
        ("0", "0.0"),
        ("1", "9"),
    ]


def test_the_row_of_an_epoch_only_begun_stays_until_the_epoch_has_its_own(folder: Path) -> None:
    book = Records(folder, resume_from=(15, 10**6))
    assert epochs(folder) == ["0", "1", "2"]
    book.row({"epoch": 2, "step": 17, "loss": 7, "valid_acc": ""})
    book.close()
    assert [row["loss"] for row in read_progress(folder)] == ["0.0", "0.1", "7"]


def test_the_log_goes_back_to_where_the_checkpoint_was_saved(folder: Path) -> None:
    book = Records(folder, resume_from=(10, len("epoch 0\nepoch 1\n")))
    book.line("resumed")
    book.close()
    assert (folder / "log.txt").read_text() == "epoch 0\nepoch 1\nresumed\n"


def test_a_new_run_s_rows_follow_the_columns_of_its_first(tmp_path: Path) -> None:
    book = Records(tmp_path)
    book.row({"b": 1, "epoch": 2})
    book.row({"epoch": 4, "b": 3})
    book.close()
    assert (tmp_path / "progress.csv").read_text().splitlines() == ["b,epoch", "1,2", "3,4"]


def test_overwriting_removes_the_run_s_own_files_alone(folder: Path) -> None:
    write_settings(folder, {"lr": 1}, machine.environment(CPU))
    (folder / "samples").mkdir()
    own = ["best_valid_ckpt.pt", "ckpt_3.pt", "last_ckpt.pt", "samples/cond_0001.png", "curves.png"]
    mine = ["notes.txt", "samples/notes.txt", "eval/OOD.json", "figure.png"]
    (folder / "eval").mkdir()
    for name in own + mine:
        (folder / name).touch()
    with pytest.raises(RunFolderError, match="--overwrite"):
        check_free(folder, overwrite=False)
    check_free(folder, overwrite=True)
    assert len(list(folder.rglob("*.*"))) == len(own + mine) + 4  # nothing was removed
    create_run_folder(folder, overwrite=True)
    left = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert left == sorted(mine) and not holds_run(folder)


def test_a_folder_with_other_files_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    check_free(tmp_path, overwrite=False)
    create_run_folder(tmp_path, overwrite=False)
    assert (tmp_path / "samples").is_dir()


def test_settings_are_read_back_without_the_environment(tmp_path: Path) -> None:
    settings = {"lr": 1e-4, "id": None, "decay_epochs": [1, 2], "uncond": False}
    write_settings(tmp_path, settings, machine.environment(CPU))
    assert read_settings(tmp_path) == settings
    assert "environment" in json.loads((tmp_path / "variant.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["variant.json"]


@pytest.mark.parametrize("known", [("environment",), ("environment", "environments")])
def test_a_resumed_run_remembers_where_its_earlier_processes_ran(
    known: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(commit: str) -> dict[str, Any]:
        monkeypatch.setattr(machine, "git_commit", lambda: commit)
        write_settings(tmp_path, {"lr": 1}, machine.environment(CPU))
        return json.loads((tmp_path / "variant.json").read_text())

    variant = ran("first")
    kept = {name: variant[name] for name in ("lr", *known)}  # an older version: the last alone
    (tmp_path / "variant.json").write_text(json.dumps(kept))
    for commit, expected in (
        ("first", ["first"]),
        ("second", ["first", "second"]),
        ("second", ["first", "second"]),
        ("first", ["first", "second"]),
    ):
        variant = ran(commit)
        assert variant["environment"]["git_commit"] == commit
        assert [each["git_commit"] for each in variant["environments"]] == expected
    assert read_settings(tmp_path) == {"lr": 1}


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\xff"])
def test_settings_that_cannot_be_read_are_refused_in_one_line(
    content: str | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "variant.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunFolderError, match=f"--resume: {tmp_path}") as caught:
        read_settings(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["last_ckpt.pt", "mine.pt", "params.txt"])
def test_a_run_of_another_program_is_a_run_and_is_never_emptied(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(RunFolderError, match="--overwrite"):
        check_free(tmp_path, overwrite=False)
    create_run_folder(tmp_path, overwrite=False)
    assert (tmp_path / name).read_text() == "precious"


def test_the_file_to_start_from_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "run" / ".." / "run" / "best_valid_ckpt.pt"
    (tmp_path / "run").mkdir()
    with pytest.raises(RunFolderError, match="--load_path"):
        check_free(tmp_path / "run", overwrite=True, load_path=str(file))
    check_free(tmp_path / "run", overwrite=True, load_path=str(tmp_path / "other" / file.name))


def test_overwriting_spares_checkpoints_under_other_names(folder: Path) -> None:
    for name in ("mine.pt", "ckpt_final.pt", "ckpt_12.pt", "last_ckpt.pt"):
        (folder / name).touch()
    create_run_folder(folder, overwrite=True)
    assert sorted(p.name for p in folder.glob("*.pt")) == ["ckpt_final.pt", "mine.pt"]


@pytest.mark.parametrize("torn", ["", "epoch,step,sec"])
def test_rows_without_a_whole_header_are_written_afresh(torn: str, tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text(torn)
    book = Records(tmp_path, resume_from=(5, 0))
    book.row({"epoch": 1, "step": 10})
    book.close()
    assert read_progress(tmp_path) == [{"epoch": "1", "step": "10"}]
