#!/usr/bin/env python3
"""Put one question to trained models: accuracy, calibration, OOD detection, samples, FID, attacks.

    python eval_wrn_ebm.py --load_path save/hdge/best_valid_ckpt.pt --eval OOD --ood_dataset all

An answer's path: checkpoint -> model; the named split -> batches with their noise -> a function of
`evaluation/` that returns numbers -> <log_dir>/<eval>.json, and pictures and arrays beside it.
"""

from __future__ import annotations

import sys

from evaluation import flags

if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    COMMAND_LINE = flags.parse(sys.argv[1:])

import contextlib
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import data
import models
from evaluation import figures, generation, neighbours, plots, robustness, sampling, tables, trained
from evaluation.asked import Asked, bar
from evaluation.calibration import calibration, fit_temperature
from evaluation.classification import classification, predictions
from evaluation.inception import inception_extractor
from evaluation.ood import detection
from evaluation.results import Answer
from evaluation.scores import check_scores, feature_bank, scores
from evaluation.trained import Trained
from runs import processes as distributed
from runs.checkpoint import CheckpointError, weights_file
from runs.cli import UsageError
from runs.endings import exit_code, leave
from runs.files import naming
from runs.screen import markdown, print_line, reversed_order
from training.machine import choose_device, environment

PROGRAM = "eval_wrn_ebm.py"
BESIDE = 6  # columns and rows of the samples beside their starts and training images
COLUMNS = 10  # of a class-conditional grid, and chains of a trajectory
LONGEST_TRAJECTORY = 1000  # SGLD steps; longer ones look the same and cost a round each
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
NAMES = {
    "px": "log q(x)",
    "py": "max q(y|x)",
    "pxy": "max f(x)[y]",
    "pxgrad": "-log |d log q(x)/dx|",
    "pxsim": "contrastive log q(x|y)",
    "knn": "- distance to the k-th neighbour",
    "entropy": "- entropy of q(y|x)",
}


@contextlib.contextmanager
def numbers_of(model: Trained) -> Iterator[None]:
    """What a broken model computes is not finite: say of which file."""
    try:
        yield
    except (UsageError, data.DataError, CheckpointError):
        raise
    except (ValueError, AssertionError) as error:
        raise UsageError(f"--load_path {model.path}: {error}") from None


# ------------------------------------------------------------------------------------- questions


def test_clf(asked: Asked, model: Trained) -> dict[str, Any]:
    found = asked.labelled(model)
    result = classification(model.model, asked.batches(found, model))
    if not math.isfinite(result["nll"]):
        raise UsageError(f"--load_path {model.path}: the logits are not finite: use another")
    return {"dataset": found.name, **result, "n_steps": asked.s.n_steps}


def eval_ece(asked: Asked, model: Trained) -> dict[str, Any]:
    found = asked.labelled(model)
    with numbers_of(model):
        logits, labels = predictions(model.model, asked.batches(found, model))
        result = calibration(logits, labels)
        temperature = validation_temperature(asked, model)
        scaled = None
        if temperature is not None:
            scaled = calibration(logits / temperature, labels)["ece"]
    return {
        "dataset": found.name,
        **result,
        "temperature": temperature,
        "ece_temperature": scaled,
    }


def validation_temperature(asked: Asked, model: Trained) -> float | None:
    """The temperature that suits the validation images; None, said in a line, without any images
    and where they determine none."""
    try:
        found = asked.images(data.split_name(asked.known(model), "valid"), model)
    except data.DataError as error:
        asked.warn(f"no temperature scaling: {error}")
        return None
    temperature = fit_temperature(*predictions(model.model, asked.batches(found, model)))
    if temperature is None:
        asked.warn(
            f"no temperature scaling: the {len(found.split.labels):,} validation images determine "
            "no temperature (all are classified rightly, or no better than by chance)"
        )
    return temperature


def ood(asked: Asked, model: Trained) -> dict[str, Any]:
    s = asked.s
    names = list(dict.fromkeys(s.score_fn))
    bank, contrastive = prepare_scores(asked, model, names)
    inside = asked.asked_about(model)
    outside, skipped = ood_sets(asked, model, inside)

    def of(found: data.EvaluationSet) -> dict[str, np.ndarray]:
        batches = asked.batches(found, model)
        return scores(model.model, batches, names, contrastive=contrastive, bank=bank, k=s.knn_k)

    raw: dict[str, Any] = {}
    score_in, rows = of(inside), []
    for found in outside:
        score_out = of(found)
        raw |= {f"{model.label}/{found.name}/{name}": score_out[name] for name in names}
        with numbers_of(model):
            rows += [
                {
                    "ood_dataset": found.name,
                    "score_fn": name,
                    **detection(score_in[name], score_out[name]),
                }
                for name in names
            ]
    raw |= {f"{model.label}/{inside.name}/{name}": score_in[name] for name in names}
    return {"in_dataset": inside.name, "rows": rows, "skipped": skipped, "_raw": raw}


