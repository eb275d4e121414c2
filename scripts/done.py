"""The runs and answers of experiments, and whether they are those of the present recipes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runs.files import file_sha256, plain, read_json
from runs.folder import SETTINGS
from runs.shared import weights_file
from scripts.rows import JUDGE, REFERENCE, TABLES, question_words

Settings = Mapping[str, Any]
JUDGES = re.compile(rf"{JUDGE.name}-s[0-9]+")  # runs whose features may compare samples
# What may differ between two askings of one question: where things are, and on what device. (The
# network of --fid_model is known by its hash, not by its path.)
INDIFFERENT = frozenset(
    ("load_path", "labels", "log_dir", "id", "data_root", "device", "workers")
    + ("fid_model", "inception_weights")
)


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the file's content; None if the file is missing or damaged."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def finished(run: Path) -> bool:
    """Return whether the run has come to its end."""
    from reports.page import NoRun, read_run

    try:
        return read_run(run).finished
    except NoRun:
        return False


def flags_of(program: str) -> Any:
    """Return the module that has the program's flags, as `build_parser`."""
    own = program.removesuffix(".py").replace("/", ".")
    return importlib.import_module("training.flags" if program == "train_wrn.py" else own)


def other_recipe(run: Path, words: Sequence[str], *, every: bool = False) -> str | None:
    """Return the first setting that differs from the run's, "--lr 0.02, but the run has 0.002", or
    None. `every`: flags that the command leaves out count, too, at their defaults."""
    from reports.tables.records import DEFAULTS, gist  # not of terms of weight 0
    from training import flags

    settings = read_object(run / SETTINGS)
    if settings is None:
        return None
    recorded = {**DEFAULTS, **gist(settings)}
    if every:
        asked = {**DEFAULTS, **gist(vars(flags.parse(words[1:])[0]))}
        names = sorted(asked | recorded)
    else:
        asked = vars(flags_of(words[0]).build_parser().parse_args(words[1:]))
        given = [word.removeprefix("--").removeprefix("no-") for word in words if word[:2] == "--"]
        names = [name for name in (*given, *DEFAULTS) if name in asked and name in recorded]
    for name in names:
        if asked.get(name) != recorded.get(name):
            return f"--{name} {asked.get(name)}, but the run has {recorded.get(name)}"
    return None


def answered(place: Path, words: Sequence[str]) -> bool:
    """Return whether the newest answer in `place` is to this command, by the present protocol, and
    about the checkpoints as they are now."""
    from evaluation.flags import parse
    from evaluation.questions import QUESTIONS

    parsed, _ = parse(list(words[1:]))
    record = read_object(place / f"{parsed.eval}.json")
    version = QUESTIONS[parsed.eval].version
    if record is None or record.get("protocol", {}).get("version") != version:
        return False
    if not same_question(record.get("settings", {}), vars(parsed)):
        return False
    told = [model.get("checkpoint_sha256") for model in record.get("models", [record])]
    paths = list(parsed.load_path)
    if parsed.fid_model is not None:
        read = record.get("read_as_asked") or {}
        told.append(read.get("classifier_sha256", record.get("features_sha256")))
        paths.append(parsed.fid_model)
    return told == [sha256(Path(path)) for path in paths]


def same_question(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether an answer's settings are those that are asked for. A flag that the answer's
    version did not have yet does not tell."""
    told = wanted.keys() & found.keys() - INDIFFERENT
    both = "fid_model" in wanted and "fid_model" in found
    if both and (wanted["fid_model"] is None) != (found["fid_model"] is None):
        return False  # of another network's features, or of its own
    return bool(found) and all(found[flag] == plain(wanted[flag]) for flag in told)


def asked_settings(scale: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return experiment -> question -> the settings that the tables ask it with, all of them."""
    from evaluation import flags

    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for table in TABLES.values():
        questions = [(q, table.rows) for q in table.questions]
        for question, names in [*questions, *((q, names) for _, q, names in table.overlays)]:
            parsed: dict[tuple[str, ...], Any] = {}
            for name in names:
                words = tuple(question_words(scale, question, name))
                if words not in parsed:
                    settings, _ = flags.parse(["--load_path", "-", "--eval", *words])
                    parsed[words] = plain(vars(settings))
                found.setdefault(name, {}).setdefault(words[0], []).append(parsed[words])
    return found


def asks(wanted: Mapping[str, Sequence[Settings]]) -> Callable[[str, Settings], bool]:
    """Return whether a question and the settings of its answer are what the tables ask;
    --fid_model REFERENCE stands for any seed's cross-entropy model."""

    def asked(question: str, settings: Settings) -> bool:
        every = wanted.get(question, ())
        return any(same_question(settings, each) and judged_alike(settings, each) for each in every)

    return asked


def judged_alike(found: Settings, wanted: Settings) -> bool:
    """Return whether an answer's --fid_model, if it has one, is the network that is asked for."""
    judge, asked = found.get("fid_model"), wanted.get("fid_model")
    if judge and asked == REFERENCE:
        return JUDGES.fullmatch(Path(judge).parent.name) is not None
    return not judge or judge == asked


def sha256(path: Path) -> str:
    """Return the sha256 of the file, or of an exported folder's weights; "" if there is none."""
    try:
        return file_sha256(weights_file(path))
    except OSError:
        return ""
