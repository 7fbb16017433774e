"""A real HTCondor pool on this machine: for the tests, and for people.

For people, from the folder of the project::

    python -m tests.condor.pool

starts a pool in the foreground, prints ``export CONDOR_CONFIG=...`` once it takes jobs, and ends
with everything in it on Ctrl-C or SIGTERM. Jobs see the temporary directory and the project under
their own paths; ``--bind DIR`` adds another directory (a work directory elsewhere).

For tests::

    with running_pool(binds=[work_dir]) as pool:
        environment = {**os.environ, "CONDOR_CONFIG": str(pool.config)}

``pool.stop_schedd()`` and ``pool.continue_schedd()`` freeze and thaw the schedd,
``pool.kill_schedd()`` kills it; the master starts another about a second later. Where no pool can
be had, `PoolUnavailableError` says why in one line.

The daemons are those of this machine, if ``condor_master`` is on the PATH. Otherwise they are
Debian's ``minicondor``, in a root directory of its own that bubblewrap shows to them alone. It is
made once, by mmdebstrap, in ``${XDG_CACHE_HOME:-~/.cache}/ocps-jobmanager/pool`` (300 MB, half a
minute); making it needs root, or ``uidmap`` and a range of subordinate ids. Nothing is installed
on the machine itself.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

RELEASE = "trixie"
PACKAGES = ("minicondor",)
PROJECT = Path(__file__).resolve().parents[2]

_START_DEADLINE_S = 90.0
_STOP_DEADLINE_S = 10.0

#: Loopback only, hence ``ALLOW_*``. The channel binding is what 25.x clients and 23.x daemons do
#: not agree on. The intervals make jobs start, and a killed schedd come back, within seconds.
_CONFIG = """
LOCAL_DIR = {local}
LOG = $(LOCAL_DIR)/log
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
LOCK = $(LOCAL_DIR)/lock
RUN = $(LOCAL_DIR)/run
SEC_PASSWORD_DIRECTORY = $(LOCAL_DIR)/passwords.d
SEC_TOKEN_SYSTEM_DIRECTORY = $(LOCAL_DIR)/tokens.d
{directories}
use ROLE: CentralManager
use ROLE: Submit
use ROLE: Execute
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
COLLECTOR_HOST = 127.0.0.1:{port}
SHARED_PORT_PORT = {port}
UID_DOMAIN = ocps.test
FILESYSTEM_DOMAIN = ocps.test
TRUST_UID_DOMAIN = True
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
SEC_CLIENT_AUTHENTICATION_METHODS = FS
SEC_FS_ENFORCE_CHANNEL_BINDING = False
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_ADMINISTRATOR = *
ALLOW_CONFIG = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
ALLOW_ADVERTISE_MASTER = *
ALLOW_ADVERTISE_SCHEDD = *
ALLOW_ADVERTISE_STARTD = *
RUNBENCHMARKS = 0
NUM_CPUS = {cpus}
MEMORY = 8192
CREATE_CORE_FILES = False
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
UPDATE_INTERVAL = 5
MASTER_BACKOFF_CONSTANT = 1
MASTER_BACKOFF_CEILING = 3
{settings}
"""

#: Asks the collector for the schedd as a client does, until it is there.
_WAIT_FOR_SCHEDD = """
import time, htcondor2
while True:
    try:
        if htcondor2.Collector().query(htcondor2.AdType.Schedd, projection=["Name"]):
            break
    except htcondor2.HTCondorException:
        pass
    time.sleep(0.1)
