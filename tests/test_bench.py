"""scripts/bench.py: what is timed is what is said, and what was measured is shown."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import flags, measure, report
from benchmarks.flags import PROJECT, STRAIGHT, STRAIGHT_TF32
from scripts import bench
from tests.pair import refusal

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TINY = "--preset quick --depth 10 --width 1 --batch_size 2 --n_steps 2 --contrast_k 64 --turns 2"
Found = dict[str, Any]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    """bench.json of a whole run with the smallest of everything, and its folder."""
    folder = tmp_path_factory.mktemp("bench")
    words = f"{TINY} --workers 0 --device cpu --output {folder / 'a' / 'b'}"
    assert bench.main(flags.parse(words.split())) == 0
    return json.loads((folder / "a" / "b" / "bench.json").read_text()), folder / "a" / "b"


def test_every_step_is_timed_beside_the_straightforward_one(measured):
    found, _ = measured
    rows = {(row["terms"], row["classes"], row["contender"]): row for row in found["steps"]}
    asked = [("CE", 10), ("HDGE", 10), ("HDGE", 100), ("JEM", 10), ("HDGE+JEM", 10)]
    both = [(*what, name) for what in asked for name in (PROJECT, STRAIGHT)]
    assert list(rows) == [*both, (flags.STABLE, 10, PROJECT)]  # the ancestors have no such chains
    for key, row in rows.items():
        ours = rows[(*key[:2], PROJECT)]["seconds"]
        assert row["ratio"] == pytest.approx(row["seconds"] / ours)
        assert row["images_per_s"] == pytest.approx(2 / row["seconds"])
        rate = row["flop"] / row["seconds"]
        assert row["share"] == pytest.approx(rate / found["peaks"][row["format"]])
        assert 0 < row["low"] <= row["seconds"] <= row["high"] and row["turns"] == 2
    assert {"git_commit", "device", "torch_build", "threads"} <= found["environment"].keys()
    assert "busy" in report.markdown({**found, "load": 2.0})  # its times are no results


def bench_of(words: str) -> measure.Bench:
    return measure.Bench(flags.complete(flags.parse(f"{TINY} {words}".split()), "quick"), CPU)


def test_without_room_for_its_tensor_only_the_project_is_timed(monkeypatch):
    monkeypatch.setattr(measure, "free_memory", lambda device: 1e5)
    for k, both in ((64, True), (4096, False)):
        bench = bench_of(f"--workers 0 --contrast_k {k}")
        with measure.contenders(bench, "HDGE", 10) as (_, found):
            assert (STRAIGHT in found) is both


def test_the_project_can_be_timed_alone(tmp_path):
    words = f"{TINY} --no-straightforward --terms CE --turns 1 --device cpu"
    assert bench.main(flags.parse([*words.split(), "--output", str(tmp_path)])) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [row["contender"] for row in found["steps"]] == [PROJECT]


@pytest.mark.gpu
def test_on_a_gpu_tf32_and_bf16_are_told_apart(tmp_path):
    words = f"{TINY} --terms JEM --workers 2 --device cuda --compile off"
    assert bench.main(flags.parse([*words.split(), "--output", str(tmp_path)])) == 0
    found = json.loads((tmp_path / "bench.json").read_text())
    formats = {row["contender"]: row["format"] for row in found["steps"]}
    ours = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "TF32"
    assert formats == {PROJECT: ours, STRAIGHT: "float32", STRAIGHT_TF32: "TF32"}
    assert found["peaks"].keys() == {"float32", "TF32", "bf16"}
    assert all(row["memory"] > 0 for row in found["steps"])


def test_calls_take_turns_in_an_order_that_is_reversed():
    called: list[str] = []

    def call(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            called.append(name)
            time.sleep(seconds)

        return run

    times = measure.alternate({"a": call("a", 0.06), "b": call("b", 0.51)}, turns=3)
    # Each once; then a turn of a's, which is short, is two calls, of which one warms up.
    assert called == [*"ab", *"aab", *"baa", *"aab"]
    assert all(0.06 <= x < 0.4 for x in times["a"]) and all(0.51 <= x < 0.9 for x in times["b"])
    assert len(times["a"]) == len(times["b"]) == 3


def test_both_contenders_take_real_steps():
    bench = bench_of("--workers 0")
    with measure.contenders(bench, "HDGE+JEM", 10) as (_, found):
        assert list(found) == [PROJECT, STRAIGHT]
        for name, network in ((PROJECT, bench.project[10]), (STRAIGHT, bench.plain[10])):
            before = copy.deepcopy(network.state_dict())
            labels = [batch[1] if name == PROJECT else batch[0][1] for batch in taken(found[name])]
            assert len({tuple(batch.tolist()) for batch in labels}) > 1  # not one batch for ever
            assert network.training
            found[name].check()
            assert all(not torch.equal(before[n], t) for n, t in network.state_dict().items())


def taken(contender: measure.Contender) -> list[Any]:
    """The batches of three steps."""
    batches = []
    for _ in range(3):
        batches.append(contender.draw())
        contender.learn(batches[-1])
    return batches


@pytest.mark.parametrize(
    ("words", "named"),
    [
        *(("--preset fast", "fast"), ("--depth 11", "--depth 11"), ("--classes 1", "--classes")),
        *(("--terms hdge", "hdge"), ("--turns 0", "--turns"), ("--batch 3", "--batch")),
        *(("--device tpu", "--device tpu"), ("--output {}/file/x", "--output: cannot write to")),
    ],
)
def test_a_mistake_is_one_line(words, named, tmp_path):
    (tmp_path / "file").touch()
    line = refusal(flags.parse, words.format(tmp_path).split())
    assert line.startswith("bench.py: error: ") and named in line


def test_what_the_machine_lacks_is_one_line_too():
    line = refusal(bench.main, flags.parse("--preset gpu --device cpu".split()))
    assert "--preset gpu on cpu: use --preset cpu" in line


def test_auto_takes_the_preset_of_the_device():
    for name, device, preset in (("auto", "cpu", "cpu"), ("auto", "cuda", "gpu")):
        assert bench.preset_for(name, torch.device(device)) == preset
