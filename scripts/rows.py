"""What turns flags into the rows of the papers' tables: experiments, settings, tables.

An experiment is one line of EXPERIMENTS; a table names the experiments of its rows and what they
are asked. scripts/experiments.py runs them, scripts/tables.py shows what came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Experiment:
    """A model of the tables: its setting at a scale, and the flags that set it apart. A scale
    without that setting does not have the row.

    `start`: the experiment of the same seed whose last checkpoint it goes on from: always with
    `probe`, and elsewhere at scales that train SGLD from a trained model (WARM).
    """

    flags: str
    setting: str = "ebm"
    dataset: str = "cifar10"
    program: str = "train_wrn.py"
    start: str | None = None


CE, HDGE, JEM = "--pyxce 1", "--pyxce 1 --pxycontrast 1", "--pyxce 1 --pxsgld 1"
BOTH = "--pyxce 1 --pxycontrast 1 --pxsgld 1"
CONTRASTIVE, ADVERSARIAL = "baselines/train_contrastive.py", "baselines/train_adversarial.py"
PROBE = "baselines/linear_probe.py"
# From JEM with its paper's sampler, each change on top of those before it.
LADDER = {
    "ladder-jem": "--n_steps 20 --chain_start uniform",
    "ladder-clamp": "--sgld_clamp",
    "ladder-start": "--chain_start class_gaussian",
    "ladder-plain": "--augment_px none",
    "ladder-head": "--uncond",
    "ladder-k5": "--n_steps 5",
    "ladder-ema": "--ema .999",
    "ladder-bce": "--px_loss bce",
}

EXPERIMENTS = {
    # Tables 1, 3 and 4: without batch norm
    "ce": Experiment(CE),
    "jem": Experiment(JEM, "sgld", start="ce"),
    "jem-150": Experiment(JEM, "sgld-jem", start="ce"),
    "hdge": Experiment(HDGE),
    "hdge-jem": Experiment(BOTH, "sgld", start="hdge"),
    "igebm": Experiment("--pxysgld 1", "sgld", start="ce"),
    "hdge-resnet50": Experiment(HDGE, "resnet50"),
    "jointloss-resnet50": Experiment("--method jointloss", "jointloss", program=CONTRASTIVE),
    "simclr": Experiment("--method simclr", "pretraining", program=CONTRASTIVE),
    "simclr-linear": Experiment("", "probe", program=PROBE, start="simclr"),
    # The same with a sampler that trains from scratch
    "jem-stable": Experiment(JEM, "stable"),
    "hdge-jem-stable": Experiment(BOTH, "stable"),
    "jem-stable-c100": Experiment(JEM, "stable", dataset="cifar100"),
    **{f"jem-stable-n{n}": Experiment(JEM, f"stable-n{n}") for n in (128, 256)},
    # Table 2: with batch norm
    "ce-bn": Experiment(CE, "accuracy"),
    "supcon-bn": Experiment("--method supcon", "pretraining-bn", program=CONTRASTIVE),
    "supcon-bn-linear": Experiment("", "probe", program=PROBE, start="supcon-bn"),
    "jem-bn": Experiment(JEM, "sgld-bn", start="ce-bn"),
    "hdge-bn": Experiment(HDGE, "accuracy"),
    "hdge-only-bn": Experiment("--pxycontrast 1", "accuracy"),
    "hdge-only-bn-linear": Experiment("", "probe", program=PROBE, start="hdge-only-bn"),
    **{
        f"{name}-c100": Experiment(flags, "accuracy", dataset="cifar100")
        for name, flags in (
            *(("ce-bn", CE), ("hdge-bn", HDGE), ("hdge-only-bn", "--pxycontrast 1")),
        )
    },
    "jem-bn-c100": Experiment(JEM, "sgld-bn", dataset="cifar100", start="ce-bn-c100"),
    "supcon-bn-c100": Experiment(
        "--method supcon", "pretraining-bn", dataset="cifar100", program=CONTRASTIVE
    ),
    **{
        f"{name}-linear-c100": Experiment(
            "", "probe", dataset="cifar100", program=PROBE, start=f"{name}-c100"
        )
        for name in ("supcon-bn", "hdge-only-bn")
    },
    # Table 5: variants of the contrastive term
    "hdge-simclr-style": Experiment(f"{HDGE} --contrast_style simclr", "large-batch"),
    "hdge-raw": Experiment(f"{HDGE} --no-contrast_normalize"),
    "hdge-eq13": Experiment(f"{HDGE} --contrast_score eq13"),
    "hdge-eq13-raw": Experiment(
        f"{HDGE} --contrast_score eq13 --no-contrast_normalize --contrast_t 1"
    ),
    # Table 6: numbers of negatives and of chains
    **{f"hdge-k{k}": Experiment(f"{HDGE} --contrast_k {k}") for k in (64, 128, 256)},
    **{f"jem-n{n}": Experiment(JEM, f"sgld-n{n}", start="ce") for n in (128, 256)},
    # Figure 2: CIFAR-100
    "ce-c100": Experiment(CE, dataset="cifar100"),
    "jem-c100": Experiment(JEM, "sgld", dataset="cifar100", start="ce-c100"),
    "hdge-c100": Experiment(HDGE, dataset="cifar100"),
    # Figure 4
    "at-linf": Experiment("--distance Linf", "adversarial-linf", program=ADVERSARIAL),
    "at-l2": Experiment("--distance L2", "adversarial-l2", program=ADVERSARIAL),
    # Figure 5: CIFAR-100, batch 256
    "ce-c100-b256": Experiment(CE, "batch256", dataset="cifar100"),
    **{
        f"hdge-c100-k{k}": Experiment(f"{HDGE} --contrast_k {k}", "batch256", dataset="cifar100")
        for k in (256, 1024, 4096, 16384, 65536)
    },
    # Eq. 14: alpha log q(y|x) + (1 - alpha) log q(x|y); 1 is cross-entropy, 0 the other alone
    **{
        f"alpha{a:g}": Experiment(f"--pyxce {a:g} --pxycontrast {1 - a:g}")
        for a in (0, 0.25, 0.5, 0.75)
    },
    # From the papers' sampler to a stable one
    **{
        name: Experiment(" ".join([JEM, *list(LADDER.values())[: i + 1]]), "ladder")
        for i, name in enumerate(LADDER)
    },
}

WRN = "--depth 28 --width 10"
HALF = (
    "--image_size 16 --depth 10 --width 2 --amp off --lr 1e-3 --warmup_iters 200 --n_epochs 12 "
    "--decay_epochs 9 11 --decay_rate .2 --batch_size 64 --contrast_k 16384"
)
SMALL, TINY = "--depth 10 --width 2 --amp bf16", "--depth 10 --width 1 --n_valid 100"
# The schedule of both codes' defaults, and JEM's paper's own. HDGE's paper says 200 epochs of its
# Table 2 alone, and otherwise refers to JEM's settings.
EBM = "--lr 1e-4 --warmup_iters 1000 --n_epochs 200 --decay_epochs 160 180 --decay_rate .3"
EBM_JEM = EBM.replace("200 --decay_epochs 160 180", "150 --decay_epochs 50 100")
# Table 2's setting: batch norm, SGD, batch 256, steps of x .2.
ACCURACY = (
    "--norm batch --optimizer sgd --lr .1 --batch_size 256 --weight_decay 5e-4 --dropout_rate .3 "
    "--sigma 0 --n_epochs 200 --decay_epochs 60 120 160 --decay_rate .2"
)
# SimCLR's rate of 1 at batch 256, grown with the batch; halvings in place of a cosine, and within
# a factor of 1.4 of it but for the last 3 %.
SIMCLR = "--optimizer lars --lr 4 --batch_size 1024 --weight_decay 1e-6 --warmup_iters 430"
COSINE = "364 595 724 808 865 905 933 953 967"
MADRY = (
    "--norm batch --optimizer sgd --lr .1 --batch_size 128 --decay_rate .1 --n_steps_pgd_attack 7"
)
SHORT = "--lr 2e-3 --warmup_iters 200 --n_epochs 6 --decay_epochs 4 5"
SHORT_BN = (
    "--norm batch --optimizer sgd --lr .1 --batch_size 256 --weight_decay 5e-4 --sigma 0 "
    "--n_epochs 6 --decay_epochs 3 4 5 --decay_rate .2"
)
ONCE = "--lr 1e-3 --batch_size 64 --n_epochs 1 --max_steps 6 --print_every 3"
# SGLD from a trained model, with two stabilisers: see docs/sampling.md.
SHORT_SGLD = (
    "--lr 1e-4 --warmup_iters 200 --n_epochs 2 --decay_epochs 1 --sigma .1 --n_steps 10 "
    "--sgld_l2 .1 --clip_grad 5"
)
# SGLD from scratch: chains as in JEM++ (Yang and Ji 2021), and few steps.
STABLE = "--n_steps 5 --chain_start class_gaussian --sgld_clamp --buffer_size 10000"
ONCE_SGLD = "--n_steps 2 --buffer_size 1000"
MEASURED = "--log_gradients 100"
# The flags of each setting, by scale. `ask`: what an evaluation is asked with besides.
SCALES: dict[str, dict[str, str]] = {
    "paper": {
        "ebm": f"{WRN} {EBM} {MEASURED}",
        "batch256": f"{WRN} {EBM} --batch_size 256",
        # As the paper says it: 200 epochs of 2,048 images, with the other rows' rate.
        "large-batch": f"{WRN} {EBM} --batch_size 2048",
        "sgld": f"{WRN} {EBM} {MEASURED}",
        "sgld-jem": f"{WRN} {EBM_JEM} {MEASURED}",
        "stable": f"{WRN} {EBM} {MEASURED} {STABLE}",
        **{f"sgld-n{n}": f"{WRN} {EBM} {MEASURED} --sgld_batch_size {n}" for n in (128, 256)},
        "sgld-bn": f"{WRN} {ACCURACY}",
        # HDGE's appendix B: JEM's hyperparameters, another network.
        "resnet50": f"--arch resnet50 {EBM}",
        "accuracy": f"{WRN} {ACCURACY}",
        # Table 2's batch, epochs and decay; the rate is that of SupCon's code, .5 at batch 1024,
        # for this batch and for a loss that is not multiplied by T/.07.
        "pretraining-bn": f"{WRN} --norm batch --optimizer sgd --lr .179 --batch_size 256 "
        "--weight_decay 7e-5 --sigma 0 --warmup_iters 1750 --n_epochs 200 "
        "--decay_epochs 60 120 160 --decay_rate .2",
        "pretraining": f"{WRN} --norm batch {SIMCLR} --n_epochs 1000 --decay_epochs {COSINE} "
        "--decay_rate .5",
        # SimCLR's pre-training, then 100 joint epochs: JointLoss's own numbers are not published
        # in full. One schedule runs through both, so it must not end with the pre-training.
        "jointloss": f"--arch resnet50 {SIMCLR} --sigma 0 --n_epochs 1100 --pretrain_epochs 1000 "
        "--decay_epochs 600 900 1070 --decay_rate .3",
        # Madry et al., stopped soon after the first decay: robust accuracy falls afterwards (Rice
        # et al. 2020).
        "adversarial-linf": f"{WRN} {MADRY} --weight_decay 2e-4 --n_epochs 120 --decay_epochs 114 "
        "--attack_step 2/255",
        # The defaults of the `robustness` library.
        "adversarial-l2": f"{WRN} {MADRY} --weight_decay 5e-4 --n_epochs 150 "
        "--decay_epochs 50 100 --attack_step .1 --no-random_init",
        "probe": "",
        "ask": "",
    },
    "small": {
        "ebm": f"{SMALL} {SHORT} --contrast_k 16384 {MEASURED}",
        "batch256": f"{SMALL} {SHORT} --contrast_k 16384 --batch_size 256",
        # As many updates as cross-entropy takes, so twice the images.
        "large-batch": f"{SMALL} {SHORT} --batch_size 128 --n_epochs 12 --decay_epochs 8 10 "
        f"{MEASURED}",
        # Half the paper's chains, as everywhere at this scale.
        **{
            setting: f"{SMALL} {SHORT_SGLD} --contrast_k 16384 --sgld_batch_size {n} {MEASURED}"
            for setting, n in (("sgld", 32), ("sgld-n128", 64), ("sgld-n256", 128))
        },
        "sgld-jem": f"{SMALL} {SHORT_SGLD} --n_epochs 3 --decay_epochs 1 2 --sgld_batch_size 32 "
        f"{MEASURED}",
        "sgld-bn": f"{SMALL} {SHORT_SGLD} --norm batch --sgld_batch_size 32",
        # A ResNet-50 has batch norm, so its stand-in has, too.
        "resnet50": f"{SMALL} --norm batch {SHORT} --contrast_k 16384",
        "jointloss": f"{SMALL} --norm batch --lr 1e-3 --batch_size 256 --n_epochs 6",
        "accuracy": f"{SMALL} {SHORT_BN} --contrast_k 16384",
        "pretraining": f"{SMALL} --norm none --lr 1e-3 --batch_size 256 --n_epochs 6",
        "pretraining-bn": f"{SMALL} {SHORT_BN}",
        **dict.fromkeys(
            ("adversarial-linf", "adversarial-l2"),
            f"{SMALL} {SHORT} --n_epochs 3 --decay_epochs 2 --n_steps_pgd_attack 4",
        ),
        "probe": "",
        "ask": "--max_images 2000",
    },
    "half": {
        "ebm": HALF,
        "ladder": HALF,
        "stable": f"{HALF} {STABLE}",
        **{f"stable-n{n}": f"{HALF} {STABLE} --sgld_batch_size {n}" for n in (128, 256)},
        "ask": "",
    },
    "smoke": {
        **dict.fromkeys(("ebm", "batch256"), f"{TINY} {ONCE} --contrast_k 256 --log_gradients 3"),
        "large-batch": f"{TINY} {ONCE}",
        **{
            setting: f"{TINY} {ONCE} --contrast_k 256 {ONCE_SGLD} --sgld_batch_size {n}"
            for setting, n in (("sgld", 8), ("sgld-jem", 8), ("sgld-n128", 16), ("sgld-n256", 32))
        },
        "ladder": f"{TINY} {ONCE} {ONCE_SGLD} --sgld_batch_size 8",
        **{
            setting: f"{TINY} {ONCE} --contrast_k 256 {STABLE} {ONCE_SGLD} --sgld_batch_size {n}"
            for setting, n in (("stable", 8), ("stable-n128", 16), ("stable-n256", 32))
        },
        "sgld-bn": f"{TINY} {ONCE} --norm batch {ONCE_SGLD} --sgld_batch_size 8",
        "resnet50": f"--arch resnet50 {ONCE} --n_valid 10 --contrast_k 256 --batch_size 4 "
        "--max_steps 2",
        "accuracy": f"{TINY} {ONCE} --norm batch --contrast_k 256",
        **dict.fromkeys(("pretraining", "pretraining-bn"), f"{TINY} {ONCE}"),
        "jointloss": f"--arch resnet50 {ONCE} --n_valid 10 --batch_size 4 --max_steps 2",
        **dict.fromkeys(
            ("adversarial-linf", "adversarial-l2"), f"{TINY} {ONCE} --n_steps_pgd_attack 2"
        ),
        "probe": "--max_iter 20",
        "ask": "--max_images 40",
    },
}
WARM = ("small",)  # scales at which SGLD goes on from a trained model
STAND_IN = {"smoke": "digits"}  # a data set in place of each experiment's own


@dataclass(frozen=True)
class Table:
    """`rows` are asked `questions` one by one; `overlays` are asked of several models at once:
    (name of the answer's folder, question, experiments)."""

    rows: tuple[str, ...]
    questions: tuple[str, ...] = ()
    overlays: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


OOD = "OOD --score_fn px py --ood_dataset {ood}"
ACCURACY_OF, CALIBRATION_OF, FID = "test_clf", "eval_ece", "fid {fid}"
LINF = "attack --distance Linf --max_images {few}"
L2 = "attack --distance L2 --max_images {few}"
FOUR = ("ce", "jem", "jem-stable", "hdge")
FOUR_C100 = tuple(f"{name}-c100" for name in FOUR)
TABLES = {
    "table1_ood": Table(
        ("ce", "simclr-linear", "igebm", "jem", "jem-150", "jem-stable", "hdge", "hdge-jem")
        + ("hdge-jem-stable", "jointloss-resnet50", "hdge-resnet50"),
        (OOD,),
    ),
    "table2_classification": Table(
        tuple(
            row + dataset
            for row in (
                *("ce-bn", "supcon-bn-linear", "jem-bn", "hdge-bn", "hdge-only-bn"),
                "hdge-only-bn-linear",
            )
            for dataset in ("", "-c100")
        ),
        (ACCURACY_OF,),
    ),
    "table3_hybrid": Table(
        ("igebm", "jem", "jem-150", "jem-stable", "hdge", "hdge-jem", "hdge-jem-stable")
        + ("ce-bn", "ce"),
        (ACCURACY_OF, FID),
    ),
    "table5_variants": Table(
        ("hdge", "hdge-simclr-style", "hdge-raw", "hdge-eq13", "hdge-eq13-raw"), (OOD, ACCURACY_OF)
    ),
    "table6_negatives": Table(
        ("jem", "jem-n128", "jem-n256", "jem-stable", "jem-stable-n128", "jem-stable-n256")
        + ("hdge-k64", "hdge-k128", "hdge-k256", "hdge"),
        (OOD,),
    ),
    "figure1_histograms": Table(FOUR, (), (("figure1", "logp_hist {hist}", FOUR),)),
    "figure2_calibration": Table(FOUR_C100, (), (("figure2", CALIBRATION_OF, FOUR_C100),)),
    "figure3_samples": Table(("hdge-jem", "hdge-jem-stable"), ("cond_samples {samples}",)),
    "figure4_robustness": Table(
        (*FOUR, "at-linf", "at-l2"),
        (),
        (("figure4-linf", LINF, (*FOUR, "at-linf")), ("figure4-l2", L2, (*FOUR, "at-l2"))),
    ),
    "figure5_negatives": Table(
        ("ce-c100-b256", *(f"hdge-c100-k{k}" for k in (256, 1024, 4096, 16384, 65536))),
        (ACCURACY_OF,),
    ),
    "alpha": Table(("alpha0", "alpha0.25", "alpha0.5", "alpha0.75", "ce"), (ACCURACY_OF, OOD)),
    "sampler": Table(tuple(LADDER), (ACCURACY_OF, CALIBRATION_OF, OOD, FID)),
}
# Where Inception is too much for a CPU, samples are compared in the features of one network for
# all rows and seeds: see `reference`.
REFERENCE = "REFERENCE"
# Seed of that network, cross-entropy, at scales where it judges alone and is no row; else it is 1.
JUDGES = {"half": 9}
# What the questions leave open, by scale.
BLANKS: dict[str, dict[str, str]] = {
    "paper": {
        "ood": "all",
        "few": "1000",
        "fid": "--n_samples 50000 --n_steps 1000",
        "hist": "--datasets cifar10_train svhn cifar10interp cifar100 celeba",
        "samples": "--n_sample_steps 1000",
    },
    "small": {
        "ood": "all textures faces",  # faces: for want of CelebA, and under its own name
        "few": "200",
        "fid": f"--fid_features model --fid_model {REFERENCE} --n_samples 1000 --n_steps 40",
        "hist": "--ood_dataset all",
        "samples": "--n_sample_steps 50 --fresh_samples --buffer_size 200",
    },
    "half": {
        "ood": "all textures faces uniform",
        "few": "200",
        "fid": f"--fid_features model --fid_model {REFERENCE} --sampling class --n_samples 1000 "
        "--n_steps 40 --chain_lengths 0 5 40 100 200",
        "hist": "--ood_dataset all",
        "samples": "--fresh_samples --buffer_size 1000 --sgld_batch_size 1000 --n_sample_steps 1 "
        f"--n_steps 100 --fid_model {REFERENCE}",
    },
    "smoke": {
        "ood": "all",
        "few": "20 --n_steps_pgd_attack 2",
        "fid": f"--fid_features model --fid_model {REFERENCE} --sampling class "
        "--n_samples 20 --n_steps 2",
        "hist": "--ood_dataset all",
        "samples": "--n_sample_steps 2 --n_steps 2 --fresh_samples --buffer_size 100",
    },
}


def rows_at(scale: str, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the experiments that the scale has."""
    return tuple(name for name in names if EXPERIMENTS[name].setting in SCALES[scale])


def folder(root: Path, scale: str, name: str, seed: int) -> Path:
    return root / scale / f"{name}-s{seed}"


def train_command(root: Path, scale: str, name: str, seed: int) -> list[str]:
    """The words that train an experiment from its beginning, after the Python interpreter."""
    experiment, settings, warm = EXPERIMENTS[name], SCALES[scale], before(scale, name)
    if experiment.program == PROBE:  # deterministic: no seed, and the network is the start's
        words = [PROBE, *settings[experiment.setting].split()]
        words += ["--load_path", str(folder(root, scale, warm or "", seed) / "last_ckpt.pt")]
        return [*words, "--log_dir", str(root / scale), "--id", f"{name}-s{seed}"]
    words = settings[experiment.setting].split()
    words += ["--dataset", STAND_IN.get(scale, experiment.dataset), *experiment.flags.split()]
    # What diverges is told, not healed: a restart would change the setting.
    words = [experiment.program, *last_wins(words), "--max_restarts", "0"]
    if warm is not None:
        words += ["--load_path", str(folder(root, scale, warm, seed) / "last_ckpt.pt")]
    return [*words, "--seed", str(seed), "--log_dir", str(root / scale), "--id", f"{name}-s{seed}"]


def last_wins(words: Sequence[str]) -> list[str]:
    """Of a flag that is given several times, the last alone, as a parser reads it."""
    return [part for flag, values in flags_of(words).items() for part in (flag, *values)]


def flags_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Flag -> the words after it, the last time that it is given."""
    flags: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            flags.pop(word, None)
            flags[word] = []
        else:
            flags[list(flags)[-1]].append(word)
    return flags


def question_words(scale: str, question: str) -> list[str]:
    """`--eval` and what follows it."""
    words = question.format(**BLANKS[scale]).split()
    if "--max_images" in words or words[0].endswith("_samples"):
        return words
    return [*words, *SCALES[scale]["ask"].split()]


def ask_command(
    root: Path, scale: str, checkpoints: Sequence[Path], question: str, place: Path | None = None
) -> list[str]:
    """The words that ask; of several models, their labels are the experiments' names and `place`
    is the answer's folder."""
    words = ["eval_wrn_ebm.py", "--load_path", *map(str, checkpoints), "--eval"]
    model = str(folder(root, scale, *judge(scale)) / "last_ckpt.pt")
    words += [model if word == REFERENCE else word for word in question_words(scale, question)]
    if place is None:
        return words
    labels = [path.parent.name.rpartition("-s")[0] for path in checkpoints]
    return [*words, "--labels", *labels, "--log_dir", str(place)]


def overlay(root: Path, scale: str, place: str, seed: int) -> Path:
    """The folder of an answer about several models of one seed."""
    return root / scale / f"{place}-s{seed}"


def before(scale: str, name: str) -> str | None:
    """The experiment whose checkpoint this one is trained from at this scale."""
    experiment = EXPERIMENTS[name]
    return experiment.start if experiment.program == PROBE or scale in WARM else None


def judge(scale: str) -> tuple[str, int]:
    """Experiment and seed of the network in whose features samples are compared, the same for all
    rows and seeds."""
    return "ce", JUDGES.get(scale, 1)
