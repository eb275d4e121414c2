"""scripts/export.py: a model as a folder of safetensors, settings and a card."""

import hashlib
import json
import re
import shlex
import sys
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
)
from scripts import export
from tests.pair import refusal
from tests.test_data_record import paint
from tests.test_report import ANSWERS, save
from training import flags

HYBRID = "--pyxce 1 --pxycontrast 1 --pxsgld 1 --max_steps 3"


def exported(checkpoint: Path, folder: Path) -> Path:
    return export.main([str(checkpoint), str(folder)])


def test_it_is_the_same_model(train, tmp_path):
    run = train.once(HYBRID)
    folder = exported(run.folder / "last_ckpt.pt", tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == [export.CARD, CONFIG, WEIGHTS]
    whole = run.state()
    for path in (folder, folder / WEIGHTS):
        state, sha256 = read_with_sha256(path)
        assert sha256 == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        for name in ("model_state_dict", "data"):
            assert train.same(state[name], whole[name])
        assert int(state["objective"][FILLED]) == int(whole["objective"][FILLED])
        x = torch.rand(2, 3, 32, 32)
        ours, theirs = (models.load(p) for p in (path, run.folder / "last_ckpt.pt"))
        assert torch.equal(ours.logits(x), theirs.logits(x))
    told = "".join((folder / name).read_text() for name in (CONFIG, export.CARD))
    assert str(train.root) not in told
    about = json.loads((folder / CONFIG).read_text())
    assert about["progress"] == {"step": 3, "seconds": whole["progress"]["seconds"]}
    environment = run.settings["environment"]
    assert environment.pop("platform") and about["environment"] == environment
    changed = {k for k, v in whole["settings"].items() if about["settings"][k] != v}
    assert changed == {"data_root", "log_dir"}


def test_a_data_set_of_one_s_own_is_known_by_its_last_part(train, tmp_path):
    folder = tmp_path / "private" / "me" / "shapes"
    for i in range(12):
        paint(folder / "ab"[i % 2] / f"{i}.png", i)
    dataset = f"folder:{folder}"
    run = train("--pyxce 1 --max_steps 1 --n_valid 4 --dataset", dataset)
    assert run.code == 0, run.err
    (run.folder / "eval").mkdir()
    sha256 = hashlib.sha256((run.folder / "last_ckpt.pt").read_bytes()).hexdigest()
    for i, name in enumerate((f"folder_train:{folder}", f"folder:{folder}/")):
        answer = {**ANSWERS["test_clf"], "dataset": name, "checkpoint_sha256": sha256}
        save(run.folder / "eval", f"test_clf-{i + 1}", answer)
    rows = [{**ANSWERS["OOD"]["rows"][0], "ood_dataset": f"folder:{folder.parent}/my own/x"}]
    save(run.folder / "eval", "OOD", {**ANSWERS["OOD"], "rows": rows, "checkpoint_sha256": sha256})
    kept = read_checkpoint(exported(run.folder / "last_ckpt.pt", tmp_path / "g"))
    assert kept["settings"]["dataset"] == "folder:shapes"
    kept.pop("model_state_dict")
    card = (tmp_path / "g" / export.CARD).read_text()
    for told in ("folder_train:shapes, 1,234", "folder:shapes, 1,234", "against folder:x (4,321)"):
        assert told in card
    assert "private" not in card and str(tmp_path) not in card
    assert "private" not in str(kept) and str(tmp_path) not in str(kept)
    assert models.load(tmp_path / "g").logits(torch.rand(1, 3, 32, 32)).shape == (1, 2)


@pytest.mark.parametrize(("flag", "told"), [("", "logsumexp f(x). "), ("--uncond", "e(x), a ")])
def test_the_card_says_what_log_q_is(flag, told, train, tmp_path):
    run = train(f"--pyxce 1 --pxsgld 1 --max_steps 1 {flag}")
    card = exported(run.folder / "last_ckpt.pt", tmp_path / "model") / export.CARD
    assert f"log q(x) = {told}" in card.read_text()


def test_chains_begin_where_the_run_s_did(train, ask, tmp_path):
    run = train("--pxsgld 1 --max_steps 2 --chain_start class_gaussian --sgld_clamp")
    checkpoint = run.folder / "last_ckpt.pt"
    small = exported(checkpoint, tmp_path / "model")
    words = "--eval cond_samples --fresh_samples --buffer_size 20 --sgld_batch_size 20"
    words += " --n_sample_steps 1 --n_steps 2"

    def starts(path: Path, *more: str) -> Any:
        found = ask(words, *more, load=path)
        assert found.code == 0, found.err
        return np.load(found.folder / "cond_samples.npz")["start_images"]

    ours = starts(checkpoint)
    assert np.array_equal(ours, starts(small))
    assert not np.array_equal(ours, starts(small, "--chain_start", "uniform"))


def test_it_is_evaluated_and_trained_on_as_a_checkpoint_is(ask, tmp_path):
    checkpoint = ask.hdge / "last_ckpt.pt"
    folder = exported(checkpoint, tmp_path / "model")
    ours, theirs = (
        ask("--eval test_clf", load=path).json("test_clf") for path in (folder, checkpoint)
    )
    assert ours["accuracy"] == theirs["accuracy"]
    assert ours["nll"] == theirs["nll"] and ours["label"] == "model"
    words = "--pyxce 1 --pxycontrast 1 --max_steps 1"
    assert ask.trainer(words, "--load_path", str(folder)).code == 0


def test_the_card_has_the_command_that_trains_it_again(train, tmp_path):
    run = train(f"{HYBRID} --no-contrast_normalize --adam_betas 0 .99 --max_minutes 30")
    card = (exported(run.folder / "last_ckpt.pt", tmp_path / "model") / export.CARD).read_text()
    (command,) = re.findall(r"^    python train_wrn.py (.*)$", card, re.MULTILINE)
    settings, _ = flags.parse(shlex.split(command))
    told = read_checkpoint(tmp_path / "model")["settings"]
    again = vars(settings) | export.PLACES
    assert told == {name: again.get(name, value) for name, value in told.items()}
    assert "--no-contrast_normalize" in command and "--log_dir" not in command


def test_the_card_has_the_numbers_of_this_checkpoint_alone(train, tmp_path):
    run = train(HYBRID)
    place, checkpoint = run.folder / "eval", run.folder / "last_ckpt.pt"
    place.mkdir()
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    read = {"classifier": "/private/ce/last_ckpt.pt", "samples": 0.625, "starts": 0.125}
    guided = {"guidance": 0.1, "read_as_asked": read, "files": ["a.png", "cond_samples_starts.png"]}
    refined = {"dataset": "cifar10_test", "n_steps_refine": 3}
    for name, answer in ANSWERS.items():
        more = {"cond_samples": guided, "attack": refined}.get(name, {})
        save(place, name, {**answer, **more, "checkpoint_sha256": sha256})
    other = {**ANSWERS["test_clf"], "accuracy": 0.875, "checkpoint_sha256": "0" * 64}
    save(place, "test_clf-1", other)
    (place / "cut.json").write_text("{")
    folder = exported(checkpoint, tmp_path / "model")
    card = (folder / export.CARD).read_text()
    assert card.startswith("---\nlicense: mit\n") and "datasets:\n- cifar10\n" in card
    assert "1 x -log q(y|x) (cross-entropy) + 1 x -log q(x|y) (contrastive)" in card
    test, asked = "cifar10_test, 1,234 images", "as the class asked for | 6,400 after"
    by = "by ce/last_ckpt.pt"
    judged = "10,000 images, sampling fresh, features: inception"
    for line in (
        f"| accuracy | {test} | 0.7391 |",
        f"| ECE | {test} | 0.0523 |",
        "| AUROC, px | cifar10_test (1,234) against svhn (4,321) | 0.5678 |",
        f"| samples read {asked} 4000 SGLD steps, guidance 0.1, {by} | 0.625 |",
        f"| starts read {asked} 0 SGLD steps, {by} | 0.125 |",
        f"| FID of samples after 100 SGLD steps | {judged} | 85.75 |",
        f"| FID of training images | {judged} | 2.50 |",
        "| accuracy under pgd, Linf 8/255 after 3 SGLD steps | cifar10_test, 200 images | 0.0875 |",
    ):
        assert f"\n{line}\n" in card
    assert "0.875" not in card and "private" not in card
    assert f"]({export.SAMPLES})" in card
    picture = (place / "cond_samples_starts.png").read_bytes()
    assert (folder / export.SAMPLES).read_bytes() == picture
    bare = (exported(checkpoint, tmp_path / "b") / export.CARD).read_text()
    assert bare == card


def test_a_folder_stands_for_its_checkpoint_and_an_exported_one_is_exported_again(train, tmp_path):
    run = train.once(HYBRID)
    first = exported(run.folder, tmp_path / "first")
    best, _ = read_with_sha256(run.folder)
    assert train.same(read_checkpoint(first)["model_state_dict"], best["model_state_dict"])
    again = exported(first, tmp_path / "again")
    for name in (CONFIG, WEIGHTS, export.CARD):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    assert "- commit: " in (again / export.CARD).read_text()


TOLD = ('"x"', "[[1], [1, 2]]", "1e400", "null", '{"a": 1}', "[" * 99999)


@pytest.mark.parametrize(
    ("place", "damage"),
    [
        (WEIGHTS, lambda good: bytes([good[0] ^ 1]) + good[1:]),
        (WEIGHTS, lambda good: good[:-1] + bytes([good[-1] ^ 1])),
        (CONFIG, lambda good: bytes([good[0] ^ 1]) + good[1:]),
        (CONFIG, lambda good: good[: len(good) // 2]),
        *((CONFIG, lambda _, told=told: f'{{"queue_filled": {told}}}'.encode()) for told in TOLD),
    ],
)
def test_damage_is_refused_in_one_line(place, damage, train, tmp_path):
    folder = exported(train.once(HYBRID).folder / "last_ckpt.pt", tmp_path / "model")
    (folder / place).write_bytes(damage((folder / place).read_bytes()))
    with pytest.raises(CheckpointError, match=f"{WEIGHTS} is damaged") as error:
        models.load(folder)
    assert "\n" not in str(error.value)


def test_an_empty_queue_stays_empty(train, tmp_path):
    from runs.checkpoint import save_checkpoint

    state = train.once(HYBRID).state()
    state["objective"][FILLED].zero_()
    save_checkpoint(state, tmp_path / "empty.pt")
    found = read_checkpoint(exported(tmp_path / "empty.pt", tmp_path / "model"))
    assert int(found["objective"][FILLED]) == 0


def test_mistakes_are_one_line(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    checkpoint = str(train.once(HYBRID).folder / "last_ckpt.pt")
    (tmp_path / "file").write_text("x")
    torch.save({"model_state_dict": {}}, tmp_path / "foreign.pt")
    for words, named in (
        ([checkpoint, str(tmp_path)], "exists already"),
        ([str(tmp_path / "file"), str(tmp_path / "new")], "CHECKPOINT"),
        ([str(tmp_path / "foreign.pt"), str(tmp_path / "new")], "was not written by train_wrn.py"),
        (["hf://owner/name", str(tmp_path / "new")], "hf://owner/name needs huggingface_hub"),
        ([checkpoint, str(tmp_path / "file" / "new")], "writable"),
    ):
        assert named in refusal(export.main, words)
    assert not (tmp_path / "new").exists()
