"""A user's mistake ends with exit code 2 and one line that names flag, value and remedy."""

import errno
import os
import re
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import flags as flags_of_baselines
from baselines import train_contrastive
from evaluation import flags as questions
from scripts import experiments, predict, tables
from tests import pair
from tests.test_data_folder import make_classes
from training import flags, session

CE = "--pyxce 1 --max_steps 1"
SGLD = "--pxsgld 1 --max_steps 1"
REMEDY = re.compile(r"\b(choose|use|give|leave|put|must be|replace|needs|write)\b")


def assert_refused(train: Any, argv: str, *parts: str) -> None:
    """Check that the one line on stderr has `parts` and a remedy, and that no file is written."""
    before = set(train.root.rglob("*"))
    line = train(argv).refusal
    assert line.startswith("train_wrn.py: error: ") and len(line) < 900
    assert REMEDY.search(line), f"no remedy in: {line}"
    assert [part for part in parts if part not in line] == [], line
    assert set(train.root.rglob("*")) == before


SLOTS = ("4 slots", "--buffer_size 50")
MISTAKES = [
    (f"{CE} --dataset imagenet", "--dataset imagenet", "cifar10"),
    (f"{CE} --dataset folder:", "--dataset folder:", "folder:PATH"),
    (f"{CE} --norm wrong", "--norm", "'wrong' (choose from", "none", "act"),
    (f"{CE} --depth 12", "--depth 12", "6n + 4", "use 10"),
    (f"{CE} --image_size 30", "--image_size 30", "multiple of 4", "use 32"),
    (f"{CE} --image_size 12 --arch resnet50", "--image_size 12", "of 8", "use 16"),
    (f"{CE} --arch resnet50 --norm batch", "--norm batch", "--arch resnet50"),
    (f"{CE} --arch resnet50 --dropout_rate .1", "--dropout_rate 0.1", "--arch resnet50"),
    ("--pyxce 0 --max_steps 1", "--pyxce", "--pxsgld", "are all 0", "--pyxce 1"),
    (f"{SGLD} --buffer_size 45", "--buffer_size 45", "10 classes", "use 40"),
    (f"{SGLD} --buffer_size 3 --sgld_batch_size 1", "--buffer_size 3", "use 10"),
    (f"{SGLD} --sgld_batch_size 41", "--sgld_batch_size 41", "40", "--buffer_size 50"),
    (f"{SGLD} --class_cond_p_x_sample --sgld_batch_size 5", "--sgld_batch_size 5", *SLOTS),
    ("--pxysgld 1 --max_steps 1 --batch_size 5", "--batch_size 5", *SLOTS),
    (f"{CE} --plot_contrast", "--plot_contrast 1", "--pxycontrast"),
    (f"{CE} --contrast_t 1e-10", "--contrast_t: 1e-10", "at least 0.0001"),
    (f"{CE} --start_epoch 200", "--start_epoch 200", "--n_epochs 200"),
    (f"{CE} --id a/b", "--id 'a/b'", "slashes"),
    (f"{CE} --id ..", "--id '..'"),
    (f"{CE} --n_valid 60", "--n_valid 60", "59"),
    (f"{CE} --n_valid 0 --batch_size 61", "--batch_size 61", "60"),
    (f"{CE} --labels_per_class 7", "--labels_per_class 7", "at most"),
    (f"{CE} --labels_per_class 0", "--labels_per_class 0"),
    (f"{CE} --device mps", "--device mps", "cpu"),
    (f"{CE} --load_path nowhere.pt", "nowhere.pt", "--load_path"),
    (f"{CE} --load_path {'a' * 256}", "--load_path aaa", "File name too long"),
    ("--pxsgld 1 --max_steps 1 --uncond --clf_only", "--uncond", "--clf_only"),
]
MISTAKES += [  # flags without effect
    (f"{terms} --{flag}", f"--{flag} has no effect without", needs)
    for terms, flag, needs in (
        (CE, "px_loss bce", "--pxsgld or --pxysgld"),
        (CE, "chain_start gaussian", "--pxsgld or --pxysgld"),
        (CE, "sgld_l2 0.1", "--pxsgld or --pxysgld"),
        (CE, "independent_batches", "without --pxsgld: "),
        (f"{CE} --norm batch", "bn_chains running", "--pxsgld or --pxysgld"),
        ("--pxysgld 1 --max_steps 1", "augment_px none", "without --pxsgld: "),
        ("--pxysgld 1 --max_steps 1", "px_batch_size 4", "without --pxsgld: "),
    )
]
MISTAKES += [  # larger than the memory, and than a tensor's size may be
    (f"{SGLD} --pxycontrast 1 --{flag} {size}", f"--{flag}", str(size))
    for flag, sizes in (
        ("contrast_k", (99999999999999, 2**63 - 8)),
        ("buffer_size", (9999999999990, 2**63 - 8)),
        ("width", (5000,)),
    )
    for size in sizes
]
MISTAKES += [
    (f"{CE} --adam_betas 1 .9", "--adam_betas", "below 1"),
    (f"{CE} --optimizer sgd --adam_betas 0 .9", "--adam_betas 0 0.9 has no effect", "sgd"),
    (f"{SGLD} --bn_chains running", "--bn_chains running", "--norm batch"),
    (f"{SGLD} --norm batch --bn_chains frozen", "--bn_chains frozen", "--load_path"),
    (f"{SGLD} --px_batch_size 21", "--px_batch_size 21", "the 20 training images", "use 20"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[0])
def test_a_mistake_is_named_with_its_remedy(mistake, train):
    assert_refused(train, *mistake)


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--pyxce=--"], "--pyxce --: that is no value"),
        (["--dataset", "a\nb\x1b[m"], r"--dataset a\nb\x1b[m is unknown"),
        (["--resume", "x" * 5000], "--resume: xxx"),
        (["--lr", "x" * 5000], "--lr: 'xxx"),
    ],
)
def test_a_strange_value_is_printed_as_one_line(argv, part):
    line = pair.refusal(partial(flags.parse, files=True), ["--pyxce", "1", *argv])
    assert part in line and len(line) < 1100
    assert line.startswith("train_wrn.py: error: ") and line.isprintable()


