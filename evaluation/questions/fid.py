"""Are samples as good as images?"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.questions.base import CHAINS, Context, LoadedModel, Numbers, Question, Rule, Tensor
from runs.cli import COUNT, WHOLE, UsageError
from runs.screen import Row, markdown

FROM_STARTS = ("fresh", "class")  # what --sampling runs new chains for
SHARES = (0.9, 0.1)  # of --sampling confident: for the FID and for the score
JEM_SPLIT = 5000  # images of a split of the score, by JEM++'s rule


def ask(context: Context, model: LoadedModel) -> Numbers:
    from evaluation import generation, plots, sampling
    from runs import processes as distributed

    s = context.s
    reference, names, real = reference_images(context, model)
    if not distributed.first():  # helps to sample; features are quick, and one network's to read
        sampled(context, model)
        return {}
    judge = load_judge(context, model)
    extractor, features, sha256 = feature_extractor(context, judge or model)
    images, others = sampled(context, model)
    score_part, splits = None, 10
    if s.sampling == "confident":
        best, few = sampling.most_confident_parts(model.network, images, shares=SHARES)
        images, score_part = images[best], sampling.to_uint8(images[few])
        splits = max(1, len(score_part) // JEM_SPLIT)
    labels, pixels = classes_in_turn(context, model, len(images)), sampling.to_uint8(images)
    chains = {at: sampling.to_uint8(each) for at, each in others.items()}
    steps = s.n_steps if s.sampling in FROM_STARTS else None
    numbers = generation.evaluate_samples(
        pixels,
        reference,
        extractor,
        score_part=score_part,
        splits=splits,
        others=chains,
        steps=steps,
    )
    numbers["rows"][-1]["images"] = real
    if labels is not None and judge is not None:
        found, shares = reading(judge, {**chains, s.n_steps: pixels}, labels, s.n_steps)
        numbers["rows"] = [r | {"read_as_asked": shares.get(r["steps"])} for r in numbers["rows"]]
        numbers["read_as_asked"] = found
    if not numbers["full_rank"]:
        context.warn(
            f"{min(numbers['n'], numbers['n_reference']):,} images give no covariance of full rank "
            f"for {numbers['n_features']:,} features: the FID compares only at the same number; "
            "give more --n_samples"
        )
    context.files.add("fid_samples.png", lambda path: plots.save_grid(images[:100], path, 10))
    context.save_images("fid_samples.npz", pixels, chains.get(0), labels)
    network = {"features": features, "features_sha256": sha256}
    protocol = {"sampling": s.sampling, "steps": steps, **network, "reference": names}
    return {**numbers, **protocol, "rounding": "uint8"}


def reference_images(context: Context, model: LoadedModel) -> tuple[Tensor, str, str]:
    """Return the images uint8 (M, H, W, 3) to compare with, their sets' names and descriptions."""
    import torch

    import data

    s = context.s
    own = context.own_set(model, "to compare with other images give --reference")
    train = data.split_name(own, "train")
    sets = [context.images(s.reference or train, model, "--reference")]
    if s.sampling == "confident" and s.reference is None:  # as SADA-JEM
        sets.append(context.images(own, model, "--reference"))
    names = " + ".join(found.name for found in sets)
    images = torch.cat([found.split.images for found in sets])
    return images, names, "training images" if names == train else "reference images"


