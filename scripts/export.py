#!/usr/bin/env python3
"""A trained model as a folder to be uploaded: safetensors weights, settings and a model card.

    python scripts/export.py save/hdge/last_ckpt.pt exported/hdge
    python eval_wrn_ebm.py --load_path exported/hdge --eval test_clf

It holds the weights (of a run with --ema the averaged ones), the queue, the settings without this
machine's paths, and what made it (versions, commit, device); optimiser and random state go. The
card, README.md, has the command of the training, and the numbers that were measured of this very
checkpoint: what lies in eval/ of its run folder and tells its sha256. samples.png shows samples of
`--eval cond_samples` with their starts and the nearest training images.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs import terms
from runs.cli import Parser, UsageError
from runs.names import FOLDER, network_title
from runs.screen import print_line
from runs.shared import check_weights, weights_file

CARD, SAMPLES = "README.md", "samples.png"
# Where a run was, not what it is; each gets its default back.
PLACES = {"data_root": "./datasets", "log_dir": "./save", "load_path": None, "resume": None}


def checkpoint_file(path: str) -> Path:
    try:
        return weights_file(path)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> Parser:
    parser = Parser(prog="export.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("checkpoint", type=checkpoint_file, metavar="CHECKPOINT",
        help="of train_wrn.py, such as last_ckpt.pt; or a run's folder: its best")  # fmt: skip
    add("folder", type=Path, metavar="FOLDER", help="what is written; it must not exist yet")
    add("--push", default=None, metavar="OWNER/NAME",
        help="say what would be uploaded to this repository of the Hugging Face hub")  # fmt: skip
    add("--send", action="store_true", help="with --push: upload it (pip install huggingface_hub)")
    return parser


def last_part(name: object) -> str:
    """Return the name of a data set or of a split; of a folder with the last part of its path."""
    kind, colon, path = str(name).partition(":")
    return kind + colon + Path(path).name if kind.startswith("folder") else str(name)


def shared_part(state: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a checkpoint to publish; `environment`: of the run's variant.json.

    Of a data set that is a folder its last part is, and nothing of the system that it ran on.
    """
    import models
    from runs.checkpoint import FILLED, START

    network = state["model_state_dict"] | models.averaged_weights(state)
    settings = {**state["settings"], **PLACES}
    if settings.get("dataset"):
        settings["dataset"] = last_part(settings["dataset"])
    # Chains begin without the training images, wherever the file goes.
    objective = {n: t for n, t in state["objective"].items() if n.startswith(START)}
    if "queue_logit" in network:
        objective[FILLED] = state["objective"][FILLED]
    optional = {"data": state.get("data"), "objective": objective}
    return {
        "model_state_dict": network,
        "settings": settings,
        "progress": {k: v for k, v in state["progress"].items() if k in ("step", "seconds")},
        "environment": {name: v for name, v in environment.items() if name != "platform"},
        **{name: value for name, value in optional.items() if value},
    }


def read(parser: Parser, checkpoint: Path) -> tuple[dict[str, Any], str]:
    """Return the `shared_part` of the checkpoint, and the sha256 of the file that was read. A file
    that cannot be used is a mistake of the command line."""
    from runs.checkpoint import CheckpointError, read_with_sha256
    from runs.folder import RunFolderError, read_variant

    try:
        state, sha256 = read_with_sha256(checkpoint)
        environment = state.get("environment")  # of one that was exported
        with suppress(RunFolderError):  # a checkpoint may have left its run folder
            environment = read_variant(checkpoint.parent).get("environment")
        kept = shared_part(state, environment or {})
    except CheckpointError as error:
        parser.error(f"CHECKPOINT: {error}")
    except (KeyError, TypeError):
        kept = {"settings": {}}
    if not terms.used(kept["settings"]):
        parser.error(f"CHECKPOINT {checkpoint} is none of train_wrn.py's: give one of a run")
    return kept, sha256


