"""Samples beside where their chains began, the training images, and what a classifier reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation import neighbours
from evaluation.generation import (
    SCORE_ORDER,
    compared,
    decline,
    evaluate_samples,
    frechet_distance,
    read_as_asked,
    reads_as,
)
from evaluation.neighbours import compare_with_training, nearest, precision_recall
from evaluation.plots import save_side_by_side
from evaluation.sampling import (
    Slots,
    fresh_buffer,
    fresh_chains,
    legs_of,
    sampling_rounds,
    to_uint8,
)
from losses import Chain, ReplayBuffer
from scripts import done
from tests.test_eval import checkpoint


def pictures(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, 2, 3), generator=generator).to(torch.uint8)


def features(n: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def distances(a: Tensor, b: Tensor, unit: float = 1.0) -> np.ndarray:
    x, y = (each.flatten(1).double().numpy() / unit for each in (a, b))
    return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))


# --- neighbours


@pytest.mark.parametrize("largest", [1, 30, 2**24])
def test_nearest_against_brute_force(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "LARGEST", largest)
    monkeypatch.setattr(neighbours, "PAIRED", 4)
    images, bank = pictures(9), pictures(20, seed=1)
    images[3] = bank[17]
    expected = distances(images, bank, 255)
    found, index = nearest(images, bank)
    assert index.tolist() == expected.argmin(1).tolist()
    np.testing.assert_allclose(found, expected.min(1), rtol=1e-6)
    assert found[3] == 0

    own = distances(bank, bank, 255) + np.diag([np.inf] * 20)
    found, index = nearest(bank, bank, torch.arange(20))
    assert index.tolist() == own.argmin(1).tolist()
    np.testing.assert_allclose(found, own.min(1), rtol=1e-6)
    with pytest.raises(ValueError, match="no image"):
        nearest(images, bank[:0])


def test_samples_are_compared_with_the_training_images_of_their_class() -> None:
    labels = torch.tensor([0, 1, 0, 1, 1])
    data_labels = torch.tensor([1, 0] * 6)
    samples, starts, data = pictures(5), pictures(5, 1), pictures(12, 2)
    numbers, index = compare_with_training(samples, starts, labels, data, data_labels)
    far: dict[str, list[float]] = {"samples": [], "starts": [], "data": []}
    apart: dict[str, list[float]] = {"samples": [], "starts": [], "data": []}
    for y in (0, 1):
        theirs = np.flatnonzero(data_labels == y)
        mine = np.flatnonzero(labels == y)
        bank, n = data[theirs], len(mine)
        chosen = np.arange(n) * 6 // n
        assert index[mine].tolist() == theirs[distances(samples[mine], bank).argmin(1)].tolist()
        far["samples"] += distances(samples[mine], bank, 255).min(1).tolist()
        far["starts"] += distances(starts[mine], bank, 255).min(1).tolist()
        own = distances(bank, bank, 255) + np.diag([np.inf] * 6)
        far["data"] += own.min(1)[chosen].tolist()
        for name, images in (("samples", samples[mine]), ("starts", starts[mine]),
                             ("data", bank[chosen])):  # fmt: skip
            apart[name].append(distances(images, images, 255)[np.triu_indices(n, 1)].mean())
    near = {name: np.mean(each) for name, each in far.items()}
    near |= {f"samples_over_{n}": near["samples"] / near[n] for n in ("starts", "data")}
    vary = {name: np.mean(each) for name, each in apart.items()}
    vary["samples_over_data"] = vary["samples"] / vary["data"]
    assert numbers["nearest"] == pytest.approx(near, rel=1e-6)
    assert numbers["variety"] == pytest.approx(vary, rel=1e-6)


def test_few_samples_have_no_variety_and_copies_no_distance() -> None:
    data, labels = pictures(6), torch.tensor([0, 0, 0, 1, 1, 1])
    numbers, index = compare_with_training(data[[5]], data[[4]], labels[[5]], data, labels)
    assert index.tolist() == [5] and numbers["variety"]["samples"] is None
    assert numbers["nearest"]["samples"] == numbers["nearest"]["starts"] == 0
    assert numbers["nearest"]["samples_over_starts"] is None  # 0 / 0
    with pytest.raises(ValueError, match="class 1 has 1 training images"):
        compare_with_training(data[[5]], data[[4]], labels[[5]], data[:4], labels[:4])


SETS = {
    "apart": (features(30), features(40, 1)),
    "wide": (features(30, scale=3), features(40, 1)),
    "narrow": (features(40, scale=0.1), features(11, 1)),
    "copies": (features(9).repeat(5, 1), torch.cat([features(9), features(9, 1)])),
    "all the same": (torch.ones(8, 4), torch.ones(5, 4)),
    "tiny": (features(4), features(5, 1)),
}


@pytest.mark.parametrize("largest", [50, 2**24])
@pytest.mark.parametrize("name", SETS)
def test_precision_and_recall_against_brute_force(
    name: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "LARGEST", largest)
    samples, real = SETS[name]

    def covered(a: Tensor, b: Tensor) -> float:
        """The share of a within the distance of some b to its 3rd nearest other."""
        radii = np.sort(distances(b, b), 1)[:, 3]
        return float((distances(a, b) <= radii).any(1).mean())

    expected = covered(samples, real), covered(real, samples)
    assert precision_recall(samples, real) == pytest.approx(expected)
    known = neighbours.neighbour_radii(real)
    assert precision_recall(samples, real, radii=known) == pytest.approx(expected)


def test_sets_of_three_have_no_third_neighbour() -> None:
    assert precision_recall(features(3), features(9)) == (None, None)
    assert precision_recall(features(9), features(3)) == (None, None)


# --- where chains began


class Rising(nn.Module):
    """log q(x) = log q(x, y) = sum of the pixels: a chain rises by its step size each step."""

    image_size = 32

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def log_px(self, x: Tensor) -> Tensor:
        return self.scale * x.flatten(1).sum(1)

    def log_pxy(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_px(x) + y


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("reinit_freq", [0.0, 0.4])
def test_the_start_of_a_slot_s_present_chain_is_known(
    conditional: bool, reinit_freq: float
) -> None:
    buffer = ReplayBuffer(24, (3, 4, 4), reinit_freq, 3)
    buffer.images.copy_((100.0 + torch.arange(24))[:, None, None, None].expand(24, 3, 4, 4))
    first, slots, chain = buffer.images.clone(), Slots(buffer), Chain(1, 0.5, 0.0)
    settings: dict[str, Any] = {"rounds": 9, "chains": 6, "seed": 0, "conditional": conditional}
    list(sampling_rounds(Rising(), slots, chain, **settings))  # type: ignore[arg-type]
    risen = (buffer.images - slots.starts).flatten(1)
    turns = (risen / 0.5).round()
    torch.testing.assert_close(risen, 0.5 * turns, rtol=0, atol=1e-5)
    assert (turns == turns[:, :1]).all() and (turns[:, 0] > 0).equal(slots.drawn)
    kept = (slots.starts == first).flatten(1).all(1)
    assert slots.starts[~kept].abs().amax().item() <= 1 if reinit_freq else kept.all()
    assert turns[:, 0].sum() == 9 * 6 if not reinit_freq else turns[~kept].max() > 1


@pytest.mark.parametrize("conditional", [False, True])
def test_chains_seen_on_their_way_are_the_same_chains(conditional: bool) -> None:
    model: Any = Rising()
    settings: dict[str, Any] = {"batch_size": 4, "seed": 3}
    settings["labels"] = torch.arange(6) % 2 if conditional else None

    def run(steps: int, seen: list[int] | None = None) -> list[Tensor]:
        legs = legs_of(Chain(steps, 1e-3, 0.1), seen or [0, steps])
        batches = fresh_chains(model, legs, 6, **settings)
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    seen = run(5, seen=[0, 2, 5])
    (start, two), (again, five) = run(2), run(5)
    assert all(map(torch.equal, seen, (start, two, five))) and torch.equal(start, again)
    assert len(start) == 6 and not torch.equal(two, five)


# --- rows of fid


def pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    x = images.flatten(1)[:, :4].double()
    return x, x.softmax(1)


def test_rows_are_of_as_many_images_against_one_half_of_the_reference() -> None:
    samples, starts, reference = pictures(7), pictures(7, 1), pictures(21, 2)
    found = evaluate_samples(
        samples, reference, pixels, splits=1, others={0: starts, 9: samples}, steps=4
    )
    order = np.random.RandomState(SCORE_ORDER).permutation(21)
    half, other = reference[order[:7]], reference[order[7:14]]
    sets = [("starts", 0, starts), ("samples", 4, samples), ("samples", 9, samples)]
    rows = found["rows"]
    assert len(rows) == 4
    for row, (name, steps, images) in zip(
        rows, [*sets, ("reference images", None, other)], strict=True
    ):
        x, y = pixels(images)[0], pixels(half)[0]
        fid = frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
        assert (row["images"], row["steps"], row["n"]) == (name, steps, 7)
        assert row["fid"] == pytest.approx(fid, rel=1e-9)
        assert (row["precision"], row["recall"]) == precision_recall(x, y)
    assert found["fid"] != rows[1]["fid"]  # that is against the whole reference


def test_rows_of_few_reference_images() -> None:
    rows = compared([(None, features(50))], features(7, 1))
    assert [(row["images"], row["n"]) for row in rows] == [("samples", 3), ("reference images", 3)]
    assert all(row["fid"] > 0 and row["precision"] is row["recall"] is None for row in rows)


@pytest.mark.parametrize(
    ("fids", "said"),
    [
        ([90, 50, 52.5], None),
        ([90, 50, 52.6], "lowest after 20 steps, 50, and 52.6 after 40"),
        ([90, 50, 60, 51], "lowest after 20 steps, 50, and 60 after 40"),
        ([90, 60, 50], None),
        ([90], None),
    ],
)
def test_chains_that_get_worse_are_said(fids: list[float], said: str | None) -> None:
    rows = [{"steps": 20 * i, "fid": fid} for i, fid in enumerate(fids)]
    found = decline([*rows, {"steps": None, "fid": 1.0}])
    assert found is None if said is None else found is not None and said in found
    assert found is None or "\n" not in found


def test_what_is_read_as_asked() -> None:
    def by_first_pixel(images: Tensor) -> tuple[Tensor, Tensor]:
        return images.flatten(1).double(), torch.eye(3)[images[:, 0, 0, 0].long()]

    labels = torch.tensor([0, 1, 2, 0, 2])
    samples, starts = torch.zeros(2, 5, 2, 2, 3, dtype=torch.uint8)
    samples[:, 0, 0, 0] = torch.tensor([0, 1, 1, 0, 2])
    right = [reads_as(by_first_pixel, images, labels) for images in (samples, starts)]
    assert right[0].tolist() == [1, 1, 0, 1, 1]
    found = read_as_asked(*right, labels)
    assert found["samples"] == pytest.approx(0.8) and found["starts"] == pytest.approx(0.4)
    assert found["per_class"] == [
        {"class": 0, "n": 2, "samples": 1.0, "starts": 1.0},
        {"class": 1, "n": 1, "samples": 1.0, "starts": 0.0},
        {"class": 2, "n": 2, "samples": 0.5, "starts": 0.0},
    ]


# --- from the command line


def test_one_chain_a_slot_beside_its_start_and_training_images(ask: Any) -> None:
    flags = "--eval cond_samples --fresh_samples --buffer_size 30 --sgld_batch_size 30 "
    flags += "--n_sample_steps 1 --n_steps 2 --reinit_freq 0 --seed 5"
    found = ask(flags, "--fid_model", str(ask.checkpoint("ce")))
    assert found.code == 0 and found.err == [], found.err
    record = found.json("cond_samples")
    saved = np.load(found.folder / "cond_samples.npz")
    assert record["n"] == 30 and record["steps_per_sample"] == 2
    assert saved["test_labels"].tolist() == np.repeat(np.arange(10), 3).tolist()
    starts = to_uint8(fresh_buffer(30, 10, 0.0, image_size=32, seed=5, device="cpu").images)
    assert np.array_equal(saved["start_images"], starts)
    assert not np.array_equal(saved["test_images"], starts)

    data = np.load(ask.trainer.data / "cifar10.npz")
    images = (torch.from_numpy(each) for each in (saved["test_images"], saved["start_images"]))
    labels, known = (
        torch.from_numpy(each) for each in (saved["test_labels"], data["train_labels"])
    )
    expected, _ = compare_with_training(
        *images, labels, torch.from_numpy(data["train_images"]), known
    )
    assert record["nearest"] == pytest.approx(expected["nearest"])
    assert record["variety"] == pytest.approx(expected["variety"])
    read = record["read_as_asked"]
    assert read["classifier"] == str(ask.checkpoint("ce")) and len(read["classifier_sha256"]) == 64
    assert 0 <= read["samples"] <= 1 and 0 <= read["starts"] <= 1
    assert [row["n"] for row in read["per_class"]] == [3] * 10
    assert {f"cond_samples_starts.{kind}" for kind in ("png", "pdf")} <= set(record["files"])
    table = [line for line in found.out.splitlines() if line.startswith("|")]
    assert len(table) == 5 and max(map(len, table)) <= 60
    for judge, known in (("ce", True), ("hdge", False)):
        words = [*flags.split(), "--fid_model", str(ask.checkpoint(judge))]
        words = ["eval_wrn_ebm.py", "--load_path", str(ask.checkpoint("hdge")), *words]
        assert done.answered(found.folder, words) is known


def test_a_checkpoint_s_chains_began_at_its_images(ask: Any) -> None:
    flags = "--eval uncond_samples --sgld_batch_size 40 --n_sample_steps 2 --n_steps 1"
    found = ask(f"{flags} --reinit_freq 0")
    state = torch.load(ask.checkpoint("hdge"), weights_only=True)
    saved = np.load(found.folder / "uncond_samples.npz")
    assert np.array_equal(saved["start_images"], to_uint8(state["replay_buffer"]))


def test_without_training_images_samples_stand_alone(ask: Any, tmp_path: Path) -> None:
    sample = "--eval uncond_samples --fresh_samples --buffer_size 8 --sgld_batch_size 8"
    sample += " --n_sample_steps 1 --n_steps 1 --device cpu"
    for path in (checkpoint(tmp_path, 3), ask.checkpoint("ce")):
        words = f"--load_path {path} --log_dir {tmp_path}/out --data_root {tmp_path}/none"
        words += f" {sample}"
        if path == ask.checkpoint("ce"):  # a file that is no data set, so that nothing is fetched
            (tmp_path / "none").mkdir()
            (tmp_path / "none" / "cifar10.npz").write_bytes(b"no images")
        found = ask.bare(*words.split(), folder=tmp_path / "out")
        assert found.code == 0 and len(found.err) == 1, found.err
        assert "samples are not compared with training images" in found.err[0]
        record = found.json("uncond_samples")
        assert not {"nearest", "variety"} & set(record) and record["n"] == 8
        assert "uncond_samples_starts.png" in record["files"]


def test_a_classifier_of_other_classes_reads_nothing(ask: Any, tmp_path: Path) -> None:
    other = ("--fid_model", str(checkpoint(tmp_path, 3)))
    found = ask("--eval cond_samples --sgld_batch_size 9", *other)
    assert found.code == 2 and "3 classes" in found.err[0] and "--fid_model" in found.err[0]


def test_fid_over_the_length_of_class_conditional_chains(ask: Any) -> None:
    flags = "--eval fid --fid_features model --sampling class --n_samples 20 --sgld_batch_size 8 "
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
    table = [line for line in found.out.splitlines() if line.startswith("|")]
    assert len(table) == 7 and max(map(len, table)) <= 60
    saved = np.load(found.folder / "fid_samples.npz")
    assert saved["test_labels"].tolist() == [i % 10 for i in range(20)]

    longer = ask(f"{flags} --n_steps 4", *judge)
    assert longer.json("fid")["rows"][1] == rows[3]
    assert np.array_equal(np.load(longer.folder / "fid_samples.npz")["start_images"],
                          saved["start_images"])  # fmt: skip
    assert not any("fid_lengths" in name for name in longer.json("fid")["files"])


def test_grids_side_by_side(tmp_path: Path) -> None:
    grids = {name: torch.rand(6, 3, 8, 8) for name in ("start", "sample")}
    paths = save_side_by_side(grids, tmp_path / "a.b", columns=3, row_labels=["0", "1"])
    assert [path.name for path in paths] == ["a.b.png", "a.b.pdf"]
    assert paths[0].read_bytes()[:4] == b"\x89PNG" and paths[1].read_bytes()[:4] == b"%PDF"