def sampled(context: Context, model: LoadedModel) -> tuple[Tensor, dict[int, Tensor]]:
    """Return images float (N, 3, S, S), ends of new chains or the checkpoint's replay buffer; and
    the new chains after 0 and --chain_lengths steps, by steps. Raises UsageError and NotFinite."""
    import torch

    from evaluation import sampling
    from runs import processes as distributed

    s = context.s
    if s.sampling not in FROM_STARTS:
        images = model.buffer_images("--sampling fresh samples from noise").to(context.device)
        images = images[: s.max_images]
        sampling.check_finite(images, 0)
        return images, {}
    n = min(s.n_samples, s.max_images or s.n_samples)
    part = distributed.share(-(-n // s.sgld_batch_size))
    seen = sorted({0, s.n_steps, *(s.chain_lengths or ())})
    chains = sampling.fresh_chains(
        model.network,
        sampling.legs_of(model.chain(seen[-1], model.start()), seen),
        n,
        seed=s.seed,
        batch_size=s.sgld_batch_size,
        labels=classes_in_turn(context, model, n),
        part=part,
    )
    size = min(part.stop * s.sgld_batch_size, n) - part.start * s.sgld_batch_size
    with context.bar(size, f"{model.label}: {seen[-1]} SGLD steps") as shown:
        batches = []
        for batch in chains:
            batches.append(batch)
            shown.update(len(batch[0]))
    none = torch.empty(0, device=context.device)  # of a process without a batch
    parts = [torch.cat(part) for part in zip(*batches, strict=True)] or [none] * len(seen)
    found = {at: distributed.joined(part) for at, part in zip(seen, parts, strict=True)}
    for at, images in found.items():
        sampling.check_finite(images, at)
    return found.pop(s.n_steps), found


def classes_in_turn(context: Context, model: LoadedModel, n: int) -> Tensor | None:
    """Return the classes (n,) of --sampling class."""
    import torch

    if context.s.sampling != "class":
        return None
    return torch.arange(n, device=context.device) % model.num_classes


def feature_extractor(context: Context, network: LoadedModel) -> tuple[Any, str, str]:
    """Return an extractor, Inception or the network, its name, and the sha256 of its weights."""
    from evaluation.generation import model_extractor
    from evaluation.inception import inception_extractor

    s = context.s
    if s.fid_features == "inception":
        weights = None if s.inception_weights is None else Path(s.inception_weights)
        extractor, sha256 = inception_extractor(weights, context.device)
        return extractor, "inception-v3-compat (torch-fidelity)", sha256
    return model_extractor(network.network), f"model {network.path}", network.sha256


def load_judge(context: Context, model: LoadedModel) -> LoadedModel | None:
    """Return the network of --fid_model. Raises UsageError if it has other classes and is to read
    class-conditional samples."""
    from evaluation.loading import NETWORK, load

    s = context.s
    if s.fid_model is None:
        return None
    plain = Namespace(**{**vars(s), **dict.fromkeys((*NETWORK, "weights"))})
    judge = load(s.fid_model, "features", plain, context.device, flag="--fid_model")
    if s.eval == "fid" and s.sampling != "class":
        return judge
    if judge.num_classes != model.num_classes:
        raise UsageError(
            f"--fid_model {judge.path} has {judge.num_classes} classes, the model of {model.path} "
            f"{model.num_classes}: give a classifier of the same classes"
        )
    if judge.sha256 == model.sha256:
        context.warn(
            f"--fid_model {judge.path} reads its own samples: use an independent classifier"
        )
    return judge


def reading(
    judge: LoadedModel, images: Mapping[int, Tensor], labels: Tensor, steps: int
) -> tuple[dict[str, Any], dict[int, float]]:
    """Read class-conditional chains uint8 (N, H, W, 3), given by their SGLD steps, by a classifier.
    Return `generation.read_as_asked` of those after `steps` and 0, and the share of each."""
    from evaluation import generation

    extractor = generation.model_extractor(judge.network)
    right = {at: generation.reads_as(extractor, each, labels) for at, each in images.items()}
    found = generation.read_as_asked(right[steps], right[0], labels)
    about = {"classifier": str(judge.path), "classifier_sha256": judge.sha256}
    return {**about, **found}, {at: float(each.mean()) for at, each in right.items()}


def show(context: Context, results: list[Numbers]) -> None:
    from evaluation import figures, generation

    (result,) = results
    rows = result["rows"]
    context.say_values(result)
    context.say(f"\n{rows[0]['n']:,} images each, against as many others:\n\n{fid_table(rows)}")
    if context.s.chain_lengths:
        context.files.picture("fid_lengths", lambda path: figures.save_lengths(path, [result]))
        if told := generation.decline(rows):
            context.say(f"\n{told}")


def fid_table(rows: Sequence[Row]) -> str:
    """Return a line for each row of `evaluation.generation.compared`, 60 characters wide."""
    columns = ["images", "steps", "fid", "precision", "recall"]
    if any("read_as_asked" in row for row in rows):
        columns.append("read_as_asked")
    headers = {"fid": "FID", "read_as_asked": "asked"}
    shown = [{**row, "images": row["images"].replace(" images", "")} for row in rows]
    return markdown(shown, columns, headers=headers, digits=3)


# fmt: off
# One flag a paragraph reads better than one keyword a line.
def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("fid, and reading cond_samples").add_argument
    add("--sampling", choices=(*FROM_STARTS, "buffer", "confident"), default="fresh",
        help="fresh: new chains up log q(x); class: new chains up log q(x, y), classes in turn; "
        "buffer: the checkpoint's replay buffer, as JEM++; confident: the most confident 90 %% "
        "(FID) and 10 %% (IS) of each class of the buffer "
        "against training and test images, as SADA-JEM (default: %(default)s; ours)")
    add("--n_samples", type=COUNT, default=10000, metavar="IMAGES",
        help="fresh chains (default: %(default)s, at most --max_images; the literature's FID takes "
        "50000)")
    add("--chain_lengths", nargs="+", type=WHOLE, default=None, metavar="STEPS",
        help="look at the same chains after these numbers of SGLD steps too, as a curve; it costs "
        "what the longest costs (default: after 0 and --n_steps; ours)")
    add("--reference", default=None, metavar="NAME",
        help="the images to compare with (default: the training split; ours)")
    add("--fid_features", choices=("inception", "model"), default="inception",
        help="inception: the literature's network, through torch-fidelity; model: penultimate "
        "features of --fid_model, comparable only within one such network "
        "(default: %(default)s; ours)")
    add("--fid_model", default=None, metavar="FILE",
        help="checkpoint that gives the features of --fid_features model (default: --load_path), "
        "and that reads class-conditional samples, of cond_samples and of --sampling class "
        "(default: none does; ours)")
    add("--inception_weights", default=None, metavar="FILE",
        help="weights-inception-2015-12-05-6726825d.pth, where it cannot be downloaded (ours)")


# fmt: on
def idle(s: Namespace) -> Iterator[Rule]:
    if s.sampling not in FROM_STARTS:
        chains = ("n_steps", "n_samples", "sgld_batch_size", "chain_lengths", "chain_start")
        yield f"sampling {s.sampling}", chains
    if s.fid_features == "model":
        yield "fid_features model", ("inception_weights",)
    elif s.sampling != "class":
        yield f"fid_features inception --sampling {s.sampling}", ("fid_model",)


def check(s: Namespace) -> None:
    if s.n_steps == 0:
        raise UsageError("--n_steps 0 samples nothing: give fid 1 or more")


QUESTION = Question(
    "fid",
    "Frechet distance and Inception Score of samples",
    ask,
    show,
    takes=(*CHAINS, "max_images", "sampling", "n_samples", "chain_lengths", "reference")
    + ("fid_features", "fid_model", "inception_weights"),
    several=False,
    defaults={"n_steps": 100},
    add_flags=add_flags,
    idle=idle,
    check=check,
)
