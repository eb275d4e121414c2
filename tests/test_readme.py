"""Every command and every Python block of the README and the scripts does what it says."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import models
from baselines import contrastive_flags, probe_flags, train_adversarial
from benchmarks import flags as benchmark_flags
from evaluation import flags as questions
from runs import cli
from runs.checkpoint import save_checkpoint
from training import flags

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """Whole command lines: continued lines are joined, comments are cut."""
    joined = text.replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
    lines = [re.sub(r'^((SCALE|SEEDS|JOBS|GPUS)=("[^"]*"|\S+) )+', "", line) for line in lines]
    lines = [line.removeprefix("srun ") for line in lines]
    return [line for line in lines if re.match(r'(python|"\$PYTHON"|bash|conda|torchrun) ', line)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def torchrun(words: list[str]) -> argparse.Namespace:
    from torch.distributed.run import get_args_parser

    return get_args_parser().parse_args(words)


def of_script(name: str) -> Callable[[], argparse.ArgumentParser]:
    return lambda: runpy.run_path(str(ROOT / "scripts" / name))["build_parser"]()


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "scripts/report.py": of_script("report.py"),
    "scripts/release.py": of_script("release.py"),
    "scripts/export.py": of_script("export.py"),
    "scripts/torture.py": of_script("torture.py"),
    "scripts/experiments.py": of_script("experiments.py"),
    "scripts/tables.py": of_script("tables.py"),
    "scripts/bench.py": benchmark_flags.build_parser,
    "baselines/train_contrastive.py": contrastive_flags.build_parser,
    "baselines/train_adversarial.py": train_adversarial.build_parser,
    "baselines/linear_probe.py": probe_flags.build_parser,
}


README_COMMANDS = [line for block in blocks("bash") for line in commands(block)]
SCRIPT_COMMANDS = [
    line
    for path in sorted((ROOT / "scripts").glob("*.sh"))
    for line in commands(path.read_text(encoding="utf-8"))
    if re.search(r"train_wrn\.py|scripts/report\.py", line)
]


def test_there_are_commands_to_check() -> None:
    assert sum("train_wrn.py" in line for line in README_COMMANDS) >= 8
    assert sum("eval_wrn_ebm.py" in line for line in README_COMMANDS) >= 12
    assert SCRIPT_COMMANDS


@pytest.mark.parametrize("line", README_COMMANDS + SCRIPT_COMMANDS)
def test_command_parses(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, script, *arguments = shlex.split(line)
    if program == "torchrun":
        started = torchrun([script, *arguments])
        script, arguments = started.training_script, started.training_script_args
        count = int(started.nnodes.split(":")[-1]) * int(started.nproc_per_node)
        monkeypatch.setattr(cli, "processes", lambda: count)
    if program == "bash":
        assert (ROOT / script).is_file()
        return
    for variable, value in {"$log_dir": "save", "$id": "name"}.items():
        arguments = [word.replace(variable, value) for word in arguments if word != "$@"]
    if script == "eval_wrn_ebm.py":
        questions.parse(arguments)
        return
    if script in PARSERS:
        PARSERS[script]().parse_args(arguments)
        return
    assert script == "train_wrn.py"
    settings, _ = flags.parse(arguments)
    assert settings.resume or any(getattr(settings, term) > 0 for term in flags.TERMS)


def test_the_quickstart_s_questions_parse() -> None:
    script = (ROOT / "scripts" / "quickstart.sh").read_text(encoding="utf-8")
    loop = re.search(r"for question in (.*?); do", script, re.DOTALL)
    assert loop
    asked = re.findall(r'"([^"]+)"', loop[1])
    assert len(asked) == 6
    for question in asked:
        questions.parse(["--load_path", "last_ckpt.pt", "--eval", *question.split()])


def test_conda_command_names_a_file_that_exists() -> None:
    assert "conda env create --file conda.yaml" in README
    assert (ROOT / "conda.yaml").is_file()


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = {"depth": 10, "width": 1}
    state = {"model_state_dict": models.build(**network).state_dict(), "settings": network}
    (tmp_path / "save" / "hdge").mkdir(parents=True)
    save_checkpoint(state, tmp_path / "save" / "hdge" / "best_valid_ckpt.pt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    if "metrics" in names:
        said = {"pyxce/loss", "penalty/loss", "penalty/largest", "loss"}
        assert set(names["metrics"]) == said  # type: ignore[call-overload]


def test_own_term_is_as_short_as_promised() -> None:
    (example,) = (code for code in blocks("python") if "nn.Module" in code)
    lines = [line for line in example.splitlines() if line and not line.startswith("import")]
    assert len(lines) <= 15


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)h#][^)]*)\)", README))))
def test_linked_file_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_flag_in_the_readme_exists() -> None:
    parsers = [flags.build_parser(), questions.build_parser()]
    parsers += [build() for script, build in PARSERS.items() if script != "scripts/tables.py"]
    known = {o for parser in parsers for action in parser._actions for o in action.option_strings}
    others = {"--file", "--standalone", "--nodes", "--ntasks", "--gpus", "--signal", "--time"}
    others |= {
        f"--{name}" for name in ("nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint")
    }
    others |= {"--rdzv_id"}  # conda's, torchrun's and SLURM's
    named = set(re.findall(r"--[a-z][a-z_0-9]*", README)) - {"--plot_"}
    assert named - others <= known
