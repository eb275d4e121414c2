"""The rows of the tables: every command parses, nothing is done twice, what failed is said."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import models
from baselines import contrastive_flags, probe_flags, train_adversarial
from baselines import flags as baseline_flags
from evaluation import flags as questions
from evaluation.cost import step_flops
from training import flags

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("experiments", ROOT / "scripts" / "experiments.py")
assert _spec and _spec.loader
experiments = importlib.util.module_from_spec(_spec)
sys.modules["experiments"] = experiments  # dataclasses look their module up
_spec.loader.exec_module(experiments)


def parse(words: list[str]) -> Any:
    program, *arguments = words
    if program == "train_wrn.py":
        return flags.parse(arguments)[0]
    if program == "eval_wrn_ebm.py":
        return questions.parse(arguments)[0]
    own = {
        "baselines/train_adversarial.py": train_adversarial,
        "baselines/train_contrastive.py": contrastive_flags,
        "baselines/linear_probe.py": probe_flags,
    }[program]
    assert (ROOT / program).is_file()
    return baseline_flags.parse(arguments, own.build_parser, own.check)[0]


@pytest.mark.parametrize("scale", experiments.SCALES)
@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_experiment_s_command_parses(name: str, scale: str, tmp_path: Path) -> None:
    words = experiments.train_command(tmp_path, scale, name, 3)
    settings = parse(words)
    assert settings.id == f"{name}-s3"
    experiment = experiments.EXPERIMENTS[name]
    if experiment.program == experiments.PROBE:
        assert settings.load_path == f"{tmp_path}/{scale}/{experiment.start}-s3/last_ckpt.pt"
        return
    assert settings.seed == 3
    expected = "digits" if scale == "smoke" else experiment.dataset
    assert settings.dataset == expected


@pytest.mark.parametrize("scale", experiments.SCALES)
@pytest.mark.parametrize("name", experiments.TABLES)
def test_every_question_parses(name: str, scale: str, tmp_path: Path) -> None:
    table = experiments.TABLES[name]
    assert set(table.rows) <= set(experiments.EXPERIMENTS)
    path = tmp_path / "last_ckpt.pt"
    for question in table.questions:
        parse(experiments.ask_command(scale, [path], question))
    for place, question, rows in table.overlays:
        assert set(rows) <= set(table.rows)
        words = experiments.ask_command(scale, [path] * len(rows), question)
        parse([*words, "--labels", *rows, "--log_dir", str(tmp_path / place)])


def test_every_table_has_its_script() -> None:
    for name in (*experiments.TABLES, "all"):
        text = (ROOT / "scripts" / f"{name}.sh").read_text(encoding="utf-8")
        assert f'/reproduce.sh" {name}\n' in text


def test_the_papers_settings_are_the_papers() -> None:
    s = parse(experiments.train_command(Path("x"), "paper", "hdge", 1))
    assert (s.depth, s.width, s.norm, s.lr, s.n_epochs) == (28, 10, "none", 1e-4, 200)
    assert (s.warmup_iters, s.decay_epochs, s.decay_rate) == (1000, [160, 180], 0.3)
    assert (s.contrast_k, s.sigma, s.batch_size, s.load_path) == (65536, 0.03, 64, None)
    s = parse(experiments.train_command(Path("x"), "paper", "hdge-bn", 1))
    assert (s.norm, s.optimizer, s.lr, s.batch_size, s.weight_decay) == (
        "batch",
        "sgd",
        0.1,
        256,
        5e-4,
    )
    assert (s.decay_epochs, s.decay_rate, s.dropout_rate) == ([60, 120, 160], 0.2, 0.3)
    s = parse(experiments.train_command(Path("x"), "paper", "jem-n128", 1))
    assert (s.sgld_batch_size, s.n_steps, s.sgld_l2) == (128, 20, 0)


# Jobs: on a program that only notes that it was called.


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(a maker of Jobs, the commands that they ran); `fails` names what exits with a code."""
    ran: list[str] = []
    fails: dict[str, int] = {}

    def run(self: Any, words: list[str], where: Path) -> tuple[int, str]:
        ran.append(shlex.join(words))
        code = next((code for part, code in fails.items() if part in ran[-1]), 0)
        where.mkdir(parents=True, exist_ok=True)
        if "--id" in words and code in (0, 9):
            (where / "variant.json").write_text(json.dumps({"n_epochs": 2}))
            (where / "last_ckpt.pt").write_bytes(b"")
            (where / "progress.csv").write_text(f"epoch,step\n{1 if code == 0 else 0},5\n")
        return code, f"x: diverged at step {code}" if code else ""

    monkeypatch.setattr(experiments.Jobs, "_run", run)

    def make(scale: str = "paper", n: int = 2) -> Any:
        return experiments.Jobs(tmp_path, scale, n, [])

    return make, ran, fails


