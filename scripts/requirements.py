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


def listed(which: str, pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """Return the requirements of `base`, or of `test`, which has the extra, too. Python 3.10 has no
    tomllib."""
    text = pyproject.read_text(encoding="utf-8")
    found: list[str] = []
    for key in ["dependencies", "test"] if which == "test" else ["dependencies"]:
        block = re.search(rf"^{key} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        if block is None:
            sys.exit(f"{pyproject}: no list named {key}")
        found += re.findall(r'^\s*"([^"]+)",?\s*$', block[1], re.MULTILINE)
    return found


def is_met(line: str) -> bool:
    try:
        from packaging.requirements import Requirement

        requirement = Requirement(line)
        found = distribution(requirement.name)
    except ImportError:  # of `packaging`, or of what is required
        return False
    return requirement.specifier.contains(found.version, prereleases=True)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["list", ("base" | "test") as which]:
            print(*listed(which), sep="\n")
        case ["missing", ("base" | "test") as which]:
            print("\n".join(line for line in listed(which) if not is_met(line)), end="")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
