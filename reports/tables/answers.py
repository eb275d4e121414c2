"""A run's answers as flat numbers: "auroc/px/svhn", "accuracy/cifar10", "robust/L2/0.5", ..."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from reports.page.answer import Answer, Model
from reports.page.markup import number
from reports.page.paper import canonical
from reports.page.run import Run
from runs.checkpoint import LAST
from runs.files import file_sha256, plain
from runs.screen import print_line

# What numbers depend on and must have in common to be averaged.
PROTOCOL = ("version", "sigma", "n_steps", "seed", "amp", "max_images")
OWN_PROTOCOL = {
    "fid": ("n", "sampling", "reference"),
    "attack": ("attack", "steps", "restarts", "n_steps_refine"),
}
REFERENCE_FOLDER = re.compile(r"ce-s[0-9]+")  # of the network whose features compare samples
# Family of keys -> a column of evaluation.generation.compared's rows.
OF_CHAINS = {
    "chain_fid": "fid",
    **{name: name for name in ("precision", "recall", "read_as_asked")},
}
IMAGES = re.compile(r": (?:the first )?([0-9,]+) (?:of [0-9,]+ )?images; ")
PUBLISHED_SAMPLES = 50_000  # a FID of fewer samples is another quantity

# What may differ between two askings of one question: where things are, and on what device. (The
# network of --fid_model is known by its hash, not by its path.)
INDIFFERENT = frozenset(
    ("load_path", "labels", "log_dir", "id", "data_root", "device", "workers")
    + ("fid_model", "inception_weights")
)

Asked = Mapping[str, Sequence[Mapping[str, Any]]]


def answers_of(run: Run, asked: Asked | None) -> dict[str, Any]:
    """Question (of attacks: with the distance) -> its protocol, numbers and skipped sets.

    asked: question -> the settings that the tables ask it with: no other answer is taken, and
    none about another checkpoint than the last. None: the newest answer of each question.
    An answer about weights that the checkpoint no longer holds is left out, with a warning where
    there is no other.
    """
    candidates: dict[str, list[tuple[bool, Answer, Model]]] = {}
    stale: dict[str, Answer] = {}
    hashes: dict[Path, str | None] = {}
    for name, answers in run.answers.items():
        for answer in answers:
            model = answer.of_run()
            refined = number(answer.part("protocol").get("n_steps"))
            if model is None or (refined and not name.endswith("_samples") and name != "fid"):
                continue
            if number(answer.value(model, "n_steps_refine")):
                continue
            key = f"{name}/{answer.value(model, 'distance')}" if name == "attack" else name
            last = Path(model.checkpoint).name == LAST
            if asked is not None:
                settings = answer.part("settings")
                if not last or not any(answers_to(settings, w) for w in asked.get(name, ())):
                    continue
            if is_stale(run, answer, model, hashes):
                stale.setdefault(key, answer)
                continue
            candidates.setdefault(key, []).append((last, answer, model))
    found = {}
    for key, choice in candidates.items():
        # The first, and so newest, of all.
        _, answer, model = max(choice, key=lambda item: item[0])
        name = key.split("/")[0]
        protocol = protocol_of(name, answer, model)
        numbers = {k: v for k, v in _numbers(name, answer, model).items() if number(v) is not None}
        skipped = [str(s.get("ood_dataset")) for s in answer.rows(model, "skipped")]
        found[key] = {"protocol": protocol, "numbers": numbers, "skipped": skipped}
    for key in sorted(stale.keys() - found.keys()):
        path = stale[key].path
        place = Path(path.parent.parent.name, path.parent.name, path.name)
        warn(f"{place} is about earlier weights of {run.name} and is left out: ask {key} again")
    return found


def protocol_of(name: str, answer: Answer, model: Model) -> dict[str, Any]:
    """What its numbers depend on, as far as the answer tells; "sets": name -> images."""
    told = answer.part("protocol")
    protocol = {k: told[k] for k in PROTOCOL if k in told}
    sets = told.get("sets")
    sets = sets.items() if isinstance(sets, dict) else ()
    sizes = {each: IMAGES.search(str(about)) for each, about in sets}
    protocol["sets"] = {k: int(n[1].replace(",", "")) for k, n in sizes.items() if n}
    protocol |= {k: answer.value(model, k) for k in OWN_PROTOCOL.get(name, ())}
    if isinstance(weights := answer.value(model, "weights"), str):  # of a run with --ema
        protocol["weights"] = weights.split()[0]
    if name == "fid":
        protocol["features"] = features_of(answer, model)
        if protocol["features"] != "own":  # else of each seed its own
            protocol["features_sha256"] = answer.value(model, "features_sha256")
    return protocol


def answers_to(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """`wanted` has --fid_model REFERENCE for any seed's cross-entropy model."""
    if wanted["fid_model"] is not None and "fid_model" in settings:
        folder = Path(str(settings["fid_model"])).parent.name
        if REFERENCE_FOLDER.fullmatch(folder) is None:
            return False
    return same_question(settings, wanted)


