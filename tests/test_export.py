"""scripts/export.py: a model as a folder of safetensors, settings and a card."""

import json
import re
import shlex
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from runs.checkpoint import (
    CONFIG,
    FILLED,
    WEIGHTS,
    CheckpointError,
    read_checkpoint,
    read_with_sha256,
    save_checkpoint,
)
from runs.files import file_sha256
from scripts import export
from tests.pair import refusal
from tests.test_data_record import paint
from tests.test_report import ANSWERS, save
from training import flags

HYBRID = "--pyxce 1 --pxycontrast 1 --pxsgld 1 --max_steps 3"


def exported(checkpoint: Path, folder: Path) -> Path:
    return export.main([str(checkpoint), str(folder)])


def card(checkpoint: Path, folder: Path) -> str:
    return (exported(checkpoint, folder) / export.CARD).read_text()


def test_an_exported_model_is_the_checkpoint_s_without_paths(train, tmp_path):
    run = train.once(HYBRID)
    checkpoint, whole = run.folder / "last_ckpt.pt", run.state()
    folder, x = exported(checkpoint, tmp_path / "model"), torch.rand(2, 3, 32, 32)
    assert sorted(path.name for path in folder.iterdir()) == [export.CARD, CONFIG, WEIGHTS]
    for path in (folder, folder / WEIGHTS):
        state, sha256 = read_with_sha256(path)
        assert sha256 == file_sha256(folder / WEIGHTS)
        for name in ("model_state_dict", "data"):
            assert train.same(state[name], whole[name])
        assert int(state["objective"][FILLED]) == int(whole["objective"][FILLED])
        ours, original = (models.load(p).logits(x) for p in (path, checkpoint))
        assert torch.equal(ours, original)
    text = "".join((folder / name).read_text() for name in (CONFIG, export.CARD))
    assert str(train.root) not in text
    config = json.loads((folder / CONFIG).read_text())
    assert config["progress"] == {"step": 3, "seconds": whole["progress"]["seconds"]}
    environment = run.settings["environment"]
    assert environment.pop("platform") and config["environment"] == environment
    changed = {k for k, v in whole["settings"].items() if config["settings"][k] != v}
    assert changed == {"data_root", "log_dir"}
    assert train(HYBRID, "--load_path", str(folder)).code == 0


