"""scripts/tables.py and reports/tables: run folders -> records -> tables, pages and pictures."""

import csv
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import stdtr

from reports.page import read_run
from reports.tables import TABLES, claims, formats, page, pictures, records, titles
from reports.tables.table import NOT_ASKED, OTHER_FEATURES, Number, Row, Table, build, mean_of
from scripts import done, rows, tables
from tests.pair import refusal

ROOT = Path(__file__).resolve().parent.parent
DIVERGED = "diverged at step 63 (loss -1.5e+08, gradient norm 4.5e+08); that step was not taken\n"
SOME = {name: tables.TABLES[name] for name in ("table1_ood", "table6_negatives", "alpha")}
HOSTILE = 'a|b <script>alert("1")</script> & 5% $x_1^2$ {y} ~\\ #'
CONTRAST: dict[str, Any] = {"pxycontrast": 1.0, "contrast_style": "queue"}
SVHN, CELEBA, ACCURACY = "auroc/px/svhn", "auroc/px/celeba", "accuracy/cifar10"


def fake_run(
    root: Path, name: str, seed: int = 1, *, scale: str = "small", epochs: int = 6, **more: Any
) -> Path:
    """Write a finished run folder; `more` are settings."""
    run = root / scale / f"{name}-s{seed}"
    (run / "eval").mkdir(parents=True, exist_ok=True)
    environment = {"git_commit": "0123456789abcdef+", "device": more.pop("device", "AMD EPYC")}
    settings = {"dataset": "cifar10", "depth": 10, "width": 2, "arch": "wrn", "pyxce": 1.0}
    settings |= {"lr": 0.002, "batch_size": 64, "n_epochs": 6, "max_steps": None, "load_path": None}
    settings |= {"seed": seed}
    (run / "variant.json").write_text(json.dumps(settings | {"environment": environment} | more))
    lines = ["epoch,step,seconds,images_per_s,loss"]
    lines += [f"{e},{10 * e + 10},{300.0 * e + 300},{640 if e else 64},0.9" for e in range(epochs)]
    (run / "progress.csv").write_text("\n".join(lines) + "\n")
    (run / "last_ckpt.pt").touch()
    return run


def answer(folder: Path, of: Path, name: str, version: Any = 1, **values: Any) -> Path:
    """Write an evaluation's JSON about the run `of`; `protocol`, `settings`, `max_images` and
    `refined` are not among its values."""
    folder.mkdir(parents=True, exist_ok=True)
    protocol = {"version": version, "sigma": 0.03, "seed": 1, **values.pop("protocol", {})}
    protocol["max_images"] = values.pop("max_images", 2000)
    protocol["n_steps"] = values.pop("refined", 0)
    settings = {"max_images": protocol["max_images"], **values.pop("settings", {})}
    record = {"eval": name, "checkpoint": str(of / "last_ckpt.pt"), "protocol": protocol}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**record, **values, "settings": settings}))
    return path


def classified(of: Path, accuracy: float, dataset: str = "cifar10_test", **more: Any) -> Path:
    more = {"dataset": dataset, "n": 2000, "accuracy": accuracy, "nll": 1.0} | more
    return answer(of / "eval", of, "test_clf", **more)


def detected(run: Path, aurocs: dict[str, float], known: str = "cifar10_test", **more: Any) -> None:
    lines = [
        {"ood_dataset": out, "score_fn": score, "auroc": value - less, "fpr95": 0.5, "aupr": 0.5}
        for out, value in aurocs.items()
        for score, less in (("px", 0.0), ("py", 0.125))
    ]
    answer(run / "eval", run, "OOD", in_dataset=known, rows=lines, **more)


def sampled(run: Path, settings: dict[str, Any] | None = None, **more: Any) -> Path:
    settings = settings or {}
    values = {"fid": 40.0, "inception_score_mean": 5.0, "n": 1000} | more
    values.setdefault("features", f"model {settings.get('fid_model')}")
    return answer(run / "eval", run, "fid", settings=settings, **values)


def collect(root: Path, scale: str = "small") -> dict[str, Any]:
    """Write the records of the runs in `root` to <root>/results and return them."""
    tables.collect(root, scale, root / "results")
    return records.read_records(root / "results", [scale])[scale]


def built(name: str, experiments: dict[str, Any], scale: str = "small") -> Table:
    return build(name, scale, tables.TABLES[name].rows, experiments)


def row(table: Table, experiment: str) -> Row:
    return next(line for line in table.rows if experiment in line.experiments)


def cell(table: Table, experiment: str, key: str) -> str:
    return formats.value_text(row(table, experiment).numbers[key], key)


def seed_with(state: str = "finished", **numbers: float) -> dict[str, Any]:
    """Make a record of one seed; `numbers` are those of an answer."""
    seed = {"state": state, "answers": {"x": {"numbers": numbers}}, "divergences": 0}
    return {"1": {**seed, "settings": {}, "seconds": None}}


def error(*argv: object) -> str:
    return refusal(tables.main, list(map(str, argv)))


def test_numbers_are_means_and_sample_deviations_over_seeds(tmp_path):
    for seed, accuracy, auroc in ((1, 0.70, 0.6), (2, 0.74, 0.8), (10, 0.75, 0.7)):
        run = fake_run(tmp_path, "ce", seed)
        classified(run, accuracy)
        detected(run, {"svhn_test": auroc, "celeba": 0.5})
    experiments = collect(tmp_path)
    ood, hybrid = built("table1_ood", experiments), built("table3_hybrid", experiments)
    svhn = row(ood, "ce").numbers[SVHN]
    assert (svhn.paper, svhn.paper_std, svhn.n) == (0.46, 0.21, 3)
    assert cell(ood, "ce", SVHN) == "0.700 ± 0.100 (3)"
    assert cell(ood, "ce", "auroc/py/svhn").startswith("0.575 ")
    # mean 73, squared deviations 9 + 1 + 4 over 2
    assert cell(hybrid, "ce", ACCURACY) == "73.00 ± 2.65 (3)"
    assert formats.paper_text(row(hybrid, "ce").numbers[ACCURACY]) == "93.6"
    about = {"runs": "3 seeds", "setting": "small: WRN-10-2, 6 epochs, batch 64", "hours": "0.50"}
    about |= {"epochs": "6 epochs", "network": "WRN-10-2", "hardware": "AMD EPYC"}
    assert row(hybrid, "ce").about == about | {"commit": "0123456+"}


