"""How jobs get on, for a person: a table that updates, or plain lines where that can't be."""

from datetime import datetime
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ocps_jobmanager.answers import JobInfo, Snapshot


def state_in_words(job: JobInfo) -> str:
    """A job's state and how it ended: ``completed, exit code 0``."""
    words = job["state"].replace("_", " ")
    if job["exit_code"] is not None:
        words += f", exit code {job['exit_code']}"
    if job["exit_signal"] is not None:
        words += f", signal {job['exit_signal']}"
    return words


def _cluster(job: JobInfo) -> str:
    return "" if job["cluster_id"] is None else f"{job['cluster_id']}.{job['proc_id']}"


class Progress:
    """A context in which `show` tells a person what has changed.

    Parameters
    ----------
    console : rich.console.Console
        Where. A table that updates if it is a terminal that can do it, lines otherwise.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            # Drawn when there is news only: no thread that draws.
            self._live = Live(console=console, auto_refresh=False, transient=False)
        self._last_lines: dict[str, str] = {}
        self._last_trouble: str | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Tell what is new."""
        if self._live is not None:
            self._live.update(_table(snapshot), refresh=True)
            return
        if snapshot.trouble != self._last_trouble:
            self._print(snapshot.trouble or "The Job Manager answers again.")
            self._last_trouble = snapshot.trouble
        for job in snapshot.jobs:
            words = [job["job_id"], state_in_words(job)]
            if cluster := _cluster(job):
                words.insert(1, cluster)
            line = "  ".join(words) + (f": {job['reason']}" if job["reason"] else "")
            if self._last_lines.get(job["job_id"]) != line:
                self._last_lines[job["job_id"]] = line
                self._print(line)

    def _print(self, line: str) -> None:
        # As it is: no markup, no colour, no wrapping, so that programs can read it.
        now = datetime.now().astimezone()
        self._console.out(f"{now:%H:%M:%S}  {line}", highlight=False)


def _table(snapshot: Snapshot) -> Table:
    # The server's words go in as `Text`: a "[" in them is no markup.
    caption = None if snapshot.trouble is None else Text(snapshot.trouble)
    table = Table(caption=caption, caption_justify="left")
    table.add_column("job", no_wrap=True)
    table.add_column("cluster", justify="right")
    table.add_column("state")
    table.add_column("remark")
    styles = {"completed": "green", "error": "red", "aborted": "red", "executing": "cyan"}
    for job in snapshot.jobs:
        state = Text(state_in_words(job), style=styles.get(job["phase"], ""))
        table.add_row(job["job_id"], _cluster(job), state, Text(job["reason"] or ""))
    return table
