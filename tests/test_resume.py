"""A run that is stopped and resumed ends as an undisturbed run does, bit for bit."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train_wrn
from runs.checkpoint import save_checkpoint
from runs.files import alone
from tests.conftest import Ran, Trainer
from tests.pair import raises
from training import session
from training.flags import FIXED_ON_RESUME, TERMS

SMALL = "--image_size 16"
ALL = f"{Trainer.ALL} {SMALL}"
# name: (flags, steps of the first process, ...). An epoch has 5 steps. Queues of more than
# 64 slots keep running sums.
STOPS = {
    "adam, no norm, mid-epoch": ("--norm none --contrast_k 80 --log_gradients 2", 3, 8),
    "adam, no norm, end of an epoch": ("--norm none --contrast_k 80 --queue_init random", 5, 8),
    "sgd, batch norm, mid-epoch": ("--norm batch --optimizer sgd --lr .01 --contrast_k 80", 7, 12),
    "adam, batch norm, end of an epoch": ("--norm batch --contrast_k 16", 5, 10),
    "adam, act norm, twice": ("--norm act --contrast_k 80 --independent_batches", 2, 4, 9),
    "averaged weights, twice": ("--norm batch --ema .9 --adam_betas 0 .9 --contrast_k 80", 3, 5, 8),
    "sgd, warm-up and decay, twice": (
        "--optimizer sgd --warmup_iters 8 --decay_epochs 1 --lr .01 --class_cond_p_x_sample",
        *(5, 6, 11),
    ),
    "a Gaussian for each class, clamped chains": (
        "--chain_start class_gaussian --sgld_clamp --sgld_grad_clip .1 --reinit_freq .5",
        *(3, 8),
    ),
    "images as they are, a loss that classifies": (
        "--px_loss bce --augment_px none --px_batch_size 6 --norm batch --bn_chains batch",
        *(7, 12),
    ),
    "a head of its own": ("--uncond --chain_start gaussian --contrast_k 80", 4, 9),
}


@pytest.mark.parametrize("name", STOPS)
def test_stopped_and_resumed_is_uninterrupted(name, train):
    flags, first, *later = STOPS[name]
    flags = f"{ALL} --dropout_rate .1 {flags}"
    whole = train(f"{flags} --max_steps {later[-1]}")
    parts = train(f"{flags} --max_steps {first}")
    for stop in later:
        resumed = train.resumed(parts, "--max_steps", str(stop))
        assert resumed.code == 0 and not resumed.err
    kept = {"model_state_dict", "objective", "optimizer", "random", "meters", "replay_buffer"}
    assert whole.moving().keys() > kept and whole.moving()["step"] == later[-1]
    assert train.differences(whole, parts) == [] and len(whole.reports) == later[-1] // 2


def send(number: signal.Signals, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


def call_after(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, nth: int, act: Callable[[], None]
) -> None:
    """Let the function call `act` first in its nth call."""
    real, calls = getattr(module, name), itertools.count(1)

    def watched(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            act()
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, watched)


def damage(path: Path, content: bytes = b"damaged") -> None:
    path.unlink()  # it may be a hard link
    path.write_bytes(content)


kill = raises(KeyboardInterrupt())


def tear(folder: Path) -> None:
    with open(folder / "log.txt", "a") as file:
        file.write("epoch 2 step 12 lr 0.0")


def truncate(folder: Path) -> None:
    damage(folder / "last_ckpt.pt", (folder / "last_ckpt.pt").read_bytes()[:5000])


def spoil(folder: Path) -> None:
    damage(folder / "last_ckpt.pt")
    damage(folder / "variant.json", b'{"lr": ')


def listed(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return time and size of every file of the folder."""
    stats = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def named(run: Ran) -> tuple[str, ...]:
    """Return the flags that name the run's folder."""
    return ("--log_dir", str(run.folder.parent), "--id", run.folder.name)


@dataclass
class Disturbed:
    """A run that is disturbed, and resumed without flags but `limit`."""

    flags: str
    stop: str = ""  # more flags of the first process
    during: tuple[Any, str, int, Callable[[], Any]] | None = None  # arguments of `call_after`
    code: int = 0  # of the first process
    message: str = ""  # of the first process, in log.txt or on stderr
    after: Callable[[Path], Any] = lambda folder: None  # changes the folder before the resume
    limit: str = ""  # flags of both processes
    warnings: tuple[str, ...] = ()  # lines on stderr of the second process


