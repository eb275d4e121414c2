"""A checkpoint is written whole or not at all, and read without running anything."""

import errno
import hashlib
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch.serialization import get_crc32_options

from runs import checkpoint
from runs.checkpoint import CheckpointError, read_checkpoint, read_with_sha256, save_checkpoint
from runs.files import second_name
from tests.conftest import Trainer
from tests.pair import raises

STATE = {"weights": torch.arange(9.0), "names": ["a", "b"], "step": 3, "more": {"lr": 1e-4}}
OTHER = {"step": 4}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_state_is_read_back_and_the_last_line_is_the_sha256_of_the_rest(tmp_path):
    path = tmp_path / "ckpt.pt"
    save_checkpoint(STATE, path)
    assert Trainer.same(read_checkpoint(path), STATE) and names(tmp_path) == ["ckpt.pt"]
    assert torch.load(path, weights_only=True)["step"] == 3
    archive, _, digest = path.read_bytes().rpartition(b"sha256:")
    assert digest.decode() == hashlib.sha256(archive).hexdigest() + "\n"
    assert get_crc32_options()  # torch.save writes them again into other files


@pytest.mark.parametrize("links", [True, False])
def test_keep_holds_the_one_before_with_links_and_without(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", broken)
    best, last, keep = (tmp_path / f"{name}.pt" for name in ("best", "last", "prev"))

    def steps() -> list[int]:
        return [read_checkpoint(path)["step"] for path in (best, last, keep) if path.exists()]

    for step in (1, 2, 3):
        save_checkpoint({"step": step}, last, keep=keep)
        assert steps() == [step, step - 1][: 1 + (step > 1)]
    save_checkpoint({"step": 4}, best)
    second_name(best, last, keep=keep)
    assert steps() == [4, 4, 3] and os.path.samefile(best, last) == links
    save_checkpoint({"step": 5}, last, keep=keep)
    assert steps() == [4, 5, 4] and names(tmp_path) == ["best.pt", "last.pt", "prev.pt"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_file_system_may_lack_the_sync_of_folders(code, tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    failing = pytest.raises(OSError, match="cannot write")
    with failing if code == errno.EIO else nullcontext():
        save_checkpoint(STATE, tmp_path / "last.pt")
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 3


broken = raises(OSError(errno.ENOSPC, "No space left on device"))


def half_written(state: Any, file: Any) -> NoReturn:
    """As torch.save does: it hides the operating system's error."""
    file.write(b"PK half a checkpoint")
    try:
        broken()
    except OSError:
        raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *(("torch.save", broken), ("os.fsync", broken), ("torch.save", half_written)),
        ("torch.save", raises(KeyboardInterrupt())),
    ],
)
def test_a_failure_while_writing_leaves_the_old_file_alone(name, fault, tmp_path, monkeypatch):
    path, keep = tmp_path / "last.pt", tmp_path / "prev.pt"
    save_checkpoint(STATE, path)
    monkeypatch.setattr(name, fault)
    with pytest.raises((OSError, KeyboardInterrupt)) as caught:
        save_checkpoint(OTHER, path, keep=keep)
    if isinstance(caught.value, OSError):
        message = f"cannot write {path}: No space left .*MiB are free"
        assert caught.value.errno == errno.ENOSPC and re.search(message, str(caught.value))
    monkeypatch.undo()
    assert names(tmp_path) == ["last.pt"] and read_checkpoint(path)["step"] == 3


def test_the_file_is_named_where_the_file_system_has_become_read_only(tmp_path, monkeypatch):
    for function in ("torch.save", "pathlib.Path.unlink"):
        monkeypatch.setattr(function, raises(OSError(errno.EROFS, "Read-only file system")))
    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'last.pt'}: Read-only"):
        save_checkpoint(STATE, tmp_path / "last.pt")


def test_the_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    order: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=real: (order.append(n), f(*a))[1])
    save_checkpoint(STATE, tmp_path / "last.pt")
    assert order == ["fsync", "replace", "fsync"]  # at last the folder's entry


