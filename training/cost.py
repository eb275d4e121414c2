"""Compute or measure the cost of a training step: FLOP, memory and time."""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import data
from losses import build_objective
from losses.start import new_start
from models import EnergyClassifier, forward_flops, initialise_act_norm
from runs import processes as distributed
from runs.cli import UsageError
from runs.names import FOLDER
from runs.terms import has_chains, used
from training.build import build_batches, build_model, build_optimizer, replicate
from training.divergence import Guard
from training.flags import check_classes, labelled_batch, second_batch
from training.machine import naming_dataset
from training.state import Run

TrainStep = Callable[[Run, Guard, Any, int], Any]


def step_flops(forward: int, s: Namespace) -> float:
    """Return the FLOP of one training step. `forward`: the FLOP of one image's forward pass.

    A full backward pass costs 2 forward passes, the gradient of the input alone 1. So a data image
    costs 3, and a chain costs 2 for each SGLD step and 3 for its loss. With --clf_only the backbone
    takes no gradient: 1 instead of 3. A term may declare further passes of the batch.
    """
    learn = 1 if s.clf_only else 3
    terms = used(vars(s))
    chains = sum(getattr(s, term.chains) for term in terms if term.chains)
    more = s.batch_size * sum(term.passes for term in terms)
    images = s.batch_size + ((s.px_batch_size or s.batch_size) if second_batch(s) else 0)
    return float(forward) * (learn * images + more + chains * (2 * s.n_steps + learn))


def memory_bytes(s: Namespace, model: nn.Module, images: int, num_classes: int) -> dict[str, int]:
    """Return the bytes that each process keeps allocated for the whole run, by use; activations
    are not included, nor labels and indices of images. `images`: the number of images of all
    splits. Validation images count twice: their split is a copy."""
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = 2 if s.optimizer == "adam" else 1
    queue = s.contrast_style == "queue" and any(term.queue for term in used(vars(s)))
    sgld = has_chains(vars(s))
    values = 3 * s.image_size**2  # of one image
    slots = s.buffer_size // distributed.size()
    slot = 4 * values + 8  # bytes: an image, and the step at which its chain began
    start = sum(buffer.nbytes for buffer in new_start(s.chain_start, num_classes).buffers())
    state = {
        "weights": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "optimiser": moments * trained,
        "weight average": trained if s.ema > 0 else 0,
        "queue": 4 * num_classes * s.contrast_k if queue else 0,
        "replay buffer": slots * slot + start if sgld else 0,
    }
    snapshots = 2 * sum(state.values()) if s.max_restarts else 0
    return {**state, "snapshots": snapshots, "gradients": trained, "images": values * images}


