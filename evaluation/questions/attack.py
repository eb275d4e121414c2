"""Measure accuracy under adversarial attack, for each radius of the perturbation."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from evaluation.questions.base import SGLD, Context, LoadedModel, Numbers, Question, Rule
from runs.cli import COUNT, WEIGHT, WHOLE, UsageError, adder
from runs.style import radius as shown_radius

LINF_RADII = tuple(i / 255 for i in range(0, 17, 2))
L2_RADII = tuple(i / 8 for i in range(9))
PGD_FLAGS = ("n_steps_pgd_attack", "random_init", "n_restarts")
REFINEMENT_FLAGS = ("n_dup_chains", "refine_sigma", "refine_gradient")


def ask(context: Context, model: LoadedModel) -> Numbers:
    import torch

    from evaluation import robustness

    s, dataset = context.s, context.labelled_set(model)
    part = context.share_of(dataset)
    generator = torch.Generator(context.device).manual_seed(s.seed)
    classify = robustness.classifier(
        model.network,
        model.chain(s.n_steps_refine),
        generator=generator,
        copies=s.n_dup_chains,
        sigma=s.refine_sigma,
        gradient=s.refine_gradient,
    )
    pgd = {"steps": s.n_steps_pgd_attack, "restarts": s.n_restarts, "random_init": s.random_init}
    attacks: list[Any]
    if s.attack == "pgd":
        attacks = [
            robustness.PGD(s.distance, s.n_steps_pgd_attack, random_init=s.random_init or run > 0)
            for run in range(s.n_restarts)
        ]
    else:
        pgd = dict.fromkeys(pgd)
        version = "rand" if s.n_steps_refine else "standard"
        attacks = [robustness.AutoAttack(s.distance, model.num_classes, s.batch_size, version)]
    rows = robustness.robust_accuracy(
        classify,
        context.batches(dataset, model),
        attacks,
        s.eps or (LINF_RADII if s.distance == "Linf" else L2_RADII),
        seed=s.seed,
        generator=generator,
        first=part.start // part.step,
    )
    refinement = {"refine_sigma": s.refine_sigma, "refine_gradient": s.refine_gradient}
    return {
        "dataset": dataset.name,
        "n": len(dataset.split.labels),
        "distance": s.distance,
        "attack": s.attack,
        **pgd,
        "n_steps_refine": s.n_steps_refine,
        **(refinement if s.n_steps_refine else dict.fromkeys(refinement)),
        "rows": rows,
    }


def show(context: Context, results: list[Numbers]) -> None:
    from evaluation import figures

    distance = context.s.distance
    rows = [
        {**row, "label": r["label"], "eps": shown_radius(row["eps"], distance)}
        for r in results
        for row in r["rows"]
    ]
    context.table(rows, ["eps", "accuracy"])
    title = title_of(results[0])
    context.files.picture("attack", figures.draw_robustness, results, distance, title)


def title_of(result: dict[str, Any]) -> str:
    title = "AutoAttack" if result["attack"] == "autoattack" else f"PGD, {result['steps']} steps"
    steps, sigma = result["n_steps_refine"], result["refine_sigma"]
    noise = f"noise {sigma:g} and " if sigma else ""
    return f"{title}; {noise}{steps} SGLD steps before classifying" if steps else title


def radius(text: str) -> float:
    """Parse a radius such as .03 or 8/255; pixels are in [0, 1]."""
    numerator, _, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no radius: give numbers such as 0 .03 8/255, pixels being in [0, 1]"
        ) from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is out of range: give 0 or more")
    return value


# fmt: off
# One flag a paragraph reads better than one keyword a line.
def add_flags(parser: argparse.ArgumentParser) -> None:
    add = adder(parser, "attack")
    add("--attack", ("pgd", "autoattack"), "pgd", "ours", "projected gradient ascent, or "
        "AutoAttack through pyautoattack, of which APGD on cross-entropy is weak against confident "
        "models; its other attacks do not depend on the logits' scale")
    add("--distance", ("Linf", "L2"), "Linf", "JEM", "the norm that bounds the perturbation")
    add("--eps RADIUS", radius, None, "HDGE Figure 4", "radii, pixels being in [0, 1], such as 0 "
        "2/255 8/255", nargs="+", shown="0 to 16/255 by 2/255 for Linf, 0 to 1 by 1/8 for L2")
    add("--n_steps_pgd_attack STEPS", COUNT, 40, "JEM", "steps of 2.5 eps / STEPS")
    add("--random_init", bool, False, "JEM", "start the attack from a random point of the ball")
    add("--n_restarts N", COUNT, 1, "ours", "attacks an image, from the second on with a random "
        "start")
    add("--n_steps_refine STEPS", WHOLE, 0, "JEM", "SGLD steps before classifying: JEM-STEPS of "
        "the JEM paper")
    add("--n_dup_chains CHAINS", COUNT, 5, "JEM", "chains an image whose mean logits classify, "
        "with --n_steps_refine")
    add("--refine_sigma STD", WEIGHT, 0.0, "JEM's --sigma", "noise added to each chain's start, "
        "pixels being in [-1, 1], with --n_steps_refine; JEM's code has .03 for Linf and its "
        "README 0 for L2", shown="0")
    add("--refine_gradient", ("full", "identity"), "full", "ours", "the attack's gradient goes "
        "through the refinement (second order), or past it, as in JEM's code")


# fmt: on
def idle(s: Namespace) -> Iterator[Rule]:
    if not s.n_steps_refine:
        yield "n_steps_refine 0", (*REFINEMENT_FLAGS, *SGLD)
    if s.attack == "autoattack":
        yield "attack autoattack", PGD_FLAGS


def check(s: Namespace) -> None:
    if s.sigma > 0:
        raise UsageError(
            f"--sigma {s.sigma:g} does not go with attack, whose bound is on the image itself: "
            "leave it out"
        )
    if s.distance == "Linf" and s.eps is not None and max(s.eps) > 1:
        raise UsageError(
            f"--eps {max(s.eps):g} is larger than the pixel range [0, 1]: give 8/255 for 8 of 255"
        )


QUESTION = Question(
    "attack",
    "accuracy under adversarial attack, over radii (HDGE Figure 4)",
    ask,
    show,
    takes=("dataset", "max_images", "sigma", "attack", "distance", "eps", *PGD_FLAGS)
    + ("n_steps_refine", *REFINEMENT_FLAGS),
    version=2,
    defaults={"sigma": 0.0},
    add_flags=add_flags,
    idle=idle,
    check=check,
)
