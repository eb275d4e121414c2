"""Every question, from the command line to its answer's files."""

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
from evaluation import calibration, robustness
from evaluation.classification import predictions
from evaluation.loading import labels_of
from evaluation.questions import QUESTIONS
from evaluation.questions.attack import LINF_RADII
from evaluation.robustness import PGD
from runs.checkpoint import save_checkpoint
from runs.files import file_sha256
from runs.shared import weights_file
from tests.test_data_folder import make_classes, paint
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
    answers = {name: ask(f"--eval {name} {flags}", pictures=True) for name, flags in FLAGS.items()}
    assert {name: (a.code, a.out, a.err) for name, a in answers.items() if a.code} == {}
    return answers


def reference(ask: Any, path: Path | None = None, sigma: float = 0.03) -> tuple[Any, Any]:
    """Load the model anew, and put the batches together that a question about cifar10 has."""
    split = data.EvaluationSets(ask.trainer.data).load("cifar10").split
    model = models.load(path or ask.checkpoint("hdge"))
    return model, data.evaluation_batches(split, batch_size=7, sigma=sigma, seed=1)


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_answer_records_checkpoint_run_machine_and_data(name, answers, ask):
    answer, record = answers[name], answers[name].json(name)
    assert record["eval"] == name and record["checkpoint"] == str(ask.checkpoint("hdge"))
    assert record["protocol"]["version"] == (2 if name == "attack" else 1)
    assert record["settings"]["seed"] == 1 and record["settings"]["batch_size"] == 64
    assert record["run"]["pxycontrast"] == 1 and record["run"]["step"] == 5
    assert record["environment"]["packages"]["torch"] in torch.__version__
    assert record["seconds"] > 0
    assert {*answer.files} == {f"{name}.json", *record["files"]}
    assert all((answer.folder / file).stat().st_size for file in record["files"])
    sets = record["protocol"]["sets"]
    assert sets or name in ("uncond_samples", "cond_samples")
    assert all("images" in about for about in sets.values())


@pytest.mark.parametrize("name", ["test_clf", "fid"])
def test_an_answer_is_about_the_files_that_were_loaded(name, ask, tmp_path, monkeypatch):
    """Change the files and the checkout before the answer is written."""
    paths = {name: tmp_path / f"{name}.pt" for name in ("hdge", "ce")}
    for checkpoint_name, path in paths.items():
        shutil.copy(ask.checkpoint(checkpoint_name), path)
    hashes = {name: file_sha256(path) for name, path in paths.items()}
    question = QUESTIONS[name]
    commits = iter(("the first", *["a later commit"] * 9))
    monkeypatch.setattr(machine, "git_commit", lambda: next(commits))

    def replace_files(*args: Any) -> dict[str, Any]:
        result = question.ask(*args)
        for path in paths.values():
            path.write_bytes(b"another file")
        return result

    monkeypatch.setitem(QUESTIONS, name, replace(question, ask=replace_files))
    flags = f"--eval {name} --max_images 12"
    if name == "fid":
        flags += f" --n_samples 12 --n_steps 1 --fid_features model --fid_model {paths['ce']}"
    answer = ask(flags, load=paths["hdge"])
    assert answer.code == 0, answer.err
    record = answer.json(name)
    assert record["checkpoint_sha256"] == hashes["hdge"]
    assert record.get("features_sha256") == (hashes["ce"] if name == "fid" else None)
    assert record["environment"]["git_commit"] == "the first"


