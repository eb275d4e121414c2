"""What only a GPU can show: no host synchronisation, masked steps and exact resuming there."""

from typing import Any

import numpy as np
import pytest
import torch

import data
import losses
import models
import train_wrn
from evaluation import sampling
from evaluation.scores import scores
from training import flags
from training.build import build_run
from training.divergence import Guard
from training.machine import choose_device
from training.state import Run, checkpoint_state, restore

pytestmark = pytest.mark.gpu

ALL = "--pyxce 1 --pxycontrast 1 --pxcontrast 1 --pxsgld 1 --pxysgld 1"
SMALL = "--depth 10 --width 1 --batch_size 8 --sgld_batch_size 8 --n_steps 2 --buffer_size 200"


def build(words: str) -> tuple[Run, data.TrainingBatches]:
    settings, _ = flags.parse(
        f"{ALL} {SMALL} --contrast_k 256 --seed 1 --compile off {words}".split()
    )
    torch.manual_seed(1)
    run = build_run(settings, 10, choose_device(settings.device))
    images = torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8, device=run.device)
    split = data.Split(images, torch.arange(64, device=run.device) % 10)
    index = torch.arange(64, device=run.device)
    return run, data.TrainingBatches(split, index, index, 8, 1, 0.03, True, False)


def steps(run: Run, batches: data.TrainingBatches, which: range) -> Guard:
    guard = Guard(run.device)
    run.model.train()
    for step in which:
        train_wrn.train_step(run, guard, batches(step), step)
    return guard


@pytest.mark.parametrize("words", ["", "--amp off", "--norm batch", "--optimizer sgd"])
@pytest.mark.parametrize("style", ["queue", "simclr"])
def test_a_step_never_waits_for_the_gpu(words, style):
    run, batches = build(f"{words} --contrast_style {style}")
    steps(run, batches, range(2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(run, batches, range(2, 6))  # within an epoch: its order is made on the host
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_diverged_step_leaves_no_trace():
    run, batches = build("")
    steps(run, batches, range(2))
    before = {k: v.clone() for k, v in {**run.model.state_dict()}.items()}
    queue = run.memory("queue").queue_logit.clone()
    buffer = run.memory("replay_buffer").images.clone()
    images, labels, _ = batches(2)
    guard = Guard(run.device)
    train_wrn.train_step(run, guard, (images * torch.nan, labels, None), 2)
    assert bool(guard.flag)
    assert all(torch.equal(before[k], v) for k, v in run.model.state_dict().items())
    assert torch.equal(queue, run.memory("queue").queue_logit)
    assert torch.equal(buffer, run.memory("replay_buffer").images)


def test_a_restored_run_draws_the_same_numbers():
    """Not the same bits: cuDNN may choose other kernels. The same slots and noise, though."""
    run, batches = build("--amp off")
    steps(run, batches, range(3))
    state: dict[str, Any] = checkpoint_state(run)
    rng, slots = torch.rand(8, device=run.device), run.memory("replay_buffer").draw(8)[1]
    again, _ = build("--amp off")
    restore(again, state)
    assert torch.equal(rng, torch.rand(8, device=run.device))
    assert torch.equal(slots, again.memory("replay_buffer").draw(8)[1])


def small_model() -> models.EnergyClassifier:
    torch.manual_seed(0)
    return models.build(depth=10, width=1).to(memory_format=torch.channels_last).eval()


def test_scores_are_those_of_the_cpu():
    model, device = small_model(), choose_device("cuda", exact=True)
    x = torch.rand(40, 3, 32, 32) * 2 - 1
    names = ["px", "py", "pxy", "pxgrad", "entropy"]
    here = scores(model, [(x, torch.zeros(40))], names)
    there = scores(model.to(device), [(x.to(device), torch.zeros(40))], names)
    for name in names:
        np.testing.assert_allclose(here[name], there[name], atol=1e-4)


def test_sampling_never_wait_for_the_gpu():
    device = choose_device("cuda", exact=True)
    model = small_model().to(device)
    slots = sampling.Slots(losses.ReplayBuffer(40, (3, 32, 32), 0.05, 10).to(device))
    sgld = {"chain": losses.Chain(2, 1.0, 0.01), "chains": 20, "seed": 1}
    rounds = sampling.sampling_rounds(model, slots, rounds=4, **sgld)
    conditional = sampling.sampling_rounds(model, slots, rounds=4, conditional=True, **sgld)
    next(rounds), next(conditional)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            next(rounds), next(conditional)
    finally:
        torch.cuda.set_sync_debug_mode("default")
