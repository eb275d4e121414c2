"""What a program leaves on stderr, and its exit code, however it ends; signals."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import data
import eval_wrn_ebm
import train_wrn
from baselines import run, train_adversarial
from runs.checkpoint import CheckpointError
from runs.cli import UsageError
from runs.endings import ENDS, Signals, exit_code, handled, terminate
from runs.folder import RunFolderError
from tests.test_resume import call_after, send

ROOT = Path(__file__).resolve().parent.parent

KINDS = [UsageError, CheckpointError, RunFolderError, OSError]


def ends_with(error: BaseException, lower: str | None = "--batch_size 64") -> int:
    def work() -> NoReturn:
        raise error

    return exit_code("a.py", work, interrupted="a.py: interrupted", lower=lower)


@pytest.mark.parametrize(
    "error", [*(kind("--id a: use b") for kind in KINDS), data.DataError("id", "a", "use b")]
)
def test_a_mistake_is_one_line(error, capsys):
    assert ends_with(error) == 2
    assert capsys.readouterr() == ("", "a.py: error: --id a: use b\n")
    assert ends_with(FileNotFoundError("no a\nb.png")) == 2
    assert capsys.readouterr().err == "a.py: error: no a\\nb.png\n"


def test_ctrl_c_is_one_line_and_a_mistake_of_the_code_is_none_of_the_user(capsys):
    assert ends_with(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "a.py: interrupted\n")
    with pytest.raises(ValueError, match="shape"):
        ends_with(ValueError("shape"))


def test_a_full_memory_names_the_flags_to_lower(capsys):
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    for error in (torch.OutOfMemoryError("CUDA out of memory"), raised.value, MemoryError()):
        with pytest.raises(type(error)):
            ends_with(error, lower=None)
        assert ends_with(error) == 2
        of = "the GPU's memory" if isinstance(error, torch.OutOfMemoryError) else "the memory"
        assert capsys.readouterr() == ("", f"a.py: error: {of} is full: lower --batch_size 64\n")


@pytest.mark.parametrize(
    ("module", "work", "flag"),
    [
        (train_wrn, "work", "--buffer_size"),
        (eval_wrn_ebm, "answer", "--sgld_batch_size 8"),
        (run, "work", "--image_size"),
    ],
)
def test_a_program_names_flags_of_its_own(module, work, flag, monkeypatch, capsys):
    def full(*_: Any) -> NoReturn:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, work, full)
    first = (train_adversarial.PROGRAM,) if module is run else ()
    settings = Namespace(
        batch_size=64, sgld_batch_size=8, device="cpu", threads=None, program="a.py"
    )
    assert module.main(*first, settings, set()) == 2 and flag in capsys.readouterr().err


def test_a_run_that_is_complete_is_not_stopped(train, monkeypatch):
    call_after(monkeypatch, train_wrn, "plot_samples", 1, partial(send, signal.SIGTERM))
    run = train("--pyxce 1 --n_epochs 1")
    assert run.code == 0 and "complete: 1 epochs" in run.text() and run.last["test_acc"]


def test_what_is_ignored_stays_ignored(train, monkeypatch):
    """As nohup and a shell's background ask for."""
    call_after(monkeypatch, train_wrn, "train_step", 2, partial(send, signal.SIGINT))
    found = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train("--pyxce 1 --n_epochs 1").code == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, found)


def test_handlers_are_those_of_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with handled(terminate, signal.SIGTERM), Signals("train_wrn.py").listen():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_is_raised_where_a_program_has_nothing_to_save(number, capsys):
    def work() -> NoReturn:
        send(number)
        raise AssertionError("the signal was not heard")

    assert exit_code("a.py", work, interrupted="a.py: interrupted") == 128 + number
    assert capsys.readouterr().err == "a.py: interrupted\n"


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_is_remembered_and_told(number, capfd):
    signals = Signals("train_wrn.py")
    with signals.listen():
        assert signals.received == 0
        send(number)
    assert signals.received == number
    told = f"\ntrain_wrn.py: {signals.name}: the step is finished and saved\n"
    assert capfd.readouterr().err == told


