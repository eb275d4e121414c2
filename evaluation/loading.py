"""A trained model as its checkpoint describes it: network, settings, queue and replay buffer."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import data
import losses
import models
from data.folder import folder_path
from evaluation.sampling import BUFFER
from runs.checkpoint import FILLED, START, CheckpointError, read_with_sha256
from runs.cli import UsageError, fits
from runs.names import ALIASES, CLASSES, FOLDER
from runs.shared import name_of, weights_file

T = TypeVar("T")
SHAPE = ("arch", "depth", "width", "norm", "uncond", "image_size")
NETWORK = (*SHAPE, "contrast_k")  # flags that must agree with the checkpoint


@dataclass
class LoadedModel:
    """
    flags: the command line's, which win over the run's settings.
    settings: the run's; {} where neither the file nor its folder has them.
    dataset: what it was trained on, as far as is known; record: which images these were.
    queue: the logits (C, K) of its queue, if it has one; state: the whole checkpoint.
    sha256: of the file that was loaded.
    average: which weights of a run with --ema these are; "" of any other run.
    """

    path: Path
    label: str
    network: models.EnergyClassifier
    flags: Namespace
    settings: dict[str, Any]
    dataset: str
    record: data.Record
    queue: Tensor | None
    state: dict[str, Any]
    sha256: str
    average: str

    @property
    def flow(self) -> models.Flow | None:
        """Return the network if it is a flow."""
        return self.network if isinstance(self.network, models.Flow) else None

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def class_names(self) -> list[str]:
        """Return the names of the run's classes; their numbers where the checkpoint lacks them."""
        names, n = self.record.class_names, self.num_classes
        return list(names) if len(names) == n else [str(y) for y in range(n)]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def contrastive(self) -> losses.Contrastive:
        """Return the contrastive term log q(x|y) with the queue that the checkpoint holds, by the
        score that the run trained with.

        Raises UsageError where the checkpoint holds no queue, and for a score that does not exist.
        """
        if (logits := self.queue) is None:
            raise UsageError(
                f"--score_fn pxsim: {self.path} has no queue: it takes a run with --pxycontrast or "
                "--pxcontrast and --contrast_style queue"
            )
        queue = losses.LogitQueue(*logits.shape)
        queue.queue_logit.copy_(logits)
        # The ancestors' queue starts full, of noise, and so is always full.
        full = queue.queue_filled.fill_(logits.shape[1])
        queue.queue_filled.copy_(self.state.get("objective", {}).get(FILLED, full))
        if not int(queue.queue_filled):
            raise UsageError(f"--score_fn pxsim: the queue of {self.path} is still empty")
        score: dict[str, Any] = {
            "kind": self.setting("contrast_score", "algorithm1"),
            "normalize": self.setting("contrast_normalize", True),
            "smoothing": self.setting("smoothing", 0.0),
            "temperature": self.setting("contrast_t", 0.1),
        }
        try:
            return losses.Contrastive(losses.ContrastScore(**score), queue).to(self.device)
        except ValueError as error:
            raise UsageError(
                f"--score_fn pxsim: {self.path} was trained with settings unknown here: {error}"
            ) from None

    def replay_buffer(self, classes: int) -> losses.ReplayBuffer:
        """Return the checkpoint's replay buffer, or with --fresh_samples a new one of --buffer_size
        images.

        `classes` share its slots; 1 for unconditional chains. Raises UsageError where the
        checkpoint has no buffer, and for a size that the classes cannot share.
        """
        fresh = self.flags.fresh_samples
        images = None if fresh else self.buffer_images("--fresh_samples starts a new one")
        size = self.flags.buffer_size if images is None else len(images)
        if size % classes:
            raise UsageError(
                f"--buffer_size {size} is not divisible by {classes} classes: use "
                f"{max(1, size // classes) * classes} with --fresh_samples"
            )
        shape = (3, self.network.image_size, self.network.image_size)
        reinit_freq = self.setting("reinit_freq", 0.05)
        # It fills itself on the host from the global random state, which must not move.
        with fits(f"--buffer_size {size}"), torch.random.fork_rng(devices=[]):
            buffer = losses.ReplayBuffer(size, shape, reinit_freq, classes).to(self.device)
            buffer.start = self.start()
            buffer.fill(data.generator_of(self.device, self.flags.seed, BUFFER))
        if images is not None:
            buffer.images.copy_(images)
        return buffer

    def buffer_images(self, remedy: str) -> Tensor:
        """Return the images (N, 3, H, W) of the checkpoint's replay buffer. Raises UsageError, with
        the remedy, where it has no buffer."""
        images, side = self.state.get("replay_buffer"), self.network.image_size
        if not isinstance(images, Tensor) or images.shape[1:] != (3, side, side) or not len(images):
            raise UsageError(f"--load_path {self.path} holds no replay buffer: {remedy}")
        return images.float()

    def chain(self, steps: int, start: losses.Start | None = None) -> losses.Chain:
        """Return the run's chain of so many steps, under the command line's flags; `start`: where
        new chains begin."""
        return losses.Chain(
            steps=steps,
            step_size=self.setting("sgld_lr", 1.0),
            noise_std=self.setting("sgld_std", 0.01),
            grad_clip=self.setting("sgld_grad_clip", math.inf),
            clamp=self.setting("sgld_clamp", False),
            guidance=self.guidance,
            start=start or losses.UniformStart(),
        )

    @property
    def guidance(self) -> float:
        """Return the weight of log q(y|x) in chains of a class."""
        return self.setting("guidance", 1.0)

    def start(self) -> losses.Start:
        """Return the start of chains. Raises UsageError if the checkpoint lacks its Gaussians."""
        kind = self.setting("chain_start", "uniform")
        if kind == "uniform":
            return losses.UniformStart()
        objective = self.state.get("objective", {})
        found = {n: objective.get(START + n) for n in ("mean", "root")}
        own = str(self.settings.get("chain_start", "uniform"))
        if kind != own or not all(isinstance(t, Tensor) for t in found.values()):
            remedy = "give uniform" if kind == own else f"its chains start from {own}: leave it out"
            raise UsageError(f"--chain_start {kind}: {self.path} holds no such Gaussians: {remedy}")
        start = losses.GaussianStart(len(found["mean"]))
        start.load_state_dict(found)
        return start.to(self.device)

    def setting(self, name: str, default: T) -> T:
        """Return the value of the command line, else of the run, else the default, in its type.
        Raises UsageError for a run's setting that is no number where it should be one."""
        given = (getattr(self.flags, name, None), self.settings.get(name), default)
        value: Any = next(each for each in given if each is not None)
        try:
            return type(default)(value)  # type: ignore[call-arg]
        except (TypeError, ValueError):
            remedy = f"give --{name}" if hasattr(self.flags, name) else "use another checkpoint"
            raise UsageError(
                f"--load_path {self.path}: its {name} is {value!r}, no number: {remedy}"
            ) from None


