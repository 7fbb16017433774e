"""Whatever a job has left is removed, and nothing that lies elsewhere."""

import errno
import os
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocps_jobmanager.removal import StoppedError, remove_file, remove_tree


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_a_tree_goes_with_all_that_is_in_it(tmp_path: Path, parent: int) -> None:
    tree = tmp_path / "tree"
    for path in ("a", "b/c/d", "b/e", ".hidden/f", "g h/\udcff"):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text("x")
    (tree / "empty").mkdir()
    os.mkfifo(tree / "b" / "pipe")
    (tmp_path / "other").write_text("kept")
    remove_tree("tree", parent)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_is_not_there_is_no_error(parent: int) -> None:
    remove_tree("nothing", parent)
    remove_file("nothing", parent)


def test_links_are_removed_and_never_followed(tmp_path: Path, parent: int) -> None:
    precious = tmp_path / "precious"
    (precious / "in").mkdir(parents=True)
    (precious / "in" / "file").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    for place in (tree, tree / "deep", tree / "deep" / "er"):
        (place / "to a directory").symlink_to(precious)
        (place / "to a file").symlink_to(precious / "in" / "file")
        (place / "up").symlink_to("..")
    remove_tree("tree", parent)
    assert not tree.exists()
    tree.symlink_to(precious)
    remove_tree("tree", parent)
    assert not tree.is_symlink()
    tree.symlink_to(precious / "in" / "file")
    remove_file("tree", parent)
    assert not tree.is_symlink()
    assert (precious / "in" / "file").read_text() == "kept"


def test_no_depth_is_too_deep_and_no_directory_too_large(tmp_path: Path, parent: int) -> None:
    """Deeper than Python recurses, than a path may be long, and than files may be open."""
    (tmp_path / "tree").mkdir()
    here = os.open(tmp_path / "tree", os.O_RDONLY)
    for depth in range(1200):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        if depth % 500 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    for number in range(2500):
        (tmp_path / "tree" / str(number)).touch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (parent + 50, hard))
    try:
        remove_tree("tree", parent)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_directories_that_may_not_be_written_to(tmp_path: Path, parent: int) -> None:
    """As root nothing is forbidden, so this is told by whom it is not."""
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").touch()
    for place in (tree / "a" / "b", tree / "a", tree):
        place.chmod(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                for path in (tmp_path, tree, tree / "a", tree / "a" / "b"):
                    os.chown(path, 65534, 65534)
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            remove_tree("tree", parent)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not tree.exists()


def test_it_stops_when_it_is_told_to_and_goes_on_later(tmp_path: Path, parent: int) -> None:
    for number in range(10):
        (tmp_path / "tree" / str(number) / "in").mkdir(parents=True)
    asked = iter([False] * 7 + [True])
    with pytest.raises(StoppedError):
        remove_tree("tree", parent, lambda: next(asked))
    assert len(list((tmp_path / "tree").iterdir())) > 5
    remove_tree("tree", parent)
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_removed_is_an_error(
    tmp_path: Path, parent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree" / "in").mkdir(parents=True)

    def rmdir(*_: object, **__: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(OSError, match="busy"):
        remove_tree("tree", parent)


def test_a_directory_in_a_files_place_is_left_alone(tmp_path: Path, parent: int) -> None:
    (tmp_path / "name" / "in").mkdir(parents=True)
    remove_file("name", parent)
    assert (tmp_path / "name" / "in").is_dir()
