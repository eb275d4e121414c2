"""uncond_samples, cond_samples and fid, from the command line to the files that they leave."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import losses
import models
from data import generator_of
from evaluation import flags, loading
from evaluation.generation import model_extractor, read_as_asked
from evaluation.neighbours import compare_with_training
from evaluation.sampling import BUFFER, most_confident, to_uint8
from runs.checkpoint import save_checkpoint
from scripts import done


def checkpoint(folder: Path, num_classes: int, buffer: torch.Tensor | None = None) -> Path:
    """Write a checkpoint without settings; in its variant.json they are null."""
    model = models.build(depth=10, width=1, num_classes=num_classes)
    state: dict[str, Any] = {"model_state_dict": model.state_dict()}
    if buffer is not None:
        state["replay_buffer"] = buffer
    torch.save(state, folder / "odd.pt")
    (folder / "variant.json").write_text('{"norm": null, "sgld_lr": null, "dataset": null}')
    return folder / "odd.pt"


def table_of(answer: Any) -> list[str]:
    return [line for line in answer.out.splitlines() if line.startswith("|")]


def test_samples_are_moved_slots_and_can_be_a_data_set(ask):
    flags = "--eval uncond_samples --sgld_batch_size 40 --n_sample_steps 3 --n_steps 2"
    answer = ask(f"{flags} --print_every 2 --reinit_freq 0 --buffer_size 20", pictures=True)
    assert "--buffer_size 20 has no effect without --fresh_samples" in answer.out
    record = answer.json("uncond_samples")
    assert f"pictures in {answer.folder}: uncond_samples_4.png, uncond_samples_6.png" in answer.out
    assert (record["n"], record["steps"], record["steps_per_sample"]) == (40, 6, 6)
    ends = ["_4.png", "_6.png", ".npz", "_trajectory.png", "_trajectory.pdf"]
    ends += ["_starts.png", "_starts.pdf"]
    assert record["files"] == [f"uncond_samples{end}" for end in ends]
    assert "None" not in answer.out and len(table_of(answer)) == 4
    saved = np.load(answer.folder / "uncond_samples.npz")
    state = torch.load(ask.checkpoint("hdge"), weights_only=True)
    assert saved["test_images"].dtype == np.uint8 and saved["test_images"].shape == (40, 32, 32, 3)
    assert np.array_equal(saved["start_images"], to_uint8(state["replay_buffer"]))
    assert not np.array_equal(saved["start_images"], saved["test_images"])

    shutil.copy(answer.folder / "uncond_samples.npz", ask.trainer.data / "mysamples.npz")
    answer = ask("--eval OOD --ood_dataset mysamples")
    assert answer.code == 0 and answer.json("OOD")["rows"][0]["ood_dataset"] == "mysamples"


def test_class_conditional_samples_are_judged_beside_their_starts(ask, tmp_path):
    flags = "--eval cond_samples --fresh_samples --buffer_size 30 --sgld_batch_size 30 "
    flags += "--n_sample_steps 1 --n_steps 2 --reinit_freq 0 --seed 5 --sgld_lr 1000"
    answer = ask(flags, "--fid_model", str(ask.checkpoint("ce")), pictures=True)
    assert answer.code == 0 and answer.err == [], answer.err
    record = answer.json("cond_samples")
    saved = np.load(answer.folder / "cond_samples.npz")
    assert record["n"] == 30 and record["steps_per_sample"] == 2
    assert saved["test_labels"].tolist() == np.repeat(np.arange(10), 3).tolist()
    generator = generator_of(torch.device("cpu"), 5, BUFFER)
    starts = to_uint8(torch.empty(30, 3, 32, 32).uniform_(-1, 1, generator=generator))
    assert np.array_equal(saved["start_images"], starts)
    assert not np.array_equal(saved["test_images"], starts)

    data = np.load(ask.trainer.data / "cifar10.npz")
    arrays = [saved[name] for name in ("test_images", "start_images", "test_labels")]
    arrays += [data["train_images"], data["train_labels"]]
    expected, _ = compare_with_training(*map(torch.from_numpy, arrays))
    for name in ("nearest", "variety"):
        assert record[name] == pytest.approx(expected[name])
    read = record["read_as_asked"]
    assert record["guidance"] == 1
    assert read["classifier"] == str(ask.checkpoint("ce")) and len(read["classifier_sha256"]) == 64
    extractor = model_extractor(models.load(ask.checkpoint("ce")))
    shares = read_as_asked(extractor, *map(torch.from_numpy, arrays[:3]))
    assert {name: read[name] for name in shares} == shares
    assert any(row["samples"] != row["starts"] for row in shares["per_class"])
    assert [row["n"] for row in read["per_class"]] == [3] * 10
    assert sum(record["classified_per_class"]) == 30
    pictures = [name for name in record["files"] if name.endswith("png")]
    kinds = ("direct_2", "starts", "classified_2", "trajectory")
    assert pictures == [f"cond_samples_{kind}.png" for kind in kinds]
    assert len(table_of(answer)) == 5 and max(map(len, table_of(answer))) <= 60

    state = torch.load(ask.checkpoint("ce"), weights_only=True)
    weights, names = state["model_state_dict"], state["data"]["class_names"]
    for name in ("class_output.weight", "class_output.bias"):
        weights[name] = weights[name].flip(0)
    for renamed in ("truck", "lorry"):  # the same classes in another order, and another class
        state["data"]["class_names"] = [renamed, *names[-2::-1]]
        save_checkpoint(state, tmp_path / f"{renamed}.pt")
    again = ask(flags, "--fid_model", str(tmp_path / "truck.pt")).json("cond_samples")
    assert again["read_as_asked"]["per_class"] == read["per_class"]
    refusal = ask(flags, "--fid_model", str(tmp_path / "lorry.pt")).refusal
    assert "lorry.pt has the classes lorry, ship, " in refusal and "airplane, auto" in refusal
    state["settings"]["dataset"], state["data"]["class_names"] = "svhn", [*map(str, range(10))]
    save_checkpoint(state, tmp_path / "svhn.pt")
    refusal = ask(flags, "--fid_model", str(tmp_path / "svhn.pt")).refusal
    assert "svhn.pt has the classes 0, 1, 2, " in refusal and "airplane, auto" in refusal

    for judge, answered in (("ce", True), ("hdge", False)):
        argv = ["eval_wrn_ebm.py", "--load_path", str(ask.checkpoint("hdge")), *flags.split()]
        argv += ["--fid_model", str(ask.checkpoint(judge))]
        assert done.answered(answer.folder, argv) is answered


CHAIN = {
    "sgld_lr": 2.0,
    "sgld_std": 0.5,
    "sgld_grad_clip": 0.3,
    "sgld_clamp": True,
    "guidance": 0.1,
}


@pytest.mark.parametrize("where", ["run", "flags"])
def test_chains_have_the_settings_of_the_run_which_flags_override(where, ask):
    s, _ = flags.parse(["--load_path", str(ask.checkpoint("ce")), "--eval", "cond_samples"])
    model = loading.load(s.load_path[0], "", s, torch.device("cpu"))
    (model.settings if where == "run" else vars(model.flags)).update(CHAIN)
    chain = losses.Chain(7, 2.0, 0.5, grad_clip=0.3, clamp=True, guidance=0.1)
    assert replace(model.chain(7), start=chain.start) == chain


def test_classes_that_cannot_share_a_buffer_are_refused(ask, tmp_path):
    """The buffer is in half precision, the model's training set is unknown, and its classes are not
    the judge's. Each class has its turn though there are fewer chains than classes."""
    path = checkpoint(tmp_path, num_classes=3, buffer=torch.rand(20, 3, 32, 32).half())

    def evaluate(question: str, *more: str) -> Any:
        flags = f"--eval {question} --sgld_batch_size 2 --n_steps 1 --n_sample_steps 3"
        return ask(flags, *more, load=path)

    answer = evaluate("uncond_samples")
    assert answer.code == 0 and len(answer.err) == 1
    assert "samples are not compared with training images: --dataset is missing" in answer.err[0]
    assert not {"nearest", "variety"} & set(answer.json("uncond_samples"))
    assert "uncond_samples_starts.png" in answer.json("uncond_samples")["files"]
    assert "3 classes" in evaluate("cond_samples").refusal
    fresh = ("--fresh_samples", "--buffer_size", "30")
    refusal = evaluate("cond_samples", *fresh, "--fid_model", str(ask.checkpoint("ce"))).refusal
    assert "has 10 classes" in refusal and "--fid_model" in refusal
    answer = evaluate("cond_samples", *fresh)
    assert answer.code == 0, answer.err
    assert set(np.load(answer.folder / "cond_samples.npz")["test_labels"]) == {0, 1, 2}
    assert answer.json("cond_samples")["steps_per_sample"] == pytest.approx(1, abs=0.21)


