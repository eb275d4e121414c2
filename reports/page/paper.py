"""Choose the papers' numbers that compare with a run, and list how its setting differs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reports.page.markup import number
from reports.page.run import Run
from reports.tables import TABLES
from runs import terms
from runs.names import ALIASES, CLASSES, IMAGE_SIZE, network_title

NETWORK, EPOCHS = "WRN-28-10", 200
TEST = re.compile(rf"({'|'.join([*CLASSES, *ALIASES, 'cifar'])})_?test")  # splits of known sets
SCORES = {"px": "log q(x)", "py": "max q(y|x)"}  # titles of HDGE's Table 1

# Terms of the run -> the method's name, and the experiment of the tables with these terms.
METHODS: dict[tuple[str, ...], tuple[str, str]] = {
    ("pyxce",): ("Cross-entropy", "ce"),
    ("pyxce", "pxsgld"): ("JEM", "jem"),
    ("pyxce", "pxycontrast"): ("HDGE", "hdge"),
    ("pyxce", "pxycontrast", "pxsgld"): ("HDGE + JEM", "hdge-jem"),
    ("pxycontrast",): ("HDGE (log q(x|y) only)", "hdge-only"),
}


@dataclass
class Paper:
    """The papers' numbers for the run's method, by the keys of a record: [number] or [number,
    standard deviation]. `trained`: the data set of training. `network`: that of the numbers."""

    method: str
    numbers: dict[str, list[float]]
    trained: str
    network: str

    def number(self, key: str) -> float | None:
        return self.numbers[key][0] if key in self.numbers else None

    def auroc(self, in_dataset: str, ood_dataset: str, score: str) -> list[float] | None:
        """Return AUROC and its standard deviation."""
        ood_set = {"interp": "cifar10interp"}.get(canonical(ood_dataset), canonical(ood_dataset))
        own = canonical(in_dataset) == self.trained
        return self.numbers.get(f"auroc/{score}/{ood_set}") if own else None

    def share(self, kind: str, dataset: object) -> float | None:
        """Return accuracy or ECE on the data set of training, 0 to 1. Accuracy on CIFAR-100 without
        batch norm comes from Figure 2."""
        name = canonical(dataset)
        percent = self.number(f"{kind}/{name}") or self.number(f"ece_{kind}/{name}")
        return percent / 100 if percent and name == self.trained else None


def terms_of(run: Run) -> list[terms.Term]:
    """Return the terms of the run's own loss: a linear probe has none."""
    return [] if run.is_probe else terms.used(run.settings)


def paper_of(run: Run) -> Paper:
    names = tuple(term.name for term in terms_of(run))
    if names and run.rows:  # the code that trained the run may declare terms that are unknown here
        losses = [name.removesuffix("/loss") for name in run.rows[0] if name.endswith("/loss")]
        names += tuple(name for name in losses if name not in terms.TERMS)
    baseline = run.settings.get("method") or "Terms unknown"  # a baseline's loss has no terms
    method, experiment = METHODS.get(names, (" + ".join(names) or str(baseline), ""))
    norm, trained = run.settings.get("norm"), canonical(run.settings.get("dataset"))
    resnet = run.settings.get("arch") == "resnet50"
    suffix, numbers = "-c100" if trained == "cifar100" else "", dict[str, list[float]]()
    if run.settings.get("uncond") or norm not in (None, "none", "batch") or differences(run):
        pass  # the papers have no number for such a head, norm, network or data
    elif resnet:
        numbers = published(f"{experiment}-resnet50{suffix}")
    else:  # with batch norm the papers have accuracies alone
        numbers = published(experiment + "-bn" * (norm == "batch") + suffix)
    return Paper(method, numbers, trained, "ResNet-50" if resnet else NETWORK)


def published(experiment: str) -> dict[str, list[float]]:
    """Return the numbers of the rows with this experiment; where two have a key, the first's."""
    numbers: dict[str, list[float]] = {}
    for table in TABLES.values():
        for row, *experiments in table["rows"]:
            if experiment in experiments:
                numbers = table["paper"].get(row, {}) | numbers
    return numbers


def canonical(dataset: object) -> str:
    """Return cifar10 for cifar10_test and its alias cifar_test; other splits, archives and paths
    keep their names."""
    match = TEST.fullmatch(str(dataset))
    name = match[1] if match else str(dataset)
    return {**ALIASES, "cifar": "cifar10", "cifar_interp": "interp"}.get(name, name)


def image_size(settings: Mapping[str, Any]) -> Any:
    """Return the side of a run's images in pixels; settings of an earlier version lack it."""
    return settings.get("image_size", IMAGE_SIZE)


def differences(run: Run) -> list[str]:
    """Return the network and the data, as far as they are not the papers'."""
    s, net, size = run.settings, network_title(run.settings), image_size(run.settings)
    dataset, labels = s.get("dataset"), number(s.get("labels_per_class")) or 0
    texts = [
        (net not in (None, NETWORK, "ResNet-50"), str(net)),
        (s and canonical(dataset) not in ("cifar10", "cifar100"), str(dataset)),
        (labels > 0, f"{labels:.0f} labels a class"),
        (size != IMAGE_SIZE, f"images of {size} x {size}"),
    ]
    return [text for differs, text in texts if differs]


def badge(run: Run) -> str | None:
    """Return the setting's differences from the papers', 'small scale: WRN-10-2', or None."""
    s, texts = run.settings, differences(run)
    few = bool(run.rows) and run.epochs < EPOCHS and not run.is_probe
    no_larger = (number(s.get("depth")) or 0) <= 28 and (number(s.get("width")) or 0) <= 10
    small = few or (network_title(s) in texts and no_larger)
    texts += [f"{run.epochs} epoch" + "s" * (run.epochs != 1)] if few else []
    scale = "small scale" if small else "differs from the paper"
    return f"{scale}: {', '.join(texts)}" if texts else None
