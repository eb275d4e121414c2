"""The papers' claims, held against the records of one scale by Welch's t-test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from reports.tables import DECLARED
from reports.tables.about import NOT_RUN
from reports.tables.formats import value_text
from reports.tables.records import Record
from reports.tables.table import NO_DATA, NOT_ASKED, OTHER_FEATURES, Number, keys_of, measured
from reports.tables.titles import digits, features_and_count, full_title, natural

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
CLAIMS = [(*claim, key) for *claim, keys in DECLARED["claims"] for key in keys]
OPEN = (NOT_RUN, NOT_ASKED, NO_DATA, OTHER_FEATURES)  # a diverged run will have no number


@dataclass(frozen=True)
class Verdict:
    """`text` says more than `group`. `margin`: the difference of the means over the largest one
    that passes for noise."""

    claim: str
    scale: str
    what: str
    sides: tuple[str, str]
    group: str
    text: str
    margin: float

    @property
    def cells(self) -> list[str]:
        found = [self.claim, self.what, self.scale, *self.sides]
        return [*found, self.text] if self.group == UNDECIDED else found


def verdicts(scale: str, records: Mapping[str, Record]) -> tuple[list[Verdict], list[str]]:
    """Judge the claims whose two sides were run; return the texts of the others, too."""
    judged, unjudged = [], list[str]()
    for text, first, relation, second, key in CLAIMS:
        names = [known(name, records) for name in (first, second)]
        found = [records.get(name) for name in names]
        key = common(key, found)
        sides = [measured(record, key) for record in found]
        if any(side.state in OPEN or "unfinished" in side.state for side in sides):
            unjudged.append(text)
            continue
        shown = [
            f"{n}: {value_text(side, digits(key))}" for n, side in zip(names, sides, strict=True)
        ]
        group = verdict(relation, *sides)
        judged.append(Verdict(text, scale, full_title(key), (shown[0], shown[1]), *group))
    texts = {each.claim for each in judged}
    return judged, [text for text in dict.fromkeys(unjudged) if text not in texts]


def known(name: str, records: Mapping[str, Record]) -> str:
    """Return the experiment, or JEM's with the stable sampler at scales that have it alone."""
    stable = name.replace("jem", "jem-stable")
    return stable if name not in records and stable in records else name


def common(key: str, records: Sequence[Record | None]) -> str:
    """Return the key that a claim is judged by; itself where there is none in common.

    Of several Inception's goes first, then the most samples; a network's own features tell nothing
    about another network's samples.
    """
    if not key.endswith("/"):
        return key

    def rank(found: str) -> tuple[bool, float]:
        features, n = features_and_count(found.removeprefix(key))
        return features == "inception", math.inf if n is None else n

    both = set.intersection(*(keys_of(record) if record else set() for record in records))
    found = [k for k in sorted(both) if k.startswith(key) and not k.startswith(f"{key}own")]
    return max(found, key=rank, default=key)


def verdict(relation: str, first: Number, second: Number) -> tuple[str, str, float]:
    """Return group, text and margin by Welch's t-test at 5 %, two-sided.

    With one seed on a side there is no spread to judge by, and the text says so.
    """
    if first.mean is None or second.mean is None:
        return UNDECIDED, "no number", 0.0
    difference = first.mean - second.mean
    if first.std is None or second.std is None:
        direction = "no difference" if not difference else "higher" if difference > 0 else "lower"
        return UNDECIDED, f"{direction}; too few seeds to tell", 0.0
    least = noise(first.std, first.n, second.std, second.n)
    margin = abs(difference) / least if least else math.inf * bool(difference)
    if margin <= 1:
        no = "not contradicted: no difference beyond the spread"
        return UNDECIDED, no if relation == "=" else "open: within the spread of the seeds", margin
    holds = relation == (">" if difference > 0 else "<")
    return HOLDS if holds else CONTRADICTED, "holds" if holds else "does not hold", margin


def noise(first: float, n: int, second: float, m: int) -> float:
    """Return the largest difference of two means of n and m seeds that Welch's test takes for
    noise: t(.975, df) times its standard error, with Welch and Satterthwaite's degrees of freedom
    (Welch 1947). `first` and `second` are the sample standard deviations."""
    a, b = first**2 / n, second**2 / m
    if not a + b:
        return 0.0
    freedom = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))
    return float(stdtrit(freedom, 0.975)) * math.sqrt(a + b)


def gradient_rows(records: Mapping[str, Record]) -> list[list[str]]:
    """Return experiment, term, and each term's gradient before its weight: norm and cosine with
    cross-entropy's, means over the steps that were measured."""
    return [
        [name, key.partition("/")[2]]
        + [
            value_text(measured(record, of), 3) if of in found else "-"
            for of in (key, key.replace("gradient/", "cosine/"))
        ]
        for name, record in records.items()
        for found in [keys_of(record)]
        for key in sorted(found, key=natural)
        if key.startswith("gradient/")
    ]
