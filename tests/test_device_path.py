"""The GPU's path on a machine without a GPU: the host never waits, and devices do not mix.

Every test runs twice: on device "meta", whose tensors have shapes and no values, with the whole
backward pass; and on a fake "cuda" device (FakeTensorMode), with bf16 and without the backward
pass, which needs a real device.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
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
from evaluation.loading import LoadedModel
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
    "--dataset cifar10 --depth 10 --width 1 --batch_size 8 --sgld_batch_size 8 --n_steps 1 "
    "--buffer_size 200 --contrast_k 256 --seed 1 --compile off --log_gradients 3"
)
CHAIN = losses.Chain(2)


class Wait(Exception):
    """The host would wait for the device, or an operation has tensors of two devices."""


class Watch(TorchDispatchMode):
    """Raise Wait for operations that "meta" and fake devices let pass: a copy between devices, also
    of one number or of an index, and an assignment to the True entries of a boolean mask."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in (torch.ops.aten.index_put_, torch.ops.aten.index_put):
            if any(x is not None and x.dtype == torch.bool for x in args[1]):
                raise Wait(f"{func}: a boolean mask")
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        devices = {x.device.type for x in tensors if x.ndim or copies}
        if len(devices) > 1:
            raise Wait(f"{func}: {' and '.join(sorted(devices))}")
        return result


class Generator(torch.Generator):
    """A generator of the CPU that claims to be on another device."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        generator = super().__new__(cls)
        generator.claimed = torch.device(device)
        return generator

    @property
    def device(self) -> torch.device:
        return self.claimed


class Place:
    """Device "meta" or a fake "cuda", and modules on it."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)

    def put(self, module: nn.Module) -> Any:
        """Exchange the module's tensors for tensors on the device; Module.to refuses fakes."""
        for part in module.modules():
            for name, tensor in part._buffers.items():
                if tensor is not None:
                    part._buffers[name] = self.empty(*tensor.shape, dtype=tensor.dtype)
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    new = nn.Parameter(self.empty(*parameter.shape), parameter.requires_grad)
                    part._parameters[name] = new
        return module

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def images(self, n: int) -> Tensor:
        return self.empty(n, 3, 32, 32)

    def labels(self, n: int) -> Tensor:
        return self.empty(n, dtype=torch.int64)

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        return self.images(n), self.labels(n)

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
    """Make gradients of the right shape, without autograd's engine."""

    def grad(outputs: Tensor, inputs: Any, **_: Any) -> tuple[Tensor, ...]:
        tensors = [inputs] if isinstance(inputs, Tensor) else inputs
        return tuple(x.detach() + outputs.detach() for x in tensors)

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


def take_steps(run: Run, batches: Callable[[int], Any], steps: range) -> Guard:
    guard = Guard(run.device)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    torch.Tensor.backward.parameters = parameters
    run.model.train()
    for step in steps:
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
        guard = take_steps(run, batches, range(3, 4))  # it measures gradients, too
    state = [*run.objective.buffers(), run.epoch.sums, run.gradients.sums, guard.first, guard.flag]
    if run.ema is not None:
        with Watch(), run.averaged():  # as the evaluations of a run have it
            state += [*run.ema.averages, run.ema.updates, *run.model.parameters()]
    assert {x.device.type for x in state} == {place.device.type}


@pytest.mark.parametrize("terms", [*((term,) for term in TERMS), TERMS[1:]], ids="+".join)
def test_a_step_with_any_terms_never_waits(place, terms):
    check_steps(place, " ".join(f"--{term} 1" for term in terms))


OPTIONS = (
    *(f"--norm {norm}" for norm in ("batch", "instance", "layer", "act")),
    *(f"--contrast_score {s} --smoothing .1 --contrast_k 4" for s in CONTRAST_SCORES),
    *(f"--contrast_style {s} --optimizer sgd --no-contrast_normalize" for s in CONTRAST_STYLES),
    "--contrast_score eq13 --clip_grad 1 --sgld_l2 .1",
    "--contrast_style simclr --contrast_score eq13 --dropout_rate .1 --amp off",
    "--class_cond_p_x_sample --independent_batches --queue_init random --norm batch",
    "--labels_per_class 4 --norm batch --contrast_k 100",
    pytest.param("--arch resnet50 --class_cond_p_x_sample", marks=pytest.mark.slow),
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


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.max().item(),
    "bool": lambda x: x.mean() if x.sum() > 0 else x.sum(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "assigned to a mask": lambda x: x.clone().index_put((x > 0,), x.new_ones(())),
    "a number from the host": lambda x: x * torch.tensor(2.0, device=x.device),
    "an index of the host": lambda x: x[:, torch.arange(3)],
    "a label of the host": lambda x: x.gather(1, torch.zeros(len(x), 1, dtype=torch.int64)),
}


def test_every_wait_is_caught(place):
    logits = place.empty(8, 10)
    for name, wait in WAITS.items():
        if (place.device.type, name) == ("meta", "a number from the host"):
            continue  # made on the device: nothing is copied
        with Watch(), pytest.raises((Wait, RuntimeError)):  # PyTorch's own errors are RuntimeErrors
            wait(logits)


def test_a_snapshot_stays_on_the_device(place, monkeypatch):
    run, batches = place.run(f"{ALL} --norm batch --ema .9")
    take_steps(run, batches, range(1))
    random = torch.zeros(8, dtype=torch.uint8)
    monkeypatch.setattr(torch, "get_rng_state", lambda: random)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda _: random)
    waits = fake_waits(monkeypatch)
    with Watch():
        state = snapshot(run)
    assert len(waits) == 3  # the sums of the meters, of a step's few numbers
    for part in ("model_state_dict", "replay_buffer", "objective", "optimizer", "ema"):
        tensors = [x for x in tree_leaves(state[part]) if isinstance(x, Tensor)]
        assert {x.device.type for x in tensors} <= {place.device.type}, part


