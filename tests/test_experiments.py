"""The rows of the tables: every command parses, nothing is done twice, what failed is said."""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import models
from baselines import flags as baseline_flags
from baselines import train_flow
from evaluation import flags as questions
from evaluation.questions import QUESTIONS
from reports.page import read_run
from runs.cli import UsageError
from scripts import done, experiments, report, rows
from tests.pair import refusal
from training import flags
from training.cost import step_flops

ROOT = Path(__file__).resolve().parent.parent


def parse(words: list[str]) -> Any:
    program, *arguments = words
    if program == "train_wrn.py":
        return flags.parse(arguments)[0]
    if program == "eval_wrn_ebm.py":
        return questions.parse(arguments)[0]
    own = done.flags_of(program)
    assert (ROOT / program).is_file()
    return baseline_flags.parse(arguments, own.build_parser)[0]


def settings_of(scale: str, name: str) -> Any:
    return parse(rows.train_command(Path("x"), scale, rows.Train(name, 1)))


@pytest.mark.parametrize("scale", rows.SCALES)
def test_every_table_has_its_script_and_a_scale_without_rows_names_those_with_some(scale):
    for name, table in rows.TABLES.items():
        text = (ROOT / "scripts" / f"{name}.sh").read_text(encoding="utf-8")
        assert f'/reproduce.sh" {name}\n' in text
        assert set(table.rows) <= set(rows.EXPERIMENTS)
        assert all(set(shown) <= set(table.rows) for _, _, shown in table.overlays)
        if not rows.rows_at(scale, table.rows):
            with pytest.raises(UsageError, match=f"--scale {scale} has no rows of {name}: use "):
                experiments.only(name, scale)


def test_the_papers_settings_are_the_papers():
    s = settings_of("paper", "hdge")
    assert (s.depth, s.width, s.norm, s.lr, s.n_epochs) == (28, 10, "none", 1e-4, 200)
    assert (s.warmup_iters, s.decay_epochs, s.decay_rate) == (1000, [160, 180], 0.3)
    assert (s.contrast_k, s.sigma, s.batch_size, s.load_path) == (65536, 0.03, 64, None)
    s = settings_of("paper", "hdge-bn")
    assert (s.norm, s.optimizer, s.lr, s.batch_size) == ("batch", "sgd", 0.1, 256)
    assert (s.decay_epochs, s.decay_rate, s.dropout_rate) == ([60, 120, 160], 0.2, 0.3)
    assert s.weight_decay == 5e-4
    s = settings_of("paper", "jem-n128")
    assert (s.sgld_batch_size, s.n_steps, s.sgld_l2) == (128, 20, 0)
    assert (s.chain_start, s.sgld_clamp, s.augment_px) == ("uniform", False, "same")


def test_scale_half_shows_stable_rows_in_place_of_those_from_cross_entropy():
    shown = {name: set(rows.rows_at("half", table.rows)) for name, table in rows.TABLES.items()}
    assert {"ce", "hdge", "jem-stable"} < shown["table1_ood"] and "jem" not in shown["table1_ood"]
    assert shown["figure3_samples"] == {"hdge-jem-stable", "hdge-jem-head"}
    assert not rows.rows_at("small", ["jem-stable", "hdge-jem-stable", *rows.LADDER])
    for scale, steps in (("half", 5), ("paper", 5), ("smoke", 2)):
        s = settings_of(scale, "hdge-jem-stable")
        found = (s.n_steps, s.chain_start, s.sgld_clamp, s.load_path, s.max_restarts)
        assert found == (steps, "class_gaussian", True, None, 0)
    assert (s.pyxce, s.pxycontrast, s.pxsgld) == (1, 1, 1)
    own, shared = (vars(settings_of("half", f"hdge-jem-{name}")) for name in ("head", "stable"))
    assert {name for name in own if own[name] != shared[name]} == {"id", "uncond", "augment_px"}


@pytest.mark.parametrize("scale", rows.SCALES)
def test_a_flow_is_asked_without_sgld_noise_and_classes_that_it_lacks(scale):
    for name, scores in (("glow", ["px"]), ("glow-class", ["px", "py"])):
        words = rows.question_words(scale, rows.TABLES["table1_ood"].questions[0], name)
        s, given = questions.parse(["--load_path", "-", "--eval", *words])
        assert s.score_fn == scores and s.sigma == 0 and "n_steps" not in given
    for question in rows.TABLES["table3_hybrid"].questions:
        words = rows.question_words(scale, question, "residual-flow")
        s, given = questions.parse(["--load_path", "-", "--eval", *words])
        assert not given & {"n_steps", "chain_lengths"} and ("sigma" in given) == (s.eval != "fid")
        assert "--n_steps" in rows.question_words(scale, question, "ce") or words[0] != "fid"


