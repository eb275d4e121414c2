"""A program's last line on stderr and its exit code, however it ends; signals."""

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
from tests.pair import raises
from tests.test_resume import call_after, send

ROOT = Path(__file__).resolve().parent.parent


def code_after(error: BaseException, lower: str | None = "--batch_size 64") -> int:
    return exit_code("a.py", raises(error), interrupted="a.py: interrupted", lower=lower)


def test_a_mistake_and_ctrl_c_are_one_line_and_a_bug_is_raised(capsys):
    kinds = (UsageError, CheckpointError, RunFolderError, OSError)
    for error in (*(kind("--id a: use b") for kind in kinds), data.DataError("id", "a", "use b")):
        assert code_after(error) == 2
        assert capsys.readouterr() == ("", "a.py: error: --id a: use b\n")
    assert code_after(FileNotFoundError("no a\nb.png")) == 2
    assert capsys.readouterr().err == "a.py: error: no a\\nb.png\n"
    assert code_after(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "a.py: interrupted\n")
    with pytest.raises(ValueError, match="shape"):
        code_after(ValueError("shape"))


GPU_IS_FULL = (  # messages of PyTorch 2.14, of CUDA's driver, cuBLAS, cuDNN and Triton
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "GET was unable to find an engine to execute this computation",
    "Triton Error [CUDA]: out of memory",
)


