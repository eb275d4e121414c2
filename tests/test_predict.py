"""scripts/predict.py, and the names of an image folder's classes in all outputs."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data
import models
from scripts import export, predict
from tests.pair import outcome
from tests.test_data_record import paint


@pytest.fixture(scope="module")
def run(train: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of 2 classes of 20 pictures of 40 x 30, 8 of them for validation."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        paint(folder / ("cat", "dog")[i % 2] / f"{i}.png", i, (30, 40))
    ran = train(f"--pyxce 1 --pxsgld 1 --max_steps 2 --n_valid 8 --dataset folder:{folder}")
    assert ran.code == 0, ran.err
    ran.pictures = [folder / "cat" / "0.png", folder / "dog" / "1.png"]
    return ran


def predicted(*argv: Any) -> tuple[int, str, str]:
    return outcome(lambda: predict.main(list(map(str, argv))))


def test_a_prediction_names_classes_and_compares_log_q_with_validation_images(run, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 1)
    code, out, err = predicted(run.folder, *run.pictures, "--device", "cpu", "--top", "1")
    assert (code, err) == (0, "")
    model = models.load(run.folder)
    images = models.read_images(model, *run.pictures)
    assert images.shape == (2, 3, 32, 32) and images.min() < -0.9 and images.max() > 0.9
    with torch.no_grad():
        probs, log_px = model.classify(images).exp(), model.log_px(images)
    dataset = run.settings["dataset"]
    sets = data.EvaluationSets("", dataset, 32, data.held_out_by(run.settings))
    valid = sets.load(data.split_name(dataset, "valid")).split
    with torch.no_grad():
        batches = data.evaluation_batches(valid, batch_size=8, sigma=0.0)
        reference = torch.cat([model.log_px(x) for x, _ in batches])
    for line, path, p, log_q in zip(out.splitlines()[1:], run.pictures, probs, log_px, strict=True):
        prediction = f"{path}: {['cat', 'dog'][p.argmax()]} {100 * p.max():.1f} %; "
        share = 100 * (reference < log_q).float().mean()
        about = f"log q(x) {log_q:.3f}, above {share:.0f} % of 8 validation images"
        assert line == f"{prediction}{about}"


def test_unreadable_files_are_refused_and_lost_training_images_are_not(run, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    code, _, err = predicted(run.folder, tmp_path / "a.png")
    assert code == 2 and "predict.py: error: IMAGE: cannot read the image" in err
    with pytest.raises(ValueError, match="^cannot read the image"):
        models.read_images(models.load(run.folder), tmp_path / "a.png")
    code, _, err = predicted(tmp_path / "run", run.pictures[0])
    assert code == 2 and err.startswith(f"predict.py: error: RUN {tmp_path / 'run'} is no file")
    for name in ("cifar10", "cifra10", f"folder:{tmp_path}"):
        code, _, err = predicted(run.folder, run.pictures[0], "--dataset", name)
        assert code == 2 and f"--dataset {name}: {run.folder}" in err and "leave it out" in err
    picture, root = run.pictures[0].rename(tmp_path / "b.png"), run.pictures[0].parents[1]
    moved = root.rename(root.with_name("moved"))
    code, out, err = predicted(run.folder, picture)
    picture.rename(moved.rename(root) / "cat" / "0.png")
    assert code == 0 and "log q(x) is not compared with" in err and "validation" not in out


def test_messages_name_this_program_and_flags_that_it_has(run, tmp_path):
    dog = run.pictures[1].parent
    wolf = dog.rename(dog.with_name("wolf"))
    code, _, err = predicted(run.folder, run.pictures[0])
    wolf.rename(dog)
    assert code == 0 and "its classes are cat, wolf" in err
    assert err.startswith("predict.py: warning: --dataset ")
    weights = models.build(depth=10, width=1, norm="layer").state_dict()
    torch.save({"model_state_dict": weights}, tmp_path / "layer.pt")
    code, _, err = predicted(tmp_path / "layer.pt", run.pictures[0])
    assert code == 2
    assert err.strip().endswith("put the run's variant.json or params.txt beside it")
    (tmp_path / "variant.json").write_text('{"norm": "layer"}')
    assert predicted(tmp_path / "layer.pt", run.pictures[0])[0] == 0


def test_class_names_are_in_the_settings_and_label_the_samples_of_a_run(run, train):
    assert run.settings["class_names"] == ["cat", "dog"]
    assert train.resumed(run, "--max_steps", "3", "--plot_cond").code == 0
    assert run.settings["class_names"] == ["cat", "dog"]
    assert "class_names" not in run.state()["settings"]
    with Image.open(next(run.folder.glob("samples/cond_*.png"))) as grid:
        label = np.asarray(grid.convert("L"))[:, : grid.width // 20]  # left of the first image
    assert (label == 255).mean() > 0.9 and (label < 128).any()  # letters on white; else it is black


def test_class_names_reach_the_answers_and_the_card(run, ask, tmp_path):
    flags = "--eval cond_samples --fresh_samples --buffer_size 8 --sgld_batch_size 8"
    samples = ask(f"{flags} --n_sample_steps 1 --n_steps 1", load=run.folder)
    assert samples.json("cond_samples")["class_names"] == ["cat", "dog"]
    accuracy = ask("--eval test_clf", load=run.folder)  # of 2 classes there are no best 5
    assert accuracy.json("test_clf")["top5"] is None and "top5" not in accuracy.out
    folder = export.main([str(run.folder / "last_ckpt.pt"), str(tmp_path / "model")])
    card = (folder / export.CARD).read_text()
    assert "The classes, in the order of f(x): `cat`, `dog`." in card and "license" not in card
