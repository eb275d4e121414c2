"""scripts/bench.py: the steps that it times, their order and their rows in its record."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import flags, measure, report
from benchmarks.flags import PROJECT, STRAIGHT, STRAIGHT_TF32
from scripts import bench
from tests.pair import outcome, refusal

CPU = torch.device("cpu")
TINY = "--preset quick --depth 10 --width 1 --batch_size 2 --n_steps 2 --contrast_k 64 --turns 2"


def bench_json(folder: Path, words: str) -> dict[str, Any]:
    """Run bench.py with the smallest of everything, and read its record."""
    assert bench.main(flags.parse(f"{TINY} {words} --output {folder}".split())) == 0
    return json.loads((folder / "bench.json").read_text())


@pytest.mark.slow
def test_every_step_is_timed_beside_the_straightforward_one(tmp_path):
    record = bench_json(tmp_path / "a" / "b", "--workers 0 --device cpu")
    rows = {(row["terms"], row["classes"], row["contender"]): row for row in record["steps"]}
    steps = [("CE", 10), ("HDGE", 10), ("HDGE", 100), ("JEM", 10), ("HDGE+JEM", 10)]
    both = [(*step, name) for step in steps for name in (PROJECT, STRAIGHT)]
    assert list(rows) == [*both, (flags.STABLE, 10, PROJECT)]  # the ancestors have no such chains
    for key, row in rows.items():
        ours = rows[(*key[:2], PROJECT)]["seconds"]
        assert row["ratio"] == pytest.approx(row["seconds"] / ours)
        assert row["images_per_s"] == pytest.approx(2 / row["seconds"])
        rate = row["flop"] / row["seconds"]
        assert row["share"] == pytest.approx(rate / record["peaks"][row["format"]])
        assert 0 < row["low"] <= row["seconds"] <= row["high"] and row["turns"] == 2
    assert {"git_commit", "device", "torch_build", "threads"} <= record["environment"].keys()
    assert "busy" in report.markdown({**record, "load": 2.0})  # its times are no results


def bench_of(words: str) -> measure.Bench:
    return measure.Bench(flags.complete(flags.parse(f"{TINY} {words}".split()), "quick"), CPU)


def test_without_room_for_its_tensor_only_the_project_is_timed(monkeypatch):
    monkeypatch.setattr(measure, "free_memory", lambda device: 1e5)
    for k, both in ((64, True), (4096, False)):
        bench = bench_of(f"--workers 0 --contrast_k {k}")
        with measure.contenders(bench, "HDGE", 10) as (_, contenders):
            assert (STRAIGHT in contenders) is both


def test_the_project_can_be_timed_alone(tmp_path):
    record = bench_json(tmp_path, "--no-straightforward --terms CE --turns 1 --device cpu")
    assert [row["contender"] for row in record["steps"]] == [PROJECT]


def test_compilation_without_a_compiler_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    words = f"{TINY} --terms CE --compile on --device cpu --output {tmp_path}"
    code, _, err = outcome(lambda: bench.main(flags.parse(words.split())))
    assert code == 2 and "error: --compile on: nothing was compiled" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_on_a_gpu_tf32_and_bf16_are_told_apart(tmp_path):
    record = bench_json(tmp_path, "--terms JEM --workers 2 --device cuda --compile off")
    formats = {row["contender"]: row["format"] for row in record["steps"]}
    ours = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "TF32"
    assert formats == {PROJECT: ours, STRAIGHT: "float32", STRAIGHT_TF32: "TF32"}
    assert record["peaks"].keys() == {"float32", "TF32", "bf16"}
    assert all(row["memory"] > 0 for row in record["steps"])


def test_calls_take_turns_in_an_order_that_is_reversed(monkeypatch):
    called, now = list[str](), [0.0]

    def call(name: str, seconds: float) -> None:
        called.append(name)
        now[0] += seconds

    monkeypatch.setattr(measure, "clock", lambda: now[0])
    calls = {"a": partial(call, "a", 0.06), "b": partial(call, "b", 0.51)}
    times = measure.alternate(calls, turns=3)
    # Each is called once. Then a turn of the short a has two calls: the first warms up.
    assert called == [*"ab", *"aab", *"baa", *"aab"]
    assert times == {"a": pytest.approx([0.06] * 3), "b": pytest.approx([0.51] * 3)}


def test_both_contenders_take_real_steps():
    bench = bench_of("--workers 0")
    with measure.contenders(bench, "HDGE+JEM", 10) as (_, contenders):
        assert list(contenders) == [PROJECT, STRAIGHT]
        for name, network in ((PROJECT, bench.project[10]), (STRAIGHT, bench.plain[10])):
            before, labels = copy.deepcopy(network.state_dict()), set()
            for _ in range(3):
                batch = contenders[name].draw()
                contenders[name].learn(batch)
                labels.add(tuple((batch[1] if name == PROJECT else batch[0][1]).tolist()))
            assert len(labels) > 1  # the batches differ
            assert network.training
            contenders[name].check()
            assert all(not torch.equal(before[n], t) for n, t in network.state_dict().items())


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        *(("--preset fast", "fast"), ("--depth 11", "--depth 11"), ("--classes 1", "--classes")),
        *(("--terms hdge", "hdge"), ("--turns 0", "--turns"), ("--batch 3", "--batch")),
        *(("--device tpu", "--device tpu"), ("--output {}/file/x", "--output: cannot write to")),
    ],
)
def test_a_mistake_is_one_line(words, cause, tmp_path):
    (tmp_path / "file").touch()
    line = refusal(flags.parse, words.format(tmp_path).split())
    assert line.startswith("bench.py: error: ") and cause in line


def test_auto_takes_the_preset_of_the_device_and_gpu_needs_a_gpu():
    assert bench.preset_for("auto", CPU) == "cpu"
    assert bench.preset_for("auto", torch.device("cuda")) == "gpu"
    line = refusal(bench.main, flags.parse("--preset gpu --device cpu".split()))
    assert "--preset gpu on cpu: use --preset cpu" in line
