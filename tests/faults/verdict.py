"""The verdict: what clients were told, what the server says now, and what really ran. Pure."""

import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.faults.ledger import Runs

#: Such a job is there to be removed.
ENDLESS_S = 600.0


@dataclass
class Given:
    """A job whose id a client was given.

    Attributes
    ----------
    lasts_s : float
        How long it runs, seconds.
    end : str
        Its exit code, or the name of the signal that ends it.
    removal : bool
        A client has asked for its removal; it need not have been told that this was heard.
    """

    id: str
    lasts_s: float
    end: str
    removal: bool = False

    @property
    def is_endless(self) -> bool:
        """Whether it ends only by being removed."""
        return self.lasts_s >= ENDLESS_S


@dataclass
class Verdict:
    """What is wrong, by kind, each a list of sentences; and what was counted."""

    wrong: dict[str, list[str]] = field(
        default_factory=lambda: {kind: [] for kind in ("lost", "twice", "stranger", "left over")}
    )
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.wrong.values())

    def say(self, kind: str, sentence: str) -> None:
        """Note that something is wrong."""
        self.wrong.setdefault(kind, []).append(sentence)


def judge(
    given: Mapping[str, Given],
    records: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, Runs],
    ads: Mapping[str, set[str]] | None,
) -> Verdict:
    """Compare them.

    Parameters
    ----------
    records : mapping of str to mapping
        What the server says of each given job (``job`` of ``GET /job``), by id.
    ads : mapping of str to set of str, or None
        ``cluster.proc`` of everything that HTCondor ever queued, by job id.
    """
    verdict = Verdict()
    for job_id, job in given.items():
        record = records.get(job_id)
        if record is None:
            verdict.say("lost", f"{job_id}: the server does not know it")
            continue
        verdict.counts[record["state"]] += 1
        _judge_end(verdict, job, record, runs.get(job_id, Runs()))
        _judge_runs(verdict, job_id, record, runs.get(job_id, Runs()), ads)
    for job_id in (runs.keys() | (ads or {}).keys()) - given.keys():
        verdict.say("stranger", f"{job_id}: nobody was given this id, and it was run or queued")
    return verdict


def _judge_end(verdict: Verdict, job: Given, record: Mapping[str, Any], runs: Runs) -> None:
    state, code, number = record["state"], record["exit_code"], record["exit_signal"]
    if job.end.isdigit():
        as_told = (state, code) == ("completed", int(job.end))
    else:
        as_told = (state, number) == ("completed", int(signal.Signals[f"SIG{job.end}"]))
    what = f"{job.id}: {state} ({code=}, {number=}, {record['reason']!r})"
    if as_told and not job.is_endless:
        # HTCondor may have begun it anew after its end, if it never heard of that.
        if not 1 <= runs.ends <= len(runs.starts):
            verdict.say("lost", f"{what}, but it came to its end {runs.ends} times")
    elif not (state == "removed" and job.removal):
        asked = ", and its removal was asked for" if job.removal else ""
        verdict.say("lost", f"{what}; it was to end with {job.end}{asked}")


def _judge_runs(
    verdict: Verdict,
    job_id: str,
    record: Mapping[str, Any],
    runs: Runs,
    ads: Mapping[str, set[str]] | None,
) -> None:
    places = set(runs.starts) | (ads or {}).get(job_id, set())
    if len(places) > 1:
        verdict.say("twice", f"{job_id}: {', '.join(sorted(places))}")
        return
    known = record["cluster_id"]
    if places and known is not None and f"{known}.{record['proc_id']}" not in places:
        verdict.say("twice", f"{job_id}: the server knows it as {known}, it was {places}")
    starts, num_starts = len(runs.starts), record["num_starts"]
    if ads is None and starts > 1:
        verdict.say("twice", f"{job_id}: {starts} local starts")
    elif starts > 1:
        verdict.counts["started again by HTCondor"] += 1
    # Whoever is removed at its start may be ended before its first line.
    if starts > num_starts or (starts < num_starts and record["state"] == "completed"):
        verdict.say("num_starts", f"{job_id}: started {starts} times, and it says {num_starts}")