# -------------------------------------------------------------------------------- the evaluations


def fake_waits(patch: pytest.MonkeyPatch) -> list[str]:
    """Let reads from the device return made-up numbers, and list the name of each read."""
    waits: list[str] = []

    def fake(name: str, answer: Callable[[Tensor], Any]) -> None:
        def read(x: Tensor) -> Any:
            waits.append(name)
            return answer(x)

        for kind in (torch.Tensor, FakeTensor):  # a FakeTensor overrides some
            patch.setattr(kind, name, read, raising=False)

    fake("cpu", lambda x: SimpleNamespace(numpy=lambda: np.zeros(x.shape)))
    fake("tolist", lambda x: np.ones(x.shape).tolist())
    fake("__int__", lambda x: 1)
    fake("__bool__", lambda x: True)
    return waits


def test_evaluation_batches_never_wait_and_classification_once(place, monkeypatch):
    model = place.model("--norm batch")
    with Watch():
        batches = list(data.evaluation_batches(place.split(20), batch_size=8, sigma=0.03))
        assert [len(x) for x, _ in batches] == [8, 8, 4]
        assert {x.device.type for batch in batches for x in batch} == {place.device.type}
        waits = fake_waits(monkeypatch)
        classification(model, batches)
    assert waits == ["tolist"]


@pytest.mark.parametrize("words", ["", "--norm batch --amp off", "--uncond"])
def test_scores_wait_at_their_end_alone(place, words, monkeypatch):
    model, batches = place.model(words), [place.batch(8)] * 2
    waits = fake_waits(monkeypatch)
    training = {}, "", data.Record()
    queue = torch.zeros(10, 2048)  # of a checkpoint, which is read onto the CPU
    loaded = LoadedModel(Path(), "", model, Namespace(), *training, queue, {}, "", "")
    term = loaded.contrastive()
    waits.clear()
    with Watch():
        bank = feature_bank(model, batches)
        assert waits == []
        values = scores(model, batches, SCORES, contrastive=term, bank=bank, k=3)
    assert waits == ["cpu"] * len(SCORES)
    assert [x.shape for x in values.values()] == [(16,)] * len(SCORES)


def chains_of(place: Place, model: models.EnergyClassifier) -> Iterator[Tensor]:
    """Refine and draw images with SGLD, as evaluations do."""
    blocks = [place.batch(8)] * 2
    yield from (x for x, _ in sampling.refined(model, blocks, CHAIN, seed=1))
    for buffer in (None, place.put(losses.ReplayBuffer(40, (3, 32, 32), 0.05, 10))):
        drawn = sampling.Sampler(model, buffer, CHAIN, seed=1)
        yield drawn.conditional(10, 2, lambda x, y: model.log_pxy(x, y))
        yield from (drawn.unconditional(4), drawn.conditional(10, 2))
    slots = sampling.Slots(place.put(losses.ReplayBuffer(200, (3, 32, 32), 0.05, 10)))
    for conditional in (False, True):
        sgld = {"chain": CHAIN, "rounds": 2, "chains": 15, "seed": 1, "conditional": conditional}
        yield from sampling.sampling_rounds(model, slots, **sgld)
    fresh = {"seen": [0, 1, CHAIN.steps], "seed": 1, "labels": place.labels(5)}
    yield from itertools.chain(*sampling.fresh_chains(model, CHAIN, range(0, 5, 4), **fresh))


def attacks_of(place: Place, model: models.EnergyClassifier) -> Iterator[Tensor]:
    """Attack images in every way, and return features and pixels of images."""
    generator = Generator(place.device)
    classifiers = [robustness.classifier(model)]
    for gradient in ("full", "identity"):
        sgld = {"copies": 2, "sigma": 0.03, "generator": generator}
        classifiers.append(robustness.classifier(model, CHAIN, gradient=gradient, **sgld))
    for f, norm, start in itertools.product(classifiers, ("Linf", "L2"), (False, True)):
        attack = robustness.PGD(norm, steps=2, random_init=start)
        yield attack(f, *place.batch(4), eps=0.1, generator=generator)
    yield from generation.model_extractor(model)(place.split(6).images)
    yield sampling.to_uint8(place.images(6))


@pytest.mark.parametrize("make", [chains_of, attacks_of])
@pytest.mark.parametrize("words", ["", "--norm batch --amp off"])
def test_chains_and_attacks_never_wait(place, make, words):
    model = place.model(words)
    with Watch():
        images = list(make(place, model))
    assert {x.device.type for x in images} == {place.device.type}


def test_an_attack_checks_its_images_in_one_wait(place, monkeypatch):
    waits = fake_waits(monkeypatch)
    with Watch(), pytest.raises(AssertionError, match="is 1 in L2"):  # the made-up number
        robustness.check_perturbation(place.images(4), place.images(4), "L2", 0.5)
    assert waits == ["tolist"]
