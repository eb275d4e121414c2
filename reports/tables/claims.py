"""The papers' claims, held against the records of one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from reports.tables.about import NOT_RUN, finished_seeds, states
from reports.tables.cells import NOT_ASKED, Value, keys_of, measured
from reports.tables.formats import value_text
from reports.tables.layout import SETS
from reports.tables.records import Record
from reports.tables.titles import column_title, digits, natural
from runs.terms import has_chains


@dataclass(frozen=True)
class Claim:
    """`first` is larger than `second` in `key` ("<": smaller, "=": no difference).

    A key that ends in "/" stands for one that begins so and that both sides have (see `common`).
    """

    text: str
    first: str
    relation: str
    second: str
    key: str


def over_sets(
    text: str,
    first: str,
    second: str,
    score: str = "px",
    relation: str = ">",
    sets: Sequence[str] = SETS,
) -> list[Claim]:
    return [
        Claim(f"{text} ({score})", first, relation, second, f"auroc/{score}/{name}")
        for name in sets
    ]


def over_cifar(text: str, first: str, second: str) -> list[Claim]:
    """Of accuracy on CIFAR-10 and on CIFAR-100, whose experiments end in -c100."""
    return [
        Claim(text, first + end, ">", second + end, f"accuracy/{dataset}")
        for end, dataset in (("", "cifar10"), ("-c100", "cifar100"))
    ]


CLAIMS = [
    *over_cifar("HDGE classifies better than cross-entropy", "hdge-bn", "ce-bn"),
    *over_cifar("HDGE classifies better than supervised contrastive learning", "hdge-bn",
                "supcon-bn-linear"),
    *over_cifar("HDGE classifies better than JEM", "hdge-bn", "jem-bn"),
    *over_cifar("HDGE classifies better than log q(x|y) alone", "hdge-bn", "hdge-only-bn"),
    *over_cifar("log q(x|y) alone classifies better than supervised contrastive learning",
                "hdge-only-bn", "supcon-bn-linear"),
    *over_cifar("The features of log q(x|y) alone are better than supervised contrastive "
                "learning's, by a linear probe", "hdge-only-bn-linear", "supcon-bn-linear"),
    Claim("JEM costs accuracy", "jem", "<", "ce", "accuracy/cifar10"),
    Claim("HDGE gains accuracy, also without batch norm", "hdge", ">", "ce", "accuracy/cifar10"),
    *over_sets("HDGE detects OOD better than cross-entropy", "hdge", "ce"),
    *over_sets("HDGE detects OOD better than JEM", "hdge", "jem"),
    # The paper has no number of JointLoss on interpolations, and 64 negatives behind on CelebA.
    *over_sets("HDGE detects OOD better than JointLoss", "hdge-resnet50", "jointloss-resnet50",
               sets=("svhn", "cifar100", "celeba")),
    *over_sets("HDGE detects OOD better than contrastive pre-training", "hdge", "simclr-linear",
               "py"),
    *over_sets("64 negatives already detect better than JEM", "hdge-k64", "jem",
               sets=("svhn", "cifar10interp", "cifar100")),
    *over_sets("More negatives detect better", "hdge", "hdge-k64"),
    Claim("A step of JEM takes longer than one of HDGE", "jem", ">", "hdge", "ms_per_step"),
    *over_sets("SimCLR style makes no difference", "hdge-simclr-style", "hdge", relation="="),
    *over_sets("Normalising the logits makes no difference", "hdge-raw", "hdge", relation="="),
    *(claim for a, name in (("0", "alpha0"), ("0.25", "alpha0.25"), ("0.75", "alpha0.75"),
                            ("1", "ce"))
      for claim in over_sets(f"alpha = 0.5 detects better than {a}", "alpha0.5", name)),
    *(Claim(f"alpha = 0.5 classifies better than {a}", "alpha0.5", ">", name, "accuracy/cifar10")
      for a, name in (("0", "alpha0"), ("1", "ce"))),
    Claim("HDGE is better calibrated than cross-entropy", "hdge-c100", "<", "ce-c100",
          "ece/cifar100"),
    Claim("HDGE is better calibrated than JEM", "hdge-c100", "<", "jem-c100", "ece/cifar100"),
    Claim("HDGE + JEM samples better than JEM", "hdge-jem", "<", "jem", "fid/"),
    Claim("HDGE is more robust than cross-entropy", "hdge", ">", "ce", "robust/Linf/0.0078431"),
    Claim("HDGE is more robust than cross-entropy", "hdge", ">", "ce", "robust/L2/0.25"),
    Claim("HDGE is as robust as JEM", "hdge", "=", "jem", "robust/Linf/0.0078431"),
    Claim("HDGE is as robust as JEM", "hdge", "=", "jem", "robust/L2/0.25"),
    Claim("More negatives classify better", "hdge-c100-k65536", ">", "hdge-c100-k256",
          "accuracy/cifar100"),
    *over_sets("Beyond the paper's sets: HDGE detects OOD better than cross-entropy", "hdge", "ce",
               sets=("textures", "faces")),
    # Beyond the papers: Algorithm 1 bounds the contrastive gradient.
    *over_sets("Beyond the paper: Eq. 13's score detects better than Algorithm 1's", "hdge-eq13",
               "hdge"),
    *over_sets("Beyond the paper: Eq. 13's score of raw logits detects better than Algorithm 1's",
               "hdge-eq13-raw", "hdge"),
]  # fmt: skip


def verdicts(records: Mapping[str, Record]) -> tuple[list[list[str]], list[str]]:
    """Claim, in what, the two sides, verdict, of claims whose two sides were run; and the texts of
    the others."""
    rows, open_claims = [], list[str]()
    for claim in CLAIMS:
        names = [known(name, records) for name in (claim.first, claim.second)]
        found = [records.get(name) for name in names]
        key = common(claim.key, found)
        sides = [_side(record, key) for record in found]
        if any(unready(side) for side in sides):
            open_claims += [] if claim.text in open_claims else [claim.text]
            continue
        shown = [
            f"{name}: " + (value_text(side, digits(key)) if isinstance(side, Value) else side)
            for name, side in zip(names, sides, strict=True)
        ]
        rows.append([claim.text, what(key), *shown, verdict(claim.relation, *sides)])
    judged = {row[0] for row in rows}
    return rows, [text for text in open_claims if text not in judged]


def known(name: str, records: Mapping[str, Record]) -> str:
    """The experiment, or JEM's with the stable sampler at scales that have it alone."""
    stable = name.replace("jem", "jem-stable")
    return stable if name not in records and stable in records else name


