"""Log directories: where jobs may log, and that no link, file or race leads anywhere else."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocps_jobmanager.errors import (
    InvalidRequestError,
    LaunchRefusedError,
    Problem,
    UnavailableError,
)
from ocps_jobmanager.layout import Layout, LogPaths
from ocps_jobmanager.log_dirs import LogDirs

JOB_ID = "0123456789abcdef" * 2


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    return Layout(work_dir=work_dir, state_dir=work_dir / "state")


def make_log_dirs(layout: Layout, *roots: Path) -> LogDirs:
    return LogDirs(
        work_dir=layout.work_dir,
        log_roots=roots or (layout.logs,),
        forbidden=(layout.outputs, layout.code, layout.state_dir),
    )


@pytest.fixture
def log_dirs(layout: Layout) -> LogDirs:
    return make_log_dirs(layout)


def refusal(log_dirs: LogDirs, log_dir: str) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        log_dirs.resolve(log_dir)
    (problem,) = refused.value.problems
    assert problem.field == "log_dir"
    assert "/" not in problem.msg
    return problem.msg


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


class TestResolve:
    """What a client's `log_dir` means, and what it may not mean."""

    @pytest.mark.parametrize(
        ("log_dir", "place"),
        [
            ("logs", ""),
            ("./logs/", ""),
            ("logs/night 1/ü", "night 1/ü"),
            ("logs/a/../b", "b"),
            ("output/../logs/a", "a"),
            ("logs/$(HOME)", "$(HOME)"),
        ],
    )
    def test_it_is_relative_to_the_work_directory(self, layout, log_dirs, log_dir, place):
        assert log_dirs.resolve(log_dir) == layout.logs / place

    def test_it_may_be_absolute(self, layout, log_dirs):
        assert log_dirs.resolve(f"{layout.logs}/a") == layout.logs / "a"

    @pytest.mark.parametrize(
        "log_dir", ["", ".", "..", "/tmp", "log", "logs2", "logs/..", "logs/../../logs", "/", "~"]
    )
    def test_it_lies_under_a_log_root(self, log_dirs, log_dir):
        assert "OCPS_LOG_ROOTS" in refusal(log_dirs, log_dir)

    @pytest.mark.parametrize(
        "log_dir", ["output", "output/x", "code", "state/local", "./logs/../state"]
    )
    def test_outputs_code_and_state_are_never_allowed(self, layout, log_dir):
        log_dirs = make_log_dirs(layout, layout.work_dir)
        assert "output, code or state" in refusal(log_dirs, log_dir)
        assert log_dirs.resolve("outputs") == layout.work_dir / "outputs"

    @pytest.mark.parametrize("log_dir", ["logs/$$", "logs/a$$(Arch)", "logs/$(DOLLAR)/x"])
    def test_what_one_scheduler_could_not_use_is_refused_for_all(self, log_dirs, log_dir):
        assert "HTCondor" in refusal(log_dirs, log_dir)

    def test_a_link_that_leads_out_is_refused(self, layout, log_dirs, tmp_path):
        layout.logs.mkdir()
        (layout.logs / "out").symlink_to(tmp_path)
        (layout.logs / "state").symlink_to(layout.state_dir)
        assert "OCPS_LOG_ROOTS" in refusal(log_dirs, "logs/out")
        assert "OCPS_LOG_ROOTS" in refusal(log_dirs, "logs/out/deep/er")
        assert "output, code or state" in refusal(log_dirs, "logs/state/x")

    def test_a_link_that_leads_in_is_resolved(self, layout, log_dirs):
        (layout.logs / "a").mkdir(parents=True)
        (layout.work_dir / "link").symlink_to(layout.logs / "a")
        assert log_dirs.resolve("link/b") == layout.logs / "a" / "b"
        # ".." is the parent of where the link leads to
        assert log_dirs.resolve("link/../c") == layout.logs / "c"

    def test_a_root_behind_a_link_keeps_its_name(self, layout, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "home").symlink_to(tmp_path / "disk")
        log_dirs = make_log_dirs(layout, tmp_path / "home" / "logs")
        place = log_dirs.resolve(f"{tmp_path}/disk/logs/a")
        assert place == tmp_path / "home" / "logs" / "a"
        log_dirs.make(place)
        assert (tmp_path / "disk" / "logs" / "a").is_dir()

    def test_a_root_within_another_behind_a_link_can_be_used(self, layout, tmp_path):
        (tmp_path / "disk").mkdir()
        layout.logs.mkdir()
        (layout.logs / "big").symlink_to(tmp_path / "disk")
        log_dirs = make_log_dirs(layout, layout.logs, layout.logs / "big")
        place = log_dirs.resolve("logs/big/a")
        assert place == layout.logs / "big" / "a"
        log_dirs.make(place)
        assert (tmp_path / "disk" / "a").is_dir()

    def test_there_may_be_several_roots(self, layout, tmp_path):
        log_dirs = make_log_dirs(layout, layout.logs, tmp_path / "more")
        assert log_dirs.resolve("../more/a") == tmp_path / "more" / "a"
        assert log_dirs.resolve("logs") == layout.logs

    @pytest.mark.parametrize(
        ("log_dir", "why"),
        [
            ("logs/a\0b", "must not contain NUL"),
            ("logs/a\nb", "must not contain a newline"),
            ("logs/\udce4", "must not contain a lone surrogate"),
            ("logs/" + "x" * 256, "is too long"),
            ("logs/" + "é" * 128, "is too long"),
            ("logs/" + "x/" * 2100, "is too long"),
        ],
    )
    def test_names_that_no_file_system_or_scheduler_takes_are_refused(self, log_dirs, log_dir, why):
        assert refusal(log_dirs, log_dir) == why

    def test_a_loop_of_links_is_refused_at_the_latest_when_it_is_made(self, layout, log_dirs):
        layout.logs.mkdir()
        (layout.logs / "loop").symlink_to("loop")
        with pytest.raises(InvalidRequestError):
            log_dirs.make(log_dirs.resolve("logs/loop"))


