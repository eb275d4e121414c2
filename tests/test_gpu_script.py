"""scripts/gpu.sh: every part writes its measurements; archive and pages keep them."""

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, gpu_parts, measure, report, subset
from reports.tables.page import write_results
from runs.cli import UsageError
from runs.files import read_json
from tests.pair import refusal

ROOT = Path(__file__).resolve().parent.parent


def test_a_subset_has_the_first_images(tmp_path):
    rng, arrays, part = np.random.default_rng(0), {}, str(tmp_path / "part")
    for split, n in (("train", 150), ("test", 120)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 10, n)
    for name in ("cifar10", "svhn"):
        np.savez(tmp_path / f"{name}.npz", **arrays)
    words = f"--data_root {tmp_path} --names cifar10 svhn --images 100 --test_images 50"
    subset.main([part, *words.split()])
    for name, counts in (("cifar10", {"train": 100, "test": 50}), ("svhn", {"test": 50})):
        keys = {f"{split}_{kind}" for split in counts for kind in ("images", "labels")}
        with np.load(tmp_path / "part" / f"{name}.npz") as file:
            assert set(file.files) == keys
            for key in keys:
                assert np.array_equal(file[key], arrays[key][: counts[key.split("_")[0]]])
    assert part in refusal(subset.main, [part, "--data_root", str(tmp_path)])  # it exists already
    words = [str(tmp_path / "x"), "--data_root", "/nope"]
    assert "/nope/cifar10.npz" in refusal(subset.main, words)
    assert not (tmp_path / "x").exists()


def test_an_archive_in_pieces_gives_the_run_again(tmp_path):
    run, out, again = (tmp_path / name for name in ("work/m-jem", "out", "again"))
    for folder in (run / "eval", out, again):
        folder.mkdir(parents=True)
    kept = {"last_ckpt.pt": b"a" * 5000, "eval/fid.json": b"{}"}
    others = (
        "prev_ckpt.pt",
        "eval/fid_samples.npz",
        ".last_ckpt.pt.12.tmp",
        "eval/.fid.json.3.tmp",
    )
    for name, content in (kept | dict.fromkeys(others, b"b")).items():
        (run / name).write_bytes(content)
    (run / "best_valid_ckpt.pt").hardlink_to(run / "last_ckpt.pt")
    (out / "run.zip.9").touch()  # of a longer archive before
    gpu.archive(out, tmp_path / "work", piece=2048)
    assert len(list(out.iterdir())) > 2 and not (out / "run.zip.9").exists()
    gpu.unpack_archive(out, again)
    files = {str(p.relative_to(again / "m-jem")): p.read_bytes() for p in again.rglob("*.*")}
    assert files == kept
    with pytest.raises(UsageError, match="has no run.zip.0"):
        gpu.unpack_archive(again, again)
    (out / "run.zip.2").write_bytes(b"")
    for damage in (lambda: None, (out / "run.zip.1").unlink):
        damage()
        with pytest.raises(UsageError, match="is not whole"):
            gpu.unpack_archive(out, tmp_path / "third")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{out}", "PyTorch sees no GPU"),
        ("{full} --rehearse", "has files already"),
        ("{out} --rehearse --resume {full}", "has no run.zip.0"),
        ("{out} --minutes 0", "--minutes"),
        ("{out} --parts test", "tests"),
        ("{gpu} --data_root {full}", "has no CIFAR-10: give another, or --parts without training"),
    ],
)
def test_a_mistake_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: "gpu" in words)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "log.txt").touch()
    paths = {name: tmp_path / name for name in ("out", "full", "gpu")}
    assert message in refusal(gpu.main, words.format(**paths).split())
    assert not (tmp_path / "out").exists()


