"""What pyproject.toml lists, against what the running Python has.

    python scripts/requirements.py list base|test       every requirement, one a line
    python scripts/requirements.py missing base|test    those that this Python does not meet, if any
    python scripts/requirements.py repair               before pip, after an interrupted one

It runs before anything is installed, and `packaging` comes with matplotlib: where it is missing,
so is everything.
"""

import re
import shutil
import sys
import sysconfig
from importlib.metadata import Distribution, distribution
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


def complete(found: Distribution) -> bool:
    """Whether its installation ran to the end: INSTALLER is written after the package's own files.

    What comes from a system's own package manager may be no wheel and have none.
    """
    if not (found.read_text("METADATA") or found.read_text("PKG-INFO")):
        return False
    return found.read_text("WHEEL") is None or bool(found.read_text("INSTALLER"))


def is_met(line: str) -> bool:
    try:
        if not complete(distribution("packaging")):  # a half-installed one may not even import
            return False
        from packaging.requirements import Requirement

        requirement = Requirement(line)
        found = distribution(requirement.name)
    except ImportError:  # of `packaging`, or of what is required
        return False
    return complete(found) and requirement.specifier.contains(found.version, prereleases=True)


def repair() -> None:
    """Forget every half-installed package: pip would take it for an installed one and go past."""
    if sys.prefix == sys.base_prefix:
        sys.exit("requirements.py repair: only for a virtual environment")
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(folder).glob("*.dist-info"):
            if not complete(Distribution.at(path)):
                print(f"environment: {path.stem} was left half installed: once more.")
                shutil.rmtree(path)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["list", ("base" | "test") as which]:
            print(*listed(which), sep="\n")
        case ["missing", ("base" | "test") as which]:
            print("\n".join(line for line in listed(which) if not is_met(line)), end="")
        case ["repair"]:
            repair()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
