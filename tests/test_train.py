"""A training run from the command line to the run folder."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data
import losses
import models
import train_wrn
from evaluation.classification import classification
from training import session
from training.flags import build_parser

ROOT = Path(__file__).resolve().parent.parent
TERMS = ["pyxce", "pxycontrast", "pxcontrast", "pxsgld", "pxysgld"]
BEFORE = ["epoch", "step", "seconds", "images_per_s", "lr", "loss"]
AFTER = ["train_acc", "valid_acc", "valid_loss", "test_acc", "test_loss"]


@pytest.mark.parametrize("terms", [*([term] for term in TERMS), TERMS], ids=" ".join)
def test_terms_train_alone_and_together(terms, train):
    flags = [f"--{term} 1" for term in terms]
    run = train.once(f"{' '.join(flags)} --max_steps 3 --queue_init random")
    assert run.code == 0 and not run.err
    values = {name: float(text) for name, text in run.last.items()}
    assert all(map(math.isfinite, values.values()))
    columns = [f"{term}/loss" for term in terms]
    of_terms = [values[column] for column in columns]
    assert values["loss"] == pytest.approx(sum(of_terms), abs=1e-5) and any(of_terms)
    metrics = ("log_q_data", "log_q_samples", "auc", "age", "travel", "clamped", "clamped_data")
    extras = [f"{term}/{name}" for term in terms if "sgld" in term for name in metrics]
    assert list(run.last) == [*BEFORE, *columns, *AFTER, *extras]
    start, end = (run.state(f"{name}_ckpt.pt")["model_state_dict"] for name in ("prev", "last"))
    assert not train.same(start, end)


def test_a_run_leaves_every_file_of_its_folder(train):
    plots = "--plot_uncond --plot_cond --plot_contrast --plot_every 1 --ckpt_every 1"
    run = train(f"{train.ALL} --n_epochs 2 {plots}", curves=True)
    assert run.code == 0, run.err
    events = [name for name in run.files if name.startswith("events.out.tfevents.")]
    names = ".lock best_valid_ckpt.pt ckpt_0.pt ckpt_1.pt curves.png last_ckpt.pt log.txt".split()
    names += ["prev_ckpt.pt", "progress.csv", "variant.json", *events]
    for kind in ("cond", "contrast", "uncond"):
        names += [f"samples/{kind}_{epoch:04d}.png" for epoch in (0, 1)]
    assert run.files == sorted(names) and len(events) == 1
    assert [(row["epoch"], row["step"]) for row in run.rows] == [("0", "5"), ("1", "10")]
    assert [run.state(f"ckpt_{i}.pt")["progress"]["step"] for i in (0, 1)] == [5, 10]
    assert run.state("prev_ckpt.pt")["progress"]["step"] == 5
    for name in (file for file in run.files if file.endswith(".png")):
        picture = np.asarray(Image.open(run.folder / name))
        assert picture.std() > 10 and min(picture.shape[:2]) > 64


def test_images_per_s_counts_the_time_of_steps_alone(train, monkeypatch):
    """A step takes 1 second, an evaluation 50, and a checkpoint is due after 3."""
    clock, train_step, classification = [0.0], train_wrn.train_step, session.classification

    def lasting(seconds: float, function: Any) -> Any:
        def timed(*args: Any) -> Any:
            clock[0] += seconds
            return function(*args)

        return timed

    monkeypatch.setattr(train_wrn, "train_step", lasting(1, train_step))
    monkeypatch.setattr(session, "classification", lasting(50, classification))
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run = train("--pyxce 1 --n_epochs 3 --max_steps 8 --ckpt_minutes .05")
    resumed = train.resumed(run, "--max_steps", "15")
    assert [row["images_per_s"] for row in resumed.rows] == ["4.0"] * 3


def test_variant_json_has_flat_settings_and_the_environment(train):
    settings = train.once("--pyxce 1 --max_steps 2").settings
    environment = settings.pop("environment")
    assert settings.pop("environments") == [environment]
    assert re.fullmatch("[0-9,]+ images, crc32 [0-9a-f]{8}", settings.pop("training_images"))
    assert set(settings) == vars(build_parser().parse_args([])).keys() - {"threads"}
    assert (settings["pyxce"], settings["depth"], settings["seed"]) == (1, 10, 1)
    assert not any(isinstance(value, dict) for value in settings.values())
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["python"] == sys.version.split()[0] and environment["device"]
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", environment["git_commit"])


def test_log_txt_has_data_network_accuracies_and_the_reason_of_the_end(train):
    run = train.once("--pyxce 1 --max_steps 2")
    text = run.text()
    assert "20 training images, 20 labelled; 40 valid, 20 test" in text
    assert "77,706 parameters" in text and "stopped by --max_steps 2; --resume goes on" in text
    accuracy = 100 * float(run.last["test_acc"])
    assert f"test accuracy {accuracy:.2f} %, best validation accuracy " in text


def test_a_row_has_the_means_of_its_own_epoch(train):
    run = train("--pyxce 1 --n_epochs 3 --print_every 5 --lr 1e-3")  # one report an epoch
    reported = re.findall(r"^epoch \d+ step .* pyxce/loss (\S+) .*", run.text(), re.MULTILINE)
    assert [f"{float(row['pyxce/loss']):.6g}" for row in run.rows] == reported
    assert len(set(reported)) == 3


def test_tensorboard_has_the_terms_the_evaluation_and_the_grids(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train("--pyxce 1 --pxsgld 1 --n_epochs 1 --plot_uncond")
    board = EventAccumulator(str(run.folder))
    board.Reload()
    assert board.Tags()["images"] == ["samples/uncond"]
    scalars = {"train/loss", "train/pyxce/loss", "train/pxsgld/loss", "train/lr", "valid/accuracy"}
    assert scalars <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("train/loss")] == [2, 4]
    (event,) = board.Scalars("test/nll")
    assert event.step == 5 and event.value == pytest.approx(float(run.last["test_loss"]), rel=1e-6)


def test_without_flags_a_name_and_a_seed_are_made_printed_and_recorded(train):
    argv = train.BASE.replace("--seed 1", "").split() + ["--data_root", str(train.data)]
    argv += ["--log_dir", str(train.root / "x"), *"--pyxce 1 --pxsgld .5 --max_steps 1".split()]
    runs = [train.bare(*argv, *name) for name in (("--id", "a"), ())]
    (folder,) = (train.root / "x").glob("cifar10*")
    assert re.fullmatch(r"cifar10-pyxce-pxsgld-\d{8}-\d{6}", folder.name)
    seeds = [json.loads((f / "variant.json").read_text())["seed"] for f in (runs[0].folder, folder)]
    assert seeds[0] != seeds[1] and all(f"seed {s}" in r.out for s, r in zip(seeds, runs, strict=1))


def test_valid_and_test_columns_are_of_their_splits(train, tmp_path):
    path = tmp_path / "cifar10.npz"
    train.write_images(path)
    arrays = dict(np.load(path))
    arrays["test_labels"] = (arrays["train_labels"][:20] + 3) % 10  # no test label is right
    np.savez(path, **arrays)
    run = train(f"--pyxce 1 --n_epochs 30 --eval_every 30 --lr 3e-3 --data_root {tmp_path}")
    model = models.load(run.folder / "last_ckpt.pt")
    loaded = data.load("cifar10", tmp_path)
    _, valid = data.split_validation(60, 40)
    held_out = data.Split(loaded.train.images[valid], loaded.train.labels[valid])
    for name, split in (("valid", held_out), ("test", loaded.test)):
        result = classification(model, data.evaluation_batches(split, batch_size=7, sigma=0.03))
        assert float(run.last[f"{name}_acc"]) == result["accuracy"]
        assert float(run.last[f"{name}_loss"]) == pytest.approx(result["nll"], rel=1e-4)
    assert float(run.last["valid_acc"]) > 0.3 > float(run.last["test_acc"])


def test_the_best_checkpoint_has_the_first_highest_validation_accuracy(train, monkeypatch):
    accuracies = iter([(0.2, 0.9), (0.6, 0.1), (0.4, 0.95), (0.6, 0.99)])

    def evaluate(_: Any) -> dict:
        valid, test = next(accuracies)
        return {"valid": {"accuracy": valid, "nll": 1}, "test": {"accuracy": test, "nll": 1}}

    monkeypatch.setattr(session.Session, "evaluate", evaluate)
    run = train("--pyxce 1 --n_epochs 4")
    best = run.state("best_valid_ckpt.pt")["progress"]
    assert (best["step"], best["best_valid"]) == (10, 0.6)
    assert run.state()["progress"]["best_valid"] == 0.6


def test_without_validation_or_test_images_columns_stay_empty(train, tmp_path):
    run = train("--pyxce 1 --max_steps 2 --n_valid 0")
    assert run.last["valid_acc"] == run.last["valid_loss"] == "" != run.last["test_acc"]
    assert "best_valid_ckpt.pt" not in run.files and "last_ckpt.pt" in run.files
    train.write_images(tmp_path / "cifar10.npz", test=0)
    run = train(f"--pyxce 1 --max_steps 2 --data_root {tmp_path}")
    assert run.last["test_acc"] == run.last["test_loss"] == "" != run.last["valid_acc"]
    run = train(f"--pyxce 1 --max_steps 2 --n_valid 0 --data_root {tmp_path}")
    assert "; no validation or test images; images of" in run.out


def test_pictures_and_evaluation_do_not_disturb_a_run(train):
    flags = f"{train.ALL} --n_epochs 2 --dropout_rate .1 --norm batch"
    plain = train(f"{flags} --eval_every 2")
    pictures = train(f"{flags} --plot_uncond 1 --plot_cond 1 --plot_contrast 1 --plot_every 1")
    a, b = ({**run.moving(), "best_valid": 0} for run in (plain, pictures))
    assert train.same(a, b) and plain.steady[1] == pictures.steady[1]


@pytest.mark.parametrize("kind", ["gaussian", "class_gaussian"])
def test_a_start_is_fitted_to_the_training_images_and_their_labels(kind, train, monkeypatch):
    """With --labels_per_class 1 two of a class's three training images have no label."""
    fits: list[Any] = []
    monkeypatch.setattr(losses.GaussianStart, "fit", lambda _, *args: fits.append(args))
    flags = f"--pxsgld 1 --chain_start {kind} --labels_per_class 1 --n_valid 30 --max_steps 1"
    assert train(flags).code == 0
    ((images, labels),) = fits
    assert images.shape == (30, 32, 32, 3)
    brightness = ((images.float().mean((1, 2, 3)) - 30) / 20).round().long()  # is the class
    if kind == "gaussian":
        assert labels is None
    else:
        assert sorted(labels.tolist()) == [-1] * 20 + list(range(10))
        assert torch.equal(labels[labels >= 0], brightness[labels >= 0])


