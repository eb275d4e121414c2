"""The flags of eval_wrn_ebm.py: declared once, checked before any work starts.

Names and defaults are those of the JEM and HDGE code. Nothing heavy is imported here, so that
`--help` and a mistaken flag are answered at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from evaluation.questions import QUESTIONS
from runs.cli import (
    COUNT,
    DEPTH,
    IMAGE_SIDE,
    POSITIVE,
    TEMPERATURE,
    THREADS,
    WEIGHT,
    WHOLE,
    WIDTH,
    Parser,
    UsageError,
    check_id,
    check_utf8,
    given_flags,
    number,
)
from runs.names import CONTRAST_SCORES, NORMS, SCORES, STARTS, data_root

# Flags that not every question takes, and the questions that take them.
BELONGS = {
    flag: [name for name, question in QUESTIONS.items() if flag in question.takes]
    for flag in dict.fromkeys(flag for question in QUESTIONS.values() for flag in question.takes)
}
DEFAULTS = {"n_steps": 0, "sigma": 0.03, "ood_dataset": ["svhn"]}  # unless a question has others


def sample_steps(text: str) -> int:
    if text.startswith("{"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is the README's placeholder: give a number, such as 1000"
        )
    return int(COUNT(text))


def build_parser() -> argparse.ArgumentParser:
    summaries = "".join(f"  {q.name:14}  {q.summary}\n" for q in QUESTIONS.values())
    parser = Parser(
        prog="eval_wrn_ebm.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Ask a trained model one question; the answer is <log_dir>/<eval>.json.\n\n"
            f"{summaries}"
            "\nSettings of the network and of SGLD come from the checkpoint; flags given here win."
        ),
    )
    for add in (add_question, add_data, add_scores, add_chains):
        add(parser)
    for question in QUESTIONS.values():
        question.add_flags(parser)
    add_network(parser)
    add_machine(parser)
    return parser


# fmt: off
# One flag a paragraph reads better than one keyword a line.
def add_question(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("question").add_argument
    add("--load_path", nargs="+", required=True, metavar="FILE",
        help="checkpoint of this project, of JEM or of HDGE, or a run's folder, which stands for "
        "its best_valid_ckpt.pt, else last_ckpt.pt; several for test_clf, eval_ece, OOD, "
        "logp_hist and attack, which then show them side by side (JEM)")
    add("--labels", nargs="+", default=None, metavar="NAME",
        help="names of the checkpoints in tables and pictures, in the same order "
        "(default: the names of their folders; ours)")
    add("--eval", required=True, choices=tuple(QUESTIONS), metavar="QUESTION",
        help="one of " + ", ".join(QUESTIONS) + " (JEM)")
    add("--weights", choices=("ema", "raw"), default=None,
        help="of a run with --ema: the averaged weights, or those it trained with "
        "(default: ema where there is one; ours)")
    add("--log_dir", "--save_dir", dest="log_dir", default=None, metavar="FOLDER",
        help="where the answer is written (default: eval/ beside the checkpoint; HDGE)")
    add("--id", default=None, metavar="NAME",
        help="a folder within --log_dir (default: none; HDGE)")
    add("--max_images", type=COUNT, default=None, metavar="IMAGES",
        help="look at the first images of every split only, for a quick answer; a score's bank of "
        "training images and FID's reference too (default: all; ours)")


def add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default=None, metavar="NAME",
        help="the split that is asked about: cifar10, cifar100, svhn, mnist, digits or "
        "folder:PATH, with _train, _valid or _test at the name's end; a bare name is the test "
        "split; cifar_test, cifar100test and the like are understood "
        "(default: the test split of what the model was trained on; JEM)")
    add("--datasets", nargs="+", default=None, metavar="NAME",
        help="logp_hist: the in-distribution set, in green, then the others, in red "
        "(default: the test split and --ood_dataset all; JEM)")
    add("--data_root", metavar="FOLDER", default=data_root(),
        help="where <name>.npz or torchvision's files are "
        "(default: $HDGE_DATA_ROOT, else ./datasets; JEM)")
    add("--sigma", type=WEIGHT, default=None, metavar="STD",
        help="standard deviation of the Gaussian noise on every image, pixels being in [-1, 1]; "
        "attack takes none (default: 0.03, the papers' protocol; JEM)")


def add_scores(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("OOD and logp_hist").add_argument
    add("--score_fn", nargs="+", choices=SCORES, default=["px"], metavar="SCORE",
        help="px: log q(x); py: max q(y|x); pxy: max log q(x, y); pxgrad: -log |d log q(x)/dx|; "
        "pxsim: the contrastive log q(x|y) of the predicted class; knn: distance to the k-th "
        "nearest training image's features; entropy: minus that of q(y|x); px_logits: logsumexp "
        "f(x), with --uncond too. Several are taken in one pass "
        "(default: px; JEM, HDGE; knn, entropy and px_logits are ours)")
    add("--ood_dataset", nargs="+", default=None, metavar="NAME",
        help="one or several of svhn, cifar10interp, interp, cifar10, cifar100, celeba, textures, "
        "mnist, faces, uniform, gaussian, photos, folder:PATH, any <name>.npz of --data_root; all: "
        "the paper's four less the model's own (default: svhn; for logp_hist all; JEM)")
    add("--knn_k", type=COUNT, default=50, metavar="K",
        help="which nearest neighbour knn takes (default: %(default)s; Sun et al. 2022)")


def add_chains(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("SGLD: samples, fid, and refining images").add_argument
    add("--n_steps", type=WHOLE, default=None, metavar="STEPS",
        help="SGLD steps. test_clf, eval_ece, OOD and logp_hist: to refine the images first "
        "(default: 0); samples take so many a round (default: 40), fid's fresh chains in all "
        "(default: 100) (JEM)")
    add("--n_sample_steps", type=sample_steps, default=100, metavar="ROUNDS",
        help="rounds of sampling: slots of the replay buffer are drawn, moved, and put back "
        "(default: %(default)s; JEM's README advises 1000 at least)")
    add("--print_every", type=COUNT, default=100, metavar="ROUNDS",
        help="rounds between two sample grids (default: %(default)s; JEM)")
    add("--sgld_batch_size", type=COUNT, default=64, metavar="CHAINS",
        help="chains a round (default: %(default)s; JEM)")
    add("--fresh_samples", action="store_true",
        help="start from a new replay buffer instead of the checkpoint's (JEM)")
    add("--buffer_size", type=COUNT, default=10000, metavar="IMAGES",
        help="images of a new replay buffer (default: %(default)s; JEM)")
    add("--reinit_freq", type=number(float, low=0, high=1), default=None, metavar="P",
        help="probability that a chain restarts from noise (default: the run's, else .05; JEM)")
    add("--sgld_lr", type=POSITIVE, default=None, metavar="SIZE",
        help="step size (default: the run's, else 1; JEM)")
    add("--sgld_std", type=WEIGHT, default=None, metavar="STD",
        help="standard deviation of a step's noise (default: the run's, else .01; JEM)")
    add("--sgld_grad_clip", type=POSITIVE, default=None, metavar="MOST",
        help="clamp each pixel's gradient to [-MOST, MOST] (default: the run's, else never; JEM++)")
    add("--sgld_clamp", action=argparse.BooleanOptionalAction, default=None,
        help="clamp the pixels of chains to [-1, 1] after each step (default: the run's; JEM++)")
    add("--chain_start", choices=STARTS, default=None,
        help="where new chains begin: uniform, or the Gaussians that the run was trained with "
        "(default: the run's, else uniform; ours)")


def add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "network", "Read from the checkpoint; a flag must agree with it, and tells what it cannot."
    )
    add = group.add_argument
    add("--arch", choices=("wrn", "resnet50"), default=None, help="architecture")
    add("--depth", type=DEPTH, default=None, metavar="6N+4", help="layers of the WideResNet (JEM)")
    add("--width", type=WIDTH, default=None, metavar="TIMES", help="its width multiplier (JEM)")
    add("--norm", choices=NORMS, default=None, help="normalisation (JEM)")
    add("--uncond", action="store_true", default=None,
        help="log q(x) has a head of its own (JEM)")
    add("--image_size", type=IMAGE_SIDE, default=None, metavar="PIXELS",
        help="side of the images that it was trained on, and is asked about (ours)")
    add("--contrast_k", type=COUNT, default=None, metavar="K", help="slots of the queue (HDGE)")
    add("--contrast_t", type=TEMPERATURE, default=None, metavar="T",
        help="temperature of pxsim (default: the run's, else .1; HDGE)")
    add("--contrast_score", choices=CONTRAST_SCORES, default=None,
        help="score of pxsim (default: the run's, else algorithm1; HDGE)")


def add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--batch_size", type=COUNT, default=64, metavar="IMAGES",
        help="images at once; the numbers do not depend on it, except for attacks with random "
        "starts or refinement (default: %(default)s; JEM)")
    add("--device", default="auto", metavar="NAME",
        help="auto (a CUDA GPU if there is one), cpu, cuda or cuda:N (default: %(default)s; ours)")
    add("--threads", **THREADS)
    add("--amp", choices=("off", "bf16"), default="off",
        help="bf16 convolutions: faster on a GPU, and the scores change in the third digit "
        "(default: %(default)s; ours)")
    add("--seed", type=WHOLE, default=1, metavar="N",
        help="seed of noise, chains, interpolations and attacks (default: %(default)s; HDGE)")
    add("--workers", type=WHOLE, default=4, metavar="N",
        help="accepted for the ancestors' commands and without effect (HDGE)")


# fmt: on
def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, set[str]]:
    """Return the checked settings, and the names of the flags that the command line gives."""
    parser = build_parser()
    settings = parser.parse_args(argv)
    given = given_flags(build_parser(), argv)
    for name, default in {**DEFAULTS, **QUESTIONS[settings.eval].defaults}.items():
        if getattr(settings, name) is None:
            setattr(settings, name, default)
    try:
        check(settings, given)
    except UsageError as error:
        parser.error(str(error))
    return settings, given


def check(s: argparse.Namespace, given: set[str]) -> None:
    """Check flags against each other. Raises UsageError, one line with flag, value and remedy."""
    question = QUESTIONS[s.eval]
    for name in sorted(given & BELONGS.keys()):  # who gives it believes in an effect
        if name not in question.takes:
            asks = ", ".join(BELONGS[name])
            raise UsageError(f"--{name} is for {asks}: leave it out of {s.eval}")
    for flag, without in question.idle(s):
        if idle := [f"--{name}" for name in without if name in given]:
            raise UsageError(f"{', '.join(idle)} has no effect with --{flag}: leave it out")
    for path in s.load_path:  # its folder names the model, and has the answer
        check_utf8("--load_path", os.path.abspath(path))
    n = len(s.load_path)
    if n > 1 and not question.several:
        raise UsageError(f"--load_path: {s.eval} takes one checkpoint, not {n}: ask one by one")
    if n > 1 and s.log_dir is None:
        raise UsageError(f"--log_dir is missing: say where the answer of {n} checkpoints goes")
    if s.labels is not None and (len(s.labels) != n or len(set(s.labels)) != n):
        raise UsageError(
            f"--labels {' '.join(s.labels)}: give each of the {n} checkpoints a name of its own"
        )
    question.check(s)
    check_id(s.id)
