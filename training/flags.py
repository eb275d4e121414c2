"""Declare the flags of train_wrn.py once, parse them, and check them before any work starts.

Names and defaults are those of the JEM and HDGE code. This module imports nothing slow, so that
`--help` and a mistaken flag are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
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
    Mistake,
    Parser,
    UsageError,
    adder,
    check_id,
    check_shared,
    check_utf8,
    did_you_mean,
    given_flags,
    number,
    rank_is_0,
    switch,
)
from runs.files import check_writable
from runs.folder import (
    LAST,
    PREVIOUS,
    SETTINGS,
    TRAINED_ON,
    RunFolderError,
    check_free,
    read_settings,
)
from runs.names import (
    ADAM_BETAS,
    ALIASES,
    BN_CHAINS,
    CLASSES,
    CONTRAST_SCORES,
    CONTRAST_STYLES,
    FOLDER,
    IMAGE_SIZE,
    NORMS,
    PX_LOSSES,
    QUEUE_STARTS,
    STARTS,
    STRIDES,
    data_root,
    misfit_depth,
    misfit_size,
)
from runs.screen import print_line
from runs.shared import check_weights, weights_file
from runs.terms import TERMS
from training import recipe

PROGRAM = "train_wrn.py"
AUTO = "auto"  # --resume auto
# Flags that may not change on --resume: the tensors of the checkpoint, or the meaning of its
# position within an epoch, depend on them. A term's weight may change, but not from or to 0.
FIXED_ON_RESUME = (
    *("arch", "depth", "width", "norm", "uncond", "clf_only", "dropout_rate"),
    *("dataset", "image_size", "n_valid", "labels_per_class", "independent_batches"),
    *("augment", "augment_px", "px_batch_size", "chain_start", "bn_chains"),
    *("seed", "start_epoch", "batch_size", "sgld_batch_size"),
    *("contrast_k", "contrast_style", "queue_init"),
    *("buffer_size", "optimizer", "adam_betas", "ema", "load_path"),
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
    add_flags(parser)
    parser.fixed, parser.verify, parser.recipes = FIXED_ON_RESUME, check, True
    parser.set_defaults(recipe=None)
    return parser


# fmt: off
# One flag a paragraph reads better than one keyword a line.
def add_flags(parser: Parser) -> None:
    add = adder(parser, "data")
    add("--dataset NAME", None, "cifar10", "JEM; mnist, digits and folders are ours", "cifar10, "
        "cifar100, svhn, mnist, digits (bundled with scikit-learn, no download) or folder:PATH "
        "with one sub-folder of images a class")
    add("--image_size PIXELS", IMAGE_SIDE, IMAGE_SIZE, "ours", "side of the square images that the "
        "network sees, a multiple of 4, with --arch resnet50 of 8; others are resized")
    add("--data_root FOLDER", None, data_root(), "JEM", "where <name>.npz or torchvision's "
        "files are, or are downloaded to",
        shown="$HDGE_DATA_ROOT, else ./datasets")
    add("--n_valid IMAGES", WHOLE, None, "JEM", "training images held out to choose the best "
        "checkpoint, by JEM's split, of a folder by the images' hashes; 0: none",
        shown="5000, at most a tenth of the images")
    add("--labels_per_class IMAGES", OR_OFF, -1, "JEM", "semi-supervised training: use this many "
        "labels a class, and all images for --pxsgld; -1: all labels")
    add("--augment", ("on", "off"), "on", "ours", "crop training images at random and, of CIFAR "
        "and folders, flip them; off where a pixel's place matters, as in small digits")
    add("--sigma STD", WEIGHT, 0.03, "JEM", "standard deviation of the Gaussian noise on every "
        "image, in training and evaluation, pixels being in [-1, 1]; .1 is more stable with SGLD")
    add("--workers N", WHOLE, 4, "HDGE", "accepted for the ancestors' commands and without effect: "
        "the images live on the training device, no worker processes are needed")

    about = "The weight of each term of the loss; 0: the term is not built."
    add = adder(parser, "objective", about)
    for term in TERMS.values():
        names = " ".join((f"--{term.name}", *term.aliases))
        add(f"{names} W", WEIGHT, 0.0, term.source, term.help)
    add("--smoothing S", number(float, low=0, high=0.999), 0.0, "HDGE", "label smoothing of "
        "--pyxce and --pxycontrast: 1 - S on the label, S/(C-1) on the other classes; 0 to .999")
    add("--px_loss", PX_LOSSES, "cd", "cd JEM, bce DAT", "of --pxsgld and --pxysgld: cd: "
        "contrastive divergence; bce: tell data from samples with log q as the logit, whose "
        "gradient is bounded: it estimates log p(data) - log p(sampler), so expect weaker OOD "
        "detection")
    add("--independent_batches", bool, False, "ours", "draw a second batch for the data half of "
        "--pxsgld, as JEM does, instead of sharing the labelled one")
    add("--augment_px", ("same", "none"), "same", "none M-JEM, SADA-JEM", "none: the data half of "
        "--pxsgld is a second batch, neither cropped nor flipped")
    add("--px_batch_size IMAGES", COUNT, None, "M-JEM", "images of the second batch of --pxsgld; "
        "given by itself it asks for such a batch", shown="--batch_size")

    add = adder(parser, "contrastive terms")
    add("--contrast_k K", COUNT, 65536, "HDGE Table 6", "slots of the queue = negatives an image")
    add("--contrast_t T", TEMPERATURE, 0.1, "HDGE appendix B", "temperature, .0001 or more")
    add("--contrast_score", CONTRAST_SCORES, "algorithm1", "HDGE Eq. 13", "algorithm1: as "
        "released, where every other class adds exp(0); eq13: the paper's, f(x)[y] itself")
    add("--contrast_style", CONTRAST_STYLES, "queue", "HDGE appendix C", "negatives from the queue "
        "(Algorithm 1), or from the batch with gradients (Algorithm 2, --batch_size 2048)")
    add("--contrast_normalize", bool, True, "HDGE Table 5", "divide the logits by their L2 norm in "
        "the contrastive terms")
    add("--queue_init", QUEUE_STARTS, "empty", "ours", "empty: only past logits are negatives; "
        "random: start full of N(0, 1) noise, as the HDGE code")

    add = adder(parser, "SGLD and replay buffer")
    add("--n_steps STEPS", COUNT, 20, "JEM", "SGLD steps a training step; more are more stable")
    add("--sgld_batch_size CHAINS", COUNT, 64, "HDGE Table 6", "chains of --pxsgld a training step")
    add("--sgld_lr SIZE", POSITIVE, 1.0, "JEM", "step size: x <- x + SIZE * d/dx log q(x) + noise")
    add("--sgld_std STD", WEIGHT, 0.01, "JEM", "standard deviation of the noise of a step")
    add("--buffer_size IMAGES", COUNT, 10000, "JEM", "slots of the replay buffer, a multiple of "
        "the classes")
    add("--reinit_freq P", number(float, low=0, high=1), 0.05, "JEM", "probability that a chain "
        "restarts at --chain_start, 0 to 1")
    add("--chain_start", STARTS, "uniform", "uniform JEM, gaussian M-JEM, class_gaussian JEM++",
        "where chains begin, and begin anew: uniform noise, a Gaussian fitted to the training "
        "images, or a Gaussian for each class")
    add("--sgld_grad_clip MOST", POSITIVE, None, "JEM++ 1", "clamp each pixel's gradient of log "
        "q(x) to [-MOST, MOST] before the step", shown="never")
    add("--sgld_clamp", bool, False, "JEM++", "clamp pixels to [-1, 1], of chains after each "
        "step's noise and of training images after --sigma's")
    add("--bn_chains", BN_CHAINS, "jem", None, "statistics of batch "
        "norm for chains and their scoring: jem: the running ones in chains, the samples' own when "
        "they are scored; batch: the samples' own in both (JEM++); running: the running ones in "
        "both; samples never move these; frozen: the running ones in every pass, data's too, as "
        "--load_path has them (DAT)")
    add("--guidance W", WEIGHT, 1.0, "Dhariwal 2021", "samples of a class, in pictures and by "
        "default in evaluation, climb log q(x) + W log q(y|x); 1: log q(x, y)")
    add("--sgld_l2 W", WEIGHT, 0.0, "IGEBM", "weight of an L2 penalty on log q of data and samples "
        "within --pxsgld and --pxysgld, against divergence; JEM's author advises .1")
    add("--class_cond_p_x_sample", bool, False, "JEM", "chains of --pxsgld climb f(x)[y] for "
        "random y: better samples, lower accuracy")

    add = adder(parser, "network")
    add("--arch", tuple(STRIDES), "wrn", None, "WideResNet, or ResNet-50 with a 3x3 stem and "
        "its own batch norm, for HDGE's Table 1")
    add("--depth 6N+4", DEPTH, 28, "JEM", "layers of the WideResNet: 10, 16, 22, 28, ...")
    add("--width TIMES", WIDTH, 10, "JEM", "width multiplier of the WideResNet")
    add("--norm", NORMS, "none", "JEM", "normalisation; none is what both papers train with SGLD")
    add("--dropout_rate P", number(float, low=0, high=0.99), 0.0, "JEM", "dropout within the "
        "blocks of the WideResNet, 0 to .99")
    add("--uncond", bool, False, "JEM", "log q(x) from a head of its own, e(x), instead of from "
        "the logits, which the contrastive terms still read; log q(x, y) is then e(x) + log q(y|x)")
    add("--load_path FILE", None, None, "JEM", "start from the weights, queue and replay buffer of "
        "this checkpoint (ours, JEM's or HDGE's; a run's folder stands for its best one), with a "
        "fresh optimiser and the settings of this command line", shown=None)

    add = adder(parser, "optimisation")
    add("--optimizer", ("adam", "sgd"), "adam", "JEM", "Adam or SGD (momentum .9)")
    add("--adam_betas B1 B2", DECAY, ADAM_BETAS, "JEM", "decay of Adam's means of the gradient and "
        "of its square; UvA's tutorial 8 has 0 .999", shown=".9 .999", nargs=2)
    add("--ema DECAY", DECAY, 0.0, "ours", "average the weights: w_ema <- DECAY w_ema + (1 - "
        "DECAY) w after each step; validation and test accuracy, sample grids and "
        "eval_wrn_ebm.py take the average, the chains of the training the weights themselves; 0: "
        "no average; DAT and CLEL have .999")
    add("--lr RATE", POSITIVE, 1e-4, "JEM", "learning rate after warm-up")
    add("--warmup_iters STEPS", OR_OFF, -1, "the README commands of both papers use 1000", "steps "
        "of linear warm-up from 0, counted from the run's first step; -1: none")
    add("--decay_epochs EPOCH", WHOLE, [160, 180], "JEM's paper: 50 100 of 150", "multiply the "
        "rate by --decay_rate from these epochs on, counted from 0", shown="160 180", nargs="+")
    add("--decay_rate FACTOR", POSITIVE, 0.3, "JEM", "factor of each decay")
    add("--weight_decay L2", WEIGHT, 0.0, "JEM", "L2 penalty on all parameters, coupled")
    add("--clip_grad NORM", WEIGHT, 0.0, "ours", "scale the gradient down to this L2 norm where it "
        "is larger; 0: never")
    add("--batch_size IMAGES", COUNT, 64, "JEM", "labelled images a step")
    add("--n_epochs EPOCHS", COUNT, 200, "JEM", "epochs, of images / batch_size steps each")
    add("--start_epoch EPOCH", WHOLE, 0, "HDGE; not for --resume", "count epochs, and with "
        "them the learning rate's decay, from here: for --load_path")
    add("--clf_only", bool, False, "JEM", "train the last layer, class_output, alone")
    add("--max_restarts TIMES", WHOLE, 5, "ours", "how often a diverged run goes back 200 "
        "steps or more and continues, with half the learning rate and new random numbers, before "
        "it ends; 0: it ends at the first divergence, and no copies of the state are kept")
    add("--max_steps STEPS", COUNT, None, "ours", "end, with evaluation and checkpoint, after this "
        "many steps of the run; the schedule is the full run's", shown="no limit")
    add("--max_minutes MINUTES", POSITIVE, None, "ours", "end likewise after this many minutes of "
        "this process; the checkpoint is saved then, and once more after evaluation and pictures",
        shown="no limit")

    add = adder(parser, "run folder and records")
    add("--log_dir --save_dir FOLDER", None, "./save", "HDGE", "the run folder is <log_dir>/<id>")
    add("--id NAME", None, None, "HDGE", "name of the run", shown="data set, terms, date and time")
    add("--resume RUN_FOLDER", None, None, "ours", "continue a run from its last checkpoint, "
        "exactly: --resume RUN_FOLDER, or --resume with --log_dir and --id; its settings hold, "
        "flags given now win where they may; --resume auto with --id: continue it if it has a "
        "checkpoint, else start it", shown=None, nargs="?", const="")
    add("--overwrite", bool, False, "ours", "replace the run that the run folder holds")
    add("--eval_every EPOCHS", COUNT, 1, "JEM", "epochs between evaluations")
    add("--ckpt_every EPOCHS", OR_OFF, -1, "HDGE", "epochs between checkpoints that are kept, "
        "ckpt_<epoch>.pt, besides the last and the best; -1: none")
    add("--ckpt_minutes MINUTES", POSITIVE, 10.0, "ours", "minutes of an epoch after which the "
        "last checkpoint is saved within it, too: what a kill costs at most", shown="%(default)g")
    add("--print_every STEPS", COUNT, 100, "JEM", "steps between two reports: progress bar, "
        "log.txt, TensorBoard, and the check for divergence")
    add("--log_gradients STEPS", COUNT, None, "ours", "every STEPS steps, measure each term's "
        "gradient: norm, and cosine with that of --pyxce; an epoch's means are in progress.csv; "
        "costs a backward pass a term, and changes no other number", shown="never")
    add("--plot_every EPOCHS", COUNT, 40, "HDGE", "epochs between sample grids, and one at the end")
    for name, source, density in (
        ("uncond", "JEM", "log q(x)"),
        ("cond", "JEM", "f(x)[y], one class a row"),
        ("contrast", "HDGE", "log q(x|y) as the contrastive term has it"),
    ):
        add(f"--plot_{name} 0|1", switch, False, source, "sample grids of chains that climb "
            f"{density}, in samples/ and TensorBoard", shown="0", nargs="?", const=True)

    add = adder(parser, "machine")
    add("--device NAME", None, "auto", "ours", "auto (a CUDA GPU if there is one), cpu, cuda or "
        "cuda:N")
    add("--threads N", THREADS["type"], None, None, THREADS["help"], shown=None)
    add("--seed N", WHOLE, None, "HDGE", "seed of weights, batches, noise, chains",
        shown="drawn, printed, recorded")
    add("--amp", ("auto", "bf16", "off"), "auto", "ours", "bf16 autocast of the convolutions, all "
        "else being float32; auto: on GPUs that have it")
    add("--compile", ("auto", "on", "off"), "auto", "ours", "compile the network, which takes "
        "minutes at the start; auto: on GPUs that can, not for --dry_run")
    add("--dry_run", bool, False, "ours", "print the settings, parameters, FLOPs, memory and the "
        "hours that the run will take, from a few steps on made-up images, and exit; needs no data")


# fmt: on
def parse(
    argv: Sequence[str], files: bool = False, build: Callable[[], Parser] = build_parser
) -> tuple[argparse.Namespace, set[str]]:
    """Return the checked settings, and the names of the flags given on the command line. A recipe's
    flags are not among these names, and given flags override them. A mistake ends the program with
    one line and exit code 2.

    files: see `checked`. build: makes the program's parser.
    """
    parser = build()
    of_recipe, typed, names = recipe.expand(argv, parser) if parser.recipes else ([], argv, None)
    settings = parser.parse_args([*of_recipe, *typed])
    if names is not None:
        settings.recipe = names
    given = given_flags(build(), typed)
    try:
        settings = checked(settings, given, parser, files)
    except Mistake as error:
        parser.source = f"with {recipe.shown(names)}: " if names else ""
        parser.error(str(error))
    return settings, given


def checked(
    s: argparse.Namespace, given: set[str], parser: Parser, files: bool
) -> argparse.Namespace:
    """Return the resolved and checked settings of a new run or, with --resume, the saved run's
    settings, overridden by the `given` flags.

    parser: the program's.
    files: also refuse missing files, and a run folder that holds a run or is not writable: here,
        before the slow import of PyTorch.

    Raises UsageError or RunFolderError.
    """
    if s.dataset:
        s.dataset = resolve_dataset(s.dataset)
    if vars(s).get("load_path") is not None:
        s.load_path = str(weights_file(s.load_path))
    folder = resumed_folder(s, given) if "resume" in s else None
    if folder is not None:
        place = {"log_dir": str(folder.parent), "id": folder.name}
        s = resume(s, given, saved_settings(folder, parser.prog) | place, parser)
        if files and rank_is_0() and not vars(s).get("dry_run"):
            check_writable("--resume", folder)
        return s
    parser.verify(s)
    if files and rank_is_0():  # other machines may not see the folders
        check_files(s)
    return s


def resolve_dataset(name: str) -> str:
    """Return the name that an alias stands for, or folder:PATH with an absolute path, so that the
    run finds it from anywhere. Raises UsageError where the path is not UTF-8."""
    path = name.removeprefix(FOLDER)
    if not name.startswith(FOLDER) or not path:
        return ALIASES.get(name, name)
    absolute = FOLDER + os.path.abspath(os.path.expanduser(path))
    check_utf8("--dataset", absolute)
    return absolute


def resumed_folder(s: argparse.Namespace, given: set[str]) -> Path | None:
    """Return the folder of the run to resume, from --resume or from --log_dir and --id; None for a
    new run. In `s`, turn --resume auto into --resume where the folder has a checkpoint, else into a
    new run, which replaces a run that died before its first checkpoint. Raises UsageError."""
    if s.resume is None:
        return None
    if s.overwrite and s.resume != AUTO:
        raise UsageError(
            "--resume continues the run that --overwrite replaces: leave one of them out"
        )
    is_path = s.resume not in ("", AUTO)
    if not is_path and not s.id:
        value = " auto" if s.resume else ""
        raise UsageError(
            f"--resume{value}: which run? give --id, and --log_dir if it is not ./save, or "
            "--resume RUN_FOLDER"
        )
    if is_path and {"id", "log_dir"} & given:
        raise UsageError(f"--resume {s.resume} names the run: leave --id and --log_dir out")
    folder = Path(s.resume) if is_path else Path(s.log_dir) / s.id
    if s.resume == AUTO:
        s.resume = ""
        try:
            resumable = any((folder / name).exists() for name in (LAST, PREVIOUS))
        except OSError as error:
            raise UsageError(
                f"--log_dir {s.log_dir}, --id {s.id}: {error.strerror}: give others"
            ) from None
        if not resumable:  # a folder with other checkpoints is not overwritten
            s.resume, s.overwrite = None, s.overwrite or not any(folder.glob("*.pt"))
            return None
    if os.path.isfile(folder):
        if folder.name != LAST:
            raise UsageError(
                f"--resume {s.resume} is a file: give the run's folder, which goes on from its "
                "last checkpoint, or start a new run from this one with --load_path"
            )
        folder = folder.parent
    # The last part of ".", or of "runs/..", is no name of a folder.
    return folder if folder.name not in ("", "..") else Path(os.path.abspath(folder))


def saved_settings(folder: Path, program: str) -> dict[str, Any]:
    """Return the run's settings from variant.json or, where it is missing or damaged, from the last
    checkpoint, with a warning on stderr. Move no file: the processes have not met yet, and the
    folder is not locked. Raises RunFolderError where neither file has settings, and UsageError for
    a run of another program.
    """
    warning = None
    try:
        settings = read_settings(folder)
    except RunFolderError as error:
        if not any(os.path.exists(folder / name) for name in (LAST, PREVIOUS)):
            raise
        from training.state import read_last  # slow import: only on this path

        try:
            settings = dict(read_last(folder)[1]["settings"])
        except (OSError, KeyError, TypeError, ValueError):
            raise error from None
        defect = f"{folder / SETTINGS} is missing or damaged"
        warning = f"{program}: warning: {defect}; settings are the checkpoint's"
    owner = settings.get("program") or PROGRAM  # train_wrn.py does not record its name
    if owner != program:
        raise UsageError(
            f"--resume {folder}: that is a run of {owner}, not of {program}: give a run of "
            f"{program}"
        )
    if warning and rank_is_0():
        print_line(warning, sys.stderr)
    for name in ("num_classes", "class_names", TRAINED_ON):  # facts about the data set, no flags
        settings.pop(name, None)
    return settings


def check_files(s: argparse.Namespace) -> None:
    """Check the files and the run folder of a new run. Raises UsageError or RunFolderError."""
    if (path := vars(s).get("load_path")) is not None:
        check_weights("--load_path", path)
    dataset = s.dataset or ""
    if dataset.startswith(FOLDER) and not os.path.isdir(dataset.removeprefix(FOLDER)):
        raise UsageError(
            f"--dataset {s.dataset} is no folder: give folder:PATH, with a sub-folder a class"
        )
    if vars(s).get("dry_run"):
        return
    folder = Path(s.log_dir) / (s.id or "")
    if s.id:
        check_free(folder, overwrite=s.overwrite, load_path=path, resumes="resume" in s)
    check_writable("--log_dir", folder)


def resume(
    settings: argparse.Namespace, given: set[str], saved: dict[str, Any], parser: Parser
) -> argparse.Namespace:
    """Return the saved run's settings, overridden by the flags `given` now. Raises UsageError for a
    changed flag on which the checkpoint depends."""
    merged = vars(parser.parse_args([])) | saved
    remedy = "leave it out, or start a new run" + " with --load_path" * ("load_path" in settings)
    if getattr(settings, "recipe", None) not in (None, merged.get("recipe")):
        raise UsageError(
            f"{recipe.shown(settings.recipe)} cannot change on --resume (the run has "
            f"{recipe.shown(merged['recipe'])}): {remedy}"
        )
    for name in sorted(given - {"resume", "log_dir", "id", "overwrite"}):
        new, old = getattr(settings, name), merged.get(name)
        # A folder may have moved: `restore_last` compares the images.
        moves = name == "dataset" and new.startswith(FOLDER) and str(old).startswith(FOLDER)
        changes = name in parser.fixed and not moves
        changes |= name in TERMS and (new == 0) != (old == 0)
        if new != old and changes:
            new, old = (" ".join(map(str, v)) if isinstance(v, list) else v for v in (new, old))
            raise UsageError(
                f"--{name} {new} cannot change on --resume (the run has {old}): {remedy}"
            )
        merged[name] = new
    # These flags hold for one process: a run that --max_steps has ended must go on. Take them from
    # this command line, and from a recipe on it.
    for_process = ("max_steps", "max_minutes", "dry_run", "resume")
    merged |= {name: getattr(settings, name) for name in for_process if name in settings}
    merged["overwrite"] = False
    if merged["norm"] is None:  # a run of the HDGE code
        merged["norm"] = "none"
    resumed = argparse.Namespace(**merged)
    try:
        parser.verify(resumed)
    except (TypeError, AttributeError) as error:  # a number that somebody edited into a string
        raise UsageError(f"--resume: variant.json cannot be used ({error}): mend it") from None
    return resumed


def second_batch(s: argparse.Namespace) -> bool:
    """Return whether --pxsgld reads a second, unlabelled batch, as it does in the JEM code."""
    differs = s.augment_px == "none" or s.px_batch_size is not None
    reads = any(term.second_batch for term in terms.used(vars(s)))
    return reads and (differs or s.independent_batches or s.labels_per_class > 0)


def labelled_batch(s: argparse.Namespace, classes: int) -> int:
    """Return the number of labelled images a step: --batch_size, or fewer with few labels."""
    few = s.labels_per_class > 0
    return min(s.batch_size, s.labels_per_class * classes) if few else s.batch_size


def augmented(s: argparse.Namespace) -> tuple[bool, bool]:
    """Return whether the labelled batch and the second batch are cropped and flipped."""
    return s.augment == "on", s.augment == "on" and s.augment_px == "same"


def check(s: argparse.Namespace) -> None:
    """Check flags against each other. Raises UsageError, one line with flag, value and remedy."""
    if max(getattr(s, name) for name in TERMS) <= 0:  # TypeError for a string: see `resume`
        weights = terms.flags(lambda _: True, join=" and ")
        raise UsageError(
            f"{weights} are all 0: give at least one a weight above 0, such as --pyxce 1"
        )
    check_dataset(s.dataset)
    if s.labels_per_class == 0:
        raise UsageError(
            "--labels_per_class 0 trains nothing: give 1 or more, or -1 for all labels"
        )
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
        names = ", ".join(CLASSES)
        near = did_you_mean(name, CLASSES)
        raise UsageError(f"--dataset {name} is unknown: {near}use {names} or folder:PATH")


def check_network(s: argparse.Namespace) -> None:
    depth = misfit_depth(s.depth) if s.arch == "wrn" else None
    if misfit := depth or misfit_size(s.image_size, s.arch):
        raise UsageError(f"--{misfit}")
    built_in = {"norm": ("none", "batch norm of its own"), "dropout_rate": (0, "no dropout")}
    for name, (default, has) in built_in.items():
        if s.arch == "resnet50" and getattr(s, name) != default:
            raise UsageError(
                f"--{name} {getattr(s, name)} does not go with --arch resnet50, which has {has}: "
                f"leave --{name} out"
            )
    head_alone = all(term.heads == ("energy",) for term in terms.used(vars(s)))
    if getattr(s, "uncond", False) and s.clf_only and head_alone:
        raise UsageError(
            "--clf_only trains class_output, which --pxsgld with --uncond does not move: give "
            "--pyxce a weight above 0, or leave one of them out"
        )


def check_chains(s: argparse.Namespace) -> None:
    """Refuse a setting of the SGLD terms that no term reads, --bn_chains without batch norm or
    its statistics, and the sizes that `check_classes` refuses."""
    unread: list[tuple[str, str, Any]] = []
    used = terms.used(vars(s))
    if not any(term.second_batch for term in used):
        needs = terms.flags(lambda term: term.second_batch)
        unread += [(needs, "augment_px", "same"), (needs, "px_batch_size", None)]
        unread += [(needs, "independent_batches", False)]
    if not terms.has_chains(vars(s)):
        needs = terms.flags(lambda term: term.chains)
        unread += [(needs, "px_loss", "cd"), (needs, "chain_start", "uniform")]
        unread += [(needs, "bn_chains", "jem"), (needs, "sgld_l2", 0)]
    for needs, name, default in unread:
        if (value := getattr(s, name)) != default:
            flag = f"--{name}" if value is True else f"--{name} {value}"
            raise UsageError(
                f"{flag} has no effect without {needs}: give it a weight above 0, or leave "
                f"--{name} out"
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
    if s.dataset in CLASSES:  # the classes of a folder are known once it is read
        check_classes(s, CLASSES[s.dataset])


def check_processes(s: argparse.Namespace) -> None:
    """Refuse numbers of images or chains that the processes cannot share equally."""
    sizes = ["batch_size", *(term.chains for term in terms.used(vars(s)) if term.chains)]
    if s.px_batch_size is not None:
        sizes.append("px_batch_size")
    for name in dict.fromkeys(sizes):
        check_shared(f"--{name}", getattr(s, name))


def check_classes(s: argparse.Namespace, classes: int) -> None:
    """Refuse a buffer that the classes cannot share equally, and more chains than slots."""
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
        any_class = term.name == "pxsgld" and not s.class_cond_p_x_sample
        slots = s.buffer_size if any_class else s.buffer_size // classes
        flag, chains = f"--{term.chains}", getattr(s, str(term.chains))
        if term.chains == "batch_size":
            chains = labelled_batch(s, classes)
        if chains > slots:
            size = chains * classes if slots < s.buffer_size else -(-chains // classes) * classes
            raise UsageError(
                f"{flag} {chains} is more chains than the {slots} slots that they may start from: "
                f"use {slots} at most, or --buffer_size {size}"
            )
