"""The flags of train_wrn.py: declared once, checked before any work starts.

Names and defaults are those of the JEM and HDGE code. Nothing heavy is imported here, so that
`--help` and a mistaken flag are answered at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runs import terms
from runs.cli import (
    COUNT,
    DECAY,
    DEPTH,
    IMAGE_SIDE,
    OR_OFF,
    POSITIVE,
    TEMPERATURE,
    THREADS,
    WEIGHT,
    WHOLE,
    WIDTH,
    Parser,
    UsageError,
    check_id,
    check_shared,
    check_utf8,
    did_you_mean,
    given_flags,
    number,
    switch,
)
from runs.names import (
    ADAM_BETAS,
    CLASSES,
    CONTRAST_SCORES,
    CONTRAST_STYLES,
    FOLDER,
    IMAGE_SIZE,
    NORMS,
    QUEUE_STARTS,
    STARTS,
    misfit_size,
)
from runs.terms import TERMS
from training import recipe

PROGRAM = "train_wrn.py"
AUTO = "auto"  # of --resume
# What may not change when a run is resumed: the tensors of its checkpoint, or the meaning of its
# position within an epoch, depend on it. Of the weights, only which of them are 0 is fixed.
FIXED_ON_RESUME = (
    *("arch", "depth", "width", "norm", "uncond", "clf_only", "dropout_rate"),
    *("dataset", "image_size", "n_valid", "labels_per_class", "independent_batches"),
    *("augment", "augment_px", "px_batch_size", "chain_start", "bn_chains"),
    *("seed", "start_epoch", "batch_size", "sgld_batch_size"),
    *("contrast_k", "contrast_style", "queue_init"),
    *("buffer_size", "optimizer", "adam_betas", "ema", "load_path", "load_head"),
)


def build_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        usage="train_wrn.py [@RECIPE] [flags]",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Train a WideResNet as a classifier and an energy-based model at once.\n\n"
            "@RECIPE, anywhere on the command line, stands for the flags in\n"
            "scripts/recipes/RECIPE.txt. Flags given beside it win; of several recipes, the last.\n"
            "Right after a flag that takes a value, @x is that value: --id @x names a run.\n\n"
            f"{recipe.listing()}\n"
            "Try --dry_run first: it needs no data and says how long a run will take."
        ),
    )
    groups = (add_data, add_objective, add_contrast, add_sgld, add_network, add_optimisation)
    for add in (*groups, add_records, add_machine):
        add(parser)
    parser.set_defaults(recipe=None)
    return parser


# fmt: off
# One flag a paragraph reads better than one keyword a line.
def add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="cifar10", metavar="NAME",
        help="cifar10, cifar100, svhn, mnist, digits (bundled with scikit-learn, no download) or "
        "folder:PATH with one sub-folder of images a class "
        "(default: %(default)s; JEM; mnist, digits and folders are ours)")
    add("--image_size", type=IMAGE_SIDE, default=IMAGE_SIZE, metavar="PIXELS",
        help="side of the square images that the network sees, a multiple of 4, with --arch "
        "resnet50 of 8; images of another size are resized when they are read "
        "(default: %(default)s; ours)")
    add("--data_root", metavar="FOLDER", default=os.environ.get("HDGE_DATA_ROOT", "./datasets"),
        help="where <name>.npz or torchvision's files are, or are downloaded to "
        "(default: $HDGE_DATA_ROOT, else ./datasets; JEM)")
    add("--n_valid", type=WHOLE, default=None, metavar="IMAGES",
        help="training images held out for choosing the best checkpoint; the split is JEM's, of a "
        "folder by the images' hashes, and the same for every run; 0: none (default: 5000, at most "
        "a tenth of the images; JEM)")
    add("--labels_per_class", type=OR_OFF, default=-1, metavar="IMAGES",
        help="semi-supervised training: use this many labels a class, and all images for "
        "--pxsgld; -1: all labels (default: %(default)s; JEM)")
    add("--augment", choices=("on", "off"), default="on",
        help="crop training images at random from a padded copy and, of CIFAR and folders, flip "
        "them; off for images whose place matters, such as digits of few pixels "
        "(default: %(default)s; ours)")
    add("--sigma", type=WEIGHT, default=0.03, metavar="STD",
        help="standard deviation of the Gaussian noise on every image, in training and evaluation,"
        " pixels being in [-1, 1]; .1 is more stable with SGLD (default: %(default)s; JEM)")
    add("--workers", type=WHOLE, default=4, metavar="N",
        help="accepted for the ancestors' commands and without effect: the images live on the "
        "training device, no worker processes are needed (default: %(default)s; HDGE)")


def add_objective(parser: argparse.ArgumentParser) -> None:
    about = "The weight of each term of the loss; 0: the term is not built."
    add = parser.add_argument_group("objective", about).add_argument
    for term in TERMS.values():
        names = (f"--{term.name}", *term.aliases)
        add(*names, dest=term.name, type=WEIGHT, default=0.0, metavar="W",
            help=f"{term.help} (default: %(default)s; {term.source})")
    add("--smoothing", type=number(float, low=0, high=0.999), default=0.0, metavar="S",
        help="label smoothing of --pyxce and --pxycontrast: 1 - S on the label, S/(C-1) on the "
        "other classes; 0 to .999 (default: %(default)s; HDGE)")
    add("--px_loss", choices=("cd", "bce"), default="cd",
        help="of --pxsgld and --pxysgld: cd: contrastive divergence, log q of samples less that of "
        "data; bce: tell data from samples with log q as the logit, whose gradient is bounded: it "
        "estimates log p(data) - log p(sampler) instead of log q(x), so expect weaker OOD "
        "detection (default: %(default)s; cd JEM, bce DAT)")
    add("--independent_batches", action="store_true",
        help="draw a second batch for the data half of --pxsgld, as JEM does, instead of sharing "
        "the labelled one, which has the same distribution (ours)")
    add("--augment_px", choices=("same", "none"), default="same",
        help="none: the data half of --pxsgld is a second batch that is neither cropped nor "
        "flipped, so that samples need not be (default: %(default)s; none M-JEM, SADA-JEM)")
    add("--px_batch_size", type=COUNT, default=None, metavar="IMAGES",
        help="images of the second batch of --pxsgld; given by itself it asks for such a batch "
        "(default: --batch_size; M-JEM)")


def add_contrast(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("contrastive terms").add_argument
    add("--contrast_k", type=COUNT, default=65536, metavar="K",
        help="slots of the queue = negatives an image (default: %(default)s; HDGE Table 6)")
    add("--contrast_t", type=TEMPERATURE, default=0.1, metavar="T",
        help="temperature, .0001 or more (default: %(default)s; HDGE appendix B)")
    add("--contrast_score", choices=CONTRAST_SCORES, default="algorithm1",
        help="algorithm1: the released code's, where every other class adds exp(0); eq13: the "
        "paper's formula, f(x)[y] itself (default: %(default)s; HDGE Eq. 13)")
    add("--contrast_style", choices=CONTRAST_STYLES, default="queue",
        help="negatives from the queue (HDGE Algorithm 1), or from the batch with gradients "
        "(Algorithm 2; the paper uses --batch_size 2048) (default: %(default)s; HDGE appendix C)")
    add("--contrast_normalize", action=argparse.BooleanOptionalAction, default=True,
        help="divide the logits by their L2 norm in the contrastive terms (default: on; "
        "HDGE Table 5)")
    add("--queue_init", choices=QUEUE_STARTS, default="empty",
        help="empty: only past logits are negatives; random: start full of N(0, 1) noise, as the "
        "HDGE code (default: %(default)s; ours)")


def add_sgld(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("SGLD and replay buffer").add_argument
    add("--n_steps", type=COUNT, default=20, metavar="STEPS",
        help="SGLD steps a training step; more are more stable and cost more "
        "(default: %(default)s; JEM)")
    add("--sgld_batch_size", type=COUNT, default=64, metavar="CHAINS",
        help="chains of --pxsgld a training step (default: %(default)s; HDGE Table 6)")
    add("--sgld_lr", type=POSITIVE, default=1.0, metavar="SIZE",
        help="step size: x <- x + SIZE * d/dx log q(x) + noise (default: %(default)s; JEM)")
    add("--sgld_std", type=WEIGHT, default=0.01, metavar="STD",
        help="standard deviation of the noise of a step (default: %(default)s; JEM)")
    add("--buffer_size", type=COUNT, default=10000, metavar="IMAGES",
        help="images in the replay buffer, a multiple of the classes (default: %(default)s; JEM)")
    add("--reinit_freq", type=number(float, low=0, high=1), default=0.05, metavar="P",
        help="probability that a chain restarts from noise, 0 to 1 (default: %(default)s; JEM)")
    add("--chain_start", choices=STARTS, default="uniform",
        help="where chains begin, and begin anew: uniform noise, a Gaussian fitted to the training "
        "images, or a Gaussian for each class (default: %(default)s; uniform JEM, gaussian M-JEM, "
        "class_gaussian JEM++)")
    add("--sgld_grad_clip", type=POSITIVE, default=None, metavar="MOST",
        help="clamp each pixel's gradient of log q(x) to [-MOST, MOST] before the step "
        "(default: never; JEM++ 1)")
    add("--sgld_clamp", action="store_true",
        help="clamp pixels to [-1, 1], of chains after each step's noise and of training images "
        "after --sigma's, which alone would tell data from chains (JEM++)")
    add("--bn_chains", choices=("jem", "batch", "running", "frozen"), default="jem",
        help="statistics of batch norm for chains and their scoring: jem: the running ones in "
        "chains, the samples' own when they are scored; batch: the samples' own in both (JEM++); "
        "running: the running ones in both; samples never move these; frozen: the running ones in "
        "every pass, data's too, as --load_path has them (DAT) (default: %(default)s)")
    add("--sgld_l2", type=WEIGHT, default=0.0, metavar="W",
        help="weight of an L2 penalty on log q of data and samples within --pxsgld and --pxysgld, "
        "against divergence; JEM's author advises .1 (default: %(default)s; IGEBM)")
    add("--class_cond_p_x_sample", action="store_true",
        help="chains of --pxsgld climb f(x)[y] for random y: better samples, lower accuracy (JEM)")


def add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("network").add_argument
    add("--arch", choices=("wrn", "resnet50"), default="wrn",
        help="WideResNet, or ResNet-50 with a 3x3 stem and its own batch norm, for HDGE's "
        "Table 1 (default: %(default)s)")
    add("--depth", type=DEPTH, default=28, metavar="6N+4",
        help="layers of the WideResNet: 10, 16, 22, 28, ... (default: %(default)s; JEM)")
    add("--width", type=WIDTH, default=10, metavar="TIMES",
        help="width multiplier of the WideResNet (default: %(default)s; JEM)")
    add("--norm", choices=NORMS, default="none",
        help="normalisation; none is what both papers train with SGLD (default: %(default)s; JEM)")
    add("--dropout_rate", type=number(float, low=0, high=0.99), default=0.0, metavar="P",
        help="dropout within the blocks of the WideResNet, 0 to .99 (default: %(default)s; JEM)")
    add("--sync_bn", action="store_true",
        help="under torchrun on GPUs, batch norm takes its statistics from the images of all "
        "processes, not from each one's own (ours)")
    add("--uncond", action="store_true",
        help="log q(x) from a head of its own, e(x), instead of from the logits, which the "
        "contrastive terms still read; log q(x, y) is then e(x) + log q(y|x) (JEM)")
    add("--load_path", default=None, metavar="FILE",
        help="start from this checkpoint's weights, queue and replay buffer (ours, JEM's or "
        "HDGE's), with a fresh optimiser and the settings of this command line (JEM)")
    add("--load_head", choices=("on", "off"), default="on",
        help="off: of --load_path take the network below its heads alone, as for another number of "
        "classes: the heads, the queue and the replay buffer are new (default: %(default)s; ours)")


def add_optimisation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimisation").add_argument
    add("--optimizer", choices=("adam", "sgd"), default="adam",
        help="Adam or SGD (momentum .9) (default: %(default)s; JEM)")
    add("--adam_betas", type=DECAY, nargs=2, default=ADAM_BETAS, metavar=("B1", "B2"),
        help="decay of Adam's means of the gradient and of its square, from 0 to below 1; UvA's "
        "tutorial 8 on energy-based models has 0 .999 (default: .9 .999; JEM)")
    add("--ema", type=DECAY, default=0.0, metavar="DECAY",
        help="average the weights: w_ema <- DECAY w_ema + (1 - DECAY) w after each step; the "
        "accuracies of progress.csv, sample grids and eval_wrn_ebm.py take the average, the chains "
        "of the training the weights themselves; 0: no average; DAT and CLEL have .999 "
        "(default: %(default)s; ours)")
    add("--lr", type=POSITIVE, default=1e-4, metavar="RATE",
        help="learning rate after warm-up (default: %(default)s; JEM)")
    add("--warmup_iters", type=OR_OFF, default=-1, metavar="STEPS",
        help="steps of linear warm-up from 0, counted from the run's first step; -1: none "
        "(default: %(default)s; the README commands of both papers use 1000)")
    add("--decay_epochs", type=WHOLE, nargs="+", default=[160, 180], metavar="EPOCH",
        help="multiply the rate by --decay_rate from these epochs on, counted from 0 "
        "(default: 160 180; JEM's paper: 50 100 of 150)")
    add("--decay_rate", type=POSITIVE, default=0.3, metavar="FACTOR",
        help="factor of each decay (default: %(default)s; JEM)")
    add("--weight_decay", type=WEIGHT, default=0.0, metavar="L2",
        help="L2 penalty on all parameters, coupled (default: %(default)s; JEM)")
    add("--clip_grad", type=WEIGHT, default=0.0, metavar="NORM",
        help="scale the gradient down to this L2 norm where it is larger; 0: never "
        "(default: %(default)s; ours)")
    add("--batch_size", type=COUNT, default=64, metavar="IMAGES",
        help="labelled images a step (default: %(default)s; JEM)")
    add("--n_epochs", type=COUNT, default=200, metavar="EPOCHS",
        help="epochs, of training images / batch_size steps each (default: %(default)s; JEM)")
    add("--start_epoch", type=WHOLE, default=0, metavar="EPOCH",
        help="count epochs, and with them the learning rate's decay, from here: for --load_path "
        "(default: %(default)s; HDGE; --resume needs no help)")
    add("--clf_only", action="store_true",
        help="train the last layer, class_output, alone (JEM)")
    add("--max_restarts", type=WHOLE, default=5, metavar="TIMES",
        help="how often a run that diverges goes back 200 steps or more, with half the learning "
        "rate and new random numbers, and on; then it ends; 0: at once, and no copies of the state "
        "are kept (default: %(default)s; ours)")
    add("--max_steps", type=COUNT, default=None, metavar="STEPS",
        help="end cleanly, with evaluation and checkpoint, after this many steps, counted from the "
        "start of the run; the schedule is that of the full run (default: no limit; ours)")
    add("--max_minutes", type=POSITIVE, default=None, metavar="MINUTES",
        help="the same after this many minutes of this process; the checkpoint is saved then, and "
        "once more after evaluation and pictures (default: no limit; ours)")


def add_records(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("run folder and records").add_argument
    add("--log_dir", "--save_dir", dest="log_dir", default="./save", metavar="FOLDER",
        help="the run folder is <log_dir>/<id> (default: %(default)s; HDGE)")
    add("--id", default=None, metavar="NAME",
        help="name of the run (default: data set, terms, date and time; HDGE)")
    add("--resume", nargs="?", const="", default=None, metavar="RUN_FOLDER",
        help="continue a run from its last checkpoint, exactly: --resume RUN_FOLDER, or --resume "
        "with --log_dir and --id; its settings hold, flags given now win where they may; "
        "--resume auto with --id: continue it if it has a checkpoint, else start it (ours)")
    add("--overwrite", action="store_true", help="replace the run that the run folder holds (ours)")
    add("--eval_every", type=COUNT, default=1, metavar="EPOCHS",
        help="epochs between evaluations on validation and test images (default: %(default)s; JEM)")
    add("--ckpt_every", type=OR_OFF, default=-1, metavar="EPOCHS",
        help="epochs between checkpoints that are kept, ckpt_<epoch>.pt, besides the last and the "
        "best; -1: none (default: %(default)s; HDGE)")
    add("--ckpt_minutes", type=POSITIVE, default=10.0, metavar="MINUTES",
        help="minutes of an epoch after which the last checkpoint is saved within it, too: what a "
        "kill costs at most (default: %(default)g; ours)")
    add("--print_every", type=COUNT, default=100, metavar="STEPS",
        help="steps between two reports: progress bar, log.txt, TensorBoard, and the check for "
        "divergence (default: %(default)s; JEM)")
    add("--log_gradients", type=COUNT, default=None, metavar="STEPS",
        help="every so many steps, measure each term's gradient: norm, and cosine with that "
        "of --pyxce; an epoch's means are in progress.csv; costs a backward pass a term, and "
        "changes no other number (default: never; ours)")
    add("--plot_every", type=COUNT, default=40, metavar="EPOCHS",
        help="epochs between sample grids; the last epoch has one too (default: %(default)s; HDGE)")
    for name, what, source in (
        ("uncond", "chains that climb log q(x)", "JEM"),
        ("cond", "chains that climb f(x)[y], one class a row", "JEM"),
        ("contrast", "chains that climb log q(x|y) as the contrastive term has it", "HDGE"),
    ):
        add(f"--plot_{name}", type=switch, nargs="?", const=True, default=False, metavar="0|1",
            help=f"sample grids of {what}, in samples/ and TensorBoard (default: 0; {source})")


def add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", metavar="NAME",
        help="auto (a CUDA GPU if there is one), cpu, cuda or cuda:N (default: %(default)s; ours)")
    add("--threads", **THREADS)
    add("--seed", type=WHOLE, default=None, metavar="N",
        help="seed of weights, batches, noise, chains (default: drawn, printed, recorded; HDGE)")
    add("--amp", choices=("auto", "bf16", "off"), default="auto",
        help="bf16 autocast of the convolutions; heads, densities, chains and the optimiser stay "
        "float32; auto: on GPUs that have it, off on the CPU (default: %(default)s; ours)")
    add("--compile", choices=("auto", "on", "off"), default="auto",
        help="compile the network with torch.compile, which takes minutes at the start; auto: on "
        "GPUs, where PyTorch can, and not for --dry_run (default: %(default)s; ours)")
    add("--dry_run", action="store_true",
        help="print the settings, parameters, FLOPs, memory and the hours that the run will take, "
        "from a few steps on made-up images, and exit; needs no data (ours)")


# fmt: on
def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, set[str]]:
    """Return the checked settings, and the names of the flags that the command line gives; a
    recipe's flags are not given, and stand before all that are."""
    parser = build_parser()
    words, typed, names = recipe.expand(argv, parser)
    settings = parser.parse_args([*words, *typed])
    settings.recipe = names
    given = given_flags(build_parser(), typed)
    try:
        settings.dataset = whole_name(settings.dataset)
        resolve_auto(settings)
        if settings.resume is None:
            check(settings)
    except UsageError as error:
        parser.source = f"with {recipe.shown(names)}: " if names else ""
        parser.error(str(error))
    return settings, given


