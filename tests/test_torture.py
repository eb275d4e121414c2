"""scripts/torture.py: what it counts, and that its runs are what it says."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runs.checkpoint import save_checkpoint
from scripts import torture

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_it_writes_what_was_reached(tmp_path: Path) -> None:
    words = ["--sections", "repeat", "refusals", "--rounds", "1", "--output", str(tmp_path / "out")]
    command = [sys.executable, "scripts/torture.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "torture.json").read_text())
    assert [found["section"] for found in record["promises"]] == ["repeat", "refusals"]
    reached = [found["reached"] for found in record["promises"]]
    assert reached[0] == "1 of 1 pair of 100 steps" and reached[1].startswith("10 of 10 with exit")
    text = (tmp_path / "out" / "torture.md").read_text()
    assert all(line in text for line in reached) and text in done.stdout


def test_every_kind_of_damage_damages(tmp_path: Path) -> None:
    save_checkpoint({"weights": torch.randn(999), "empty": torch.zeros(9999)}, tmp_path / "a.pt")
    good = (tmp_path / "a.pt").read_bytes()
    found = list(torture.damages(good, random.Random(0), 1))
    assert len(found) == 80 and good not in found
    for damaged in found:
        (tmp_path / "b.pt").write_bytes(damaged)
        assert torture.refusal(tmp_path / "b.pt")
    assert not torture.refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("other", [{"a": torch.zeros(3)}, {"b": torch.ones(3)}, {"a": [1]}, {}])
def test_states_that_differ_are_not_equal(other: dict) -> None:
    state = {"a": torch.ones(3), "more": [1, {"x": (2, torch.arange(2))}]}
    assert torture.equal(state, {**state})
    assert not torture.equal({"a": state["a"]}, other)
