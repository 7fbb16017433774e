"""The code store: what a job runs is what was taken when it was accepted."""

import asyncio
import hashlib
import os
import subprocess
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from ocps_jobmanager.code import CodeStore
from ocps_jobmanager.errors import LaunchRefusedError, UnavailableError
from ocps_jobmanager.job_specs import JobType
from ocps_jobmanager.models import CodeRef, Resources

T = TypeVar("T")

FIRST = b"#!/bin/sh\necho first\n"
SECOND = b"#!/bin/sh\necho second\n"


@pytest.fixture
def store(tmp_path: Path) -> CodeStore:
    return CodeStore(tmp_path / "work" / "code")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "work" / "code"


@pytest.fixture
def ap(tmp_path: Path) -> JobType:
    return job_type(tmp_path, "jobs/ap.sh")


def job_type(base: Path, script: str, content: bytes = FIRST) -> JobType:
    path = base / script
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return JobType(
        name="ap",
        description=None,
        script=script,
        script_path=path,
        env=(),
        getenv=(),
        data=None,
        resources=Resources(),
    )


def run(coroutine: Coroutine[object, object, T]) -> T:
    return asyncio.run(coroutine)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_reference_says_what_was_taken(store, ap):
    sha256 = hashlib.sha256(FIRST).hexdigest()
    assert run(store.take(ap)) == CodeRef(kind="file", path="jobs/ap.sh", sha256=sha256)


def test_the_copy_can_be_run_and_not_written(store, root, ap):
    ref = run(store.take(ap))
    path = run(store.executable(ref))
    assert path == root / ref.sha256 / "ap.sh"
    assert path.read_bytes() == FIRST
    assert path.stat().st_mode & 0o7777 == 0o550
    assert path.parent.stat().st_mode & 0o7777 == 0o550
    assert subprocess.run([path], capture_output=True, check=True).stdout == b"first\n"


def test_an_edit_of_the_script_changes_no_accepted_job(store, ap):
    before = run(store.take(ap))
    ap.script_path.write_bytes(SECOND)
    after = run(store.take(ap))
    assert run(store.executable(before)).read_bytes() == FIRST
    assert run(store.executable(after)).read_bytes() == SECOND
    ap.script_path.unlink()
    assert run(store.executable(before)).read_bytes() == FIRST


def test_the_same_content_is_stored_once(store, root, ap):
    first = run(store.take(ap))
    copy = run(store.executable(first)).stat()
    assert run(store.take(ap)) == first
    again = run(store.executable(first)).stat()
    assert (again.st_ino, again.st_mtime_ns) == (copy.st_ino, copy.st_mtime_ns)
    assert files(root) == {f"{first.sha256}/ap.sh"}


def test_the_same_content_under_another_name_keeps_its_name(store, root, ap, tmp_path):
    first = run(store.take(ap))
    other = run(store.take(job_type(tmp_path, "jobs/other.sh")))
    assert other.sha256 == first.sha256
    assert run(store.executable(other)).name == "other.sh"
    assert run(store.executable(first)).name == "ap.sh"
    assert (root / first.sha256).stat().st_mode & 0o7777 == 0o550


def test_a_new_server_finds_what_the_old_one_took(store, root, ap):
    ref = run(store.take(ap))
    inode = run(store.executable(ref)).stat().st_ino
    again = CodeStore(root)
    assert run(again.executable(ref)).read_bytes() == FIRST
    assert run(again.take(ap)) == ref
    assert run(again.executable(ref)).stat().st_ino == inode


def test_concurrent_takes_all_get_the_copy(root, tmp_path):
    types = [
        job_type(tmp_path, f"jobs/{n % 3}.sh", FIRST if n % 2 else SECOND) for n in range(6)
    ]  # the last content of each name is what is taken

    async def take_all(store: CodeStore) -> list[CodeRef]:
        return await asyncio.gather(*(store.take(types[n % 6]) for n in range(60)))

    with ThreadPoolExecutor(16) as executor:
        refs = run(take_all(CodeStore(root, executor)))
    assert len(files(root)) == len(set(refs)) == 3
    for ref in set(refs):
        run(CodeStore(root).executable(ref))