def test_chains_start_from_the_checkpoint_s_gaussians(train, ask, tmp_path, monkeypatch):
    """No training image is read. The made-up images of class y have brightness -.76 + .16 y."""
    run = train("--pyxce 1 --pxsgld 1 --chain_start class_gaussian --sgld_clamp --max_steps 2")
    monkeypatch.setattr(losses.GaussianStart, "fit", lambda *_: pytest.fail("fitted again"))
    assert train.resumed(run, "--max_steps", "3").code == 0
    path, drawn, draw = run.folder / "last_ckpt.pt", [], losses.GaussianStart.draw
    monkeypatch.setattr(losses.GaussianStart, "draw", lambda *a: drawn.append(1) or draw(*a))
    samples = f"--data_root {tmp_path} --fresh_samples --buffer_size 40 --n_sample_steps 4"
    fid = f"--data_root {train.data} --reference cifar10_test --fid_features model --n_samples 40"
    for question, more in (("cond_samples", samples), ("uncond_samples", samples), ("fid", fid)):
        flags = f"--eval {question} {more} --n_steps 1 --sgld_batch_size 20"
        flags += " --sgld_lr 1e-9 --sgld_std 0"  # chains stay
        drawn.clear()
        answer = ask(flags, load=path)
        assert answer.code == 0 and drawn
        if question != "fid":
            assert "samples are not compared with training images" in answer.err[0]
            saved = np.load(answer.folder / f"{question}.npz")
            shades = saved["test_images"].mean((1, 2, 3)) / 127.5 - 1
            assert shades.std() > 0.3
        if question == "cond_samples":
            assert np.abs(shades + 0.76 - 0.16 * saved["test_labels"]).max() < 0.08
        drawn.clear()
        assert ask(f"{flags} --chain_start uniform", load=path).code == 0 and not drawn
        refusal = ask(f"{flags} --chain_start gaussian", load=path).refusal
        assert "--chain_start gaussian" in refusal
        assert "its chains start from class_gaussian: leave it out" in refusal


