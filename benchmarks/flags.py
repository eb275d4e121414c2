"""Flags of scripts/bench.py. Like training/flags.py, this module does not import torch."""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runs.cli import COUNT, DEPTH, WHOLE, WIDTH, Parser, number
from runs.files import check_writable
from training import flags as train_flags

STABLE = "JEM-stable"
TERMS = {
    "CE": "--pyxce 1",
    "HDGE": "--pyxce 1 --pxycontrast 1",
    "JEM": "--pyxce 1 --pxsgld 1",
    "HDGE+JEM": "--pyxce 1 --pxycontrast 1 --pxsgld 1",
    # As the recipe @jem-stable: a quarter of the SGLD steps. The ancestors have no such chains.
    STABLE: "--pyxce 1 --pxsgld 1 --sgld_clamp --chain_start class_gaussian",
}
PAPER = {"batch_size": 64, "n_steps": 20, "contrast_k": 65536, "classes": [10, 100]}
# Sizes of network and step; `turns` of each step for a table row, and their limit in `seconds`, as
# in measure.alternate; `matrix`: the side of the matrices multiplied to measure the peak FLOP/s.
PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {**PAPER, "depth": 10, "width": 2, "turns": 5, "seconds": 30.0, "matrix": 2048},
    "gpu": {**PAPER, "depth": 28, "width": 10, "turns": 7, "seconds": 15.0, "matrix": 8192},
    "quick": {"depth": 10, "width": 1, "batch_size": 8, "n_steps": 3, "contrast_k": 2048,
              "classes": [10, 100], "turns": 3, "seconds": 2.0, "matrix": 256},
}  # fmt: skip
PROJECT, STRAIGHT, STRAIGHT_TF32 = "project", "straightforward", "straightforward, TF32"
LR = 1e-6  # small, so that the weights hardly move and no step diverges


# fmt: off
def build_parser() -> Parser:
    parser = Parser(
        prog="bench.py", allow_abbrev=False,
        description="Time this project's training step beside the straightforward one, which "
        "benchmarks/straightforward.py writes as the ancestors' code does it. Run it on a machine "
        "that does nothing else.",
    )
    add = parser.add_argument
    add("--preset", choices=("auto", *PRESETS), default="auto",
        help="cpu: WRN-10-2; gpu: WRN-28-10; "
        "quick: a small network and few steps, to see that it works; auto: gpu where there is "
        "one, else cpu (default: %(default)s)")
    add("collect", nargs="*", metavar="collect OUT",
        help="measure nothing: make the pages of what scripts/gpu.sh left in OUT")
    add("--output", type=Path, default=None, metavar="FOLDER",
        help="bench.json and bench.md are written there (default: save/bench; with collect "
        "benchmarks/gpu, and README.md's table is written, too)")
    add("--straightforward", action=argparse.BooleanOptionalAction, default=True,
        help="time the straightforward step, too (default: on)")
    add("--terms", nargs="+", choices=tuple(TERMS), default=list(TERMS), metavar="TERMS",
        help=f"of the rows of steps: {', '.join(TERMS)} (default: all)")
    add("--workers", type=WHOLE, default=min(4, os.cpu_count() or 1), metavar="N",
        help="worker processes of the straightforward step's DataLoader; 0: images are made in "
        "the step (default: 4, at most one a core)")
    add = parser.add_argument_group("what is timed", "Default: what the preset says.").add_argument
    add("--depth", type=DEPTH, metavar="6N+4", help="layers of the WideResNet")
    add("--width", type=WIDTH, metavar="TIMES", help="width multiplier of the WideResNet")
    add("--batch_size", type=number(int, low=1, high=10000), metavar="IMAGES",
        help="images, and with JEM chains, a step")
    add("--n_steps", type=COUNT, metavar="STEPS", help="SGLD steps a training step")
    add("--contrast_k", type=COUNT, metavar="K", help="slots of the queue")
    add("--classes", type=number(int, low=2, high=10000), nargs="+", metavar="C",
        help="all terms are timed with the first number of classes, HDGE with each")
    add("--turns", type=COUNT, metavar="N", help="times that each step is timed; the median counts")
    group = parser.add_argument_group("machine", "As train_wrn.py has them.")
    for action in train_flags.build_parser()._actions:
        if action.dest in ("device", "amp", "compile"):
            group._add_action(action)
    group.add_argument("--seed", type=WHOLE, default=0, metavar="N",
        help="seed of weights, images and noise (default: %(default)s)")
    return parser


# fmt: on
def parse(argv: Sequence[str]) -> Namespace:
    """Parse the command line; flags that the preset sets are None until `complete`. A mistake,
    alone or together with the preset, ends the program with one line and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.command = ["python", "scripts/bench.py", *argv]
    if args.collect and (len(args.collect) != 2 or args.collect[0] != "collect"):
        parser.error(f"{' '.join(args.collect)}: give flags alone, or: collect OUT")
    parser.check(complete, args, "quick" if args.preset == "auto" else args.preset)
    if not args.collect:
        args.output = args.output or Path("save/bench")
        parser.check(check_writable, "--output", args.output)
    return args


def complete(args: Namespace, preset: str) -> Namespace:
    """Return the preset's values, overridden by the flags given. Raises UsageError."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    args = Namespace(**{**PRESETS[preset], **given, "preset": preset})
    step_settings(args, "HDGE+JEM", args.classes[0])  # raises UsageError for invalid sizes
    return args


def step_settings(args: Namespace, terms: str, classes: int) -> Namespace:
    """Return train_wrn.py's settings for the step of these TERMS. Raises UsageError."""
    s = train_flags.build_parser().parse_args(TERMS[terms].split())
    for name in ("depth", "width", "batch_size", "n_steps", "contrast_k", "amp", "compile", "seed"):
        setattr(s, name, getattr(args, name))
    vars(s).update(lr=LR, queue_init="random")
    s.sgld_batch_size = s.batch_size
    s.n_steps = -(-s.n_steps // 4) if terms == STABLE else s.n_steps  # a quarter, rounded up
    s.buffer_size = -(-s.buffer_size // classes) * classes  # all classes get as many slots
    train_flags.check_network(s)
    return s
