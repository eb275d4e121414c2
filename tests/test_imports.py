"""Imports run downward: the order of the folders, and no circle between or within them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A file imports from its own floor and from those before it; reports from runs and itself alone.
FLOORS = (
    ("runs",),
    ("data",),
    ("models",),
    ("losses",),
    ("evaluation",),
    ("training",),
    ("train_wrn", "eval_wrn_ebm", "baselines"),
    ("reports",),
    ("scripts", "benchmarks"),
)
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
BELOW_REPORTS = {"runs", "reports"}


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name; a package is its `__init__`."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in FLOOR:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(name: str, known: dict[str, Path]) -> Iterator[str]:
    """The project's modules that a module imports, at its head or within a function."""
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: a relative import"
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            found = (full if full in known else node.module for full in whole)
            yield from (module for module in found if module in known)


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: set(imported(name, known)) - {name} for name in known}


def test_no_import_runs_upward():
    found = set()
    for name, others in graph().items():
        own = name.split(".")[0]
        for other in {other.split(".")[0] for other in others}:
            allowed = other in BELOW_REPORTS if own == "reports" else FLOOR[other] <= FLOOR[own]
            if not allowed:
                found.add(f"{name} -> {other}")
    assert found == set()


def test_no_imports_run_in_a_circle():
    left = graph()

    def outermost() -> set[str]:
        ends = {name for name, others in left.items() if not others & left.keys()}
        return ends | (left.keys() - set().union(*left.values()))

    while found := outermost():
        left = {name: others for name, others in left.items() if name not in found}
    assert left == {}


def test_what_takes_seconds_to_import_is_imported_where_it_is_used():
    slow, found = {"torchvision", "sklearn", "PIL", "matplotlib"}, set()
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            if not name.startswith("benchmarks."):  # what they measure
                found |= {f"{name}: {each}" for each in names if each.split(".")[0] in slow}
    assert found == set()


def test_reports_need_no_torch():
    names = [name for name in modules() if name.split(".")[0] == "reports"]
    code = f"import sys, {', '.join(names)}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


STARTED = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as Python does
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    heavy = {"torch", "torchvision", "sklearn", "numpy", "matplotlib", "jinja2", "tqdm"}
    print("code", stop.code, "imported", heavy & set(sys.modules))
"""
PROGRAMS = (
    "train_wrn.py eval_wrn_ebm.py baselines/train_contrastive.py baselines/train_adversarial.py "
    "baselines/train_flow.py baselines/linear_probe.py benchmarks/contrastive.py benchmarks/gpu.py "
    "scripts/report.py scripts/tables.py scripts/experiments.py scripts/export.py "
    "scripts/predict.py scripts/bench.py scripts/torture.py"
)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        *((f"{program} --help", 0) for program in PROGRAMS.split()),
        *(("train_wrn.py --lr x", 2), ("train_wrn.py --depth 11", 2)),
        ("eval_wrn_ebm.py --eval nonsense --load_path a", 2),
    ],
)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(words, code):
    """From another folder, as a user may start it: the program finds the packages itself."""
    program, *more = words.split()
    command = [sys.executable, "-c", STARTED, str(ROOT / program), *more]
    ran = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert ran.stdout.endswith(f"code {code} imported set()\n"), ran.stderr
    assert len(ran.stderr.splitlines()) == (code != 0)
