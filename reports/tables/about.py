"""How a row was made: seeds, setting, network, hardware, hours, commit."""

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
STARTS = {"ce": "cross-entropy", "hdge": "HDGE"}  # of experiments that SGLD went on from
SIZES = {"K": "contrast_k", "N": "sgld_batch_size"}


def about(scale: str, record: Record) -> dict[str, str]:
    """Return a text for each of COLUMNS, about the finished runs, or all if none has finished."""
    if not record:
        return {"runs": NOT_RUN}
    finished, every = list(finished_seeds(record).values()), list(record.values())
    seeds = finished or every
    runs = [plural(len(finished), "seed")] if finished else []
    hours = [found / 3600 for seed in seeds if (found := number(seed["seconds"])) is not None]
    lengths, networks = joined(map(length, seeds)), joined(map(network, seeds))
    setting = [] if scale == "paper" else [f"{scale}: {networks}, {lengths}"]
    setting += dict.fromkeys(detail for seed in seeds for detail in details(seed, scale))
    setting += sorted({dataset(seed) for seed in seeds} - {"cifar10", "cifar100", UNKNOWN})
    return {
        "runs": ", ".join([*runs, *filter(None, [states(record)]), *divergences(every)]),
        "setting": ", ".join(setting) or "as rows.py has it",
        "epochs": lengths,
        "network": networks,
        "hardware": joined(found for seed in seeds for found in seed["devices"]),
        "hours": f"{statistics.fmean(hours):.2f}" if hours else "-",
        "commit": joined(found for seed in seeds for found in commits(seed)),
    }


def divergences(seeds: Sequence[Seed]) -> list[str]:
    """Say how often the runs diverged, retries included, unless their states tell."""
    again = sum(int(seed["divergences"] or 0) for seed in seeds)
    told = sum(seed["state"] == "diverged" for seed in seeds)
    return [f"{plural(again, 'divergence')} in all, retries included"] if again > told else []


def details(seed: Seed, scale: str) -> list[str]:
    """Name the start and, at another scale than the paper's, what sets the row's recipe apart."""
    s, size = seed["settings"], paper.image_size(seed["settings"])
    # log q(x|y) has a chain for each image of the batch.
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
    found = [f"from {start}"] if (start := start_of(seed)) else []
    found += [f"images of {size} x {size}"] if size != IMAGE_SIZE else []
    return found + [text.format_map(s) for shown, text in texts if shown and scale != "paper"]


def shown_name(model: str, record: Record) -> str:
    """Put our K, N or network beside that of a row's name, and name the model that SGLD went on
    from."""
    seeds = list(record.values())
    if seeds and (match := STATED.search(model)):
        stated = match[0].replace("WideResNet", "WRN")
        key = SIZES.get(model[match.start() - 2])
        ours = {str(seed["settings"].get(key, stated)) if key else network(seed) for seed in seeds}
        here = f", here {', '.join(sorted(ours - {stated}))}" * (ours != {stated})
        model = model[: match.end()] + here + model[match.end() :]
    starts = {start_of(seed) for seed in seeds if has_chains(seed["settings"])}
    names = [STARTS.get(start.partition("-")[0], start) for start in starts if start]
    return f"{model}, the papers' sampler, from {joined(names)}" if names else model


def joined(texts: Iterable[object]) -> str:
    return ", ".join(sorted({str(text) for text in texts if text})) or "-"


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def commits(seed: Seed) -> list[str]:
    """Return seven digits of each commit, with a + where files differed from it."""
    known = [found[:7] + "+" * found.endswith("+") for found in seed["commits"]]
    return known or ["unknown"]


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
    """'diverged 1 of 3, unfinished 2 of 3'; '' where every run has finished."""
    found = [seed["state"] for seed in record.values()]
    counts = ((state, found.count(state)) for state in ("diverged", "unfinished"))
    return ", ".join(f"{state} {n} of {len(found)}" for state, n in counts if n)