"""


class PoolUnavailableError(Exception):
    """No pool can be had on this machine: why, in one line."""


class Pool:
    """A running pool, as `running_pool` gives it.

    Attributes
    ----------
    config : pathlib.Path
        What a client's ``CONDOR_CONFIG`` must name.
    directory : pathlib.Path
        All that the daemons write: ``log``, ``spool`` and so on.
    """

    def __init__(self, directory: Path, process: "subprocess.Popen[bytes]") -> None:
        self.config = directory / "condor_config"
        self.directory = directory
        self._process = process

    def master_pid(self) -> int:
        """The process id of ``condor_master``."""
        pids = [self._process.pid, *_descendants(self._process.pid)]
        for pid in pids:
            if _stat(pid)[0] == "condor_master":
                return pid
        raise ProcessLookupError("condor_master has ended")

    def schedd_pid(self) -> int:
        """The process id of ``condor_schedd``, which has children of the same name."""
        master = self.master_pid()
        for pid in _descendants(master):
            if _stat(pid) == ("condor_schedd", master):
                return pid
        raise ProcessLookupError("condor_schedd has ended")

    def stop_schedd(self) -> None:
        """Freeze the schedd: it takes connections, and never answers."""
        os.kill(self.schedd_pid(), signal.SIGSTOP)

    def continue_schedd(self) -> None:
        """Let a frozen schedd go on; nothing happens if it is not frozen."""
        os.kill(self.schedd_pid(), signal.SIGCONT)

    def kill_schedd(self) -> None:
        """Kill the schedd, and wait until the master has started another one."""
        killed = self.schedd_pid()
        os.kill(killed, signal.SIGKILL)
        deadline = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                if self.schedd_pid() != killed:
                    return
            time.sleep(0.05)
        raise TimeoutError("condor_schedd was not started again")


@contextlib.contextmanager
def running_pool(
    binds: Sequence[Path] = (), *, cpus: int = 8, settings: Mapping[str, str] | None = None
) -> Iterator[Pool]:
    """Run a pool while the context lasts.

    Parameters
    ----------
    binds : sequence of pathlib.Path
        Directories, beside the temporary one and the project, that jobs see under the same paths.
    settings : mapping of str to str, optional
        Further lines of its configuration.

    Raises
    ------
    PoolUnavailableError
        None can be had here.
    """
    directory = Path(tempfile.mkdtemp(prefix="ocps-pool-"))
    try:
        process = _start(directory, binds, cpus, settings or {})
        pool = Pool(directory, process)
        try:
            _wait_until_ready(pool, process)
            yield pool
        finally:
            _stop(pool, process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(
    directory: Path, binds: Sequence[Path], cpus: int, settings: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    wrapper, directories = _daemons([directory, *binds])
    for name in ("log", "spool", "execute", "lock", "run", "passwords.d", "tokens.d"):
        (directory / name).mkdir(mode=0o700 if name.endswith(".d") else 0o755)
    config = directory / "condor_config"
    config.write_text(
        _CONFIG.format(
            local=directory,
            directories="\n".join(f"{name} = {path}" for name, path in directories.items()),
            port=_free_port(),
            cpus=cpus,
            settings="\n".join(f"{name} = {value}" for name, value in settings.items()),
        )
    )
    directory.chmod(0o755)
    # A session of its own: Ctrl-C at a terminal is for whoever started the pool.
    with (directory / "output").open("wb") as output:
        return subprocess.Popen(
            [*wrapper, "condor_master", "-f"],
            env={**os.environ, "CONDOR_CONFIG": str(config)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _wait_until_ready(pool: Pool, process: "subprocess.Popen[bytes]") -> None:
    environment = {**os.environ, "CONDOR_CONFIG": str(pool.config)}
    with (pool.directory / "output").open("ab") as output:
        client = subprocess.Popen(
            [sys.executable, "-c", _WAIT_FOR_SCHEDD],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + _START_DEADLINE_S
    try:
        while client.poll() is None and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if client.poll() != 0 or process.poll() is not None:
            raise PoolUnavailableError(f"an HTCondor pool does not start: {_last_words(pool)}")
    finally:
        client.kill()
        client.wait()


def _last_words(pool: Pool) -> str:
    for path in (pool.directory / "output", pool.directory / "log" / "MasterLog"):
        if path.exists() and (lines := path.read_text(errors="replace").split("\n")[:-1]):
            return lines[-1]
    return "it says nothing"


def _stop(pool: Pool, process: "subprocess.Popen[bytes]") -> None:
    """End a pool: the jobs in it are not waited for."""
    with contextlib.suppress(ProcessLookupError):
        pool.continue_schedd()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pool.master_pid(), signal.SIGQUIT)
    left = _descendants(process.pid)
    try:
        process.wait(_STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _daemons(binds: Sequence[Path]) -> tuple[list[str], dict[str, Path]]:
    """How the daemons are started, and what the configuration must say of where they are."""
    # Root can't run jobs as itself, and inside bubblewrap it need not.
    if (master := shutil.which("condor_master")) and os.geteuid() != 0:
        setpriv = shutil.which("setpriv")
        # The kernel's word that the pool goes when the tests are killed.
        wrapper = [setpriv, "--pdeathsig", "QUIT", "--"] if setpriv else []
        return wrapper, _directories(Path(master).resolve().parents[1], Path("/"))
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise PoolUnavailableError(_missing("bwrap"))
    root = make_root()
    shown = {Path(tempfile.gettempdir()).resolve(), PROJECT, *(bind.resolve() for bind in binds)}
    wrapper = [bwrap, "--die-with-parent", "--unshare-user", "--uid", "1000", "--gid", "1000"]
    wrapper += ["--unshare-pid", "--bind", str(root), "/", "--dev-bind", "/dev", "/dev"]
    wrapper += ["--proc", "/proc"]
    for path in sorted(shown):
        wrapper += ["--bind", str(path), str(path)]
    return [*wrapper, "--"], _directories(Path("/usr"), root)


def _directories(prefix: Path, root: Path) -> dict[str, Path]:
    """HTCondor's directories under `prefix`, as they are seen where `root` is the root."""

    def first(*names: str) -> Path:
        there = [name for name in names if (root / prefix.relative_to("/") / name).is_dir()]
        return prefix / (there or names)[0]

    return {
        "RELEASE_DIR": prefix,
        "BIN": prefix / "bin",
        "SBIN": prefix / "sbin",
        "LIBEXEC": first("libexec/condor", "libexec"),
        "LIB": first("lib64/condor", "lib/condor", "lib"),
    }


