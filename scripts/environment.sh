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

venv_python() {
    if [ -e "$hdge_venv/Scripts/python.exe" ]; then  # Windows
        printf '%s\n' "$hdge_venv/Scripts/python.exe"
    else
        printf '%s\n' "$hdge_venv/bin/python"
    fi
}

make_venv() {
    local base=$1 version
    version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$base has no venv or ensurepip to make $hdge_venv with: install them (Debian, Ubuntu: apt install python$version-venv), or name another Python, as in PYTHON=/path/to/python3.12."
    say "making $hdge_venv with $base (Python $version)."
    "$base" -m venv --clear "$hdge_venv" ||
        fail "$hdge_venv could not be made (the reason stands above; $(free_megabytes) MB are free there): mend that, then run this again."
}

free_megabytes() { df -Pk "$hdge_root" | awk 'NR == 2 { print int($4 / 1024) }'; }

# Installs the list $1, of which $2 is missing, into PYTHON.
install() {
    local wanted=() line status=0 log=$hdge_venv/pip.log
    while IFS= read -r line; do
        wanted+=("$line")
    done < <("$PYTHON" "$hdge_root/scripts/requirements.py" list "$1" | tr -d '\r')
    "$PYTHON" "$hdge_root/scripts/requirements.py" repair || fail "$hdge_venv is damaged: remove it, then run this again."
    "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip --default-pip >/dev/null ||
        fail "$hdge_venv has no pip: remove it, then run this again."
    say "installing with pip what is missing."
    [[ $2 != *torch\>* ]] || say "torch is large (on Linux, with its CUDA libraries, several GB): this takes minutes, once."
    rm -f "$log"
    # All in one call and from one index: torchvision holds compiled code for one build of torch, and torch of one
    # index with torchvision of another fails at import. The list is installed, never this repository.
    "$PYTHON" -m pip install --disable-pip-version-check --log "$log" "${wanted[@]}" || status=$?
    if [ "$status" -eq 0 ]; then
        rm -f "$log"
    elif [ "$status" -gt 128 ]; then  # by a signal
        fail "the installation was interrupted: run this again, it goes on with what is there."
    # Of a full disk the log itself may know nothing.
    elif grep -qE 'No space left|Disk quota' "$log" 2>/dev/null || [ "$(free_megabytes)" -lt 100 ]; then
        fail "the disk is full ($(free_megabytes) MB free at $hdge_root; on Linux about 7 GB are needed, and TMPDIR needs room too): make room, then run this again."
    elif grep -qE 'ConnectionError|Connection(Pool)?\(.*timed out|connection broken|ProxyError|SSLError' "$log" 2>/dev/null; then
        fail "pip could not reach its package index: connect to a network (or set pip's proxy), then run this again."
    else
        fail "pip could not install the packages (the reason stands above, and in $log): mend that, then run this again."
    fi
}

set_up() {
    local missing base existing
    PYTHON=$(find_python) || exit 2
    export PYTHON
    missing=$(missing_in "$PYTHON" "$1") || exit 2
    if [ -z "$missing" ]; then
        say "using $PYTHON, which has everything that pyproject.toml lists."
        return
    fi

    base=$PYTHON
    existing=$(venv_python)
    if [ -x "$existing" ] && "$existing" -c '' 2>/dev/null; then
        PYTHON=$(suitable "$existing") ||
            fail "$hdge_venv is not of a Python $hdge_oldest to $hdge_newest: remove that folder, then run this again."
        missing=$(missing_in "$PYTHON" "$1") || exit 2
        if [ -z "$missing" ]; then
            say "using $hdge_venv, which has everything that pyproject.toml lists."
            return
        fi
        say "$hdge_venv lacks $missing."
    else
        say "$base lacks $missing."
        make_venv "$base"
        PYTHON=$(venv_python)
    fi

    install "$1" "$missing"
    missing=$(missing_in "$PYTHON" "$1") || exit 2
    [ -z "$missing" ] || fail "pip ended well, and yet $hdge_venv lacks $missing: remove that folder, then run this again."
    say "$hdge_venv is complete."
}

case ${1:-} in
    base | test) set_up "$1" ;;
    *) fail "source this file with the word base or test." ;;
esac
