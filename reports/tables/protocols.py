"""Which numbers may stand in one table, and which may be averaged: of seeds trained alike, and
asked alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from reports.page.paper import image_size
from reports.tables.records import DEFAULTS, SEED, Record, Seed
from reports.tables.titles import DECLARED, natural
from runs.cli import UsageError
from runs.terms import TERMS

Told = dict[str, Any]  # settings, or a protocol: flat
IMAGES = "images of "


def check_protocols(
    table: str, scale: str, records: Mapping[str, Record], prefixes: tuple[str, ...]
) -> list[str]:
    """Return notes on rows that were asked differently, of the numbers whose keys begin so.

    Raises UsageError for versions and image sizes that differ, and for seeds of one row that were
    trained or asked differently.
    """
    check_sizes(table, scale, records)
    place = where(table, scale)
    asked: dict[str, dict[str, list[tuple[str, Told]]]] = {}  # question -> row -> run, protocol
    versions: dict[str, dict[Any, str]] = {}  # question -> protocol version -> a run that has it
    for name, record in records.items():
        check_settings(table, scale, name, record)
        for run, seed in finished(name, record):
            for question, answer in seed["answers"].items():
                if "protocol" in answer and any(k.startswith(prefixes) for k in answer["numbers"]):
                    protocol = flat(answer["protocol"])
                    asked.setdefault(question, {}).setdefault(name, []).append((run, protocol))
                    seen = versions.setdefault(question.partition("/")[0], {})
                    seen.setdefault(protocol.get("version"), run)
    for question, seen in versions.items():
        if len(seen) > 1:
            listed = ", ".join(
                f"{version} ({run})" for version, run in sorted(seen.items(), key=str)
            )
            raise UsageError(
                f"{place} would mix protocol versions {listed} of {question}: evaluate again with "
                "one version, or remove the older records"
            )
    for question, runs in ((q, runs) for q, found in asked.items() for runs in found.values()):
        check_alike(runs, f"{place}: {{}} were asked {question} differently ({{}}): evaluate them "
                    "alike")  # fmt: skip
    rows = {q: {name: runs[0][1] for name, runs in asked[q].items()} for q in sorted(asked)}
    every = sorted((question, str(v)) for question, seen in versions.items() for v in seen)
    earlier = {each: DECLARED["earlier"].get(" ".join(each)) for each in every}
    return [
        *asked_of(rows),
        *(f"Version {v} of {q} {text}." for (q, v), text in earlier.items() if text),
        *asked_differently(rows),
        *other_noise(records, rows),
    ]


def where(table: str, scale: str) -> str:
    """Begin a refusal: with the flag, and the table."""
    return "RUN_FOLDER" if table == "compare" else f"--results: {table} at scale {scale}"


def finished(name: str, record: Record) -> list[tuple[str, Seed]]:
    seeds = sorted(record["seeds"].items(), key=lambda item: natural(item[0]))
    return [(f"{name}-s{n}", seed) for n, seed in seeds if seed["state"] == "finished"]


def check_sizes(table: str, scale: str, records: Mapping[str, Record]) -> None:
    """Raise UsageError where the runs were trained on images of different sizes."""
    found: dict[Any, str] = {}  # side in pixels -> a row
    for name, record in records.items():
        for seed in record["seeds"].values():
            found.setdefault(image_size(seed["settings"]), name)
    if len(found) > 1:
        listed = " and ".join(f"{size} x {size} ({name})" for size, name in found.items())
        raise UsageError(
            f"{where(table, scale)} would mix images of {listed}: make a table of each size"
        )


def check_settings(table: str, scale: str, name: str, record: Record) -> None:
    """Raise UsageError where finished seeds of one row were trained differently."""
    runs = [(run, recipe(seed)) for run, seed in finished(name, record)]
    check_alike(
        runs,
        f"{where(table, scale)}: {{}} were trained differently ({{}}): train one of them again, or "
        f"remove it and its part of {scale}/{name}.json",
        flag="--",
    )


def check_alike(runs: Sequence[tuple[str, Told]], message: str, flag: str = "") -> None:
    """Raise UsageError, with the two runs and in what they differ, for two that do."""
    for (first, a), (second, b) in combinations(runs, 2):
        if keys := differing(a, b):
            texts = "; ".join(told(found, keys, flag) for found in (a, b))
            raise UsageError(message.format(f"{first} and {second}", texts))


def asked_differently(rows: Mapping[str, Mapping[str, Told]]) -> list[str]:
    notes = []
    for question, protocols in rows.items():
        found = list(protocols.values())
        keys = sorted({key for a in found for b in found for key in differing(a, b)})
        texts: dict[str, str] = {}  # what differs -> a row
        for name, protocol in protocols.items():
            texts.setdefault(told(protocol, [key for key in keys if key in protocol]), name)
        if keys:
            listed = "; ".join(f"{name}: {text}" for text, name in sorted(texts.items()) if text)
            notes.append(f"Not all rows were asked {question} alike ({listed}).")
    return notes


def asked_of(rows: Mapping[str, Mapping[str, Told]]) -> list[str]:
    """Return notes on how many images each question was about."""
    found: dict[str, list[str]] = {}  # the images -> questions
    for question, protocols in sorted(rows.items()):
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


def other_noise(records: Mapping[str, Record], rows: Mapping[str, Mapping[str, Told]]) -> list[str]:
    """Return notes on rows that are evaluated with other noise than they were trained with; an
    attack has none."""
    found: dict[tuple[float, float], set[str]] = {}
    for question, protocols in rows.items():
        for name, protocol in protocols.items() if not question.startswith("attack") else ():
            asked = protocol.get("sigma")
            for seed in records[name]["seeds"].values():
                trained = seed["settings"].get("sigma")
                if trained is not None and asked is not None and trained != asked:
                    found.setdefault((trained, asked), set()).add(name)
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
    found = {**left_out, **seed.get("settings", {})}
    if "start" in seed:
        found["load_path"] = SEED.sub("", str(seed["start"])) if seed["start"] else None
    return found


def flat(protocol: Mapping[str, Any]) -> Told:
    """Make a set's number of images a key of its own."""
    found = {key: value for key, value in protocol.items() if key != "sets"}
    return found | {f"{IMAGES}{name}": n for name, n in protocol.get("sets", {}).items()}


def differing(first: Told, second: Told) -> list[str]:
    """Return the keys that both have, with other values: what only one has, an older version did
    not tell."""
    return sorted(key for key in first.keys() & second.keys() if first[key] != second[key])


def told(found: Told, keys: Sequence[str], flag: str = "") -> str:
    return ", ".join(f"{flag}{key} {found[key]}" for key in keys)
