"""The shared parts of the programs of baselines/: flags, run folder, loop, resume, mistakes."""

from typing import Any

import pytest

import models
from baselines import flags, linear_probe, train_adversarial, train_contrastive, train_flow
from baselines.run import Objective, Program
from tests.pair import refusal
from training.flags import build_parser as train_parser


class Plain(Objective):
    """Cross-entropy, without accuracy before the epoch --silent."""

    terms = ("pyxce",)

    def __init__(self, s: Any) -> None:
        super().__init__()
        self.silent, self.factor = s.silent, s.factor

    def forward(self, model: Any, images: Any, labels: Any, epoch: int) -> Any:
        logits = model.logits(images)
        loss = self.factor * -logits.log_softmax(1).gather(1, labels[:, None]).mean()
        accuracy = {"accuracy": (logits.argmax(1) == labels).float().mean()}
        return loss, {"pyxce/loss": loss, **(accuracy if epoch >= self.silent else {})}


def build_parser() -> Any:
    shared = ("train_plain.py", "Cross-entropy.", flags.check_shared)
    parser = flags.make_parser(*shared, defaults={"lr": 1e-3}, fixed=("silent",))
    parser.add_argument("--silent", type=int, default=0)
    parser.add_argument("--factor", type=float, default=1.0)
    parser.set_defaults(method="plain")
    return parser


PLAIN = Program(build_parser, lambda s, model: Plain(s))
CONTRASTIVE, ADVERSARIAL = train_contrastive.PROGRAM, train_adversarial.PROGRAM
FLOW, TINY = train_flow.PROGRAM, "--levels 2 --depth 1 --width 4 --image_size 8"


@pytest.mark.parametrize("more", ["--optimizer adam", "--optimizer sgd --norm act --lr .01"])
def test_trains_as_train_wrn_does_bit_for_bit(more, baseline, train):
    words = f"--lr 1e-3 --n_epochs 2 --warmup_iters 3 --decay_epochs 1 {more}"
    ours, theirs = baseline(PLAIN, words), train(f"--pyxce 1 {words}")
    assert ours.code == theirs.code == 0
    assert train.same(ours.state()["model_state_dict"], theirs.state()["model_state_dict"])
    for row, full_row in zip(ours.steady, theirs.steady, strict=True):
        assert row.items() <= full_row.items()


@pytest.mark.parametrize(
    ("program", "words", "stop"),
    [
        (PLAIN, "--silent 1 --norm batch --dropout_rate .1", 3),
        (PLAIN, "--silent 1", 5),
        (CONTRASTIVE, "--method supcon --optimizer lars --lr .5 --weight_decay 1e-4 --norm act", 3),
        (CONTRASTIVE, "--method jointloss --pretrain_epochs 1 --dropout_rate .1", 3),
        (ADVERSARIAL, "--n_steps_pgd_attack 2 --norm batch --optimizer sgd --dropout_rate .1", 3),
        (FLOW, f"{TINY} --optimizer sgd --lr .1", 3),
        (FLOW, f"{TINY} --arch residual_flow --class_cond", 3),
    ],
)
def test_stopped_and_resumed_is_uninterrupted(program, words, stop, baseline, train):
    words += " --n_epochs 2 --batch_size 5"
    whole, part = baseline(program, words), baseline(program, f"{words} --max_steps {stop}")
    assert part.state()["progress"]["step"] == stop
    resumed = baseline.bare(program, f"--resume {part.folder}")
    assert resumed.code == 0 and not resumed.err
    assert train.differences(whole, resumed) == [] and len(whole.steady) == 2


def test_a_run_leaves_columns_settings_and_a_checkpoint_of_its_network(baseline):
    run = baseline(PLAIN, "--silent 1 --n_epochs 2 --norm instance")
    first, second = run.rows
    names = "epoch step seconds images_per_s lr loss pyxce/loss".split()
    accuracies = ["train_acc", "valid_acc", "valid_loss", "test_acc", "test_loss"]
    assert run.code == 0 and list(first) == names + accuracies
    assert all(first[n] == "" and second[n] != "" for n in accuracies)
    assert run.settings["program"] == "train_plain.py" and run.settings["method"] == "plain"
    assert run.state()["settings"]["num_classes"] == 10 and "environment" in run.settings
    assert "best_valid_ckpt.pt" in run.files
    model = models.load(run.folder / "last_ckpt.pt")  # the settings name its norm
    assert model.state_dict().keys() == run.state()["model_state_dict"].keys()


