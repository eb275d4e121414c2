#!/usr/bin/env python3
"""A trained model as a folder to be uploaded: safetensors weights, settings and a model card.

    python scripts/export.py save/hdge/last_ckpt.pt exported/hdge
    python eval_wrn_ebm.py --load_path exported/hdge --eval test_clf

The folder holds the weights (of a run with --ema the averaged weights), the queue, versions, commit
and device, and the settings without this machine's paths; no optimiser and random state. Its model
card, README.md, has the training command, and the numbers of the answers in the run folder's
eval/ that record this checkpoint's sha256. samples.png shows samples of `--eval cond_samples` with
the starts of their chains and the nearest training images.
"""

from __future__ import annotations

import argparse
import re
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
from runs.screen import escaped, print_line
from runs.shared import check_weights, weights_file

CARD, SAMPLES = "README.md", "samples.png"
# Settings that are about this machine's folders, and the defaults that replace them. With
# --overwrite the card's command could delete a reader's own run.
PLACES = {"data_root": "./datasets", "log_dir": "./save", "resume": None, "overwrite": False}
# Settings of a protocol that a card's rows have in any case, or need not have.
IN_ROWS = (
    *("n", "n_steps", "n_steps_refine", "attack", "sampling", "guidance", "features"),
    *("features_sha256", "sets"),
)


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
    """Return the name of a data set or split; of a folder:PATH keep only the path's last part."""
    kind, colon, path = str(name).partition(":")
    return kind + colon + Path(path).name if kind.startswith("folder") else str(name)


def code(text: str) -> str:
    """Return a code span of Markdown, in which no character of the text is markup."""
    text = " ".join(text.split())  # an empty line would end the paragraph
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text[:1] in "` " or text[-1:] in "` " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def set_name(name: object) -> str:
    """Return the `last_part` of a name for a table of Markdown."""
    part = last_part(name)
    return escaped(code(part)) if part.startswith("folder") else part


