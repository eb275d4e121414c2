"""The measurements as Markdown. `found` is the content of bench.json."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from reports.page.markup import TEXTS

HERE = Path(__file__).resolve().parent


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
