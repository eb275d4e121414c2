"""Which numbers may stand in one table, and which may be averaged."""

from __future__ import annotations

from collections.abc import Mapping

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
    rows: dict[str, dict[str, str]] = {}  # question -> protocol -> a row that has it
    for name, record in records.items():
        seen: dict[str, tuple[str, str]] = {}
        for seed, found in sorted(record["seeds"].items()):
            for question, answer in sorted(found["answers"].items()):
                used = any(key.startswith(prefixes) for key in answer["numbers"])
                if "protocol" not in answer or found["state"] != "finished" or not used:
                    continue
                run, protocol = f"{name}-s{seed}", answer["protocol"]
                versions.setdefault(str(protocol.get("version")), run)
                text = ", ".join(f"{k} {v}" for k, v in sorted(protocol.items()))
                rows.setdefault(question, {}).setdefault(text, name)
                first = seen.setdefault(question, (text, run))
                if len(versions) == 1 and first[0] != text:
                    raise UsageError(
                        f"--results: {table} at scale {scale}: {first[1]} and {run} were asked "
                        f"{question} differently ({first[0]}; {text}): evaluate them alike"
                    )
    if len(versions) > 1:
        listed = ", ".join(f"{version} ({run})" for version, run in sorted(versions.items()))
        raise UsageError(
            f"--results: {table} at scale {scale} would mix protocol versions {listed}: evaluate "
            "again with one version, or remove the older records"
        )
    for question, protocols in sorted(rows.items()):
        if len(protocols) > 1:
            listed = "; ".join(f"{name}: {text}" for text, name in sorted(protocols.items()))
            notes.append(f"Not all rows were asked {question} alike ({listed}).")
    return notes