def test_an_empty_cell_has_its_reason(tmp_path):
    start = {"load_path": "save/small/ce-s1/last_ckpt.pt", "pxsgld": 1.0}
    gone = [{"ood_dataset": "celeba", "reason": "gone"}]
    for seed, device in ((1, "AMD EPYC"), (2, "NVIDIA H200")):
        processes = [{"device": device, "git_commit": str(i) * 40} for i in (seed, 7)]
        run = fake_run(tmp_path, "jem", seed, environments=processes, **start)
        detected(run, {"svhn_test": 0.6789})
        classified(fake_run(tmp_path, "hdge-k64", seed, epochs=seed), 0.9)
    run = fake_run(tmp_path, "hdge")
    detected(run, {"svhn_test": 0.6}, skipped=gone)
    sets = {"cifar10_test": {"auroc": None}, "svhn_test": {"auroc": 0.5}}
    answer(run / "eval", run, "logp_hist", sets=sets, score_fn="px", skipped=gone)
    experiments = collect(tmp_path)
    table = built("table6_negatives", experiments)
    cells = [cell(table, "jem", key) for key in (SVHN, CELEBA, "ms_per_step")]
    assert cells == ["0.679 ± 0.000 (2)", "not asked", "several devices"]
    about = row(table, "jem").about
    assert about["setting"] == "small: WRN-10-2, 6 epochs, from ce, batch 64"
    assert about["commit"] == "1111111, 2222222, 7777777"
    assert about["hardware"] == "AMD EPYC, NVIDIA H200"
    assert cell(table, "hdge", CELEBA) == "no data"
    assert cell(table, "hdge", "ms_per_step") == "100.0 (1)"  # the median epoch: 64 at 640 a second
    assert cell(built("figure1_histograms", experiments), "hdge", "hist/px/celeba") == "no data"
    assert cell(table, "hdge-k64", SVHN) == "unfinished 2 of 2"
    assert cell(table, "hdge-k128", SVHN) == "not run"
    (verdict,) = (v for v in claims.verdicts("small", experiments)[0] if "step of JEM" in v.claim)
    assert verdict.sides == ("jem: several devices", "hdge: 100.0 (1)")
    assert (verdict.group, verdict.text) == ("undecided", "no number")
    assert not any("Times of a step" in note for note in table.notes)  # one device has them all
    assert "ms_per_step" in [key for _, keys in pictures.drawn(table) for key in keys]
    del experiments["jem"]["1"]  # each side on a device of its own
    (verdict,) = (v for v in claims.verdicts("small", experiments)[0] if "step of JEM" in v.claim)
    assert verdict.sides == ("jem: 100.0 (1)", "hdge: 100.0 (1)")
    assert (verdict.group, verdict.text) == ("undecided", "several devices")
    table = built("table6_negatives", experiments)
    (note,) = (note for note in table.notes if note.startswith("Times of a step"))
    assert "AMD EPYC: HDGE (K=65536). NVIDIA H200: JEM (N=64), the papers' sampler, from" in note
    assert "ms_per_step" not in [key for _, keys in pictures.drawn(table) for key in keys]


def test_a_claim_is_not_judged_by_an_earlier_version_of_the_attack(tmp_path):
    attack = {"attack": "pgd", "distance": "Linf", "max_images": 200}
    for version, expected in ((2, "holds"), (1, "version 1 of attack")):
        for seed in (1, 2, 3):
            for name, more in (("ce", 0.0), ("hdge", 0.25)):
                run = fake_run(tmp_path, name, seed)
                rows_of_radii = [{"eps": 2 / 255, "accuracy": 0.25 + more + seed / 100}]
                answer(run / "eval", run, "attack", version, rows=rows_of_radii, **attack)
        judged, _ = claims.verdicts("small", collect(tmp_path))
        (verdict,) = (v for v in judged if v.claim == "HDGE is more robust than cross-entropy")
        assert verdict.text == expected


def test_a_run_is_read_from_within_its_folder(tmp_path, monkeypatch):
    run = fake_run(tmp_path, "ce")
    monkeypatch.chdir(run)
    assert records.seed_of(read_run(Path("."))) == records.seed_of(read_run(run))


def test_diverged_runs_are_counted_and_give_no_number(tmp_path):
    for seed in (1, 2, 3):
        run = fake_run(tmp_path, "jem", seed, pxsgld=1.0, epochs=6 if seed == 1 else 2)
        detected(run, {"svhn_test": 0.6 if seed == 1 else 0.9})
    (run / "diverged.txt").write_text(DIVERGED)
    run.with_name(run.name + ".log").write_text(DIVERGED + DIVERGED.replace("63", "70"))
    (tmp_path / "small" / "jem-s2" / "log.txt").write_text("epoch 0\n" + DIVERGED)
    experiments = collect(tmp_path)
    table = built("table1_ood", experiments)
    assert cell(table, "jem", SVHN) == "0.600 (1)"
    runs = row(table, "jem").about["runs"]
    assert runs == "1 seed, diverged 2 of 3, 3 divergences in all, retries included"
    del experiments["jem"]["1"]
    assert cell(built("table1_ood", experiments), "jem", SVHN) == "diverged 2 of 2"
    assert "with SGLD: 2 of 2." in page.summary("small", experiments)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_records_has_every_row_and_every_published_number(name):
    table = built(name, {}, "paper")
    for line in table.rows:
        expected = "not run" if line.experiments else "quoted"
        assert line.about == {"runs": expected} and line.model not in line.experiments
        assert {number.state for number in line.numbers.values()} <= {expected, ""}
    paper = TABLES[name]["paper"]
    assert set(paper) <= {line.model for line in table.rows}
    assert set(TABLES[name].get("held_against", {}).values()) <= set(paper)
    assert {key for numbers in paper.values() for key in numbers} <= {*table.keys}


def test_protocol_versions_are_never_mixed(tmp_path):
    folders = [fake_run(tmp_path, name) for name in ("ce", "hdge")]
    for version, run in enumerate(folders, 1):
        classified(run, 0.7, version=version)
    collect(tmp_path)
    message = error("write", "--results", tmp_path / "results")
    assert "versions 1 (ce), 2 (hdge) of test_clf" in message and "table3_hybrid" in message
    assert "mix protocol versions" in error("compare", *folders)


def test_image_sizes_are_never_mixed_and_the_papers_numbers_stand_beside_32_alone(tmp_path):
    folders = [fake_run(tmp_path, name, image_size=16) for name in ("ce", "jem")]
    folders.append(fake_run(tmp_path, "hdge"))
    for run in folders:
        classified(run, 0.7)
    experiments = collect(tmp_path)
    message = error("write", "--results", tmp_path / "results")
    assert "images of 16 x 16 (ce) and 32 x 32 (hdge)" in message
    assert "images of 16 x 16 (ce-s1) and 32 x 32 (hdge-s1)" in error("compare", *folders)
    assert tables.main(["compare", *map(str, folders[:2])]) == 0
    del experiments["hdge"]
    table = built("table3_hybrid", experiments)
    assert any("images of 16 x 16: the paper's numbers" in note for note in table.notes)
    assert row(table, "ce").about["setting"].endswith("images of 16 x 16, batch 64")
    assert cell(table, "ce", ACCURACY) == "70.00 (1)"
    assert all(n.paper is None for line in table.rows for n in line.numbers.values())
    assert all(line.experiments for line in table.rows)