def load(
    path: str, label: str, s: Namespace, device: torch.device, flag: str = "--load_path"
) -> LoadedModel:
    """Return the model of a checkpoint or an exported folder, on the device, in eval mode.

    Raises CheckpointError, one line with the `flag`, for a file that cannot be used, and where a
    flag of the network contradicts it.
    """
    file = weights_file(path)
    try:
        state, sha256 = read_with_sha256(file)
        told, average = models.run_settings(state, file), average_of(state, s.weights)
        given = {name: getattr(s, name) for name in SHAPE}
        raw = s.weights == "raw"
        network = models.from_checkpoint(state, told, raw=raw, **given)
        queue, classes, flow = None, network.num_classes, isinstance(network, models.Flow)
        if not flow:
            queue = models.network_weights(state, raw=raw).get("queue_logit")
        record = data.Record.read(state.get("data"))
        if queue is not None and (queue.ndim != 2 or len(queue) != classes):
            said = f"its queue has shape {tuple(queue.shape)}, not ({classes}, K)"
            raise CheckpointError(f"{said}: use another")
    except (CheckpointError, ValueError) as error:
        said = str(error)
        where = "" if str(file) in said else f" {path}"
        raise CheckpointError(f"{flag}{where}: {said}") from None
    network.amp = s.amp == "bf16"
    network = network.to(device).eval()
    if not flow:  # normflows needs weights as they are
        network = network.to(memory_format=torch.channels_last)
    slots = 0 if queue is None else queue.shape[1]
    if s.contrast_k not in (None, slots):
        has = f"a queue of {slots}" if slots else "no queue"
        raise CheckpointError(f"--contrast_k {s.contrast_k}: {path} has {has}: leave the flag out")
    dataset = dataset_of(told.settings, classes, record, s, network.image_size)
    run = told.settings, dataset, record
    return LoadedModel(file, label, network, s, *run, queue, state, sha256, average)


def average_of(state: dict[str, Any], asked: str | None) -> str:
    """Return which weights of a run with --ema are loaded where --weights is `asked`; "" for any
    other run. Raises CheckpointError where it lacks them, as an exported model lacks the raw."""
    settings, both = state.get("settings"), bool(models.averaged_weights(state))
    decay = settings.get("ema") if isinstance(settings, dict) else None
    has = "the averaged weights alone" if decay else "no averaged weights"
    if (asked == "ema" and not (decay or both)) or (asked == "raw" and decay and not both):
        raise CheckpointError(f"--weights {asked}: it has {has}: leave --weights out")
    if not (decay or both):
        return ""
    return "raw" if asked == "raw" else f"averaged (--ema {decay})"


def dataset_of(
    settings: dict[str, Any], classes: int, record: data.Record, s: Namespace, size: int
) -> str:
    """Return the data set's name: the run's own, or that of --dataset where both are folders with
    the same training images; else that of --dataset if it has as many classes; else 10 classes mean
    cifar10 and 100 cifar100. Return "" if it is unknown."""
    own = str(settings.get("dataset") or "")
    own = ALIASES.get(own, own)
    asked = trainable(s.dataset or "")
    if own.startswith(FOLDER) and asked is not None and asked.startswith(FOLDER):
        same = folder_path(asked).resolve() == folder_path(own).resolve()
        same = same or data.same_training_images(record, asked, s.data_root, size)
        return asked if same else own
    if CLASSES.get(own) == classes or own.startswith(FOLDER):
        return own
    if asked is not None and CLASSES.get(asked, classes) == classes:
        return asked
    return {10: "cifar10", 100: "cifar100"}.get(classes, "")


def trainable(name: str) -> str | None:
    """Return the set to train on that a split's name belongs to; None for any other set."""
    try:
        dataset = data.locate(name).dataset
    except data.DataError:
        return None
    return dataset if dataset in CLASSES or dataset.startswith(FOLDER) else None


def labels_of(paths: list[str]) -> list[str]:
    """Return short and distinct names: those of the run folders; where two are the same, with the
    file's name or a number."""
    names = [name_of(path) for path in paths]
    if len(set(names)) < len(paths):
        names = [f"{name}/{Path(path).stem}" for name, path in zip(names, paths, strict=True)]
    if len(set(names)) < len(paths):
        names = [f"{name} ({i})" for i, name in enumerate(names, 1)]
    return names
