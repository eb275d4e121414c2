"""uncond_samples, cond_samples and fid, from the command line to the files that they leave."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import losses
import models
from data import generator_of
from evaluation.neighbours import compare_with_training
from evaluation.sampling import BUFFER, to_uint8
from scripts import done

FEW = "--n_sample_steps 1 --n_steps 1"


def checkpoint(folder: Path, num_classes: int, buffer: torch.Tensor | None = None) -> Path:
    """A file without settings, and a data set and settings that are null beside it."""
    model = models.build(depth=10, width=1, num_classes=num_classes)
    state: dict[str, Any] = {"model_state_dict": model.state_dict()}
    if buffer is not None:
        state["replay_buffer"] = buffer
    torch.save(state, folder / "odd.pt")
    (folder / "variant.json").write_text('{"norm": null, "sgld_lr": null, "dataset": null}')
    return folder / "odd.pt"


def table_of(found: Any) -> list[str]:
    return [line for line in found.out.splitlines() if line.startswith("|")]


def test_samples_are_the_slots_that_chains_moved_and_can_be_a_data_set(ask):
    flags = "--eval uncond_samples --sgld_batch_size 40 --n_sample_steps 3 --n_steps 2"
    found = ask(f"{flags} --print_every 2 --reinit_freq 0")
    record = found.json("uncond_samples")
    assert f"pictures in {found.folder}: uncond_samples_4.png, uncond_samples_6.png" in found.out
    assert (record["n"], record["steps"], record["steps_per_sample"]) == (40, 6, 6)
    names = ["uncond_samples_4.png", "uncond_samples_6.png", "uncond_samples.npz"]
    for picture in ("trajectory", "starts"):
        names += [f"uncond_samples_{picture}.{kind}" for kind in ("png", "pdf")]
    assert record["files"] == names
    assert "None" not in found.out and len(table_of(found)) == 4
    saved = np.load(found.folder / "uncond_samples.npz")
    state = torch.load(ask.checkpoint("hdge"), weights_only=True)
    assert saved["test_images"].dtype == np.uint8 and saved["test_images"].shape == (40, 32, 32, 3)
    assert np.array_equal(saved["start_images"], to_uint8(state["replay_buffer"]))
    assert not np.array_equal(saved["start_images"], saved["test_images"])

    shutil.copy(found.folder / "uncond_samples.npz", ask.trainer.data / "mysamples.npz")
    found = ask("--eval OOD --ood_dataset mysamples")
    assert found.code == 0 and found.json("OOD")["rows"][0]["ood_dataset"] == "mysamples"


def test_one_chain_a_slot_beside_its_start_and_training_images(ask):
    flags = "--eval cond_samples --fresh_samples --buffer_size 30 --sgld_batch_size 30 "
    flags += "--n_sample_steps 1 --n_steps 2 --reinit_freq 0 --seed 5"
    found = ask(flags, "--fid_model", str(ask.checkpoint("ce")))
    assert found.code == 0 and found.err == [], found.err
    record = found.json("cond_samples")
    saved = np.load(found.folder / "cond_samples.npz")
    assert record["n"] == 30 and record["steps_per_sample"] == 2
    assert saved["test_labels"].tolist() == np.repeat(np.arange(10), 3).tolist()
    generator = generator_of(torch.device("cpu"), 5, BUFFER)
    starts = to_uint8(torch.empty(30, 3, 32, 32).uniform_(-1, 1, generator=generator))
    assert np.array_equal(saved["start_images"], starts)
    assert not np.array_equal(saved["test_images"], starts)

    data = np.load(ask.trainer.data / "cifar10.npz")
    arrays = [saved[f"{name}_{kind}"] for name, kind in
              (("test", "images"), ("start", "images"), ("test", "labels"))]  # fmt: skip
    arrays += [data["train_images"], data["train_labels"]]
    expected, _ = compare_with_training(*map(torch.from_numpy, arrays))
    for name in ("nearest", "variety"):
        assert record[name] == pytest.approx(expected[name])
    read = record["read_as_asked"]
    assert record["guidance"] == 1
    assert read["classifier"] == str(ask.checkpoint("ce")) and len(read["classifier_sha256"]) == 64
    assert 0 <= read["samples"] <= 1 and 0 <= read["starts"] <= 1
    assert [row["n"] for row in read["per_class"]] == [3] * 10
    assert sum(record["classified_per_class"]) == 30
    pictures = [f"cond_samples_{kind}.png" for kind in
                ("direct_2", "starts", "classified_2", "trajectory")]  # fmt: skip
    assert [name for name in record["files"] if name.endswith("png")] == pictures
    assert len(table_of(found)) == 5 and max(map(len, table_of(found))) <= 60
    for judge, known in (("ce", True), ("hdge", False)):
        words = [*flags.split(), "--fid_model", str(ask.checkpoint(judge))]
        words = ["eval_wrn_ebm.py", "--load_path", str(ask.checkpoint("hdge")), *words]
        assert done.answered(found.folder, words) is known


def test_a_buffer_that_the_classes_cannot_share(ask, tmp_path):
    """In half precision; the model's training set is unknown, and its classes are not the judge's.
    A class has its turn though there are fewer chains than classes."""
    path = checkpoint(tmp_path, num_classes=3, buffer=torch.rand(20, 3, 32, 32).half())

    def asked(question: str, *more: str) -> Any:
        flags = f"--eval {question} --sgld_batch_size 2 --n_steps 1 --n_sample_steps 3"
        return ask(flags, *more, load=path)

    found = asked("uncond_samples")
    assert found.code == 0 and len(found.err) == 1
    assert "samples are not compared with training images: --dataset is missing" in found.err[0]
    assert not {"nearest", "variety"} & set(found.json("uncond_samples"))
    assert "uncond_samples_starts.png" in found.json("uncond_samples")["files"]
    assert "3 classes" in asked("cond_samples").refusal
    fresh = ("--fresh_samples", "--buffer_size", "30")
    refusal = asked("cond_samples", *fresh, "--fid_model", str(ask.checkpoint("ce"))).refusal
    assert "has 10 classes" in refusal and "--fid_model" in refusal
    found = asked("cond_samples", *fresh)
    assert found.code == 0, found.err
    assert set(np.load(found.folder / "cond_samples.npz")["test_labels"]) == {0, 1, 2}
    assert found.json("cond_samples")["steps_per_sample"] == pytest.approx(1, abs=0.21)


def test_without_training_images_and_a_replay_buffer(ask, tmp_path):
    (tmp_path / "cifar10.npz").write_bytes(b"no images")  # so that nothing is downloaded
    flags = f"--eval uncond_samples --fresh_samples --buffer_size 8 --sgld_batch_size 8 {FEW}"
    found = ask(flags, "--data_root", str(tmp_path), load="ce")
    assert found.code == 0 and len(found.err) == 1, found.err
    assert "samples are not compared with training images" in found.err[0]
    assert found.json("uncond_samples")["n"] == 8


GAUSSIAN = "--pyxce 1 --pxsgld 1 --chain_start class_gaussian --sgld_clamp --max_steps 2"
STILL = "--n_steps 1 --sgld_lr 1e-9 --sgld_std 0 --sgld_batch_size 20"


@pytest.mark.parametrize("question", ["cond_samples", "uncond_samples", "fid"])
def test_chains_start_from_the_checkpoint_s_gaussians(question, train, ask, tmp_path, monkeypatch):
    """No training image is asked for. The made-up images are brighter by class, from -.76 on, and
    .16 a class."""
    run = train(GAUSSIAN)
    monkeypatch.setattr(losses.GaussianStart, "fit", lambda *_: pytest.fail("fitted again"))
    assert train.resumed(run, "--max_steps", "3").code == 0
    root, more = tmp_path, "--fresh_samples --buffer_size 40 --n_sample_steps 4"
    if question == "fid":
        root, more = train.data, "--reference cifar10_test --fid_features model --n_samples 40"

    def answered(flags: str) -> Any:
        words = f"--eval {question} --data_root {root} {more} {STILL} {flags}"
        return ask(words, load=run.folder / "last_ckpt.pt")

    drawn = []
    draw = losses.GaussianStart.draw
    monkeypatch.setattr(
        losses.GaussianStart, "draw", lambda *a: drawn.append(draw(*a)) or drawn[-1]
    )
    found = answered("")
    assert found.code == 0 and drawn
    if question != "fid":
        saved = np.load(found.folder / f"{question}.npz")
        shades = saved["test_images"].mean((1, 2, 3)) / 127.5 - 1
        assert shades.std() > 0.3
        if question == "cond_samples":
            assert np.abs(shades + 0.76 - 0.16 * saved["test_labels"]).max() < 0.08
    drawn.clear()
    assert answered("--chain_start uniform").code == 0 and not drawn
    refusal = answered("--chain_start gaussian").refusal
    for words in ("--chain_start gaussian", "its chains start from class_gaussian: leave it out"):
        assert words in refusal


# --- fid

FID = "--eval fid --fid_features model"


def test_fid_names_its_protocol_and_warns_of_few_images(ask):
    found = ask(f"{FID} --n_samples 12 --n_steps 2")
    record = found.json("fid")
    assert record["fid"] > 0 and record["inception_score_mean"] >= 1
    assert (record["n"], record["n_reference"], record["reference"]) == (12, 60, "cifar10_train")
    assert record["sampling"] == "fresh" and record["steps"] == 2
    assert record["full_rank"] is False and "full rank" in found.err[0]
    assert record["features"].startswith("model ") and record["rounding"] == "uint8"


@pytest.mark.parametrize("sampling", ["buffer", "confident"])
def test_fid_of_the_replay_buffer(sampling, ask):
    found = ask(f"{FID} --sampling {sampling}", "--fid_model", str(ask.checkpoint("ce")))
    record = found.json("fid")
    assert record["sampling"] == sampling and record["steps"] is None
    if sampling == "buffer":
        assert record["n"] == record["n_score"] == 40
        assert record["reference"] == "cifar10_train"
    else:  # int(.9 m) of every class of m
        assert 26 <= record["n"] <= 36 and record["reference"] == "cifar10_train + cifar10_test"
        assert record["n_score"] < record["n"]
    assert str(ask.checkpoint("ce")) in record["features"]


def test_the_first_images_of_a_replay_buffer_are_of_all_classes(ask, tmp_path):
    """Its slots are sorted by class: rows of fewer images must not be of the first classes."""
    shades = torch.linspace(-1, 1, 200).round(decimals=2)
    path = checkpoint(tmp_path, 10, shades[:, None, None, None].expand(200, 3, 32, 32))
    asked = ask(f"{FID} --sampling buffer --max_images 40 --dataset cifar10", load=path)
    seen = np.load(asked.folder / "fid_samples.npz")["test_images"][:, 0, 0, 0]
    assert asked.json("fid")["n"] == len(seen) == 40
    assert all(np.histogram(seen[:20], 4, (0, 255))[0] > 1)


def test_fid_over_the_length_of_class_conditional_chains(ask):
    flags = f"{FID} --sampling class --n_samples 20 --sgld_batch_size 8"
    judge = ("--fid_model", str(ask.checkpoint("ce")))
    found = ask(f"{flags} --n_steps 2 --chain_lengths 1 4", *judge)
    record = found.json("fid")
    rows = record["rows"]
    assert [(row["images"], row["steps"]) for row in rows] == [
        *[("starts", 0), ("samples", 1), ("samples", 2), ("samples", 4)],
        ("training images", None),
    ]
    keys = {"images", "steps", "n", "fid", "precision", "recall", "read_as_asked"}
    assert all(set(row) == keys and row["n"] == 20 for row in rows)
    read = record["read_as_asked"]
    assert (rows[0]["read_as_asked"], rows[2]["read_as_asked"]) == (read["starts"], read["samples"])
    assert {f"fid_lengths.{kind}" for kind in ("png", "pdf")} <= set(record["files"])
    assert len(table_of(found)) == 7 and max(map(len, table_of(found))) <= 60
    saved = np.load(found.folder / "fid_samples.npz")
    assert saved["test_labels"].tolist() == [i % 10 for i in range(20)]

    longer = ask(f"{flags} --n_steps 4", *judge)
    assert longer.json("fid")["rows"][1] == rows[3]
    again = np.load(longer.folder / "fid_samples.npz")["start_images"]
    assert np.array_equal(again, saved["start_images"])
    assert not any("fid_lengths" in name for name in longer.json("fid")["files"])
