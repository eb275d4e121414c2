"""Pages of the measurements. `found` is the content of bench.json."""

from __future__ import annotations

import re
import shlex
import tempfile
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu import unpack_archive
from reports.page import NoRun
from reports.page.markup import TEXTS
from reports.tables.compare import compared
from runs.cli import UsageError
from runs.files import read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
RECORD = HERE / "gpu"
# What of the run folder is kept beside the page.
PICTURES = {
    "m-jem/eval/cond_samples_starts.png": "the chains' starts",
    "m-jem/eval/cond_samples_direct_40.png": "class-conditional samples, 40 steps from them",
    "m-jem/eval/fid_lengths.png": "FID over the length of a chain",
    "m-jem/curves.png": "the training run",
}
ENDINGS = ("failure", "error", "skipped")  # of a test in a JUnit file, unless it has passed
BLOCK = re.compile(r"(<!-- speed on a GPU -->).*?(<!-- end -->)", re.DOTALL)


def markdown(found: dict[str, Any]) -> str:
    """Return the whole page."""
    return rendered("bench.md.jinja", found=found, command=shlex.join(found["settings"]["command"]))


def speed(found: dict[str, Any]) -> str:
    """Return the project's steps as the table of README.md, and where they were measured."""
    return rendered("speed.md.jinja", found=found).rstrip("\n")


def rendered(template: str, **values: object) -> str:
    text = TEXTS.from_string((HERE / template).read_text(encoding="utf-8")).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def figures(value: float | None, times: float = 1) -> str:
    """Return three digits, and no exponent for numbers that occur here."""
    if value is None:
        return "-"
    value *= times
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.995 else None
    return f"{value:.3g}" if digits is None else f"{value:,.{digits}f}"


def ms(seconds: float) -> str:
    return figures(seconds, 1e3)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


TEXTS.filters |= {"figures": figures, "ms": ms, "percent": percent}


# ----------------------------------------------------------------------------- of scripts/gpu.sh


def collect(out: Path, target: Path | None) -> Path:
    """Write gpu.md, gpu.json and the run's pictures of what gpu.sh left in `out` into `target`; by
    default into benchmarks/gpu, and the table of speed into README.md. Return the page.

    Raises UsageError for a folder that gpu.sh has not filled, and by default for a rehearsal.
    """
    try:
        found, ended = read_json(out / "bench.json"), read_json(out / "parts.json")
    except (OSError, ValueError) as error:
        raise UsageError(f"collect {out}: {error}: give an OUT of scripts/gpu.sh") from None
    rehearsed = found["settings"]["device"] == "cpu"
    if rehearsed and target is None:
        raise UsageError(f"collect {out}: it is a rehearsal's: give --output to look at its page")
    found["settings"]["command"] = ended["command"]
    found |= {"parts_of_it": ended["parts"], "seconds": ended["seconds"], "rehearsed": rehearsed}
    with suppress(OSError, ElementTree.ParseError):  # not run, or killed while it was written
        found["tests"] = tests(out / "tests.xml")
    place = target or RECORD
    place.mkdir(parents=True, exist_ok=True)
    found["pictures"] = {}
    with tempfile.TemporaryDirectory() as work:
        if list(out.glob("run.zip.*")):
            unpack_archive(out, Path(work))
        for name, title in PICTURES.items():
            if (Path(work) / name).exists():
                (place / Path(name).name).write_bytes((Path(work) / name).read_bytes())
                found["pictures"][Path(name).name] = title
        with suppress(NoRun):  # nothing was trained
            found["summary"] = compared([Path(work) / "m-jem"]).lines  # also for RESULTS.md
    write_json(place / "gpu.json", found)
    write_text(place / "gpu.md", markdown(found))
    if target is None and found.get("steps"):
        readme = HERE.parent / "README.md"
        write_text(readme, with_speed(readme.read_text(encoding="utf-8"), speed(found)))
    return place / "gpu.md"


def with_speed(page: str, table: str) -> str:
    """Return README.md with the table between its two marks."""
    return BLOCK.sub(lambda found: f"{found[1]}\n\n{table}\n\n{found[2]}", page)


def tests(path: Path) -> dict[str, Any]:
    """Return how many tests of a JUnit file passed and were skipped, and those that failed."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    ended = {kind: [c for c in cases if c.find(kind) is not None] for kind in ENDINGS}
    failed = [str(case.get("name")) for case in ended["failure"] + ended["error"]]
    skipped = len(ended["skipped"])
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}