def test_a_step_of_the_ladder_changes_one_thing():
    changed = ["sgld_clamp", "chain_start", "augment_px", "uncond", "n_steps", "ema", "px_loss"]
    found = [vars(settings_of("half", n)) for n in rows.LADDER]
    assert found[0]["n_steps"] == 20 and found[0]["chain_start"] == "uniform"
    assert not found[0]["sgld_clamp"] and found[0]["image_size"] == 16
    for step, name in enumerate(changed):
        before, after = found[step : step + 2]
        assert {key for key in before if before[key] != after[key]} == {name, "id"}
    jem, ce = found[0], vars(settings_of("half", "ladder-ce"))
    assert {key for key in jem if jem[key] != ce[key]} == {"pxsgld", "id"}


# Jobs: on a program that only notes that it was called.


def leave(words: list[str], where: Path, code: int) -> None:
    """What the program leaves, as far as it is read: a run, finished with code 0, or an answer."""
    if words[0] == "eval_wrn_ebm.py":
        parsed = parse(words)
        s = vars(parsed)
        models = [{"checkpoint_sha256": done.sha256(Path(path))} for path in s["load_path"]]
        record = {
            "settings": json.loads(json.dumps(s)),
            "protocol": {"version": QUESTIONS[s["eval"]].version},
        }
        record |= models[0] if s["log_dir"] is None else {"models": models}
        record["features_sha256"] = done.sha256(Path(s["fid_model"] or ""))
        (where / f"{s['eval']}.json").write_text(json.dumps(record))
        return
    if "--resume" not in words:
        program = {"program": Path(words[0]).name}
        (where / "variant.json").write_text(json.dumps({**vars(parse(words)), **program}))
    (where / "last_ckpt.pt").write_text(f"{where.name}")
    epochs = json.loads((where / "variant.json").read_text()).get("n_epochs") or 1
    last = epochs - 1 if code == 0 else 0
    (where / "progress.csv").write_text(f"epoch,step\n{last},5\n")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(run tables and return the exit code, the commands that ran, what `fails` with a code)"""
    ran: list[str] = []
    fails: dict[str, int] = {}

    def call(self: Any, job: Any, words: list[str], where: Path, what: str) -> tuple[int, str]:
        ran.append(shlex.join(words))
        code = next((code for part, code in fails.items() if part in ran[-1]), 0)
        where.mkdir(parents=True, exist_ok=True)
        if code in (0, 9):
            leave(words, where, code)
        return code, f"x: diverged at step {code}" if code else ""

    monkeypatch.setattr(experiments.Runner, "call", call)

    def run(tables: str, *words: str, scale: str = "paper", n: int = 2) -> int:
        place = ["--root", str(tmp_path), "--scale", scale, "--jobs", str(n)]
        return experiments.main(["run", *tables.split(), *place, *words])

    return run, ran, fails


def trained(ran: list[str]) -> list[str]:
    return [words[words.index("--id") + 1] for words in map(shlex.split, ran) if "--id" in words]


def test_what_tables_share_is_done_once_and_not_again_by_a_second_call(jobs):
    run, ran, _ = jobs
    tables = "table5_variants alpha table6_negatives figure4_robustness"
    assert run(tables, "--seeds", "1", "2") == 0
    names = trained(ran)
    assert len(names) == len(set(names)) and {"hdge-s1", "hdge-s2", "ce-s1"} <= set(names)
    asked = [line for line in ran if line.startswith("eval")]
    assert len(asked) == len(set(asked))  # hdge is asked for its AUROC by two of the tables
    before = list(ran)
    assert run(tables, "--seeds", "1", "2") == 0
    assert ran == before


@pytest.mark.parametrize("lost", [False, True])
def test_an_interrupted_run_is_resumed_with_its_limit(lost, jobs, tmp_path):
    run, ran, fails = jobs
    fails["--id hdge-jem-s1"] = 9
    assert run("figure3_samples", scale="smoke") == 1
    folder = tmp_path / "smoke" / "hdge-jem-s1"
    (folder / "progress.csv").write_text("epoch,step\n0,2\n")
    if lost:  # by a kill between two names
        (folder / "last_ckpt.pt").rename(folder / "prev_ckpt.pt")
    fails.clear()
    run("figure3_samples", scale="smoke")
    assert any(line.endswith(f"--resume {folder} --max_steps 6") for line in ran)
    assert not any("--overwrite" in line for line in ran)


def test_a_diverged_run_is_noted_and_the_others_go_on(jobs, tmp_path, capsys):
    run, ran, fails = jobs
    fails["--id jem-s1"] = 1
    assert run("table1_ood") == 1
    assert (tmp_path / "paper/jem-s1/diverged.txt").read_text() == "x: diverged at step 1"
    assert "FAILED jem-s1: exit code 1" in capsys.readouterr().err
    assert "hdge-s1" in trained(ran)
    assert not any(line.startswith("eval") and "/jem-s1/" in line for line in ran)
    ran.clear()
    assert run("table1_ood") == 1  # not tried again by itself
    assert not any("/jem-s1" in line or "--id jem-s1" in line for line in ran)


def test_a_run_waits_for_the_one_that_it_starts_from(jobs):
    run, ran, fails = jobs
    assert run("table3_hybrid", scale="small", n=1) == 0
    names = trained(ran)
    assert names.index("ce-s1") < names.index("jem-s1")
    assert names.index("hdge-s1") < names.index("hdge-jem-s1")
    fails["--id simclr-s1"] = 2
    assert run("table1_ood", scale="small", n=1) == 1
    assert "simclr-linear-s1" not in trained(ran)


def test_a_job_that_ends_makes_room_for_one_that_can_run(tmp_path, monkeypatch):
    """ce takes as long as hdge does not run: of two jobs, neither jem, which needs ce, nor alpha0,
    which has ended, may keep hdge's place."""
    hdge = threading.Event()

    def call(self: Any, job: Any, words: list[str], where: Path, what: str) -> tuple[int, str]:
        assert where.name != "ce-s1" or hdge.wait(20), "hdge was never started"
        if where.name == "hdge-s1":
            hdge.set()
        return 0, ""

    monkeypatch.setattr(experiments.Runner, "call", call)
    jobs = [rows.Train(name, 1) for name in ("ce", "alpha0", "jem", "hdge")]
    assert experiments.Runner(tmp_path, "small", 2).run(jobs) == 0