PLOTTED = (
    f"{ALL} --n_epochs 3 --contrast_k 80 --dropout_rate .1 --ema .9 --plot_cond --plot_every 1"
)
LONG, SHORT = f"{ALL} --n_epochs 2 --contrast_k 80", f"--pyxce 1 --n_epochs 3 {SMALL}"
MOMENTS = {  # module, function, number of its call at which a signal comes
    "a step": (train_wrn, "train_step", 8),
    "an epoch's last step": (train_wrn, "train_step", 5),
    "an evaluation": (session, "classification", 2),
    "a save": (session, "save_checkpoint", 3),
    "a picture": (train_wrn, "plot_samples", 1),
}
FROM_PREVIOUS = "warning: .*last_ckpt.pt .*; resuming from .*prev_ckpt.pt"
FROM_CHECKPOINT = "variant.json .*settings are the checkpoint's"
DISTURBED = {
    f"{n.name} in {moment}": Disturbed(
        PLOTTED, "", (*call, partial(send, n)), 128 + n, f"stopped by {n.name} at step"
    )
    for n, (moment, call) in zip(itertools.cycle((signal.SIGINT, signal.SIGTERM)), MOMENTS.items())
}
DISTURBED |= {
    f"{code} in the evaluation of {limit}": Disturbed(
        SHORT, during=(session.Session, "evaluate", 2, act), code=code, limit=limit
    )
    for limit in ("--max_steps 7", "--n_epochs 2")
    for code, act in ((130, kill), (143, partial(send, signal.SIGTERM)))
}
DISTURBED |= {
    f"killed in step {n}": Disturbed(
        LONG, "--ckpt_minutes 1e-9", (train_wrn, "train_step", n, kill), 130, f"(step {n - 1})"
    )
    for n in (8, 10)
}
DISTURBED |= {
    "a second Ctrl-C": Disturbed(
        SHORT, "", (train_wrn, "train_step", 8, partial(send, signal.SIGINT, 2)), 130, "(step 5)"
    ),
    "killed at the best checkpoint": Disturbed(
        f"{SHORT} --lr 1e-9", "", (session, "save_checkpoint", 2, kill), 130
    ),
    "a limit of time": Disturbed(
        LONG, "--max_minutes 1e-4", message="stopped by --max_minutes 0.0001; --resume goes on"
    ),
    "more epochs": Disturbed(
        "--pyxce 1", "--n_epochs 1", message="complete: 1 epochs", limit="--n_epochs 3"
    ),
    "a torn report": Disturbed(SHORT, "--max_steps 10", after=tear),
}
DISTURBED |= {
    name: Disturbed(LONG, f"--max_steps {steps}", after=after, warnings=warnings)
    for name, steps, after, warnings in (
        ("last_ckpt.pt is truncated", 7, truncate, (FROM_PREVIOUS,)),
        ("last_ckpt.pt is missing", 7, lambda f: (f / "last_ckpt.pt").unlink(), (FROM_PREVIOUS,)),
        ("variant.json is missing", 3, lambda f: (f / "variant.json").unlink(), (FROM_CHECKPOINT,)),
        ("one good checkpoint and nothing else", 7, spoil, (FROM_CHECKPOINT, FROM_PREVIOUS)),
    )
}


@pytest.mark.parametrize("name", DISTURBED)
def test_disturbed_and_resumed_is_undisturbed(name, train, monkeypatch):
    case = DISTURBED[name]
    whole = train.once(f"{case.flags} {case.limit}")
    if case.during:
        call_after(monkeypatch, *case.during)
    run = train(f"{case.flags} {case.limit} {case.stop}")
    monkeypatch.undo()
    assert run.code == case.code and case.message in run.text() + "".join(run.err)
    case.after(run.folder)
    with alone(run.folder, flag="--log_dir", program="train_wrn.py"):  # nothing is moved yet
        before = listed(run.folder)
        assert train.resumed(run).code == 2 and listed(run.folder) == before
    resumed = train.resumed(run, *case.limit.split())
    assert resumed.code == 0 and len(resumed.err) == len(case.warnings), resumed.err
    assert all(map(re.search, case.warnings, resumed.err))
    assert train.differences(run, whole) == []
    assert train.same(run.moving("best_valid_ckpt.pt"), whole.moving("best_valid_ckpt.pt"))
    assert run.settings["lr"] == whole.settings["lr"]
    seconds = [float(row["seconds"]) for row in run.rows]
    assert seconds == sorted(seconds)  # of all processes together
    state = run.left()
    assert "nothing to do" in train.resumed(run, *case.limit.split()).out
    assert train.same(run.left(), state)


