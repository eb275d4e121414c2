"""Load a trained model from its checkpoint: network, run settings, queue and replay buffer."""

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
from runs import terms
from runs.checkpoint import FILLED, START, CheckpointError, read_with_sha256
from runs.cli import UsageError, fits
from runs.names import ALIASES, CLASSES, FOLDER
from runs.shared import name_of, weights_file

T = TypeVar("T")
SHAPE = ("arch", "depth", "width", "norm", "uncond", "image_size")
NETWORK = (*SHAPE, "contrast_k")  # flags that must agree with the checkpoint


@dataclass
class LoadedModel:
    """A model, with the settings and the state of its checkpoint.

    flags: the command line's settings, which win over `settings`, the run's ({} if unknown).
    dataset: the training set's name, "" if unknown; record: the record of its images.
    queue: the logits (C, K) of the run's queue, None without a queue; state: the whole checkpoint.
    sha256: the checkpoint file's checksum; average: see `average_of`.
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
        """Return the names of the run's classes; their numbers if the checkpoint has no names."""
        names, n = self.record.class_names, self.num_classes
        return list(names) if len(names) == n else [str(y) for y in range(n)]

    @property
    def untrained_head(self) -> bool:
        """Return whether no loss has read the class head: SupCon's and SimCLR's do not, nor does
        --pxsgld with --uncond, the only term."""
        s, method = self.settings, self.settings.get("method")
        heads = {head for term in terms.used(s) for head in term.heads}
        energy_alone = bool(s.get("uncond")) and heads == {"energy"}
        trained_before = method == "linear-probe" or bool(s.get("load_path"))
        return method in ("supcon", "simclr") or (energy_alone and not trained_before)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def contrastive(self) -> losses.Contrastive:
        """Return the contrastive term log q(x|y) with the checkpoint's queue and the run's score.

        Raises UsageError if the checkpoint holds no queue or an empty queue, and for a score that
        does not exist here.
        """
        if (logits := self.queue) is None:
            raise UsageError(
                f"--score_fn pxsim: {self.path} has no queue: it takes a run with --pxycontrast or "
                "--pxcontrast and --contrast_style queue"
            )
        queue = losses.LogitQueue(*logits.shape)
        queue.queue_logit.copy_(logits)
        # HDGE's queue starts full of noise: without a count of filled slots the queue is full.
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
            term = losses.Contrastive(losses.ContrastScore(**score), queue)
        except ValueError as error:
            raise UsageError(
                f"--score_fn pxsim: {self.path} was trained with settings unknown here: {error}"
            ) from None
        # The queue is no submodule of the term, which has added a normaliser to it on the CPU.
        queue.to(self.device)
        return term

    def replay_buffer(self, classes: int) -> losses.ReplayBuffer:
        """Return the checkpoint's replay buffer, or with --fresh_samples a new one of --buffer_size
        images.

        classes: the number of classes that share its slots; 1 for unconditional chains. Raises
        UsageError if the checkpoint has no buffer or its size is no multiple of `classes`.
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
        # Its constructor draws from the host's global random state, which must not change.
        with fits(f"--buffer_size {size}"), torch.random.fork_rng(devices=[]):
            buffer = losses.ReplayBuffer(size, shape, reinit_freq, classes).to(self.device)
            buffer.start = self.start()
            buffer.fill(data.generator_of(self.device, self.flags.seed, BUFFER))
        if images is not None:
            buffer.images.copy_(images)
        return buffer

    def buffer_images(self, remedy: str) -> Tensor:
        """Return the images (N, 3, H, W) of the checkpoint's replay buffer. Raises UsageError, with
        `remedy`, if it has no buffer of the network's image size."""
        images, side = self.state.get("replay_buffer"), self.network.image_size
        if not isinstance(images, Tensor) or images.shape[1:] != (3, side, side) or not len(images):
            raise UsageError(f"--load_path {self.path} holds no replay buffer: {remedy}")
        return images.float()

    def chain(self, steps: int, start: losses.Start | None = None) -> losses.Chain:
        """Return a chain of `steps` steps with the run's SGLD settings, which flags override. New
        chains begin at `start`, by default uniform noise."""
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
        """Return the weight of log q(y|x) in class-conditional chains."""
        return self.setting("guidance", 1.0)

    def start(self) -> losses.Start:
        """Return the start of new chains. Raises UsageError if its Gaussians are missing."""
        kind = self.setting("chain_start", "uniform")
        if kind == "uniform":
            return losses.UniformStart()
        objective = self.state.get("objective", {})
        gaussians = {n: objective.get(START + n) for n in ("mean", "root")}
        run_kind = str(self.settings.get("chain_start", "uniform"))
        if kind != run_kind or not all(isinstance(t, Tensor) for t in gaussians.values()):
            leave_out = f"its chains start from {run_kind}: leave it out"
            remedy = "give uniform" if kind == run_kind else leave_out
            raise UsageError(f"--chain_start {kind}: {self.path} holds no such Gaussians: {remedy}")
        start = losses.GaussianStart(len(gaussians["mean"]))
        start.load_state_dict(gaussians)
        return start.to(self.device)

    def setting(self, name: str, default: T) -> T:
        """Return the command line's value, else the run's, else the default, in the default's type.
        Raises UsageError for a run's setting that cannot be converted to that type."""
        values = (getattr(self.flags, name, None), self.settings.get(name), default)
        value: Any = next(value for value in values if value is not None)
        try:
            return type(default)(value)  # type: ignore[call-arg]
        except (TypeError, ValueError):
            remedy = f"give --{name}" if hasattr(self.flags, name) else "use another checkpoint"
            raise UsageError(
                f"--load_path {self.path}: its {name} is {value!r}, not a number: {remedy}"
            ) from None