def prepare_scores(asked: Asked, model: Trained, names: list[str]) -> tuple[Tensor | None, Any]:
    """What knn and pxsim compare with. Raises UsageError before any image is looked at."""
    s = asked.s
    check_scores(model.model, [name for name in names if name not in ("knn", "pxsim")])
    contrastive = model.contrastive(s) if "pxsim" in names else None
    if contrastive is not None:
        check_scores(model.model, ["pxsim"], contrastive=contrastive)
    if "knn" not in names:
        return None, contrastive
    try:
        train = asked.images(data.split_name(asked.known(model), "train"), model)
    except data.DataError as error:
        raise UsageError(f"--score_fn knn needs the training images: {error}") from None
    return feature_bank(model.model, asked.batches(train, model)), contrastive


def ood_sets(
    asked: Asked, model: Trained, inside: data.EvaluationSet
) -> tuple[list[data.EvaluationSet], list[dict[str, str]]]:
    """The sets of --ood_dataset, and what `all` names and cannot be had. Raises UsageError where
    none is left, and for the in-distribution set itself."""
    found: dict[str, data.EvaluationSet] = {}
    skipped = []
    base = trained.trainable(inside.name) or asked.known(model)
    for name in asked.s.ood_dataset:
        for each in data.all_ood(base) if name == "all" else [name]:
            try:
                one = asked.images(each, model, "--ood_dataset")
            except data.DataError as error:
                if name != "all":
                    raise
                asked.warn(f"left out of all: {error}")
                skipped.append({"ood_dataset": each, "reason": str(error)})
                continue
            if one.name != inside.name:
                found.setdefault(one.name, one)
            elif len(asked.s.load_path) > 1:  # one model's own set is another's OOD set
                skipped.append({"ood_dataset": each, "reason": "in-distribution"})
            else:
                raise UsageError(f"--ood_dataset {each} is the in-distribution set: give another")
    if not found:
        names = " ".join(asked.s.ood_dataset)
        raise UsageError(f"--ood_dataset {names}: no set is left for {model.path}: give another")
    return list(found.values()), skipped


def logp_hist(asked: Asked, model: Trained) -> dict[str, Any]:
    s = asked.s
    (name,) = s.score_fn
    bank, contrastive = prepare_scores(asked, model, [name])
    skipped: list[dict[str, str]] = []
    if s.datasets is None:
        inside = asked.asked_about(model)
        outside, skipped = ood_sets(asked, model, inside)
        sets = [inside, *outside]
    else:
        sets = [asked.images(each, model, "--datasets") for each in s.datasets]
    if len({found.name for found in sets}) < len(sets):
        raise UsageError(f"--datasets {' '.join(s.datasets)} names a set twice: give each once")

    raw: dict[str, np.ndarray] = {}
    summary: dict[str, Any] = {}
    for found in sets:
        batches = asked.batches(found, model)
        options: dict[str, Any] = {"contrastive": contrastive, "bank": bank, "k": s.knn_k}
        values = scores(model.model, batches, [name], **options)[name]
        raw[found.name] = values
        with numbers_of(model):
            auroc = detection(raw[sets[0].name], values)["auroc"]
        summary[found.name] = {
            "title": found.title,
            "n": len(values),
            "mean": float(values.mean()),
            "std": float(values.std()),
            "quantiles": {f"{q:g}": float(np.quantile(values, q)) for q in QUANTILES},
            "auroc": None if found is sets[0] else auroc,
        }
    keys = {f"{model.label}/{each}/{name}": values for each, values in raw.items()}
    picture = {
        "label": model.label,
        "in": (sets[0].title, raw[sets[0].name]),
        "out": [(f.title, raw[f.name], summary[f.name]["auroc"]) for f in sets[1:]],
    }
    return {
        "datasets": list(summary),
        "score_fn": name,
        "sets": summary,
        "skipped": skipped,
        "_raw": keys,
        "_picture": picture,
    }


def uncond_samples(asked: Asked, model: Trained) -> dict[str, Any]:
    s, buffer = asked.s, model.replay_buffer(asked.s, 1)
    check_chains(s, buffer, 1)
    training = training_images(asked, model)
    begun = sampling.Begun(buffer)
    rounds = sampling.sampling_rounds(model.model, buffer, **chains_of(asked, model), begun=begun)

    def draw(images: Tensor, path: Path, last: bool) -> None:
        plots.save_grid(images, path.with_suffix(".png"))

    watch(asked, model, rounds, "uncond_samples", draw)
    images, starts = buffer.images[begun.drawn], begun.images[begun.drawn]
    with numbers_of(model):
        sampling.check_finite(images, s.n_sample_steps * s.n_steps)
    saved = sampling.to_uint8(images), sampling.to_uint8(starts)
    save_samples(asked, "uncond_samples.npz", *saved)
    save_trajectory(asked, model, None)
    beside = beside_training(asked, training, *saved, None)
    return {"n": len(images), **steps_of(s, len(images)), **beside}