def test_resume_finds_a_run_by_log_dir_and_id_or_names_the_missing_flag(
    train, tmp_path, monkeypatch
):
    run = train("--pyxce 1 --max_steps 3")
    assert train.bare("--resume", *named(run), "--max_steps", "4").code == 0
    assert run.state()["progress"]["step"] == 4
    with monkeypatch.context() as patch:
        patch.chdir(run.folder)
        for argv in (("--resume", "."), ("--resume", "last_ckpt.pt"), ("--resume", "samples/..")):
            assert train.bare(*argv, "--max_steps", "5").code == 0
            assert (run.settings["log_dir"], run.settings["id"]) == (
                str(train.root / "runs"),
                run.folder.name,
            )
    assert train.resumed(run, "--max_steps", "5").code == 0
    for argv, message in (
        (["--resume", "--max_steps", "5"], "--resume: which run?"),
        (["--resume", str(tmp_path)], "holds no run"),
        (["--resume", str(run.folder / "prev_ckpt.pt")], "is a file: give the run's folder"),
        (["--resume", str(run.folder), "--overwrite"], "that --overwrite replaces: leave one"),
        (["--pyxce", "1", "--resume", "auto"], "--resume auto: which run? give --id"),
        (["--pyxce", "1", "--id", "x" * 300], "longer than a folder name may be"),
    ):
        assert message in train.bare(*argv).refusal
    assert os.listdir(tmp_path) == []


def test_flags_given_on_resume_win_and_are_recorded(train):
    run = train("--pyxce 1 --pxycontrast 1 --pxsgld 1 --contrast_k 80 --max_steps 5")
    changes = {"lr": 0.02, "pyxce": 3.0, "print_every": 1, "weight_decay": 10.0, "sigma": 1.0}
    changes |= {"contrast_t": 5.0, "smoothing": 0.2, "contrast_score": "eq13", "n_steps": 2}
    argv = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    resumed = train.resumed(run, *argv, "--max_steps", "10")
    assert resumed.code == 0, resumed.err
    assert run.last["lr"] == "0.02" and float(run.last["loss"]) > 5 and len(run.reports) == 2 + 5
    assert run.state()["optimizer"]["param_groups"][0]["weight_decay"] == 10
    assert run.rows[0]["test_loss"] != run.last["test_loss"]
    for limit in ("10", "11"):  # and they hold for the next resume
        assert train.resumed(run, "--max_steps", limit).code == 0
        for settings in (run.settings, run.state()["settings"]):
            assert settings.items() >= {**changes, "pxsgld": 1, "contrast_k": 80}.items()
        assert run.settings["training_images"] == run.state()["data"]["fingerprint"]
        assert "training_images" not in run.state()["settings"]


# Flags that would change the network, the data, the terms, the batch, the queue or the buffer
CHANGED = """--arch resnet50; --depth 16; --width 2; --norm batch; --uncond; --clf_only;
--dropout_rate .5; --dataset digits; --image_size 16; --n_valid 39; --labels_per_class 1;
--independent_batches; --seed 2; --start_epoch 1; --batch_size 2; --sgld_batch_size 2;
--contrast_k 64; --contrast_style simclr; --queue_init random; --buffer_size 80; --optimizer sgd;
--adam_betas 0 .999; --ema .9; --load_path other.pt; --augment off;
--augment_px none; --px_batch_size 2; --chain_start gaussian; --bn_chains batch; --pyxce 0;
--pxysgld 1"""


def test_every_fixed_flag_is_tried():
    names = {flag.split()[0].removeprefix("--") for flag in CHANGED.split(";")}
    assert names - {"pyxce", "pxysgld"} == set(FIXED_ON_RESUME)


@pytest.mark.parametrize("flag", CHANGED.split(";"), ids=str.strip)
def test_a_flag_that_would_change_the_run_is_refused(flag, train):
    run = train.once("--pyxce 1 --pxycontrast 1 --pxsgld 1 --max_steps 2")
    before = listed(run.folder)
    resumed = train.resumed(run, *flag.split(), "--max_steps", "3")
    message = f"{flag.split()[0]} .*cannot change on --resume .*leave it out"
    assert re.search(message, resumed.refusal) and listed(run.folder) == before