FID = "--eval fid --fid_features model"


def test_fid_records_its_protocol_and_warns_of_few_images(ask):
    answer = ask(f"{FID} --n_samples 12 --n_steps 2")
    record = answer.json("fid")
    assert record["fid"] > 0 and record["inception_score_mean"] >= 1
    assert (record["n"], record["n_reference"], record["reference"]) == (12, 60, "cifar10_train")
    assert record["sampling"] == "fresh" and record["steps"] == 2
    assert record["full_rank"] is False and "full rank" in answer.err[0]
    assert record["features"].startswith("model ") and record["rounding"] == "uint8"


def test_a_reference_takes_the_place_of_an_unknown_training_set(ask, tmp_path):
    flags = f"{FID} --n_samples 12 --n_steps 1"
    path = checkpoint(tmp_path, num_classes=3)
    assert "--dataset is missing" in ask(flags, load=path).refusal
    answer = ask(f"{flags} --reference svhn", load=path)
    assert answer.code == 0 and answer.json("fid")["reference"] == "svhn_test"
    assert answer.json("fid")["rows"][-1]["images"] == "reference images"
    refusal = ask(f"{flags} --reference svhn --dataset svhn").refusal
    assert "--dataset svhn" in refusal and refusal.endswith("cifar10; leave it out")


