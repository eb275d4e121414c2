"""scripts/report.py: a run folder as one page."""

import copy
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluation import flags
from reports.page import NoRun, read_run
from reports.page import page as rendered
from reports.page.curves import ticks
from reports.page.markup import MINUS, NONE
from reports.page.run import KEYS
from scripts import report
from tests.pair import refusal
from training.flags import build_parser

DEFAULTS = vars(build_parser().parse_args([]))

SETTINGS = {
    **{"dataset": "cifar10", "depth": 28, "width": 10, "norm": "none", "arch": "wrn", "lr": 0.002},
    **{"pyxce": 1.0, "pxycontrast": 0.25, "pxsgld": 0.0, "batch_size": 64, "sigma": 0.03},
    "environment": {"python": "3.11.7", "packages": {"torch": "2.15.0"}},
}
PROGRESS = """epoch,step,seconds,loss,pyxce/loss,pxycontrast/loss,lr,train_acc,test_acc
0,10,1.5,11,2,9,0.002,0.25,0.3125
1,20,3.0,10,1,9,0.002,0.5,0.4375
"""
BINS = [
    {"lower": i / 20, "upper": (i + 1) / 20, "count": 0, "confidence": None, "accuracy": None}
    for i in range(19)
] + [{"lower": 0.95, "upper": 1.0, "count": 77, "confidence": 0.9713, "accuracy": 0.8529}]
ANSWERS: dict[str, dict[str, Any]] = {
    "test_clf": {"dataset": "cifar10_test", "n": 1234, "accuracy": 0.7391, "top5": 0.9817,
                 "nll": 0.8642, "n_steps": 0},
    "eval_ece": {"dataset": "cifar10_test", "n": 1234, "accuracy": 0.7391, "ece": 0.0523,
                 "n_bins": 20, "bins": BINS, "nll": 0.8642, "brier": 0.3577, "temperature": 1.234,
                 "ece_temperature": 0.0117, "files": ["eval_ece.png", "eval_ece.pdf"]},
    "OOD": {"in_dataset": "cifar10_test", "skipped": [{"ood_dataset": "celeba", "reason": "gone"}],
            "rows": [{"ood_dataset": "svhn", "score_fn": "px", "auroc": 0.5678, "fpr95": 0.8765,
                      "aupr": 0.6123, "n_in": 1234, "n_out": 4321},
                     {"ood_dataset": "mnist", "score_fn": "py", "auroc": 0.4321, "fpr95": 0.9,
                      "aupr": 0.5, "n_in": 1234, "n_out": 4321},
                     {"ood_dataset": "svhn", "score_fn": "py", "auroc": 0.8, "fpr95": 0.25,
                      "aupr": 0.75, "n_in": 1234, "n_out": 4321}]},
    "logp_hist": {"datasets": ["cifar10", "svhn"], "score_fn": "px", "files": ["logp_hist.png"],
                  "sets": {"svhn": {"n": 4321, "mean": -7.125, "std": 1.375, "auroc": 0.5678,
                                    "quantiles": {"0.05": -9.25, "0.5": -7.5, "0.95": 3.75}}}},
    "attack": {"distance": "Linf", "attack": "pgd", "n": 200, "steps": 40, "restarts": 1,
               "rows": [{"eps": 0.0, "accuracy": 0.735}, {"eps": 8 / 255, "accuracy": 0.0875}],
               "files": ["attack.png"]},
    "uncond_samples": {"n": 6400, "steps": 4000, "nearest": {"samples": 8.5}, "files": [
        "uncond_samples_400.png", "uncond_samples_4000.png", "uncond_samples_trajectory.png"],
        "run": {"sgld_lr": 1.0, "sgld_std": 0.01}, "settings": {"sgld_lr": 0.5, "sgld_std": 0.01}},
    "cond_samples": {"n": 6400, "steps": 4000, "steps_per_sample": 40.25,
                     "nearest": {"samples": 8.125, "starts": 16.5, "data": 9.75},
                     "variety": {"samples": 17.25, "starts": None, "data": 18.5},
                     "read_as_asked": {"samples": 0.625, "starts": 0.125, "per_class": []},
                     "files": ["cond_samples_direct_4000.png", "cond_samples_classified_4000.png",
                               "cond_samples_starts.png"]},
    "fid": {"fid": 85.31, "inception_score_mean": 4.27, "inception_score_std": 0.13, "n": 10000,
            "n_score": 1000,  # as of --sampling confident
            "sampling": "fresh", "features": "inception", "reference": "cifar10_train",
            "n_reference": 50000, "features_sha256": "ab" * 32, "full_rank": False,
            "rows": [{"images": "samples", "steps": 100, "n": 10000, "fid": 85.75,
                      "precision": 0.625, "recall": 0.375},
                     {"images": "training images", "steps": None, "n": 10000, "fid": 2.5,
                      "precision": 0.75, "recall": 0.875}],
            "files": ["fid_samples.png"]},
}  # fmt: skip
Maker = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Return a function that makes a run folder with these answers."""

    def write(answers: dict[str, Any], name: str = "a-run", **settings: Any) -> Path:
        run = tmp_path / name
        (run / "samples").mkdir(parents=True)
        (run / "eval").mkdir()
        (run / "variant.json").write_text(json.dumps({**SETTINGS, **settings}))
        (run / "progress.csv").write_text(PROGRESS)
        (run / "best_valid_ckpt.pt").touch()
        Image.new("RGB", (2, 2)).save(run / "samples" / "uncond_0001.png")
        for eval_name, values in answers.items():
            save(run / "eval", eval_name, values)
        return run

    return write


def save(folder: Path, name: str, values: dict[str, Any]) -> None:
    record = {"eval": name, "checkpoint": "x/a-run/best_valid_ckpt.pt", "files": [], "seconds": 1.5}
    protocol = {"version": 1, "sets": {"a": "the first 5"}}
    record |= {"settings": {"sigma": 0.03, "seed": 1}, "protocol": protocol} | values
    (folder / f"{name}.json").write_text(json.dumps(record))
    for file in record["files"] if isinstance(record["files"], list) else []:
        if isinstance(file, str) and file.endswith(".png"):
            Image.new("RGB", (2, 2)).save(folder / file)


class Page(HTMLParser):
    """Raise on unbalanced tags; keep text, elements, and the cells of every table row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open, self.texts, self.rows = list[str](), list[str](), list[list[str]]()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join("".join(self.texts).replace("\xa0", " ").split())
        self.strip = self.text.split("Objective")[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"
        if tag == "pre":
            self.texts.append("\n")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data if "pre" in self.open else data + "\n")  # separate words
            if {"td", "th"} & set(self.open) and self.rows:
                self.rows[-1][-1] += data.replace("\xa0", " ")

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(run: Path, *eval_folders: Path) -> Page:
    return Page(rendered(read_run(run, eval_folders), DEFAULTS))


