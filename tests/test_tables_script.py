"""scripts/tables.py: run folders -> records -> tables, pages and pictures."""

import csv
import hashlib
import importlib.util
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from reports.tables import (
    cells,
    claims,
    formats,
    page,
    protocols,
    records,
    rows,
    titles,
)

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
assert _spec and _spec.loader
tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tables)

DIVERGED = "diverged at step 63 (loss -1.5e+08, gradient norm 4.5e+08); that step was not taken\n"
SOME = {name: tables.TABLES[name] for name in ("table1_ood", "table6_negatives", "alpha")}
HOSTILE = 'a|b <script>alert("1")</script> & 5% $x_1^2$ {y} ~\\ #'


def fake_run(
    root: Path, name: str, seed: int, *, scale: str = "small", epochs: int = 6, **more: Any
) -> Path:
    """A finished run folder; `more` are settings."""
    run = root / scale / f"{name}-s{seed}"
    (run / "eval").mkdir(parents=True)
    environment = {"git_commit": "0123456789abcdef+", "device": more.pop("device", "AMD EPYC")}
    settings = {"dataset": "cifar10", "depth": 10, "width": 2, "arch": "wrn", "pyxce": 1.0}
    settings |= {"lr": 0.002, "batch_size": 64, "n_epochs": 6, "max_steps": None, "load_path": None}
    settings |= more | {"environment": environment}
    (run / "variant.json").write_text(json.dumps(settings))
    lines = [f"{e},{(e + 1) * 10},{(e + 1) * 300.0},{640 if e else 64},0.9" for e in range(epochs)]
    (run / "progress.csv").write_text(
        "\n".join(["epoch,step,seconds,images_per_s,loss", *lines]) + "\n"
    )
    (run / "last_ckpt.pt").touch()
    return run


def answer(place: Path, run: Path, name: str, version: Any = 1, **values: Any) -> Path:
    """An evaluation's JSON about the run; `settings` and `max_images` are taken out of values."""
    place.mkdir(parents=True, exist_ok=True)
    protocol = {"version": version, "sigma": 0.03, "n_steps": 0, "seed": 1}
    protocol["max_images"] = values.pop("max_images", 2000)
    protocol["n_steps"] = values.pop("refined", 0)
    settings = {"max_images": protocol["max_images"], **values.pop("settings", {})}
    record = {"eval": name, "checkpoint": str(run / "last_ckpt.pt"), "protocol": protocol}
    path = place / f"{name}.json"
    path.write_text(json.dumps({**record, **values, "settings": settings}))
    return path


def classified(run: Path, accuracy: float, dataset: str = "cifar10_test", **more: Any) -> None:
    answer(
        run / "eval", run, "test_clf", dataset=dataset, n=2000, accuracy=accuracy, nll=1.0, **more
    )


def detected(run: Path, aurocs: dict[str, float], known: str = "cifar10_test", **more: Any) -> None:
    rows = [
        {"ood_dataset": out, "score_fn": score, "auroc": value - less, "fpr95": 0.5, "aupr": 0.5}
        for out, value in aurocs.items()
        for score, less in (("px", 0.0), ("py", 0.125))
    ]
    answer(run / "eval", run, "OOD", in_dataset=known, rows=rows, **more)


def collect(root: Path, results: Path, scale: str = "small") -> dict[str, Any]:
    tables.collect(root, scale, results)
    return {p.stem: json.loads(p.read_text()) for p in (results / scale).glob("*.json")}


def built(name: str, records: dict[str, Any], scale: str = "small") -> cells.Built:
    return cells.build(name, scale, tables.TABLES[name].rows, records)


def line(table: cells.Built, experiment: str) -> cells.Line:
    return next(
        found for found in table.lines if experiment in (found.experiment or "").split(", ")
    )


