"""Trained models are found by name, path and hub; the tour and lines for other libraries run."""

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
SMALL_IMAGES = ("ce-cifar10-half", "hdge-jem-digits")  # models of 16 x 16, which answer fast
EXPECTED = {path.parent.name: read_json(path) for path in ROOT.glob("pretrained/*/expected.json")}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for huggingface_hub; its only repository, owner/name, is a copy of the digits'
    model. The value is the list of requests."""
    requests: list[Any] = []

    def snapshot_download(repository: str, *, revision: str | None, allow_patterns: Any) -> str:
        requests.append((repository, revision, allow_patterns))
        if repository != "owner/name":
            raise OSError("no\nsuch repository")
        shutil.copytree(DIGITS, tmp_path / "snapshot", dirs_exist_ok=True)
        return str(tmp_path / "snapshot")

    module = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return requests


def test_a_model_is_found_by_name_path_and_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = torch.rand(2, 3, 16, 16)
    logits = models.load(DIGITS).logits(x)
    for name in ("hdge-jem-digits", str(DIGITS / "model.safetensors"), "hf://owner/name@v1"):
        assert torch.equal(models.load(name).logits(x), logits)
    assert hub == [("owner/name", "v1", ["model.safetensors", "config.json"])]
    assert models.load("hdge").image_size == 32
    (tmp_path / "hdge").mkdir()
    assert shared.weights_file("hdge") == Path("hdge")  # a folder here goes before a name


def test_a_name_that_leads_to_no_model_is_refused_with_the_remedy(hub, monkeypatch):
    with pytest.raises(CheckpointError, match="is no file: did you mean hdge-jem-digits"):
        models.load("hdge-jem-digit")
    with pytest.raises(UsageError, match=r"hf://owner/other: no such repository$"):
        models.load("hf://owner/other")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        models.load("hf://owner/name")


def test_a_hub_s_model_is_evaluated(hub, tmp_path):
    argv = ["--load_path", "hf://owner/name", "--eval", "test_clf", "--device", "cpu"]
    assert "give --log_dir" in refusal(eval_wrn_ebm.main, *flags.parse(argv))
    assert eval_wrn_ebm.main(*flags.parse([*argv, "--log_dir", str(tmp_path / "answers")])) == 0
    answer = read_json(tmp_path / "answers" / "test_clf.json")
    assert answer["label"] == "name"
    accuracy = re.search(r"`hdge-jem-digits`.* ([\d.]+) % \|", PAGE)
    assert accuracy and float(accuracy[1]) == round(100 * answer["accuracy"], 1)


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

    def argv(folder: str, *flags: str) -> list[str]:
        return [checkpoint, str(tmp_path / folder), *flags]

    export.main(argv("a", "--push", "owner/name"))
    assert not sent and "--send would upload README.md, config.json" in capsys.readouterr().out
    export.main(argv("b", "--push", "owner/name", "--send"))
    files = ["README.md", "config.json", "model.safetensors"]
    assert sent == [("owner/name", True), ("owner/name", files)]
    full = argv("c", "--push", "owner/full", "--send")
    assert "--push owner/full: no room" in refusal(export.main, full)
    assert "--send has no effect without --push" in refusal(export.main, argv("d", "--send"))


@pytest.mark.filterwarnings("ignore")
def test_torch_hub_loads_a_clone():
    model = torch.hub.load(str(ROOT), "load", "hdge-jem-digits", source="local", trust_repo=True)
    assert model.class_output.out_features == 10


def test_pixels_are_the_classifier_of_images_in_0_to_1():
    model, x01 = models.load(DIGITS), torch.rand(2, 3, 16, 16)
    assert torch.equal(models.Pixels(model)(x01), model(2 * x01 - 1))


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_page_s_code_runs_with_other_libraries(code, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for library in re.findall(r"from (\w+)", code):
        pytest.importorskip(library)
    test = data.load("digits", "", size=16).test
    x01 = test.images.permute(0, 3, 1, 2) / 255
    names: dict[str, Any] = {"x01": x01, "y": test.labels, "x": 2 * x01 - 1}
    exec(compile(code, "README.md", "exec"), names)
    if "clean_accuracy" in names:
        accuracy = capsys.readouterr().out.splitlines()[-1]  # RobustBench prints on import
        assert float(accuracy) == pytest.approx(0.983, abs=0.001)
    if "EnergyBased" in names:
        energies = names["EnergyBased"](names["model"]).predict(names["x"][:9])
        torch.testing.assert_close(energies, -names["model"].log_px(names["x"][:9]))


@pytest.mark.slow
def test_the_tour_s_cells_print_its_numbers(monkeypatch, capsys):
    """Run the cells in order, without Jupyter, and compare their numbers with the saved output."""

    def numbers(text: str) -> list[float]:
        return [float(number) for number in re.findall(r"\d+\.?\d*", text)]

    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: dict[str, Any] = {}
    for cell in read_json(ROOT / "docs" / "tour.ipynb")["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
            saved = "".join(text for output in cell["outputs"] for text in output.get("text", ()))
            assert numbers(capsys.readouterr().out) == pytest.approx(numbers(saved), abs=2)
    predicted = names["model"].classify(names["samples"]).argmax(1)
    assert (predicted == names["labels"]).float().mean() > 0.95


def test_the_page_has_the_accuracy_of_every_card():
    for config in (ROOT / "pretrained").glob("*/config.json"):
        name, card = config.parent.name, config.with_name("README.md").read_text(encoding="utf-8")
        (accuracy,) = re.findall(r"^\| accuracy \| .* \| ([\d.]+) \|$", card, re.MULTILINE)
        (percent,) = re.findall(rf"^\| \[`{name}`\].* ([\d.]+) % \| \S", PAGE, re.MULTILINE)
        assert float(percent) == pytest.approx(100 * float(accuracy), abs=0.05), name


def test_the_shipped_model_is_small_and_has_the_settings_of_its_command():
    assert SHIPPED.stat().st_size < 2_000_000
    state = read_checkpoint(SHIPPED)
    settings = state["settings"]
    assert state["environment"]["git_commit"] and settings["dataset"] == "cifar10"
    assert sum(p.numel() for p in models.load(SHIPPED).parameters()) == 303_466
    assert int(state["objective"][FILLED]) == settings["contrast_k"]
    parsed, given = training_flags.parse(EXPECTED["hdge"]["trained with"].split()[2:])
    assert len(given) > 10
    for name in given:
        assert settings[name] == getattr(parsed, name), name


@pytest.mark.parametrize(
    ("name", "question"),
    [
        pytest.param(name, question, marks=() if name in SMALL_IMAGES else pytest.mark.slow)
        for name in sorted(EXPECTED)
        for question in EXPECTED[name]["expected"]
    ],
)
def test_a_shipped_model_has_its_recorded_numbers(name, question, ask, request, tmp_path):
    argv = ["--load_path", name, "--device", "cpu", "--log_dir", str(tmp_path)]
    if "digits" not in name:  # the digits need no files
        argv += ["--data_root", str(request.getfixturevalue("data_root"))]
    answer = ask.bare(*argv, *question.split(), folder=tmp_path)
    assert answer.code == 0, answer.err
    numbers = answer.json(question.split()[1])
    for key, value in EXPECTED[name]["expected"][question].items():
        assert numbers[key] == pytest.approx(value, abs=0.002), key
