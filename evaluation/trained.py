"""A trained model as its checkpoint describes it: network, settings, queue and replay buffer."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import losses
import models
from training.checkpoint import CheckpointError, read_checkpoint
from training.flags import CLASSES, UsageError


@dataclass
class Trained:
    """`settings`: the run's, {} where neither the file nor its folder tells; `dataset`: what it was
    trained on, as far as is known."""

    path: Path
    label: str
    model: models.EnergyClassifier
    num_classes: int
    dataset: str
    settings: dict[str, Any]
    weights: dict[str, Tensor]
    state: dict[str, Any]

    def contrastive(self, s: Namespace) -> losses.Contrastive:
        """The contrastive term log q(x|y) with the queue that the checkpoint holds.

        Raises UsageError where it holds none.
        """
        logits = self.weights.get("queue_logit")
        if logits is None:
            raise UsageError(
                f"--score_fn pxsim: {self.path} has no queue: it takes a run with --pxycontrast or "
                "--pxcontrast and --contrast_style queue"
            )
        classes, size = logits.shape
        if s.contrast_k not in (None, size):
            raise UsageError(f"--contrast_k {s.contrast_k}: the queue of {self.path} has {size}")
        queue = losses.LogitQueue(classes, size)
        queue.queue_logit.copy_(logits)
        # The ancestors' queue starts full, of noise, and so is always full.
        filled = self.state.get("objective", {}).get("memories.queue.queue_filled")
        queue.queue_filled.fill_(size) if filled is None else queue.queue_filled.copy_(filled)
        if not int(queue.queue_filled):
            raise UsageError(f"--score_fn pxsim: the queue of {self.path} is still empty")
        score = losses.ContrastScore(
            kind=self.value(s, "contrast_score", "algorithm1"),
            normalize=bool(self.settings.get("contrast_normalize", True)),
            temperature=float(self.value(s, "contrast_t", 0.1)),
        )
        return losses.Contrastive(score, queue).to(self.device)

    def replay_buffer(self, s: Namespace) -> losses.ReplayBuffer:
        """The checkpoint's, or with --fresh_samples a new one of --buffer_size images.

        Raises UsageError where the checkpoint has none.
        """
        reinit = float(self.value(s, "reinit_freq", 0.05))
        images = None if s.fresh_samples else self.buffer_images("--fresh_samples starts a new one")
        size = s.buffer_size if images is None else len(images)
        if size % self.num_classes:
            raise UsageError(
                f"--buffer_size {size} is not divisible by {self.num_classes} classes: use "
                f"{max(1, size // self.num_classes) * self.num_classes} with --fresh_samples"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.seed)
            buffer = losses.ReplayBuffer(size, (3, 32, 32), reinit, self.num_classes)
        if images is not None:
            buffer.images.copy_(images)
        return buffer.to(self.device)

    def buffer_images(self, remedy: str) -> Tensor:
        """(N, 3, 32, 32); raises UsageError, with the remedy, where the checkpoint has none."""
        images = self.state.get("replay_buffer")
        if not isinstance(images, Tensor) or images.shape[1:] != (3, 32, 32) or not len(images):
            raise UsageError(f"--load_path {self.path} holds no replay buffer: {remedy}")
        return images

    def sgld(self, s: Namespace) -> dict[str, Any]:
        """Step size and noise of a chain."""
        return {
            "step_size": float(self.value(s, "sgld_lr", 1.0)),
            "noise_std": float(self.value(s, "sgld_std", 0.01)),
        }

    def value(self, s: Namespace, name: str, default: Any) -> Any:
        """The command line's, else the run's, else the default."""
        given = getattr(s, name)
        if given is not None:
            return given
        return self.settings.get(name, default)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load(path: str, label: str, s: Namespace, device: torch.device) -> Trained:
    """Raises CheckpointError, one line that names --load_path, for a file that cannot be used, and
    where a flag of the network contradicts it."""
    file = Path(path)
    try:
        state = read_checkpoint(file)
        weights = models.network_weights(state)
        given = {name: getattr(s, name) for name in ("arch", "depth", "width", "norm", "uncond")}
        shape = models.network_settings(state, file, **given)
        model = models.build(**shape)
        models.load_weights(model, weights)
    except (CheckpointError, ValueError) as error:
        said = str(error)
        where = "" if str(file) in said else f" {path}"
        raise CheckpointError(f"--load_path{where}: {said}") from None
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise CheckpointError(f"--load_path {path}: its weights are not finite: use another")
    model.amp = s.amp == "bf16"
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    settings = run_settings(state, file)
    classes = shape["num_classes"]
    return Trained(
        file, label, model, classes, trained_on(settings, classes), settings, weights, state
    )


def run_settings(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """All settings of the run: the checkpoint's own, or else those of HDGE's variant.json or JEM's
    params.txt beside it."""
    if isinstance(state.get("settings"), dict):
        return state["settings"]
    for file in (path.with_name("variant.json"), path.with_name("params.txt")):
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))  # models has read it already
            return found if isinstance(found, dict) else {}
    return {}


def trained_on(settings: dict[str, Any], num_classes: int) -> str:
    """The data set's name; where nobody tells, 10 classes mean cifar10 and 100 cifar100."""
    name = str(settings.get("dataset", "")).replace("cifar_100", "cifar100")
    if CLASSES.get(name) == num_classes or name.startswith("folder:"):
        return name
    return {10: "cifar10", 100: "cifar100"}.get(num_classes, "")


def labels_of(paths: list[str]) -> list[str]:
    """Short and distinct names: the run folders', with the file's where that is not enough."""
    folders = [Path(path).resolve().parent.name for path in paths]
    if len(set(folders)) == len(paths):
        return folders
    return [f"{folder}/{Path(path).stem}" for folder, path in zip(folders, paths, strict=True)]
