"""What short training runs left, as one JSON, a Markdown table, and a picture of their losses.

    python -m benchmarks.training_runs healing save/healing --output benchmarks/healing
    python -m benchmarks.training_runs precision save/precision --output benchmarks/precision

Reads the run folders that train_wrn.py wrote there; runs whose names differ in nothing but the
`-<seed>` at the end are one row of the table.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import re
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runs.style import COLOURS, STYLE
from training import flags

Row = dict[str, Any]

MARK = "<!-- made by benchmarks/training_runs.py -->"
ACCURACIES = ("train_acc", "valid_acc", "test_acc")
OWN = ("data_root", "resume")  # of a machine or a process, not of the experiment
SPEED = ("seconds", "images_per_s")  # of a machine that others may use, too
REPORT = re.compile(r"epoch \d+ step (\d+) (.*)")
RESTART = re.compile(
    r"diverged at step (\d+) .*: back to step ([\d,]+), learning rate x ([\d.e-]+),"
)
DIVERGED = re.compile(r"diverged at step (\d+) ")


def command(settings: Mapping[str, Any]) -> str:
    """The command line that has these settings: variant.json's, as far as no default has them."""
    words = ["python", "train_wrn.py"]
    for action in flags.build_parser()._actions:
        value = settings.get(action.dest, action.default)
        if value == action.default or action.dest in OWN or not action.option_strings:
            continue
        words.append(action.option_strings[0 if value is not False else -1])
        if not isinstance(value, bool):
            words += [f"{one:g}" if isinstance(one, float) else str(one) for one in _listed(value)]
    return shlex.join(words)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def read_run(folder: Path) -> Row:
    """One run: its command, what log.txt says of divergences, its loss curve and accuracies."""
    variant = json.loads((folder / "variant.json").read_text(encoding="utf-8"))
    restarts: list[Row] = []
    curve: dict[int, Row] = {}
    ended = None
    for line in (folder / "log.txt").read_text(encoding="utf-8").splitlines():
        if report := REPORT.match(line):
            words = report[2].split()
            curve[int(report[1])] = {
                name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)
            }
        elif restart := RESTART.match(line):
            back = int(restart[2].replace(",", ""))
            restarts.append(
                {"diverged_at": int(restart[1]), "back_to": back, "lr_times": float(restart[3])}
            )
            curve = {step: values for step, values in curve.items() if step <= back}
        elif diverged := DIVERGED.match(line):
            ended = int(diverged[1])
    rows = _rows(folder / "progress.csv")
    last = rows[-1] if rows else {}
    return {
        "id": folder.name,
        "command": command(variant),
        "seed": variant["seed"],
        "steps": int(last["step"]) if last.get("step") else max(curve, default=0),
        "restarts": restarts,
        "ended_by_divergence_at": ended,
        **{name: float(last[name]) if last.get(name) else None for name in ACCURACIES},
        "epochs": [
            {name: _number(value) for name, value in row.items() if name not in SPEED}
            for row in rows
        ],
        "curve": [{"step": step, **values} for step, values in sorted(curve.items())],
        "environment": variant["environment"],
    }


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def kinds(runs: Sequence[Row]) -> dict[str, list[Row]]:
    """Runs that differ in their seed alone, by their common name, in the order of their seeds."""
    found: dict[str, list[Row]] = {}
    for run in sorted(runs, key=lambda run: (run["id"].rpartition("-")[0], run["seed"])):
        found.setdefault(run["id"].rpartition("-")[0], []).append(run)
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of accuracies, in percent."""
    percent = [100 * value for value in values]
    if len(percent) < 2:
        return " ".join(f"{value:.1f}" for value in percent) or "-"
    return f"{statistics.fmean(percent):.1f} +- {statistics.stdev(percent):.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def accuracy(run: Row, name: str) -> str:
    return "-" if run[name] is None else f"{100 * run[name]:.1f}"


def healing(runs: Sequence[Row]) -> str:
    """The runs one by one, then each kind's accuracy over its seeds."""
    single, grouped = [], []
    for kind, some in kinds(runs).items():
        for run in some:
            diverged = [one["diverged_at"] for one in run["restarts"]]
            diverged += [run["ended_by_divergence_at"]] * (
                run["ended_by_divergence_at"] is not None
            )
            rate = f"{run['curve'][-1]['lr']:g}" if run["curve"] else "-"
            shown = [", ".join(map(str, diverged)) or "never", str(run["steps"]), rate]
            shown += [accuracy(run, name) for name in ACCURACIES]
            single.append([f"{kind}, seed {run['seed']}", *shown])
        done = [run for run in some if run["test_acc"] is not None]
        finished = f"{len(done)} of {len(some)}"
        averages = [spread([run[name] for run in done]) for name in ("valid_acc", "test_acc")]
        grouped.append([kind, ", ".join(str(run["seed"]) for run in some), finished, *averages])
    names = [f"{name.removesuffix('_acc')} accuracy (%)" for name in ACCURACIES]
    head = ["run", "diverged at step", "last report at step", "learning rate at the end", *names]
    return "\n\n".join(
        [
            table(
                ["kind", "seeds", "finished", "valid accuracy (%)", "test accuracy (%)"], grouped
            ),
            "Every run:",
            table(head, single),
            commands(runs),
        ]
    )


def commands(runs: Sequence[Row]) -> str:
    """One command a kind, that of its first seed."""
    lines = [f"{some[0]['command']}" for some in kinds(runs).values()]
    return "The command of each kind's first seed:\n\n```\n" + "\n".join(lines) + "\n```"


