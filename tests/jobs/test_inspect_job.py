"""``jobs/inspect_job.py``: what it finds, and how it fails."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ocps_jobmanager.butler import Visit, image_file, make_registry
from tests.jobs.running import run_script

VISIT = Visit(
    number=421907,
    filter="g",
    time_observed="2015-03-14T04:11:37.204518",
    exposure_time_s=90.0,
    proposal="2015A-0000",
    object="field 1",
    ccds=(5, 10),
)


@pytest.fixture
def python_path(tmp_path: Path) -> str:
    """A job's PATH, whose python3 is the one that runs the tests if the machine has none there."""
    path = "/usr/local/bin:/usr/bin:/bin"
    if shutil.which("python3", path=path) is None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python3").symlink_to(sys.executable)
        path = f"{tmp_path / 'bin'}:{path}"
    return path


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository under a name that means something in a URI."""
    repo = tmp_path / "a repo ?x=1#y%41"
    repo.mkdir()
    make_registry(repo / "registry.sqlite3", [VISIT])
    return repo


@pytest.fixture
def inspect(tmp_path: Path, repo: Path, python_path: str):
    """Runs the job in a directory of its own, with some variables changed."""

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "AP_JOB_OUTPUT_DIR": "./output",
            "AP_VISIT_ID": "421907",
            "AP_CCD_NUM": "10",
            "AP_REPO": f"{repo}/",
            "AP_TEMPLATE": str(repo / "templates"),
            "AP_CALIB": str(repo),
            "AP_FILTER": "g",
            **changes,
        }
        job_dir = tmp_path / "job"
        job_dir.mkdir(exist_ok=True)
        return run_script("inspect_job.py", job_dir, variables, python_path)

    return run


def test_what_the_registry_has_is_written_as_json(inspect, tmp_path: Path, repo: Path) -> None:
    done = inspect()
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "job" / "output" / "inspect-0421907_10.json").read_text())
    assert found == {
        "visit": 421907,
        "ccd": 10,
        "date": "2015-03-14",
        "time_observed": "2015-03-14T04:11:37.204518",
        "filter": "g",
        "exposure_time_s": 90.0,
        "object": "field 1",
        "proposal": "2015A-0000",
        "image": {"path": str(repo / image_file(421907)), "exists": False},
        "template": {"path": str(repo / "templates"), "exists": False},
        "calib": {"path": str(repo), "exists": True},
    }


def test_template_and_calib_are_not_needed(inspect, tmp_path: Path) -> None:
    assert inspect(AP_TEMPLATE="", AP_CALIB="").returncode == 0
    found = json.loads((tmp_path / "job" / "output" / "inspect-0421907_10.json").read_text())
    assert found["template"] is found["calib"] is None


def test_one_line_sums_it_up(inspect, repo: Path) -> None:
    assert inspect().stdout == (
        "visit 421907, ccd 10: field 1, 2015-03-14, filter g, 90.0 s; "
        f"image {repo / image_file(421907)} is missing\n"
    )


def test_an_image_that_is_there_is_said_to_be(inspect, tmp_path: Path, repo: Path) -> None:
    image = repo / image_file(421907)
    image.parent.mkdir()
    image.touch()
    assert inspect().stdout.endswith("is there\n")


def test_an_image_is_found_where_raw_ones_are(inspect, repo: Path) -> None:
    image = repo / "2015-03-14" / "g" / "decam0421907.fits.fz"
    image.parent.mkdir(parents=True)
    image.touch()
    assert inspect().stdout.endswith(f"image {image} is there\n")


def test_the_registry_is_not_written_to(inspect, repo: Path) -> None:
    before = (repo / "registry.sqlite3").read_bytes()
    inspect()
    assert [path.name for path in repo.iterdir()] == ["registry.sqlite3"]
    assert (repo / "registry.sqlite3").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"AP_CCD_NUM": "11"}, "has no image of visit 421907, ccd 11."),
        ({"AP_VISIT_ID": "9" * 30}, f"has no image of visit {'9' * 30}, ccd 10."),
        ({"AP_FILTER": "r"}, "Visit 421907, ccd 10 is of filter g, not r."),
    ],
)
def test_no_such_image_is_exit_3_and_a_sentence(inspect, changes, sentence: str) -> None:
    done = inspect(**changes)
    assert done.returncode == 3
    assert done.stderr.endswith(f"{sentence}\n")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("damage", ["missing", "no database", "no table", "another table"])
def test_a_registry_that_cannot_be_read_is_exit_4_and_a_sentence(
    inspect, repo: Path, damage: str
) -> None:
    registry = repo / "registry.sqlite3"
    registry.unlink()
    if damage == "no database":
        registry.write_text("x" * 4096)
    elif damage != "missing":
        with closing(sqlite3.connect(registry)) as connection, connection:
            table = "raw" if damage == "another table" else "cooked"
            connection.execute(f"CREATE TABLE {table} (visit INT, ccdnum INT)")
    done = inspect()
    assert done.returncode == 4
    assert done.stderr.startswith(f"{registry} can't be read: ")
    assert done.stderr.count("\n") == 1
    assert registry.exists() == (damage != "missing")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"AP_REPO": ""}, "The variable AP_REPO is not set."),
        ({"AP_VISIT_ID": "x"}, "AP_VISIT_ID is 'x', which is not a whole number."),
    ],
)
def test_a_variable_that_cannot_be_used_is_exit_2(inspect, changes, sentence: str) -> None:
    done = inspect(**changes)
    assert (done.returncode, done.stderr) == (2, f"{sentence}\n")


def test_an_output_directory_that_cannot_be_made_is_exit_5(inspect, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = inspect(AP_JOB_OUTPUT_DIR=f"{tmp_path}/file/output")
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
