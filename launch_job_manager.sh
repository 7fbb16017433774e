#!/usr/bin/env bash
#
# The Job Manager: `bash launch_job_manager.sh` is the server, `bash launch_job_manager.sh demo` a
# demonstration that needs nothing. Further commands: `bash launch_job_manager.sh --help`.
set -euo pipefail
# shellcheck source=setup_venv.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/setup_venv.sh"

# shellcheck disable=SC2119
setup_venv
export OCPS_HOME=${OCPS_HOME:-$OCPS_TREE}
# In place of this shell, so that signals reach it; isolated from a user's own Python settings.
exec "$OCPS_PYTHON" -I -m ocps_jobmanager "$@"
