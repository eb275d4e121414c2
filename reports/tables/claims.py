"""The papers' claims, held against the records of one scale by Welch's t-test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.stats import ttest_ind

from reports.tables import DECLARED, table
from reports.tables.about import NOT_RUN
from reports.tables.formats import value_text
from reports.tables.records import Record, finished_seeds, start_of
from reports.tables.titles import digits, features_and_count, full_title, natural

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
CLAIMS: Mapping[str, Sequence[tuple[str, str, str, str, Sequence[str]]]] = DECLARED["claims"]
# A diverged run will have no number.
OPEN = (NOT_RUN, table.NOT_ASKED, table.NO_DATA, table.OTHER_FEATURES)
LEVEL = 0.05  # of the claims of a table and scale together
MARGINS = {"auroc": 0.02, "robust": 1.0}  # of no difference; the second in points


@dataclass(frozen=True)
class Test:
    """A claim's sides, and the values of one measure of each side's seeds where both have some."""

    claim: str
    relation: str
    key: str  # the measure's, or the first of several whose mean it is
    title: str
    names: tuple[str, str]
    sides: tuple[table.Number, table.Number]
    values: tuple[tuple[float, ...], ...] = ()

    @property
    def difference(self) -> float:
        first, second = map(fmean, self.values)
        return first - second

    def welch(self, level: float = LEVEL) -> tuple[float | None, float, float]:
        """Return Welch's two-sided p of no difference of the means, and the difference's interval
        at confidence 1 - level; None, and all numbers, without two seeds on each side."""
        if not self.values or min(map(len, self.values)) < 2:
            return None, -math.inf, math.inf
        if all(len(set(values)) == 1 for values in self.values):  # no spread
            return float(not self.difference), self.difference, self.difference
        found = ttest_ind(*self.values, equal_var=False)
        low, high = found.confidence_interval(1 - level)
        return float(found.pvalue), float(low), float(high)


@dataclass(frozen=True)
class Verdict:
    """`text` says more than `group`. `difference`: with its interval. `margin`: the difference over
    half the interval's width."""

    claim: str
    scale: str
    what: str
    sides: tuple[str, str]
    difference: str
    group: str
    text: str
    margin: float

    @property
    def cells(self) -> list[str]:
        found = [self.claim, self.what, self.scale, *self.sides, self.difference]
        return [*found, self.text] if self.group == UNDECIDED else found


def verdicts(scale: str, records: Mapping[str, Record]) -> tuple[list[Verdict], list[str]]:
    """Judge the claims whose two sides were run, those of a table together; return the texts of the
    others, too."""
    judged, unjudged = [], list[str]()
    for claims in CLAIMS.values():
        tests = [compared(claim, records) for claim in claims]
        judged += family(scale, [test for test in tests if isinstance(test, Test)])
        unjudged += [test for test in tests if isinstance(test, str)]
    texts = {each.claim for each in judged}
    return judged, [text for text in dict.fromkeys(unjudged) if text not in texts]


def compared(
    claim: tuple[str, str, str, str, Sequence[str]], records: Mapping[str, Record]
) -> Test | str:
    """Return the test of a claim, by the mean of those of its columns that both sides have, or its
    text where a side was not run."""
    text, first, relation, second, keys = claim
    names = [known(name, records) for name in (first, second)]
    found = [records.get(name, {}) for name in names]
    keys = [common(key, found) for key in keys]
    in_both = [k for k in keys if all(table.measured(r, k).mean is not None for r in found)]
    values = tuple(per_seed(record, in_both) for record in found) if in_both else ()
    if all(values) and values:
        sides = [table.mean_of(each) for each in values]
    else:
        values, sides = (), [table.measured(record, keys[0]) for record in found]
        if any(side.state in OPEN or "unfinished" in side.state for side in sides):
            return text
    shown = [
        f"{name}, from {other}" if other in map(start_of, record.values()) else name
        for name, other, record in zip(names, reversed(names), found, strict=True)
    ]
    measure = (keys[0], title_of(in_both or keys[:1]))
    return Test(text, relation, *measure, (shown[0], shown[1]), (sides[0], sides[1]), values)


