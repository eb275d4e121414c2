"""The two commands, the list of requirements, and what surrounds them."""

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


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_conda_yaml_lists_what_pyproject_lists():
    lines = (ROOT / "conda.yaml").read_text(encoding="utf-8").split("dependencies:\n")[1]
    found = re.findall(r"^ +- (\S+)$", lines, re.MULTILINE)
    conda = [line for line in found if line not in ("pip", "pip:")]  # what conda-forge lacks
    ours = [re.sub(r"^torch(?=[<>])", "pytorch", line) for line in requirements.listed("test")]
    assert conda == [*[line for line in conda if line.startswith("python>")], *ours]
    assert conda[0] == f"python>={supported()[0]},<3.{int(supported()[-1].split('.')[1]) + 1}"


def test_the_list_read_by_hand_is_the_one_of_a_toml_library():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads(pyproject())["project"]
    assert requirements.listed("base") == project["dependencies"]
    extra = project["optional-dependencies"]["test"]
    assert requirements.listed("test") == project["dependencies"] + extra


def supported() -> list[str]:
    return re.findall(r"Python :: (3\.\d+)", pyproject())


def test_python_versions_agree():
    assert supported() == ["3.10", "3.11", "3.12", "3.13"]
    assert f'requires-python = ">={supported()[0]}"' in pyproject()
    assert f'python_version = "{supported()[0]}"' in pyproject()
    assert f'target-version = "py{supported()[0].replace(".", "")}"' in pyproject()
    environment = (ROOT / "scripts" / "environment.sh").read_text(encoding="utf-8")
    assert f"hdge_oldest={supported()[0]}\nhdge_newest={supported()[-1]}\n" in environment


def test_citation_has_the_version_of_pyproject():
    version = re.search(r'^version = "(.+)"$', pyproject(), re.MULTILINE)
    assert version
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {version[1]}\n" in citation


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        *(("absent>=1", False), ("whole>=1", True), ("whole>=1.2.3,<2", True)),
        *(("whole>=1.3", False), ("whole<1.2.3", False)),
        *(("built>=2.10", True), ("built<2.10", False)),
    ],
)
def test_a_requirement_is_met_by_the_version_that_is_there(requirement, met, tmp_path, monkeypatch):
    for name, version in (("whole", "1.2.3"), ("built", "2.15.0rc1+cpu")):
        path = tmp_path / f"{name}-{version}.dist-info"
        path.mkdir()
        (path / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert requirements.is_met(requirement) == met


# environment.sh, with a Python that only acts as one. Its folder holds `complete` once pip has run.

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
        case $PIP in
            fine) : > "$here/complete" ;;
            *) exit 1 ;;
        esac ;;
    *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""


class Machine:
    """A folder with a copy of the scripts, and a PATH with nothing but what the scripts call."""

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


def assert_refused(answer: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, and one line of ours with the words in it."""
    (line,) = (line for line in answer.stderr.splitlines() if line.startswith("environment: "))
    assert answer.returncode == 2 and all(word in line for word in words)


def test_what_is_missing_goes_into_a_venv_by_one_call_of_pip_and_only_once(machine):
    machine.add_python("python3")
    assert_refused(machine.source(PIP="fails"), "the reason stands above", "run this again")
    answer = machine.source(PIP="fine")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("pip was called") == 1
    assert re.search(r"pip was called: .*torch>=2.10 torchvision>=0.25$", answer.stdout, re.M)
    again = machine.source(PIP="not to be called")
    assert again.returncode == 0 and "pip was called" not in again.stdout
    for each in (answer, again):
        assert f"PYTHON is {machine.root}/.venv/bin/python" in each.stdout


def test_a_venv_that_no_longer_starts_is_made_anew(machine):
    machine.add_python("python3")
    broken = machine.root / ".venv" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.symlink_to("removed")
    answer = machine.source(PIP="fine")
    assert answer.returncode == 0
    assert f"making {machine.root}/.venv" in answer.stdout


def test_a_named_python_an_active_environment_and_one_that_starts_come_first(machine):
    """In this order; what has everything is used as it is."""
    machine.add_python("python3", "#!/bin/sh\necho not installed >&2\nexit 127\n")
    found = machine.add_python("python3.12")
    active, named = (machine.add_python(name) for name in ("active/bin/python", "my pythons/named"))
    for python in (found, active, named):
        (python.parent / "complete").touch()
    there = {"CONDA_PREFIX": active.parent.parent}
    for variables, python in (({}, found), (there, active), ({**there, "PYTHON": named}, named)):
        answer = machine.source(**variables)
        assert answer.returncode == 0 and f"PYTHON is {python}" in answer.stdout
    assert not (machine.root / ".venv").exists()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "no Python 3.10 to 3.13 found: install one, or name one, as in PYTHON=/path/to/"),
        ({"PYTHON": "/no/python"}, "PYTHON=/no/python does not start a Python 3.10 to 3.13"),
        ({"PYTHON": "{bin}/named", "NO_ENSUREPIP": "1"}, "apt install python3-venv"),
        ({"WHICH": "all"}, "base or test"),
    ],
)
def test_what_cannot_be_mended_is_one_line(variables, told, machine):
    machine.add_python("python3", "#!/bin/sh\nexit 1\n")
    machine.add_python("named")
    given = {name: value.format(bin=machine.bin) for name, value in variables.items()}
    assert_refused(machine.source(**given), told)
    assert not (machine.root / ".venv").exists()


def test_the_running_python_is_told_from_one_that_lacks_something():
    script = str(ROOT / "scripts" / "requirements.py")
    bare = [sys.executable, "-S", script, "missing", "base"]  # -S: without site-packages
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    missing = subprocess.run(bare, capture_output=True, text=True, check=True, env=environment)
    assert missing.stdout.split() == requirements.listed("base")
    here = [sys.executable, script, "missing", "base"]
    assert subprocess.run(here, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.parametrize(
    "script", [*sorted(ROOT.glob("scripts/*.sh")), ROOT / ".ci" / "run"], ids=str
)
def test_shell_scripts_parse(script):
    subprocess.run([BASH, "-n", str(script)], check=True)