class TestMake:
    """The directory exists and can be written to when a job is accepted."""

    def test_it_is_made_with_its_parents_and_only_owner_and_group_get_in(self, layout, log_dirs):
        previous = os.umask(0o077)
        try:
            log_dirs.make(log_dirs.resolve("logs/a/b"))
        finally:
            os.umask(previous)
        assert mode(layout.logs / "a") == mode(layout.logs / "a" / "b") == 0o750
        assert list((layout.logs / "a" / "b").iterdir()) == []

    def test_what_is_there_stays_as_it_is(self, layout, log_dirs):
        layout.logs.mkdir()
        layout.logs.chmod(0o777)
        (layout.logs / "file").touch()
        log_dirs.make(layout.logs)
        assert mode(layout.logs) == 0o777
        assert [entry.name for entry in layout.logs.iterdir()] == ["file"]

    @pytest.mark.parametrize("log_dir", ["logs/file", "logs/file/below"])
    def test_a_file_in_the_way_is_told_without_a_path(self, layout, log_dirs, log_dir):
        layout.logs.mkdir()
        (layout.logs / "file").touch()
        with pytest.raises(InvalidRequestError) as refused:
            log_dirs.make(log_dirs.resolve(log_dir))
        assert refused.value.problems == (
            Problem("log_dir", "can't be made or written to (Not a directory)"),
        )

    def test_a_file_in_place_of_the_root_is_told_without_a_path(self, layout, log_dirs):
        layout.logs.touch()
        with pytest.raises(InvalidRequestError, match=r"^log_dir can't be made [^/]*$"):
            log_dirs.make(layout.logs)

    @pytest.mark.parametrize("log_dir", ["/proc", "/proc/new"])
    def test_where_nothing_can_be_written_is_told(self, layout, log_dir):
        log_dirs = make_log_dirs(layout, Path("/proc"))
        with pytest.raises(InvalidRequestError, match=r"^log_dir can't be made or written to"):
            log_dirs.make(log_dirs.resolve(log_dir))

    def test_a_link_put_there_after_the_check_is_not_followed(self, layout, log_dirs, tmp_path):
        layout.logs.mkdir()
        (tmp_path / "elsewhere").mkdir()
        place = log_dirs.resolve("logs/a/b")
        (layout.logs / "a").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InvalidRequestError):
            log_dirs.make(place)
        assert list((tmp_path / "elsewhere").iterdir()) == []