def test_samples_are_compared_in_the_features_of_one_network(jobs, tmp_path):
    run, ran, _ = jobs
    assert run("table3_hybrid", "--seeds", "1", "2", scale="small", n=1) == 0
    asked = [shlex.split(line) for line in ran if "--eval fid" in line]
    assert len(asked) == 2 * 9
    path = tmp_path / "small" / "ce-s1" / "last_ckpt.pt"
    assert {words[words.index("--fid_model") + 1] for words in asked} == {str(path)}
    path.write_text("trained on")
    ran.clear()
    assert run("table3_hybrid", scale="small") == 0
    assert sum("--eval fid" in line for line in ran) == 9


def test_at_half_that_network_comes_with_the_repository(jobs):
    run, ran, _ = jobs
    assert run("table3_hybrid", "--rows", "jem-stable", scale="half", n=1) == 0
    assert trained(ran) == ["jem-stable-s1"]
    (asked,) = (line for line in ran if "--eval fid" in line)
    assert " --fid_model ce-cifar10-half " in asked
    ran.clear()
    assert run("table3_hybrid", "--rows", "jem-stable", scale="half", n=1) == 0
    assert not ran  # its weights are those of the answer


def test_rows_that_are_chosen_are_shown_beside_those_that_were_trained_before(jobs):
    run, ran, _ = jobs
    run("table5_variants")  # hdge
    assert run("figure1_histograms", "--rows", "ce") == 0
    assert "--labels ce hdge " in ran[-1] and "jem-s1" not in trained(ran)


def test_a_job_that_breaks_leaves_the_others_running(jobs, monkeypatch, capsys):
    run, ran, _ = jobs
    plain = experiments.Runner.call

    def call(self: Any, job: Any, words: list[str], where: Path, what: str) -> tuple[int, str]:
        if where.name == "jem-s1":
            raise OSError(28, "No space left on device")
        return plain(self, job, words, where, what)

    monkeypatch.setattr(experiments.Runner, "call", call)
    assert run("figure1_histograms") == 1
    assert "FAILED jem-s1: OSError: [Errno 28] No space left" in capsys.readouterr().err
    assert {"ce-s1", "hdge-s1"} <= set(trained(ran))
    (line,) = (line for line in ran if "logp_hist" in line)
    assert "--labels ce jem-stable hdge " in line  # what there is


