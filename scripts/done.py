"""Check whether an experiment's run folder and eval files match the current recipe."""

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
JUDGES = re.compile(rf"{JUDGE.name}-s[0-9]+")  # runs that may serve as REFERENCE
ROOT = Path(__file__).resolve().parent.parent
# Settings of a question that do not change its numbers: paths, labels, device, workers. (The
# network of --fid_model is compared by its hash, not by its path.)
INDIFFERENT = frozenset(
    ("load_path", "labels", "log_dir", "id", "data_root", "device", "workers")
    + ("fid_model", "inception_weights")
)


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file; None if the file is missing or damaged."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finished(run: Path) -> bool:
    """Return whether the run folder holds a run that trained to its end."""
    from reports.page import NoRun, read_run

    try:
        return read_run(run).finished
    except NoRun:
        return False


def flags_of(program: str) -> Any:
    """Return the module whose `build_parser` declares the program's flags."""
    module = program.removesuffix(".py").replace("/", ".")
    return importlib.import_module("training.flags" if program == "train_wrn.py" else module)


def other_recipe(run: Path, command: Sequence[str], *, all_flags: bool = False) -> str | None:
    """Return the first difference of a training command from the run, "--lr 0.02, but the run has
    0.002", or None. `all_flags`: also compare flags that the command leaves at their default."""
    from reports.tables.records import DEFAULTS, gist  # gist drops settings of terms of weight 0
    from training import flags

    settings = read_object(run / SETTINGS)
    if settings is None:
        return None
    recorded = {**DEFAULTS, **gist(settings)}
    if all_flags:
        parsed = vars(flags.parse(command[1:])[0])
        wanted = {**DEFAULTS, **gist(parsed)}
        # Evaluations take the run's guidance. Runs from before the flag had 1.
        for s, compared in ((parsed, wanted), (settings, recorded)):
            compared |= {"load_path": start_file(s), "guidance": s.get("guidance", 1.0)}
        names = sorted(wanted | recorded)
    else:
        wanted = vars(flags_of(command[0]).build_parser().parse_args(command[1:]))
        given = [w.removeprefix("--").removeprefix("no-") for w in command if w[:2] == "--"]
        names = [name for name in (*given, *DEFAULTS) if name in wanted and name in recorded]
    for name in names:
        if wanted.get(name) != recorded.get(name):
            return f"--{name} {wanted.get(name)}, but the run has {recorded.get(name)}"
    return None


def start_file(settings: Settings) -> str | None:
    """Return the file of --load_path, as the program finds it, which runs in the repository."""
    path = settings.get("load_path")
    return None if path is None else str(weights_file(ROOT / path))


def answered(folder: Path, command: Sequence[str]) -> bool:
    """Return whether the folder's newest answer is that of this command of eval_wrn_ebm.py: same
    settings, current protocol version, unchanged checkpoints."""
    from evaluation.flags import parse
    from evaluation.questions import QUESTIONS

    settings, _ = parse(list(command[1:]))
    record = read_object(folder / f"{settings.eval}.json")
    version = QUESTIONS[settings.eval].version
    if record is None or record.get("protocol", {}).get("version") != version:
        return False
    if not same_question(record.get("settings", {}), vars(settings)):
        return False
    hashes = [model.get("checkpoint_sha256") for model in record.get("models", [record])]
    paths = list(settings.load_path)
    if settings.fid_model is not None:
        reading = record.get("read_as_asked") or {}
        hashes.append(reading.get("classifier_sha256", record.get("features_sha256")))
        paths.append(settings.fid_model)
    return hashes == [sha256(Path(path)) for path in paths]


def same_question(recorded: Settings, wanted: Settings) -> bool:
    """Return whether an answer's recorded settings are the wanted settings. A flag that is not
    recorded is not compared: the version that wrote the answer may not have had it."""
    common = wanted.keys() & recorded.keys() - INDIFFERENT
    both = "fid_model" in wanted and "fid_model" in recorded
    if both and (wanted["fid_model"] is None) != (recorded["fid_model"] is None):
        return False  # only one of the two uses the features of another network
    return bool(recorded) and all(recorded[flag] == plain(wanted[flag]) for flag in common)


def asked_settings(scale: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return experiment -> question -> the settings of each use of the question in the tables."""
    from evaluation import flags

    result: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for table in TABLES.values():
        questions = [(q, table.rows) for q in table.questions]
        for question, names in [*questions, *((q, names) for _, q, names in table.overlays)]:
            parsed: dict[tuple[str, ...], Any] = {}
            for name in names:
                argv = tuple(question_words(scale, question, name))
                if argv not in parsed:
                    settings, _ = flags.parse(["--load_path", "-", "--eval", *argv])
                    parsed[argv] = plain(vars(settings))
                result.setdefault(name, {}).setdefault(argv[0], []).append(parsed[argv])
    return result


def asks(wanted: Mapping[str, Sequence[Settings]]) -> Callable[[str, Settings], bool]:
    """Return a function of a question and an answer's settings: whether `wanted` has them. In
    `wanted`, --fid_model REFERENCE stands for any seed's cross-entropy model."""

    def is_wanted(question: str, recorded: Settings) -> bool:
        uses = wanted.get(question, ())
        return any(same_question(recorded, use) and judged_alike(recorded, use) for use in uses)

    return is_wanted


def judged_alike(recorded: Settings, wanted: Settings) -> bool:
    """Return whether an answer's --fid_model, if it has one, is the network of `wanted`."""
    judge, wanted_judge = recorded.get("fid_model"), wanted.get("fid_model")
    if judge and wanted_judge == REFERENCE:
        return JUDGES.fullmatch(Path(judge).parent.name) is not None
    return not judge or judge == wanted_judge


def sha256(path: Path) -> str:
    """Return the sha256 of a checkpoint or of an exported folder's weights; "" if it is missing."""
    try:
        return file_sha256(weights_file(path))
    except OSError:
        return ""