def shared_part(state: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a checkpoint to publish, with the run's `environment` but its platform.

    Of the data set's folder only the last part of the path is kept, of --load_path the last two.
    """
    import models
    from runs.checkpoint import FILLED, START

    network = state["model_state_dict"] | models.averaged_weights(state)
    settings = {**state["settings"], **PLACES}
    if settings.get("load_path"):
        settings["load_path"] = "/".join(Path(settings["load_path"]).parts[-2:])
    if settings.get("dataset"):
        settings["dataset"] = last_part(settings["dataset"])
    # With the fitted Gaussians, chains can start where the training images are missing.
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
    """Return the `shared_part` of a checkpoint and the sha256 of its file. A file that cannot be
    exported ends the program with one line on stderr and exit code 2."""
    from runs.checkpoint import CheckpointError, read_with_sha256
    from runs.folder import RunFolderError, read_variant

    try:
        state, sha256 = read_with_sha256(checkpoint)
        environment = state.get("environment")  # an exported checkpoint has it
        with suppress(RunFolderError):  # the checkpoint may have been copied out of its run folder
            environment = read_variant(checkpoint.parent).get("environment")
        part = shared_part(state, environment or {})
    except CheckpointError as error:
        parser.error(f"CHECKPOINT: {error}")
    except (KeyError, TypeError):
        part = {"settings": {}}
    if not terms.used(part["settings"]):
        parser.error(
            f"CHECKPOINT {checkpoint} was not written by train_wrn.py: give a run's checkpoint"
        )
    return part, sha256


def training_command(settings: dict[str, Any]) -> str:
    """Return the command of train_wrn.py that has these settings, without PLACES."""
    from training.flags import build_parser

    command = ["python", "train_wrn.py"]
    for action in build_parser()._actions:
        value = settings.get(action.dest, action.default)
        if action.dest in PLACES or value == action.default:
            continue
        if action.nargs == 0:
            command.append(action.option_strings[0 if value else -1])  # the last is the --no- form
        else:
            value = int(value) if isinstance(value, bool) else value  # a switch takes 0 or 1
            values = value if isinstance(value, list) else [value]
            command += [action.option_strings[0], *map(str, values)]
    return shlex.join(command)


def differences(protocols: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Return, for each (question, protocol of an answer), its flags that replaced the run's
    settings, and the settings in which another answer to the question differs, less those of
    IN_ROWS, as text that begins with a comma; '' for none."""
    from reports.tables.records import NO_OVERRIDES

    return [
        "".join(
            f", {name} {set_name(value)}"
            for name, value in protocol.items()
            if name not in IN_ROWS and value is not None
            if (name == "overrides" and value != NO_OVERRIDES)
            or any(q == question and other.get(name) != value for q, other in protocols)
        )
        for question, protocol in protocols
    ]


def card(state: dict[str, Any], checkpoint: Path, sha256: str) -> tuple[str, Path | None]:
    """Return the model card, with the front matter of Hugging Face's model pages and the numbers of
    answers about the file with this sha256; and the path of its picture of samples, or None."""
    from reports.page import NoRun, paper, read_run
    from reports.page.markup import TEXTS
    from reports.tables.records import protocol_of
    from runs.style import radius

    s, environment, progress = state["settings"], state["environment"], state["progress"]
    run_answers: dict[str, Any] = {}
    with suppress(NoRun):  # an exported model's folder has no answers
        run_answers = read_run(checkpoint.parent).answers
    answers = [
        (question, answer, model)
        for question, question_answers in run_answers.items()
        for answer in question_answers
        for model in answer.models
        if model.get("checkpoint_sha256") == sha256 and not answer.missing
        if model.get("weights") != "raw"  # a run with --ema exports its averaged weights
    ]
    differing = differences([(question, protocol_of(question, m)) for question, _, m in answers])
    changed = [
        "".join(f"; {set_name(name)}: {escaped(code(text))}" for name, text in model.changes)
        for _, _, model in answers
    ]
    pictures = [
        path
        for question, answer, _ in answers
        if question == "cond_samples"
        for path in answer.pictures()
        if path.stem.endswith("_starts") and path.exists()
    ]
    data = state.get("data")
    versions = ", ".join(f"{k} {v}" for k, v in environment.get("packages", {}).items())
    commit = environment.get("git_commit")
    text = TEXTS.get_template("card.md.jinja").render(
        dataset=str(s["dataset"]).removeprefix(FOLDER),
        own=str(s["dataset"]).startswith(FOLDER),
        class_names=data.get("class_names") if isinstance(data, dict) else None,
        radius=radius,
        code=code,
        set_name=set_name,
        place=lambda text: "/".join(str(text).split("/")[-2:]),
        network=network_title(s),
        size=paper.image_size(s),
        s=s,
        terms=terms.used(s),
        answers=[(*a, d + c) for a, d, c in zip(answers, differing, changed, strict=True)],
        step=progress["step"],
        hours=progress.get("seconds", 0) / 3600,
        command=training_command(s),
        picture=SAMPLES if pictures else None,
        made_with={"device": environment.get("device"), "packages": versions, "commit": commit},
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
    part, sha256 = read(parser, args.checkpoint)
    text, picture = card(part, args.checkpoint, sha256)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        export(temporary, part)
        (temporary / CARD).write_text(text, encoding="utf-8")
        if picture is not None:
            shutil.copyfile(picture, temporary / SAMPLES)
        temporary.rename(folder)
    except CheckpointError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(
            f"FOLDER: cannot write {folder} ({error.strerror}): give one that is writable and has "
            "room"
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print_line(f"{folder}: {size / 1e6:.2f} MB", sys.stdout)
    if args.push:
        push(parser, folder, args.push, send=args.send)
    return folder


def push(parser: Parser, folder: Path, name: str, *, send: bool) -> None:
    """Upload the folder to the hub's repository `name`; without `send` only list its files."""
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
    except Exception as error:  # of many types: wrong name, wrong token, no network
        parser.error(f"--push {name}: {' '.join(str(error).split())[:200]}")
    print_line(f"uploaded {files}: hf://{name}", sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