def test_the_time_left_is_of_trainings_and_questions_apart(tmp_path):
    """Two trainings and three questions to go, two at a time."""
    runner = experiments.Runner(tmp_path, "half", jobs=2)
    trainings = [rows.Train("ce", seed) for seed in range(3)]
    questions = [rows.Ask(f"question {i}", tuple(trainings)) for i in range(3)]
    runner.plan, runner.done = [*trainings, *questions], {trainings[0]: True}
    assert runner.left() == ""
    runner.seconds[False] = [3000.0, 4200.0]
    assert runner.left() == "; more than 1:00:00 left"
    runner.seconds[True] = [40.0]
    assert runner.left() == "; about 1:01:00 left"


@pytest.mark.parametrize(
    "words",
    [
        *("run nonsense", "run table1_ood --scale huge", "run all --jobs 0", "run all --seeds x"),
        "show sampler --scale paper",
        *("show table1_ood --scale half --rows jem", "run table2_classification --rows ce"),
    ],
)
def test_a_mistake_is_one_line(words):
    refusal(experiments.main, words.split())


def test_a_scale_s_cost_is_its_flops_at_the_speed_of_a_step(monkeypatch, capsys):
    """31 EFLOP are 20 million steps."""
    told = "training step           1.55 TFLOP\ntime a step             180.0 ms, 1 images/s\n"
    found = subprocess.CompletedProcess([], 0, stdout=told, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: found)
    assert experiments.main(["cost", "table1_ood"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("table1_ood: SCALE=paper: 31 jobs, 1,000.0 hours of training")
    assert len(lines) == 4 and re.search(r"SCALE=smoke: \d+ jobs, minutes$", lines[3])
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2, "", "no")
    )
    assert "no step of it: no" in experiments.cost("sampler", "half")


STUB = """#!/bin/bash
case $1 in
    -c) echo "$0" ;;  # as the Python that it is taken for
    scripts/*) echo "ran $*" ;;
esac
"""


def test_a_script_without_scale_prints_the_costs_and_runs_smoke(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stub), "ROOT": str(tmp_path), "SCALE": ""}
    words = ["bash", str(ROOT / "scripts" / "sampler.sh")]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout
    cost, run = (line for line in ran.splitlines() if line.startswith("ran"))
    assert cost == "ran scripts/experiments.py cost sampler"
    assert run.startswith("ran scripts/experiments.py run sampler --scale smoke ")


@pytest.mark.parametrize("scale", rows.SCALES)
def test_every_experiment_is_shown_and_can_be_run_in_that_order(scale, capsys):
    assert experiments.main(["show", "all", "--scale", scale, "--seeds", "2"]) == 0
    there, heads, known = set(), [], set(rows.rows_at(scale, [*rows.EXPERIMENTS]))
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("#"):
            heads.append(line[2:])
            continue
        words = shlex.split(line)[1:]
        s = parse(words)
        needed = getattr(s, "load_path", None)
        needed = needed if isinstance(needed, list) else [needed]
        assert {*needed, getattr(s, "fid_model", None)} - {None, "ce-cifar10-half"} <= there, line
        assert "REFERENCE" not in line
        if "--id" in words:
            there.add(str(Path(s.log_dir) / s.id / "last_ckpt.pt"))
            name, _, seed = s.id.rpartition("-s")
            experiment = rows.EXPERIMENTS[name]
            if experiment.program == rows.PROBE:
                assert needed == [f"{s.log_dir}/{experiment.start}-s2/last_ckpt.pt"]
            else:
                dataset = "digits" if scale == "smoke" else experiment.dataset
                assert (s.seed, s.dataset) == (int(seed), dataset)
            known.discard(name)
    assert not known
    assert heads == [n for n, table in rows.TABLES.items() if rows.rows_at(scale, table.rows)]


