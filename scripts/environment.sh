#!/usr/bin/env bash
# Finds or makes a Python that has what pyproject.toml lists. Source it, from bash, with `base` (to train and evaluate)
# or `test` (that, and pytest, ruff and mypy):
#
#     source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" test
#
# It sets and exports PYTHON, an absolute path. A Python that has everything is used as it is; else .venv in the
# repository's root is, which is made and filled where it has to be. What cannot be mended here ends the caller with
# one line and exit code 2. Kept to what bash 3.2 knows, which is the one that macOS ships.

hdge_root=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
hdge_venv=$hdge_root/.venv
hdge_oldest=3.10
hdge_newest=3.13

say() { printf 'environment: %s\n' "$*"; }
fail() { printf 'environment: %s\n' "$*" >&2; exit 2; }

# Prints the absolute path of the Python that $1 starts, if its version will do. It is run and not only looked for:
# python3.13 may be a stub that merely says where to get it. The code must be valid Python 2 as well.
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

# One line for the list of what $1 lacks; empty if it lacks nothing.
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

# Installs the list $1 into PYTHON. All in one call and from one index: torchvision holds compiled code for one build of
# torch. The list is installed, never this repository.
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
    [ -z "$missing" ] || fail "pip ended well, and yet $hdge_venv lacks $missing: remove that folder, then run this again."
    say "using $hdge_venv, which has everything that pyproject.toml lists."
}

case ${1:-} in
    base | test) set_up "$1" ;;
    *) fail "source this file with the word base or test." ;;
esac
