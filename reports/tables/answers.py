"""A run's answers as flat numbers: "auroc/px/svhn", "accuracy/cifar10", "robust/L2/0.5", ..."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from reports.page.markup import number
from reports.page.paper import canonical
from reports.page.run import Answer, Model, Run
from runs.files import file_sha256
from runs.folder import LAST
from runs.screen import print_line

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


def answers_of(run: Run, asked: Asked | None) -> dict[str, Any]:
    """Return question (of attacks: with the distance) -> its protocol, numbers and skipped sets.

    asked: whether a question and its settings are what the tables ask; no other answer is taken,
    and none about another checkpoint than the last. None: the newest answer of each question.
    Answers about refined images are left out, and those about weights that the checkpoint no longer
    holds: with a warning where there is no other.
    """
    found: dict[str, tuple[bool, dict[str, Any]]] = {}
    stale: dict[str, Path] = {}
    hashes: dict[Path, str | None] = {}
    for name, answers in run.answers.items():
        for answer in answers:  # the newest first
            model = answer.of_run()
            chains = name == "fid" or name.endswith("_samples")
            refined = not chains and number(answer.part("protocol").get("n_steps"))
            if model is None or refined or number(answer.value(model, "n_steps_refine")):
                continue
            last = Path(model.checkpoint).name == LAST
            if asked is not None and not (last and asked(name, answer.part("settings"))):
                continue
            key = f"{name}/{answer.value(model, 'distance')}" if name == "attack" else name
            if is_stale(run, answer, model, hashes):
                stale.setdefault(key, answer.path)
            elif key not in found or last > found[key][0]:
                numbers = numbers_of(name, answer, model)
                found[key] = (
                    last,
                    {
                        "protocol": protocol_of(name, answer, model),
                        "numbers": {k: v for k, v in numbers.items() if number(v) is not None},
                        "skipped": [
                            str(r.get("ood_dataset")) for r in answer.rows(model, "skipped")
                        ],
                    },
                )
    for key in sorted(stale.keys() - found.keys()):
        print_line(
            f"tables.py: warning: {Path(*stale[key].parts[-3:])} is about earlier weights of "
            f"{run.name} and is left out: ask {key} again",
            sys.stderr,
        )
    return {key: answer for key, (_, answer) in found.items()}


def protocol_of(name: str, answer: Answer, model: Model) -> dict[str, Any]:
    """Return what the numbers depend on, as far as the answer tells; "sets": name -> images."""
    told = answer.part("protocol")
    protocol = {key: told[key] for key in PROTOCOL if key in told}
    sets: Any = told.get("sets")
    sets = sets if isinstance(sets, dict) else {}
    sizes = {key: IMAGES.search(str(text)) for key, text in sets.items()}
    protocol["sets"] = {key: int(n[1].replace(",", "")) for key, n in sizes.items() if n}
    protocol |= {key: answer.value(model, key) for key in OWN_PROTOCOL.get(name, ())}
    if isinstance(weights := answer.value(model, "weights"), str):  # of a run with --ema
        protocol["weights"] = weights.split()[0]
    if name == "fid":
        protocol["features"] = features_of(answer, model)
        if protocol["features"] != "own":  # else of each seed its own
            protocol["features_sha256"] = answer.value(model, "features_sha256")
    return protocol


def is_stale(run: Run, answer: Answer, model: Model, hashes: dict[Path, str | None]) -> bool:
    """Tell whether the run's checkpoint has changed since: by its hash (`hashes`: those known so
    far), or, where a folder has no weights, by the last step. An answer with neither is believed.
    """
    path = run.folder / Path(model.checkpoint).name
    if path not in hashes:
        hashes[path] = file_sha256(path) if path.is_file() else None
    told, now = answer.value(model, "checkpoint_sha256"), hashes[path]
    if isinstance(told, str) and now is not None:
        return told != now
    about = answer.value(model, "run")
    step = number(about.get("step")) if isinstance(about, dict) else None
    steps = [int(text) for row in run.rows if (text := row.get("step") or "").isdecimal()]
    return path.name == LAST and step is not None and steps != [] and step != steps[-1]


def numbers_of(name: str, answer: Answer, model: Model) -> dict[str, Any]:
    def value(key: str) -> Any:
        return answer.value(model, key)

    if name in OF_DATASET:
        dataset = canonical(str(value("dataset")))
        return {f"{key}/{dataset}": value(source) for key, source in OF_DATASET[name].items()}
    if name == "OOD":
        known = canonical(str(value("in_dataset")))
        numbers = {
            f"{key}/{row.get('score_fn')}/{out_of(known, row.get('ood_dataset'))}": row.get(key)
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
        return fid_numbers(answer, model)
    if name == "attack":
        rows = [row for row in answer.rows(model, "rows") if number(row.get("eps")) is not None]
        return {f"robust/{value('distance')}/{row['eps']:.5g}": row.get("accuracy") for row in rows}
    return {f"samples/{key}": value(key) for key in ("n", "steps")}


def fid_numbers(answer: Answer, model: Model) -> dict[str, Any]:
    """Return the numbers of the samples, and of chains of that length beside their starts."""
    features = features_of(answer, model)
    if features == f"{Path(model.checkpoint).parent.name}'s":
        features = "own"

    def of(n: Any) -> str:
        count = int(number(n) or 0)
        return features if count >= PUBLISHED_SAMPLES else f"{features}-{count}"

    key, steps = of(answer.value(model, "n")), answer.value(model, "steps")
    sources = {"fid": "fid", "is": "inception_score_mean"}
    numbers = {f"{kind}/{key}": answer.value(model, source) for kind, source in sources.items()}
    return numbers | {
        f"{family}/{row['images']}/{of(row.get('n'))}": row.get(source)
        for row in answer.rows(model, "rows")
        if row.get("images") in ("starts", "samples") and row.get("steps") in (0, steps)
        for family, source in OF_CHAINS.items()
    }


def mean_aurocs(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return each score's mean over its sets, where there are several; the key has their number,
    since means over other sets do not compare."""
    found: dict[str, list[float]] = {}
    for key, auroc in numbers.items():
        family, score, _ = key.split("/", 2)
        if family == "auroc" and (value := number(auroc)) is not None:
            found.setdefault(f"mean_auroc/{score}", []).append(value)
    return {f"{key}/{len(v)}": fmean(v) for key, v in found.items() if len(v) > 1}


def features_of(answer: Answer, model: Model) -> str:
    """Return inception, own (the very network's that made the samples) or --fid_model's folder."""
    name, other = str(answer.value(model, "features")), answer.part("settings").get("fid_model")
    if not name.startswith("model"):
        return "inception" if name.startswith("inception") else name
    return f"{Path(other).parent.name}'s" if isinstance(other, str) else "own"


def out_of(known: str, out: object) -> str:
    """Return an OOD set's key: of another in-distribution set than CIFAR-10 it names both."""
    out = canonical(str(out))
    return out if known == "cifar10" else f"{known}:{out}"
