"""The terms of the loss, each declared once: L = sum over terms of weight * loss.

The flags, the cost of a step, reports, tables and model cards read this declaration. To add a term
is to add a `Term` here and, in its file in losses/, a function of the term's name that builds it:

    Term("penalty", "penalty", formula="|f(x)|^2", how="L2 penalty", help="mean |f(x)|^2")

    def penalty(build):  # in losses/penalty.py; `build`: see losses.objective.Build
        return LogitPenalty()

Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OF_QUEUE = ("contrast_k", "contrast_t", "contrast_score", "contrast_style", "contrast_normalize")
OF_CHAINS = ("n_steps", "sgld_batch_size", "sgld_lr", "sgld_std", "buffer_size", "reinit_freq")


@dataclass(frozen=True)
class Term:
    """One term.

    name: its flag, its key in an Objective, and its columns '<name>/...' of progress.csv.
    file: of losses/, where the function `name` builds it.
    formula: what it minimises, for one image; how: in a word.
    help, source: of its flag; aliases: further names of the flag.
    heads: what its loss reads of the network: "class", the logits, or "energy", log q(x).
    queue: it takes negatives from the queue of logits. chains: the setting that is its number of
        SGLD chains a step, for a term that has any.
    second_batch: it reads the second, unlabelled batch, where there is one.
    passes: what a step of it takes besides the shared forward and backward pass and its chains, in
        forward passes of the batch.
    settings: those of the run that belong to it, and so tell runs with it apart.
    """

    name: str
    file: str
    formula: str
    how: str
    help: str
    source: str = "ours"
    aliases: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("class",)
    queue: bool = False
    chains: str | None = None
    second_batch: bool = False
    passes: float = 0
    settings: tuple[str, ...] = ()


# fmt: off
TERMS = {term.name: term for term in (
    Term("pyxce", "cross_entropy", "-log q(y|x)", "cross-entropy",
        "log q(y|x), cross-entropy", "HDGE Eq. 10", aliases=("--p_y_given_x_weight",)),
    Term("pxycontrast", "contrastive", "-log q(x|y)", "contrastive",
        "log q(x|y) against a queue of logits", "HDGE Algorithm 1", queue=True, settings=OF_QUEUE),
    Term("pxcontrast", "contrastive", "-log q(x)", "contrastive",
        "log q(x) against a queue of logits, all classes marked", "HDGE", queue=True,
        settings=OF_QUEUE),
    Term("pxsgld", "sgld", "-log q(x)", "SGLD",
        "log q(x) against SGLD samples", "JEM Algorithm 1", aliases=("--p_x_weight",),
        heads=("energy",), chains="sgld_batch_size", second_batch=True, settings=OF_CHAINS),
    Term("pxysgld", "sgld", "-log q(x|y)", "SGLD",
        "log q(x|y) against SGLD samples of the batch's classes", "JEM",
        aliases=("--p_x_y_weight",), heads=("class", "energy"), chains="batch_size",
        settings=OF_CHAINS),
)}


# fmt: on
def used(settings: Mapping[str, Any]) -> list[Term]:
    """Return the terms whose weight is above 0; `settings`: of a run, as variant.json has them."""
    weights = {name: settings.get(name) for name in TERMS}
    return [TERMS[name] for name, w in weights.items() if isinstance(w, int | float) and 0 < w]


def has_chains(settings: Mapping[str, Any]) -> bool:
    """Return whether the run learns from SGLD samples."""
    return any(term.chains for term in used(settings))


def flags(chosen: Callable[[Term], object], join: str = " or ") -> str:
    """Return the flags of the chosen terms in words: '--pxsgld or --pxysgld'."""
    names = [f"--{term.name}" for term in TERMS.values() if chosen(term)]
    return join.join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
