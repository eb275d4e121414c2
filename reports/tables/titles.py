"""Turn a number's key into a column title, and choose its number of digits."""

from __future__ import annotations

import re
from typing import Any

from reports.page.questions import NORM
from runs.names import OPENOOD, TITLES
from runs.style import radius

PERCENT = ("accuracy", "ece", "ece_accuracy", "robust", "read_as_asked", "asked", "trained")
DIGITS = {
    **dict.fromkeys(("auroc", "mean_auroc", "hist", "precision", "recall", "gradient"), 3),
    **{"cosine": 3, "read_as_asked": 1, "ms_per_step": 1, "samples": 0},
}  # digits after the point by family of keys; all other families have 2
# Titles of families about samples, whose keys end in the features and the number of samples.
OF_SAMPLES = {
    **{"fid": "FID", "is": "Inception Score", "chain_fid": "FID", "precision": "Precision"},
    **{"recall": "Recall", "read_as_asked": "Read as asked (%)"},
}
UNCONDITIONAL = "/unconditional"  # ends a key about the samples of uncond_samples
TITLES_BY_KEY = {
    "trained/test": "test accuracy in training (%)",
    "ms_per_step": "Time of a step (ms)",
    "samples/n": "Images",
    "samples/steps_per_sample": "SGLD steps a sample (mean)",
    "samples/steps": "SGLD steps in all rounds",  # of older answers, without those of a sample
    "asked/samples": "Class-conditional samples read as asked (%)",
    "asked/starts": "Their starts read as asked (%)",
}


def digits(key: str) -> int:
    return DIGITS.get(key.split("/")[0], 2)


def natural(text: str) -> tuple[Any, ...]:
    """Return a sort key that puts 2 before 10, and .5 before 2."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)
    return tuple((1, float(part), "") if i % 2 else (0, 0.0, part) for i, part in enumerate(parts))


def set_title(name: str) -> str:
    """Return a set's title, of in_set:ood_set with both; folder:PATH and openood:LIST stay."""
    in_set, _, ood_set = name.partition(":")
    if ood_set and in_set != OPENOOD and not in_set.startswith("folder"):
        return f"{set_title(ood_set)} (in: {set_title(in_set)})"
    return TITLES.get(name, name)


def column_title(key: str) -> str:
    """Return a column's title under the title of its block."""
    family, _, rest = key.partition("/")
    if family in ("accuracy", "ece_accuracy", "ece"):
        return f"{'ECE' if family == 'ece' else 'Accuracy'}, {set_title(rest)} (%)"
    if family in ("auroc", "hist"):
        return set_title(rest.partition("/")[2])
    if family == "mean_auroc":
        return f"mean of {rest.partition('/')[2]} sets"
    if family in OF_SAMPLES:
        images, _, suffix = rest.rpartition("/")
        features, n = features_and_count(suffix)
        notes = [] if features == "inception" else [f"{features} features"]
        notes += [f"{n:,} samples"] if n else []
        title = OF_SAMPLES[family] + f" of {images}" * bool(images)
        return f"{title} ({', '.join(notes)})" if notes else title
    if family == "robust":
        distance, _, eps = rest.partition("/")
        return radius(float(eps), distance)
    plain = key.removesuffix(UNCONDITIONAL)
    return TITLES_BY_KEY.get(plain, plain) + ", unconditional" * (plain != key)


def features_and_count(suffix: str) -> tuple[str, int | None]:
    """Split "inception-1000" into features and samples; None: as many as the papers have."""
    features, _, n = suffix.rpartition("-")
    return (features, int(n)) if n.isdecimal() else (suffix, None)


def full_title(key: str) -> str:
    """Return a column's title where no title of a block stands above it."""
    family, _, rest = key.partition("/")
    title, kind = column_title(key), rest.partition("/")[0]
    if family == "robust":
        return f"accuracy under attack, {NORM.get(kind, kind)} {title} (%)"
    if family in ("auroc", "hist"):
        return f"AUROC {kind}{' of the histogram' * (family == 'hist')}, {title}"
    return f"{title} (calibration)" if family == "ece_accuracy" else title
