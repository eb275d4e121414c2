"""On a GPU: steps and chains without a wait of the host, masked steps, and resuming."""

from collections.abc import Iterator

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

FLAGS = (
    "--pyxce 1 --pxycontrast 1 --pxcontrast 1 --pxsgld 1 --pxysgld 1 --depth 10 --width 1 "
    "--batch_size 8 --sgld_batch_size 8 --n_steps 2 --buffer_size 200 --contrast_k 256 --seed 1 "
    "--compile off"
)


def build(more: str) -> tuple[Run, data.TrainingBatches]:
    settings, _ = flags.parse(f"{FLAGS} {more}".split())
    torch.manual_seed(1)
    run = build_run(settings, 10, choose_device(settings.device))
    images = torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8, device=run.device)
    index = torch.arange(64, device=run.device)
    split = data.Split(images, index % 10)
    return run, data.TrainingBatches(split, index, index, 8, 1, 0.03, True, False)


def take_steps(run: Run, batches: data.TrainingBatches, numbers: range) -> None:
    guard = Guard(run.device)
    run.model.train()
    for step in numbers:
        train_wrn.train_step(run, guard, batches(step), step)


@pytest.fixture(autouse=True)
def waits_allowed_afterwards() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("words", ["", "--amp off", "--norm batch", "--optimizer sgd"])
@pytest.mark.parametrize("style", ["queue", "simclr"])
def test_a_step_never_waits_for_the_gpu(words, style):
    run, batches = build(f"{words} --contrast_style {style}")
    take_steps(run, batches, range(2))
    torch.cuda.set_sync_debug_mode("error")
    take_steps(run, batches, range(2, 6))  # within an epoch: its order is made on the host


def test_a_diverged_step_changes_neither_network_nor_queue_nor_replay_buffer():
    run, batches = build("")
    take_steps(run, batches, range(2))

    def tensors() -> list[torch.Tensor]:
        memories = run.memory("queue").queue_logit, run.memory("replay_buffer").images
        return [*run.model.state_dict().values(), *memories]

    before = [tensor.clone() for tensor in tensors()]
    images, labels, _ = batches(2)
    guard = Guard(run.device)
    train_wrn.train_step(run, guard, (images * torch.nan, labels, None), 2)
    assert bool(guard.flag) and all(map(torch.equal, before, tensors()))


def test_a_restored_run_draws_the_same_slots_and_noise():
    """Weights may differ in their last bits: cuDNN may choose other kernels."""
    run, batches = build("--amp off")
    take_steps(run, batches, range(3))
    state = checkpoint_state(run)
    noise, slots = torch.rand(8, device=run.device), run.memory("replay_buffer").draw(8)[1]
    restored, _ = build("--amp off")
    restore(restored, state)
    assert torch.equal(noise, torch.rand(8, device=run.device))
    assert torch.equal(slots, restored.memory("replay_buffer").draw(8)[1])


def small_model() -> models.EnergyClassifier:
    torch.manual_seed(0)
    return models.build(depth=10, width=1).to(memory_format=torch.channels_last).eval()


def test_scores_are_those_of_the_cpu():
    model, device = small_model(), choose_device("cuda", exact=True)
    x = torch.rand(40, 3, 32, 32) * 2 - 1
    names = ["px", "py", "pxy", "pxgrad", "entropy"]
    on_cpu = scores(model, [(x, torch.zeros(40))], names)
    on_gpu = scores(model.to(device), [(x.to(device), torch.zeros(40))], names)
    for name in names:
        np.testing.assert_allclose(on_cpu[name], on_gpu[name], atol=1e-4)


def test_sampling_never_waits_for_the_gpu():
    device = choose_device("cuda", exact=True)
    model = small_model().to(device)
    slots = sampling.Slots(losses.ReplayBuffer(40, (3, 32, 32), 0.05, 10).to(device))
    sgld = {"chain": losses.Chain(2, 1.0, 0.01), "chains": 20, "seed": 1}
    rounds = sampling.sampling_rounds(model, slots, rounds=4, **sgld)
    conditional = sampling.sampling_rounds(model, slots, rounds=4, conditional=True, **sgld)
    next(rounds), next(conditional)
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(2):
        next(rounds), next(conditional)