def flow_flops(s: Any) -> float:
    """FLOP of a training step an image, counted with one block a scale; the mean of a residual
    block's terms is 4."""
    one = argparse.Namespace(**{**vars(s), "depth": 1})
    model = train_flow.build_flow(one, 10, torch.device("cpu")).train()
    images = torch.zeros(2, 3, s.image_size, s.image_size)
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "geometric_", lambda tensor, _: tensor.fill_(2))
        for n in (1, 2):  # what the power method costs is not an image's
            with FlopCounterMode(display=False) as counter:
                model.log_px(images[:n]).sum().backward()
            counted.append(counter.get_total_flops())
    return float(s.depth * (counted[1] - counted[0]))


def training_flops(scale: str) -> dict[str, float]:
    """Experiment -> FLOP of its training."""
    forward: dict[Any, int] = {}
    found = {}
    for name in rows.rows_at(scale, [*rows.EXPERIMENTS]):
        experiment = rows.EXPERIMENTS[name]
        if experiment.program == rows.PROBE:
            found[name] = 0.0
            continue
        s = settings_of(scale, name)
        if experiment.program == rows.FLOW:
            found[name] = 45_000 * s.n_epochs * flow_flops(s)
            continue
        names = ("arch", "depth", "width", "norm", "image_size")
        network = {n: getattr(s, n) for n in names if hasattr(s, n)}
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


@pytest.mark.parametrize(("scale", "unit"), [("paper", 1e18), ("small", 1e15), ("half", 1e15)])
def test_headers_tell_the_cost_of_what_is_trained(scale, unit):
    costs = training_flops(scale)
    for name in (*rows.TABLES, "all"):
        listed = [*rows.EXPERIMENTS] if name == "all" else rows.TABLES[name].rows
        names = set(rows.rows_at(scale, listed))
        for row in list(names):
            names |= {start.name for start in rows.needs(scale, rows.Train(row, 1))}
        text = (ROOT / "scripts" / f"{name}.sh").read_text(encoding="utf-8")
        told = re.search(rf"#   {scale}  ([\d.]+) [EP]FLOP, ([\d.]+) ", text)
        assert (told is not None) == bool(names), name
        if told is None:
            continue
        total = sum(costs[row] for row in names) / unit
        assert float(told[1]) == pytest.approx(total, rel=0.06, abs=0.06), name
        rate = 2e14 if scale == "paper" else 2e11
        assert float(told[2]) == pytest.approx(total * unit / rate / 3600, rel=0.06, abs=0.06), name


# What is done, and what only looks like it.


def test_a_probe_is_finished_once_its_checkpoint_is_there(jobs, tmp_path):
    run, ran, _ = jobs
    assert run("table1_ood") == 0
    folder = tmp_path / "paper" / "simclr-linear-s1"
    settings = json.loads((folder / "variant.json").read_text())
    # as a real probe leaves it: its backbone's epochs, and one row
    (folder / "variant.json").write_text(json.dumps({**settings, "n_epochs": 200, "max_steps": 6}))
    (folder / "progress.csv").write_text("epoch,step\n0,999\n")
    before = list(ran)
    assert run("table1_ood") == 0
    assert ran == before
    (folder / "last_ckpt.pt").unlink()
    assert run("table1_ood") == 0
    again = ran[len(before)]
    assert again.startswith("baselines/linear_probe.py") and again.endswith("--overwrite")


def test_answers_about_other_weights_are_asked_again(jobs, tmp_path):
    run, ran, _ = jobs
    tables = "figure1_histograms table5_variants"
    assert run(tables) == 0
    (tmp_path / "paper" / "hdge-s1" / "last_ckpt.pt").write_text("trained on")
    before = len(ran)
    assert run(tables) == 0
    assert [line.split("--eval ")[1].split()[0] for line in ran[before:]].count("logp_hist") == 1
    assert len(ran[before:]) == 3 and all("hdge-s1" in line for line in ran[before:])


def test_an_answer_of_another_protocol_is_none_another_recipe_is_refused(jobs, tmp_path, capsys):
    run, ran, _ = jobs
    assert run("figure3_samples") == 0
    folder = tmp_path / "paper" / "hdge-jem-s1"
    path = folder / "eval" / "cond_samples.json"
    for change in ("version", "settings", "gone", "damaged", "nothing"):
        record = json.loads(path.read_text())
        record["protocol"]["version"] += change == "version"
        record["settings"]["n_sample_steps"] += change == "settings"
        path.write_text("{" if change == "damaged" else json.dumps(record))
        if change == "gone":
            path.unlink()
        before = len(ran)
        assert run("figure3_samples") == 0
        assert len(ran) == before + (change != "nothing"), change
    capsys.readouterr()
    settings = json.loads((folder / "variant.json").read_text())
    (folder / "variant.json").write_text(json.dumps({**settings, "lr": 0.5}))
    assert run("figure3_samples") == 1
    said = capsys.readouterr().err
    assert "but the run has 0.5" in said and said.count("\n") == 1 and len(ran) == before


