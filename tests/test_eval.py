"""Every question, from the command line to the files that it leaves."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data
import losses
import models
from evaluation import calibration
from evaluation.classification import predictions
from evaluation.loading import labels_of
from evaluation.questions import QUESTIONS
from runs.checkpoint import save_checkpoint
from runs.files import file_sha256
from runs.shared import weights_file
from tests.test_data_folder import paint
from tests.test_openood import write_tree
from tests.test_samples import checkpoint
from training import machine

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = "--n_sample_steps 3 --n_steps 2 --sgld_batch_size 20 --print_every 2"
FLAGS = {
    "test_clf": "--max_images 15",
    "eval_ece": "",
    "OOD": "--score_fn px py --ood_dataset all",
    "openood": "",
    "logp_hist": "--datasets cifar10_train svhn celeba",
    "uncond_samples": SAMPLE,
    "cond_samples": SAMPLE,
    "fid": "--fid_features model --n_samples 12 --n_steps 2",
    "attack": "--eps 0 2/255 8/255 --n_steps_pgd_attack 2",
}


@pytest.fixture(scope="module")
def answers(ask: Any) -> dict[str, Any]:
    assert set(FLAGS) == set(QUESTIONS)
    write_tree(ask.trainer.data)
    found = {name: ask(f"--eval {name} {more}") for name, more in FLAGS.items()}
    assert {name: (a.code, a.out, a.err) for name, a in found.items() if a.code} == {}
    return found


def reference(ask: Any, name: str = "cifar10", sigma: float = 0.03) -> tuple[Any, Any]:
    """(model, batches) of what was asked, put together anew."""
    split = data.EvaluationSets(ask.trainer.data).load(name).split
    model = models.load(ask.checkpoint("hdge"))
    return model, data.evaluation_batches(split, batch_size=7, sigma=sigma, seed=1)


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_answer_says_where_it_comes_from(name, answers, ask):
    record = answers[name].json(name)
    assert record["eval"] == name and record["checkpoint"] == str(ask.checkpoint("hdge"))
    assert record["protocol"]["version"] == (2 if record["eval"] == "attack" else 1)
    assert record["settings"]["seed"] == 1 and record["settings"]["batch_size"] == 64
    assert record["run"]["pxycontrast"] == 1 and record["run"]["step"] == 5
    assert record["environment"]["packages"]["torch"] in torch.__version__
    assert len(record["checkpoint_sha256"]) == 64 and record["seconds"] > 0
    on_disk = {path.name for path in answers[name].folder.iterdir()}
    assert on_disk == {f"{name}.json", *record["files"]}
    assert all((answers[name].folder / file).stat().st_size for file in record["files"])
    used = record["protocol"]["sets"]
    assert used or name in ("uncond_samples", "cond_samples")
    assert all("images" in about for about in used.values())


@pytest.mark.parametrize("name", ["test_clf", "fid"])
def test_an_answer_is_about_what_was_loaded_at_its_beginning(name, ask, tmp_path, monkeypatch):
    """However long the question took, and whatever became of the files and the checkout since."""
    paths = {which: tmp_path / f"{which}.pt" for which in ("hdge", "ce")}
    for which, path in paths.items():
        shutil.copy(ask.checkpoint(which), path)
    before = {which: file_sha256(path) for which, path in paths.items()}
    question = QUESTIONS[name]
    commits = iter(("the one that ran", *["a later one"] * 9))
    monkeypatch.setattr(machine, "git_commit", lambda: next(commits))

    def slow(*asked: Any) -> dict[str, Any]:
        result = question.ask(*asked)
        for path in paths.values():
            path.write_bytes(b"another file")
        return result

    monkeypatch.setitem(QUESTIONS, name, replace(question, ask=slow))
    words = f"--eval {name} --max_images 12"
    if name == "fid":
        words += f" --n_samples 12 --n_steps 1 --fid_features model --fid_model {paths['ce']}"
    found = ask(words, load=paths["hdge"])
    assert found.code == 0, found.err
    record = found.json(name)
    assert record["checkpoint_sha256"] == before["hdge"]
    assert record.get("features_sha256", before["ce"]) == before["ce"]
    assert record["environment"]["git_commit"] == "the one that ran"


def test_test_clf_counts_what_is_right(answers, ask):
    model, batches = reference(ask)
    logits, labels = predictions(model, batches)
    logits, labels = logits[:15], labels[:15]
    record = answers["test_clf"].json("test_clf")
    assert (record["n"], record["dataset"]) == (15, "cifar10_test")
    assert record["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    log_q = logits.double().log_softmax(1)
    nll = -log_q[torch.arange(15), labels].mean()
    assert record["nll"] == pytest.approx(float(nll), rel=1e-5)
    assert f"{record['accuracy']:.4f}" in answers["test_clf"].out


def test_ood_has_a_row_for_each_set_and_score(answers, ask):
    record = answers["OOD"].json("OOD")
    assert record["in_dataset"] == "cifar10_test" and record["skipped"] == []
    sets = ("svhn_test", "cifar10interp", "cifar100_test", "celeba")
    keys = [(row["ood_dataset"], row["score_fn"]) for row in record["rows"]]
    assert keys == [(name, score) for name in sets for score in ("px", "py")]
    raw = np.load(answers["OOD"].folder / "OOD_scores.npz")
    label = ask.hdge.name
    model, batches = reference(ask)
    expected = torch.cat([model.log_px(x).detach() for x, _ in batches]).numpy()
    inside = raw[f"{label}/cifar10_test/px"]
    np.testing.assert_allclose(inside, expected, atol=1e-5)
    svhn = raw[f"{label}/svhn_test/px"]
    pairs = (inside[:, None] > svhn).mean() + 0.5 * (inside[:, None] == svhn).mean()
    assert record["rows"][0]["auroc"] == pytest.approx(pairs)
    assert (record["rows"][0]["n_in"], record["rows"][0]["n_out"]) == (20, 12)
    table = (answers["OOD"].folder / "OOD.md").read_text()
    assert table.startswith("In-distribution: cifar10_test\n")
    assert table.strip() in answers["OOD"].out and "20:12" in table
    below = any(row["auroc"] < 0.5 for row in record["rows"])
    assert ("AUROC below 0.5" in table) == below


def test_a_temperature_that_the_images_do_not_determine_is_not_given(answers, ask, monkeypatch):
    record = answers["eval_ece"].json("eval_ece")
    assert sum(b["count"] for b in record["bins"]) == record["n"] == 20
    assert (record["temperature"] is None) == (record["ece_temperature"] is None)
    assert record["files"] == ["eval_ece.png", "eval_ece.pdf"]
    monkeypatch.setattr(calibration, "fit_temperature", lambda logits, labels: None)
    found = ask("--eval eval_ece")
    assert found.code == 0 and "determine no temperature" in " ".join(found.err)
    record = found.json("eval_ece")
    assert record["temperature"] is None and record["ece_temperature"] is None


@pytest.mark.parametrize(
    "words", ["--smoothing .3", "--contrast_score eq13 --no-contrast_normalize --contrast_t .7"]
)
def test_pxsim_scores_as_the_run_was_trained(words, ask):
    run = ask.trainer(f"--pyxce 1 --pxycontrast 1 --n_epochs 1 {words}")
    path = run.folder / "last_ckpt.pt"
    answer = ask("--eval OOD --score_fn pxsim --ood_dataset svhn", load=path)
    found = np.load(answer.folder / "OOD_scores.npz")[f"{run.folder.name}/cifar10_test/pxsim"]

    term = losses.build_objective(Namespace(**run.settings), 10).terms["pxycontrast"]
    state = run.state()
    queue = term.memories["queue"]
    queue.queue_logit.copy_(state["model_state_dict"]["queue_logit"])
    queue.queue_filled.copy_(state["objective"]["memories.queue.queue_filled"])
    split = data.EvaluationSets(ask.trainer.data).load("cifar10").split
    batches = data.evaluation_batches(split, batch_size=7, sigma=0.03, seed=1)
    logits, _ = predictions(models.load(path), batches)
    each = term.per_image(logits.double(), logits.argmax(1))
    np.testing.assert_allclose(found, queue.queue_filled.log() - each, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("smoothing", "much", "smoothing"), ("contrast_score", "eq14", "contrast score")],
)
def test_pxsim_refuses_settings_that_do_not_exist(name, value, said, ask, tmp_path):
    state = torch.load(ask.checkpoint("hdge"), weights_only=True)
    save_checkpoint({**state, "settings": {**state["settings"], name: value}}, tmp_path / "a.pt")
    found = ask("--eval OOD --score_fn pxsim --ood_dataset svhn", load=tmp_path / "a.pt")
    assert said in found.refusal and str(value) in found.refusal


def test_a_set_that_the_model_was_not_trained_on_is_said_to_be_one(ask):
    (line,) = ask("--eval test_clf --dataset digits").err
    assert line.endswith(f"--dataset digits: {ask.hdge.name} was trained on cifar10")
    assert not ask("--eval test_clf --dataset cifar_train").err


@pytest.mark.parametrize(
    "asked",
    [
        "OOD --ood_dataset all",
        "logp_hist --ood_dataset all",
        "OOD --ood_dataset svhn cifar100 celeba",
        "logp_hist --datasets cifar10 svhn cifar100 celeba",
    ],
)
def test_a_set_that_cannot_be_had_is_left_out(asked, ask, tmp_path):
    for name in ("cifar10", "svhn"):
        shutil.copy(ask.trainer.data / f"{name}.npz", tmp_path)
    found, name = ask(f"--eval {asked}", "--data_root", str(tmp_path)), asked.split()[0]
    assert found.code == 0 and "left out, see the warnings above: cifar100, celeba\n" in found.out
    skipped = found.json(name)["skipped"]
    assert [each["ood_dataset"] for each in skipped] == ["cifar100", "celeba"]
    assert len(found.err) == 2 and all("left out: --" in e for e in found.err)


def test_the_histogram_names_splits_and_compares_with_the_first(answers):
    record = answers["logp_hist"].json("logp_hist")
    assert record["datasets"] == ["cifar10_train", "svhn_test", "celeba"]
    first, *others = record["sets"].values()
    assert first["auroc"] is None and first["title"] == "CIFAR-10 (training)" and first["n"] == 60
    assert all(0 <= each["auroc"] <= 1 for each in others)
    raw = np.load(answers["logp_hist"].folder / "logp_hist_scores.npz")
    (name,) = (key for key in raw if "cifar10_train" in key)
    assert first["mean"] == pytest.approx(raw[name].mean())
    assert first["quantiles"]["0.5"] == pytest.approx(np.median(raw[name]))


def test_a_run_s_folder_stands_for_its_best_checkpoint(ask, tmp_path):
    best = ask.hdge / "best_valid_ckpt.pt"
    assert ask("--eval test_clf", load=ask.hdge).json("test_clf")["checkpoint"] == str(best)
    x = torch.rand(2, 3, 32, 32)
    assert models.load(ask.hdge)(x).equal(models.load(best)(x))
    run = ask.trainer(f"--pyxce 1 --max_steps 1 --load_path {ask.hdge}")
    assert run.settings["load_path"] == str(best)
    shutil.copy(ask.hdge / "last_ckpt.pt", tmp_path)
    assert weights_file(tmp_path) == tmp_path / "last_ckpt.pt"


def test_dataset_tells_what_a_file_without_settings_was_trained_on(ask, tmp_path):
    for name in "abc":
        for i in range(10):
            paint(tmp_path / "set" / name / f"{i}.png", (i * 20, 0, ord(name)))
    path, own = checkpoint(tmp_path, 3), f"--dataset folder:{tmp_path}/set"
    record = ask(f"--eval eval_ece {own}", load=path).json("eval_ece")
    assert record["n"] == 6 and len(record["protocol"]["sets"]) == 2  # with validation images
    question = "--eval OOD --score_fn knn --knn_k 2 --ood_dataset interp"
    found = ask(f"{question} {own}", load=path)
    assert found.code == 0, found.err
    sets = found.json("OOD")["protocol"]["sets"]
    assert not any("cifar10" in about for about in sets.values()) and len(sets) == 3


def test_any_labelled_set_is_asked_about_whatever_the_run_has_seen(ask, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", test_images=images, test_labels=np.arange(12) % 3)
    path, root = checkpoint(tmp_path, 3), ("--data_root", str(tmp_path))
    found = ask("--eval eval_ece --dataset mine", *root, load=path)
    assert found.json("eval_ece")["n"] == 12 and found.json("eval_ece")["temperature"] is None
    unknown = f"--dataset mine: {path} does not name its training set"
    assert f"no temperature scaling: {unknown}" in found.err[0]
    question = "--eval OOD --max_images 12 --dataset mine --ood_dataset"
    (row,) = ask(f"{question} uniform", *root, load=path).json("OOD")["rows"]
    assert (row["n_in"], row["n_out"]) == (12, 12)
    assert unknown in ask(f"{question} all", *root, load=path).refusal


def test_attack_at_radius_0_is_the_clean_accuracy(answers, ask):
    record = answers["attack"].json("attack")
    model, batches = reference(ask, sigma=0.0)
    logits, labels = predictions(model, batches)
    clean = float((logits.argmax(1) == labels).double().mean())
    assert [row["eps"] for row in record["rows"]] == [0, 2 / 255, 8 / 255]
    accuracies = [row["accuracy"] for row in record["rows"]]
    assert accuracies[0] == pytest.approx(clean) and accuracies == sorted(accuracies)[::-1]
    assert record["protocol"]["sigma"] == 0
    assert (record["distance"], record["steps"], record["restarts"]) == ("Linf", 2, 1)


def test_attack_through_the_refinement(ask):
    flags = "--eval attack --eps 0 .1 --distance L2 --n_steps_pgd_attack 2 --max_images 4 "
    flags += "--n_steps_refine 2 --n_dup_chains 2 --n_restarts 2"
    full = ask(flags).json("attack")
    assert (full["n_steps_refine"], full["refine_sigma"], full["restarts"]) == (2, 0, 2)
    identity = ask(f"{flags} --refine_gradient identity --random_init").json("attack")
    assert identity["refine_gradient"] == "identity" and identity["random_init"] is True
    assert "not finite" in ask(f"{flags} --refine_sigma 3e38").refusal  # it reaches the network


def test_refined_images_are_the_same_for_every_batch_size(ask):
    one, other = (
        ask(f"--eval test_clf --n_steps 2 --sgld_std .5 --batch_size {size}").json("test_clf")
        for size in (3, 50)
    )
    assert one["nll"] == pytest.approx(other["nll"], abs=1e-4)
    assert one["accuracy"] == other["accuracy"]


@pytest.mark.parametrize("name", ["test_clf", "eval_ece", "OOD", "logp_hist", "attack"])
def test_several_checkpoints_side_by_side(name, ask, answers):
    more = FLAGS[name]
    found = ask(f"--eval {name} {more} --labels one two", load="hdge ce")
    assert found.code == 0, found.err
    record = found.json(name)
    first, second = record["models"]
    assert (first["label"], second["label"]) == ("one", "two")
    assert record["checkpoint"] == [str(ask.checkpoint(each)) for each in ("hdge", "ce")]
    alone = answers[name].json(name)
    keys = set(alone) & set(first) - {"label", "checkpoint"}
    assert {key: first[key] for key in keys} == {key: alone[key] for key in keys}
    assert "one" in found.out and "two" in found.out


def test_names_of_checkpoints_are_short_and_distinct():
    assert labels_of(["a/x.pt", "b/x.pt"]) == ["a", "b"]
    assert labels_of(["a/x.pt", "a/y.pt"]) == ["a/x", "a/y"]
    assert labels_of(["a/x.pt", "a/x.pt"]) == ["a/x (1)", "a/x (2)"]


def test_a_run_with_other_noise_is_told(ask, tmp_path):
    state = torch.load(ask.checkpoint("ce"), weights_only=True)
    state["settings"]["sigma"] = 0.1
    save_checkpoint(state, tmp_path / "noisy.pt")
    (line,) = ask("--eval test_clf", load=tmp_path / "noisy.pt").err
    assert "give --sigma 0.1" in line
    assert ask("--eval test_clf --sigma .1", load=tmp_path / "noisy.pt").err == []


def test_the_program_answers_in_the_run_s_folder_and_an_id_is_a_folder_in_it(ask, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(ask.ce, run)
    words = ["--load_path", str(run / "last_ckpt.pt"), "--data_root", str(ask.trainer.data)]
    words += ["--eval", "test_clf", "--device", "cpu"]
    assert ask.bare(*words).code == 0
    command = [sys.executable, str(ROOT / "eval_wrn_ebm.py"), *words, "--id", "two"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for folder in (run / "eval", run / "eval" / "two"):
        assert json.loads((folder / "test_clf.json").read_text())["n"] == 20
