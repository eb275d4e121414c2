"""--image_size: what is resized where, and one size from training to a loaded model."""

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

MADE = ("uniform", "gaussian", "photos")
SIZES = (16, 64)
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


@pytest.mark.parametrize("size", [8, 12, 16, 40])
def test_a_random_crop_s_padding_is_an_eighth_of_the_side(size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1, size, size, 3), dtype=torch.uint8, generator=generator)
    pad = size // 8
    padded = np.pad(images[0].numpy(), ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    places = range(2 * pad + 1)
    crops = {padded[y : y + size, x : x + size].tobytes() for y in places for x in places}
    index = torch.zeros(40 * len(places) ** 2, dtype=torch.int64)
    batch = data.augment(images, index, sigma=0, flip=False, generator=generator)
    pixels = ((batch + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert {image.numpy().tobytes() for image in pixels} == crops


@pytest.mark.parametrize("size", SIZES)
def test_every_set_is_read_in_the_size_and_known_by_its_own_pixels(size, tmp_path):
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    for name in ("cifar10", "celeba", "mnist"):
        arrays = {"train_images": pixels, "test_images": pixels[::-1].copy()}
        labels = dict.fromkeys(("train_labels", "test_labels"), np.arange(12) % 10)
        np.savez(tmp_path / f"{name}.npz", **arrays, **labels)
    for i, image in enumerate(pixels):
        (tmp_path / "f" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "f" / f"{i % 2}" / f"{i}.png")
    for name in ("cifar10", "digits", "mnist", f"folder:{tmp_path / 'f'}"):
        plain, other = data.load(name, tmp_path), data.load(name, tmp_path, size=size)
        for one, two in ((plain.train, other.train), (plain.test, other.test)):
            assert two.images.shape == (len(one.images), size, size, 3)
            assert torch.equal(one.hashes, two.hashes) and torch.equal(one.labels, two.labels)
    for name in ("cifar10", "celeba", "cifar10interp", f"folder:{tmp_path / 'f'}", *MADE):
        found = data.EvaluationSets(tmp_path, size=size).load(name, 5)
        assert found.split.images.shape == (min(5, len(found.split.labels)), size, size, 3)
        if name != "uniform" and name != "gaussian":
            assert f"{size} x {size}" in found.about
    means = data.EvaluationSets(tmp_path, size=size).load("cifar10interp").split.images.float()
    assert (means.mean() - pixels.mean()).abs() < 2


def test_patches_larger_than_a_photograph_are_refused(tmp_path):
    with pytest.raises(data.DataError, match="has no images"):
        data.EvaluationSets(tmp_path, size=428).load("photos")


def run_of(train: Any) -> Any:
    return train.once(f"{TERMS} --image_size 16 --max_steps 4 --plot_uncond --plot_cond")


def test_a_run_of_another_size_resumes_and_keeps_its_size(train):
    whole, run = run_of(train), train(f"{TERMS} --image_size 16 --max_steps 2")
    assert run.code == 0 and "images of 16 x 16" in run.out, run.err
    again = train.bare("--resume", str(run.folder), "--max_steps", "4")
    assert again.code == 0, again.err
    for part in ("model_state_dict", "optimizer", "replay_buffer"):
        assert train.same(run.state()[part], whole.state()[part])
    assert run.state()["replay_buffer"].shape == (40, 3, 16, 16)
    refused = train.bare("--resume", str(run.folder), "--image_size", "32")
    assert refused.code == 2
    assert "--image_size 32 cannot change on --resume (the run has 16)" in refused.err[0]


ALL_OOD = "svhn cifar100 celeba interp uniform gaussian photos"
QUESTIONS = (
    "test_clf --max_images 12",
    f"OOD --ood_dataset {ALL_OOD} --score_fn px pxsim knn --knn_k 3 --n_steps 1 --max_images 12",
    "attack --eps 0 8/255 --n_steps_pgd_attack 1 --n_steps_refine 1 --max_images 4",
    "uncond_samples --n_sample_steps 1 --n_steps 1 --sgld_batch_size 4",
    "fid --fid_features model --n_steps 1 --n_samples 12",
)


def test_a_run_of_another_size_is_evaluated_on_images_of_its_own(train, ask):
    path = run_of(train).folder / "last_ckpt.pt"
    other = ask.checkpoint("ce")  # features of a network of 32 x 32
    for question in (*QUESTIONS, f"{QUESTIONS[-1]} --fid_model {other}"):
        found = ask(f"--eval {question}", load=path)
        assert found.code == 0, found.err
        assert found.json(question.split()[0])["protocol"]["image_size"] == 16
        if question.startswith("uncond"):
            with np.load(found.folder / "uncond_samples.npz") as samples:
                assert samples["test_images"].shape[1:] == (16, 16, 3)

    clf = "--eval test_clf --max_images 12 --image_size"
    assert ask(f"{clf} 16", load=path).code == 0
    told = ask(f"{clf} 32", load=path).refusal
    assert "image_size is 16 by its settings, 32 by the command" in told
    told = ask("--eval test_clf", load=f"{path} {other}").refusal
    assert told.startswith("eval_wrn_ebm.py: error: --load_path")
    assert "images of 16 x 16 (" in told and "and 32 x 32 (" in told


def test_an_exported_model_knows_its_size(train, tmp_path):
    path, folder = run_of(train).folder / "last_ckpt.pt", tmp_path / "exported"
    export.main([str(path), str(folder)])
    assert json.loads((folder / "config.json").read_text())["settings"]["image_size"] == 16
    assert "Logits f(x) of 16 x 16 images" in (folder / export.CARD).read_text()
    ours, theirs = models.load(path), models.load(folder, image_size=16)
    assert ours.image_size == theirs.image_size == 16
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(ours.logits(x), theirs.logits(x))


def test_weights_of_another_size_load_and_the_replay_buffer_starts_fresh(train):
    first = train.once(f"{TERMS} --n_epochs 1")
    path = str(first.folder / "last_ckpt.pt")
    words = f"{TERMS} --max_steps 1 --lr 1e-12 --image_size 16 --buffer_size 50"
    run = train(words, "--load_path", path)
    assert run.code == 0 and len(run.err) == 1, run.err
    assert "replay buffer of --load_path has images of 32 x 32, this run of 16 x 16" in run.err[0]
    assert run.state()["replay_buffer"].shape == (50, 3, 16, 16)
    ours, theirs = (r.state()["model_state_dict"] for r in (run, first))
    torch.testing.assert_close(ours["f.conv1.weight"], theirs["f.conv1.weight"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"image_size": 30}, "image_size 30 is not 8 or more and a multiple of 4.*: use 32"),
        ({"image_size": 4}, "use 8"),
        ({"image_size": 20, "arch": "resnet50"}, "a multiple of 8, the stride of resnet50: use 16"),
        ({"image_size": "x"}, "image_size 'x' is no whole number"),
    ],
)
def test_a_network_is_not_built_for_a_size_that_its_strides_do_not_divide(settings, said):
    with pytest.raises(ValueError, match=said):
        models.build(depth=10, width=1, **settings)


@pytest.mark.parametrize(("arch", "stride"), [("wrn", 4), ("resnet50", 8)])
def test_cost_counts_pixels(arch, stride):
    flops = [
        models.forward_flops(models.build(arch=arch, depth=10, width=1, image_size=size))
        for size in (4 * stride, 8 * stride)
    ]
    assert flops[1] / flops[0] == pytest.approx(4, rel=0.01)


def test_mnist_is_a_set_to_train_on(train, tmp_path):
    with np.load(train.data / "cifar10.npz") as found:
        arrays = dict(found)
    for name in ("train_images", "test_images"):
        arrays[name] = arrays[name][:, 2:30, 2:30, 0]
    np.savez(tmp_path / "mnist.npz", **arrays)
    words = "--pyxce 1 --max_steps 2 --dataset mnist --image_size 28 --data_root"
    run = train(words, str(tmp_path))
    assert run.code == 0 and "mnist: 60 training and 20 test images" in run.out, run.err