def smooth(run: Row, name: str) -> dict[int, float]:
    """A metric of the reports, which are means over the steps since the one before."""
    return {row["step"]: row[name] for row in run["curve"] if name in row}


def distance(one: Row, other: Row, name: str = "loss") -> float:
    """The mean absolute difference of two runs' curves, over the steps that both report."""
    a, b = smooth(one, name), smooth(other, name)
    gaps = [abs(a[step] - b[step]) for step in a if step in b]
    return statistics.fmean(gaps) if gaps else math.nan


def precision(runs: Sequence[Row]) -> str:
    """How far bf16 and float32 are apart at one seed, beside two seeds of float32."""
    grouped = [
        [
            kind,
            ", ".join(str(run["seed"]) for run in some),
            *(spread([run[name] for run in some if run[name] is not None]) for name in ACCURACIES),
            spread_of_loss(some),
        ]
        for kind, some in kinds(runs).items()
    ]
    head = ["kind", "seeds", *(f"{name.removesuffix('_acc')} accuracy (%)" for name in ACCURACIES)]
    distances = [[name, *line] for name, line in compared(runs)]
    names = ["pairs", "number", "loss, all reports", "loss, last quarter", "test accuracy (points)"]
    return "\n\n".join(
        [
            table([*head, "loss, last quarter"], grouped),
            "Mean absolute differences of two runs:",
            table(names, distances),
            "![The losses of the reports](losses.png)",
            commands(runs),
        ]
    )


def late(run: Row) -> Row:
    """The run with the last quarter of its reports alone."""
    curve = run["curve"]
    return {**run, "curve": curve[3 * len(curve) // 4 :]}


def spread_of_loss(some: Sequence[Row]) -> str:
    means = [statistics.fmean(smooth(late(run), "loss").values()) for run in some if run["curve"]]
    text = f"{statistics.fmean(means):.3f}" if means else "-"
    return f"{text} +- {statistics.stdev(means):.3f}" if len(means) > 1 else text


def compared(runs: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """For each objective: bf16 against float32 at one seed, and float32 at two seeds."""
    found = []
    terms = dict.fromkeys(kind.rpartition("-")[0] for kind in kinds(runs))
    for term in terms:
        full, half = (kinds(runs).get(f"{term}-{name}", []) for name in ("float32", "bf16"))
        same = [(a, b) for a in full for b in half if a["seed"] == b["seed"]]
        seeds = list(itertools.combinations(full, 2))
        halves = list(itertools.combinations(half, 2))
        for name, pairs in (
            ("bf16 and float32, same seed", same),
            ("float32, two seeds", seeds),
            ("bf16, two seeds", halves),
        ):
            if pairs:
                found.append((f"{term}: {name}", _distances(pairs)))
    return found


def _distances(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    losses = statistics.fmean(distance(a, b) for a, b in pairs)
    ends = statistics.fmean(distance(late(a), late(b)) for a, b in pairs)
    points = [
        100 * abs(a["test_acc"] - b["test_acc"])
        for a, b in pairs
        if a["test_acc"] is not None and b["test_acc"] is not None
    ]
    shown = f"{statistics.fmean(points):.1f}" if points else "-"
    return [str(len(pairs)), f"{losses:.3f}", f"{ends:.3f}", shown]


def save_losses(runs: Sequence[Row], path: Path) -> None:
    """The reports' losses over steps: a panel an objective, float32 drawn through, bf16 dashed."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    terms = list(dict.fromkeys(kind.rpartition("-")[0] for kind in kinds(runs)))
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(terms), 3.4))
        figure.set_layout_engine("constrained")
        FigureCanvasAgg(figure)
        seeds = sorted({run["seed"] for run in runs})
        for axes, term in zip(
            figure.subplots(1, len(terms), squeeze=False).flat, terms, strict=True
        ):
            for kind, line in ((f"{term}-float32", "-"), (f"{term}-bf16", "--")):
                for run in kinds(runs).get(kind, []):
                    points = smooth(run, "loss")
                    label = f"{kind.rpartition('-')[2]}, seed {run['seed']}"
                    colour = COLOURS[seeds.index(run["seed"])]
                    axes.plot(
                        list(points), list(points.values()), line, color=colour, lw=1.2, label=label
                    )
            axes.set(title=term.upper(), xlabel="step", ylabel="loss, mean since the last report")
            axes.legend()
        figure.savefig(path, dpi=130, metadata={"Software": None})


PAGES: dict[str, Callable[[Sequence[Row]], str]] = {"healing": healing, "precision": precision}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_runs", description=__doc__)
    parser.add_argument("page", choices=PAGES)
    parser.add_argument("folder", type=Path, help="holds the run folders")
    parser.add_argument("--output", type=Path, required=True, help="gets the JSON, and the page")
    args = parser.parse_args(argv)
    folders = [path.parent for path in sorted(args.folder.glob("*/variant.json"))]
    runs = [read_run(folder) for folder in folders]
    args.output.mkdir(parents=True, exist_ok=True)
    record = args.output / f"{args.page}.json"
    lines = ",\n".join(json.dumps(run) for run in runs)  # a run a line: the curves are long
    record.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    if args.page == "precision":
        save_losses(runs, args.output / "losses.png")
    write_page(args.output / "README.md", PAGES[args.page](runs))


def write_page(path: Path, tables: str) -> None:
    """The tables, below what a person wrote above the mark."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(f"{text.partition(MARK)[0]}{MARK}\n\n{tables}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