# The lowest value of each flag that takes a number, and a value above a highest of its own.
WHOLE = {
    0: "n_valid workers decay_epochs start_epoch seed max_restarts",
    -1: "labels_per_class warmup_iters ckpt_every",
    1: "contrast_k n_steps sgld_batch_size buffer_size depth width batch_size n_epochs max_steps "
    "px_batch_size eval_every print_every plot_every log_gradients threads",
    8: "image_size",
}
ABOVE_ZERO = "sgld_lr lr decay_rate max_minutes ckpt_minutes sgld_grad_clip".split()
FROM_ZERO = "sigma smoothing sgld_std reinit_freq dropout_rate weight_decay sgld_l2 clip_grad ema "
FROM_ZERO += "guidance"
LOWEST = {
    **{name: low for low, names in WHOLE.items() for name in names.split()},
    **dict.fromkeys(ABOVE_ZERO, 1e-9),
    **dict.fromkeys([*flags.TERMS, *FROM_ZERO.split()], 0),
    "contrast_t": 1e-4,
}
ABOVE = {"smoothing": "1", "reinit_freq": "1.1", "dropout_rate": "1", "ema": "1", "depth": "1210"}
ABOVE |= {"width": "10001", "threads": "1025"}
NO_NUMBERS = ("nan", "inf", "-inf", "1e999", "ten", "0x10", "1,5", "1/2")


def test_every_number_is_taken_from_its_lowest_to_the_largest_of_a_tensor():
    types = {a.dest: a.type for a in flags.build_parser()._actions if a.type is not None}
    others = {"adam_betas", "plot_uncond", "plot_cond", "plot_contrast"}
    assert types.keys() == LOWEST.keys() | others
    for name, lowest in LOWEST.items():
        convert, whole = types[name], any(name in names.split() for names in WHOLE.values())
        assert convert(str(lowest)) == lowest
        below = [str(lowest - 1), "1.5", "1e3"] if whole else ["-.1", "-1e-9", "1e-999"]
        wrong = [*NO_NUMBERS, str(2**63) if whole else "3.5e38", ABOVE.get(name, "nan")]
        for text in [*wrong, *(below if whole or lowest else below[:2])]:
            with pytest.raises(ArgumentTypeError, match="out of range|is not a"):
                convert(text)


@pytest.mark.parametrize(
    ("program", "argv", "nearest"),
    [
        (flags, "--datset cifar10", "--dataset"),
        (flags, "--epochs=3", "--n_epochs"),
        (flags, "--batchsize 3", "--batch_size"),
        (flags, "--learning_rate 3", "--lr"),
        (flags, "--norm Batch", "batch"),
        (flags, "--pyxce 1 --dataset CIFAR10", "cifar10"),
        (flags, "--zzz 1", None),
        (questions, "--load_path x --eval ood", "OOD"),
        (questions, "--loadpath x --eval OOD", "--load_path"),
        (tables, "compar x", "compare"),
        (tables, "compare x --outptu y", "--output"),
    ],
)
def test_a_mistyped_flag_or_choice_is_answered_with_the_nearest(program, argv, nearest):
    line = pair.refusal(program.main if program is tables else program.parse, argv.split())
    assert f"did you mean {nearest}?" in line if nearest else "mean" not in line


def test_the_buffer_is_checked_against_the_classes_of_a_folder(train, tmp_path):
    make_classes(tmp_path, dict.fromkeys("abc", 5))
    argv = f"{SGLD} --n_valid 2 --dataset folder:{tmp_path}"
    assert_refused(train, argv, "--buffer_size 40", "3 classes", "use 39")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["trap", "old trap", "half"])
