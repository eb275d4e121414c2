"""A declared sixth term, as the README adds it: trained, resumed, evaluated, reported."""

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
PENALISED = f"{HDGE} --penalty .5 --n_epochs 1"


class RunningMean(nn.Module):
    """The term's memory: the mean over the steps of the logits' mean square."""

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


def test_the_term_has_a_flag(capsys):
    with pytest.raises(SystemExit):
        flags.parse(["--help"])
    text = capsys.readouterr().out
    assert re.search(r"--penalty W\s+mean \|f\(x\)\|\^2 \(default: 0.0; ours\)", text)
    assert "--pxysgld and --penalty are all 0" in refusal(flags.parse, ["--penalty", "0"])


def test_the_term_is_recorded_and_resumed_to_the_bit(train):
    whole = train.once(PENALISED)
    assert {"penalty/loss", "penalty/largest"} <= whole.last.keys()
    assert "loss 1 pyxce + 1 pxycontrast + 0.5 penalty" in whole.text()
    part = train(f"{PENALISED} --max_steps 2")
    assert part.state()["objective"]["memories.mean_square.value"] > 0
    assert train.differences(whole, train.resumed(part, "--max_steps", "5")) == []
    refusal = train.resumed(part, "--penalty", "0").refusal
    assert "--penalty 0.0 cannot change on --resume" in refusal


def test_the_term_s_page_has_its_formula_and_no_number_of_the_papers(train, ask):
    texts = []
    for run in (train.once(PENALISED), train.once(f"{HDGE} --n_epochs 1")):
        ask("--eval test_clf", load=run.folder / "last_ckpt.pt", folder=run.folder / "eval")
        record = read_run(run.folder)
        record.settings |= {"depth": 28, "width": 10}  # the papers' network
        texts.append(re.sub(r"<[^>]*>", "", page(record, {})))
    assert "pyxce + pxycontrast + penalty \N{MIDDLE DOT} cifar10" in texts[0]
    assert "0.5 \N{MIDDLE DOT} [|f(x)|^2]penalty" in texts[0] and "L2 penalty" in texts[0]
    assert ["paper (WRN-28-10): " in text for text in texts] == [False, True]


def test_a_run_with_a_term_that_is_not_declared_here_is_no_hdge(train, monkeypatch):
    run = train.once(PENALISED)
    monkeypatch.delitem(TERMS, "penalty")
    assert "pyxce + pxycontrast + penalty \N{MIDDLE DOT}" in page(read_run(run.folder), {})


def test_runs_of_two_weights_are_no_seeds_of_one_row(train, tmp_path, capsys):
    runs = [train.once(PENALISED), train(f"{HDGE} --penalty 2 --n_epochs 1 --seed 2")]
    assert tables.main(["compare", *(str(run.folder) for run in runs)]) == 0
    assert re.search(r"--penalty *\| *0.5 *\| *2", capsys.readouterr().out)
    (tmp_path / "small").mkdir()
    for seed, run in enumerate(runs, 1):
        (tmp_path / "small" / f"hdge-s{seed}").symlink_to(run.folder)
    results = ["--results", str(tmp_path / "results")]
    tables.main(["collect", "--root", str(tmp_path), "--scale", "small", *results])
    assert "--penalty 0.5" in refusal(tables.main, ["write", *results])


def test_an_exported_card_names_the_term(train, tmp_path):
    folder = export.main(
        [str(train.once(PENALISED).folder / "last_ckpt.pt"), str(tmp_path / "model")]
    )
    text = "1 x -log q(x|y) (contrastive) + 0.5 x |f(x)|^2 (L2 penalty)"
    assert text in (folder / export.CARD).read_text()


def test_the_cost_of_a_step_is_that_of_the_declared_chains_and_passes(monkeypatch):
    declared = Term("penalty", "penalty", "", "", "", chains="batch_size", passes=3)
    plain, _ = flags.parse(["--pyxce", "1", "--n_steps", "5"])
    penalised = Namespace(**{**vars(plain), "penalty": 1.0})
    assert step_flops(1, penalised) == step_flops(1, plain) == 3 * 64
    monkeypatch.setitem(TERMS, "penalty", declared)
    assert step_flops(1, penalised) == 64 * (3 + 3 + 2 * 5 + 3)


def test_every_declared_term_is_built_from_its_file():
    weights = " ".join(f"--{name} 1" for name in TERMS)
    argv = f"{weights} --contrast_k 16 --buffer_size 100 --batch_size 8".split()
    s, _ = flags.parse(argv)
    objective = losses.build_objective(s, 10)
    assert list(objective.terms) == list(objective.weights) == list(TERMS)
    assert set(objective.memories) == {"queue", "replay_buffer", "mean_square"}


def test_weights_of_a_damaged_record_are_no_terms():
    (term,) = terms.used({"pyxce": 1, "pxsgld": "x", "pxcontrast": None})
    assert term.name == "pyxce"
