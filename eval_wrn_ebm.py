#!/usr/bin/env python3
"""Put one question to trained models: accuracy, calibration, OOD detection, samples, FID, attacks.

    python eval_wrn_ebm.py --load_path save/hdge/best_valid_ckpt.pt --eval OOD --ood_dataset all

The path of an answer: checkpoint -> model -> a file of `evaluation/questions/` reads its data sets
and calls functions of `evaluation/` that return numbers -> <log_dir>/<eval>.json, with pictures and
arrays beside it.
"""

from __future__ import annotations

import sys

from evaluation import flags

if __name__ == "__main__":  # before the slow import of torch: --help and errors appear at once
    COMMAND_LINE = flags.parse(sys.argv[1:], files=True)

import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evaluation import NotFinite, loading
from evaluation.context import Context
from evaluation.loading import LoadedModel
from evaluation.questions import QUESTIONS
from evaluation.questions.base import ROUNDS, SGLD
from evaluation.results import Results
from runs import processes as distributed
from runs.cli import UsageError
from runs.endings import exit_code, leave
from runs.names import OPENOOD
from training.machine import choose_device, environment, use_threads

PROGRAM = "eval_wrn_ebm.py"
# Flags of SGLD chains, which a normalising flow does not need.
OF_CHAINS = {*ROUNDS, *SGLD, "chain_lengths", "guidance"} - {"dataset", "sgld_batch_size"}


def answer(s: Namespace, given: set[str], device: torch.device) -> int:
    """Answer the question. Each process takes its share of the batches; only the first writes."""
    began, here = time.monotonic(), environment(device)
    s.labels = s.labels or loading.labels_of(s.load_path)
    paths = zip(s.load_path, s.labels, strict=True)
    models = [loading.load(path, label, s, device) for path, label in paths]
    image_size = common_size(models)
    settings = dict(vars(s))  # a copy: check_flow changes n_steps
    for model in models:
        check_flow(model, given)
    context = Context(s, Results(flags.results_folder(s), s.eval, settings), device)
    if "workers" in given:
        context.say(f"--workers {s.workers} has no effect: the images live on the device")
    if "buffer_size" in given and not s.fresh_samples:
        reason = "without --fresh_samples: chains go on in the checkpoint's replay buffer"
        context.say(f"--buffer_size {s.buffer_size} has no effect {reason}")
    results = [evaluate(context, model, given) for model in models]
    if not distributed.first():
        return 0
    QUESTIONS[s.eval].show(context, results)
    if context.scores:
        context.files.add(f"{s.eval}_scores.npz", np.savez_compressed, **context.scores)
    numbers = results[0] if len(results) == 1 else {"checkpoint": s.load_path, "models": results}
    path = context.files.save(
        {
            **numbers,
            "protocol": protocol(context, image_size),
            "environment": here,
            "seconds": round(time.monotonic() - began, 2),
        }
    )
    context.say_what_is_left_out(results)
    context.say(f"the answer is in {path}")
    return 0


def evaluate(context: Context, model: LoadedModel, given: set[str]) -> dict[str, Any]:
    """Return a model's numbers and settings. Raises UsageError for numbers that are not finite."""
    question, run_sigma = QUESTIONS[context.s.eval], model.settings.get("sigma")
    by_protocol = "sigma" in question.takes and "sigma" not in {*given, *question.defaults}
    if by_protocol and isinstance(run_sigma, int | float) and run_sigma != context.s.sigma:
        context.warn(
            f"{model.label} was trained with --sigma {run_sigma:g} and is evaluated with the "
            f"protocol's {context.s.sigma:g}; give --sigma {run_sigma:g} for the run's own"
        )
    try:
        numbers = question.ask(context, model)
    except NotFinite as error:
        raise UsageError(f"--load_path {model.path}: {error}") from None
    context.warn_of_other_data(model)
    step = model.state.get("progress", {}).get("step")
    return {
        "label": model.label,
        "checkpoint": str(model.path),
        **numbers,
        "checkpoint_sha256": model.sha256,
        "run": {**model.settings, "step": step},
        **({"weights": model.average} if model.average else {}),
        "data": context.differences.get(model.label),
    }


def check_flow(model: LoadedModel, given: set[str]) -> None:
    """Raise UsageError if the model is a flow and the question or a flag does not apply to flows.
    Set --n_steps to 0 for a flow, whose samples take no SGLD steps."""
    s, flow = model.flags, model.flow
    if flow is None:
        return
    classless, fid = not flow.class_cond, s.eval == "fid"
    own_features = fid and s.fid_features == "model" and not s.fid_model
    samples = s.eval in ("uncond_samples", "cond_samples")
    needs_classes = s.eval in ("test_clf", "eval_ece", OPENOOD, "cond_samples")
    no_class = "has no classes: give one that was trained with --class_cond"
    scores = ("px",) if classless else ("px", "py", "pxy", "entropy")
    rules = [
        (s.eval == "attack", "--eval attack", "is not attacked here: give a classifier"),
        (needs_classes and classless, f"--eval {s.eval}", no_class),
        (fid and s.sampling == "class" and classless, "--sampling class", no_class),
        (s.sampling in ("buffer", "confident"), f"--sampling {s.sampling}", "has no buffer"),
        (own_features, "--fid_features model", "has no features: give --fid_model"),
        *((n not in scores, f"--score_fn {n}", f"has {' '.join(scores)}") for n in s.score_fn),
        *((n in given, f"--{n}", "needs no SGLD: leave it out") for n in sorted(OF_CHAINS)),
        (fid and "sgld_batch_size" in given, "--sgld_batch_size", "needs no SGLD: leave it out"),
        (samples and "dataset" in given, "--dataset", "is compared with no images: leave it out"),
        (s.amp == "bf16", "--amp bf16", "needs float32: leave it out"),
    ]
    for refused, flag, reason in rules:
        if refused:
            raise UsageError(f"{flag}: {model.path} is a flow, which {reason}")
    s.n_steps = 0


def common_size(models: Sequence[LoadedModel]) -> int:
    """Return the side of the images that all of the models were trained on. Raises UsageError."""
    sizes = {model.network.image_size: model.path for model in models}
    if len(sizes) > 1:
        listed = " and ".join(f"{size} x {size} ({path})" for size, path in sizes.items())
        raise UsageError(
            f"--load_path: the models see images of {listed}: evaluate them one by one"
        )
    return next(iter(sizes))


def protocol(context: Context, image_size: int) -> dict[str, Any]:
    """Return the settings that this question's numbers depend on."""
    question = QUESTIONS[context.s.eval]
    names = [
        name
        for name in ("sigma", "n_steps", "seed", "amp", "max_images")
        if name in question.takes or name not in flags.FLAG_QUESTIONS
    ]
    return {
        "version": question.version,
        **{name: getattr(context.s, name) for name in names},
        "image_size": image_size,
        "sets": context.sets_used,
    }


def main(s: Namespace, given: set[str]) -> int:
    """Return the exit code: 0; 2 for a user's mistake or a failed disk, 130 for Ctrl-C, each with
    one line on stderr."""

    def work() -> int:
        device = choose_device(s.device, exact=True)
        with distributed.together(device):
            use_threads(s, device, PROGRAM)
            return answer(s, given, device)

    return exit_code(
        PROGRAM,
        work,
        interrupted=f"\n{PROGRAM}: interrupted: no answer was written",
        lower=f"--batch_size {s.batch_size} or --sgld_batch_size {s.sgld_batch_size}",
    )


if __name__ == "__main__":
    leave(main(*COMMAND_LINE))
