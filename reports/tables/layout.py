"""Which numbers each table shows."""

from __future__ import annotations

from dataclasses import dataclass

from reports.page.paper import SCORES


@dataclass(frozen=True)
class Block:
    """`keys`: the columns that are always there; what else begins with one of `prefixes` and was
    measured becomes a column of its own after them."""

    title: str
    keys: tuple[str, ...]
    prefixes: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    picture: str = "dots"  # dots, curves, robustness or none


SETS = ("svhn", "cifar10interp", "cifar100", "celeba")


def auroc(score: str) -> Block:
    prefix = f"auroc/{score}/"
    return Block(f"AUROC, {SCORES[score]}", tuple(prefix + name for name in SETS), (prefix,))


PX, PY = auroc("px"), auroc("py")
ACCURACY = Block("Classification", ("accuracy/cifar10",), ("accuracy/",))
STYLE_NOTE = (
    "The released code's contrastive score (Algorithm 1) where a row does not say otherwise; "
    "Eq. 13 prints another, which has rows of its own in Table 5."
)
SCHEDULE_NOTE = (
    "At scale 'paper' the energy-based rows follow the released code (200 epochs, x0.3 at 160 and "
    "180). HDGE's appendix refers to JEM's settings, whose schedule is another, 150 epochs with "
    "x0.3 at 50 and 100: JEM has a row with that one, too."
)
IGEBM_NOTE = (
    "IGEBM is here its objective, class-conditional SGLD alone, on JEM's network and with JEM's "
    "sampler: not its spectral norm, clipped chains or step size."
)
COST = Block("Cost of a training step", ("ms_per_step",), ("ms_per_step",))
TIME_NOTE = (
    "The time of a step is batch size / images per second, the median over epochs, of runs that "
    "may have shared their machine: read it as an order of magnitude. `scripts/bench.py` times "
    "steps side by side."
)
LAYOUTS = {
    "table1_ood": Layout(
        "Table 1: out-of-distribution detection of CIFAR-10 models",
        (PX, PY),
        (
            STYLE_NOTE,
            SCHEDULE_NOTE,
            IGEBM_NOTE,
            "Contrastive pretraining is SimCLR and a linear classifier on frozen features; at "
            "scale 'paper' with batch norm.",
            "The paper quotes JointLoss's numbers, and its recipe is not published in full: here "
            "it is SimCLR's pre-training, then joint training (at scale 'paper' 1000 and 100 "
            "epochs), scored as all rows are.",
            "The deviations beside the paper's numbers are those of its Table 4.",
        ),
    ),
    "table2_classification": Layout(
        "Table 2: classification with batch norm",
        (Block("Classification", ("accuracy/cifar10", "accuracy/cifar100"), ("accuracy/",)),),
        (
            "The paper does not say whether its model of log q(x|y) alone was classified by its "
            "logits or by a linear probe: both are trained here.",
            "At scale 'paper' batch, epochs and decays are those of the paper's Table 2 for every "
            "row, SupCon's included; its rate is that of its released code, for this batch.",
        ),
    ),
    "table3_hybrid": Layout(
        "Table 3: hybrid models of CIFAR-10",
        (
            Block(
                "Accuracy, Inception Score and FID",
                ("accuracy/cifar10", "is/inception", "fid/inception"),
                ("accuracy/", "is/", "fid/"),
            ),
        ),
        (
            SCHEDULE_NOTE,
            IGEBM_NOTE,
            "FID and Inception Score of other features or fewer samples have columns of their own. "
            "Of a network's own features they tell nothing about another network's samples.",
        ),
    ),
    "table5_variants": Layout(
        "Table 5: variants of the contrastive term",
        (PX, PY, ACCURACY),
        (
            STYLE_NOTE,
            "Eq. 13's rows go beyond the paper.",
            "SimCLR style takes batches of 2,048 at scale 'paper' and, in as many epochs, a "
            "thirty-second of the updates; at scale 'small' epochs are added until the updates are "
            "as many.",
        ),
    ),
    "table6_negatives": Layout(
        "Table 6: numbers of negatives (HDGE) and of chains (JEM)",
        (PX, COST),
        (TIME_NOTE,),
    ),
    "figure1_histograms": Layout(
        "Figure 1: log q(x) of CIFAR-10 and of OOD images",
        (Block("AUROC, log q(x)", tuple(f"hist/px/{name}" for name in SETS), ("hist/",)),),
        ("AUROC of the sets whose histograms the figure shows.",),
    ),
    "figure2_calibration": Layout(
        "Figure 2: calibration on CIFAR-100",
        (
            Block(
                "20 bins of equal width",
                ("ece_accuracy/cifar100", "ece/cifar100"),
                ("ece_accuracy/", "ece/"),
            ),
        ),
    ),
    "figure3_samples": Layout(
        "Figure 3: class-conditional samples",
        (Block("What was drawn", ("samples/n", "samples/steps"), ("samples/",)),),
        picture="none",
    ),
    "figure4_robustness": Layout(
        "Figure 4: accuracy under attack",
        (
            Block("PGD, L\N{INFINITY}: accuracy (%) at a radius", (), ("robust/Linf/",)),
            Block("PGD, L2: accuracy (%) at a radius", (), ("robust/L2/",)),
        ),
        (
            "Radii are in pixels of [0, 1]. The paper prints curves and no numbers.",
            "At scale 'paper' adversarial training follows Madry et al. for L\N{INFINITY}, ended "
            "at epoch 120, before robust accuracy falls again, and the robustness library for L2.",
        ),
        picture="robustness",
    ),
    "figure5_negatives": Layout(
        "Figure 5: accuracy against the number of negatives",
        (Block("Classification", ("accuracy/cifar100",), ("accuracy/",)),),
        ("The paper prints a curve and no numbers.",),
        picture="curves",
    ),
    "alpha": Layout(
        "Equation 14: alpha log q(y|x) + (1 - alpha) log q(x|y)",
        (ACCURACY, PX, PY),
        (
            STYLE_NOTE,
            "The paper says that .5 is best and prints no numbers.",
            "With Adam the same weights times 2 are the same training but for rounding: alpha = .5 "
            "is Table 1's HDGE, whose seeds tell how far two runs of one recipe differ.",
        ),
        picture="curves",
    ),
    "sampler": Layout(
        "From JEM's sampler to a stable one",
        (
            Block("Classification", ("accuracy/cifar10", "ece/cifar10"), ("accuracy/", "ece/")),
            Block(PX.title, PX.keys, (*PX.prefixes, "mean_auroc/px/")),
            Block(
                "Class-conditional samples",
                (),
                ("chain_fid/", "precision/samples/", "recall/samples/", "read_as_asked/"),
            ),
            COST,
        ),
        (
            "Each row is the one above it and one change more; the first is JEM with its paper's "
            "sampler, from scratch. Not of the papers.",
            "A run that diverges ends there: 'Runs' says how many did.",
            "FID, precision and recall compare new chains, and the starts of the same chains, with "
            "as many training images.",
            TIME_NOTE,
        ),
    ),
}
