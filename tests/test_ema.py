"""The averaged weights of --ema: their recursion, and the programs that use them."""

import json
import re
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import data
import models
import train_wrn
from baselines.linear_probe import load_backbone
from evaluation.classification import classification
from runs.checkpoint import save_checkpoint
from scripts import export
from tests import pair as two
from tests.test_healing import tiny
from training import session
from training.divergence import Guard

EMA = "--pyxce 1 --pxycontrast 1 --norm batch --lr 1e-2 --ema .9 --n_epochs 1"


def batch(n: int = 4) -> tuple[Tensor, Tensor, None]:
    return torch.rand(n, 3, 32, 32), torch.arange(n), None


def trained_weights(run: Any) -> dict[str, np.ndarray]:
    trained = ((n, p) for n, p in run.model.named_parameters() if p.requires_grad)
    return {name: p.detach().double().numpy().copy() for name, p in trained}


@pytest.mark.parametrize(
    ("words", "decay"),  # the ramp of the decay passes .25 and does not reach .9
    [("--norm batch", 0.25), ("--norm act", 0.9), ("--uncond", 0.25), ("--clf_only", 0.9)],
)
def test_an_average_is_the_recursion_over_the_steps_that_were_taken(words, decay):
    run = tiny(f"{words} --lr .01 --ema {decay}")
    guard, expected, taken = Guard(run.device), trained_weights(run), 0
    for step in range(6):
        guard.flag = torch.tensor(step == 3)  # as after a step that has diverged
        train_wrn.train_step(run, guard, batch(), step)
        if step != 3:
            d = min(decay, (1 + taken) / (10 + taken))
            expected = {n: d * expected[n] + (1 - d) * w for n, w in trained_weights(run).items()}
            taken += 1
    saved = run.ema.state_dict()
    assert (saved["decay"], int(saved["updates"])) == (decay, 5)
    assert saved["parameters"].keys() == expected.keys()
    for name, average in saved["parameters"].items():
        assert average.numpy() == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name
    gaps = [np.abs(trained_weights(run)[n] - w).max() for n, w in expected.items()]
    assert max(gaps) > 1e-4, "a copy of the weights would pass, too"


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_has_its_averages_within_a_block_and_then_its_raw_weights_exactly(compiled):
    run, (x, *_) = tiny("--norm batch --lr .01 --ema .9"), batch(2)
    if compiled:
        run.model.f.compile(dynamic=False, backend="aot_eager")
    for step in range(3):
        train_wrn.train_step(run, Guard(run.device), batch(), step)
    raw = {name: t.clone() for name, t in run.model.state_dict().items()}
    averages = run.ema.state_dict()["parameters"]
    reference = models.build(depth=10, width=1, norm="batch")
    models.load_weights(reference, raw | averages)
    with pytest.raises(ZeroDivisionError), run.averaged():
        inside = dict(run.model.state_dict())
        assert all(torch.equal(inside[n], averages.get(n, raw[n])) for n in raw)
        with torch.no_grad(), models.eval_mode(run.model), models.eval_mode(reference):
            torch.testing.assert_close(run.model.logits(x), reference.logits(x))
        raise ZeroDivisionError
    assert all(torch.equal(t, raw[n]) for n, t in run.model.state_dict().items())
    assert not torch.equal(raw["f.conv1.weight"], averages["f.conv1.weight"])


def test_averaging_changes_no_chain_loss_or_update(train):
    words = f"{train.ALL} --norm batch --lr 1e-2 --contrast_k 80 --max_steps 7"
    plain, run = train.once(words), train(f"{words} --ema .9")
    assert set(train.differences(plain, run)) <= {"ema", "rows", "best_valid"}
    for before, after in zip(plain.steady, run.steady, strict=True):
        assert before.keys() == after.keys() and before["test_loss"] != after["test_loss"]
        assert all(before[n] == after[n] for n in before if n[:5] not in ("valid", "test_"))


def loaded_model(run: Any, averaged: bool = True) -> models.EnergyClassifier:
    state = run.state()
    weights = {n: t for n, t in state["model_state_dict"].items() if not n.startswith("queue_")}
    model = models.build(depth=10, width=1, norm="batch")
    model.load_state_dict(weights | (state["ema"]["parameters"] if averaged else {}))
    return model.eval()


def test_accuracy_within_a_run_and_sample_grids_are_those_of_the_average(train, monkeypatch):
    plotted = []

    def plot(epoch: int, out: Any) -> None:
        plotted.append({n: p.detach().clone() for n, p in out.run.model.named_parameters()})

    monkeypatch.setattr(train_wrn, "plot_samples", plot)
    run = train(f"{EMA} --plot_uncond")
    assert run.code == 0, run.err
    assert train.same(plotted, [run.state()["ema"]["parameters"]])
    test = data.EvaluationSets(train.data).load("cifar10_test").split
    batches = list(data.evaluation_batches(test, batch_size=session.EVAL_BATCH, sigma=0.03))
    nll = [classification(loaded_model(run, average), batches)["nll"] for average in (True, False)]
    assert float(run.last["test_loss"]) == pytest.approx(nll[0], rel=1e-5)
    assert abs(nll[0] - nll[1]) > 1e-3


