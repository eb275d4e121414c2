"""Every flag changes a number, a file or a message."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from losses import build_objective
from tests import test_errors, test_healing, test_image_size, test_resume
from tests.pair import refusal
from tests.test_data_record import paint
from training import flags
from training.build import build_model

CE = "--pyxce 1 --max_steps 2"
CONTRAST = "--pxycontrast 1 --max_steps 3"  # the first step has no negatives yet
SGLD = "--pxsgld 1 --max_steps 1 --reinit_freq 0"
STILL = f"{SGLD} --sgld_lr 1e-9 --sgld_std 0"  # chains that do not move
NOISE = f"{SGLD} --sgld_std 1 --sgld_lr 1e-9"  # chains that noise alone moves
TWO_EPOCHS = "--pyxce 1 --n_epochs 2"
RANDOM_QUEUE = "--pxycontrast 1 --max_steps 1 --queue_init random"
BOTH_CHAINS = "--pxsgld 1 --pxysgld 1 --max_steps 1 --sgld_lr 1e3"
RESNET = "--arch resnet50 --clf_only --batch_size 2 --data_root {files}/few"

Claim = Callable[[Any, Any], bool]  # about the run without a flag, and the run with it


def number(run: Any, name: str) -> float:
    return float(run.last[name])


def weights(run: Any) -> dict[str, Tensor]:
    return run.state()["model_state_dict"]


def initial(run: Any) -> dict[str, Tensor]:
    """Return the weights before the first step."""
    return run.state("prev_ckpt.pt")["model_state_dict"]


def optimizer(run: Any) -> dict[str, Any]:
    return run.state()["optimizer"]


def buffer(run: Any, name: str = "last_ckpt.pt") -> Tensor:
    return run.state(name)["replay_buffer"]


def moved(run: Any) -> Tensor:
    """Return the change of the slots that the step drew, (slots, 3, 32, 32)."""
    start, end = buffer(run, "prev_ckpt.pt"), buffer(run)
    return (end - start)[(end != start).flatten(1).any(1)]


def trained(run: Any) -> set[str]:
    """Return the names of the tensors that training changed."""
    start, end = initial(run), weights(run)
    return {n for n, t in end.items() if n.endswith(("weight", "bias")) and not t.equal(start[n])}


def first_gradient(run: Any) -> float:
    """Return the norm of the gradient of SGD's first step."""
    parts = optimizer(run)["state"].values()
    return sum(float(part["momentum_buffer"].square().sum()) for part in parts) ** 0.5


def rises_with_the_class(run: Any) -> bool:
    """Return whether the initial slots are brighter by class, as the made-up images are."""
    by_class = buffer(run, "prev_ckpt.pt").unflatten(0, (10, 4)).mean((1, 2, 3, 4))
    return bool((by_class.diff() > 0.05).all())


def reports(run: Any) -> int:
    return len(re.findall(r"^epoch \d+ step ", run.text(), re.MULTILINE))


def cond_samples(run: Any) -> bytes:
    return (run.folder / "samples" / "cond_0000.png").read_bytes()


def values(of: Callable[[Any], Any], before: Any, after: Any) -> Claim:
    return lambda a, b: (of(a), of(b)) == (before, after)


def shape(name: str, before: list[int], after: list[int]) -> Claim:
    return values(lambda run: [*weights(run)[name].shape], before, after)


def differ(*columns: str, by: float = 0.0) -> Claim:
    return lambda a, b: all(abs(number(a, n) - number(b, n)) > by for n in columns)


def both(*claims: Claim) -> Claim:
    return lambda a, b: all(claim(a, b) for claim in claims)


def only(condition: Callable[[Any], Any]) -> Claim:
    """Claim the condition of the changed run alone."""
    return lambda a, b: bool(condition(b)) and not condition(a)


def log(text: str) -> Claim:
    return only(lambda run: text in run.text())


def file(name: str) -> Claim:
    return only(lambda run: name in run.files)


def tensor(name: str) -> Claim:
    return only(lambda run: name in weights(run))


def moved_by(factor: float) -> Claim:
    return lambda a, b: abs(moved(b).std() / moved(a).std() - factor) < 0.03


def rate(value: float, before: float = 1e-4) -> Claim:
    return values(lambda r: number(r, "lr"), pytest.approx(before), pytest.approx(value))