def test_an_error_that_is_no_disk_s_is_not_taken_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", raises(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        save_checkpoint(STATE, tmp_path / "last.pt")


def refused(path: Path) -> str:
    """Return the line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    return line


def damages(whole: bytes, seed: int) -> Iterator[bytes]:
    """One flipped bit at any byte; a block of zeros, as a crashed disk leaves; a missing end."""
    random = torch.Generator().manual_seed(seed)
    seal = len(whole) - checkpoint.SEAL_SIZE

    def positions(n: int) -> list[int]:
        return torch.randint(len(whole), (n,), generator=random).tolist()

    for i in [*positions(60), *range(seal, len(whole))]:
        yield whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :]
    for i in positions(20):
        if any(whole[i : i + 512]):
            yield whole[:i] + bytes(len(whole[i : i + 512])) + whole[i + 512 :]
    for length in (*range(seed, len(whole), 100), seal - 1, seal, seal + 1):
        yield whole[:length]
    yield whole + b"\n"


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_checkpoint_is_refused(seed, tmp_path):
    path = tmp_path / "ckpt.pt"
    save_checkpoint(STATE, path)
    for damaged in damages(path.read_bytes(), seed):
        path.write_bytes(damaged)
        refused(path)


@pytest.mark.parametrize("sealed", [True, False])
def test_the_hash_is_that_of_the_bytes_that_are_loaded(sealed, tmp_path, monkeypatch):
    path, load = tmp_path / "ckpt.pt", torch.load
    (save_checkpoint if sealed else torch.save)(STATE, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def replaced(*args: Any, **kwargs: Any) -> Any:
        save_checkpoint(OTHER, path)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", replaced)
    state, hash_of_state = read_with_sha256(path)
    assert (state["step"], hash_of_state) == (3, sha256)
    monkeypatch.undo()
    assert read_with_sha256(path)[1] == hashlib.sha256(path.read_bytes()).hexdigest() != sha256


@pytest.mark.parametrize(
    "content",
    [
        *(b"\x80\x02}q", b"\x80\x02.", b"\x80\x02X\x05\x00", b"\x80\x02G\x00", b"\x80\x02]}]Rs."),
        *(b"hello\n", b"cos\nsystem\n", b"(lp0\n.", b"}q.", b"\x80\x02}q.", b"I1\n"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_that_is_no_checkpoint_is_refused_in_one_line(content, zipped, tmp_path):
    path = tmp_path / "ckpt.pt"
    path.write_bytes(content)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            for name, inner in (("data.pkl", content), ("version", b"3"), ("byteorder", b"little")):
                archive.writestr(f"a/{name}", inner)
    refused(path)


def test_a_missing_file_and_a_foreign_object_are_named(tmp_path):
    assert f"{tmp_path} has no checkpoint: give the path" in refused(tmp_path)
    assert f"{tmp_path}/none.pt is no file: give the path" in refused(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "list.pt holds a list, not a checkpoint's dict" in refused(tmp_path / "list.pt")


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def test_a_run_s_checkpoint_holds_plain_values_alone(train):
    run = train.once(f"{train.ALL} --max_steps 5")
    for name in ("last_ckpt.pt", "prev_ckpt.pt", "best_valid_ckpt.pt"):
        state = read_checkpoint(run.folder / name)
        kinds = {type(value) for value in leaves(state)}
        assert kinds <= {torch.Tensor, int, float, str, bool, type(None)}
        assert {"model_state_dict", "replay_buffer", "optimizer", "settings"} <= set(state)
        assert {"queue_logit", "queue_ptr"} <= set(state["model_state_dict"])
        shapes = [t.shape for t in state["objective"].values() if isinstance(t, torch.Tensor)]
        assert (40, 3, 32, 32) not in shapes, "the buffer is saved once"
        assert state["settings"]["num_classes"] == 10
