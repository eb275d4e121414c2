"""The cost model: against the operations that PyTorch counts."""

import argparse

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from losses import LogitQueue, ReplayBuffer, Step, build_objective
from models import build, forward_flops
from runs import processes as distributed
from training.cost import memory_bytes, peak_memory, scaled, step_flops, step_seconds
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
    """In place of the counter's tracker of modules, which cannot follow autograd.grad."""

    parents = ("Global",)

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def measured(s: argparse.Namespace) -> int:
    """FLOP of a real step of WRN-10-1: forward, objective, backward."""
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


def test_memory_is_what_the_tensors_take():
    model = build(depth=10, width=1)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    queue, buffer = LogitQueue(10, 65536).queue_logit, ReplayBuffer(100, (3, 32, 32), 0.05, 10)
    s = settings("--pxycontrast 1 --pxsgld 1 --buffer_size 100 --contrast_k 65536 --ema .9")
    memories = 4 * queue.numel(), 4 * buffer.images.numel()
    assert memory_bytes(s, model, 500, 10) == {
        "weights": weights,
        "gradients": weights,
        "optimiser": 2 * weights,
        "weight average": weights,
        "queue": memories[0],
        "replay buffer": memories[1],
        "snapshots": 2 * (4 * weights + sum(memories)),
        "images": torch.empty(500, 32, 32, 3, dtype=torch.uint8).numel(),
    }


def test_memory_counts_only_what_is_used():
    model = build(depth=10, width=1).requires_grad_(False)
    model.class_output.requires_grad_(True)

    def taken(words: str) -> dict[str, int]:
        return memory_bytes(settings(words), model, 0, 10)

    plain = taken("--optimizer sgd")
    assert plain["gradients"] == plain["optimiser"] == 4 * (64 * 10 + 10) < plain["weights"]
    assert plain["queue"] == plain["replay buffer"] == 0 == taken("--max_restarts 0")["snapshots"]
    for term in ("pxycontrast", "pxcontrast"):
        assert taken(f"--{term} 1")["queue"] > 0
        assert taken(f"--{term} 1 --contrast_style simclr")["queue"] == 0
    for term in ("pxsgld", "pxysgld"):
        assert taken(f"--{term} 1")["replay buffer"] > 0


def test_peak_memory_is_in_bytes():
    assert 50e6 < peak_memory(torch.device("cpu")) < 1e12  # PyTorch alone takes more than 50 MB


@pytest.mark.parametrize(("flops_per_second", "whole"), [(1e12, True), (1e9, False)])
def test_the_time_of_a_step_is_measured_or_scaled_up(flops_per_second, whole):
    """On a machine whose time is proportional to work the answer is exact in both cases."""
    s = settings("--batch_size 64 --sgld_batch_size 64 --n_steps 20 --pxsgld 1")
    spent = []

    def seconds_of(timed: argparse.Namespace, repeats: int) -> float:
        spent.append(step_flops(10**7, timed) / flops_per_second)
        return spent[-1]

    seconds, part = step_seconds(s, 10**7, seconds_of)
    assert seconds == pytest.approx(step_flops(10**7, s) / flops_per_second)
    assert (part == 1) is whole
    assert max(spent) < 6 and 0 < part <= 1


def test_a_step_is_timed_whole_where_small_ones_take_as_long():
    """As on a GPU, where few images take the time that their operations take to be launched."""
    s = settings("--batch_size 64 --sgld_batch_size 64 --n_steps 20 --pxsgld 1 --pxysgld 1")

    def seconds_of(timed: argparse.Namespace, repeats: int) -> float:
        launched = 0.005 * (6 + 2 * timed.n_steps)  # seconds: 3 passes that learn, two chains
        return launched + step_flops(10**10, timed) / 2.5e14

    assert step_seconds(s, 10**10, seconds_of) == (seconds_of(s, 1), 1)


def test_a_scaled_step_keeps_the_rest(monkeypatch):
    s = settings("--batch_size 64 --sgld_batch_size 32 --n_steps 20")
    small = scaled(s, 0.25)
    assert (small.batch_size, small.sgld_batch_size, small.n_steps) == (32, 16, 10)
    least = scaled(s, 0.0)
    assert (least.batch_size, least.sgld_batch_size, least.n_steps) == (1, 1, 1)
    assert s.batch_size == 64
    assert scaled(settings("--px_batch_size 8"), 0.25).px_batch_size == 4
    assert vars(small) | {"batch_size": 64, "sgld_batch_size": 32, "n_steps": 20} == vars(s)
    monkeypatch.setattr(distributed, "size", lambda: 3)  # which share images and chains
    shared, least = scaled(settings("--batch_size 96 --sgld_batch_size 30"), 0.25), scaled(s, 0.0)
    assert (shared.batch_size, shared.sgld_batch_size) == (48, 15)
    assert (least.batch_size, least.sgld_batch_size, least.n_steps) == (3, 3, 1)