def test_the_page_has_the_numbers_of_the_answers(make):
    page = read(make(ANSWERS))
    paper, ratio = "0.9{} \N{PLUS-MINUS SIGN} 0.{}", "1,234 : 4,321"
    px, py = paper.format(6, "08"), paper.format(5, "11")
    sets = "svhn 4,321 -7.125 1.375 -9.250 -7.500 3.750 0.5678".replace("-", MINUS).split()
    for row in (
        ["a-run", "73.91 %", "98.17 %", "0.8642", "1,234", "0"],
        ["paper (WRN-28-10), HDGE", "94.6 %", "", "", "", ""],
        *(["ECE", "5.23 %"], ["Brier score", "0.3577"], ["temperature", "1.234"]),
        ["ECE after scaling", "1.17 %"],
        ["0.95 to 1.00", "77", "97.13 %", "85.29 %", f"{MINUS}11.84 %"],
        ["svhn", "px: log q(x)", "0.5678", px, "87.65 %", "0.6123", ratio],
        ["mnist", "py: max q(y|x)", "0.4321", NONE, "90.00 %", "0.5000", ratio],
        ["svhn", "py: max q(y|x)", "0.8000", py, "25.00 %", "0.7500", ratio],
        ["a-run", *sets],
        ["8/255", "8.75 %"],
        ["--pxycontrast", f"{MINUS}log q(x|y)", page.rows[2][2], "0.25"],
        *(["lr", "0.002", "0.0001"], ["torch", "2.15.0"]),
        ["distance to the nearest training image of the class", "8.125", "16.500", "9.750"],
        ["distance between images of the class", "17.250", NONE, "18.500"],
        ["distance to the nearest training image", "8.500", NONE, NONE],  # of q(x): no classes
        ["read as the class that was asked for", "0.625", "0.125", NONE],
        ["a-run", "85.31", "4.27 \N{PLUS-MINUS SIGN} 0.13 (1,000 samples)", "10,000", "fresh",
         "inception", "cifar10_train (50,000)"],
        ["samples", "100", "10,000", "85.75", "0.625", "0.375"],
        ["training images", NONE, "10,000", "2.50", "0.750", "0.875"],
    ):  # fmt: skip
        assert row in page.rows
    assert "Skipped: celeba (gone)." in page.text and "were classified as" not in page.text
    assert page.text.count("a : the first 5") == len(ANSWERS)
    assert page.text.count("not the run's") == page.text.count("not the run's --sgld_lr 0.5 ") == 1
    sections = re.findall('<section id="(.*?)">(.*?)</section>', page.html, re.DOTALL)
    noisy = [name for name, body in sections if re.search(r"<span>sigma <b>0\.03", body)]
    assert noisy == ["classification", "calibration", "ood", "histograms"]
    assert "Not evaluated" not in page.text and "eval_wrn_ebm.py" not in page.text
    grids = re.search(r"Class-conditional.*?<figcaption>(.*?)<", page.html, re.DOTALL)
    assert grids and grids[1].startswith("Where chains began")  # before the larger grids
    assert len(page.of("img")) == 3 + 1 + 2 + 3 + 1  # charts, training, q(x), q(x|y), fid
    assert "6,400 images, 40.25 SGLD steps a sample (mean)." in page.text
    assert "6,400 images, 4,000 SGLD steps in all rounds." in page.text  # of an older answer
    assert "log q(x), 4,000 SGLD steps in all rounds" in page.text  # a picture's caption
    assert "Too few samples or reference images for so many features" in page.text
    assert "of the process that ran last" in page.text  # of a resumed run not the first
    assert "small scale: 2 epochs" in page.text
    for part in (
        "Test accuracy 73.91 % cifar10_test, 1,234 images paper (WRN-28-10): 94.6 %",
        "Calibration (ECE) 5.23 % cifar10_test, 1,234 images",
        "OOD AUROC 0.5678 log q(x), cifar10_test against svhn paper (WRN-28-10): 0.96",
        "FID 85.31 inception features, 10,000 samples",
        "Robust accuracy 8.75 % PGD, L\N{INFINITY} 8/255, 200 images",
    ):
        assert part in page.strip


