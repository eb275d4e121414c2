"""Reduce a run folder to a small record of its numbers, settings and cost.

A record holds the runs of one experiment by seed; its file has them under "seeds". A run, a Seed,
is {"state", "divergences", "settings", "epochs", "steps", "seconds", "images_per_s", "device",
"commit", "devices", "commits", "start", "training_images",
"answers": {question: {"protocol", "numbers", "skipped"}}}.
"training_images", their number and checksum, is null or missing for older runs. "device" and
"commit" are of the run's last process, "devices" and "commits" of all, oldest first.
`numbers` has flat keys, such as "auroc/px/svhn" or "accuracy/cifar10"; rates are 0..1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from reports.page.markup import number, parsed
from reports.page.paper import canonical
from reports.page.run import Model, Run, mapping
from reports.tables.titles import UNCONDITIONAL, natural
from runs.cli import UsageError
from runs.files import plain, read_json, whole
from runs.folder import LAST, TRAINED_ON
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
    *("distance", "eps", "levels", "class_cond", "n_valid", "temperature", "projection"),
    *("pretrain_epochs", "ntxent_weight", "n_steps_pgd_attack", "attack_step", "random_init"),
    *("l2", "max_iter"),
)
# Settings that a record omits at these values. Records from before a setting was recorded lack it,
# too: their runs all had this value.
DEFAULTS = {
    **{"image_size": IMAGE_SIZE, "augment": "on", "adam_betas": ADAM_BETAS, "ema": 0.0},
    **{"independent_batches": False, "augment_px": "same", "px_batch_size": None},
    **{"uncond": False, "px_loss": "cd", "class_cond_p_x_sample": False},
    **{"clf_only": False, "queue_init": "empty", "start_epoch": 0},
    **{"chain_start": "uniform", "sgld_clamp": False, "sgld_grad_clip": None, "bn_chains": "jem"},
}
DIVERGED = re.compile(r"diverged at step \d+ \([^)]*\)")
# Numbers are averaged only where these agree: keys of the protocol and, by question, of the answer.
PROTOCOL = ("version", "sigma", "n_steps", "seed", "amp", "max_images")
PROTOCOL_OF_QUESTION = {
    "fid": ("n", "sampling", "reference", "guidance"),
    "attack": ("attack", "steps", "restarts", "n_steps_refine", "random_init"),
    "uncond_samples": ("steps",),
    "cond_samples": ("steps", "guidance"),
}
# Question -> family of keys -> the answer's key, of numbers about one data set.
OF_DATASET = {
    "test_clf": {"accuracy": "accuracy", "nll": "nll"},
    "eval_ece": {"ece": "ece", "ece_accuracy": "accuracy", "brier": "brier"},
}
NO_OVERRIDES = "none"  # all settings of the evaluation that a run has are the run's
OF_CHAINS = {  # family of keys -> key of a FID answer's rows
    **{"chain_fid": "fid", "precision": "precision", "recall": "recall"},
    "read_as_asked": "read_as_asked",
}
IMAGES = re.compile(r": (?:the first )?([0-9,]+) (?:of [0-9,]+ )?images; ")
PUBLISHED_SAMPLES = 50_000  # FID depends on the number of samples: fewer have a key of their own
IsWanted = Callable[[str, Mapping[str, Any]], bool]  # question, settings of its answer -> take it?


def seed_of(run: Run, is_wanted: IsWanted | None = None) -> Seed:
    """Return a run as its record has it; `is_wanted`: see `answers_of`."""
    state, divergences = _state(run.folder, run.finished)
    speeds = [rate for row in run.rows if (rate := parsed(row.get("images_per_s")))]
    speed = median(speeds) if speeds else None
    start = run.settings.get("load_path")
    devices, commits = (
        list(dict.fromkeys(str(process[key]) for process in run.environments if process.get(key)))
        for key in ("device", "git_commit")
    )
    return {
        "state": state,
        "divergences": divergences,
        "settings": gist(run.settings),
        "start": Path(start).parent.name if isinstance(start, str) else None,
        TRAINED_ON: run.settings.get(TRAINED_ON),
        "epochs": run.epochs,
        "steps": run.steps,
        "seconds": parsed(run.last.get("seconds")),
        "images_per_s": speed,
        "device": run.environment.get("device"),
        "commit": run.environment.get("git_commit"),
        "devices": devices,
        "commits": commits,
        "answers": answers_of(run, is_wanted) | training(run.rows, speed, run.settings),
    }


def training(
    rows: Sequence[Mapping[str, str]], speed: float | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the numbers of progress.csv as the answer "training": the time of a step, and
    "gradient/<term>" and "cosine/<term>", means over the epochs that --log_gradients measured."""
    columns: dict[str, list[float]] = {}
    for column, text in (item for row in rows for item in row.items()):
        term, _, quantity = column.rpartition("/")
        if term and quantity in ("gradient", "cosine") and (value := parsed(text)) is not None:
            columns.setdefault(f"{quantity}/{term}", []).append(value)
    numbers = {name: fmean(values) for name, values in columns.items()}
    batch = number(settings.get("batch_size"))
    numbers |= {"ms_per_step": 1000 * batch / speed} if speed and batch else {}
    return {"training": {"numbers": numbers}} if numbers else {}