def test_test_clf_is_of_the_first_images(answers, ask):
    logits, labels = (t[:15] for t in predictions(*reference(ask)))
    record = answers["test_clf"].json("test_clf")
    assert (record["n"], record["dataset"]) == (15, "cifar10_test")
    assert record["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    nll = torch.nn.functional.cross_entropy(logits.double(), labels)
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


def test_a_temperature_that_the_images_do_not_determine_is_null(answers, ask, monkeypatch):
    record = answers["eval_ece"].json("eval_ece")
    assert sum(b["count"] for b in record["bins"]) == record["n"] == 20
    assert (record["temperature"] is None) == (record["ece_temperature"] is None)
    assert record["files"] == ["eval_ece.png", "eval_ece.pdf"]
    monkeypatch.setattr(calibration, "fit_temperature", lambda logits, labels: 1.5)
    logits, labels = predictions(*reference(ask))
    scaled = calibration.calibration(logits / 1.5, labels)["ece"]
    record = ask("--eval eval_ece").json("eval_ece")
    assert record["ece_temperature"] == pytest.approx(scaled) != pytest.approx(record["ece"])
    for split, warned in (("test", False), ("valid", True), ("train", True)):
        err = " ".join(ask(f"--eval eval_ece --dataset cifar10_{split}").err)
        assert ("is fitted to images of" in err) is warned, err
    monkeypatch.setattr(calibration, "fit_temperature", lambda logits, labels: None)
    answer = ask("--eval eval_ece")
    assert answer.code == 0 and "determine no temperature" in " ".join(answer.err)
    record = answer.json("eval_ece")
    assert record["temperature"] is None and record["ece_temperature"] is None


def test_there_is_no_temperature_without_labels_of_the_validation_images(ask, tmp_path):
    with np.load(ask.trainer.data / "cifar10.npz") as arrays:
        kept = {name: array for name, array in arrays.items() if name != "train_labels"}
    np.savez(tmp_path / "cifar10.npz", **kept)
    answer = ask("--eval eval_ece", "--data_root", str(tmp_path))
    assert answer.code == 0 and "no temperature scaling: cifar10_valid has no" in answer.err[-1]
    assert answer.json("eval_ece")["temperature"] is None


@pytest.mark.parametrize(
    "flags", ["--smoothing .3", "--contrast_score eq13 --no-contrast_normalize --contrast_t .7"]
)
def test_pxsim_scores_as_the_run_was_trained(flags, ask):
    run = ask.trainer(f"--pyxce 1 --pxycontrast 1 --n_epochs 1 {flags}")
    path = run.folder / "last_ckpt.pt"
    answer = ask("--eval OOD --score_fn pxsim --ood_dataset svhn", load=path)
    scores = np.load(answer.folder / "OOD_scores.npz")[f"{run.folder.name}/cifar10_test/pxsim"]

    term = losses.build_objective(Namespace(**run.settings), 10).terms["pxycontrast"]
    state, queue = run.state(), term.memories["queue"]
    queue.queue_logit.copy_(state["model_state_dict"]["queue_logit"])
    queue.queue_filled.copy_(state["objective"]["memories.queue.queue_filled"])
    logits, _ = predictions(*reference(ask, path))
    loss = term.per_image(logits.double(), logits.argmax(1))
    np.testing.assert_allclose(scores, queue.queue_filled.log() - loss, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "value", "title"),
    [("smoothing", "much", "smoothing"), ("contrast_score", "eq14", "contrast score")],
)
def test_pxsim_refuses_settings_that_do_not_exist(name, value, title, ask, tmp_path):
    state = torch.load(ask.checkpoint("hdge"), weights_only=True)
    save_checkpoint({**state, "settings": {**state["settings"], name: value}}, tmp_path / "a.pt")
    refusal = ask("--eval OOD --score_fn pxsim --ood_dataset svhn", load=tmp_path / "a.pt").refusal
    assert title in refusal and value in refusal


def test_a_set_that_the_model_was_not_trained_on_brings_a_warning(ask):
    (line,) = ask("--eval test_clf --dataset digits").err
    assert line.endswith(f"--dataset digits: {ask.hdge.name} was trained on cifar10")
    assert not ask("--eval test_clf --dataset cifar_train").err


@pytest.mark.parametrize(
    "question",
    [
        "OOD --ood_dataset all",
        "logp_hist --ood_dataset all",
        "OOD --ood_dataset svhn cifar100 celeba",
        "logp_hist --datasets cifar10 svhn cifar100 celeba",
    ],
)
def test_a_set_that_is_missing_is_left_out(question, ask, tmp_path):
    for name in ("cifar10", "svhn"):
        shutil.copy(ask.trainer.data / f"{name}.npz", tmp_path)
    answer = ask(f"--eval {question}", "--data_root", str(tmp_path))
    assert answer.code == 0 and "left out, see the warnings above: cifar100, celeba\n" in answer.out
    skipped = answer.json(question.split()[0])["skipped"]
    assert [row["ood_dataset"] for row in skipped] == ["cifar100", "celeba"]
    assert len(answer.err) == 2 and all("left out: --" in line for line in answer.err)


