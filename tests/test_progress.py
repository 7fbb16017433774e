"""What a person sees of jobs: a table on a terminal, lines elsewhere."""

import io
from typing import Any, cast

from rich.console import Console

from ocps_jobmanager.answers import JobInfo, Snapshot
from ocps_jobmanager.progress import Progress


def job(number: int, state: str, **more: Any) -> JobInfo:
    info = {"job_id": f"{number:032x}", "state": state, "phase": "pending", "reason": None}
    info |= {"cluster_id": None, "proc_id": None, "exit_code": None, "exit_signal": None}
    return cast(JobInfo, info | more)


def shown(console: Console, *snapshots: Snapshot) -> str:
    with Progress(console) as progress:
        for snapshot in snapshots:
            progress.show(snapshot)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def terminal(kind: str = "xterm-256color", **more: Any) -> Console:
    environ = {"TERM": kind, "COLUMNS": "100", "LINES": "30"}
    return Console(file=io.StringIO(), force_terminal=True, _environ=environ, **more)


HELD = job(1, "held", cluster_id=7, proc_id=0, reason="No [red]disk[/red] left.")
SNAPSHOT = Snapshot(jobs=(HELD, job(2, "transferring_output")))


def test_a_terminal_gets_a_table_with_the_servers_words_as_they_are() -> None:
    text = shown(terminal(no_color=True), SNAPSHOT)
    row = next(line for line in text.splitlines() if f"{1:032x}" in line)
    for words in ("7.0", "held", "No [red]disk[/red] left."):
        assert words in row
    assert "transferring output" in text


def test_a_terminal_is_told_that_the_server_is_away() -> None:
    assert "Nobody there [/]." in shown(terminal(), Snapshot(jobs=(), trouble="Nobody there [/]."))


def test_no_terminal_gets_one_line_for_each_change() -> None:
    console = Console(file=io.StringIO(), width=20)
    text = shown(console, SNAPSHOT, SNAPSHOT, Snapshot(jobs=(HELD, job(2, "running"))))
    assert [line[10:] for line in text.splitlines()] == [
        f"{1:032x}  7.0  held: No [red]disk[/red] left.",
        f"{2:032x}  transferring output",
        f"{2:032x}  running",
    ]


def test_a_terminal_that_cannot_redraw_gets_lines() -> None:
    text = shown(terminal("dumb"), SNAPSHOT, SNAPSHOT)
    assert len(text.splitlines()) == 2
