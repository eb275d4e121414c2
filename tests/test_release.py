"""scripts/release.py, and the model that ships with the repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import models
from runs.checkpoint import FILLED, read_checkpoint
from runs.files import read_json
from scripts import release
from training import flags

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "pretrained" / "hdge" / "model.pt"
EXPECTED = read_json(SHIPPED.with_name("expected.json"))
TOLD = sorted((ROOT / "pretrained").glob("*/expected.json"))
HYBRID = "--pyxce 1 --pxycontrast 1 --pxsgld 1 --max_steps 3"


def make(run: Any, path: Path, *more: str) -> dict[str, Any]:
    release.main([str(run.folder / "last_ckpt.pt"), str(path), *more])
    return read_checkpoint(path)


def test_it_is_the_same_model_without_what_only_training_needs_and_without_paths(
    train: Any, tmp_path: Path
) -> None:
    run = train.once(HYBRID)
    place = tmp_path / "new" / "a.pt"
    kept, whole = make(run, place), run.state()
    weights = kept.pop("model_state_dict")
    assert kept.keys() == {"settings", "progress", "environment", "objective", "data"}
    assert train.same(weights, whole["model_state_dict"])
    assert kept["progress"] == {"step": 3} and train.same(kept["data"], whole["data"])
    environment = run.settings["environment"]
    assert environment.pop("platform") and kept["environment"] == environment
    assert str(train.root) in str(whole["settings"]) and str(train.root) not in str(kept)
    changed = {k for k, v in whole["settings"].items() if kept["settings"][k] != v}
    assert changed == {"data_root", "log_dir"}
    x = torch.rand(2, 3, 32, 32)
    a, b = (models.load(path) for path in (place, run.folder / "last_ckpt.pt"))
    assert torch.equal(a.logits(x), b.logits(x))
    run = train(f"--pyxce 1 --pxycontrast 1 --max_steps 1 --load_path {place}")
    assert run.code == 0, run.err  # a run can start from it


def test_a_data_set_of_one_s_own_is_known_by_its_last_part(train: Any, tmp_path: Path) -> None:
    for i in range(12):
        place = tmp_path / "private" / "me" / "shapes" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i, i, i)).save(place / f"{i}.png")
    dataset = f"folder:{tmp_path / 'private' / 'me' / 'shapes'}"
    run = train("--pyxce 1 --max_steps 1 --n_valid 4 --dataset", dataset)
    assert run.code == 0, run.err
    kept = make(run, tmp_path / "g.pt")
    assert kept["settings"]["dataset"] == "folder:shapes"
    kept.pop("model_state_dict")
    assert "private" not in str(kept) and str(tmp_path) not in str(kept)
    assert models.load(tmp_path / "g.pt").logits(torch.rand(1, 3, 32, 32)).shape == (1, 2)


def test_queue_and_replay_buffer_stay_where_asked_for(train: Any, tmp_path: Path) -> None:
    run = train.once(HYBRID)
    both = make(run, tmp_path / "c.pt", "--keep", "queue", "replay_buffer")
    assert torch.equal(both["replay_buffer"], run.state()["replay_buffer"])
    assert both["objective"] == {FILLED: run.state()["objective"]["memories.queue.queue_filled"]}
    none = make(run, tmp_path / "d.pt", "--keep")
    assert "objective" not in none and "queue_logit" not in none["model_state_dict"]


def test_a_mistake_is_one_line(train: Any, tmp_path: Path, capsys: Any) -> None:
    ours = train.once(HYBRID).folder / "last_ckpt.pt"
    there, foreign = tmp_path / "mine.pt", tmp_path / "other.pt"
    there.write_bytes(b"mine")
    torch.save({"model_state_dict": {}}, foreign)
    for source, target in (
        (ours, there),
        (tmp_path / "nothing.pt", tmp_path / "f.pt"),
        (foreign, tmp_path / "f.pt"),
        (ours, ours / "f.pt"),  # below a file
    ):
        with pytest.raises(SystemExit) as stop:
            release.main([str(source), str(target)])
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert there.read_bytes() == b"mine"


# What ships.


def test_the_shipped_model_is_small_and_says_what_made_it() -> None:
    assert SHIPPED.stat().st_size < 2_000_000
    state = read_checkpoint(SHIPPED)
    assert state["environment"]["git_commit"] and state["settings"]["dataset"] == "cifar10"
    model = models.load(SHIPPED)
    assert sum(p.numel() for p in model.parameters()) == 303_466
    assert int(state["objective"][FILLED]) == state["settings"]["contrast_k"]
    told, given = flags.parse(EXPECTED["trained with"].split()[2:])
    assert len(given) > 10
    for name in given:
        assert state["settings"][name] == getattr(told, name), name


@pytest.mark.parametrize(
    ("name", "question"),
    [(path.parent.name, question) for path in TOLD for question in read_json(path)["expected"]],
)
def test_the_shipped_models_numbers_are_those_that_are_told(
    name: str, question: str, ask: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    expected = read_json(ROOT / "pretrained" / name / "expected.json")["expected"][question]
    words, place = question.split(), ["--load_path", name, "--device", "cpu"]
    if "digits" not in name:  # which need no files
        place += ["--data_root", str(request.getfixturevalue("data_root"))]
    answer = ask.bare(*place, "--log_dir", str(tmp_path), *words, folder=tmp_path)
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / f"{words[1]}.json").read_text(encoding="utf-8"))
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=0.002), key
