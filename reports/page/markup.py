"""HTML that is escaped by construction: whatever is not Html already is text."""

from __future__ import annotations

import base64
import html
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

VOID = {"img", "meta", "br"}
PNG = b"\x89PNG\r\n\x1a\n"
NONE = "\N{EN DASH}"


class Html(str):
    """A piece of finished HTML; a plain str is text and is escaped by `tag`."""


def escape(value: object) -> Html:
    # Half of a surrogate pair, as in a file name that is not UTF-8, cannot be written as UTF-8.
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return value if isinstance(value, Html) else Html(html.escape(text))


def join(parts: Iterable[object], between: str = "") -> Html:
    return Html(between.join(escape(part) for part in parts if part is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """<name ...>children</name>. Attribute `class_` is class, data_x is data-x; None: left out."""
    texts = []
    for key, value in attributes.items():
        if value is not None:
            texts.append(f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"')
    opening = f"<{name}{''.join(texts)}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def code(text: object) -> Html:
    return tag("code", text)


def note(*children: object) -> Html:
    """Something is missing or to be taken with care."""
    return tag("p", *children, class_="note")


def fold(title: object, *children: object) -> Html:
    return tag("details", tag("summary", title), *children)


def table(
    head: Sequence[object], rows: Sequence[Sequence[object]], *, text_columns: int = 1
) -> Html:
    """The first `text_columns` columns are text, the others numbers; a wide one scrolls."""

    def row(cells: Sequence[object], name: str) -> Html:
        kinds = [None if i < text_columns else "num" for i in range(len(cells))]
        scope = "col" if name == "th" else None
        pairs = zip(cells, kinds, strict=True)
        return tag("tr", *(tag(name, cell, class_=kind, scope=scope) for cell, kind in pairs))

    body = tag("tbody", *(row(cells, "td") for cells in rows))
    whole = tag("table", tag("thead", row(head, "th")), body)
    return tag("div", whole, class_="scroll", tabindex="0")


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels; None where the bytes are no PNG."""
    if not data.startswith(PNG) or len(data) < 24:
        return None
    width, height = struct.unpack(">II", data[16:24])
    return (width, height) if width and height else None


def picture(path: Path, alt: str, caption: object = None, *, pixels: bool = False) -> Html:
    """A PNG within the page; `pixels`: enlarged without smoothing. A note where it is missing."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        return note(f"The picture {path.name} {reason}.")
    size = png_size(data)
    if size is None:
        return note(f"{path.name} is no PNG picture, or damaged.")
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    kind = "pixels" if pixels else "chart"
    image = tag("img", src=source, alt=alt, width=size[0], height=size[1], class_=kind)
    return tag("figure", image, tag("figcaption", caption) if caption else None)


# Numbers. What is no finite number is shown as a dash.


def number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an int beyond what a float holds
        return None


def decimals(value: object, digits: int) -> str:
    found = number(value)
    return NONE if found is None else f"{found:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: object, digits: int = 2) -> str:
    """0.7 -> 70.00 %, with a space that does not break."""
    found = number(value)
    return NONE if found is None else f"{decimals(100 * found, digits)}\N{NO-BREAK SPACE}%"


def significant(value: object, digits: int = 4) -> str:
    found = number(value)
    return NONE if found is None else f"{found:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def count(value: object) -> str:
    found = number(value)
    return NONE if found is None else f"{found:,.0f}"
