"""README.md, docs/ and the scripts: commands parse, Python runs, flags and links exist."""

import argparse
import json
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eval_wrn_ebm
from baselines import linear_probe, train_adversarial, train_contrastive, train_flow
from benchmarks import contrastive, gpu, subset
from benchmarks import flags as benchmark_flags
from evaluation import flags as questions
from evaluation.questions import QUESTIONS
from runs import cli
from scripts import experiments
from training import flags

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}


def commands(text: str) -> list[str]:
    """Return the command lines: join continued lines, cut comments and variables."""
    lines = [line.split("  #")[0].strip() for line in text.replace("\\\n", " ").splitlines()]
    lines = [re.sub(r'^((SCALE|SEEDS|JOBS|GPUS)=("[^"]*"|\S+) )+', "", line) for line in lines]
    lines = [line.removeprefix("srun ") for line in lines]
    return [line for line in lines if re.match(r'(python|"\$PYTHON"|bash|torchrun) ', line)]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    **{
        name: lambda name=name: runpy.run_path(str(ROOT / name))["build_parser"]()
        for name in map("scripts/{}.py".format, "report export torture experiments tables".split())
    },
    "scripts/experiments.py sweep": experiments.build_sweep_parser,
    "scripts/bench.py": benchmark_flags.build_parser,
    "scripts/gpu.sh": gpu.build_parser,
    "benchmarks/subset.py": subset.build_parser,
    "benchmarks/contrastive.py": contrastive.build_parser,
    "baselines/train_contrastive.py": train_contrastive.build_parser,
    "baselines/train_adversarial.py": train_adversarial.build_parser,
    "baselines/train_flow.py": train_flow.build_parser,
    "baselines/linear_probe.py": linear_probe.build_parser,
}
PAGE_COMMANDS = [
    line for text in PAGES.values() for block in blocks(text, "bash") for line in commands(block)
]
SCRIPT_COMMANDS = [
    line
    for path in sorted((ROOT / "scripts").glob("*.sh"))
    for line in commands(path.read_text(encoding="utf-8"))
    if re.search(r"train_wrn\.py|scripts/(report|bench)\.py|gpu\.sh", line)
]


def test_commands_are_found():
    assert sum("train_wrn.py" in line for line in PAGE_COMMANDS) >= 8
    assert sum("eval_wrn_ebm.py" in line for line in PAGE_COMMANDS) >= 12
    assert SCRIPT_COMMANDS


@pytest.mark.parametrize("line", dict.fromkeys(PAGE_COMMANDS + SCRIPT_COMMANDS))
def test_command_parses(line, monkeypatch):
    program, script, *arguments = shlex.split(line)
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        started = get_args_parser().parse_args([script, *arguments])
        script, arguments = started.training_script, started.training_script_args
        count = int(started.nnodes.split(":")[-1]) * int(started.nproc_per_node)
        monkeypatch.setattr(cli, "processes", lambda: count)
    for variable, value in {"$log_dir": "save", "$id": "name"}.items():
        arguments = [word.replace(variable, value) for word in arguments if word != "$@"]
    assert (ROOT / script).is_file()
    if program == "bash" and script not in PARSERS:
        return
    if script == "eval_wrn_ebm.py":
        questions.parse(arguments)
    elif arguments[0] == "sweep":
        experiments.parse_sweep(arguments[1:])
    elif script in PARSERS:
        PARSERS[script]().parse_args(arguments)
    else:
        assert script == "train_wrn.py"
        monkeypatch.setattr(flags, "read_settings", lambda _: {"pyxce": 1.0})  # of --resume
        settings, _ = flags.parse(arguments)
        assert settings.resume or any(getattr(settings, term) > 0 for term in flags.TERMS)


def test_the_quickstart_s_questions_parse():
    text = (ROOT / "scripts" / "quickstart.sh").read_text(encoding="utf-8")
    (loop,) = re.findall(r"for question in (.*?); do", text, re.DOTALL)
    answers = re.findall(r'"([^"]+)"', loop)
    assert len(answers) == 6
    for question in answers:
        questions.parse(["--load_path", "last_ckpt.pt", "--eval", *question.split()])


@pytest.mark.parametrize("code", blocks(PAGES["README.md"], "python"))
def test_python_block_runs(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    if "metrics" in names:
        assert set(names["metrics"]) == {"pyxce/loss", "penalty/loss", "penalty/largest", "loss"}


def test_the_example_of_an_added_question_is_answered(tmp_path, monkeypatch):
    (code,) = blocks(PAGES["docs/protocol.md"], "python")
    names: dict[str, Any] = {}
    exec(compile(code, "protocol.md", "exec"), names)
    monkeypatch.setitem(QUESTIONS, "log_px", names["QUESTION"])
    parse = runpy.run_path(str(ROOT / "evaluation" / "flags.py"))["parse"]  # with this question
    argv = ["--load_path", str(ROOT / "pretrained" / "hdge" / "model.pt"), "--eval", "log_px"]
    argv += f"--dataset digits --max_images 20 --device cpu --log_dir {tmp_path}".split()
    assert eval_wrn_ebm.main(*parse(argv)) == 0
    answer = json.loads((tmp_path / "log_px.json").read_text())
    assert answer["n"] == 20 and answer["report"]["rows"] == [[answer["mean"], answer["std"]]]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_and_anchors_exist(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", path):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_flag_in_the_pages_exists():
    parsers = [flags.build_parser(), questions.build_parser()]
    parsers += [build() for name, build in PARSERS.items()]
    options = {o for parser in parsers for action in parser._actions for o in action.option_strings}
    foreign = (
        "file standalone nodes ntasks-per-node gpus-per-node signal time "  # conda and SLURM
        "nnodes nproc_per_node rdzv_backend rdzv_endpoint rdzv_id "  # torchrun
        "penalty"  # of the example of a new term
    )
    options |= {f"--{name}" for name in foreign.split()}
    mentioned = {f for text in PAGES.values() for f in re.findall(r"--[a-z][a-z_0-9-]*", text)}
    assert mentioned <= options
