"""Declare the rows of the papers' tables as flags: experiments, settings, tables.

An experiment is one line of EXPERIMENTS. A table names the experiments of its rows and the
questions about them. scripts/experiments.py runs both, scripts/tables.py shows the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from reports.tables import TABLES as DECLARED
from runs.names import NOISY


@dataclass(frozen=True)
class Experiment:
    """A model of the tables: the flags of its setting, a key of SCALES[scale], and its own flags. A
    scale without that key does not have the row.

    `start`: the experiment whose last checkpoint of the same seed is loaded: always for PROBE,
    otherwise at the scales of WARM.
    """

    flags: str
    setting: str = "ebm"
    dataset: str = "cifar10"
    program: str = "train_wrn.py"
    start: str | None = None


CE, HDGE, JEM = "--pyxce 1", "--pyxce 1 --pxycontrast 1", "--pyxce 1 --pxsgld 1"
BOTH = "--pyxce 1 --pxycontrast 1 --pxsgld 1"
CONTRASTIVE, ADVERSARIAL = "baselines/train_contrastive.py", "baselines/train_adversarial.py"
FLOW, PROBE = "baselines/train_flow.py", "baselines/linear_probe.py"
C100, RAW_EQ13 = "cifar100", "--contrast_score eq13 --no-contrast_normalize --contrast_t 1"
QUEUES = (256, 1024, 4096, 16384, 65536)
MEASURED = "--log_gradients 100"
TEMPERATURES = (0.05, 0.1, 0.2, 0.5)
# From JEM with its paper's sampler: each row adds its flags to those of the rows before it.
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
    "glow": Experiment("", "flow", program=FLOW),
    "glow-class": Experiment("--class_cond", "flow", program=FLOW),
    "residual-flow": Experiment("--class_cond", "residual-flow", program=FLOW),
    # JEM and HDGE + JEM with a sampler that trains from scratch
    "jem-stable": Experiment(JEM, "stable"),
    "hdge-jem-stable": Experiment(BOTH, "stable"),
    "jem-head": Experiment(JEM, "head"),
    "hdge-jem-head": Experiment(BOTH, "head"),
    "jem-stable-c100": Experiment(JEM, "stable", C100),
    **{f"jem-stable-n{n}": Experiment(JEM, f"stable-n{n}") for n in (128, 256)},
    # Table 2: with batch norm
    "ce-bn": Experiment(CE, "accuracy"),
    "supcon-bn": Experiment("--method supcon", "pretraining-bn", program=CONTRASTIVE),
    "supcon-bn-linear": Experiment("", "probe", program=PROBE, start="supcon-bn"),
    "jem-bn": Experiment(JEM, "sgld-bn", start="ce-bn"),
    "hdge-bn": Experiment(HDGE, "accuracy"),
    "hdge-only-bn": Experiment("--pxycontrast 1", "accuracy"),
    "hdge-only-bn-linear": Experiment("", "probe", program=PROBE, start="hdge-only-bn"),
    "ce-bn-c100": Experiment(CE, "accuracy", C100),
    "supcon-bn-c100": Experiment("--method supcon", "pretraining-bn", C100, CONTRASTIVE),
    "supcon-bn-linear-c100": Experiment("", "probe", C100, PROBE, "supcon-bn-c100"),
    "jem-bn-c100": Experiment(JEM, "sgld-bn", C100, start="ce-bn-c100"),
    "hdge-bn-c100": Experiment(HDGE, "accuracy", C100),
    "hdge-only-bn-c100": Experiment("--pxycontrast 1", "accuracy", C100),
    "hdge-only-bn-linear-c100": Experiment("", "probe", C100, PROBE, "hdge-only-bn-c100"),
    # Table 5: variants of the contrastive term
    "hdge-simclr-style": Experiment(f"{HDGE} --contrast_style simclr", "large-batch"),
    "hdge-raw": Experiment(f"{HDGE} --no-contrast_normalize"),
    "hdge-eq13": Experiment(f"{HDGE} --contrast_score eq13"),
    "hdge-eq13-raw": Experiment(f"{HDGE} {RAW_EQ13}"),
    # Table 6: numbers of negatives and of chains
    **{f"hdge-k{k}": Experiment(f"{HDGE} --contrast_k {k}") for k in (64, 128, 256)},
    **{f"jem-n{n}": Experiment(JEM, f"sgld-n{n}", start="ce") for n in (128, 256)},
    # Figure 2: CIFAR-100
    "ce-c100": Experiment(CE, dataset=C100),
    "jem-c100": Experiment(JEM, "sgld", C100, start="ce-c100"),
    "hdge-c100": Experiment(HDGE, dataset=C100),
    # Figure 4
    "at-linf": Experiment("--distance Linf", "adversarial-linf", program=ADVERSARIAL),
    "at-l2": Experiment("--distance L2", "adversarial-l2", program=ADVERSARIAL),
    # Figure 5: CIFAR-100, batch 256
    "ce-c100-b256": Experiment(CE, "batch256", C100),
    **{f"hdge-c100-k{k}": Experiment(f"{HDGE} --contrast_k {k}", "batch256", C100) for k in QUEUES},
    # Eq. 14: alpha log q(y|x) + (1 - alpha) log q(x|y); alpha = 1 is the experiment "ce"
    **{
        f"alpha{a:g}": Experiment(f"--pyxce {a:g} --pxycontrast {1 - a:g}")
        for a in (0, 0.25, 0.5, 0.75)
    },
    # Cross-entropy as usual for classifiers: without input noise, with batch norm, both
    "ce-clean": Experiment(f"{CE} --sigma 0"),
    "ce-norm": Experiment(f"{CE} --norm batch"),
    "ce-norm-clean": Experiment(f"{CE} --norm batch --sigma 0"),
    # Temperatures of the contrastive term
    **{f"hdge-t{t:g}": Experiment(f"{HDGE} --contrast_t {t:g} {MEASURED}") for t in TEMPERATURES},
    # From JEM's sampler to a stable sampler (LADDER)
    **{
        name: Experiment(" ".join([JEM, *list(LADDER.values())[: i + 1]]), "ladder")
        for i, name in enumerate(LADDER)
    },
    "ladder-ce": Experiment(CE, "ladder"),
}

WRN = "--depth 28 --width 10"
HALF_SCHEDULE = (
    "--image_size 16 --lr 1e-3 --warmup_iters 200 --n_epochs 12 --decay_epochs 9 11 "
    "--decay_rate .2 --batch_size 64"
)
# Twice the epochs, of two views an image: four times as many images as HALF.
HALF_VIEWS = f"{HALF_SCHEDULE} --depth 10 --width 2 --amp off --batch_size 256 --n_epochs 24"
HALF = f"{HALF_SCHEDULE} --depth 10 --width 2 --amp off --contrast_k 16384"
HALF_BN = (
    "--norm batch --optimizer sgd --lr .1 --batch_size 256 --weight_decay 5e-4 --sigma 0 "
    "--decay_epochs 6 9 11"
)
SMALL = "--depth 10 --width 2 --amp bf16"
# EBM: the defaults of JEM's and HDGE's code. EBM_JEM: the schedule in JEM's paper. HDGE's paper has
# 200 epochs for its Table 2 alone, and otherwise refers to JEM's settings.
EBM = "--lr 1e-4 --warmup_iters 1000 --n_epochs 200 --decay_epochs 160 180 --decay_rate .3"
EBM_JEM = EBM.replace("200 --decay_epochs 160 180", "150 --decay_epochs 50 100")
# Table 2's setting: batch norm, SGD, batch 256, steps of x .2.
ACCURACY = (
    "--norm batch --optimizer sgd --lr .1 --batch_size 256 --weight_decay 5e-4 --dropout_rate .3 "
    "--sigma 0 --n_epochs 200 --decay_epochs 60 120 160 --decay_rate .2"
)
# SimCLR's learning rate of 1 at batch 256, scaled with the batch size. Its cosine decay becomes
# halvings, within a factor of 1.4 of the cosine except for the last 3 % of the epochs.
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
SIX_STEPS = "--lr 1e-3 --batch_size 64 --n_epochs 1 --max_steps 6 --print_every 3"
ONCE = f"--depth 10 --width 1 --n_valid 100 {SIX_STEPS}"
ONCE_RESNET = f"--arch resnet50 {SIX_STEPS} --n_valid 10 --batch_size 4 --max_steps 2"
# SGLD from a trained model, stabilised by --sgld_l2 and --clip_grad: see docs/sampling.md.
SHORT_SGLD = (
    "--lr 1e-4 --warmup_iters 200 --n_epochs 2 --decay_epochs 1 --sigma .1 --n_steps 10 "
    "--sgld_l2 .1 --clip_grad 5"
)
# SGLD from scratch: few steps, and clamp and class Gaussians as in JEM++ (Yang and Ji 2021).
STABLE = "--n_steps 5 --chain_start class_gaussian --sgld_clamp --buffer_size 10000 --guidance .1"
# STABLE with a separate head for log q(x), which reads data without augmentation, as in M-JEM.
HEAD = f"{STABLE} --uncond --augment_px none"
RESIDUAL = "--arch residual_flow"
ONCE_FLOW = f"--levels 2 --depth 1 --width 8 --n_valid 100 {SIX_STEPS}"
ONCE_SGLD = "--n_steps 2 --buffer_size 1000"
# Scale -> setting -> flags of the training program; "ask" -> further flags of each question.
SCALES: dict[str, dict[str, str]] = {
    "paper": {
        "ebm": f"{WRN} {EBM} {MEASURED}",
        "batch256": f"{WRN} {EBM} --batch_size 256",
        # 200 epochs with batch 2,048, as in the paper, at the learning rate of EBM.
        "large-batch": f"{WRN} {EBM} --batch_size 2048",
        "sgld": f"{WRN} {EBM} {MEASURED}",
        "sgld-jem": f"{WRN} {EBM_JEM} {MEASURED}",
        "stable": f"{WRN} {EBM} {MEASURED} {STABLE}",
        "head": f"{WRN} {EBM} {MEASURED} {HEAD}",
        **{f"sgld-n{n}": f"{WRN} {EBM} {MEASURED} --sgld_batch_size {n}" for n in (128, 256)},
        "sgld-bn": f"{WRN} {ACCURACY}",
        # HDGE's appendix B: JEM's hyperparameters with another network.
        "resnet50": f"--arch resnet50 {EBM}",
        "accuracy": f"{WRN} {ACCURACY}",
        # Table 2's batch size, epochs and decay. The learning rate is SupCon's, .5 at batch 1024,
        # converted to this batch size and to a loss without SupCon's factor T/.07.
        "pretraining-bn": f"{WRN} --norm batch --optimizer sgd --lr .179 --batch_size 256 "
        "--weight_decay 7e-5 --sigma 0 --warmup_iters 1750 --n_epochs 200 "
        "--decay_epochs 60 120 160 --decay_rate .2",
        "pretraining": f"{WRN} --norm batch {SIMCLR} --n_epochs 1000 --decay_epochs {COSINE} "
        "--decay_rate .5",
        # SimCLR's pre-training, then 100 joint epochs: JointLoss's paper does not give all of its
        # settings. One schedule spans both parts, so its rate must not vanish before the second.
        "jointloss": f"--arch resnet50 {SIMCLR} --sigma 0 --n_epochs 1100 --pretrain_epochs 1000 "
        "--decay_epochs 600 900 1070 --decay_rate .3",
        # Madry et al., but stopped soon after the first decay, since robust accuracy falls from
        # then on (Rice et al. 2020).
        "adversarial-linf": f"{WRN} {MADRY} --weight_decay 2e-4 --n_epochs 120 --decay_epochs 114 "
        "--attack_step 2/255",
        # The defaults of the `robustness` library.
        "adversarial-l2": f"{WRN} {MADRY} --weight_decay 5e-4 --n_epochs 150 "
        "--decay_epochs 50 100 --attack_step .1 --no-random_init",
        # Sizes and rates of the flows' codes, which mirror or shift images. Glow's code has batch
        # 64 on each of 8 GPUs and no last epoch: here both are as in the other rows.
        "flow": "--levels 3 --depth 32 --width 512 --lr 1e-3 --batch_size 64 --warmup_iters 7030 "
        "--n_epochs 200 --decay_epochs 160 180 --decay_rate .3",
        # Half of the channels are factored out after each scale; no dense blocks.
        "residual-flow": f"{RESIDUAL} --levels 3 --depth 16 --width 512 --lr 1e-3 --batch_size 64 "
        "--warmup_iters 1000 --n_epochs 1000 --decay_epochs 1000",
        "probe": "",
        "ask": "",
    },
    "small": {
        "ebm": f"{SMALL} {SHORT} --contrast_k 16384 {MEASURED}",
        "batch256": f"{SMALL} {SHORT} --contrast_k 16384 --batch_size 256",
        # Twice the epochs at twice the batch size: as many updates as cross-entropy.
        "large-batch": f"{SMALL} {SHORT} --batch_size 128 --n_epochs 12 --decay_epochs 8 10 "
        f"{MEASURED}",
        # Half the paper's number of chains, in all rows of this scale.
        **{
            setting: f"{SMALL} {SHORT_SGLD} --contrast_k 16384 --sgld_batch_size {n} {MEASURED}"
            for setting, n in (("sgld", 32), ("sgld-n128", 64), ("sgld-n256", 128))
        },
        "sgld-jem": f"{SMALL} {SHORT_SGLD} --n_epochs 3 --decay_epochs 1 2 --sgld_batch_size 32 "
        f"{MEASURED}",
        "sgld-bn": f"{SMALL} {SHORT_SGLD} --norm batch --sgld_batch_size 32",
        # This WideResNet stands in for a ResNet-50, which has batch norm.
        "resnet50": f"{SMALL} --norm batch {SHORT} --contrast_k 16384",
        "jointloss": f"{SMALL} --norm batch --lr 1e-3 --batch_size 256 --n_epochs 6",
        "accuracy": f"{SMALL} {SHORT_BN} --contrast_k 16384",
        "pretraining": f"{SMALL} --norm none --lr 1e-3 --batch_size 256 --n_epochs 6",
        "pretraining-bn": f"{SMALL} {SHORT_BN}",
        **dict.fromkeys(
            ("adversarial-linf", "adversarial-l2"),
            f"{SMALL} {SHORT} --n_epochs 3 --decay_epochs 2 --n_steps_pgd_attack 4",
        ),
        "flow": f"{SHORT} --levels 3 --depth 8 --width 64 --lr 1e-3",
        "residual-flow": f"{SHORT} {RESIDUAL} --levels 3 --depth 4 --width 32 --lr 1e-3",
        "probe": "",
        "ask": "--max_images 2000",
    },
    "half": {
        "ebm": HALF,
        "batch256": f"{HALF} --batch_size 256",
        # Twice the epochs at twice the batch size: as many updates as cross-entropy.
        "large-batch": f"{HALF} --batch_size 128 --n_epochs 24 --decay_epochs 18 22",
        "accuracy": f"{HALF} {HALF_BN}",
        "pretraining-bn": f"{HALF_VIEWS} {HALF_BN} --decay_epochs 12 18 22",
        "pretraining": f"{HALF_VIEWS} --decay_epochs 18 22",
        "probe": "",
        "ladder": f"{HALF} --n_epochs 2 --decay_epochs 1",
        "stable": f"{HALF} {STABLE}",
        "head": f"{HALF} {HEAD}",
        **{f"stable-n{n}": f"{HALF} {STABLE} --sgld_batch_size {n}" for n in (128, 256)},
        "flow": f"{HALF_SCHEDULE} --levels 2 --depth 8 --width 128",
        "residual-flow": f"{HALF_SCHEDULE} {RESIDUAL} --levels 2 --depth 4 --width 64",
        "ask": "",
    },
    "smoke": {
        **dict.fromkeys(("ebm", "batch256"), f"{ONCE} --contrast_k 256 --log_gradients 3"),
        **dict.fromkeys(("large-batch", "pretraining", "pretraining-bn"), ONCE),
        **{
            f"{setting}{size}": f"{ONCE} --contrast_k 256 {more} --sgld_batch_size {n}"
            for setting, more in (("sgld", ONCE_SGLD), ("stable", f"{STABLE} {ONCE_SGLD}"))
            for size, n in (("", 8), ("-n128", 16), ("-n256", 32))
        },
        "sgld-jem": f"{ONCE} --contrast_k 256 {ONCE_SGLD} --sgld_batch_size 8",
        "head": f"{ONCE} --contrast_k 256 {HEAD} {ONCE_SGLD} --sgld_batch_size 8",
        "sgld-bn": f"{ONCE} --norm batch {ONCE_SGLD} --sgld_batch_size 8",
        "ladder": f"{ONCE} {ONCE_SGLD} --sgld_batch_size 8",
        "accuracy": f"{ONCE} --norm batch --contrast_k 256",
        "resnet50": f"{ONCE_RESNET} --contrast_k 256",
        "jointloss": ONCE_RESNET,
        **dict.fromkeys(("adversarial-linf", "adversarial-l2"), f"{ONCE} --n_steps_pgd_attack 2"),
        "flow": ONCE_FLOW,
        "residual-flow": f"{ONCE_FLOW} {RESIDUAL}",
        "probe": "--max_iter 20",
        "ask": "--max_images 40",
    },
}
WARM = ("small",)  # scales at which SGLD starts from a trained model
STAND_IN = {"smoke": "digits"}  # scale -> data set in place of each experiment's `dataset`


@dataclass(frozen=True)
class Table:
    """Experiments in `rows`, each with all `questions`. `overlays` are questions about several
    models at once: (name of the answer's folder, question, experiments)."""

    rows: tuple[str, ...]
    questions: tuple[str, ...] = ()
    overlays: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


TABLES = {
    name: Table(
        tuple(experiment for _, *experiments in declared["rows"] for experiment in experiments),
        tuple(declared["questions"]),
        tuple((overlay, q, tuple(names)) for overlay, q, names in declared.get("overlays", ())),
    )
    for name, declared in DECLARED.items()
}
# Where Inception is too slow for a CPU, FID uses the features of one network for all rows and
# seeds: REFERENCE stands for JUDGE's checkpoint; HALF_JUDGE is a model of pretrained/, so that
# numbers from several machines can be compared.
REFERENCE, HALF_JUDGE = "REFERENCE", "ce-cifar10-half"
# Scale -> values of the {fields} in the tables' questions.
BLANKS: dict[str, dict[str, str]] = {
    "paper": {
        "ood": "all",
        "few": "1000",
        "fid": "--n_samples 50000 --n_steps 1000",
        "hist": "--datasets cifar10_train svhn cifar10interp cifar100 celeba",
        "samples": "--n_sample_steps 1000",
    },
    "small": {
        "ood": "all textures faces",  # faces: since CelebA is missing; reported as faces
        "few": "200",
        "fid": f"--fid_features model --fid_model {REFERENCE} --n_samples 1000 --n_steps 40",
        "hist": "--ood_dataset all",
        "samples": "--n_sample_steps 50 --fresh_samples --buffer_size 200",
    },
    "half": {
        "ood": "all textures faces uniform",
        "few": "200",
        "fid": f"--fid_features model --fid_model {HALF_JUDGE} --sampling fresh --n_samples 1000 "
        "--n_steps 40 --chain_lengths 0 5 40 100 200",
        "hist": "--ood_dataset all",
        "samples": "--fresh_samples --buffer_size 1000 --sgld_batch_size 1000 --n_sample_steps 1 "
        f"--n_steps 40 --guidance .1 --fid_model {HALF_JUDGE}",
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


class Train(NamedTuple):
    """A job that trains an experiment with a seed."""

    name: str
    seed: int


class Point(NamedTuple):
    """A job that trains a run of a sweep: `flags` of train_wrn.py, with a seed."""

    name: str
    seed: int
    flags: tuple[str, ...]


class Ask(NamedTuple):
    """A job that runs a question on trained models; of an overlay with the name of its folder."""

    question: str
    runs: tuple[Train, ...]
    overlay: str | None = None


Job = Train | Point | Ask
JUDGE = Train("ce", 1)


def rows_at(scale: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the experiments `names` whose setting the scale has."""
    return tuple(name for name in names if EXPERIMENTS[name].setting in SCALES[scale])


def tables_at(scale: str) -> dict[str, Table]:
    """Return the tables that have rows at the scale, with these rows alone."""
    tables = {}
    for name, table in TABLES.items():
        overlays = tuple((overlay, q, rows_at(scale, n)) for overlay, q, n in table.overlays)
        tables[name] = Table(rows_at(scale, table.rows), table.questions, overlays)
    return {name: table for name, table in tables.items() if table.rows}


def needs(scale: str, job: Job) -> list[Train]:
    """Return the trainings that must end before the job can run."""
    if isinstance(job, Ask):
        judged = REFERENCE in question_words(scale, job.question, job.runs[0].name)
        return [*job.runs, *[JUDGE] * judged]
    if isinstance(job, Point):
        return []
    experiment = EXPERIMENTS[job.name]
    if experiment.start and (experiment.program == PROBE or scale in WARM):
        return [Train(experiment.start, job.seed)]
    return []


def folder(root: Path, scale: str, name: str, seed: int) -> Path:
    """Return the folder of a run or, with an overlay's name, of an answer about several models."""
    return root / scale / f"{name}-s{seed}"


def checkpoint(root: Path, scale: str, run: Train) -> str:
    return str(folder(root, scale, run.name, run.seed) / "last_ckpt.pt")


def train_command(root: Path, scale: str, run: Train | Point) -> list[str]:
    """Return program and flags that train a run from its beginning."""
    path = folder(root, scale, run.name, run.seed)
    output = ["--log_dir", str(path.parent), "--id", path.name]
    if isinstance(run, Point):
        return ["train_wrn.py", *run.flags, "--seed", str(run.seed), *output]
    experiment = EXPERIMENTS[run.name]
    argv = SCALES[scale][experiment.setting].split()
    if experiment.program != PROBE:  # a probe is deterministic and loads the network of its start
        argv += ["--dataset", STAND_IN.get(scale, experiment.dataset), *experiment.flags.split()]
        # A divergence ends the run: a restart would change the setting.
        argv = [*chain.from_iterable(by_flag(argv).values()), "--max_restarts", "0"]
    for start in needs(scale, run):
        argv += ["--load_path", checkpoint(root, scale, start)]
    if experiment.program != PROBE:
        argv += ["--seed", str(run.seed)]
    return [experiment.program, *argv, *output]


def by_flag(argv: Sequence[str]) -> dict[str, list[str]]:
    """Return flag -> the flag and its values. As in a parser, the last use of a flag counts."""
    flags: dict[str, list[str]] = {}
    for word in argv:
        if word.startswith("--"):
            flags.pop(word, None)
            flags[word] = []
        flags[next(reversed(flags))].append(word)
    return flags


def question_words(scale: str, question: str, experiment: str) -> list[str]:
    """Return the value of `--eval` and the flags after it, for a question about an experiment."""
    argv = question.format(**BLANKS[scale]).split()
    if "--max_images" not in argv and not argv[0].endswith("_samples"):
        argv += SCALES[scale]["ask"].split()
    if argv[0] in NOISY and noiseless(scale, experiment):
        argv += ["--sigma", "0"]
    return of_flow(argv, experiment) if EXPERIMENTS[experiment].program == FLOW else argv


def noiseless(scale: str, name: str) -> bool:
    """Return whether the experiment's network is trained on images without noise. It is evaluated
    without noise, too: noise that it never saw would cost it accuracy."""
    experiment = EXPERIMENTS[name]
    if experiment.program == PROBE and experiment.start is not None:
        return noiseless(scale, experiment.start)
    words = f"{SCALES[scale].get(experiment.setting, '')} {experiment.flags}".split()
    default = "0" if experiment.program in (FLOW, ADVERSARIAL) else None
    return by_flag(words).get("--sigma", ["--sigma", default])[1] == "0"


def of_flow(argv: Sequence[str], experiment: str) -> list[str]:
    """Adapt a question to a flow: no SGLD, which a flow does not need; without classes, only the
    score log p(x)."""
    question, flags = argv[0], by_flag(argv[1:])
    for name in ("--n_steps", "--chain_lengths"):
        flags.pop(name, None)
    if "--score_fn" in flags and "--class_cond" not in EXPERIMENTS[experiment].flags:
        flags["--score_fn"] = ["--score_fn", "px"]
    return [question, *chain.from_iterable(flags.values())]


def ask_command(root: Path, scale: str, job: Ask, trained: Sequence[Train] = ()) -> list[str]:
    """Return program and flags that run a question on the trained models (default: all of the job).
    Models of an overlay are labelled with the experiments' names."""
    runs = trained or job.runs
    command = ["eval_wrn_ebm.py", "--load_path", *(checkpoint(root, scale, run) for run in runs)]
    command += ["--eval", *question_words(scale, job.question, runs[0].name)]
    command = [checkpoint(root, scale, JUDGE) if word == REFERENCE else word for word in command]
    if job.overlay is None:
        return command
    output = folder(root, scale, job.overlay, runs[0].seed)
    return [*command, "--labels", *(run.name for run in runs), "--log_dir", str(output)]
