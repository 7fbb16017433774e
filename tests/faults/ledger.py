"""The ledger: what the jobs themselves write of their runs, and so a count from outside."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

JOB_SPECS = """
type:
  # Writes to the ledger when it starts and when it is done, and ends as it is told.
  fault:
    script: "jobs/fault.sh"
    env: ["LEDGER", "LASTS", "END"]
"""

#: Where the job finds its cluster, its proc and the number of its start: with HTCondor in the ad
#: that the starter wrote, which does not count this start yet; on this machine in its folder, which
#: its launcher, the parent, names. The line is written at once, at the end of the file (O_APPEND).
SCRIPT = r"""#!/bin/bash
if [[ -n ${_CONDOR_JOB_AD:-} ]]; then
    before=0
    while read -r name _ value; do
        case $name in
            ClusterId) cluster=$value ;;
            ProcId) proc=$value ;;
            NumJobStarts) before=$value ;;
        esac
    done < "$_CONDOR_JOB_AD"
    start=$((before + 1))
else
    mapfile -d '' -t launcher < "/proc/$PPID/cmdline"
    record=$(< "${launcher[-2]}/job.json")
    [[ $record =~ '"cluster_id": '([0-9]+) ]] && cluster=${BASH_REMATCH[1]}
    proc=0 start=1
fi
printf 'start %s %s.%s %s\n' "$JOB_ID" "$cluster" "$proc" "$start" >> "$LEDGER"
[[ $LASTS == 0 ]] || sleep "$LASTS"
printf 'end %s %s.%s %s\n' "$JOB_ID" "$cluster" "$proc" "$start" >> "$LEDGER"
case $END in
    [0-9]*) exit "$END" ;;
    *) kill -s "$END" $$ ;;
esac
"""

_LINE = re.compile(r"(start|end) ([0-9a-f]{32}) (\d+\.\d+) (\d+)")


@dataclass
class Runs:
    """What the ledger has of one job.

    Attributes
    ----------
    starts : list of str
        ``cluster.proc`` of every start, in their order.
    ends : int
        How often it came to its end.
    """

    starts: list[str] = field(default_factory=list)
    ends: int = 0


def read_ledger(path: Path) -> tuple[dict[str, Runs], list[str]]:
    """Read what was run, by job id, and the lines that make no sense."""
    return parse_ledger(path.read_text().splitlines() if path.exists() else [])


def parse_ledger(lines: Iterable[str]) -> tuple[dict[str, Runs], list[str]]:
    """As `read_ledger`, of lines."""
    runs: dict[str, Runs] = {}
    nonsense = []
    for line in lines:
        if (match := _LINE.fullmatch(line)) is None:
            nonsense.append(line)
            continue
        run = runs.setdefault(match[2], Runs())
        if match[1] == "start":
            run.starts.append(match[3])
        else:
            run.ends += 1
    return runs, nonsense