def test_parts_run_in_their_order_and_a_resumed_call_keeps_the_measurements(tmp_path, monkeypatch):
    calls: list[str] = []

    def call_part(args: Any, name: str, seconds: float, runs: Path) -> int | str:
        calls.append(name)
        parts = read_json(args.out / "parts.json")["parts"]
        assert parts[name]["exit_code"] == "was interrupted"  # stays so if a kill ends the call
        if name == "training":
            (runs / "m-jem").mkdir(exist_ok=True)
            (runs / "m-jem" / "last_ckpt.pt").open("a").write("x")
        return gpu.LATE if name == "steps" else 0

    monkeypatch.setattr(gpu, "call_part", call_part)
    words = ["--rehearse", "--minutes", "1", "--parts"]
    first, second = tmp_path / "out", tmp_path / "second"
    assert gpu.main([str(first), *words, "training", "steps"]) == 0
    assert calls == ["steps", "training"]
    (first / "bench.json").write_text('{"peaks": {}}')
    assert gpu.main([str(second), *words, "training", "--resume", str(first)]) == 0
    resumed, before = read_json(second / "parts.json"), read_json(first / "parts.json")
    codes = {name: part["exit_code"] for name, part in resumed["parts"].items()}
    assert codes == {"steps": gpu.LATE, "training": 0}
    assert resumed["seconds"] >= before["seconds"]
    assert read_json(second / "bench.json") == {"peaks": {}}
    gpu.unpack_archive(second, tmp_path)
    assert (tmp_path / "m-jem" / "last_ckpt.pt").read_text() == "xx"
    third = tmp_path / "third"  # it does not train
    assert gpu.main([str(third), *words, "steps", "--resume", str(second)]) == 0
    gpu.unpack_archive(third, tmp_path / "kept")
    assert (tmp_path / "kept" / "m-jem" / "last_ckpt.pt").read_text() == "xx"
    monkeypatch.setattr(gpu, "call_part", lambda *_: 1)
    assert gpu.main([str(tmp_path / "again"), *words, "steps"]) == 1


