"""Compare any runs: the settings in which they differ, their cost and their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.page import Run, curves, read_run
from reports.page.headline import last_epoch
from reports.page.markup import document, number
from reports.page.paper import SCORES
from reports.tables.about import about, divergences
from reports.tables.formats import aligned, value_text
from reports.tables.protocols import asked_alike, check_protocols
from reports.tables.records import Seed, numbers_of, seed_of
from reports.tables.table import Row, Table, keys_of, measured, timed_apart
from reports.tables.titles import digits, full_title, natural
from runs.cli import UsageError
from runs.folder import TRAINED_ON

FAMILIES = {  # family of keys -> its block
    "trained": "Training",
    **{"accuracy": "Accuracy", "ece_accuracy": "Calibration", "ece": "Calibration"},
    **{"auroc": "AUROC, {}", "hist": "AUROC, {} of the histogram", "fid": "Samples"},
    **dict.fromkeys(("is", "chain_fid", "precision", "recall", "read_as_asked"), "Samples"),
    **{"robust": "Accuracy (%) under attack, {} radius", "samples": "Samples drawn"},
    **{"asked": "Samples drawn", "ms_per_step": "Cost of a training step"},
}
IN_NETWORK_TITLE = ("arch", "depth", "width", "levels")


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, by their labels. `lines`: a name and each run's cell, for the settings in
    which the runs differ, their costs and their numbers. `table`: the numbers, with a row a run."""

    runs: dict[str, Run]
    lines: list[list[str]]
    notes: list[str]
    table: Table

    def markdown(self) -> str:
        text = aligned([["", *self.runs], *self.lines])
        return "\n".join([text, *(["", *self.notes] if self.notes else [])]) + "\n"

    def html(self) -> str:
        """Return a page of the lines, and of each quantity a chart with a line for each run."""
        return document("comparison.html", compared=self, curves=curves)


def compared(folders: Sequence[Path]) -> Comparison:
    """Compare runs. Raises NoRun for a folder that holds no run; UsageError for a folder that is
    given twice, and for numbers of different protocol versions."""
    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        labels = [str(folder) for folder in folders]
    if len(set(labels)) < len(labels):
        raise UsageError("RUN_FOLDER: a folder was given twice: give each one once")
    runs = {label: read_run(folder) for label, folder in zip(labels, folders, strict=True)}
    seeds = {label: as_finished(run) for label, run in runs.items()}
    table = table_of(seeds)
    gaps = [f"{label}: {text}" for label, run in runs.items() for text in run.gaps]
    notes = [*gaps, *not_shown(runs, seeds), *spread_of_seeds(seeds, table), *table.notes]
    return Comparison(runs, lines_of(seeds, table), notes, table)


def as_finished(run: Run) -> Seed:
    """Return a run with the last test accuracy of its training, and as finished: tables show no
    number of an unfinished run. "runs" is its real state with its divergences; the settings have
    the file of --load_path, with its folder; the steps of a linear probe are called L-BFGS's."""
    seed, last, limit = seed_of(run), last_epoch(run), run.settings.get("max_steps")
    finished = seed["state"] == "finished"
    stopped = finished and limit and run.steps >= limit
    ended = f"stopped by --max_steps {limit}" if stopped else seed["state"]
    if last is not None:
        answer = seed["answers"].setdefault("training", {"numbers": {}})
        answer["numbers"]["trained/test"] = last["value"]
    runs = ", ".join([ended, *divergences([seed])])
    start = run.settings.get("load_path")
    path = {"load_path": "/".join(Path(start).parts[-2:])} if isinstance(start, str) else {}
    more = {"seed": run.settings.get("seed"), "settings": seed["settings"] | path, "runs": runs}
    if run.is_probe:
        more["steps"] = f"{run.steps} of L-BFGS"
    return {**seed, **more, "state": "finished"}


def table_of(seeds: Mapping[str, Seed]) -> Table:
    """Return the table of a Comparison."""
    records = {label: {"": seed} for label, seed in seeds.items()}
    notes = check_protocols("RUN_FOLDER", records, ("",))
    keys = sorted({key for record in records.values() for key in keys_of(record)}, key=natural)
    blocks: dict[str, list[str]] = {}
    for family, title in FAMILIES.items():
        for key in (key for key in keys if key.split("/")[0] == family):
            kind = key.split("/")[1] if "/" in key else ""
            blocks.setdefault(title.format(SCORES.get(kind, kind)), []).append(key)
    rows = []
    for label, record in records.items():
        texts = {**about("runs", record), "runs": seeds[label]["runs"]}
        numbers = {key: measured(record, key) for of_block in blocks.values() for key in of_block}
        rows.append(Row(label, (label,), texts, numbers))
    notes += timed_apart(rows)
    return Table("comparison", "runs", "Comparison", list(blocks.items()), rows, notes)


