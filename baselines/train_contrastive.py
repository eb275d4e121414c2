#!/usr/bin/env python3
"""Train a network by contrastive learning on random views: SupCon, SimCLR, JointLoss.

    python baselines/train_contrastive.py --method supcon --dataset cifar10 --id supcon
    python baselines/linear_probe.py --load_path save/supcon/last_ckpt.pt

A training step: two random views of each uint8 image, made on the device -> one forward pass of all
views -> projection head -> contrastive loss and, in JointLoss's second phase, cross-entropy.
"""

import sys
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the packages are not installed

from baselines.flags import SHARED, check_shared, make_parser, parse
from runs.cli import COUNT, WEIGHT, WHOLE, Parser, UsageError, number
from training.flags import TEMPERATURE

FIXED = ("method", "pretrain_epochs", "projection")  # on --resume, beside the shared flags
TEMPERATURES = {"supcon": 0.1, "simclr": 0.5, "jointloss": 0.5}  # the default of each --method
TERMS = {"supcon": ("supcon",), "simclr": ("ntxent",), "jointloss": ("pyxce", "ntxent")}


# fmt: off
def build_parser() -> Parser:
    parser = make_parser(
        "train_contrastive.py",
        "Train a network on pairs of random views. supcon and simclr train its features alone: "
        "linear_probe.py gives them a classifier afterwards. Each differs from its paper in the "
        "network, in the noise --sigma, in the schedule (steps instead of a cosine) and in the "
        "fixed order of the colour changes.",
        check,
        share=[name for name in SHARED if name != "optimizer"],
        fixed=FIXED,
    )
    add = parser.add_argument_group("contrastive learning").add_argument
    add("--method", choices=tuple(TEMPERATURES), default="supcon",
        help="supcon: positives are all views of the label (Khosla et al. 2020, L_out); simclr: "
        "the other view, no labels (Chen et al. 2020, NT-Xent); jointloss: simclr for "
        "--pretrain_epochs, then cross-entropy + NT-Xent (Winkens et al. 2020) "
        "(default: %(default)s)")
    add("--temperature", type=TEMPERATURE, default=None, metavar="T",
        help="of the contrastive loss, above 0 (default: .1 for supcon, else .5; their papers)")
    add("--projection", type=COUNT, default=128, metavar="SIZE",
        help="outputs of the projection head, a perceptron of two layers (default: %(default)s)")
    add("--pretrain_epochs", type=WHOLE, default=None, metavar="EPOCHS",
        help="jointloss: this many of --n_epochs come first and have no cross-entropy; one "
        "schedule of the learning rate runs through both (default: half of --n_epochs)")
    add("--ntxent_weight", type=WEIGHT, default=None, metavar="W",
        help="jointloss: weight of NT-Xent beside cross-entropy (default: 1; ours)")
    add("--smoothing", type=number(float, low=0, high=0.999), default=None, metavar="S",
        help="jointloss: label smoothing, 1 - S on the label and S/(C-1) on the other classes, as "
        "in train_wrn.py; usual elsewhere is S/C on all (default: .1; ours)")
    add("--optimizer", choices=("adam", "sgd", "lars"), default="adam",
        help="Adam (betas .9, .999), SGD (momentum .9), or LARS (momentum .9, eta .001, biases and "
        "norms excepted; You et al. 2017), with which Winkens et al. train, at larger rates such "
        "as --lr 1 (default: %(default)s; JEM)")
    return parser