def test_a_foreign_or_damaged_checkpoint_is_refused_and_not_run(kind, train, tmp_path):
    path, marker = tmp_path / "ckpt.pt", tmp_path / "marker"
    if kind == "half":
        whole = (train.once(CE).folder / "last_ckpt.pt").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        state = {"model_state_dict": Trap(marker)}
        torch.save(state, path, _use_new_zipfile_serialization=kind != "old trap")
    before = set(train.root.rglob("*"))
    message = train(f"{CE} --load_path {path}").refusal
    assert message.startswith(f"train_wrn.py: error: --load_path {path}")
    assert message.count(str(path)) == 1
    assert set(train.root.rglob("*")) == before and not marker.exists()
    if "trap" in kind:  # an unrestricted load runs it
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_resuming_with_damaged_checkpoints_names_each_once(train):
    run = train(f"{CE} --max_steps 1")
    for name in ("last_ckpt.pt", "prev_ckpt.pt"):
        (run.folder / name).write_bytes(b"")
    message = train.resumed(run, "--max_steps", "2").refusal
    assert f"--resume {run.folder}/last_ckpt.pt is damaged" in message
    assert message.count(str(run.folder)) == 2


def test_resuming_with_foreign_checkpoints_is_refused(train):
    run, foreign = train(CE), train(f"{CE} --width 2")
    for name in ("last_ckpt.pt", "prev_ckpt.pt"):
        (foreign.folder / name).replace(run.folder / name)
    message = f"--resume {run.folder}/last_ckpt.pt: it does not fit"
    assert message in train.resumed(run).refusal


def test_a_folder_with_a_run_is_refused_unless_overwritten(train):
    run = train(CE)
    (run.folder / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    folder = f"--log_dir {run.folder.parent} --id {run.folder.name}"
    assert_refused(train, f"{CE} {folder}", str(run.folder), "--id", "--resume", "--overwrite")
    assert train(f"{CE} {folder} --overwrite --depth 11").code == 2
    assert before == {path: path.read_bytes() for path in before}
    assert train(f"--pxsgld 1 --max_steps 2 {folder} --overwrite").code == 0
    assert [row["step"] for row in run.rows] == ["2"] and run.settings["pyxce"] == 0
    assert (run.folder / "notes.txt").read_text() == "mine"
    assert sum(name.startswith("events.out") for name in run.files) == 1


full = pair.raises(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_a_full_disk_keeps_the_checkpoint_of_the_epoch_before(train, monkeypatch):
    whole, save = train.once("--pyxce 1 --n_epochs 1"), session.save_checkpoint

    def save_until_full(state: dict[str, Any], path: Path, **keep: Any) -> None:
        if state["progress"]["step"] > 5:
            monkeypatch.setattr(os, "replace", full)
        save(state, path, **keep)

    monkeypatch.setattr(session, "save_checkpoint", save_until_full)
    run = train("--pyxce 1 --n_epochs 3")
    monkeypatch.undo()
    assert f"{run.folder}/last_ckpt.pt" in run.err[0] and "No space left" in run.refusal
    assert not [name for name in run.files if name.endswith(".tmp")]
    assert train.same(run.state()["model_state_dict"], whole.state()["model_state_dict"])
    assert train.resumed(run).code == 0
    assert [row["epoch"] for row in run.rows] == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["progress.csv", "log.txt"])
def test_a_disk_that_is_full_for_a_record_is_named(name, train, monkeypatch):
    real = os.fsync

    def fsync(descriptor: int) -> None:
        opened = os.fstat(descriptor)
        if any(os.path.samestat(opened, path.stat()) for path in train.root.rglob(f"*{name}*")):
            full()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run = train("--pyxce 1 --n_epochs 1")
    assert name in run.err[0] and "No space left" in run.refusal
    assert (run.folder / "last_ckpt.pt").exists() == (name == "progress.csv")


@pytest.mark.parametrize(
    "flag", ["n_valid 5000", "batch_size 2000", "px_batch_size 2000", "labels_per_class 5000"]
)
def test_a_dry_run_refuses_more_images_than_training_has(flag, train):
    argv = f"--dataset digits --pxsgld 1 --depth 10 --width 1 --dry_run --{flag}"
    assert f"--{flag}" in train.bare(*argv.split()).refusal


def test_a_path_that_is_not_utf_8_is_refused(train, ask, tmp_path, monkeypatch):
    """Check the bytes of a Latin-1 name, as a shell gives them, and a path in such a folder."""
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    argv, build = ["--dataset", "folder:x"], train_contrastive.build_parser
    lines = [*train(CE, *argv).err, *ask.bare(*"--eval OOD --load_path x".split()).err]
    lines.append(pair.refusal(flags_of_baselines.parse, argv, build))
    lines.append(pair.refusal(experiments.main, "run all --root x".split()))
    lines.append(pair.refusal(predict.main, "x x".split()))
    name = os.fsdecode(b"--id=caf\xe9")
    lines += [*train(CE, name).err, *ask("--eval test_clf", name).err]
    monkeypatch.setenv("HDGE_DATA_ROOT", folder)
    lines += train.bare("--pyxce", "1").err
    names = "--dataset --load_path --dataset --root RUN --id --id --data_root".split()
    for line, flag in zip(lines, names, strict=True):
        assert f"error: {flag} " in line and "is not UTF-8: rename it, or give another" in line
