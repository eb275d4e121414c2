"""A mistake ends eval_wrn_ebm.py with one line on stderr and exit code 2, without an answer."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from evaluation import flags
from evaluation.questions import QUESTIONS
from runs.checkpoint import save_checkpoint
from tests.pair import raises


def assert_refused(answer: Any, *parts: str) -> None:
    line = answer.refusal
    assert line.startswith("eval_wrn_ebm.py: error: ")
    assert [part for part in parts if part not in line] == [], line
    assert not list(answer.folder.glob("*.json"))


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Write checkpoints and data sets that some or all questions refuse."""

    def write(name: str, network: dict[str, Any], **content: Any) -> None:
        weights = models.build(depth=10, width=1, **network).state_dict()
        weights |= content.pop("queue", {})
        save_checkpoint({"model_state_dict": weights, **content}, tmp_path / f"{name}.pt")

    settings = {"depth": 10, "width": 1, "norm": "none"}
    write("three", {"num_classes": 3}, settings=settings)
    write("uncond", {"uncond": True}, settings={**settings, "uncond": True})
    filled = {"memories.queue.queue_filled": torch.zeros((), dtype=torch.int64)}
    write("empty_queue", {}, queue={"queue_logit": torch.zeros(10, 8)}, objective=filled)
    save_checkpoint({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    np.savez(tmp_path / "empty.npz", test_images=np.zeros((0, 32, 32, 3), np.uint8))
    return tmp_path


CLF, OOD = "--eval test_clf", "--eval OOD"
PXSIM = f"{OOD} --score_fn pxsim"
COMMANDS = [
    (f"{CLF} --dataset nonsense", "--dataset nonsense", "cifar10"),
    (f"{CLF} --dataset svhn", "--dataset svhn_test", "no labels"),
    (f"{CLF} --dataset cifar100test", "cifar100_test", "100 classes", "10"),
    (f"{OOD} --ood_dataset nonsense", "--ood_dataset nonsense"),
    (f"{OOD} --ood_dataset uniform unifrom", "--ood_dataset unifrom", "did you mean uniform?"),
    (f"{OOD} --ood_dataset textures faces", "--ood_dataset textures", "--ood_dataset faces"),
    (f"{OOD} --dataset uniform --ood_dataset faces --data_root ~no-user", "faces.npz in ~no-user;"),
    (f"{OOD} --ood_dataset cifar10", "--ood_dataset cifar10", "in-distribution"),
    (f"{OOD} --score_fn knn --knn_k 1000", "--knn_k 1000"),
    ("--eval logp_hist --score_fn px py", "--score_fn px py"),
    ("--eval logp_hist --datasets cifar10", "--datasets cifar10"),
    ("--eval logp_hist --datasets cifar10 cifar_test", "--datasets cifar10 cifar_test", "twice"),
    ("--eval uncond_samples --n_sample_steps {THE_MORE_THE_BETTER", "--n_sample_steps"),
    ("--eval uncond_samples --n_steps 0", "--n_steps 0", "give uncond_samples 1 or more"),
    ("--eval fid --n_steps 0", "--n_steps 0", "give fid 1 or more"),
    ("--eval uncond_samples --sgld_batch_size 41", "--sgld_batch_size 41", "40"),
    ("--eval cond_samples --chain_start gaussian", "--chain_start gaussian", "no such Gaussians"),
    (f"{CLF} --n_steps 1 --chain_start uniform", "--chain_start", "uncond_samples", "leave it out"),
    ("--eval attack --sgld_grad_clip 1", "--sgld_grad_clip", "--n_steps_refine 0"),
    (f"{CLF} --sgld_clamp", "--sgld_clamp", "--n_steps 0"),
    ("--eval cond_samples --fresh_samples --buffer_size 15", "--buffer_size 15", "10"),
    ("--eval uncond_samples --sgld_batch_size 8 --n_sample_steps 1 --sgld_std 3e38", "--sgld_lr"),
    ("--eval fid --fid_features model --n_samples 1", "samples"),
    ("--eval fid --fid_features model --reference nonsense", "--reference nonsense"),
    ("--eval fid --fid_model some.pt", "--fid_model", "--fid_features inception"),
    ("--eval fid --fid_features model --fid_model missing.pt", "--fid_model", "missing.pt"),
    ("--eval fid --inception_weights missing.pth", "--inception_weights missing.pth"),
    ("--eval attack --eps 1/0", "--eps", "1/0"),
    ("--eval attack --eps -1", "--eps", "-1 is out of range"),
    ("--eval attack --sigma .1", "--sigma 0.1"),
    ("--eval attack --eps 8", "--eps 8", "8/255"),
    ("--eval attack --n_steps 10", "--n_steps", "attack"),
    ("--eval attack --attack autoattack --random_init", "--random_init", "--attack autoattack"),
    ("--eval attack --refine_gradient full", "--refine_gradient", "--n_steps_refine 0"),
    ("--eval attack --eps 0 .1 --distance L2 --n_steps_refine 2 --sgld_std 1e38", "not finite"),
    (f"{CLF} --n_steps 2 --sgld_std 3e38", "not finite"),
    (f"{OOD} --datasets cifar10 svhn", "--datasets", "logp_hist"),
    ("--eval logp_hist --datasets cifar10 svhn --dataset cifar10", "--dataset", "--datasets"),
    ("--eval fid --fid_features model --dataset svhn", "--dataset svhn", "cifar10"),
    ("--eval fid --sampling buffer --chain_start uniform", "--chain_start", "--sampling buffer"),
    ("--eval fid --sampling confident --sgld_lr 2", "--sgld_lr", "--sampling confident"),
    (f"{OOD} --score_fn px py --knn_k 9", "--knn_k", "--score_fn px py"),
    (f"{OOD} --ood_dataset openood --contrast_t 1", "--contrast_t", "--score_fn px"),
    ("--eval logp_hist --contrast_score eq13", "--contrast_score", "--score_fn px"),
    ("--eval fid --sampling fresh --guidance .1", "--guidance", "--sampling fresh"),
    ("--eval uncond_samples --guidance .1", "--guidance", "cond_samples"),
    ("--eval fid --fid_features model --inception_weights a.pth", "--inception_weights", "model"),
    ("--eval uncond_samples --max_images 3", "--max_images", "test_clf"),
    ("--eval cond_samples --chain_lengths 5", "--chain_lengths", "fid"),
    ("--eval cond_samples --sgld_batch_size 9 --dataset svhn", "--dataset svhn"),
    (f"--eval uncond_samples --fresh_samples --buffer_size {2**63 - 1}", "--buffer_size", "memory"),
    (f"{CLF} --depth 16", "--load_path", "depth", "16", "10"),
    (f"{CLF} --uncond", "--load_path", "uncond"),
    (f"{PXSIM} --contrast_k 99", "--contrast_k 99", "32"),
    (f"{CLF} --labels one two", "--labels", "1 checkpoints"),
    (f"{CLF} --id a/b", "--id"),
]
OF_CE = [
    (PXSIM, "--score_fn pxsim", "queue"),
    (f"{CLF} --contrast_k 32", "--contrast_k 32", "no queue"),
    ("--eval uncond_samples", "replay buffer", "--fresh_samples"),
    ("--eval fid --fid_features model --sampling buffer", "replay buffer", "--sampling"),
]
OF_BOTH = [
    ("--eval uncond_samples", "--load_path", "one checkpoint"),
    (f"{CLF} --labels one one", "--labels one one", "of its own"),
]
REFUSED = {"hdge": COMMANDS, "ce": OF_CE, "hdge ce": OF_BOTH}


@pytest.mark.parametrize(
    ("load", "command"),
    [(load, command) for load, commands in REFUSED.items() for command in commands],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_mistake_is_named_with_its_remedy(load, command, ask):
    assert_refused(ask(command[0], load=load), *command[1:])


@pytest.mark.parametrize(
    ("name", "question", "parts"),
    [
        ("missing.pt", CLF, ["is no file"]),
        ("a" * 256, CLF, ["File name too long"]),
        ("text.pt", CLF, ["no checkpoint"]),
        ("foreign.pt", CLF, ["no classifier"]),
        ("three.pt", CLF, ["--dataset is missing", "3 classes"]),
        ("empty_queue.pt", f"{PXSIM} --depth 10 --width 1", ["pxsim: the queue of", "still empty"]),
    ],
)
def test_a_file_that_cannot_be_used_is_named_once(name, question, parts, ask, odd):
    answer = ask(question, load=odd / name)
    assert_refused(answer, *parts)
    assert answer.refusal.count(name) == 1


def test_an_empty_set_and_knn_without_training_images_are_refused(ask, odd):
    root = ("--data_root", str(odd))
    assert_refused(ask(f"{OOD} --ood_dataset empty", *root), "--dataset cifar10")
    for name in ("cifar10", "svhn"):
        with np.load(ask.trainer.data / f"{name}.npz") as arrays:
            test = {key: array for key, array in arrays.items() if key.startswith("test")}
        np.savez(odd / f"{name}.npz", **test)
    assert_refused(ask(f"{OOD} --ood_dataset empty", *root), "empty", "has no test_images")
    assert_refused(ask(f"{OOD} --score_fn knn", *root), "--score_fn knn", "training")


def test_a_separate_head_has_class_conditional_scores_and_samples(ask, odd):
    answer = ask(f"{OOD} --score_fn px pxy px_logits", load=odd / "uncond.pt")
    assert answer.code == 0 and not answer.err
    sample = "--eval cond_samples --fresh_samples --buffer_size 40 --n_sample_steps 1 --n_steps 1"
    assert ask(f"{sample} --sgld_batch_size 10", load=odd / "uncond.pt").code == 0


def test_several_checkpoints_need_a_folder(ask):
    paths = [str(ask.checkpoint(name)) for name in ("hdge", "ce")]
    for log_dir in ([], ["--log_dir", ""]):  # empty: a shell's variable that is not set
        answer = ask.bare("--load_path", *paths, "--eval", "test_clf", *log_dir)
        assert "--log_dir is missing" in answer.refusal


def test_a_missing_library_is_named_with_its_remedy(ask, monkeypatch):
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3", "pyautoattack"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_refused(ask("--eval fid"), "pip install torch-fidelity", "--fid_features model")
    assert_refused(ask("--eval attack --attack autoattack --eps .1"), "pip install pyautoattack")


def test_a_full_disk_is_one_line(ask, monkeypatch):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("evaluation.results.os.replace", raises(full))
    assert_refused(ask(CLF), "test_clf.json", "No space left")


def test_ctrl_c_leaves_no_answer(ask, monkeypatch):
    interrupted = replace(QUESTIONS["test_clf"], ask=raises(KeyboardInterrupt()))
    monkeypatch.setitem(QUESTIONS, "test_clf", interrupted)
    answer = ask(CLF)
    assert answer.code == 130 and len(answer.err) == 1 and "no answer" in answer.err[0]
    assert not list(answer.folder.glob("*.json"))


def test_every_flag_has_help_and_flags_of_questions_exist():
    parser = flags.build_parser()
    assert all(action.help for action in parser._actions)
    assert all(name in parser.format_help() for name in QUESTIONS)
    assert flags.FLAG_QUESTIONS.keys() <= {action.dest for action in parser._actions}


ANCESTORS = """--batch_size 64 --sgld_batch_size 64 --sigma .03 --n_sample_steps 100 --n_steps 0
--print_every 100 --buffer_size 10000 --score_fn px --ood_dataset svhn --seed 1 --distance Linf
--n_steps_pgd_attack 40 --n_dup_chains 5"""


def test_defaults_are_the_ancestors():
    argv = ["--load_path", "a.pt", "--eval", "OOD"]
    settings, given = flags.parse(argv)
    assert given == {"load_path", "eval"}
    assert settings == flags.build_parser().parse_args([*argv, *ANCESTORS.split()])