def load(
    path: str, label: str, s: Namespace, device: torch.device, flag: str = "--load_path"
) -> LoadedModel:
    """Load the model of a checkpoint or of an exported folder onto the device, in eval mode.

    Raises CheckpointError, one line with `flag`, for a file that cannot be used, and for a network
    flag that contradicts the checkpoint.
    """
    file = weights_file(path)
    try:
        state, sha256 = read_with_sha256(file)
        run, average = models.run_settings(state, file), average_of(state, s.weights)
        # The flags describe the network of --load_path, not that of --fid_model.
        given = {name: getattr(s, name) for name in SHAPE} if flag == "--load_path" else {}
        raw = s.weights == "raw"
        network = models.from_checkpoint(state, run, raw=raw, **given)
        queue, classes, flow = None, network.num_classes, isinstance(network, models.Flow)
        if not flow:
            queue = models.network_weights(state, raw=raw).get("queue_logit")
        record = data.Record.read(state.get("data"))
        if queue is not None and (queue.ndim != 2 or len(queue) != classes):
            defect = f"its queue has shape {tuple(queue.shape)}, not ({classes}, K)"
            raise CheckpointError(f"{defect}: use another")
    except (CheckpointError, ValueError) as error:
        subject = flag if str(file) in str(error) else f"{flag} {path}"
        raise CheckpointError(f"{subject}: {error}") from None
    network.amp = s.amp == "bf16"
    network = network.to(device).eval()
    if not flow:  # normflows needs weights in their own memory format
        network = network.to(memory_format=torch.channels_last)
    slots = 0 if queue is None else queue.shape[1]
    if s.contrast_k not in (None, slots):
        has = f"a queue of {slots}" if slots else "no queue"
        raise CheckpointError(f"--contrast_k {s.contrast_k}: {path} has {has}: leave the flag out")
    dataset = dataset_of(run.settings, classes, record, s, network.image_size)
    training = run.settings, dataset, record
    return LoadedModel(file, label, network, s, *training, queue, state, sha256, average)


def average_of(state: dict[str, Any], weights: str | None) -> str:
    """Return which weights --weights loads, "raw" or "averaged (--ema DECAY)"; "" for a run without
    --ema. Raises CheckpointError if they are missing, as raw weights are in an exported model."""
    settings = state.get("settings")
    both = bool(models.averaged_weights(state))  # an exported model has no raw weights
    decay = settings.get("ema") if isinstance(settings, dict) else None
    has = "the averaged weights alone" if decay else "no averaged weights"
    if (weights == "ema" and not (decay or both)) or (weights == "raw" and decay and not both):
        raise CheckpointError(f"--weights {weights}: it has {has}: leave --weights out")
    if not (decay or both):
        return ""
    return "raw" if weights == "raw" else f"averaged (--ema {decay})"


def dataset_of(
    settings: dict[str, Any], classes: int, record: data.Record, s: Namespace, size: int
) -> str:
    """Return the training set's name: the run's, or that of --dataset where both are folders and
    have the same training images or the run's no longer exists. If the run's is unknown or of
    another number of classes, return that of --dataset if its number fits; else cifar10 for 10,
    cifar100 for 100, else ""."""
    run_set = str(settings.get("dataset") or "")
    run_set = ALIASES.get(run_set, run_set)
    flag_set = trainable(s.dataset or "")
    if run_set.startswith(FOLDER) and flag_set is not None and flag_set.startswith(FOLDER):
        path = folder_path(run_set)
        # A folder that has moved may also have other images: `Context.compare` warns of them.
        moved = folder_path(flag_set).resolve() == path.resolve() or not path.is_dir()
        moved = moved or data.same_training_images(record, flag_set, s.data_root, size)
        return flag_set if moved else run_set
    if CLASSES.get(run_set) == classes or run_set.startswith(FOLDER):
        return run_set
    if flag_set is not None and CLASSES.get(flag_set, classes) == classes:
        return flag_set
    return {10: "cifar10", 100: "cifar100"}.get(classes, "")


def trainable(name: str) -> str | None:
    """Return the training set (of CLASSES, or a folder) of a split's name; None for other sets."""
    try:
        dataset = data.locate(name).dataset
    except data.DataError:
        return None
    return dataset if dataset in CLASSES or dataset.startswith(FOLDER) else None


def labels_of(paths: list[str]) -> list[str]:
    """Return short and distinct names of checkpoints: their run folders' names; if two of these are
    equal, with the file's name; if two are still equal, with a number."""
    names = [name_of(path) for path in paths]
    if len(set(names)) < len(paths):
        names = [f"{name}/{Path(path).stem}" for name, path in zip(names, paths, strict=True)]
    if len(set(names)) < len(paths):
        names = [f"{name} ({i})" for i, name in enumerate(names, 1)]
    return names
