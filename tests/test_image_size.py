"""--image_size: resized data sets, and one size from training to a loaded model."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data
import models
from data.images import resize_batch
from scripts import export

TERMS = "--pyxce 1 --pxycontrast 1 --pxsgld 1"


def test_shrinking_weighs_every_pixel_and_enlarging_is_bilinear():
    columns = torch.tensor([0, 104, 200, 40], dtype=torch.uint8)
    image = columns.repeat(2)[None, None, :, None].expand(1, 8, 8, 3)
    # Half the size: (1 3 3 1) / 8 of four neighbours, where there are so many.
    inner = resize_batch(image, 4)[0, 0, 1:3, 0].tolist()
    assert inner == [(104 + 3 * 200 + 3 * 40 + 0) // 8, (40 + 3 * 0 + 3 * 104 + 200) // 8]
    twice = resize_batch(image, 16)[0, 0, 1:5, 0].tolist()  # (3 1) / 4 of two neighbours
    assert twice == [26, 78, 128, 176]
    assert resize_batch(image, 8) is not image and torch.equal(resize_batch(image, 8), image)


@pytest.mark.parametrize("size", [16, 64])
def test_every_set_is_resized_and_its_images_have_the_hashes_of_their_own_pixels(size, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    arrays = {"train_images": pixels, "test_images": pixels[::-1]}
    arrays |= dict.fromkeys(("train_labels", "test_labels"), np.arange(12) % 10)
    for name in ("cifar10", "celeba", "mnist"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
    for i, image in enumerate(pixels):
        (tmp_path / "f" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "f" / f"{i % 2}" / f"{i}.png")
    folder = f"folder:{tmp_path / 'f'}"
    for name in ("cifar10", "digits", "mnist", folder):
        plain, resized = data.load(name, tmp_path), data.load(name, tmp_path, size=size)
        for a, b in ((plain.train, resized.train), (plain.test, resized.test)):
            assert b.images.shape == (len(a.images), size, size, 3)
            assert torch.equal(a.hashes, b.hashes) and torch.equal(a.labels, b.labels)
    sets = data.EvaluationSets(tmp_path, size=size)
    for name in ("cifar10", "celeba", "cifar10interp", folder, "uniform", "gaussian", "photos"):
        part = sets.load(name, 5)
        assert part.split.images.shape == (min(5, len(part.split.labels)), size, size, 3)
        assert name in ("uniform", "gaussian") or f"{size} x {size}" in part.about
    means = sets.load("cifar10interp").split.images.float()
    assert (means.mean() - pixels.mean()).abs() < 2


def run_of(train: Any) -> Any:
    return train.once(f"{TERMS} --image_size 16 --max_steps 4 --plot_uncond --plot_cond")


QUESTIONS = (
    "test_clf --max_images 12 --image_size 16",
    "OOD --ood_dataset svhn cifar100 celeba interp uniform gaussian photos "
    "--score_fn px pxsim knn --knn_k 3 --n_steps 1 --max_images 12",
    "attack --eps 0 8/255 --n_steps_pgd_attack 1 --n_steps_refine 1 --max_images 4",
    "uncond_samples --n_sample_steps 1 --n_steps 1 --sgld_batch_size 4",
    "fid --fid_features model --n_steps 1 --n_samples 12",
)


def test_a_run_of_another_size_is_evaluated_on_images_of_its_size(train, ask):
    path, of_32 = run_of(train).folder / "last_ckpt.pt", ask.checkpoint("ce")
    for question in (*QUESTIONS, f"{QUESTIONS[-1]} --fid_model {of_32}"):
        answer = ask(f"--eval {question}", load=path)
        assert answer.code == 0, answer.err
        assert answer.json(question.split()[0])["protocol"]["image_size"] == 16
        if question.startswith("uncond"):
            with np.load(answer.folder / "uncond_samples.npz") as samples:
                assert samples["test_images"].shape[1:] == (16, 16, 3)

    message = ask("--eval test_clf --image_size 32", load=path).refusal
    assert "image_size is 16 by its settings, 32 by the command" in message
    message = ask("--eval test_clf", load=f"{path} {of_32}").refusal
    assert message.startswith("eval_wrn_ebm.py: error: --load_path")
    assert "images of 16 x 16 (" in message and "and 32 x 32 (" in message


def test_an_exported_model_keeps_its_size(train, ask, tmp_path):
    path, folder = run_of(train).folder / "last_ckpt.pt", tmp_path / "exported"
    export.main([str(path), str(folder)])
    assert json.loads((folder / "config.json").read_text())["settings"]["image_size"] == 16
    assert "Logits f(x) of 16 x 16 images" in (folder / export.CARD).read_text()
    of_run, exported = models.load(path), models.load(folder, image_size=16)
    assert of_run.image_size == exported.image_size == 16
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(of_run.logits(x), exported.logits(x))
    (folder / "config.json").unlink()
    tensors_alone = models.load(folder, image_size=16)
    assert torch.equal(of_run.logits(x), tensors_alone.logits(x))
    words = "--eval OOD --score_fn pxsim --image_size 16 --dataset cifar10 --ood_dataset uniform"
    assert ask(words, load=folder).code == 0


def test_weights_of_another_size_load_and_the_replay_buffer_starts_fresh(train):
    first = train.once(f"{TERMS} --n_epochs 1")
    words = f"{TERMS} --max_steps 1 --lr 1e-12 --image_size 16 --buffer_size 50"
    run = train(words, "--load_path", str(first.folder / "last_ckpt.pt"))
    assert run.code == 0 and len(run.err) == 1, run.err
    assert "replay buffer of --load_path has images of 32 x 32, this run of 16 x 16" in run.err[0]
    assert "images of 16 x 16" in run.out
    assert run.state()["replay_buffer"].shape == (50, 3, 16, 16)
    after, before = (r.state()["model_state_dict"]["f.conv1.weight"] for r in (run, first))
    torch.testing.assert_close(after, before)


def test_flops_are_proportional_to_the_pixels():
    networks = (models.build(depth=10, width=1, image_size=size) for size in (16, 32))
    small, large = map(models.forward_flops, networks)
    assert large / small == pytest.approx(4, rel=0.01)


def test_mnist_is_a_set_to_train_on(train, tmp_path):
    with np.load(train.data / "cifar10.npz") as file:
        arrays = {n: a if n.endswith("labels") else a[:, 2:30, 2:30, 0] for n, a in file.items()}
    np.savez(tmp_path / "mnist.npz", **arrays)
    words = "--pyxce 1 --max_steps 2 --dataset mnist --image_size 28 --data_root"
    run = train(words, str(tmp_path))
    assert run.code == 0 and "mnist: 60 training and 20 test images" in run.out, run.err
