"""The scripts for people: they set themselves up, from anywhere, once, and hand on."""

import os
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from ocps_jobmanager.butler import Visit, make_registry
from tests.processes_of import processes_of
from tests.trees import PROJECT, QuickTree, Tree, bare_environment, copy_project

SCRIPTS = ("launch_job_manager.sh", "run_client.sh", "run_tests.sh")


@pytest.fixture
def tree(tmp_path: Path) -> QuickTree:
    return QuickTree(tmp_path)


def setting(output: str, name: str) -> str:
    """A setting's value in what ``config`` prints."""
    match = re.search(rf"^{name} +(.*?)  +(environment|default)", output, re.MULTILINE)
    assert match is not None, output
    return match[1]


def test_the_first_use_sets_up_and_says_so_and_the_second_does_nothing(tree: QuickTree) -> None:
    first = tree.run("launch_job_manager.sh", "config")
    assert first.returncode == 0, first.stderr
    assert "Setting up " in first.stderr
    second = tree.run("launch_job_manager.sh", "config")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == first.stdout
    assert tree.installed == ["."]


def test_home_is_the_scripts_folder_from_wherever_it_is_called(
    tree: QuickTree, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "jm").symlink_to(tree.path / "launch_job_manager.sh")
    for script in (
        "launch_job_manager.sh",
        elsewhere / "jm",
        "../the project/launch_job_manager.sh",
    ):
        done = tree.run(script, "config", cwd=elsewhere, COLUMNS="500")
        assert done.returncode == 0, done.stderr
        assert setting(done.stdout, "OCPS_HOME") == str(tree.path)
    assert len(tree.installed) == 1


def test_a_home_that_is_given_stays(tree: QuickTree, tmp_path: Path) -> None:
    done = tree.run("launch_job_manager.sh", "config", OCPS_HOME=str(tmp_path), COLUMNS="500")
    assert setting(done.stdout, "OCPS_HOME") == str(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS)
def test_arguments_and_exit_status_are_passed_on(tree: QuickTree, script: str) -> None:
    helped = tree.run(script, "--help")
    assert helped.returncode == 0
    assert helped.stdout.startswith("usage: ")
    refused = tree.run(script, "--no such option")
    assert refused.returncode not in (0, 1)
    assert "--no such option" in refused.stderr


def test_the_tests_are_installed_for_the_tests_only(tree: QuickTree) -> None:
    tree.run("launch_job_manager.sh", "--help")
    tree.run("run_tests.sh", "--version")
    tree.run("run_tests.sh", "--version")
    tree.run("run_client.sh", "--help")
    assert tree.installed == [".", ".[test]"]


def test_the_tests_run_in_the_projects_folder(tree: QuickTree) -> None:
    done = tree.run("run_tests.sh", "--collect-only", "-q", "tests/jobs", PYTHONPATH="/nonexistent")
    assert done.returncode == 0, done.stdout
    assert "tests/jobs/test_ap_job.py::" in done.stdout


def test_the_pool_for_people_is_a_word_of_run_tests(tree: QuickTree) -> None:
    done = tree.run("run_tests.sh", "pool", "--help")
    assert done.returncode == 0, done.stderr
    assert "--bind" in done.stdout


def test_changed_dependencies_are_installed(tree: QuickTree) -> None:
    tree.run("launch_job_manager.sh", "--help")
    with (tree.path / "pyproject.toml").open("a") as project:
        project.write("# changed\n")
    changed = tree.run("launch_job_manager.sh", "--help")
    assert "Bringing " in changed.stderr
    assert tree.run("launch_job_manager.sh", "--help").stderr == ""
    assert tree.installed == [".", "."]


def test_an_interrupted_setup_is_made_anew(tree: QuickTree) -> None:
    os.mkfifo(tree.fifo)
    first = tree.start("launch_job_manager.sh", "--help")
    with tree.fifo.open("w"):  # pip is at work
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate(timeout=60)
    tree.fifo.unlink()
    (tree.path / ".venv" / "leftover").touch()

    second = tree.run("launch_job_manager.sh", "--help")
    assert second.returncode == 0, second.stderr
    assert "making it anew" in second.stderr
    assert not (tree.path / ".venv" / "leftover").exists()
    assert tree.run("launch_job_manager.sh", "--help").stderr == ""


def test_a_setup_that_fails_is_said_and_done_again(tree: QuickTree) -> None:
    os.mkfifo(tree.fifo)
    first = tree.start("launch_job_manager.sh", "--help")
    with tree.fifo.open("w") as status:
        status.write("1\n")
    output, _ = first.communicate(timeout=60)
    tree.fifo.unlink()
    assert first.returncode == 1
    assert "The set-up failed" in output
    assert tree.run("launch_job_manager.sh", "--help").returncode == 0