ALIKE = "CIFAR-10 (test): 9,977 images; cifar10.npz (this copy has 9,977, not 10,000)"


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [  # settings; "protocol" is an answer's
        ({"sigma": 0.03}, {"sigma": 0.3}, "(--sigma 0.03; --sigma 0.3)"),
        ({}, {"pxycontrast": 1.0}, "(--pxycontrast 0; --pxycontrast 1.0)"),
        ({"max_steps": None}, {"max_steps": 60}, "(--max_steps None; --max_steps 60)"),
        (CONTRAST | {"contrast_k": 64}, CONTRAST | {"contrast_k": 128}, "(--contrast_k 64; --con"),
        ({"load_path": "a/ce-s1/x.pt"}, {"load_path": None}, "(--load_path ce; --load_path None)"),
        ({"sgld_clamp": True}, {"ema": 0.0}, "(--sgld_clamp True; --sgld_clamp False)"),
        ({"clf_only": True}, {"n_valid": 0}, "(--clf_only True, --n_valid None; --clf_only False"),
        ({"temperature": 0.1}, {"temperature": 0.5}, "(--temperature 0.1; --temperature 0.5)"),
        ({"temperature": 0.1}, {"queue_init": "empty"}, ""),  # an older record had neither
        ({"load_path": "a/ce-s1/x.pt"}, {"load_path": "b/ce-s2/x.pt"}, ""),
        ({}, {"clip_grad": 5.0, "log_gradients": 100}, ""),  # an older version had no such flag
        ({"contrast_k": 64}, {"contrast_k": 128, "print_every": 50, "log_dir": "b"}, ""),
        (
            {"training_images": "9 images, crc32 0"},
            {"training_images": "9 images, crc32 1"},
            "(training images 9 images, crc32 0; training images 9 images, crc32 1)",
        ),
        ({}, {"training_images": "9 images, crc32 1"}, ""),  # an older run does not name them
        ({"protocol": {"amp": "off"}}, {"protocol": {"amp": "bf16"}}, "(test_clf amp off; test_"),
        (
            {"protocol": {"sets": {"cifar10_test": ALIKE}}},
            {"protocol": {"sets": {"cifar10_test": ALIKE.replace("9,977", "23")}}},
            "(test_clf images of cifar10_test 9977; test_clf images of cifar10_test 23)",
        ),
        ({"protocol": {"sets": {"a": ALIKE}}}, {"protocol": {"sets": {"b": ALIKE}}}, ""),
        ({"protocol": {}}, {"protocol": {"amp": "off"}}, ""),  # an older version recorded no amp
    ],
)
def test_seeds_trained_or_evaluated_differently_are_not_averaged(first, second, text, tmp_path):
    """Rows of one table may differ so; a note names differences of their evaluation."""
    for name, seed, more in (("hdge", 1, first), ("hdge", 2, second), ("ce", 1, first)):
        settings = {key: value for key, value in more.items() if key != "protocol"}
        run = fake_run(tmp_path, name, seed, **settings)
        classified(run, 0.7, protocol=more.get("protocol", {}))
    experiments = collect(tmp_path)
    if text:
        message = error("write", "--results", tmp_path / "results")
        assert "hdge-s1 and hdge-s2 are no seeds of one row (" in message and text in message
        experiments["hdge"]["2"]["state"] = "unfinished"  # without a number to be averaged
    built("table3_hybrid", experiments)
    del experiments["hdge"]["1"]
    experiments["hdge"]["2"]["state"] = "finished"
    notes = built("table3_hybrid", experiments).notes
    noted = any("rows were asked test_clf alike" in note for note in notes)
    assert noted == ("protocol" in first and bool(text))


@pytest.mark.parametrize(
    ("trained", "evaluated", "noted"), [(0.0, 0.03, 1), (0.0, 0.0, 0), (0.1, 0.03, 0)]
)
def test_a_note_names_rows_trained_without_noise_and_evaluated_with_noise(
    trained, evaluated, noted, tmp_path
):
    classified(fake_run(tmp_path, "hdge", sigma=trained), 0.7, protocol={"sigma": evaluated})
    classified(fake_run(tmp_path, "ce", sigma=0.03), 0.7)
    notes = built("table3_hybrid", collect(tmp_path)).notes
    assert notes.count("Trained without noise but evaluated with noise: hdge.") == noted


def recorded(run: Path, scale: str | None = None, name: str = "") -> dict[str, Any]:
    """Return the answers that are taken: of a scale those that its tables need, else the newest."""
    is_wanted = done.asks(done.asked_settings(scale).get(name, {})) if scale else None
    return records.seed_of(read_run(run), is_wanted)["answers"]


def settings_of(scale: str, name: str, question: str) -> dict[str, Any]:
    """Return the settings that eval_wrn_ebm.py records for a question of the tables."""
    wanted = done.asked_settings(scale)[name][question][0]
    return {**wanted, "load_path": ["x/last_ckpt.pt"], "data_root": "x", "device": "cuda"}


@pytest.mark.parametrize(
    ("scale", "by_hand"),
    [("paper", {"max_images": 10}), ("small", {"amp": "bf16"}), ("small", {"sigma": 0.0})],
)
def test_an_answer_by_hand_never_stands_for_the_tables_own(scale, by_hand, tmp_path):
    run = fake_run(tmp_path, "ce", scale=scale)
    settings = settings_of(scale, "ce", "test_clf")
    earlier = classified(run, 0.5, settings=settings, max_images=settings["max_images"])
    earlier = earlier.rename(earlier.with_name("test_clf-1.json"))  # as a newer answer does
    classified(run, 0.9, settings={**settings, **by_hand})
    assert recorded(run, scale, "ce")["test_clf"]["numbers"][ACCURACY] == 0.5
    earlier.unlink()
    assert "test_clf" not in recorded(run, scale, "ce")
    # answers that no table asks for are only compared
    assert "test_clf" in recorded(run) and "test_clf" not in recorded(run, scale, "simclr")
    classified(run, 0.8, settings=settings, refined=20)  # about images that SGLD has changed
    assert "test_clf" not in recorded(run)


def test_samples_are_judged_by_one_seed_s_cross_entropy_model(tmp_path):
    run = fake_run(tmp_path, "jem")
    settings = settings_of("small", "jem", "fid")
    for folder, taken in (("ce-s1", 1), ("ce-s12", 1), ("ce-bn-s1", 0), ("ce", 0), (None, 0)):
        model = f"a/{folder}/last_ckpt.pt" if folder else None
        sampled(run, settings | {"fid_model": model})
        assert ("fid" in recorded(run, "small", "jem")) == taken, folder
    for seed in (1, 2):  # of other weights under the same name
        run, judge = fake_run(tmp_path, "jem", seed), {"fid_model": "a/ce-s1/last_ckpt.pt"}
        sampled(run, settings | judge, features_sha256=str(seed) * 64)
    collect(tmp_path)
    message = error("write", "--results", tmp_path / "results")
    texts = (f"fid/ce-s1's features_sha256 {str(seed) * 64}" for seed in (1, 2))
    assert f"({'; '.join(texts)})" in message
    # Features of another network have another column.
    judge = {"fid_model": "a/ce-s2/last_ckpt.pt"}
    sampled(run, settings | judge, features_sha256="2" * 64)
    table = built("table3_hybrid", collect(tmp_path))
    for n in (1, 2):
        assert cell(table, "jem", f"fid/ce-s{n}'s-1000") == "40.00 (1)"


@pytest.mark.parametrize("file", ["present", "missing"])
def test_an_answer_about_earlier_weights_is_left_out_and_named(file, tmp_path):
    run = fake_run(tmp_path, "ce")
    (run / "last_ckpt.pt").write_bytes(b"new")
    if file == "missing":
        (run / "last_ckpt.pt").unlink()

    def taken(sha256: str, step: int) -> bool:
        classified(run, 0.9, checkpoint_sha256=sha256, run={"step": step})
        return "test_clf" in recorded(run)

    note = "test_clf.json is about earlier weights: it is left out; ask again."
    assert taken(hashlib.sha256(b"new").hexdigest(), 60) and note not in read_run(run).notes
    assert not taken("0" * 64, 50) and note in read_run(run).notes
    # Only the file can tell other weights of the same step.
    assert taken("0" * 64, 60) == (file == "missing")


def test_a_protocol_has_raw_or_averaged_weights_without_the_decay(tmp_path):
    run, recorded_weights = fake_run(tmp_path, "ce"), []
    for weights in ("averaged (--ema 0.9)", "averaged (--ema 0.99)", "raw", None):
        classified(run, 0.7, weights=weights)
        recorded_weights.append(recorded(run)["test_clf"]["protocol"].get("weights"))
    assert recorded_weights == ["averaged", "averaged", "raw", None]


