"""OpenOOD v1.5: lists, images and metrics against an evaluation by torchvision's transforms."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import data
import models
from evaluation import NotFinite, flags
from evaluation.scores import openood_detection
from runs.checkpoint import save_checkpoint

OPENOOD = "--eval OOD --ood_dataset openood"
NEAR, FAR = ("cifar100", "tin"), ("mnist", "svhn", "texture", "places365")
SIZES = {"cifar10": (32, 32), "cifar100": (32, 32), "tin": (64, 47), "mnist": (28, 28)}
SIZES |= {"svhn": (32, 32), "texture": (51, 90), "places365": (33, 20)}  # height and width
RESIZED = transforms.Resize(32, interpolation=transforms.InterpolationMode.BILINEAR)
FITTED = transforms.Compose([RESIZED, transforms.CenterCrop(32), transforms.ToTensor()])


def write_tree(root: Path, benchmark: str = "cifar10") -> Path:
    """Write a few images of each set of a benchmark. Their paths have a blank, and their EXIF data
    a rotation, which OpenOOD's code ignores."""
    random, turned = np.random.RandomState(0), Image.Exif()
    turned[0x0112] = 6
    for i, (name, (height, width)) in enumerate(SIZES.items()):
        lines = []
        for k in range(9 + i):
            shape = (height, width) if name == "mnist" else (height, width, 3)  # mnist: grey
            level = 40 * random.rand() + 30 * k
            pixels = np.clip(random.normal(level, 40, shape), 0, 255).astype(np.uint8)
            file = root / "images_classic" / name / f"class {k}" / "1.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, exif=turned)
            label = (k + 4) % 10 if name == benchmark else -1
            lines.append(f"{name}/class {k}/1.png {label}\n")
        list_of(root, name, benchmark).parent.mkdir(parents=True, exist_ok=True)
        list_of(root, name, benchmark).write_text("".join(lines))
    return root


def list_of(root: Path, name: str, benchmark: str = "cifar10") -> Path:
    return root / "benchmark_imglist" / benchmark / f"test_{name}.txt"


def expected_rows(root: Path, path: Path, benchmark: str) -> dict[str, dict[str, float]]:
    """Compute the rows of log q(x)."""
    model, scores, accuracy = models.load(path), {}, 0.0
    for name in SIZES:
        lines = list_of(root, name, benchmark).read_text().splitlines()
        files, labels = zip(*(line.rsplit(" ", 1) for line in lines), strict=True)
        images = [Image.open(root / "images_classic" / file) for file in files]
        x = torch.stack([FITTED(image.convert("RGB")) for image in images]) * 2 - 1
        with torch.no_grad():
            scores[name] = model.logits(x).double().logsumexp(1).numpy()  # float64: fewer ties
            if name == benchmark:
                hits = model.classify(x).argmax(1) == torch.tensor([*map(int, labels)])
                accuracy = 100 * float(hits.double().mean())
    rows: dict[str, dict[str, float]] = {}
    near = tuple(name for name in ("cifar10", *NEAR) if name != benchmark)
    for group, members in (("nearood", near), ("farood", FAR)):
        for name in members:
            rows[name] = openood_detection(scores[benchmark], scores[name]) | {"ACC": accuracy}
        rows[group] = {k: float(np.mean([rows[n][k] for n in members])) for k in rows[members[0]]}
    return rows


def assert_rows(answer: Any, expected: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    rows = [row for row in answer.json("openood")["rows"] if row["score_fn"] == "px"]
    assert [row["dataset"] for row in rows] == [*expected]
    for row in rows:
        numbers = {key: row[key] for key in expected["tin"]}
        assert numbers == pytest.approx(expected[row["dataset"]], abs=1e-4)
    return rows


def table_of(answer: Any) -> dict[str, dict[str, str]]:
    rows = list(csv.DictReader(answer.text("openood_px.csv").splitlines()))
    return {row.pop("dataset"): row for row in rows}


def model_file(folder: Path, dataset: str, classes: int = 10, size: int = 32) -> Path:
    """Save an untrained model."""
    network = {"depth": 10, "width": 1, "norm": "none", "image_size": size}
    state = models.build(**network, num_classes=classes).state_dict()
    settings = {**network, "dataset": dataset}
    save_checkpoint({"model_state_dict": state, "settings": settings}, folder / "a.pt")
    return folder / "a.pt"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("openood"))


