"""The flags of eval_wrn_ebm.py: declared once, checked before any work starts.

Names and defaults are those of the JEM and HDGE code. Nothing heavy is imported here, so that
`--help` and a mistaken flag are answered at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

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
    adder,
    check_id,
    check_utf8,
    given_flags,
    number,
    rank_is_0,
)
from runs.files import check_writable
from runs.names import CONTRAST_SCORES, NORMS, OPENOOD, SCORES, STARTS, STRIDES, data_root
from runs.shared import HUB, check_weights, weights_file

# Flag that not every question takes -> the names of the questions that take it.
FLAG_QUESTIONS = {
    flag: [name for name, question in QUESTIONS.items() if flag in question.takes]
    for flag in dict.fromkeys(flag for question in QUESTIONS.values() for flag in question.takes)
}
DEFAULTS = {"n_steps": 0, "sigma": 0.03, "ood_dataset": ["svhn"]}  # a question's `defaults` win


def build_parser() -> argparse.ArgumentParser:
    summaries = "".join(f"  {q.name:14}  {q.summary}\n" for q in QUESTIONS.values())
    parser = Parser(
        prog="eval_wrn_ebm.py",
        usage="eval_wrn_ebm.py --load_path FILE --eval QUESTION [flags]",
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
    add = adder(parser, "question")
    add("--load_path FILE", None, None, "JEM", "checkpoint of this project, of JEM or of HDGE, or "
        "a run's folder, which stands for its best_valid_ckpt.pt, else last_ckpt.pt; several for "
        "test_clf, eval_ece, OOD, logp_hist and attack, which then show them side by side",
        nargs="+", required=True, shown=None)
    add("--labels NAME", None, None, "ours", "names of the checkpoints in tables and pictures, in "
        "the same order", nargs="+", shown="the names of their folders")
    add("--eval QUESTION", tuple(QUESTIONS), None, "JEM", "one of " + ", ".join(QUESTIONS),
        required=True, shown=None)
    add("--weights", ("ema", "raw"), None, "ours", "of a run with --ema: the averaged weights, or "
        "those it trained with", shown="ema where there is one")
    add("--log_dir --save_dir FOLDER", None, None, "HDGE", "where the answer is written",
        shown="eval/ beside the checkpoint")
    add("--id NAME", None, None, "HDGE", "a folder within --log_dir", shown="none")
    add("--max_images IMAGES", COUNT, None, "ours", "look at the first images of every split only, "
        "for a quick answer; a score's bank of training images and FID's reference too",
        shown="all")


def add_data(parser: argparse.ArgumentParser) -> None:
    add = adder(parser, "data")
    add("--dataset NAME", None, None, "JEM", "the split that is asked about: cifar10, cifar100, "
        "svhn, mnist, digits or folder:PATH, with _train, _valid or _test at the name's end, as in "
        "folder_train:PATH; a bare name is the test split; cifar_test, cifar100test and the like "
        "are understood",
        shown="the test split of what the model was trained on")
    add("--datasets NAME", None, None, "JEM", "logp_hist: the in-distribution set, in green, then "
        "the others, in red", nargs="+", shown="the test split and --ood_dataset all")
    add("--data_root FOLDER", None, data_root(), "JEM", "where <name>.npz or torchvision's files "
        "are", shown="$HDGE_DATA_ROOT, else ./datasets")
    add("--sigma STD", WEIGHT, None, "JEM", "standard deviation of the Gaussian noise on every "
        "image, pixels being in [-1, 1]; attack takes none", shown="0.03, the papers' protocol")


def add_scores(parser: argparse.ArgumentParser) -> None:
    add = adder(parser, "OOD and logp_hist")
    source = "JEM, HDGE; knn, entropy and px_logits are ours"
    add("--score_fn SCORE", tuple(SCORES), ["px"], source, "px: log q(x); py: max q(y|x); "
        "pxy: max log q(x, y); pxgrad: -log |d log q(x)/dx|; pxsim: the contrastive log q(x|y) of "
        "the predicted class; knn: distance to the k-th nearest training image's features; "
        "entropy: minus that of q(y|x); px_logits: logsumexp f(x), with --uncond too. Several are "
        "taken in one pass", nargs="+", shown="px")
    add("--ood_dataset NAME", None, None, "JEM", "one or several of svhn, cifar10interp, interp, "
        "cifar10, cifar100, celeba, textures, mnist, faces, uniform, gaussian, photos, "
        "folder:PATH, any <name>.npz of --data_root; all: the paper's four, with CIFAR-10 "
        "for the model's own; openood: OpenOOD v1.5's protocol, the question openood",
        nargs="+", shown="svhn; for logp_hist all")
    add("--knn_k K", COUNT, 50, "Sun et al. 2022", "which nearest neighbour knn takes")


def add_chains(parser: argparse.ArgumentParser) -> None:
    add = adder(parser, "SGLD: samples, fid, and refining images")
    add("--n_steps STEPS", WHOLE, None, "JEM", "SGLD steps: of test_clf, eval_ece, OOD and "
        "logp_hist to refine the images first (default: 0), of samples in a round (default: 40), "
        "of fid's fresh chains in all (default: 100)", shown=None)
    add("--n_sample_steps ROUNDS", COUNT, 100, "JEM's README advises 1000 at least",
        "rounds of sampling: slots of the replay buffer are drawn, moved, and put back")
    add("--print_every ROUNDS", COUNT, 100, "JEM", "rounds between two sample grids")
    add("--sgld_batch_size CHAINS", COUNT, 64, "JEM", "chains a round")
    add("--fresh_samples", bool, False, "JEM", "start from a new replay buffer instead of the "
        "checkpoint's")
    add("--buffer_size IMAGES", COUNT, 10000, "JEM", "images of a new replay buffer")
    add("--reinit_freq P", number(float, low=0, high=1), None, "JEM", "probability that a chain "
        "restarts from noise", shown="the run's, else .05")
    add("--sgld_lr SIZE", POSITIVE, None, "JEM", "step size", shown="the run's, else 1")
    add("--sgld_std STD", WEIGHT, None, "JEM", "standard deviation of a step's noise",
        shown="the run's, else .01")
    add("--sgld_grad_clip MOST", POSITIVE, None, "JEM++", "clamp each pixel's gradient to [-MOST, "
        "MOST]", shown="the run's, else never")
    add("--sgld_clamp", bool, None, "JEM++", "clamp the pixels of chains to [-1, 1] after each "
        "step", action=argparse.BooleanOptionalAction, shown="the run's")
    add("--guidance W", WEIGHT, None, "Dhariwal 2021", "chains of a class climb log q(x) + W log "
        "q(y|x); 1: log q(x, y), less: more like the data", shown="the run's, else 1")
    add("--chain_start", STARTS, None, "ours", "where new chains begin: uniform, or the Gaussians "
        "that the run was trained with", shown="the run's, else uniform")


def add_network(parser: argparse.ArgumentParser) -> None:
    about = "Read from the checkpoint; flags must agree with it, and add settings that it lacks."
    add = adder(parser, "network", about)
    add("--arch", tuple(STRIDES), None, None, "architecture", shown=None)
    add("--depth 6N+4", DEPTH, None, "JEM", "layers of the WideResNet", shown=None)
    add("--width TIMES", WIDTH, None, "JEM", "its width multiplier", shown=None)
    add("--norm", NORMS, None, "JEM", "normalisation", shown=None)
    add("--uncond", bool, None, "JEM", "log q(x) has a head of its own")
    add("--image_size PIXELS", IMAGE_SIDE, None, "ours", "side of the images that it was trained "
        "on, and is asked about", shown=None)
    add("--contrast_k K", COUNT, None, "HDGE", "slots of the queue", shown=None)
    add("--contrast_t T", TEMPERATURE, None, "HDGE", "temperature of pxsim",
        shown="the run's, else .1")
    add("--contrast_score", CONTRAST_SCORES, None, "HDGE", "score of pxsim",
        shown="the run's, else algorithm1")


def add_machine(parser: argparse.ArgumentParser) -> None:
    add = adder(parser, "machine")
    add("--batch_size IMAGES", COUNT, 64, "JEM", "images at once; the numbers do not depend on it, "
        "except for attacks with random starts or refinement")
    add("--device NAME", None, "auto", "ours", "auto (a CUDA GPU if there is one), cpu, cuda or "
        "cuda:N")
    add("--threads N", THREADS["type"], None, None, THREADS["help"], shown=None)
    add("--amp", ("off", "bf16"), "off", "ours", "bf16 convolutions: faster on a GPU, and the "
        "scores change in the third digit")
    add("--seed N", WHOLE, 1, "HDGE", "seed of noise, chains, interpolations and attacks")
    add("--workers N", WHOLE, 4, "HDGE", "accepted for the ancestors' commands and without effect",
        shown=None)


# fmt: on
def parse(argv: Sequence[str], files: bool = False) -> tuple[argparse.Namespace, set[str]]:
    """Return the checked settings, and the names of the flags that the command line gives.

    files: also refuse a checkpoint that does not exist, and a --log_dir that is not writable.
    """
    parser = build_parser()
    settings = parser.parse_args(argv)
    given = given_flags(build_parser(), argv)
    if settings.eval == "OOD" and settings.ood_dataset == [OPENOOD]:
        settings.eval, settings.ood_dataset = OPENOOD, None
        given.discard("ood_dataset")
    for name, default in {**DEFAULTS, **QUESTIONS[settings.eval].defaults}.items():
        if getattr(settings, name) is None:
            setattr(settings, name, default)
    try:
        check(settings, given)
        if files and rank_is_0():
            for path in settings.load_path:
                check_weights("--load_path", path)
            check_writable("--log_dir", results_folder(settings))
    except UsageError as error:
        parser.error(str(error))
    return settings, given


def results_folder(s: argparse.Namespace) -> Path:
    """Return the folder for the answer. Raises UsageError for hf://... without --log_dir."""
    path = s.load_path[0]
    if not s.log_dir and path.startswith(HUB):
        raise UsageError(f"--load_path {path} has no folder for answers: give --log_dir FOLDER")
    folder = Path(s.log_dir) if s.log_dir else weights_file(path).resolve().parent / "eval"
    return folder / s.id if s.id else folder