def test_collecting_again_replaces_a_seed_unless_its_record_alone_is_finished(tmp_path, capsys):
    def accuracies(seed: int, epochs: int) -> dict[str, float]:
        shutil.rmtree(tmp_path / "small", ignore_errors=True)
        classified(fake_run(tmp_path, "ce", seed, epochs=epochs), epochs / 10)
        seeds = collect(tmp_path)["ce"].items()
        return {s: r["answers"]["test_clf"]["numbers"][ACCURACY] for s, r in seeds}

    assert accuracies(2, 6) == {"2": 0.6}
    assert accuracies(1, 2) == {"1": 0.2, "2": 0.6}  # unfinished is better than nothing
    assert accuracies(1, 7) == {"1": 0.7, "2": 0.6} and capsys.readouterr().err == ""
    assert accuracies(1, 3) == {"1": 0.7, "2": 0.6}
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "ce-s1 is unfinished" in message
    (tmp_path / "small" / "ce-s1" / "eval" / "test_clf.json").write_text("{")
    collect(tmp_path)
    assert "small/ce-s1: test_clf.json cannot be read" in capsys.readouterr().err
    assert str(tmp_path) not in (tmp_path / "results" / "small" / "ce.json").read_text()


def test_a_row_names_its_differences_from_the_papers(tmp_path):
    start = {"load_path": "a/hdge-s1/last_ckpt.pt"}
    fake_run(tmp_path, "hdge", contrast_k=16384, **CONTRAST)
    fake_run(tmp_path, "jem", **start, pxsgld=1.0, sgld_batch_size=32, n_steps=10, ema=0.999)
    table = built("table6_negatives", collect(tmp_path))
    names = ["HDGE (K=65536, here 16384)", "JEM (N=64, here 32), the papers' sampler, from HDGE"]
    assert [row(table, name).model for name in ("hdge", "jem")] == names
    setting = row(table, "jem").about["setting"].split(", ")
    assert {"32 chains of 10 SGLD steps", "--ema 0.999"} <= {*setting}


def test_digits_in_place_of_cifar_have_columns_of_their_own(tmp_path):
    run = fake_run(tmp_path, "ce", scale="smoke", dataset="digits", max_steps=60)
    detected(run, {"interp": 0.6, "photos": 0.9}, "digits_test", max_images=40)
    for name in ("ce-bn", "ce-bn-c100"):
        classified(fake_run(tmp_path, name, scale="smoke", dataset="digits"), 0.5, "digits_test")
    experiments = collect(tmp_path, "smoke")
    table = built("table1_ood", experiments, "smoke")
    assert table.blocks[0][1] == ["auroc/px/digits:interp", "auroc/px/digits:photos"]
    for key, title in (
        ("auroc/px/digits:photos", "photographs (in: digits)"),
        ("auroc/px/svhn:folder:/a/b", "folder:/a/b (in: SVHN)"),
        ("auroc/px/cifar100:openood:cifar100/tin", "openood:cifar100/tin (in: CIFAR-100)"),
        ("auroc/px/openood:cifar10/tin", "openood:cifar10/tin"),
        ("hist/px/folder_train:/a/b:svhn", "folder_train:/a/b:svhn"),
    ):
        assert titles.column_title(key) == title
    assert all(n.n and n.paper is None for n in row(table, "ce").numbers.values())
    assert row(table, "ce").about["setting"] == "smoke: WRN-10-2, 60 steps, batch 64, digits"
    assert all(line.experiments for line in table.rows)  # no quoted row
    table = built("table2_classification", experiments, "smoke")  # digits for CIFAR-10 and -100
    assert {("ce-bn",), ("ce-bn-c100",)} <= {line.experiments for line in table.rows}


def test_a_path_in_a_key_is_taken_as_it_is(tmp_path):
    run, own, train = fake_run(tmp_path, "ce"), "folder:/A/My_test", "folder:/A/My_train"
    classified(run, 0.5, own)
    detected(run, {"svhn_test": 0.6, "Contest": 0.6}, own)
    sets = {train: {"auroc": None}, "svhn_test": {"auroc": 0.7}}
    answer(run / "eval", run, "logp_hist", score_fn="px", sets=sets)
    keys = {key for of_question in recorded(run).values() for key in of_question["numbers"]}
    expected = {f"accuracy/{own}", f"auroc/px/{own}:svhn", f"auroc/px/{own}:Contest"}
    assert {*expected, f"hist/px/{train}:svhn"} <= keys


def test_an_answer_about_several_models_counts_for_each(tmp_path):
    for seed, more in ((2, 0.0), (10, 0.25)):
        runs = [fake_run(tmp_path, name, seed) for name in ("ce", "hdge")]
        for norm, eps in (("Linf", 8 / 255), ("L2", 0.5)):
            models = []
            for run, accuracy in zip(runs, (0.125 + more, 0.25 + more), strict=True):
                radii = [{"eps": 0.0, "accuracy": 0.75}, {"eps": eps, "accuracy": accuracy}]
                model = {"label": run.name, "checkpoint": str(run / "last_ckpt.pt"), "rows": radii}
                models.append(model | {"n": 500, "distance": norm, "attack": "pgd"})
            folder = tmp_path / "small" / f"figure4-{norm.lower()}-s{seed}"
            answer(folder, runs[0], "attack", models=models, max_images=200)
    table = built("figure4_robustness", collect(tmp_path))
    assert table.blocks[0][1] == ["robust/Linf/0", "robust/Linf/0.031373"]
    assert [titles.column_title(key) for key in table.blocks[0][1]] == ["0/255", "8/255"]
    for name, expected in (("ce", 25), ("hdge", 37.5)):
        for key in ("robust/Linf/0.031373", "robust/L2/0.5"):
            number = row(table, name).numbers[key]
            assert (number.mean, number.n) == (expected, 2)


@pytest.mark.parametrize(
    ("key", "largest", "scale"),
    [("fid/own", 200, "linear"), ("fid/own", 201, "log"), ("accuracy/cifar10", 500, "linear")],
)
def test_numbers_over_more_than_two_decades_have_a_log_axis(key, largest, scale):
    lines = [Row(str(x), (), {}, {key: Number(mean=x, n=1)}) for x in (2, largest)]
    figure = pictures.dots(Table("x", "small", "X", [("", [key])], lines, []))
    assert figure.axes[0].get_xscale() == scale


def test_dashed_lines_have_the_colours_of_their_columns_and_one_entry_of_the_legend():
    def numbers(*means: float | None) -> dict[str, Number]:
        return {key: Number(mean=m, n=1) for key, m in zip((SVHN, CELEBA), means, strict=True)}

    lines = [
        Row("T", ("hdge-t0.1",), {}, numbers(0.7, 0.6)),
        Row("CE", ("ce",), {}, numbers(0.5, 0.4)),
    ]
    blocks = [("AUROC", [SVHN, CELEBA])]
    (axes,) = pictures.curves(Table("temperature", "small", "X", blocks, lines, [])).axes
    dashed = {x.get_ydata()[0]: x.get_color() for x in axes.lines if len(x.get_ydata()) == 2}
    measured = {x.get_ydata()[0]: x.get_color() for x in axes.lines if len(x.get_ydata()) == 1}
    assert dashed == {0.5: measured[0.7], 0.4: measured[0.6]} and dashed[0.5] != dashed[0.4]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(texts) == ["CE", "CelebA", "SVHN"]


