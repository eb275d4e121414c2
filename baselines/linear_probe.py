#!/usr/bin/env python3
"""Give a trained network a new class head: logistic regression on its frozen features.

    python baselines/linear_probe.py --load_path save/supcon/last_ckpt.pt
    python eval_wrn_ebm.py --load_path save/supcon-probe/last_ckpt.pt --eval test_clf

Use it for a network trained without a classifier, or to measure the features of any network.
Features are computed once, in eval mode, and standardised. L-BFGS fits a head for each --l2; the
head with the best validation accuracy becomes `class_output`. The backbone does not change.
"""

import os
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the packages are not installed

from baselines.flags import make_parser, parse
from runs.cli import COUNT, WEIGHT, WHOLE, Parser, UsageError, check_id, check_utf8
from runs.names import NORMS
from runs.shared import name_of
from training.flags import check_dataset

PROGRAM = "linear_probe.py"


# fmt: off
def build_parser() -> Parser:
    parser = make_parser(
        PROGRAM,
        "Fit a class head to the frozen features of a trained network, by logistic regression, "
        "and write it as a run folder that eval_wrn_ebm.py reads.",
        check,
        share=("data_root", "log_dir", "overwrite", "device", "threads"),
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
    add("--l2", type=WEIGHT, nargs="+", default=[1e-5, 1e-4, 1e-3, 1e-2], metavar="W",
        help="penalty l2/2 ||W||^2 beside the mean cross-entropy, on standardised features; of "
        "several the one with the best validation accuracy is taken (default: 1e-5 to 1e-2)")
    add("--max_iter", type=COUNT, default=200, metavar="STEPS",
        help="L-BFGS iterations for each --l2 (default: %(default)s)")
    add("--norm", choices=NORMS, default=None,
        help="normalisation of the network, if the checkpoint does not record it")
    return parser


# fmt: on
def check(s: Namespace) -> None:
    """Name the new run. Raises UsageError."""
    s.dataset = s.dataset or None
    s.id = s.id or f"{name_of(s.load_path)}-probe"
    if s.dataset:
        check_dataset(s.dataset)
    check_id(s.id)
    check_utf8("--load_path", os.path.abspath(s.load_path))  # its folder names the probe


if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    COMMAND_LINE = parse(sys.argv[1:], build_parser, files=True)

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import data
import models
from evaluation import loading
from runs.checkpoint import CheckpointError, save_checkpoint
from runs.endings import exit_code
from runs.files import alone
from runs.folder import LAST, TRAINED_ON, Records, check_free, create_run_folder, write_settings
from training.build import held_out
from training.machine import choose_device, environment, load_data, use_threads, warn_of_leaks

BATCH = 200  # images per forward pass, as in evaluation; results do not depend on it
TRAIN_NOISE = 1  # seed of the noise on training images; evaluation's noise has seed 0


class Features(NamedTuple):
    """The backbone's features of a split's images, float32 (n, D), and labels int64 (n,)."""

    x: Tensor
    y: Tensor


@torch.no_grad()
def features_of_splits(
    model: models.EnergyClassifier, dataset: data.DataSet, s: Namespace
) -> dict[str, Features]:
    """Return the features of "train", and of "valid" and "test" unless they have no images.

    The model is in eval mode, and its mode is restored. Images get noise of deviation --sigma.
    Raises DataError where --n_valid leaves no training image.
    """
    index, splits = held_out(s, dataset)
    index = index.to(dataset.train.images.device)

    def features_of(split: data.Split, seed: int = 0) -> Features:
        batches = data.evaluation_batches(split, batch_size=BATCH, sigma=s.sigma, seed=seed)
        parts = [(model.features(images), labels) for images, labels in batches]
        return Features(*(torch.cat(part) for part in zip(*parts, strict=True)))

    with models.eval_mode(model):
        train = features_of(dataset.train.take(index), TRAIN_NOISE)
        return {"train": train, **{name: features_of(split) for name, split in splits.items()}}


def fitted_heads(
    train: Features, num_classes: int, penalties: Sequence[float], max_iter: int
) -> Iterator[tuple[float, nn.Linear, int]]:
    """Fit a head for each penalty l2, from the strongest to the weakest, with L-BFGS. Each fit
    starts from the weights of the fit before it, the first from zero. It minimises

        mean_n -log softmax(W z_n + b)[y_n] + l2/2 ||W||^2

    which is convex. Yields (l2, head, iterations). The fit is to z = (x - mean) / std, feature by
    feature (a constant feature has std 1); the yielded head takes x itself.
    """
    std, mean = torch.std_mean(train.x.double(), dim=0, correction=0)
    std = torch.where(std > 1e-12, std, 1.0)
    z = (train.x.double() - mean) / std
    weight = z.new_zeros(num_classes, z.shape[1]).requires_grad_(True)
    bias = z.new_zeros(num_classes).requires_grad_(True)

    def objective(l2: float) -> Tensor:
        weight.grad = bias.grad = None
        loss = F.cross_entropy(F.linear(z, weight, bias), train.y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    for l2 in sorted(penalties, reverse=True):
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=max_iter,
            history_size=20,
            tolerance_grad=1e-6,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )
        optimizer.step(partial(objective, l2))
        head = nn.Linear(z.shape[1], num_classes, device=z.device).requires_grad_(False)
        head.weight.copy_(weight.detach() / std)
        head.bias.copy_(bias.detach() - weight.detach() / std @ mean)
        yield l2, head, optimizer.state_dict()["state"][0]["n_iter"]


@torch.no_grad()
def scores(head: nn.Linear, features: Features) -> dict[str, float]:
    """Return accuracy (0..1) and nll (nats) of the head's logits."""
    logits = head(features.x)
    accuracy = (logits.argmax(1) == features.y).double().mean()
    return {"accuracy": accuracy.item(), "nll": F.cross_entropy(logits, features.y).item()}


def probe(
    s: Namespace, splits: dict[str, Features], num_classes: int, log: Callable[[str], object]
) -> tuple[nn.Linear, dict[str, Any]]:
    """Return the head of the best --l2 and its row of progress.csv; `log` gets a line for each
    --l2. Of equal validation accuracies the stronger penalty wins."""
    began, total_iterations = time.monotonic(), 0
    candidates: list[tuple[float, nn.Linear, dict[str, Any]]] = []
    for l2, head, iterations in fitted_heads(splits["train"], num_classes, s.l2, s.max_iter):
        total_iterations += iterations
        measured = {name: scores(head, features) for name, features in splits.items()}
        nll = measured["train"]["nll"]
        row: dict[str, Any] = {"epoch": 0, "step": total_iterations}
        row |= {"seconds": round(time.monotonic() - began, 3), "images_per_s": "", "lr": ""}
        row |= {"loss": nll, "pyxce/loss": nll, "train_acc": measured["train"]["accuracy"]}
        for name in ("valid", "test"):
            row[f"{name}_acc"] = measured.get(name, {}).get("accuracy", "")
            row[f"{name}_loss"] = measured.get(name, {}).get("nll", "")
        row["l2"] = l2
        accuracies = (f"{name}_acc {score['accuracy']:.4g}" for name, score in measured.items())
        log(f"l2 {l2:g}: {iterations} iterations, {', '.join(accuracies)}")
        candidates.append((measured.get("valid", measured["train"])["accuracy"], head, row))
    _, head, row = max(candidates, key=lambda candidate: candidate[0])  # the first of equal maxima
    return head, row


def load_backbone(
    s: Namespace, device: torch.device
) -> tuple[models.EnergyClassifier, dict[str, Any], data.Record]:
    """Return the model of --load_path, its run's settings, and the record of its training images.
    Set `s.image_size`, and where no flag sets them `dataset`, `sigma` and (for the run's own data
    set) `n_valid`, from the run. Raises CheckpointError or UsageError."""
    unset = dict.fromkeys((*loading.NETWORK, "weights", "amp"))
    loaded = loading.load(s.load_path, "", Namespace(**{**unset, **vars(s)}), device)
    if loaded.flow is not None:
        raise UsageError(f"--load_path {s.load_path} is a flow, no classifier: give another")
    run = models.run_settings(loaded.state, loaded.path)
    settings = run.settings | models.network_settings(loaded.state, run, norm=s.norm)
    s.image_size = loaded.network.image_size
    s.dataset = s.dataset or loaded.dataset
    if not s.dataset:
        raise UsageError(
            f"--load_path {s.load_path} does not name its data set: give --dataset NAME"
        )
    if s.dataset == loaded.dataset and s.n_valid is None:
        s.n_valid = data.held_out_by(settings)
    if s.sigma is None:
        s.sigma = float(settings.get("sigma", 0.03))
    return loaded.network, settings, loaded.record


def work(s: Namespace) -> int:
    folder = Path(s.log_dir) / s.id
    device = choose_device(s.device, exact=True)
    use_threads(s, device, PROGRAM)
    versions = environment(device)
    model, settings, record = load_backbone(s, device)
    dataset = load_data(s, device)
    warn_of_leaks(s, dataset, record, PROGRAM)
    splits = features_of_splits(model, dataset, s)
    if not all(bool(features.x.isfinite().all()) for features in splits.values()):
        raise CheckpointError(f"--load_path {s.load_path}: its features are not finite")
    if "valid" not in splits and len(s.l2) > 1:
        raise UsageError(
            "--n_valid 0 leaves no images to choose between the values of --l2: give one --l2"
        )
    with alone(folder, flag="--log_dir", program=PROGRAM):
        check_free(folder, overwrite=s.overwrite, load_path=s.load_path, resumes=False)
        create_run_folder(folder, overwrite=s.overwrite)
        # Other programs rebuild the backbone from its settings; the probe's settings override them.
        settings |= {**vars(s), "norm": settings["norm"], "num_classes": dataset.num_classes}
        settings |= {"method": "linear-probe", "resume": None}
        write_settings(folder, {**settings, TRAINED_ON: dataset.fingerprint()}, versions)
        records = Records(folder)
        try:
            sizes = ", ".join(f"{len(features.y):,} {name}" for name, features in splits.items())
            width = splits["train"].x.shape[1]
            records.say(f"{dataset.about}\n{s.dataset}: features ({width}) of {sizes} images")
            model.class_output, row = probe(s, splits, dataset.num_classes, records.say)
            records.row(row)
            state = {
                "model_state_dict": model.state_dict(),
                "optimizer": {},
                "settings": settings,
                "progress": {"step": row["step"], "seconds": row["seconds"]},
                "random": {"cpu": torch.get_rng_state()},
                "data": data.Record.of(dataset, s.n_valid).state(),
            }
            save_checkpoint(state, folder / LAST)
            records.say(f"the best is l2 {row['l2']:g}; the run is in {folder}")
        finally:
            with contextlib.suppress(OSError):
                records.close()
    return 0


def main(settings: Namespace, given: set[str]) -> int:
    """Return the exit code: 0; 2 for a user's mistake or a failed disk; 130 for Ctrl-C."""
    del given
    return exit_code(
        PROGRAM,
        lambda: work(settings),
        interrupted=f"{PROGRAM}: interrupted",
        lower="the number of images: --dataset takes a folder:PATH",
    )


if __name__ == "__main__":
    sys.exit(main(*COMMAND_LINE))
