#!/usr/bin/env bash
#
# Submits jobs for random images: see `bash run_client.sh --help` and config.example.yaml.
set -euo pipefail
# shellcheck source=setup_venv.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/setup_venv.sh"

# shellcheck disable=SC2119
setup_venv
export OCPS_HOME=${OCPS_HOME:-$OCPS_TREE}

# Everything that is needed after the stack's script, which may change any variable.
ocps_command=("$OCPS_PYTHON" -I -m ocps_jobmanager.client "$@")
if [[ -n ${OCPS_STACK_SETUP:-} ]]; then
    # As the server reads this setting
    [[ $OCPS_STACK_SETUP == /* ]] || export OCPS_STACK_SETUP=$OCPS_HOME/$OCPS_STACK_SETUP
    if [[ ! -r $OCPS_STACK_SETUP ]]; then
        say "OCPS_STACK_SETUP names $OCPS_STACK_SETUP, which can't be read."
        exit 2
    fi
    ocps_start_dir=$PWD
    ocps_libraries=${LD_LIBRARY_PATH-}
    set -- # or it would take our arguments for its own
    set +eu +o pipefail
    # shellcheck source=/dev/null
    source "$OCPS_STACK_SETUP"
    set -euo pipefail
    cd -- "$ocps_start_dir"
    # The stack's libraries are for the stack's Python, not for that of .venv.
    export LD_LIBRARY_PATH=$ocps_libraries
fi
exec "${ocps_command[@]}"
