"""Which numbers may stand in one table, and which may be averaged: of seeds trained alike, and
asked alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from reports.page.paper import image_size
from reports.tables.records import DEFAULTS, SEED, Record, Seed, finished_seeds
from reports.tables.titles import DECLARED
from runs.cli import UsageError
from runs.terms import TERMS

IMAGES = "images of "
EARLIER = {tuple(key): text for *key, text in DECLARED["earlier"]}  # question, protocol version
Told = dict[str, Any]  # settings, or a protocol: flat
Asked = dict[str, dict[str, Told]]  # question -> row -> the protocol of its first seed


def check_protocols(
    place: str, records: Mapping[str, Record], prefixes: tuple[str, ...]
) -> list[str]:
    """Return notes on rows that were asked differently, of the numbers whose keys begin so.

    place: how an error begins, with the flag and the table.

    Raises UsageError for versions and image sizes that differ, and for seeds of one row that were
    trained or asked differently.
    """
    check_sizes(place, records)
    rows: Asked = {}
    for name, record in records.items():
        told: dict[str, Told] = {}
        for n, seed in finished_seeds(record).items():
            told[f"{name}-s{n}"] = facts = recipe(seed)
            for question, protocol in protocols(seed, prefixes).items():
                rows.setdefault(question, {}).setdefault(name, protocol)
                facts |= {f"{question} {key}": value for key, value in protocol.items()}
        for (first, a), (second, b) in combinations(told.items(), 2):
            if keys := differing(a, b):
                raise UsageError(
                    f"{place}: {first} and {second} are no seeds of one row "
                    f"({listed(a, keys)}; {listed(b, keys)}): train or evaluate one of them again, "
                    "or remove it and its part of the record"
                )
    rows = dict(sorted(rows.items()))
    versions = check_versions(place, rows)
    return [*asked_of(rows), *versions, *asked_differently(rows), *other_noise(records, rows)]


def check_sizes(place: str, records: Mapping[str, Record]) -> None:
    """Raise UsageError where the runs were trained on images of different sizes."""
    found: dict[Any, str] = {}  # side in pixels -> a row
    for name, record in records.items():
        for seed in record["seeds"].values():
            found.setdefault(image_size(seed["settings"]), name)
    if len(found) > 1:
        sizes = " and ".join(f"{size} x {size} ({name})" for size, name in found.items())
        raise UsageError(f"{place} would mix images of {sizes}: make a table of each size")


def check_versions(place: str, rows: Asked) -> list[str]:
    """Return notes on versions before the present one.

    Raises UsageError where a question has several.
    """
    found: dict[str, dict[Any, str]] = {}  # question -> protocol version -> a row
    for question, protocols in rows.items():
        for name, protocol in protocols.items():
            versions = found.setdefault(question.partition("/")[0], {})
            versions.setdefault(protocol.get("version"), name)
    for question, versions in found.items():
        if len(versions) > 1:
            texts = sorted(f"{version} ({name})" for version, name in versions.items())
            raise UsageError(
                f"{place} would mix protocol versions {', '.join(texts)} of "
                f"{question}: evaluate again with one version, or remove the older records"
            )
    return [
        f"Version {version} of {question} {EARLIER[question, version]}."
        for question, versions in found.items()
        for version in versions
        if (question, version) in EARLIER
    ]


def asked_differently(rows: Asked) -> list[str]:
    notes = []
    for question, protocols in rows.items():
        pairs = combinations(protocols.values(), 2)
        keys = sorted({key for a, b in pairs for key in differing(a, b)})
        texts: dict[str, str] = {}  # what differs -> a row
        for name, protocol in protocols.items():
            texts.setdefault(listed(protocol, [key for key in keys if key in protocol]), name)
        told = "; ".join(f"{name}: {text}" for text, name in sorted(texts.items()) if text)
        notes += [f"Not all rows were asked {question} alike ({told})."] if keys else []
    return notes


def asked_of(rows: Asked) -> list[str]:
    """Return notes on how many images each question was about."""
    found: dict[str, list[str]] = {}  # the images -> questions
    for question, protocols in rows.items():
        counts: dict[str, set[Any]] = {}
        for key, value in (item for protocol in protocols.values() for item in protocol.items()):
            if key == "n" or key.startswith(IMAGES):
                name = "samples" if key == "n" else key.removeprefix(IMAGES)
                counts.setdefault(name, set()).add(value)
        texts = [
            f"{name} {' or '.join(f'{n:,}' for n in sorted(values))}"
            for name, values in sorted(counts.items())
        ]
        if texts:
            found.setdefault(", ".join(texts), []).append(question)
    return [f"Images ({', '.join(names)}): {text}." for text, names in found.items()]


def other_noise(records: Mapping[str, Record], rows: Asked) -> list[str]:
    """Return notes on rows that are evaluated with other noise than they were trained with; an
    attack has none."""
    found: dict[tuple[Any, Any], set[str]] = {}
    for question, protocols in rows.items():
        for name, protocol in protocols.items() if not question.startswith("attack") else ():
            for seed in records[name]["seeds"].values():
                noise = seed["settings"].get("sigma"), protocol.get("sigma")
                if None not in noise and noise[0] != noise[1]:
                    found.setdefault(noise, set()).add(name)
    return [
        f"Trained with noise of standard deviation {trained:g} and evaluated with {asked:g}, as "
        f"every row is: {', '.join(sorted(names))}."
        for (trained, asked), names in sorted(found.items())
    ]


def recipe(seed: Seed) -> Told:
    """Return what all seeds of a row share: settings, and the experiment that it started from.

    A record leaves out settings that are at their default; any other that only one record has, an
    older version did not record.
    """
    left_out = {**dict.fromkeys(TERMS, 0), "max_steps": None, **DEFAULTS}
    found = {f"--{key}": value for key, value in {**left_out, **seed.get("settings", {})}.items()}
    if "start" in seed:
        found["--load_path"] = SEED.sub("", str(seed["start"])) if seed["start"] else None
    return found


def protocols(seed: Seed, prefixes: tuple[str, ...]) -> Asked:
    """Return question -> protocol; a set's number of images is a key of its own."""
    return {
        question: {key: value for key, value in answer["protocol"].items() if key != "sets"}
        | {IMAGES + name: n for name, n in answer["protocol"].get("sets", {}).items()}
        for question, answer in seed["answers"].items()
        if "protocol" in answer and any(key.startswith(prefixes) for key in answer["numbers"])
    }


def differing(first: Told, second: Told) -> list[str]:
    """Return the keys that both have, with other values: what only one has, an older version did
    not tell."""
    return sorted(key for key in first.keys() & second.keys() if first[key] != second[key])


def listed(found: Told, keys: Iterable[str]) -> str:
    return ", ".join(f"{key} {found[key]}" for key in keys)
