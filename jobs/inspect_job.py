#!/usr/bin/env python3
"""Looks one CCD image up in the Butler registry and writes what it finds as JSON.

A rehearsal of ``ap_job.sh``: the same variables, real input, no stack. It needs the standard
library only, and runs on whatever ``python3`` the execute host has (3.7 or newer).

Exit status: 0 found; 2 a variable is missing or not a number; 3 the registry has no such image;
4 the registry can't be read; 5 the output can't be written.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from pathlib import Path
from urllib.parse import quote

NOT_GIVEN, NOT_FOUND, NO_REGISTRY, NO_OUTPUT = 2, 3, 4, 5

COLUMNS = ("date", "taiObs", "filter", "expTime", "object", "proposal", "instcal", "visit")
#: Where the DECam mapper keeps an image (lsst/obs_decam, policy/DecamMapper.yaml), best first.
IMAGE_PATHS = (
    "{visit:07d}/instcal{visit:07d}.fits.fz",
    "{date}/{filter}/decam{visit:07d}.fits.fz",
)


class JobError(Exception):
    """Ends the job: an exit status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def variable(name: str) -> str:
    """Value of an environment variable that the job must have."""
    value = os.environ.get(name, "")
    if not value:
        raise JobError(NOT_GIVEN, f"The variable {name} is not set.")
    return value


def number(name: str) -> int:
    """Value of an environment variable that must be a whole number."""
    value = variable(name)
    try:
        return int(value)
    except ValueError:
        raise JobError(NOT_GIVEN, f"{name} is {value!r}, which is not a whole number.") from None


def look_up(registry: Path, visit: int, ccd: int) -> dict[str, object]:
    """Return the row of the registry's table ``raw`` for one CCD of one visit."""
    # By URI: opened like this, a missing file is an error and not an empty database.
    uri = f"file:{quote(os.fsencode(registry.absolute()))}?mode=ro"
    try:
        connection = sqlite3.connect(uri, uri=True, timeout=30)
        try:
            connection.row_factory = sqlite3.Row
            rows = connection.execute(
                f"SELECT {', '.join(COLUMNS)} FROM raw WHERE visit = ? AND ccdnum = ?",  # noqa: S608
                (visit, ccd),
            ).fetchall()
        finally:
            connection.close()
    except OverflowError:  # more digits than a number in SQLite can have
        rows = []
    except sqlite3.Error as error:
        raise JobError(NO_REGISTRY, f"{registry} can't be read: {error}.") from None
    if not rows:
        raise JobError(NOT_FOUND, f"{registry} has no image of visit {visit}, ccd {ccd}.")
    return dict(rows[0])


def is_there(path: Path) -> bool:
    """Tell whether a file can be seen."""
    try:
        return path.exists()
    except OSError:  # in a folder that may not be searched
        return False


def place(path: Path) -> dict[str, object]:
    """Say of a path whether it is there."""
    return {"path": str(path), "exists": is_there(path)}


def place_in(name: str) -> dict[str, object] | None:
    """Say it of the path in an environment variable; this job can do without one."""
    value = os.environ.get(name, "")
    return place(Path(value)) if value else None


def image_of(repo: Path, row: dict[str, object]) -> Path:
    """Return the image's file: the one that is there, otherwise the likeliest."""
    names = [template.format(**row) for template in IMAGE_PATHS]
    if row.get("instcal"):
        names.insert(0, str(row["instcal"]))
    paths = [repo / name for name in names]
    return next((path for path in paths if is_there(path)), paths[0])


def inspect() -> str:
    """Do the work; return the sentence that sums it up."""
    output_dir = Path(variable("AP_JOB_OUTPUT_DIR"))
    visit, ccd = number("AP_VISIT_ID"), number("AP_CCD_NUM")
    repo, wanted = Path(variable("AP_REPO")), variable("AP_FILTER")

    row = look_up(repo / "registry.sqlite3", visit, ccd)
    if row["filter"] != wanted:
        raise JobError(
            NOT_FOUND, f"Visit {visit}, ccd {ccd} is of filter {row['filter']}, not {wanted}."
        )
    image = place(image_of(repo, row))
    found = {
        "visit": visit,
        "ccd": ccd,
        "date": row["date"],
        "time_observed": row["taiObs"],  # TAI, as the registry has it
        "filter": row["filter"],
        "exposure_time_s": row["expTime"],
        "object": row["object"],
        "proposal": row["proposal"],
        "image": image,
        "template": place_in("AP_TEMPLATE"),
        "calib": place_in("AP_CALIB"),
    }
    # The visit and ccd are in the name: jobs that share an output directory don't overwrite.
    output = output_dir / f"inspect-{visit:07d}_{ccd:02d}.json"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise JobError(NO_OUTPUT, f"{output} can't be written: {error.strerror}.") from None
    return (
        f"visit {visit}, ccd {ccd}: {row['object']}, {row['date']}, filter {row['filter']}, "
        f"{row['expTime']} s; image {image['path']} "
        f"{'is there' if image['exists'] else 'is missing'}"
    )


def main() -> int:
    """Run the job; return its exit status."""
    try:
        print(inspect())
    except JobError as error:
        print(error, file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