def test_a_run_does_not_go_on_with_other_training_images(train, tmp_path):
    file = tmp_path / "cifar10.npz"
    train.write_images(file)
    run = train(f"--pyxce 1 --n_epochs 2 --max_steps 7 --data_root {tmp_path}")
    with np.load(file) as content:
        arrays = dict(content)
    for name, index in (("train_images", (3, 0, 0, 0)), ("train_labels", 5)):
        changed = arrays[name].copy()
        changed[index] ^= 1
        np.savez(file, **{**arrays, name: changed})
        message = f"{run.folder}.* its training images were others .60 images, crc32 .*--data_root"
        assert re.search(message, train.resumed(run).refusal)
    np.savez(file, **{**arrays, "test_images": arrays["test_images"][::-1]})
    assert train.resumed(run).code == 0


FULL = RuntimeError("[enforce fail at alloc.cpp:1] . DefaultCPUAllocator: can't allocate memory")


def test_a_failure_of_the_machine_sets_no_checkpoint_aside(train, monkeypatch):
    run = train("--pyxce 1 --n_epochs 2 --max_steps 7")
    before = listed(run.folder)
    for function, error in (
        ("torch.load", OSError(errno.EIO, "Input/output error")),
        *(("torch.load", full) for full in (FULL, MemoryError())),
        ("torch.nn.Module.load_state_dict", FULL),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(function, raises(error))
            resumed = train.resumed(run)
        assert re.search("Input/output|memory is full", resumed.refusal)
        assert listed(run.folder) == before
    assert train.resumed(run).code == 0


def test_a_copy_without_its_empty_folder_is_resumed(train):
    run = train(f"{train.ALL} --plot_uncond 1 --max_steps 7")
    shutil.rmtree(run.folder / "samples")
    assert train.resumed(run, "--n_epochs", "2").code == 0
    assert list((run.folder / "samples").iterdir())


def test_without_a_good_checkpoint_the_run_cannot_be_resumed(train):
    run = train("--pyxce 1 --max_steps 10")
    last, previous = (run.folder / name for name in ("last_ckpt.pt", "prev_ckpt.pt"))
    damage(last)
    assert train.resumed(run, "--max_steps", "10").code == 0
    steps = [run.state(path.name)["progress"]["step"] for path in (previous, last)]
    assert steps == [5, 10]  # prev_ckpt.pt stays until a second good checkpoint exists
    damage(last), damage(previous)
    line = train.resumed(run).refusal
    assert all(path.name in line for path in (last, previous))
    last.unlink(), previous.unlink()
    assert "start it again with --overwrite" in train.resumed(run).refusal


@pytest.mark.parametrize(
    ("stop", "evaluations"),
    [(7, ""), (5, "--eval_every 2")],
    ids=["within an epoch", "after an epoch that has no evaluation"],
)
def test_an_evaluation_that_a_limit_forces_is_never_the_best(stop, evaluations, train, monkeypatch):
    """A stopped and resumed run keeps the best checkpoint of an undisturbed run."""

    def evaluate(self: Any) -> dict[str, dict[str, float]]:
        accuracies = {stop: 0.9, 10: 0.6}
        return {"valid": {"accuracy": accuracies.get(self.run.progress.step, 0.4), "nll": 1.0}}

    monkeypatch.setattr(session.Session, "evaluate", evaluate)
    flags = f"--pyxce 1 --n_epochs 3 {evaluations}"
    whole, parts = train(flags), train(f"{flags} --max_steps {stop}")
    assert parts.last["valid_acc"] == "0.9"
    assert parts.state()["progress"]["best_valid"] < 0.9
    assert train.resumed(parts).code == 0
    best = [run.moving("best_valid_ckpt.pt") for run in (whole, parts)]
    assert train.same(*best) and best[0]["step"] == 10


def test_warm_up_counts_from_where_the_optimiser_is_new(train):
    """Warm-up does not depend on --start_epoch, and a resume does not repeat it."""
    flags = "--pyxce 1 --n_epochs 9 --lr .01 --warmup_iters 8 --decay_epochs 3 --print_every 1"
    fresh = train(f"{flags} --decay_rate 1 --max_steps 10")
    later = train(f"{flags} --decay_rate .5 --start_epoch 3 --max_steps 3")
    assert train.resumed(later, "--max_steps", "10").code == 0

    def rates(run: Any) -> list[float]:
        return [float(line.split(" lr ")[1].split()[0]) for line in run.reports]

    assert rates(fresh) == pytest.approx([0.01 * min(1, i / 8) for i in range(10)], rel=1e-2)
    assert rates(later) == pytest.approx([rate / 2 for rate in rates(fresh)], rel=1e-2)


def test_two_processes_do_not_train_in_one_folder(train):
    run = train("--pyxce 1 --max_steps 1")
    before = listed(run.folder)
    overwriting = ("--pyxce 1 --max_steps 2", *named(run), "--overwrite")
    with alone(run.folder, flag="--log_dir", program="train_wrn.py"):
        second = train(*overwriting)
    assert f"--log_dir: another train_wrn.py works in {run.folder}: wait" in second.refusal
    assert listed(run.folder) == before
    assert train(*overwriting).code == 0


def test_resume_auto_starts_a_run_and_continues_it(train):
    flags = "--pyxce 1 --n_epochs 2 --resume auto"
    whole, run = train.once("--pyxce 1 --n_epochs 2"), train(f"{flags} --max_steps 7")
    assert run.code == 0 and run.state()["progress"]["step"] == 7
    resumed = train(flags, *named(run))  # the same command, as SLURM repeats it
    assert resumed.code == 0 and not resumed.err
    assert train.same(run.moving(), whole.moving())
    assert "nothing to do" in train(flags, *named(run)).out
    refused = train(f"{flags} --width 2", *named(run))
    assert refused.code == 2 and "--width 2 cannot change" in refused.err[0]


def test_resume_auto_starts_over_a_run_that_died_before_its_first_checkpoint(train):
    run = train("--pyxce 1 --max_steps 1")
    for path in run.folder.glob("*.pt"):
        path.unlink()
    flags = "--pyxce 1 --max_steps 2 --resume auto"
    assert train(flags, *named(run)).code == 0
    assert run.state()["progress"]["step"] == 2
    (run.folder / "last_ckpt.pt").rename(run.folder / "ckpt_of_others.pt")
    (run.folder / "prev_ckpt.pt").unlink()
    refused = train(flags, *named(run))
    assert refused.code == 2 and "already holds a run" in refused.err[0]


def test_a_run_that_has_become_read_only_is_refused_at_once(train, monkeypatch):
    run = train("--pyxce 1 --max_steps 1")
    refused = raises(OSError(errno.EROFS, "Read-only file system"))
    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    assert f"--resume: cannot write to {run.folder} (Read-only" in train.resumed(run).refusal


def test_edited_settings_are_read_or_refused(train):
    run = train("--pyxce 1 --n_epochs 2 --max_steps 5")
    path = run.folder / "variant.json"
    settings = run.settings
    for wrong in ({"depth": "10"}, {"dataset": 7}):
        path.write_text(json.dumps({**settings, **wrong}))
        assert "variant.json" in train.resumed(run).refusal
    path.write_text(json.dumps({**settings, "norm": None}))
    assert train.resumed(run).code == 0  # as JEM and HDGE write "no norm"


@pytest.mark.parametrize("variant", [True, False])
def test_a_run_of_another_program_is_named(variant, train):
    run = train("--pyxce 1 --max_steps 1")
    settings = {n: v for n, v in run.settings.items() if n not in TERMS}
    settings["program"] = "train_contrastive.py"
    (run.folder / "variant.json").write_text(json.dumps(settings))
    if not variant:
        save_checkpoint({**run.state(), "settings": settings}, run.folder / "last_ckpt.pt")
        (run.folder / "variant.json").unlink()
    assert "a run of train_contrastive.py, not of train_wrn.py" in train.resumed(run).refusal


def test_frozen_statistics_are_those_of_the_checkpoint(train):
    """They do not change in a step or after a resume."""
    first = train.once("--pyxce 1 --norm batch --max_steps 2")
    flags = f"{train.ALL} --norm batch --bn_chains frozen --max_steps 3"
    run = train(f"{flags} --load_path {first.folder / 'last_ckpt.pt'}")
    assert train.resumed(run, "--max_steps", "5").code == 0
    before, after = first.state()["model_state_dict"], run.state()["model_state_dict"]
    kept = [name for name in before if "running" in name or "num_batches" in name]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    assert not torch.equal(before["f.conv1.weight"], after["f.conv1.weight"])


def test_a_malformed_previous_checkpoint_does_not_end_a_resume(train):
    """It comes from two processes, so that its replay buffer is divided anew."""
    run = train("--pxsgld 1 --max_steps 2")
    state = run.state("prev_ckpt.pt")
    state["ranks"] = 2 * [state["random"]]
    del state["objective"]
    save_checkpoint(state, run.folder / "prev_ckpt.pt")
    assert train.resumed(run, "--max_steps", "3").code == 0