@pytest.mark.parametrize(
    ("scale", "name", "change", "said"),
    [
        ("half", "ladder-clamp", {"sgld_clamp": False}, "--sgld_clamp True, but the run has False"),
        ("half", "ladder-jem", {"sgld_clamp": True}, "--sgld_clamp False, but the run has True"),
        ("half", "ce", {"image_size": 32}, "--image_size 16, but the run has 32"),
        ("half", "ladder-start", {}, None),
        ("paper", "hdge", {"lr": 0.5, "data_root": "moved"}, "--lr 0.0001, but the run has 0.5"),
        ("paper", "hdge-raw", {"contrast_normalize": True},
         "--contrast_normalize False, but the run has True"),
        ("paper", "at-linf", {"attack_step": 1.0}, None),
        ("paper", "supcon-bn", {"decay_epochs": [1]},
         "--decay_epochs [60, 120, 160], but the run has [1]"),
    ],
)  # fmt: skip
def test_a_run_with_other_settings_is_of_another_recipe(scale, name, change, said, tmp_path):
    words = rows.train_command(tmp_path, scale, rows.Train(name, 1))
    (tmp_path / "variant.json").write_text(json.dumps({**vars(parse(words)), **change}))
    assert done.other_recipe(tmp_path, words) == said


def test_the_last_whole_row_is_read(tmp_path):
    for text, expected in {
        "epoch,step\n1,4\n,\n": (2, 4),
        "epoch,step\n1,4\nabc,5\n": (2, 4),
        "epoch,step\n1": (0, 0),
        "epoch,step,train_acc\n1,4,.5\n2,9": (2, 4),
        "epoch,step,train_acc\n1,4,\n": (2, 4),  # of a network that does not classify
    }.items():
        (tmp_path / "progress.csv").write_text(text)
        run = read_run(tmp_path)
        assert (run.epochs, run.steps) == expected, text


# Processes.

SLEEPER = """import multiprocessing, os, signal, time
from pathlib import Path
def busy(*_):  # in a step that takes longer than anybody waits
    if not multiprocessing.parent_process().is_alive():
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, busy)
Path(__file__).with_name("pid").write_text(str(os.getpid()))
time.sleep(120)
"""
DRIVER = """import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from scripts import experiments
here = Path(__file__).parent
experiments.rows.train_command = lambda *_: [str(here / "sleeper.py")]
experiments.done.other_recipe, experiments.GRACE = (lambda *_, **__: None), 1.0
if __name__ == "__main__":
    sys.exit(experiments.main(["run", "figure5_negatives", "--root", str(here / "runs")]))
"""


@pytest.fixture(params=["foreground", pytest.param("background", marks=pytest.mark.slow)])
def sleeping(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """(the process that runs experiments, the process number of the program that it runs)

    A shell lets what it starts in the background ignore SIGINT.
    """
    background = request.param == "background"
    if background and "ctrl_c" in request.node.name:
        pytest.skip("Ctrl-C does not reach what runs in the background")
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "driver.py").write_text(DRIVER.format(root=str(ROOT)))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if background else None,
    )
    try:
        pid = wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        yield process, int(pid)
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Any) -> Any:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up there")


@needs_proc
def test_a_program_ends_with_the_process_that_started_it(sleeping):
    process, pid = sleeping
    process.kill()
    wait_for(lambda: gone(pid))


@needs_proc
def test_ctrl_c_is_one_line_and_ends_everything(sleeping):
    process, pid = sleeping
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and gone(pid)
    assert said == "interrupted: the same command goes on from here\n"


@pytest.mark.slow
def test_a_gpu_that_is_not_there_ends_a_job_that_would_take_the_cpu(tmp_path):
    assert experiments.in_process(["train_wrn.py", "--help"], tmp_path / "log", 99) == 2
    assert "--gpus 99: PyTorch sees no such GPU" in (tmp_path / "log").read_text()


