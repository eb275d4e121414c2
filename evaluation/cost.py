"""What a training step costs: floating-point operations, memory and time."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import torch
from torch import nn

from runs import processes as distributed
from runs.terms import has_chains, used
from training.flags import second_batch


def step_flops(forward: int, s: argparse.Namespace) -> float:
    """FLOP of one training step, from those of one image's forward pass.

    A full backward pass is 2 forward passes, the gradient of the input alone 1; so data cost 3 an
    image, and a chain costs 2 an SGLD step and 3 to learn from it. With --clf_only the backbone
    is not differentiated: 1 instead of 3. A term may declare further passes of the batch.
    """
    learn = 1 if s.clf_only else 3
    terms = used(vars(s))
    chains = sum(getattr(s, term.chains) for term in terms if term.chains)
    more = s.batch_size * sum(term.passes for term in terms)
    images = s.batch_size + ((s.px_batch_size or s.batch_size) if second_batch(s) else 0)
    return float(forward) * (learn * images + more + chains * (2 * s.n_steps + learn))


def memory_bytes(
    s: argparse.Namespace, model: nn.Module, images: int, num_classes: int
) -> dict[str, int]:
    """Bytes that stay allocated for the whole run, by what they are for, in each process;
    activations excluded."""
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = 2 if s.optimizer == "adam" else 1
    queue = s.contrast_style == "queue" and any(term.queue for term in used(vars(s)))
    sgld = has_chains(vars(s))
    values = 3 * s.image_size**2  # of an image
    state = {
        "weights": 4 * sum(p.numel() for p in model.parameters()),
        "optimiser": moments * trained,
        "weight average": trained if s.ema > 0 else 0,
        "queue": 4 * num_classes * s.contrast_k if queue else 0,
        "replay buffer": 4 * values * s.buffer_size // distributed.size() if sgld else 0,
    }
    snapshots = 2 * sum(state.values()) if s.max_restarts else 0
    return {**state, "snapshots": snapshots, "gradients": trained, "images": values * images}


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocations, or of this process where it runs on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def step_seconds(
    s: argparse.Namespace,
    forward: int,
    seconds_of: Callable[[argparse.Namespace, int], float],
    longest: float = 3.0,
) -> tuple[float, float]:
    """(seconds a training step, the part of its work that was timed: 1 for the whole step).

    `seconds_of(settings, repeats)` times steps. Where a whole step would take more than about
    `longest` seconds (SGLD with a large network on a CPU), one with fewer images, chains and SGLD
    steps is timed, and time is taken as proportional to work.
    """
    flops = step_flops(forward, s)
    small = scaled(s, 0.0)
    rate = step_flops(forward, small) / seconds_of(small, 1)  # low: small batches are slow
    share = longest * rate / flops
    timed = s if share > 0.3 else scaled(s, share)
    part = step_flops(forward, timed) / flops
    return seconds_of(timed, 3) / part, part


def scaled(s: argparse.Namespace, share: float) -> argparse.Namespace:
    """The same step with about `share` of the work: fewer images and chains, then fewer steps."""
    result = argparse.Namespace(**vars(s))
    sizes = ("batch_size", "sgld_batch_size", *(["px_batch_size"] if s.px_batch_size else []))
    for name in sizes:
        setattr(result, name, max(1, round(getattr(s, name) * math.sqrt(share))))
    result.n_steps = max(1, round(s.n_steps * math.sqrt(share)))
    return result
