"""Logistic regression on frozen features, and the run folder that it writes."""

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
from tests.conftest import Ran


def test_heads_are_sklearns_on_standardised_features_and_work_on_raw_ones():
    generator, y = torch.Generator().manual_seed(0), torch.arange(90) % 3
    x = torch.randn(3, 4, generator=generator)[y] + torch.randn(90, 4, generator=generator)
    raw = torch.cat([50 * x + 300, torch.full((90, 1), 7.0)], 1)  # the last feature is constant
    z = (raw - raw.mean(0)) / raw.std(0, correction=0).clamp(min=1e-3)
    heads = list(fitted_heads(Features(raw, y), 3, [1e-3, 1e-1], 200))
    assert [l2 for l2, _, _ in heads] == [1e-1, 1e-3]
    for l2, head, iterations in heads:
        theirs = LogisticRegression(C=1 / (90 * l2), tol=1e-10, max_iter=5000).fit(z, y)
        ours, expected = head(raw), torch.from_numpy(theirs.decision_function(z)).float()
        ours, expected = (a - a.mean(1, keepdim=True) for a in (ours, expected))
        assert torch.allclose(ours, expected, atol=2e-3) and 1 < iterations < 200


def test_the_penalty_of_the_best_validation_accuracy_is_taken():
    # A fifth of the training labels is wrong: the weakest penalty fits them, too.
    labels, generator = torch.arange(60) % 3, torch.Generator().manual_seed(1)
    centres = torch.randn(3, 40, generator=generator)
    wrong = torch.where(torch.arange(60) % 5 == 0, (labels + 1) % 3, labels)
    splits = {
        name: Features(centres[labels] + 2 * torch.randn(60, 40, generator=generator), y)
        for name, y in (("train", wrong), ("valid", labels), ("test", labels))
    }
    lines: list[str] = []
    accuracies = {}
    for l2 in (10.0, 1.0, 0.1, 1e-6):
        head, row = program.probe(Namespace(l2=[l2], max_iter=100), splits, 3, lines.append)
        accuracies[l2] = row["valid_acc"]
        valid, test = (head(splits[name].x) for name in ("valid", "test"))
        assert row["valid_acc"] == (valid.argmax(1) == labels).double().mean().item()
        assert row["test_loss"] == pytest.approx(F.cross_entropy(test, labels).item())
    _, row = program.probe(Namespace(l2=[*accuracies], max_iter=100), splits, 3, lines.append)
    assert row["valid_acc"] == max(accuracies.values()) and len(lines) == 8
    assert row["l2"] == max(l2 for l2, a in accuracies.items() if a == row["valid_acc"]) > 1e-6
    assert row["train_acc"] < 1 and accuracies[1e-6] < row["valid_acc"]


def test_features_are_those_of_evaluation(train):
    model = models.build(depth=10, width=1, norm="batch", dropout_rate=0.5).train()
    dataset = data.load("cifar10", str(train.data))

    def features(n_valid: int) -> dict[str, Features]:
        return features_of_splits(model, dataset, Namespace(n_valid=n_valid, sigma=0.1))

    splits = features(20)
    assert model.training
    sizes = {name: len(split.y) for name, split in splits.items()}
    assert sizes == {"train": 40, "valid": 20, "test": 20}
    model.eval()
    (images, labels), *_ = data.evaluation_batches(dataset.test, batch_size=200, sigma=0.1)
    assert torch.equal(splits["test"].y, labels)
    assert torch.allclose(splits["test"].x, model.features(images), atol=1e-6)
    index, _ = data.split_validation(60, 20)
    assert torch.equal(splits["train"].y, dataset.train.labels[index])
    assert torch.equal(splits["train"].x, features(20)["train"].x)
    assert "valid" not in features(0)


@pytest.fixture(scope="module")
def backbone(train: Any) -> Ran:
    return train.once("--pyxce 1 --pxycontrast 1 --norm batch --sigma .1 --n_epochs 1 --lr .001")


@pytest.fixture
def probe(train: Any, backbone: Ran, tmp_path: Path) -> Any:
    """Run linear_probe.py. {file}: the backbone's checkpoint."""

    def start(words: str) -> Ran:
        words = words.format(file=backbone.folder / "last_ckpt.pt")
        words = f"--data_root {train.data} --log_dir {tmp_path} --id p --device cpu {words}"
        code = program.main(*flags.parse(words.split(), program.build_parser))
        return Ran(code, "", "", tmp_path / "p")

    return start


def test_a_probe_is_a_run_that_evaluation_reads(probe, backbone, ask):
    before = backbone.state()["model_state_dict"]
    run = probe("--load_path {file} --l2 .1 .01")
    after = run.state()["model_state_dict"]
    assert all(torch.equal(t, after[name]) for name, t in before.items() if name[:2] == "f.")
    assert not torch.equal(before["class_output.weight"], after["class_output.weight"])
    assert not any(name.startswith("queue") for name in after)  # its logits were another head's
    expected = {"program": "linear_probe.py", "method": "linear-probe", "norm": "batch"}
    expected |= {"dataset": "cifar10", "n_valid": 40, "sigma": 0.1}
    expected |= {"training_images": run.state()["data"]["fingerprint"]}
    assert expected.items() <= run.settings.items()
    assert run.code == 0 and run.state()["settings"]["norm"] == "batch"

    (row,) = run.rows
    answer = ask("--eval test_clf --sigma .1 --seed 0", load=run.folder / "last_ckpt.pt")
    assert answer.json("test_clf")["accuracy"] == pytest.approx(float(row["test_acc"]))
    assert float(row["loss"]) < math.log(10)


def test_the_head_for_another_data_set_has_its_classes_and_split(probe):
    run = probe("--load_path {file} --dataset digits --l2 .1")
    assert run.code == 0 and {"dataset": "digits", "n_valid": None}.items() <= run.settings.items()
    assert models.load(run.folder / "last_ckpt.pt").class_output.weight.shape == (10, 64)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("--load_path nothing.pt", "--load_path: nothing.pt"),
        ("--load_path {file} --n_valid 0", "--n_valid 0 leaves no images"),
        ("--load_path {file} --norm none", "norm is"),
        ("--load_path {file} --n_valid 60", "--n_valid 60"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_folder(words, cause, probe, capsys):
    run = probe(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert run.code == 2 and cause in line and not run.folder.exists()


def test_it_empties_no_folder_that_another_process_works_in(probe, tmp_path, monkeypatch):
    progress, real = tmp_path / "p" / "progress.csv", program.features_of_splits

    def slow(*args: Any) -> Any:
        progress.parent.mkdir()
        progress.write_text("epoch,step\n0,5\n")
        return real(*args)

    monkeypatch.setattr(program, "features_of_splits", slow)
    assert probe("--load_path {file} --l2 .1").code == 2
    assert progress.read_text() == "epoch,step\n0,5\n"
