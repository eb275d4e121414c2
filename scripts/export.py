#!/usr/bin/env python3
"""A trained model as a folder to be uploaded: safetensors weights, settings and a model card.

    python scripts/export.py save/hdge/last_ckpt.pt exported/hdge
    python eval_wrn_ebm.py --load_path exported/hdge --eval test_clf

The card, README.md, has the numbers that were measured of this very checkpoint: what lies in eval/
of its run folder and tells its sha256.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs import terms  # noqa: E402
from runs.cli import Parser  # noqa: E402
from runs.names import FOLDER  # noqa: E402
from runs.screen import print_line  # noqa: E402
from scripts import release  # noqa: E402

CARD = "README.md"


def build_parser() -> Parser:
    parser = Parser(prog="export.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("checkpoint", type=release.checkpoint_file, metavar="CHECKPOINT",
        help="of train_wrn.py, such as last_ckpt.pt; or a run's folder: its best")  # fmt: skip
    add("folder", type=Path, metavar="FOLDER", help="what is written; it must not exist yet")
    add(
        "--push",
        default=None,
        metavar="OWNER/NAME",
        help="say what would be uploaded to this repository of the Hugging Face hub",
    )
    add("--send", action="store_true", help="with --push: upload it (pip install huggingface_hub)")
    return parser


def card(state: dict[str, Any], checkpoint: Path, sha256: str) -> str:
    """Return the model card: front matter as model pages read it, and text, with the numbers of the
    run's answers about the file with this hash."""
    from reports.page import NoRun, paper, read_run
    from reports.page.markup import TEXTS
    from reports.page.questions import radius

    s, where = state["settings"], state["environment"]
    found: dict[str, Any] = {}
    with suppress(NoRun):  # an exported model's folder has no answers
        found = read_run(checkpoint.parent).answers
    answers = [
        (question, answer, model)
        for question, every in found.items()
        for answer in every
        for model in answer.models
        if answer.value(model, "checkpoint_sha256") == sha256 and not answer.missing
        if answer.value(model, "weights") != "raw"  # of a run with --ema the averaged are exported
    ]
    data = state.get("data")
    versions = ", ".join(f"{k} {v}" for k, v in where.get("packages", {}).items())
    commit = where.get("git_commit")
    text = TEXTS.get_template("card.md.jinja").render(
        dataset=str(s["dataset"]).removeprefix(FOLDER),
        own=str(s["dataset"]).startswith(FOLDER),
        class_names=data.get("class_names") if isinstance(data, dict) else None,
        radius=radius,
        network=paper.network(s),
        size=paper.image_size(s),
        s=s,
        terms=terms.used(s),
        answers=answers,
        step=state["progress"]["step"],
        made_with={"device": where.get("device"), "packages": versions, "commit": commit},
    )
    # A data set of the user's own is known by the last part of its path.
    return re.sub(rf"{FOLDER}\S*/", FOLDER, text)


def main(argv: Sequence[str]) -> Path:
    """Write the folder and return it; a mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from runs.checkpoint import CheckpointError, export

    folder: Path = args.folder
    if args.send and args.push is None:
        parser.error("--send has no effect without --push OWNER/NAME")
    release.check_new(parser, "FOLDER", folder)
    kept, sha256 = release.read(parser, args.checkpoint, ["queue"])
    if not terms.used(kept["settings"]):
        parser.error(f"CHECKPOINT {args.checkpoint} is none of train_wrn.py's: give one of a run")
    text = card(kept, args.checkpoint, sha256)
    half = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(half, ignore_errors=True)
        export(half, kept)
        (half / CARD).write_text(text, encoding="utf-8")
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
