"""Prints the gradient of the contrastive term beside that of cross-entropy, at given weights.

    python benchmarks/contrastive.py save/ce save/hdge

For scores, temperatures T and queue lengths K: norm and cosine, means over batches of 64 training
images; the queue holds the K training images before the first batch. `Most` bounds how far any
weights move the loss from log(K + 1), its value at the start: (s_max - s_min) / T of ContrastScore.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the packages are not installed

from runs.cli import COUNT, Parser, UsageError
from runs.names import data_root


def build_parser() -> Parser:
    parser = Parser(prog="contrastive.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run's folder, a checkpoint or an exported model")
    add("--data_root", default=data_root(), help="where its data set is (default: %(default)s)")
    add("--batches", type=COUNT, default=16, help="that are measured (default: %(default)s)")
    return parser


if __name__ == "__main__":  # before torch is imported: --help and a mistake are answered at once
    ARGS = build_parser().parse_args(sys.argv[1:])

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import models
from losses import Contrastive, ContrastScore, LogitQueue
from reports.tables.formats import aligned
from runs.checkpoint import read_checkpoint
from runs.shared import name_of, weights_file
from training.session import term_gradients

N, SIGMA = 64, 0.03  # images of a batch, and the standard deviation of their noise
VARIED = [("algorithm1", t, 16384) for t in (0.05, 0.1, 0.2, 0.5)]  # score, T, K of each table row
VARIED += [("algorithm1", 0.1, k) for k in (64, 1024)]
VARIED += [("eq13", t, 16384) for t in (0.1, 0.5)]
HEAD = ["Weights of", "Score", "T", "K", "Most", "Loss", "Norm", "Over cross-entropy's", "Cosine"]


def rows(
    model: models.EnergyClassifier, images: Tensor, labels: Tensor, batches: int
) -> Iterator[list[str]]:
    """Yield the table row of each of VARIED, without the first cell. The last batches * N images
    are the batches; the images before them fill the queues."""
    x = data.to_float(images)
    x += SIGMA * torch.randn_like(x)
    with torch.no_grad():
        past = torch.cat([model.logits(chunk) for chunk in x.split(1000)])
    starts = list(range(len(x) - batches * N, len(x), N))
    terms = []
    for kind, t, k in VARIED:
        queue = LogitQueue(past.shape[1], k)
        term = Contrastive(ContrastScore(kind, temperature=t), queue)
        queue.enqueue(past[max(0, starts[0] - k) : starts[0]])
        terms.append(term)
    sums = torch.zeros(len(terms), 4, dtype=torch.float64)
    for start in starts:
        logits, y = model.logits(x[start : start + N]), labels[start : start + N]
        losses = {str(i): term.per_image(logits, y).mean() for i, term in enumerate(terms)}
        cross_entropy = {"pyxce": F.cross_entropy(logits, y)}
        gradients = term_gradients(cross_entropy | losses, list(model.parameters()))
        for i, (name, loss) in enumerate(losses.items()):
            norm, cosine = gradients[f"{name}/gradient"], gradients[f"{name}/cosine"]
            ratio = norm / gradients["pyxce/gradient"]
            sums[i] += torch.stack([loss.detach(), norm, ratio, cosine]).double()
    for (kind, t, k), term, means in zip(VARIED, terms, sums / batches, strict=True):
        low, high = term.score.bounds(past.shape[1])
        numbers = [f"{(high - low) / t:.2f}", *(f"{mean:.3f}" for mean in means)]
        yield [kind, f"{t:g}", f"{min(k, starts[0]):,}", *numbers]


def main(args: Namespace) -> int:
    """Return the exit code; a mistake is one line on stderr and code 2."""
    table = [HEAD]
    try:
        for run in args.runs:
            file = weights_file(run)
            checkpoint = read_checkpoint(file)
            saved = models.run_settings(checkpoint, file)
            model = models.from_checkpoint(checkpoint, saved).eval()
            name = saved.settings["dataset"]
            train = data.load(name, args.data_root, size=model.image_size).train
            torch.manual_seed(1)
            if len(train.labels) <= args.batches * N:
                most = (len(train.labels) - 1) // N
                raise UsageError(f"--batches {args.batches} is more than the {most} of {name}")
            n = max(k for *_, k in VARIED) + args.batches * N
            index = torch.randperm(len(train.labels))[:n]
            cells_of_rows = rows(model, train.images[index], train.labels[index], args.batches)
            table += [[name_of(run), *cells] for cells in cells_of_rows]
    except (UsageError, ValueError, KeyError, data.DataError) as error:
        build_parser().error(f"RUN {run}: {error}")
    print(aligned(table))
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
