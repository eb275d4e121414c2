"""Write a small checkpoint, to be shared and evaluated, without the state that training needs.

    python scripts/release.py save/hdge/last_ckpt.pt hdge.pt

It holds the weights (of a run with --ema the averaged ones), the settings without this machine's
paths, and what made it (versions, commit, device); optimiser and random state go. eval_wrn_ebm.py
and --load_path take it as any checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs.cli import Parser, UsageError  # noqa: E402
from runs.names import FOLDER  # noqa: E402
from runs.screen import print_line  # noqa: E402
from runs.shared import weights_file  # noqa: E402

# Where a run was, not what it is; each gets its default back.
PLACES = {"data_root": "./datasets", "log_dir": "./save", "load_path": None, "resume": None}
MEMORIES = ("queue", "replay_buffer")


def checkpoint_file(path: str) -> Path:
    try:
        return weights_file(path)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> Parser:
    parser = Parser(prog="release.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("checkpoint", type=checkpoint_file, metavar="CHECKPOINT",
        help="of train_wrn.py, such as last_ckpt.pt; or a run's folder: its best")  # fmt: skip
    add("output", type=Path, metavar="FILE.pt", help="what is written; it must not exist yet")
    add("--keep", nargs="*", choices=MEMORIES, default=["queue"], metavar="MEMORY",
        help="queue (for --score_fn pxsim and further training), replay_buffer (for samples; "
        "12 kB an image), or nothing (default: queue)")  # fmt: skip
    return parser


def released(
    state: dict[str, Any], keep: Collection[str], environment: dict[str, Any]
) -> dict[str, Any]:
    """Return the part of a checkpoint to publish; `environment`: of the run's variant.json.

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
    # Chains begin without the training images, wherever the file goes.
    objective = {n: t for n, t in state["objective"].items() if n.startswith(START)}
    if "queue_logit" in network:
        objective[FILLED] = state["objective"][FILLED]
    optional = {"data": state.get("data"), "objective": objective}
    if "replay_buffer" in keep:
        optional["replay_buffer"] = state.get("replay_buffer")
    return {
        "model_state_dict": network,
        "settings": settings,
        "progress": {"step": state["progress"]["step"]},
        "environment": {name: v for name, v in environment.items() if name != "platform"},
        **{name: value for name, value in optional.items() if value is not None and len(value)},
    }


def read(parser: Parser, checkpoint: Path, keep: Collection[str]) -> tuple[dict[str, Any], str]:
    """Return what is kept of the checkpoint, and the sha256 of the file that was read. A file that
    cannot be used is a mistake of the command line."""
    from runs.checkpoint import CheckpointError, read_with_sha256
    from runs.folder import RunFolderError, read_variant

    try:
        state, sha256 = read_with_sha256(checkpoint)
        environment = state.get("environment")  # of one that was released or exported
        with contextlib.suppress(RunFolderError):  # a checkpoint may have left its run folder
            environment = read_variant(checkpoint.parent).get("environment")
        return released(state, keep, environment or {}), sha256
    except CheckpointError as error:
        parser.error(f"CHECKPOINT: {error}")
    except (KeyError, TypeError):
        parser.error(f"CHECKPOINT {checkpoint} is none of train_wrn.py's: give one of a run")


def check_new(parser: Parser, name: str, path: Path) -> None:
    if path.exists():
        parser.error(f"{name} {path} exists already: give another name, or remove it")


def main(argv: Sequence[str]) -> Path:
    """Write the file and return its path; a mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from runs.checkpoint import save_checkpoint

    check_new(parser, "FILE.pt", args.output)
    kept, _ = read(parser, args.checkpoint, args.keep)
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(kept, args.output)
    except OSError as error:
        parser.error(f"FILE.pt: {error}: give a file in a folder that is writable")
    return args.output


if __name__ == "__main__":
    path = main(sys.argv[1:])
    print_line(f"{path}: {path.stat().st_size / 1e6:.2f} MB", sys.stdout)
