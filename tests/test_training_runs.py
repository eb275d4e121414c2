"""The record of short training runs: what is read from a run folder, and what is made of it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training_runs
from training import flags

RESTARTED = (
    "diverged at step 37 (loss -8.4e+08, gradient norm 5.6e+09): back to step 1,200, learning rate "
    "x 0.5, new random numbers, 0 chains begun anew; restart 1 of 5"
)
GIVEN_UP = "diverged at step 59 (loss nan, gradient norm nan); that step and all after it were not"


def run_folder(where: Path, name: str, log: list[str], test_acc: str = "", **given: Any) -> Path:
    words = ["--pyxce", "1", "--pxsgld", "1", "--id", name]
    for flag, value in given.items():
        words += [f"--{flag}", str(value)]
    settings, _ = flags.parse(words)
    folder = where / name
    folder.mkdir(parents=True)
    variant = {**vars(settings), "environment": {"device": "some CPU"}, "data_root": "/a/secret"}
    (folder / "variant.json").write_text(json.dumps(variant))
    (folder / "log.txt").write_text("".join(f"{line}\n" for line in log))
    if test_acc:
        rows = f"epoch,step,images_per_s,train_acc,valid_acc,test_acc\n0,20,9,.5,.25,{test_acc}\n"
        (folder / "progress.csv").write_text(rows)
    return folder


def report(step: int, loss: float) -> str:
    return f"epoch 0 step {step} lr 0.01 pyxce/loss 2 loss {loss} grad_norm 3"


def test_the_command_has_the_settings_and_no_place_of_the_machine(tmp_path: Path) -> None:
    given = {"seed": 3, "lr": 0.01, "amp": "bf16", "decay_epochs": 7}
    run = training_runs.read_run(run_folder(tmp_path, "a-3", [report(10, 5)], **given))
    program, script, *words = shlex.split(run["command"])
    assert (program, script) == ("python", "train_wrn.py") and "secret" not in json.dumps(run)
    settings, _ = flags.parse(words)
    assert (settings.id, settings.seed, settings.lr) == ("a-3", 3, 0.01)
    assert (settings.amp, settings.decay_epochs) == ("bf16", [7])


def test_what_was_undone_is_no_part_of_the_curve(tmp_path: Path) -> None:
    log = [report(1200, 1), report(1210, 9), RESTARTED, report(1210, 2), "epoch 0, step 1210"]
    run = training_runs.read_run(run_folder(tmp_path, "a-1", log, ".3", seed=1))
    assert run["restarts"] == [{"diverged_at": 37, "back_to": 1200, "lr_times": 0.5}]
    assert training_runs.smooth(run, "loss") == {1200: 1, 1210: 2}
    assert (run["train_acc"], run["valid_acc"], run["test_acc"]) == (0.5, 0.25, 0.3)
    assert run["steps"] == 20 and run["ended_by_divergence_at"] is None
    assert "images_per_s" not in run["epochs"][0]  # of a machine that others use


def test_a_run_that_ended_by_divergence_has_no_accuracy(tmp_path: Path) -> None:
    run = training_runs.read_run(run_folder(tmp_path, "a-1", [report(50, 1), GIVEN_UP], seed=1))
    assert run["ended_by_divergence_at"] == 59 and run["test_acc"] is None
    page = training_runs.healing([run])
    assert "| a | 1 | 0 of 1 | - | - |" in page and "| a, seed 1 | 59 | 50 | 0.01 |" in page


def test_pages_and_picture(tmp_path: Path) -> None:
    for amp, change in (("float32", 0.0), ("bf16", 0.1)):
        for seed in (1, 2):
            log = [report(10, seed + change), report(20, 2 * seed + change)]
            name = f"hdge-{amp}-{seed}"
            run_folder(tmp_path / "runs", name, log, f"0.{seed}", seed=seed)
    output = tmp_path / "page"
    for _ in range(2):  # again, below what a person wrote
        training_runs.main(["precision", str(tmp_path / "runs"), "--output", str(output)])
        page = (output / "README.md").read_text()
        (output / "README.md").write_text(f"# Ours\n\n{page}")
    assert page.startswith("# Ours\n\n<!--") and page.count("| pairs |") == 1
    assert "| hdge: bf16 and float32, same seed | 2 | 0.100 | 0.100 | 0.0 |" in page
    assert "| hdge: float32, two seeds | 1 | 1.500 | 2.000 | 10.0 |" in page
    assert "| hdge-float32 | 1, 2 | 50.0 +- 0.0 | 25.0 +- 0.0 | 15.0 +- 7.1 |" in page
    assert (output / "losses.png").stat().st_size > 10_000
    assert len(json.loads((output / "precision.json").read_text())) == 4


def test_spread() -> None:
    assert training_runs.spread([]) == "-" and training_runs.spread([0.5]) == "50.0"
    assert training_runs.spread([0.1, 0.3]) == pytest.approx("20.0 +- 14.1")
