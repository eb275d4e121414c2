"""The commands and checkpoints of JEM and HDGE have the same meaning here as in their code."""

import json
import re
from typing import Any

import pytest
import torch

from evaluation import flags as questions
from models import build
from tests.test_load import saved
from training import flags

# Verbatim from the README of lhao499/HDGE.
COMMON = "--sigma .03 --width 10 --depth 28 --warmup_iters 1000 --log_dir ./save --id YOUR_EXP_ID"
START = "--lr .0001 --dataset cifar10 --optimizer adam --pyxce 1.0"
TERMS = ["--pxsgld 1.0", "--pxycontrast 1.0", "--pxycontrast 1.0 --pxsgld 1.0"]


@pytest.mark.parametrize("terms", TERMS)
def test_their_readme_s_training_commands_set_the_flags_that_they_name(terms):
    settings, flags_set = flags.parse(f"{START} {terms} {COMMON}".split())
    expected = {
        **dict(lr=1e-4, dataset="cifar10", optimizer="adam", sigma=0.03, width=10, depth=28),
        **dict(warmup_iters=1000, log_dir="./save", id="YOUR_EXP_ID", pyxce=1),
        **{term: 1 for term in re.findall(r"--(\w+)", terms)},
    }
    assert flags_set == {*expected}
    assert vars(settings) == vars(flags.build_parser().parse_args([])) | expected


# Its evaluation commands, from --eval on; {} stands for its "{THE_MORE_THE_BETTER (1000 minimum)}".
ROUNDS = "--log_dir /YOUR/SAVE/DIR --n_sample_steps {} --buffer_size 10000 --n_steps 40"
QUESTIONS = [
    "eval_ece --dataset cifar100test --log_dir /YOUR/HIST/FOLDER",
    "logp_hist --datasets cifar10 svhn --log_dir /YOUR/HIST/FOLDER",
    "test_clf --dataset cifar_test",
    "OOD --ood_dataset cifar100",
    f"uncond_samples {ROUNDS} --print_every 100 --reinit_freq 0.05",
    f"cond_samples {ROUNDS} --print_every 10 --reinit_freq 0.05 --fresh_samples",
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_their_readme_s_evaluation_commands_run_with_their_placeholders_filled(question, ask):
    """On a network of 10 layers; the last two with less work than the README's."""
    command = f"--load_path /PATH/TO/YOUR/MODEL.pt --eval {question}"
    settings, flags_set = questions.parse(command.format(1000).split())
    name = question.split()[0]
    assert settings.eval == name and len(flags_set) == command.count("--")

    less = "--sgld_batch_size 10 --n_steps 1" if "samples" in name else ""
    answer = ask(re.sub(r"--log_dir \S+", "", f"--eval {question.format(2)} {less}"))
    if "cifar100test" in question:  # labels that the model does not have
        assert answer.code == 2 and "100 classes" in answer.err[0]
    else:
        assert answer.code == 0, answer.err
        assert answer.json(name)["eval"] == name


@pytest.mark.parametrize("side", ["variant.json", "params.txt", None])
def test_their_checkpoints_are_evaluated(side, ask, tmp_path):
    """Take settings from the file beside the checkpoint, else from the tensors and from flags."""
    path = saved(tmp_path / "last_ckpt.pt", hdge_checkpoint())
    settings = {"dataset": "cifar10", "norm": None, "sgld_std": 0.02, "contrast_t": 0.2}
    if side is not None:
        (tmp_path / side).write_text(json.dumps(settings), encoding="utf-8")
    for question in (
        "OOD --score_fn px pxsim",
        "uncond_samples --n_sample_steps 1 --n_steps 1 --sgld_batch_size 4",
        "test_clf --depth 10 --width 1 --norm none --contrast_k 32",
    ):
        answer = ask(f"--eval {question}", load=path)
        assert answer.code == 0, answer.err
    record = answer.json("test_clf")
    assert record["dataset"] == "cifar10_test"
    assert record["run"].get("contrast_t") == (0.2 if side else None)


def hdge_checkpoint() -> dict[str, Any]:
    """Make a checkpoint as the HDGE code saves it, of random weights, queue and buffer."""
    names = build(depth=10, width=1, uncond=True).state_dict()
    state = {name: torch.randn(tensor.shape) / 9 for name, tensor in names.items()}
    state |= {"f.linear.weight": torch.randn(10, 64), "f.linear.bias": torch.randn(10)}
    state |= {"queue_logit": torch.randn(10, 32), "queue_ptr": torch.tensor([12])}
    return {"model_state_dict": state, "replay_buffer": torch.rand(40, 3, 32, 32) * 2 - 1}


@pytest.mark.parametrize(
    "kind", ["HDGE", "of DataParallel", "JEM", "JEM++", "a bare state dict", "uncond"]
)
def test_their_checkpoint_brings_weights_queue_and_buffer(kind, train, tmp_path):
    file = hdge_checkpoint()
    weights, queue = file["model_state_dict"], kind in ("HDGE", "of DataParallel")
    negatives = weights["queue_logit"]
    if not queue:
        del weights["queue_logit"], weights["queue_ptr"]
    whole = weights if kind == "a bare state dict" else dict(file)
    if kind == "JEM++":  # its class has the layers of JEM's network under two names
        for i, layer in enumerate(("f.layer1.", "f.layer2.", "f.layer3.")):
            names = [name for name in weights if name.startswith(layer)]
            weights |= {n.replace(layer, f"f.other_layers.{i}."): weights[n] for n in names}
        weights |= {
            f"f.layer_one.{part}": weights[f"f.conv1.{part}"] for part in ("weight", "bias")
        }
    if kind == "of DataParallel":
        whole["model_state_dict"] = {f"module.{name}": t for name, t in weights.items()}
    path = saved(tmp_path / "ckpt.pt", whole)
    terms = "--pxsgld 1 --uncond" if kind == "uncond" else train.ALL
    run = train(f"{terms} --max_steps 1 --lr 1e-9 --load_path {path} --reinit_freq 0")
    before, after = run.state("prev_ckpt.pt"), run.state()
    state = before["model_state_dict"]
    ignored = ("f.linear", "queue", "f.layer_one", "f.other_layers")
    ignored += ("energy_output",) * (kind != "uncond")
    expected = {name for name in weights if not name.startswith(ignored)}
    assert {name for name in state if not name.startswith("queue")} == expected
    assert all(state[name].equal(weights[name]) for name in expected)
    assert before["replay_buffer"].equal(file["replay_buffer"]) is not (whole is weights)
    assert before["progress"]["step"] == 0
    if kind == "uncond":
        return
    assert before["objective"]["memories.queue.queue_filled"].item() == 32 * queue  # slots
    assert state["queue_logit"].equal(negatives) if queue else not state["queue_logit"].any()
    first = 12 * queue  # it goes on from their slot
    assert after["model_state_dict"]["queue_ptr"].item() == first + 4
    written = after["model_state_dict"]["queue_logit"] != state["queue_logit"]
    assert written.any(0).nonzero().flatten().tolist() == list(range(first, first + 4))
    assert (float(run.last["pxycontrast/loss"]) > 1) is queue  # with negatives from the first step


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ("--contrast_k 64", "--contrast_k 32"),
        ("--buffer_size 80", "--buffer_size 40"),
        ("--width 2", "f.layer1.0.conv1.weight has shape (16, 16, 3, 3)"),
        ("--depth 16", "f.layer1.1.conv1.weight has shape none"),
        ("--norm batch", "f.layer1.0.bn1.weight has shape none"),
        ("--arch resnet50 --clf_only", "f.conv1.weight has shape (16, 3, 3, 3)"),
        ("--dataset cifar100 --buffer_size 400", "class_output.weight has shape (10, 64)"),
    ],
)
def test_a_checkpoint_of_other_sizes_is_refused_in_one_line(changed, cause, train, tmp_path):
    path = saved(tmp_path / "ckpt.pt", hdge_checkpoint())
    train.write_images(tmp_path / "cifar100.npz")
    root = f"--data_root {tmp_path}" if "cifar100" in changed else ""
    run = train(f"{train.ALL} --max_steps 1 --load_path {path} {changed} {root}")
    before, _, after = run.refusal.partition(f"--load_path {path}: ")
    assert before and cause in after and not run.folder.exists()
    flag = changed.split()[0]
    assert flag in after or flag not in ("--width", "--depth", "--arch")  # the remedy


