"""Adversarial training: its images and its loss by hand, its runs, and what a user gets wrong."""

import contextlib
import csv
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from baselines import run as programs
from baselines.flags import parse
from baselines.objective import train_step
from baselines.run import build_run
from baselines.train_adversarial import PROGRAM, Adversarial, build_parser, check
from evaluation import pgd as attacks
from models import EnergyClassifier
from training.divergence import Guard

BALLS = [("Linf", 0.05), ("L2", 0.3)]
SMALL = "--depth 10 --width 1 --batch_size 4 --n_valid 40 --device cpu --seed 1 --print_every 2"
SMALL += " --n_steps_pgd_attack 2"  # 20 training images: 5 steps an epoch
COLUMNS = "epoch step seconds images_per_s lr loss pyxce/loss train_acc"
COLUMNS += " valid_acc valid_loss test_acc test_loss"


def settings(words: str) -> Any:
    return parse(words.split(), build_parser, check)[0]


def objective(distance: str, eps: float, steps: int = 3, **given: Any) -> Adversarial:
    step = given.pop("step", 2.5 * eps / steps)
    defaults = {"step": step, "random_init": True, **given}
    return Adversarial(distance=distance, eps=eps, steps=steps, **defaults)


def linear(classes: int = 2) -> EnergyClassifier:
    torch.manual_seed(0)
    backbone = nn.Flatten()
    backbone.num_features = 3 * 8 * 8  # type: ignore[assignment]
    return EnergyClassifier(backbone, classes).double()  # type: ignore[arg-type]


def network() -> EnergyClassifier:
    torch.manual_seed(0)
    return models.build(depth=10, width=1, norm="batch", dropout_rate=0.5)


def images(n: int, size: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, size, size, generator=generator, dtype=dtype) * 2 - 1


# ----------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(("distance", "dual"), [("Linf", 1), ("L2", 2)])
@pytest.mark.parametrize("random_init", [True, False])
def test_the_worst_loss_of_a_linear_model_in_closed_form(
    distance: str, dual: int, random_init: bool
) -> None:
    """max over ||d|| <= eps of softplus(-margin): the margin falls by eps ||2 (w_y - w_other)||
    in the dual norm, 2 since the network sees 2 x01 - 1."""
    model, x, y = linear(), images(16, 8, torch.float64) / 2, torch.arange(16) % 2
    eps, w = 0.02, model.class_output.weight
    margin = (F.one_hot(y) * 2 - 1).mul(model(x)).sum(1)  # own logit - the other
    worst = margin - 2 * eps * (w[0] - w[1]).norm(dual)
    expected = F.softplus(-worst)
    attack = objective(distance, eps, 40, step=eps, random_init=random_init)
    loss, metrics = attack(model, x, y, 0)
    torch.testing.assert_close(loss, expected.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(metrics["accuracy"], (worst > 0).float().mean())
    assert torch.equal(metrics["pyxce/loss"], loss) and not metrics["accuracy"].requires_grad
    gradient = torch.autograd.grad(loss, w, retain_graph=True)[0]
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected.mean(), w)[0], rtol=1e-5, atol=1e-9
    )


def test_one_step_by_hand_attacks_in_eval_mode_and_trains_in_train_mode() -> None:
    model, x, y = network(), images(6), torch.arange(6)
    x[0, :, :4] = 1  # the ball leaves the pixel range here
    model.train()
    loss = objective("Linf", 0.1, 1, step=0.1, random_init=False)

    leaf = x.clone().requires_grad_(True)
    F.cross_entropy(model.eval()(leaf), y, reduction="sum").backward()
    moved = (x + 0.2 * leaf.grad.sign()).clamp(-1, 1)  # type: ignore[union-attr]
    model.zero_grad()
    model.train()
    torch.testing.assert_close(loss.attack(model, x, y), moved, rtol=0, atol=1e-6)

    torch.manual_seed(2)  # of dropout
    expected = F.cross_entropy(model(moved), y)
    model = network().train()
    torch.manual_seed(2)
    torch.testing.assert_close(loss(model, x, y, 0)[0], expected)


@pytest.mark.parametrize(("distance", "eps"), BALLS)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_images_stay_in_the_ball_and_in_the_pixel_range(
    distance: str, eps: float, noise: float
) -> None:
    model, x, y = network().eval(), images(8), torch.arange(8)
    x = (1.2 * x).clamp(-1, 1) + noise * torch.randn(x.shape)  # many pixels at the range's ends
    clean = x.clamp(-1, 1)
    adversarial = objective(distance, eps, step=eps).attack(model, x, y)
    size = ((adversarial - clean) / 2).flatten(1)  # in pixels of [0, 1]
    size = size.abs().amax(1) if distance == "Linf" else size.norm(dim=1)
    assert size.max() <= eps + 1e-6 and size.min() > 0.5 * eps
    assert adversarial.min() >= -1 and adversarial.max() <= 1 and not adversarial.requires_grad
    before, after = (F.cross_entropy(model(z), y) for z in (clean, adversarial))
    assert after > before + 0.001


