"""How a part of the server is, for ``/readyz``."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether a part is in order.

    Attributes
    ----------
    ok : bool
    since : datetime
        Since when it has been so; aware, UTC.
    detail : str
        One sentence. It goes to clients: no path, no secret.
    """

    ok: bool
    since: datetime
    detail: str
