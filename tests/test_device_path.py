"""The GPU's path on a machine without one: no host synchronisation, no mix of devices.

Twice each: on device "meta", whose tensors have shapes and no values, with the whole backward pass;
and on a fake "cuda" device (FakeTensorMode), with bf16 and without the backward pass, which needs a
real device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import losses
import models
import train_wrn
from data.batches import _crops
from evaluation import generation, robustness, sampling
from evaluation.classification import classification
from evaluation.scores import feature_bank, scores
from runs.names import CONTRAST_SCORES, CONTRAST_STYLES, SCORES
from training import flags
from training.build import build_batches, build_model, build_optimizer
from training.divergence import Guard, snapshot
from training.state import Run

DEVICES = ("meta", "cuda")
TERMS = ("pyxce", "pxycontrast", "pxcontrast", "pxsgld", "pxysgld")
ALL = " ".join(f"--{term} 1" for term in TERMS)
SMALL = (
    "--dataset cifar10 --depth 10 --width 1 --batch_size 8 --sgld_batch_size 8 --n_steps 2 "
    "--buffer_size 200 --contrast_k 256 --seed 1 --compile off --log_gradients 3"
)
CHAIN = losses.Chain(2)


class Wait(Exception):
    """The host would wait for the device, or tensors of two devices meet."""


class Watch(TorchDispatchMode):
    """Raises Wait for what "meta" and fake devices let pass: a copy between devices, also of one
    number or of an index, and a boolean mask that is assigned to by its True entries."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        if func.overloadpacket in (torch.ops.aten.index_put_, torch.ops.aten.index_put):
            if any(x is not None and x.dtype == torch.bool for x in args[1]):
                raise Wait(f"{func}: a boolean mask")
        found = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        devices = {x.device.type for x in given + made if x.ndim or copies}
        if len(devices) > 1:
            raise Wait(f"{func}: {' and '.join(sorted(devices))}")
        return found


CAUGHT = (Wait, RuntimeError)  # what PyTorch raises itself is of the second kind


class Generator(torch.Generator):
    """A generator of the CPU that says it is of the device it is asked for."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls)
        made.asked = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.asked


class Place:
    """Device "meta" or a fake "cuda", and modules on it."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)

    def put(self, module: nn.Module) -> Any:
        """The module with tensors of the same shapes and types there; Module.to refuses fakes."""
        for each in module.modules():
            for name, tensor in each._buffers.items():
                if tensor is not None:
                    each._buffers[name] = self.empty(*tensor.shape, dtype=tensor.dtype)
            for name, parameter in each._parameters.items():
                if parameter is not None:
                    new = nn.Parameter(self.empty(*parameter.shape), parameter.requires_grad)
                    each._parameters[name] = new
        return module

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def images(self, n: int) -> Tensor:
        return self.empty(n, 3, 32, 32)

    def labels(self, n: int) -> Tensor:
        return self.empty(n, dtype=torch.int64)

    def split(self, n: int) -> data.Split:
        return data.Split(self.empty(n, 32, 32, 3, dtype=torch.uint8), self.labels(n))

    def model(self, words: str = "") -> models.EnergyClassifier:
        settings, _ = flags.parse(f"{SMALL} --pyxce 1 {words}".split())
        with unset_fake_temporarily():
            cpu = build_model(settings, 10, torch.device("cpu"))
        cpu.amp = self.device.type == "cuda" and settings.amp != "off"
        return self.put(cpu)

    def run(self, words: str) -> tuple[Run, data.TrainingBatches]:
        settings, _ = flags.parse(f"{SMALL} {words}".split())
        model = self.model(words)
        with unset_fake_temporarily():
            objective = losses.build_objective(settings, 10)
        self.put(objective)
        optimizer = build_optimizer(settings, model, objective)
        optimizer.step = lambda: None  # a fused one needs a device
        settings.independent_batches = flags.second_batch(settings)
        settings.n_valid, settings.labels_per_class, split = 0, -1, self.split(64)
        batches, _ = build_batches(settings, data.DataSet("", 10, (), True, split, split.first(0)))
        run = Run(settings, 10, model, objective, optimizer)
        run.start_average()
        return run, batches


