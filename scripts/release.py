"""A checkpoint without what only training needs: small, to be shared and evaluated.

    python scripts/release.py save/hdge/last_ckpt.pt hdge.pt

It holds the weights (of a run with --ema the averaged ones), the settings without this machine's
paths, and what made it (versions, commit, device); optimiser and random state go. eval_wrn_ebm.py
and --load_path take it as any checkpoint.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import Parser  # noqa: E402
from runs.screen import print_line  # noqa: E402

# Where a run was, not what it is; each gets its default back.
PLACES = {"data_root": "./datasets", "log_dir": "./save", "load_path": None, "resume": None}
FOLDER = "folder:"  # and the path: a data set of the user's own
MEMORIES = ("queue", "replay_buffer")


def build_parser() -> Parser:
    parser = Parser(
        prog="release.py",
        allow_abbrev=False,
        description="Write a checkpoint without what only training needs.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="of train_wrn.py, such as last_ckpt.pt")
    add("output", type=Path, metavar="FILE.pt", help="what is written; it must not exist yet")
    add("--keep", nargs="*", choices=MEMORIES, default=["queue"], metavar="MEMORY",
        help="queue (for --score_fn pxsim and further training), replay_buffer (for samples; "
        "12 kB an image), or nothing (default: queue)")  # fmt: skip
    return parser


def released(
    state: dict[str, Any], keep: Collection[str], environment: dict[str, Any] | None
) -> dict[str, Any]:
    """What is kept of a checkpoint; `environment`: of the run's variant.json.

    Of a data set that is a folder its last part is, and nothing of the system that it ran on.
    """
    import models
    from runs.checkpoint import FILLED, START

    weights = state["model_state_dict"] | models.averaged_weights(state)
    network = {n: t for n, t in weights.items() if "queue" in keep or not n.startswith("queue_")}
    settings = {**state["settings"], **PLACES}
    dataset = str(settings.get("dataset") or "")
    if dataset.startswith(FOLDER):
        settings["dataset"] = FOLDER + Path(dataset.removeprefix(FOLDER)).name
    kept = {
        "model_state_dict": network,
        "settings": settings,
        "progress": {"step": state["progress"]["step"]},
        "environment": {k: v for k, v in (environment or {}).items() if k != "platform"},
    }
    if state.get("data"):
        kept["data"] = state["data"]
    # Chains begin without the training images, wherever the file goes.
    objective = {n: t for n, t in state["objective"].items() if n.startswith(START)}
    if "queue_logit" in network:
        objective[FILLED] = state["objective"][FILLED]
    if objective:
        kept["objective"] = objective
    if "replay_buffer" in keep and "replay_buffer" in state:
        kept["replay_buffer"] = state["replay_buffer"]
    return kept


def read(parser: Parser, checkpoint: Path, keep: Collection[str]) -> tuple[dict[str, Any], str]:
    """Return what is kept of the checkpoint, and the sha256 of the file that was read. A file that
    cannot be used is a mistake of the command line."""
    from runs.checkpoint import CheckpointError, read_with_sha256
    from runs.folder import RunFolderError, read_variant

    try:
        state, sha256 = read_with_sha256(checkpoint)
        environment = None
        with contextlib.suppress(RunFolderError):  # a checkpoint may have left its run folder
            environment = read_variant(checkpoint.parent).get("environment")
        return released(state, keep, environment), sha256
    except CheckpointError as error:
        parser.error(f"CHECKPOINT: {error}")
    except (KeyError, TypeError):
        parser.error(f"CHECKPOINT {checkpoint} is none of train_wrn.py's: give one of a run")


def main(argv: Sequence[str]) -> Path:
    """Write the file and return its path; a mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from runs.checkpoint import save_checkpoint

    output: Path = args.output
    if output.exists():
        parser.error(f"FILE.pt {output} exists already: give another name, or remove it")
    kept, _ = read(parser, args.checkpoint, args.keep)
    try:
        save_checkpoint(kept, output)
    except OSError as error:
        parser.error(f"FILE.pt: {error}: give a file in a folder that is writable")
    return output


if __name__ == "__main__":
    path = main(sys.argv[1:])
    print_line(f"{path}: {path.stat().st_size / 1e6:.2f} MB", sys.stdout)
