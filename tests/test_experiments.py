"""scripts/experiments.py: commands parse, no job is done twice, a failed job is printed."""

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
from functools import cache
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


def parse(command: list[str]) -> Any:
    program, *argv = command
    if program == "train_wrn.py":
        return flags.parse(argv)[0]
    if program == "eval_wrn_ebm.py":
        return questions.parse(argv)[0]
    assert (ROOT / program).is_file()
    return baseline_flags.parse(argv, done.flags_of(program).build_parser)[0]


def settings_of(scale: str, name: str) -> Any:
    return parse(rows.train_command(Path("x"), scale, rows.Train(name, 1)))


ALL_SCALES = pytest.mark.parametrize("scale", rows.SCALES)


@ALL_SCALES
def test_every_table_has_its_script_and_a_scale_without_rows_names_those_with_some(scale):
    for name, table in rows.TABLES.items():
        text = (ROOT / "scripts" / f"{name}.sh").read_text(encoding="utf-8")
        assert f'/reproduce.sh" {name}\n' in text
        assert set(table.rows) <= set(rows.EXPERIMENTS)
        assert all(set(names) <= set(table.rows) for _, _, names in table.overlays)
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
    table1, figure3 = (
        set(rows.rows_at("half", rows.TABLES[name].rows))
        for name in ("table1_ood", "figure3_samples")
    )
    assert {"ce", "hdge", "jem-stable"} < table1 and "jem" not in table1
    assert figure3 == {"hdge-jem-stable", "hdge-jem-head"}
    assert not rows.rows_at("small", ["jem-stable", "hdge-jem-stable", *rows.LADDER])
    for scale, steps in (("half", 5), ("paper", 5), ("smoke", 2)):
        s = settings_of(scale, "hdge-jem-stable")
        assert (s.n_steps, s.chain_start, s.sgld_clamp) == (steps, "class_gaussian", True)
        assert (s.load_path, s.max_restarts) == (None, 0)
    assert (s.pyxce, s.pxycontrast, s.pxsgld) == (1, 1, 1)
    head, stable = (settings_of("half", f"hdge-jem-{name}") for name in ("head", "stable"))
    assert differences(head, stable) == {"id", "uncond", "augment_px"}


def differences(a: Any, b: Any) -> set[str]:
    return {name for name, value in vars(a).items() if value != getattr(b, name)}


@ALL_SCALES
def test_a_flow_is_asked_without_sgld_noise_and_absent_classes(scale):
    def parsed(question: str, name: str) -> tuple[Any, set[str]]:
        argv = rows.question_words(scale, question, name)
        return questions.parse(["--load_path", "-", "--eval", *argv])

    for name, scores in (("glow", ["px"]), ("glow-class", ["px", "py"])):
        s, given = parsed(rows.TABLES["table1_ood"].questions[0], name)
        assert s.score_fn == scores and s.sigma == 0 and "n_steps" not in given
    for question in rows.TABLES["table3_hybrid"].questions:
        s, given = parsed(question, "residual-flow")
        assert not given & {"n_steps", "chain_lengths"} and ("sigma" in given) == (s.eval != "fid")
        assert "n_steps" in parsed(question, "ce")[1] or s.eval != "fid"


@ALL_SCALES
def test_a_network_is_evaluated_without_noise_where_it_was_trained_without(scale):
    for name, experiment in rows.EXPERIMENTS.items():
        if experiment.setting in rows.SCALES[scale]:
            trained = experiment.start if experiment.program == rows.PROBE else name
            program, *argv = rows.train_command(Path(), scale, rows.Train(trained, 1))
            noise = done.flags_of(program).build_parser().parse_args(argv).sigma
            for question in ("test_clf", "OOD --score_fn px"):
                argv = rows.question_words(scale, question, name)
                s, given = questions.parse(["--load_path", "-", "--eval", *argv])
                assert (s.sigma == 0) == ("sigma" in given) == (noise == 0), name