def same_question(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether an answer's settings are those that are asked for. A flag that the answer's version
    did not have yet does not tell."""
    told = wanted.keys() & found.keys() - INDIFFERENT
    both = "fid_model" in wanted and "fid_model" in found
    if both and (wanted["fid_model"] is None) != (found["fid_model"] is None):
        return False  # of another network's features, or of its own
    return bool(found) and all(found[flag] == plain(wanted[flag]) for flag in told)


def is_stale(run: Run, answer: Answer, model: Model, hashes: dict[Path, str | None]) -> bool:
    """Whether the run's checkpoint has changed since: by its hash (`hashes`: those known so far),
    or, where a folder has no weights, by the last step. An answer that tells neither is
    believed."""
    path = run.folder / Path(model.checkpoint).name
    if path not in hashes:
        try:
            hashes[path] = file_sha256(path)
        except OSError:
            hashes[path] = None
    told, now = answer.value(model, "checkpoint_sha256"), hashes[path]
    if isinstance(told, str) and now is not None:
        return told != now
    about = answer.value(model, "run")
    step = number(about.get("step")) if isinstance(about, dict) else None
    steps = [int(text) for row in run.rows if (text := row.get("step") or "").isdecimal()]
    return path.name == LAST and step is not None and steps != [] and step != steps[-1]


def warn(message: str) -> None:
    print_line(f"tables.py: warning: {message}", sys.stderr)


def _numbers(name: str, answer: Answer, model: Model) -> dict[str, Any]:
    def value(key: str) -> Any:
        return answer.value(model, key)

    dataset = canonical(str(value("dataset")))
    if name == "test_clf":
        return {f"{key}/{dataset}": value(key) for key in ("accuracy", "nll")}
    if name == "eval_ece":
        keys = {"ece": "ece", "ece_accuracy": "accuracy", "brier": "brier"}
        return {f"{key}/{dataset}": value(source) for key, source in keys.items()}
    if name == "OOD":
        known = canonical(str(value("in_dataset")))
        numbers = {
            f"{key}/{row.get('score_fn')}/{out_of(known, str(row.get('ood_dataset')))}": row.get(
                key
            )
            for row in answer.rows(model, "rows")
            for key in ("auroc", "fpr95", "aupr")
        }
        return numbers | mean_aurocs(numbers)
    if name == "logp_hist":
        sets = value("sets") if isinstance(value("sets"), dict) else {}
        known = canonical(next(iter(sets), "cifar10").removesuffix("_train"))
        return {
            f"hist/{value('score_fn')}/{out_of(known, out)}": found.get("auroc")
            for out, found in sets.items()
            if isinstance(found, dict)
        }
    if name == "fid":
        features = features_of(answer, model)
        if features == f"{Path(model.checkpoint).parent.name}'s":
            features = "own"
        key = of_samples(features, value("n"))
        numbers = {f"fid/{key}": value("fid"), f"is/{key}": value("inception_score_mean")}
        return numbers | {
            f"{family}/{row['images']}/{of_samples(features, row.get('n'))}": row.get(source)
            for row in answer.rows(model, "rows")
            if row.get("images") in ("starts", "samples")
            and row.get("steps") in (0, value("steps"))
            for family, source in OF_CHAINS.items()
        }
    if name == "attack":
        rows = [row for row in answer.rows(model, "rows") if number(row.get("eps")) is not None]
        return {f"robust/{value('distance')}/{row['eps']:.5g}": row.get("accuracy") for row in rows}
    return {f"samples/{key}": value(key) for key in ("n", "steps")}


def of_samples(features: str, n: Any) -> str:
    count = int(number(n) or 0)
    return features if count >= PUBLISHED_SAMPLES else f"{features}-{count}"


def mean_aurocs(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Score -> the mean over its sets, where there are several; the key has their number, since
    means over other sets do not compare."""
    found: dict[str, list[float]] = {}
    for key, auroc in numbers.items():
        family, score, _ = key.split("/", 2)
        if family == "auroc" and (value := number(auroc)) is not None:
            found.setdefault(score, []).append(value)
    return {
        f"mean_auroc/{score}/{len(values)}": fmean(values)
        for score, values in found.items()
        if len(values) > 1
    }


def features_of(answer: Answer, model: Model) -> str:
    """inception, own (the very network's that made the samples) or the folder of --fid_model."""
    name, other = str(answer.value(model, "features")), answer.part("settings").get("fid_model")
    if not name.startswith("model"):
        return "inception" if name.startswith("inception") else name
    return f"{Path(other).parent.name}'s" if isinstance(other, str) else "own"


def out_of(known: str, out: str) -> str:
    """An OOD set's key: of another in-distribution set than CIFAR-10 it names both."""
    out = canonical(out)
    return out if known == "cifar10" else f"{known}:{out}"
