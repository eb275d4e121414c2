"""Which published row an experiment is held against, and what rows are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports.page.paper import PUBLISHED, SCORES

# Table -> experiment -> the published row's name, in the order of scripts/published.json; a
# published row without an experiment is quoted, an experiment without one is this project's own.
ROWS: dict[str, dict[str, str]] = {
    "table1_ood": {
        "ce": "WideResNet-28-10 (cross-entropy)",
        "simclr-linear": "Contrastive pretraining",
        "igebm": "IGEBM",
        "jem": "JEM",
        "hdge": "HDGE",
        "hdge-jem": "JEM + HDGE",
        "jointloss-resnet50": "JointLoss (ResNet-50)",
        "hdge-resnet50": "HDGE (ResNet-50)",
    },
    "table2_classification": {
        "ce-bn": "Supervised (cross-entropy)",
        "supcon-bn-linear": "Supervised contrastive (SupCon)",
        "jem-bn": "JEM",
        "hdge-bn": "HDGE",
        "hdge-only-bn": "HDGE (log q(x|y) only)",
        "hdge-only-bn-linear": "HDGE (log q(x|y) only)",
    },
    "table3_hybrid": {
        "igebm": "IGEBM",
        "jem": "JEM",
        "hdge": "HDGE",
        "hdge-jem": "HDGE + JEM",
        "ce-bn": "WideResNet (batch norm)",
        "ce": "WideResNet (no batch norm)",
    },
    "table5_variants": {
        "hdge": "MoCo queue (default)",
        "hdge-simclr-style": "SimCLR style",
        "hdge-raw": "no logit normalisation",
    },
    "table6_negatives": {
        "jem": "JEM (N=64)",
        "jem-n128": "JEM (N=128)",
        "jem-n256": "JEM (N=256)",
        "hdge-k64": "HDGE (K=64)",
        "hdge-k128": "HDGE (K=128)",
        "hdge-k256": "HDGE (K=256)",
        "hdge": "HDGE (K=65536)",
    },
    "figure2_calibration": {"hdge-c100": "HDGE", "jem-c100": "JEM"},
}
# The same rows of CIFAR-100: an experiment has one data set, and so a line of its own.
ROWS["table2_classification"] |= {
    f"{name}-c100": row for name, row in ROWS["table2_classification"].items()
}
# What a row is called where no published row names it.
NAMES = {
    "ce": "Cross-entropy",
    "jem": "JEM",
    "jem-150": "JEM, decays at 1/3 and 2/3 as in its paper",
    "hdge": "HDGE",
    "hdge-jem": "HDGE + JEM",
    "jem-stable": "JEM, stable sampler",
    "hdge-jem-stable": "HDGE + JEM, stable sampler",
    "jem-stable-c100": "JEM, stable sampler",
    **{f"jem-stable-n{n}": f"JEM, stable sampler (N={n})" for n in (128, 256)},
    "ladder-jem": "JEM, its paper's sampler",
    "ladder-clamp": "+ pixels clamped",
    "ladder-start": "+ chains from class Gaussians",
    "ladder-plain": "+ data of log q(x) not augmented",
    "ladder-head": "+ log q(x) from a head of its own",
    "ladder-k5": "+ 5 SGLD steps in place of 20",
    "ladder-ema": "+ averaged weights",
    "ladder-bce": "+ binary cross-entropy in place of CD",
    "hdge-only-bn-linear": "HDGE (log q(x|y) only), linear probe",
    "hdge-eq13": "Eq. 13's score, normalised logits",
    "hdge-eq13-raw": "Eq. 13's score, raw logits, T = 1",
    "ce-c100": "Cross-entropy",
    "ce-c100-b256": "Cross-entropy",
    "at-linf": "Adversarial training (L\N{INFINITY})",
    "at-l2": "Adversarial training (L2)",
    **{f"hdge-c100-k{k}": f"HDGE (K={k})" for k in (256, 1024, 4096, 16384, 65536)},
    **{f"alpha{a:g}": f"alpha = {a:g}" for a in (0, 0.25, 0.5, 0.75)},
}
RENAMED = {"alpha": {"ce": "alpha = 1 (cross-entropy)"}}
PROBED = "hdge-only-bn-linear"
RENAMED["table2_classification"] = {PROBED: NAMES[PROBED], f"{PROBED}-c100": NAMES[PROBED]}

# Curves: table -> experiment -> where it stands on the horizontal axis; None: a horizontal line.
CURVES: dict[str, tuple[str, dict[str, float | None]]] = {
    "alpha": (
        "alpha: weight of log q(y|x) against log q(x|y)",
        {"alpha0": 0.0, "alpha0.25": 0.25, "alpha0.5": 0.5, "alpha0.75": 0.75, "ce": 1.0},
    ),
    "figure5_negatives": (
        "negatives K",
        {
            "ce-c100-b256": None,
            **{f"hdge-c100-k{k}": float(k) for k in (256, 1024, 4096, 16384, 65536)},
        },
    ),
}

Paper = dict[tuple[str, str], tuple[float, float | None]]


def published(table: str, path: Path = PUBLISHED) -> tuple[list[str], Paper]:
    """The published rows' names in order, and (name, key) -> value and standard deviation or None;
    accuracy and ECE in %."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get(table, {})
    names: list[str] = []
    values: Paper = {}
    for score, title in (*SCORES.items(), ("px", "rows")):
        for row in found.get(title, []):
            if row["model"] not in names:
                names.append(row["model"])
            for out, value in row.get("auroc", {}).items():
                key = row["model"], f"auroc/{score}/{out}"
                values[key] = value, row.get("std", {}).get(out)
    keys = {"cifar10": "accuracy/cifar10", "cifar100": "accuracy/cifar100"}
    keys |= {"accuracy": "accuracy/cifar10", "is": "is/inception", "fid": "fid/inception"}
    if table == "figure2_calibration":
        keys = {"accuracy": "ece_accuracy/cifar100", "ece": "ece/cifar100"}
    for row in found.get("rows", []):
        for source, place in keys.items():
            if row.get(source) is not None:
                values[row["model"], place] = row[source], None
    return names, values