def run_tables(names: list[str], maker: Any, seeds: list[int]) -> int:
    return experiments.run([experiments.TABLES[name] for name in names], maker, seeds)


def trained(ran: list[str]) -> list[str]:
    return [
        shlex.split(line)[shlex.split(line).index("--id") + 1] for line in ran if "--id" in line
    ]


def test_what_tables_share_is_trained_once(jobs: Any) -> None:
    make, ran, _ = jobs
    assert run_tables(["table5_variants", "alpha", "table6_negatives"], make(), [1, 2]) == 0
    names = trained(ran)
    assert len(names) == len(set(names)) and {"hdge-s1", "hdge-s2", "ce-s1"} <= set(names)
    asked = [line for line in ran if line.startswith("eval")]
    assert len(asked) == len(set(asked))  # hdge is asked for its AUROC by two of the tables


def test_a_second_call_does_nothing(jobs: Any) -> None:
    make, ran, _ = jobs
    tables = ["figure4_robustness", "table1_ood"]
    assert run_tables(tables, make(), [1]) == 0
    before = list(ran)
    assert run_tables(tables, make(), [1]) == 0
    assert ran == before


def test_an_interrupted_run_is_resumed(jobs: Any) -> None:
    make, ran, fails = jobs
    fails["--id hdge-s1"] = 9
    assert run_tables(["figure3_samples", "table5_variants"], make(), [1]) == 1
    fails.clear()
    ran.clear()
    run_tables(["table5_variants"], make(), [1])
    assert any("--resume" in line and "hdge-s1" in line for line in ran)


def test_a_diverged_run_is_noted_and_the_others_go_on(jobs: Any, capsys: Any) -> None:
    make, ran, fails = jobs
    fails["--id jem-s1"] = 1
    maker = make()
    assert run_tables(["table1_ood"], maker, [1]) == 1
    assert (maker.root / "paper" / "jem-s1" / "diverged.txt").read_text() == "x: diverged at step 1"
    assert "FAILED jem-s1: exit code 1" in capsys.readouterr().err
    assert "hdge-s1" in trained(ran)
    assert not any(line.startswith("eval") and "/jem-s1/" in line for line in ran)
    ran.clear()
    assert run_tables(["table1_ood"], make(), [1]) == 1  # not tried again by itself
    assert not any("/jem-s1" in line or "--id jem-s1" in line for line in ran)


def test_a_run_waits_for_the_one_that_it_starts_from(jobs: Any) -> None:
    make, ran, fails = jobs
    assert run_tables(["table3_hybrid"], make("small", 1), [1]) == 0
    names = trained(ran)
    assert names.index("ce-s1") < names.index("jem-s1")
    assert names.index("hdge-s1") < names.index("hdge-jem-s1")
    fails["--id simclr-s1"] = 2
    assert run_tables(["table1_ood"], make("small", 1), [1]) == 1
    assert "simclr-linear-s1" not in trained(ran)


