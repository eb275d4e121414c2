"""Which numbers may stand in one table, and which may be averaged: of seeds trained alike, and
asked alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.page.paper import image_size
from reports.tables.about import SEED
from reports.tables.records import DEFAULTS, Record
from reports.tables.titles import natural
from runs.cli import UsageError
from runs.terms import TERMS

EARLIER = {  # what a version before the present one did
    ("attack", 1): "ascended cross-entropy in float32, whose gradient vanishes where a model is "
    "confident: the accuracy is too high for confident models, and is to be measured again",
}


def check_protocols(
    table: str, scale: str, records: Mapping[str, Record], prefixes: tuple[str, ...]
) -> list[str]:
    """Notes on rows that were asked differently, of the numbers whose keys begin so.

    Raises UsageError for versions and image sizes that differ, and for seeds of one row that were
    trained or asked differently.
    """
    check_sizes(table, scale, records)
    for name, record in records.items():
        check_settings(table, scale, name, record)
    versions: dict[str, dict[Any, str]] = {}  # question -> protocol version -> a run that has it
    notes = []
    rows: dict[str, dict[str, dict[str, Any]]] = {}  # question -> row -> its protocol
    for name, record in records.items():
        seen: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for seed, found in sorted(record["seeds"].items()):
            for question, answer in sorted(found["answers"].items()):
                used = any(key.startswith(prefixes) for key in answer["numbers"])
                if "protocol" not in answer or found["state"] != "finished" or not used:
                    continue
                run, protocol = f"{name}-s{seed}", flat(answer["protocol"])
                of_question = versions.setdefault(question.partition("/")[0], {})
                of_question.setdefault(protocol.get("version"), run)
                rows.setdefault(question, {}).setdefault(name, protocol)
                for other, earlier in seen.setdefault(question, []):
                    keys = differing(earlier, protocol)
                    if len(of_question) == 1 and keys:
                        raise UsageError(
                            f"{place(table, scale)}: {other} and {run} were asked "
                            f"{question} differently ({told(earlier, keys)}; "
                            f"{told(protocol, keys)}): evaluate them alike"
                        )
                seen[question].append((run, protocol))
    for question, found_versions in sorted(versions.items()):
        if len(found_versions) > 1:
            listed = ", ".join(
                f"{version} ({run})" for version, run in sorted(found_versions.items(), key=str)
            )
            raise UsageError(
                f"{place(table, scale)} would mix protocol versions {listed} of "
                f"{question}: evaluate again with one version, or remove the older records"
            )
        (version,) = found_versions
        if (question, version) in EARLIER:
            notes.append(f"Version {version} of {question} {EARLIER[question, version]}.")
    for question, protocols in sorted(rows.items()):
        found = list(protocols.values())
        keys = sorted({key for a in found for b in found for key in differing(a, b)})
        texts: dict[str, str] = {}  # what differs -> a row
        for name, protocol in protocols.items():
            texts.setdefault(told(protocol, [key for key in keys if key in protocol]), name)
        if keys:
            listed = "; ".join(f"{name}: {text}" for text, name in sorted(texts.items()) if text)
            notes.append(f"Not all rows were asked {question} alike ({listed}).")
    return [*asked_of(rows), *notes, *other_noise(records, rows)]


def asked_of(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """A note on how many images each question was about; `rows`: question -> row -> protocol."""
    found: dict[str, list[str]] = {}  # the images -> questions
    for question, protocols in sorted(rows.items()):
        counts: dict[str, set[Any]] = {}
        for protocol in protocols.values():
            for key, value in protocol.items():
                if key.startswith("images of "):
                    counts.setdefault(key.removeprefix("images of "), set()).add(value)
            if "n" in protocol:
                counts.setdefault("samples", set()).add(protocol["n"])
        texts = [
            f"{name} {' or '.join(f'{n:,}' for n in sorted(values))}"
            for name, values in sorted(counts.items())
        ]
        if texts:
            found.setdefault(", ".join(texts), []).append(question)
    return [f"Images ({', '.join(names)}): {text}." for text, names in found.items()]


def other_noise(
    records: Mapping[str, Record], rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[str]:
    """Notes on rows that are evaluated with other noise than they were trained with; an attack has
    none. `rows`: question -> row -> its protocol."""
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


def place(table: str, scale: str) -> str:
    """The beginning of a refusal: the flag, and of which table it speaks."""
    return "RUN_FOLDER" if table == "compare" else f"--results: {table} at scale {scale}"


def check_sizes(table: str, scale: str, records: Mapping[str, Record]) -> None:
    """Raises UsageError where the runs were trained on images of different sizes."""
    found: dict[Any, str] = {}  # side in pixels -> a row
    for name, record in records.items():
        for seed in record["seeds"].values():
            found.setdefault(image_size(seed["settings"]), name)
    if len(found) > 1:
        listed = " and ".join(f"{size} x {size} ({name})" for size, name in found.items())
        raise UsageError(
            f"{place(table, scale)} would mix images of {listed}: make a table of each size"
        )


def check_settings(table: str, scale: str, name: str, record: Record) -> None:
    """Raises UsageError where finished seeds of one row were trained differently."""
    seeds = sorted(record["seeds"].items(), key=lambda item: natural(item[0]))
    runs = [
        (f"{name}-s{seed}", recipe(found)) for seed, found in seeds if found["state"] == "finished"
    ]
    for i, (run, settings) in enumerate(runs):
        for other, earlier in runs[:i]:
            keys = differing(earlier, settings)
            if keys:
                first, second = (told(found, keys, flag="--") for found in (earlier, settings))
                raise UsageError(
                    f"{place(table, scale)}: {other} and {run} were trained "
                    f"differently ({first}; {second}): train one of them again, or remove it and "
                    f"its part of {scale}/{name}.json"
                )


def recipe(seed: Mapping[str, Any]) -> dict[str, Any]:
    """What all seeds of a row share: the settings, and the experiment that it started from.

    A record leaves out settings that are at their default; any other that only one record has, an
    older version did not record.
    """
    left_out = {**dict.fromkeys(TERMS, 0), "max_steps": None, **DEFAULTS}
    found = {**left_out, **seed.get("settings", {})}
    if "start" in seed:
        start = seed["start"]
        found["load_path"] = None if start is None else SEED.sub("", str(start))
    return found


def flat(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A set's number of images as a key of its own."""
    found = {key: value for key, value in protocol.items() if key != "sets"}
    return found | {f"images of {name}": n for name, n in protocol.get("sets", {}).items()}


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Keys that both have, with other values: what only one tells, an older version did not."""
    return sorted(key for key in first.keys() & second.keys() if first[key] != second[key])


def told(found: Mapping[str, Any], keys: list[str], flag: str = "") -> str:
    return ", ".join(f"{flag}{key} {found[key]}" for key in keys)