def gist(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that distinguish experiments: those of ALWAYS, terms with a weight, the
    settings of these terms, and those of DEFAULTS at another value."""
    names = [*ALWAYS, *(name for term in used(settings) for name in (term.name, *term.settings))]
    names += [name for name, value in DEFAULTS.items() if settings.get(name, value) != value]
    return {name: settings[name] for name in names if settings.get(name) is not None}


def collect(scale: str, runs: Mapping[str, Mapping[int, Seed]], results: Path) -> list[Path]:
    """Write results/<scale>/<experiment>.json for each experiment of `runs`. A recorded seed stays
    where `runs` lacks it, and where it is finished but the new run is not."""
    written = []
    for name, seeds in sorted(runs.items()):
        path = results / scale / f"{name}.json"
        merged = dict(read_record(path)) if path.exists() else {}
        for seed, run in seeds.items():
            if merged.get(str(seed), run)["state"] == "finished" != run["state"]:
                warn(
                    f"{name}-s{seed} is {run['state']} and its record in {scale}/{path.name} is "
                    "of a finished run: the finished run's record stays"
                )
            else:
                merged[str(seed)] = run
        content = plain({"experiment": name, "scale": scale, "seeds": merged})
        text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
        written.append(write(path, text + "\n"))
    return written


def warn(message: str) -> None:
    print_line(f"tables.py: warning: {message}", sys.stderr)


def read_records(results: Path, scales: Iterable[str]) -> dict[str, dict[str, Record]]:
    """Return scale -> experiment -> record, for the scales that have records.

    Raises UsageError for a file that is no record.
    """
    by_scale = {
        scale: {path.stem: read_record(path) for path in sorted((results / scale).glob("*.json"))}
        for scale in scales
    }
    return {scale: records for scale, records in by_scale.items() if records}


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
    """Return the experiment whose checkpoint the run started from; None without one."""
    return SEED.sub("", seed["start"]) if seed.get("start") else None


def write(path: Path, content: str | bytes) -> Path:
    """Write a file whole or not at all; an OSError names it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def _state(folder: Path, finished: bool) -> tuple[str, int]:
    """Return finished, diverged or unfinished, and how often the run diverged in all."""
    folder = folder.absolute()  # "." has no name
    mark = folder / "diverged.txt"  # written by scripts/experiments.py
    texts = [
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for path in (folder / "log.txt", folder.with_name(folder.name + ".log"), mark)
    ]
    divergences = len({message for text in texts for message in DIVERGED.findall(text)})
    last_line = texts[0].strip().rpartition("\n")[2]
    ended = DIVERGED.match(last_line) and "; restart " not in last_line
    if mark.exists() or (ended and not finished):
        return "diverged", divergences
    return ("finished" if finished else "unfinished"), divergences


# ------------------------------------------------------------------------- answers as flat numbers


def answers_of(run: Run, is_wanted: IsWanted | None) -> dict[str, Any]:
    """Return question (of attacks: with the distance) -> its protocol, numbers and skipped sets.

    Leave out answers about refined images. is_wanted: whether the tables use an answer with
    these settings, which then has to be about the last checkpoint. None: take the newest answer, if
    possible about the last checkpoint. Numbers that it lacks are those of an earlier answer with
    the same protocol.
    """
    taken: dict[str, tuple[bool, dict[str, Any]]] = {}
    for name, answer in ((name, a) for name, answers in run.answers.items() for a in answers):
        model = answer.of_run()
        if model is None or model.refined:
            continue
        last = Path(model.checkpoint).name == LAST
        if is_wanted is not None and not (last and is_wanted(name, model.part("settings"))):
            continue
        key = f"{name}/{model.get('distance')}" if name == "attack" else name
        skipped = [str(r.get("ood_dataset")) for r in model.rows("skipped")]
        numbers = {k: v for k, v in numbers_of(name, model).items() if number(v) is not None}
        entry = {"protocol": protocol_of(name, model), "numbers": numbers, "skipped": skipped}
        if key not in taken or last > taken[key][0]:  # run.answers has the newest first
            taken[key] = (last, entry)
        else:
            add_earlier(taken[key][1], entry)
    return {key: entry for key, (_, entry) in taken.items()}


def add_earlier(answer: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Add the numbers that `answer` lacks, unless the protocols differ in a key that both have."""
    mine, other = answer["protocol"], earlier["protocol"]
    for a, b in ((mine, other), (mine["sets"], other["sets"])):
        if any(a[key] != b[key] for key in a.keys() & b.keys() - {"sets"}):
            return
    answer["protocol"] = {**other, **mine, "sets": {**other["sets"], **mine["sets"]}}
    answer["numbers"] = earlier["numbers"] | answer["numbers"]
    answer["skipped"] = [*dict.fromkeys([*answer["skipped"], *earlier["skipped"]])]


def protocol_of(name: str, model: Model) -> dict[str, Any]:
    """Return what the numbers depend on; "checkpoint": its file's name; "sets": name -> number of
    images."""
    recorded = model.part("protocol")
    protocol = {key: recorded[key] for key in PROTOCOL if key in recorded}
    sizes = {key: IMAGES.search(str(text)) for key, text in mapping(recorded.get("sets")).items()}
    protocol["sets"] = {key: int(n[1].replace(",", "")) for key, n in sizes.items() if n}
    protocol |= {key: model.get(key) for key in PROTOCOL_OF_QUESTION.get(name, ())}
    protocol["checkpoint"] = Path(model.checkpoint).name
    protocol["overrides"] = model.overrides or NO_OVERRIDES
    asked = model.part("settings")
    if name.endswith("_samples") and "fresh_samples" in asked:
        new = f"new, {asked.get('buffer_size')} images"
        protocol["buffer"] = new if asked["fresh_samples"] else "the checkpoint's"
        protocol["sgld_batch_size"] = asked.get("sgld_batch_size")
    if "knn" in str(asked.get("score_fn")):
        protocol["knn_k"] = asked.get("knn_k")
    if classifier := model.part("read_as_asked").get("classifier_sha256"):
        protocol["classifier_sha256"] = classifier
    if isinstance(weights := model.get("weights"), str):  # of a run with --ema
        protocol["weights"] = weights.split()[0]
    if name == "fid":
        protocol["features"] = features_of(model)
        if protocol["features"] != "own":  # a seed's own network differs from seed to seed
            protocol["features_sha256"] = model.get("features_sha256")
    return protocol


def numbers_of(name: str, model: Model) -> dict[str, Any]:
    """Return the numbers of an answer by flat keys; {} for a question of the user's own."""
    value, rows = model.get, model.rows("rows")
    if name in OF_DATASET:
        dataset = canonical(str(value("dataset")))
        return {f"{key}/{dataset}": value(source) for key, source in OF_DATASET[name].items()}
    if name == "OOD":
        in_set = canonical(str(value("in_dataset")))
        numbers = {
            f"{key}/{row.get('score_fn')}/{ood_key(in_set, row.get('ood_dataset'))}": row.get(key)
            for row in rows
            for key in ("auroc", "fpr95", "aupr")
        }
        return numbers | mean_aurocs(numbers)
    if name == "logp_hist":
        sets = model.part("sets")
        first = next(iter(sets), "cifar10")
        in_set = canonical(first if ":" in first else first.removesuffix("_train"))
        return {
            f"hist/{value('score_fn')}/{ood_key(in_set, ood_set)}": mapping(scores).get("auroc")
            for ood_set, scores in sets.items()
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
        return {}
    shares = model.part("read_as_asked")
    steps = "steps" if value("steps_per_sample") is None else "steps_per_sample"
    kind = "" if name == "cond_samples" else UNCONDITIONAL
    drawn = {f"samples/{key}{kind}": value(key) for key in ("n", steps)}
    return drawn | {f"asked/{images}": shares.get(images) for images in ("samples", "starts")}


def fid_numbers(model: Model) -> dict[str, Any]:
    """Return FID, Inception Score, and the rows about chains of that length and their starts."""
    features = features_of(model)
    if features == f"{Path(model.checkpoint).parent.name}'s":
        features = "own"

    def suffix(n: Any) -> str:
        count = int(number(n) or 0)
        return features if count >= PUBLISHED_SAMPLES else f"{features}-{count}"

    n, steps = model.get("n"), model.get("steps")
    scored = suffix(n if model.get("n_score") is None else model.get("n_score"))
    numbers = {f"fid/{suffix(n)}": model.get("fid")}
    numbers[f"is/{scored}"] = model.get("inception_score_mean")
    for row in model.rows("rows"):
        if row.get("images") in ("starts", "samples") and row.get("steps") in (0, steps):
            for family, source in OF_CHAINS.items():
                numbers[f"{family}/{row['images']}/{suffix(row.get('n'))}"] = row.get(source)
    return numbers


def mean_aurocs(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return each score's mean over its sets, where it has several. The key has their number: means
    over different sets do not compare."""
    aurocs: dict[str, list[float]] = {}
    for key, auroc in numbers.items():
        family, score, _ = key.split("/", 2)
        if family == "auroc" and (value := number(auroc)) is not None:
            aurocs.setdefault(f"mean_auroc/{score}", []).append(value)
    return {f"{key}/{len(v)}": fmean(v) for key, v in aurocs.items() if len(v) > 1}


def features_of(model: Model) -> str:
    """Return inception, own (of the network that made the samples) or <folder of --fid_model>'s."""
    name = str(model.get("features"))
    if not name.startswith("model"):
        return "inception" if name.startswith("inception") else name
    own = model.part("settings").get("fid_model") is None
    return "own" if own else f"{Path(name.removeprefix('model ')).parent.name}'s"


def ood_key(in_set: str, ood_set: object) -> str:
    """Return an OOD set's key; an in-distribution set other than CIFAR-10 stands before it."""
    name = canonical(str(ood_set))
    return name if in_set == "cifar10" else f"{in_set}:{name}"
