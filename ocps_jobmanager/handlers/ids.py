"""Job ids as clients write them."""

import re

from ocps_jobmanager.errors import NotFoundError

_JOB_ID = re.compile("[0-9a-f]{32}")


def job_id_of(asked: str) -> str:
    """The job id in what a client asked for; blanks around it do not count.

    Raises
    ------
    NotFoundError
        It has not the form of a job id. Nothing else ever becomes part of a path or a query.
    """
    job_id = asked.strip()
    if _JOB_ID.fullmatch(job_id) is None:
        raise NotFoundError("There is no job with this id.")
    return job_id
