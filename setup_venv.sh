# shellcheck shell=bash
#
# Sourced by the scripts for people, under `set -e`: `setup_venv [extra ...]` sees to it that the
# virtual environment .venv beside this file has the package with these extras. Quick when it has;
# what it does otherwise it says on standard error.

OCPS_TREE=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd -P)
OCPS_VENV=$OCPS_TREE/.venv
OCPS_PYTHON=$OCPS_VENV/bin/python
# What our set-ups leave in a .venv: for the package and each extra the state that it was set up for,
# and `unfinished` as long as one is at work.
OCPS_MARKS=$OCPS_VENV/ocps-set-up

say() { printf '%s\n' "$*" >&2; }

setup_venv() {
    if ! is_set_up "$@"; then
        mkdir -p -- "$OCPS_TREE/.cache"
        # A shell of its own: the lock on file descriptor 9 ends with it.
        (lock_setup && { is_set_up "$@" || install_package "$@"; }) 9>"$OCPS_TREE/.cache/setup.lock"
    fi
}

# Whether the .venv is complete, up to date, and has the extras.
is_set_up() {
    local state mark
    state=$(setup_state)
    for mark in package "$@"; do
        [[ -f $OCPS_MARKS/$mark && $(<"$OCPS_MARKS/$mark") == "$state" ]] || return 1
    done
    [[ ! -e $OCPS_MARKS/unfinished ]] && has_package
}

# What a set-up depends on. First the folder: a copied or moved .venv points to where it was made.
setup_state() { printf '%s\n' "$OCPS_TREE" "$(<"$OCPS_TREE/pyproject.toml")"; }

# No longer so when the Python that the .venv was made with has been taken away or upgraded.
has_package() {
    "$OCPS_PYTHON" -I -c 'import sys; from importlib.util import find_spec
sys.exit(find_spec("ocps_jobmanager") is None)' 2>/dev/null
}

is_python() { "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Prints a Python that can make virtual environments: $PYTHON, or the first that will do.
find_python() {
    local candidates=(python3 python3.14 python3.13 python3.12 python3.11) candidate without_venv=
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        is_python "$candidate" || continue
        if "$candidate" -I -c 'import ensurepip, venv' 2>/dev/null; then
            printf '%s' "$candidate"
            return 0
        fi
        without_venv=${without_venv:-$candidate}
    done
    if [[ -n $without_venv ]]; then
        say "$without_venv can't make a virtual environment: install its venv module (on Debian and" \
            "Ubuntu the package python3-venv), or name another Python in \$PYTHON."
    elif [[ -n ${PYTHON:-} ]]; then
        say "\$PYTHON is $PYTHON, which is not Python 3.11 or newer."
    else
        say "There is no Python 3.11 or newer on the PATH: install one, or name one in \$PYTHON."
    fi
    return 1
}

# Waits until no other set-up of this folder is at work. By Python: not every system has flock(1).
lock_setup() {
    local python
    python=$(find_python) || return 1
    "$python" -I -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Waiting for another set-up of this folder to end ...", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
'
}

# Whether a .venv that is there can't be mended: a set-up was interrupted, or was for another folder,
# or its Python is gone. One that somebody made by hand, and that works, is taken as it is.
is_broken() {
    [[ -e $OCPS_MARKS/unfinished ]] || ! is_python "$OCPS_PYTHON" || {
        [[ -f $OCPS_MARKS/package ]] &&
            { [[ $(head -n 1 -- "$OCPS_MARKS/package") != "$OCPS_TREE" ]] || ! has_package; }
    }
}

install_package() {
    local python extras=$* old=$OCPS_TREE/.cache/old-venv mark
    python=$(find_python) || return 1
    # A user's own Python settings are for other programs.
    unset PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
    export PIP_USER=0

    if [[ -d $OCPS_VENV ]] && is_broken; then
        say "$OCPS_VENV can't be used (an interrupted set-up, or made elsewhere): making it anew."
        rm -rf -- "$old"
        mv -- "$OCPS_VENV" "$old" # in one step, so that an interruption leaves no half of it
    fi
    if [[ ! -d $OCPS_VENV ]]; then
        say "Setting up $OCPS_VENV (first use; takes a minute) ..."
        mkdir -p -- "$OCPS_MARKS"
        : >"$OCPS_MARKS/unfinished"
        "$python" -m venv "$OCPS_VENV" || return 1
    else
        say "Bringing $OCPS_VENV up to date ..."
        [[ ! -d $OCPS_MARKS ]] || : >"$OCPS_MARKS/unfinished"
    fi
    rm -rf -- "$old"

    "$OCPS_PYTHON" -I -m pip --version >/dev/null 2>&1 || "$OCPS_PYTHON" -I -m ensurepip >&2 || return 1
    if ! (cd -- "$OCPS_TREE" && "$OCPS_PYTHON" -I -m pip install -qq --disable-pip-version-check \
        --editable ".${extras:+[${extras// /,}]}" >&2); then
        say "The set-up failed; see above. When that is mended, run the same command again."
        return 1
    fi
    mkdir -p -- "$OCPS_MARKS"
    for mark in package "$@"; do
        setup_state >"$OCPS_MARKS/$mark"
    done
    rm -f -- "$OCPS_MARKS/unfinished"
    say "Set up."
}