def whole_name(dataset: str) -> str:
    """Return a data set's name without aliases; a folder's with its absolute path, so that the run
    finds it from anywhere. Raises UsageError where that is not UTF-8."""
    path = dataset.removeprefix(FOLDER)
    if not dataset.startswith(FOLDER) or not path:
        return {"cifar_100": "cifar100"}.get(dataset, dataset)
    whole = FOLDER + os.path.abspath(os.path.expanduser(path))
    check_utf8("--dataset", whole)
    return whole


def moved(new: str, old: Any) -> bool:
    """Return whether --dataset on --resume may name the new place of the run's folder."""
    return new.startswith(FOLDER) and str(old).startswith(FOLDER)


def resolve_auto(s: argparse.Namespace) -> None:
    """--resume auto: the run that --log_dir and --id name goes on, or starts if it has no
    checkpoint. Raises UsageError without --id."""
    if s.resume != AUTO:
        return
    if not s.id:
        raise UsageError("--resume auto: which run? give --id, and --log_dir if it is not ./save")
    folder = Path(s.log_dir) / s.id
    try:
        found = [(folder / name).exists() for name in ("last_ckpt.pt", "prev_ckpt.pt")]
    except OSError as error:
        raise UsageError(
            f"--log_dir {s.log_dir}, --id {s.id}: {error.strerror}: give others"
        ) from None
    if any(found):
        s.resume = ""
    else:  # what died before its first checkpoint is no loss; a checkpoint of others would be
        s.resume, s.overwrite = None, s.overwrite or not any(folder.glob("*.pt"))


