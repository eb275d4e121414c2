#!/usr/bin/env python3
"""Train a network by contrast between random views: SupCon, SimCLR, JointLoss.

    python baselines/train_contrastive.py --method supcon --dataset cifar10 --id supcon
    python baselines/linear_probe.py --load_path save/supcon/last_ckpt.pt

A batch's path: two random views of each uint8 image on the device -> one forward pass of both ->
projection head -> contrastive loss and, in JointLoss's second phase, cross-entropy.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the packages are not installed

from baselines import contrastive_flags as own_flags  # noqa: E402
from baselines import flags  # noqa: E402

if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    COMMAND_LINE = flags.parse(sys.argv[1:], own_flags.build_parser, own_flags.check)

from argparse import Namespace  # noqa: E402

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import data  # noqa: E402
import losses  # noqa: E402
import models  # noqa: E402
from baselines.contrastive_losses import ProjectionHead, nt_xent, supervised_contrastive  # noqa: E402
from baselines.lars import LARS  # noqa: E402
from baselines.run import Batches, Objective, Program, build_optimizer, main  # noqa: E402
from baselines.views import ViewBatches  # noqa: E402


class ContrastiveObjective(Objective):
    """SupCon's, SimCLR's or JointLoss's loss of pairs of views; it owns the projection head.

    Images are (2N, 3, H, W), the first views and then the second; JointLoss's cross-entropy
    reads the logits of both.
    """

    def __init__(
        self,
        method: str,
        features: int,
        *,
        temperature: float,
        projection: int = 128,
        pretrain_epochs: int = 0,
        ntxent_weight: float = 1.0,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.method, self.temperature = method, temperature
        self.pretrain_epochs, self.ntxent_weight = pretrain_epochs, ntxent_weight
        self.head = ProjectionHead(features, projection)
        self.cross_entropy = losses.CrossEntropy(smoothing)
        self.terms = {
            "supcon": ("supcon",),
            "simclr": ("ntxent",),
            "jointloss": ("pyxce", "ntxent"),
        }[method]

    def classifies(self, epoch: int) -> bool:
        return self.method == "jointloss" and epoch >= self.pretrain_epochs

    def forward(
        self, model: models.EnergyClassifier, images: Tensor, labels: Tensor, epoch: int
    ) -> tuple[Tensor, losses.Metrics]:
        features = model.features(images)
        z = self.head(features)
        if self.method == "supcon":
            loss = supervised_contrastive(z, labels, self.temperature)
            return loss, {"supcon/loss": loss}
        contrast = nt_xent(z, self.temperature)
        if not self.classifies(epoch):
            return contrast, {"ntxent/loss": contrast}
        logits = model.logits_from(features)
        step = losses.Step(model, images, labels, features, logits)
        cross_entropy, _ = self.cross_entropy(step)
        accuracy = (logits.argmax(1) == labels).float().mean()
        metrics = {"pyxce/loss": cross_entropy, "ntxent/loss": contrast, "accuracy": accuracy}
        return cross_entropy + self.ntxent_weight * contrast, metrics


def build_objective(s: Namespace, model: models.EnergyClassifier) -> ContrastiveObjective:
    joint = {"pretrain_epochs", "ntxent_weight", "smoothing"} if s.method == "jointloss" else set()
    return ContrastiveObjective(
        s.method,
        model.class_output.in_features,
        temperature=s.temperature,
        projection=s.projection,
        **{name: getattr(s, name) for name in joint},
    )


def view_batches(s: Namespace, dataset: data.DataSet, index: Tensor) -> Batches:
    batches = ViewBatches(dataset.train, index, s.batch_size, s.seed, s.sigma, dataset.flips)
    return Batches(batches, batches.steps_per_epoch)


def with_lars(s: Namespace, model: nn.Module, objective: nn.Module) -> torch.optim.Optimizer:
    if s.optimizer != "lars":
        return build_optimizer(s, model, objective)
    parameters = [*model.parameters(), *objective.parameters()]
    return LARS(parameters, s.lr, weight_decay=s.weight_decay)


PROGRAM = Program(
    "train_contrastive.py",
    own_flags.build_parser,
    own_flags.check,
    method=lambda s: s.method,
    objective=build_objective,
    fixed=own_flags.FIXED,
    batches=view_batches,
    optimizer=with_lars,
)

if __name__ == "__main__":
    sys.exit(main(PROGRAM, *COMMAND_LINE))
