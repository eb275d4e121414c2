"""The flags of eval_wrn_ebm.py: declared once, checked before any work starts.

Names and defaults are those of the JEM and HDGE code. Nothing heavy is imported here, so that
`--help` and a mistaken flag are answered at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from runs.cli import (
    COUNT,
    DEPTH,
    IMAGE_SIDE,
    POSITIVE,
    TEMPERATURE,
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
from runs.names import NORMS, STARTS

EVALUATIONS = (
    *("test_clf", "eval_ece", "OOD", "logp_hist", "uncond_samples", "cond_samples"),
    *("fid", "attack"),
)
# Numbers of one version can be compared: raise a question's with every change of what it computes
# (docs/protocol.md), but not of the random numbers that it is computed with.
PROTOCOL = {**dict.fromkeys(EVALUATIONS, 1), "attack": 2}
SAMPLES = ("uncond_samples", "cond_samples")
ONE_MODEL = (*SAMPLES, "fid")  # evaluations whose files belong to one checkpoint
CLASSIFIED = ("test_clf", "eval_ece", "OOD", "logp_hist")  # by batches of a set, with noise
SCORED = ("OOD", "logp_hist")
# The evaluations that a flag belongs to; a flag not named here belongs to all.
BELONGS = {
    **dict.fromkeys(("score_fn", "ood_dataset", "knn_k", "contrast_t", "contrast_score"), SCORED),
    "dataset": (*CLASSIFIED, *SAMPLES, "fid", "attack"),
    "max_images": (*CLASSIFIED, "fid", "attack"),
    "datasets": ("logp_hist",),
    "sigma": (*CLASSIFIED, "attack"),
    "n_steps": (*CLASSIFIED, *SAMPLES, "fid"),
    "sgld_batch_size": (*SAMPLES, "fid"),
    **dict.fromkeys(("n_sample_steps", "print_every", "fresh_samples"), SAMPLES),
    **dict.fromkeys(("buffer_size", "reinit_freq"), SAMPLES),
    "chain_start": (*SAMPLES, "fid"),
    **dict.fromkeys(("sampling", "n_samples", "chain_lengths", "reference"), ("fid",)),
    **dict.fromkeys(("fid_features", "inception_weights"), ("fid",)),
    "fid_model": ("cond_samples", "fid"),
    **dict.fromkeys(("attack", "distance", "eps", "n_steps_pgd_attack"), ("attack",)),
    **dict.fromkeys(("random_init", "n_restarts", "n_steps_refine"), ("attack",)),
    **dict.fromkeys(("n_dup_chains", "refine_sigma", "refine_gradient"), ("attack",)),
}
SCORES = ("px", "py", "pxy", "pxgrad", "pxsim", "knn", "entropy", "px_logits")
CHAIN = ("sgld_lr", "sgld_std", "sgld_grad_clip", "sgld_clamp")
FROM_STARTS = ("fresh", "class")  # what --sampling runs new chains for
NETWORK = ("arch", "depth", "width", "norm", "uncond", "image_size", "contrast_k")


def sample_steps(text: str) -> int:
    if text.startswith("{"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is the README's placeholder: give a number, such as 1000"
        )
    return int(COUNT(text))


def radius(text: str) -> float:
    """A radius in pixels of [0, 1]: .03 or 8/255."""
    top, _, bottom = text.partition("/")
    try:
        value = float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no radius: give numbers such as 0 .03 8/255, pixels being in [0, 1]"
        ) from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is out of range: give 0 or more")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="eval_wrn_ebm.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Ask a trained model one question; the answer is <log_dir>/<eval>.json.\n"
            "\n"
            "  test_clf        accuracy, top-5 accuracy, negative log-likelihood\n"
            "  eval_ece        calibration: ECE, reliability diagram, Brier score, temperature\n"
            "  OOD             AUROC, FPR at 95 % TPR and AUPR against other data sets\n"
            "  logp_hist       histograms of a score over several data sets (HDGE Figure 1)\n"
            "  uncond_samples  SGLD samples of q(x)\n"
            "  cond_samples    SGLD samples of q(x|y), one class a row\n"
            "  fid             Frechet distance and Inception Score of samples\n"
            "  attack          accuracy under adversarial attack, over radii (HDGE Figure 4)\n\n"
            "Settings of the network and of SGLD come from the checkpoint; flags given here win."
        ),
    )
    for add in (add_question, add_data, add_scores, add_chains, add_fid, add_attack, add_network):
        add(parser)
    add_machine(parser)
    return parser


# fmt: off
# One flag a paragraph reads better than one keyword a line.
def add_question(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("question").add_argument
    add("--load_path", nargs="+", required=True, metavar="FILE",
        help="checkpoint of this project, of JEM or of HDGE; several for test_clf, eval_ece, OOD, "
        "logp_hist and attack, which then show them side by side (JEM)")
    add("--labels", nargs="+", default=None, metavar="NAME",
        help="names of the checkpoints in tables and pictures, in the same order "
        "(default: the names of their folders; ours)")
    add("--eval", required=True, choices=EVALUATIONS, metavar="QUESTION",
        help="one of " + ", ".join(EVALUATIONS) + " (JEM)")
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
    add("--data_root", metavar="FOLDER", default=os.environ.get("HDGE_DATA_ROOT", "./datasets"),
        help="where <name>.npz or torchvision's files are "
        "(default: $HDGE_DATA_ROOT, else ./datasets; JEM)")
    add("--sigma", type=WEIGHT, default=0.03, metavar="STD",
        help="standard deviation of the Gaussian noise on every image, pixels being in [-1, 1]; "
        "attack takes none (default: %(default)s, the papers' protocol; JEM)")


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


def add_fid(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("fid, and reading cond_samples").add_argument
    add("--sampling", choices=(*FROM_STARTS, "buffer", "confident"), default="fresh",
        help="fresh: new chains up log q(x); class: new chains up log q(x, y), classes in turn; "
        "buffer: the checkpoint's replay buffer, as JEM++; confident: the most confident 90 %% "
        "(FID) and 10 %% (IS) of each class of the buffer "
        "against training and test images, as SADA-JEM (default: %(default)s; ours)")
    add("--n_samples", type=COUNT, default=10000, metavar="IMAGES",
        help="fresh chains (default: %(default)s, at most --max_images; the literature's FID takes "
        "50000)")
    add("--chain_lengths", nargs="+", type=WHOLE, default=None, metavar="STEPS",
        help="look at the same chains after these numbers of SGLD steps too, as a curve; it costs "
        "what the longest costs (default: after 0 and --n_steps; ours)")
    add("--reference", default=None, metavar="NAME",
        help="the images to compare with (default: the training split; ours)")
    add("--fid_features", choices=("inception", "model"), default="inception",
        help="inception: the literature's network, through torch-fidelity; model: penultimate "
        "features of --fid_model, comparable only within one such network "
        "(default: %(default)s; ours)")
    add("--fid_model", default=None, metavar="FILE",
        help="checkpoint that gives the features of --fid_features model (default: --load_path), "
        "and that reads class-conditional samples, of cond_samples and of --sampling class "
        "(default: none does; ours)")
    add("--inception_weights", default=None, metavar="FILE",
        help="weights-inception-2015-12-05-6726825d.pth, where it cannot be downloaded (ours)")


def add_attack(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("attack").add_argument
    add("--attack", choices=("pgd", "autoattack"), default="pgd",
        help="projected gradient ascent, or AutoAttack through pyautoattack, of which APGD on "
        "cross-entropy is weak against confident models; its other attacks do not depend on the "
        "logits' scale "
        "(default: %(default)s; ours)")
    add("--distance", choices=("Linf", "L2"), default="Linf",
        help="the norm that bounds the perturbation (default: %(default)s; JEM)")
    add("--eps", nargs="+", type=radius, default=None, metavar="RADIUS",
        help="radii, pixels being in [0, 1], such as 0 2/255 8/255 "
        "(default: 0 to 16/255 by 2/255 for Linf, 0 to 1 by 1/8 for L2; HDGE Figure 4)")
    add("--n_steps_pgd_attack", type=COUNT, default=40, metavar="STEPS",
        help="steps of 2.5 eps / STEPS (default: %(default)s; JEM)")
    add("--random_init", action="store_true",
        help="start the attack from a random point of the ball (JEM)")
    add("--n_restarts", type=COUNT, default=1, metavar="N",
        help="attacks an image, from the second on with a random start "
        "(default: %(default)s; ours)")
    add("--n_steps_refine", type=WHOLE, default=0, metavar="STEPS",
        help="SGLD steps before classifying: JEM-STEPS of the JEM paper "
        "(default: %(default)s; JEM)")
    add("--n_dup_chains", type=COUNT, default=5, metavar="CHAINS",
        help="chains an image whose mean logits classify, with --n_steps_refine "
        "(default: %(default)s; JEM)")
    add("--refine_sigma", type=WEIGHT, default=0.0, metavar="STD",
        help="noise added to each chain's start, pixels being in [-1, 1], with --n_steps_refine; "
        "JEM's code has .03 for Linf and its README 0 for L2 (default: 0; JEM's --sigma)")
    add("--refine_gradient", choices=("full", "identity"), default="full",
        help="the attack's gradient goes through the refinement (second order), or past it, as in "
        "JEM's code (default: %(default)s; ours)")


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
    add("--contrast_score", choices=("algorithm1", "eq13"), default=None,
        help="score of pxsim (default: the run's, else algorithm1; HDGE)")


def add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--batch_size", type=COUNT, default=64, metavar="IMAGES",
        help="images at once; the numbers do not depend on it, except for attacks with random "
        "starts or refinement (default: %(default)s; JEM)")
    add("--device", default="auto", metavar="NAME",
        help="auto (a CUDA GPU if there is one), cpu, cuda or cuda:N (default: %(default)s; ours)")
    add("--amp", choices=("off", "bf16"), default="off",
        help="bf16 convolutions: faster on a GPU, and the scores change in the third digit "
        "(default: %(default)s; ours)")
    add("--seed", type=WHOLE, default=1, metavar="N",
        help="seed of noise, chains, interpolations and attacks (default: %(default)s; HDGE)")
    add("--workers", type=WHOLE, default=4, metavar="N",
        help="accepted for the ancestors' commands and without effect (HDGE)")


# fmt: on
def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, set[str]]:
    """The checked settings, and the names of the flags that the command line gives."""
    parser = build_parser()
    settings = parser.parse_args(argv)
    given = given_flags(build_parser(), argv)
    try:
        check(settings, given)
    except UsageError as error:
        parser.error(str(error))
    return settings, given


def resolve(s: argparse.Namespace) -> None:
    """Defaults that depend on the question."""
    if s.n_steps is None:
        s.n_steps = {"uncond_samples": 40, "cond_samples": 40, "fid": 100}.get(s.eval, 0)
    if s.eval == "attack":
        s.sigma = 0.0
    if s.ood_dataset is None:
        s.ood_dataset = ["all"] if s.eval == "logp_hist" else ["svhn"]


def check(s: argparse.Namespace, given: set[str]) -> None:
    """What no single flag can tell. Raises UsageError, one line with flag, value and remedy."""
    check_given(s, given)
    for path in s.load_path:  # its folder names the model, and has the answer
        check_utf8("--load_path", os.path.abspath(path))
    n = len(s.load_path)
    if n > 1 and s.eval in ONE_MODEL:
        raise UsageError(f"--load_path: {s.eval} takes one checkpoint, not {n}: ask one by one")
    if n > 1 and s.log_dir is None:
        raise UsageError(f"--log_dir is missing: say where the answer of {n} checkpoints goes")
    if s.labels is not None and (len(s.labels) != n or len(set(s.labels)) != n):
        raise UsageError(
            f"--labels {' '.join(s.labels)}: give each of the {n} checkpoints a name of its own"
        )
    if s.eval == "logp_hist":
        if len(s.score_fn) > 1:
            raise UsageError(
                f"--score_fn {' '.join(s.score_fn)}: logp_hist draws one score, give one"
            )
        if s.datasets is not None and len(s.datasets) < 2:
            raise UsageError(
                f"--datasets {s.datasets[0]} leaves nothing to compare with: give two or more"
            )
    if s.eval in (*SAMPLES, "fid") and s.n_steps == 0:
        raise UsageError(f"--n_steps 0 samples nothing: give {s.eval} 1 or more")
    if s.eval == "attack" and "sigma" in given and s.sigma > 0:
        raise UsageError(
            f"--sigma {s.sigma:g} does not go with attack, whose bound is on the image itself: "
            "leave it out"
        )
    if s.distance == "Linf" and s.eps is not None and max(s.eps) > 1:
        raise UsageError(
            f"--eps {max(s.eps):g} is larger than the pixel range [0, 1]: give 8/255 for 8 of 255"
        )
    check_id(s.id)


def check_given(s: argparse.Namespace, given: set[str]) -> None:
    """A flag that belongs to another question is refused: who gives it believes in an effect."""
    for name in sorted(given):
        if s.eval not in BELONGS.get(name, EVALUATIONS):
            asks = ", ".join(BELONGS[name])
            raise UsageError(f"--{name} is for {asks}: leave it out of {s.eval}")
    rules = (
        ("datasets", s.datasets is not None, ("dataset", "ood_dataset")),
        (
            "sampling " + s.sampling,
            s.sampling not in FROM_STARTS,
            ("n_steps", "n_samples", "sgld_batch_size", "chain_lengths", "chain_start"),
        ),
        (
            f"fid_features inception --sampling {s.sampling}",
            s.eval == "fid" and s.fid_features == "inception" and s.sampling != "class",
            ("fid_model",),
        ),
        ("fid_features model", s.fid_features == "model", ("inception_weights",)),
        (
            "n_steps_refine 0",
            s.eval == "attack" and not s.n_steps_refine,
            ("n_dup_chains", "refine_sigma", "refine_gradient", *CHAIN),
        ),
        ("n_steps 0", s.eval in CLASSIFIED and not s.n_steps, CHAIN),
        (
            "attack autoattack",
            s.attack == "autoattack",
            ("n_steps_pgd_attack", "random_init", "n_restarts"),
        ),
    )
    for flag, holds, without in rules:
        idle = [f"--{name}" for name in without if holds and name in given]
        if idle:
            raise UsageError(f"{', '.join(idle)} has no effect with --{flag}: leave it out")
