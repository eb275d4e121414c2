"""Fewer cases than all: rows in which every two values of two factors meet."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Of all rows with a value of each factor, take that with most pairs that no row had yet, until
    every pair of values is in a row. Deterministic."""
    places = list(product(*(range(len(factor)) for factor in factors)))
    left = {pair for row in places for pair in combinations(enumerate(row), 2)}
    rows = []
    while left:
        row = max(places, key=lambda row: sum(p in left for p in combinations(enumerate(row), 2)))
        left -= set(combinations(enumerate(row), 2))
        rows.append(tuple(factor[i] for factor, i in zip(factors, row, strict=True)))
    return rows
