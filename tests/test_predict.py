"""scripts/predict.py, and the names of an image folder's classes wherever they are shown."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import models
from scripts import export, predict
from tests.pair import outcome
from tests.test_data_record import paint


@pytest.fixture(scope="module")
def run(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of 2 classes of 20 pictures of 40 x 30, 8 of them for validation."""
    folder = tmp_path_factory.mktemp("own")
    for i in range(40):
        paint(folder / ("cat", "dog")[i % 2] / f"{i}.png", i, (30, 40))
    words = f"--pyxce 1 --pxsgld 1 --max_steps 2 --n_valid 8 --dataset folder:{folder}"
    found = train(words)
    assert found.code == 0, found.err
    found.pictures = [folder / "cat" / "0.png", folder / "dog" / "1.png"]
    return found


def test_a_prediction_names_classes_and_places_log_q_among_validation_images(run, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 1)
    words = [str(run.folder), *map(str, run.pictures), "--device", "cpu", "--top", "1"]
    code, out, err = outcome(lambda: predict.main(words))
    assert (code, err) == (0, "")
    model = models.load(run.folder)
    images = models.read_images(model, *run.pictures)
    assert images.shape == (2, 3, 32, 32) and images.min() < -0.9 and images.max() > 0.9
    with torch.no_grad():
        chances, heights = model.classify(images).exp(), model.log_px(images)
    for line, path, each, height in zip(
        out.splitlines()[1:], run.pictures, chances, heights, strict=True
    ):
        best = f"{path}: {['cat', 'dog'][each.argmax()]} {100 * each.max():.1f} %; "
        assert line.startswith(f"{best}log q(x) {height:.3f}, above ")
        assert re.search(r"above \d+ % of 8 validation images$", line)


def test_what_cannot_be_read_is_a_mistake_and_lost_images_are_none(run, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    code, _, err = outcome(lambda: predict.main([str(run.folder), str(tmp_path / "a.png")]))
    assert code == 2 and "predict.py: error: IMAGE: cannot read the image" in err
    with pytest.raises(ValueError, match="^cannot read the image"):
        models.read_images(models.load(run.folder), tmp_path / "a.png")
    code, _, err = outcome(lambda: predict.main([str(tmp_path / "run"), str(run.pictures[0])]))
    assert code == 2 and err.startswith(f"predict.py: error: RUN {tmp_path / 'run'} is no file")
    words = [str(run.folder), str(run.pictures[0]), "--dataset"]
    for name in ("cifar10", "cifra10", f"folder:{tmp_path}"):
        code, _, err = outcome(lambda name=name: predict.main([*words, name]))
        assert code == 2 and f"--dataset {name}: {run.folder}" in err and "leave it out" in err
    picture, root = run.pictures[0].rename(tmp_path / "b.png"), run.pictures[0].parents[1]
    away = root.rename(root.with_name("away"))
    code, out, err = outcome(lambda: predict.main([str(run.folder), str(picture)]))
    picture.rename(away.rename(root) / "cat" / "0.png")
    assert code == 0 and "log q(x) is not compared with" in err and "validation" not in out


def test_names_are_in_the_settings_and_label_the_samples_of_a_run(run, train):
    assert run.settings["class_names"] == ["cat", "dog"]
    assert train.resumed(run, "--max_steps", "3", "--plot_cond").code == 0
    assert run.settings["class_names"] == ["cat", "dog"]
    assert "class_names" not in run.state()["settings"]
    with Image.open(next(run.folder.glob("samples/cond_*.png"))) as drawn:
        left = np.asarray(drawn.convert("L"))[:, : drawn.width // 20]  # of the first image
    assert (left == 255).mean() > 0.9 and (left < 128).any()  # words on white; else it is black


def test_names_reach_samples_and_the_card(run, ask, tmp_path):
    words = "--eval cond_samples --fresh_samples --buffer_size 8 --sgld_batch_size 8"
    found = ask(f"{words} --n_sample_steps 1 --n_steps 1", load=run.folder)
    assert found.json("cond_samples")["class_names"] == ["cat", "dog"]
    pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
    folder = export.main([str(run.folder / "last_ckpt.pt"), str(tmp_path / "model")])
    card = (folder / export.CARD).read_text()
    assert "The classes, in the order of f(x): cat, dog." in card and "license" not in card


def test_the_share_among_five_is_none_of_two_classes(run, ask):
    found = ask("--eval test_clf", load=run.folder)
    assert found.json("test_clf")["top5"] is None and "top5" not in found.out
