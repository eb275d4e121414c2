"""Trained models are found by name, path and hub; the tour and lines for other libraries run."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import data
import eval_wrn_ebm
import models
from evaluation import flags
from runs import shared
from runs.checkpoint import FILLED, CheckpointError, read_checkpoint
from runs.cli import UsageError
from runs.files import read_json
from scripts import export
from tests.pair import refusal
from training import flags as training_flags

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "pretrained" / "README.md").read_text(encoding="utf-8")
DIGITS = ROOT / "pretrained" / "hdge-jem-digits"
SHIPPED = ROOT / "pretrained" / "hdge" / "model.pt"
EXPECTED = read_json(SHIPPED.with_name("expected.json"))
TOLD = sorted((ROOT / "pretrained").glob("*/expected.json"))
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """huggingface_hub whose one repository, owner/name, is a copy of the digits' model."""
    asked: list[Any] = []

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: Any) -> str:
        asked.append((repository, revision, allow_patterns))
        if repository != "owner/name":
            raise OSError("no\nsuch repository")
        shutil.copytree(DIGITS, tmp_path / "snapshot", dirs_exist_ok=True)
        return str(tmp_path / "snapshot")

    module = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_a_model_is_found_by_name_path_and_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.rand(2, 3, 16, 16)
    right = models.load(DIGITS).logits(x)
    for name in ("hdge-jem-digits", str(DIGITS / "model.safetensors"), "hf://owner/name@v1"):
        assert torch.equal(models.load(name).logits(x), right)
    assert hub == [("owner/name", "v1", ["model.safetensors", "config.json"])]
    assert models.load("hdge").image_size == 32
    # A folder of one's own goes before a name.
    (tmp_path / "hdge").mkdir()
    assert shared.weights_file("hdge") == Path("hdge")
    with pytest.raises(UsageError, match=r"hf://owner/other: no such repository$"):
        models.load("hf://owner/other")


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(CheckpointError, match="is no file: did you mean hdge-jem-digits"):
        models.load("hdge-jem-digit")


def test_without_the_hub_s_library_a_line_says_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        models.load("hf://owner/name")


def test_a_hub_s_model_is_asked(hub, tmp_path):
    words = ["--load_path", "hf://owner/name", "--eval", "test_clf", "--device", "cpu"]
    assert "give --log_dir" in refusal(eval_wrn_ebm.main, *flags.parse(words))
    assert eval_wrn_ebm.main(*flags.parse([*words, "--log_dir", str(tmp_path / "answers")])) == 0
    answer = json.loads((tmp_path / "answers" / "test_clf.json").read_text(encoding="utf-8"))
    assert answer["label"] == "name"
    told = re.search(r"`hdge-jem-digits`.* ([\d.]+) % \|", PAGE)
    assert told and float(told[1]) == round(100 * answer["accuracy"], 1)


def test_an_export_is_pushed_only_when_it_is_sent(train, tmp_path, monkeypatch, capsys):
    sent: list[Any] = []

    class HfApi:
        def create_repo(self, name: str, *, exist_ok: bool) -> None:
            sent.append((name, exist_ok))

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
            if "full" in repo_id:
                raise OSError("no\nroom")
            sent.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=HfApi))
    checkpoint = str(train.once("--pyxce 1 --max_steps 1").folder / "last_ckpt.pt")
    export.main([checkpoint, str(tmp_path / "a"), "--push", "owner/name"])
    assert not sent and "--send would upload README.md, config.json" in capsys.readouterr().out
    export.main([checkpoint, str(tmp_path / "b"), "--push", "owner/name", "--send"])
    files = ["README.md", "config.json", "model.safetensors"]
    assert sent == [("owner/name", True), ("owner/name", files)]
    full = [checkpoint, str(tmp_path / "c"), "--push", "owner/full", "--send"]
    assert "--push owner/full: no room" in refusal(export.main, full)
    alone = [checkpoint, str(tmp_path / "d"), "--send"]
    assert "--send has no effect without --push" in refusal(export.main, alone)