def test_a_step_of_the_ladder_changes_one_thing():
    changed = ["sgld_clamp", "chain_start", "augment_px", "uncond", "n_steps", "ema", "px_loss"]
    ladder = [settings_of("half", name) for name in rows.LADDER]
    jem = ladder[0]
    assert (jem.n_steps, jem.chain_start, jem.sgld_clamp) == (20, "uniform", False)
    assert jem.image_size == 16
    for step, name in enumerate(changed):
        assert differences(*ladder[step : step + 2]) == {name, "id"}
    assert differences(jem, settings_of("half", "ladder-ce")) == {"pxsgld", "id"}


class Runs:
    """Runs tables by programs that only leave files, and notes the commands of the last call.

    `codes`: the exit code, or the exception, of a command with this part.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.commands, self.codes = root, list[str](), dict[str, Any]()

    def __call__(self, argv: str, scale: str = "paper", jobs: int = 2) -> int:
        self.commands.clear()
        flags = f"--root {self.root} --scale {scale} --jobs {jobs}"
        return experiments.main(["run", *argv.split(), *flags.split()])

    def call(self, command: list[str], folder: Path) -> tuple[int, str]:
        line = shlex.join(command)
        code = next((code for part, code in self.codes.items() if part in line), 0)
        if isinstance(code, Exception):
            raise code
        self.commands.append(line)
        folder.mkdir(parents=True, exist_ok=True)
        if code in (0, 9):
            leave(command, folder, finished=code == 0)
        return code, f"x: diverged at step {code}" if code else ""

    @property
    def trained(self) -> list[str]:
        commands = map(shlex.split, self.commands)
        return [argv[argv.index("--id") + 1] for argv in commands if "--id" in argv]

    def evaluations(self, question: str = "") -> list[str]:
        return [line for line in self.commands if f"--eval {question}" in line]


def leave(command: list[str], folder: Path, *, finished: bool) -> None:
    """Write the files of a run or of an answer, as far as scripts/done.py reads them."""
    if command[0] == "eval_wrn_ebm.py":
        s = vars(parse(command))
        models = [{"checkpoint_sha256": done.sha256(Path(path))} for path in s["load_path"]]
        record = {"settings": s, "protocol": {"version": QUESTIONS[s["eval"]].version}}
        record |= models[0] if s["log_dir"] is None else {"models": models}
        record["features_sha256"] = done.sha256(Path(s["fid_model"] or ""))
        (folder / f"{s['eval']}.json").write_text(json.dumps(record))
        return
    if "--resume" not in command:
        settings = {**vars(parse(command)), "program": Path(command[0]).name}
        (folder / "variant.json").write_text(json.dumps(settings))
    (folder / "last_ckpt.pt").write_text(folder.name)
    epochs = json.loads((folder / "variant.json").read_text()).get("n_epochs") or 1
    (folder / "progress.csv").write_text(f"epoch,step\n{epochs - 1 if finished else 0},5\n")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    run = Runs(tmp_path)
    monkeypatch.setattr(
        experiments.Runner, "call", lambda self, job, command, folder, _: run.call(command, folder)
    )
    return run


def test_jobs_that_tables_share_are_done_once_and_not_again_by_a_second_call(run):
    argv = "table5_variants alpha table6_negatives figure4_robustness --seeds 1 2"
    assert run(argv) == 0
    assert {"hdge-s1", "hdge-s2", "ce-s1"} <= set(run.trained)
    for jobs in (run.trained, run.evaluations()):  # two tables ask hdge for its AUROC
        assert len(jobs) == len(set(jobs)) > 0
    assert run(argv) == 0 and not run.commands


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_run_is_resumed_with_its_limit(killed, run, tmp_path):
    run.codes["--id hdge-jem-s1"] = 9
    assert run("figure3_samples", "smoke") == 1
    folder = tmp_path / "smoke" / "hdge-jem-s1"
    (folder / "progress.csv").write_text("epoch,step\n0,2\n")
    if killed:  # while it renamed a checkpoint
        (folder / "last_ckpt.pt").rename(folder / "prev_ckpt.pt")
    run.codes.clear()
    run("figure3_samples", "smoke")
    assert any(line.endswith(f"--resume {folder} --max_steps 6") for line in run.commands)
    assert not any("--overwrite" in line for line in run.commands)


def test_a_diverged_run_is_noted_and_not_tried_again_and_the_others_go_on(run, tmp_path, capsys):
    run.codes["--id jem-s1"] = 1
    assert run("table1_ood") == 1
    assert (tmp_path / "paper/jem-s1/diverged.txt").read_text() == "x: diverged at step 1"
    assert "FAILED jem-s1: exit code 1" in capsys.readouterr().err
    assert "hdge-s1" in run.trained and not any("/jem-s1/" in line for line in run.evaluations())
    assert run("table1_ood") == 1
    assert not any("/jem-s1" in line or "--id jem-s1" in line for line in run.commands)


def test_a_run_waits_for_the_one_that_it_starts_from(run):
    assert run("table3_hybrid", "small", 1) == 0
    assert run.trained.index("ce-s1") < run.trained.index("jem-s1")
    assert run.trained.index("hdge-s1") < run.trained.index("hdge-jem-s1")
    run.codes["--id simclr-s1"] = 2
    assert run("table1_ood", "small", 1) == 1
    assert "simclr-linear-s1" not in run.trained


def test_a_job_that_ends_makes_room_for_one_that_can_run(tmp_path, monkeypatch):
    """ce lasts until hdge runs. So of two slots, neither jem, which needs ce, nor alpha0, which has
    ended, may keep hdge's."""
    hdge = threading.Event()

    def call(self: Any, job: Any, command: list[str], folder: Path, _: str) -> tuple[int, str]:
        assert folder.name != "ce-s1" or hdge.wait(20), "hdge was never started"
        if folder.name == "hdge-s1":
            hdge.set()
        return 0, ""

    monkeypatch.setattr(experiments.Runner, "call", call)
    jobs = [rows.Train(name, 1) for name in ("ce", "alpha0", "jem", "hdge")]
    assert experiments.Runner(tmp_path, "small", 2).run(jobs) == 0


