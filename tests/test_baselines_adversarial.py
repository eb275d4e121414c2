"""Adversarial training: its images and its loss by hand, its runs and its flags."""

import math
from argparse import Namespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from baselines.flags import parse
from baselines.run import build_run, train_step
from baselines.train_adversarial import PROGRAM, Adversarial, build_parser
from evaluation.robustness import PGD
from models import EnergyClassifier
from training.divergence import Guard


def settings(words: str) -> Any:
    return parse(words.split(), build_parser)[0]


def objective(*values: Any) -> Adversarial:
    names = ("distance", "eps", "n_steps_pgd_attack", "attack_step", "random_init")
    return Adversarial(Namespace(**dict(zip(names, values, strict=True))))


def network() -> EnergyClassifier:
    torch.manual_seed(0)
    return models.build(depth=10, width=1, norm="batch", dropout_rate=0.5)


def images(n: int, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("distance", "dual"), [("Linf", 1), ("L2", 2)])
@pytest.mark.parametrize("random_init", [True, False])
def test_the_worst_loss_of_a_linear_model_in_closed_form(distance, dual, random_init):
    """max over ||d|| <= eps of softplus(-margin): the margin falls by eps ||2 (w_y - w_other)||
    in the dual norm, 2 since the network sees 2 x01 - 1."""
    backbone = nn.Flatten()
    backbone.num_features = 3 * 8 * 8
    model, x, y = EnergyClassifier(backbone, 2), images(16, 8) / 2, torch.arange(16) % 2
    model, x, eps, w = model.double(), x.double(), 0.02, model.class_output.weight
    margin = (F.one_hot(y) * 2 - 1).mul(model(x)).sum(1)  # the label's logit - the other
    worst = margin - 2 * eps * (w[0] - w[1]).norm(dual)
    expected = F.softplus(-worst).mean()
    loss, metrics = objective(distance, eps, 40, eps, random_init)(model, x, y, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(metrics["accuracy"], (worst > 0).float().mean())
    assert torch.equal(metrics["pyxce/loss"], loss) and not metrics["accuracy"].requires_grad
    gradients = (torch.autograd.grad(value, w, retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


def test_one_step_by_hand_attacks_in_eval_mode_and_trains_in_train_mode():
    model, x, y = network(), images(6), torch.arange(6)
    x[0, :, :4], x[1] = 1, 1.5 * x[1]  # the ball leaves the pixel range here, and noise did
    adversarial = objective("Linf", 0.1, 1, 0.1, False)

    clean = x.clamp(-1, 1)
    leaf = clean.clone().requires_grad_(True)
    F.cross_entropy(model.eval()(leaf), y, reduction="sum").backward()
    moved = (clean + 0.2 * leaf.grad.sign()).clamp(-1, 1)
    model.zero_grad()
    model.train()
    torch.testing.assert_close(adversarial.attack(model, x, y), moved, rtol=0, atol=1e-6)

    torch.manual_seed(2)  # of dropout
    expected = F.cross_entropy(model(moved), y)
    model = network().train()
    torch.manual_seed(2)
    torch.testing.assert_close(adversarial(model, x, y, 0)[0], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("distance", ["Linf", "L2"])
def test_a_step_never_waits_for_the_gpu(distance):
    device = torch.device("cuda")
    s = settings(f"--depth 10 --width 1 --distance {distance} --norm batch --dropout_rate .1")
    run, guard = build_run(PROGRAM, s, 10, device), Guard(device)
    run.steps_per_epoch = 4
    x, y = images(4).to(device), torch.arange(4, device=device)
    run.model.train()
    for step in range(4):
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            train_step(run, guard, (x, y), step)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_run_records_its_attack_and_resumes_with_no_other(baseline):
    words = "--distance L2 --eps 1/4 --n_epochs 2 --n_steps_pgd_attack 2"
    run = baseline(PROGRAM, words)
    assert run.code == 0 and not run.err
    for row in run.rows:
        assert all(math.isfinite(float(value)) for value in row.values())
        assert row["loss"] == row["pyxce/loss"]
    expected = {"program": "train_adversarial.py", "method": "adversarial-L2", "eps": 0.25}
    expected |= {"attack_step": 0.3125, "random_init": True, "sigma": 0.0}
    assert expected.items() <= run.settings.items()
    assert baseline(PROGRAM, f"{words} --eps 0").last["loss"] != run.last["loss"]
    for flag in ("--distance Linf", "--eps .1", "--n_steps_pgd_attack 3", "--no-random_init"):
        refusal = baseline.bare(PROGRAM, f"--resume {run.folder} {flag}").refusal
        assert f"{flag.split()[0].replace('no-', '')} " in refusal
    assert baseline.bare(PROGRAM, f"--resume {run.folder} --eps .25").code == 0


def test_defaults_depend_on_the_distance():
    linf, l2 = settings(""), settings("--distance L2 --n_steps_pgd_attack 10 --no-random_init")
    assert (linf.eps, linf.attack_step, linf.random_init) == (8 / 255, 2.5 * 8 / 255 / 7, True)
    assert (l2.eps, l2.attack_step, l2.random_init) == (0.5, 0.125, False)
    assert settings("--attack_step 2/255").attack_step == 2 / 255
    assert settings("--eps 0").attack_step == 0 and linf.sigma == 0
    words = "--distance L2 --eps .3 --n_steps_pgd_attack 5 --attack_step .1 --no-random_init"
    built = PROGRAM.objective(settings(words), network())
    assert (built.eps, built.pgd) == (0.3, PGD("L2", 5, 0.1, random_init=False))
