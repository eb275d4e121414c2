"""Test the papers' claims on the records of one scale by Welch's t-test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from scipy.stats import ttest_ind

from reports.tables import DECLARED, table
from reports.tables.about import NOT_RUN
from reports.tables.formats import value_text
from reports.tables.protocols import earlier_version
from reports.tables.records import Record, finished_seeds, start_of
from reports.tables.titles import digits, features_and_count, full_title, natural

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
CLAIMS: Mapping[str, Sequence[tuple[str, str, str, str, Sequence[str]]]] = DECLARED["claims"]
# States that a later run or answer can end; a diverged run never gets a number.
OPEN = (NOT_RUN, table.NOT_ASKED, table.NO_DATA, table.OTHER_FEATURES)
LEVEL = 0.05  # of all claims of a table at one scale together
MARGINS = {"auroc": 0.02, "robust": 1.0}  # bounds of no difference; robust's is in points


@dataclass(frozen=True)
class Test:
    """A claim's two sides. `values`: each seed's measure, by side; () for the `reason`."""

    claim: str
    relation: str
    key: str  # of the measure, or of the first column where the measure is the mean of several
    title: str
    names: tuple[str, str]
    sides: tuple[table.Number, table.Number]
    values: tuple[tuple[float, ...], ...] = ()
    reason: str = "no number"

    @property
    def difference(self) -> float:
        first, second = map(fmean, self.values)
        return first - second

    def welch(self, level: float = LEVEL) -> tuple[float | None, float, float]:
        """Return Welch's two-sided p of equal means, and the ends of the difference's interval at
        confidence 1 - level; without two seeds on each side None and an infinite interval."""
        if not self.values or min(map(len, self.values)) < 2:
            return None, -math.inf, math.inf
        if all(len(set(values)) == 1 for values in self.values):  # no spread
            return float(not self.difference), self.difference, self.difference
        result = ttest_ind(*self.values, equal_var=False)
        low, high = result.confidence_interval(1 - level)
        return float(result.pvalue), float(low), float(high)


@dataclass(frozen=True)
class Verdict:
    """A judged claim. `what`: title of the measure. `difference`: with its interval. `text`: why it
    is undecided, if it is. `margin`: the absolute difference over half the interval's width."""

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
        cells = [self.claim, self.what, self.scale, *self.sides, self.difference]
        return [*cells, self.text] if self.group == UNDECIDED else cells


def verdicts(scale: str, records: Mapping[str, Record]) -> tuple[list[Verdict], list[str]]:
    """Judge the claims of which no side lacks a number that a later run or answer can give, those
    of a table together. Return the verdicts and the texts of the claims that are not judged."""
    judged, unjudged = [], list[str]()
    for claims in CLAIMS.values():
        tests = [as_test(claim, records) for claim in claims]
        judged += family(scale, [test for test in tests if isinstance(test, Test)])
        unjudged += [text for text in tests if isinstance(text, str)]
    return judged, unjudged


def as_test(
    claim: tuple[str, str, str, str, Sequence[str]], records: Mapping[str, Record]
) -> Test | str:
    """Return the test of a claim, whose measure is the mean of the columns that both sides have.
    Numbers of an earlier version of a question, and steps that were timed on several devices, are
    not compared. Return the claim's text where a side's number may yet come."""
    text, first, relation, second, keys = claim
    names = [name_in(records, name) for name in (first, second)]
    pair = [records.get(name, {}) for name in names]
    keys = [common_key(key, pair) for key in keys]
    in_both = [k for k in keys if all(table.measured(r, k).mean is not None for r in pair)]
    values = tuple(per_seed(record, in_both) for record in pair) if in_both else ()
    if all(values) and values:
        sides = [table.mean_of(of_side) for of_side in values]
    else:
        values, sides = (), [table.measured(record, keys[0]) for record in pair]
        if any(side.state in OPEN or "unfinished" in side.state for side in sides):
            return text
    titles = [
        f"{name}, from {opposite}" if opposite in map(start_of, record.values()) else name
        for name, opposite, record in zip(names, reversed(names), pair, strict=True)
    ]
    measure = (keys[0], title_of(in_both or keys[:1]))
    test = Test(text, relation, *measure, (titles[0], titles[1]), (sides[0], sides[1]), values)
    both = {f"{i}-{n}": seed for i, record in enumerate(pair) for n, seed in record.items()}
    reasons = {earlier_version(seed, in_both) for seed in both.values()}
    reasons |= {state for key in in_both if (state := table.measured(both, key).state)}
    reason = ", ".join(sorted(reasons - {""}))
    return replace(test, values=(), reason=reason) if reason else test