def resume(
    settings: argparse.Namespace,
    given: set[str],
    saved: dict[str, Any],
    build: Callable[[], Parser] = build_parser,
    verify: Callable[[argparse.Namespace], None] | None = None,
    fixed: Sequence[str] = (),
) -> argparse.Namespace:
    """Return the saved run's settings, under the flags that were given now.

    Other programs bring what builds their parser, what checks their settings, and the names of
    their own flags that may not change. Raises UsageError for a flag that would change what the
    checkpoint depends on.
    """
    merged = vars(build().parse_args([])) | saved
    remedy = "leave it out, or start a new run" + " with --load_path" * ("load_path" in settings)
    if getattr(settings, "recipe", None) not in (None, merged.get("recipe")):
        raise UsageError(
            f"{recipe.shown(settings.recipe)} cannot change on --resume (the run has "
            f"{recipe.shown(merged['recipe'])}): {remedy}"
        )
    for name in sorted(given - {"resume", "log_dir", "id", "overwrite"}):
        new, old = getattr(settings, name), merged.get(name)
        if name == "dataset" and moved(new, old):  # restoring compares the images
            merged[name] = new
            continue
        term_changes = name in TERMS and (new == 0) != (old == 0)
        if new != old and (name in (*FIXED_ON_RESUME, *fixed) or term_changes):
            words, had = (" ".join(map(str, v)) if isinstance(v, list) else v for v in (new, old))
            raise UsageError(
                f"--{name} {words} cannot change on --resume (the run has {had}): {remedy}"
            )
        merged[name] = new
    # The limits of an earlier process are not this one's: what --max_steps ended must go on.
    # A recipe that this command line names sets limits of this process, too.
    now = ("max_steps", "max_minutes", "dry_run", "resume")
    merged |= {name: getattr(settings, name) for name in now if name in settings}
    merged["overwrite"] = False
    if merged["norm"] is None:  # the ancestors' runs
        merged["norm"] = "none"
    result = argparse.Namespace(**merged)
    try:
        (verify or check)(result)
    except TypeError as error:  # a number that somebody made a text
        raise UsageError(f"--resume: variant.json cannot be used ({error}): mend it") from None
    return result


