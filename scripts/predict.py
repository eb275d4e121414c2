#!/usr/bin/env python3
"""Print the classes of images, with their probabilities, and log q(x), by a trained model.

    python scripts/predict.py save/mine cat.jpg dog.png

log q(x) is compared with its values on the run's validation images, without noise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from evaluation import flags
from runs.cli import COUNT, THREADS, Mistake, Parser, UsageError, check_utf8
from runs.shared import check_weights

PROGRAM = "predict.py"
REFERENCE = 1000  # validation images to compare with, at most
BATCH = 100  # images


def build_parser() -> Parser:
    parser = Parser(prog=PROGRAM, allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("run", metavar="RUN", help="a run's folder, a checkpoint or an exported model")
    add("images", nargs="+", type=Path, metavar="IMAGE", help="a picture of any size and format")
    add("--top", type=COUNT, default=3, metavar="N", help="classes to name (default: %(default)s)")
    of_eval = {action.dest: action for action in flags.build_parser()._actions}
    add("--dataset", metavar="NAME", help="what the model was trained on, if its file does not "
        "tell, as JEM's, or if the images are at another folder:PATH now")  # fmt: skip
    for name in ("data_root", "device"):
        parser._add_action(of_eval[name])
    add("--threads", **THREADS)
    return parser


def main(argv: Sequence[str]) -> int:
    """Return the exit code; a mistake is one line on stderr and code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.check(check_utf8, "RUN", os.path.abspath(args.run))
    parser.check(check_weights, "RUN", args.run)
    for path in args.images:
        if not os.path.isfile(path):
            parser.error(f"IMAGE {path} is no file: give pictures")
    question = ["--load_path", args.run, "--eval", "OOD", "--max_images", str(REFERENCE)]
    s, _ = flags.parse([*question, "--sigma", "0"])  # settings for the loaders of evaluation/
    vars(s).update({name: getattr(args, name) for name in ("dataset", "data_root", "device")})
    s.threads = args.threads
    import torch

    import data
    import models
    from evaluation import loading
    from evaluation.context import Context
    from evaluation.scores import scores
    from runs import processes
    from runs.endings import exit_code
    from runs.screen import one_line
    from training.machine import choose_device, use_threads

    def work() -> int:
        device = choose_device(s.device, exact=True)
        use_threads(s, device, PROGRAM)
        model = loading.load(args.run, loading.labels_of([args.run])[0], s, device, flag="RUN")
        if model.flow is not None and not model.flow.class_cond:
            raise UsageError(f"RUN {args.run} is a flow without classes: it cannot predict")
        try:
            images = models.read_images(model.network, *args.images).to(device)
        except ValueError as error:
            raise UsageError(f"IMAGE: {error}") from None
        context = Context(s, None, device)  # type: ignore[arg-type]  # no files are written
        context.program = PROGRAM
        context.warn_of_untrained_head(model)
        if s.dataset is not None:
            context.own_set(model, "leave it out")
        try:
            valid = context.images(data.split_name(context.training_set(model), "valid"), model)
            reference = scores(model.network, context.batches(valid, model), ["px"])["px"]
        except Mistake as error:
            reference = None
            processes.warn(PROGRAM, f"log q(x) is not compared with validation images: {error}")
        network, batches = model.network, images.split(BATCH)
        with torch.no_grad():
            probs = torch.cat([network.classify(batch).exp() for batch in batches])  # (N, C)
            log_px = torch.cat([network.log_px(batch) for batch in batches]).tolist()
        for path, p, log_q in zip(args.images, probs, log_px, strict=True):
            top = p.topk(min(args.top, len(p)))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            classes = ", ".join(f"{model.class_names[y]} {100 * prob:.1f} %" for y, prob in pairs)
            line = f"{path}: {classes}; log q(x) {log_q:.3f}"
            if reference is not None:
                share = 100 * (reference < log_q).mean()
                line += f", above {share:.0f} % of {len(reference):,} validation images"
            context.say(one_line(line))
        return 0

    return exit_code(PROGRAM, work, interrupted=f"{PROGRAM}: interrupted")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