@contextmanager
def without_backward(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gradients of the right shape, in place of autograd's engine."""

    def grad(outputs: Tensor, inputs: Any, **_: Any) -> tuple[Tensor, ...]:
        each = [inputs] if isinstance(inputs, Tensor) else inputs
        return tuple(x.detach() + outputs.detach() for x in each)

    def backward(loss: Tensor) -> None:
        for parameter in backward.parameters:
            parameter.grad = parameter.detach() + loss.detach()

    patch.setattr(torch.autograd, "grad", grad)
    patch.setattr(torch.Tensor, "backward", backward)
    yield


@pytest.fixture(params=DEVICES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    _crops.cache_clear()
    monkeypatch.setattr(torch, "Generator", Generator)
    with ExitStack() as stack:
        if request.param == "cuda":
            monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", bool)
            monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
            stack.enter_context(without_backward(monkeypatch))
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        yield Place(request.param)
    _crops.cache_clear()


def take_steps(run: Run, batches: Callable[[int], Any], numbers: range) -> Guard:
    guard = Guard(run.device)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    torch.Tensor.backward.parameters = parameters
    run.model.train()
    for step in numbers:
        metrics = train_wrn.train_step(run, guard, batches(step), step)
        values = torch.stack(list(metrics.values()))
        run.window.add(values, list(metrics))
        run.epoch.add(values, list(metrics))
    return guard


# ---------------------------------------------------------------------------------- the training


def check_steps(place: Place, words: str) -> None:
    run, batches = place.run(words)
    take_steps(run, batches, range(1))  # an epoch's order is made on the host
    with Watch():
        guard = take_steps(run, batches, range(2, 4))  # step 3 measures gradients, too
    assert guard.flag.device.type == guard.first.device.type == place.device.type
    kept = [*run.objective.buffers(), run.epoch.sums, run.gradients.sums, guard.first]
    if run.ema is not None:
        with Watch(), run.averaged():  # as the evaluations of a run have it
            kept += [*run.ema.averages, run.ema.updates, *run.model.parameters()]
    assert {x.device.type for x in kept} == {place.device.type}


@pytest.mark.parametrize("terms", [*((term,) for term in TERMS), TERMS[1:]], ids="+".join)
def test_a_step_of_any_terms_never_waits(place, terms):
    check_steps(place, " ".join(f"--{term} 1" for term in terms))


OPTIONS = (
    *(f"--norm {norm}" for norm in ("batch", "instance", "layer", "act")),
    *(f"--contrast_score {s} --smoothing .1 --contrast_k 4" for s in CONTRAST_SCORES),
    *(f"--contrast_style {s} --optimizer sgd --no-contrast_normalize" for s in CONTRAST_STYLES),
    "--contrast_score eq13 --clip_grad 1 --sgld_l2 .1",
    "--contrast_style simclr --contrast_score eq13 --dropout_rate .1 --amp off",
    "--class_cond_p_x_sample --independent_batches --queue_init random --norm batch",
    "--labels_per_class 4 --norm batch --contrast_k 100",
    "--arch resnet50 --class_cond_p_x_sample --n_steps 1",
    "--clf_only --pxsgld 0 --pxysgld 0",
    "--ema .9 --norm batch --adam_betas 0 .9",
    "--ema .9 --clf_only --pxsgld 0 --pxysgld 0",
    "--uncond",
    "--uncond --pxycontrast 0 --pxcontrast 0 --pxysgld 0 --pyxce 0 --independent_batches",
    "--chain_start gaussian --sgld_grad_clip 1 --sgld_clamp --px_loss bce",
    "--chain_start class_gaussian --class_cond_p_x_sample --augment_px none --px_batch_size 6",
    *(f"--norm batch --bn_chains {s}" for s in ("batch", "running", "frozen --load_path a.pt")),
)


@pytest.mark.parametrize("words", OPTIONS)
def test_a_step_with_any_option_never_waits(place, words):
    check_steps(place, f"{ALL} {words}")


class Bad(nn.Module):
    """A made-up term."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, step: losses.Step) -> tuple[Tensor, losses.Metrics]:
        return self.loss(step.logits), {}


FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda f: f.mean() * f.detach().max().item(),
    "bool": lambda f: f.mean() if f.sum() > 0 else f.sum(),
    "cpu": lambda f: f.mean() + f.detach().cpu().mean().to(f.device),
    "nonzero": lambda f: f.flatten()[f.detach().flatten().nonzero()].mean(),
    "mask": lambda f: f[f.detach() > 0].mean(),
    "assigned to a mask": lambda f: f.clone().index_put((f > 0,), f.new_ones(())).mean(),
    "a number from the host": lambda f: f.mean() * torch.tensor(2.0, device=f.device),
    "an index of the host": lambda f: f[:, torch.arange(3)].mean(),
    "a label of the host": lambda f: f.gather(1, torch.zeros(len(f), 1, dtype=torch.int64)).mean(),
}


MADE_ON_META = ("a number from the host",)  # at once: nothing is copied


@pytest.mark.parametrize(
    ("place", "fault"),
    [(d, f) for d in DEVICES for f in FAULTS if d == "cuda" or f not in MADE_ON_META],
    indirect=["place"],
)
def test_a_term_that_waits_is_caught(place, fault):
    run, batches = place.run("--pyxce 1")
    run.objective.terms["pyxce"] = Bad(lambda logits: logits.mean())
    with Watch():
        images, labels = place.images(8), place.labels(8)
        take_steps(run, lambda _: (images, labels, None), range(1))
        run.objective.terms["pyxce"] = Bad(FAULTS[fault])
        with pytest.raises(CAUGHT):
            take_steps(run, lambda _: (images, labels, None), range(1))


def test_a_snapshot_stays_on_the_device(place, monkeypatch):
    run, batches = place.run(f"{ALL} --norm batch --ema .9")
    take_steps(run, batches, range(1))
    random = torch.zeros(8, dtype=torch.uint8)
    monkeypatch.setattr(torch, "get_rng_state", lambda: random)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: random)
    asked = host(monkeypatch)
    with Watch():
        state = snapshot(run)
    assert len(asked) == 3  # the sums of the meters, of a step's few numbers
    for part in ("model_state_dict", "replay_buffer", "objective", "optimizer", "ema"):
        tensors = [x for x in tree_leaves(state[part]) if isinstance(x, Tensor)]
        assert {x.device.type for x in tensors} <= {place.device.type}, part


# -------------------------------------------------------------------------------- the evaluations


def host(patch: pytest.MonkeyPatch) -> list[str]:
    """From now on numbers can be had from the device, made up, and each time is a name here."""
    asked: list[str] = []

    def made_up(name: str, answer: Callable[[Tensor], Any]) -> None:
        def ask(x: Tensor) -> Any:
            asked.append(name)
            return answer(x)

        patch.setattr(torch.Tensor, name, ask)
        patch.setattr(FakeTensor, name, ask, raising=False)  # some are its own

    made_up("cpu", lambda x: SimpleNamespace(numpy=lambda: np.zeros(x.shape)))
    made_up("tolist", lambda x: np.ones(x.shape).tolist())
    made_up("__int__", lambda x: 1)
    made_up("__bool__", lambda x: True)
    return asked


def test_evaluation_batches_never_wait_and_classification_once(place, monkeypatch):
    model = place.model("--norm batch")
    with Watch():
        found = list(data.evaluation_batches(place.split(20), batch_size=8, sigma=0.03))
        assert [len(x) for x, _ in found] == [8, 8, 4]
        assert {x.device.type for batch in found for x in batch} == {place.device.type}
        asked = host(monkeypatch)
        classification(model, found)
    assert asked == ["tolist"]


@pytest.mark.parametrize("words", ["", "--norm batch --amp off", "--uncond"])
def test_scores_wait_at_their_end_alone(place, words, monkeypatch):
    model, batches = place.model(words), [(place.images(8), place.labels(8))] * 2
    queue = losses.LogitQueue(10, 64)
    term = losses.Contrastive(losses.ContrastScore(), queue)
    place.put(term), place.put(queue)
    asked = host(monkeypatch)
    with Watch():
        bank = feature_bank(model, batches)
        assert asked == []
        found = scores(model, batches, SCORES, contrastive=term, bank=bank, k=3)
    assert asked == ["cpu"] * len(SCORES)
    assert [x.shape for x in found.values()] == [(16,)] * len(SCORES)


def chains_of(place: Place, model: models.EnergyClassifier) -> Iterator[Tensor]:
    """What evaluations refine and draw with SGLD."""
    blocks = [(place.images(8), place.labels(8))] * 2
    yield from (x for x, _ in sampling.refined(model, blocks, CHAIN, seed=1))
    for buffer in (None, place.put(losses.ReplayBuffer(40, (3, 32, 32), 0.05, 10))):
        drawn = sampling.Sampler(model, buffer, CHAIN, seed=1)
        yield drawn.conditional(10, 2, lambda x, y: model.log_pxy(x, y))
        yield from (drawn.unconditional(4), drawn.conditional(10, 2))
    slots = sampling.Slots(place.put(losses.ReplayBuffer(200, (3, 32, 32), 0.05, 10)))
    for conditional in (False, True):
        sgld = {"chain": CHAIN, "rounds": 2, "chains": 15, "seed": 1, "conditional": conditional}
        yield from sampling.sampling_rounds(model, slots, **sgld)
    more = {"seen": [0, 1, CHAIN.steps], "seed": 1, "labels": place.labels(5)}
    yield from itertools.chain(*sampling.fresh_chains(model, CHAIN, range(0, 5, 4), **more))


def attacks_of(place: Place, model: models.EnergyClassifier) -> Iterator[Tensor]:
    """Attacked images of each kind, and features and pixels of images."""
    sgld = {"copies": 2, "sigma": 0.03, "generator": Generator(place.device)}
    attacked = [robustness.classifier(model)]
    attacked += [
        robustness.classifier(model, CHAIN, gradient=gradient, **sgld)
        for gradient in ("full", "identity")
    ]
    batch = {"x": place.images(4), "y": place.labels(4), "eps": 0.1}
    for f, d, start in itertools.product(attacked, ("Linf", "L2"), (False, True)):
        generator = Generator(place.device)
        attack = robustness.PGD(d, steps=2, random_init=start)
        yield attack(f, **batch, generator=generator)
    yield from generation.model_extractor(model)(place.split(6).images)
    yield sampling.to_uint8(place.images(6))


@pytest.mark.parametrize("made", [chains_of, attacks_of])
@pytest.mark.parametrize("words", ["", "--norm batch --amp off"])
def test_chains_and_attacks_never_wait(place, made, words):
    model = place.model(words)
    with Watch():
        images = list(made(place, model))
    assert {x.device.type for x in images} == {place.device.type}


def test_an_attack_checks_its_images_in_one_wait(place, monkeypatch):
    asked = host(monkeypatch)
    with Watch(), pytest.raises(AssertionError, match="is 1 in L2"):  # the made-up answer
        robustness.check_perturbation(place.images(4), place.images(4), "L2", 0.5)
    assert asked == ["tolist"]