def error(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    with pytest.raises(SystemExit) as stop:
        tables.main([str(word) for word in argv])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    return message


def test_numbers_are_means_and_sample_deviations_over_seeds(tmp_path: Path) -> None:
    for seed, accuracy, auroc in ((1, 0.70, 0.6), (2, 0.74, 0.8), (10, 0.75, 0.7)):
        run = fake_run(tmp_path, "ce", seed)
        classified(run, accuracy)
        detected(run, {"svhn_test": auroc, "celeba": 0.5})
    records = collect(tmp_path, tmp_path / "results")
    found = line(built("table1_ood", records), "ce")
    svhn = found.cells["auroc/px/svhn"]
    assert svhn.paper == (0.46, 0.21)
    assert svhn.ours and svhn.ours.n == 3
    assert svhn.ours.mean == pytest.approx(0.7) and svhn.ours.std == pytest.approx(0.1)
    ours = found.cells["auroc/py/svhn"].ours
    assert ours and ours.mean == pytest.approx(0.575)
    accuracy_cell = line(built("table3_hybrid", records), "ce").cells["accuracy/cifar10"]
    # mean 73, squared deviations 9 + 1 + 4 over 2
    assert formats.ours_text(accuracy_cell, 2) == "73.00 ± 2.65 (3)"
    assert formats.paper_text(accuracy_cell) == "93.6"
    assert found.about["epochs"] == "6 epochs" and found.about["network"] == "WRN-10-2"
    assert found.about["setting"] == "small: WRN-10-2, 6 epochs, batch 64"
    assert found.about["hours"] == "0.50" and found.about["commit"] == "0123456+"
    assert found.about["runs"] == "3 seeds" and found.about["hardware"] == "AMD EPYC"


def test_one_seed_has_no_deviation_and_a_step_its_time(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "jem", 1, load_path="save/small/ce-s1/last_ckpt.pt", pxsgld=1.0)
    detected(run, {"svhn_test": 0.6789})
    table = built("table6_negatives", collect(tmp_path, tmp_path / "results"))
    found = line(table, "jem")
    assert formats.ours_text(found.cells["auroc/px/svhn"], 3) == "0.679 (1)"
    ms = found.cells["ms_per_step"].ours  # the median epoch: 64 images at 640 a second
    assert ms and ms.mean == pytest.approx(100)
    assert found.about["setting"] == "small: WRN-10-2, 6 epochs, from ce, batch 64"
    assert found.cells["auroc/px/celeba"].state == "not asked"
    assert line(table, "hdge").cells["auroc/px/svhn"].state == "not run"


def test_a_set_that_was_not_there_is_said(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "ce", 1)
    detected(run, {"svhn_test": 0.6}, skipped=[{"ood_dataset": "celeba", "reason": "gone"}])
    found = line(built("table1_ood", collect(tmp_path, tmp_path / "results")), "ce")
    assert found.cells["auroc/px/celeba"].state == "no data"
    sets = {"cifar10_test": {"auroc": None}, "svhn_test": {"auroc": 0.5}}
    gone = [{"ood_dataset": "celeba", "reason": "gone"}]
    answer(run / "eval", run, "logp_hist", sets=sets, score_fn="px", skipped=gone)
    found = line(built("figure1_histograms", collect(tmp_path, tmp_path / "results")), "ce")
    assert found.cells["hist/px/celeba"].state == "no data"


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_without_records_every_row_is_not_run_or_quoted(name: str) -> None:
    table = built(name, {}, "paper")
    listed = {part for found in table.lines for part in (found.experiment or "").split(", ")}
    assert listed >= set(tables.TABLES[name].rows)
    for found in table.lines:
        expected = "quoted" if found.experiment is None else "not run"
        assert found.about == {"runs": expected}
        assert {cell.state for cell in found.cells.values()} <= {expected, ""}
    assert "not run" in formats.markdown(table)


def test_quoted_rows_are_those_that_are_not_trained_here() -> None:
    quoted = {
        found.model
        for name in tables.TABLES
        for found in built(name, {}, "paper").lines
        if found.experiment is None
    }
    glow = {"Unconditional Glow", "Class-conditional Glow", "Glow", "Residual Flow"}
    assert quoted == glow | {"SNGAN", "NCSN"}


@pytest.mark.parametrize("name", list(rows.ROWS))
def test_the_mapping_names_published_rows_and_experiments_of_the_table(name: str) -> None:
    published, values = rows.published(name)
    assert set(rows.ROWS[name].values()) <= set(published)
    assert set(rows.ROWS[name]) <= set(tables.TABLES[name].rows)
    keys = {key for block in cells.LAYOUTS[name].blocks for key in block.keys}
    assert {key for _, key in values} <= keys  # every published number has its column
    assert {model for model, _ in values} <= {found.model for found in built(name, {}).lines}


def test_every_table_has_a_layout_and_every_experiment_a_name() -> None:
    assert set(cells.LAYOUTS) == set(tables.TABLES)
    for name in tables.TABLES:
        for found in built(name, {}).lines:
            assert found.model != found.experiment, "give it a name in reports/tables"


def test_diverged_runs_are_counted_and_give_no_number(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        run = fake_run(tmp_path, "jem", seed, pxsgld=1.0, epochs=6 if seed == 1 else 2)
        detected(run, {"svhn_test": 0.6 if seed == 1 else 0.9})
        if seed == 3:
            (run / "diverged.txt").write_text(DIVERGED)
            run.with_name(run.name + ".log").write_text(DIVERGED + DIVERGED.replace("63", "70"))
        if seed == 2:
            (run / "log.txt").write_text("epoch 0\n" + DIVERGED)
    records = collect(tmp_path, tmp_path / "results")
    found = line(built("table1_ood", records), "jem")
    ours = found.cells["auroc/px/svhn"].ours
    assert ours and (ours.mean, ours.n) == (0.6, 1)
    expected = "1 seed, diverged 2 of 3, 3 divergences in all, retries included"
    assert found.about["runs"] == expected
    del records["jem"]["seeds"]["1"]
    found = line(built("table1_ood", records), "jem")
    assert found.cells["auroc/px/svhn"].state == "diverged 2 of 2"
    assert claims.divergences(records) == ([0, 0], [2, 2])


def test_a_crash_is_no_divergence_and_an_unfinished_run_gives_no_number(tmp_path: Path) -> None:
    crashed = fake_run(tmp_path, "ce", 1, epochs=1)
    (crashed / "diverged.txt").write_text("RuntimeError: out of memory")
    classified(fake_run(tmp_path, "ce", 2, epochs=5), 0.9)
    found = line(built("table3_hybrid", collect(tmp_path, tmp_path / "results")), "ce")
    assert found.cells["accuracy/cifar10"].state == "failed 1 of 2, unfinished 1 of 2"
    assert found.about["runs"] == "failed 1 of 2, unfinished 1 of 2"


def test_protocol_versions_are_never_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    classified(fake_run(tmp_path, "ce", 1), 0.7)
    classified(fake_run(tmp_path, "hdge", 1), 0.7, version=2)
    assert tables.main(["collect", "--root", str(tmp_path), "--results", str(results)]) == 0
    capsys.readouterr()
    message = error(capsys, "write", "--results", results)
    assert "versions 1 (ce-s1), 2 (hdge-s1) of test_clf" in message and "table3_hybrid" in message
    folders = [tmp_path / "small" / name for name in ("ce-s1", "hdge-s1")]
    assert "mix protocol versions" in error(capsys, "compare", *folders)
    classified(fake_run(tmp_path, "ce", 2), 0.7, version=2)  # nor over the seeds of one row
    message = error(capsys, "collect", "--root", tmp_path, "--results", results)
    assert "ce has answers of protocol versions 1, 2" in message


def test_raw_and_averaged_weights_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for name, weights in (
        ("a", "averaged (--ema 0.9)"),
        ("b", "averaged (--ema 0.99)"),
        ("c", "raw"),
    ):
        folders.append(fake_run(tmp_path, name, 1))
        classified(folders[-1], 0.7, weights=weights)
    folders.append(fake_run(tmp_path, "d", 1))
    classified(folders[-1], 0.7)  # of a run without an average
    for pair, alike in (((0, 1), True), ((0, 2), False), ((0, 3), True)):
        assert tables.main(["compare", *(str(folders[i]) for i in pair)]) == 0
        assert ("asked test_clf alike" not in capsys.readouterr().out) == alike, pair


def test_image_sizes_are_never_mixed_and_the_papers_stand_beside_32_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    for name, more in (("ce", {"image_size": 16}), ("jem", {"image_size": 16}), ("hdge", {})):
        classified(fake_run(tmp_path, name, 1, **more), 0.7)
    found = collect(tmp_path, results)
    message = error(capsys, "write", "--results", results)
    assert "images of 16 x 16 (ce) and 32 x 32 (hdge)" in message
    folders = [tmp_path / "small" / f"{name}-s1" for name in ("ce", "hdge", "jem")]
    assert "images of 16 x 16 (ce-s1) and 32 x 32 (hdge-s1)" in error(capsys, "compare", *folders)
    fake_run(tmp_path, "ce", 2, image_size=32)
    assert "image_size" not in collect(tmp_path, results)["hdge"]["seeds"]["1"]["settings"]
    assert "16 x 16 (ce) and 32 x 32 (ce)" in error(capsys, "write", "--results", results)

    assert tables.main(["compare", str(folders[0]), str(folders[2])]) == 0
    table = built("table3_hybrid", {name: found[name] for name in ("ce", "jem")})
    assert any("images of 16 x 16: the paper's numbers" in note for note in table.notes)
    assert line(table, "ce").about["setting"].endswith("images of 16 x 16, batch 64")
    assert line(table, "ce").cells["accuracy/cifar10"].ours
    assert all(cell.paper is None for each in table.lines for cell in each.cells.values())
    assert all(each.experiment for each in table.lines)


def change(results: Path, name: str, seed: int, question: str, **protocol: Any) -> dict[str, Any]:
    """Records whose answer has another protocol, as one that another version has collected."""
    path = results / "small" / f"{name}.json"
    record = json.loads(path.read_text())
    record["seeds"][str(seed)]["answers"][question]["protocol"] |= protocol
    path.write_text(json.dumps(record))
    return {p.stem: json.loads(p.read_text()) for p in (results / "small").glob("*.json")}


def test_seeds_asked_differently_are_not_averaged_rows_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    for name, seed in (("ce", 1), ("ce", 2), ("hdge", 1)):
        classified(fake_run(tmp_path, name, seed), 0.7)
    tables.collect(tmp_path, "small", results)
    found = change(results, "hdge", 1, "test_clf", max_images=100)
    notes = built("table3_hybrid", found).notes
    assert any("Not all rows were asked test_clf alike" in note for note in notes)
    change(results, "ce", 2, "test_clf", max_images=100)
    message = error(capsys, "write", "--results", results)
    assert "ce-s1 and ce-s2 were asked test_clf differently (max_images 2000; " in message


def recorded(run: Path, scale: str, name: str) -> dict[str, Any]:
    asked = tables.asked_settings(scale).get(name, {})
    answers: dict[str, Any] = records.seed_record(run, finished=True, asked=asked)["answers"]
    return answers


def settings_of(scale: str, name: str, question: str) -> dict[str, Any]:
    """As eval_wrn_ebm.py leaves them where the tables ask."""
    wanted = tables.asked_settings(scale)[name][question][0]
    return {**wanted, "load_path": ["x/last_ckpt.pt"], "data_root": "x", "device": "cuda"}


def set_aside(path: Path, n: int = 1) -> Path:
    """As a newer answer to other settings does."""
    return path.rename(path.with_name(f"{path.stem}-{n}.json"))


@pytest.mark.parametrize("scale", ["paper", "small"])
@pytest.mark.parametrize("by_hand", [{"max_images": 10}, {"amp": "bf16"}, {"sigma": 0.0}])
def test_an_answer_by_hand_never_stands_for_the_tables_own(
    scale: str, by_hand: dict[str, Any], tmp_path: Path
) -> None:
    run = fake_run(tmp_path, "ce", 1, scale=scale)
    settings = settings_of(scale, "ce", "test_clf")
    classified(run, 0.5, max_images=settings["max_images"], settings=settings)
    earlier = set_aside(run / "eval" / "test_clf.json")
    classified(run, 0.9, settings={**settings, **by_hand})
    numbers = recorded(run, scale, "ce")["test_clf"]["numbers"]
    assert numbers["accuracy/cifar10"] == 0.5
    earlier.unlink()
    assert "test_clf" not in recorded(run, scale, "ce")
    # what no table asks for is only compared
    assert "test_clf" in records.seed_record(run, finished=True)["answers"]
    assert "test_clf" not in recorded(run, scale, "simclr")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"amp": "bf16"}, "test_clf differently (amp off; amp bf16)"),
        (
            {"sets": {"cifar10_test": 23}},
            "(images of cifar10_test 9977; images",
        ),
        ({"sets": {"svhn_test": 23}}, ""),  # not a set that both were asked about
        ({"one that an older version does not tell": 1}, ""),
    ],
)
def test_numbers_of_other_images_or_precision_are_not_averaged(
    more: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    about = "CIFAR-10 (test): 9,977 images; cifar10.npz (this copy has 9,977, not 10,000)"
    for seed in (1, 2):
        run = fake_run(tmp_path, "ce", seed)
        classified(run, 0.7)
        path = run / "eval" / "test_clf.json"
        found = json.loads(path.read_text())
        found["protocol"] |= {"amp": "off", "sets": {"cifar10_test": about}}
        path.write_text(json.dumps(found))
    tables.collect(tmp_path, "small", results)
    found = change(results, "ce", 2, "test_clf", **more)
    if said:
        assert said in error(capsys, "write", "--results", results)
    else:
        built("table3_hybrid", found)


CONTRAST: dict[str, Any] = {"pxycontrast": 1.0, "contrast_style": "queue"}


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"sigma": 0.03}, {"sigma": 0.3}, "(--sigma 0.03; --sigma 0.3)"),
        ({"lr": 0.002}, {"lr": 0.02}, "(--lr 0.002; --lr 0.02)"),
        ({}, {"pxycontrast": 1.0}, "(--pxycontrast 0; --pxycontrast 1.0)"),
        ({"max_steps": None}, {"max_steps": 60}, "(--max_steps None; --max_steps 60)"),
        (CONTRAST | {"contrast_k": 64}, CONTRAST | {"contrast_k": 128}, "(--contrast_k 64; --con"),
        ({"load_path": "a/ce-s1/x.pt"}, {"load_path": "a/hdge-s2/x.pt"}, "(--load_path ce; --load"),
        ({"load_path": "a/ce-s1/x.pt"}, {"load_path": None}, "(--load_path ce; --load_path None)"),
        ({"load_path": "a/ce-s1/x.pt"}, {"load_path": "b/ce-s2/x.pt"}, ""),
        ({}, {"clip_grad": 5.0, "log_gradients": 100}, ""),  # an older version had no such flag
        ({"contrast_k": 64}, {"contrast_k": 128, "print_every": 50, "log_dir": "b"}, ""),
        ({"n_epochs": None}, {"n_epochs": None}, ""),
    ],
)
def test_seeds_trained_differently_are_not_averaged(
    first: Any, second: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for seed, more in ((1, first), (2, second)):
        run = fake_run(tmp_path, "hdge", seed, **more)
        classified(run, 0.7)
        found[str(seed)] = records.seed_record(run, finished=True)
    place = tmp_path / "results" / "small" / "hdge.json"
    records.write(place, json.dumps({"seeds": found}))
    if said:
        message = error(capsys, "write", "--results", tmp_path / "results")
        assert "hdge-s1 and hdge-s2 were trained differently" in message and said in message
        found["2"]["state"] = "unfinished"  # has no number to be averaged
    built("table1_ood", {"hdge": {"seeds": found}})


def test_the_time_of_a_step_is_not_averaged_over_devices(tmp_path: Path) -> None:
    for seed, device in ((1, "AMD EPYC"), (2, "NVIDIA H200")):
        detected(fake_run(tmp_path, "jem", seed, device=device), {"svhn_test": 0.5})
        fake_run(tmp_path, "hdge", seed)
    found = collect(tmp_path, tmp_path / "results")
    cell = line(built("table6_negatives", found), "jem").cells["ms_per_step"]
    assert cell.ours is None and cell.state == "several devices"
    ours = line(built("table6_negatives", found), "jem").cells["auroc/px/svhn"].ours
    assert ours and ours.n == 2
    (row,) = (row for row in claims.verdicts(found)[0] if "step of JEM" in row[0])
    assert row[2:] == ["jem: several devices", "hdge: 100.0 ± 0.0 (2)", "open"]


def test_samples_seen_by_other_networks_of_one_name_are_not_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        run = fake_run(tmp_path, "jem", seed)
        settings = settings_of("small", "jem", "fid") | {"fid_model": "a/ce-s1/last_ckpt.pt"}
        values = {"fid": 40.0, "inception_score_mean": 5.0, "n": 1000, "features": "model x"}
        sha256 = {"features_sha256": str(seed) * 64}
        answer(run / "eval", run, "fid", settings=settings, **values, **sha256)
    tables.collect(tmp_path, "small", tmp_path / "results")
    message = error(capsys, "write", "--results", tmp_path / "results")
    assert f"(features_sha256 {'1' * 64}; features_sha256 {'2' * 64})" in message


def test_the_reference_of_samples_is_any_seed_s_cross_entropy_model(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "jem", 1)
    values = {"fid": 40.0, "inception_score_mean": 5.0, "n": 1000, "features": "model x"}
    for folder, there in (("ce-s1", True), ("ce-s12", True), ("ce-bn-s1", False), ("ce", False)):
        settings = settings_of("small", "jem", "fid") | {"fid_model": f"a/{folder}/last_ckpt.pt"}
        answer(run / "eval", run, "fid", settings=settings, **values)
        assert ("fid" in recorded(run, "small", "jem")) == there, folder
    settings = settings_of("small", "jem", "fid") | {"fid_model": None}
    answer(run / "eval", run, "fid", settings=settings, **values)
    assert "fid" not in recorded(run, "small", "jem")


def test_the_answer_to_a_part_of_the_question_is_none(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "ce", 1)
    settings = settings_of("small", "ce", "OOD")
    detected(run, {"svhn_test": 0.6}, settings={**settings, "ood_dataset": ["svhn"]})
    assert "OOD" not in recorded(run, "small", "ce")
    set_aside(run / "eval" / "OOD.json")
    detected(run, {"svhn_test": 0.65}, settings=settings)  # the whole of it
    assert recorded(run, "small", "ce")["OOD"]["numbers"]["auroc/px/svhn"] == 0.65


def test_the_answer_to_the_tables_own_question_is_taken(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "ce", 1)
    answer(run / "eval", run, "test_clf", dataset="cifar10", accuracy=0.5).rename(
        run / "eval" / "test_clf-1.json"
    )  # 2000 images, as the tables ask at this scale
    classified(run, 0.9, max_images=10)  # newer, by hand
    record = collect(tmp_path, tmp_path / "results")["ce"]["seeds"]["1"]
    assert record["answers"]["test_clf"]["numbers"]["accuracy/cifar10"] == 0.5
    (run / "eval" / "test_clf-1.json").unlink()
    classified(run, 0.8, refined=20)  # about images that SGLD has changed
    record = collect(tmp_path, tmp_path / "results")["ce"]["seeds"]["1"]
    assert "test_clf" not in record["answers"]


@pytest.mark.parametrize("weights", ["there", "gone"])
def test_an_answer_about_earlier_weights_is_left_out_and_named(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path, "ce", 1)
    ours = hashlib.sha256(b"new").hexdigest()
    (run / "last_ckpt.pt").write_bytes(b"new")
    if weights == "gone":
        (run / "last_ckpt.pt").unlink()

    def answers(sha256: str, step: int) -> dict[str, Any]:
        classified(run, 0.9, checkpoint_sha256=sha256)
        path = run / "eval" / "test_clf.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "run": {"step": step}}))
        return records.seed_record(run, finished=True)["answers"]

    assert "test_clf" in answers(ours, 60)
    assert capsys.readouterr().err == ""
    assert "test_clf" not in answers("0" * 64, 50)
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "ce-s1/eval/test_clf.json is about earlier" in message
    assert "ask test_clf again" in message and str(tmp_path) not in message
    # the same step of other weights: only the file tells
    assert ("test_clf" in answers("0" * 64, 60)) == (weights == "gone")


def test_collecting_again_keeps_other_seeds_and_replaces_the_same(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for seed, accuracy in ((1, 0.5), (2, 0.6)):
        classified(fake_run(tmp_path / "a", "ce", seed), accuracy)
    collect(tmp_path / "a", results)
    classified(fake_run(tmp_path / "b", "ce", 2), 0.8)
    seeds = collect(tmp_path / "b", results)["ce"]["seeds"]
    found = {s: r["answers"]["test_clf"]["numbers"]["accuracy/cifar10"] for s, r in seeds.items()}
    assert found == {"1": 0.5, "2": 0.8}
    assert str(tmp_path) not in (results / "small" / "ce.json").read_text()


def test_a_finished_record_stays_where_the_run_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"

    def accuracy(place: str, epochs: int) -> float:
        classified(fake_run(tmp_path / place, "ce", 1, epochs=epochs), epochs / 10)
        seed = collect(tmp_path / place, results)["ce"]["seeds"]["1"]
        return float(seed["answers"]["test_clf"]["numbers"]["accuracy/cifar10"])

    assert accuracy("a", 2) == 0.2  # unfinished is better than nothing
    assert accuracy("b", 6) == 0.6
    assert capsys.readouterr().err == ""
    assert accuracy("c", 3) == 0.6
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "ce-s1 is unfinished" in message


def test_every_process_of_a_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path, "jem", 1)
    variant = json.loads((run / "variant.json").read_text())
    first = {"git_commit": "f" * 40, "device": "NVIDIA H200"}
    variant["environments"] = [first, variant["environment"]]
    (run / "variant.json").write_text(json.dumps(variant))
    found = line(built("table6_negatives", collect(tmp_path, tmp_path / "results")), "jem")
    assert found.about["commit"] == "0123456+, fffffff"
    assert found.about["hardware"] == "AMD EPYC, NVIDIA H200"
    assert found.cells["ms_per_step"].state == "several devices"
    assert tables.main(["compare", str(run)]) == 0
    text = capsys.readouterr().out
    assert "fffffff" in text and "NVIDIA H200" in text and "--environments" not in text


def test_a_stand_in_keeps_its_own_name(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "ce", 1)
    detected(run, {"svhn_test": 0.6, "faces": 0.9})
    table = built("table1_ood", collect(tmp_path, tmp_path / "results"))
    px = table.blocks[0][1]
    assert px[:4] == [
        f"auroc/px/{name}" for name in ("svhn", "cifar10interp", "cifar100", "celeba")
    ]
    assert px[4:] == ["auroc/px/faces"]
    assert titles.column_title(px[4]) == "faces (not CelebA)"
    assert line(table, "ce").cells["auroc/px/celeba"].ours is None


def test_a_row_whose_number_of_negatives_is_not_the_papers_says_so(tmp_path: Path) -> None:
    contrast: dict[str, Any] = {"pxycontrast": 1.0, "contrast_style": "queue"}
    for name, k in (("hdge", 16384), ("hdge-k64", 64)):
        fake_run(tmp_path, name, 1, contrast_k=k, **contrast)
    fake_run(tmp_path, "jem", 1, pxsgld=1.0, sgld_batch_size=32, n_steps=10)
    table = built("table6_negatives", collect(tmp_path, tmp_path / "results"))
    names = ["HDGE (K=65536, here 16384)", "HDGE (K=64)", "JEM (N=64, here 32)"]
    assert [line(table, name).model for name in ("hdge", "hdge-k64", "jem")] == names
    assert line(table, "hdge").about["setting"].endswith("batch 64, K = 16384")
    assert "32 chains of 10 SGLD steps" in line(table, "jem").about["setting"]


def test_digits_in_place_of_cifar_have_columns_of_their_own(tmp_path: Path) -> None:
    run = fake_run(tmp_path, "ce", 1, scale="smoke", dataset="digits", max_steps=60)
    classified(run, 0.9, "digits_test", max_images=40)
    detected(run, {"interp": 0.6, "photos": 0.9}, "digits_test", max_images=40)
    records = collect(tmp_path, tmp_path / "results", "smoke")
    table = built("table1_ood", records, "smoke")
    assert table.blocks[0][1] == ["auroc/px/digits:interp", "auroc/px/digits:photos"]
    assert titles.column_title("auroc/px/digits:photos") == "photographs (in: digits)"
    found = line(table, "ce")
    assert all(cell.ours and cell.paper is None for cell in found.cells.values())
    assert found.about["setting"] == "smoke: WRN-10-2, 60 steps, batch 64, digits"
    assert not any(found.experiment is None for found in table.lines)  # nothing to quote beside it
    assert built("table3_hybrid", records, "smoke").blocks[0][1] == ["accuracy/digits"]


def test_questions_about_several_models_belong_to_each(tmp_path: Path) -> None:
    for seed, more in ((2, 0.0), (10, 0.25)):
        runs = [fake_run(tmp_path, name, seed) for name in ("ce", "hdge")]
        for norm, eps in (("linf", 8 / 255), ("l2", 0.5)):
            found = [0.125 + more, 0.25 + more]
            models = [
                {"label": run.name, "checkpoint": str(run / "last_ckpt.pt"), "n": 500,
                 "distance": {"linf": "Linf", "l2": "L2"}[norm], "attack": "pgd",
                 "rows": [{"eps": 0.0, "accuracy": 0.75}, {"eps": eps, "accuracy": accuracy}]}
                for run, accuracy in zip(runs, found, strict=True)
            ]  # fmt: skip
            place = tmp_path / "small" / f"figure4-{norm}-s{seed}"
            answer(place, runs[0], "attack", models=models, max_images=200)
        picture = tmp_path / "small" / f"figure4-l2-s{seed}" / "attack.png"
        picture.write_bytes(b"picture of seed %d" % seed)
    table = built("figure4_robustness", collect(tmp_path, tmp_path / "results"))
    assert table.blocks[0][1] == ["robust/Linf/0", "robust/Linf/0.031373"]
    assert [titles.column_title(key) for key in table.blocks[0][1]] == ["0/255", "8/255"]
    for name, expected in (("ce", 25), ("hdge", 37.5)):
        for key in ("robust/Linf/0.031373", "robust/L2/0.5"):
            ours = line(table, name).cells[key].ours
            assert ours and ours.mean == expected and ours.n == 2
    picture = tmp_path / "results" / "small" / "figure4_robustness.png"
    assert picture.read_bytes() == b"picture of seed 2"  # the first, by number


def test_copied_pictures_are_those_of_now(tmp_path: Path) -> None:
    results = tmp_path / "results" / "small"

    def copied() -> dict[str, bytes]:
        collect(tmp_path, tmp_path / "results")
        return {path.name: path.read_bytes() for path in results.glob("*.png")}

    fake_run(tmp_path, "ce", 1)
    for norm in ("linf", "l2"):
        place = tmp_path / "small" / f"figure4-{norm}-s1"
        place.mkdir()
        (place / "attack.png").write_bytes(norm.encode())
        if norm == "linf":
            assert copied() == {"figure4_robustness.png": b"linf"}
            (results / "figure4_robustness-mine.png").write_bytes(b"mine")
    mine = {"figure4_robustness-mine.png": b"mine"}
    expected = {"figure4_robustness-1.png": b"linf", "figure4_robustness-2.png": b"l2"}
    assert copied() == expected | mine
    shutil.rmtree(tmp_path / "small" / "figure4-linf-s1")
    shutil.rmtree(tmp_path / "small" / "figure4-l2-s1")
    assert copied() == expected | mine  # as records of runs that are elsewhere
    folder = fake_run(tmp_path, "hdge-jem", 1) / "eval"
    for name in ("cond_samples_direct_40", "cond_samples_direct_80", "cond_samples-1_direct_90"):
        (folder / f"{name}.png").write_bytes(name.encode())
    assert copied()["figure3_samples.png"] == b"cond_samples_direct_80"


def test_a_row_of_both_cifars_is_one_line(tmp_path: Path) -> None:
    first = fake_run(tmp_path, "ce-bn", 1)
    classified(first, 0.5)
    for seed, accuracy in ((1, 0.25), (2, 0.375)):
        other = fake_run(tmp_path, "ce-bn-c100", seed, dataset="cifar100")
        classified(other, accuracy, "cifar100_test")
    table = built("table2_classification", collect(tmp_path, tmp_path / "results"))
    names = [found.experiment for found in table.lines]
    assert names.count("ce-bn, ce-bn-c100") == 1 and "ce-bn-c100" not in names
    found = line(table, "ce-bn")
    ten, hundred = found.cells["accuracy/cifar10"], found.cells["accuracy/cifar100"]
    assert ten.ours and hundred.ours and (ten.ours.mean, hundred.ours.mean) == (50, 31.25)
    assert ten.paper and hundred.paper and ten.paper != hundred.paper
    assert found.about["runs"] == "1 seed; CIFAR-100: 2 seeds"
    text = formats.markdown(table)
    assert text.count("Supervised (cross-entropy)") == 2  # of the numbers, and of how it was made


def test_what_is_missing_is_told_by_experiment_not_by_shown_name(tmp_path: Path) -> None:
    for scale, k in (("small", 16384), ("paper", 65536)):
        run = fake_run(tmp_path, "hdge", 1, scale=scale, contrast_k=k, **CONTRAST)
        if scale == "paper":
            detected(run, {"svhn_test": 0.6}, settings=settings_of("paper", "hdge", "OOD"))
        collect(tmp_path, tmp_path / "results", scale)
    tables.write(tmp_path / "results")
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^- Table 6.*$", text, re.MULTILINE)
    assert "1 of 8 rows at the paper's scale; at no scale: " in found
    assert "HDGE (K=65536" not in found and "HDGE (K=64)" in found


def test_half_a_row_is_missing(tmp_path: Path) -> None:
    for name, dataset in (("ce-bn", "cifar10"), ("jem-bn-c100", "cifar100")):
        run = fake_run(tmp_path, name, 1, dataset=dataset)
        classified(run, 0.5, f"{dataset}_test")
    for name, dataset in (("hdge-bn", "cifar10"), ("hdge-bn-c100", "cifar100")):
        classified(fake_run(tmp_path, name, 1, dataset=dataset), 0.5, f"{dataset}_test")
    table = built("table2_classification", collect(tmp_path, tmp_path / "results"))
    text = page.missing([page.Shown(table, None, [])])
    assert text.startswith("- Table 2: classification with batch norm: 0 of 6 rows")
    listed = text.partition("at no scale: ")[2].rstrip(".").split(", ")
    assert {"Supervised (cross-entropy) on CIFAR-100", "JEM on CIFAR-10"} <= set(listed)
    assert not {"HDGE", "JEM", "Supervised (cross-entropy)"} & set(listed)
    assert "Supervised contrastive (SupCon)" in listed and len(listed) == 6
    at_paper = built("table2_classification", {}, "paper")
    assert page.missing([page.Shown(each, None, []) for each in (at_paper, table)]) == text


def test_a_stand_in_for_both_cifars_keeps_two_lines(tmp_path: Path) -> None:
    for name in ("ce-bn", "ce-bn-c100"):
        classified(fake_run(tmp_path, name, 1, dataset="digits"), 0.5, "digits_test")
    table = built("table2_classification", collect(tmp_path, tmp_path / "results"))
    assert {"ce-bn", "ce-bn-c100"} <= {found.experiment for found in table.lines}


def test_a_published_name_says_another_network_than_its_own(tmp_path: Path) -> None:
    fake_run(tmp_path, "hdge-resnet50", 1)
    fake_run(tmp_path, "jointloss-resnet50", 1, arch="resnet50")
    table = built("table1_ood", collect(tmp_path, tmp_path / "results"))
    assert line(table, "hdge-resnet50").model == "HDGE (ResNet-50, here WRN-10-2)"
    assert line(table, "jointloss-resnet50").model == "JointLoss (ResNet-50)"
    fake_run(tmp_path, "ce", 1)
    table = built("table1_ood", collect(tmp_path, tmp_path / "results"))
    assert line(table, "ce").model == "WideResNet-28-10 (cross-entropy), here WRN-10-2"
    fake_run(tmp_path / "b", "ce", 1, depth=28, width=10)
    table = built("table1_ood", collect(tmp_path / "b", tmp_path / "b" / "results"))
    assert line(table, "ce").model == "WideResNet-28-10 (cross-entropy)"


def test_gradients_are_means_over_the_epochs_that_were_measured(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = fake_run(tmp_path, "hdge", seed, epochs=3)
        (run / "progress.csv").write_text(
            "epoch,step,seconds,images_per_s,loss,pyxce/gradient,pxycontrast/gradient,"
            "pxycontrast/cosine\n"
            f"0,10,1,640,1,,,\n1,20,2,640,1,2,{seed},.5\n5,30,3,640,1,4,{seed},.25\n"
        )
    records = collect(tmp_path, tmp_path / "results")
    assert claims.gradient_rows(records) == [
        ["hdge", "pxycontrast", "1.500 ± 0.707 (2)", "0.375 ± 0.000 (2)"],
        ["hdge", "pyxce", "3.000 ± 0.000 (2)", "-"],
    ]
    tables.write(tmp_path / "results")
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "Gradients of the terms" in page and "0.375 ± 0.000 (2)" in page


def test_samples_are_compared_in_features_that_both_sides_have() -> None:
    def record(**numbers: float) -> dict[str, Any]:
        seed = {"state": "finished", "answers": {"fid": {"numbers": numbers}}, "divergences": 0}
        return {"seeds": {"1": {**seed, "settings": {}}}}

    found = {
        "jem": record(**{"fid/own-100": 3.0, "fid/x-1000": 30.0}),
        "hdge-jem": record(**{"fid/a-1000": 2.0, "fid/x-1000": 20.0}),
    }
    rows, unjudged = claims.verdicts(found)
    (row,) = (row for row in rows if "samples better" in row[0])
    assert "HDGE + JEM samples better than JEM" not in unjudged and len(unjudged) > 10
    assert row[2:4] == ["hdge-jem: 20.00 (1)", "jem: 30.00 (1)"]
    del found["jem"]["seeds"]["1"]["answers"]["fid"]["numbers"]["fid/x-1000"]
    rows, unjudged = claims.verdicts(found)
    assert not rows and "HDGE + JEM samples better than JEM" in unjudged


def test_the_claim_about_samples_is_judged_by_the_best_features_in_common() -> None:
    def judged_by(*names: str) -> str:
        numbers = {f"fid/{name}": 1.0 for name in names}
        seed = {"state": "finished", "answers": {"fid": {"numbers": numbers}}}
        return claims.common("fid/", [{"seeds": {"1": seed}}] * 2)

    found = ["ce-s1's-1000", "inception-100", "inception-5000", "own-50", "own"]
    assert judged_by(*found) == "fid/inception-5000"
    assert judged_by(*found, "inception") == "fid/inception"
    assert judged_by("ce-s1's-20", "own", "ce-s1's-1000", "own-100") == "fid/ce-s1's-1000"
    assert judged_by("own", "own-1000") == "fid/"


def test_fid_of_other_features_or_fewer_samples_is_another_column(tmp_path: Path) -> None:
    inception = "inception-v3-compat (torch-fidelity)"
    for name, seed, n in (("jem", 1, 50_000), ("hdge-jem", 1, 1000), ("hdge-jem", 2, 1000)):
        run = fake_run(tmp_path, name, seed)
        features = inception if name == "jem" else f"model {run}/last_ckpt.pt"
        values = {"fid": 40.0 + seed, "inception_score_mean": 5.0, "n": n, "features": features}
        answer(run / "eval", run, "fid", **values)
    records = collect(tmp_path, tmp_path / "results")
    table = built("table3_hybrid", records)
    keys = table.blocks[0][1]
    assert keys[-2:] == ["fid/own-1000", "is/own-1000"]
    assert titles.column_title(keys[-2]) == "FID (own features, 1,000 samples)"
    assert line(table, "jem").cells["fid/inception"].ours == cells.Value(41.0, None, 1)
    found = line(table, "hdge-jem")
    assert found.cells["fid/inception"].ours is None
    assert formats.ours_text(found.cells["fid/own-1000"], 2) == "41.50 ± 0.71 (2)"
    assert str(tmp_path) not in json.dumps(records)


def climbed(run: Path, scale: str, judge: str, fid: float, name: str = "ladder-jem") -> None:
    """The answer to `fid` of new chains after 0, 40 and 200 steps, as evaluation.generation's."""
    settings = settings_of(scale, name, "fid") | {"fid_model": f"a/{judge}/last_ckpt.pt"}
    row = {"n": 500, "precision": 0.75, "recall": 0.5, "read_as_asked": 0.625}
    rows = [
        {**row, "images": "starts", "steps": 0, "fid": 4 * fid},
        {**row, "images": "samples", "steps": 40, "fid": 2 * fid},
        {**row, "images": "samples", "steps": 200, "fid": 9.0, "recall": None},
        {**row, "images": "training images", "steps": None, "fid": 1.0, "read_as_asked": None},
    ]
    values = {"fid": fid, "inception_score_mean": 5.0, "n": 1000, "features": "model x"}
    answer(run / "eval", run, "fid", settings=settings, steps=40, rows=rows, **values)


def test_the_ladder_shows_samples_beside_their_starts_and_the_mean_over_sets(
    tmp_path: Path,
) -> None:
    for seed, fid in ((1, 20.0), (2, 30.0)):
        run = fake_run(tmp_path, "ladder-jem", seed, scale="half", image_size=16, pxsgld=1.0)
        climbed(run, "half", "ce-s9", fid)
        found = {"svhn_test": 0.5, "textures": 0.75, "faces": 1.0}
        detected(run, found, settings=settings_of("half", "ladder-jem", "OOD"))
    run = fake_run(tmp_path, "ladder-clamp", 1, scale="half", image_size=16, epochs=1)
    (run / "diverged.txt").write_text(DIVERGED)
    table = built("sampler", collect(tmp_path, tmp_path / "results", "half"), "half")
    (samples,) = (keys for title, keys in table.blocks if title == "Class-conditional samples")
    expected = {
        "FID of samples": "50.00 ± 14.14 (2)",
        "FID of starts": "100.00 ± 28.28 (2)",
        "Precision of samples": "0.750 ± 0.000 (2)",
        "Read as asked (%) of samples": "62.5 ± 0.0 (2)",
        "Read as asked (%) of starts": "62.5 ± 0.0 (2)",
        "Recall of samples": "0.500 ± 0.000 (2)",
    }
    of = " (ce-s9's features, 500 samples)"
    assert [titles.column_title(key) for key in samples] == [title + of for title in expected]
    row = line(table, "ladder-jem")
    shown = [formats.ours_text(row.cells[key], titles.digits(key)) for key in samples]
    assert shown == list(expected.values())
    (mean,) = (key for _, keys in table.blocks for key in keys if key.startswith("mean_auroc"))
    assert titles.column_title(mean) == "mean of 3 sets"
    assert row.cells[mean].ours == cells.Value(0.75, 0.0, 2)
    assert line(table, "ladder-clamp").cells[mean].state == "diverged 1 of 1"
    assert line(table, "ladder-clamp").about["runs"] == "diverged 1 of 1"


def test_one_set_has_no_mean_and_other_samples_another_column(tmp_path: Path) -> None:
    for name, judge in (("ladder-jem", "ce-s9"), ("ladder-clamp", "ce-s1")):
        run = fake_run(tmp_path, name, 1, scale="half", image_size=16)
        climbed(run, "half", judge, 20.0, name)
        detected(run, {"svhn_test": 0.5}, settings=settings_of("half", name, "OOD"))
    records = collect(tmp_path, tmp_path / "results", "half")
    row = line(cells.build("sampler", "half", list(records), records), "ladder-jem")
    assert not any(key.startswith("mean_auroc") for key in row.cells)
    assert row.cells["chain_fid/starts/ce-s1's-500"].state == cells.OTHER_FEATURES


def test_at_scale_half_no_published_row_stands_beside_those_that_it_has(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name, seed, accuracy in (("ce", 1, 0.5), ("ce", 2, 0.6), ("hdge", 1, 0.7), ("ce", 9, 0.1)):
        run = fake_run(tmp_path, name, seed, scale="half", image_size=16)
        classified(run, accuracy, settings=settings_of("half", name, "test_clf"), max_images=None)
    records = collect(tmp_path, results, "half")
    assert set(records["ce"]["seeds"]) == {"1", "2"}  # 9 compares samples and is no row
    tables.write(results)
    lines = (results / "table3_hybrid-half.csv").read_text().splitlines()
    found = {row["experiment"] for row in csv.DictReader(lines)}
    assert found == {"ce", "hdge", "jem-stable", "hdge-jem-stable"}
    assert not (results / "table2_classification-half.md").exists()


def test_a_later_flag_is_recorded_where_it_was_given(tmp_path: Path) -> None:
    given = {"sgld_clamp": True, "chain_start": "class_gaussian", "ema": 0.999, "augment": "off"}
    default = {
        "sgld_clamp": False,
        "chain_start": "uniform",
        "ema": 0.0,
        "adam_betas": [0.9, 0.999],
    }
    runs = [fake_run(tmp_path, "jem", i, pxsgld=1.0, **s) for i, s in ((1, given), (2, default))]
    first, second = (records.seed_record(run, finished=True) for run in runs)
    assert given.items() <= first["settings"].items()
    assert not default.keys() & second["settings"].keys()
    for word in ("--sgld_clamp", "--chain_start class_gaussian", "--ema 0.999", "--augment off"):
        assert word in cells.about("small", "jem", {"seeds": {"1": first}})["setting"]
    older = {**second, "settings": {**second["settings"]}}
    protocols.check_settings("t", "small", "jem", {"seeds": {"2": second, "3": older}})
    with pytest.raises(tables.UsageError, match=r"--sgld_clamp True; .*--sgld_clamp False"):
        protocols.check_settings("t", "small", "jem", {"seeds": {"1": first, "2": second}})


def test_claims_of_jem_are_about_the_stable_sampler_where_that_alone_was_run() -> None:
    def record(accuracy: float) -> dict[str, Any]:
        answers = {"test_clf": {"numbers": {"accuracy/cifar10": accuracy}}}
        seed = {"state": "finished", "answers": answers, "divergences": 0, "settings": {}}
        return {"seeds": {"1": seed}}

    found = {"ce": record(0.75), "jem-stable": record(0.5)}
    shown = {row[0]: row[2] for row in claims.verdicts(found)[0]}
    assert shown["JEM costs accuracy"] == "jem-stable: 50.00 (1)"
    shown = {row[0]: row[2] for row in claims.verdicts({**found, "jem": record(0.25)})[0]}
    assert shown["JEM costs accuracy"] == "jem: 25.00 (1)"


def test_sgld_that_went_on_from_a_trained_model_says_so_by_name(tmp_path: Path) -> None:
    ends = ("ce", "cross-entropy"), ("hdge", "HDGE"), ("mine", "mine")
    for i, (start, told) in enumerate(ends):
        path = f"save/small/{start}-s1/last_ckpt.pt"
        fake_run(tmp_path / str(i), "jem", 1, pxsgld=1.0, load_path=path)
        found = collect(tmp_path / str(i), tmp_path / str(i) / "results")
        model = line(built("table1_ood", found), "jem").model
        assert model == f"JEM, the papers' sampler, from {told}"
    fake_run(tmp_path, "ce", 1, load_path="save/small/hdge-s1/last_ckpt.pt")
    found = collect(tmp_path, tmp_path / "results")
    assert "from" not in line(built("table1_ood", found), "ce").model


def test_a_network_that_is_its_own_judge_is_not_averaged_with_others(tmp_path: Path) -> None:
    for seed, fid in ((1, 50.0), (2, 10.0), (3, 20.0)):
        run = fake_run(tmp_path, "ce", seed)
        judge = {"fid_model": str(tmp_path / "small" / "ce-s1" / "last_ckpt.pt")}
        values = {"fid": fid, "inception_score_mean": 5.0, "n": 1000, "features": f"model {judge}"}
        answer(run / "eval", run, "fid", settings=judge, **values)
    table = built("table3_hybrid", collect(tmp_path, tmp_path / "results"))
    found = line(table, "ce").cells
    assert found["fid/own-1000"].ours == cells.Value(50.0, None, 1)
    ours = found["fid/ce-s1's-1000"].ours
    assert isinstance(ours, cells.Value) and (ours.mean, ours.n) == (15.0, 2)


def test_notes_tell_how_many_images_a_question_was_about(tmp_path: Path) -> None:
    rows = {
        "OOD": {"ce": {"images of svhn_test": 1083, "images of cifar10_test": 2000, "sigma": 0.03}},
        "fid": {"ce": {"images of cifar10_train": 2000, "n": 1000}, "jem": {"n": 50_000}},
        "attack/L2": {"ce": {"images of cifar10_test": 200}, "hdge": {"images of cifar10_test": 9}},
        "training": {"ce": {}},
    }
    assert protocols.asked_of(rows) == [
        "Images (OOD): cifar10_test 2,000, svhn_test 1,083.",
        "Images (attack/L2): cifar10_test 9 or 200.",
        "Images (fid): cifar10_train 2,000, samples 1,000 or 50,000.",
    ]


def test_a_row_at_another_scale_tells_what_helped_it(tmp_path: Path) -> None:
    help_given = {"sgld_l2": 0.1, "clip_grad": 5.0, "pxsgld": 1.0, "norm": "batch"}
    more = {"n_steps": 10, "sgld_batch_size": 32, "sigma": 0.1, "optimizer": "adam"}
    for seed in (1, 2):
        fake_run(tmp_path, "jem", seed, **help_given, **more)
    found = collect(tmp_path, tmp_path / "results")
    setting = line(built("table1_ood", found), "jem").about["setting"]
    told = ("batch norm", "adam 0.002", "noise 0.1", "L2 penalty 0.1", "gradients clipped at 5")
    assert all(part in setting for part in told)
    text = page.summary(found)
    assert "of those with SGLD: 0 of 2 (2 with an L2 penalty on the energies or clipped" in text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results' folder of a few runs, some with names that mean harm."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        for i, name in enumerate(("ce", "hdge", "alpha0.5")):
            run = fake_run(root, name, seed, device=HOSTILE)
            classified(run, 0.5 + 0.125 * i + 0.01 * seed)
            detected(run, {"svhn_test": 0.5 + 0.1 * i + 0.01 * seed, f"folder:{HOSTILE}": 0.5})
    results = root / "out" / "results"
    collect(root, results)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "TABLES", SOME)
        assert tables.main(["write", "--results", str(results)]) == 0
    return results


def contents(results: Path) -> dict[str, bytes]:
    files = [path for path in results.parent.rglob("*") if path.is_file()]
    return {str(path.relative_to(results.parent)): path.read_bytes() for path in files}


def test_written_again_all_is_the_same_byte_for_byte(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "TABLES", SOME)
    before = contents(hostile)
    assert {"RESULTS.md", "results/index.html", "results/alpha-small.png"} <= set(before)
    elsewhere = tmp_path / "copy" / "results"
    shutil.copytree(hostile / "small", elsewhere / "small")
    for stale in ("table1_ood-smoke.md", "mine.txt"):
        (elsewhere / stale).write_text("old")
    tables.write(elsewhere)
    after = contents(elsewhere)
    assert after.pop("results/mine.txt") == b"old"  # what is not ours stays, an old table goes
    assert after == before


def test_results_link_only_what_is_there(hostile: Path) -> None:
    text = (hostile.parent / "RESULTS.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) >= 12 and all((hostile.parent / link).is_file() for link in links)
    assert "## What it shows: small" in text and "3 experiments, 6 runs" in text
    assert "without SGLD: 0 of 6; of those with SGLD: 0 of 0." in text and "<script" not in text


def test_markdown_rows_have_as_many_cells_as_their_head(hostile: Path) -> None:
    for path in hostile.glob("*.md"):
        for block in re.findall(r"(?:^\|.*\n)+", path.read_text(), re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
            assert len(widths) == 1, path.name


def test_csv_parses_and_has_the_numbers(hostile: Path) -> None:
    text = (hostile / "table1_ood-small.csv").read_text()
    found = list(csv.DictReader(io.StringIO(text)))
    assert all(None not in row and None not in row.values() for row in found)
    row = next(r for r in found if r["experiment"] == "ce" and r["column"] == "auroc/px/svhn")
    assert float(row["mean"]) == pytest.approx(0.515) and row["seeds"] == "2"
    assert float(row["std"]) == pytest.approx(0.01 / 2**0.5, rel=1e-4)
    assert (row["paper"], row["paper_std"]) == ("0.46", "0.21")
    assert row["hardware"] == HOSTILE
    assert {r["state"] for r in found if r["experiment"] == "jem"} == {"not run"}


def test_latex_is_escaped(hostile: Path) -> None:
    assert formats.tex("5% & $x_1^2$ {y} #\\~ ±") == (
        r"5\% \& \$x\_1\textasciicircum{}2\$ \{y\} \#\textbackslash{}\textasciitilde{} $\pm$"
    )
    text = (hostile / "table1_ood-small.tex").read_text()
    assert r"0.515 $\pm$ 0.007 (2)" in text and r"\begin{tabular}{lrrrr" in text
    assert text.count(r"\item ") == len(built("table1_ood", {}).notes) > 3
    for row in re.findall(r"^(?!%|\\).*\\\\$", text, re.MULTILINE):
        for bare in "%#_$":
            plain = row.replace(r"$\pm$", "").replace(r"$\infty$", "")
            assert not re.search(rf"(?<!\\){re.escape(bare)}", plain)
    heads = re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}\n\\toprule\n(.*)", text)
    assert heads and all(len(spec) == len(head.split(" & ")) for spec, head in heads)


def test_the_page_is_escaped_and_loads_nothing(hostile: Path) -> None:
    tags: list[tuple[str, dict[str, str | None]]] = []
    texts: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

        def handle_data(self, data: str) -> None:
            texts.append(data)

    Reader().feed((hostile / "index.html").read_text())
    assert "script" not in {tag for tag, _ in tags}
    sources = [attrs.get("src") or "" for tag, attrs in tags if tag == "img"]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert any(HOSTILE in text for text in texts) and "0.515 ± 0.007 (2)" in texts
    ids = {attrs.get("id") for _, attrs in tags}
    assert {str(a["href"])[1:] for tag, a in tags if tag == "a"} <= ids


def test_pictures_are_png_and_carry_no_version(hostile: Path) -> None:
    pictures = list(hostile.glob("*.png"))
    assert {p.stem for p in pictures} >= {
        "table1_ood-small",
        "alpha-small",
        "table6_negatives-small",
    }
    for path in pictures:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") and b"Software" not in data and b"tEXt" not in data[:200]


def test_verdicts_weigh_the_difference_by_the_spread() -> None:
    def value(mean: float, std: float | None = 0.3, n: int = 3) -> cells.Value:
        return cells.Value(mean, std, n)

    # 4 degrees of freedom, and so 2.776 standard errors of a difference: * sqrt(2 * .09 / 3) = .68
    assert claims.verdict(">", value(1.69), value(1.0)) == "holds"
    assert claims.verdict(">", value(1.67), value(1.0)).startswith("open")
    assert claims.verdict("<", value(1.69), value(1.0)) == "does not hold"
    assert claims.verdict("=", value(1.69), value(1.0)) == "does not hold"
    assert claims.verdict("=", value(1.1), value(1.0)).startswith("not contradicted")
    assert "too few seeds" in claims.verdict(">", value(1.5, None, 1), value(1.0))
    assert claims.verdict(">", "not run", value(1.0)) == "open"


def test_noise_is_welch_s() -> None:
    random, judged = np.random.RandomState(0), set()
    for _ in range(200):
        n, m = random.randint(2, 6, 2)
        a, b = random.randn(n) + random.rand() * 3, random.randn(m) * random.rand() * 3
        beyond = abs(a.mean() - b.mean()) > claims.noise(a.std(ddof=1), n, b.std(ddof=1), m)
        assert beyond == (stats.ttest_ind(a, b, equal_var=False).pvalue < 0.05)
        judged.add(bool(beyond))
    assert judged == {True, False} and claims.noise(0.0, 3, 0.0, 3) == 0


def test_claims_are_about_experiments_and_columns_that_exist() -> None:
    for claim in claims.CLAIMS:
        assert {claim.first, claim.second} <= set(tables.EXPERIMENTS), claim.text


def test_comparing_runs_shows_where_they_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lr, accuracy in (("one", 0.1, 0.5), ("two", 0.2, 0.625)):
        classified(fake_run(tmp_path, name, 1, lr=lr), accuracy)
    folders = [str(tmp_path / "small" / f"{name}-s1") for name in ("one", "two")]
    assert tables.main(["compare", *folders]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\| +\| one-s1 +\| two-s1 +\|", text)
    assert re.search(r"--lr +\| +0\.1 +\| +0\.2", text) and "--batch_size" not in text
    assert re.search(r"Accuracy, CIFAR-10 \(%\) +\| +50\.00 +\| +62\.50", text)


def test_a_comparison_is_written_in_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, accuracy in (("one", 0.5), ("two", 0.625)):
        run = fake_run(tmp_path, name, 1)
        classified(run, accuracy)
        detected(run, {"svhn_test": accuracy})
    folders = [str(tmp_path / "small" / f"{name}-s1") for name in ("one", "two")]
    out = tmp_path / "out"
    assert tables.main(["compare", *folders, "--output", str(out)]) == 0
    assert (out / "comparison.md").read_text().rstrip() == capsys.readouterr().out.rstrip()
    rows = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    found = {(row["model"], row["column"]): row["mean"] for row in rows}
    assert found["one-s1", "accuracy/cifar10"] == "50"
    assert found["two-s1", "auroc/px/svhn"] == "0.625"
    assert found["two-s1", "auroc/py/svhn"] == "0.5"
    assert "62.50" in (out / "comparison.tex").read_text()
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_written_comparison_says_how_a_run_ended_and_what_was_asked_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, epochs, images in (("good", 6, 2000), ("bad", 2, 100), ("young", 2, 100)):
        run = fake_run(tmp_path, name, 1, epochs=epochs)
        classified(run, 0.5, max_images=images)
        if name == "bad":
            (run / "diverged.txt").write_text(DIVERGED)
    folders = [str(tmp_path / "small" / f"{name}-s1") for name in ("good", "bad", "young")]
    assert tables.main(["compare", *folders, "--output", str(tmp_path / "out")]) == 0
    rows = csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines())
    found = {row["model"]: row["runs"] for row in rows if row["column"] == "accuracy/cifar10"}
    assert found == {"good-s1": "finished", "bad-s1": "diverged", "young-s1": "unfinished"}
    text = (tmp_path / "out" / "comparison.tex").read_text()
    assert r"\item Not all rows were asked test\_clf alike" in text and "1 seed" not in text
    assert text.index("Not all rows") < text.index(r"\end{table}")
    assert "Not all rows were asked test_clf alike" in capsys.readouterr().out


def test_what_cannot_be_written_is_named_with_its_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    run, results = fake_run(tmp_path, "ce", 1), tmp_path / "out" / "results"
    classified(run, 0.7)
    (tmp_path / "file").touch()
    message = error(capsys, "compare", run, "--output", tmp_path / "file" / "x")
    assert f"--output: cannot write {tmp_path / 'file' / 'x' / 'comparison.md'} (" in message
    message = error(capsys, "write", "--results", tmp_path / "file" / "x")
    assert f"--results: cannot write {tmp_path / 'file' / 'x'}" in message

    def full(figure: Figure, path: Any, **more: Any) -> None:
        Path(path).write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    collect(tmp_path, results)
    picture = results / "table1_ood-small.png"
    picture.write_bytes(b"earlier")
    monkeypatch.setattr(Figure, "savefig", full)
    message = error(capsys, "write", "--results", results)
    assert f"--results: cannot write {picture} (No space left on device)" in message
    assert picture.read_bytes() == b"earlier" and not list(results.glob(".*"))
    message = error(capsys, "compare", run, "--output", tmp_path / "new")
    assert f"--output: cannot write {tmp_path / 'new' / 'comparison.png'} (No space" in message


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--scale small" in error(capsys, "collect", "--root", tmp_path)
    assert "holds no run" in error(capsys, "compare", tmp_path)
    assert "not a folder" in error(capsys, "compare", tmp_path / "none")
    run = fake_run(tmp_path, "ce", 1)
    assert "given twice" in error(capsys, "compare", run, run)
    (tmp_path / "results" / "small").mkdir(parents=True)
    (tmp_path / "results" / "small" / "ce.json").write_text("[]")
    assert "is no record" in error(capsys, "write", "--results", tmp_path / "results")
    assert "ACTION" in error(capsys)


def test_a_probe_s_rows_are_no_epochs(tmp_path: Path) -> None:
    load_path = str(tmp_path / "small" / "simclr-s1" / "last_ckpt.pt")
    more = {"method": "linear-probe", "program": "linear_probe.py", "load_path": load_path}
    fake_run(tmp_path, "simclr-linear", 1, epochs=1, **more)
    about = line(
        built("table1_ood", collect(tmp_path, tmp_path / "results")), "simclr-linear"
    ).about
    assert about["epochs"] == "a linear probe" and "from simclr" in about["setting"]
    assert about["runs"] == "1 seed"


def test_rows_that_are_evaluated_with_other_noise_than_trained_are_told(tmp_path: Path) -> None:
    for name, sigma in (("jem", 0.1), ("ce", 0.03)):
        classified(fake_run(tmp_path, name, 1, sigma=sigma), 0.5)
    notes = built("table3_hybrid", collect(tmp_path, tmp_path / "results")).notes
    told = [note for note in notes if note.startswith("Trained with noise")]
    assert len(told) == 1
    assert "deviation 0.1 and evaluated with 0.03" in told[0] and told[0].endswith(": jem.")


def test_claims_about_unfinished_runs_are_open_and_about_diverged_ones_told() -> None:
    def record(state: str, **numbers: float) -> dict[str, Any]:
        seed = {"state": state, "answers": {"OOD": {"numbers": numbers}}, "divergences": 0}
        return {"seeds": {"1": {**seed, "settings": {}}}}

    key = "auroc/px/svhn"
    found = {"hdge": record("finished", **{key: 0.5}), "hdge-raw": record("diverged")}
    found["jem"] = record("unfinished")
    rows, unjudged = claims.verdicts(found)
    assert [row[2] for row in rows if "Normalising" in row[0]] == ["hdge-raw: diverged 1 of 1"]
    assert "HDGE detects OOD better than JEM (px)" in unjudged


def test_the_committed_pages_are_those_of_the_committed_records(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results", tmp_path / "results")
    tables.write(tmp_path / "results")
    made = [tmp_path / "RESULTS.md", *sorted((tmp_path / "results").glob("*-*.*"))]
    texts = [path for path in made if path.suffix in (".md", ".csv", ".tex")]
    assert len(texts) > 30
    for path in texts:
        committed = ROOT / path.relative_to(tmp_path)
        assert path.read_bytes() == committed.read_bytes(), f"{path.name}: run tables.py write"