def peak_memory(device: torch.device) -> int:
    """Return the peak in bytes of the GPU's allocations or, on the CPU, of the process's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def step_seconds(
    s: Namespace,
    forward: int,
    seconds_of: Callable[[Namespace, int], float],
    longest: float = 3.0,
) -> tuple[float, float]:
    """Return the seconds of a training step, and the share of its work that was timed.

    `seconds_of(settings, repeats)` returns the seconds of a step with these settings. Where a whole
    step would take more than about `longest` seconds (SGLD with a large network on a CPU), time a
    step with fewer images, chains and SGLD steps, and take time as proportional to FLOP.
    """
    flops = step_flops(forward, s)
    small = scaled(s, 0.0)
    rate = step_flops(forward, small) / seconds_of(small, 1)
    # A small step has a low rate, above all on a GPU: at a larger step's rate the whole may fit.
    for _ in range(2):
        share = longest * rate / flops
        timed = s if share > 0.3 else scaled(s, share)
        part = step_flops(forward, timed) / flops
        seconds = seconds_of(timed, 3)
        rate = part * flops / seconds
        if part == 1 or longest * rate / flops <= 0.3:
            break
    return seconds / part, part


def scaled(s: Namespace, share: float) -> Namespace:
    """Return the settings of a step with about `share` of the work: fewer SGLD steps, and fewer
    images and chains, still divisible by the processes, and two each, which batch norm needs."""
    smaller, count = Namespace(**vars(s)), distributed.size()
    sizes = ("batch_size", "sgld_batch_size", *(["px_batch_size"] if s.px_batch_size else []))
    for name in sizes:
        part = round(getattr(s, name) * math.sqrt(share) / count) * count
        setattr(smaller, name, max(min(2 * count, getattr(s, name)), part))
    smaller.n_steps = max(1, round(s.n_steps * math.sqrt(share)))
    return smaller


def dry_run(s: Namespace, device: torch.device, train_step: TrainStep) -> None:
    """Time a few steps on random images, and print the settings and the parameters, FLOP, memory
    and hours of the run."""
    if s.compile == "auto":  # compiling would take longer than all the rest
        s = Namespace(**{**vars(s), "compile": "off"})
    with naming_dataset(s):
        spec = data.describe(s.dataset)
    check_classes(s, spec.num_classes)
    n_valid = data.default_n_valid(spec.train_size) if s.n_valid is None else s.n_valid
    images = len(data.split_validation(spec.train_size, n_valid)[0])
    if s.labels_per_class * spec.num_classes > images:
        most = images // spec.num_classes
        raise UsageError(f"--labels_per_class {s.labels_per_class}: {s.dataset} has {most} at most")
    steps = data.steps_per_epoch(images, s.batch_size)
    if second_batch(s) and s.px_batch_size is not None:
        data.steps_per_epoch(images, s.px_batch_size, "px_batch_size")
    model = build_model(s, spec.num_classes, device)
    forward = forward_flops(model)
    real = Namespace(**{**vars(s), "batch_size": labelled_batch(s, spec.num_classes)})
    data.check_labelled(real.batch_size, distributed.size())
    if second_batch(s):
        real.px_batch_size = s.px_batch_size or s.batch_size
    seconds, part = step_seconds(
        real, forward, lambda timed, repeats: time_steps(model, timed, spec, repeats, train_step)
    )
    total = steps * (s.n_epochs - s.start_epoch)
    hours = min(total, s.max_steps or total) * seconds / 3600
    smaller = "" if part == 1 else f", of a step with {part:.1%} of the work"
    scaled_up = ", scaled up from that step" if smaller else ""
    on_device = spec.train_size + n_valid + spec.test_size
    memory = memory_bytes(s, model, on_device, spec.num_classes).items()
    facts = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "forward pass": f"{forward / 1e9:,.3f} GFLOP an image",
        "training step": f"{step_flops(forward, real) / 1e12:,.4g} TFLOP",
        **{f"memory: {name}": f"{size / 2**20:,.1f} MiB" for name, size in memory},
        "memory: peak": f"{peak_memory(device) / 2**20:,.1f} MiB without snapshots and images"
        f"{smaller}",
        "time a step": f"{seconds * 1000:,.1f} ms, {s.batch_size / seconds:,.1f} images/s"
        f"{scaled_up}",
        "time an epoch": f"{steps * seconds / 60:,.1f} minutes, {steps:,} steps",
        "time of the run": f"{hours:,.2f} hours on {device}, without evaluation",
    }
    if s.dataset.startswith(FOLDER):
        facts["images"] = f"about {spec.train_size:,} for training: each image's content decides"
    if distributed.size() > 1:
        facts["processes"] = f"{distributed.size()}; memory is per process"
    resolved = {"device": device, "amp": "bf16" if model.amp else "off", "n_valid": n_valid}
    for name, value in [*facts.items(), ("", ""), *sorted({**vars(s), **resolved}.items())]:
        distributed.say(f"{name:23} {value}")


def time_steps(
    model: EnergyClassifier, s: Namespace, spec: data.Spec, repeats: int, train_step: TrainStep
) -> float:
    """Return the median seconds of `repeats` steps on random images, after a step to warm up."""
    n = max(s.batch_size, s.px_batch_size or 0)
    images = torch.randint(256, (n, s.image_size, s.image_size, 3), dtype=torch.uint8)
    split = data.Split(images, torch.randint(spec.num_classes, (n,)))
    run, batches = run_on(split, s, model, spec.num_classes, spec.flips)
    run.start_average()
    replicate(run)
    initialise_act_norm(model, batches(0)[0])
    model.train()
    device = run.device
    guard, times = Guard(device), []
    for step in range(repeats + 1):
        started = time.perf_counter()
        train_step(run, guard, batches(step), step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    median = torch.tensor(sorted(times[1:])[repeats // 2], dtype=torch.float64, device=device)
    return float(distributed.mean(median))  # equal in all processes: they time the same next step


def run_on(
    split: data.Split, s: Namespace, model: EnergyClassifier, num_classes: int, flips: bool
) -> tuple[Run, data.TrainingBatches]:
    """Return a run of the model on the images of `split`, and its batches. All images are training
    images, and all labels are used."""
    device = next(model.parameters()).device
    if s.compile != "off":  # a network is compiled anew for each of several batch sizes
        torch._dynamo.config.recompile_limit = 64
    objective = build_objective(s, num_classes).to(device)
    run = Run(s, num_classes, model, objective, build_optimizer(s, model, objective))
    dataset = data.DataSet("", num_classes, (), flips, split, split.first(0)).to(device)
    changes = {"n_valid": 0, "labels_per_class": -1, "independent_batches": second_batch(s)}
    batches, _ = build_batches(Namespace(**{**vars(s), **changes, "seed": s.seed or 0}), dataset)
    return run, batches