@pytest.fixture(scope="module")
def trained(train: Any) -> Any:
    return train.once(EMA)


def test_evaluation_takes_the_average_but_for_weights_raw(trained, ask, tmp_path):
    state = trained.state()
    plain = {k: v for k, v in state.items() if k != "ema"}
    plain["settings"] = {k: v for k, v in state["settings"].items() if k != "ema"}
    averaged = {**plain, "model_state_dict": state["model_state_dict"] | state["ema"]["parameters"]}
    for name, content in (("raw", plain), ("averaged", averaged)):
        save_checkpoint(content, tmp_path / f"{name}.pt")
    last, nll = trained.folder / "last_ckpt.pt", []
    export.main([str(last), str(tmp_path / "exported")])
    for path, words, weights in (
        (tmp_path / "raw.pt", "", None),
        (tmp_path / "raw.pt", "--weights raw", None),
        (last, "--weights raw", "raw"),
        (tmp_path / "averaged.pt", "", None),
        (last, "", "averaged (--ema 0.9)"),
        (last, "--weights ema", "averaged (--ema 0.9)"),
        (tmp_path / "exported", "", "averaged (--ema 0.9)"),
    ):
        answer = ask(f"--eval test_clf {words}", load=path)
        assert answer.code == 0, answer.err
        assert answer.json("test_clf").get("weights") == weights
        nll.append(answer.json("test_clf")["nll"])
    assert len(set(nll[:3])) == len(set(nll[3:])) == 1 and abs(nll[0] - nll[3]) > 1e-3
    for path, weights, reason in (
        (tmp_path / "raw.pt", "ema", "it has no averaged weights"),
        (tmp_path / "exported", "raw", "it has the averaged weights alone"),
    ):
        refused = ask(f"--eval test_clf --weights {weights}", load=path)
        message = f"--weights {weights}: {reason}: leave --weights out"
        assert message in refused.refusal and str(path) in refused.refusal
        assert not refused.folder.exists()


def test_every_reader_of_a_checkpoint_takes_the_average(trained, train):
    expected, last = loaded_model(trained).state_dict(), trained.folder / "last_ckpt.pt"
    settings = Namespace(load_path=str(last), norm=None, dataset=None, n_valid=None, sigma=None)
    probed, *_ = load_backbone(settings, torch.device("cpu"))
    for model in (models.load(last), probed):
        assert train.same(model.state_dict(), expected)
    run = train(f"--pyxce 1 --norm batch --max_steps 1 --lr 1e-9 --load_path {last} --ema .5")
    assert run.code == 0, run.err
    assert f"--load_path {last}: starts from the averaged weights" in run.out
    start = run.state("prev_ckpt.pt")
    assert train.same(start["model_state_dict"], expected)
    parameters = start["ema"]["parameters"]
    assert train.same(parameters, {name: expected[name] for name in parameters})
    assert int(start["ema"]["updates"]) == 0
    plain = train.once("--pyxce 1 --max_steps 2").folder / "last_ckpt.pt"
    assert "averaged" not in train(f"--pyxce 1 --max_steps 1 --load_path {plain}").out


def test_an_exported_card_has_no_number_of_the_raw_weights(trained, ask, tmp_path):
    last = Path(shutil.copytree(trained.folder, tmp_path / "run")) / "last_ckpt.pt"
    folder = last.parent / "eval"
    for weights, accuracy in (("raw", 0.875), ("ema", 0.125)):
        answer = ask(f"--eval test_clf --weights {weights}", load=last, folder=folder)
        record = answer.json("test_clf")
        (folder / "test_clf.json").write_text(json.dumps({**record, "accuracy": accuracy}))
    state = {**trained.state(), "environment": trained.settings["environment"]}
    text, _ = export.card(state, last, record["checkpoint_sha256"])
    assert re.search(r"12\.5|0?\.125", text) and not re.search(r"87\.5|0?\.875", text)


@pytest.mark.parametrize("fault", ["missing", "another network's"])
def test_an_average_that_does_not_fit_is_one_line(fault, train):
    run = train("--pyxce 1 --ema .9 --max_steps 2")
    state = run.state()
    if fault == "missing":
        del state["ema"]
    else:
        state["ema"]["parameters"]["class_output.bias"] = torch.zeros(1)  # copy_ would broadcast it
    save_checkpoint(state, run.folder / "last_ckpt.pt")
    assert "does not fit this run" in train.resumed(run, "--max_steps", "4").refusal


def test_a_run_of_one_process_keeps_its_average_in_two(pair, train):
    run = train("--pyxce 1 --pxsgld 1 --lr 1e-2 --ema .9 --max_steps 4")
    before = run.state()["ema"]["parameters"]
    outcomes = pair(two.train, ["--resume", str(run.folder), "--max_steps", "5"])
    assert [code for code, *_ in outcomes] == [0, 0], outcomes
    state = run.state()
    assert int(state["ema"]["updates"]) == 5
    for name, average in state["ema"]["parameters"].items():
        old, new = before[name], state["model_state_dict"][name]
        torch.testing.assert_close(average, old + 9 / (10 + 4) * (new - old))
