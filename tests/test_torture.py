"""scripts/torture.py: its report, its faults, and its comparison of two states."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import torture

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_a_promise_and_its_count_are_written_and_printed(tmp_path):
    argv = ["--sections", "faults", "--rounds", "1", "--output", str(tmp_path / "out")]
    command = [sys.executable, "scripts/torture.py", *argv]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    record = json.loads((tmp_path / "out" / "torture.json").read_text())
    (promise,) = record["promises"]
    assert (promise["section"], promise["kept"]) == ("faults", True)
    text = (tmp_path / "out" / "torture.md").read_text()
    assert promise["reached"].startswith("2 of 2 runs") and promise["reached"] in text
    assert text in process.stdout


@pytest.mark.parametrize("kind", torture.FAULTS)
def test_a_fault_spoils_one_call_alone(kind, monkeypatch):
    owner, name, _ = torture.FAULTS[kind]
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: "right")
    monkeypatch.setitem(torture.FAULTS, kind, (owner, name, lambda real, *args: real() + ", not"))
    monkeypatch.setattr(torture.divergence, "SNAPSHOT_EVERY", 1)
    torture.inject(kind, 2)
    assert [getattr(owner, name)() for _ in range(4)] == ["right", "right", "right, not", "right"]


@pytest.mark.parametrize("other", [{"a": torch.zeros(3)}, {"b": torch.ones(3)}, {"a": [1]}, {}])
def test_states_that_differ_are_not_equal(other):
    state = {"a": torch.ones(3), "more": [1, {"x": (2, torch.arange(2))}]}
    assert torture.equal(state, {**state})
    assert not torture.equal({"a": state["a"]}, other)