# fmt: on
def check(s: Namespace) -> None:
    """Check flags against each other, and set those that depend on --method. Raises UsageError."""
    check_shared(s)
    if s.temperature is None:
        s.temperature = TEMPERATURES[s.method]
    defaults = {"pretrain_epochs": s.n_epochs // 2, "ntxent_weight": 1.0, "smoothing": 0.1}
    for name, default in defaults.items():
        if s.method == "jointloss" and getattr(s, name) is None:
            setattr(s, name, default)
        elif s.method != "jointloss" and getattr(s, name) is not None:
            raise UsageError(
                f"--{name} {getattr(s, name)} has no effect with --method {s.method}: leave it "
                "out, or use --method jointloss"
            )
    if s.method == "jointloss" and s.pretrain_epochs >= s.n_epochs:
        raise UsageError(
            f"--pretrain_epochs {s.pretrain_epochs} leaves no epoch for cross-entropy: it must be "
            f"below --n_epochs {s.n_epochs}"
        )


if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    COMMAND_LINE = parse(sys.argv[1:], build_parser, files=True)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import losses
import models
from baselines.lars import LARS
from baselines.run import Objective, Program, build_optimizer, main
from baselines.views import ViewBatches


def supervised_contrastive(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return L_out of Khosla et al. 2020 (Eq. 2), averaged over the anchors i.

        loss[i] = -1/|P(i)| sum_{p in P(i)} log(exp(z_i.z_p / T) / sum_{a != i} exp(z_i.z_a / T))

    z: unit vectors (M, d) of all views of a batch; labels (M,), equal for positive pairs; P(i): the
    views p != i with i's label, at least one (such as the second view of i's image); temperature
    T > 0. The loss is a scalar in nats, near log(M - 1) for an untrained network.
    The SupContrast code also multiplies it by T / 0.07, which the paper's formula does not.
    """
    scores = z @ z.T / temperature  # (M, M)
    diagonal = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_sum = scores.masked_fill(diagonal, -torch.inf).logsumexp(1)  # (M,)
    positive = (labels[:, None] == labels) & ~diagonal
    mean_positive = (scores * positive).sum(1) / positive.sum(1)
    return (log_sum - mean_positive).mean()


def nt_xent(z: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent of Chen et al. 2020 (Eq. 1), averaged over all 2N anchors; in nats.

    z: unit vectors (2N, d) of the first views of N images, then of the second views in the same
    order. The positive of a view is the other view of its image; the 2N - 2 views of other images
    are negatives, also those of the same class: no labels are used.
    """
    image = torch.arange(len(z) // 2, device=z.device).repeat(2)
    return supervised_contrastive(z, image, temperature)


class ContrastiveObjective(Objective):
    """The loss of SupCon, SimCLR or JointLoss on pairs of views, with the projection head (Chen et
    al. 2020, section 2.1). Only the contrastive loss reads its output; classifiers read the
    features.

    `forward` takes images (2N, 3, H, W): the first views, then the second views. JointLoss's
    cross-entropy reads the logits of all 2N views.
    """

    def __init__(self, s: Namespace, model: models.EnergyClassifier) -> None:
        super().__init__()
        self.method, self.temperature = s.method, s.temperature
        self.pretrain_epochs, self.ntxent_weight = s.pretrain_epochs, s.ntxent_weight
        width = model.class_output.in_features
        hidden, output = nn.Linear(width, width), nn.Linear(width, s.projection)
        self.head = nn.Sequential(OrderedDict(hidden=hidden, relu=nn.ReLU(), output=output))
        self.cross_entropy = losses.CrossEntropy(s.smoothing or 0.0)
        self.terms = TERMS[s.method]

    def forward(
        self, model: models.EnergyClassifier, images: Tensor, labels: Tensor, epoch: int
    ) -> tuple[Tensor, losses.Metrics]:
        features = model.features(images)
        z = F.normalize(self.head(features), dim=1)
        if self.method == "supcon":
            loss = supervised_contrastive(z, labels, self.temperature)
            return loss, {"supcon/loss": loss}
        contrast = nt_xent(z, self.temperature)
        if self.method == "simclr" or epoch < self.pretrain_epochs:
            return contrast, {"ntxent/loss": contrast}
        logits = model.logits_from(features)
        step = losses.Step(model, images, labels, features, logits)
        cross_entropy, _ = self.cross_entropy(step)
        accuracy = (logits.argmax(1) == labels).float().mean()
        metrics = {"pyxce/loss": cross_entropy, "ntxent/loss": contrast, "accuracy": accuracy}
        return cross_entropy + self.ntxent_weight * contrast, metrics


def make_optimizer(s: Namespace, model: nn.Module, objective: nn.Module) -> torch.optim.Optimizer:
    if s.optimizer != "lars":
        return build_optimizer(s, model, objective)
    parameters = [*model.parameters(), *objective.parameters()]
    return LARS(parameters, s.lr, weight_decay=s.weight_decay)


PROGRAM = Program(build_parser, ContrastiveObjective, ViewBatches, make_optimizer)

if __name__ == "__main__":
    sys.exit(main(PROGRAM, *COMMAND_LINE))