def test_copied_pictures_replace_earlier_copies(tmp_path):
    runs, results = tmp_path / "small", tmp_path / "results" / "small"

    def copied() -> dict[str, bytes]:
        collect(tmp_path)
        return {path.name: path.read_bytes() for path in results.glob("*.png")}

    fake_run(tmp_path, "ce")
    for seed in (10, 2):  # the first, by number
        records.write(runs / f"figure4-linf-s{seed}" / "attack.png", f"linf {seed}")
    linf = {"figure4_robustness--figure4-linf-s2--attack.png": b"linf 2"}
    assert copied() == linf
    records.write(results / "figure4_robustness-mine.png", "mine")
    records.write(runs / "figure4-l2-s1" / "attack.png", "l2")
    expected = linf | {"figure4_robustness--figure4-l2-s1--attack.png": b"l2"}
    expected |= {"figure4_robustness-mine.png": b"mine"}
    assert copied() == expected
    for folder in runs.glob("figure4-*"):
        shutil.rmtree(folder)
    assert copied() == expected  # pictures stay as records do whose runs are elsewhere
    folder = fake_run(tmp_path, "hdge-jem") / "eval"
    for name in ("cond_samples_direct_9", "cond_samples_direct_80", "cond_samples-1_direct_90"):
        records.write(folder / f"{name}.png", name)
    samples = "cond_samples_direct_80"
    assert copied()[f"figure3_samples--hdge-jem-s1--{samples}.png"] == samples.encode()
    records.write(results / "figure3_samples--mine.png", "mine")  # no copy: it has no run
    page.write_results([built("figure3_samples", collect(tmp_path))], {}, results.parent, {})
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert f"Figure 3: class-conditional samples, as evaluated: {samples} of hdge-jem-s1." in text


def test_samples_have_the_steps_of_a_sample_and_in_older_answers_those_of_all_rounds(tmp_path):
    for name, more in (("hdge-jem", {"steps_per_sample": 3.01}), ("hdge-jem-head", {})):
        run = fake_run(tmp_path, name, scale="smoke")
        settings = settings_of("smoke", name, "cond_samples")
        answer(run / "eval", run, "cond_samples", n=85, steps=4, settings=settings, **more)
    table = built("figure3_samples", collect(tmp_path, "smoke"), "smoke")
    cells = {titles.column_title(key): key for key in table.keys}
    assert list(cells) == ["Images", "SGLD steps in all rounds", "SGLD steps a sample (mean)"]
    shown = [[cell(table, n, key) for n in ("hdge-jem", "hdge-jem-head")] for key in cells.values()]
    assert shown == [["85 (1)", "85 (1)"], [NOT_ASKED, "4 (1)"], ["3 (1)", NOT_ASKED]]


def test_a_comparison_calls_a_linear_probes_steps_those_of_l_bfgs(tmp_path, capsys):
    probe = {"program": "linear_probe.py", "method": "linear-probe"}
    folders = [fake_run(tmp_path, "simclr-linear", epochs=1, **probe), fake_run(tmp_path, "ce")]
    assert tables.main(["compare", *map(str, folders)]) == 0
    assert re.search(r"\| steps +\| 10 of L-BFGS +\| 60 ", capsys.readouterr().out)