@pytest.mark.parametrize("sampling", ["buffer", "confident"])
def test_fid_of_the_replay_buffer(sampling, ask):
    answer = ask(f"{FID} --sampling {sampling}", "--fid_model", str(ask.checkpoint("ce")))
    record = answer.json("fid")
    assert record["sampling"] == sampling and record["steps"] is None
    if sampling == "buffer":
        assert record["n"] == record["n_score"] == 40
        assert record["reference"] == "cifar10_train"
    else:  # int(.9 m) of every class of m
        assert 26 <= record["n"] <= 36 and record["reference"] == "cifar10_train + cifar10_test"
        assert record["n_score"] < record["n"]
        buffer = torch.load(ask.checkpoint("hdge"), weights_only=True)["replay_buffer"]
        classes = most_confident(models.load(ask.checkpoint("hdge")), buffer)
        kept = torch.cat([index[: int(0.9 * len(index))] for index in classes])
        samples = np.load(answer.folder / "fid_samples.npz")["test_images"]
        assert np.array_equal(np.sort(samples, 0), np.sort(to_uint8(buffer[kept]), 0))
    assert str(ask.checkpoint("ce")) in record["features"]


def test_the_first_images_of_a_replay_buffer_are_of_all_classes(ask, tmp_path):
    """Slots are sorted by class: fewer images must not be of the first classes alone."""
    shades = torch.linspace(-1, 1, 200).round(decimals=2)
    path = checkpoint(tmp_path, 10, shades[:, None, None, None].expand(200, 3, 32, 32))
    answer = ask(f"{FID} --sampling buffer --max_images 40 --dataset cifar10", load=path)
    pixels = np.load(answer.folder / "fid_samples.npz")["test_images"][:, 0, 0, 0]
    assert answer.json("fid")["n"] == len(pixels) == 40
    assert all(np.histogram(pixels[:20], 4, (0, 255))[0] > 1)


def test_fid_over_the_length_of_class_conditional_chains(ask):
    flags = f"{FID} --sampling class --n_samples 20 --sgld_batch_size 8"
    judge = ("--fid_model", str(ask.checkpoint("ce")))
    answer = ask(f"{flags} --n_steps 2 --chain_lengths 1 4", *judge, pictures=True)
    record = answer.json("fid")
    rows = record["rows"]
    assert [row["images"] for row in rows] == ["starts", *["samples"] * 3, "training images"]
    assert [row["steps"] for row in rows] == [0, 1, 2, 4, None]
    keys = {"images", "steps", "n", "fid", "precision", "recall", "read_as_asked"}
    assert all(set(row) == keys and row["n"] == 20 for row in rows)
    read = record["read_as_asked"]
    assert (rows[0]["read_as_asked"], rows[2]["read_as_asked"]) == (read["starts"], read["samples"])
    assert {f"fid_lengths.{kind}" for kind in ("png", "pdf")} <= set(record["files"])
    assert len(table_of(answer)) == 7 and max(map(len, table_of(answer))) <= 60
    saved = np.load(answer.folder / "fid_samples.npz")
    assert saved["test_labels"].tolist() == [i % 10 for i in range(20)]

    longer = ask(f"{flags} --n_steps 4", *judge)
    assert longer.json("fid")["rows"][1] == rows[3]
    again = np.load(longer.folder / "fid_samples.npz")["start_images"]
    assert np.array_equal(again, saved["start_images"])
    assert not any("fid_lengths" in name for name in longer.json("fid")["files"])
