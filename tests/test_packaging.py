"""The two commands, the list of requirements, and the files that repeat parts of pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import requirements

ROOT = Path(__file__).resolve().parent.parent
BASH = shutil.which("bash") or pytest.skip("needs bash", allow_module_level=True)
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSIONS = re.findall(r"Python :: (3\.\d+)", PYPROJECT)


def test_conda_yaml_lists_what_pyproject_lists():
    lines = (ROOT / "conda.yaml").read_text(encoding="utf-8").split("dependencies:\n")[1]
    python, *packages = re.findall(r"^ +- (\S+)$", lines, re.MULTILINE)
    conda = [line for line in packages if line not in ("pip", "pip:")]  # pip installs the rest
    listed = requirements.listed("test")
    assert conda == [re.sub(r"^torch(?=[<>])", "pytorch", line) for line in listed]
    assert python == f"python>={VERSIONS[0]},<3.{int(VERSIONS[-1].split('.')[1]) + 1}"


def test_the_list_read_by_hand_is_the_one_of_a_toml_library():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads(PYPROJECT)["project"]
    assert requirements.listed("base") == project["dependencies"]
    extra = project["optional-dependencies"]["test"]
    assert requirements.listed("test") == project["dependencies"] + extra


def test_versions_agree_in_all_files():
    assert VERSIONS == ["3.10", "3.11", "3.12", "3.13"]
    assert f'requires-python = ">={VERSIONS[0]}"' in PYPROJECT
    assert f'python_version = "{VERSIONS[0]}"' in PYPROJECT
    assert f'target-version = "py{VERSIONS[0].replace(".", "")}"' in PYPROJECT
    environment = (ROOT / "scripts" / "environment.sh").read_text(encoding="utf-8")
    assert f"hdge_oldest={VERSIONS[0]}\nhdge_newest={VERSIONS[-1]}\n" in environment
    version = re.search(r'^version = "(.+)"$', PYPROJECT, re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert version and f"\nversion: {version[1]}\n" in citation


def test_a_requirement_is_met_by_an_installed_version_in_its_range(tmp_path, monkeypatch):
    for name, version in (("whole", "1.2.3"), ("built", "2.15.0rc1+cpu")):
        path = tmp_path / f"{name}-{version}.dist-info"
        path.mkdir()
        (path / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    met = {"whole>=1.2.3,<2": True, "built>=2.10": True, "absent>=1": False, "whole>=1.3": False}
    assert {requirement: requirements.is_met(requirement) for requirement in met} == met


# A stand-in for Python, for environment.sh. Its folder holds `complete` once pip has run.
FAKE_PYTHON = r"""#!/bin/sh
here=$(dirname "$0")
case "$1 $2" in
    "-c "*sys.executable*) echo "$0" ;;
    "-c "*ensurepip*) [ -z "$NO_ENSUREPIP" ] ;;
    "-c "*) ;;
    *requirements.py\ missing) [ -e "$here/complete" ] || echo "torch>=2.10" ;;
    *requirements.py\ list) echo "torch>=2.10"; echo "torchvision>=0.25" ;;
    "-m venv") rm -rf "$4" && mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
    "-m pip")
        echo "pip was called: $*"
        [ "$PIP" = fine ] && : > "$here/complete" ;;
    *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


class Machine:
    """A folder with a copy of the scripts, and a PATH with no tools but theirs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a copy"
        self.bin = folder / "bin"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / "scripts" / "environment.sh", self.root / "scripts")
        for tool in ["dirname", "rm", "mkdir", "cp", "sh"]:
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)

    def add_python(self, name: str, text: str = FAKE_PYTHON) -> Path:
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def source(self, **variables: str | Path) -> subprocess.CompletedProcess[str]:
        command = 'set -euo pipefail; source "$0" "${WHICH:-base}"; echo "PYTHON is $PYTHON"'
        return subprocess.run(
            [BASH, "-c", command, str(self.root / "scripts" / "environment.sh")],
            cwd="/",
            env={"PATH": str(self.bin), **{name: str(v) for name, v in variables.items()}},
            capture_output=True,
            text=True,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def assert_refused(process: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Expect exit code 2, and one line of environment.sh with these parts."""
    (line,) = (line for line in process.stderr.splitlines() if line.startswith("environment: "))
    assert process.returncode == 2 and all(part in line for part in parts)


def test_missing_packages_go_into_a_venv_by_one_call_of_pip(machine):
    machine.add_python("python3")
    assert_refused(machine.source(PIP="fails"), "the reason stands above", "run this again")
    first = machine.source(PIP="fine")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("pip was called") == 1
    assert re.search(r"pip was called: .*torch>=2.10 torchvision>=0.25$", first.stdout, re.M)
    second = machine.source(PIP="not to be called")
    assert second.returncode == 0 and "pip was called" not in second.stdout
    for process in (first, second):
        assert f"PYTHON is {machine.root}/.venv/bin/python" in process.stdout


def test_a_venv_that_no_longer_starts_is_made_anew(machine):
    machine.add_python("python3")
    broken = machine.root / ".venv" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.symlink_to("removed")
    process = machine.source(PIP="fine")
    assert process.returncode == 0 and f"making {machine.root}/.venv" in process.stdout


def test_a_named_python_comes_before_an_active_environment_before_one_that_starts(machine):
    """A Python with all packages is used as it is."""
    machine.add_python("python3", "#!/bin/sh\necho not installed >&2\nexit 127\n")
    paths = ("python3.12", "active/bin/python", "my pythons/named")
    starting, active, named = (machine.add_python(path) for path in paths)
    for python in (starting, active, named):
        (python.parent / "complete").touch()
    conda = {"CONDA_PREFIX": active.parent.parent}
    for variables, python in (({}, starting), (conda, active), ({**conda, "PYTHON": named}, named)):
        process = machine.source(**variables)
        assert process.returncode == 0 and f"PYTHON is {python}" in process.stdout
    assert not (machine.root / ".venv").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "no Python 3.10 to 3.13 found: install one, or name one, as in PYTHON=/path/to/"),
        ({"PYTHON": "/no/python"}, "PYTHON=/no/python does not start a Python 3.10 to 3.13"),
        ({"PYTHON": "{bin}/named", "NO_ENSUREPIP": "1"}, "apt install python3-venv"),
        ({"WHICH": "all"}, "base or test"),
    ],
)
def test_a_problem_that_cannot_be_mended_is_one_line(variables, message, machine):
    machine.add_python("python3", "#!/bin/sh\nexit 1\n")
    machine.add_python("named")
    variables = {name: value.format(bin=machine.bin) for name, value in variables.items()}
    assert_refused(machine.source(**variables), message)
    assert not (machine.root / ".venv").exists()


def test_missing_requirements_are_listed_and_a_complete_python_lacks_nothing():
    command = [str(ROOT / "scripts" / "requirements.py"), "missing", "base"]
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for option, env, missing in (  # -S: without site-packages, -B: changes nothing here
        ("-S", bare, requirements.listed("base")),
        ("-B", None, []),
    ):
        argv = [sys.executable, option, *command]
        process = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
        assert process.stdout.split() == missing


@pytest.mark.parametrize(
    "script", [*sorted(ROOT.glob("scripts/*.sh")), ROOT / ".ci" / "run"], ids=lambda path: path.name
)
def test_shell_scripts_parse(script):
    subprocess.run([BASH, "-n", str(script)], check=True)