def check(s: argparse.Namespace, given: set[str]) -> None:
    """Check flags against each other. Raises UsageError, one line with flag, value and remedy."""
    question = QUESTIONS[s.eval]
    for name in sorted(given & FLAG_QUESTIONS.keys()):  # its user would expect an effect
        if name not in question.takes:
            takers = ", ".join(FLAG_QUESTIONS[name])
            raise UsageError(f"--{name} is for {takers}: leave it out of {s.eval}")
    for flag, idle in question.idle(s):
        if idle_given := [f"--{name}" for name in idle if name in given]:
            raise UsageError(f"{', '.join(idle_given)} has no effect with --{flag}: leave it out")
    if OPENOOD in s.ood_dataset and s.eval != OPENOOD:
        raise UsageError(f"--ood_dataset {OPENOOD} is a protocol: give it alone, and to OOD alone")
    for path in s.load_path:  # its folder's name is the model's label, and in the answer's path
        check_utf8("--load_path", os.path.abspath(path))
    n = len(s.load_path)
    if n > 1 and not question.several:
        raise UsageError(
            f"--load_path: {s.eval} takes one checkpoint, not {n}: evaluate them one by one"
        )
    if n > 1 and not s.log_dir:
        raise UsageError(f"--log_dir is missing: give the folder for the answer of {n} checkpoints")
    if s.labels is not None and (len(s.labels) != n or len(set(s.labels)) != n):
        raise UsageError(
            f"--labels {' '.join(s.labels)}: give each of the {n} checkpoints a name of its own"
        )
    question.check(s)
    check_id(s.id)
