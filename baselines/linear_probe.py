#!/usr/bin/env python3
"""Give a trained network a new class head: logistic regression on its frozen features.

    python baselines/linear_probe.py --load_path save/supcon/last_ckpt.pt
    python eval_wrn_ebm.py --load_path save/supcon-probe/last_ckpt.pt --eval test_clf

For networks that were trained without a classifier, and to ask what the features of any other
are worth. Features are computed once, in eval mode, standardised and fitted by L-BFGS for every
--l2; the one with the best validation accuracy becomes `class_output`. The backbone's weights are
untouched.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the packages are not installed

from baselines.flags import make_parser, parse
from runs.cli import COUNT, WEIGHT, WHOLE, Parser, UsageError, check_id, check_utf8
from runs.names import FOLDER, NORMS
from training.flags import check_dataset

PROGRAM = "linear_probe.py"


# fmt: off
def build_parser() -> Parser:
    parser = make_parser(
        PROGRAM,
        "Fit a class head to the frozen features of a trained network, by logistic regression, "
        "and write it as a run folder that eval_wrn_ebm.py reads.",
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
    """Raise UsageError."""
    s.dataset = s.dataset or None
    if s.dataset:
        check_dataset(s.dataset)
    check_id(s.id)
    check_utf8("--load_path", os.path.abspath(s.load_path))  # its folder names the probe


if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    COMMAND_LINE = parse(sys.argv[1:], build_parser, check)

import contextlib
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import data
import models
from baselines.features import Features, features_of_splits, fitted_heads
from evaluation.loading import trained_on
from runs import folder as records
from runs.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from runs.endings import exit_code
from runs.files import alone
from training.machine import choose_device, environment, load_data, use_threads, warn_of_leaks


@torch.no_grad()
def scores(head: nn.Linear, part: Features) -> dict[str, float]:
    """Return accuracy (0..1) and nll (nats) of the head's logits."""
    logits = head(part.x)
    right = (logits.argmax(1) == part.y).double().mean()
    return {"accuracy": right.item(), "nll": F.cross_entropy(logits, part.y).item()}


def probe(
    s: Namespace, found: dict[str, Features], num_classes: int, say: Any
) -> tuple[nn.Linear, dict[str, Any]]:
    """Return the head of the best --l2 and its row of progress.csv; `say` is told about each. Of
    equal validation accuracies the stronger penalty wins."""
    began, iterations = time.monotonic(), 0
    best: tuple[float, nn.Linear, dict[str, Any]] | None = None
    for l2, head, took in fitted_heads(found["train"], num_classes, s.l2, s.max_iter):
        iterations += took
        measured = {name: scores(head, part) for name, part in found.items()}
        nll = measured["train"]["nll"]
        row: dict[str, Any] = {"epoch": 0, "step": iterations}
        row |= {"seconds": round(time.monotonic() - began, 3), "images_per_s": "", "lr": ""}
        row |= {"loss": nll, "pyxce/loss": nll, "train_acc": measured["train"]["accuracy"]}
        for name in ("valid", "test"):
            row[f"{name}_acc"] = measured.get(name, {}).get("accuracy", "")
            row[f"{name}_loss"] = measured.get(name, {}).get("nll", "")
        row["l2"] = l2
        shown = (f"{name}_acc {part['accuracy']:.4g}" for name, part in measured.items())
        say(f"l2 {l2:g}: {took} iterations, {', '.join(shown)}")
        chosen_by = measured.get("valid", measured["train"])["accuracy"]
        if best is None or chosen_by > best[0]:
            best = chosen_by, head, row
    assert best is not None
    return best[1], best[2]


