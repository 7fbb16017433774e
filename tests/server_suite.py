"""What a whole server promises on either scheduler; ``server`` is a fixture of who inherits it."""

import contextlib
import os
import signal
import sqlite3
from pathlib import Path

import requests

from tests.server import ServerProcess, alive, wait_until

#: Goes on until the file that it is given exists.
UNTIL_FILE = "while [ ! -e '{}' ]; do sleep 0.1; done"


class ServerSuite:
    """Tests of a running server."""

    def test_from_post_to_result(self, server: ServerProcess) -> None:
        job_id = server.submit(THEN="echo heard; echo seen >&2; echo found > result.txt; exit 3")
        assert server.job(job_id)["state"] == "waiting"
        server.data_arrive(job_id)
        job = server.ended(job_id)
        assert (job["state"], job["phase"], job["exit_code"]) == ("completed", "error", 3)
        assert job["reason"] == "The script ended with exit code 3."
        assert job["num_starts"] == 1
        assert job["remote_host"]
        assert Path(job["logs"]["out"]).read_text() == "heard\n"
        assert Path(job["logs"]["err"]).read_text() == "seen\n"
        assert (
            f"({job['cluster_id']:03d}.{job['proc_id']:03d}.000)"
            in Path(job["logs"]["log"]).read_text()
        ), "the user log has the job's events"
        assert (Path(job["output_dir"]) / "result.txt").read_text() == "found\n"
        assert server.runs() == [job_id]
        states = [event["state"] for event in job["history"]]
        assert states == ["waiting", "submitting", "idle", "running", "completed"]
        times = [job[f"time_{name}"] for name in ("submitted", "data_arrived", "queued", "started")]
        assert [*times, job["time_completed"]] == sorted([*times, job["time_completed"]])

    def test_four_jobs_with_one_relative_output_do_not_meet(self, server: ServerProcess) -> None:
        """With the prototype they overwrote each other's."""
        ids = [server.submit(THEN='mkdir -p output; echo "$JOB_ID" > output/id') for _ in range(4)]
        for job_id in ids:
            server.data_arrive(job_id)
        for job_id in ids:
            output = Path(server.ended(job_id)["output_dir"])
            assert (output / "output" / "id").read_text() == f"{job_id}\n"

    def test_a_script_that_a_signal_ends(self, server: ServerProcess) -> None:
        job_id = server.submit(THEN="kill -TERM $$")
        server.data_arrive(job_id)
        job = server.ended(job_id)
        assert (job["phase"], job["exit_code"], job["exit_signal"]) == ("error", None, 15)

    def test_a_running_job_is_removed(self, server: ServerProcess, tmp_path: Path) -> None:
        job_id = server.submit(THEN=UNTIL_FILE.format(tmp_path / "never"))
        server.data_arrive(job_id)
        server.until(job_id, "running")
        server.delete(job_id)
        job = server.until(job_id, "removed")
        assert (job["phase"], job["reason"]) == ("aborted", "Removed on request.")

    def test_a_script_that_fails_is_run_again(self, server: ServerProcess) -> None:
        job = server.ended(server.submit("brief", THEN='exit $((40 + $(wc -l < "$LEDGER")))'))
        assert (job["state"], job["exit_code"], job["num_starts"]) == ("completed", 43, 3)
        assert job["reason"] == "The script ended with exit code 43."
        assert server.runs() == 3 * [job["job_id"]]
        assert job["time_queued"] <= job["time_started"] <= job["time_completed"]

    def test_a_job_that_runs_too_long_has_failed(
        self, server: ServerProcess, tmp_path: Path
    ) -> None:
        """Also while its server is away, and it is not run again for it."""
        over = "It ran longer than 3 s (max_run_time) and was ended."
        then = UNTIL_FILE.format(tmp_path / "never")
        first, second = (server.submit("brief", THEN=then) for _ in range(2))
        job = server.ended(first)
        assert (job["state"], job["phase"], job["reason"]) == ("failed", "error", over)
        server.ended(second)
        third = server.submit("brief", THEN=then)
        server.until(third, "running")
        server.restart()
        job = server.ended(third)
        assert (job["state"], job["reason"]) == ("failed", over)
        assert sorted(server.runs()) == sorted([first, second, third])

    def test_killed_with_jobs_in_every_state_nothing_is_lost_or_repeated(
        self, server: ServerProcess, tmp_path: Path
    ) -> None:
        go = tmp_path / "go"
        waiting = [server.submit() for _ in range(3)]
        running = [server.submit(THEN=UNTIL_FILE.format(go)) for _ in range(2)]
        for job_id in running:
            server.data_arrive(job_id)
        for job_id in running:
            server.until(job_id, "running")
        wait_until(lambda: server.monitors().keys() == set(waiting), "three monitors wait")
        old = server.monitors()
        submitting = [server.submit() for _ in range(5)]
        for job_id in submitting:
            server.data_arrive(job_id)
        server.kill()
        wait_until(lambda: not any(alive(pid) for pid in old.values()), "no monitor is left behind")
        go.touch()
        server.start()
        wait_until(lambda: server.monitors().keys() >= set(waiting), "the monitors are back")
        for job_id in waiting:
            server.data_arrive(job_id)
        ids = waiting + running + submitting
        for job_id in ids:
            job = server.ended(job_id)
            assert (job["state"], job["exit_code"]) == ("completed", 0), job
        assert sorted(server.runs()) == sorted(ids)
        assert server.monitors() == {}

    def test_killed_again_and_again_while_jobs_come(self, server: ServerProcess) -> None:
        ids = []
        for _ in range(5):
            for _ in range(4):
                ids.append(server.submit())
                server.data_arrive(ids[-1])
            server.restart()
        for job_id in ids:
            job = server.ended(job_id)
            assert (job["state"], job["exit_code"]) == ("completed", 0), job
        assert sorted(server.runs()) == sorted(ids)

    def test_an_orderly_stop_leaves_the_jobs_running(
        self, server: ServerProcess, tmp_path: Path
    ) -> None:
        go = tmp_path / "go"
        waiting = server.submit()
        running = server.submit(THEN=UNTIL_FILE.format(go))
        server.data_arrive(running)
        server.until(running, "running")
        wait_until(lambda: waiting in server.monitors(), "a monitor waits")
        children = server.children()
        assert server.stop() == 0
        wait_until(
            lambda: (
                not any(
                    alive(pid)
                    for pid, argv in children.items()
                    if "local_launcher" not in str(argv)
                )
            ),
            "monitors and other helpers have ended",
        )
        server.start()
        assert server.job(running)["state"] == "running"
        go.touch()
        assert server.ended(running)["exit_code"] == 0
        assert server.runs() == [running]

    def test_a_second_server_on_the_same_state_is_refused(
        self, server: ServerProcess, tmp_path: Path
    ) -> None:
        log = tmp_path / "second.log"
        assert server.spawn(log).wait(60) == 2
        [line] = log.read_text().splitlines()
        assert "another server is running" in line
        assert requests.get(f"{server.root}/healthz", timeout=10).ok

    def test_monitors_are_kept_up_and_leave_no_zombies(self, server: ServerProcess) -> None:
        """The prototype's were unsupervised: zombies when done, none started again."""
        job_id = server.submit()
        wait_until(lambda: job_id in server.monitors(), "a monitor waits")
        first = server.monitors()[job_id]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: server.monitors().get(job_id, first) != first, "another is started")
        second = server.monitors()[job_id]
        server.data_arrive(job_id)
        server.ended(job_id)
        wait_until(lambda: not any(Path(f"/proc/{p}").exists() for p in (first, second)), "reaped")

    def test_secrets_stay_secret(self, server: ServerProcess) -> None:
        """A monitor's key is not in any process's arguments or environment, log or answer."""
        job_id = server.submit()
        wait_until(lambda: job_id in server.monitors(), "a monitor waits")
        key = _monitor_key(server, job_id)
        pids = [server.process.pid, *server.children()]  # type: ignore[union-attr]
        for pid in pids:
            for name in ("cmdline", "environ"):
                assert key.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        server.data_arrive(job_id)
        job = server.ended(job_id)
        assert key not in str(job)
        assert key not in server.log()
        assert "/api/v1/monitor/complete?id=[secret_key]" in server.log()
        assert f'Data arrived for job "{job_id}". Launching job...' in server.log()
        for path in server.work.rglob("*"):
            if path.is_file() and not path.name.startswith("jobs.sqlite3"):
                assert key.encode() not in path.read_bytes(), path

    def test_a_job_sees_nothing_of_the_server_or_of_other_jobs(self, server: ServerProcess) -> None:
        """The prototype passed every secret of the server, and the last job's variables, on."""
        dumps = [server.home / "one", server.home / "two"]
        server.ended(server.submit("dump", DUMP=str(dumps[0]), A="only one", B="1"))
        server.ended(server.submit("dump", DUMP=str(dumps[1]), A="two", B=""))
        for dump in dumps:
            names = {item.split(b"=")[0].decode() for item in dump.read_bytes().split(b"\0")}
            assert names >= {"A", "B", "DUMP", "HOME", "PATH", "LANG", "JOB_ID", "JOB_OUTPUT_DIR"}
            assert not {name for name in names if name.startswith(("OCPS_", "API_"))}
            assert "A_SECRET_OF_THE_SERVER" not in names
        assert b"only one" not in dumps[1].read_bytes()

    def test_values_reach_the_job_byte_for_byte(self, server: ServerProcess) -> None:
        nasty = (
            " ' \" ; | , = # \\ \\\\ $(HOME) $$(Arch) $$(NoSuchThing) $ENV(PATH)"
            " $RANDOM_CHOICE(a,b) \x01\x02\x1b\x7f\t ü 光 \U0001f52d \\"
        )
        for number, value in enumerate((nasty, "x" * 100_000, "", "+MY.Injected=1", nasty * 50)):
            dump = server.home / f"dump{number}"
            job = server.ended(server.submit("dump", DUMP=str(dump), A=value, B=f"'{value}\""))
            assert job["exit_code"] == 0, job
            found = dict(item.split(b"=", 1) for item in dump.read_bytes().split(b"\0"))
            assert found[b"A"] == value.encode()
            assert found[b"B"] == f"'{value}\"".encode()
        for refused in ("a\nb", "a\rb", "a\0b", "a\x1fb", "x" * 131_072, True, None):
            body = {
                "type": "dump",
                "env": {"DUMP": "/x", "A": refused, "B": "1"},
                "log_dir": "logs",
            }
            answer = requests.post(f"{server.url}/job", json=body, timeout=10)
            assert answer.status_code == 400
            assert [error["field"] for error in answer.json()["errors"]] == ["env.A"]

    def test_the_data_may_be_there_before_the_monitor(self, server: ServerProcess) -> None:
        """Also while no server runs at all."""
        job_id = server.submit()
        server.kill()
        server.data_arrive(job_id)
        server.start()
        assert server.ended(job_id)["exit_code"] == 0
        assert server.runs() == [job_id]

    def test_ready_when_all_parts_are(self, server: ServerProcess) -> None:
        _, answer = wait_until(
            lambda: (state := server.ready())[0] == 200 and state, "the server is ready"
        )
        assert set(answer["checks"]) == {"database", "scheduler", "monitors"}


def _monitor_key(server: ServerProcess, job_id: str) -> str:
    """Read a job's key where alone it is: in the database."""
    with contextlib.closing(sqlite3.connect(server.work / "state" / "jobs.sqlite3")) as database:
        found = database.execute("SELECT monitor_key FROM job WHERE id = ?", [job_id]).fetchone()
    return str(found[0])
