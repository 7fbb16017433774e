#!/usr/bin/env bash
#
# The tests: `bash run_tests.sh` runs them all; further arguments are pytest's.
# `bash run_tests.sh faults` is the long run of the fault harness (--help; docs/reliability.rst).
# `bash run_tests.sh pool` starts a real HTCondor pool for people, and ends it on Ctrl-C.
# `bash run_tests.sh hostile` sends 20,000 made-up requests to a server; `--requests N` for others.
# Tests against such a pool are skipped where none can be had, unless OCPS_REQUIRE_HTCONDOR=1.
set -euo pipefail
# shellcheck source=setup_venv.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/setup_venv.sh"

setup_venv test
cd -- "$OCPS_TREE"
unset PYTHONPATH PYTHONHOME # a user's own; they would come before what the tests are for
if [[ ${1:-} == pool ]]; then
    shift
    exec "$OCPS_PYTHON" -m tests.condor.pool "$@"
fi
if [[ ${1:-} == hostile ]]; then
    shift
    exec "$OCPS_PYTHON" -m tests.hostile.generated "$@"
fi
if [[ ${1:-} == faults ]]; then
    shift
    exec "$OCPS_PYTHON" -m tests.faults "$@"
fi
exec "$OCPS_PYTHON" -m pytest "$@"
