"""Write the pages of the measurements. `record` is the content of bench.json."""

from __future__ import annotations

import re
import shlex
import tempfile
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu import SHARES, unpack_archive
from reports.page import NoRun
from reports.page.markup import TEXTS
from reports.tables import formats
from reports.tables.compare import compared
from runs.cli import UsageError
from runs.files import read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
# Pictures of the run folders that are copied beside the page, and their titles.
PICTURES = {
    "m-jem/eval/cond_samples_starts.png": "the chains' starts",
    "m-jem/eval/cond_samples_direct_40.png": "class-conditional samples, 40 steps from them",
    "m-jem/eval/fid_lengths.png": "FID over the length of a chain",
    "m-jem/curves.png": "the training run",
}
BLOCK = re.compile(r"(<!-- speed on a GPU -->).*?(<!-- end -->)", re.DOTALL)


def markdown(record: dict[str, Any]) -> str:
    """Return the whole page."""
    command = shlex.join(record["settings"]["command"])
    return formats.markdown("bench.md.jinja", record=record, command=command)


def speed(record: dict[str, Any]) -> str:
    """Return README.md's table of the project's steps, with the machine that they ran on."""
    return formats.markdown("speed.md.jinja", record=record).rstrip("\n")


def figures(value: float | None, times: float = 1) -> str:
    """Return value * times with three digits; "-" for None. Numbers above 1 get no exponent."""
    if value is None:
        return "-"
    value *= times
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.995 else None
    return f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}"


def ms(seconds: float) -> str:
    return figures(seconds, 1e3)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


TEXTS.filters |= {"figures": figures, "ms": ms, "percent": percent}


# ------------------------------------------------------------------------ pages of scripts/gpu.sh


def collect(out: Path, target: Path | None) -> Path:
    """Write gpu.md, gpu.json and pictures from `out`, an OUT of gpu.sh, to `target`. Without a
    target write them to benchmarks/gpu, and the table of speed to README.md. Return gpu.md's path.

    Raises UsageError where `out` is no OUT of gpu.sh or one that has tests alone, or without a
    target a rehearsal's.
    """
    if (out / "parts.json").exists() and not (out / "bench.json").exists():
        names = ", ".join(name for name in SHARES if name != "tests")
        raise UsageError(
            f"collect {out}: it has no bench.json, which each of the parts {names} writes: "
            "let gpu.sh run one of them"
        )
    try:
        record, calls = read_json(out / "bench.json"), read_json(out / "parts.json")
    except (OSError, ValueError) as error:
        raise UsageError(f"collect {out}: {error}: give an OUT of scripts/gpu.sh") from None
    rehearsed = record["settings"]["device"] == "cpu"
    if rehearsed and target is None:
        raise UsageError(
            f"collect {out}: it is a rehearsal: give --output to write its page elsewhere"
        )
    record["settings"]["command"] = calls["command"]
    record |= {"parts_of_it": calls["parts"], "seconds": calls["seconds"], "rehearsed": rehearsed}
    with suppress(OSError, ElementTree.ParseError):  # no tests were run, or the file is cut short
        record["tests"] = tests(out / "tests.xml")
    folder = target or HERE / "gpu"
    folder.mkdir(parents=True, exist_ok=True)
    record["pictures"] = {}
    with tempfile.TemporaryDirectory() as work:
        if list(out.glob("run.zip.*")):
            unpack_archive(out, Path(work))
        for name, title in PICTURES.items():
            if (picture := Path(work) / name).exists():
                (folder / picture.name).write_bytes(picture.read_bytes())
                record["pictures"][picture.name] = title
        with suppress(NoRun):  # the call did not train
            record["summary"] = compared([Path(work) / "m-jem"]).lines  # also for RESULTS.md
    write_json(folder / "gpu.json", record)
    write_text(folder / "gpu.md", markdown(record))
    if target is None and record.get("steps"):
        readme = HERE.parent / "README.md"
        write_text(readme, with_speed(readme.read_text(encoding="utf-8"), speed(record)))
    return folder / "gpu.md"


def with_speed(page: str, table: str) -> str:
    """Return README.md with the table between its two marks."""
    return BLOCK.sub(lambda match: f"{match[1]}\n\n{table}\n\n{match[2]}", page)


def tests(path: Path) -> dict[str, Any]:
    """Return a JUnit file's counts of passed and skipped tests, and the names of failed tests."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = [
        str(case.get("name")) for case in cases if {"failure", "error"} & {e.tag for e in case}
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}