def test_every_number_is_that_of_openoods_code(ask, tree):
    answer = ask(f"{OPENOOD} --score_fn px py pxsim", "--data_root", str(tree))
    assert (answer.code, answer.err) == (0, [])
    expected = expected_rows(tree, ask.checkpoint("hdge"), "cifar10")
    assert [*expected] == [*NEAR, "nearood", *FAR, "farood"]
    rows = assert_rows(answer, expected)
    assert len({row["AUROC"] for row in rows}) > 4 and 0 < rows[0]["ACC"] < 100
    header = "dataset,FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\ncifar100,"
    assert answer.text("openood_px.csv").startswith(header)
    assert table_of(answer) == {
        row["dataset"]: {key: f"{row[key]:.2f}" for key in expected["tin"]} for row in rows
    }
    lines = [line for line in answer.out.splitlines() if "| nearood" in line]
    assert len(lines) == 3 and table_of(answer)["nearood"]["AUROC"] in lines[0]
    names = {f"openood_{end}" for end in ("px.csv", "py.csv", "pxsim.csv", "scores.npz")}
    assert set(answer.json("openood")["files"]) == names


def test_an_image_is_prepared_as_by_openoods_transforms(tree):
    images = data.EvaluationSets(tree).load("openood:cifar10/texture").split.images
    for k, image in zip(sorted(map(str, range(len(images)))), images, strict=True):
        with Image.open(tree / f"images_classic/texture/class {k}/1.png") as picture:
            expected = 255 * FITTED(picture.convert("RGB")).permute(1, 2, 0)
        assert torch.equal(image, expected.round().to(torch.uint8))


def test_a_model_of_cifar100_has_its_own_lists(ask, tmp_path):
    path = model_file(tmp_path, "cifar100", classes=100)
    write_tree(tmp_path, "cifar100")
    answer = ask("--eval openood", "--data_root", str(tmp_path), load=path)
    expected = expected_rows(tmp_path, path, "cifar100")
    assert [*expected] == ["cifar10", "tin", "nearood", *FAR, "farood"]
    assert_rows(answer, expected)


def test_missing_sets_are_named_and_their_groups_have_no_mean(ask, tmp_path):
    write_tree(tmp_path)
    list_of(tmp_path, "tin").unlink()
    with list_of(tmp_path, "mnist").open("a") as file:
        file.write("mnist/no such.png 3\n")
    (tmp_path / "images_classic/svhn/class 2/1.png").write_bytes(b"\x89PNG, cut off")
    answer = ask(OPENOOD, "--data_root", str(tmp_path))
    assert answer.code == 0
    messages = ("no list", "1 of the 13 images", "cannot read the image")
    for line, message in zip(answer.err, messages, strict=True):
        assert "left out: --" in line and message in line
    absent = [f"openood:cifar10/{name}" for name in ("tin", "mnist", "svhn")]
    assert f"left out, see the warnings above: {', '.join(absent)}\n" in answer.out
    assert (
        "nearood has no mean: tin missing. farood has no mean: mnist, svhn missing." in answer.out
    )
    assert [*table_of(answer)] == ["cifar100", "texture", "places365"]
    record = answer.json("openood")
    assert record["missing"] == {"nearood": ["tin"], "farood": ["mnist", "svhn"]}
    assert [skipped["ood_dataset"] for skipped in record["skipped"]] == absent
    assert {row["dataset"] for row in record["rows"]} == {*table_of(answer)}