def test_a_root_that_another_works_in_or_that_cannot_be_written_to_is_a_mistake(sleeping, tmp_path):
    (tmp_path / "file").write_text("")
    for root, told in (("runs", "another experiments.py"), ("file", "cannot write to")):
        line = refusal(experiments.main, ["run", "alpha", "--root", str(tmp_path / root)])
        assert "--root" in line and told in line


# Sweeps: of runs on the digits, in this process.


@pytest.fixture
def sweep(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(sweep and return the exit code, the commands that ran)"""
    ran: list[list[str]] = []

    def in_process(words: list[str], log: Path, device: int | None) -> int:
        ran.append(words)
        log.touch()
        return train.bare(*words[1:]).code

    monkeypatch.setattr(experiments, "in_process", in_process)
    recipe = "--dataset digits --image_size 8 --depth 10 --width 1 --pyxce 1 --pxycontrast 1 "
    recipe += "--contrast_k 64 --max_steps 2 --batch_size 16 --device cpu "

    def run(vary: str = "contrast_t .05 .1", more: str = "") -> int:
        own = ["--vary", *vary.split(), "--seeds", "1", "2", "--root", str(tmp_path)]
        return experiments.main(["sweep", *own, "--", *(recipe + more).split()])

    return run, ran


def test_a_sweep_trains_each_value_with_each_seed_and_compares(sweep, tmp_path, capsys):
    run, ran = sweep
    assert run() == 0 and len(ran) == 4
    for value, seed in ((value, seed) for value in (".05", ".1") for seed in (1, 2)):
        place = tmp_path / f"contrast_t-{value}-s{seed}"
        settings = json.loads((place / "variant.json").read_text())
        assert (settings["contrast_t"], settings["seed"]) == (float(value), seed)
        assert settings["dataset"] == "digits"
    shown = capsys.readouterr().out
    assert "| --contrast_t " in shown and "| test accuracy in training (%) | " in shown
    for value in (".05", ".1"):
        names = f"contrast_t-{value}-s1, contrast_t-{value}-s2"
        assert f"\n{names} differ in the seed alone (1, 2), mean +- sd: test accuracy" in shown
    page = report.main([*map(str, tmp_path.glob("*-s1")), "--output", str(tmp_path / "a.html")])
    text = page.read_text(encoding="utf-8")
    assert all(f">contrast_t-{value}-s1</" in text for value in (".05", ".1"))
    assert "Accuracy (%): test_acc over epochs" in text and "<td>--contrast_t</td>" in text
    ran.clear()
    (tmp_path / "contrast_t-.1-s2" / "progress.csv").write_text("epoch,step\n")
    assert run() == 0  # goes on with what is not finished, and repeats nothing
    assert [words[1:4:2] for words in ran] == [["--resume", "--max_steps"]]
    assert capsys.readouterr().out.count("trained already") == 3
    assert run(more="--pxcontrast 1") == 1 and len(ran) == 1
    assert "the recipe has --pxcontrast 1.0, but the run has None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("pyxce .5 1 -- --dataset digits", "--dataset digits --pyxce .5"),  # the only term
        ("n_steps 5 10 -- @jem --sgld_lr 2", "--sgld_lr 2 --n_steps 5"),  # for the recipe's term
    ],
)
def test_the_flags_of_a_sweep_need_to_make_sense_only_together(words, flags):
    args, points = experiments.parse_sweep(["--vary", *words.split()])
    assert [point.seed for point in points] == args.seeds * 2 and args.seeds == [1]
    assert " ".join(points[0].flags).endswith(flags)


@pytest.mark.parametrize(
    ("vary", "more", "said"),
    [
        ("contrast_t .05", "", "--vary contrast_t: give two values or more"),
        ("contrast_t .05 .05", "", "--vary contrast_t: give two values or more"),
        ("seed 1 2", "", "--vary seed: the sweep sets it: give another flag; --seeds has"),
        ("contrast_t .05 x", "", "argument --contrast_t: 'x' is not a number"),
        ("temprature .05 .1", "", "unrecognized arguments: --temprature"),
        ("contrast_t .05 .1", "--seed 3", "--seed is the sweep's own: leave it out after --"),
        ("lr 1 2", "--lr 3", "--lr is the sweep's own"),
    ],
)
def test_a_mistaken_sweep_is_refused_before_it_trains(vary, more, said, sweep):
    run, ran = sweep
    assert said in refusal(run, vary, more) and not ran
