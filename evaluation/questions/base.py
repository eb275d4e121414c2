"""Define the parts of a question to a trained model.

Flags are parsed before torch is imported: a question's file imports heavy packages in functions.
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

Rule = tuple[str, tuple[str, ...]]  # a flag and its value; the flags without effect beside it
Numbers = dict[str, Any]
# Flags that several questions take.
NOISY = ("dataset", "max_images", "sigma", "n_steps")  # for batches of noisy, refined images
SCORED = (*NOISY, "score_fn", "ood_dataset", "knn_k", "contrast_t", "contrast_score")
CHAINS = ("dataset", "n_steps", "sgld_batch_size", "chain_start")
ROUNDS = (*CHAINS, "n_sample_steps", "print_every", "fresh_samples", "buffer_size", "reinit_freq")
SGLD = ("sgld_lr", "sgld_std", "sgld_grad_clip", "sgld_clamp")  # flags that every question takes


@dataclass(frozen=True)
class Question:
    """A value of --eval: its flags, its numbers and their output.

    name: value of --eval and stem of the answer's files; summary: the question's line in --help.
    ask: return one model's numbers as JSON values. A "report" {"title", "text", "head", "rows"}
        among them becomes a section of the run's page.
    show: print the numbers of all models, each with its "label", and draw pictures.
    takes: names of the flags that this question takes and some other questions do not.
    defaults: this question's default values of flags; add_flags: declare its own flags.
    idle: return the flags without effect under the settings; check: raise UsageError for conflicts.
    several: whether the question takes several checkpoints.
    version: numbers of the same version are comparable. Raise it when the computation changes
        (docs/protocol.md), but not when only its random numbers change.
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
    """Return, for --n_steps 0, the rule that the SGLD flags have no effect."""
    return () if s.n_steps else [("n_steps 0", SGLD)]


def unscored(s: Namespace) -> Iterable[Rule]:
    """Return the rules of `unrefined`, and those for scores that are not among --score_fn."""
    yield from unrefined(s)
    scores = f"score_fn {' '.join(s.score_fn)}"
    if "knn" not in s.score_fn:
        yield scores, ("knn_k",)
    if "pxsim" not in s.score_fn:
        yield scores, ("contrast_t", "contrast_score")
