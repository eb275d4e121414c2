"""SIGINT, SIGTERM and SIGHUP end a run between two steps, and nothing of it is lost."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import train_wrn
from runs.endings import ENDS, Signals, exit_code, handled, terminate
from training import output, session

ROOT = Path(__file__).resolve().parent.parent
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
PLACES = {  # module, function that the signal comes in, which call of it
    "a step": (train_wrn, "train_step", 8),
    "an epoch's last step": (train_wrn, "train_step", 5),
    "an evaluation": (session, "classification", 2),
    "a save": (output, "save_checkpoint", 3),
    "a picture": (train_wrn, "plot_samples", 1),
}


def send(number: signal.Signals, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


def call_after(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, nth: int, act: Callable[[], None]
) -> None:
    """In its nth call the function first calls `act`."""
    real, calls = getattr(module, name), itertools.count(1)

    def watched(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            act()
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, watched)


@BOTH
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_ends_a_run_that_goes_on_as_if_there_had_been_none(
    place: str, number: signal.Signals, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        f"{train.ALL} --n_epochs 3 --contrast_k 80 --dropout_rate .1 --plot_uncond --plot_every 1 "
        "--ema .9"
    )
    whole = train.once(flags)
    module, name, nth = PLACES[place]
    call_after(monkeypatch, module, name, nth, lambda: send(number))
    run = train(flags)
    monkeypatch.undo()
    assert run.code == 128 + number
    assert f"stopped by {number.name} at step" in run.text()
    assert run.state()["progress"]["step"] < 15
    assert train.resumed(run).code == 0
    assert train.differences(run, whole) == []


@pytest.mark.parametrize("limit", ["--max_steps 7", "--n_epochs 2"])
@pytest.mark.parametrize("act", [signal.SIGTERM, None], ids=["SIGTERM", "killed"])
def test_the_evaluation_at_the_end_is_made_up_for(
    act: signal.Signals | None, limit: str, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        if act is None:
            raise KeyboardInterrupt
        send(act)

    flags = f"--pyxce 1 --n_epochs 3 {limit}"
    whole = train.once(flags)
    call_after(monkeypatch, session.Session, "evaluate", 2, stop)
    run = train(flags)
    monkeypatch.undo()
    assert run.code == (130 if act is None else 143) and len(run.rows) == 1
    assert train.resumed(run, *limit.split()).code == 0
    assert train.differences(run, whole) == [] and len(run.rows) == 2
    assert "nothing to do" in train.resumed(run, *limit.split()).out


def test_the_second_ctrl_c_ends_at_once(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.once("--pyxce 1 --n_epochs 2")
    call_after(monkeypatch, train_wrn, "train_step", 8, lambda: send(signal.SIGINT, times=2))
    run = train("--pyxce 1 --n_epochs 2")
    monkeypatch.undo()
    assert run.code == 130 and "interrupted; the last good checkpoint" in run.err[-1]
    assert run.state()["progress"]["step"] == 5
    assert train.resumed(run).code == 0
    assert train.differences(run, whole) == []


def test_a_run_that_is_complete_is_not_stopped(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call_after(monkeypatch, train_wrn, "plot_samples", 1, lambda: send(signal.SIGTERM))
    run = train("--pyxce 1 --n_epochs 1")
    assert run.code == 0 and "complete: 1 epochs" in run.text() and run.last["test_acc"]


def test_what_is_ignored_stays_ignored(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup and a shell's background ask for."""
    call_after(monkeypatch, train_wrn, "train_step", 2, lambda: send(signal.SIGINT))
    found = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train("--pyxce 1 --n_epochs 1").code == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, found)


def test_handlers_are_those_of_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with handled(terminate, signal.SIGTERM), Signals("train_wrn.py").listen():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_is_raised_where_a_program_has_nothing_to_save(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> NoReturn:
        send(number)
        raise AssertionError("the signal was not heard")

    assert exit_code("a.py", work, interrupted="a.py: interrupted") == 128 + number
    assert capsys.readouterr().err == "a.py: interrupted\n"


@pytest.mark.parametrize("number", ENDS)
def test_polling_ends_between_two_items(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    signals, seen = Signals("train_wrn.py"), []
    with signals.listen():
        for item in signals.polled(range(9)):
            seen.append(item)
            if item == 3:
                send(number)
    assert seen == [0, 1, 2, 3] and signals.received == number
    told = f"\ntrain_wrn.py: {signals.name}: the step is finished and saved\n"
    assert capfd.readouterr().err == told


# What the import of PyTorch is when Ctrl-C comes.
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


@pytest.mark.parametrize(
    "words", ["train_wrn.py --pyxce 1", "eval_wrn_ebm.py --load_path x --eval OOD"]
)
def test_ctrl_c_while_pytorch_is_imported_is_one_line(words: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, *words.split()]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, f"{words.split()[0]}: interrupted\n")


@pytest.mark.parametrize("after", [7, 9])
def test_within_an_epoch_a_kill_costs_ckpt_minutes(
    after: int, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    flags = f"{train.ALL} --n_epochs 2 --contrast_k 80"
    whole = train.once(flags)
    call_after(monkeypatch, train_wrn, "train_step", after + 1, killed)
    run = train(f"{flags} --ckpt_minutes 1e-9")
    monkeypatch.undo()
    assert run.code == 130
    assert run.state()["progress"]["step"] == after
    assert run.state("prev_ckpt.pt")["progress"]["step"] == after - 1
    assert train.resumed(run).code == 0
    assert train.differences(run, whole) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "reader"),
    [(signal.SIGTERM, "file"), (signal.SIGINT, "pipe"), (signal.SIGINT, "terminal")],
)
def test_a_program_that_is_told_to_stop_stops(number: Any, reader: str, tmp_path: Path) -> None:
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