def make_root() -> Path:
    """The root directory that holds the daemons; made if it is not there.

    Raises
    ------
    PoolUnavailableError
        It can't be made.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = cache / "ocps-jobmanager" / "pool"
    root = cache / "-".join((RELEASE, *PACKAGES))
    if root.is_dir():
        return root
    if not (program := shutil.which("mmdebstrap")):
        raise PoolUnavailableError(_missing("mmdebstrap"))
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second finds it made
        if not root.is_dir():
            making = Path(tempfile.mkdtemp(prefix="making-", dir=cache))
            try:
                _debootstrap(program, making / "root")
                (making / "root").rename(root)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    return root


def _debootstrap(program: str, root: Path) -> None:
    # As an archive, and unpacked here: all files then belong to whoever runs this, also where
    # mmdebstrap works with subordinate ids, and the next run can clean up.
    command = [program, "--variant=minbase", f"--include={','.join(PACKAGES)}", RELEASE, "-"]
    archive = root.with_suffix(".tar")
    with archive.open("wb") as file:
        made = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False
        )
    if made.returncode != 0:
        words = made.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise PoolUnavailableError(f"mmdebstrap could not make the pool's root: {words}")
    root.mkdir()
    unpack = ["tar", "-x", "--no-same-owner", "--exclude=./dev/*"]
    subprocess.run([*unpack, "-f", archive, "-C", root], check=True)
    with (root / "etc/passwd").open("a") as passwd, (root / "etc/group").open("a") as group:
        passwd.write("ocps:x:1000:1000::/tmp:/bin/bash\n")
        group.write("ocps:x:1000:\n")


def _missing(program: str) -> str:
    return (
        f"no HTCondor pool can be had: neither condor_master nor {program} is on the PATH "
        "(apt-get install --no-install-recommends mmdebstrap bubblewrap)"
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _stat(pid: int) -> tuple[str, int]:
    """The name and the parent of a process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, int(rest.split()[1])


def _descendants(pid: int) -> list[int]:
    """The children of a process, and theirs, elders first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parents.setdefault(_stat(int(entry.name))[1], []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        children = parents.get(todo.pop(0), [])
        found += children
        todo += children
    return found


def main() -> int:
    """Run a pool in the foreground until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.condor.pool", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--bind", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--cpus", type=int, default=8, help="slots of the one execute host")
    options = parser.parse_args()

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        with running_pool(options.bind, cpus=options.cpus) as pool:
            sys.stdout.write(f"export CONDOR_CONFIG={pool.config}\n")
            sys.stdout.flush()
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except PoolUnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