# The import of PyTorch when Ctrl-C comes.
IMPORTED = """
import runpy, sys
class Finder:
    def find_spec(name, *_):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def importing(words: str, folder: Path) -> tuple[int, str]:
    """Run a program that is interrupted where it imports PyTorch: exit code and stderr."""
    command = [sys.executable, "-c", IMPORTED, *words.format(folder).split()]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == ""
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(
    "words",
    [
        "train_wrn.py --pyxce 1 --log_dir {}",
        "eval_wrn_ebm.py --load_path hdge --eval OOD --log_dir {}",
        "baselines/train_adversarial.py --log_dir {}",
        "baselines/train_contrastive.py --log_dir {}",
        "baselines/linear_probe.py --load_path hdge --log_dir {}",
        "scripts/bench.py --output {}",
        "scripts/export.py hdge {}/model",
        "scripts/predict.py hdge results/digits.png",
        "scripts/torture.py --output {}",
    ],
)
def test_ctrl_c_while_pytorch_is_imported_is_one_line(words, tmp_path):
    name = Path(words.split()[0]).name
    assert importing(words, tmp_path) == (-signal.SIGINT, f"{name}: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lacks", ["package", "memory"])
def test_a_machine_that_cannot_import_pytorch_is_told_in_a_line(lacks):
    def limit() -> None:
        if lacks == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))

    flags = ["-S"] if lacks == "package" else []  # without site-packages
    command = [sys.executable, *flags, "train_wrn.py", "--pyxce", "1", "--dataset", "digits"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    told = "ModuleNotFoundError: No module named 'torch': install" if flags else "Error: "
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert ran.stderr.startswith("train_wrn.py: error: ") and told in ran.stderr


CE, OOD = "train_wrn.py --pyxce 1", "eval_wrn_ebm.py --eval OOD"
PROBE = "baselines/linear_probe.py --load_path hdge"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"{CE} --log_dir {{}}/file", "--log_dir: cannot write to {}/file (Not a directory): give"),
        (f"{CE} --log_dir {{}} --id run", "--id: {}/run already holds a run: continue it with"),
        (f"{CE} --load_path {{}}/no", "--load_path {}/no is no file: give"),
        (f"{CE} --dataset folder:{{}}/no", "--dataset folder:{}/no is no folder: give"),
        (f"{CE} --device gpu", "--device gpu is unknown: use"),
        ("train_wrn.py --resume {}/no", "--resume: {}/no holds no run (variant.json is missing)"),
        ("train_wrn.py --resume {}/run --depth 16", "--depth 16 cannot change on --resume"),
        ("train_wrn.py --resume {}/run/a.pt", "--resume {}/run/a.pt is a file: give the run's"),
        (f"{OOD} --load_path hdge --log_dir {{}}/file", "--log_dir: cannot write to {}/file (Not"),
        (f"{OOD} --load_path hdge {{}}/no --log_dir {{}}", "--load_path {}/no is no file: give"),
        ("baselines/train_adversarial.py --resume {}/run", "is a run of train_wrn.py, not of"),
        ("baselines/linear_probe.py --load_path {}", "--load_path {} has no checkpoint: give"),
        (f"{PROBE} --log_dir {{}} --id run", "--id: {}/run already holds a run: replace it with"),
        ("scripts/bench.py --output {}/file/a", "--output: cannot write to {}/file/a (Not a"),
        ("scripts/export.py {}/no {}/model", "CHECKPOINT {}/no is no file: give"),
        ("scripts/predict.py {}/no a.png", "RUN {}/no is no file: give"),
        ("scripts/predict.py hdge {}/a.png", "IMAGE {}/a.png is no file: give"),
    ],
)
def test_what_needs_no_pytorch_is_refused_before_its_import(words, told, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.pt").touch()
    settings = {"pyxce": 1.0, "dataset": "cifar10", "depth": 10, "norm": "none"}
    (tmp_path / "run" / "variant.json").write_text(json.dumps(settings))
    before = sorted(tmp_path.rglob("*"))
    code, err = importing(words.replace("{}", str(tmp_path)), tmp_path)
    assert code == 2 and told.replace("{}", str(tmp_path)) in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_is_refused_where_python_cannot_read_it():
    command = [sys.executable, "train_wrn.py", "--pyxce", "1", "--id", "l\xe4uft"]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, **ascii_only})
    told = b"--id 'l\\udcc3\\udca4uft' is read as ascii: set PYTHONUTF8=1"
    assert ran.returncode == 2 and told in ran.stderr and ran.stderr.count(b"\n") == 1


def test_a_resumed_run_whose_settings_the_checkpoint_has_is_not_refused(tmp_path):
    (tmp_path / "last_ckpt.pt").touch()
    code, err = importing("train_wrn.py --resume {}", tmp_path)
    assert (code, err) == (-signal.SIGINT, "train_wrn.py: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reader"),
    [(signal.SIGTERM, "file"), (signal.SIGINT, "pipe"), (signal.SIGINT, "terminal")],
)
def test_a_program_that_is_told_to_stop_stops(number, reader, tmp_path):
    """Also where its reader has ended before: `2>&1 | tee log` at Ctrl-C, a closed terminal."""
    words = "train_wrn.py --dataset digits --pyxce 1 --depth 10 --width 1 --batch_size 8 --id run"
    command = [sys.executable, *words.split(), "--log_dir", str(tmp_path)]
    pairs = {"pipe": os.pipe, "terminal": os.openpty}
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    read, write = pairs[reader]() if reader in pairs else (out, os.dup(out))
    process = subprocess.Popen(command, cwd=ROOT, stdout=write, stderr=write)
    try:
        os.close(write)
        os.close(read)
        log, deadline = tmp_path / "run" / "log.txt", time.monotonic() + 120
        while not (log.exists() and "step 100 " in log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    finally:
        process.kill()
        process.wait()
    assert f"stopped by {number.name} at step" in log.read_text()
    assert "Traceback" not in (tmp_path / "out").read_text()
    assert (tmp_path / "run" / "last_ckpt.pt").exists()