def test_two_at_once_set_up_once(tree: QuickTree) -> None:
    os.mkfifo(tree.fifo)
    first = tree.start("launch_job_manager.sh", "--help")
    with tree.fifo.open("w") as status:  # the first is at work
        second = tree.start("launch_job_manager.sh", "--help")
        assert second.stdout is not None
        assert second.stdout.readline().startswith("Waiting for another set-up")
        status.write("0\n")
    for process in (first, second):
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert "usage: " in output
    assert tree.installed == ["."]


def test_a_folder_that_was_copied_with_its_environment_gets_its_own(
    tree: QuickTree, tmp_path: Path
) -> None:
    tree.run("launch_job_manager.sh", "--help")
    copy = tmp_path / "copy"
    shutil.copytree(tree.path, copy, symlinks=True)
    done = tree.run(copy / "launch_job_manager.sh", "config", COLUMNS="500")
    assert "making it anew" in done.stderr
    assert setting(done.stdout, "OCPS_HOME") == str(copy)
    assert tree.run("launch_job_manager.sh", "--help").stderr == ""


def test_an_environment_whose_python_is_gone_is_made_anew(tree: QuickTree) -> None:
    tree.run("launch_job_manager.sh", "--help")
    (tree.path / ".venv" / "bin" / "real-python").unlink()
    (tree.path / ".venv" / "bin" / "real-python").symlink_to("/no/such/python")
    done = tree.run("launch_job_manager.sh", "--help")
    assert done.returncode == 0, done.stderr
    assert "making it anew" in done.stderr


def test_an_environment_that_somebody_made_is_taken(tree: QuickTree) -> None:
    venv = tree.path / ".venv"
    subprocess.run([tree.environment["PYTHON"], "-m", "venv", venv], check=True, timeout=60)
    (venv / "mine").touch()
    done = tree.run("launch_job_manager.sh", "--help")
    assert done.returncode == 0, done.stderr
    assert (venv / "mine").exists()
    assert tree.installed == ["."]


@pytest.mark.parametrize(
    ("version_check", "venv_check", "sentence"),
    [
        (1, 0, "which is not Python 3.11 or newer."),
        (0, 1, "can't make a virtual environment: install its venv module"),
    ],
)
def test_a_python_that_will_not_do_is_one_sentence(
    tree: QuickTree, tmp_path: Path, version_check: int, venv_check: int, sentence: str
) -> None:
    python = tmp_path / "old python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *version_info*) exit {version_check};; esac\nexit {venv_check}\n'
    )
    python.chmod(0o755)
    done = tree.run("launch_job_manager.sh", "--help", PYTHON=str(python))
    assert done.returncode == 1
    assert str(python) in done.stderr
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tree.path / ".venv").exists()


