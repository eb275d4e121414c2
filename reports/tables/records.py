"""What the tables need of a run folder, small enough to be kept: numbers, settings, cost.

A record is {"experiment", "scale", "seeds": {seed: {"state", "divergences", "settings", "epochs",
"steps", "seconds", "images_per_s", "device", "commit", "devices", "commits", "start", "answers":
{question: {"protocol", "numbers", "skipped"}}}}}. "device" and "commit" are the last process's,
"devices" and "commits" those of all of the run, the oldest first. `numbers` has flat keys, such as
"auroc/px/svhn" or "accuracy/cifar10"; rates are 0..1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from reports.page.markup import number
from reports.page.run import Run, read_run
from reports.tables.answers import Asked, answers_of
from runs.cli import UsageError
from runs.files import plain, whole
from runs.names import ADAM_BETAS, IMAGE_SIZE
from runs.screen import print_line
from runs.terms import used

Record = dict[str, Any]
Seed = Mapping[str, Any]  # a seed's part of a record
SEED = re.compile(r"-s[0-9]+$")  # at the end of a run's name

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
    """Return the record of one run, with the answers in its eval/ and in `places`.

    asked: see `answers_of`. Raises reports.page.run.NoRun where the folder holds no run.
    """
    run = read_run(folder, places)
    rows = [row for row in run.rows if (row.get("step") or "").isdecimal()]
    state, divergences = _state(folder, finished)
    speeds = [found for row in rows if (found := _float(row.get("images_per_s")))]
    speed = median(speeds) if speeds else None
    start = run.settings.get("load_path")
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
        "devices": _distinct(run, "device"),
        "commits": _distinct(run, "git_commit"),
        "answers": answers_of(run, asked) | training(rows, speed, run.settings),
    }


def training(
    rows: Sequence[Mapping[str, str]], speed: float | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the answer that training itself gives: the time of a step, and "gradient/<term>" and
    "cosine/<term>", means over the epochs that --log_gradients saw."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for column, text in row.items():
            term, _, what = str(column).rpartition("/")
            value = _float(text)
            if term and what in ("gradient", "cosine") and value is not None:
                found.setdefault(f"{what}/{term}", []).append(value)
    numbers = {name: fmean(values) for name, values in found.items()}
    batch = number(settings.get("batch_size"))
    if speed and batch:
        numbers["ms_per_step"] = 1000 * batch / speed
    return {"training": {"numbers": numbers}} if numbers else {}


def gist(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that tell rows apart: terms with a weight, and what belongs to them."""
    names = [*ALWAYS, *(name for term in used(settings) for name in (term.name, *term.settings))]
    names += [name for name, value in DEFAULTS.items() if settings.get(name, value) != value]
    return {name: settings[name] for name in names if settings.get(name) is not None}


def collect(scale: str, runs: Mapping[str, Mapping[int, Record]], results: Path) -> list[Path]:
    """Write results/<scale>/<experiment>.json; seeds that are recorded already and not among
    `runs` stay, and a finished one stays where the run is not."""
    written = []
    for name, seeds in sorted(runs.items()):
        path = results / scale / f"{name}.json"
        merged = dict(read_record(path)["seeds"]) if path.exists() else {}
        for seed, found in seeds.items():
            if merged.get(str(seed), found)["state"] == "finished" != found["state"]:
                print_line(
                    f"tables.py: warning: {name}-s{seed} is {found['state']} and its record in "
                    f"{scale}/{path.name} is of a finished run: that one stays",
                    sys.stderr,
                )
            else:
                merged[str(seed)] = found
        record = plain({"experiment": name, "scale": scale, "seeds": merged})
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
        written.append(write(path, text + "\n"))
    return written


def read_records(results: Path, scales: Iterable[str]) -> dict[str, dict[str, Record]]:
    """Return scale -> experiment -> record, of the scales that have records.

    Raises UsageError for a file that is no record.
    """
    found = {
        scale: {path.stem: read_record(path) for path in sorted((results / scale).glob("*.json"))}
        for scale in scales
    }
    return {scale: records for scale, records in found.items() if records}


def read_record(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        seeds = record["seeds"]
        ok = all(isinstance(seed["answers"], dict) and seed["state"] for seed in seeds.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ok = False
    if not ok:
        raise UsageError(f"--results: {path} is no record of a run: remove it and collect again")
    return record


def write(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all; an OSError names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def _state(folder: Path, finished: bool) -> tuple[str, int]:
    """Return finished, diverged, failed or unfinished, and how often the run diverged in all."""
    mark = folder / "diverged.txt"
    texts = [
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for path in (folder / "log.txt", folder.with_name(folder.name + ".log"), mark)
    ]
    divergences = len({found for text in texts for found in DIVERGED.findall(text)})
    if mark.exists():
        return ("diverged" if DIVERGED.search(texts[2]) else "failed"), divergences
    if finished:
        return "finished", divergences
    last = texts[0].strip().rpartition("\n")[2]
    ended = DIVERGED.match(last) and "; restart " not in last
    return ("diverged" if ended else "unfinished"), divergences


def _distinct(run: Run, key: str) -> list[str]:
    return list(dict.fromkeys(str(found[key]) for found in run.environments if found.get(key)))


def _float(text: object) -> float | None:
    try:
        return number(float(str(text)))
    except ValueError:
        return None
