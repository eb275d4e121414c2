"""Whether an evaluation looks at its run's images: hashes, splits and class names, end to end."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data
from baselines import flags, linear_probe
from evaluation import calibration
from runs.checkpoint import read_checkpoint, save_checkpoint

RUN = "--pyxce 1 --max_steps 2 --n_valid 4 --dataset"


@pytest.fixture(autouse=True)
def temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are validation images there is a temperature: that of so small models may be
    undetermined."""
    monkeypatch.setattr(calibration, "fit_temperature", lambda logits, labels: 1.5)


def paint(path: Path, value: int, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(1000 + value).randint(0, 256, (*size, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(40):
        paint(tmp_path / "images" / ("apple", "bear")[i % 2] / f"{i}.png", i)
    return tmp_path / "images"


def trained(train: Any, folder: Path, size: int = 32) -> Any:
    run = train(RUN, f"folder:{folder}", "--image_size", str(size))
    assert run.code == 0, run.err
    return run


def asked(ask: Any, run: Any, flags: str = "--eval test_clf", code: int = 0) -> Any:
    found = ask(flags, load=run.folder / "last_ckpt.pt")
    assert found.code == code, found.err
    return found


def write(images: torch.Tensor, folder: Path, classes: tuple[str, str]) -> None:
    for i, image in enumerate(images):
        path = folder / classes[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)


def test_what_differs_from_the_run_is_one_line_and_in_the_answer(train, ask, folder, tmp_path):
    run, own = trained(train, folder), f"folder:{folder}"
    same = asked(ask, run)
    n = same.json("test_clf")["n"]
    expected = {"n": n, "trained_on": 0, "new": 0, "missing": 0}
    assert same.err == [] and same.json("test_clf")["data"] == {own: expected}

    other, classes = tmp_path / "other", ("bear", "cat")
    write(data.load(own, "nowhere").train.images[:3], other / "test", classes)
    for i, name in enumerate(classes):
        paint(other / "train" / name / "0.png", 100 + i)
    held_out = set(run.state()["data"]["valid"].tolist()) & {0, 1, 2}
    found = asked(ask, run, f"--eval test_clf --dataset folder:{other}")
    (line,) = found.err
    record = found.json("test_clf")["data"][f"folder:{other}"]
    assert record["trained_on"] == 3 - len(held_out) and record["missing"] == n
    assert f"{record['trained_on']} of 3 images were trained on" in line
    assert "its classes are bear, cat; the run's were apple, bear" in line
    assert record["run_class_names"] == ["apple", "bear"]


def test_the_temperature_is_fitted_on_what_the_run_held_out(train, ask, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    train.write_images(root / "cifar10.npz")
    run = train(f"--pyxce 1 --max_steps 2 --data_root {root}")
    held_out = run.state()["data"]
    with np.load(root / "cifar10.npz") as found:
        arrays = dict(found)
    for name in ("train_images", "train_labels"):  # one image less, and the permutation is another
        arrays[name] = arrays[name][1:]
    np.savez(root / "cifar10.npz", **arrays)
    answer = asked(ask, run, f"--eval eval_ece --data_root {root}")
    valid = answer.json("eval_ece")["data"]["cifar10_valid"]
    there = 40 - int((held_out["valid"] == 0).any())
    assert (valid["n"], valid["trained_on"], valid["new"]) == (there, 0, 0)
    assert answer.json("eval_ece")["temperature"] is not None


MORE = {
    "eval_ece": "",
    "OOD": "--score_fn knn --knn_k 2 --ood_dataset svhn",
    "fid": "--fid_features model --n_samples 12 --n_steps 1",
}


@pytest.mark.parametrize("question", MORE)
def test_a_folder_that_has_moved_is_found_by_its_images(question, train, ask, folder, tmp_path):
    run = trained(train, folder)
    moved = folder.rename(tmp_path / "moved")
    words = f"--eval {question} {MORE[question]} --dataset folder:{moved}"
    found = asked(ask, run, words)
    assert not [
        line for line in found.err if "differs from the images" in line or "no temperature" in line
    ]
    assert str(folder) not in found.out
    (lost,) = asked(ask, run, code=2).err
    assert lost.endswith("if the folder has moved, give --dataset folder:PATH")
    again = train.resumed(run, "--max_steps", "4")
    assert again.code == 2 and "does not exist" in again.err[0]
    again = train.resumed(run, "--max_steps", "4", "--dataset", f"folder:{moved}")
    assert again.code == 0 and run.settings["dataset"] == f"folder:{moved}"


def test_the_own_folder_by_another_path_is_no_ood_set(train, ask, folder):
    run, other = trained(train, folder), folder / ".." / folder.name
    found = asked(ask, run, f"--eval OOD --ood_dataset folder:{other}", code=2)
    assert found.err[-1].endswith("is the in-distribution set: give another")
    words = f"--datasets folder:{other} folder_valid:{other}"
    sets = asked(ask, run, f"--eval logp_hist {words}").json("logp_hist")["sets"]
    assert list(sets) == [f"folder:{folder}", f"folder_valid:{folder}"]


@pytest.mark.parametrize(
    ("value", "code", "said"),
    [(97, 2, "its training images were others"), (99, 0, "not among the run's test images")],
)
def test_a_resumed_run_takes_no_other_training_images(value, code, said, train, folder, tmp_path):
    """By their hashes, image 97 is one to train on and image 99 one to test."""
    run = trained(train, folder)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    paint(other / "bear" / "new.png", value)
    again = train.resumed(run, "--max_steps", "4", "--dataset", f"folder:{other}")
    assert again.code == code and said in again.err[0]


def test_a_relative_path_is_found_from_anywhere(train, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(RUN, "folder:images")
    assert run.settings["dataset"] == f"folder:{folder}"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train.resumed(run, "--max_steps", "4").code == 0


def probed(run: Any, dataset: str, tmp_path: Path) -> dict[str, Any]:
    words = ["--load_path", str(run.folder / "last_ckpt.pt"), "--log_dir", str(tmp_path)]
    words += ["--id", "probe", "--device", "cpu", "--l2", ".1", "--dataset", dataset]
    command = flags.parse(words, linear_probe.build_parser)
    assert linear_probe.main(*command) == 0
    return read_checkpoint(tmp_path / "probe" / "last_ckpt.pt")


def test_a_probe_says_how_many_images_its_network_was_trained_on(train, folder, tmp_path, capsys):
    """The training images of one are the test images of the other."""
    run, other = trained(train, folder), tmp_path / "other"
    loaded = data.load(f"folder:{folder}", "nowhere")
    write(loaded.test.images, other / "train", ("apple", "bear"))
    write(loaded.train.images, other / "test", ("apple", "bear"))
    probed(run, f"folder:{other}", tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    n = len(loaded.train.labels)
    assert line.startswith("linear_probe.py: warning: --dataset")
    assert f"test: {n - 4} of {n} images were trained on" in line


def test_an_empty_class_folder_makes_no_images_of_the_training_images(train, ask, folder, tmp_path):
    run, words = trained(train, folder), "--eval OOD --ood_dataset uniform"
    (folder / "empty").mkdir()
    (line,) = asked(ask, run, words, code=2).err
    assert "has no image in its class folder empty" in line
    (folder / "empty").rmdir()
    shutil.rmtree(folder / "bear")
    assert "has 1 class folders" in asked(ask, run, words, code=2).err[0]
    for name in ("a", "b"):
        paint(tmp_path / "ood" / name / "1.png", 200)
    (tmp_path / "ood" / "empty").mkdir()
    name = f"folder_train:{tmp_path / 'ood'}"
    about = data.EvaluationSets(Path("nowhere")).load(name, strict=False).about
    assert "left out: 1 empty class folder empty" in about


@pytest.mark.parametrize("damage", [{"class_names": 3}, {"valid": torch.tensor([4000])}])
def test_a_record_of_others_is_refused_in_one_line(damage, train, ask, folder, tmp_path):
    run = trained(train, folder)
    state = run.state()
    state["data"] |= damage
    save_checkpoint(state, run.folder / "last_ckpt.pt")
    (line,) = asked(ask, run, code=2).err
    assert "--load_path" in line