def test_the_order_of_a_list_changes_neither_numbers_nor_noise(ask, tree, tmp_path):
    """Windows line ends and a blank line change nothing, either."""
    root = shutil.copytree(tree, tmp_path / "reversed")
    for name in SIZES:
        lines = list_of(tree, name).read_text().splitlines()
        list_of(root, name).write_text("\r\n".join(lines[::-1]) + "\n\n", newline="")
    first, second = (
        ask(f"{OPENOOD} --sigma .2", "--data_root", str(path)).json("openood")
        for path in (tree, root)
    )
    assert first["rows"] == second["rows"] and "--sigma 0.2" in first["report"]["text"]
    assert "OOD is positive, but not for AUPR_IN. Noise" in first["report"]["text"]
    assert first["rows"] != ask(OPENOOD, "--data_root", str(tree)).json("openood")["rows"]


def test_both_spellings_are_one_question():
    questions = (f"--load_path a --score_fn py {q}" for q in (OPENOOD, "--eval openood"))
    first, second = (flags.parse(question.split()) for question in questions)
    assert first == second and first[0].sigma == 0.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{OPENOOD} svhn", "--ood_dataset openood is a protocol: give it alone"),
        ("--eval logp_hist --ood_dataset openood", "to OOD alone"),
        (f"{OPENOOD} --max_images 9", "--max_images is for"),
        (f"{OPENOOD} --dataset svhn", "--dataset svhn: "),
        (OPENOOD, "no list benchmark_imglist/cifar10/test_cifar10.txt (No such file"),
    ],
)
def test_a_mistaken_command_is_one_line(words, message, ask, tmp_path):
    assert message in ask(words, "--data_root", str(tmp_path)).refusal


LABELS = "has labels that are no class of cifar10"
LINE = "line 10 of benchmark_imglist/cifar10/test_cifar10.txt is no path and label"


@pytest.mark.parametrize(("label", "message"), [("", LINE), (" 10", LABELS), (" -1", LABELS)])
def test_a_damaged_list_of_the_training_set_s_images_is_refused(label, message, ask, tmp_path):
    with list_of(write_tree(tmp_path), "cifar10").open("a") as file:
        file.write(f"cifar10/class 0/1.png{label}")
    assert message in ask(OPENOOD, "--data_root", str(tmp_path)).refusal


@pytest.mark.parametrize(
    ("dataset", "size", "message"),
    [("svhn", 32, "for models of cifar10 and cifar100"), ("cifar10", 16, "32 x 32")],
)
def test_other_models_are_refused(dataset, size, message, ask, tree, tmp_path):
    path = model_file(tmp_path, dataset, size=size)
    assert message in ask(OPENOOD, "--data_root", str(tree), load=path).refusal


def test_metrics_by_hand():
    """Inside 4 3 1, outside 2 0: below 3 are both outside and one of three inside. Precision inside
    is 1, 1, 2/3, 3/4 at recall 1/3, 2/3, 2/3, 1; outside it is 1, 1/2, 2/3 at 1/2, 1/2, 1."""
    assert openood_detection(np.array([4, 3, 1]), np.array([2, 0])) == pytest.approx(
        {
            "FPR@95": 100 / 3,
            "AUROC": 500 / 6,
            "AUPR_IN": 100 * (2 / 3 + 1 / 3 * (2 / 3 + 3 / 4) / 2),
            "AUPR_OUT": 100 * (1 / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2),
        }
    )
    # Equal scores: both outside are at the threshold, as one of three inside.
    metrics = openood_detection(np.array([2, 1, 0]), np.array([0, 0]))
    assert (metrics["FPR@95"], metrics["AUROC"]) == pytest.approx((100 / 3, 500 / 6))
    with pytest.raises(NotFinite, match="1 of 2 OOD scores"):
        openood_detection(np.zeros(3), np.array([0, np.nan]))