@pytest.mark.parametrize("terms, auroc", [
    ({"pxycontrast": 0}, "0.46"), ({"pxycontrast": 0, "pxsgld": 1}, "0.67"), ({}, "0.96"),
    ({"pxsgld": 1}, "0.95"), ({"pxcontrast": 1}, None), ({"uncond": True}, None),
    ({"pyxce": 0, "pxycontrast": 0, "method": "supcon"}, None), ({"norm": "batch"}, None),
    ({"arch": "resnet50"}, "1.00"), ({"arch": "resnet50", "pxycontrast": 0}, None),
])  # fmt: skip
def test_the_papers_auroc_is_that_of_the_runs_terms(make, terms, auroc):
    page = read(make(ANSWERS, **terms))
    cells = next(row for row in page.rows if row[:1] == ["svhn"])
    assert cells[3].split()[0] == (auroc or "87.65")
    network = "ResNet-50" if "arch" in terms else "WRN-28-10"
    assert (f"paper ({network}): {auroc}" in page.strip) == bool(auroc)
    assert (f"trained on CIFAR-10 with {network};" in page.text) == bool(auroc)


def test_a_linear_probes_page_has_nothing_of_its_networks_training(make):
    probe = {"program": "linear_probe.py", "method": "linear-probe", "pxsgld": 1.0}
    run = make({"test_clf": ANSWERS["test_clf"]}, **probe)
    (run / "progress.csv").write_text("epoch,step,loss,pyxce/loss,test_acc\n0,321,1,1,0.5\n")
    page = read(run)
    assert "linear-probe \N{MIDDLE DOT} cifar10 \N{MIDDLE DOT} WRN-28-10 Test" in page.strip
    assert not re.search("minimise|--pxsgld|SGLD steps of|small scale|paper \\(", page.text)
    assert "mean cross-entropy of a new class head" in page.text and "--fresh_samples" in page.text