def test_full_memory_names_the_flags_to_lower(capsys):
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    gpu = "the GPU's memory is full"
    errors: list[tuple[Exception, str]] = [
        (raised.value, "the memory is full"),
        (MemoryError(), "the memory is full"),
        (torch.OutOfMemoryError("CUDA out of memory"), gpu),
        (torch.AcceleratorError(GPU_IS_FULL[0]), f"{gpu} ({GPU_IS_FULL[0].splitlines()[0]})"),
        *((RuntimeError(text), f"{gpu} ({text.splitlines()[0]})") for text in GPU_IS_FULL),
    ]
    for error, full in errors:
        with pytest.raises(type(error)):
            code_after(error, lower=None)
        assert code_after(error) == 2
        assert capsys.readouterr() == ("", f"a.py: error: {full}: lower --batch_size 64\n")
    with pytest.raises(RuntimeError, match="illegal"):
        code_after(RuntimeError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize(
    ("module", "work", "flag"),
    [
        (train_wrn, "work", "--buffer_size"),
        (eval_wrn_ebm, "answer", "--sgld_batch_size 8"),
        (run, "work", "--image_size"),
    ],
)
def test_every_program_names_its_own_flags_to_lower(module, work, flag, monkeypatch, capsys):
    monkeypatch.setattr(module, work, raises(torch.OutOfMemoryError()))
    first = (train_adversarial.PROGRAM,) if module is run else ()
    values = {"batch_size": 64, "sgld_batch_size": 8, "device": "cpu", "threads": None}
    assert module.main(*first, Namespace(**values, program="a.py"), set()) == 2
    assert flag in capsys.readouterr().err


def test_a_signal_after_the_last_step_leaves_a_run_complete(train, monkeypatch):
    call_after(monkeypatch, train_wrn, "plot_samples", 1, partial(send, signal.SIGTERM))
    run = train("--pyxce 1 --n_epochs 1")
    assert run.code == 0 and "complete: 1 epochs" in run.text() and run.last["test_acc"]


def test_a_signal_that_nohup_or_a_shell_ignores_stays_ignored(train, monkeypatch):
    call_after(monkeypatch, train_wrn, "train_step", 2, partial(send, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train("--pyxce 1 --n_epochs 1").code == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_earlier_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with handled(terminate, signal.SIGTERM), Signals("train_wrn.py").listen():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_ends_work_unless_it_is_remembered_and_reported(number, capfd):
    def work() -> NoReturn:
        send(number)
        raise AssertionError("the signal had no effect")

    assert exit_code("a.py", work, interrupted="a.py: interrupted") == 128 + number
    assert capfd.readouterr().err == "a.py: interrupted\n"
    signals = Signals("train_wrn.py")
    with signals.listen():
        assert signals.received == 0
        send(number)
    assert signals.received == number
    message = f"\ntrain_wrn.py: {signals.name}: the step is finished and saved\n"
    assert capfd.readouterr().err == message


# Run a program with Ctrl-C at its import of PyTorch.
INTERRUPTED = """
import runpy, sys
class Finder:
    def find_spec(name, *_):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def python(*argv: str, **options: Any) -> tuple[int, str]:
    """Run Python and return its exit code and stderr."""
    command = [sys.executable, *argv]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    assert ran.stdout == ""
    return ran.returncode, ran.stderr


def interrupted(words: str, folder: Path) -> tuple[int, str]:
    """Run a program that is interrupted where it imports PyTorch. {} stands for the folder."""
    return python("-c", INTERRUPTED, *words.replace("{}", str(folder)).split())


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
    assert interrupted(words, tmp_path) == (-signal.SIGINT, f"{name}: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["package", "memory"])
def test_a_failed_import_of_pytorch_is_one_line(missing):
    def limit() -> None:
        if missing == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))

    flags = ["-S"] if missing == "package" else []  # without site-packages
    program = ("train_wrn.py", "--pyxce", "1", "--dataset", "digits")
    code, err = python(*flags, *program, preexec_fn=limit)
    problem = "ModuleNotFoundError: No module named 'torch': install" if flags else "Error: "
    assert code == 2 and err.count("\n") == 1, err
    assert err.startswith("train_wrn.py: error: ") and problem in err


CE, OOD = "train_wrn.py --pyxce 1", "eval_wrn_ebm.py --eval OOD"
PROBE = "baselines/linear_probe.py --load_path hdge"


@pytest.mark.parametrize(
    ("words", "message"),
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
def test_mistakes_that_need_no_pytorch_are_refused_before_its_import(words, message, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.pt").touch()
    settings = {"pyxce": 1.0, "dataset": "cifar10", "depth": 10, "norm": "none"}
    (tmp_path / "run" / "variant.json").write_text(json.dumps(settings))
    before = sorted(tmp_path.rglob("*"))
    code, err = interrupted(words, tmp_path)
    assert code == 2 and message.replace("{}", str(tmp_path)) in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_is_refused_where_python_cannot_read_it():
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = ("train_wrn.py", "--pyxce", "1", "--id", "l\xe4uft")
    code, err = python(*program, env={**os.environ, **ascii_only})
    message = "--id 'l\\udcc3\\udca4uft' is read as ascii: set PYTHONUTF8=1"
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_run_to_resume_whose_checkpoint_has_its_settings_needs_no_variant_json(tmp_path):
    (tmp_path / "last_ckpt.pt").touch()
    code, err = interrupted("train_wrn.py --resume {}", tmp_path)
    assert (code, err) == (-signal.SIGINT, "train_wrn.py: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reader"),
    [(signal.SIGTERM, "file"), (signal.SIGINT, "pipe"), (signal.SIGINT, "terminal")],
)
def test_a_signal_stops_a_program_though_its_reader_has_ended(number, reader, tmp_path):
    """As in `2>&1 | tee log` at Ctrl-C, or where a terminal was closed."""
    words = "train_wrn.py --dataset digits --pyxce 1 --depth 10 --width 1 --batch_size 8 --id run"
    command = [sys.executable, *words.split(), "--log_dir", str(tmp_path)]
    if reader == "file":
        read = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
        write = os.dup(read)
    else:
        read, write = os.pipe() if reader == "pipe" else os.openpty()
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
    assert reader != "file" or "Traceback" not in (tmp_path / "out").read_text()
    assert (tmp_path / "run" / "last_ckpt.pt").exists()
