#!/usr/bin/env bash
#
# One CCD image through the Alert Production pipeline. How the pipeline is run by hand:
# https://pipelines.lsst.io/v/daily/modules/lsst.ap.pipe/pipeline-tutorial.html
#
# The variables AP_* come with the job. OCPS_STACK_SETUP, optional, names a script to be sourced
# that sets up the LSST Science Pipelines.
set -euo pipefail

fail() {  # exit status, sentence
    printf '%s\n' "$2" >&2
    exit "$1"
}

for name in AP_JOB_OUTPUT_DIR AP_VISIT_ID AP_CCD_NUM AP_REPO AP_TEMPLATE AP_CALIB AP_FILTER; do
    [[ -n ${!name:-} ]] || fail 2 "The variable $name is not set."
done

if [[ -n ${OCPS_STACK_SETUP:-} ]]; then
    [[ -r $OCPS_STACK_SETUP ]] || fail 127 "OCPS_STACK_SETUP names $OCPS_STACK_SETUP, which can't be read on this machine."
    # Such scripts read unset variables, their last command may fail harmlessly, and they may go
    # to another folder. Whether they did their work shows below.
    start_dir=$PWD
    set +eu +o pipefail
    # shellcheck source=/dev/null
    source "$OCPS_STACK_SETUP"
    set -euo pipefail
    cd -- "$start_dir"
fi

for program in make_apdb.py ap_pipe.py; do
    command -v "$program" >/dev/null ||
        fail 127 "$program is not on the PATH: set up the LSST Science Pipelines with OCPS_STACK_SETUP in the server's environment."
done

repo_dir=$AP_JOB_OUTPUT_DIR/repo
apdb_dir=$AP_JOB_OUTPUT_DIR/apdb
mkdir -p -- "$repo_dir" "$apdb_dir"

# The database of what the pipeline detects: made first, then filled
apdb=(
    --config diaPipe.apdb.isolation_level=READ_UNCOMMITTED
    --config "diaPipe.apdb.db_url=sqlite:///$apdb_dir/association.db"
)
make_apdb.py "${apdb[@]}"
ap_pipe.py "$AP_REPO" \
    --id "visit=$AP_VISIT_ID" "ccdnum=$AP_CCD_NUM" "filter=$AP_FILTER" \
    --calib "$AP_CALIB" \
    --template "$AP_TEMPLATE" \
    "${apdb[@]}" \
    --output "$repo_dir"
