"""How a row was made: seeds, setting, network, hardware, hours, commit."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from typing import Any

from reports.page.markup import number
from reports.page.paper import image_size
from reports.tables.records import DEFAULTS, Record
from reports.tables.titles import natural
from runs.names import IMAGE_SIZE
from runs.terms import has_chains, used

NOT_RUN, QUOTED, UNKNOWN = "not run", "quoted", "unknown data"
NAMED_NETWORK = "WideResNet-28-10"
ROW_SIZE = re.compile(r"\((?:(?P<size>[KN])=(?P<number>[0-9]+)|(?P<network>ResNet-50))\)")
SEED = re.compile(r"-s[0-9]+$")


def about(scale: str, experiment: str | None, record: Record | None) -> dict[str, str]:
    """How the row was made, each a text; of the finished runs, of all if none has finished."""
    if experiment is None or record is None or not record["seeds"]:
        return {"runs": QUOTED if experiment is None else NOT_RUN}
    finished = finished_seeds(record)
    seeds = finished or list(record["seeds"].values())
    n = len(finished)
    runs = [f"{n} seed" + "s" * (n != 1)] if n else []
    runs += [states(record)] if states(record) else []
    again = sum(int(seed.get("divergences") or 0) for seed in record["seeds"].values())
    told = sum(seed["state"] == "diverged" for seed in record["seeds"].values())
    runs += divergences(again, told)
    hours = [found / 3600 for seed in seeds if (found := number(seed.get("seconds"))) is not None]
    lengths = joined(length(seed) for seed in seeds)
    networks = joined(network(seed) for seed in seeds)
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


def divergences(again: int, told: int) -> list[str]:
    """How often in all, unless the runs' states have told it."""
    more = f"{again} divergence" + "s" * (again != 1) + " in all, retries included"
    return [more] if again > told else []


def details(seed: Mapping[str, Any], scale: str) -> list[str]:
    """What a network's name and the epochs do not tell: where it started, and at another scale
    than the paper's the batch, K, the chains, norm, optimiser and rate, noise, stabilisers."""
    s = seed["settings"]
    found = [f"from {SEED.sub('', str(seed['start']))}"] if seed.get("start") else []
    if (size := image_size(s)) != IMAGE_SIZE:
        found.append(f"images of {size} x {size}")
    if scale == "paper":
        return found
    found += [f"batch {s['batch_size']}"] if "batch_size" in s else []
    found += [f"K = {s['contrast_k']}"] if s.get("contrast_style") == "queue" else []
    if "sgld_batch_size" in s and "n_steps" in s:
        # log q(x|y) has a chain for each image of the batch.
        chains = next((t.chains for t in used(s) if t.chains), "sgld_batch_size")
        found.append(f"{s[chains]} chains of {s['n_steps']} SGLD steps")
    if s.get("method") == "linear-probe":
        return found
    found += [f"{s['norm']} norm"] if s.get("norm", "none") != "none" else []
    found += [f"{s['optimizer']} {s['lr']:g}"] if "optimizer" in s and "lr" in s else []
    found += [f"noise {s['sigma']:g}"] if "sigma" in s else []
    found += [f"L2 penalty {s['sgld_l2']:g}"] if s.get("sgld_l2") else []
    found += [f"gradients clipped at {s['clip_grad']:g}"] if s.get("clip_grad") else []
    others = [key for key in DEFAULTS if key in s and key != "image_size"]
    return found + [f"--{key} {s[key]}".removesuffix(" True") for key in others]


def shown_name(model: str, record: Record | None) -> str:
    """A published row's name may have the paper's K, N or network: another one that was run is put
    beside it."""
    match = ROW_SIZE.search(model)
    if record is None:
        return model
    seeds = record["seeds"].values()
    starts = {start_name(str(seed["start"])) for seed in seeds if continued(seed)}
    after = f", the papers' sampler, from {joined(starts)}" if starts else ""
    if model.startswith(NAMED_NETWORK):
        run = {network(seed) for seed in seeds} - {NAMED_NETWORK.replace("WideResNet", "WRN")}
        return f"{model}, here {', '.join(sorted(run))}" if run else model
    if match is None:
        return model + after
    if match["network"]:
        stated, run = match["network"], {network(seed) for seed in seeds}
    else:
        key = {"K": "contrast_k", "N": "sgld_batch_size"}[match["size"]]
        stated = match["number"]
        run = {str(seed["settings"].get(key, stated)) for seed in seeds}
    if run <= {stated}:
        return model + after
    return f"{model[: match.end() - 1]}, here {', '.join(sorted(run))}){after}"


def start_name(run: str) -> str:
    name = SEED.sub("", run)
    return {"ce": "cross-entropy", "hdge": "HDGE"}.get(name.partition("-")[0], name)


def continued(seed: Mapping[str, Any]) -> bool:
    """Whether SGLD went on from a model that was trained without it, as at scale 'small'."""
    s = seed["settings"]
    return bool(seed.get("start") and has_chains(s))


def joined(texts: Any) -> str:
    return ", ".join(sorted({str(text) for text in texts if text})) or "-"


def devices(seed: Mapping[str, Any]) -> list[str]:
    """Of all processes of the run; an older record tells the last one's."""
    return [str(found) for found in seed.get("devices") or [seed.get("device")] if found]


def commits(seed: Mapping[str, Any]) -> list[str]:
    """Seven digits, and the mark of files that differ from the commit."""
    known = [str(found) for found in seed.get("commits") or [seed.get("commit")] if found]
    return [found[:7] + "+" * found.endswith("+") for found in known] or ["unknown"]


def length(seed: Mapping[str, Any]) -> str:
    if seed["settings"].get("method") == "linear-probe":
        return "a linear probe"
    if seed["settings"].get("max_steps"):
        return f"{seed['steps']} step" + "s" * (seed["steps"] != 1)
    return f"{seed['epochs']} epoch" + "s" * (seed["epochs"] != 1)


def network(seed: Mapping[str, Any]) -> str:
    s = seed["settings"]
    if s.get("arch") == "resnet50":
        return "ResNet-50"
    return f"WRN-{s['depth']}-{s['width']}" if "depth" in s and "width" in s else "-"


def dataset(seed: Mapping[str, Any]) -> str:
    return str(seed["settings"].get("dataset") or UNKNOWN)


def finished_seeds(record: Record) -> list[dict[str, Any]]:
    seeds = sorted(record["seeds"].items(), key=lambda item: natural(item[0]))
    return [seed for _, seed in seeds if seed["state"] == "finished"]


def states(record: Record) -> str:
    """'diverged 1 of 3', 'unfinished 2 of 3', ...; '' where every run has finished."""
    all_states = [seed["state"] for seed in record["seeds"].values()]
    counted = [(s, all_states.count(s)) for s in ("diverged", "failed", "unfinished")]
    return ", ".join(f"{s} {n} of {len(all_states)}" for s, n in counted if n)
