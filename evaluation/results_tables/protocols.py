"""Which numbers may stand in one table, and which may be averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.results_tables.records import Record
from training.flags import UsageError


def check_protocols(
    table: str, scale: str, records: Mapping[str, Record], prefixes: tuple[str, ...]
) -> list[str]:
    """Notes on rows that were asked differently, of the numbers whose keys begin so.

    Raises UsageError for versions that differ, and for seeds of one row that were asked
    differently.
    """
    versions: dict[str, str] = {}  # protocol version -> a run that has it
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
                versions.setdefault(str(protocol.get("version")), run)
                rows.setdefault(question, {}).setdefault(name, protocol)
                for other, earlier in seen.setdefault(question, []):
                    keys = differing(earlier, protocol)
                    if len(versions) == 1 and keys:
                        raise UsageError(
                            f"--results: {table} at scale {scale}: {other} and {run} were asked "
                            f"{question} differently ({told(earlier, keys)}; "
                            f"{told(protocol, keys)}): evaluate them alike"
                        )
                seen[question].append((run, protocol))
    if len(versions) > 1:
        listed = ", ".join(f"{version} ({run})" for version, run in sorted(versions.items()))
        raise UsageError(
            f"--results: {table} at scale {scale} would mix protocol versions {listed}: evaluate "
            "again with one version, or remove the older records"
        )
    for question, protocols in sorted(rows.items()):
        found = list(protocols.values())
        keys = sorted({key for a in found for b in found for key in differing(a, b)})
        texts: dict[str, str] = {}  # what differs -> a row
        for name, protocol in protocols.items():
            texts.setdefault(told(protocol, [key for key in keys if key in protocol]), name)
        if keys:
            listed = "; ".join(f"{name}: {text}" for text, name in sorted(texts.items()) if text)
            notes.append(f"Not all rows were asked {question} alike ({listed}).")
    return notes


def flat(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A set's number of images as a key of its own."""
    found = {key: value for key, value in protocol.items() if key != "sets"}
    return found | {f"images of {name}": n for name, n in protocol.get("sets", {}).items()}


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Keys that both have, with other values: what only one tells, an older version did not."""
    return sorted(key for key in first.keys() & second.keys() if first[key] != second[key])


def told(found: Mapping[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} {found[key]}" for key in keys)
