"""Declare the terms of the loss L = sum over terms of weight * loss.

Flags, the cost of a step, reports, tables and model cards read these declarations. To add a term,
add a `Term` to TERMS and, in its file in losses/, a function of the term's name that builds it:

    Term("penalty", "penalty", formula="|f(x)|^2", how="L2 penalty", help="mean |f(x)|^2")

    def penalty(build):  # in losses/penalty.py; `build`: see losses.objective.Build
        return LogitPenalty()

Nothing slow is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OF_QUEUE = ("contrast_k", "contrast_t", "contrast_score", "contrast_style", "contrast_normalize")
OF_CHAINS = ("n_steps", "sgld_batch_size", "sgld_lr", "sgld_std", "buffer_size", "reinit_freq")


@dataclass(frozen=True)
class Term:
    """Declare one term of the loss.

    name: of the flag --name, the key in an Objective, and the columns 'name/...' of progress.csv.
    file: module of losses/ with the function `name`, which builds the term.
    formula: the loss of one image; how: the method's name in reports.
    help, source: of the flag in --help; aliases: further names of the flag.
    heads: the outputs that the loss reads: "class" for the logits, "energy" for log q(x).
    queue: whether the term takes negatives from the queue of logits.
    chains: the setting that is the term's number of SGLD chains per step; None without chains.
    second_batch: whether the term reads the second, unlabelled batch, if the run draws it.
    passes: cost per step in forward passes of the batch, beyond chains and the shared passes.
    settings: the run's settings that the term reads. In the tables, runs that differ in them are
        different methods and not seeds of one method.
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
    """Return the terms of weight above 0. settings: a run's settings, as in variant.json."""
    weights = {name: settings.get(name) for name in TERMS}
    return [TERMS[name] for name, w in weights.items() if isinstance(w, int | float) and 0 < w]


def has_chains(settings: Mapping[str, Any]) -> bool:
    """Return whether a term of the run draws SGLD samples."""
    return any(term.chains for term in used(settings))


def flags(chosen: Callable[[Term], object], join: str = " or ") -> str:
    """Return the flags of the chosen terms as text: "--pxsgld or --pxysgld"."""
    names = [f"--{term.name}" for term in TERMS.values() if chosen(term)]
    return join.join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
