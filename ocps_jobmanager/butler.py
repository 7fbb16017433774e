"""The registry of a Butler repository (generation 2), as DECam's are: an SQLite database.

Its table ``raw`` has a row for each CCD of each visit, ``raw_visit`` one for each visit
(lsst/obs_decam, ``python/lsst/obs/decam/ingest.py``).
"""

import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

_SCHEMA = """
CREATE TABLE raw (
    id INTEGER PRIMARY KEY AUTOINCREMENT, visit INT, filter TEXT, date TEXT, taiObs TEXT,
    expTime DOUBLE, ccdnum INT, ccd INT, hdu INT, instcal TEXT, dqmask TEXT, wtmap TEXT,
    proposal TEXT, object TEXT, UNIQUE (visit, ccdnum)
);
CREATE TABLE raw_visit (
    visit INT, date TEXT, filter TEXT, proposal TEXT, object TEXT, UNIQUE (visit)
);
"""


class RegistryError(Exception):
    """The registry can't be used: one sentence that names the file."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One CCD of one visit.

    Attributes
    ----------
    visit : int
        The exposure's number.
    ccd : int
        The detector's number.
    """

    visit: int
    ccd: int


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One exposure, as a registry is made of them.

    Attributes
    ----------
    time_observed : str
        TAI, ISO 8601.
    exposure_time_s : float
    ccds : tuple of int
        The detectors that there are images of.
    """

    number: int
    filter: str
    time_observed: str
    exposure_time_s: float
    proposal: str
    object: str
    ccds: tuple[int, ...]


def images(registry: Path, filter_name: str) -> list[Image]:
    """All images in one filter, in the registry's order. The registry is opened read-only.

    Raises
    ------
    RegistryError
        It can't be read, has no image in this filter, or has a row whose ``ccd`` and ``ccdnum``
        differ: they are two names of one thing, and no job could tell which one is meant.
    """
    if not registry.is_file():
        raise RegistryError(f"There is no registry {registry}.")
    # By URI, so that it is read-only; quoted, because "?" and "#" would end the path in one.
    uri = f"file:{quote(os.fsencode(registry.absolute()))}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=30)) as connection:
            rows = connection.execute(
                "SELECT id, visit, ccd, ccdnum FROM raw WHERE filter = ? ORDER BY id",
                (filter_name,),
            ).fetchall()
    except sqlite3.Error as error:
        raise RegistryError(f"The registry {registry} can't be read: {error}.") from None
    for row_id, visit, ccd, ccdnum in rows:
        if not isinstance(visit, int) or not isinstance(ccd, int) or ccd != ccdnum:
            raise RegistryError(
                f"Row {row_id} of the table raw in {registry} is not a usable image: "
                f"visit {visit}, ccd {ccd}, ccdnum {ccdnum}; ccd and ccdnum must be the same."
            )
    if not rows:
        raise RegistryError(f'The registry {registry} has no image in the filter "{filter_name}".')
    return [Image(visit=visit, ccd=ccd) for _, visit, ccd, _ in rows]


def image_file(visit: int) -> str:
    """The file of a visit's images, relative to the repository, as DECam's mapper names it."""
    return f"{visit:07d}/instcal{visit:07d}.fits.fz"


def make_registry(registry: Path, visits: Iterable[Visit]) -> None:
    """Make a new registry.

    Raises
    ------
    OSError
        The file exists, or can't be made.
    """
    registry.touch(exist_ok=False)
    with closing(sqlite3.connect(registry)) as connection, connection:
        connection.executescript(_SCHEMA)
        for visit in visits:
            date = visit.time_observed[:10]
            of_visit = (visit.proposal, visit.object)
            connection.execute(
                "INSERT INTO raw_visit VALUES (?, ?, ?, ?, ?)",
                (visit.number, date, visit.filter, *of_visit),
            )
            connection.executemany(
                "INSERT INTO raw (visit, filter, date, taiObs, expTime, ccdnum, ccd, hdu,"
                " instcal, dqmask, wtmap, proposal, object)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, '', '', ?, ?)",
                [
                    (
                        *(visit.number, visit.filter, date, visit.time_observed),
                        *(visit.exposure_time_s, ccd, ccd, hdu),
                        *(image_file(visit.number), *of_visit),
                    )
                    for hdu, ccd in enumerate(visit.ccds, start=1)
                ],
            )
