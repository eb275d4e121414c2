"""The weighted sum of loss terms, and the step that every term reads."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from models import EnergyClassifier, batch_statistics_only
from runs import terms
from runs.cli import UsageError

Metrics = dict[str, Tensor]


@dataclass
class Build:
    """The arguments of a term's build function: a run's settings, and memories to share."""

    settings: Namespace
    num_classes: int
    memories: dict[str, Any] = field(default_factory=dict)

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the memory `name`. The first call makes it, by `make`."""
        if name not in self.memories:
            self.memories[name] = make()
        return self.memories[name]


def build_objective(settings: Namespace, num_classes: int) -> Objective:
    """Build each term with a weight above 0 by the function of the term's name in the term's file.
    Each of several processes holds a part of the chains and the replay buffer, and the whole queue.
    """
    build, weighted = Build(settings, num_classes), {}
    for term in terms.used(vars(settings)):
        make = getattr(import_module(f"losses.{term.file}"), term.name)
        weighted[term.name] = (getattr(settings, term.name), make(build))
    return Objective(weighted)


@dataclass
class Step:
    """A batch, and its forward pass, which all terms share.

    images (N, 3, H, W) in [-1, 1] plus noise; labels (N,) int64; features (N, D);
    logits (N, C) = f(x); unlabelled (M, 3, H, W), the images of `data_log_px`, or None:
    `data_log_px` then takes `images`, which have the same distribution if all labels are in use.
    """

    model: EnergyClassifier
    images: Tensor
    labels: Tensor
    features: Tensor
    logits: Tensor
    unlabelled: Tensor | None = None

    @classmethod
    def forward(
        cls,
        model: EnergyClassifier,
        images: Tensor,
        labels: Tensor,
        unlabelled: Tensor | None = None,
    ) -> Step:
        features = model.features(images)
        return cls(model, images, labels, features, model.logits_from(features), unlabelled)

    def data_log_px(self) -> Tensor:
        """Return log q(x) (M,) of the data that the density is fitted to."""
        if self.unlabelled is None:
            return self.model.log_px_from(self.features, self.logits)
        with batch_statistics_only(self.model):  # only the labelled pass moves running statistics
            return self.model.log_px(self.unlabelled)


class BatchLoss(nn.Module):
    """The loss of a batch as one forward pass, for DistributedDataParallel. SGLD chains run within
    it, on the bare model. `rest` holds the terms' losses, the metrics and the step. `forward` does
    not return them, since the wrapper would search them for parameters that were used."""

    rest: tuple[dict[str, Tensor], Metrics, Step]

    def __init__(self, model: EnergyClassifier, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, images: Tensor, labels: Tensor, unlabelled: Tensor | None = None) -> Tensor:
        step = Step.forward(self.model, images, labels, unlabelled)
        loss, losses, metrics = self.objective.with_terms(step)
        self.rest = losses, metrics, step
        return loss


class Objective(nn.Module):
    """L = sum over terms of weight * loss; `terms` maps a name to (weight, term).

    A term is an nn.Module with `forward(step) -> (loss, metrics)`. Metrics are finite scalars, the
    same in every step: they are averaged over steps and processes. State that a term keeps between
    steps (the queue, the replay buffer) is a *memory*: a module with `commit(step, skip)` in the
    term's dict `memories`. Terms may share a memory. It is registered here, once, so that it
    follows `.to(device)` and is saved once. Of several processes each sees its part of the batch,
    but the first one's memory is saved: `commit` must leave the same in all of them. (The replay
    buffer is the exception: it is saved whole.) A loop calls `commit` after each update.

    Raises ValueError for an empty objective, if two terms give the same name to two memories, or
    for a step whose metrics have other names than those of the step before.
    """

    def __init__(self, terms: dict[str, tuple[float, nn.Module]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("the objective is empty: give at least one loss a weight above 0")
        self.weights = {name: weight for name, (weight, _) in terms.items()}
        self.terms = nn.ModuleDict({name: term for name, (_, term) in terms.items()})
        self.metric_names: list[str] = []  # of the last step's metrics
        self.memories = nn.ModuleDict()
        for term in self.terms.values():
            for name, memory in getattr(term, "memories", {}).items():
                if name in self.memories and self.memories[name] is not memory:
                    raise ValueError(f"two terms bring different memories named {name!r}")
                self.memories[name] = memory

    def forward(self, step: Step) -> tuple[Tensor, Metrics]:
        """Return the weighted loss and metrics: detached scalars '<term>/<name>', and 'loss'."""
        loss, _, metrics = self.with_terms(step)
        return loss, metrics

    def with_terms(self, step: Step) -> tuple[Tensor, dict[str, Tensor], Metrics]:
        """Return the weighted loss, the terms' losses (with graph, without weight) by name, and the
        metrics of `forward`."""
        losses, metrics = {}, Metrics()
        total = torch.zeros((), device=step.logits.device)
        for name, term in self.terms.items():
            losses[name], extras = term(step)
            total = total + self.weights[name] * losses[name]
            scalars = {"loss": losses[name], **extras}
            metrics |= {f"{name}/{key}": value.detach() for key, value in scalars.items()}
        if self.metric_names not in ([], [*metrics]):
            differing = ", ".join({*self.metric_names} ^ {*metrics}) or "their order"
            raise UsageError(
                f"a term's metrics must be the same in every step ({differing} changed)"
            )
        self.metric_names = [*metrics]
        return total, losses, {**metrics, "loss": total.detach()}

    def commit(self, step: Step, skip: Tensor | None = None) -> None:
        """Commit the step to every memory; where the flag `skip` () is set, no memory changes."""
        if skip is None:
            skip = torch.zeros((), dtype=torch.bool, device=step.logits.device)
        for memory in self.memories.values():
            memory.commit(step, skip)  # type: ignore[operator]
