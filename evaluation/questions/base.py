"""The parts of a question to a trained model.

Flags are parsed before torch is imported: a question's file imports what is heavy in functions.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.context import Context
    from evaluation.loading import LoadedModel
else:
    Context = LoadedModel = Tensor = Any

Rule = tuple[str, tuple[str, ...]]  # a flag with its value; the flags that have no effect with it
Numbers = dict[str, Any]
# Flags that several questions take.
NOISY = ("dataset", "max_images", "sigma", "n_steps")  # batches of a set, with noise, refined
SCORED = (*NOISY, "score_fn", "ood_dataset", "knn_k", "contrast_t", "contrast_score")
CHAINS = ("dataset", "n_steps", "sgld_batch_size", "chain_start")
ROUNDS = (*CHAINS, "n_sample_steps", "print_every", "fresh_samples", "buffer_size", "reinit_freq")
SGLD = ("sgld_lr", "sgld_std", "sgld_grad_clip", "sgld_clamp")  # which every question takes


@dataclass(frozen=True)
class Question:
    """
    name: of --eval and of the answer's files; summary: its line in --help.
    ask: the numbers of one model, as JSON has them. A "report" {"title", "text", "head", "rows"}
        among them is a section of the run's page.
    show: print the numbers of all models, which also have a "label", and draw pictures.
    takes: the flags that not every question takes; defaults: of those that depend on it.
    add_flags: declare the flags of this question alone.
    idle: flags that have no effect with these settings; check: raise UsageError for others.
    several: whether it takes several checkpoints; else its files belong to one.
    version: numbers of one version can be compared: raise it with every change of what is computed
        (docs/protocol.md), but not of the random numbers that it is computed with.
    """

    name: str
    summary: str
    ask: Callable[[Context, LoadedModel], Numbers]
    show: Callable[[Context, list[Numbers]], None]
    takes: tuple[str, ...]
    version: int = 1
    several: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    idle: Callable[[Namespace], Iterable[Rule]] = lambda s: ()
    check: Callable[[Namespace], None] = lambda s: None


def unrefined(s: Namespace) -> Iterable[Rule]:
    return () if s.n_steps else [("n_steps 0", SGLD)]