def test_a_folder_with_a_class_whose_name_is_not_utf_8_is_left_out(ask, tmp_path):
    make_classes(tmp_path, {"caf\udce9": 2, "dog": 2})
    answer = ask(f"--eval OOD --max_images 20 --ood_dataset uniform folder:{tmp_path}")
    assert answer.code == 0 and "the class 'caf\\udce9' is not UTF-8" in answer.err[0]
    assert [row["ood_dataset"] for row in answer.json("OOD")["rows"]] == ["uniform"]


def test_the_histogram_names_splits_and_compares_with_the_first(answers):
    record = answers["logp_hist"].json("logp_hist")
    assert record["datasets"] == ["cifar10_train", "svhn_test", "celeba"]
    first, *ood = record["sets"].values()
    assert first["auroc"] is None and first["title"] == "CIFAR-10 (training)" and first["n"] == 60
    raw = np.load(answers["logp_hist"].folder / "logp_hist_scores.npz")
    scores, *others = raw.values()
    for row, out in zip(ood, others, strict=True):
        pairs = (scores[:, None] > out).mean() + 0.5 * (scores[:, None] == out).mean()
        assert row["auroc"] == pytest.approx(pairs)
    assert (first["mean"], first["std"]) == pytest.approx((scores.mean(), scores.std()))
    levels = [float(level) for level in first["quantiles"]]
    assert [*first["quantiles"].values()] == pytest.approx(np.quantile(scores, levels))


def test_a_run_s_folder_stands_for_its_best_checkpoint(ask, tmp_path):
    best = ask.hdge / "best_valid_ckpt.pt"
    assert ask("--eval test_clf", load=ask.hdge).json("test_clf")["checkpoint"] == str(best)
    x = torch.rand(2, 3, 32, 32)
    assert models.load(ask.hdge)(x).equal(models.load(best)(x))
    run = ask.trainer(f"--pyxce 1 --max_steps 1 --load_path {ask.hdge}")
    assert run.settings["load_path"] == str(best)
    shutil.copy(ask.hdge / "last_ckpt.pt", tmp_path)
    assert weights_file(tmp_path) == tmp_path / "last_ckpt.pt"


def test_dataset_names_the_training_set_of_a_file_without_settings(ask, tmp_path):
    for name in "abc":
        for i in range(10):
            paint(tmp_path / "set" / name / f"{i}.png", (i * 20, 0, ord(name)))
    path, dataset = checkpoint(tmp_path, 3), f"--dataset folder:{tmp_path}/set"
    record = ask(f"--eval eval_ece {dataset}", load=path).json("eval_ece")
    assert record["n"] == 6 and len(record["protocol"]["sets"]) == 2  # with validation images
    answer = ask(f"--eval OOD --score_fn knn --knn_k 2 --ood_dataset interp {dataset}", load=path)
    assert answer.code == 0, answer.err
    sets = answer.json("OOD")["protocol"]["sets"]
    assert not any("cifar10" in about for about in sets.values()) and len(sets) == 3


