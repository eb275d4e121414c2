"""Imports run downward in the order of the folders, and in no circle between or within them."""

import ast
import graphlib
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


MODULES: dict[str, Path] = {}  # by dotted name; a package is its __init__
for path in ROOT.rglob("*.py"):
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in FLOOR:
        MODULES[".".join(parts).removesuffix(".__init__")] = path


def imported(name: str) -> Iterator[str]:
    """Yield the project's modules that a module imports, at its head or within a function."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: a relative import"
            full_names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (full if full in MODULES else node.module for full in full_names)


def graph() -> dict[str, set[str]]:
    return {name: set(imported(name)) & MODULES.keys() - {name} for name in MODULES}


def test_no_import_runs_upward():
    upward = set()
    for name, targets in graph().items():
        folder = name.split(".")[0]
        for target in {target.split(".")[0] for target in targets}:
            below = FLOOR[target] <= FLOOR[folder]
            if not (target in BELOW_REPORTS if folder == "reports" else below):
                upward.add(f"{name} -> {target}")
    assert upward == set()


def test_no_imports_run_in_a_circle():
    graphlib.TopologicalSorter(graph()).prepare()  # else a CycleError that names the circle


def test_slow_libraries_are_imported_in_the_functions_that_use_them():
    slow, imports = {"torchvision", "sklearn", "PIL", "matplotlib"}, set()
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            libraries = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                libraries = [node.module]
            if not name.startswith("benchmarks."):  # these measure the libraries
                imports |= {f"{name}: {lib}" for lib in libraries if lib.split(".")[0] in slow}
    assert imports == set()


def test_reports_need_no_torch():
    names = [name for name in MODULES if name.split(".")[0] == "reports"]
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
        *((f"train_wrn.py {mistake}", 2) for mistake in ("--lr x", "--depth 11")),
        ("eval_wrn_ebm.py --eval nonsense --load_path a", 2),
    ],
)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(words, code):
    """Started in another folder, the program finds the packages itself."""
    program, *flags = words.split()
    command = [sys.executable, "-c", STARTED, str(ROOT / program), *flags]
    ran = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert ran.stdout.endswith(f"code {code} imported set()\n"), ran.stderr
    assert len(ran.stderr.splitlines()) == (code != 0)
