"""The files of an answer, and those of earlier answers."""

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


def answer(folder: Path, settings: dict[str, Any], text: str) -> None:
    results = Results(folder, "OOD", settings)
    results.add("OOD_scores.npz", Path.write_text, text)
    results.picture("OOD", lambda: Drawn(text))
    results.save({"number": text})


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


def record_of(folder: Path, name: str, text: str) -> dict[str, Any]:
    """Return the record of an answer after a check that it and its files have the text."""
    texts = content(folder)
    record = json.loads(texts[f"{name}.json"])
    assert record["number"] == text and [texts[file] for file in record["files"]] == [text] * 3
    return record


def test_an_answer_names_its_files_and_the_same_question_replaces_it(tmp_path):
    folder = tmp_path / "new" / "folder"
    for text in ("first", "second"):
        answer(folder, {"seed": 1}, text)
        record = record_of(folder, "OOD", text)
        assert record["eval"] == "OOD" and record["settings"] == {"seed": 1}
        assert record["files"] == ["OOD_scores.npz", "OOD.png", "OOD.pdf"]
        assert set(content(folder)) == {"OOD.json", *record["files"]}
    (folder / "OODother.txt").write_text("not the answer's")
    Results(folder, "OOD", {"seed": 1}).save({})
    assert set(content(folder)) == {"OOD.json", "OODother.txt"}


def test_an_answer_to_other_settings_stays_with_all_its_files(tmp_path):
    for seed, text in ((1, "first"), (2, "second"), (3, "third")):
        answer(tmp_path, {"seed": seed}, text)
    assert len(content(tmp_path)) == 12
    for name, text in (("OOD-1", "first"), ("OOD-2", "second"), ("OOD", "third")):
        record_of(tmp_path, name, text)


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    (tmp_path / "fid.json").write_text("{")  # a damaged JSON is replaced
    numbers = {"fid": math.nan, "rows": [{"eps": math.inf}], "path": Path("a"), "pair": (1, 2)}
    Results(tmp_path, "fid", {}).save(numbers)
    record = json.loads((tmp_path / "fid.json").read_text())
    saved = {"fid": None, "rows": [{"eps": None}], "path": "a", "pair": [1, 2]}
    assert record == {"eval": "fid", **saved, "settings": {}, "files": []}


@pytest.mark.parametrize("renames", [None, 0, 1, 2, 3, 4])
def test_an_answer_that_is_being_set_aside_is_never_lost(renames, tmp_path):
    """A full disk stops the process while it writes; a kill stops it after some renames."""
    answer(tmp_path, {"seed": 1}, "first")
    write_text, replace, left = Path.write_text, os.replace, renames

    def half(path: Path, text: str, **more: Any) -> int:
        write_text(path, text[: len(text) // 2], **more)
        raise OSError(28, "No space left on device")

    def killed(source: Path, target: Path) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        if renames is None:
            patch.setattr(Path, "write_text", half)
        else:
            patch.setattr(os, "replace", killed)
        with pytest.raises((OSError, KeyboardInterrupt)):
            Results(tmp_path, "OOD", {"seed": 2}).path("OOD.png")
    assert json.loads(content(tmp_path)["OOD.json"])["number"] == "first"
    answer(tmp_path, {"seed": 2}, "second")
    record_of(tmp_path, "OOD-1", "first")
    assert len(content(tmp_path)) == 8
