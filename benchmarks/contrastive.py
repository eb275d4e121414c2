"""Prints the gradient of the contrastive term beside that of cross-entropy, at given weights.

    python benchmarks/contrastive.py save/ce save/hdge

For scores, temperatures T and queue lengths K: norm and cosine, means over batches of 64 training
images, with a queue of the K training images before them. `most` is how far the term can get from
its start, log(K + 1), whatever the weights: (s_max - s_min) / T of losses.ContrastScore.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

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
from runs.shared import weights_file
from training.session import term_gradients

N, SIGMA = 64, 0.03  # images of a batch, and their noise
VARIED = [("algorithm1", t, 16384) for t in (0.05, 0.1, 0.2, 0.5)]
VARIED += [("algorithm1", 0.1, k) for k in (64, 1024)]
VARIED += [("eq13", t, 16384) for t in (0.1, 0.5)]
HEAD = ["Weights of", "Score", "T", "K", "Most", "Loss", "Norm", "Over cross-entropy's", "Cosine"]


def rows(
    model: models.EnergyClassifier, images: Tensor, labels: Tensor, batches: int
) -> Iterator[list[str]]:
    """Yield the cells after the first of each of VARIED. The last `batches` of the images are the
    batches, those before them the queue."""
    x = data.to_float(images)
    x += SIGMA * torch.randn_like(x)
    with torch.no_grad():
        logits = torch.cat([model.logits(part) for part in x.split(1000)])
    at = list(range(len(x) - batches * N, len(x), N))
    terms = []
    for kind, t, k in VARIED:
        queue = LogitQueue(logits.shape[1], k)
        term = Contrastive(ContrastScore(kind, temperature=t), queue)
        queue.enqueue(logits[max(0, at[0] - k) : at[0]])
        terms.append(term)
    found = torch.zeros(len(terms), 4, dtype=torch.float64)
    for first in at:
        now, y = model.logits(x[first : first + N]), labels[first : first + N]
        losses = {str(i): term.per_image(now, y).mean() for i, term in enumerate(terms)}
        cross_entropy = {"pyxce": F.cross_entropy(now, y)}
        measured = term_gradients(cross_entropy | losses, list(model.parameters()))
        for i, (name, loss) in enumerate(losses.items()):
            norm, cosine = measured[f"{name}/gradient"], measured[f"{name}/cosine"]
            ratio = norm / measured["pyxce/gradient"]
            found[i] += torch.stack([loss.detach(), norm, ratio, cosine]).double()
    for (kind, t, k), term, mean in zip(VARIED, terms, found / batches, strict=True):
        low, high = term.score.bounds(logits.shape[1])
        cells = [f"{t:g}", f"{k:,}", f"{(high - low) / t:.2f}", *(f"{x:.3f}" for x in mean)]
        yield [kind, *cells]


def main(args: Namespace) -> int:
    """Return the exit code; a mistake is one line on stderr and code 2."""
    table = [HEAD]
    try:
        for run in args.runs:
            file = weights_file(run)
            checkpoint = read_checkpoint(file)
            told = models.run_settings(checkpoint, file)
            model, name = models.from_checkpoint(checkpoint, told).eval(), told.settings["dataset"]
            train = data.load(name, args.data_root, size=model.image_size).train
            torch.manual_seed(1)
            if len(train.labels) <= args.batches * N:
                most = (len(train.labels) - 1) // N
                raise UsageError(f"--batches {args.batches} is more than the {most} of {name}")
            held = max(k for *_, k in VARIED) + args.batches * N
            chosen = torch.randperm(len(train.labels))[:held]
            found = rows(model, train.images[chosen], train.labels[chosen], args.batches)
            label = Path(run).name if Path(run).is_dir() else Path(run).parent.name
            table += [[label, *cells] for cells in found]
    except (UsageError, ValueError, KeyError, data.DataError) as error:
        build_parser().error(f"RUN {run}: {error}")
    print(aligned(table))
    return 0


if __name__ == "__main__":
    sys.exit(main(ARGS))
