"""The project's training step against the straightforward one: loss, gradients, queue, samples.

Two steps of the project, a checkpoint, and two steps of the run that it is restored to: the queue
of 10 slots is partly filled at first, full at the third batch of 4, and wraps round.
"""

from argparse import Namespace
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import losses
import models
import train_wrn
from benchmarks import straightforward
from tests.pairwise import pairwise
from tests.test_cost import NoModules
from training import flags
from training.build import build_model, build_optimizer
from training.divergence import Guard
from training.state import Run, checkpoint_state, restore

ALL, HDGE = "--pyxce 1 --pxycontrast .5 --pxsgld .25", "--pyxce 1 --pxycontrast .5"
BATCH, SLOTS, SIDE = 4, 10, 8  # images of 8 x 8 pixels are enough for every layer

CASES = pairwise((10, 100), (0, 0.1), ("algorithm1", "eq13"), ("", "no-"))


def settings_of(argv: str) -> Namespace:
    small = f"--depth 10 --width 1 --n_steps 2 --contrast_k {SLOTS} --lr 1e-3 --amp off"
    sizes = f"--batch_size {BATCH} --sgld_batch_size {BATCH} --buffer_size 100 --device cpu"
    return flags.parse(f"{small} {sizes} {argv}".split())[0]


def project(s: Namespace, classes: int, dtype: torch.dtype, *, running: bool = False) -> Run:
    """Build a run whose replay buffer holds small images; `running`: the queue keeps sums."""
    torch.manual_seed(0)
    model = build_model(s, classes, torch.device("cpu"))
    objective = losses.build_objective(s, classes)
    memories = objective.memories
    if "queue" in memories:
        for normaliser in memories["queue"].normalisers.values():
            normaliser.running = running
    if "replay_buffer" in memories:
        memories["replay_buffer"].images = torch.rand(100, 3, SIDE, SIDE) * 2 - 1
    model, objective = model.to(dtype), objective.to(dtype)
    for normaliser in (m for m in objective.modules() if isinstance(m, losses.queue.Normaliser)):
        normaliser.double()
    return Run(s, classes, model, objective, build_optimizer(s, model, objective))


def straight(run: Run) -> straightforward.State:
    """Return the straightforward step's state where the run begins, in float64."""
    s = run.settings
    model = straightforward.Classifier(s.depth, s.width, run.num_classes).double()
    model.load_state_dict({n: t.double() for n, t in run.model.state_dict().items()})
    state = straightforward.build(s, model, run.num_classes, torch.device("cpu"))
    state.queue, state.filled = state.queue.double(), 0
    buffer = run.memory("replay_buffer")
    if buffer is not None:
        state.replay = buffer.images.double().clone()
    return state


def batches(classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    while True:
        images = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) * 2 - 1
        yield images, torch.randint(classes, (BATCH,), generator=generator)


def same_random_numbers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the straightforward chains the starts and the noise of the run's, number by number."""
    buffer = run.memory("replay_buffer")
    dtype = buffer.images.dtype

    def draw(state: straightforward.State) -> tuple[Tensor, Tensor]:
        start, slots = buffer.draw(state.settings.sgld_batch_size)
        torch.testing.assert_close(state.replay[slots], buffer.images[slots].double(), **EXACT)
        return start.double().contiguous(), slots

    def noise(x: Tensor) -> Tensor:
        """Draw as langevin does."""
        start = torch.zeros_like(x, dtype=dtype, memory_format=torch.channels_last)
        still = {"steps": 1, "step_size": 0.0, "noise_std": 1.0}
        return losses.langevin(lambda x: x.sum((1, 2, 3)), start, **still).double().contiguous()

    monkeypatch.setattr(straightforward, "draw", draw)
    monkeypatch.setitem(straightforward.langevin.__kwdefaults__, "noise", noise)


EXACT = {"rtol": 1e-10, "atol": 1e-10}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("classes", "smoothing", "score", "no"), CASES)
def test_a_step_is_the_straightforward_one(classes, smoothing, score, no, monkeypatch):
    contrast = f"--smoothing {smoothing} --contrast_score {score} --{no}contrast_normalize"
    s = settings_of(f"{ALL} {contrast}")
    running = s.contrast_normalize  # where it may be: the normaliser is a running sum
    run = project(s, classes, torch.float64, running=running)
    state = straight(run)
    stream, guard, values = batches(classes), Guard(run.device), []
    for step in range(4):
        if step == 2:  # resumed: partly filled, and the next batch wraps round
            saved, run = checkpoint_state(run), project(s, classes, torch.float64, running=running)
            restore(run, saved)
        images, labels = next(stream)
        with monkeypatch.context() as patch:
            same_random_numbers(run, patch)
            torch.manual_seed(step)
            loss = straightforward.train_step(state, images, labels, images)
        torch.manual_seed(step)
        run.model.train()
        metrics = train_wrn.train_step(run, guard, (images, labels, None), step)
        values.append(loss)
        torch.testing.assert_close(metrics["loss"].item(), loss, **EXACT)
        ours, theirs = gradients(run.model), gradients(state.model)
        assert ours.keys() == theirs.keys() == dict(run.model.named_parameters()).keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], **EXACT)
        queue = run.memory("queue")
        filled = min(SLOTS, (step + 1) * BATCH)
        assert queue.queue_filled == state.filled == filled
        torch.testing.assert_close(queue.queue_logit[:, :filled], state.queue[:, :filled], **EXACT)
        torch.testing.assert_close(run.memory("replay_buffer").images, state.replay, **EXACT)
    assert not guard.flag
    assert len(set(values)) == 4 and state.pointer == 4 * BATCH % SLOTS


@pytest.mark.parametrize(
    ("flags", "passes"),
    [("--pyxce 1", 3), (HDGE, 6), ("--pyxce 1 --pxsgld 1", 9 + 2 * 2), (ALL, 12 + 2 * 2)],
    ids=["CE", "HDGE", "JEM", "HDGE + JEM"],
)
def test_the_straightforward_step_costs_its_step_flops(flags, passes):
    run = project(settings_of(flags), 10, torch.float32)
    state = straight(run)
    images, labels = next(batches(10))
    for name in ("model", "queue", "replay"):
        setattr(state, name, getattr(state, name).float())
    images = images.float()
    straightforward.train_step(state, images, labels, images)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter:
        straightforward.train_step(state, images, labels, images)
    forward = models.forward_flops(run.model) * SIDE**2 / 32**2
    flops = straightforward.step_flops(int(forward), run.settings)
    assert flops == pytest.approx(passes * BATCH * forward, rel=1e-6)
    assert counter.get_total_flops() == pytest.approx(flops, rel=0.02)