def cond_samples(asked: Asked, model: Trained) -> dict[str, Any]:
    s, classes = asked.s, model.num_classes
    direct = model.replay_buffer(s, classes)
    check_chains(s, direct, classes)
    judge, training = classifier(asked, model), training_images(asked, model)
    begun = sampling.Begun(direct)
    rounds = sampling.conditional_rounds(
        model.model, direct, classes, **chains_of(asked, model), begun=begun
    )
    of_class = direct.classes(torch.arange(len(direct.images), device=direct.images.device))

    def draw(_: Tensor, path: Path, last: bool) -> None:
        """One class a row: slots that chains of that class have moved."""
        images, labels = direct.images[begun.drawn], of_class[begun.drawn]
        class_rows(padded_rows(images, labels, classes, COLUMNS), path, classes, last)

    watch(asked, model, rounds, "cond_samples_direct", draw)
    labels = of_class[begun.drawn]
    sets = direct.images[begun.drawn], begun.images[begun.drawn]
    saved = sampling.to_uint8(sets[0]), sampling.to_uint8(sets[1])
    save_samples(asked, "cond_samples.npz", *saved, labels)
    judged = beside_training(asked, training, *saved, labels)
    if judge is not None:
        judged["read_as_asked"], _ = reading(judge, {1: saved[0], 0: saved[1]}, labels, 1)

    counts = classified_samples(asked, model)
    save_trajectory(asked, model, torch.arange(min(COLUMNS, classes), device=asked.device))
    steps = steps_of(s, len(labels))
    return {"n": len(labels), **steps, "classified_per_class": counts, **judged}


def classified_samples(asked: Asked, model: Trained) -> list[int]:
    """Draw class-conditional samples the ancestors' way: unconditional ones, in the row of the
    class they look like. Returns the number of samples of each class."""
    classes, counts = model.num_classes, list[int]()
    buffer = model.replay_buffer(asked.s, classes)
    begun = sampling.Begun(buffer)

    def draw(_: Tensor, path: Path, last: bool) -> None:
        images, found = sampling.most_confident(
            model.model, buffer.images[begun.drawn], per_class=COLUMNS
        )
        counts[:] = found.tolist()
        class_rows(images, path, classes, last)

    rounds = sampling.sampling_rounds(model.model, buffer, **chains_of(asked, model), begun=begun)
    watch(asked, model, rounds, "cond_samples_classified", draw)
    return counts


def training_images(asked: Asked, model: Trained) -> data.EvaluationSet | None:
    """The images that the model was trained on; None, said in a line, where they cannot be read."""
    try:
        own = asked.known(model)
        own_data(asked, model, "leave it out")
        return asked.images(data.split_name(own, "train"), model)
    except data.DataError as error:
        found: Exception = error
    except UsageError as error:
        found = error
    if asked.s.dataset is not None:
        raise found
    asked.warn(f"samples are not compared with training images: {found}")
    return None


def beside_training(
    asked: Asked,
    training: data.EvaluationSet | None,
    samples: Tensor,
    starts: Tensor,
    labels: Tensor | None,
) -> dict[str, Any]:
    """Numbers and a picture of samples uint8 (N, H, W, 3), where their chains began, and the
    nearest training images, where there are any: of their own class where `labels` (N,) are
    given."""
    sets, numbers = {"start": starts, "sample": samples}, dict[str, Any]()
    of_class = torch.zeros_like(samples[:, 0, 0, 0], dtype=torch.int64)
    of_class = of_class if labels is None else labels
    if training is not None:
        data_images, of_data = training.split.images, training.split.labels
        of_data = torch.zeros_like(of_data) if labels is None else of_data
        try:
            numbers, index = neighbours.compare_with_training(
                samples, starts, of_class, data_images, of_data
            )
            sets["nearest training image"] = data_images[index]
        except ValueError as error:
            asked.warn(f"samples are not compared with training images: {error}")
    grids = {name: data.to_float(images) for name, images in sets.items()}
    if labels is None:
        columns, names = BESIDE, list[str]()
        grids = {name: each[: BESIDE * BESIDE] for name, each in grids.items()}
    else:
        columns, names = 3, [str(y) for y in range(int(labels.max()) + 1)]
        grids = {n: padded_rows(each, labels, len(names), columns) for n, each in grids.items()}
    asked.answer.picture(
        f"{asked.s.eval}_starts",
        lambda path: plots.save_side_by_side(grids, path, columns=columns, row_labels=names),
    )
    return numbers


