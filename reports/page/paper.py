"""The papers' numbers that a run may be held against, and how far its setting is from theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.page.markup import number
from reports.page.run import Run
from reports.tables import TABLES
from runs import terms
from runs.names import ALIASES, IMAGE_SIZE, network_title

NETWORK, EPOCHS = "WRN-28-10", 200
SCORES = {"px": "log q(x)", "py": "max q(y|x)"}  # as HDGE's Table 1 has them

# Terms of the run -> its name, and the experiment of the tables that has them.
METHODS: dict[tuple[str, ...], tuple[str, str]] = {
    ("pyxce",): ("Cross-entropy", "ce"),
    ("pyxce", "pxsgld"): ("JEM", "jem"),
    ("pyxce", "pxycontrast"): ("HDGE", "hdge"),
    ("pyxce", "pxycontrast", "pxsgld"): ("HDGE + JEM", "hdge-jem"),
    ("pxycontrast",): ("HDGE (log q(x|y) only)", "hdge-only"),
}


@dataclass
class Paper:
    """The papers' numbers for the method that the run resembles, by the keys of a record; each with
    its standard deviation where one is printed. `trained`: the data set that they are about."""

    method: str
    numbers: dict[str, list[float]]
    trained: str

    def number(self, key: str) -> float | None:
        return self.numbers[key][0] if key in self.numbers else None

    def auroc(self, in_dataset: str, ood_dataset: str, score: str) -> list[float] | None:
        """Return AUROC and its standard deviation."""
        out = {"interp": "cifar10interp"}.get(canonical(ood_dataset), canonical(ood_dataset))
        own = canonical(in_dataset) == self.trained
        return self.numbers.get(f"auroc/{score}/{out}") if own else None

    def share(self, kind: str, dataset: object) -> float | None:
        """Return accuracy or ECE on the data set of training, 0 to 1; without batch norm accuracy
        on CIFAR-100 is Figure 2's."""
        name = canonical(dataset)
        found = self.number(f"{kind}/{name}") or self.number(f"ece_{kind}/{name}")
        return found / 100 if found and name == self.trained else None


def paper_of(run: Run) -> Paper:
    names = tuple(term.name for term in terms.used(run.settings))
    if names and run.rows:  # a term may have been declared where the run was made, and not here
        losses = [name.removesuffix("/loss") for name in run.rows[0] if name.endswith("/loss")]
        names += tuple(name for name in losses if name not in terms.TERMS)
    told = run.settings.get("method") or "Terms unknown"  # a baseline's own loss has no terms
    method, experiment = METHODS.get(names, (" + ".join(names) or str(told), ""))
    norm, trained = run.settings.get("norm"), canonical(run.settings.get("dataset"))
    data, numbers = "-c100" if trained == "cifar100" else "", dict[str, list[float]]()
    if run.settings.get("uncond") or norm not in (None, "none", "batch") or others(run):
        pass  # the papers have no such head for log q(x), network or data
    elif run.settings.get("arch") == "resnet50":
        numbers = published(f"{experiment}-resnet50{data}")
    else:
        numbers = published(experiment + data)
        if norm == "batch":
            numbers = {key: n for key, n in numbers.items() if "accuracy/" not in key}
            numbers |= published(f"{experiment}-bn{data}")
    return Paper(method, numbers, trained)


def published(experiment: str) -> dict[str, list[float]]:
    """Return the numbers of the tables' rows that the experiment makes; of several the first's."""
    found: dict[str, list[float]] = {}
    for table in TABLES.values():
        for row, *experiments in table["rows"]:
            if experiment in experiments:
                found = table["paper"].get(row, {}) | found
    return found


def canonical(dataset: object) -> str:
    """Return cifar10 for cifar_test and cifar10_test, say. Names of other splits stay."""
    name = re.sub(r"_?test$", "", str(dataset).strip().lower())
    return {**ALIASES, "cifar": "cifar10", "cifar_interp": "interp"}.get(name, name)


def image_size(settings: Mapping[str, Any]) -> Any:
    """Return the side of a run's images in pixels; settings of an earlier version lack it."""
    return settings.get("image_size", IMAGE_SIZE)


def others(run: Run) -> list[str]:
    """Return the network and the data, as far as they are not the papers'."""
    s, net, size = run.settings, network_title(run.settings), image_size(run.settings)
    dataset, labels = s.get("dataset"), number(s.get("labels_per_class")) or 0
    differs = [
        (net not in (None, NETWORK, "ResNet-50"), str(net)),
        (s and canonical(dataset) not in ("cifar10", "cifar100"), str(dataset)),
        (labels > 0, f"{labels:.0f} labels a class"),
        (size != IMAGE_SIZE, f"images of {size} x {size}"),
    ]
    return [text for holds, text in differs if holds]


def badge(run: Run) -> str | None:
    """Return the setting's differences from the papers', 'small scale: WRN-10-2', or None."""
    s, differs, few = run.settings, others(run), bool(run.rows) and run.epochs < EPOCHS
    sides = ((number(s.get("depth")) or 0) <= 28, (number(s.get("width")) or 0) <= 10)
    small = few or (network_title(s) in differs and all(sides))
    differs += [f"{run.epochs} epoch" + "s" * (run.epochs != 1)] if few else []
    scale = "small scale" if small else "differs from the paper"
    return f"{scale}: {', '.join(differs)}" if differs else None