def unready(side: Value | str) -> bool:
    """There is no number yet; a diverged run will have none, and is told."""
    return isinstance(side, str) and (side in (NOT_RUN, NOT_ASKED) or "unfinished" in side)


def common(key: str, records: Sequence[Record | None]) -> str:
    """The key that a claim is judged by; itself where there is none in common.

    Of several Inception's goes first, then the most samples; a network's own features tell nothing
    about another network's samples.
    """
    if not key.endswith("/"):
        return key
    known = [keys_of(record) if record else set() for record in records]
    both = [k for k in set.intersection(*known) if k.startswith(key)]
    return max((k for k in sorted(both) if not is_own(k)), key=weight, default=key)


def is_own(key: str) -> bool:
    return key.split("/")[-1].partition("-")[0] == "own"


def weight(key: str) -> tuple[bool, float]:
    """Inception before other features, and more samples before fewer: without a number, all of
    them."""
    features = key.split("/")[-1]
    name, _, n = features.rpartition("-")
    samples = float(n) if name and n.isdecimal() else math.inf
    return features.partition("-")[0] == "inception", samples


def what(key: str) -> str:
    title = column_title(key)
    if key.startswith("robust"):
        distance = {"Linf": "L\N{INFINITY}"}.get(key.split("/")[1], key.split("/")[1])
        return f"accuracy under PGD, {distance} {title}"
    return f"AUROC, {title}" if key.startswith("auroc") else title


def _side(record: Record | None, key: str) -> Value | str:
    if record is None or not record["seeds"]:
        return NOT_RUN
    return measured(finished_seeds(record), key) or states(record) or NOT_ASKED


def verdict(relation: str, first: Value | str, second: Value | str) -> str:
    """Holds or not, by Welch's t-test: |difference of the means| against t(.975, df) times its
    standard error over seeds, with Welch and Satterthwaite's degrees of freedom (Welch 1947).

    With one seed on a side there is no spread to judge by, and the verdict says so.
    """
    if isinstance(first, str) or isinstance(second, str):
        return "open"
    difference = first.mean - second.mean
    if first.std is None or second.std is None:
        direction = "no difference" if not difference else "higher" if difference > 0 else "lower"
        return f"{direction}; too few seeds to tell"
    beyond = abs(difference) > noise(first.std, first.n, second.std, second.n)
    if relation == "=":
        return "does not hold" if beyond else "not contradicted: no difference beyond the spread"
    if not beyond:
        return "open: within the spread of the seeds"
    return "holds" if (difference > 0) == (relation == ">") else "does not hold"


def noise(first: float, n: int, second: float, m: int) -> float:
    """The largest difference of two means of n and m seeds that Welch's test at 5 %, two-sided,
    takes for noise; `first` and `second` are the sample standard deviations."""
    a, b = first**2 / n, second**2 / m
    if not a + b:
        return 0.0
    freedom = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))
    return float(stdtrit(freedom, 0.975)) * math.sqrt(a + b)


GRADIENT_HEAD = ["Experiment", "Term", "Norm of its gradient", "Cosine with cross-entropy's"]


def gradient_rows(records: Mapping[str, Record]) -> list[list[str]]:
    """Each term's gradient before its weight, the mean over the steps that were measured."""
    rows = []
    for name, record in records.items():
        for key in sorted(keys_of(record), key=natural):
            kind, _, term = key.partition("/")
            if kind == "gradient":
                norm, cosine = _side(record, key), _side(record, f"cosine/{term}")
                row = [value_text(v, 3) if isinstance(v, Value) else "-" for v in (norm, cosine)]
                rows.append([name, term, *row])
    return rows


def divergences(records: Mapping[str, Record]) -> tuple[list[int], list[int]]:
    """[diverged runs, runs] without SGLD, and with it; a linear probe is no run that could."""
    counts = ([0, 0], [0, 0])
    for record in records.values():
        for seed in record["seeds"].values():
            if seed["settings"].get("method") == "linear-probe":
                continue
            sgld = has_chains(seed["settings"])
            counts[sgld][0] += bool(seed["divergences"] or seed["state"] == "diverged")
            counts[sgld][1] += 1
    return counts