def test_a_checkpoint_of_another_norm_with_equal_tensors_is_refused(train):
    path = train.once("--pyxce 1 --norm instance --max_steps 1").folder / "last_ckpt.pt"
    run = train(f"--pyxce 1 --norm layer --max_steps 1 --load_path {path}")
    assert run.refusal.endswith(f"--load_path {path}: its norm is instance: use --norm instance")
    assert train(f"--pyxce 1 --norm instance --max_steps 1 --load_path {path}").code == 0


def test_a_start_without_the_head_of_the_checkpoint_is_told(train):
    path = train.once("--pyxce 1 --uncond --max_steps 1").folder / "last_ckpt.pt"
    flags = f"--pyxce 1 --max_steps 1 --load_path {path}"
    (line,) = train(flags).err
    assert line.endswith(f"{path}: its head for log q(x) is left out: --uncond keeps it")
    assert not train(f"{flags} --uncond").err


@pytest.mark.parametrize("shape", [(), (40, 3), (40, 1, 32, 32)])
def test_a_queue_or_replay_buffer_of_another_shape_is_refused_by_name(shape, train, ask, tmp_path):
    tensor, path = torch.zeros(shape), tmp_path / "ckpt.pt"
    for memory in ("replay buffer", "queue"):
        file = hdge_checkpoint()
        if memory == "queue":
            file["model_state_dict"]["queue_logit"] = tensor
        else:
            file["replay_buffer"] = tensor
        run = train(f"{train.ALL} --max_steps 1 --load_path {saved(path, file)}")
        assert f"its {memory}" in run.refusal and str(shape) in run.refusal
        assert run.refusal.endswith("use another checkpoint") and not run.folder.exists()
    answer = ask("--eval test_clf", load=path)
    assert answer.code == 2 and f"its queue has shape {shape}, not (10, K)" in answer.err[0]


def test_our_own_checkpoint_starts_a_new_run(train):
    first = train(f"{train.ALL} --max_steps 7")
    path = first.folder / "last_ckpt.pt"
    run = train(f"{train.ALL} --max_steps 1 --seed 9 --lr .01 --load_path {path}")
    before, file = run.state("prev_ckpt.pt"), first.state()
    assert train.same(before["model_state_dict"], file["model_state_dict"])
    assert before["replay_buffer"].equal(file["replay_buffer"])
    filled = "memories.queue.queue_filled"
    assert before["objective"][filled] == file["objective"][filled] == 28
    assert before["progress"]["step"] == 0 and not before["optimizer"]["state"]
    assert run.last["lr"] == "0.01" and run.settings["seed"] == 9