def per_seed(record: Record, keys: Sequence[str]) -> tuple[float, ...]:
    """Return of each finished seed that has all of the columns their mean."""
    found = map(table.values_of, finished_seeds(record).values())
    return tuple(fmean(each[key] for key in keys) for each in found if each.keys() >= {*keys})


def title_of(keys: Sequence[str]) -> str:
    """Return the title of a column, or of the mean of several."""
    titles = [full_title(key).partition(", ") for key in keys]
    if len(keys) == 1:
        return "".join(titles[0])
    return f"{titles[0][0]}, mean of {', '.join(rest for *_, rest in titles)}"


def family(scale: str, tests: Sequence[Test]) -> list[Verdict]:
    """Judge the claims of one table at a family-wise level of 5 %.

    A claim of a direction is decided by Holm's procedure (Holm 1979); one of no difference by its
    interval, which must lie within the margin, or outside of it. All intervals have the level at
    which that procedure stopped, 5 % over the number of claims that it left, so that one without
    zero is that of a decided claim.
    """
    p = {test: found for test in tests if (found := test.welch()[0]) is not None}
    left, decided = len(p), set[Test]()
    for test in sorted((test for test in p if test.relation != "="), key=p.__getitem__):
        if p[test] > LEVEL / left:
            break
        decided.add(test)
        left -= 1
    return [judge(scale, test, LEVEL / max(1, left), test in decided) for test in tests]


def judge(scale: str, test: Test, level: float, decided: bool) -> Verdict:
    p, low, high = test.welch(level)
    margin, n = MARGINS.get(test.key.partition("/")[0], 0.0), digits(test.key)
    beyond, span = 0.0, "-"
    if not test.values:
        group, text = UNDECIDED, "no number"
    elif p is None:
        d = test.difference
        direction = "no difference" if not d else "higher" if d > 0 else "lower"
        group, text = UNDECIDED, f"{direction}; too few seeds to tell"
    elif test.relation == "=":
        within, outside = -margin <= low and high <= margin, high < -margin or low > margin
        group = HOLDS if within else CONTRADICTED if outside else UNDECIDED
        text = f"open: the interval is neither within ± {margin:g} nor outside"
    elif decided:
        group = HOLDS if test.relation == (">" if test.difference > 0 else "<") else CONTRADICTED
        text = group
    else:
        group, text = UNDECIDED, "open: within the spread of the seeds"
    if p is not None:
        span = f"{test.difference:+.{n}f} [{low:.{n}f}, {high:.{n}f}]"
        beyond = 2 * abs(test.difference) / (high - low) if high > low else math.inf
    texts = (value_text(side, test.key) for side in test.sides)
    first, second = (f"{name}: {text}" for name, text in zip(test.names, texts, strict=True))
    return Verdict(test.claim, scale, test.title, (first, second), span, group, text, beyond)


def known(name: str, records: Mapping[str, Record]) -> str:
    """Return the experiment, or JEM's with the stable sampler at scales that have it alone."""
    stable = name.replace("jem", "jem-stable")
    return stable if name not in records and stable in records else name


def common(key: str, records: Sequence[Record]) -> str:
    """Return the key that a claim is judged by; itself where there is none in common.

    Of several Inception's goes first, then the most samples, then the most seeds of the side that
    has fewer; a network's own features tell nothing about another network's samples.
    """
    if not key.endswith("/"):
        return key

    def rank(found: str) -> tuple[bool, float, int]:
        features, n = features_and_count(found.removeprefix(key))
        seeds = min(table.measured(record, found).n for record in records)
        return features == "inception", math.inf if n is None else n, seeds

    both = set.intersection(*map(table.keys_of, records))
    found = [k for k in sorted(both) if k.startswith(key) and not k.startswith(f"{key}own")]
    return max(found, key=rank, default=key)


def gradient_rows(records: Mapping[str, Record]) -> list[list[str]]:
    """Return experiment, term, and each term's gradient before its weight: norm and cosine with
    cross-entropy's, means over the steps that were measured."""
    return [
        [name, key.partition("/")[2]]
        + [
            value_text(table.measured(record, of), of) if of in found else "-"
            for of in (key, key.replace("gradient/", "cosine/"))
        ]
        for name, record in records.items()
        for found in [table.keys_of(record)]
        for key in sorted(found, key=natural)
        if key.startswith("gradient/")
    ]
