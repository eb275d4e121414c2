#!/usr/bin/env python3
"""Adversarial training: cross-entropy on images that an attack on the current weights perturbs.

    python baselines/train_adversarial.py --dataset cifar10 --distance Linf --norm batch --id at
    python eval_wrn_ebm.py --load_path save/at/last_ckpt.pt --eval attack

    min over weights  E  max over ||d|| <= eps  -log q(y | x + d)

Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), Eq. 2.1: each
step attacks its batch by projected gradient ascent on the loss, and then takes a training step on
the attacked images.
"""

import sys
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the packages are not installed

from baselines.flags import check_shared, make_parser, parse
from evaluation.questions.attack import radius
from runs.cli import COUNT, Parser, UsageError

DEFAULT_EPS = {"Linf": 8 / 255, "L2": 0.5}
# Flags that may not change on --resume: all steps of a run use the same attack.
FIXED = ("distance", "eps", "n_steps_pgd_attack", "attack_step", "random_init")


# fmt: off
# One flag a paragraph reads better than one keyword a line.
def build_parser() -> Parser:
    parser = make_parser(
        "train_adversarial.py",
        "Adversarial training (Madry et al., 2018): each step attacks its images by projected "
        "gradient ascent, the network in evaluation mode, and then takes cross-entropy on them. "
        "train_acc is on the attacked images, valid_acc and test_acc are on clean ones.",
        check,
        defaults={"sigma": 0.0},
        fixed=FIXED,
    )
    add = parser.add_argument_group("attack").add_argument
    add("--distance", choices=tuple(DEFAULT_EPS), default="Linf",
        help="the norm that bounds the perturbation (default: %(default)s)")
    add("--eps", type=radius, default=None, metavar="RADIUS",
        help="its bound, pixels being in [0, 1]; 0 trains on clean images "
        "(default: 8/255 for Linf, .5 for L2)")
    add("--n_steps_pgd_attack", type=COUNT, default=7, metavar="STEPS",
        help="steps of the attack: training costs about STEPS + 1 times as much as without "
        "(default: %(default)s; Madry et al.)")
    add("--attack_step", type=radius, default=None, metavar="SIZE",
        help="size of a step, pixels being in [0, 1] (default: 2.5 eps / STEPS; Madry et al. take "
        "2/255 with 7 steps and 8/255)")
    add("--random_init", action=BooleanOptionalAction, default=True,
        help="start the attack from a random point of the ball (default: on; Madry et al.)")
    return parser


# fmt: on
def check(s: Namespace) -> None:
    """Check flags against each other, and set those that depend on others. Raises UsageError."""
    check_shared(s)
    s.method = f"adversarial-{s.distance}"
    if s.eps is None:
        s.eps = DEFAULT_EPS[s.distance]
    # The largest distance between two images with pixels in [0, 1].
    largest = 1.0 if s.distance == "Linf" else (3 * s.image_size**2) ** 0.5
    if s.eps > largest:
        raise UsageError(
            f"--eps {s.eps:g} with --distance {s.distance} reaches every image, pixels being in "
            f"[0, 1]: use {'8/255' if s.distance == 'Linf' else '.5'}, for example"
        )
    if s.attack_step is None:
        s.attack_step = 2.5 * s.eps / s.n_steps_pgd_attack
    if s.attack_step == 0 and s.eps > 0:
        raise UsageError("--attack_step 0 attacks nothing: use 2/255, for example, or leave it out")


if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    COMMAND_LINE = parse(sys.argv[1:], build_parser, files=True)

import torch.nn.functional as F
from torch import Tensor

from baselines.run import Objective, Program, main
from evaluation.robustness import PGD
from losses import Metrics
from models import EnergyClassifier, sampling_mode


class Adversarial(Objective):
    """Mean cross-entropy on the images of `attack`, model in train mode.

    The attack perturbs x01 = (x + 1) / 2, clipped to [0, 1] since --sigma may add noise: radii are
    in pixels of [0, 1], as in evaluation.robustness. Its random starts come from the global
    generator, whose state is in the checkpoint.
    """

    terms = ("pyxce",)

    def __init__(self, s: Namespace) -> None:
        super().__init__()
        self.eps = s.eps
        self.pgd = PGD(s.distance, s.n_steps_pgd_attack, s.attack_step, s.random_init)

    def attack(self, model: EnergyClassifier, images: Tensor, labels: Tensor) -> Tensor:
        """Return images in [-1, 1] within eps of `images`, by `PGD` on the model in eval mode.

        The model's mode and gradients do not change. The host does not wait for the device.
        """
        with sampling_mode(model):
            x01 = ((images + 1) / 2).clamp(0, 1)
            attacked = self.pgd(lambda x: model.logits(2 * x - 1), x01, labels, eps=self.eps)
        return 2 * attacked - 1

    def forward(
        self, model: EnergyClassifier, images: Tensor, labels: Tensor, epoch: int
    ) -> tuple[Tensor, Metrics]:
        logits = model.logits(self.attack(model, images, labels))
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return loss, {"pyxce/loss": loss, "accuracy": accuracy}


PROGRAM = Program(build_parser, lambda s, model: Adversarial(s))

if __name__ == "__main__":
    sys.exit(main(PROGRAM, *COMMAND_LINE))