def test_the_papers_numbers_stand_beside_their_data_features_and_network_alone(make):
    answers = copy.deepcopy(ANSWERS)
    answers["OOD"]["in_dataset"] = answers["test_clf"]["dataset"] = "digits_test"
    answers["fid"]["features"] = "model"
    page = read(make(answers, dataset="digits", pxsgld=1))
    assert "paper" not in page.strip.replace("The papers train", "")
    assert not any("paper (WRN-28-10)" in cell for row in page.rows for cell in row)
    assert "94.4 %" not in page.text and "37.6" not in page.text
    assert "small scale: digits, 2 epochs" in page.text
    assert "37.6" not in read(make(answers, name="model features", pxsgld=1)).text
    text = read(make(ANSWERS, name="both", pxsgld=1)).text
    assert text.count("37.6") == 2 and "9.19" in text
    settings = {"images of 16 x 16": {"image_size": 16}, "WRN-10-2": {"depth": 10, "width": 2}}
    settings |= {"100 labels a class": {"labels_per_class": 100}, "digits": {"dataset": "digits"}}
    for difference, changed in settings.items():
        text = read(make(ANSWERS, name=difference.replace(" ", ""), **changed)).text
        assert "paper (WRN-28-10)" not in text and f"small scale: {difference}, 2 epochs" in text
        assert "they have no numbers for such a run" in text


def test_without_evaluations_the_page_has_their_commands(make):
    run = make({}, data_root="some where")
    (run / "last_ckpt.pt").touch()
    assert "best_valid_ckpt.pt" in read(run).text and "last_ckpt.pt" not in read(run).text
    (run / "best_valid_ckpt.pt").unlink()
    text = "".join(read(run).texts)
    commands = [line for line in text.splitlines() if line.startswith("python eval_wrn_ebm.py")]
    parsed = [flags.parse(shlex.split(line)[2:])[0] for line in commands]
    assert sorted(p.eval for p in parsed) == sorted(KEYS)
    assert all(p.load_path == [str(run / "last_ckpt.pt")] for p in parsed)
    assert all(p.data_root == "some where" for p in parsed)
    assert "Test accuracy" in text and "43.75\xa0%" in text and "after epoch 1" in text
    (run / "last_ckpt.pt").unlink()
    assert "holds no checkpoint" in read(run).text


def test_the_report_of_an_added_question_is_a_section(make):
    report = {"title": "Shape", "text": "1 is round.", "head": ["k", "v"], "rows": [["a<b", 1.5]]}
    models = [{"label": label, "report": report} for label in ("CE", "HDGE")]
    answers = {"shape": {"report": report, "files": ["shape.png"]}, "a-pair": {"models": models}}
    page = read(make({**answers, "other": {"rows": []}}))
    assert page.rows.count(["a<b", "1.5"]) == 3 and "Shape: HDGE 1 is round." in page.text
    links = [link["href"] for link in page.of("a")]
    assert "#shape" in links and "#a-pair" in links and "#other" not in links