def test_the_attack_leaves_the_model_as_it_was() -> None:
    model = network().train()
    model.f.layer1.eval()  # each module has its own mode
    model.class_output.bias.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objective("Linf", 0.1).attack(model, images(4), torch.arange(4))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    parameters = dict(model.named_parameters())
    assert [name for name in parameters if not parameters[name].requires_grad] == [
        "class_output.bias"
    ]
    assert all(parameter.grad is None for parameter in parameters.values())


def test_random_starts_are_the_global_generators() -> None:
    model, x, y = network().eval(), images(2), torch.arange(2)
    made: dict[int, Tensor] = {}
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        image = objective("Linf", 0.1, step=0.01).attack(model, x, y)
        assert torch.equal(made.setdefault(seed, image), image)
    assert not torch.equal(made[1], made[2])
    fixed = objective("Linf", 0.1, random_init=False)
    assert torch.equal(fixed.attack(model, x, y), fixed.attack(model, x, y))


def test_eps_0_is_cross_entropy() -> None:
    model, x, y = network().eval(), images(4), torch.arange(4)
    loss, _ = objective("Linf", 0.0)(model, x, y, 0)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y))


def test_nothing_asks_for_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check waits for the device."""

    def wait(*_: Any) -> None:
        raise AssertionError("the host waited")

    monkeypatch.setattr(attacks, "check_perturbation", wait)
    objective("L2", 0.1)(network().train(), images(2), torch.arange(2), 0)


@pytest.mark.gpu
@pytest.mark.parametrize("distance", ["Linf", "L2"])
def test_a_step_never_waits_for_the_gpu(distance: str) -> None:
    device = torch.device("cuda")
    s = settings(f"{SMALL} --distance {distance} --norm batch --dropout_rate .1")
    run, guard = build_run(PROGRAM, s, 10, device), Guard(device)
    x, y = images(4).to(device), torch.arange(4, device=device)
    run.model.train()
    for step in range(4):
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            train_step(run, guard, x, y, step=step, epoch=0)
        finally:
            torch.cuda.set_sync_debug_mode("default")


# ----------------------------------------------------------------------------------- the runs


class Done:
    """What one run of the program left: exit code, lines on stderr, run folder."""

    def __init__(self, code: int, err: str, folder: Path) -> None:
        self.code, self.folder = code, folder
        bar = re.compile(r"\d+%\||img/s\]")
        lines = err.replace("\r", "\n").splitlines()
        self.err = [line for line in lines if line.strip() and not bar.search(line)]

    @property
    def settings(self) -> dict[str, Any]:
        return json.loads((self.folder / "variant.json").read_text(encoding="utf-8"))

    @property
    def rows(self) -> list[dict[str, str]]:
        text = (self.folder / "progress.csv").read_text(encoding="utf-8")
        return list(csv.DictReader(text.splitlines()))

    def state(self) -> dict[str, Any]:
        return torch.load(self.folder / "last_ckpt.pt", weights_only=True)


class Program:
    """Runs the program in this process, on the made-up images of `train`."""

    def __init__(self, train: Any, root: Path) -> None:
        self.train, self.root, self.runs = train, root, 0

    def __call__(self, words: str) -> Done:
        self.runs += 1
        where = f"--data_root {self.train.data} --log_dir {self.root} --id run{self.runs}"
        return self.bare(f"{SMALL} {where} {words}")

    def bare(self, words: str) -> Done:
        err, folder, threads = io.StringIO(), self.root, torch.get_num_threads()
        torch.set_num_threads(1)
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr("evaluation.plots.save_curves", lambda rows, path: None)
            try:
                s, given = parse(words.split(), build_parser, check)
                folder = Path(s.resume or Path(s.log_dir, s.id or ""))
                code = programs.main(PROGRAM, s, given)
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                torch.set_num_threads(threads)
        return Done(code, err.getvalue(), folder)


@pytest.fixture(scope="module")
def program(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(train, tmp_path_factory.mktemp("adversarial"))


def test_a_run_is_a_run_folder_that_every_other_program_reads(program: Program) -> None:
    done = program("--distance L2 --eps 1/4 --n_epochs 2")
    assert done.code == 0 and not done.err
    assert list(done.rows[0]) == COLUMNS.split() and len(done.rows) == 2
    for row in done.rows:
        assert all(math.isfinite(float(value)) for value in row.values())
        assert row["loss"] == row["pyxce/loss"]
    s = done.settings
    assert (s["program"], s["method"]) == ("train_adversarial.py", "adversarial-L2")
    assert (s["eps"], s["attack_step"], s["random_init"], s["sigma"]) == (0.25, 0.3125, True, 0.0)
    model = models.load(done.folder / "last_ckpt.pt")
    saved = done.state()["model_state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_stopped_and_resumed_is_uninterrupted(program: Program, train: Any) -> None:
    words = "--norm batch --optimizer sgd --lr .01 --dropout_rate .1"
    whole = program(f"{words} --max_steps 8")
    parts = program(f"{words} --max_steps 3")  # within an epoch
    again = program.bare(f"--resume {parts.folder} --max_steps 8")
    assert again.code == 0 and not again.err
    a, b = whole.state(), parts.state()
    for part in ("model_state_dict", "optimizer", "random", "meters"):
        assert train.same(a[part], b[part]), part
    clock = ("seconds", "images_per_s")
    steady = [[{n: r[n] for n in r if n not in clock} for r in x.rows] for x in (whole, parts)]
    assert steady[0] == steady[1] and [row["step"] for row in steady[0]] == ["5", "8"]
    plain = program(f"{words} --max_steps 8 --eps 0")
    assert not train.same(a["model_state_dict"], plain.state()["model_state_dict"])

    for flag in ("--distance L2", "--eps .1", "--n_steps_pgd_attack 3", "--no-random_init"):
        refused = program.bare(f"--resume {parts.folder} {flag}")
        assert refused.code == 2 and len(refused.err) == 1
        assert f"{flag.split()[0].replace('no-', '')} " in refused.err[0]
    repeated = program.bare(f"--resume {parts.folder} --eps 8/255 --max_steps 8")
    assert repeated.code == 0 and not repeated.err


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--eps 8", ("--eps 8 ", "8/255")),
        ("--eps 60 --distance L2", ("--eps 60 ", ".5")),
        ("--eps a/b", ("--eps", "a/b", "8/255")),
        ("--eps -1", ("--eps", "-1", "0 or more")),
        ("--distance L1", ("--distance", "L1", "L2")),
        ("--attack_step 0", ("--attack_step 0", "2/255")),
        ("--n_steps_pgd_attack 0", ("--n_steps_pgd_attack", "at least 1")),
        ("--dataset imagenet", ("--dataset imagenet", "cifar10")),
        ("--image_size 18", ("--image_size 18 ", "use 16")),
        ("--eps 30 --distance L2 --image_size 16", ("--eps 30 ", ".5")),
        ("--pyxce 1", ("--pyxce", "--help")),
    ],
)
def test_a_mistake_is_one_line(program: Program, words: str, names: tuple[str, ...]) -> None:
    done = program(words)
    assert done.code == 2 and len(done.err) == 1
    assert all(name in done.err[0] for name in names), done.err


def test_defaults_depend_on_the_distance() -> None:
    linf, l2 = settings(""), settings("--distance L2 --n_steps_pgd_attack 10 --no-random_init")
    assert (linf.eps, linf.attack_step, linf.random_init) == (8 / 255, 2.5 * 8 / 255 / 7, True)
    assert (l2.eps, l2.attack_step, l2.random_init) == (0.5, 0.125, False)
    assert settings("--attack_step 2/255").attack_step == 2 / 255
    assert settings("--eps 0").attack_step == 0 and linf.sigma == 0
    words = "--distance L2 --eps .3 --n_steps_pgd_attack 5 --attack_step .1 --no-random_init"
    built = PROGRAM.objective(settings(words), network())
    expected = {"distance": "L2", "eps": 0.3, "steps": 5, "step": 0.1, "random_init": False}
    assert {name: getattr(built, name) for name in expected} == expected


def test_a_diverged_run_ends_with_one_line(program: Program) -> None:
    done = program("--lr 1e30 --n_epochs 1")
    assert done.code == 1 and len(done.err) == 1 and "diverged at step" in done.err[0]


def test_help_and_mistakes_need_no_torch() -> None:
    """From another folder, as a user may: the program finds the packages itself."""
    path = Path(programs.__file__).with_name("train_adversarial.py")
    code = (
        "import runpy, sys\n"
        "sys.argv = ['x', '--eps', '9']\n"
        f"try: runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.root, check=True)
    assert done.stdout.split() == ["2", "False"] and "--eps 9" in done.stderr
