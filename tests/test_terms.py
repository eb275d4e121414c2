"""A term of one's own, declared and built as the README says: trained, resumed, asked, reported."""

import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import losses
from reports.page import page, read_run
from runs import terms
from runs.terms import TERMS, Term
from scripts import export, tables
from tests.pair import refusal
from training import flags
from training.cost import step_flops

HDGE = "--pyxce 1 --pxycontrast 1"
OWN = f"{HDGE} --penalty .5 --n_epochs 1"


class RunningMean(nn.Module):
    """What the term remembers: the mean over the steps of the logits' mean square."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))

    def commit(self, step: losses.Step, skip: Tensor) -> None:
        moved = 0.9 * self.value + 0.1 * step.logits.detach().square().mean()
        self.value.copy_(torch.where(skip, self.value, moved))


class LogitPenalty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memories = {"mean_square": RunningMean()}

    def forward(self, step: losses.Step) -> tuple[Tensor, losses.Metrics]:
        size = step.logits.square().mean(1)
        return (size - self.memories["mean_square"].value).square().mean(), {"largest": size.max()}


def penalty(_: losses.Build) -> LogitPenalty:
    return LogitPenalty()


@pytest.fixture(scope="module", autouse=True)
def sixth_term() -> Iterator[None]:
    file = ModuleType("losses.penalty")
    file.penalty = penalty
    declared = Term("penalty", "penalty", "|f(x)|^2", "L2 penalty", "mean |f(x)|^2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TERMS, "penalty", declared)
        patch.setitem(sys.modules, "losses.penalty", file)
        yield


def test_it_has_a_flag(capsys):
    with pytest.raises(SystemExit):
        flags.parse(["--help"])
    assert re.search(r"--penalty W\s+mean \|f\(x\)\|\^2 \(default: 0.0; ours\)",
                     capsys.readouterr().out)  # fmt: skip
    assert "--pxysgld and --penalty are all 0" in refusal(flags.parse, ["--penalty", "0"])


def test_it_is_recorded_and_resumed_to_the_bit(train):
    whole = train.once(OWN)
    assert {"penalty/loss", "penalty/largest"} <= whole.last.keys()
    assert "loss 1 pyxce + 1 pxycontrast + 0.5 penalty" in whole.text()
    part = train(f"{OWN} --max_steps 2")
    assert part.state()["objective"]["memories.mean_square.value"] > 0
    resumed = train.bare("--resume", str(part.folder), "--max_steps", "5")
    assert train.differences(whole, resumed) == []
    refused = train.bare("--resume", str(part.folder), "--penalty", "0")
    assert refused.code == 2 and "--penalty 0.0 cannot change on --resume" in refused.err[0]


def test_its_page_has_its_formula_and_no_number_of_the_papers(train, ask):
    own, plain = train.once(OWN), train.once(f"{HDGE} --n_epochs 1")
    texts = []
    for run in (own, plain):
        ask("--eval test_clf", load=run.folder / "last_ckpt.pt", folder=run.folder / "eval")
        shown = read_run(run.folder)
        shown.settings |= {"depth": 28, "width": 10}  # the network that the papers' numbers are of
        texts.append(re.sub(r"<[^>]*>", "", page(shown, {})))
    assert "pyxce + pxycontrast + penalty \N{MIDDLE DOT} cifar10" in texts[0]
    assert "0.5 \N{MIDDLE DOT} [|f(x)|^2]penalty" in texts[0] and "L2 penalty" in texts[0]
    theirs = "paper (WRN-28-10): "
    assert theirs in texts[1] and theirs not in texts[0]


def test_a_run_with_a_term_that_is_declared_elsewhere_is_no_hdge(train, monkeypatch):
    run = train.once(OWN)
    monkeypatch.delitem(TERMS, "penalty")
    assert "pyxce + pxycontrast + penalty \N{MIDDLE DOT}" in page(read_run(run.folder), {})


def test_tables_tell_runs_of_two_weights_apart(train, tmp_path, capsys):
    """Other weights are no seeds of one row."""
    runs = [train.once(OWN), train(f"{HDGE} --penalty 2 --n_epochs 1 --seed 2")]
    assert tables.main(["compare", *(str(run.folder) for run in runs)]) == 0
    assert re.search(r"--penalty *\| *0.5 *\| *2", capsys.readouterr().out)
    (tmp_path / "small").mkdir()
    for seed, run in enumerate(runs, 1):
        (tmp_path / "small" / f"hdge-s{seed}").symlink_to(run.folder)
    results = ["--results", str(tmp_path / "results")]
    tables.main(["collect", "--root", str(tmp_path), "--scale", "small", *results])
    assert "--penalty 0.5" in refusal(tables.main, ["write", *results])


def test_its_card_names_it(train, tmp_path):
    folder = export.main([str(train.once(OWN).folder / "last_ckpt.pt"), str(tmp_path / "model")])
    text = "1 x -log q(x|y) (contrastive) + 0.5 x |f(x)|^2 (L2 penalty)"
    assert text in (folder / export.CARD).read_text()


def test_what_it_declares_is_what_its_step_costs(monkeypatch):
    declared = Term("penalty", "penalty", "", "", "", chains="batch_size", passes=3)
    plain, _ = flags.parse(["--pyxce", "1", "--n_steps", "5"])
    own = Namespace(**{**vars(plain), "penalty": 1.0})
    free = step_flops(1, own)
    assert free == step_flops(1, plain) == 3 * 64
    monkeypatch.setitem(TERMS, "penalty", declared)
    assert step_flops(1, own) == free + 64 * (3 + 2 * 5 + 3)


def test_every_declared_term_is_built_from_its_file():
    words = [word for name in TERMS for word in (f"--{name}", "1")]
    s, _ = flags.parse([*words, "--contrast_k", "16", "--buffer_size", "100", "--batch_size", "8"])
    objective = losses.build_objective(s, 10)
    assert list(objective.terms) == list(objective.weights) == list(TERMS)
    assert set(objective.memories) == {"queue", "replay_buffer", "mean_square"}


def test_weights_of_a_damaged_record_are_no_terms():
    assert [t.name for t in terms.used({"pyxce": 1, "pxsgld": "x", "pxcontrast": None})] == [
        "pyxce"
    ]
