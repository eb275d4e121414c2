#!/usr/bin/env python3
"""Train a normalising flow, Glow or Residual Flow, by maximum likelihood.

    python baselines/train_flow.py --dataset cifar10 --class_cond --id glow
    python eval_wrn_ebm.py --load_path save/glow/last_ckpt.pt --eval OOD --score_fn px --sigma 0

    min over weights  E  -log p(x|y) / (D log 2)    with --class_cond, else  -log p(x) / (D log 2)

in bits per dimension of the 8-bit image, D = 3 S^2: models/flow.py has the density. Images are
mirrored but not cropped: the flow would learn the padding of a crop, too.
"""

import math
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the packages are not installed

from baselines.flags import SHARED, make_parser, parse
from runs.cli import COUNT, Parser, UsageError, check_id
from runs.names import FLOWS
from training.flags import check_dataset

NETWORK = ("arch", "levels", "depth", "width", "class_cond")  # fixed on --resume
NOT_SHARED = ("arch", "depth", "width", "norm", "dropout_rate", "sigma", "amp")


# fmt: off
def build_parser() -> Parser:
    parser = make_parser(
        "train_flow.py",
        "Train a normalising flow by maximum likelihood (pip install normflows). Losses are in "
        "bits per dimension; those of a Residual Flow are estimates.",
        check,
        share=[name for name in SHARED if name not in NOT_SHARED],
        defaults={"lr": 1e-3},
        fixed=NETWORK,
    )
    add = parser.add_argument_group("flow").add_argument
    add("--arch", choices=tuple(FLOWS), default="glow",
        help="glow: Kingma and Dhariwal 2018; residual_flow: Chen et al. 2019 "
        "(default: %(default)s)")
    add("--class_cond", action="store_true",
        help="the latents' mean and deviation depend on the class: log p(x|y)")
    add("--levels", type=COUNT, default=3, metavar="L",
        help="scales, of 1/2, 1/4, ... of the image's side (default: %(default)s; Glow)")
    add("--depth", type=COUNT, default=32, metavar="K",
        help="blocks at each scale (default: %(default)s; Glow)")
    add("--width", type=COUNT, default=512, metavar="CHANNELS",
        help="channels within a block's network (default: %(default)s; Glow)")
    parser.set_defaults(norm="none", sigma=0.0)  # settings that every run records
    return parser


# fmt: on
def check(s: Namespace) -> None:
    """Check flags against each other, and set `method`. Raises UsageError."""
    check_dataset(s.dataset)
    check_id(s.id)
    s.method = s.arch.replace("_", "-") + "-class" * s.class_cond
    if s.image_size % 2**s.levels:
        raise UsageError(
            f"--levels {s.levels} halves images of {s.image_size} pixels too often: 2^levels must "
            "divide --image_size"
        )
    if find_spec("normflows") is None:
        raise UsageError(f"--arch {s.arch} needs normflows: pip install normflows")


if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    COMMAND_LINE = parse(sys.argv[1:], build_parser, files=True)

import torch
from torch import Tensor

import data
from baselines.run import Objective, Program, main
from losses import Metrics
from models import Flow
from runs.cli import fits


class Likelihood(Objective):
    """-log p(x|y), or -log p(x) of a flow without classes, in bits per dimension."""

    terms = ("bits",)

    def __init__(self, s: Namespace) -> None:
        super().__init__()
        self.class_cond = s.class_cond

    def forward(
        self, model: Flow, images: Tensor, labels: Tensor, epoch: int
    ) -> tuple[Tensor, Metrics]:
        logits = model.logits(images)  # log p(x, y), or log p(x)
        if not self.class_cond:
            bits = model.bits(logits.mean())
            return bits, {"bits/loss": bits}
        log_p = logits.gather(1, labels[:, None]).mean() + math.log(model.num_classes)
        bits, correct = model.bits(log_p), logits.argmax(1) == labels
        return bits, {"bits/loss": bits, "accuracy": correct.float().mean()}


class MirroredBatches(data.TrainingBatches):
    """Labelled batches; where the data set allows it, images are mirrored with p = 1/2."""

    def _images(self, index: Tensor, augmented: bool) -> Tensor:
        images = data.to_float(self.train.images[index])
        mirrored = torch.rand(len(index), 1, 1, 1, device=index.device) < 0.5
        return torch.where(mirrored, images.flip(3), images) if self.flip else images


def build_flow(s: Namespace, num_classes: int, device: torch.device) -> Flow:
    settings = {name: getattr(s, name) for name in (*NETWORK, "image_size")}
    with fits(f"--depth {s.depth} --width {s.width}"):
        return Flow(**settings, num_classes=num_classes).to(device)


PROGRAM = Program(
    build_parser,
    lambda s, model: Likelihood(s),
    MirroredBatches,
    model=build_flow,
    initialise=Flow.initialise,
)

if __name__ == "__main__":
    sys.exit(main(PROGRAM, *COMMAND_LINE))