def weighs(term: str) -> Claim:
    """Claim that weight 3 instead of 1 adds twice this term's loss, to the loss alone."""

    def claim(before: Any, after: Any) -> bool:
        added = number(after, "loss") - number(before, "loss")
        terms = [name for name in before.last if name.endswith("/loss")]
        unmoved = all(before.last[name] == after.last[name] for name in terms)
        return unmoved and added == pytest.approx(2 * number(before, f"{term}/loss"), abs=1e-6)

    return claim


def same_data_energy(a: Any, b: Any) -> bool:
    return number(a, "pxsgld/log_q_data") == number(b, "pxsgld/log_q_data")


HEAD = {"class_output.weight", "class_output.bias"}
ADAM = ((0.9, 0.999), (0, 0.9))
# The flags of a run, the flag that is added to them, and the claim about both runs.
SEEN: list[tuple[str, str, Claim]] = [
    (CE, "--dataset folder:{files}/classes --n_valid 2", shape("class_output.bias", [10], [3])),
    (CE, "--data_root {files}", log("cifar10: 40 training images")),
    (CE, "--n_valid 30", log("30 training images, 30 labelled; 30 valid, 20 test")),
    (CE, "--workers 2", log("--workers 2 has no effect")),
    (CE, "--depth 16", tensor("f.layer1.1.conv1.weight")),
    (CE, "--width 2", shape("class_output.weight", [10, 64], [10, 128])),
    (CE, "--norm batch", tensor("f.bn1.running_mean")),
    (CE, "--dropout_rate .5", differ("pyxce/loss")),
    (CE, "--load_path {files}/flat.pt",
     only(lambda r: (initial(r)["class_output.bias"] == 2**-10).all())),
    (CE, "--optimizer sgd",
     values(lambda r: optimizer(r)["param_groups"][0].get("momentum"), None, 0.9)),
    (CE, "--adam_betas 0 .9", values(lambda r: optimizer(r)["param_groups"][0]["betas"], *ADAM)),
    (CE, "--ema .9", both(differ("test_loss"), only(lambda r: "ema" in r.state()))),
    (CE, "--lr .02", rate(0.02)),
    (CE, "--warmup_iters 10", rate(1e-5)),  # the second step has number 1
    (CE, "--decay_epochs 0 0 7", rate(9e-6)),
    (CE + " --decay_epochs 0 --lr 1e-3 --decay_rate .1", "--decay_rate .5", rate(5e-4)),
    (CE, "--batch_size 2", log("0 of 2,000 steps")),
    (CE, "--n_epochs 3", log("0 of 15 steps")),
    (CE, "--start_epoch 7", only(lambda r: (r.last["epoch"], r.last["step"]) == ("7", "37"))),
    (CE, "--max_steps 3", values(lambda r: r.last["step"], "2", "3")),
    (CE, "--max_minutes .004 --max_steps 999", log("stopped by --max_minutes 0.004")),
    (CE, "--log_dir {files}/elsewhere", only(lambda r: r.folder.match("elsewhere/*") and r.files)),
    (CE, "--id named", only(lambda r: r.folder.match("named") and r.files)),
    (CE, "--plot_uncond", file("samples/uncond_0000.png")),
    (CE, "--plot_cond 1", file("samples/cond_0000.png")),
    (CE, "--device cuda:99", only(lambda r: "--device cuda:99: PyTorch sees " in "".join(r.err))),
    (CE, "--threads 2", log("cpu, threads 2, bf16 off")),
    (CE, "--seed 2",
     lambda a, b: not initial(a)["f.conv1.weight"].equal(initial(b)["f.conv1.weight"])),
    (CE, "--amp bf16", both(differ("loss", "test_loss"), log("bf16 on, seed"))),
    (CE + " --n_valid 20", "--labels_per_class 1", log("10 labelled")),
    (CE + " --pxycontrast 1", "--log_gradients 1", only(lambda r: "pxycontrast/cosine" in r.last)),
    ("--pyxce 1 --max_steps 1 --lr 1e-9", "--sigma 1",  # at this rate the weights do not change
     differ("pyxce/loss", "valid_loss", "test_loss", by=1e-4)),
    ("--pyxce 1 --pxsgld 1 --max_steps 2 --norm batch --lr .1", "--clf_only",
     lambda a, b: trained(b) == HEAD < trained(a)),
    ("--pyxce 1 --max_steps 1", "--augment off", differ("loss")),
    ("--pyxce 1 --max_steps 1 --n_valid 0", RESNET, tensor("f.layer4.2.conv3.weight")),
    ("--pyxce 1 --max_steps 1 --optimizer sgd", "--clip_grad .01",
     lambda a, b: abs(first_gradient(b) - 0.01) < 1e-6 and first_gradient(a) > 0.02),
    ("--pyxce 1 --max_steps 4 --optimizer sgd --lr .1", "--weight_decay 1",
     lambda a, b: 2 * weights(b)["f.conv1.weight"].norm() < weights(a)["f.conv1.weight"].norm()),
    (TWO_EPOCHS, "--eval_every 2",
     lambda a, b: a.rows[0]["test_acc"] != "" == b.rows[0]["test_acc"] != b.last["test_acc"]),
    (TWO_EPOCHS, "--ckpt_every 2", file("ckpt_1.pt")),
    (TWO_EPOCHS, "--print_every 5", values(reports, 5, 2)),
    (TWO_EPOCHS + " --plot_uncond", "--plot_every 1", file("samples/uncond_0000.png")),
    ("--pyxce 1 --pxsgld 1 --max_steps 1", "--pyxce 3", weighs("pyxce")),
    (RANDOM_QUEUE + " --pyxce 1", "--pxycontrast 3", weighs("pxycontrast")),
    (RANDOM_QUEUE + " --pxcontrast 1", "--pxcontrast 3", weighs("pxcontrast")),
    (BOTH_CHAINS, "--pxsgld 3", weighs("pxsgld")),
    (BOTH_CHAINS, "--pxysgld 3", weighs("pxysgld")),
    (CONTRAST, "--contrast_k 48", shape("queue_logit", [10, 32], [10, 48])),
    (CONTRAST, "--contrast_t 1", differ("pxycontrast/loss")),
    (CONTRAST, "--contrast_score eq13", differ("pxycontrast/loss")),
    (CONTRAST, "--contrast_style simclr", only(lambda r: "queue_logit" not in weights(r))),
    (CONTRAST, "--no-contrast_normalize", differ("pxycontrast/loss")),
    (CONTRAST, "--plot_contrast 1", file("samples/contrast_0000.png")),
    (CONTRAST + " --pyxce 1", "--smoothing .5", differ("pyxce/loss", "pxycontrast/loss")),
    ("--pxycontrast 1 --max_steps 1", "--queue_init random",
     lambda a, b: number(a, "loss") == 0 and number(b, "loss") > 1),
    (SGLD, "--px_loss bce",
     both(same_data_energy, lambda a, b: number(b, "loss") > 0.1 > abs(number(a, "loss")))),
    (SGLD, "--sgld_l2 10",
     both(same_data_energy, lambda a, b: number(b, "loss") > number(a, "loss"))),
    (SGLD, "--sgld_batch_size 6", values(lambda r: len(moved(r)), 4, 6)),
    (SGLD, "--buffer_size 50", values(lambda r: len(buffer(r)), 40, 50)),
    (SGLD, "--class_cond_p_x_sample", differ("pxsgld/log_q_samples")),
    (SGLD, "--uncond", tensor("energy_output.weight")),
    ("--pxsgld 1 --max_steps 1", "--independent_batches", differ("loss")),
    ("--pxsgld 1 --max_steps 1 --n_valid 56", "--augment_px none",
     differ("loss", "pxsgld/log_q_data")),
    ("--pxsgld 1 --max_steps 1 --independent_batches", "--px_batch_size 8",
     differ("loss", "pxsgld/log_q_data")),
    (NOISE, "--n_steps 4", moved_by(2)),
    (NOISE, "--sgld_std 3", moved_by(3)),
    (SGLD + " --sgld_std 0 --sgld_lr 100", "--sgld_lr 500", moved_by(5)),
    (STILL, "--reinit_freq 1",
     lambda a, b: len(moved(b)) == 4 and moved(b).std() > 0.7 and not moved(a).numel()),
    (STILL, "--chain_start class_gaussian", only(rises_with_the_class)),
    (SGLD + " --sgld_std 0 --sgld_lr 1", "--sgld_grad_clip 1e-6",
     lambda a, b: moved(b).abs().max() < 1.1e-6 < moved(a).abs().max()),
    (NOISE + " --sigma .5", "--sgld_clamp",
     both(differ("pxsgld/log_q_data"),
          lambda a, b: buffer(a).abs().max() > 1 >= buffer(b).abs().max())),
    (SGLD + " --plot_cond 1 --sgld_lr 100", "--guidance 0",
     lambda a, b: number(a, "loss") == number(b, "loss") and cond_samples(a) != cond_samples(b)),
    (SGLD + " --norm batch --sgld_lr 100", "--bn_chains batch",
     both(same_data_energy, differ("pxsgld/log_q_samples"))),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write further images, and a checkpoint whose weights are all the same."""
    root = tmp_path_factory.mktemp("files")
    train.write_images(root / "cifar10.npz", train=80)
    (root / "few").mkdir()
    train.write_images(root / "few" / "cifar10.npz", train=2, test=2)
    for i in range(30):
        paint(root / "classes" / "abc"[i % 3] / f"{i}.png", i)
    state = weights(train.once(CE))
    torch.save({name: torch.full_like(t, 2**-10) for name, t in state.items()}, root / "flat.pt")
    return root


@pytest.mark.parametrize(("common", "added", "claim"), SEEN)
def test_a_flag_has_the_effect_that_its_help_states(common, added, claim, train, files):
    before = train.once(common)
    after = train(f"{common} {added.format(files=files)}")
    assert before.code == 0 and after.code == (2 if "--device" in added else 0), after.err
    assert claim(before, after)


def test_pxcontrast_marks_all_classes():
    objective = build_objective(parsed("--pxcontrast 1 --pxycontrast 1"), 10)
    marginal = {name: term.score.marginal for name, term in objective.terms.items()}
    assert marginal == {"pxycontrast": False, "pxcontrast": True}


def test_a_gradient_within_clip_grad_stays(train):
    common = "--pyxce 1 --max_steps 1 --optimizer sgd"
    before, after = train.once(common), train(f"{common} --clip_grad 1e6")
    assert first_gradient(before) == first_gradient(after)


def test_compile_compiles_the_network_where_there_is_a_compiler(train, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "nothing is compiled" in train(CE + " --compile on").out and not compiled
    monkeypatch.setattr("shutil.which", lambda name: "/bin/c++")
    assert train(CE).code == 0 and not compiled  # auto, and this is no GPU
    assert train(CE + " --compile on").code == 0 and len(compiled) == 1


@pytest.mark.parametrize("works", [True, False])
def test_on_a_gpu_the_network_is_compiled_if_that_works(works, monkeypatch, capsys):
    def compiler(function: Any) -> Any:
        if not works:
            raise RuntimeError("Cannot find a working\ntriton installation")
        return function

    compiled, gpu = [], torch.device("cuda")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(torch, "ones", lambda n, **_: torch.zeros(n))
    monkeypatch.setattr("shutil.which", lambda name: "/bin/cc")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)  # there is no GPU
    with torch._dynamo.config.patch(suppress_errors=False):
        for flag, wanted in (("", works), ("--compile on", works), ("--compile off", False)):
            compiled.clear()
            build_model(parsed(f"--pyxce 1 --depth 10 --width 1 --amp off {flag}"), 10, gpu)
            assert len(compiled) == wanted
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (not works)
    assert all("a working triton installation, so nothing is compiled" in line for line in lines)


def test_dry_run_needs_no_data_and_leaves_nothing(train, tmp_path):
    run = train(f"{train.ALL} --dry_run --buffer_size 640 --data_root {tmp_path}/none --lr .07")
    assert run.code == 0 and not run.err
    assert not run.folder.exists() and not list(tmp_path.iterdir())
    printed = dict(line.split(maxsplit=1) for line in run.out.splitlines() if line.strip())
    assert list(printed).index("time") < list(printed).index("adam_betas")  # settings come last
    assert printed["lr"] == "0.07" and printed["parameters"] == "77,706"
    for line in ("training step", "time a step", "time of the run"):
        assert f"\n{line}" in run.out
    assert re.search(r"\nmemory: replay buffer +7\.5 MiB", run.out)  # 640 x 3 x 32 x 32 floats
    assert re.search(r"\nmemory: images +175\.9 MiB", run.out)  # 60,040 x 3 x 32 x 32 bytes


def test_a_dry_run_with_few_labels_counts_the_images_that_a_step_has(train):
    argv = "--dataset digits --image_size 8 --depth 10 --width 1 --pxsgld 1 --pxysgld 1 --dry_run "
    argv += "--buffer_size 100 --sgld_batch_size 2 --n_steps 1 "
    few, same = (
        re.search("training step .*", train.bare(*argv.split(), *more.split()).out)
        for more in ("--labels_per_class 1 --batch_size 64", "--batch_size 10 --px_batch_size 64")
    )
    assert few and same and few[0] == same[0]


def test_a_dry_run_counts_no_step_after_the_last(train):
    argv = "--dataset digits --image_size 8 --depth 10 --width 1 --pyxce 1 --dry_run --max_steps 1"
    out = train.bare(*argv.split(), "--n_epochs", str(10**9)).out
    assert re.search(r"\ntime of the run +0\.00 hours", out)


OWN_TEST: dict[str, Callable[..., None]] = {
    "--resume": test_resume.test_resume_finds_a_run_by_log_dir_and_id_or_names_the_missing_flag,
    "--overwrite": test_errors.test_a_folder_with_a_run_is_refused_unless_overwritten,
    "--image_size": test_image_size.test_a_run_of_another_size_is_evaluated_on_images_of_its_size,
    "--compile": test_compile_compiles_the_network_where_there_is_a_compiler,
    "--max_restarts": test_healing.test_what_diverges_again_and_again_is_given_up,
    "--ckpt_minutes": test_resume.test_disturbed_and_resumed_is_undisturbed,
    "--dry_run": test_dry_run_needs_no_data_and_leaves_nothing,
}


def test_every_flag_has_a_test_of_its_effect():
    tested = [added.split()[0].replace("--no-", "--") for _, added, _ in SEEN]
    actions = flags.build_parser()._actions
    declared = [action.option_strings[0] for action in actions if action.dest != "help"]
    assert sorted([*tested, *OWN_TEST]) == sorted(declared)


ANCESTORS = """--dataset cifar10 --lr 1e-4 --decay_epochs 160 180 --decay_rate .3 --start_epoch 0
--labels_per_class -1 --optimizer adam --batch_size 64 --sgld_batch_size 64 --n_epochs 200
--warmup_iters -1 --pyxce 0 --pxcontrast 0 --pxsgld 0 --pxycontrast 0 --pxysgld 0 --dropout_rate 0
--sigma .03 --weight_decay 0 --norm none --n_steps 20 --width 10 --depth 28 --buffer_size 10000
--reinit_freq .05 --sgld_lr 1 --sgld_std .01 --contrast_k 65536 --contrast_t .1 --smoothing 0
--workers 4 --log_dir ./save --ckpt_every -1 --plot_every 40 --eval_every 1 --print_every 100
--plot_uncond 0 --plot_cond 0 --plot_contrast 0"""


def test_defaults_are_the_ancestors():
    defaults = flags.build_parser().parse_args([])
    assert flags.build_parser().parse_args(ANCESTORS.split()) == defaults
    assert not (defaults.clf_only or defaults.uncond or defaults.class_cond_p_x_sample)


def test_data_root_defaults_to_the_environment_s(monkeypatch):
    monkeypatch.setenv("HDGE_DATA_ROOT", "/images")
    assert flags.build_parser().parse_args([]).data_root == "/images"
    monkeypatch.delenv("HDGE_DATA_ROOT")
    assert flags.build_parser().parse_args([]).data_root == "./datasets"


def parsed(argv: str) -> Any:
    return flags.parse(argv.split())[0]


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ("--p_x_weight 2 ", "pxsgld", 2),
        ("--p_y_given_x_weight 2", "pyxce", 2),
        ("--p_x_y_weight 2", "pxysgld", 2),
        ("--pyxce 1 --save_dir there", "log_dir", "there"),
        ("--pyxce 1 --dataset cifar_100", "dataset", "cifar100"),
    ],
)
def test_names_of_jem_are_accepted(argv, name, value):
    settings, given = flags.parse(argv.split())
    assert getattr(settings, name) == value and name in given


@pytest.mark.parametrize("flag", ["plot_uncond", "plot_cond", "plot_contrast"])
def test_plot_flags_are_bare_or_take_0_or_1(flag):
    for text, value in {"": True, "1": True, "0": False}.items():
        assert getattr(parsed(f"--pxycontrast 1 --{flag} {text}"), flag) is value
    refusal(parsed, f"--pxycontrast 1 --{flag} 2")


def test_an_abbreviation_is_refused():
    assert "unrecognized arguments" in refusal(parsed, "--pyxce 1 --batch 4")