def test_what_waits_keeps_no_job_from_running(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ce takes as long as hdge does not run: with two jobs, jem must not wait in hdge's place."""
    make, _, _ = jobs
    hdge = threading.Event()
    plain = experiments.Jobs._run

    def run(self: Any, words: list[str], where: Path) -> tuple[int, str]:
        if where.name == "ce-s1":
            assert hdge.wait(20), "hdge was never started"
        if where.name == "hdge-s1":
            hdge.set()
        return plain(self, words, where)

    monkeypatch.setattr(experiments.Jobs, "_run", run)
    assert run_tables(["figure1_histograms"], make("small", 2), [1]) == 0


def test_samples_are_compared_in_the_features_of_one_network(jobs: Any) -> None:
    make, ran, _ = jobs
    maker = make("small", 1)
    assert run_tables(["table3_hybrid"], maker, [1, 2]) == 0
    asked = [shlex.split(line) for line in ran if "--eval fid" in line]
    assert len(asked) == 14
    used = {words[words.index("--fid_model") + 1] for words in asked}
    assert used == {str(maker.root / "small" / "ce-s1" / "last_ckpt.pt")}


def test_an_overlay_shows_what_there_is(jobs: Any) -> None:
    make, ran, fails = jobs
    fails["--id jem-s1"] = 2
    assert run_tables(["figure1_histograms"], make(), [1]) == 1
    (line,) = (line for line in ran if "logp_hist" in line)
    assert "--labels ce hdge " in line


@pytest.mark.parametrize(
    "words",
    ["run nonsense", "run table1_ood --scale huge", "run all --jobs 0", "run all --seeds x"],
)
def test_a_mistake_is_one_line(words: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        experiments.main(words.split())
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_show_prints_every_command(capsys: Any) -> None:
    assert experiments.main(["show", "all", "--scale", "small"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("# ") for line in lines) == len(experiments.TABLES)
    assert any("figure4-l2" in line for line in lines)


def training_flops(scale: str) -> dict[str, float]:
    """Experiment -> FLOP of its training."""
    forward: dict[Any, int] = {}
    found = {}
    for name, experiment in experiments.EXPERIMENTS.items():
        if experiment.program == experiments.PROBE:
            found[name] = 0.0
            continue
        s = parse(experiments.train_command(Path("x"), scale, name, 1))
        network = {n: getattr(s, n) for n in ("arch", "depth", "width", "norm")}
        key = tuple(network.values())
        if key not in forward:
            forward[key] = models.forward_flops(models.build(**network))
        passes = 3.0 if name.startswith("at-") else 6.0  # of two views
        if name.startswith("at-"):
            passes += 3 * s.n_steps_pgd_attack
        an_image = passes * forward[key]
        if experiment.program == "train_wrn.py":
            an_image = step_flops(forward[key], s) / s.batch_size
        found[name] = 45_000 * s.n_epochs * an_image
    return found


@pytest.mark.parametrize(("scale", "unit"), [("paper", 1e18), ("small", 1e15)])
def test_headers_tell_the_cost_of_what_is_trained(scale: str, unit: float) -> None:
    costs = training_flops(scale)
    for name in (*experiments.TABLES, "all"):
        rows = set(experiments.TABLES[name].rows if name != "all" else experiments.EXPERIMENTS)
        for row in list(rows):
            start = experiments.EXPERIMENTS[row].start
            probe = experiments.EXPERIMENTS[row].program == experiments.PROBE
            rows |= {start} if start and (probe or scale in experiments.WARM) else set()
        text = (ROOT / "scripts" / f"{name}.sh").read_text(encoding="utf-8")
        told = re.search(rf"#   {scale}  ([\d.]+) [EP]FLOP, ([\d.]+) ", text)
        assert told, name
        total = sum(costs[row] for row in rows) / unit
        assert float(told[1]) == pytest.approx(total, rel=0.06, abs=0.06), name
        rate = 2e14 if scale == "paper" else 2e11
        assert float(told[2]) == pytest.approx(total * unit / rate / 3600, rel=0.06, abs=0.06), name
