#!/usr/bin/env bash
# Find or make a Python that has the packages listed in pyproject.toml. Source this file from bash with `base` (to train
# and evaluate) or `test` (the packages of base, and pytest, ruff and mypy):
#
#     source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
#
# It sets and exports PYTHON, an absolute path: a Python that has all packages, otherwise .venv in the repository's
# root, which is made and filled if necessary. A problem that it cannot solve ends the calling script with one line and
# exit code 2. Only features of bash 3.2 are used, the version that macOS ships.

hdge_root=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
hdge_venv=$hdge_root/.venv
hdge_oldest=3.10
hdge_newest=3.13

say() { printf 'environment: %s\n' "$*"; }
fail() { printf 'environment: %s\n' "$*" >&2; exit 2; }

# Print the absolute path of the Python that $1 starts, if its version is supported. $1 has to be run: python3.13 may be
# a stub that only prints where to get Python. The code must also be valid in Python 2.
suitable() {
    "$1" -c '
import sys
first, last = [tuple(int(n) for n in v.split(".")) for v in sys.argv[1:3]]
if not first <= sys.version_info[:2] <= last:
    sys.exit(1)
print(sys.executable)' "$hdge_oldest" "$hdge_newest" 2>/dev/null
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        suitable "$PYTHON" ||
            fail "PYTHON=$PYTHON does not start a Python $hdge_oldest to $hdge_newest: set it to one, or unset it."
        return
    fi
    for candidate in \
        ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} \
        python3 python3.13 python3.12 python3.11 python3.10 python; do
        suitable "$candidate" && return
    done
    fail "no Python $hdge_oldest to $hdge_newest found: install one, or name one, as in PYTHON=/path/to/python3.12."
}

# Print the requirements of $2 (base or test) that the Python $1 does not meet, on one line; nothing if it meets all.
missing_in() {
    local lines
    lines=$("$1" "$hdge_root/scripts/requirements.py" missing "$2") || fail "$1 could not read pyproject.toml."
    printf '%s' "${lines//[[:space:]]/ }"
}

make_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$1 has no venv or ensurepip to make $hdge_venv with: install them (Debian, Ubuntu: apt install python3-venv), or name another Python, as in PYTHON=/path/to/python3.12."
    say "making $hdge_venv with $1."
    "$1" -m venv --clear "$hdge_venv" || fail "$hdge_venv could not be made: the reason stands above."
}

# Install the requirements of $1 (base or test) into PYTHON, in one call of pip and from one index, since torchvision is
# compiled for one build of torch. This repository itself is not installed.
install() {
    local wanted=() line
    while IFS= read -r line; do
        wanted+=("$line")
    done < <("$PYTHON" "$hdge_root/scripts/requirements.py" list "$1")
    say "installing with pip what is missing; torch, if it is, has several GB on Linux and takes minutes."
    "$PYTHON" -m pip install --disable-pip-version-check "${wanted[@]}" ||
        fail "pip could not install the packages (the reason stands above): mend that, then run this again."
}

set_up() {
    local missing
    PYTHON=$(find_python) || exit 2
    export PYTHON
    missing=$(missing_in "$PYTHON" "$1") || exit 2
    if [ -z "$missing" ]; then
        say "using $PYTHON, which has everything that pyproject.toml lists."
        return
    fi
    "$hdge_venv/bin/python" -c '' 2>/dev/null || make_venv "$PYTHON"
    PYTHON=$(suitable "$hdge_venv/bin/python") ||
        fail "$hdge_venv is not of a Python $hdge_oldest to $hdge_newest: remove that folder, then run this again."
    missing=$(missing_in "$PYTHON" "$1") || exit 2
    [ -z "$missing" ] || install "$1"
    missing=$(missing_in "$PYTHON" "$1") || exit 2
    [ -z "$missing" ] || fail "pip ended well, but $hdge_venv lacks $missing: remove that folder, then run this again."
    say "using $hdge_venv, which has everything that pyproject.toml lists."
}

case ${1:-} in
    base | test) set_up "$1" ;;
    *) fail "source this file with the word base or test." ;;
esac