def training_command(settings: dict[str, Any]) -> str:
    """Return the command of train_wrn.py whose settings these are, without the machine's paths."""
    from training.flags import build_parser

    words = ["python", "train_wrn.py"]
    for action in build_parser()._actions:
        value = settings.get(action.dest, action.default)
        if action.dest in PLACES or value == action.default:
            continue
        if action.nargs == 0:
            words.append(action.option_strings[0 if value else -1])  # the last is its --no- form
        else:
            values = value if isinstance(value, list) else [value]
            words += [action.option_strings[0], *map(str, values)]
    return shlex.join(words)


def card(state: dict[str, Any], checkpoint: Path, sha256: str) -> tuple[str, Path | None]:
    """Return the model card, front matter as model pages read it, and text, with the numbers of the
    run's answers about the file with this hash; and the picture of its samples, if it has one."""
    from reports.page import NoRun, paper, read_run
    from reports.page.markup import TEXTS
    from runs.style import radius

    s, where, progress = state["settings"], state["environment"], state["progress"]
    found: dict[str, Any] = {}
    with suppress(NoRun):  # an exported model's folder has no answers
        found = read_run(checkpoint.parent).answers
    answers = [
        (question, answer, model)
        for question, every in found.items()
        for answer in every
        for model in answer.models
        if model.get("checkpoint_sha256") == sha256 and not answer.missing
        if model.get("weights") != "raw"  # of a run with --ema the averaged are exported
    ]
    pictures = [
        path
        for question, answer, _ in answers
        if question == "cond_samples"
        for path in answer.pictures()
        if path.stem.endswith("_starts") and path.exists()
    ]
    data = state.get("data")
    versions = ", ".join(f"{k} {v}" for k, v in where.get("packages", {}).items())
    commit = where.get("git_commit")
    text = TEXTS.get_template("card.md.jinja").render(
        dataset=str(s["dataset"]).removeprefix(FOLDER),
        own=str(s["dataset"]).startswith(FOLDER),
        class_names=data.get("class_names") if isinstance(data, dict) else None,
        radius=radius,
        last_part=last_part,
        place=lambda text: "/".join(str(text).split("/")[-2:]),
        network=network_title(s),
        size=paper.image_size(s),
        s=s,
        terms=terms.used(s),
        answers=answers,
        step=progress["step"],
        hours=progress.get("seconds", 0) / 3600,
        command=training_command(s),
        picture=SAMPLES if pictures else None,
        made_with={"device": where.get("device"), "packages": versions, "commit": commit},
    )
    return text, pictures[0] if pictures else None


def main(argv: Sequence[str]) -> Path:
    """Write the folder and return it; a mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.check(check_weights, "CHECKPOINT", str(args.checkpoint))
    from runs.checkpoint import CheckpointError, export

    folder: Path = args.folder
    if args.send and args.push is None:
        parser.error("--send has no effect without --push OWNER/NAME")
    if folder.exists():
        parser.error(f"FOLDER {folder} exists already: give another name, or remove it")
    kept, sha256 = read(parser, args.checkpoint)
    text, picture = card(kept, args.checkpoint, sha256)
    half = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(half, ignore_errors=True)
        export(half, kept)
        (half / CARD).write_text(text, encoding="utf-8")
        if picture is not None:
            shutil.copyfile(picture, half / SAMPLES)
        half.rename(folder)
    except CheckpointError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(
            f"FOLDER: cannot write {folder} ({error.strerror}): give one that is writable and has "
            "room"
        )
    finally:
        shutil.rmtree(half, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print_line(f"{folder}: {size / 1e6:.2f} MB", sys.stdout)
    if args.push:
        push(parser, folder, args.push, send=args.send)
    return folder


def push(parser: Parser, folder: Path, name: str, *, send: bool) -> None:
    """Upload the folder to the repository `name` of the hub, or say what would be uploaded."""
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    if not send:
        print_line(f"--send would upload {files} to {name}: it is sent nowhere yet", sys.stdout)
        return
    try:
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder)
    except ImportError:
        parser.error("--send needs huggingface_hub: pip install huggingface_hub")
    except Exception as error:  # of many kinds: of the name, the token, the network
        parser.error(f"--push {name}: {' '.join(str(error).split())[:200]}")
    print_line(f"uploaded {files}: hf://{name}", sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
