"""Measure the quality of samples: FID, Inception Score, precision and recall."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evaluation.questions.base import (
    CHAINS,
    SGLD,
    Context,
    LoadedModel,
    Numbers,
    Question,
    Rule,
    Tensor,
)
from runs.cli import COUNT, WHOLE, UsageError, adder
from runs.screen import listed, markdown

NEW_CHAINS = ("fresh", "class")  # values of --sampling that run new chains
# JEM++ and SADA-JEM (`cond_is_fid` in their code) take the most confident images of each predicted
# class of the replay buffer: of m, int(.9 m) for the FID and int(.1 m) for the Inception Score.
SHARES = (0.9, 0.1)
JEM_SPLIT = 5000  # images of a split of the Inception Score in their code


def ask(context: Context, model: LoadedModel) -> Numbers:
    import torch

    import data
    from evaluation import figures, generation, sampling
    from runs import processes as distributed

    s = context.s
    steps = s.n_steps if s.sampling in NEW_CHAINS and model.flow is None else None
    reference, names, row_title = reference_images(context, model)
    if not distributed.first():  # other processes only help to sample: features are quick
        draw_samples(context, model, steps)
        return {}
    judge = load_judge(context, model)
    extractor, network = feature_extractor(context, judge or model)
    (chains, labels), score_part, splits = draw_samples(context, model, steps), None, 10
    if s.sampling == "confident":
        classes = sampling.most_confident(model.network, chains[None])
        top90, top10 = (torch.cat([c[: int(len(c) * p)] for c in classes]) for p in SHARES)
        top90 = top90[data.epoch_order(len(top90), seed=s.seed, epoch=0)]
        chains, score_part = {None: chains[None][top90]}, sampling.to_uint8(chains[None][top10])
        splits = max(1, len(score_part) // JEM_SPLIT)
    pixels = {step: sampling.to_uint8(images) for step, images in chains.items()}
    numbers = generation.evaluate_samples(
        pixels, steps, reference, extractor, score_part=score_part, splits=splits
    )
    numbers["rows"][-1]["images"] = row_title
    if labels is not None and model.flow is None:  # a flow has no chains to guide
        numbers["guidance"] = model.guidance
    if labels is not None and judge is not None:
        judgement = assess(judge, pixels[steps], pixels.get(0), labels)
        shares = {0: judgement.get("starts"), steps: judgement["samples"]}
        for row in numbers["rows"][:-1]:
            if (step := row["steps"]) not in shares:
                shares[step] = assess(judge, pixels[step], None, labels)["samples"]
            row["read_as_asked"] = shares[step]
        numbers["rows"][-1]["read_as_asked"] = None  # no class was requested
        numbers["read_as_asked"] = judgement
    if not numbers["full_rank"]:
        context.warn(
            f"{min(numbers['n'], numbers['n_reference']):,} images give no covariance of full rank "
            f"for {numbers['n_features']:,} features: the FID compares only at the same number; "
            "give more --n_samples"
        )
    context.files.add("fid_samples.png", figures.save_grid, chains[steps][:100], 10)
    context.save_images("fid_samples.npz", pixels[steps], pixels.get(0), labels)
    protocol = {"sampling": s.sampling, "steps": steps, **network, "reference": names}
    return {**numbers, **protocol, "rounding": "uint8"}


def reference_images(context: Context, model: LoadedModel) -> tuple[Tensor, str, str]:
    """Return reference images uint8 (M, H, W, 3), their sets' names and their row's title."""
    import torch

    import data

    s = context.s
    if s.reference is None:
        context.own_set(model, "to compare with other images give --reference")
    elif s.dataset is not None:
        context.own_set(model, "leave it out")
    train = data.split_name(model.dataset, "train")
    sets = [context.images(s.reference or train, model, "--reference")]
    if s.sampling == "confident" and s.reference is None:  # as SADA-JEM
        sets.append(context.images(model.dataset, model, "--reference"))
    names = " + ".join(reference.name for reference in sets)
    images = torch.cat([reference.split.images for reference in sets])
    return images, names, "training images" if names == train else "reference images"


def draw_samples(
    context: Context, model: LoadedModel, steps: int | None
) -> tuple[dict[int | None, Tensor], Tensor | None]:
    """Return images float (N, 3, S, S) by their number of SGLD steps: new chains after 0, `steps`
    and --chain_lengths. If `steps` is None, return the checkpoint's replay buffer or a flow's
    samples under the key None. With --sampling class also return their classes (N,).

    Raises UsageError and NotFinite.
    """
    import torch

    import data
    from evaluation import sampling
    from runs import processes as distributed

    s = context.s
    n = min(s.n_samples, s.max_images or s.n_samples)
    labels = None
    if s.sampling == "class":
        labels = torch.arange(n, device=context.device) % model.num_classes
    if model.flow is not None:
        return {None: sampling.flow_samples(model.flow, n, seed=s.seed)[0]}, labels
    if steps is None:
        images = model.buffer_images("--sampling fresh samples from noise").to(context.device)
        # Shuffled: the buffer is sorted by class, and `compared` takes the first images of a set.
        order = data.epoch_order(len(images), seed=s.seed, epoch=0, device=context.device)
        images = images[order[: s.max_images]]
        sampling.check_finite(images, 0)
        return {None: images}, None
    part = distributed.share(n, s.sgld_batch_size)
    lengths = sorted({0, steps, *(s.chain_lengths or ())})
    chains = sampling.fresh_chains(
        model.network,
        model.chain(lengths[-1], model.start()),
        part,
        seen=lengths,
        seed=s.seed,
        labels=labels,
    )
    with context.bar(part.stop - part.start, f"{model.label}: {lengths[-1]} SGLD steps") as bar:
        batches = []
        for batch in chains:
            batches.append(batch)
            bar.update(len(batch[0]))
    batches = batches or [[torch.empty(0, device=context.device)] * len(lengths)]
    samples: dict[int | None, Tensor] = {}
    for step, parts in zip(lengths, zip(*batches, strict=True), strict=True):
        samples[step] = distributed.joined(torch.cat(parts))
        sampling.check_finite(samples[step], step)
    return samples, labels


def feature_extractor(context: Context, model: LoadedModel) -> tuple[Any, dict[str, str]]:
    """Return the extractor of --fid_features, Inception or the model, and its name and sha256."""
    from evaluation.generation import model_extractor
    from evaluation.inception import inception_extractor

    s = context.s
    if s.fid_features == "model":
        extractor, sha256 = model_extractor(model.network), model.sha256
        name = f"model {model.path}"
    else:
        weights = None if s.inception_weights is None else Path(s.inception_weights)
        extractor, sha256 = inception_extractor(weights, context.device)
        name = "inception-v3-compat (torch-fidelity)"
    return extractor, {"features": name, "features_sha256": sha256}


def load_judge(context: Context, model: LoadedModel) -> LoadedModel | None:
    """Return the network of --fid_model or None, with its classes in the model's order. Raises
    UsageError for a flow, and where it would classify class-conditional samples but has other
    classes."""
    from evaluation.loading import load

    s = context.s
    if s.fid_model is None:
        return None
    flags = Namespace(**{**vars(s), **dict.fromkeys(("contrast_k", "weights", "dataset"))})
    judge = load(s.fid_model, "features", flags, context.device, flag="--fid_model")
    if judge.flow is not None:
        raise UsageError(f"--fid_model {judge.path} is a flow: give a classifier")
    if s.eval == "fid" and s.sampling != "class":
        return judge
    if judge.num_classes != model.num_classes:
        raise UsageError(
            f"--fid_model {judge.path} has {judge.num_classes} classes, the model of {model.path} "
            f"{model.num_classes}: give a classifier of the same classes"
        )
    records = judge.record, model.record
    # Numbers may stand for names, but not for those of another set, as SVHN's for CIFAR-10's.
    other_set = judge.dataset != model.dataset and all(record.class_names for record in records)
    if other_set or judge.record.other_classes(model.record):
        names, wanted = judge.class_names, model.class_names
        if set(names) != set(wanted):
            raise UsageError(
                f"--fid_model {judge.path} has the classes {listed(names)}, the model of "
                f"{model.path} {listed(wanted)}: give a classifier of the same classes"
            )
        head, order = judge.network.class_output, [names.index(name) for name in wanted]
        head.weight.data, head.bias.data = head.weight.data[order], head.bias.data[order]
    context.warn_of_untrained_head(judge)
    if judge.sha256 == model.sha256:
        context.warn(
            f"--fid_model {judge.path} reads its own samples: use an independent classifier"
        )
    return judge


def assess(judge: LoadedModel, samples: Tensor, starts: Tensor | None, labels: Tensor) -> Numbers:
    """Return `generation.read_as_asked` of the judge, with the judge's path and sha256."""
    from evaluation.generation import model_extractor, read_as_asked

    shares = read_as_asked(model_extractor(judge.network), samples, starts, labels)
    return {"classifier": str(judge.path), "classifier_sha256": judge.sha256, **shares}