def lines_of(seeds: Mapping[str, Seed], table: Table) -> list[list[str]]:
    """Return the lines of a Comparison."""
    runs = list(seeds.values())

    def from_seed(name: str, key: str = "") -> list[str]:
        return [name, *(str(seed[key or name]) for seed in runs)]

    def from_about(name: str) -> list[str]:
        return [name, *(row.about[name] for row in table.rows)]

    settings = []
    for name in sorted({name for seed in runs for name in seed["settings"]}):
        values = [str(seed["settings"].get(name, "-")) for seed in runs]
        if name not in IN_NETWORK_TITLE and (len(set(values)) > 1 or name == "dataset"):
            settings.append([f"--{name}", *values])
    images = {
        (str(seed["settings"].get("dataset")), str(seed[TRAINED_ON]))
        for seed in runs
        if seed[TRAINED_ON]
    }
    if len(images) > len(dict(images)):  # of one data set
        settings.append(["training images", *(str(seed[TRAINED_ON] or "-") for seed in runs)])
    speeds = [number(seed["images_per_s"]) for seed in runs]
    numbers = []
    for key in table.keys:
        texts = [value_text(row.numbers[key], key) for row in table.rows]
        numbers.append([full_title(key), *(text.removesuffix(" (1)") for text in texts)])
    return [
        from_about("network"),
        *settings,
        from_seed("seed"),
        from_seed("state", "runs"),
        from_seed("epochs"),
        from_seed("steps"),
        from_about("hours"),
        ["images a second", *("-" if n is None else f"{n:.0f}" for n in speeds)],
        from_about("hardware"),
        from_about("commit"),
        *numbers,
    ]


def not_shown(runs: Mapping[str, Run], seeds: Mapping[str, Seed]) -> Iterator[str]:
    """Yield a line about each answer with numbers that `seeds` lack."""
    for label, run in runs.items():
        shown = {key for answer in seeds[label]["answers"].values() for key in answer["numbers"]}
        for name, answer in ((name, a) for name, answers in run.answers.items() for a in answers):
            model = answer.of_run()
            numbers = {} if model is None or model.refined else numbers_of(name, model)
            if {key for key, value in numbers.items() if number(value) is not None} - shown:
                yield (
                    f"{label}: {answer.path.name} was asked otherwise than the answer shown: the "
                    "numbers that it alone has are left out."
                )


def trained_alike(a: Seed, b: Seed) -> bool:
    """Return whether the runs may differ in the seed alone. Older runs do not name their images."""
    same_images = a[TRAINED_ON] == b[TRAINED_ON] or None in (a[TRAINED_ON], b[TRAINED_ON])
    return same_images and all(a[name] == b[name] for name in ("settings", "steps"))


def spread_of_seeds(seeds: Mapping[str, Seed], table: Table) -> Iterator[str]:
    """Yield a line about each group of runs that differ in the seed alone: the mean and standard
    deviation (n - 1) of each number that all of them have and were asked alike."""
    groups: list[list[str]] = []
    for label, seed in seeds.items():
        alike = (g for g in groups if all(trained_alike(seed, seeds[other]) for other in g))
        if (group := next(alike, None)) is None:
            groups.append([label])
        else:
            group.append(label)
    for labels in groups:
        seed_texts = [str(seeds[label]["seed"]) for label in labels]
        if len(set(seed_texts)) < max(2, len(labels)):
            continue
        record = {label: seeds[label] for label in labels}
        means = {key: measured(record, key) for key in table.keys}
        means = {key: n for key, n in means.items() if n.n == len(labels)}
        texts = [
            f"{full_title(key)} {n.mean:.{digits(key)}f} +- {n.std:.{digits(key)}f}"
            for key, n in means.items()
            if asked_alike(record.values(), key)
        ]
        if means:
            subject = f"{', '.join(labels)} differ in the seed alone ({', '.join(seed_texts)})"
            spread = f", mean +- sd: {'; '.join(texts)}." if texts else "."
            others = " Numbers that were not asked alike are not averaged."
            yield subject + spread + others * (len(texts) < len(means))
