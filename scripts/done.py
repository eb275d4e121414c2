"""What experiments have left, and whether it is what their recipes ask for now."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from scripts.recipes import PROBE

# What may differ between two askings of one question: where things are, and on what device.
PLACES = {"load_path", "labels", "log_dir", "id", "data_root", "device", "workers"}


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file, or one that is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def finished(run: Path) -> bool:
    """Its last epoch, or --max_steps, is on the disk; of a linear probe, its checkpoint."""
    settings = read_json(run / "variant.json")
    if settings is None or not (run / "last_ckpt.pt").exists():
        return False
    if settings.get("program") == Path(PROBE).name:  # its checkpoint is the last that it writes
        return True
    epoch, step = last_row(run)
    epochs, steps = settings.get("n_epochs"), settings.get("max_steps")
    return step >= steps if steps else epochs is not None and epoch + 1 >= epochs


def last_row(run: Path) -> tuple[int, int]:
    """Epoch and step of the last whole row of progress.csv; (-1, -1) where there is none."""
    try:
        with open(run / "progress.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return -1, -1
    header = rows[0] if rows else []
    for row in reversed(rows[1:]):
        named = dict(zip(header, row, strict=False))
        epoch, step = named.get("epoch", ""), named.get("step", "")
        if len(row) == len(header) and epoch.isdecimal() and step.isdecimal():
            return int(epoch), int(step)
    return -1, -1


def other_recipe(run: Path, words: Sequence[str]) -> str | None:
    """What of the command that trains this run is not what it was trained with, as
    "--lr .02, but the run has 0.002"; None if all is."""
    from evaluation.results_tables.records import gist  # what belongs to terms of weight 0 is out

    recorded = gist(read_json(run / "variant.json") or {})
    for flag, values in flags_of(words).items():
        name = flag.removeprefix("--")
        if name in recorded and not same(values, recorded[name]):
            return f"{flag} {' '.join(values)}, but the run has {recorded[name]}"
    return None


def flags_of(words: Sequence[str]) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    for word in words[1:]:
        if word.startswith("--"):
            flags[word] = []
        else:
            flags[list(flags)[-1]].append(word)
    return flags


def same(values: Sequence[str], recorded: Any) -> bool:
    """Words of a command line against the value that they were read as."""
    if not values:  # a switch
        return recorded is True
    found = recorded if isinstance(recorded, list) else [recorded]
    return len(found) == len(values) and all(map(equal, values, found))


def equal(word: str, recorded: Any) -> bool:
    try:
        return abs(float(Fraction(word)) - float(recorded)) <= 1e-9 * abs(float(recorded))
    except (ValueError, TypeError):
        return word == str(recorded)


def answered(place: Path, words: Sequence[str], hashes: dict[Path, str] | None = None) -> bool:
    """Whether the newest answer in `place` is to this command, by the present protocol, and about
    the checkpoints as they are now.

    hashes: sha256 of files that were read before, by path; new ones are added.
    """
    from evaluation.flags import parse, resolve
    from evaluation.results import PROTOCOL

    known = {} if hashes is None else hashes
    parsed, _ = parse(list(words[1:]))
    resolve(parsed)
    settings = vars(parsed)
    record = read_json(place / f"{settings['eval']}.json")
    if record is None or record.get("protocol", {}).get("version") != PROTOCOL:
        return False
    saved = record.get("settings", {})
    compared = settings.keys() & saved.keys() - PLACES
    if any(json.loads(json.dumps(settings[name])) != saved[name] for name in compared):
        return False
    models = record.get("models", [record])
    paths = [Path(path) for path in settings["load_path"]]
    told = [model.get("checkpoint_sha256") for model in models]
    if told != [known.setdefault(path, sha256(path)) for path in paths]:
        return False
    model = settings["fid_model"]
    if model is None:
        return True
    return record.get("features_sha256") == known.setdefault(Path(model), sha256(Path(model)))


def sha256(path: Path) -> str:
    """Of the file's bytes; "" where there is none."""
    from evaluation.results import file_sha256

    try:
        return file_sha256(path)
    except OSError:
        return ""


def resumable(run: Path) -> bool:
    """Also where a kill left the checkpoint before the last one alone."""
    return any((run / name).exists() for name in ("last_ckpt.pt", "prev_ckpt.pt"))


def limits(settings: Mapping[str, Any]) -> list[str]:
    """The words of --max_steps, which a resumed run forgets."""
    steps = settings.get("max_steps")
    return ["--max_steps", str(steps)] if steps else []