def test_a_file_without_settings_is_evaluated_on_any_labelled_set(ask, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", test_images=images, test_labels=np.arange(12) % 3)
    path, root = checkpoint(tmp_path, 3), ("--data_root", str(tmp_path))
    answer = ask("--eval eval_ece --dataset mine", *root, load=path)
    assert answer.json("eval_ece")["n"] == 12 and answer.json("eval_ece")["temperature"] is None
    unknown = f"--dataset mine: {path} does not name its training set"
    assert f"no temperature scaling: {unknown}" in answer.err[0]
    question = "--eval OOD --max_images 12 --dataset mine --ood_dataset"
    (row,) = ask(f"{question} uniform", *root, load=path).json("OOD")["rows"]
    assert (row["n_in"], row["n_out"]) == (12, 12)
    assert unknown in ask(f"{question} all", *root, load=path).refusal


def test_attack_at_radius_0_is_the_clean_accuracy(answers, ask):
    record = answers["attack"].json("attack")
    logits, labels = predictions(*reference(ask, sigma=0.0))
    clean = float((logits.argmax(1) == labels).double().mean())
    assert [row["eps"] for row in record["rows"]] == [0, 2 / 255, 8 / 255]
    accuracies = [row["accuracy"] for row in record["rows"]]
    assert accuracies[0] == pytest.approx(clean) and accuracies == sorted(accuracies)[::-1]
    assert record["protocol"]["sigma"] == 0
    assert (record["distance"], record["steps"], record["restarts"]) == ("Linf", 2, 1)


def test_attack_and_refinement_are_those_of_the_flags(ask, monkeypatch):
    of_classifier, attacks = {}, []
    monkeypatch.setattr(robustness, "classifier", lambda *_, **more: of_classifier.update(more))
    monkeypatch.setattr(
        robustness, "robust_accuracy", lambda *args, **_: attacks.extend(args[2:]) or []
    )
    ask(
        "--eval attack --distance L2 --eps .1 .5 --n_steps_pgd_attack 3 --n_restarts 2 "
        "--n_steps_refine 2 --n_dup_chains 4 --refine_sigma .2 --refine_gradient identity"
    )
    assert attacks == [[PGD("L2", 3), PGD("L2", 3, random_init=True)], [0.1, 0.5]]
    of_classifier.pop("generator")
    assert of_classifier == {"copies": 4, "sigma": 0.2, "gradient": "identity"}
    ask("--eval attack --random_init")
    assert attacks[2:] == [[PGD("Linf", 40, random_init=True)], LINF_RADII]


def test_attack_through_the_refinement(ask):
    flags = "--eval attack --eps 0 .1 --distance L2 --n_steps_pgd_attack 2 --max_images 4 "
    flags += "--n_steps_refine 2 --n_dup_chains 2 --n_restarts 2"
    record = ask(flags).json("attack")
    assert (record["n_steps_refine"], record["refine_sigma"], record["restarts"]) == (2, 0, 2)
    record = ask(f"{flags} --refine_gradient identity --random_init").json("attack")
    assert record["refine_gradient"] == "identity" and record["random_init"] is True
    assert "not finite" in ask(f"{flags} --refine_sigma 3e38").refusal  # it reaches the network


def test_refined_images_are_the_same_for_every_batch_size(ask):
    flags = "--eval test_clf --n_steps 2 --sgld_std .5 --batch_size"
    small, large = (ask(f"{flags} {size}").json("test_clf") for size in (3, 50))
    assert small["nll"] == pytest.approx(large["nll"], abs=1e-4)
    assert small["accuracy"] == large["accuracy"]


@pytest.mark.parametrize("name", ["test_clf", "eval_ece", "OOD", "logp_hist", "attack"])
def test_several_checkpoints_side_by_side(name, ask, answers):
    answer = ask(f"--eval {name} {FLAGS[name]} --labels one two", load="hdge ce", pictures=True)
    assert answer.code == 0, answer.err
    record, alone = answer.json(name), answers[name].json(name)
    first, second = record["models"]
    assert (first["label"], second["label"]) == ("one", "two")
    assert record["checkpoint"] == [str(ask.checkpoint(model)) for model in ("hdge", "ce")]
    keys = set(alone) & set(first) - {"label", "checkpoint"}
    assert {key: first[key] for key in keys} == {key: alone[key] for key in keys}
    assert "one" in answer.out and "two" in answer.out


def test_names_of_checkpoints_are_short_and_distinct(tmp_path):
    (tmp_path / "link.pt").symlink_to(tmp_path / "blobs" / "x.pt")
    assert labels_of([str(tmp_path / "link.pt"), "b/x.pt"]) == [tmp_path.name, "b"]
    assert labels_of(["a/x.pt", "a/y.pt"]) == ["a/x", "a/y"]
    assert labels_of(["a/x.pt", "a/x.pt"]) == ["a/x (1)", "a/x (2)"]


def test_a_run_with_other_noise_brings_a_warning(ask, tmp_path):
    state = torch.load(ask.checkpoint("ce"), weights_only=True)
    state["settings"]["sigma"] = 0.1
    save_checkpoint(state, tmp_path / "noisy.pt")
    (line,) = ask("--eval test_clf", load=tmp_path / "noisy.pt").err
    assert "give --sigma 0.1" in line
    assert ask("--eval test_clf --sigma .1", load=tmp_path / "noisy.pt").err == []


def test_the_answer_is_in_the_run_s_folder_and_an_id_is_a_folder_in_it(ask, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(ask.ce, run)
    argv = ["--load_path", str(run / "last_ckpt.pt"), "--data_root", str(ask.trainer.data)]
    argv += ["--eval", "test_clf", "--device", "cpu"]
    assert ask.bare(*argv).code == 0
    command = [sys.executable, str(ROOT / "eval_wrn_ebm.py"), *argv, "--id", "two"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for folder in (run / "eval", run / "eval" / "two"):
        assert json.loads((folder / "test_clf.json").read_text())["n"] == 20