def test_samples_are_compared_in_the_features_of_one_network(run, tmp_path):
    assert run("table3_hybrid --seeds 1 2", "small", 1) == 0
    path = tmp_path / "small" / "ce-s1" / "last_ckpt.pt"
    assert len(run.evaluations("fid")) == 2 * 9
    assert all(f" --fid_model {path} " in f"{line} " for line in run.evaluations("fid"))
    path.write_text("trained on")
    assert run("table3_hybrid", "small") == 0 and len(run.evaluations("fid")) == 9


def test_at_half_that_network_comes_with_the_repository(run):
    argv = "table3_hybrid --rows jem-stable"
    assert run(argv, "half", 1) == 0 and run.trained == ["jem-stable-s1"]
    (line,) = run.evaluations("fid")
    assert " --fid_model ce-cifar10-half " in line
    assert run(argv, "half", 1) == 0 and not run.commands  # the hash of its weights is the answer's


def test_chosen_rows_are_shown_beside_those_that_were_trained_before(run):
    run("table5_variants")  # hdge
    assert run("figure1_histograms --rows ce") == 0
    assert "--labels ce hdge " in run.commands[-1] and "jem-s1" not in run.trained


def test_a_job_that_raises_leaves_the_others_running(run, capsys):
    run.codes["--id jem-s1"] = OSError(28, "No space left on device")
    assert run("figure1_histograms") == 1
    assert "FAILED jem-s1: OSError: [Errno 28] No space left" in capsys.readouterr().err
    assert {"ce-s1", "hdge-s1"} <= set(run.trained)
    (line,) = run.evaluations("logp_hist")
    assert "--labels ce jem-stable hdge " in line  # without jem


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
    ("flags", "at_a_time", "gpus"),
    [
        ("", 1, {None}),
        ("--gpus 4 5 6", 3, {4, 5, 6}),
        ("--gpus 4 5 6 --jobs 2", 2, {4, 5, 6}),
        ("--gpus 4 5 --jobs 3", 3, {4, 5}),
    ],
)
def test_as_many_programs_run_at_a_time_as_asked_and_use_all_gpus(
    flags, at_a_time, gpus, tmp_path, monkeypatch
):
    meeting, used = threading.Barrier(at_a_time), []

    def in_process(command: list[str], log: Path, device: int | None) -> int:
        meeting.wait(20)
        used.append(device)
        log.touch()
        return 0

    monkeypatch.setattr(experiments, "in_process", in_process)
    monkeypatch.setattr(experiments.rows, "needs", lambda *_: [])
    args = experiments.build_parser().parse_args(["run", "alpha", *flags.split()])
    runner = experiments.Runner(tmp_path, "paper", args.jobs, args.gpus)
    assert runner.run([rows.Train("hdge", seed) for seed in range(6)]) == 0
    assert runner.jobs == at_a_time and set(used) == gpus and len(used) == 6


