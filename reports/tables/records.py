"""What the tables need of a run folder, small enough to be kept: numbers, settings, cost.

A record is the runs of one experiment, by their seeds; its file has them as "seeds". A run, a Seed,
is {"state", "divergences", "settings", "epochs", "steps", "seconds", "images_per_s", "device",
"commit", "devices", "commits", "start", "answers": {question: {"protocol", "numbers", "skipped"}}}.
"device" and "commit" are the last process's, "devices" and "commits" those of all of the run, the
oldest first. `numbers` has flat keys, such as "auroc/px/svhn" or "accuracy/cifar10"; rates are
0..1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

from reports.page.markup import number, parsed
from reports.page.paper import canonical
from reports.page.run import Model, Run, mapping
from reports.tables.titles import natural
from runs.cli import UsageError
from runs.files import file_sha256, plain, read_json, whole
from runs.folder import LAST
from runs.names import ADAM_BETAS, IMAGE_SIZE
from runs.screen import print_line
from runs.terms import used

Seed = dict[str, Any]
Record = Mapping[str, Seed]  # in the order of the seeds
SEED = re.compile(r"-s[0-9]+$")  # at the end of a run's name

ALWAYS = (
    *("dataset", "arch", "depth", "width", "norm", "dropout_rate", "optimizer", "lr", "n_epochs"),
    *("max_steps", "batch_size", "warmup_iters", "decay_epochs", "decay_rate", "weight_decay"),
    *("sigma", "smoothing", "labels_per_class", "sgld_l2", "clip_grad", "amp", "method"),
    *("distance", "eps", "levels", "class_cond"),
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
# What numbers depend on and must have in common to be averaged.
PROTOCOL = ("version", "sigma", "n_steps", "seed", "amp", "max_images")
OWN_PROTOCOL = {
    "fid": ("n", "sampling", "reference"),
    "attack": ("attack", "steps", "restarts", "n_steps_refine"),
}
# Family of keys -> where an answer has the number: of the model, or in a row of a chain's length.
OF_DATASET = {
    "test_clf": {"accuracy": "accuracy", "nll": "nll"},
    "eval_ece": {"ece": "ece", "ece_accuracy": "accuracy", "brier": "brier"},
}
OF_CHAINS = {
    **{"chain_fid": "fid", "precision": "precision", "recall": "recall"},
    "read_as_asked": "read_as_asked",
}
IMAGES = re.compile(r": (?:the first )?([0-9,]+) (?:of [0-9,]+ )?images; ")
PUBLISHED_SAMPLES = 50_000  # a FID of fewer samples is another quantity
Asked = Callable[[str, Mapping[str, Any]], bool]


def seed_of(run: Run, asked: Asked | None = None) -> Seed:
    """Return what is kept of a run; `asked`: see `answers_of`."""
    state, divergences = _state(run.folder, run.finished)
    speeds = [found for row in run.rows if (found := parsed(row.get("images_per_s")))]
    speed = median(speeds) if speeds else None
    start = run.settings.get("load_path")
    devices, commits = (
        list(dict.fromkeys(str(found[key]) for found in run.environments if found.get(key)))
        for key in ("device", "git_commit")
    )
    return {
        "state": state,
        "divergences": divergences,
        "settings": gist(run.settings),
        "start": Path(start).parent.name if isinstance(start, str) else None,
        "epochs": run.epochs,
        "steps": run.steps,
        "seconds": parsed(run.last.get("seconds")),
        "images_per_s": speed,
        "device": run.environment.get("device"),
        "commit": run.environment.get("git_commit"),
        "devices": devices,
        "commits": commits,
        "answers": answers_of(run, asked) | training(run.rows, speed, run.settings),
    }


def training(
    rows: Sequence[Mapping[str, str]], speed: float | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the answer that training itself gives: the time of a step, and "gradient/<term>" and
    "cosine/<term>", means over the epochs that --log_gradients saw."""
    found: dict[str, list[float]] = {}
    for column, text in (item for row in rows for item in row.items()):
        term, _, what = column.rpartition("/")
        if term and what in ("gradient", "cosine") and (value := parsed(text)) is not None:
            found.setdefault(f"{what}/{term}", []).append(value)
    numbers = {name: fmean(values) for name, values in found.items()}
    batch = number(settings.get("batch_size"))
    numbers |= {"ms_per_step": 1000 * batch / speed} if speed and batch else {}
    return {"training": {"numbers": numbers}} if numbers else {}