def second_batch(s: argparse.Namespace) -> bool:
    """JEM draws images for the data half of --pxsgld apart from the labelled ones."""
    asked = s.augment_px == "none" or s.px_batch_size is not None
    reads = any(term.second_batch for term in terms.used(vars(s)))
    return reads and (asked or s.independent_batches or s.labels_per_class > 0)


def augmented(s: argparse.Namespace) -> tuple[bool, bool]:
    """Return whether the labelled batch, and that of --pxsgld, is cropped and flipped."""
    return s.augment == "on", s.augment == "on" and s.augment_px == "same"


def check(s: argparse.Namespace) -> None:
    """Check flags against each other. Raises UsageError, one line with flag, value and remedy."""
    if max(getattr(s, name) for name in TERMS) <= 0:  # raises TypeError for a text
        every = terms.flags(lambda _: True, join=" and ")
        raise UsageError(
            f"{every} are all 0: give at least one a weight above 0, such as --pyxce 1"
        )
    check_dataset(s.dataset)
    if s.labels_per_class == 0:
        raise UsageError(
            "--labels_per_class 0 trains nothing: give 1 or more, or -1 for all labels"
        )
    if s.load_head == "off" and s.load_path is None:
        raise UsageError("--load_head off has no effect without --load_path: leave it out")
    if s.optimizer == "sgd" and list(s.adam_betas) != ADAM_BETAS:
        betas = " ".join(f"{beta:g}" for beta in s.adam_betas)
        raise UsageError(f"--adam_betas {betas} has no effect with --optimizer sgd: leave it out")
    check_network(s)
    check_chains(s)
    check_processes(s)
    if s.plot_contrast and not any(term.queue for term in terms.used(vars(s))):
        raise UsageError(
            f"--plot_contrast 1 needs a contrastive term: give {terms.flags(lambda t: t.queue)} a "
            "weight above 0, or leave --plot_contrast out"
        )
    if s.start_epoch >= s.n_epochs:
        raise UsageError(
            f"--start_epoch {s.start_epoch} leaves nothing to do: it must be below "
            f"--n_epochs {s.n_epochs}"
        )
    check_id(s.id)