def test_of_a_folder_s_path_the_last_part_alone_is_published(train, tmp_path):
    folder = tmp_path / "private" / "me" / "shapes"
    for i in range(12):
        paint(folder / ("`<b>`", "_x|y")[i % 2] / f"{i}.png", i)
    run = train("--pyxce 1 --max_steps 1 --n_valid 4 --dataset", f"folder:{folder}")
    assert run.code == 0, run.err
    (run.folder / "eval").mkdir()
    sha256 = {"checkpoint_sha256": file_sha256(run.folder / "last_ckpt.pt")}
    changes = {"n": 5, "trained_on": 0, "new": 2, "missing": 0}
    for i, name in enumerate((f"folder_train:{folder}", f"folder:{folder}/")):
        answer = {**ANSWERS["test_clf"], "dataset": name, "data": {name: changes}, **sha256}
        save(run.folder / "eval", f"test_clf-{i + 1}", answer)
    rows = [{**ANSWERS["OOD"]["rows"][0], "ood_dataset": f"folder:{folder.parent}/my own/x"}]
    save(run.folder / "eval", "OOD", {**ANSWERS["OOD"], "rows": rows, **sha256})
    text = card(run.folder / "last_ckpt.pt", tmp_path / "g")
    state = read_checkpoint(tmp_path / "g")
    assert state["settings"]["dataset"] == "folder:shapes"
    state.pop("model_state_dict")
    new = "`2 of 5 images are not among the run's {} images`"
    for part in (
        f"`folder_train:shapes`, 1,234 images; `folder_train:shapes`: {new.format('training')} |",
        f"`folder:shapes`, 1,234 images; `folder:shapes`: {new.format('test')} |",
        "against `folder:x` (4,321) |",
        "# WRN-10-1 of `shapes`, ",
        "in the order of f(x): `_x|y`, `` `<b>` ``.",
    ):
        assert part in text
    assert text.startswith("---\nlibrary_name: pytorch\ntags:\n")
    for published in (text, str(state)):
        assert "private" not in published and str(tmp_path) not in published
    assert models.load(tmp_path / "g").logits(torch.rand(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(("flag", "log_q"), [("", "logsumexp f(x). "), ("--uncond", "e(x), a ")])
def test_the_card_says_how_log_q_is_read(flag, log_q, train, tmp_path):
    run = train(f"--pyxce 1 --pxsgld 1 --max_steps 1 {flag}")
    assert f"log q(x) = {log_q}" in card(run.folder / "last_ckpt.pt", tmp_path / "model")


def test_chains_begin_where_the_run_s_did(train, ask, tmp_path):
    run = train("--pxsgld 1 --max_steps 2 --chain_start class_gaussian --sgld_clamp")
    checkpoint = run.folder / "last_ckpt.pt"
    folder = exported(checkpoint, tmp_path / "model")
    flags = "--eval cond_samples --fresh_samples --buffer_size 20 --sgld_batch_size 20"
    flags += " --n_sample_steps 1 --n_steps 2"

    def starts(path: Path, *more: str) -> Any:
        answer = ask(flags, *more, load=path)
        assert answer.code == 0, answer.err
        return np.load(answer.folder / "cond_samples.npz")["start_images"]

    expected = starts(checkpoint)
    assert np.array_equal(starts(folder), expected)
    assert not np.array_equal(starts(folder, "--chain_start", "uniform"), expected)


def test_the_card_has_the_command_that_trains_it_again(ask, train, tmp_path):
    more = f"--no-contrast_normalize --adam_betas 0 .99 --max_minutes 30 --load_path {ask.hdge}"
    run = train(f"{HYBRID} {more}")
    text = card(run.folder / "last_ckpt.pt", tmp_path / "model")
    (command,) = re.findall(r"^    python train_wrn.py (.*)$", text, re.MULTILINE)
    again = vars(flags.parse(shlex.split(command))[0]) | export.PLACES
    settings = read_checkpoint(tmp_path / "model")["settings"]
    assert settings == {name: again.get(name, value) for name, value in settings.items()}
    assert "--no-contrast_normalize" in command and "--log_dir" not in command
    assert re.search(rf"--load_path {ask.hdge.name}/\w+_ckpt.pt", command)
    command = export.training_command({**settings, "plot_cond": True, "overwrite": True})
    again = flags.parse(shlex.split(command)[2:])[0]
    assert again.plot_cond is True and again.overwrite is False


def test_the_card_has_the_numbers_of_this_checkpoint_alone(train, tmp_path):
    run = train(HYBRID)
    folder, checkpoint = run.folder / "eval", run.folder / "last_ckpt.pt"
    folder.mkdir()
    read = {"classifier": "/private/ce/last_ckpt.pt", "samples": 0.625, "starts": 0.125}
    more = {
        "cond_samples": {"guidance": 0.1, "read_as_asked": read,
                         "settings": {"fresh_samples": False},
                         "files": ["a.png", "cond_samples_starts.png"]},
        "attack": {"dataset": "cifar10_test", "n_steps_refine": 3},
    }  # fmt: skip
    sha256 = file_sha256(checkpoint)
    for name, answer in ANSWERS.items():
        save(folder, name, {**answer, **more.get(name, {}), "checkpoint_sha256": sha256})
    foreign = {**ANSWERS["test_clf"], "accuracy": 0.875, "checkpoint_sha256": "0" * 64}
    save(folder, "test_clf-1", foreign)
    (folder / "cut.json").write_text("{")
    text = card(checkpoint, tmp_path / "model")
    assert text.startswith("---\nlicense: mit\n") and "datasets:\n- cifar10\n" in text
    assert "1 x -log q(y|x) (cross-entropy) + 1 x -log q(x|y) (contrastive)" in text
    test, asked = "cifar10_test, 1,234 images", "as the class asked for | 6,400 after"
    by, buffer = "by ce/last_ckpt.pt", " from the run's replay buffer"
    judged = "10,000 images, sampling fresh, features: inception"
    for line in (
        f"| accuracy | {test} | 0.7391 |",
        f"| ECE | {test} | 0.0523 |",
        "| AUROC, px | cifar10_test (1,234) against svhn (4,321) | 0.5678 |",
        f"| samples read {asked} 40.25 SGLD steps (mean){buffer}, guidance 0.1, {by} | 0.625 |",
        f"| starts read {asked} 0 SGLD steps{buffer}, {by} | 0.125 |",
        f"| FID of samples after 100 SGLD steps | {judged} | 85.75 |",
        f"| FID of training images | {judged} | 2.50 |",
        "| accuracy under pgd, Linf 8/255 after 3 SGLD steps | cifar10_test, 200 images | 0.0875 |",
    ):
        assert f"\n{line}\n" in text
    assert "0.875" not in text and "private" not in text
    assert f"]({export.SAMPLES})" in text
    picture = (folder / "cond_samples_starts.png").read_bytes()
    assert (tmp_path / "model" / export.SAMPLES).read_bytes() == picture
    for i, (name, sigma) in enumerate(product(("test_clf", "eval_ece", "OOD"), (0.03, 0.0))):
        more = {"checkpoint_sha256": sha256, "protocol": {"version": 1, "sigma": sigma}}
        save(folder, f"{name}-{i + 2}", {**ANSWERS[name], **more})
    more = {"checkpoint_sha256": sha256, "settings": {"sgld_lr": 2.5}}
    save(folder, "attack-1", {**ANSWERS["attack"], "steps": 10, **more})
    save(folder, "fid", {**ANSWERS["fid"], **more})
    text = card(checkpoint, tmp_path / "again")
    for line in (
        *(f"| accuracy | {test}, sigma {sigma} | 0.7391 |" for sigma in (0.03, 0.0)),
        f"| ECE | {test}, sigma 0.0 | 0.0523 |",
        "| AUROC, px | cifar10_test (1,234) against svhn (4,321), sigma 0.0 | 0.5678 |",
    ):
        assert f"\n{line}\n" in text
    for setting in ("steps 10, overrides --sgld_lr 2.5", "steps 40, overrides none"):
        assert f"images, {setting} | 0.0875 |" in text
    assert f"| {judged}, overrides --sgld_lr 2.5 | 85.75 |" in text


def test_a_folder_stands_for_its_checkpoint_and_an_exported_one_is_exported_again(train, tmp_path):
    run = train.once(HYBRID)
    first = exported(run.folder, tmp_path / "first")
    best, _ = read_with_sha256(run.folder)
    assert train.same(read_checkpoint(first)["model_state_dict"], best["model_state_dict"])
    again = exported(first, tmp_path / "again")
    for name in (CONFIG, WEIGHTS, export.CARD):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    assert "- commit: " in (again / export.CARD).read_text()


VALUES = ('"x"', "[[1], [1, 2]]", "1e400", "null", '{"a": 1}', "[" * 99999)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (WEIGHTS, lambda good: bytes([good[0] ^ 1]) + good[1:]),
        (WEIGHTS, lambda good: good[:-1] + bytes([good[-1] ^ 1])),
        (CONFIG, lambda good: bytes([good[0] ^ 1]) + good[1:]),
        (CONFIG, lambda good: good[: len(good) // 2]),
        *((CONFIG, lambda _, v=value: f'{{"queue_filled": {v}}}'.encode()) for value in VALUES),
    ],
)
def test_damage_is_refused_in_one_line(name, damage, train, tmp_path):
    folder = exported(train.once(HYBRID).folder / "last_ckpt.pt", tmp_path / "model")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is damaged") as error:
        models.load(folder)
    assert "\n" not in str(error.value)


def test_an_empty_queue_stays_empty(train, tmp_path):
    state = train.once(HYBRID).state()
    state["objective"][FILLED].zero_()
    save_checkpoint(state, tmp_path / "empty.pt")
    again = read_checkpoint(exported(tmp_path / "empty.pt", tmp_path / "model"))
    assert int(again["objective"][FILLED]) == 0


def test_mistakes_are_one_line(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    checkpoint = str(train.once(HYBRID).folder / "last_ckpt.pt")
    (tmp_path / "file").write_text("x")
    torch.save({"model_state_dict": {}}, tmp_path / "foreign.pt")
    for argv, message in (
        ([checkpoint, str(tmp_path)], "exists already"),
        ([str(tmp_path / "file"), str(tmp_path / "new")], "CHECKPOINT"),
        ([str(tmp_path / "foreign.pt"), str(tmp_path / "new")], "was not written by train_wrn.py"),
        (["hf://owner/name", str(tmp_path / "new")], "hf://owner/name needs huggingface_hub"),
        ([checkpoint, str(tmp_path / "file" / "new")], "writable"),
    ):
        assert message in refusal(export.main, argv)
    assert not (tmp_path / "new").exists()
