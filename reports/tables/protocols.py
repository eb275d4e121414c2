"""Which numbers may stand in one table, and which may be averaged: of seeds trained alike, and
asked alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from reports.page.paper import image_size
from reports.tables import DECLARED
from reports.tables.records import DEFAULTS, Record, Seed, finished_seeds, start_of
from runs.cli import UsageError
from runs.terms import TERMS

IMAGES = "images of "
EARLIER = {tuple(key): text for *key, text in DECLARED["earlier"]}  # question, protocol version
Rows = dict[Any, list[str]]  # value -> the rows that have it
Facts = dict[str, dict[str, Rows]]  # question -> what its numbers depend on


def check_protocols(
    place: str, records: Mapping[str, Record], prefixes: tuple[str, ...]
) -> list[str]:
    """Return notes on what the numbers whose keys begin so depend on, and where rows differ.

    place: how an error begins, with the flag and the table.

    Raises UsageError for versions and image sizes that differ, and for seeds of one row that were
    trained or asked differently.
    """
    check_sizes(place, records)
    facts: Facts = {}
    for name, record in records.items():
        seeds = finished_seeds(record)
        check_seeds(place, name, seeds, prefixes)
        for seed in seeds.values():
            for question, key, value in asked(seed, prefixes):
                rows = facts.setdefault(question, {}).setdefault(key, {}).setdefault(value, [])
                rows += [name] * (name not in rows)
    images: dict[str, list[str]] = {}  # how many -> the questions that were about as many
    versions, differing = dict[str, None](), list[str]()
    for question, found in sorted(facts.items()):
        name = question.partition("/")[0]  # of both distances of an attack the same
        versions |= dict.fromkeys(check_version(place, name, found.pop("version", {})))
        counts = [
            f"{key.removeprefix(IMAGES)} {' or '.join(f'{n:,}' for n in sorted(numbers))}"
            for key, numbers in sorted(found.items())
            if key.startswith(IMAGES)
        ]
        images.setdefault(", ".join(counts), []).append(question)
        told = [f"{key} {listed(rows)}" for key, rows in sorted(found.items()) if len(rows) > 1]
        if told:
            differing.append(f"Not all rows were asked {question} alike ({'; '.join(told)}).")
    asked_about = [f"Images ({', '.join(of)}): {text}." for text, of in images.items() if text]
    return [*asked_about, *versions, *differing]


def check_sizes(place: str, records: Mapping[str, Record]) -> None:
    """Raise UsageError where the runs were trained on images of different sizes."""
    found: Rows = {}
    for name, record in records.items():
        for seed in record.values():
            size = image_size(seed["settings"])
            found.setdefault(f"{size} x {size}", []).append(name)
    if len(found) > 1:
        sizes = listed(found, " and ")
        raise UsageError(f"{place} would mix images of {sizes}: make a table of each size")


def check_version(place: str, question: str, rows: Rows) -> list[str]:
    """Return a note on a version before the present one. Raises UsageError for several."""
    if len(rows) > 1:
        raise UsageError(
            f"{place} would mix protocol versions {listed(rows)} of {question}: evaluate again "
            "with one version, or remove the older records"
        )
    keys = [(question, version) for version in rows if (question, version) in EARLIER]
    return [f"Version {version} of {name} {EARLIER[name, version]}." for name, version in keys]


def check_seeds(
    place: str, name: str, seeds: Mapping[str, Seed], prefixes: tuple[str, ...]
) -> None:
    """Raise UsageError for seeds of one row that were trained or asked differently. What only one
    of two tells, an older version did not."""
    told = {
        f"{name}-s{n}": recipe(seed)
        | {f"{question} {key}": value for question, key, value in asked(seed, prefixes)}
        for n, seed in seeds.items()
    }
    for (first, a), (second, b) in combinations(told.items(), 2):
        keys = sorted(key for key in a.keys() & b.keys() if a[key] != b[key])
        if keys:
            texts = [", ".join(f"{key} {found[key]}" for key in keys) for found in (a, b)]
            raise UsageError(
                f"{place}: {first} and {second} are no seeds of one row ({'; '.join(texts)}): "
                "train or evaluate one of them again, or remove it and its part of the record"
            )


def recipe(seed: Seed) -> dict[str, Any]:
    """Return what all seeds of a row share: settings, those with it that a record leaves out at
    their default, and the experiment that it started from."""
    settings = {**dict.fromkeys(TERMS, 0), "max_steps": None, **DEFAULTS, **seed["settings"]}
    return {f"--{key}": value for key, value in settings.items()} | {"--load_path": start_of(seed)}


def asked(seed: Seed, prefixes: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    """Yield (question, key of its protocol, value), of those that gave numbers whose keys begin so;
    a set's number of images is a key of its own. The same of other features is another question."""
    for question, answer in seed["answers"].items():
        if "protocol" in answer and any(key.startswith(prefixes) for key in answer["numbers"]):
            protocol = dict(answer["protocol"])
            if features := protocol.pop("features", None):
                question = f"{question}/{features}"
            counts = protocol.pop("sets", {}) | {"samples": protocol.pop("n", None)}
            protocol |= {IMAGES + name: n for name, n in counts.items() if n is not None}
            yield from ((question, key, value) for key, value in protocol.items())


def listed(rows: Rows, join: str = ", ") -> str:
    """Write each value and a row that has it: '1 (ce), 2 (hdge)'."""
    return join.join(sorted(f"{value} ({names[0]})" for value, names in rows.items()))
