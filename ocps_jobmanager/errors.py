"""The exceptions of the package, each with what the client is told.

No HTTP in here: ``handlers.base`` maps each class to a status, once.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def shown(text: str, at_most: int = 64) -> str:
    """`text` as a message may show it: one line, printable, at most `at_most` of its characters."""
    kept = text if len(text) <= at_most else text[: at_most - 1] + "…"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in kept
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Words that follow an unknown name: the nearest known one, or nothing if none is near."""
    # What is compared is cut: the comparison takes quadratic time.
    near = difflib.get_close_matches(name[:64], known, n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what a client sent.

    Attributes
    ----------
    field : str
        Where, as a dotted path: ``env.AP_CCD_NUM``.
    msg : str
        What, in words that follow the field's name: ``is required``.
    """

    field: str
    msg: str

    def __str__(self) -> str:
        return f"{self.field} {self.msg}"


class JobManagerError(Exception):
    """The base of all: ``str(error)`` is one sentence that a client may read and act on."""


class InvalidRequestError(JobManagerError):
    """What the client sent can't be accepted; nothing was done.

    Parameters
    ----------
    problems : sequence of Problem
        All that is wrong, not the first thing only. At least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems) + ".")


class NotFoundError(JobManagerError):
    """There is no such thing (a job, a monitor's key)."""


class ConflictError(JobManagerError):
    """What is asked is not possible in the state that the job is in."""


class UnavailableError(JobManagerError):
    """It can't be done now, and nothing was: the same request may succeed later."""


class KeyReusedError(JobManagerError):
    """An idempotency key was used before, with another body."""


class TooManyWaitingError(JobManagerError):
    """As many jobs wait as may; nothing was accepted."""


class NotAuthenticatedError(JobManagerError):
    """It is not known who asks, and that has to be known."""


class ForbiddenError(JobManagerError):
    """It is not allowed to who asks."""


class WrongHostError(JobManagerError):
    """What was asked was meant for another server."""


class StartupError(JobManagerError):
    """The server can't start like this. One line: what is wrong and which setting mends it."""


class LaunchRefusedError(JobManagerError):
    """This job can't be launched, now or later: the scheduler or its own description forbids it."""


class SchedulerUnavailableError(JobManagerError):
    """The scheduler did not answer, or not in time.

    Whether it did what it was asked is *not known*: look for the job by its id before trying again.
    """