def check_dataset(name: str) -> None:
    if name not in CLASSES and not name.startswith(FOLDER):
        known = ", ".join(CLASSES)
        near = did_you_mean(name, CLASSES)
        raise UsageError(f"--dataset {name} is unknown: {near}use {known} or folder:PATH")


def check_network(s: argparse.Namespace) -> None:
    if s.arch == "wrn" and (s.depth < 10 or (s.depth - 4) % 6):
        near = max(10, 4 + 6 * round((s.depth - 4) / 6))
        raise UsageError(f"--depth {s.depth} is not 6n + 4 with n >= 1: use {near}, for example")
    if found := misfit_size(s.image_size, s.arch):
        raise UsageError(f"--{found}")
    if s.arch == "resnet50" and s.norm != "none":
        raise UsageError(
            f"--norm {s.norm} does not go with --arch resnet50, which has batch norm of its own: "
            "leave --norm out"
        )
    if s.arch == "resnet50" and s.dropout_rate > 0:
        raise UsageError(
            f"--dropout_rate {s.dropout_rate} does not go with --arch resnet50, which has none: "
            "leave it out"
        )
    head_alone = all(term.heads == ("energy",) for term in terms.used(vars(s)))
    if getattr(s, "uncond", False) and s.clf_only and head_alone:
        raise UsageError(
            "--clf_only trains class_output, which --pxsgld with --uncond does not move: give "
            "--pyxce a weight above 0, or leave one of them out"
        )


