"""OpenOOD v1.5: its lists, images and metrics against an evaluation that is put together anew."""

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
SIZES = {  # height and width; of mnist grey
    **{"cifar10": (32, 32), "cifar100": (32, 32), "tin": (64, 47), "mnist": (28, 28)},
    **{"svhn": (32, 32), "texture": (51, 90), "places365": (33, 20)},
}
OPENOODS_TRANSFORM = transforms.Compose(
    [
        transforms.Lambda(lambda image: image.convert("RGB")),
        transforms.Resize(32, interpolation=transforms.InterpolationMode.BILINEAR),
        transforms.CenterCrop(32),
        transforms.ToTensor(),
    ]
)


def write_tree(root: Path, own: str = "cifar10") -> Path:
    """A few images of each set of a benchmark; their paths have a blank, and each says that it is
    to be turned, which OpenOOD's code does not."""
    random, turned = np.random.RandomState(0), Image.Exif()
    turned[0x0112] = 6
    for i, (name, (height, width)) in enumerate(SIZES.items()):
        lines = []
        for k in range(9 + i):
            shape = (height, width) if name == "mnist" else (height, width, 3)
            level = 40 * random.rand() + 30 * k
            pixels = np.clip(random.normal(level, 40, shape), 0, 255).astype(np.uint8)
            file = root / "images_classic" / name / f"class {k}" / "1.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file, exif=turned)
            label = (k + 4) % 10 if name == own else -1
            lines.append(f"{name}/class {k}/1.png {label}\n")
        list_of(root, name, own).parent.mkdir(parents=True, exist_ok=True)
        list_of(root, name, own).write_text("".join(lines))
    return root


def list_of(root: Path, name: str, own: str = "cifar10") -> Path:
    return root / "benchmark_imglist" / own / f"test_{name}.txt"


def anew(root: Path, path: Path, own: str) -> dict[str, dict[str, float]]:
    """The rows of log q(x)."""
    model, conf, right = models.load(path), {}, 0.0
    for name in SIZES:
        lines = list_of(root, name, own).read_text().splitlines()
        files, labels = zip(*(line.rsplit(" ", 1) for line in lines), strict=True)
        images = [Image.open(root / "images_classic" / file) for file in files]
        x = torch.stack([OPENOODS_TRANSFORM(image) for image in images]) * 2 - 1
        with torch.no_grad():
            conf[name] = model.logits(x).double().logsumexp(1).numpy()  # as ours: fewer ties
            if name == own:
                hit = model.classify(x).argmax(1) == torch.tensor([*map(int, labels)])
                right = 100 * float(hit.double().mean())
    rows: dict[str, dict[str, float]] = {}
    near = tuple(name for name in ("cifar10", *NEAR) if name != own)
    for group, members in (("nearood", near), ("farood", FAR)):
        for name in members:
            rows[name] = openood_detection(conf[own], conf[name]) | {"ACC": right}
        means = {k: float(np.mean([rows[n][k] for n in members])) for k in rows[members[0]]}
        rows[group] = means
    return rows


def table_of(found: Any, score: str = "px") -> dict[str, dict[str, str]]:
    rows = list(csv.DictReader(found.text(f"openood_{score}.csv").splitlines()))
    return {row.pop("dataset"): row for row in rows}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("openood"))


@pytest.fixture(scope="module")
def found(ask: Any, tree: Path) -> Any:
    return ask(f"{OPENOOD} --score_fn px py pxsim", "--data_root", str(tree))


def test_every_number_is_that_of_openoods_code(found, ask, tree):
    expected = anew(tree, ask.checkpoint("hdge"), "cifar10")
    assert (found.code, found.err) == (0, [])
    rows = [row for row in found.json("openood")["rows"] if row["score_fn"] == "px"]
    assert [row["dataset"] for row in rows] == [*NEAR, "nearood", *FAR, "farood"] == [*expected]
    for row in rows:
        numbers = {key: row[key] for key in expected["tin"]}
        assert numbers == pytest.approx(expected[row["dataset"]], abs=1e-4)
    assert len({row["AUROC"] for row in rows}) > 4 and 0 < rows[0]["ACC"] < 100
    text = found.text("openood_px.csv")
    assert text.startswith("dataset,FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\ncifar100,")
    assert table_of(found) == {
        row["dataset"]: {key: f"{row[key]:.2f}" for key in expected["tin"]} for row in rows
    }
    shown = [line for line in found.out.splitlines() if "| nearood" in line]
    assert len(shown) == 3 and table_of(found)["nearood"]["AUROC"] in shown[0]
    names = {f"openood_{end}" for end in ("px.csv", "py.csv", "pxsim.csv", "scores.npz")}
    assert set(found.json("openood")["files"]) == names


def test_an_image_is_prepared_as_by_openoods_transforms(tree):
    images = data.EvaluationSets(tree).load("openood:cifar10/texture").split.images
    for k, image in zip(sorted(map(str, range(len(images)))), images, strict=True):
        with Image.open(tree / f"images_classic/texture/class {k}/1.png") as picture:
            expected = 255 * OPENOODS_TRANSFORM(picture).permute(1, 2, 0)
        assert torch.equal(image, expected.round().to(torch.uint8))


def test_a_model_of_cifar100_has_its_own_lists(ask, tmp_path):
    network = {"depth": 10, "width": 1, "norm": "none", "dataset": "cifar100"}
    torch.manual_seed(0)
    state = models.build(depth=10, width=1, num_classes=100).state_dict()
    save_checkpoint({"model_state_dict": state, "settings": network}, tmp_path / "a.pt")
    write_tree(tmp_path, "cifar100")
    found = ask("--eval openood", "--data_root", str(tmp_path), load=tmp_path / "a.pt")
    expected = anew(tmp_path, tmp_path / "a.pt", "cifar100")
    rows = {row["dataset"]: row for row in found.json("openood")["rows"]}
    assert [*rows] == ["cifar10", "tin", "nearood", *FAR, "farood"]
    for name, numbers in expected.items():
        assert {key: rows[name][key] for key in numbers} == pytest.approx(numbers, abs=1e-4)