def test_both_kinds_of_samples_of_a_run_are_compared(tmp_path, capsys):
    run = fake_run(tmp_path, "jem")
    for kind, n in (("uncond", 64), ("cond", 640)):
        answer(run / "eval", run, f"{kind}_samples", n=n, steps=n, steps_per_sample=n + 1)
    assert tables.main(["compare", str(run)]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    cells = {line[1].strip(): line[2].strip() for line in lines if len(line) > 3}
    mean = "SGLD steps a sample (mean)"
    assert {name: cells.get(name) for name in ("Images", mean)} == {"Images": "640", mean: "641"}
    assert cells["Images, unconditional"] == "64" and cells[f"{mean}, unconditional"] == "65"


def test_fid_of_other_features_or_fewer_samples_is_another_column(tmp_path):
    inception = "inception-v3-compat (torch-fidelity)"
    sampled(fake_run(tmp_path, "jem"), fid=41.0, n=50_000, features=inception)
    sampled(fake_run(tmp_path, "igebm"), n=9000, n_score=1000, features=inception)  # confident
    judge = {"fid_model": str(tmp_path / "small" / "ce-s1" / "last_ckpt.pt")}
    for seed, fid in ((1, 50.0), (2, 10.0), (3, 20.0)):  # the first is its own judge
        sampled(fake_run(tmp_path, "hdge-jem", seed), fid=40.0 + seed, features="model x/last.pt")
        sampled(fake_run(tmp_path, "ce", seed), judge, fid=fid)
    experiments = collect(tmp_path)
    table = built("table3_hybrid", experiments)
    assert {"fid/own-1000", "is/own-1000", "fid/ce-s1's-1000"} <= set(table.blocks[0][1])
    assert {"fid/inception-9000", "is/inception-1000"} <= set(table.blocks[0][1])
    assert titles.column_title("fid/own-1000") == "FID (own features, 1,000 samples)"
    assert row(table, "jem").numbers["fid/inception"] == Number(38.4, None, 41.0, None, 1)
    assert cell(table, "hdge-jem", "fid/inception") == OTHER_FEATURES
    assert cell(table, "hdge-jem", "fid/own-1000") == "42.00 ± 1.00 (3)"
    assert cell(table, "ce", "fid/own-1000") == "50.00 (1)"
    assert cell(table, "ce", "fid/ce-s1's-1000") == "15.00 ± 7.07 (2)"
    assert str(tmp_path) not in json.dumps(experiments)


def test_the_ladder_shows_samples_beside_their_starts_and_the_mean_over_sets(tmp_path):
    def climbed(name: str, judge: str, sets: dict[str, float]) -> None:
        """Write chains of 0, 40 and 200 steps, as evaluation.generation compares them."""
        run = fake_run(tmp_path, name, scale="half", image_size=16, pxsgld=1.0)
        settings = settings_of("half", name, "fid") | {"fid_model": judge}
        line = {"n": 500, "precision": 0.75, "recall": 0.5, "read_as_asked": 0.625}
        lines = [
            {**line, "images": "starts", "steps": 0, "fid": 80.0},
            {**line, "images": "samples", "steps": 40, "fid": 40.0},
            {**line, "images": "samples", "steps": 200, "fid": 9.0, "recall": None},
            {**line, "images": "training images", "steps": None, "fid": 1.0, "read_as_asked": None},
        ]
        features = f"model pretrained/{judge}/model.safetensors"
        sampled(run, settings, fid=20.0, steps=40, rows=lines, features=features)
        detected(run, sets, settings=settings_of("half", name, "OOD"))

    judge = "ce-cifar10-half"
    climbed("ladder-jem", judge, {"svhn_test": 0.5, "textures": 0.75, "faces": 1.0})
    climbed("ladder-start", "ce-cifar10-small", {"svhn_test": 0.5})
    run = fake_run(tmp_path, "ladder-clamp", scale="half", image_size=16, epochs=1)
    (run / "diverged.txt").write_text(DIVERGED)
    experiments = collect(tmp_path, "half")
    table = built("sampler", experiments, "half")
    (samples,) = (keys for title, keys in table.blocks if title == "Samples")
    of = f" ({judge}'s features, 500 samples)"
    cells = {titles.column_title(key): cell(table, "ladder-jem", key) for key in samples}
    expected = {"FID of samples": "40.00 (1)", "FID of starts": "80.00 (1)"}
    expected |= {"Precision of samples": "0.750 (1)", "Recall of samples": "0.500 (1)"}
    expected |= {f"Read as asked (%) of {kind}": "62.5 (1)" for kind in ("samples", "starts")}
    cells = {title.removesuffix(of): text for title, text in cells.items() if of in title}
    assert cells == expected
    # An answer in the features of another network is not the one that the table asks for.
    assert cell(table, "ladder-start", f"chain_fid/starts/{judge}'s-500") == NOT_ASKED
    (mean,) = (key for key in table.keys if key.startswith("mean_auroc"))
    assert titles.column_title(mean) == "mean of 3 sets"
    assert cell(table, "ladder-jem", mean) == "0.750 (1)"
    assert cell(table, "ladder-start", mean) == "not asked"  # a single set has no mean
    assert cell(table, "ladder-clamp", mean) == "diverged 1 of 1"


def compare(relation: str, *values: Any, name: str = "") -> claims.Test:
    first, second = (tuple(map(float, of_side)) for of_side in values)
    measure = (SVHN, "x", ("a", "b"), (mean_of(first), mean_of(second)), (first, second))
    return claims.Test(name or relation, relation, *measure)


def test_a_difference_is_tested_with_two_seeds_and_without_spread():
    # standard error 1.25 ** .5, degrees of freedom 1.25 ** 2 / (.25 ** 2 + 1)
    p = 2 * stdtr(1.5625 / 1.0625, -1.5 / 1.25**0.5)
    assert compare(">", [1, 2], [2, 4]).welch()[0] == pytest.approx(p)
    low, high = compare(">", [1, 2], [2, 4]).welch(0.1)[1:]
    assert low < -1.5 < high and low + high == pytest.approx(-3)
    assert compare(">", [1, 1], [1, 1]).welch() == (1, 0, 0)
    assert compare(">", [2, 2], [1, 1]).welch() == (0, 1, 1)
    assert compare(">", [2], [1, 2]).welch()[0] is None


def test_the_claims_of_a_table_are_judged_together_by_holm_s_procedure():
    """Written out: p in order against .05 / 4, .05 / 3, ...; the intervals agree with it."""
    random, groups = np.random.RandomState(1), set()
    for _ in range(100):
        sides = [(random.randn(4) + i * random.rand(), random.randn(4)) for i in range(4)]
        tests = [compare("<>"[i % 2], *pair, name=str(i)) for i, pair in enumerate(sides)]
        p = {test.claim: test.welch()[0] or 0.0 for test in tests}
        rejected: list[str] = []
        for k, claim in enumerate(sorted(p, key=p.__getitem__)):
            if p[claim] > 0.05 / (4 - k):
                break
            rejected.append(claim)
        for test, verdict in zip(tests, claims.family("x", tests), strict=True):
            right = (test.difference > 0) == (test.relation == ">")
            decided = claims.HOLDS if right else claims.CONTRADICTED
            assert verdict.group == (decided if test.claim in rejected else claims.UNDECIDED)
            low, high = re.findall(r"[-+]?\d+\.\d+", verdict.difference)[1:]
            assert (float(low) > 0 or float(high) < 0) or test.claim not in rejected
            assert (verdict.margin > 1) == (test.claim in rejected)
            groups.add(verdict.group)
    assert groups == {claims.HOLDS, claims.CONTRADICTED, claims.UNDECIDED}


@pytest.mark.parametrize(
    ("shift", "spread", "group"),
    [
        *[(0.01, 0.001, "holds"), (0.1, 0.001, "contradicted")],
        *[(0.021, 0.002, "undecided"), (0, 0.1, "undecided")],
    ],
)
def test_no_difference_needs_an_interval_within_the_margin(shift, spread, group):
    values = [0.7 - spread, 0.7, 0.7 + spread]
    (verdict,) = claims.family("x", [compare("=", [v + shift for v in values], values)])
    assert verdict.group == group


def test_the_findings_name_a_claim_once_with_each_of_its_scales():
    higher, same = compare(">", [2, 2.1], [1, 1.1], name="x"), compare(">", [1, 2], [1, 2])
    judged = [v for s in ("small", "half") for t in (higher, same) for v in claims.family(s, [t])]
    (finding,) = page.findings(judged)
    assert finding.startswith("x: holds at scale small (x, a: 2.050 ")
    assert finding.count("holds at scale") == 2


def test_a_claim_has_one_measure_and_two_sides_of_experiments():
    texts = [text for declared in claims.CLAIMS.values() for text, *_ in declared]
    assert len(set(texts)) == len(texts)
    for table, declared in claims.CLAIMS.items():
        assert table in TABLES
        for text, first, relation, second, keys in declared:
            assert {first, second} <= set(rows.EXPERIMENTS) and relation in "<=>" and keys, text
            assert relation != "=" or keys[0].partition("/")[0] in claims.MARGINS, text
    sets = {"auroc/px/svhn": 0.5, "auroc/px/cifar10interp": 0.6, "auroc/px/textures": 0.0}
    experiments = {"hdge": seed_with(**sets), "ce": seed_with(**sets, **{"auroc/px/cifar100": 0.7})}
    text = "HDGE detects OOD better than cross-entropy"
    (verdict,) = (v for v in claims.verdicts("x", experiments)[0] if v.claim.startswith(text))
    assert verdict.what == "AUROC px, mean of SVHN, CIFAR-10 interpolations"
    assert verdict.sides == ("hdge: 0.550 (1)", "ce: 0.550 (1)")
    halves = [{"auroc/px/svhn": 0.5}, {"auroc/px/cifar10interp": 0.6}]  # no seed has both
    for seed, numbers in zip("12", halves, strict=True):
        experiments["hdge"][seed] = seed_with(**numbers)["1"]
    judged = {v.claim: v.text for v in claims.verdicts("x", experiments)[0]}
    assert judged[verdict.claim] == "no number"


def test_a_claim_is_judged_of_two_sides_that_were_run_or_diverged():
    jem = seed_with(**{"fid/own-100": 3.0, "fid/x-1000": 30.0, ACCURACY: 0.25})
    jem["1"]["start"] = "ce-s1"
    experiments = {"hdge": seed_with(**{SVHN: 0.5}), "hdge-raw": seed_with("diverged"), "jem": jem}
    experiments["hdge-jem"] = seed_with(**{"fid/a-1000": 2.0, "fid/x-1000": 20.0})
    experiments |= {"ce": seed_with(**{ACCURACY: 0.75}), "jem-stable": seed_with(**{ACCURACY: 0.5})}
    experiments |= {name: seed_with(**{ACCURACY: 0.5}) for name in ("hdge-bn", "ce-bn")}

    def judge() -> tuple[dict[str, tuple[str, str]], list[str]]:
        judged, unjudged = claims.verdicts("x", experiments)
        return {verdict.claim: verdict.sides for verdict in judged}, unjudged

    sides, unjudged = judge()
    assert "hdge-raw: diverged 1 of 1" in sides["Normalising the logits makes no difference (px)"]
    assert "HDGE detects OOD better than cross-entropy (px)" in unjudged
    assert "HDGE classifies better than cross-entropy" in sides
    assert "On CIFAR-100: HDGE classifies better than cross-entropy" in unjudged
    # samples are compared in features that both sides have
    assert sides["HDGE + JEM samples better than JEM"] == ("hdge-jem: 20.00 (1)", "jem: 30.00 (1)")
    assert sides["JEM costs accuracy"] == ("jem, from ce: 25.00 (1)", "ce: 75.00 (1)")
    for name, fid in (("hdge-jem", 1.0), ("jem", 3.0)):  # and of these of the most seeds
        experiments[name]["1"]["answers"]["x"]["numbers"]["fid/a-1000"] = fid
        experiments[name]["2"] = seed_with(**{"fid/x-1000": 10.0 + fid})["1"] | {"start": None}
    assert judge()[0]["HDGE + JEM samples better than JEM"][0] == "hdge-jem: 15.50 ± 6.36 (2)"
    del experiments["jem"]  # where only the stable sampler was run, claims are about that
    sides, unjudged = judge()
    assert sides["JEM costs accuracy"] == ("jem-stable: 50.00 (1)", "ce: 75.00 (1)")
    assert "HDGE + JEM samples better than JEM" in unjudged


def test_gradients_are_means_over_the_epochs_that_were_measured(tmp_path):
    head = "epoch,step,seconds,images_per_s,loss,pyxce/gradient,pxycontrast/gradient"
    for seed in (1, 2):
        lines = f"0,10,1,640,1,,,\n1,20,2,640,1,2,{seed},.5\n5,30,3,640,1,4,{seed},.25\n"
        path = fake_run(tmp_path, "hdge", seed, epochs=3) / "progress.csv"
        path.write_text(f"{head},pxycontrast/cosine\n{lines}")
    assert claims.gradient_rows(collect(tmp_path)) == [
        ["hdge", "pxycontrast", "1.500 ± 0.707 (2)", "0.375 ± 0.000 (2)"],
        ["hdge", "pyxce", "3.000 ± 0.000 (2)", "-"],
    ]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the results of a few runs, some with names that mean harm, and ../tables."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        for i, name in enumerate(("ce", "hdge", "alpha0.5")):
            run = fake_run(root, name, seed, device=HOSTILE)
            classified(run, 0.5 + 0.125 * i + 0.01 * seed)
            detected(run, {"svhn_test": 0.5 + 0.1 * i + 0.01 * seed, f"folder:{HOSTILE}": 0.5})
    collect(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "TABLES", SOME)
        argv = ["write", "--results", str(root / "results"), "--output", str(root / "tables")]
        assert tables.main(argv) == 0
    return root / "results"


def test_files_that_are_written_again_are_the_same_byte_for_byte(hostile, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "TABLES", SOME)
    shutil.copytree(hostile / "small", tmp_path / "results" / "small")
    (tmp_path / "tables").mkdir()
    for stale in ("results/table1_ood-smoke.png", "tables/alpha-half.csv", "results/mine.txt"):
        (tmp_path / stale).write_text("old")
    tables.write(tmp_path / "results", tmp_path / "tables")
    # an old picture or table goes, another file stays
    assert (tmp_path / "results" / "mine.txt").read_text() == "old"
    (tmp_path / "results" / "mine.txt").unlink()
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"RESULTS.md", "results/alpha-small.png"} <= names
    assert {f"tables/alpha-small.{suffix}" for suffix in ("md", "csv", "tex")} <= names
    for name in names:
        data = (tmp_path / name).read_bytes()
        assert data == (hostile.parent / name).read_bytes(), name
        if name.endswith(".png"):  # without the version of matplotlib
            assert data.startswith(b"\x89PNG") and b"Software" not in data[:200]