def check_chains(s: argparse.Namespace) -> None:
    """More chains than slots, a buffer that the classes do not share equally, or a setting of the
    SGLD terms that nothing would read."""
    idle, used = [], terms.used(vars(s))
    if not any(term.second_batch for term in used):
        needs = terms.flags(lambda term: term.second_batch)
        idle += [(needs, "augment_px", "same"), (needs, "px_batch_size", None)]
    if not terms.has_chains(vars(s)):
        needs = terms.flags(lambda term: term.chains)
        idle += [(needs, "px_loss", "cd"), (needs, "chain_start", "uniform")]
        idle += [(needs, "bn_chains", "jem")]
    for needs, name, default in idle:
        if getattr(s, name) != default:
            raise UsageError(
                f"--{name} {getattr(s, name)} has no effect without {needs}: give it a weight "
                f"above 0, or leave --{name} out"
            )
    if s.bn_chains != "jem" and s.norm != "batch" and s.arch != "resnet50":
        raise UsageError(
            f"--bn_chains {s.bn_chains} is about batch norm, --norm {s.norm} has none: leave it "
            "out, or give --norm batch"
        )
    if s.bn_chains == "frozen" and s.load_path is None:
        raise UsageError(
            "--bn_chains frozen needs statistics to begin with: give --load_path, or take "
            "--bn_chains batch"
        )
    classes = CLASSES.get(s.dataset)
    if classes is None:
        return  # the classes of a folder are known once it is read: see check_classes
    check_classes(s, classes)


