"""scripts/torture.py: what it counts, and that its runs are what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import torture

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_it_writes_what_was_reached(tmp_path):
    words = ["--sections", "faults", "--rounds", "1", "--output", str(tmp_path / "out")]
    command = [sys.executable, "scripts/torture.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "torture.json").read_text())
    (found,) = record["promises"]
    assert (found["section"], found["kept"]) == ("faults", True)
    text = (tmp_path / "out" / "torture.md").read_text()
    assert found["reached"].startswith("2 of 2 runs") and found["reached"] in text
    assert text in done.stdout


@pytest.mark.parametrize("kind", torture.FAULTS)
def test_one_call_alone_goes_wrong(kind, monkeypatch):
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