def test_results_open_with_findings_and_verdicts_and_link_to_files(hostile):
    text = (hostile.parent / "RESULTS.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert len(links) == 3 and all((hostile.parent / link).is_file() for link in links)
    head, _, rest = text.partition("## Which claims hold")
    assert head.count("holds at scale small") == 3 and "- alpha = 0.5 classifies better" in head
    assert "Nothing was trained at the paper's scale" in head and "### Holds: 4" in rest
    assert rest.index("<details><summary>Undecided") < rest.index("## How")
    unjudged = re.search(r"^Not judged, because not both sides have .* \(small\): (.*)", text, re.M)
    assert unjudged and "HDGE is more robust than cross-entropy" in unjudged[1]  # both ran, unasked
    assert "of chains (JEM): 0 of 8 rows at the paper's scale; at no scale: JEM (N=64)" in text
    assert "3 experiments, 6 runs" in text and text.count("<details>") == text.count("</details>")
    assert "without SGLD: 0 of 6; of those with SGLD: 0 of 0." in text and "<script" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_a_row_is_not_measured_by_the_time_of_its_steps():
    text = page.missing("table6_negatives", {"small": {"jem": seed_with(ms_per_step=9.0)}}, ())
    assert "at no scale: JEM (N=64), " in text
    measured = {"jem": seed_with(**{SVHN: 0.5}), "jem-n128": seed_with()}
    text = page.missing("table6_negatives", {"small": measured}, ())
    assert "at no scale: JEM (N=128), " in text


def test_csv_and_latex_have_the_numbers_and_are_escaped(hostile):
    text = (hostile.parent / "tables" / "table1_ood-small.csv").read_text()
    lines = list(csv.DictReader(text.splitlines()))
    assert all(None not in line and None not in line.values() for line in lines)
    line = next(r for r in lines if r["experiment"] == "ce" and r["column"] == SVHN)
    assert float(line["mean"]) == pytest.approx(0.515) and line["seeds"] == "2"
    assert float(line["std"]) == pytest.approx(0.01 / 2**0.5, rel=1e-4)
    assert (line["paper"], line["paper_std"], line["hardware"]) == ("0.46", "0.21", HOSTILE)
    assert {r["state"] for r in lines if r["experiment"] == "jem"} == {"not run"}
    assert formats.tex("5% & $x_1^2$ {y} #\\~ ±") == (
        r"5\% \& \$x\_1\textasciicircum{}2\$ \{y\} \#\textbackslash{}\textasciitilde{} $\pm$"
    )
    text = (hostile.parent / "tables" / "table1_ood-small.tex").read_text()
    assert r"0.515 $\pm$ 0.007 (2)" in text and r"\begin{tabular}{lrrrr" in text
    notes = len(built("table1_ood", {}).notes) + 1  # and the rows that were not run
    assert text.count(r"\item ") == notes > 3
    for line in re.findall(r"^(?!%|\\).*\\\\$", text, re.MULTILINE):
        plain = line.replace(r"$\pm$", "").replace(r"$\infty$", "")
        assert not re.search(r"(?<!\\)[%#_$]", plain)
    heads = re.findall(r"\\begin\{tabular\}\{(lr*)\}\n\\toprule\n(.*)", text)
    assert heads and all(len(spec) == len(head.split(" & ")) for spec, head in heads)


def test_the_committed_page_is_that_of_the_committed_records(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    monkeypatch.setattr(page, "save_picture", lambda table, path: path.exists())
    tables.write(tmp_path / "results")
    committed = (ROOT / "RESULTS.md").read_bytes()
    assert (tmp_path / "RESULTS.md").read_bytes() == committed, "run scripts/tables.py write"


def test_a_comparison_has_differing_settings_and_numbers_in_every_format(tmp_path, capsys):
    folders = []
    for name, epochs, images in (("good", 6, 2000), ("bad", 2, 100), ("young", 2, 100)):
        run = fake_run(tmp_path, name, epochs=epochs, lr=epochs / 10)
        classified(run, epochs / 8, max_images=images)
        if name != "young":  # earlier answers, which a newer one has renamed
            for n, (ood, sigma) in enumerate({"mnist_test": 0.03, "celeba": 0.0}.items(), 1):
                detected(run, {ood: 0.375, "svhn_test": 0.875}, protocol={"sigma": sigma})
                (run / "eval" / "OOD.json").rename(run / "eval" / f"OOD-{n}.json")
        detected(run, {"svhn_test": epochs / 8})
        answer(run / "eval", run, "shape", n=7, report={"title": "of a question that users add"})
        if name == "young":
            (run / "eval" / "eval_ece.json").write_text("{")
        if name == "bad":
            (run / "diverged.txt").write_text(DIVERGED)
        folders.append(str(run))
    out = tmp_path / "out"
    assert tables.main(["compare", *folders, "--output", str(out)]) == 0
    text = capsys.readouterr().out
    assert (out / "comparison.md").read_text(encoding="utf-8") == text
    assert re.search(r"\| +\| good-s1 +\| bad-s1 +\| young-s1 +\|", text)
    assert re.search(r"--lr +\| 0\.6 +\| 0\.2", text) and "--batch_size" not in text
    assert re.search(r"Accuracy, CIFAR-10 \(%\) +\| 75\.00 +\| 25\.00", text)
    assert text.count("eval_ece.json cannot be read") == 1 and "\nyoung-s1: eval_ece.json" in text
    assert re.search(r"AUROC px, MNIST +\| 0\.375 +\| 0\.375 +\| not asked", text)
    assert "good-s1: OOD-2.json was asked otherwise" in text and "OOD-1.json" not in text
    assert "CelebA" not in text and "celeba" not in text
    assert "Not all rows were asked test_clf alike" in text and "| Images " not in text
    lines = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    means = {(line["model"], line["column"]): line["mean"] for line in lines}
    assert means["good-s1", ACCURACY] == "75"
    assert means["bad-s1", SVHN] == "0.25" and means["bad-s1", "auroc/py/svhn"] == "0.125"
    states = {line["model"]: line["runs"] for line in lines}
    assert states == {"good-s1": "finished", "bad-s1": "diverged", "young-s1": "unfinished"}
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_comparison_of_seeds_has_their_mean_and_deviation(tmp_path, capsys):
    """Without an answer the accuracy is that of the training."""
    folders = []
    for seed, accuracy, steps in ((1, 0.25, None), (2, 0.75, None), (3, 0.5, 20)):
        epochs = 2 if steps else 6
        run = fake_run(tmp_path, "Hdge", seed, epochs=epochs, max_steps=steps)
        lines = (run / "progress.csv").read_text().splitlines()
        lines = map(",".join, zip(lines, ["test_acc", *[str(accuracy)] * epochs], strict=True))
        (run / "progress.csv").write_text("\n".join(lines) + "\n")
        folders.append(str(run))
    assert tables.main(["compare", *folders]) == 0
    text = capsys.readouterr().out
    assert re.search(r"seed +\| 1 +\| 2 +\| 3 ", text)
    assert re.search(r"test accuracy in training \(%\) +\| 25.00 +\| 75.00 +\| 50.00", text)
    assert re.search(r"state +\| finished +\| finished +\| stopped by --max_steps 20", text)
    assert "Hdge-s1, Hdge-s2 differ in the seed alone (1, 2), mean +- sd: test accuracy" in text
    assert "in training (%) 50.00 +- 35.36; " in text and "Hdge-s3 differ" not in text
    for images, seed in (("9 images, crc32 0", 1), ("9 images, crc32 1", 2), (None, 2)):
        fake_run(tmp_path, "Hdge", seed, training_images=images)
        assert tables.main(["compare", *folders[:2]]) == 0
        text = capsys.readouterr().out
        other = images is not None and seed == 2
        assert ("differ in the seed alone" in text) != other
        cells = r"\| training images +\| 9 images, crc32 0 +\| 9 images, crc32 1 "
        assert bool(re.search(cells, text)) == other
    (tmp_path / "small" / "Hdge-s1" / "log.txt").write_text(DIVERGED.strip() + "; restart 1 of 5\n")
    for i, name in enumerate(("best_valid", "last")):
        fake_run(tmp_path, "Hdge", i + 1, load_path=f"a/ce-s1/{name}_ckpt.pt")
    assert tables.main(["compare", *folders[:2]]) == 0
    text = capsys.readouterr().out
    assert re.search(r"--load_path +\| ce-s1/best_valid_ckpt.pt +\| ce-s1/last_ckpt.pt", text)
    assert re.search(
        r"state +\| finished, 1 divergence in all, retries included +\| finished", text
    )
    assert "differ in the seed alone" not in text


SAMPLED = {"n": 9, "steps": 40, "fid": 40.0, "features": "inception-v3"}
DISTANCES = {"score_fn": "knn", "ood_dataset": "svhn", "auroc": 0.5}


@pytest.mark.parametrize(
    ("question", "values", "first", "second"),
    [
        ("test_clf", {"accuracy": 0.5}, {"max_images": 100}, {"max_images": 200}),
        ("eval_ece", {"ece": 0.5}, {"checkpoint": "best_valid_ckpt.pt"}, {}),
        ("fid", SAMPLED, {"guidance": 0.1}, {"guidance": 1.0}),
        ("uncond_samples", SAMPLED, {"steps": 40}, {"steps": 80}),
        ("cond_samples", SAMPLED, {"guidance": 0.1}, {"guidance": 1.0}),
        ("cond_samples", SAMPLED, *({"read_as_asked": {"classifier_sha256": s}} for s in "ab")),
        ("fid", SAMPLED, *({"run": {"sgld_lr": 1}, "settings": {"sgld_lr": n}} for n in (50, 1))),
        ("cond_samples", SAMPLED, *({"settings": {"fresh_samples": on}} for on in (True, False))),
        ("attack", {"rows": [{"eps": 0, "accuracy": 0.5}]}, {"random_init": True},
         {"random_init": False}),
        ("OOD", {"in_dataset": "cifar10_test", "rows": [DISTANCES]},
         *({"settings": {"score_fn": ["knn"], "knn_k": k}} for k in (5, 50))),
    ],
)  # fmt: skip
def test_numbers_that_were_not_asked_alike_are_not_averaged(
    question, values, first, second, tmp_path, capsys
):
    runs = [fake_run(tmp_path, "x", seed) for seed in (1, 2)]
    for differs in (True, False):
        for run, more in zip(runs, (first, second if differs else first), strict=True):
            answer(run / "eval", run, question, **{"dataset": "cifar10", **values, **more})
        assert tables.main(["compare", *map(str, runs)]) == 0
        spread = capsys.readouterr().out.partition("mean +- sd: ")[2].partition("\n")[0]
        assert (spread.count(" +- ") == 1) == differs  # the time of a step
        assert spread.endswith("asked alike are not averaged.") == differs


def test_mistakes_are_one_line_and_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    assert "--scale small" in error("collect", "--root", tmp_path)
    assert "holds no run" in error("compare", tmp_path)
    assert "not a folder" in error("compare", tmp_path / "none")
    assert "ACTION" in error()
    runs, results = [fake_run(tmp_path, name) for name in ("ce", "hdge")], tmp_path / "results"
    assert "given twice" in error("compare", runs[0], runs[0])
    for run in runs:
        classified(run, 0.7)
    (tmp_path / "file").touch()
    bad = tmp_path / "file" / "x"
    message = error("compare", run, "--output", bad)
    assert "compare: " in message and str(bad) in message
    assert str(bad.parent) in error("write", "--results", bad)
    collect(tmp_path)
    picture = results / "table1_ood-small.png"
    picture.write_bytes(b"earlier")
    replace = os.replace

    def full(source: Any, target: Path) -> None:
        if target.suffix == ".png":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    message = error("write", "--results", results)
    assert f"cannot write {picture}: No space left on device" in message
    assert picture.read_bytes() == b"earlier" and not list(results.glob(".*"))
    message = error("compare", *runs, "--output", tmp_path / "new")
    assert f"cannot write {tmp_path / 'new' / 'comparison.png'}: No space" in message
    records.write(results / "small" / "ce.json", "[]")
    assert "is no record" in error("write", "--results", results)