class TestLaunch:
    """What held at the acceptance is checked again."""

    @pytest.fixture
    def log_dir(self, log_dirs: LogDirs) -> Path:
        path = log_dirs.resolve("logs/a")
        log_dirs.make(path)
        return path

    @pytest.fixture
    def paths(self, layout: Layout, log_dir: Path) -> LogPaths:
        return layout.job_logs(log_dir, JOB_ID)

    def test_an_unchanged_directory_passes(self, log_dirs, log_dir):
        log_dirs.recheck(log_dir)

    def test_a_directory_that_somebody_removed_is_made_again(self, log_dirs, log_dir):
        log_dir.rmdir()
        log_dir.parent.rmdir()
        log_dirs.recheck(log_dir)
        assert mode(log_dir) == 0o750

    @pytest.mark.parametrize("target", ["/tmp", "state"])
    def test_a_directory_replaced_by_a_link_is_refused(self, layout, log_dirs, log_dir, target):
        (layout.work_dir / "state").mkdir()
        log_dir.rmdir()
        log_dir.symlink_to(layout.work_dir / target)
        for launch in (log_dirs.recheck, self.create_files_in(log_dirs, layout)):
            with pytest.raises(LaunchRefusedError, match=r"^The log directory must ") as refused:
                launch(log_dir)
            assert str(layout.work_dir) not in str(refused.value)
        assert list((layout.work_dir / "state").iterdir()) == []

    def create_files_in(self, log_dirs, layout):
        return lambda log_dir: log_dirs.create_files(layout.job_logs(log_dir, JOB_ID))

    def test_a_directory_replaced_by_a_file_is_refused(self, log_dirs, log_dir):
        log_dir.rmdir()
        log_dir.touch()
        with pytest.raises(LaunchRefusedError, match=r"any more \(Not a directory\)\.$"):
            log_dirs.recheck(log_dir)

    def test_a_directory_is_refused_that_the_settings_do_not_allow_any_more(self, layout, log_dir):
        log_dirs = make_log_dirs(layout, layout.work_dir / "other")
        with pytest.raises(LaunchRefusedError, match="OCPS_LOG_ROOTS"):
            log_dirs.recheck(log_dir)

    def test_the_files_are_made_for_owner_and_group(self, log_dirs, paths):
        previous = os.umask(0o077)
        try:
            log_dirs.create_files(paths)
        finally:
            os.umask(previous)
        for path in (paths.out, paths.err, paths.log):
            assert path.is_file()
            assert mode(path) == 0o640
        assert sorted(p.name for p in paths.out.parent.iterdir()) == [
            f"{JOB_ID}.err",
            f"{JOB_ID}.log",
            f"{JOB_ID}.out",
        ]

    def test_files_of_an_earlier_attempt_are_kept(self, log_dirs, paths):
        log_dirs.create_files(paths)
        paths.out.write_text("precious")
        paths.out.chmod(0o600)
        log_dirs.create_files(paths)
        assert paths.out.read_text() == "precious"
        assert mode(paths.out) == 0o600

    def test_a_link_in_a_files_place_is_not_followed(self, log_dirs, paths, tmp_path):
        (tmp_path / "victim").write_text("mine")
        paths.err.symlink_to(tmp_path / "victim")
        with pytest.raises(LaunchRefusedError, match="log files can't be written"):
            log_dirs.create_files(paths)
        paths.err.unlink()
        paths.err.symlink_to(tmp_path / "new")
        with pytest.raises(LaunchRefusedError, match="log files can't be written"):
            log_dirs.create_files(paths)
        assert not (tmp_path / "new").exists()
        assert (tmp_path / "victim").read_text() == "mine"

    @pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
    def test_something_else_in_a_files_place_refuses_the_launch(self, log_dirs, paths, make):
        make(paths.log)
        with pytest.raises(LaunchRefusedError, match="log files can't be written") as refused:
            log_dirs.create_files(paths)
        assert "/" not in str(refused.value)

    def test_a_pipe_with_a_reader_is_no_log_file(self, log_dirs, paths):
        os.mkfifo(paths.log)
        reader = os.open(paths.log, os.O_RDONLY | os.O_NONBLOCK)
        try:
            with pytest.raises(LaunchRefusedError, match="Something else has the name"):
                log_dirs.create_files(paths)
        finally:
            os.close(reader)


@pytest.fixture
def no_more_descriptors() -> Iterator[None]:
    """No file can be opened: an outage of the server's own."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open("/", os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_outage_is_not_the_clients_fault(layout, log_dirs, no_more_descriptors):
    with pytest.raises(UnavailableError, match="just now"):
        log_dirs.make(layout.logs)


def test_an_outage_refuses_no_launch(layout, log_dirs, no_more_descriptors):
    with pytest.raises(OSError, match="Too many open files"):
        log_dirs.recheck(layout.logs)
    with pytest.raises(OSError, match="Too many open files"):
        log_dirs.create_files(layout.job_logs(layout.logs, JOB_ID))


def test_no_descriptor_is_left_open(layout, log_dirs):
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    place = log_dirs.resolve("logs/a/b/c")
    before = descriptors()
    log_dirs.make(place)
    log_dirs.create_files(layout.job_logs(place, JOB_ID))
    (place / "file").touch()
    with pytest.raises(InvalidRequestError):
        log_dirs.make(place / "file" / "x")
    assert descriptors() == before
