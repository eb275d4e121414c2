#!/usr/bin/env python3
"""A trained model as a folder to be uploaded: safetensors weights, settings and a model card.

    python scripts/export.py save/hdge/last_ckpt.pt exported/hdge
    python eval_wrn_ebm.py --load_path exported/hdge --eval test_clf

The card, README.md, has the numbers that were measured of this very checkpoint: what lies in eval/
of its run folder and tells its sha256.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run in place: the packages are not installed

from runs import terms  # noqa: E402
from runs.cli import Parser  # noqa: E402
from runs.names import FOLDER, IMAGE_SIZE  # noqa: E402
from runs.screen import print_line  # noqa: E402
from scripts import release  # noqa: E402

CARD = "README.md"
TEXT = """---
license: mit
library_name: pytorch
datasets:
- {dataset}
tags:
- image-classification
- energy-based-model
- out-of-distribution
---

# {network} of {dataset}, a classifier and a density

Logits f(x) of {size} x {size} images in [-1, 1]: log q(y|x) = f(x)[y] - logsumexp f(x),
and, up to a constant, log q(x) = {density}. Trained to minimise {objective}.

## Measured

{measured}

One training run, unless these numbers say otherwise.

## Use

```python
import models

model = models.load("this folder")
```

    python eval_wrn_ebm.py --load_path THIS_FOLDER --eval test_clf

## Made with

{step:,} steps; config.json has all settings.
"""


def build_parser() -> Parser:
    parser = Parser(prog="export.py", allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="of train_wrn.py, such as last_ckpt.pt")
    add("folder", type=Path, metavar="FOLDER", help="what is written; it must not exist yet")
    return parser


def measured(checkpoint: Path, sha256: str) -> Iterator[tuple[str, str, str]]:
    """Yield (what, on what, the number) of every answer about the file with this hash in the
    checkpoint's run folder."""
    for path in sorted((checkpoint.parent / "eval").glob("*.json")):
        # An answer that is damaged or has no number is passed over.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("weights") == "raw":
                continue  # of a run with --ema the averaged weights are exported
            if record.get("checkpoint_sha256") == sha256:
                yield from list(numbers(record))


def numbers(record: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    kind, on = record.get("eval"), f"{record.get('dataset')}, {record.get('n', 0):,} images"
    if kind == "test_clf":
        refined = f" after {record['n_steps']} SGLD steps" if record.get("n_steps") else ""
        yield f"accuracy{refined}", on, f"{record['accuracy']:.4f}"
    elif kind == "eval_ece":
        yield "ECE", on, f"{record['ece']:.4f}"
    elif kind == "OOD":
        for row in record["rows"]:
            sets = f"{record['in_dataset']} ({row['n_in']:,}) against {row['ood_dataset']}"
            yield f"AUROC, {row['score_fn']}", f"{sets} ({row['n_out']:,})", f"{row['auroc']:.4f}"
    elif kind == "fid":
        on = f"{record['n']:,} samples, features: {Path(record['features']).name}"
        yield "FID", on, f"{record['fid']:.2f}"
    elif kind == "attack":
        for row in record["rows"]:
            what = f"accuracy under {record['attack']}, {record['distance']} {row['eps']:.4g}"
            yield what, on, f"{row['accuracy']:.4f}"


def card(state: dict[str, Any], found: Sequence[tuple[str, str, str]]) -> str:
    """Return the model card: front matter as model pages read it, and text."""
    s, where = state["settings"], state["environment"]
    rows = [("what", "on", "number"), ("---", "---", "---"), *found]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    text = TEXT.format(
        dataset=str(s["dataset"]).removeprefix(FOLDER),
        network="ResNet-50" if s["arch"] == "resnet50" else f"WRN-{s['depth']}-{s['width']}",
        size=s.get("image_size", IMAGE_SIZE),
        density="e(x), a scalar head of its own" if s.get("uncond") else "logsumexp f(x)",
        objective=" + ".join(f"{s[t.name]:g} x {t.formula} ({t.how})" for t in terms.used(s)),
        measured=table if found else "Nothing: no evaluation of this checkpoint was found.",
        step=state["progress"]["step"],
    )
    versions = ", ".join(f"{k} {v}" for k, v in where.get("packages", {}).items())
    told = {"device": where.get("device"), "packages": versions, "commit": where.get("git_commit")}
    text += "".join(f"- {name}: {value}\n" for name, value in told.items() if value)
    # A data set of the user's own is known by the last part of its path.
    return re.sub(rf"{FOLDER}\S*/", FOLDER, text)


def main(argv: Sequence[str]) -> Path:
    """Write the folder and return it; a mistake is one line on stderr and exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    from runs.checkpoint import CheckpointError, export

    folder: Path = args.folder
    release.check_new(parser, "FOLDER", folder)
    kept, sha256 = release.read(parser, args.checkpoint, ["queue"])
    if not terms.used(kept["settings"]):
        parser.error(f"CHECKPOINT {args.checkpoint} is none of train_wrn.py's: give one of a run")
    text = card(kept, list(measured(args.checkpoint, sha256)))
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
    return folder


if __name__ == "__main__":
    path = main(sys.argv[1:])
    size = sum(file.stat().st_size for file in path.iterdir())
    print_line(f"{path}: {size / 1e6:.2f} MB", sys.stdout)
