"""Fewer cases than all: rows in which every two values of two factors meet."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Of all rows with a value of each factor, take that with most pairs that no row had yet, until
    every pair of values is in a row. Deterministic."""
    candidates = list(product(*(range(len(factor)) for factor in factors)))
    missing = {pair for row in candidates for pair in combinations(enumerate(row), 2)}
    rows = []
    while missing:
        row = max(candidates, key=lambda row: len(missing & {*combinations(enumerate(row), 2)}))
        missing -= set(combinations(enumerate(row), 2))
        rows.append(tuple(factor[i] for factor, i in zip(factors, row, strict=True)))
    return rows