@pytest.mark.parametrize(
    "argv",
    [
        *("run nonsense", "run table1_ood --scale huge", "run all --jobs 0", "run all --seeds x"),
        "show sampler --scale paper",
        *("show table1_ood --scale half --rows jem", "run table2_classification --rows ce"),
    ],
)
def test_a_mistake_is_one_line(argv):
    refusal(experiments.main, argv.split())


def test_a_scale_s_cost_is_its_flops_at_the_speed_of_a_step(monkeypatch, capsys):
    """31 EFLOP are 20 million steps."""
    step = "training step           1.55 TFLOP\ntime a step             180.0 ms, 1 images/s\n"
    dry_run = subprocess.CompletedProcess([], 0, stdout=step, stderr="warning: busy\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: dry_run)
    assert experiments.main(["cost", "table1_ood"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("table1_ood: SCALE=paper: 31 jobs, 1,000.0 hours of training")
    assert printed.err == "warning: busy\n" * 3
    assert len(lines) == 4 and re.search(r"SCALE=smoke: \d+ jobs, minutes$", lines[3])
    dry_run.stdout, dry_run.stderr = "", "no"
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
    command = ["bash", str(ROOT / "scripts" / "sampler.sh")]
    unset = {**os.environ, **dict.fromkeys(("SCALE", "SEEDS", "JOBS", "GPUS"), "")}
    for given, words in (
        ({}, ""),
        ({"JOBS": "2"}, " --jobs 2"),
        ({"GPUS": "0 1"}, " --gpus 0 1"),
    ):
        environment = {**unset, "PYTHON": str(stub), "ROOT": str(tmp_path), **given}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        cost, run = (line for line in done.stdout.splitlines() if line.startswith("ran"))
        assert cost == "ran scripts/experiments.py cost sampler"
        assert run.startswith("ran scripts/experiments.py run sampler --scale smoke ")
        assert run.endswith(f" --seeds 1{words}")


@ALL_SCALES
def test_every_experiment_is_shown_and_can_be_run_in_that_order(scale, capsys):
    argv = f"show all --scale {scale} --seeds 2 --root ~no-such-user"
    assert experiments.main(argv.split()) == 0
    trained, names = set(), set()
    lines = capsys.readouterr().out.splitlines()
    for line in lines:
        if line.startswith("#"):
            continue
        command = shlex.split(line)[1:]
        s = parse(command)
        needed = getattr(s, "load_path", None)
        needed = needed if isinstance(needed, list) else [needed]
        assert {*needed, getattr(s, "fid_model", None)} <= trained | {None, "ce-cifar10-half"}, line
        assert "REFERENCE" not in line
        if "--id" in command:
            trained.add(str(Path(s.log_dir) / s.id / "last_ckpt.pt"))
            name, _, seed = s.id.rpartition("-s")
            names.add(name)
            experiment = rows.EXPERIMENTS[name]
            if experiment.program == rows.PROBE:
                assert needed == [f"{s.log_dir}/{experiment.start}-s2/last_ckpt.pt"]
            else:
                dataset = "digits" if scale == "smoke" else experiment.dataset
                assert (s.seed, s.dataset) == (int(seed), dataset)
    assert names >= {*rows.rows_at(scale, [*rows.EXPERIMENTS])}
    tables = [name for name, table in rows.TABLES.items() if rows.rows_at(scale, table.rows)]
    assert [line[2:] for line in lines if line[0] == "#"] == tables


def flow_flops(s: Any) -> float:
    """Count a training step's FLOP an image, with one block a scale instead of `s.depth`.

    The mean number of a residual block's terms is 4.
    """
    shallow = argparse.Namespace(**{**vars(s), "depth": 1})
    model = train_flow.build_flow(shallow, 10, torch.device("cpu")).train()
    images, totals = torch.zeros(2, 3, s.image_size, s.image_size), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "geometric_", lambda tensor, _: tensor.fill_(2))
        for n in (1, 2):  # the power method's FLOP do not depend on the images
            with FlopCounterMode(display=False) as counter:
                model.log_px(images[:n]).sum().backward()
            totals.append(counter.get_total_flops())
    return float(s.depth * (totals[1] - totals[0]))


@cache
def forward_flops(**network: Any) -> int:
    return models.forward_flops(models.build(**network))


def training_flops(scale: str, name: str) -> float:
    """Count the FLOP of an experiment's training."""
    program, s = rows.EXPERIMENTS[name].program, settings_of(scale, name)
    if program == rows.PROBE:
        return 0.0
    if program == rows.FLOW:
        return 45_000 * s.n_epochs * flow_flops(s)
    network = ("arch", "depth", "width", "norm", "image_size")
    forward = forward_flops(**{n: getattr(s, n) for n in network if hasattr(s, n)})
    if program == "train_wrn.py":
        an_image = step_flops(forward, s) / s.batch_size
    elif name.startswith("at-"):
        an_image = forward * (3.0 + 3 * s.n_steps_pgd_attack)
    else:  # a pass forward and two back, of two views
        an_image = forward * 6.0
    return 45_000 * s.n_epochs * an_image


@pytest.mark.parametrize(("scale", "unit"), [("paper", 1e18), ("small", 1e15), ("half", 1e15)])
def test_headers_tell_the_cost_of_what_is_trained(scale, unit):
    every = rows.rows_at(scale, [*rows.EXPERIMENTS])
    costs = {name: training_flops(scale, name) for name in every}
    for name in (*rows.TABLES, "all"):
        listed = [*rows.EXPERIMENTS] if name == "all" else rows.TABLES[name].rows
        names = set(rows.rows_at(scale, listed))
        for row in list(names):
            names |= {start.name for start in rows.needs(scale, rows.Train(row, 1))}
        text = (ROOT / "scripts" / f"{name}.sh").read_text(encoding="utf-8")
        header = re.search(rf"#   {scale}  ([\d.]+) [EP]FLOP, ([\d.]+) ", text)
        assert (header is not None) == bool(names), name
        if header is not None:
            flops = sum(costs[row] for row in names)
            hours = flops / (2e14 if scale == "paper" else 2e11) / 3600
            numbers = [float(number) for number in header.groups()]
            assert numbers == pytest.approx([flops / unit, hours], rel=0.06, abs=0.06), name


def test_all_with_rows_are_the_tables_that_have_some_of_them(capsys):
    assert experiments.main("show all --scale half --rows alpha0 hdge-t0.5".split()) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert shown == ["# alpha", "# temperature"]


def test_a_probe_is_finished_once_its_checkpoint_exists(run, tmp_path):
    assert run("table1_ood") == 0
    folder = tmp_path / "paper" / "simclr-linear-s1"
    settings = json.loads((folder / "variant.json").read_text())
    # A real probe leaves its backbone's epochs, and one row.
    (folder / "variant.json").write_text(json.dumps({**settings, "n_epochs": 200, "max_steps": 6}))
    (folder / "progress.csv").write_text("epoch,step\n0,999\n")
    assert run("table1_ood") == 0 and not run.commands
    (folder / "last_ckpt.pt").unlink()
    assert run("table1_ood") == 0
    assert run.commands[0].startswith("baselines/linear_probe.py")
    assert run.commands[0].endswith("--overwrite")


def test_questions_about_other_weights_are_asked_again(run, tmp_path):
    tables = "figure1_histograms table5_variants"
    assert run(tables) == 0
    (tmp_path / "paper" / "hdge-s1" / "last_ckpt.pt").write_text("trained on")
    assert run(tables) == 0 and len(run.evaluations("logp_hist")) == 1
    assert len(run.commands) == 3 and all("hdge-s1" in line for line in run.commands)


def test_an_answer_of_another_setting_is_replaced_and_a_run_refused(run, tmp_path, capsys):
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
        assert run("figure3_samples") == 0 and len(run.commands) == (change != "nothing"), change
    settings = json.loads((folder / "variant.json").read_text())
    (folder / "variant.json").write_text(json.dumps({**settings, "lr": 0.5}))
    capsys.readouterr()
    assert run("figure3_samples") == 1 and not run.commands
    message = capsys.readouterr().err
    assert "but the run has 0.5" in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("scale", "name", "change", "difference"),
    [
        ("half", "ladder-clamp", {"sgld_clamp": False}, "--sgld_clamp True, but the run has False"),
        ("half", "ladder-jem", {"sgld_clamp": True}, "--sgld_clamp False, but the run has True"),
        ("half", "ce", {"image_size": 32}, "--image_size 16, but the run has 32"),
        ("half", "ladder-start", {}, None),
        ("paper", "hdge", {"lr": 0.5, "data_root": "moved"}, "--lr 0.0001, but the run has 0.5"),
        ("paper", "hdge-raw", {"contrast_normalize": True},
         "--contrast_normalize False, but the run has True"),
        ("paper", "at-linf", {"attack_step": 1.0},
         f"--attack_step {2 / 255}, but the run has 1.0"),
        ("small", "at-linf", {"attack_step": 1.0}, None),  # by default it depends on other flags
        ("paper", "hdge", {"queue_init": "random"},
         "--queue_init empty, but the run has random"),
        ("paper", "supcon-bn", {"decay_epochs": [1]},
         "--decay_epochs [60, 120, 160], but the run has [1]"),
    ],
)  # fmt: skip
def test_a_run_with_other_settings_is_of_another_recipe(scale, name, change, difference, tmp_path):
    command = rows.train_command(tmp_path, scale, rows.Train(name, 1))
    (tmp_path / "variant.json").write_text(json.dumps({**vars(parse(command)), **change}))
    assert done.other_recipe(tmp_path, command) == difference


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


def test_a_run_that_is_stopped_in_its_last_epoch_is_finished_once_it_has_gone_on(train):
    late, above = "--max_minutes 1e-9", "--max_steps 99"  # an epoch has 5 steps
    for more, resumed, finished in (
        (f"--n_epochs 1 {late}", "", False),
        (f"--n_epochs 2 --start_epoch 1 --max_steps 3 {late}", "--max_steps 3", False),
        (f"--n_epochs 1 {above}", above, True),
    ):
        run = train(f"--pyxce 1 {more}")
        assert run.code == 0 and read_run(run.folder).finished == finished, more
        assert train.resumed(run, *resumed.split()).code == 0 and read_run(run.folder).finished


SLEEPER = """import multiprocessing, os, signal, time
from pathlib import Path
def busy(*_):  # a step that does not end
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
folder = Path(__file__).parent
experiments.rows.train_command = lambda *_: [str(folder / "sleeper.py")]
experiments.done.other_recipe, experiments.GRACE = (lambda *_, **__: None), 1.0
experiments.PROCESSES.set_forkserver_preload(["slow"])  # only one test has such a module
if __name__ == "__main__":
    sys.exit(experiments.main(["run", "figure5_negatives", "--root", str(folder / "runs")]))
"""


def start_driver(folder: Path, **options: Any) -> subprocess.Popen[str]:
    (folder / "driver.py").write_text(DRIVER.format(root=str(ROOT)))
    return subprocess.Popen(
        [sys.executable, str(folder / "driver.py")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.fixture(params=["foreground", pytest.param("background", marks=pytest.mark.slow)])
def sleeping(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """Yield the process of experiments.py, and the process number of the program that it runs.

    A shell's background jobs ignore SIGINT.
    """
    background = request.param == "background"
    if background and "ctrl_c" in request.node.name:
        pytest.skip("Ctrl-C does not reach a background job")
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    ignore = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if background else None
    process = start_driver(tmp_path, preexec_fn=ignore)
    try:
        pid = wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        yield process, int(pid)
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Any) -> Any:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("the condition has not come true")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


needs_proc = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")


@needs_proc
def test_a_program_ends_with_the_process_that_started_it(sleeping):
    process, pid = sleeping
    process.kill()
    wait_for(lambda: gone(pid))


@needs_proc
def test_ctrl_c_is_one_line_and_ends_everything(sleeping):
    process, pid = sleeping
    os.killpg(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130 and gone(pid)
    assert message == "interrupted: the same command goes on from here\n"


def test_ctrl_c_while_the_fork_server_imports_is_one_line_and_starts_no_program(tmp_path):
    imports = "import time\nfrom pathlib import Path\nPath(__file__).with_name('pid').touch()\n"
    (tmp_path / "slow.py").write_text(imports + "time.sleep(60)\n")
    process = start_driver(tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    try:
        wait_for((tmp_path / "pid").exists)
        os.killpg(process.pid, signal.SIGINT)
        _, message = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert message == "interrupted: the same command goes on from here\n"


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [(2, None, "2"), (0, "4,5", "4"), (1, "GPU-a,MIG-b", "MIG-b"), (2, "4,5", ""), (0, "", "")],
)
def test_a_job_gets_one_of_the_gpus_that_a_scheduler_has_left(device, visible, name):
    assert experiments.only_gpu(device, visible) == name


@pytest.mark.slow
def test_a_gpu_that_does_not_exist_ends_a_job_that_would_take_the_cpu(tmp_path):
    assert experiments.in_process(["train_wrn.py", "--help"], tmp_path / "log", 99) == 2
    assert "--gpus 99: PyTorch sees no such GPU" in (tmp_path / "log").read_text()


def test_a_root_that_is_in_use_or_that_cannot_be_written_to_is_a_mistake(sleeping, tmp_path):
    (tmp_path / "file").write_text("")
    for root, reason in (("runs", "another experiments.py"), ("file", "cannot write to")):
        line = refusal(experiments.main, ["run", "alpha", "--root", str(tmp_path / root)])
        assert "--root" in line and reason in line


@pytest.fixture
def sweep(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sweeps on the digits, and the commands of its runs."""
    commands: list[list[str]] = []

    def in_process(command: list[str], log: Path, device: int | None) -> int:
        commands.append(command)
        log.touch()
        return train.bare(*command[1:]).code

    monkeypatch.setattr(experiments, "in_process", in_process)
    recipe = "--dataset digits --image_size 8 --depth 10 --width 1 --pyxce 1 --pxycontrast 1 "
    recipe += "--contrast_k 64 --max_steps 2 --batch_size 16 --device cpu "

    def run(vary: str = "contrast_t .05 .1", more: str = "") -> int:
        argv = f"sweep --vary {vary} --seeds 1 2 --root {tmp_path} -- {recipe} {more}"
        return experiments.main(argv.split())

    return run, commands


def test_a_sweep_trains_each_value_with_each_seed_and_compares(sweep, tmp_path, capsys):
    run, commands = sweep
    assert run() == 0 and len(commands) == 4
    output = capsys.readouterr().out
    assert "| --contrast_t " in output and "| test accuracy in training (%) | " in output
    for value in (".05", ".1"):
        names = [f"contrast_t-{value}-s{seed}" for seed in (1, 2)]
        for seed, name in enumerate(names, 1):
            settings = json.loads((tmp_path / name / "variant.json").read_text())
            assert (settings["contrast_t"], settings["seed"]) == (float(value), seed)
            assert settings["dataset"] == "digits"
        comparison = "differ in the seed alone (1, 2), mean +- sd: test accuracy"
        assert f"\n{', '.join(names)} {comparison}" in output
    page = report.main([*map(str, tmp_path.glob("*-s1")), "--output", str(tmp_path / "a.html")])
    text = page.read_text(encoding="utf-8")
    assert all(f">contrast_t-{value}-s1</" in text for value in (".05", ".1"))
    assert "Accuracy (%): test_acc over epochs" in text and "<td>--contrast_t</td>" in text
    commands.clear()
    (tmp_path / "contrast_t-.1-s2" / "progress.csv").write_text("epoch,step\n")
    assert run(more="--max_minutes 9 --log_gradients 1") == 0  # resumes the unfinished run alone
    assert [command[1] for command in commands] == ["--resume"] and "--max_minutes" in commands[0]
    settings = json.loads((tmp_path / "contrast_t-.1-s2" / "variant.json").read_text())
    assert (settings["log_gradients"], settings["max_steps"]) == (1, 2)
    assert capsys.readouterr().out.count("trained already") == 3
    (tmp_path / "x.pt").touch()
    for more, had in {
        **{"--pxcontrast 1.0": None, "--clf_only True": False, "--n_valid 9": None},
        **{"--guidance 0.1": 1.0},
        f"--load_path {tmp_path / 'x.pt'}": None,
    }.items():
        assert run(more=more.removesuffix(" True")) == 1 and len(commands) == 1
        assert f"the recipe has {more}, but the run has {had}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        ("pyxce .5 1 -- --dataset digits", "--dataset digits --pyxce .5"),  # the only term
        ("n_steps 5 10 -- @jem --sgld_lr 2", "--sgld_lr 2 --n_steps 5"),  # for the recipe's term
    ],
)
def test_the_flags_of_a_sweep_need_to_make_sense_only_together(argv, flags):
    args, points = experiments.parse_sweep(["--vary", *argv.split()])
    assert [point.seed for point in points] == args.seeds * 2 and args.seeds == [1]
    assert " ".join(points[0].flags).endswith(flags)


@pytest.mark.parametrize(
    ("vary", "more", "message"),
    [
        ("contrast_t .05 .05", "", "--vary contrast_t: give two values or more"),
        ("seed 1 2", "", "--vary seed: the sweep sets it: give another flag; --seeds has"),
        ("image_size 8 16", "", "--vary image_size: no numbers of two sizes are compared: give"),
        ("contrast_t .05 x", "", "argument --contrast_t: 'x' is not a number"),
        ("temprature .05 .1", "", "unrecognized arguments: --temprature"),
        ("contrast_t .05 .1", "--seed 3", "--seed is the sweep's own: leave it out after --"),
        ("lr 1 2", "--lr 3", "--lr is the sweep's own"),
    ],
)
def test_a_mistaken_sweep_is_refused_before_it_trains(vary, more, message, sweep):
    run, commands = sweep
    assert message in refusal(run, vary, more) and not commands
