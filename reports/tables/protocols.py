"""Check that the numbers of a table compare, and that averaged seeds were made alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from reports.page.paper import image_size
from reports.tables import DECLARED
from reports.tables.records import DEFAULTS, Record, Seed, finished_seeds, start_of
from runs.cli import UsageError
from runs.folder import TRAINED_ON
from runs.terms import TERMS

IMAGES = "images of "
EARLIER = {tuple(key): text for *key, text in DECLARED["earlier"]}  # question, protocol version
Rows = dict[Any, list[str]]  # value -> the rows that have it
Protocols = dict[str, dict[str, Rows]]  # question -> key of its protocol -> rows by value


def check_protocols(
    subject: str, records: Mapping[str, Record], prefixes: tuple[str, ...]
) -> list[str]:
    """Return notes on the protocols of the numbers whose keys have one of the prefixes, and on the
    rows whose protocols differ.

    subject: the beginning of an error's message, with the flag and the table.

    Raises UsageError for versions and image sizes that differ, and for seeds of one row that were
    trained or evaluated differently.
    """
    check_sizes(subject, records)
    protocols: Protocols = {}
    unseen: list[str] = []  # rows with noise in the evaluation alone
    for name, record in records.items():
        seeds = finished_seeds(record)
        check_seeds(subject, name, seeds, prefixes)
        for seed in seeds.values():
            for question, key, value in protocol_items(seed, prefixes):
                rows = protocols.setdefault(question, {}).setdefault(key, {}).setdefault(value, [])
                rows += [name] * (name not in rows)
                if key == "sigma" and value and seed["settings"].get("sigma") == 0:
                    unseen += [name] * (name not in unseen)
    questions: dict[str, list[str]] = {}  # numbers of images -> questions with these
    versions, differing = dict[str, None](), list[str]()
    for question, protocol in sorted(protocols.items()):
        name = question.partition("/")[0]  # an attack's distances have the same version
        versions |= dict.fromkeys(check_version(subject, name, protocol.pop("version", {})))
        counts = [
            f"{key.removeprefix(IMAGES)} {' or '.join(f'{n:,}' for n in sorted(numbers))}"
            for key, numbers in sorted(protocol.items())
            if key.startswith(IMAGES)
        ]
        questions.setdefault(", ".join(counts), []).append(question)
        texts = [f"{key} {listed(rows)}" for key, rows in sorted(protocol.items()) if len(rows) > 1]
        if texts:
            differing.append(f"Not all rows were asked {question} alike ({'; '.join(texts)}).")
    if unseen:
        differing.append(f"Trained without noise but evaluated with noise: {', '.join(unseen)}.")
    images = [f"Images ({', '.join(names)}): {text}." for text, names in questions.items() if text]
    return [*images, *versions, *differing]


def check_sizes(subject: str, records: Mapping[str, Record]) -> None:
    """Raise UsageError where the runs were trained on images of different sizes."""
    rows: Rows = {}
    for name, record in records.items():
        for seed in record.values():
            size = image_size(seed["settings"])
            rows.setdefault(f"{size} x {size}", []).append(name)
    if len(rows) > 1:
        sizes = listed(rows, " and ")
        raise UsageError(f"{subject} would mix images of {sizes}: make a table of each size")


def check_version(subject: str, question: str, rows: Rows) -> list[str]:
    """Return a note on a version before the present one. Raises UsageError for several."""
    if len(rows) > 1:
        raise UsageError(
            f"{subject} would mix protocol versions {listed(rows)} of {question}: evaluate again "
            "with one version, or remove the older records"
        )
    keys = [(question, version) for version in rows if (question, version) in EARLIER]
    return [f"Version {version} of {name} {EARLIER[name, version]}." for name, version in keys]


def earlier_version(seed: Seed, keys: Sequence[str]) -> str:
    """Return 'version V of QUESTION' if a number of `keys` is of a version in EARLIER; else ''."""
    for name, answer in seed["answers"].items():
        question, version = name.partition("/")[0], answer.get("protocol", {}).get("version")
        if (question, version) in EARLIER and answer["numbers"].keys() & {*keys}:
            return f"version {version} of {question}"
    return ""


def check_seeds(
    subject: str, name: str, seeds: Mapping[str, Seed], prefixes: tuple[str, ...]
) -> None:
    """Raise UsageError for seeds of one row that were trained or evaluated differently. Compare the
    keys that both have: an older version recorded fewer."""
    recorded = {
        f"{name}-s{n}": recipe(seed)
        | ({"training images": seed[TRAINED_ON]} if seed.get(TRAINED_ON) else {})
        | {f"{question} {key}": value for question, key, value in protocol_items(seed, prefixes)}
        for n, seed in seeds.items()
    }
    for (first, a), (second, b) in combinations(recorded.items(), 2):
        keys = sorted(key for key in a.keys() & b.keys() if a[key] != b[key])
        if keys:
            texts = [", ".join(f"{key} {values[key]}" for key in keys) for values in (a, b)]
            raise UsageError(
                f"{subject}: {first} and {second} are no seeds of one row ({'; '.join(texts)}): "
                "train or evaluate one of them again, or remove it and its part of the record"
            )


def asked_alike(seeds: Iterable[Seed], key: str) -> bool:
    """Return whether the protocols of a number agree. Compare the keys that both have."""
    protocols = [{(q, name): value for q, name, value in protocol_items(s, (key,))} for s in seeds]
    pairs = combinations(protocols, 2)
    return all(a[name] == b[name] for a, b in pairs for name in a.keys() & b.keys())


def recipe(seed: Seed) -> dict[str, Any]:
    """Return the flags that all seeds of a row share: settings, the defaults that a record omits
    included, and the experiment from which the run started."""
    absent = {**dict.fromkeys(TERMS, 0), "max_steps": None, "n_valid": None}
    settings = {**absent, **DEFAULTS, **seed["settings"]}
    return {f"--{key}": value for key, value in settings.items()} | {"--load_path": start_of(seed)}


def protocol_items(seed: Seed, prefixes: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    """Yield (question, key of its protocol, value) for the answers with numbers whose keys have one
    of the prefixes. Each set's number of images has a key; other features are another question."""
    for question, answer in seed["answers"].items():
        if "protocol" in answer and any(key.startswith(prefixes) for key in answer["numbers"]):
            protocol = dict(answer["protocol"])
            if features := protocol.pop("features", None):
                question = f"{question}/{features}"
            counts = protocol.pop("sets", {}) | {"samples": protocol.pop("n", None)}
            protocol |= {IMAGES + name: n for name, n in counts.items() if n is not None}
            yield from ((question, key, value) for key, value in protocol.items())


def listed(rows: Rows, join: str = ", ") -> str:
    """Write each value with a row that has it: '1 (ce), 2 (hdge)'."""
    return join.join(sorted(f"{value} ({names[0]})" for value, names in rows.items()))