@pytest.mark.filterwarnings("ignore")
def test_torch_hub_loads_a_clone():
    model = torch.hub.load(str(ROOT), "load", "hdge-jem-digits", source="local", trust_repo=True)
    assert model.class_output.out_features == 10


def test_pixels_are_the_classifier_of_images_in_0_to_1():
    model, x01 = models.load(DIGITS), torch.rand(2, 3, 16, 16)
    assert torch.equal(models.Pixels(model)(x01), model(2 * x01 - 1))


@pytest.mark.parametrize("code", BLOCKS)
def test_the_page_s_lines_run(code, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for library in re.findall(r"from (\w+)", code):
        pytest.importorskip(library)
    test = data.load("digits", "", size=16).test
    x01 = test.images.permute(0, 3, 1, 2) / 255
    names: dict[str, Any] = {"x01": x01, "y": test.labels, "x": 2 * x01 - 1}
    exec(compile(code, "README.md", "exec"), names)
    if "clean_accuracy" in names:
        told = capsys.readouterr().out.splitlines()[-1]  # RobustBench prints while it is imported
        assert float(told) == pytest.approx(0.983, abs=0.001)
    if "EnergyBased" in names:
        found = names["EnergyBased"](names["model"]).predict(names["x"][:9])
        torch.testing.assert_close(found, -names["model"].log_px(names["x"][:9]))


def test_the_tour_runs_and_says_what_it_shows(monkeypatch, capsys):
    """Its cells in order, without Jupyter; what they print is what the page has."""
    import matplotlib

    matplotlib.use("agg")
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: dict[str, Any] = {}
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
            shown = "".join(text for output in cell["outputs"] for text in output.get("text", ()))
            assert numbers(capsys.readouterr().out) == pytest.approx(numbers(shown), abs=2)
    read = names["model"].classify(names["samples"]).argmax(1)
    assert (read == names["labels"]).float().mean() > 0.95


def test_the_page_has_the_accuracy_of_every_card():
    for config in (ROOT / "pretrained").glob("*/config.json"):
        name, card = config.parent.name, config.with_name("README.md").read_text(encoding="utf-8")
        (accuracy,) = re.findall(r"^\| accuracy \| .* \| ([\d.]+) \|$", card, re.MULTILINE)
        (told,) = re.findall(rf"^\| \[`{name}`\].* ([\d.]+) % \| \S", PAGE, re.MULTILINE)
        assert float(told) == pytest.approx(100 * float(accuracy), abs=0.05), name


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.?\d*", text)]


def test_the_shipped_model_is_small_and_says_what_made_it():
    assert SHIPPED.stat().st_size < 2_000_000
    state = read_checkpoint(SHIPPED)
    assert state["environment"]["git_commit"] and state["settings"]["dataset"] == "cifar10"
    model = models.load(SHIPPED)
    assert sum(p.numel() for p in model.parameters()) == 303_466
    assert int(state["objective"][FILLED]) == state["settings"]["contrast_k"]
    told, given = training_flags.parse(EXPECTED["trained with"].split()[2:])
    assert len(given) > 10
    for name in given:
        assert state["settings"][name] == getattr(told, name), name


@pytest.mark.parametrize(
    ("name", "question"),
    [(path.parent.name, question) for path in TOLD for question in read_json(path)["expected"]],
)
def test_the_shipped_models_numbers_are_those_that_are_told(name, question, ask, request, tmp_path):
    expected = read_json(ROOT / "pretrained" / name / "expected.json")["expected"][question]
    words, place = question.split(), ["--load_path", name, "--device", "cpu"]
    if "digits" not in name:  # which need no files
        place += ["--data_root", str(request.getfixturevalue("data_root"))]
    answer = ask.bare(*place, "--log_dir", str(tmp_path), *words, folder=tmp_path)
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / f"{words[1]}.json").read_text(encoding="utf-8"))
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=0.002), key
