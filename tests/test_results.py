"""What an answer leaves on disk, and what becomes of an earlier one."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from evaluation.results import Results


class Drawn:
    """A figure that writes a text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def savefig(self, path: Path, **options: Any) -> None:
        path.write_text(self.text)


def answer(folder: Path, settings: dict[str, Any], text: str) -> Results:
    one = Results(folder, "OOD", settings)
    one.add("OOD_scores.npz", Path.write_text, text)
    one.picture("OOD", lambda: Drawn(text))
    one.save({"number": text})
    return one


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def test_an_answer_names_its_files_and_the_same_question_replaces_it(tmp_path):
    folder = tmp_path / "new" / "folder"
    for text in ("first", "second"):
        answer(folder, {"seed": 1}, text)
        record = json.loads((folder / "OOD.json").read_text())
        assert record["eval"] == "OOD" and record["settings"] == {"seed": 1}
        assert record["number"] == text
        assert record["files"] == ["OOD_scores.npz", "OOD.png", "OOD.pdf"]
        assert set(content(folder)) == {"OOD.json", *record["files"]}
        assert content(folder)["OOD.png"] == text
    (folder / "OODother.txt").write_text("not the answer's")
    Results(folder, "OOD", {"seed": 1}).save({})
    assert set(content(folder)) == {"OOD.json", "OODother.txt"}


def test_an_answer_to_other_settings_stays_with_all_its_files(tmp_path):
    for seed, text in ((1, "first"), (2, "second"), (3, "third")):
        answer(tmp_path, {"seed": seed}, text)
    found = content(tmp_path)
    assert len(found) == 12
    for n, text in (("-1", "first"), ("-2", "second"), ("", "third")):
        record = json.loads(found[f"OOD{n}.json"])
        assert record["number"] == text
        assert [found[name] for name in record["files"]] == [text] * 3


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    """And a foreign or damaged JSON is no obstacle."""
    (tmp_path / "fid.json").write_text("{")
    one = Results(tmp_path, "fid", {})
    one.save({"fid": math.nan, "rows": [{"eps": math.inf}], "path": Path("a"), "pair": (1, 2)})
    record = json.loads((tmp_path / "fid.json").read_text())
    assert (record["fid"], record["rows"], record["path"]) == (None, [{"eps": None}], "a")
    assert record["pair"] == [1, 2]


@pytest.mark.parametrize("stopped", ["write_text", "replace"])
def test_an_answer_that_is_being_set_aside_is_never_lost(stopped, tmp_path):
    answer(tmp_path, {"seed": 1}, "first")
    write_text = Path.write_text

    def half(path: Path, text: str, **more: Any) -> int:
        write_text(path, text[: len(text) // 2], **more)
        raise OSError(28, "No space left on device")

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        if stopped == "write_text":
            patch.setattr(Path, "write_text", half)
        else:
            patch.setattr(os, "replace", killed)
        with pytest.raises((OSError, KeyboardInterrupt)):
            Results(tmp_path, "OOD", {"seed": 2}).path("OOD.png")
    assert json.loads(content(tmp_path)["OOD.json"])["number"] == "first"
    answer(tmp_path, {"seed": 2}, "second")
    found = content(tmp_path)
    record = json.loads(found["OOD-1.json"])
    assert record["number"] == "first" and len(found) == 8
    assert [found[name] for name in record["files"]] == ["first"] * 3