def load_backbone(
    s: Namespace, device: torch.device
) -> tuple[models.EnergyClassifier, dict[str, Any], data.Record]:
    """Return the model of --load_path, its run's settings, and the record of its training images.
    Set in `s` what is left to them."""
    try:
        state = read_checkpoint(s.load_path)
        told = models.run_settings(state, Path(s.load_path))
        network = models.network_settings(state, told, norm=s.norm)
        model = models.from_checkpoint(state, told, norm=s.norm).to(device).eval()
        record = data.Record.read(state.get("data"), told.settings.get("reader", 1))
    except (ValueError, TypeError) as error:  # a CheckpointError is one too
        where = "" if s.load_path in str(error) else f" {s.load_path}"
        raise CheckpointError(f"--load_path{where}: {error}") from None
    settings = {**told.settings, **network}
    s.image_size = model.image_size
    own = trained_on(settings, network["num_classes"], s.dataset)
    s.dataset = s.dataset or own
    if not s.dataset:
        raise UsageError(
            f"--load_path {s.load_path} does not tell its data set: give --dataset NAME"
        )
    moved = s.dataset != own and s.dataset.startswith(FOLDER)
    if moved and data.as_read_by(record, s.dataset, s.data_root, s.image_size) is not None:
        own = s.dataset
    if s.dataset == own:
        s.reader = record.reader
        s.n_valid = data.held_out_by(settings) if s.n_valid is None else s.n_valid
    if s.sigma is None:
        s.sigma = float(settings.get("sigma", 0.03))
    return model, settings, record


def work(s: Namespace) -> int:
    path = Path(s.load_path)
    s.id = s.id or f"{path.resolve().parent.name}-probe"
    folder = Path(s.log_dir) / s.id
    device = choose_device(s.device, exact=True)
    use_threads(s, device, PROGRAM)
    here = environment(device)
    records.check_free(folder, overwrite=s.overwrite, load_path=s.load_path)
    model, settings, record = load_backbone(s, device)
    model = model.to(memory_format=torch.channels_last)
    dataset = load_data(s, device, PROGRAM)
    warn_of_leaks(s, dataset, record, settings, PROGRAM)
    found = features_of_splits(model, dataset, s)
    if not all(bool(part.x.isfinite().all()) for part in found.values()):
        raise CheckpointError(f"--load_path {s.load_path}: its features are not finite")
    if "valid" not in found and len(s.l2) > 1:
        raise UsageError(
            "--n_valid 0 leaves no images to choose between the values of --l2: give one --l2"
        )
    with alone(folder, flag="--log_dir", program=PROGRAM):
        records.check_free(folder, overwrite=s.overwrite, load_path=s.load_path)
        records.create_run_folder(folder, overwrite=s.overwrite)
        # The backbone's settings, so that what reads runs knows its network, and over them ours.
        own = {**vars(s), "norm": settings["norm"], "num_classes": dataset.num_classes}
        settings = {**settings, **own, "program": PROGRAM, "method": "linear-probe", "resume": None}
        records.write_settings(folder, settings, here)
        book = records.Records(folder)
        try:
            sizes = ", ".join(f"{len(part.y):,} {name}" for name, part in found.items())
            count = found["train"].x.shape[1]
            book.say(f"{dataset.about}\n{s.dataset}: features ({count}) of {sizes} images")
            model.class_output, row = probe(s, found, dataset.num_classes, book.say)
            book.row(row)
            state = {
                "model_state_dict": model.state_dict(),
                "optimizer": {},
                "settings": settings,
                "progress": {"step": row["step"], "seconds": row["seconds"]},
                "random": {"cpu": torch.get_rng_state()},
                "data": data.Record.of(dataset, s.n_valid).state(),
            }
            save_checkpoint(state, folder / records.LAST)
            book.say(f"the best is l2 {row['l2']:g}; the run is in {folder}")
        finally:
            with contextlib.suppress(OSError):
                book.close()
    return 0


def main(settings: Namespace, given: set[str]) -> int:
    """Return the exit code: 0, 2 for a user's mistake or a disk that failed, 130 for Ctrl-C."""
    del given
    return exit_code(PROGRAM, lambda: work(settings), interrupted=f"{PROGRAM}: interrupted")


if __name__ == "__main__":
    sys.exit(main(*COMMAND_LINE))