def test_with_few_labels_steps_have_these_labels_and_all_images(train, monkeypatch):
    steps, forward = [], losses.Step.forward
    monkeypatch.setattr(
        losses.Step, "forward", lambda *args: steps.append(args[1:4]) or forward(*args)
    )
    run = train("--pyxce 1 --pxsgld 1 --labels_per_class 1 --n_valid 20 --sigma 0 --n_epochs 1")
    assert run.code == 0 and len(steps) == 10  # 40 images in batches of 4
    labelled = torch.cat([labels for _, labels, _ in steps])
    assert set(labelled.tolist()) == set(range(10))
    assert len({f"{image.mean():.2f}" for _, _, images in steps for image in images}) > 10


@pytest.mark.parametrize(
    "flags",
    [
        "--pyxce 1 --optimizer sgd --lr 1e6 --n_epochs 3",
        "--pyxce 1 --pxsgld 1 --sgld_lr 1e30 --n_epochs 1 --print_every 99",
        "{all} --lr 1e9 --n_epochs 2 --norm batch",
    ],
)
def test_a_diverging_run_ends_with_one_line_and_its_last_good_state(flags, train):
    run = train(flags.format(all=train.ALL))
    (line,), state = run.err, run.state()
    match = re.match(r"train_wrn.py: diverged at step (\d+) \(loss ", line)
    step = state["progress"]["step"]
    assert run.code == 1 and match and step <= int(match[1])
    assert f"{run.folder}/last_ckpt.pt (step {step})" in line
    # It advises flags that this run has.
    assert ("--n_steps" in line) == ("pxsgld" in flags or "{all}" in flags)
    assert "a lower --lr" in line and "diverged at step" in run.text()
    tensors = [*state["model_state_dict"].values(), state.get("replay_buffer", torch.zeros(1))]
    assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.slow
def test_hdge_learns_the_digits(train):
    run = train(
        "--dataset digits --pyxce 1 --pxycontrast 1 --contrast_k 1280 --batch_size 32 "
        "--n_valid 137 --norm batch --lr 3e-3 --max_steps 60 --print_every 40"
    )
    assert run.code == 0 and run.last["epoch"] == "1"
    assert float(run.last["test_acc"]) > 0.6 and float(run.last["valid_acc"]) > 0.6


def test_the_program_itself_trains(train, tmp_path):
    argv = [*train.BASE.split(), "--data_root", str(train.data), "--log_dir", str(tmp_path)]
    command = [sys.executable, "train_wrn.py", *argv, *"--id run --pyxce 1 --max_steps 2".split()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and not run.stderr, run.stderr  # the bar is for terminals
    assert (tmp_path / "run" / "curves.png").exists()