def gist(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that tell rows apart: terms with a weight, and what belongs to them."""
    names = [*ALWAYS, *(name for term in used(settings) for name in (term.name, *term.settings))]
    names += [name for name, value in DEFAULTS.items() if settings.get(name, value) != value]
    return {name: settings[name] for name in names if settings.get(name) is not None}


def collect(scale: str, runs: Mapping[str, Mapping[int, Seed]], results: Path) -> list[Path]:
    """Write results/<scale>/<experiment>.json; seeds that are recorded already and not among
    `runs` stay, and a finished one stays where the run is not."""
    written = []
    for name, seeds in sorted(runs.items()):
        path = results / scale / f"{name}.json"
        merged = dict(read_record(path)) if path.exists() else {}
        for seed, found in seeds.items():
            if merged.get(str(seed), found)["state"] == "finished" != found["state"]:
                warn(
                    f"{name}-s{seed} is {found['state']} and its record in {scale}/{path.name} is "
                    "of a finished run: that one stays"
                )
            else:
                merged[str(seed)] = found
        content = plain({"experiment": name, "scale": scale, "seeds": merged})
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
        written.append(write(path, text + "\n"))
    return written


def warn(message: str) -> None:
    print_line(f"tables.py: warning: {message}", sys.stderr)


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
        seeds = read_json(path)["seeds"]
        ok = all(isinstance(seed["answers"], dict) and seed["state"] for seed in seeds.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ok = False
    if not ok:
        raise UsageError(f"--results: {path} is no record of a run: remove it and collect again")
    return {n: seeds[n] for n in sorted(seeds, key=natural)}


def finished_seeds(record: Record) -> dict[str, Seed]:
    return {n: seed for n, seed in record.items() if seed["state"] == "finished"}


def start_of(seed: Seed) -> str | None:
    """Return the experiment from whose checkpoint the run went on."""
    return SEED.sub("", seed["start"]) if seed.get("start") else None


def write(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all; an OSError names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def _state(folder: Path, finished: bool) -> tuple[str, int]:
    """Return finished, diverged or unfinished, and how often the run diverged in all."""
    mark = folder / "diverged.txt"  # of scripts/experiments.py
    texts = [
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for path in (folder / "log.txt", folder.with_name(folder.name + ".log"), mark)
    ]
    divergences = len({found for text in texts for found in DIVERGED.findall(text)})
    last = texts[0].strip().rpartition("\n")[2]
    ended = DIVERGED.match(last) and "; restart " not in last
    if mark.exists() or (ended and not finished):
        return "diverged", divergences
    return ("finished" if finished else "unfinished"), divergences


# ------------------------------------------------------------------------- answers as flat numbers


def answers_of(run: Run, asked: Asked | None) -> dict[str, Any]:
    """Return question (of attacks: with the distance) -> its protocol, numbers and skipped sets.

    asked: whether a question and its settings are what the tables ask; no other answer is taken,
    and none about another checkpoint than the last. None: the newest answer of each question.
    Answers about refined images are left out, and those about weights that the checkpoint no longer
    holds: with a warning where there is no other.
    """
    found: dict[str, tuple[bool, dict[str, Any]]] = {}
    stale: dict[str, Path] = {}
    hash_of = cache(lambda path: file_sha256(path) if path.is_file() else None)
    for name, answer in ((name, each) for name, every in run.answers.items() for each in every):
        model = answer.of_run()
        if model is None or model.refined:
            continue
        last = Path(model.checkpoint).name == LAST
        if asked is not None and not (last and asked(name, model.part("settings"))):
            continue
        key = f"{name}/{model.get('distance')}" if name == "attack" else name
        if is_stale(run, model, hash_of):
            stale.setdefault(key, answer.path)
        elif key not in found or last > found[key][0]:  # the newest of a question comes first
            numbers = numbers_of(name, model)
            skipped = [str(r.get("ood_dataset")) for r in model.rows("skipped")]
            record = {"protocol": protocol_of(name, model), "skipped": skipped}
            record["numbers"] = {k: v for k, v in numbers.items() if number(v) is not None}
            found[key] = (last, record)
    for key in sorted(stale.keys() - found.keys()):
        warn(
            f"{Path(*stale[key].parts[-3:])} is about earlier weights of {run.name} and is left "
            f"out: ask {key} again"
        )
    return {key: answer for key, (_, answer) in found.items()}


def protocol_of(name: str, model: Model) -> dict[str, Any]:
    """Return what the numbers depend on, as far as the answer tells; "sets": name -> images."""
    told = model.part("protocol")
    protocol = {key: told[key] for key in PROTOCOL if key in told}
    sizes = {key: IMAGES.search(str(text)) for key, text in mapping(told.get("sets")).items()}
    protocol["sets"] = {key: int(n[1].replace(",", "")) for key, n in sizes.items() if n}
    protocol |= {key: model.get(key) for key in OWN_PROTOCOL.get(name, ())}
    if isinstance(weights := model.get("weights"), str):  # of a run with --ema
        protocol["weights"] = weights.split()[0]
    if name == "fid":
        protocol["features"] = features_of(model)
        if protocol["features"] != "own":  # else of each seed its own
            protocol["features_sha256"] = model.get("features_sha256")
    return protocol


def is_stale(run: Run, model: Model, hash_of: Callable[[Path], Any]) -> bool:
    """Tell whether the run's checkpoint has changed since: by its hash, or, where a folder has no
    weights, by the last step. An answer with neither is believed."""
    path = run.folder / Path(model.checkpoint).name
    told = model.get("checkpoint_sha256")
    if isinstance(told, str) and hash_of(path) is not None:
        return bool(told != hash_of(path))
    step = number(model.part("run").get("step"))
    return path.name == LAST and step is not None and run.last != {} and step != run.steps


def numbers_of(name: str, model: Model) -> dict[str, Any]:
    value, rows = model.get, model.rows("rows")
    if name in OF_DATASET:
        dataset = canonical(str(value("dataset")))
        return {f"{key}/{dataset}": value(source) for key, source in OF_DATASET[name].items()}
    if name == "OOD":
        known = canonical(str(value("in_dataset")))
        numbers = {
            f"{key}/{row.get('score_fn')}/{out_of(known, row.get('ood_dataset'))}": row.get(key)
            for row in rows
            for key in ("auroc", "fpr95", "aupr")
        }
        return numbers | mean_aurocs(numbers)
    if name == "logp_hist":
        sets = model.part("sets")
        known = canonical(next(iter(sets), "cifar10").removesuffix("_train"))
        return {
            f"hist/{value('score_fn')}/{out_of(known, out)}": mapping(found).get("auroc")
            for out, found in sets.items()
        }
    if name == "fid":
        return fid_numbers(model)
    if name == "attack":
        radii = {number(row.get("eps")): row.get("accuracy") for row in rows}
        return {
            f"robust/{value('distance')}/{eps:.5g}": accuracy
            for eps, accuracy in radii.items()
            if eps is not None
        }
    if not name.endswith("_samples"):
        return {}  # a question of the user's own
    asked = model.part("read_as_asked")
    drawn = {f"samples/{key}": value(key) for key in ("n", "steps")}
    return drawn | {f"asked/{images}": asked.get(images) for images in ("samples", "starts")}


def fid_numbers(model: Model) -> dict[str, Any]:
    """Return the numbers of the samples, and of chains of that length beside their starts."""
    features = features_of(model)
    if features == f"{Path(model.checkpoint).parent.name}'s":
        features = "own"

    def of(n: Any) -> str:
        count = int(number(n) or 0)
        return features if count >= PUBLISHED_SAMPLES else f"{features}-{count}"

    key, steps = of(model.get("n")), model.get("steps")
    numbers = {f"fid/{key}": model.get("fid")}
    numbers[f"is/{key}"] = model.get("inception_score_mean")
    for row in model.rows("rows"):
        if row.get("images") in ("starts", "samples") and row.get("steps") in (0, steps):
            for family, source in OF_CHAINS.items():
                numbers[f"{family}/{row['images']}/{of(row.get('n'))}"] = row.get(source)
    return numbers


def mean_aurocs(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return each score's mean over its sets, where there are several; the key has their number,
    since means over other sets do not compare."""
    found: dict[str, list[float]] = {}
    for key, auroc in numbers.items():
        family, score, _ = key.split("/", 2)
        if family == "auroc" and (value := number(auroc)) is not None:
            found.setdefault(f"mean_auroc/{score}", []).append(value)
    return {f"{key}/{len(v)}": fmean(v) for key, v in found.items() if len(v) > 1}


def features_of(model: Model) -> str:
    """Return inception, own (the very network's that made the samples) or --fid_model's folder."""
    name = str(model.get("features"))
    if not name.startswith("model"):
        return "inception" if name.startswith("inception") else name
    other = model.part("settings").get("fid_model")
    return "own" if other is None else f"{Path(name.removeprefix('model ')).parent.name}'s"


def out_of(known: str, out: object) -> str:
    """Return an OOD set's key: of another in-distribution set than CIFAR-10 it names both."""
    out = canonical(str(out))
    return out if known == "cifar10" else f"{known}:{out}"
