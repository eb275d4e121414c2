"""Logistic regression on frozen features, and the run folder that it writes."""

import csv
import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

import data
import models
from baselines import flags
from baselines import linear_probe as program
from baselines.linear_probe import Features, features_of_splits, fitted_heads


def test_heads_are_sklearns_on_standardised_features_and_work_on_raw_ones():
    generator, y = torch.Generator().manual_seed(0), torch.arange(90) % 3
    x = torch.randn(3, 4, generator=generator)[y] + torch.randn(90, 4, generator=generator)
    raw = torch.cat([50 * x + 300, torch.full((90, 1), 7.0)], 1)  # the last one is constant
    z = (raw - raw.mean(0)) / raw.std(0, correction=0).clamp(min=1e-3)
    heads = list(fitted_heads(Features(raw, y), 3, [1e-3, 1e-1], 200))
    assert [l2 for l2, _, _ in heads] == [1e-1, 1e-3]
    for l2, head, iterations in heads:
        theirs = LogisticRegression(C=1 / (90 * l2), tol=1e-10, max_iter=5000).fit(z, y)
        ours, expected = head(raw), torch.from_numpy(theirs.decision_function(z)).float()
        ours, expected = (a - a.mean(1, keepdim=True) for a in (ours, expected))
        assert torch.allclose(ours, expected, atol=2e-3) and 1 < iterations < 200


def test_best_penalty_is_chosen_by_validation():
    # A fifth of the training labels is wrong: a weak penalty fits them, too strong a one nothing.
    labels, generator = torch.arange(60) % 3, torch.Generator().manual_seed(1)
    centres = torch.randn(3, 40, generator=generator)
    found = {
        name: Features(centres[labels] + 2 * torch.randn(60, 40, generator=generator), labels)
        for name in ("train", "valid", "test")
    }
    wrong = torch.where(torch.arange(60) % 5 == 0, (labels + 1) % 3, labels)
    found["train"] = Features(found["train"].x, wrong)
    lines: list[str] = []
    alone = {}
    for l2 in (10.0, 1.0, 0.1, 1e-6):
        head, row = program.probe(Namespace(l2=[l2], max_iter=100), found, 3, lines.append)
        alone[l2] = row["valid_acc"]
        valid, test = (head(found[name].x) for name in ("valid", "test"))
        assert row["valid_acc"] == (valid.argmax(1) == found["valid"].y).double().mean().item()
        assert row["test_loss"] == pytest.approx(F.cross_entropy(test, labels).item())
    _, row = program.probe(Namespace(l2=[*alone], max_iter=100), found, 3, lines.append)
    assert row["valid_acc"] == max(alone.values()) and len(lines) == 8
    assert row["l2"] == max(l2 for l2 in alone if alone[l2] == row["valid_acc"]) > 1e-6
    assert row["train_acc"] < 1 and alone[1e-6] < row["valid_acc"]


def test_features_are_those_of_evaluation(train):
    torch.manual_seed(0)
    model = models.build(depth=10, width=1, norm="batch", dropout_rate=0.5).train()
    dataset = data.load("cifar10", str(train.data))

    def features(n_valid: int) -> dict[str, Features]:
        return features_of_splits(model, dataset, Namespace(n_valid=n_valid, sigma=0.1))

    found = features(20)
    assert model.training
    assert {name: len(part.y) for name, part in found.items()} == {
        **{"train": 40, "valid": 20, "test": 20}
    }
    model.eval()
    (images, labels), *_ = data.evaluation_batches(dataset.test, batch_size=200, sigma=0.1)
    assert torch.equal(found["test"].y, labels)
    assert torch.allclose(found["test"].x, model.features(images), atol=1e-6)
    index, _ = data.split_validation(60, 20)
    assert torch.equal(found["train"].y, dataset.train.labels[index])
    assert torch.equal(found["train"].x, features(20)["train"].x)
    assert "valid" not in features(0)


@pytest.fixture(scope="module")
def backbone(train: Any) -> Any:
    return train.once("--pyxce 1 --pxycontrast 1 --norm batch --sigma .1 --n_epochs 1 --lr .001")


@pytest.fixture
def probe(train: Any, tmp_path: Path) -> Any:
    def start(words: str) -> tuple[int, Path]:
        words = f"--data_root {train.data} --log_dir {tmp_path} --id p --device cpu {words}"
        return program.main(*flags.parse(words.split(), program.build_parser)), tmp_path / "p"

    return start


def test_a_probe_is_a_run_that_evaluation_reads(probe, backbone, ask):
    before = backbone.state()["model_state_dict"]
    code, folder = probe(f"--load_path {backbone.folder / 'last_ckpt.pt'} --l2 .1 .01")
    assert code == 0
    state = torch.load(folder / "last_ckpt.pt", weights_only=True)
    after = state["model_state_dict"]
    assert all(torch.equal(t, after[name]) for name, t in before.items() if name[:2] == "f.")
    assert not torch.equal(before["class_output.weight"], after["class_output.weight"])
    assert not any(name.startswith("queue") for name in after)  # its logits were another head's
    settings = json.loads((folder / "variant.json").read_text())
    assert (settings["program"], settings["method"]) == ("linear_probe.py", "linear-probe")
    assert (settings["dataset"], settings["n_valid"], settings["sigma"]) == ("cifar10", 40, 0.1)
    assert settings["norm"] == state["settings"]["norm"] == "batch"

    (row,) = csv.DictReader((folder / "progress.csv").read_text().splitlines())
    answer = ask("--eval test_clf --sigma .1 --seed 0", load=folder / "last_ckpt.pt")
    assert answer.code == 0, answer.err
    assert answer.json("test_clf")["accuracy"] == pytest.approx(float(row["test_acc"]))
    assert float(row["loss"]) < math.log(10)


def test_another_data_set_gets_its_own_classes(probe, backbone):
    code, folder = probe(f"--load_path {backbone.folder / 'last_ckpt.pt'} --dataset digits --l2 .1")
    settings = json.loads((folder / "variant.json").read_text())
    assert code == 0 and settings["dataset"] == "digits" and settings["n_valid"] is None
    assert models.load(folder / "last_ckpt.pt").class_output.weight.shape == (10, 64)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--load_path nothing.pt", "--load_path: nothing.pt"),
        ("--load_path {file} --n_valid 0", "--n_valid 0 leaves no images"),
        ("--load_path {file} --norm none", "norm is"),
        ("--load_path {file} --n_valid 60", "--n_valid 60"),
    ],
)
def test_a_mistake_is_one_line(words, said, probe, backbone, capsys):
    code, folder = probe(words.format(file=backbone.folder / "last_ckpt.pt"))
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and said in lines[0]
    assert not folder.exists()


def test_it_empties_no_folder_that_another_process_works_in(probe, backbone, tmp_path, monkeypatch):
    rows, real = "epoch,step\n0,5\n", program.features_of_splits

    def slow(*args: Any) -> Any:
        (tmp_path / "p").mkdir()
        (tmp_path / "p" / "progress.csv").write_text(rows)
        return real(*args)

    monkeypatch.setattr(program, "features_of_splits", slow)
    code, folder = probe(f"--load_path {backbone.folder / 'last_ckpt.pt'} --l2 .1")
    assert code == 2 and (folder / "progress.csv").read_text() == rows
