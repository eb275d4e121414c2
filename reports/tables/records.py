"""What the tables need of a run folder, small enough to be kept: numbers, settings, cost.

A record is {"experiment", "scale", "seeds": {seed: {"state", "divergences", "settings", "epochs",
"steps", "seconds", "images_per_s", "device", "commit", "devices", "commits", "start", "answers":
{question: {"protocol", "numbers", "skipped"}}}}}. "device" and "commit" are the last process's,
"devices" and "commits" those of all of the run, the oldest first. `numbers` has flat keys, such as
"auroc/px/svhn" or "accuracy/cifar10"; rates are 0..1.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any

from reports.page.markup import number
from reports.page.run import read_run
from reports.tables.answers import Asked, answers_of, warn
from runs.cli import UsageError
from runs.files import plain, whole
from runs.names import IMAGE_SIZE
from runs.terms import used
from training.flags import ADAM_BETAS

Record = dict[str, Any]

ALWAYS = (
    *("dataset", "arch", "depth", "width", "norm", "dropout_rate", "optimizer", "lr", "n_epochs"),
    *("max_steps", "batch_size", "warmup_iters", "decay_epochs", "decay_rate", "weight_decay"),
    *("sigma", "smoothing", "labels_per_class", "sgld_l2", "clip_grad", "amp", "method"),
    *("distance", "eps"),
)
# Settings that a record leaves out where they are these: no table had others before they were
# recorded.
DEFAULTS = {
    **{"image_size": IMAGE_SIZE, "augment": "on", "adam_betas": ADAM_BETAS, "ema": 0.0},
    **{"independent_batches": False, "augment_px": "same", "px_batch_size": None},
    **{"uncond": False, "px_loss": "cd", "class_cond_p_x_sample": False},
    **{"chain_start": "uniform", "sgld_clamp": False, "sgld_grad_clip": None, "bn_chains": "jem"},
}
DIVERGED = re.compile(r"diverged at step \d+ \([^)]*\)")


def seed_record(
    folder: Path,
    *,
    finished: bool,
    places: Sequence[Path] = (),
    asked: Asked | None = None,
) -> Record:
    """The record of one run, with the answers in its eval/ and in `places`.

    asked: question -> the settings that the tables ask it with: only answers to those are taken.
    None: the newest that is not about images refined by SGLD.
    Raises reports.page.run.NoRun where the folder holds no run.
    """
    run = read_run(folder, places)
    rows = [row for row in run.rows if (row.get("step") or "").isdecimal()]
    speeds = [found for row in rows if (found := _float(row.get("images_per_s")))]
    speed = median(speeds) if speeds else None
    state, divergences = _state(folder, finished)
    start = run.settings.get("load_path")
    answers = answers_of(run, asked)
    batch = number(run.settings.get("batch_size"))
    numbers = gradients(rows)
    if speed and batch:
        numbers["ms_per_step"] = 1000 * batch / speed
    if numbers:
        answers["training"] = {"numbers": numbers}
    return {
        "state": state,
        "divergences": divergences,
        "settings": gist(run.settings),
        "start": Path(start).parent.name if isinstance(start, str) else None,
        "epochs": run.epochs,
        "steps": int(rows[-1]["step"]) if rows else 0,
        "seconds": _float(rows[-1].get("seconds")) if rows else None,
        "images_per_s": speed,
        "device": run.environment.get("device"),
        "commit": run.environment.get("git_commit"),
        "devices": distinct(each.get("device") for each in run.environments),
        "commits": distinct(each.get("git_commit") for each in run.environments),
        "answers": answers,
    }


def distinct(found: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(each) for each in found if each))


def gradients(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """ "gradient/<term>" and "cosine/<term>", means over the epochs that --log_gradients saw."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for column, text in row.items():
            term, _, what = str(column).rpartition("/")
            value = _float(text)
            if term and what in ("gradient", "cosine") and value is not None:
                found.setdefault(f"{what}/{term}", []).append(value)
    return {name: fmean(values) for name, values in found.items()}


def gist(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that tell rows apart: terms with a weight, and what belongs to them."""
    names = list(ALWAYS)
    for term in used(settings):
        names += [term.name, *term.settings]
    names += [name for name, value in DEFAULTS.items() if settings.get(name, value) != value]
    return {name: settings[name] for name in names if settings.get(name) is not None}


def collect(
    root: Path, scale: str, runs: Mapping[str, Mapping[int, Record]], results: Path
) -> list[Path]:
    """Write results/<scale>/<experiment>.json; seeds that are recorded already and not among
    `runs` stay, and a finished one stays where the run is not.

    Raises UsageError where a record would hold more than one protocol version.
    """
    written = []
    for name, seeds in sorted(runs.items()):
        path = results / scale / f"{name}.json"
        old = read_record(path) if path.exists() else {"seeds": {}}
        merged = dict(old["seeds"])
        for seed, found in seeds.items():
            kept = merged.get(str(seed), found)
            if kept["state"] == "finished" != found["state"]:
                warn(
                    f"{name}-s{seed} is {found['state']} and its record in {scale}/{path.name} is "
                    "of a finished run: that one stays"
                )
            else:
                merged[str(seed)] = found
        record = {"experiment": name, "scale": scale, "seeds": merged}
        for question, versions in _versions(record).items():
            if len(versions) > 1:
                raise UsageError(
                    f"--root {root}: {name} has answers of protocol versions "
                    f"{', '.join(sorted(versions))} to {question} over its seeds: evaluate them "
                    f"all again, or remove {path}"
                )
        write(path, json.dumps(plain(record), indent=1, sort_keys=True, allow_nan=False) + "\n")
        written.append(path)
    return written


def _versions(record: Record) -> dict[str, set[str]]:
    """The protocol versions of each question's answers."""
    found: dict[str, set[str]] = {}
    for seed in record["seeds"].values():
        for question, answer in seed.get("answers", {}).items():
            if "protocol" in answer:
                versions = found.setdefault(question.partition("/")[0], set())
                versions.add(str(answer["protocol"].get("version")))
    return found


def read_record(path: Path) -> Record:
    """Raises UsageError for a file that is no record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        seeds = record["seeds"]
        ok = all(isinstance(seed["answers"], dict) and seed["state"] for seed in seeds.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ok = False
    if not ok:
        raise UsageError(f"--results: {path} is no record of a run: remove it and collect again")
    return record


def write(path: Path, text: str, flag: str = "--results") -> None:
    """Raises UsageError where the folder cannot be written to."""
    with writing(path, flag) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def writing(path: Path, flag: str = "--results") -> Iterator[Path]:
    """A name to write to that becomes `path`: whole or not at all.

    Raises UsageError, with the flag that the folder was given for, where that fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            yield temporary
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(
            f"{flag}: cannot write {path} ({reason}): give a folder that is writable and has room"
        ) from None


def _state(folder: Path, finished: bool) -> tuple[str, int]:
    """finished, diverged, failed or unfinished, and how often the run has diverged in all."""
    mark = folder / "diverged.txt"
    logs = [folder / "log.txt", folder.with_name(folder.name + ".log"), mark]
    texts = [_text(path) for path in logs]
    divergences = {found for text in texts for found in DIVERGED.findall(text)}
    if mark.exists():
        return ("diverged" if DIVERGED.search(texts[2]) else "failed"), len(divergences)
    if finished:
        return "finished", len(divergences)
    last = texts[0].strip().rpartition("\n")[2]
    ended = DIVERGED.match(last) and "; restart " not in last
    return ("diverged" if ended else "unfinished"), len(divergences)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _float(text: object) -> float | None:
    try:
        return number(float(str(text)))
    except ValueError:
        return None
