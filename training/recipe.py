"""Expand recipes: `@NAME` on a command line stands for the flags in scripts/recipes/NAME.txt.

A file holds flags as on a shell line, any number of flags a line. A word that begins with `#`
begins a comment. The comments at its head name its source, its cost and the expected results.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from runs.cli import Parser, did_you_mean

FOLDER = Path(__file__).resolve().parent.parent / "scripts" / "recipes"
COMMENT = re.compile(r"(^|\s)#.*")  # as in a shell: the # of run#1 is part of its word


def expand(argv: Sequence[str], parser: Parser) -> tuple[list[str], list[str], str | None]:
    """Return the recipes' flags, in the command line's order; the command line without recipes; and
    the recipes' names with a space between them, or None without a recipe. A mistake ends the
    program through `parser.error`."""
    typed, names = split(argv, parser)
    flags = [word for name in names for word in read(name, parser)]
    return flags, typed, " ".join(names) or None


def split(argv: Sequence[str], parser: Parser) -> tuple[list[str], list[str]]:
    """Return the command line without recipes, and the recipes' names.

    A recipe is a word that begins with @ and does not follow a flag that takes a value: --id @x
    names a run.
    """
    flags: list[str] = []
    names: list[str] = []
    takes_value = False
    for word in argv:
        if word.startswith("@") and not takes_value:
            names.append(word[1:])
        else:
            flags.append(word)
        action = parser._option_string_actions.get(word)
        takes_value = action is not None and action.nargs != 0
    return flags, names


def read(name: str, parser: Parser) -> list[str]:
    """Return the flags of a recipe after `parser` has accepted them."""
    paths = {path.stem: path for path in files()}
    if name not in paths:
        recipes = list(map(shown, paths))
        near = did_you_mean(shown(name), recipes)
        parser.error(f"{shown(name)} is no recipe: {near}use {', '.join(recipes)}")
    file = f"scripts/recipes/{name}.txt"
    try:
        lines = paths[name].read_text(encoding="utf-8-sig").splitlines()
        argv = [word for line in lines for word in shlex.split(COMMENT.sub("", line))]
    except (OSError, ValueError) as error:
        parser.error(f"{file} cannot be read ({error}): mend it")
    flags, names = split(argv, parser)
    if names:
        parser.error(
            f"{file}: {shown(names[0])}: a recipe cannot contain a recipe: write its flags there"
        )
    parser.source = f"{file}: "
    settings = parser.parse_args(flags)
    if settings.resume is not None or settings.overwrite:
        parser.error("--resume and --overwrite are for the command line alone: take them out")
    parser.source = ""
    return flags


def files() -> list[Path]:
    return sorted(FOLDER.glob("*.txt"), key=lambda path: path.stem)


def shown(names: str | None) -> str:
    """Return the names as on a command line: "@jem", "@jem @short"; "no recipe" for None."""
    return "no recipe" if names is None else " ".join(f"@{name}" for name in names.split(" "))


def listing() -> str:
    """Return a line for each recipe: its name and the first comment of its file."""
    heads = {p.stem: p.read_text("utf-8-sig", errors="replace").partition("\n")[0] for p in files()}
    return "".join(f"  {shown(name):18} {head.strip('# ')}\n" for name, head in heads.items())