def test_no_python_at_all_is_one_sentence(tree: QuickTree, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "cat", "dirname", "head", "mkdir", "mv", "readlink", "rm"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    done = tree.run("launch_job_manager.sh", "--help", PATH=str(programs), PYTHON="")
    assert (done.returncode, done.stderr) == (
        1,
        "There is no Python 3.11 or newer on the PATH: install one, or name one in $PYTHON.\n",
    )


def test_a_users_own_python_settings_do_no_harm(tree: QuickTree, tmp_path: Path) -> None:
    (tmp_path / "tornado.py").write_text("raise SystemExit('the wrong one')")
    settings = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent", "PIP_USER": "1"}
    done = tree.run("launch_job_manager.sh", "config", **settings)
    assert done.returncode == 0, done.stderr


# run_client.sh and the stack


def test_the_stack_is_set_up_and_does_no_harm_to_the_client(
    tree: QuickTree, tmp_path: Path
) -> None:
    (tmp_path / "requests.py").write_text("raise SystemExit('the wrong one')")
    setup = tmp_path / "load stack.sh"
    setup.write_text(
        f"echo stack: $# arguments, $NOT_SET\n"
        f"export PYTHONPATH='{tmp_path}' PYTHONHOME=/nonexistent LD_LIBRARY_PATH=/nonexistent\n"
        "export PATH=/nonexistent VIRTUAL_ENV=/nonexistent\ncd /\nfalse\n"
    )
    (tmp_path / "my.yaml").write_text("data: 5\n")
    done = tree.run(
        "run_client.sh", "--config", "my.yaml", cwd=tmp_path, OCPS_STACK_SETUP=str(setup)
    )
    assert done.stdout == "stack: 0 arguments,\n"
    assert done.stderr.endswith("my.yaml: data must be a section with names and values.\n")
    assert done.returncode == 2


def test_a_relative_stack_setup_is_relative_to_home(tree: QuickTree) -> None:
    (tree.path / "site.sh").write_text("echo here\n")
    done = tree.run("run_client.sh", "--help", OCPS_STACK_SETUP="site.sh")
    assert done.stdout.startswith("here\nusage: ")


def test_a_stack_setup_that_is_missing_is_one_sentence(tree: QuickTree) -> None:
    tree.run("run_client.sh", "--help")
    done = tree.run("run_client.sh", OCPS_STACK_SETUP="/no/such.sh")
    assert (done.returncode, done.stderr) == (
        2,
        "OCPS_STACK_SETUP names /no/such.sh, which can't be read.\n",
    )


def test_the_client_reads_config_yaml_beside_the_scripts(tree: QuickTree) -> None:
    done = tree.run("run_client.sh")
    assert done.returncode == 2
    assert f"There is no {tree.path}/config.yaml: copy config.example.yaml" in done.stderr


# From a bare checkout, with the package index


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A copy in a folder with a space in its name; whoever comes first waits for its set-up."""
    folder = tmp_path_factory.mktemp("bare") / "a checkout"
    return Tree(copy_project(folder), bare_environment())


@pytest.mark.timeout(600)
def test_the_demonstration_runs_from_a_bare_checkout(checkout: Tree, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = checkout.run("launch_job_manager.sh", "demo", TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^  [0-9a-f]{32}  visit \d+, ccd \d+: ", done.stdout, re.MULTILINE)) == 4
    assert list(temporary.iterdir()) == []
    assert processes_of(checkout.path) == []


@pytest.mark.timeout(600)
def test_the_tests_can_be_run_from_a_bare_checkout(checkout: Tree) -> None:
    done = checkout.run("run_tests.sh", "-q", "tests/test_models.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed in " in done.stdout


def make_stack(checkout: Tree, folder: Path) -> None:
    """Programs that stand in for the pipelines', and the script that sets them up: `site.sh`."""
    folder.mkdir()
    for name in ("make_apdb.py", "ap_pipe.py"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (folder / name).chmod(0o755)
    (checkout.path / "site.sh").write_text(f'PATH="{folder}:$PATH"\n')


@pytest.mark.timeout(600)
def test_a_person_runs_the_server_and_the_client_from_a_bare_checkout(
    checkout: Tree, tmp_path: Path
) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    visit = Visit(
        number=77,
        filter="g",
        time_observed="2020-09-15T09:24:08.770000",
        exposure_time_s=30.0,
        proposal="p",
        object="o",
        ccds=(1, 2, 3, 4),
    )
    make_registry(repo / "registry.sqlite3", [visit])
    example = (checkout.path / "config.example.yaml").read_text()
    config = example.replace("/datasets/des_sn/repo_Y3/", f"{repo}/")
    (checkout.path / "config.yaml").write_text(config)
    make_stack(checkout, tmp_path / "a stack")
    stack = {"OCPS_STACK_SETUP": "site.sh"}

    settings = {"API_PORT": "0", "OCPS_POLL_INTERVAL": "0.1", "OCPS_SCHEDULER": "local"}
    server = checkout.start("launch_job_manager.sh", **settings, **stack)
    try:
        running = re.compile(r"     main   INFO  Running at localhost:(\d+)/api/v1$")
        port = first_match(server, running)[1]
        client = checkout.start("run_client.sh", "--wait", API_PORT=port, **stack)
        ids = []
        for _ in range(4):
            ids.append(first_match(client, re.compile(r'  "job_id": "([0-9a-f]{32})",$'))[1])
            (checkout.path / "work" / f"{ids[-1]}.dat").touch()
        output, _ = client.communicate(timeout=100)
        assert client.returncode == 0, output
    finally:
        server.terminate()
        log, _ = server.communicate(timeout=60)
    assert server.returncode == 0, log
    for job_id in ids:
        lines = (checkout.path / "work" / "logs" / f"{job_id}.out").read_text().splitlines()
        assert lines[0].startswith("make_apdb.py --config ")
        assert lines[1].startswith(f"ap_pipe.py {repo}/ --id visit=77 ccdnum=")
        assert (checkout.path / "work" / "output" / job_id / "output" / "repo").is_dir()
    assert processes_of(checkout.path) == []


def first_match(process: "subprocess.Popen[str]", pattern: re.Pattern[str]) -> re.Match[str]:
    """Read a program's output up to a line."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if match := pattern.search(line.rstrip("\n")):
            return match
    raise AssertionError("".join(seen))


# What can be seen without running them


def test_everything_for_people_is_executable() -> None:
    for name in (*SCRIPTS, ".ci/run"):
        assert stat.S_IMODE((PROJECT / name).stat().st_mode) & 0o111 == 0o111, name
