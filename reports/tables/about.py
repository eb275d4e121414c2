"""Describe how a row was made: seeds, setting, network, hardware, hours, commit."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence

from reports.page import paper
from reports.page.markup import number
from reports.tables.records import DEFAULTS, Record, Seed, finished_seeds, start_of
from runs.names import IMAGE_SIZE, network_title
from runs.terms import has_chains, used

NOT_RUN, QUOTED, UNKNOWN = "not run", "quoted", "unknown data"
COLUMNS = {
    **{"runs": "Runs", "setting": "Setting", "epochs": "Trained", "network": "Network"},
    **{"hardware": "Hardware", "hours": "Hours a run", "commit": "Commit"},
}
STATED = re.compile("WideResNet-28-10|ResNet-50|(?<=K=)[0-9]+|(?<=N=)[0-9]+")  # in a row's name
STARTS = {"ce": "cross-entropy", "hdge": "HDGE"}  # experiments from which runs with SGLD start
SIZES = {"K": "contrast_k", "N": "sgld_batch_size"}  # letter in a row's name -> setting


def about(scale: str, record: Record) -> dict[str, str]:
    """Return a text for each of COLUMNS, about the finished runs or, without any, about all."""
    if not record:
        return {"runs": NOT_RUN}
    finished, recorded = list(finished_seeds(record).values()), list(record.values())
    seeds = finished or recorded
    runs = [plural(len(finished), "seed")] if finished else []
    hours = [s / 3600 for seed in seeds if (s := number(seed["seconds"])) is not None]
    lengths, networks = joined(map(length, seeds)), joined(map(network, seeds))
    setting = [] if scale == "paper" else [f"{scale}: {networks}, {lengths}"]
    setting += dict.fromkeys(detail for seed in seeds for detail in details(seed, scale))
    setting += sorted({dataset(seed) for seed in seeds} - {"cifar10", "cifar100", UNKNOWN})
    return {
        "runs": ", ".join([*runs, *filter(None, [states(record)]), *divergences(recorded)]),
        "setting": ", ".join(setting) or "as rows.py has it",
        "epochs": lengths,
        "network": networks,
        "hardware": joined(device for seed in seeds for device in seed["devices"]),
        "hours": f"{statistics.fmean(hours):.2f}" if hours else "-",
        "commit": joined(commit for seed in seeds for commit in commits(seed)),
    }


def divergences(seeds: Sequence[Seed]) -> list[str]:
    """Return how often the runs diverged, retries included; [] where `states` has all of it."""
    total = sum(int(seed["divergences"] or 0) for seed in seeds)
    in_states = sum(seed["state"] == "diverged" for seed in seeds)
    return [f"{plural(total, 'divergence')} in all, retries included"] if total > in_states else []


def details(seed: Seed, scale: str) -> list[str]:
    """Return the run's start and image size and, at scales other than the paper's, its recipe."""
    s, size = seed["settings"], paper.image_size(seed["settings"])
    # the setting with the number of chains; pxysgld has a chain for each image of the batch
    chains = next((term.chains for term in used(s) if term.chains), "sgld_batch_size")
    sgld = s.keys() >= {"sgld_batch_size", "n_steps"}
    trains = s.get("method") != "linear-probe"  # the network
    texts = [
        ("batch_size" in s, "batch {batch_size}"),
        (s.get("contrast_style") == "queue", "K = {contrast_k}"),
        (sgld, f"{{{chains}}} chains of {{n_steps}} SGLD steps"),
        (trains and s.get("norm", "none") != "none", "{norm} norm"),
        (trains and s.keys() >= {"optimizer", "lr"}, "{optimizer} {lr:g}"),
        (trains and "sigma" in s, "noise {sigma:g}"),
        (trains and s.get("sgld_l2"), "L2 penalty {sgld_l2:g}"),
        (trains and s.get("clip_grad"), "gradients clipped at {clip_grad:g}"),
        *(
            (trains and key in s, f"--{key}" + f" {{{key}}}" * (s.get(key) is not True))
            for key in DEFAULTS
            if key != "image_size"
        ),
    ]
    always = [f"from {start}"] if (start := start_of(seed)) else []
    always += [f"images of {size} x {size}"] if size != IMAGE_SIZE else []
    return always + [text.format_map(s) for holds, text in texts if holds and scale != "paper"]


def row_title(model: str, record: Record) -> str:
    """Return the row's name, with our K, N or network beside the paper's where they differ, and
    with the model from which a run with SGLD started."""
    seeds = list(record.values())
    if seeds and (match := STATED.search(model)):
        stated = match[0].replace("WideResNet", "WRN")
        key = SIZES.get(model[match.start() - 2])
        ours = {str(seed["settings"].get(key, stated)) if key else network(seed) for seed in seeds}
        addition = f", here {', '.join(sorted(ours - {stated}))}" * (ours != {stated})
        model = model[: match.end()] + addition + model[match.end() :]
    starts = {start_of(seed) for seed in seeds if has_chains(seed["settings"])}
    names = [STARTS.get(start.partition("-")[0], start) for start in starts if start]
    return f"{model}, the papers' sampler, from {joined(names)}" if names else model


def joined(texts: Iterable[object]) -> str:
    return ", ".join(sorted({str(text) for text in texts if text})) or "-"


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def commits(seed: Seed) -> list[str]:
    """Return seven digits of each commit, with a + where files differed from it."""
    return [sha[:7] + "+" * sha.endswith("+") for sha in seed["commits"]] or ["unknown"]


def length(seed: Seed) -> str:
    if seed["settings"].get("method") == "linear-probe":
        return "a linear probe"
    unit = "step" if seed["settings"].get("max_steps") else "epoch"
    return plural(seed[f"{unit}s"], unit)


def network(seed: Seed) -> str:
    return network_title(seed["settings"]) or "-"


def dataset(seed: Seed) -> str:
    return str(seed["settings"].get("dataset") or UNKNOWN)


def states(record: Record) -> str:
    """Return 'diverged 1 of 3, unfinished 2 of 3', or '' where every run has finished."""
    of_runs = [seed["state"] for seed in record.values()]
    counts = ((state, of_runs.count(state)) for state in ("diverged", "unfinished"))
    return ", ".join(f"{state} {n} of {len(of_runs)}" for state, n in counts if n)