def per_seed(record: Record, keys: Sequence[str]) -> tuple[float, ...]:
    """Return the mean of the columns for each finished seed that has all of them."""
    seeds = map(table.values_of, finished_seeds(record).values())
    return tuple(fmean(seed[key] for key in keys) for seed in seeds if seed.keys() >= {*keys})


def title_of(keys: Sequence[str]) -> str:
    """Return the title of a column, or of the mean of several."""
    titles = [full_title(key).partition(", ") for key in keys]
    if len(keys) == 1:
        return "".join(titles[0])
    return f"{titles[0][0]}, mean of {', '.join(rest for *_, rest in titles)}"


def family(scale: str, tests: Sequence[Test]) -> list[Verdict]:
    """Judge the claims of one table at a family-wise level of 5 %.

    Holm's procedure (Holm 1979) decides the claims of a direction. A claim of no difference holds
    where its interval lies within the margin, and is contradicted where it lies outside. All
    intervals have the level at which the procedure stopped, 5 % over the number of claims that were
    still undecided, so that the interval of a decided claim excludes zero.
    """
    p = {test: value for test in tests if (value := test.welch()[0]) is not None}
    undecided, decided = len(p), set[Test]()
    for test in sorted((test for test in p if test.relation != "="), key=p.__getitem__):
        if p[test] > LEVEL / undecided:
            break
        decided.add(test)
        undecided -= 1
    return [judge(scale, test, LEVEL / max(1, undecided), test in decided) for test in tests]


def judge(scale: str, test: Test, level: float, decided: bool) -> Verdict:
    """Return the verdict on a test; `decided`: Holm's procedure has rejected equal means."""
    p, low, high = test.welch(level)
    margin, n = MARGINS.get(test.key.partition("/")[0], 0.0), digits(test.key)
    ratio, span = 0.0, "-"
    if not test.values:
        group, text = UNDECIDED, test.reason
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
        ratio = 2 * abs(test.difference) / (high - low) if high > low else math.inf
    texts = (value_text(side, test.key) for side in test.sides)
    first, second = (f"{name}: {text}" for name, text in zip(test.names, texts, strict=True))
    return Verdict(test.claim, scale, test.title, (first, second), span, group, text, ratio)


def name_in(records: Mapping[str, Record], name: str) -> str:
    """Return the experiment's name, with jem-stable for jem where the records have only that."""
    stable = name.replace("jem", "jem-stable")
    return stable if name not in records and stable in records else name


def common_key(prefix: str, records: Sequence[Record]) -> str:
    """Return the best key with this prefix that all records have; else the prefix, as for a whole
    key, which does not end in /.

    Inception's features go first, then the most samples, then the most seeds of the side that has
    fewer. Keys of a network's own features are left out: they do not compare two networks' samples.
    """
    if not prefix.endswith("/"):
        return prefix

    def rank(key: str) -> tuple[bool, float, int]:
        features, n = features_and_count(key.removeprefix(prefix))
        seeds = min(table.measured(record, key).n for record in records)
        return features == "inception", math.inf if n is None else n, seeds

    shared = sorted(set.intersection(*map(table.keys_of, records)))
    keys = [k for k in shared if k.startswith(prefix) and not k.startswith(f"{prefix}own")]
    return max(keys, key=rank, default=prefix)


def gradient_rows(records: Mapping[str, Record]) -> list[list[str]]:
    """Return rows of experiment, term, norm of the term's gradient before its weight, and cosine
    with cross-entropy's gradient; the last two are means over the steps that were measured."""
    return [
        [name, key.partition("/")[2]]
        + [
            value_text(table.measured(record, column), column) if column in keys else "-"
            for column in (key, key.replace("gradient/", "cosine/"))
        ]
        for name, record in records.items()
        for keys in [table.keys_of(record)]
        for key in sorted(keys, key=natural)
        if key.startswith("gradient/")
    ]