def test_ctrl_c_keeps_the_checkpoints_of_the_training(tmp_path, monkeypatch):
    def call_part(args: Any, name: str, seconds: float, runs: Path) -> int | str:
        (runs / "last_ckpt.pt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "call_part", call_part)
    assert gpu.main([str(tmp_path / "out"), "--rehearse", "--parts", "training"]) == 130
    gpu.unpack_archive(tmp_path / "out", tmp_path / "again")
    assert (tmp_path / "again" / "last_ckpt.pt").exists()


def part_in(out: Path) -> gpu_parts.Part:
    args = gpu.build_parser().parse_args([str(out), "--rehearse"])
    return gpu_parts.Part(args, out / "runs", time.monotonic() + 600, lambda: None)


def test_a_training_that_fails_is_listed_and_its_last_checkpoint_evaluated(tmp_path, monkeypatch):
    codes, commands, evaluated = [2, 1, 0, 130, 0, 0], [], []

    def main(argv: list[str], given: set[str]) -> int:
        commands.append(argv)
        if len(commands) in (3, 4):
            (Path(argv[argv.index("--resume") + 1]) / "last_ckpt.pt").write_text("trained on")
        return codes.pop(0)

    monkeypatch.setattr(gpu_parts.train_flags, "parse", lambda argv: (argv, set()))
    monkeypatch.setattr(gpu_parts.train_wrn, "main", main)
    monkeypatch.setattr(gpu_parts, "plan", lambda *_: [])
    monkeypatch.setattr(gpu_parts, "evaluate", lambda _, run, *__: evaluated.append(run.name))
    part = part_in(tmp_path)
    gpu_parts.training(part)
    left_out = read_json(tmp_path / "bench.json")["left_out"]
    assert [(name, why[:25]) for name, why in left_out.items()] == [
        ("train: judge", "RuntimeError: exit code 2"),
        ("train: m-jem", "RuntimeError: exit code 1"),
    ]
    for name in ("judge", "m-jem"):
        (part.runs / name).mkdir(parents=True)
        (part.runs / name / "last_ckpt.pt").touch()
    (part.runs / "m-jem" / "eval").mkdir()
    gpu_parts.training(part)  # a later call, whose trainings end well or by a signal
    assert not (part.runs / "m-jem" / "eval").exists()  # answers of fewer steps
    resumed = [argv[argv.index("--resume") + 1] for argv in commands[2:]]
    assert resumed == [str(part.runs / name) for name in ("judge", "m-jem")]
    assert not part.record["left_out"] and evaluated == ["m-jem", "m-jem"]
    (part.runs / "m-jem" / "eval").mkdir()
    gpu_parts.training(part)  # nothing is left to do
    assert (part.runs / "m-jem" / "eval").exists() and not codes
    assert part.record["left_out"] == {"train: m-jem": gpu_parts.NO_STEP}


def test_questions_that_are_answered_already_are_not_asked_again(tmp_path, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(gpu_parts, "answered", lambda _, command: "test_clf" in command)
    monkeypatch.setattr(gpu_parts.eval_wrn_ebm, "main", lambda s, _: asked.append(s.eval))
    gpu_parts.evaluate(part_in(tmp_path), tmp_path, tmp_path, ["--device", "cpu"])
    assert asked == ["cond_samples", "OOD", "fid", "eval_ece"]


def test_steps_save_the_peaks_that_their_shares_are_of(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "peaks", lambda bench: {"float32": 1e9})
    for name in ("CASES", "WAYS"):
        monkeypatch.setattr(gpu_parts, name, ())
    gpu_parts.steps(part_in(tmp_path))
    assert read_json(tmp_path / "bench.json")["peaks"] == {"float32": 1e9}


def test_no_row_is_called_compiled_where_nothing_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    for name in ("CASES", "WAYS"):
        monkeypatch.setattr(gpu_parts, name, getattr(gpu_parts, name)[-1:])
    gpu_parts.steps(part_in(tmp_path))
    record = read_json(tmp_path / "bench.json")
    assert record["steps"] == record["chain"] == [] and len(record["left_out"]) == 2
    assert all("nothing was compiled" in why for why in record["left_out"].values())


SLOW_TEST = """
import time, pytest
from pathlib import Path
Path(__file__).parents[1].joinpath(".bench.json.1.tmp").touch()  # as of a killed write
pytestmark = pytest.mark.gpu  # @pytest.mark.gpu
def test_one(): pass
def test_two(): time.sleep(99)
"""


@pytest.mark.slow
def test_a_late_part_is_ended_and_its_test_results_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_slow.py").write_text(SLOW_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    args = gpu.build_parser().parse_args([str(tmp_path), "--rehearse"])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert gpu.call_part(args, "tests", 3, tmp_path) == gpu.LATE
    finally:
        signal.signal(signal.SIGINT, before)
    assert report.tests(tmp_path / "tests.xml")["passed"] >= 1
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.slow
def test_a_rehearsal_measures_every_part(tmp_path, monkeypatch):
    """All but the compiled rows, on the digits; its page names it a rehearsal."""
    small = [case for case in gpu_parts.CASES if "--compile" not in case[1]]
    out, runs = tmp_path / "out", tmp_path / "runs"
    out.mkdir()
    runs.mkdir()
    monkeypatch.setattr(gpu_parts, "CASES", small)
    monkeypatch.setattr(gpu_parts, "WAYS", gpu_parts.WAYS[:1])
    # However busy the machine is; a training fills its time.
    monkeypatch.setattr(gpu_parts.Part, "late", False)
    for name, seconds in (("machine", 60), ("steps", 200), ("profile", 60), ("training", 40)):
        monkeypatch.setattr(gpu, "BEGAN", gpu.time.monotonic())
        words = f"{out} --rehearse --data_root {tmp_path} --part {name} {seconds} {runs}"
        assert gpu.main(words.split()) == 0
    gpu.archive(out, runs)
    record = read_json(out / "bench.json")
    assert not record["left_out"]
    assert {row["terms"] for row in record["steps"]} == {name for name, _ in small}
    assert [row["terms"] for row in record["profile"]] == list(gpu_parts.PROFILED)
    assert all(len(row["kernels"]) == gpu_parts.LARGEST for row in record["profile"])
    answers = {path.stem for path in (runs / "m-jem" / "eval").glob("*.json")}
    assert answers == {question.split()[0] for question in gpu_parts.QUESTIONS}
    assert len(list(out.iterdir())) <= 8
    late = {"training": {"exit_code": gpu.LATE}, "profile": {"exit_code": 1}}
    (out / "parts.json").write_text(json.dumps({"command": ["x"], "parts": late, "seconds": 1}))
    (out / "tests.xml").write_text(
        '<testsuites><testsuite><testcase name="a"><failure/></testcase><testcase name="b"/>'
        '<testcase name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    with pytest.raises(UsageError, match="rehearsal"):
        report.collect(out, None)
    page = report.collect(out, tmp_path / "page").read_text(encoding="utf-8")
    for text in (
        *("**A rehearsal on the CPU**", "1 passed, 1 failed, 1 skipped: a."),
        *("`training` took too long", "`profile` ended with code 1", "test accuracy"),
        *("JEM-stable", "FID", "Class-conditional samples read as asked (%)", "Recall of samples"),
        "cond_samples_starts.png",
    ):
        assert text in page, text
    for name in re.findall(r"\]\((\S+\.png)\)", page):
        assert (tmp_path / "page" / name).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "page").rename(tmp_path / "benchmarks" / "gpu")
    write_results([], {}, tmp_path / "results", {})
    table = r"Minutes on a GPU\n\n.*\n\n(.*\n)+\| network +\| WRN-10-1 .*\n(.*\n)+\| AUROC px"
    assert re.search(table, (tmp_path / "RESULTS.md").read_text(encoding="utf-8"))


def test_a_gpu_s_page_names_unmeasured_parts_and_readme_has_its_table(tmp_path):
    """The call was killed: its tests.xml is cut short."""
    row = {
        **{"terms": "HDGE", "classes": 10, "contender": "project", "seconds": 0.01, "low": 0.01},
        **{"high": 0.01, "images_per_s": 6400, "ratio": 1.0, "flop": 2.3e12, "format": "bf16"},
        **{"share": 0.3, "memory": 2**30},
    }
    on_cpu = read_json(ROOT / "benchmarks" / "cpu" / "bench.json")
    machine = {"name": "H", "memory": 139 * 2**30, "multiprocessors": 132}
    record = {
        **{name: on_cpu[name] for name in ("environment", "load")},
        "settings": {**on_cpu["settings"], "device": "cuda"},
        "machine": {**machine, "driver": "580.1", "cuda": "13.0", "cudnn": 91900},
        "copy_bytes_per_s": 4.3e12,
        "steps": [row, {**row, "terms": "HDGE, compiled", "first": 42.0}],
        "chain": [{"way": "x", "steps": 20, "flop": 1e13, "seconds": 0.1, "first": 2.0}],
        "left_out": dict.fromkeys(("profile: HDGE", "ask: test_clf"), gpu_parts.NO_TIME),
    }
    (tmp_path / "bench.json").write_text(json.dumps(record))
    (tmp_path / "tests.xml").write_text("<testsuites><testsu")
    parts = {"machine": {"exit_code": "was interrupted", "seconds": 0}}
    call = {"command": ["bash", "scripts/gpu.sh", "OUT"], "parts": parts, "seconds": 500}
    (tmp_path / "parts.json").write_text(json.dumps(call))
    page = report.collect(tmp_path, tmp_path / "page").read_text(encoding="utf-8")
    for text in (
        *("139 GiB, 132 multiprocessors", "The first step of HDGE, compiled took 42.0 s."),
        *("4.30 TB/s", "| x | 20 | 100 | 100 |", "The part `machine` was interrupted"),
        *("not measured", "- profile: HDGE: no time was left", "- ask: test_clf: no time was left"),
    ):
        assert text in page, text
    assert not any(word in page for word in ("rehearsal", "![", "tests that need a GPU"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    with_table = report.with_speed(readme, report.speed(record))
    assert "| HDGE, C = 10 | 10.0 | 6,400 | 30% of bf16 | 1.00 |" in with_table
    assert report.with_speed(with_table, "again").count("again") == readme.count("again") + 1
    assert len(with_table.splitlines()) > len(readme.splitlines())


def test_collect_names_the_parts_that_a_call_lacks(tmp_path):
    (tmp_path / "parts.json").write_text('{"command": ["x"], "parts": {}, "seconds": 1}')
    (tmp_path / "tests.xml").write_text("<testsuites/>")
    with pytest.raises(UsageError, match="no bench.json, .* machine, steps, profile, training"):
        report.collect(tmp_path, None)
