"""The flags of train_contrastive.py. Nothing heavy is imported here."""

from __future__ import annotations

from argparse import Namespace

from baselines.flags import SHARED, check_shared, make_parser
from runs.cli import COUNT, TEMPERATURE, WEIGHT, WHOLE, Parser, UsageError, number

METHODS = ("supcon", "simclr", "jointloss")
FIXED = ("method", "pretrain_epochs", "projection")  # on --resume, besides the shared ones
TEMPERATURES = {"supcon": 0.1, "simclr": 0.5, "jointloss": 0.5}


# fmt: off
def build_parser() -> Parser:
    parser = make_parser(
        "train_contrastive.py",
        "Train a network on pairs of random views. supcon and simclr train its features alone: "
        "linear_probe.py gives them a classifier afterwards. Each differs from its paper in the "
        "network, in the noise --sigma, in the schedule (steps instead of a cosine) and in the "
        "fixed order of the colour changes.",
        share=[name for name in SHARED if name != "optimizer"],
    )
    add = parser.add_argument_group("contrastive learning").add_argument
    add("--method", choices=METHODS, default="supcon",
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
    """Also fills in the defaults that depend on --method. Raises UsageError."""
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
