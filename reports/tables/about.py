"""How a row was made: seeds, setting, network, hardware, hours, commit."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence

from reports.page import paper
from reports.page.markup import number
from reports.tables.records import DEFAULTS, SEED, Record, Seed, finished_seeds
from runs.names import IMAGE_SIZE
from runs.terms import has_chains, used

NOT_RUN, QUOTED, UNKNOWN = "not run", "quoted", "unknown data"
COLUMNS = {
    **{"runs": "Runs", "setting": "Setting", "epochs": "Trained", "network": "Network"},
    **{"hardware": "Hardware", "hours": "Hours a run", "commit": "Commit"},
}
PAPERS_NETWORK = paper.NETWORK.replace("WRN", "WideResNet")  # as published rows name it
ROW_SIZE = re.compile(r"\((?:(?P<size>[KN])=(?P<number>[0-9]+)|(?P<network>ResNet-50))\)")
SIZES = {"K": "contrast_k", "N": "sgld_batch_size"}


def about(scale: str, record: Record | None) -> dict[str, str]:
    """Return a text for each of COLUMNS, about the finished runs, or all if none has finished."""
    if record is None or not record["seeds"]:
        return {"runs": NOT_RUN}
    finished, every = finished_seeds(record), list(record["seeds"].values())
    seeds = list(finished.values()) or every
    runs = [plural(len(finished), "seed")] if finished else []
    runs += [states(record)] if states(record) else []
    runs += divergences(every)
    hours = [found / 3600 for seed in seeds if (found := number(seed.get("seconds"))) is not None]
    lengths, networks = joined(map(length, seeds)), joined(map(network, seeds))
    setting = [] if scale == "paper" else [f"{scale}: {networks}, {lengths}"]
    setting += dict.fromkeys(detail for seed in seeds for detail in details(seed, scale))
    setting += sorted({dataset(seed) for seed in seeds} - {"cifar10", "cifar100", UNKNOWN})
    return {
        "runs": ", ".join(runs),
        "setting": ", ".join(setting) or "as rows.py has it",
        "epochs": lengths,
        "network": networks,
        "hardware": joined(found for seed in seeds for found in devices(seed)),
        "hours": f"{statistics.fmean(hours):.2f}" if hours else "-",
        "commit": joined(found for seed in seeds for found in commits(seed)),
    }


def divergences(seeds: Sequence[Seed]) -> list[str]:
    """Say how often the runs diverged, retries included, unless their states tell."""
    again = sum(int(seed.get("divergences") or 0) for seed in seeds)
    told = sum(seed["state"] == "diverged" for seed in seeds)
    return [f"{plural(again, 'divergence')} in all, retries included"] if again > told else []


def details(seed: Seed, scale: str) -> list[str]:
    """Name the start and, at another scale than the paper's, what sets the row's recipe apart."""
    s = seed["settings"]
    found = [f"from {SEED.sub('', str(seed['start']))}"] if seed.get("start") else []
    if (size := paper.image_size(s)) != IMAGE_SIZE:
        found.append(f"images of {size} x {size}")
    if scale == "paper":
        return found
    # log q(x|y) has a chain for each image of the batch.
    chains = next((term.chains for term in used(s) if term.chains), "sgld_batch_size")
    texts = [
        ("batch_size" in s, "batch {batch_size}"),
        (s.get("contrast_style") == "queue", "K = {contrast_k}"),
        (
            s.keys() >= {"sgld_batch_size", "n_steps"},
            f"{{{chains}}} chains of {{n_steps}} SGLD steps",
        ),
    ]
    if s.get("method") != "linear-probe":
        texts += [
            (s.get("norm", "none") != "none", "{norm} norm"),
            (s.keys() >= {"optimizer", "lr"}, "{optimizer} {lr:g}"),
            ("sigma" in s, "noise {sigma:g}"),
            (s.get("sgld_l2"), "L2 penalty {sgld_l2:g}"),
            (s.get("clip_grad"), "gradients clipped at {clip_grad:g}"),
        ]
        others = [key for key in DEFAULTS if key in s and key != "image_size"]
        texts += [(True, f"--{key}" + f" {{{key}}}" * (s[key] is not True)) for key in others]
    return found + [text.format_map(s) for shown, text in texts if shown]


def shown_name(model: str, record: Record | None) -> str:
    """Put our K, N or network beside the paper's in a published name, and name the model that SGLD
    went on from."""
    if record is None:
        return model
    seeds = list(record["seeds"].values())
    networks = {network(seed) for seed in seeds}
    if model.startswith(PAPERS_NETWORK):
        others = networks - {paper.NETWORK}
        return f"{model}, here {', '.join(sorted(others))}" if others else model
    if match := ROW_SIZE.search(model):
        stated = match["network"] or match["number"]
        key = SIZES.get(match["size"])
        ours = {str(seed["settings"].get(key, stated)) for seed in seeds} if key else networks
        if not ours <= {stated}:
            model = f"{model[: match.end() - 1]}, here {', '.join(sorted(ours))})"
    starts = {
        start_name(str(seed["start"]))
        for seed in seeds
        if seed.get("start") and has_chains(seed["settings"])
    }
    return f"{model}, the papers' sampler, from {joined(starts)}" if starts else model


def start_name(run: str) -> str:
    name = SEED.sub("", run)
    return {"ce": "cross-entropy", "hdge": "HDGE"}.get(name.partition("-")[0], name)


def joined(texts: Iterable[object]) -> str:
    return ", ".join(sorted({str(text) for text in texts if text})) or "-"


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def devices(seed: Seed) -> list[str]:
    """Return the devices of all processes of the run; an older record has the last one's."""
    return [str(found) for found in seed.get("devices") or [seed.get("device")] if found]


def commits(seed: Seed) -> list[str]:
    """Return seven digits of each commit, with a + where files differed from it."""
    known = [str(found) for found in seed.get("commits") or [seed.get("commit")] if found]
    return [found[:7] + "+" * found.endswith("+") for found in known] or ["unknown"]


def length(seed: Seed) -> str:
    if seed["settings"].get("method") == "linear-probe":
        return "a linear probe"
    unit = "step" if seed["settings"].get("max_steps") else "epoch"
    return plural(seed[f"{unit}s"], unit)


def network(seed: Seed) -> str:
    return paper.network(seed["settings"]) or "-"


def dataset(seed: Seed) -> str:
    return str(seed["settings"].get("dataset") or UNKNOWN)


def states(record: Record) -> str:
    """'diverged 1 of 3, unfinished 2 of 3'; '' where every run has finished."""
    found = [seed["state"] for seed in record["seeds"].values()]
    counts = ((state, found.count(state)) for state in ("diverged", "failed", "unfinished"))
    return ", ".join(f"{state} {n} of {len(found)}" for state, n in counts if n)
