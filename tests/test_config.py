"""The settings: what is read, what is refused and how, and what is decided from them."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from ocps_jobmanager.config import (
    MonitorKey,
    SchedulerChoice,
    Settings,
    environ_for_jobs,
    layout,
    load_settings,
    parse_duration,
    settings_table,
)
from ocps_jobmanager.errors import StartupError
from ocps_jobmanager.machine import choose_scheduler, require_local_state_dir, state_dir_on_network


def load(home: Path, **environ: str) -> Settings:
    return Settings.load({"OCPS_HOME": str(home), **environ})


def refusal(home: Path, **environ: str) -> list[str]:
    """The lines with which the start is refused."""
    with pytest.raises(StartupError) as refused:
        load(home, **environ)
    return str(refused.value).split("\n")


def test_defaults_are_those_of_the_documentation(tmp_path):
    settings = load(tmp_path)
    assert settings.home == tmp_path
    assert (settings.api_port, settings.api_basepath) == (8080, "/api/v1")
    assert (settings.api_domain, settings.api_protocol) == ("localhost", "http")
    assert settings.listen == "localhost"
    assert settings.monitor_url is None
    assert settings.work_dir == tmp_path / "work"
    assert settings.state_dir == tmp_path / "work" / "state"
    assert settings.job_specs == tmp_path / "jobs" / "job_specs.yaml"
    assert settings.scheduler is SchedulerChoice.AUTO
    assert settings.poll_interval_s == 5
    assert settings.log_roots == (tmp_path / "work" / "logs",)
    assert settings.monitor_key is MonitorKey.SECRET
    assert settings.max_body == 1048576
    assert (settings.max_waiting, settings.keep_days, settings.keep) == (2000, 0, None)
    assert settings.stack_setup is None
    assert (settings.api_tokens, settings.allow_anonymous) == (None, False)
    assert (settings.allowed_hosts, settings.cors_origins) == ((), ())
    assert (settings.tls_cert, settings.tls_key, settings.tls_ca) == (None, None, None)
    assert settings.url(1234) == "http://localhost:1234/api/v1"


def test_home_defaults_to_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings.load({}).work_dir == tmp_path / "work"


def test_nothing_is_read_from_the_process_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("API_PORT", "9999")
    monkeypatch.setenv("OCPS_WORK_DIR", "elsewhere")
    settings = load(tmp_path)
    assert settings.api_port == 8080
    assert settings.work_dir == tmp_path / "work"


def test_every_setting_takes_its_value_from_the_environment(tmp_path):
    settings = load(
        tmp_path,
        API_PORT="0",
        API_BASEPATH="ocps//v2/",
        API_DOMAIN="submit.example.org",
        API_PROTOCOL="https",
        OCPS_LISTEN="127.0.0.1",
        OCPS_MONITOR_URL="http://127.0.0.1:81/x/",
        OCPS_WORK_DIR="w",
        OCPS_STATE_DIR="/var/tmp/ocps state",
        OCPS_JOB_SPECS="specs.yaml",
        OCPS_SCHEDULER="local",
        OCPS_POLL_INTERVAL="90s",
        OCPS_LOG_ROOTS="w/logs:/var/tmp/logs",
        OCPS_MONITOR_KEY="job_id",
        OCPS_MAX_BODY="2048",
        OCPS_MAX_WAITING="10000",
        OCPS_KEEP_DAYS="0.5",
        OCPS_STACK_SETUP="setup.sh",
        OCPS_API_TOKENS="tokens",
        OCPS_ALLOW_ANONYMOUS="1",
        OCPS_ALLOWED_HOSTS="Jobs.example.org, 10.0.0.1,[fe80::1]",
        OCPS_CORS_ORIGINS="https://www.example.org,http://[::1]:3000",
        OCPS_TLS_CERT="tls/cert.pem",
        OCPS_TLS_KEY="/etc/ocps/key.pem",
        OCPS_TLS_CA="tls/ca.pem",
    )
    assert settings.api_port == 0
    assert settings.api_basepath == "/ocps/v2"
    assert settings.url(80) == "https://submit.example.org:80/ocps/v2"
    assert settings.listen == "127.0.0.1"
    assert settings.monitor_url == "http://127.0.0.1:81/x"
    assert settings.work_dir == tmp_path / "w"
    assert settings.state_dir == Path("/var/tmp/ocps state")
    assert settings.job_specs == tmp_path / "specs.yaml"
    assert settings.scheduler is SchedulerChoice.LOCAL
    assert settings.poll_interval_s == 90
    assert settings.log_roots == (tmp_path / "w/logs", Path("/var/tmp/logs"))
    assert settings.monitor_key is MonitorKey.JOB_ID
    assert settings.max_body == 2048
    assert settings.max_waiting == 10000
    assert settings.keep == timedelta(hours=12)
    assert settings.stack_setup == tmp_path / "setup.sh"
    assert settings.api_tokens == tmp_path / "tokens"
    assert settings.allow_anonymous is True
    assert settings.allowed_hosts == ("Jobs.example.org", "10.0.0.1", "[fe80::1]")
    assert settings.cors_origins == ("https://www.example.org", "http://[::1]:3000")
    assert settings.tls_cert == tmp_path / "tls/cert.pem"
    assert settings.tls_key == Path("/etc/ocps/key.pem")
    assert settings.tls_ca == tmp_path / "tls/ca.pem"


def test_paths_below_a_moved_work_directory_move_with_it(tmp_path):
    settings = load(tmp_path, OCPS_WORK_DIR="a:b c")
    assert settings.state_dir == tmp_path / "a:b c" / "state"
    assert settings.log_roots == (tmp_path / "a:b c" / "logs",)
    assert layout(settings).outputs == tmp_path / "a:b c" / "output"
    assert layout(settings).state_dir == settings.state_dir


@pytest.mark.parametrize(
    ("text", "path"),
    [("", ""), ("/", ""), ("//a//", "/a"), ("a/b", "/a/b"), ("/v1.0~x", "/v1.0~x")],
)
def test_base_path_is_normalised(tmp_path, text, path):
    assert load(tmp_path, API_BASEPATH=text).api_basepath == path


@pytest.mark.parametrize("listen", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"])
def test_loopback_addresses_may_be_listened_on(tmp_path, listen):
    settings = load(tmp_path, OCPS_LISTEN=listen, OCPS_MONITOR_KEY="job_id")
    assert settings.listen == listen.strip("[]")


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "192.168.1.5", "[2001:db8::1]"])
def test_other_addresses_stop_the_start_with_a_sentence_that_says_so(tmp_path, listen):
    (line,) = refusal(tmp_path, OCPS_LISTEN=listen)
    assert line.startswith(f'OCPS_LISTEN is "{listen}": must be localhost or a loopback address')


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "192.168.1.5", "[2001:db8::1]"])
@pytest.mark.parametrize("permit", [{"OCPS_API_TOKENS": "t"}, {"OCPS_ALLOW_ANONYMOUS": "1"}])
def test_other_addresses_need_tokens_or_leave(tmp_path, listen, permit):
    assert load(tmp_path, OCPS_LISTEN=listen, **permit).listen == listen.strip("[]")


@pytest.mark.parametrize("no_permit", [{"OCPS_API_TOKENS": ""}, {"OCPS_ALLOW_ANONYMOUS": "0"}])
def test_what_is_empty_or_0_is_no_leave(tmp_path, no_permit):
    (line,) = refusal(tmp_path, OCPS_LISTEN="0.0.0.0", **no_permit)
    assert "OCPS_API_TOKENS" in line
    assert "OCPS_ALLOW_ANONYMOUS=1" in line


@pytest.mark.parametrize("permit", [{"OCPS_API_TOKENS": "t"}, {"OCPS_ALLOW_ANONYMOUS": "1"}])
def test_job_ids_are_no_keys_off_loopback_whoever_may_call(tmp_path, permit):
    """The callback asks for no token."""
    (line,) = refusal(tmp_path, OCPS_LISTEN="0.0.0.0", OCPS_MONITOR_KEY="job_id", **permit)
    assert line.startswith("OCPS_MONITOR_KEY is ")


@pytest.mark.parametrize(
    ("name", "other"), [("OCPS_TLS_CERT", "OCPS_TLS_KEY"), ("OCPS_TLS_KEY", "OCPS_TLS_CERT")]
)
def test_a_certificate_and_its_key_go_together(tmp_path, name, other):
    (line,) = refusal(tmp_path, **{name: "x.pem"})
    assert line.startswith(f'{name} is "x.pem": must be set together with {other}')


def test_the_authorities_alone_are_for_a_proxy_that_speaks_tls(tmp_path):
    assert load(tmp_path, OCPS_TLS_CA="ca.pem").tls_ca == tmp_path / "ca.pem"


def test_job_ids_are_no_keys_where_others_can_call(tmp_path):
    lines = refusal(tmp_path, OCPS_LISTEN="0.0.0.0", OCPS_MONITOR_KEY="job_id")
    assert [line.split(" ")[0] for line in lines] == ["OCPS_LISTEN", "OCPS_MONITOR_KEY"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5), ("0.5", 0.5), ("90s", 90), ("15m", 900), ("2h", 7200)]
)
def test_durations_are_seconds_or_carry_a_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "5 s", "-1", "1d", "1e3", ".5", "inf", "nan", "٣", "5s5"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("API_PORT", "http", "a port: 0 (any free one) to 65535"),
        ("API_PORT", "65536", "a port: 0 (any free one) to 65535"),
        ("API_PORT", "-1", "a port: 0 (any free one) to 65535"),
        ("API_PORT", "٨", "a port: 0 (any free one) to 65535"),
        ("API_BASEPATH", "/a b", "a path such as /api/v1"),
        ("API_BASEPATH", "/a/../b", "a path such as /api/v1"),
        ("API_BASEPATH", "(.*)", "a path such as /api/v1"),
        ("API_DOMAIN", "http://x", "a host name"),
        ("API_PROTOCOL", "ftp", "http or https"),
        ("OCPS_HOME", "/no/such/place", "a directory that exists"),
        ("OCPS_LISTEN", "myhost", "localhost or an IP address"),
        ("OCPS_LISTEN", "127.0.0.1:80", "localhost or an IP address"),
        ("OCPS_MONITOR_URL", "localhost:8080", "a URL such as"),
        ("OCPS_MONITOR_URL", "http://x:99999", "a URL such as"),
        ("OCPS_MONITOR_URL", "http://[::1", "a URL such as"),
        ("OCPS_MONITOR_URL", "http://x/?a=b", "a URL such as"),
        ("OCPS_MONITOR_URL", "http://x/a b", "a URL such as"),
        ("OCPS_WORK_DIR", "/etc/passwd/work", "a directory"),
        ("OCPS_WORK_DIR", "/tmp/" + "x" * 300, "a directory"),
        ("OCPS_WORK_DIR", "a\nb", "a path of printable UTF-8 characters"),
        ("OCPS_WORK_DIR", "w$$x", "a path for all schedulers"),
        ("OCPS_STATE_DIR", "a\udce4", "a path of printable UTF-8 characters"),
        ("OCPS_STATE_DIR", "/dev/null", "a directory"),
        ("OCPS_JOB_SPECS", "a\x1fb", "a path of printable UTF-8 characters"),
        ("OCPS_SCHEDULER", "slurm", "auto, htcondor or local"),
        ("OCPS_SCHEDULER", "HTCondor", "auto, htcondor or local"),
        ("OCPS_POLL_INTERVAL", "soon", "a duration"),
        ("OCPS_POLL_INTERVAL", "0", "a duration"),
        ("OCPS_POLL_INTERVAL", "25h", "a duration"),
        ("OCPS_LOG_ROOTS", "/tmp::/var/tmp", "directories with one colon"),
        ("OCPS_LOG_ROOTS", "/dev/null", "a directory"),
        ("OCPS_MONITOR_KEY", "none", "secret or job_id"),
        ("OCPS_MAX_BODY", "1MB", "a number of bytes"),
        ("OCPS_MAX_BODY", "0", "a number of bytes"),
        ("OCPS_MAX_WAITING", "0", "a number of jobs"),
        ("OCPS_MAX_WAITING", "2k", "a number of jobs"),
        ("OCPS_MAX_WAITING", "1000000", "a number of jobs"),
        ("OCPS_KEEP_DAYS", "-1", "a number of days"),
        ("OCPS_KEEP_DAYS", "90d", "a number of days"),
        ("OCPS_KEEP_DAYS", "1e3", "a number of days"),
        ("OCPS_STACK_SETUP", "a\tb", "a path of printable UTF-8 characters"),
        ("OCPS_API_TOKENS", "a\nb", "a path of printable UTF-8 characters"),
        ("OCPS_ALLOW_ANONYMOUS", "yes", "0 or 1"),
        ("OCPS_ALLOWED_HOSTS", "a,,b", "host names or addresses without ports"),
        ("OCPS_ALLOWED_HOSTS", "a:80", "host names or addresses without ports"),
        ("OCPS_ALLOWED_HOSTS", "*", "host names or addresses without ports"),
        ("OCPS_CORS_ORIGINS", "*", "origins such as"),
        ("OCPS_CORS_ORIGINS", "null", "origins such as"),
        ("OCPS_CORS_ORIGINS", "www.example.org", "origins such as"),
        ("OCPS_CORS_ORIGINS", "https://a/", "origins such as"),
        ("OCPS_CORS_ORIGINS", "https://a:0", "origins such as"),
        ("OCPS_CORS_ORIGINS", "ftp://a", "origins such as"),
        ("OCPS_CORS_ORIGINS", "https://a, https://b?c", "origins such as"),
    ],
)
def test_unusable_value_is_one_line_with_name_value_and_what_is_allowed(
    tmp_path, name, value, allowed
):
    (line,) = refusal(tmp_path, **{name: value})
    assert line.startswith(f'{name} is "')
    assert f"must be {allowed}" in line
    assert value[:40].isprintable() is (value[:40] in line)


def test_a_link_that_leads_nowhere_is_no_directory(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (line,) = refusal(tmp_path, OCPS_STATE_DIR="loop/state")
    assert line.startswith("OCPS_STATE_DIR is ")


def test_what_follows_from_an_unusable_value_is_not_told_as_well(tmp_path):
    (line,) = refusal(tmp_path / "none", OCPS_WORK_DIR="/tmp")
    assert line.startswith("OCPS_HOME is ")


def test_an_unusable_default_is_told(tmp_path):
    (tmp_path / "work").touch()
    for line in refusal(tmp_path):
        assert line.endswith(
            " is not set, and its default fails: "
            "must be a directory, or a place where one can be made."
        )


def test_all_unusable_values_are_told_at_once(tmp_path):
    lines = refusal(tmp_path, API_PORT="x", OCPS_SCHEDULER="y", OCPS_LISTEN="8.8.8.8")
    assert [line.split(" ")[0] for line in lines] == ["API_PORT", "OCPS_SCHEDULER", "OCPS_LISTEN"]


def test_an_enormous_value_is_not_echoed_whole(tmp_path):
    (line,) = refusal(tmp_path, API_PORT="9" * 1_000_000)
    assert len(line) < 400


def test_a_password_in_a_url_is_not_echoed(tmp_path):
    (line,) = refusal(tmp_path, OCPS_MONITOR_URL="http://me:hunter2@localhost/")
    assert "hunter2" not in line
    assert "me" not in line.split(":", 1)[0]


@pytest.mark.parametrize("state", ["w", "."])
def test_the_state_directory_may_not_hold_the_work_directory(tmp_path, state):
    (line,) = refusal(tmp_path, OCPS_WORK_DIR="w", OCPS_STATE_DIR=state)
    assert line.startswith("OCPS_STATE_DIR is ")
    assert "must not be the work directory or hold it" in line


@pytest.mark.parametrize("root", ["w/output", "w/code/x", "w/state", "w/logs/../output"])
def test_logs_may_not_lie_among_outputs_code_or_state(tmp_path, root):
    (line,) = refusal(tmp_path, OCPS_WORK_DIR="w", OCPS_LOG_ROOTS=root)
    assert line.startswith("OCPS_LOG_ROOTS is ")


def test_set_but_empty_is_not_set(tmp_path):
    names = ("API_PORT", "OCPS_WORK_DIR", "OCPS_STACK_SETUP", "OCPS_LOG_ROOTS", "OCPS_SCHEDULER")
    assert load(tmp_path, **dict.fromkeys(names, "")) == load(tmp_path)


def test_settings_do_not_change(tmp_path):
    settings = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        settings.api_port = 1


def test_an_unknown_name_is_one_warning_with_the_nearest_known_one(tmp_path):
    loaded = load_settings(
        {
            "OCPS_HOME": str(tmp_path),
            "OCPS_WORKDIR": "x",
            "OCPS_QQQQQQ": "1",
            "HOME": "/",
            "API_X": "",
        }
    )
    assert loaded.settings == load(tmp_path)
    assert loaded.warnings == (
        "OCPS_QQQQQQ is not a setting of this version and does nothing.",
        "OCPS_WORKDIR is not a setting of this version and does nothing; "
        'did you mean "OCPS_WORK_DIR"?',
    )


def test_names_of_the_tests_are_no_warning(tmp_path):
    environ = {"OCPS_HOME": str(tmp_path), "OCPS_REQUIRE_HTCONDOR": "1"}
    assert load_settings(environ).warnings == ()


def test_the_table_shows_every_setting_with_value_source_and_help(tmp_path):
    environ = {
        "OCPS_HOME": str(tmp_path),
        "API_PORT": "81",
        "API_BASEPATH": "",
        "OCPS_WORK_DIR": "",
    }
    rows = {row.name: row for row in settings_table(Settings.load(environ), environ)}
    assert len(rows) == len(Settings.model_fields)
    assert (rows["API_PORT"].value, rows["API_PORT"].source) == ("81", "environment")
    assert (rows["API_BASEPATH"].value, rows["API_BASEPATH"].source) == ("", "environment")
    assert rows["OCPS_WORK_DIR"].value == str(tmp_path / "work")
    assert rows["OCPS_WORK_DIR"].source == "default"
    assert rows["OCPS_LOG_ROOTS"].value == str(tmp_path / "work" / "logs")
    assert rows["OCPS_POLL_INTERVAL"].value == "5"
    assert rows["OCPS_SCHEDULER"].value == "auto"
    assert rows["OCPS_MONITOR_URL"].value == "-"
    for row in rows.values():
        assert row.help
        assert "\n" not in row.help


def test_jobs_find_the_stack_setup_as_an_absolute_path(tmp_path):
    environ = {"OCPS_HOME": str(tmp_path), "OCPS_STACK_SETUP": "stack/setup.sh", "X": "1"}
    given = environ_for_jobs(Settings.load(environ), environ)
    assert given == {**environ, "OCPS_STACK_SETUP": str(tmp_path / "stack/setup.sh")}
    environ["OCPS_STACK_SETUP"] = ""
    assert "OCPS_STACK_SETUP" not in environ_for_jobs(Settings.load(environ), environ)


class TestChoiceOfScheduler:
    """`auto` is decided from what stands on this machine."""

    def choose(self, tmp_path, environ, scheduler="auto", **options):
        settings = load(tmp_path, OCPS_SCHEDULER=scheduler)
        return choose_scheduler(
            settings, environ, config_dirs=[tmp_path / "etc"], **{"bindings": "json", **options}
        )

    def test_nothing_of_htcondor_means_local(self, tmp_path):
        choice, why = self.choose(tmp_path, {"PATH": str(tmp_path), "CONDOR_CONFIG": ""})
        assert choice is SchedulerChoice.LOCAL
        assert "no CONDOR_CONFIG" in why

    def test_condor_config_set_means_htcondor(self, tmp_path):
        choice, why = self.choose(tmp_path, {"CONDOR_CONFIG": "ONLY_ENV"})
        assert (choice, why) == (SchedulerChoice.HTCONDOR, "CONDOR_CONFIG is set")

    def test_a_configuration_file_means_htcondor(self, tmp_path):
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "condor_config").touch()
        choice, why = self.choose(tmp_path, {})
        assert choice is SchedulerChoice.HTCONDOR
        assert str(tmp_path / "etc" / "condor_config") in why

    def test_a_master_on_the_path_means_htcondor(self, tmp_path):
        master = tmp_path / "condor_master"
        master.touch()
        assert self.choose(tmp_path, {"PATH": str(tmp_path)})[0] is SchedulerChoice.LOCAL
        master.chmod(0o755)
        choice, why = self.choose(tmp_path, {"PATH": f"/nowhere:{tmp_path}"})
        assert choice is SchedulerChoice.HTCONDOR
        assert str(master) in why

    @pytest.mark.parametrize("name", ["local", "htcondor"])
    def test_what_is_set_goes_before_what_is_found(self, tmp_path, name):
        environ = {"CONDOR_CONFIG": "x"} if name == "local" else {}
        choice, why = self.choose(tmp_path, environ, scheduler=name)
        assert (choice, why) == (SchedulerChoice(name), f"OCPS_SCHEDULER is {name}")

    def test_htcondor_without_its_bindings_stops_the_start(self, tmp_path):
        with pytest.raises(
            StartupError, match=r"CONDOR_CONFIG is set.* bindings are not installed"
        ):
            self.choose(tmp_path, {"CONDOR_CONFIG": "x"}, bindings="no_such_module_here")

    def test_local_needs_no_bindings(self, tmp_path):
        choice, _ = self.choose(tmp_path, {"PATH": ""}, bindings="no_such_module_here")
        assert choice is SchedulerChoice.LOCAL

    def test_the_bindings_are_not_imported(self, tmp_path):
        sys.modules.pop("antigravity", None)
        self.choose(tmp_path, {"CONDOR_CONFIG": "x"}, bindings="antigravity")
        assert "antigravity" not in sys.modules


class TestStateDirectory:
    """It has to lie on a disk of this machine."""

    def mounts(self, tmp_path: Path, *mounts: tuple[Path, str]) -> Path:
        table = tmp_path / "mountinfo"
        lines = ["22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/sda rw"]
        for number, (place, kind) in enumerate(mounts, start=30):
            shown = os.fspath(place).replace(" ", "\\040")
            lines.append(f"{number} 22 0:{number} / {shown} rw - {kind} server:/x rw")
        table.write_text("\n".join([*lines, ""]))
        return table

    @pytest.mark.parametrize("kind", ["nfs4", "nfs", "cifs", "lustre", "gpfs", "fuse.sshfs", "afs"])
    def test_network_file_systems_are_recognised(self, tmp_path, kind):
        table = self.mounts(tmp_path, (tmp_path / "a b", kind))
        assert state_dir_on_network(tmp_path / "a b" / "not" / "yet", table) == kind
        assert state_dir_on_network(tmp_path / "a bc", table) is None

    @pytest.mark.parametrize("kind", ["xfs", "tmpfs", "overlay", "9p", "virtiofs", "fuse.mergerfs"])
    def test_disks_of_this_machine_are_not_refused(self, tmp_path, kind):
        table = self.mounts(tmp_path, (tmp_path, kind))
        assert state_dir_on_network(tmp_path / "state", table) is None

    def test_the_innermost_and_last_mount_counts(self, tmp_path):
        inner = self.mounts(tmp_path, (tmp_path / "a", "xfs"), (tmp_path, "nfs"))
        assert state_dir_on_network(tmp_path / "a" / "b", inner) is None
        over = self.mounts(tmp_path, (tmp_path, "nfs"), (tmp_path, "xfs"))
        assert state_dir_on_network(tmp_path / "a", over) is None

    def test_links_are_followed(self, tmp_path):
        table = self.mounts(tmp_path, (tmp_path / "far", "nfs4"))
        (tmp_path / "near").symlink_to("far")
        assert state_dir_on_network(tmp_path / "near" / "state", table) == "nfs4"

    def test_no_table_of_mounts_is_no_reason_to_refuse(self, tmp_path):
        assert state_dir_on_network(tmp_path, tmp_path / "none") is None

    def test_this_machine_passes(self, tmp_path):
        require_local_state_dir(load(tmp_path))

    def test_the_refusal_names_the_setting_and_the_file_system(self, tmp_path):
        settings = load(tmp_path)
        table = self.mounts(tmp_path, (tmp_path, "nfs4"))
        with pytest.raises(StartupError, match=r"^OCPS_STATE_DIR is .*\(nfs4\)"):
            require_local_state_dir(settings, table)
