"""The papers' numbers that a run may be held against, and how far its setting is from theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reports.page.markup import number
from reports.page.run import ROOT, Run
from runs import terms
from runs.files import read_json
from runs.names import IMAGE_SIZE

PUBLISHED: dict[str, Any] = read_json(ROOT / "scripts" / "published.json")
NETWORK, EPOCHS = "WRN-28-10", 200
SCORES = {"px": "log q(x)", "py": "max q(y|x)"}  # as HDGE's Table 1 has them

# Terms of the run -> its name, and the rows' names in Tables 1 (OOD), 2 (batch norm), 3 (none).
METHODS: dict[tuple[str, ...], tuple[str, str | None, str | None, str | None]] = {
    ("pyxce",): (
        *("Cross-entropy", "WideResNet-28-10 (cross-entropy)", "Supervised (cross-entropy)"),
        "WideResNet (no batch norm)",
    ),
    ("pyxce", "pxsgld"): ("JEM", "JEM", "JEM", "JEM"),
    ("pyxce", "pxycontrast"): ("HDGE", "HDGE", "HDGE", "HDGE"),
    ("pyxce", "pxycontrast", "pxsgld"): ("HDGE + JEM", "JEM + HDGE", None, "HDGE + JEM"),
    ("pxycontrast",): ("HDGE (log q(x|y) only)", None, "HDGE (log q(x|y) only)", None),
}


@dataclass
class Paper:
    """The papers' numbers for the method that the run resembles."""

    method: str
    rows: Sequence[str | None]
    tables: dict[str, Any]
    settings: dict[str, Any]

    def auroc(self, in_dataset: str, ood_dataset: str, score: str) -> tuple[float, float] | None:
        """Return AUROC and its standard deviation, of models trained on CIFAR-10."""
        if self.own(in_dataset) != "cifar10" or score not in SCORES:
            return None
        resnet = " (ResNet-50)" if self.settings.get("arch") == "resnet50" else ""
        row = _row(self.tables["table1_ood"][SCORES[score]], f"{self.rows[0]}{resnet}")
        column = {"interp": "cifar10interp"}.get(canonical(ood_dataset), canonical(ood_dataset))
        known = row.get("auroc", {})
        return (known[column], row["std"][column]) if column in known else None

    def accuracy(self, dataset: object) -> float | None:
        """Return accuracy, 0 to 1: of Table 2 with batch norm, else of Table 3 for CIFAR-10 and of
        Figure 2 for CIFAR-100."""
        name = self.own(dataset)
        if self.settings.get("arch") == "resnet50":
            return None
        if self.settings.get("norm") == "batch":
            return self._share("table2_classification", 1, name)
        if name == "cifar10":
            return self._share("table3_hybrid", 2, "accuracy")
        return self._share("figure2_calibration", 0, "accuracy") if name == "cifar100" else None

    def ece(self, dataset: object) -> float | None:
        """Return ECE, 0 to 1, of models trained on CIFAR-100."""
        of_paper = self.own(dataset) == "cifar100"
        return self._share("figure2_calibration", 0, "ece") if of_paper else None

    def generation(self, key: str) -> float | None:
        """Return the number of this key, fid or is, of models trained on CIFAR-10."""
        if canonical(self.settings.get("dataset")) != "cifar10":
            return None
        return _row(self.tables["table3_hybrid"]["rows"], self.rows[2]).get(key)

    def own(self, dataset: object) -> str:
        """Return the canonical name of what the model was trained on, "" for other data."""
        name = canonical(dataset)
        return name if name == canonical(self.settings.get("dataset")) else ""

    def _share(self, table: str, row: int, key: str) -> float | None:
        found = _row(self.tables[table]["rows"], self.rows[row]).get(key)
        return None if found is None else found / 100


def paper_of(run: Run) -> Paper:
    names = tuple(term.name for term in terms.used(run.settings))
    if names and run.rows:  # a term may have been declared where the run was made, and not here
        losses = [name.removesuffix("/loss") for name in run.rows[0] if name.endswith("/loss")]
        names += tuple(name for name in losses if name not in terms.TERMS)
    told = run.settings.get("method") or "Terms unknown"  # a baseline's own loss has no terms
    method, *rows = METHODS.get(names, (" + ".join(names) or str(told), None, None, None))
    norm = run.settings.get("norm") in (None, "none", "batch")
    if run.settings.get("uncond") or not norm or others(run):
        rows = [None] * 3  # the papers have no such head for log q(x), network or data
    return Paper(str(method), rows, PUBLISHED, run.settings)


def canonical(dataset: object) -> str:
    """Return cifar10 for cifar_test and cifar10_test, say. Names of other splits stay."""
    name = re.sub(r"_?test$", "", str(dataset).strip().lower())
    return {"cifar": "cifar10", "cifar_100": "cifar100", "cifar_interp": "interp"}.get(name, name)


def network(settings: Mapping[str, Any]) -> str | None:
    """Return WRN-10-2, say; None where the settings do not tell."""
    if settings.get("arch") == "resnet50":
        return "ResNet-50"
    depth, width = settings.get("depth"), settings.get("width")
    return None if depth is None or width is None else f"WRN-{depth}-{width}"


def image_size(settings: Mapping[str, Any]) -> Any:
    """Return the side of a run's images in pixels; settings of an earlier version lack it."""
    return settings.get("image_size", IMAGE_SIZE)


def others(run: Run) -> list[str]:
    """Return the network and the data, as far as they are not the papers'."""
    s, net, size = run.settings, network(run.settings), image_size(run.settings)
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
    small = few or (network(s) in differs and all(sides))
    differs += [f"{run.epochs} epoch" + "s" * (run.epochs != 1)] if few else []
    scale = "small scale" if small else "differs from the paper"
    return f"{scale}: {', '.join(differs)}" if differs else None


def _row(rows: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    return next((row for row in rows if row["model"] == name), {})