def padded_rows(images: Tensor, labels: Tensor, classes: int, columns: int) -> Tensor:
    """The first `columns` images of each class in a row of its own; missing ones are black."""
    rows = []
    for y in range(classes):
        row = images[labels == y][:columns]
        black = row.new_full((columns - len(row), *row.shape[1:]), -1.0)
        rows.append(torch.cat([row, black]))
    return torch.cat(rows)


def classifier(asked: Asked, model: Trained) -> Trained | None:
    """The network of --fid_model. Raises UsageError where it has other classes and is to read
    class-conditional samples."""
    s = asked.s
    if s.fid_model is None:
        return None
    plain = Namespace(**{**vars(s), **dict.fromkeys((*flags.NETWORK, "weights"))})
    with naming_flag("--fid_model"):
        other = trained.load(s.fid_model, "features", plain, asked.device)
    if s.eval == "fid" and s.sampling != "class":
        return other
    if other.num_classes != model.num_classes:
        raise UsageError(
            f"--fid_model {other.path} has {other.num_classes} classes, the model of {model.path} "
            f"{model.num_classes}: give a classifier of the same classes"
        )
    if other.sha256 == model.sha256:
        asked.warn(f"--fid_model {other.path} reads its own samples: use an independent classifier")
    return other


def reading(
    judge: Trained, images: Mapping[int, Tensor], labels: Tensor, steps: int
) -> tuple[dict[str, Any], dict[int, float]]:
    """How a classifier reads class-conditional chains uint8 (N, H, W, 3), by their SGLD steps: what
    `generation.read_as_asked` says of those after `steps` and 0, and the share of each."""
    extractor = generation.model_extractor(judge.model)
    right = {at: generation.reads_as(extractor, each, labels) for at, each in images.items()}
    found = generation.read_as_asked(right[steps], right[0], labels)
    about = {"classifier": str(judge.path), "classifier_sha256": judge.sha256}
    return {**about, **found}, {at: float(each.mean()) for at, each in right.items()}


def steps_of(s: Namespace, n: int) -> dict[str, Any]:
    """SGLD steps in all, and the mean over the n samples of what each of them has taken."""
    steps = s.n_sample_steps * s.n_steps
    return {"steps": steps, "steps_per_sample": steps * s.sgld_batch_size / n}