def check_processes(s: argparse.Namespace) -> None:
    """Refuse batch flags that the processes cannot share equally."""
    sizes = ["batch_size", *(term.chains for term in terms.used(vars(s)) if term.chains)]
    if s.px_batch_size is not None:
        sizes.append("px_batch_size")
    for name in dict.fromkeys(sizes):
        check_shared(f"--{name}", getattr(s, name))
    if s.sync_bn and s.norm != "batch" and s.arch != "resnet50":
        raise UsageError(f"--sync_bn needs batch norm: --norm {s.norm} has none: leave it out")


def check_classes(s: argparse.Namespace, classes: int) -> None:
    with_chains = [term for term in terms.used(vars(s)) if term.chains]
    if not with_chains:
        return
    if s.buffer_size % classes:
        near = max(classes, round(s.buffer_size / classes) * classes)
        raise UsageError(
            f"--buffer_size {s.buffer_size} is not divisible by the {classes} classes of "
            f"{s.dataset}: use {near}, for example"
        )
    check_shared(
        "--buffer_size", s.buffer_size, classes, f" times the {classes} classes of {s.dataset}"
    )
    for term in with_chains:
        anywhere = term.name == "pxsgld" and not s.class_cond_p_x_sample
        slots = s.buffer_size if anywhere else s.buffer_size // classes
        flag, chains = f"--{term.chains}", getattr(s, str(term.chains))
        if chains > slots:
            need = chains * classes if slots < s.buffer_size else -(-chains // classes) * classes
            raise UsageError(
                f"{flag} {chains} is more chains than the {slots} slots that they may start from: "
                f"use {slots} at most, or --buffer_size {need}"
            )
