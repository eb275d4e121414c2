"""The comparison of images with those of a run: hashes, splits and class names, end to end."""

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
from runs.checkpoint import save_checkpoint

RUN = "--pyxce 1 --max_steps 2 --n_valid 4 --dataset"


@pytest.fixture(autouse=True)
def temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every model a temperature, which so small a model may leave undetermined."""
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


def trained(train: Any, folder: Path) -> Any:
    run = train(RUN, f"folder:{folder}")
    assert run.code == 0, run.err
    return run


def answered(ask: Any, run: Any, words: str = "--eval test_clf", code: int = 0) -> Any:
    answer = ask(words, load=run.folder / "last_ckpt.pt")
    assert answer.code == code, answer.err
    return answer


def write(images: torch.Tensor, folder: Path, classes: tuple[str, str]) -> None:
    for i, image in enumerate(images):
        path = folder / classes[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)


def test_differences_from_the_run_are_one_line_and_in_the_answer(train, ask, folder, tmp_path):
    run, name = trained(train, folder), f"folder:{folder}"
    same = answered(ask, run)
    n = same.json("test_clf")["n"]
    expected = {"n": n, "trained_on": 0, "new": 0, "missing": 0}
    assert same.err == [] and same.json("test_clf")["data"] == {name: expected}

    other, classes = tmp_path / "other", ("bear", "cat")
    write(data.load(name, "nowhere").train.images[:3], other / "test", classes)
    for i, class_name in enumerate(classes):
        paint(other / "train" / class_name / "0.png", 100 + i)
    held_out = set(run.state()["data"]["valid"].tolist()) & {0, 1, 2}
    answer = answered(ask, run, f"--eval OOD --ood_dataset svhn --dataset folder:{other}")
    (line,) = answer.err
    record = answer.json("OOD")["data"][f"folder:{other}"]
    assert record["trained_on"] == 3 - len(held_out) and record["missing"] == n
    assert f"{record['trained_on']} of 3 images were trained on" in line
    assert "its classes are bear, cat; the run's were apple, bear" in line
    assert record["run_class_names"] == ["apple", "bear"]


def test_labels_are_read_as_long_as_renamed_classes_keep_their_order(train, ask, folder):
    run, apples, bears = trained(train, folder), folder / "apple", folder / "bear"
    for new_apple, new_bear, code in (
        ("apple", "cat", 0),
        ("zebra", "cat", 2),
        ("zebra", "bear", 2),
    ):
        apples, bears = apples.rename(folder / new_apple), bears.rename(folder / new_bear)
        (line,) = answered(ask, run, code=code).err
        assert ("apple, bear, in this order, and their numbers differ" in line) == (code == 2)
    words = "--eval cond_samples --fresh_samples --buffer_size 8 --sgld_batch_size 8 --n_steps 1"
    samples = answered(ask, run, f"{words} --n_sample_steps 1")
    (line,) = samples.err
    assert "samples are not compared" in line and "their numbers differ" in line
    assert "nearest" not in samples.json("cond_samples")
    start = str(run.folder / "last_ckpt.pt")
    (line,) = train(RUN, f"folder:{folder}", "--load_path", start).err
    assert f"bear, zebra; head, queue and replay buffer of --load_path {start} are of apple" in line


def test_the_temperature_is_fitted_to_the_images_that_the_run_held_out(train, ask, tmp_path):
    train.write_images(tmp_path / "cifar10.npz")
    run = train(f"--pyxce 1 --max_steps 2 --data_root {tmp_path}")
    with np.load(tmp_path / "cifar10.npz") as archive:
        arrays = dict(archive)
    for name in ("train_images", "train_labels"):  # an image less changes the permutation
        arrays[name] = arrays[name][1:]
    np.savez(tmp_path / "cifar10.npz", **arrays)
    answer = answered(ask, run, f"--eval eval_ece --data_root {tmp_path}").json("eval_ece")
    valid = answer["data"]["cifar10_valid"]
    remaining = 40 - int((run.state()["data"]["valid"] == 0).any())
    assert (valid["n"], valid["trained_on"], valid["new"]) == (remaining, 0, 0)
    assert answer["temperature"] is not None


def test_a_folder_that_has_moved_is_found_by_its_images(train, ask, folder, tmp_path):
    run = trained(train, folder)
    moved = folder.rename(tmp_path / "moved")
    questions = (
        "eval_ece",
        "OOD --score_fn knn --knn_k 2 --ood_dataset svhn",
        "fid --fid_features model --n_samples 12 --n_steps 1",
    )
    for question in questions:
        answer = answered(ask, run, f"--eval {question} --dataset folder:{moved}")
        warnings = "\n".join(answer.err)
        assert "differs from the images" not in warnings and "no temperature" not in warnings
        assert str(folder) not in answer.out
    remedy = "if the folder has moved, give --dataset folder:PATH"
    (line,) = answered(ask, run, code=2).err
    assert line.endswith(remedy)
    paint(moved / "bear" / "new.png", 97)  # of the training split
    for question in questions:
        answer = answered(ask, run, f"--eval {question} --dataset folder:{moved}")
        assert "no temperature" not in "\n".join(answer.err)
    (moved / "bear" / "new.png").unlink()
    resumed = train.resumed(run, "--max_steps", "4")
    assert f"--dataset folder:{folder}: " in resumed.refusal and resumed.refusal.endswith(remedy)
    resumed = train.resumed(run, "--max_steps", "4", "--dataset", f"folder:{moved}")
    assert resumed.code == 0 and run.settings["dataset"] == f"folder:{moved}"


def test_the_training_folder_by_another_path_is_no_ood_set(train, ask, folder):
    run, alias = trained(train, folder), folder / ".." / folder.name
    refused = answered(ask, run, f"--eval OOD --ood_dataset folder:{alias}", code=2)
    assert refused.err[-1].endswith("is the in-distribution set: give another")
    words = f"--datasets folder:{alias} folder_valid:{alias}"
    sets = answered(ask, run, f"--eval logp_hist {words}").json("logp_hist")["sets"]
    assert list(sets) == [f"folder:{folder}", f"folder_valid:{folder}"]


def test_a_resumed_run_takes_no_new_training_image(train, folder, tmp_path):
    """By their hashes, image 97 belongs to the training split and image 99 to the test split."""
    run = trained(train, folder)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    for value, code, message in (
        (97, 2, "its training images were others"),
        (99, 0, "not among the run's test images"),
    ):
        paint(other / "bear" / "new.png", value)
        resumed = train.resumed(run, "--max_steps", "4", "--dataset", f"folder:{other}")
        assert resumed.code == code and message in resumed.err[0]


def test_a_relative_path_is_found_from_anywhere(train, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(RUN, "folder:images")
    assert run.settings["dataset"] == f"folder:{folder}"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train.resumed(run, "--max_steps", "4").code == 0


def test_a_probe_says_how_many_test_images_were_trained_on(train, folder, tmp_path, capsys):
    """The probe's test images are the network's training images, and vice versa."""
    run, other = trained(train, folder), tmp_path / "other"
    loaded = data.load(f"folder:{folder}", "nowhere")
    write(loaded.test.images, other / "train", ("apple", "bear"))
    write(loaded.train.images, other / "test", ("apple", "bear"))
    words = f"--load_path {run.folder}/last_ckpt.pt --log_dir {tmp_path} --id probe --device cpu"
    argv = f"{words} --l2 .1 --dataset folder:{other}".split()
    assert linear_probe.main(*flags.parse(argv, linear_probe.build_parser)) == 0
    (line,) = capsys.readouterr().err.splitlines()
    n = len(loaded.train.labels)
    assert line.startswith("linear_probe.py: warning: --dataset")
    assert f"test: {n - 4} of {n} images were trained on" in line


def test_an_empty_class_folder_is_refused_of_the_run_and_left_out_of_an_ood_set(
    train, ask, folder, tmp_path
):
    run = trained(train, folder)
    (folder / "empty").mkdir()
    (line,) = answered(ask, run, "--eval OOD --ood_dataset uniform", code=2).err
    assert "has no image in its class folder empty" in line
    for name in ("a", "b"):
        paint(tmp_path / "ood" / name / "1.png", 200)
    (tmp_path / "ood" / "empty").mkdir()
    sets = data.EvaluationSets(Path("nowhere"))
    about = sets.load(f"folder_train:{tmp_path / 'ood'}", strict=False).about
    assert "left out: 1 empty class folder empty" in about


def test_a_damaged_record_is_refused_in_one_line(train, ask, folder):
    run = trained(train, folder)
    state = run.state()
    for damage in ({"class_names": 3}, {"valid": torch.tensor([4000])}):
        damaged = {**state, "data": state["data"] | damage}
        save_checkpoint(damaged, run.folder / "last_ckpt.pt")
        (line,) = answered(ask, run, code=2).err
        assert "--load_path" in line