def test_files_are_read_in_the_executor_that_was_given(root, ap):
    used: list[str] = []
    with ThreadPoolExecutor(
        1, initializer=lambda: used.append(threading.current_thread().name)
    ) as executor:
        store = CodeStore(root, executor)
        run(store.executable(run(store.take(ap))))
    assert len(used) == 1


def test_nothing_half_made_is_left_and_what_a_killed_server_left_is_removed(store, root, ap):
    root.mkdir(parents=True)
    sha256 = hashlib.sha256(FIRST).hexdigest()
    (root / ".new-0123").write_bytes(b"#!/bin/sh\nec")
    (root / sha256).mkdir()
    run(store.take(ap))
    assert files(root) == {f"{sha256}/ap.sh"}


def test_taking_survives_the_loss_of_the_whole_store(store, root, ap):
    ref = run(store.take(ap))
    (root / ref.sha256).chmod(0o750)
    (root / ref.sha256 / "ap.sh").unlink()
    (root / ref.sha256).rmdir()
    root.rmdir()
    assert run(store.take(ap)) == ref
    assert run(store.executable(ref)).read_bytes() == FIRST


def test_a_copy_is_on_the_disk_before_it_has_its_name_and_the_name_before_it_is_used(
    store, root, ap, monkeypatch
):
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(fd: int) -> None:
        fsync(fd)
        steps.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().relative_to(root.parents[1])}")

    def recorded_rename(old: Path, new: Path) -> Path:
        steps.append("rename")
        return rename(old, new)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    ref = run(store.take(ap))
    named = steps.index("rename")
    assert any(step.startswith("sync work/code/.new-") for step in steps[:named])
    assert f"sync work/code/{ref.sha256}" in steps[named:]
    assert "sync work/code" in steps[named:]
    steps.clear()
    # Another server may have died between its rename and its sync.
    run(CodeStore(root).take(ap))
    assert {f"sync work/code/{ref.sha256}/ap.sh", "sync work/code"} <= set(steps)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda script: script.unlink(), "does not exist"),
        (lambda script: script.chmod(0o644), "is not executable"),
        (lambda script: script.write_bytes(b"echo\n"), "does not start with #!"),
        (lambda script: (script.unlink(), script.mkdir()), "regular file|Is a directory"),
    ],
)
def test_a_script_that_was_spoilt_since_the_start_is_told_without_a_server_path(
    store, root, ap, tmp_path, spoil, why
):
    spoil(ap.script_path)
    with pytest.raises(UnavailableError, match=why) as refused:
        run(store.take(ap))
    assert 'The script "jobs/ap.sh" of the job type "ap"' in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert not root.exists()


def test_a_store_that_cannot_be_written_is_told_without_a_server_path(ap, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"code store \(Not a directory\)") as refused:
        run(CodeStore(tmp_path / "file" / "code").take(ap))
    assert str(tmp_path) not in str(refused.value)


def alter(path: Path) -> None:
    path.chmod(0o750)
    path.write_bytes(SECOND)
    path.chmod(0o550)


def replace_by_link(path: Path) -> None:
    path.parent.chmod(0o750)
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def replace_by_pipe(path: Path) -> None:
    path.parent.chmod(0o750)
    path.unlink()
    os.mkfifo(path, 0o750)


def remove(path: Path) -> None:
    path.parent.chmod(0o750)
    path.unlink()


def remove_all(path: Path) -> None:
    remove(path)
    path.parent.rmdir()


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (alter, "is not what was taken when the job was accepted"),
        (replace_by_link, "is gone"),
        (replace_by_pipe, "is gone"),
        (remove, "is gone"),
        (remove_all, "is gone"),
        (lambda path: path.chmod(0o440), "is gone"),
    ],
)
def test_a_copy_that_was_harmed_is_not_run_and_the_next_take_mends_it(
    store, ap, tmp_path, harm, why
):
    ref = run(store.take(ap))
    harm(run(store.executable(ref)))
    with pytest.raises(LaunchRefusedError, match=why) as refused:
        run(store.executable(ref))
    assert '"jobs/ap.sh"' in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    assert run(store.take(ap)) == ref
    assert run(store.executable(ref)).read_bytes() == FIRST