@pytest.mark.parametrize(
    ("program", "words", "advice"),
    [
        (PLAIN, "--factor 1e9", "; try a lower --lr or --warmup_iters 1000"),
        (ADVERSARIAL, "--lr 1e30 --n_steps_pgd_attack 1", "--warmup_iters 1000"),
    ],
)
def test_a_diverged_run_ends_with_advice_and_without_the_step(program, words, advice, baseline):
    run = baseline(program, f"--n_epochs 1 {words}")
    assert run.code == 1 and "diverged at step" in run.err[-1] and run.err[-1].endswith(advice)
    if program is PLAIN:
        assert not run.state()["optimizer"]["state"]  # no step was taken


@pytest.mark.parametrize(
    ("program", "words", "cause"),
    [
        (PLAIN, "--depth 11", "--depth 11 is not 6n + 4"),
        (PLAIN, "--dataset nowhere", "--dataset nowhere is unknown"),
        (PLAIN, "--pyxce 1", "unrecognized arguments"),
        (PLAIN, "--id a/b", "--id 'a/b' is no folder name"),
        (CONTRASTIVE, "--method supcon --smoothing .1", "--smoothing 0.1 has no effect"),
        (CONTRASTIVE, "--method simclr --pretrain_epochs 3", "--pretrain_epochs 3 has no effect"),
        (CONTRASTIVE, "--method jointloss --pretrain_epochs 5 --n_epochs 5", "leaves no epoch"),
        (CONTRASTIVE, "--temperature 0", "out of range"),
        (ADVERSARIAL, "--eps 8", "--eps 8 with --distance Linf reaches every image"),
        (ADVERSARIAL, "--eps 60 --distance L2", "use .5"),
        (ADVERSARIAL, "--eps 30 --distance L2 --image_size 16", "--eps 30 "),
        (ADVERSARIAL, "--eps a/b", "8/255"),
        (ADVERSARIAL, "--attack_step 0", "--attack_step 0 attacks nothing: use 2/255"),
        (ADVERSARIAL, "--n_steps_pgd_attack 0", "at least 1"),
        (FLOW, "--levels 6", "--levels 6 halves images of 32 pixels too often"),
        (FLOW, "--depth 0", "at least 1"),
        (FLOW, "--sigma .1", "unrecognized arguments"),
        (linear_probe, "", "--load_path"),
        (linear_probe, "--load_path x --l2 -1", "out of range"),
    ],
)
def test_a_mistake_is_one_line(program, words, cause):
    assert cause in refusal(flags.parse, words.split(), program.build_parser)


def test_resume_keeps_the_run_s_settings_and_refuses_others(baseline):
    run = baseline(PLAIN, "--max_steps 1 --lr .5 --width 2 --silent 2")
    for program, words, cause in (
        (PLAIN, "--width 3", "cannot change on --resume (the run has 2): leave it out, or start"),
        (PLAIN, "--silent 3", "--silent 3 cannot change"),
        (ADVERSARIAL, "", "a run of train_plain.py"),
    ):
        assert cause in baseline.bare(program, f"--resume {run.folder} {words}").refusal
    resumed = baseline.bare(PLAIN, f"--resume {run.folder} --n_epochs 1 --lr 1e-3 --width 2")
    assert resumed.code == 0 and resumed.last["step"] == "5"  # --max_steps was the first process's
    expected = {"lr": 1e-3, "n_epochs": 1, "max_steps": None, "silent": 2}
    assert expected.items() <= resumed.settings.items()


def test_shared_flags_are_those_of_train_wrn():
    ours, theirs = (vars(p.parse_args([])) for p in (build_parser(), train_parser()))
    assert {n: ours[n] for n in flags.SHARED} == {n: theirs[n] for n in flags.SHARED} | {"lr": 1e-3}
    assert ours.keys() == {*flags.SHARED, "silent", "factor", "method", "program"}
