"""The papers' claims, held against the records of one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.results_tables.about import NOT_RUN, finished_seeds, states
from evaluation.results_tables.cells import Value, mean_of, value_of
from evaluation.results_tables.formats import value_text
from evaluation.results_tables.layout import SETS
from evaluation.results_tables.records import Record
from evaluation.results_tables.titles import column_title, digits


@dataclass(frozen=True)
class Claim:
    """`first` is larger than `second` in `key` ("<": smaller, "=": no difference)."""

    text: str
    first: str
    relation: str
    second: str
    key: str


def over_sets(text: str, first: str, second: str, score: str, other: str = "") -> list[Claim]:
    return [
        Claim(f"{text} ({other or score})", first, ">", second, f"auroc/{score}/{name}")
        for name in SETS
    ]


CLAIMS = [
    Claim("HDGE classifies better than cross-entropy", "hdge-bn", ">", "ce-bn", "accuracy/cifar10"),
    Claim("... than supervised contrastive learning", "hdge-bn", ">", "supcon-bn-linear",
          "accuracy/cifar10"),
    Claim("log q(x|y) alone classifies better than supervised contrastive learning", "hdge-only-bn",
          ">", "supcon-bn-linear", "accuracy/cifar10"),
    Claim("... its features, by a linear probe", "hdge-only-bn-linear", ">", "supcon-bn-linear",
          "accuracy/cifar10"),
    Claim("JEM costs accuracy", "jem", "<", "ce", "accuracy/cifar10"),
    Claim("HDGE gains accuracy, also without batch norm", "hdge", ">", "ce", "accuracy/cifar10"),
    *over_sets("HDGE detects OOD better than cross-entropy", "hdge", "ce", "px"),
    *over_sets("HDGE detects OOD better than JEM", "hdge", "jem", "px"),
    *over_sets("HDGE detects OOD better than JointLoss", "hdge-resnet50", "jointloss-resnet50",
               "px")[0:3:2],
    *over_sets("HDGE detects OOD better than contrastive pre-training", "hdge", "simclr-linear",
               "py"),
    Claim("64 negatives already detect better than JEM", "hdge-k64", ">", "jem", "auroc/px/svhn"),
    Claim("More negatives detect better", "hdge", ">", "hdge-k64", "auroc/px/svhn"),
    Claim("SimCLR style makes no difference", "hdge-simclr-style", "=", "hdge", "auroc/px/svhn"),
    Claim("Normalising the logits makes no difference", "hdge-raw", "=", "hdge", "auroc/px/svhn"),
    *(Claim(f"alpha = 0.5 detects better than {a}", "alpha0.5", ">", name, "auroc/px/svhn")
      for a, name in (("0", "alpha0"), ("0.25", "alpha0.25"), ("0.75", "alpha0.75"), ("1", "ce"))),
    Claim("HDGE is better calibrated than cross-entropy", "hdge-c100", "<", "ce-c100",
          "ece/cifar100"),
    Claim("... than JEM", "hdge-c100", "<", "jem-c100", "ece/cifar100"),
    Claim("HDGE + JEM samples better than JEM", "hdge-jem", "<", "jem", "fid/inception"),
    Claim("HDGE is more robust than cross-entropy", "hdge", ">", "ce", "robust/Linf/0.0078431"),
    # Beyond the papers: Algorithm 1 bounds the contrastive gradient.
    Claim("Beyond the paper: Eq. 13's score detects better than Algorithm 1's", "hdge-eq13", ">",
          "hdge", "auroc/px/svhn"),
    Claim("Beyond the paper: raw logits with Eq. 13 detect better", "hdge-eq13-raw", ">", "hdge",
          "auroc/px/svhn"),
]  # fmt: skip


def verdicts(records: Mapping[str, Record]) -> list[list[str]]:
    """Claim, in what, the two sides, verdict; of claims with a number on at least one side."""
    rows = []
    for claim in CLAIMS:
        sides = [_side(records.get(name), claim.key) for name in (claim.first, claim.second)]
        if not any(isinstance(side, Value) for side in sides):
            continue
        shown = [
            f"{name}: " + (value_text(side, digits(claim.key)) if isinstance(side, Value) else side)
            for name, side in zip((claim.first, claim.second), sides, strict=True)
        ]
        rows.append([claim.text, what(claim.key), *shown, verdict(claim.relation, *sides)])
    return rows


def what(key: str) -> str:
    title = column_title(key)
    if key.startswith("robust"):
        return f"accuracy under PGD, {title}"
    return f"AUROC, {title}" if key.startswith("auroc") else title


def _side(record: Record | None, key: str) -> Value | str:
    if record is None or not record["seeds"]:
        return NOT_RUN
    values = [v for seed in finished_seeds(record) if (v := value_of(seed, key)) is not None]
    return mean_of(values) if values else states(record) or "not asked"


def verdict(relation: str, first: Value | str, second: Value | str) -> str:
    """Holds or not: the difference of the means against twice its standard error over seeds.

    With one seed on a side there is no spread to judge by, and the verdict says so.
    """
    if isinstance(first, str) or isinstance(second, str):
        return "open"
    difference = first.mean - second.mean
    if first.std is None or second.std is None:
        direction = "no difference" if not difference else "higher" if difference > 0 else "lower"
        return f"{direction}; too few seeds to tell"
    error = math.sqrt(first.std**2 / first.n + second.std**2 / second.n)
    beyond = abs(difference) > 2 * error
    if relation == "=":
        return "does not hold" if beyond else "not contradicted: no difference beyond the spread"
    if not beyond:
        return "open: within the spread of the seeds"
    return "holds" if (difference > 0) == (relation == ">") else "does not hold"


def divergences(records: Mapping[str, Record]) -> tuple[list[int], list[int]]:
    """[diverged runs, runs] without SGLD, and with it."""
    counts = ([0, 0], [0, 0])
    for record in records.values():
        for seed in record["seeds"].values():
            sgld = any(seed["settings"].get(term) for term in ("pxsgld", "pxysgld"))
            counts[sgld][0] += bool(seed["divergences"] or seed["state"] == "diverged")
            counts[sgld][1] += 1
    return counts
