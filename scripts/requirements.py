"""What pyproject.toml lists, against what the running Python has.

    python scripts/requirements.py list base|test       every requirement, one a line
    python scripts/requirements.py missing base|test    those that this Python does not meet, if any

It runs before anything is installed, and `packaging` comes with matplotlib: where it is missing,
so is everything.
"""

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def listed(group: str, pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """Return the lines of `dependencies`; for `test` also those of the extra `test`. They are read
    with regular expressions, since Python 3.10 has no tomllib."""
    text = pyproject.read_text(encoding="utf-8")
    lines: list[str] = []
    for key in ["dependencies", "test"] if group == "test" else ["dependencies"]:
        block = re.search(rf"^{key} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        if block is None:
            sys.exit(f"{pyproject}: no list named {key}")
        lines += re.findall(r'^\s*"([^"]+)",?\s*$', block[1], re.MULTILINE)
    return lines


def is_met(line: str) -> bool:
    try:
        from packaging.requirements import Requirement

        requirement = Requirement(line)
        installed = distribution(requirement.name)
    except ImportError:  # `packaging` or the required distribution is not installed
        return False
    return requirement.specifier.contains(installed.version, prereleases=True)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["list", ("base" | "test") as group]:
            print(*listed(group), sep="\n")
        case ["missing", ("base" | "test") as group]:
            print("\n".join(line for line in listed(group) if not is_met(line)), end="")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