def show(context: Context, results: list[Numbers]) -> None:
    from evaluation import figures, generation

    (result,) = results
    rows = result["rows"]
    context.say_values(result)
    context.say(f"\n{rows[0]['n']:,} images each, against as many others:\n")
    columns = ["images", "steps", "fid", "precision", "recall"]
    columns += ["read_as_asked"] * ("read_as_asked" in rows[0])
    headers = {"fid": "FID", "read_as_asked": "asked"}
    short = [{**row, "images": row["images"].replace(" images", "")} for row in rows]
    context.say(markdown(short, columns, headers=headers, digits=3))
    if context.s.chain_lengths:
        context.files.picture("fid_lengths", figures.draw_lengths, rows)
        if message := generation.decline(rows):
            context.say(f"\n{message}")


# fmt: off
# One flag a paragraph reads better than one keyword a line.
def add_flags(parser: argparse.ArgumentParser) -> None:
    add = adder(parser, "fid, and reading cond_samples")
    add("--sampling", (*NEW_CHAINS, "buffer", "confident"), "fresh", "ours", "fresh: new chains "
        "up log q(x); class: new chains up log q(x, y), classes in turn; buffer: the checkpoint's "
        "replay buffer, as JEM++; confident: the most confident 90 %% (FID) and 10 %% (IS) of each "
        "class of the buffer against training and test images, as SADA-JEM")
    add("--n_samples IMAGES", COUNT, 10000, "the literature's FID takes 50000", "fresh chains",
        shown="%(default)s, at most --max_images")
    add("--chain_lengths STEPS", WHOLE, None, "ours", "look at the same chains after these numbers "
        "of SGLD steps too, as a curve; it costs what the longest costs",
        nargs="+", shown="after 0 and --n_steps")
    add("--reference NAME", None, None, "ours", "the images to compare with",
        shown="the training split")
    add("--fid_features", ("inception", "model"), "inception", "ours", "inception: the "
        "literature's network, through torch-fidelity; model: penultimate features of --fid_model, "
        "comparable only within one such network")
    add("--fid_model FILE", None, None, "ours", "checkpoint that gives the features of "
        "--fid_features model (default: --load_path), and that reads class-conditional samples, of "
        "cond_samples and of --sampling class", shown="none does")
    add("--inception_weights FILE", None, None, "ours",
        "weights-inception-2015-12-05-6726825d.pth, where it cannot be downloaded", shown=None)


# fmt: on
def idle(s: Namespace) -> Iterator[Rule]:
    if s.sampling not in NEW_CHAINS:
        chains = ("n_steps", "n_samples", "sgld_batch_size", "chain_lengths", "chain_start")
        yield f"sampling {s.sampling}", (*chains, *SGLD)
    if s.sampling != "class":
        yield f"sampling {s.sampling}", ("guidance",)
    if s.fid_features == "model":
        yield "fid_features model", ("inception_weights",)
    elif s.sampling != "class":
        yield f"fid_features inception --sampling {s.sampling}", ("fid_model",)


def check_steps(s: Namespace) -> None:
    if s.n_steps == 0:
        raise UsageError(f"--n_steps 0 samples nothing: give {s.eval} 1 or more")


QUESTION = Question(
    "fid",
    "Frechet distance and Inception Score of samples",
    ask,
    show,
    takes=(*CHAINS, "guidance", "max_images", "sampling", "n_samples", "chain_lengths", "reference")
    + ("fid_features", "fid_model", "inception_weights"),
    several=False,
    defaults={"n_steps": 100},
    add_flags=add_flags,
    idle=idle,
    check=check_steps,
)
