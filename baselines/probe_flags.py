"""The flags of linear_probe.py. Nothing heavy is imported here."""

from __future__ import annotations

import os
from argparse import Namespace

from baselines.flags import make_parser
from runs.cli import COUNT, WEIGHT, WHOLE, Parser, UsageError, check_id, check_utf8
from runs.names import CLASSES, NORMS


# fmt: off
def build_parser() -> Parser:
    parser = make_parser(
        "linear_probe.py",
        "Fit a class head to the frozen features of a trained network, by logistic regression, "
        "and write it as a run folder that eval_wrn_ebm.py reads.",
        share=("data_root", "log_dir", "overwrite", "device"),
    )
    add = parser.add_argument_group("linear probe").add_argument
    add("--load_path", required=True, metavar="FILE",
        help="the checkpoint whose features are used: ours, JEM's or HDGE's")
    add("--id", default=None, metavar="NAME",
        help="name of the new run (default: the checkpoint's folder and '-probe')")
    add("--dataset", default=None, metavar="NAME",
        help="what the head is trained on; it may differ from the network's "
        "(default: the network's)")
    add("--n_valid", type=WHOLE, default=None, metavar="IMAGES",
        help="training images held out to choose --l2 (default: the run's, so that none of them "
        "was trained on; else 5000, at most a tenth of the images)")
    add("--sigma", type=WEIGHT, default=None, metavar="STD",
        help="standard deviation of the noise on every image (default: the run's, else .03)")
    add("--augmented", type=WHOLE, default=0, metavar="COPIES",
        help="train on the features of this many random crops of every image, mirrored; 0: of the "
        "images as they are (default: %(default)s)")
    add("--l2", type=WEIGHT, nargs="+", default=[1e-5, 1e-4, 1e-3, 1e-2], metavar="W",
        help="penalty l2/2 ||W||^2 beside the mean cross-entropy, on standardised features; of "
        "several the one with the best validation accuracy is taken (default: 1e-5 to 1e-2)")
    add("--max_iter", type=COUNT, default=200, metavar="STEPS",
        help="L-BFGS iterations for each --l2 (default: %(default)s)")
    add("--norm", choices=NORMS, default=None,
        help="normalisation of the network, where the checkpoint does not tell")
    return parser


# fmt: on
def check(s: Namespace) -> None:
    """Raises UsageError."""
    s.dataset = s.dataset or None
    if s.dataset and s.dataset not in CLASSES and not s.dataset.startswith("folder:"):
        known = ", ".join(CLASSES)
        raise UsageError(f"--dataset {s.dataset} is unknown: use {known} or folder:PATH")
    check_id(s.id)
    check_utf8("--load_path", os.path.abspath(s.load_path))  # its folder names the probe
