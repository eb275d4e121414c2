"""Fill the templates beside this file: escaped text, formatted numbers, embedded pictures."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from runs.screen import reversed_order

HERE = Path(__file__).resolve().parent
PNG = b"\x89PNG\r\n\x1a\n"
NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def document(template: str, **values: object) -> str:
    """Return the page of a template that extends base.html; the page loads nothing.

    Every value is escaped. The page's own policy runs no script but page.js, and blocks loading.
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    sources = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    values["policy"] = f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"
    values["style"] = (HERE / "page.css").read_text(encoding="utf-8")
    text = TEMPLATES.get_template(template).render(script=script, **values)
    # a file name that is not UTF-8 has lone surrogates, which UTF-8 cannot encode
    return text.encode("utf-8", "replace").decode("utf-8")


class Picture(NamedTuple):
    """A PNG as a data URL and its size in pixels, or why it is missing."""

    source: str = ""
    width: int = 0
    height: int = 0
    missing: str = ""


def png(path: Path) -> Picture:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        return Picture(missing=f"The picture {path.name} {reason}.")
    width, height = struct.unpack(">II", data[16:24]) if len(data) >= 24 else (0, 0)
    if not data.startswith(PNG) or not width or not height:
        return Picture(missing=f"{path.name} is no PNG picture, or damaged.")
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    return Picture(source, width, height)


def number(value: object) -> float | None:
    """Return the value where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None  # false for nan, too


def parsed(text: str | None) -> float | None:
    """Return the finite number that a field of progress.csv holds, else None."""
    try:
        return number(float(text or ""))
    except ValueError:
        return None


def show(value: object, form: str) -> str:
    """Format a finite number as Python's format() does, with a minus sign and a no-break space
    before %; any other value as a dash."""
    finite = number(value)
    if finite is None:
        return NONE
    return format(finite, form).replace("-", MINUS).replace("%", "\N{NO-BREAK SPACE}%")


def plain(value: Any) -> str:
    """Return a setting as on a command line; an object as 'key value, key value'."""
    if isinstance(value, list):
        return " ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def code(value: object) -> Markup:
    return Markup("<code>{}</code>").format(plain(value))


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader([HERE, HERE.parent / "tables"]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
SHARED = (code, number, parsed, plain, png, reversed_order, show)
TEMPLATES.globals |= {function.__name__: function for function in SHARED}
TEXTS = TEMPLATES.overlay(autoescape=False)  # shares the functions and filters
