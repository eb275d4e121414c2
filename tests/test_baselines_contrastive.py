"""SupCon, SimCLR and JointLoss: losses and training."""

import math
from argparse import Namespace

import pytest
import torch
from PIL import Image

import models
from baselines import flags
from baselines import train_contrastive as program
from baselines.train_contrastive import nt_xent, supervised_contrastive
from evaluation import loading
from scripts import predict
from tests.pair import outcome
from tests.test_baselines_views import generator


def brute_force(z: torch.Tensor, labels: list[int], temperature: float) -> float:
    total, n = 0.0, len(labels)
    for i in range(n):
        others = [a for a in range(n) if a != i]
        exp = {a: math.exp(float(z[i] @ z[a]) / temperature) for a in others}
        positives = [p for p in others if labels[p] == labels[i]]
        total -= sum(math.log(exp[p] / sum(exp.values())) for p in positives) / len(positives)
    return total / n


def test_the_losses_are_their_formula():
    z = torch.nn.functional.normalize(torch.randn(8, 5, dtype=torch.float64), dim=1)
    labels = [0, 1, 2, 0, 0, 1, 2, 0]
    loss = supervised_contrastive(z, torch.tensor(labels), 0.1)
    assert loss.item() == pytest.approx(brute_force(z, labels, 0.1), rel=1e-12)
    assert nt_xent(z, 0.5).item() == pytest.approx(brute_force(z, [0, 1, 2, 3] * 2, 0.5), rel=1e-12)


@pytest.mark.parametrize("method", ["supcon", "simclr", "jointloss"])
def test_each_method_s_loss_metrics_and_gradient_of_the_class_head(method):
    model = models.build(depth=10, width=1).train()
    words = f"--method {method} --temperature .3 --n_epochs 3"
    words += " --pretrain_epochs 2 --ntxent_weight 3 --smoothing .2" * (method == "jointloss")
    settings, _ = flags.parse(words.split(), program.build_parser)
    objective = program.ContrastiveObjective(settings, model)
    x, y = torch.rand(6, 3, 32, 32, generator=generator()), torch.tensor([0, 1, 0, 0, 1, 0])
    z = torch.nn.functional.normalize(objective.head(model.features(x)), dim=1)
    contrast = supervised_contrastive(z, y, 0.3) if method == "supcon" else nt_xent(z, 0.3)
    for epoch in (1, 2):
        loss, metrics = objective(model, x, y, epoch)
        joint = method == "jointloss" and epoch == 2
        assert joint == ("accuracy" in metrics)
        expected = contrast
        if joint:
            logits = model.logits(x)
            target = torch.full((6, 10), 0.2 / 9).scatter(1, y[:, None], 0.8)
            expected = 3 * contrast - (target * logits.log_softmax(1)).sum(1).mean()
            assert metrics["accuracy"] == (logits.argmax(1) == y).float().mean()
        assert torch.allclose(loss, expected, atol=1e-5)
        assert {n for n in metrics if n.endswith("/loss")} <= {f"{t}/loss" for t in objective.terms}
        model.zero_grad()
        loss.backward()
        assert (model.class_output.weight.grad is not None) == joint


def test_jointloss_trains_and_measures_the_class_head_in_its_second_phase_alone(baseline):
    words = "--method jointloss --n_epochs 2 --lr 1e-3 --batch_size 10"
    run = baseline(program.PROGRAM, f"{words} --projection 8")
    first, second = run.rows
    accuracy = ("pyxce/loss", "train_acc", "valid_acc", "test_acc", "test_loss")
    assert run.code == 0 and all(first[n] == "" and second[n] != "" for n in accuracy)
    assert 1 < float(first["ntxent/loss"]) < 2 * math.log(19)
    loss, ntxent, pyxce = (float(second[n]) for n in ("loss", "ntxent/loss", "pyxce/loss"))
    assert loss == pytest.approx(ntxent + pyxce, rel=1e-5)
    assert "head.hidden.weight" in run.state()["objective"]
    defaults = {"pretrain_epochs": 1, "temperature": 0.5, "smoothing": 0.1}
    assert defaults.items() <= run.settings.items()


def test_supcon_leaves_the_class_head_alone(baseline, ask, tmp_path):
    run = baseline(program.PROGRAM, "--method supcon --weight_decay .1 --max_steps 1")
    torch.manual_seed(1)
    fresh = models.build(depth=10, width=1)
    trained = models.load(run.folder / "last_ckpt.pt")
    assert run.code == 0 and torch.equal(fresh.class_output.weight, trained.class_output.weight)
    assert not torch.equal(fresh.f.conv1.weight, trained.f.conv1.weight)
    assert run.last["test_acc"] == "" and "best_valid_ckpt.pt" not in run.files
    path = run.folder / "last_ckpt.pt"
    warning = f"{path}: its class head is untrained: baselines/linear_probe.py fits one"
    scored = "OOD --ood_dataset svhn --knn_k 2 --score_fn"
    for words, warned in (("test_clf", 1), (f"{scored} py knn", 1), (f"{scored} knn", 0)):
        answer = ask(f"--eval {words}", load=path)
        assert answer.err == [f"eval_wrn_ebm.py: warning: {warning}"] * warned
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    words = [str(path), str(tmp_path / "a.png"), "--data_root", str(ask.trainer.data)]
    assert warning in outcome(lambda: predict.main([*words, "--device", "cpu"]))[2]


@pytest.mark.parametrize(("settings", "untrained"), [
    ({"method": "simclr"}, True), ({"method": "jointloss"}, False), ({"pyxce": 1.0}, False),
    ({"pxsgld": 1.0}, False), ({"pxsgld": 1.0, "uncond": True}, True),
    ({"pxsgld": 1.0, "uncond": True, "pxysgld": 1.0}, False),
    ({"pxsgld": 1.0, "uncond": True, "load_path": "save/ce"}, False),
    ({"pxsgld": 1.0, "uncond": True, "method": "linear-probe"}, False), ({}, False),
])  # fmt: skip
def test_the_settings_tell_whether_the_class_head_is_untrained(settings, untrained):
    model = Namespace(settings=settings)
    assert loading.LoadedModel.untrained_head.fget(model) is untrained  # type: ignore[attr-defined]
