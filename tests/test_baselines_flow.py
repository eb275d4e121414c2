"""train_flow.py: its loss by hand, its runs, and the questions that a flow answers or refuses."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data
import models
from baselines import linear_probe
from baselines.flags import parse
from baselines.train_flow import PROGRAM, Likelihood, MirroredBatches, build_flow
from data import Split
from evaluation.sampling import INVERSE, flow_samples, to_uint8
from runs.processes import mixed
from scripts import predict
from tests.pair import refusal

TINY = "--levels 2 --depth 1 --width 4 --image_size 8 --n_epochs 1"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(baseline: Any) -> dict[str, Any]:
    flags = {"glow": "", "class": "--class_cond", "residual": "--arch residual_flow --class_cond"}
    return {name: baseline(PROGRAM, f"{TINY} {more}") for name, more in flags.items()}


def settings(words: str) -> Any:
    return parse(f"--image_size 8 {words}".split(), PROGRAM.build_parser)[0]


@pytest.mark.parametrize("words", ["", "--class_cond"])
def test_the_loss_is_bits_per_dimension_of_log_p_given_y(words):
    s = settings(f"--levels 1 --depth 1 --width 4 {words}")
    model, y = build_flow(s, 3, CPU).double().train(), torch.tensor([2, 0, 1, 1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    v = torch.randint(256, (4, 3, 8, 8)).double()
    torch.manual_seed(7)
    loss, metrics = Likelihood(s)(model, v / 127.5 - 1, y, 0)
    torch.manual_seed(7)  # of the dequantisation
    h = (v + torch.rand_like(v)) / 256 - 0.5
    log_p = model.flow.log_prob(h, y) - 192 * math.log(256)
    torch.testing.assert_close(loss, -log_p.mean() / (192 * math.log(2)))
    assert torch.equal(metrics["bits/loss"], loss) and ("accuracy" in metrics) == bool(words)


def test_images_are_mirrored_half_of_the_time_and_not_changed_otherwise():
    images, index = torch.randint(256, (400, 4, 4, 3), dtype=torch.uint8), torch.arange(400)
    split = Split(images, torch.zeros(400, dtype=torch.int64), index)

    def batch(flip: bool) -> torch.Tensor:
        return MirroredBatches(split, index, index, 400, 1, 0.0, flip, unlabelled=False)(0)[0]

    plain = data.to_float(images[data.epoch_order(400, seed=1, epoch=0)])
    assert torch.equal(batch(False), plain)
    flipped = batch(True)
    same, mirrored = ((flipped == x).flatten(1).all(1) for x in (plain, plain.flip(3)))
    assert (same ^ mirrored).all() and 150 < mirrored.sum() < 250


def test_a_run_has_its_method_its_losses_and_a_flow_that_loads(trained):
    for name, run in trained.items():
        assert run.code == 0 and not run.err
        assert run.last["loss"] == run.last["bits/loss"] and 0 < float(run.last["loss"]) < 20
        assert (run.last["test_acc"] == "") == (name == "glow")
        model = models.load(run.folder)
        assert isinstance(model, models.Flow) and not model.training and model.num_classes == 10
        assert model.state_dict().keys() == run.state()["model_state_dict"].keys()
    methods = [run.settings["method"] for run in trained.values()]
    assert methods == ["glow", "glow-class", "residual-flow-class"]
    assert "Glow, 2 x 1 blocks of width 4" in trained["glow"].out


def test_questions_read_log_p(trained, ask):
    answer = ask("--eval OOD --score_fn px py --sigma 0", load=trained["class"].folder)
    rows = answer.json("OOD")["rows"]
    assert [(row["score_fn"], row["n_in"]) for row in rows] == [("px", 20), ("py", 20)]
    flow = models.load(trained["class"].folder)
    test = data.load("cifar10", ask.trainer.data, size=8).test
    x = data.to_float(test.images)
    with torch.no_grad():
        log_p, right = flow.log_px(x).double(), flow.logits(x).argmax(1) == test.labels
    scores = np.load(answer.folder / "OOD_scores.npz")
    (key,) = [key for key in scores if key.endswith("cifar10_test/px")]
    np.testing.assert_allclose(scores[key], log_p, rtol=1e-6)
    answer = ask("--eval test_clf --sigma 0", load=trained["class"].folder)
    assert answer.json("test_clf")["accuracy"] == pytest.approx(right.double().mean().item())
    words = "--eval logp_hist --ood_dataset svhn --sigma 0"
    answer = ask(words, load=trained["residual"].folder)
    for summary in answer.json("logp_hist")["sets"].values():
        assert summary["bits_per_dim"] == pytest.approx(-summary["mean"] / (192 * math.log(2)))


def test_samples_are_the_inverse_s(trained, ask):
    flow = models.load(trained["class"].folder)
    labels = torch.arange(20) % 10
    expected = to_uint8(flow.sample(20, labels, mixed(3, INVERSE, 0)))
    images, classes = flow_samples(flow, 250, seed=3)
    assert torch.equal(classes, torch.arange(250) % 10) and len(images) == 250
    words = f"--eval cond_samples --sgld_batch_size 20 --seed 3 --fid_model {ask.checkpoint('ce')}"
    answer = ask(words, load=trained["class"].folder, pictures=True)
    saved = np.load(answer.folder / "cond_samples.npz")
    assert np.array_equal(saved["test_images"], expected)
    assert np.array_equal(saved["test_labels"], labels) and "start_images" not in saved
    record = answer.json("cond_samples")
    assert record["n"] == 20 and 0 <= record["read_as_asked"]["samples"] <= 1
    assert record["protocol"]["n_steps"] == 0 and (answer.folder / "cond_samples.png").exists()
    answer = ask("--eval uncond_samples --sgld_batch_size 9", load=trained["glow"].folder)
    assert np.load(answer.folder / "uncond_samples.npz")["test_images"].shape == (9, 8, 8, 3)


@pytest.mark.parametrize("sampling", ["fresh", "class"])
def test_fid_is_of_the_inverse_s_samples(sampling, trained, ask):
    words = f"--eval fid --sampling {sampling} --fid_features model --n_samples 20 --fid_model"
    answer = ask(f"{words} {ask.checkpoint('ce')}", load=trained["residual"].folder)
    record = answer.json("fid")
    assert record["steps"] is None and record["n"] == 20 and record["fid"] > 0
    assert "guidance" not in record
    assert [row["images"] for row in record["rows"]] == ["samples", "training images"]
    read = [row.get("read_as_asked") for row in record["rows"]]
    assert (read[0] is not None) == (sampling == "class") and read[1] is None


REFUSED = [
    ("class", "--eval attack", "--eval attack"),
    ("class", "--eval OOD --score_fn px knn", "--score_fn knn"),
    ("class", "--eval logp_hist --score_fn pxgrad", "--score_fn pxgrad"),
    ("glow", "--eval OOD --score_fn py", "--score_fn py"),
    ("glow", "--eval test_clf", "--eval test_clf"),
    ("glow", "--eval openood", "--eval openood"),
    ("glow", "--eval cond_samples", "--eval cond_samples"),
    ("class", "--eval cond_samples --guidance .1", "--guidance"),
    ("glow", "--eval fid --sampling class", "--sampling class"),
    ("class", "--eval fid --sampling buffer", "--sampling buffer"),
    ("class", "--eval fid --fid_features model", "--fid_features model"),
    ("class", "--eval fid --chain_lengths 5", "--chain_lengths"),
    ("class", "--eval uncond_samples --n_steps 40", "--n_steps"),
    ("class", "--eval cond_samples --fresh_samples", "--fresh_samples"),
    ("class", "--eval OOD --n_steps 1 --sgld_lr 1", "--n_steps"),
    ("class", "--eval fid --sgld_batch_size 8", "--sgld_batch_size"),
    ("class", "--eval cond_samples --dataset cifar10", "--dataset"),
    ("glow", "--eval uncond_samples --dataset svhn", "--dataset"),
    ("class", "--eval OOD --amp bf16", "--amp bf16"),
    ("class", "--eval OOD --depth 10", "depth is 1 by its settings"),
]


@pytest.mark.parametrize(("name", "words", "cause"), REFUSED, ids=str)
def test_a_question_or_flag_that_no_flow_has_is_refused_in_a_line(name, words, cause, trained, ask):
    assert cause in ask(words, load=trained[name].folder).refusal


def test_a_flow_is_refused_before_another_model_is_asked(trained, ask):
    both = f"{trained['class'].folder} {trained['glow'].folder}"
    answer = ask("--eval test_clf --sigma 0", load=both)
    assert "is a flow, which has no classes" in answer.refusal and not answer.out


def test_programs_that_need_a_classifier_refuse_a_flow(trained, ask, capsys, tmp_path):
    folder = trained["glow"].folder
    answer = ask(f"--eval fid --fid_features model --fid_model {folder}/last_ckpt.pt")
    assert answer.code == 2 and "--fid_model" in answer.err[-1] and "a flow" in answer.err[-1]
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    assert predict.main([str(folder), str(tmp_path / "x.png"), "--device", "cpu"]) == 2
    assert "a flow without classes" in capsys.readouterr().err
    words = f"--load_path {folder} --log_dir {tmp_path} --data_root {ask.trainer.data}".split()
    assert linear_probe.main(*parse(words, linear_probe.build_parser)) == 2
    assert "no classifier" in capsys.readouterr().err


def test_a_missing_setting_of_a_flow_is_named(trained):
    state = trained["glow"].state()
    del state["settings"]["levels"]
    with pytest.raises(ValueError, match="lack levels"):
        models.from_checkpoint(state)


def test_without_normflows_both_programs_name_it(trained, ask, monkeypatch):
    monkeypatch.setitem(sys.modules, "normflows", None)
    assert "pip install normflows" in ask("--eval OOD", load=trained["glow"].folder).refusal
    monkeypatch.setattr("baselines.train_flow.find_spec", lambda name: None)
    assert "pip install normflows" in refusal(settings, "")
