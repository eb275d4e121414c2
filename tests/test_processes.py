"""The comparison of two processes with one: its commands parse, and its page says what was run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes
from runs import cli
from training import flags


def made_up(name: str, ms: float, shift: float) -> dict[str, Any]:
    curve = [
        {"step": step, "loss": step + shift, **{f"{term}/loss": 1.0 for term in processes.TERMS}}
        for step in (10, 20)
    ]
    place = {"device": "some CPU", "torch_build": "2", "git_commit": "abc"}
    return {
        "name": name,
        "command": f"python {name}",
        "ms_a_step": ms,
        "curve": curve,
        "environment": place,
    }


@pytest.mark.parametrize("name", processes.RUNS)
def test_commands_parse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed, count, _ = processes.RUNS[name]
    monkeypatch.setattr(cli, "processes", lambda: count)
    words = processes.command(seed, count).split()
    assert words[: words.index("train_wrn.py")] == (processes.TORCHRUN.split() if count > 1 else [])
    s, _ = flags.parse(words[words.index("train_wrn.py") + 1 :])
    assert s.seed == seed and all(getattr(s, term) == 1 for term in processes.TERMS)


def test_page_and_picture(tmp_path: Path) -> None:
    runs = [made_up("one process", 400, 0.0), made_up("two processes", 250, 0.25)]
    page = processes.page(runs)
    assert "| one process | 400 | 1.00 | - |" in page
    assert "| two processes | 250 | 1.60 | 0.250 |" in page
    processes.save_picture(runs, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 10_000