def test_the_page_loads_nothing(make):
    page = read(make(ANSWERS))
    for name, attributes in page.elements:
        assert name not in ("link", "iframe", "object", "embed", "base", "source")
        assert name == "a" or "href" not in attributes
        assert (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;")
        assert name != "img" or attributes["alt"]
        assert not any(key.startswith("on") for key in attributes)
    assert "url(" not in page.html and "@import" not in page.html
    (policy,) = [a["content"] for a in page.of("meta") if "http-equiv" in a]
    assert policy and "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_hostile_names_are_text(make):
    evil = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [*map(poison, value)]
        return evil if isinstance(value, str) else value

    run = make({}, name="<script>alert(2)<img src=x onerror=alert(1)>", dataset=evil, id=evil)
    files = {"files": [evil + ".png", "../../x.png"], "label": evil}
    report = {"report": dict.fromkeys(("title", "text", "head"), evil)}
    for name, values in {**ANSWERS, "own": report}.items():
        (run / "eval" / f"{name}.json").write_text(json.dumps({**poison(values), **files}))
    (run / "progress.csv").write_text(PROGRESS.replace("pyxce/loss", "<script>/loss"))
    page = read(run)
    assert len(page.of("script")) == 1
    assert not any("onerror" in a or a.get("src") == "x" for _, a in page.elements)
    assert "<script>alert(2)" in page.text and "<script>alert(1)</script>" in page.text


def test_broken_files_are_noted(make):
    run = make(ANSWERS)
    for name, content in (
        *(("eval/fid.json", '{"fid": 3'), ("eval/OOD.json", "[1]"), ("variant.json", "\xff\xfe{")),
        *(("eval/logp_hist.json", "[" * 100_000), ("eval/attack.png", "no picture")),
        ("progress.csv", PROGRESS + "2,30"),
    ):
        (run / name).write_text(content, encoding="latin-1")
    (run / "eval" / "eval_ece.png").unlink()
    text = read(run).text
    for part in (
        *("fid.json cannot be read", "OOD.json holds no JSON object", "logp_hist.json cannot"),
        *("variant.json cannot", "attack.png is no PNG", "eval_ece.png is missing"),
        "1 damaged lines",
    ):
        assert part in text
    assert "85.31" not in text and "Not evaluated" in text


@pytest.mark.parametrize("wrong", [None, "x", -1, [3], {"a": [1]}, float("nan")])
def test_no_wrong_value_breaks_the_page(make, wrong):
    right = {**ANSWERS, "own": {"report": {"title": "t", "text": "t", "head": [], "rows": []}}}
    wrongs = {name: dict.fromkeys(values, wrong) for name, values in right.items()}
    text = read(make(wrongs)).text
    assert wrong is not None or all(f"{name}.json lacks" in text for name in ANSWERS)
    for key in ("settings", "protocol", "checkpoint", "models", "seconds", "eval", "report"):
        answers = {name: {**values, key: wrong} for name, values in right.items()}
        read(make(answers, name=key))
    broken = copy.deepcopy(right)
    broken["own"]["report"] = dict.fromkeys(broken["own"]["report"], wrong)
    for values in broken.values():
        for rows in (values.get("rows"), values.get("bins"), (values.get("sets") or {}).values()):
            for row in rows or []:
                row.update(dict.fromkeys(row, wrong))
    read(make({**broken, "eval_ece": {"models": wrong}}, name="rows"))
    read(make({}, name="set", **dict.fromkeys(SETTINGS, wrong)))


def test_the_page_needs_no_checkpoint_that_can_be_read(make, monkeypatch):
    def denied(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("reports.page.run.file_sha256", denied)
    run = make({"test_clf": {**ANSWERS["test_clf"], "checkpoint_sha256": "ab" * 32}})
    assert "73.91 %" in read(run).strip


def test_older_answers_follow_the_newest_and_other_models_have_rows_of_their_own(make, tmp_path):
    run = make({"test_clf": ANSWERS["test_clf"]})
    for n in (1, 2, 10):
        save(run / "eval", f"test_clf-{n}", {**ANSWERS["test_clf"], "accuracy": 0.9 + n / 1000})
    (tmp_path / "together").mkdir()
    models = [{"label": "CE", "checkpoint": "save/ce/last_ckpt.pt", **ANSWERS["OOD"]}]
    models.append({**models[0], "label": "HDGE", "checkpoint": "save/a-run/last_ckpt.pt"})
    save(tmp_path / "together", "OOD", {"models": models, "checkpoint": ["a", "b"]})
    histograms = {"models": [ANSWERS["logp_hist"]] * 2, "files": ["logp_hist.png"]}
    save(tmp_path / "together", "logp_hist", histograms)
    page = read(run, tmp_path / "together")
    accuracies = [row[1] for row in page.rows if row[2:3] == ["98.17 %"]]
    assert accuracies == ["73.91 %", "91.00 %", "90.20 %", "90.10 %"] and "73.91" in page.strip
    assert "px: log q(x); green: in-distribution" in page.text
    assert [row[:5] for row in page.rows if row[1:3] == ["svhn", "px: log q(x)"]] == [
        ["CE", "svhn", "px: log q(x)", "0.5678", NONE],
        ["HDGE", "svhn", "px: log q(x)", "0.5678", "0.96 \N{PLUS-MINUS SIGN} 0.08"],
    ]


def test_the_headline_is_of_this_runs_test_images_and_of_inception(make):
    """Answers about training images, refined images, another run, or in features of a classifier
    are no headline."""
    train = {**ANSWERS["test_clf"], "dataset": "cifar10_train", "accuracy": 0.999}
    features = {**ANSWERS["fid"], "features": "model x.pt", "n": 50000, "fid": 3.21}
    refined = {**ANSWERS["eval_ece"], "protocol": {"n_steps": 9}}
    attack = {**ANSWERS["attack"], "n_steps_refine": 9}
    run = make({"test_clf": train, "fid": features, "eval_ece": refined, "attack": attack})
    save(run / "eval", "OOD", {"models": [{"checkpoint": "o/other/x.pt", **ANSWERS["OOD"]}]})
    page = read(run)
    assert "43.75 %" in page.strip and not re.search("99.9|5.23|0.5678|FID|Robust", page.strip)
    assert "OOD.json is about checkpoints of other runs." in page.text and "3.21" in page.text
    save(run / "eval", "fid-1", ANSWERS["fid"])  # an earlier answer, in Inception's features
    assert "FID 85.31 inception features" in read(run).strip
    (run / "variant.json").unlink()
    assert "43.75 %" in read(run).strip


def test_a_folders_path_is_taken_as_it_is(make):
    own = "folder:/Data/Contest/train"
    changes = {"n": 5, "trained_on": 0, "new": 2, "missing": "x", "class_names": ["b", "z"]}
    changes |= {"run_class_names": ["a", "b"]}
    answers = {name: {**ANSWERS[name], "dataset": own} for name in ("test_clf", "eval_ece")}
    answers["test_clf"]["data"] = {own: changes, "svhn_test": {"n": 3, "trained_on": 0}, "x": 1}
    page = read(make(answers, dataset=own))
    differs = f"{own} differs from the run's images: 2 of 5 images are not among the run's test "
    differs += "images; its classes are b, z; the run's were a, b, in this order."
    assert page.text.count(differs) == page.text.count("differs from the run's images") == 1
    assert page.strip.count("images or classes differ from the run's") == 1
    assert "Test accuracy 73.91 %" in page.strip and "Calibration (ECE) 5.23 %" in page.strip
    assert f"--datasets {own} svhn cifar10" in page.text
    for other in ("folder:/data/contest/train", "folder_train:/Data/Contest/train"):
        answers["test_clf"]["dataset"] = other
        run = make(answers, other.replace("/", "-"), dataset=own)
        assert "73.91 %" not in read(run).strip
    (run / "variant.json").unlink()
    assert "73.91 %" not in read(run).strip


def px_rows(**auroc: float) -> list[dict[str, Any]]:
    return [
        {"ood_dataset": name, "score_fn": "px", "auroc": value, "n_in": 1234, "n_out": 4321}
        for name, value in auroc.items()
    ]


@pytest.mark.parametrize("ins, auroc, parts", [
    ("cifar10_test", {"mnist": 0.9, "svhn": 0.7, "cifar100": 0.4, "interp": 0.0}, [
        "OOD AUROC 0.5000 log q(x), cifar10_test: mean of 4 sets worst: interp 0.0000",
        "below 0.5: interp has the higher log q(x)"]),
    ("cifar100_test", {"cifar10": 0.6, "tinyimagenet": 0.8}, [
        "OOD AUROC 0.7000 log q(x), cifar100_test: mean of 2 sets worst: cifar10 0.6000"]),
    ("digits_test", {"photos": 0.73, "svhn": 0.9}, ["OOD AUROC 0.8150", "worst: photos 0.7300"]),
    ("cifar10_test", {"svhn": 0.9, "cifar100": 0.8}, ["paper (WRN-28-10): 0.94"]),
])  # fmt: skip
def test_the_headline_is_the_mean_of_all_ood_sets(ins, auroc, parts, make):
    answer = {**ANSWERS["OOD"], "in_dataset": ins, "rows": px_rows(**auroc)}
    page = read(make({"OOD": answer}))
    card = "".join(page.strip.partition("OOD AUROC")[1:])
    assert all(part in card for part in parts), card
    assert ("below 0.5" in card) == (min(auroc.values()) < 0.5)
    assert ("paper" in card) == (parts[0].startswith("paper"))
    warnings = re.findall(r"AUROC below 0.5 \(px: (.*?)\): the model scores these", page.text)
    below = [name for name, value in auroc.items() if value < 0.5]
    assert warnings == [", ".join(below)] * bool(below)


def test_the_headline_is_of_most_images(make):
    """A later answer about few images does not replace an answer about the whole test split."""
    run = make({})
    for name, quick in (
        ("test_clf", {"accuracy": 1.0, "n": 20}),
        ("OOD", {"rows": [{**row, "auroc": 1.0, "n_out": 20} for row in px_rows(svhn=1, mnist=1)]}),
        ("attack", {"n": 20, "rows": [{"eps": 8 / 255, "accuracy": 1.0}]}),
    ):
        save(run / "eval", name, {**ANSWERS[name], **quick})
        save(run / "eval", f"{name}-1", ANSWERS[name])
    strip = read(run).strip
    assert all(part in strip for part in ("73.91 %", "0.5678", "8.75 %"))


def test_samples_are_counted_by_the_names_of_a_folders_classes(make):
    classified = {"class_names": ["cat", "dog\n<i>"], "classified_per_class": [3, 4]}
    run = make({"cond_samples": {**ANSWERS["cond_samples"], **classified}})
    assert "The samples of q(x) were classified as cat: 3, dog <i>: 4." in read(run).text
    save(run / "eval", "cond_samples", {**classified, "class_names": ["cat", 1]})  # a damaged file
    assert "cat: 3, 4." in read(run).text


def test_a_flows_samples_have_no_steps(make):
    answers = {"cond_samples": {"n": 64, "files": ["cond_samples.png"]}}
    text = read(make(answers, arch="glow")).text
    assert "64 images." in text and "lacks" not in text and "Drawn by the flow" in text
    assert "that Glow makes of Gaussian noise." in text and "gradient of the log" not in text


def test_pictures_of_an_earlier_answer_have_their_titles(make):
    run, earlier = make({"cond_samples": ANSWERS["cond_samples"]}), ANSWERS["cond_samples"]
    files = [name.replace("samples", "samples-1") for name in earlier["files"]]
    save(run / "eval", "cond_samples-1", {**earlier, "files": files})
    captions = re.findall("<figcaption>(.*?)</figcaption>", read(run).html)[:6]
    assert captions[:3] == captions[3:] and captions[0].startswith("Where chains began")


def test_samples_of_a_single_round_have_its_steps(make):
    once = {**ANSWERS["cond_samples"], "steps": 40, "steps_per_sample": 40.0}
    text = read(make({"cond_samples": once})).text
    assert "6,400 images, 40 SGLD steps." in text and "in all rounds" not in text


@pytest.mark.parametrize(
    ("fresh", "start"), [(True, "."), (False, ", from the run's replay buffer.")]
)
def test_chains_that_go_on_in_the_replay_buffer_are_told_from_new_ones(fresh, start, make):
    settings = {"settings": {"fresh_samples": fresh}}
    text = read(make({"cond_samples": {**ANSWERS["cond_samples"], **settings}})).text
    assert f"40.25 SGLD steps a sample (mean){start}" in text


def charts(page: Page) -> dict[str, dict[str, list[list[float | None]]]]:
    """Return {title of a chart: {name of a line: points}}."""
    charts = {str(svg["aria-label"]): str(svg["data-series"]) for svg in page.of("svg")}
    return {label.split(" over")[0]: json.loads(lines) for label, lines in charts.items()}


def test_a_chart_has_the_points_of_its_columns_and_round_ticks(make):
    lines = charts(read(make({})))
    losses = [title for title in lines if "Training loss" in title]
    assert losses[0] == "Training loss: loss" and len(losses) > 2  # a chart a term
    (series,) = [lines[title] for title in lines if "Accuracy" in title]
    assert [point[:2] for point in series["test_acc"]] == [[0, 31.25], [1, 43.75]]
    conditional = make({}, name="conditional")  # log q(x|y), which the title must not call log q(x)
    (conditional / "progress.csv").write_text("epoch,pxysgld/log_q_data\n0,1\n")
    assert [*charts(read(conditional))] == ["log q + const (nats)"]
    empty = make({}, name="empty")
    (empty / "progress.csv").write_text("epoch,loss\n0,nan\n1,1e300\n,\n")
    assert not read(empty).of("svg")
    for low, high in ((0, 1), (0.0018, 0.002), (-3, 11.7), (5, 5), (0, 0), (-1e29, 1e29)):
        values = ticks(low, high, 5)
        assert values[0] <= low and values[-1] >= high and 2 <= len(values) <= 8
        assert values == sorted(set(values))
    assert ticks(1, 6, 6, whole=True) == [1, 2, 3, 4, 5, 6]
    assert ticks(1, 200, 6, whole=True) == [50, 100, 150, 200] and ticks(7, 7, 6, whole=True) == [7]


def test_the_page_is_written_and_mistakes_are_one_line(make, tmp_path):
    run, empty = make({}), tmp_path / "empty"
    empty.mkdir()
    (run / "report.html").write_text("old")
    before = set(run.rglob("*"))
    assert report.main([str(run)]) == run / "report.html" and set(run.rglob("*")) == before
    assert (run / "report.html").read_text(encoding="utf-8") == read(run).html
    assert report.main([str(run), "--output", str(tmp_path / "x.html")]).exists()
    (tmp_path / "folder.html").mkdir()
    for argv, message in (
        ([empty], "holds no run"),
        ([tmp_path / "none"], "is not a folder"),
        ([run, "--eval_dir", tmp_path / "none"], "--eval_dir"),
        ([run, "--output", run / "variant.json"], "ends in .html"),
        ([run, empty], "--output is missing"),
        ([run, empty, "--output", tmp_path / "y.html"], "holds no run"),
        ([run, run, "--output", tmp_path / "y.html"], "given twice"),
        ([run, empty, "--output", tmp_path / "y.html", "--eval_dir", empty], "one alone with --ev"),
        ([*[run] * 7, "--output", tmp_path / "y.html"], "give 6 at most"),
        ([run, "--output", tmp_path / "no" / "x.html"], "cannot write"),
        ([run, "--output", tmp_path / "folder.html"], "cannot write"),
    ):
        assert message in refusal(report.main, list(map(str, argv)))
    assert not list(tmp_path.glob(".*")) and not list(empty.iterdir())
    with pytest.raises(NoRun):
        read_run(empty)


def test_several_runs_have_their_curves_in_one_chart(make, tmp_path):
    first, second = make(ANSWERS), make({}, name="b-run", lr=0.05)
    (second / "progress.csv").write_text(
        "epoch,step,loss,test_acc,valid_acc\n0,10,7,0.5,\n1,20,6,,\n2,30,5,0.75,0.5\n"
    )
    (second / "eval" / "OOD.json").write_text("{")
    (second / "eval" / "fid.json").write_text('{"n": 1}')
    path = report.main([str(first), str(second), "--output", str(tmp_path / "both.html")])
    page = Page(path.read_text(encoding="utf-8"))
    lines = charts(page)
    test, valid = (lines[f"Accuracy (%): {split}_acc"] for split in ("test", "valid"))
    assert [point[:2] for point in test["a-run"]] == [[0, 31.25], [1, 43.75]]
    assert [point[:2] for point in test["b-run"]] == [[0, 50], [1, None], [2, 75]]
    assert [y for _, y, _ in valid["a-run"]] == [None, None] and "Learning rate: lr" in lines
    assert page.rows[0] == ["", "a-run", "b-run"] and ["--lr", "0.002", "0.05"] in page.rows
    assert not any(row[0] == "--depth" for row in page.rows)
    assert ["test accuracy in training (%)", "43.75", "75.00"] in page.rows
    assert ["Accuracy, CIFAR-10 (%)", "73.91", "not asked"] in page.rows
    assert "b-run: OOD.json cannot be read" in page.text
    assert "b-run: fid.json lacks fid, inception_score_mean, sampling, features." in page.text


BROWSERS = [*filter(shutil.which, ("chromium", "chromium-browser", "google-chrome"))]


@pytest.mark.skipif(
    not BROWSERS, reason="needs Chromium: chromium, chromium-browser, google-chrome"
)
def test_a_browser_shows_the_page_without_an_error(make, tmp_path):
    run = make(ANSWERS, name="<script>alert(1)<b>")
    report.main([str(run), "--output", str(tmp_path / "page.html")])
    options = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom".split()
    process = subprocess.run(
        [BROWSERS[0], *options, f"--user-data-dir={tmp_path / 'browser'}", f"file://{tmp_path}/page.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0 and "CONSOLE" not in process.stderr
    assert "Robust accuracy" in process.stdout
