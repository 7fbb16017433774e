"""A small file system over a directory, to be filled: bubblewrap shows it to servers alone."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path


class SmallDisk:
    """A running file system, as `small_disk` gives it.

    Attributes
    ----------
    enter : list of str
        The first words of a command that is to see it.
    """

    def __init__(self, place: Path, pid: int) -> None:
        self.place = place
        self._root = Path(f"/proc/{pid}/root")
        user = [] if os.geteuid() == 0 else ["-U"]
        self.enter = ["nsenter", "--preserve-credentials", *user, "-m", "-t", str(pid), "--"]
        self.enter += ["env", "-C", str(Path.cwd())]

    def seen(self, path: Path) -> Path:
        """Where who is outside finds what is `path` inside."""
        return self._root / path.relative_to("/")

    def fill(self) -> None:
        """Leave no byte free."""
        with self._filler().open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        """Make room again."""
        self._filler().unlink(missing_ok=True)

    def _filler(self) -> Path:
        return self.seen(self.place) / "filler"


@contextlib.contextmanager
def small_disk(place: Path, size: int, through: Sequence[Path] = ()) -> Iterator[SmallDisk]:
    """Have a file system of `size` bytes over a directory while the context lasts.

    Parameters
    ----------
    through : sequence of pathlib.Path
        Directories under `place` that are still the real ones.

    Raises
    ------
    LookupError
        There is no bubblewrap here.
    """
    if (bwrap := shutil.which("bwrap")) is None:
        raise LookupError("bwrap is not on the PATH (apt-get install bubblewrap)")
    command = [bwrap, "--dev-bind", "/", "/", "--die-with-parent"]
    command += ["--size", str(size), "--tmpfs", str(place)]
    for path in through:
        command += ["--bind", str(path), str(path)]
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as told:
        keeper = subprocess.Popen(
            # It says a line from within: before, its root is not what it will be.
            [*command, "--info-fd", str(writer), "--", "sh", "-c", "echo; exec sleep infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(writer,),
        )
        os.close(writer)
        try:
            information = b""
            while part := told.read(4096):
                information += part
            assert keeper.stdout is not None
            keeper.stdout.readline()
            yield SmallDisk(place, json.loads(information)["child-pid"])
        finally:
            keeper.kill()
            keeper.wait()
            if keeper.stdout is not None:
                keeper.stdout.close()