def test_what_cannot_be_had_is_named_and_its_group_has_no_mean(ask, tmp_path):
    write_tree(tmp_path)
    list_of(tmp_path, "tin").unlink()
    with list_of(tmp_path, "mnist").open("a") as file:
        file.write("mnist/no such.png 3\n")
    (tmp_path / "images_classic/svhn/class 2/1.png").write_bytes(b"\x89PNG, cut off")
    found = ask(OPENOOD, "--data_root", str(tmp_path))
    assert found.code == 0 and len(found.err) == 3
    for line, words in zip(
        found.err, ("no list", "1 of the 13 images", "cannot read the image"), strict=True
    ):
        assert "left out: --" in line and words in line
    absent = [f"openood:cifar10/{name}" for name in ("tin", "mnist", "svhn")]
    assert f"left out, see the warnings above: {', '.join(absent)}\n" in found.out
    assert "nearood has no mean: tin missing. farood has no mean: mnist, svhn missing." in found.out
    assert [*table_of(found)] == ["cifar100", "texture", "places365"]
    record = found.json("openood")
    assert record["missing"] == {"nearood": ["tin"], "farood": ["mnist", "svhn"]}
    assert [each["ood_dataset"] for each in record["skipped"]] == absent
    assert {row["dataset"] for row in record["rows"]} == {*table_of(found)}


def test_the_order_of_a_list_changes_nothing(ask, tree, tmp_path):
    """Not even the noise, and neither does the end of a line."""
    shutil.copytree(tree, tmp_path / "other")
    for name in SIZES:
        lines = list_of(tree, name).read_text().splitlines()
        list_of(tmp_path / "other", name).write_text("\r\n".join(lines[::-1]) + "\n\n", newline="")
    answers = [
        ask(f"{OPENOOD} --sigma .2", "--data_root", str(root))
        for root in (tree, tmp_path / "other")
    ]
    one, other = (answer.json("openood") for answer in answers)
    assert one["rows"] == other["rows"] and "--sigma 0.2" in one["report"]["text"]
    assert one["rows"] != ask(OPENOOD, "--data_root", str(tree)).json("openood")["rows"]


def test_it_is_the_same_question_in_both_spellings():
    words = "--load_path a --score_fn py".split()
    one, other = (flags.parse([*words, *more.split()]) for more in (OPENOOD, "--eval openood"))
    assert one == (other[0], other[1]) and one[0].sigma == 0.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (f"{OPENOOD} svhn", "--ood_dataset openood is a protocol: give it alone"),
        ("--eval logp_hist --ood_dataset openood", "to OOD alone"),
        (f"{OPENOOD} --max_images 9", "--max_images is for"),
        (f"{OPENOOD} --dataset svhn", "--dataset svhn: "),
        (OPENOOD, "no list benchmark_imglist/cifar10/test_cifar10.txt (No such file"),
    ],
)
def test_mistaken_commands(words, said, ask, tmp_path):
    assert said in ask(words, "--data_root", str(tmp_path)).refusal


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cifar10/class 0/1.png", "line 10 of benchmark_imglist/cifar10/test_cifar10.txt"),
        ("cifar10/class 0/1.png {'a': 1}", "is no path and label"),
        ("cifar10/class 0/1.png 10", "has labels that are no class of cifar10"),
        ("cifar10/class 0/1.png -1", "has labels that are no class of cifar10"),
    ],
)
def test_a_list_of_the_own_images_that_is_none(line, said, ask, tmp_path):
    with list_of(write_tree(tmp_path), "cifar10").open("a") as file:
        file.write(line)
    assert said in ask(OPENOOD, "--data_root", str(tmp_path)).refusal


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"dataset": "svhn"}, "for models of cifar10 and cifar100"), ({"image_size": 16}, "32 x 32")],
)
def test_other_models_are_refused(settings, said, ask, tree, tmp_path):
    size = settings.get("image_size", 32)
    state = models.build(depth=10, width=1, image_size=size).state_dict()
    network = {"depth": 10, "width": 1, "norm": "none", "dataset": "cifar10", **settings}
    save_checkpoint({"model_state_dict": state, "settings": network}, tmp_path / "a.pt")
    assert said in ask(OPENOOD, "--data_root", str(tree), load=tmp_path / "a.pt").refusal


def test_metrics_by_hand():
    """Own 4 3 1, others 2 0: both others are below 3, and so is one of three own ones. Precision
    of the own is 1, 1, 2/3, 3/4 at recall 1/3, 2/3, 2/3, 1; of the others 1, 1/2, 2/3 at 1/2, 1/2,
    1."""
    found = openood_detection(np.array([4, 3, 1]), np.array([2, 0]))
    assert found == pytest.approx(
        {
            "FPR@95": 100 / 3,
            "AUROC": 500 / 6,
            "AUPR_IN": 100 * (2 / 3 + 1 / 3 * (2 / 3 + 3 / 4) / 2),
            "AUPR_OUT": 100 * (1 / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2),
        }
    )
    # Where scores are equal: both others are at the threshold that one of three own ones reaches.
    found = openood_detection(np.array([2, 1, 0]), np.array([0, 0]))
    assert (found["FPR@95"], found["AUROC"]) == pytest.approx((100 / 3, 500 / 6))
    with pytest.raises(NotFinite, match="1 of 2 OOD scores"):
        openood_detection(np.zeros(3), np.array([0, np.nan]))
