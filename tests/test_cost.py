"""The cost of a step: against the operations that PyTorch counts, and against tensors' sizes."""

import argparse
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import data
import train_wrn
from losses import Step, build_objective
from models import build, forward_flops
from runs import processes as distributed
from training.build import build_batches, start_run
from training.cost import memory_bytes, peak_memory, scaled, step_flops, step_seconds
from training.divergence import Guard, snapshot
from training.flags import build_parser, second_batch

SMALL = "--pyxce 1 --batch_size 2 --sgld_batch_size 2 --n_steps 2 --buffer_size 50 --contrast_k 64"
CASES = {
    "CE": "",
    "HDGE": "--pxycontrast 1",
    "JEM": "--pxsgld 1",
    "JEM, more chains": "--pxsgld 1 --sgld_batch_size 3 --n_steps 1",
    "JEM, independent": "--pxsgld 1 --independent_batches",
    "JEM, few labels": "--pxsgld 1 --labels_per_class 10",
    "JEM, images as they are": "--pxsgld 1 --augment_px none",
    "JEM, a larger second batch": "--pxsgld 1 --px_batch_size 5",
    "independent, no JEM": "--independent_batches",
    "conditional JEM": "--pxysgld 1 --sgld_batch_size 5",
    "all": "--pxycontrast 1 --pxsgld 1 --pxysgld 1",
    "classifier alone": "--clf_only --pxsgld 1",
}


def settings(words: str = "") -> argparse.Namespace:
    return build_parser().parse_args(f"{SMALL} {words}".split())


class NoModules:
    """Replace the counter's tracker of modules, which cannot follow autograd.grad."""

    parents = ("Global",)

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def measured(s: argparse.Namespace) -> int:
    """Count the FLOP of a real step of WRN-10-1: forward, objective, backward."""
    model = build(depth=10, width=1)
    if s.clf_only:
        model.requires_grad_(False).class_output.requires_grad_(True)
    objective = build_objective(s, 10)
    x, y = torch.rand(s.batch_size, 3, 32, 32), torch.arange(s.batch_size)
    second = torch.rand(s.px_batch_size or s.batch_size, 3, 32, 32)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter:
        objective(Step.forward(model, x, y, second if second_batch(s) else None))[0].backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_a_step_costs_what_pytorch_counts(case):
    s = settings(CASES[case])
    forward = forward_flops(build(depth=10, width=1))
    assert step_flops(forward, s) == pytest.approx(measured(s), rel=0.02)


def size_of(*values: Any) -> int:
    """Return the bytes of all tensors in these values, dicts of tensors among them."""
    children = [child for v in values if isinstance(v, dict) for child in v.values()]
    own = sum(v.nbytes for v in values if isinstance(v, torch.Tensor))
    return own + (size_of(*children) if children else 0)


def test_memory_is_the_size_of_a_run_s_tensors():
    s = settings(
        "--dataset digits --image_size 8 --depth 10 --width 1 --norm batch --ema .9 --seed 1 "
        "--pxycontrast 1 --contrast_k 65536 --pxsgld 1 --chain_start class_gaussian"
    )
    dataset = data.load("digits", "", size=8)
    batches, splits = build_batches(s, dataset)
    run = start_run(s, dataset, batches)
    train_wrn.train_step(run, Guard(run.device), batches(0), 0)
    images = [split.images for split in (dataset.train, dataset.test, splits["valid"])]
    state = snapshot(run)
    on_device = {name: state[name] for name in state if name not in ("data", "random")}
    assert memory_bytes(s, run.model, sum(map(len, images)), 10) == pytest.approx(
        {
            "weights": size_of(run.model.state_dict()),
            "optimiser": size_of(run.optimizer.state_dict()),
            "weight average": size_of(run.ema.state_dict()),
            "queue": size_of(run.memory("queue").state_dict()),
            "replay buffer": size_of(run.memory("replay_buffer").state_dict()),
            "snapshots": 2 * size_of(on_device),
            "gradients": size_of(*(p.grad for p in run.model.parameters())),
            "images": size_of(*images),
        },
        rel=1e-3,
    )


def test_memory_counts_only_what_is_used():
    model = build(depth=10, width=1).requires_grad_(False)
    model.class_output.requires_grad_(True)

    def memory(words: str) -> dict[str, int]:
        return memory_bytes(settings(words), model, 0, 10)

    plain = memory("--optimizer sgd")
    assert plain["gradients"] == plain["optimiser"] == 4 * (64 * 10 + 10) < plain["weights"]
    assert plain["queue"] == plain["replay buffer"] == 0 == memory("--max_restarts 0")["snapshots"]
    for term in ("pxycontrast", "pxcontrast"):
        assert memory(f"--{term} 1")["queue"] > 0
        assert memory(f"--{term} 1 --contrast_style simclr")["queue"] == 0
    for term in ("pxsgld", "pxysgld"):
        assert memory(f"--{term} 1")["replay buffer"] > 0


def test_peak_memory_is_in_bytes():
    assert 50e6 < peak_memory(torch.device("cpu")) < 1e12  # PyTorch alone takes more than 50 MB


@pytest.mark.parametrize(
    ("launch", "rate", "whole"), [(0, 1e12, True), (0, 1e9, False), (0.005, 2.5e11, True)]
)
def test_a_step_is_timed_whole_or_scaled_up(launch, rate, whole):
    """Exact where time is proportional to work. On a GPU, where a small step takes the time that
    its operations take to be launched, the whole step is timed."""
    s = settings("--batch_size 64 --sgld_batch_size 64 --n_steps 20 --pxsgld 1 --pxysgld 1")
    times = []

    def seconds_of(timed: argparse.Namespace, repeats: int) -> float:
        launched = launch * (6 + 2 * timed.n_steps)  # 3 passes that learn, two chains
        times.append(launched + step_flops(10**7, timed) / rate)
        return times[-1]

    seconds, part = step_seconds(s, 10**7, seconds_of)
    assert (part == 1) is whole and 0 < part <= 1 and max(times) < 6
    assert seconds == pytest.approx(seconds_of(s, 1))


def test_a_scaled_step_keeps_the_other_settings_and_the_processes_shares(monkeypatch):
    def sizes(s: argparse.Namespace) -> tuple[int, int, int]:
        return s.batch_size, s.sgld_batch_size, s.n_steps

    s = settings("--batch_size 64 --sgld_batch_size 32 --n_steps 20")
    small = scaled(s, 0.25)
    assert sizes(small) == (32, 16, 10) and sizes(scaled(s, 0.0)) == (2, 2, 1)
    assert scaled(settings("--px_batch_size 8"), 0.25).px_batch_size == 4
    assert vars(small) | {"batch_size": 64, "sgld_batch_size": 32, "n_steps": 20} == vars(s)
    monkeypatch.setattr(distributed, "size", lambda: 3)  # they share images and chains
    shared = settings("--batch_size 96 --sgld_batch_size 30 --n_steps 20")
    assert sizes(scaled(shared, 0.25)) == (48, 15, 10) and sizes(scaled(s, 0.0)) == (6, 6, 1)