def check_chains(s: Namespace, buffer: Any, classes: int) -> None:
    size = len(buffer.images) // classes
    chains = -(-s.sgld_batch_size // classes)
    if chains > size:
        of = "" if classes == 1 else " of a class"
        raise UsageError(
            f"--sgld_batch_size {s.sgld_batch_size} is more than the {size * classes} slots{of} "
            f"of the replay buffer allow: use {size * classes} at most"
        )


def chains_of(asked: Asked, model: Trained) -> dict[str, Any]:
    s = asked.s
    sizes = {"rounds": s.n_sample_steps, "chains": s.sgld_batch_size}
    return {**sizes, "seed": s.seed, "chain": model.chain(s, s.n_steps, model.start(s))}


def watch(
    asked: Asked,
    model: Trained,
    rounds: Iterator[Tensor],
    name: str,
    draw: Callable[[Tensor, Path, bool], None],
) -> None:
    """Run the rounds under a progress bar, with a grid every --print_every rounds and at the end:
    draw(the round's images, path without suffix, whether it is the last).

    Raises UsageError where chains are no longer finite.
    """
    s = asked.s
    with bar(s.n_sample_steps, f"{model.label}: {name}", "round") as shown:
        for done, images in enumerate(rounds, 1):
            shown.update()
            if done % s.print_every and done != s.n_sample_steps:
                continue
            with numbers_of(model):
                sampling.check_finite(images, done * s.n_steps)
            with torch.no_grad(), models.eval_mode(model.model):
                height = float(model.model.log_px(images).mean())
            if not distributed.first():
                continue
            shown.set_postfix({"log q(x)": f"{height:.4g}"})
            path = asked.answer.path(f"{name}_{done * s.n_steps}.png")
            with naming(path):
                draw(images, path.with_suffix(""), done == s.n_sample_steps)
            if path.with_suffix(".pdf").exists():
                asked.answer.path(path.with_suffix(".pdf").name)


def save_samples(
    asked: Asked, name: str, images: Tensor, starts: Tensor | None, labels: Tensor | None = None
) -> None:
    """Write images uint8 (N, H, W, 3), and where their chains began, under the names that a data
    set has, so that it can be one."""
    sets = {"test_images": images, "start_images": starts, "test_labels": labels}
    arrays: dict[str, Any] = {k: each.cpu().numpy() for k, each in sets.items() if each is not None}
    asked.answer.add(name, lambda path: np.savez_compressed(path, **arrays))


def save_trajectory(asked: Asked, model: Trained, labels: Tensor | None) -> None:
    s = asked.s
    steps = min(s.n_sample_steps * s.n_steps, LONGEST_TRAJECTORY)
    snapshots = min(10, steps)
    images = sampling.trajectory(
        model.model,
        model.chain(s, steps, model.start(s)),
        n=COLUMNS if labels is None else len(labels),
        snapshots=snapshots,
        seed=s.seed,
        labels=labels,
    )
    columns = [str(step) for step in sampling.snapshot_steps(steps, snapshots)]
    classes = [] if labels is None else [str(label) for label in labels.tolist()]
    asked.answer.picture(
        f"{s.eval}_trajectory",
        lambda path: plots.save_labelled_grid(
            images.flatten(0, 1),
            path,
            row_labels=classes,
            column_labels=columns,
            xlabel="SGLD steps",
        ),
    )


def class_rows(images: Tensor, path: Path, classes: int, last: bool) -> None:
    """One class a row, with its number; on the way a plain grid, which is quicker to make."""
    if not last:
        plots.save_grid(images, path.with_suffix(".png"), COLUMNS)
        return
    labels = [str(label) for label in range(classes)]
    plots.save_labelled_grid(images, path, row_labels=labels, columns=COLUMNS)


def own_data(asked: Asked, model: Trained, remedy: str) -> str:
    """The data set that the model was trained on. Raises UsageError where --dataset is another."""
    own = asked.known(model)
    if asked.s.dataset is not None and trained.trainable(asked.s.dataset) != own:
        raise UsageError(
            f"--dataset {asked.s.dataset}: {model.path} was trained on {own}; {remedy}"
        )
    return own


def fid(asked: Asked, model: Trained) -> dict[str, Any]:
    s = asked.s
    reference, names, real = reference_for_fid(asked, model)
    if not distributed.first():  # helps to sample; features are quick, and one network's to read
        samples_for_fid(asked, model)
        return {}
    judge = classifier(asked, model)
    extractor, features, sha256 = feature_extractor(asked, judge or model)

    images, others = samples_for_fid(asked, model)
    score_part = None
    if s.sampling == "confident":
        shares = (0.9, 0.1)  # for the FID and for the score
        best, few = generation.most_confident_parts(model.model, images, shares=shares)
        images, score_part = images[best], sampling.to_uint8(images[few])
    splits = 10
    if score_part is not None:
        splits = max(1, len(score_part) // 5000)  # JEM++'s rule
    labels = labels_for_fid(asked, model, len(images))
    pixels = sampling.to_uint8(images)
    others = {steps: sampling.to_uint8(each) for steps, each in others.items()}
    steps = s.n_steps if s.sampling in flags.FROM_STARTS else None
    with numbers_of(model):
        result = generation.evaluate_samples(
            pixels,
            reference,
            extractor,
            score_part=score_part,
            splits=splits,
            others=others,
            steps=steps,
            real=real,
        )
    if labels is not None and judge is not None:
        chains = {**others, s.n_steps: pixels}
        result["read_as_asked"], read = reading(judge, chains, labels, s.n_steps)
        result["rows"] = [r | {"read_as_asked": read.get(r["steps"])} for r in result["rows"]]
    if not result["full_rank"]:
        asked.warn(
            f"{min(result['n'], result['n_reference']):,} images give no covariance of full rank "
            f"for {result['n_features']:,} features: the FID compares only at the same number; "
            "give more --n_samples"
        )
    asked.answer.add("fid_samples.png", lambda path: plots.save_grid(images[:100], path, 10))
    save_samples(asked, "fid_samples.npz", pixels, others.get(0), labels)
    return {
        **result,
        "sampling": s.sampling,
        "steps": steps,
        "features": features,
        "features_sha256": sha256,
        "reference": names,
        "rounding": "uint8",
    }


def reference_for_fid(asked: Asked, model: Trained) -> tuple[Tensor, str, str]:
    """The images uint8 (M, H, W, 3) to compare with, the names of their sets, and what they are."""
    s = asked.s
    own = own_data(asked, model, "to compare with other images give --reference")
    train = data.split_name(own, "train")
    sets = [asked.images(s.reference or train, model, "--reference")]
    if s.sampling == "confident" and s.reference is None:  # as SADA-JEM
        sets.append(asked.images(own, model, "--reference"))
    names = " + ".join(found.name for found in sets)
    images = torch.cat([found.split.images for found in sets])
    return images, names, "training images" if names == train else "reference images"


def labels_for_fid(asked: Asked, model: Trained, n: int) -> Tensor | None:
    """The classes (n,) of --sampling class, in turn."""
    if asked.s.sampling != "class":
        return None
    return torch.arange(n, device=asked.device) % model.num_classes


def feature_extractor(asked: Asked, network: Trained) -> tuple[Any, str, str]:
    """(extractor, its name, the sha256 of its weights): Inception, or the network's features."""
    s = asked.s
    if s.fid_features == "inception":
        weights = None if s.inception_weights is None else Path(s.inception_weights)
        extractor, sha256 = inception_extractor(weights, asked.device)
        return extractor, "inception-v3-compat (torch-fidelity)", sha256
    return generation.model_extractor(network.model), f"model {network.path}", network.sha256


@contextlib.contextmanager
def naming_flag(flag: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("--load_path", flag)) from None


def samples_for_fid(asked: Asked, model: Trained) -> tuple[Tensor, dict[int, Tensor]]:
    """float (N, 3, S, S): new chains, or the checkpoint's replay buffer; and the same new chains
    after 0 and --chain_lengths steps, by steps. Raises UsageError."""
    s = asked.s
    if s.sampling not in flags.FROM_STARTS:
        images = model.buffer_images("--sampling fresh samples from noise").to(asked.device)
        images = images[: s.max_images]
        with numbers_of(model):
            sampling.check_finite(images, 0)
        return images, {}
    n = min(s.n_samples, s.max_images or s.n_samples)
    part = distributed.share(-(-n // s.sgld_batch_size))
    seen = sorted({0, s.n_steps, *(s.chain_lengths or ())})
    chains = sampling.fresh_chains(
        model.model,
        model.chain(s, seen[-1], model.start(s)),
        n,
        seed=s.seed,
        batch_size=s.sgld_batch_size,
        labels=labels_for_fid(asked, model, n),
        part=part,
        seen=seen,
    )
    parts: dict[int, list[Tensor]] = {at: [torch.empty(0, device=asked.device)] for at in seen}
    with bar(
        min(part.stop * s.sgld_batch_size, n) - part.start * s.sgld_batch_size,
        f"{model.label}: {seen[-1]} SGLD steps",
    ) as shown:
        for batch in chains:
            for at, images in zip(seen, batch, strict=True):
                parts[at].append(images)
            shown.update(len(batch[0]))
    found = {at: distributed.joined(torch.cat(each[1:] or each)) for at, each in parts.items()}
    for at, images in found.items():
        with numbers_of(model):
            sampling.check_finite(images, at)
    return found.pop(s.n_steps), found


def attack(asked: Asked, model: Trained) -> dict[str, Any]:
    s, found = asked.s, asked.labelled(model)
    radii = s.eps or (robustness.LINF_RADII if s.distance == "Linf" else robustness.L2_RADII)
    classify = robustness.classifier(model.model)
    generator = torch.Generator(asked.device).manual_seed(s.seed)
    if s.n_steps_refine:
        classify = robustness.refined_classifier(
            model.model,
            chain=model.chain(s, s.n_steps_refine),
            generator=generator,
            copies=s.n_dup_chains,
            sigma=s.refine_sigma,
            gradient=s.refine_gradient,
        )
    part = distributed.share(data.number_of_batches(found.split, s.batch_size))
    clean = data.evaluation_batches(found.split, batch_size=s.batch_size, sigma=0.0, part=part)
    batches = robustness.pixels(clean)
    if s.attack == "autoattack":
        with numbers_of(model):
            numbered = enumerate(batches, part.start)
            rows = autoattack(asked, model, classify, generator, numbered, radii)
    else:
        title = f"{model.label}: PGD, {len(radii)} radii"
        images = min(part.stop * s.batch_size, len(found.split.labels))
        images -= part.start * s.batch_size
        with numbers_of(model), bar(images, title) as shown:
            rows = robustness.robust_accuracy(
                classify,
                batches,
                distance=s.distance,
                radii=radii,
                steps=s.n_steps_pgd_attack,
                restarts=s.n_restarts,
                random_init=s.random_init,
                seed=s.seed,
                generator=generator,
                first=part.start,
                on_batch=shown.update,
            )
    return {
        "dataset": found.name,
        "n": len(found.split.labels),
        "distance": s.distance,
        "attack": s.attack,
        "steps": s.n_steps_pgd_attack if s.attack == "pgd" else None,
        "restarts": s.n_restarts if s.attack == "pgd" else None,
        "random_init": s.random_init if s.attack == "pgd" else None,
        "n_steps_refine": s.n_steps_refine,
        "refine_sigma": s.refine_sigma if s.n_steps_refine else None,
        "refine_gradient": s.refine_gradient if s.n_steps_refine else None,
        "rows": rows,
    }


def autoattack(
    asked: Asked,
    model: Trained,
    classify: Any,
    generator: torch.Generator,
    batches: Iterable[tuple[int, tuple[Tensor, Tensor]]],
    radii: Iterable[float],
) -> list[dict[str, float]]:
    """Batch by batch, each with its number and a seed of its own, so that processes can share
    them. `generator`: that `classify` draws from."""
    s, kept, rows = asked.s, list(batches), []
    for eps in bar_over(sorted(set(radii)), f"{model.label}: AutoAttack"):
        right = n = 0
        for number, (images, labels) in kept:
            seed = distributed.mixed(s.seed, number)
            generator.manual_seed(seed)
            accuracy = robustness.autoattack_accuracy(
                classify,
                images,
                labels,
                distance=s.distance,
                eps=eps,
                batch_size=s.batch_size,
                seed=seed % 2**31,
                version="rand" if s.n_steps_refine else "standard",
            )
            right, n = right + round(accuracy * len(labels)), n + len(labels)
        right, n = map(sum, zip(*distributed.all_of((right, n)), strict=True))
        rows.append({"eps": eps, "accuracy": right / n})
    return rows


def bar_over(items: list[float], title: str) -> Iterator[float]:
    with bar(len(items), title, "radius") as shown:
        for item in items:
            yield item
            shown.update()


QUESTIONS: dict[str, Callable[[Asked, Trained], dict[str, Any]]] = {
    "test_clf": test_clf,
    "eval_ece": eval_ece,
    "OOD": ood,
    "logp_hist": logp_hist,
    "uncond_samples": uncond_samples,
    "cond_samples": cond_samples,
    "fid": fid,
    "attack": attack,
}


# ---------------------------------------------------------------------------------------- answers


def say(message: str) -> None:
    print_line(message, sys.stdout)


def show(s: Namespace, answer: Answer, results: list[dict[str, Any]]) -> None:
    """The table on the screen, the pictures and the arrays of an answer."""
    several = len(results) > 1
    named = [{"model": r["label"], **r} for r in results]
    front = ["model"] if several else []
    if s.eval == "test_clf":
        say(markdown(named, [*front, "dataset", "n", "accuracy", "top5", "nll"]))
    elif s.eval == "eval_ece":
        columns = ["n", "accuracy", "ece", "nll", "brier", "temperature", "ece_temperature"]
        say(markdown(named, [*front, "dataset", *columns]))
        answer.picture("eval_ece", lambda path: figures.save_reliability(path, results))
    elif s.eval == "OOD":
        rows = [
            {**({"model": r["label"]} if several else {}), **row}
            for r in results
            for row in r["rows"]
        ]
        inside = {f"{r['label']}: {r['in_dataset']}": r["in_dataset"] for r in results}
        same = len(set(inside.values())) == 1
        title = ", ".join(set(inside.values()) if same else inside)
        table = f"In-distribution: {title}\n\n{tables.ood_table(rows)}"
        if told := reversed_order(rows):
            table += f"\n\n{told}"
        say(table)
        answer.add("OOD.md", lambda path: path.write_text(table + "\n", encoding="utf-8"))
    elif s.eval == "logp_hist":
        rows = [
            {"model": r["label"], "set": each["title"], **each}
            for r in results
            for each in r["sets"].values()
        ]
        say(markdown(rows, [*front, "set", "n", "mean", "std", "auroc"]))
        outside = [
            {**{k: row[k] for k in [*front, "auroc"]}, "ood_dataset": row["set"]}
            | {"score_fn": s.score_fn[0]}
            for row in rows
            if row["auroc"] is not None
        ]
        if told := reversed_order(outside):
            say(f"\n{told}")
        pictures = [r["_picture"] for r in results]
        label = NAMES[s.score_fn[0]]
        answer.picture(
            "logp_hist", lambda path: figures.save_histograms(path, pictures, xlabel=label)
        )
    elif s.eval == "attack":
        rows = [
            {**row, "model": r["label"], "eps": shown_radius(row["eps"], s.distance)}
            for r in results
            for row in r["rows"]
        ]
        say(markdown(rows, [*front, "eps", "accuracy"]))
        drawn = [{**r, "attack": attack_title(r)} for r in results]
        answer.picture("attack", lambda path: figures.save_robustness(path, drawn))
    else:
        for name, value in results[0].items():
            if value is None or isinstance(value, list | dict):
                continue
            if not name.startswith("_") and name not in ("label", "checkpoint_sha256"):
                say(f"{name:22} {value:.6g}" if isinstance(value, float) else f"{name:22} {value}")
        show_samples(s, answer, results[0])
    raw = {key: values for r in results for key, values in r.get("_raw", {}).items()}
    if raw:
        answer.add(f"{s.eval}_scores.npz", lambda path: np.savez_compressed(path, **raw))


def show_samples(s: Namespace, answer: Answer, result: dict[str, Any]) -> None:
    """The tables of samples and of fid, and the curve over --chain_lengths."""
    if s.eval != "fid":
        if table := tables.samples_table(result):
            say(f"\n{table}")
        return
    rows = result["rows"]
    say(f"\n{rows[0]['n']:,} images each, against as many others:\n\n{tables.fid_table(rows)}")
    if s.chain_lengths:
        answer.picture("fid_lengths", lambda path: figures.save_lengths(path, [result]))
        if told := generation.decline(rows):
            say(f"\n{told}")


def attack_title(result: dict[str, Any]) -> str:
    title = "AutoAttack" if result["attack"] == "autoattack" else f"PGD, {result['steps']} steps"
    steps, sigma = result["n_steps_refine"], result["refine_sigma"]
    noise = f"noise {sigma:g} and " if sigma else ""
    return f"{title}; {noise}{steps} SGLD steps before classifying" if steps else title


def shown_radius(eps: float, distance: str) -> str:
    return f"{eps * 255:.3g}/255" if distance == "Linf" else f"{eps:.4g}"


def answer_folder(s: Namespace) -> Path:
    beside = weights_file(Path(s.load_path[0])).resolve().parent
    folder = Path(s.log_dir) if s.log_dir else beside / "eval"
    return folder / s.id if s.id else folder


def one_size(models_asked: list[Trained]) -> int:
    """The side of the images that all of the models were trained on. Raises UsageError."""
    sizes = {model.model.image_size: model.path for model in models_asked}
    if len(sizes) > 1:
        listed = " and ".join(f"{size} x {size} ({path})" for size, path in sizes.items())
        raise UsageError(f"--load_path: the models see images of {listed}: ask one by one")
    return next(iter(sizes))


def protocol(asked: Asked, image_size: int) -> dict[str, Any]:
    """What else a number depends on; only what this question takes."""
    s = asked.s
    names = [
        name
        for name in ("sigma", "n_steps", "seed", "amp", "max_images")
        if s.eval in flags.BELONGS.get(name, flags.EVALUATIONS)
    ]
    return {
        "version": flags.PROTOCOL[s.eval],
        **{name: getattr(s, name) for name in names},
        "image_size": image_size,
        "sets": asked.about,
    }


def work(s: Namespace, given: set[str]) -> int:
    device = choose_device(s.device, exact=True)
    with distributed.together(device):
        return answer_together(s, given, device)


def answer_together(s: Namespace, given: set[str], device: torch.device) -> int:
    """What every process does: its share of the batches. The first one writes the answer."""
    began, here = time.monotonic(), environment(device)
    flags.resolve(s)
    s.labels = s.labels or trained.labels_of(s.load_path)
    asked_of = [
        trained.load(path, label, s, device)
        for path, label in zip(s.load_path, s.labels, strict=True)
    ]
    image_size = one_size(asked_of)
    answer = Answer(answer_folder(s), s.eval, dict(vars(s)))
    asked = Asked(s, answer, device)
    if "workers" in given and distributed.first():
        say(f"--workers {s.workers} has no effect: the images live on the device")

    results = []
    for model in asked_of:
        if "sigma" not in given and s.eval in flags.CLASSIFIED:
            mention_sigma(asked, model)
        model_result = QUESTIONS[s.eval](asked, model)
        where = {"label": model.label, "checkpoint": str(model.path)}
        about = {"checkpoint_sha256": model.sha256, "run": run_of(model)}
        if model.average:
            about["weights"] = model.average
        data_of = {"data": asked.differences.get(model.label)}
        results.append({**where, **model_result, **about, **data_of})
    if not distributed.first():
        return 0
    show(s, answer, results)

    clean = [{k: v for k, v in r.items() if not k.startswith("_")} for r in results]
    numbers = clean[0] if len(clean) == 1 else {"checkpoint": s.load_path, "models": clean}
    path = answer.save(
        {
            **numbers,
            "protocol": protocol(asked, image_size),
            "environment": here,
            "seconds": round(time.monotonic() - began, 2),
        }
    )
    say(f"the answer is in {path}")
    return 0


def mention_sigma(asked: Asked, model: Trained) -> None:
    """The protocol's noise is the same for every model; a run with another may do better at its
    own."""
    own = model.settings.get("sigma")
    if isinstance(own, int | float) and own != asked.s.sigma:
        asked.warn(
            f"{model.label} was trained with --sigma {own:g} and is asked with the protocol's "
            f"{asked.s.sigma:g}; give --sigma {own:g} for its own"
        )


def run_of(model: Trained) -> dict[str, Any]:
    """The run's own settings, and how far it was."""
    progress = model.state.get("progress", {})
    return {**model.settings, "step": progress.get("step")}


def main(settings: Namespace, given: set[str]) -> int:
    """The exit code: 0; 2 for a user's mistake or a disk that failed, 130 for Ctrl-C; each with one
    line on stderr."""
    s = settings
    return exit_code(
        PROGRAM,
        lambda: work(s, given),
        interrupted=f"\n{PROGRAM}: interrupted: no answer was written",
        lower=f"--batch_size {s.batch_size} or --sgld_batch_size {s.sgld_batch_size}",
    )


if __name__ == "__main__":
    leave(main(*COMMAND_LINE))
