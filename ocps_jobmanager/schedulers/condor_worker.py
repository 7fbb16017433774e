"""The child process that alone imports ``htcondor2``. Run by path; imports nothing of the package.

The bindings hold the interpreter's lock for as long as a call takes, and ``submit()`` and
``history()`` wait for ever if the schedd does. So they are called in this process, which the server
kills when a call is past its deadline.

    python -P condor_worker.py calls|follow --parent PID --lock-fd N

``calls`` makes the schedd calls, one after the other; ``follow`` only reads event logs. Both speak
frames over standard input and output: four bytes of length, big-endian, and as much JSON. The first
frame that is sent is ``{"ok": {}}`` or an error. End-of-file on standard input ends the process, as
does the death of the parent, at once and at any point: the kernel sees to it.
"""

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
from collections.abc import Callable, Iterator
from typing import Any

import classad2
import htcondor2

_PR_SET_PDEATHSIG = 1
#: So many ads go into one frame: the server parses a frame in one go.
_ADS_A_FRAME = 500
#: How often the logs' sizes are looked at.
_LOOK_EVERY_S = 0.025
#: HTCondor's number of JOB_AD_INFORMATION.
_JOB_AD_INFORMATION = 28

#: What HTCondor says where the fault is in the job: the client could not make an ad of it, or the
#: schedd refused the finished one. In both cases nothing is queued.
_REFUSALS = ("Failed to create job ad", "Unable to commit transaction, SCHEDD:")
#: What it says when the schedd gives no further job id, because of one of its limits on the number
#: of jobs. Nothing is queued.
_LIMIT = "expected next ProcId"

Frame = dict[str, Any]


class Channel:
    """Frames from and to the server.

    Parameters
    ----------
    read_fd, write_fd : int
        Blocking descriptors.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self._write_fd = write_fd

    def receive(self) -> Frame:
        """The next frame. Raises `EOFError` when the server is gone."""
        length = int.from_bytes(self._read(4), "big")
        frame: Frame = json.loads(self._read(length))
        return frame

    def send(self, frame: Frame) -> None:
        """Send a frame."""
        text = json.dumps(frame, separators=(",", ":")).encode()
        left = memoryview(len(text).to_bytes(4, "big") + text)
        while left:
            left = left[os.write(self._write_fd, left) :]

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            part = os.read(self.read_fd, min(length, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def plain(ad: "classad2.ClassAd | htcondor2.JobEvent", names: list[str] | None = None) -> Frame:
    """An ad as JSON can carry it: expressions evaluated, what is undefined left out."""
    found: Frame = {}
    for name in ad if names is None else names:
        try:
            value = ad.get(name)
        except UnicodeDecodeError:  # somebody's words, such as a hold reason, in another encoding
            continue
        if isinstance(value, classad2.ExprTree):
            value = ad.eval(name) if isinstance(ad, classad2.ClassAd) else None
        if isinstance(value, classad2.ClassAd):
            found[name] = plain(value)
        elif isinstance(value, str | int | float) and not isinstance(value, classad2.Value):
            found[name] = value
    return found


# Calls --------------------------------------------------------------------------------------------


def make_calls(channel: Channel) -> None:
    """Carry out what the server asks, until it is gone.

    A request is ``{"call": name, ...}``. The answer is any number of ``{"ads": [...]}``, then
    ``{"ok": {...}}`` or ``{"error": kind, "text": ...}``, `kind` being ``refused``, ``limit`` or
    ``failed``.
    """
    calls: dict[str, Callable[[Channel, Frame], Frame]] = {
        "query": _query,
        "history": _history,
        "submit": _submit,
        "remove": _remove,
    }
    channel.send({"ok": {}})
    while True:
        request = channel.receive()
        call = calls[request["call"]]
        answer: Frame
        try:
            answer = {"ok": call(channel, request)}
        except htcondor2.HTCondorException as error:
            answer = {"error": _kind(str(error)), "text": str(error)}
        except (ValueError, TypeError) as error:
            kind = "refused" if call is _submit else "failed"
            answer = {"error": kind, "text": str(error)}
        channel.send(answer)


def _kind(text: str) -> str:
    if text.startswith(_REFUSALS):
        return "refused"
    return "limit" if text.startswith(_LIMIT) else "failed"


# The schedd is located for each call: that reads one small file, and a restarted one is elsewhere.


def _query(channel: Channel, request: Frame) -> Frame:
    names = request["attributes"]
    ads = htcondor2.Schedd().query(request["constraint"], names, limit=request.get("limit", -1))
    server_time = ads[0].get("ServerTime") if ads else None
    _send_ads(channel, ads, names)
    return {"server_time": server_time}


def _history(channel: Channel, request: Frame) -> Frame:
    names = request["attributes"]
    ads = htcondor2.Schedd().history(
        request["constraint"], names, request["match"], request.get("since")
    )
    _send_ads(channel, list(ads), names)
    return {}


def _send_ads(channel: Channel, ads: list[classad2.ClassAd], names: list[str]) -> None:
    for start in range(0, len(ads), _ADS_A_FRAME):
        part = ads[start : start + _ADS_A_FRAME]
        channel.send({"ads": [plain(ad, names) for ad in part]})


def _submit(channel: Channel, request: Frame) -> Frame:
    items: list[dict[str, str]] = request["items"]
    schedd = htcondor2.Schedd()
    done = schedd.submit(htcondor2.Submit(request["description"]), itemdata=iter(items))
    if done.num_procs() != len(items):
        # Fields that can do this are refused before; if it happens all the same, nobody can tell
        # which jobs these are. They must not run.
        why = (f"{done.num_procs()} of {len(items)} jobs were queued", 1)
        schedd.act(htcondor2.JobAction.Remove, f"ClusterId == {done.cluster()}", reason=why)
        return {"queued": done.num_procs()}
    return {"queued": len(items), "cluster": done.cluster(), "first_proc": done.first_proc()}


def _remove(channel: Channel, request: Frame) -> Frame:
    # A reason is kept only if it comes in a tuple.
    reason = (request["reason"], request["code"])
    done = htcondor2.Schedd().act(htcondor2.JobAction.Remove, request["constraint"], reason=reason)
    return {"removed": done["TotalSuccess"], "denied": done["TotalPermissionDenied"]}


# Following ----------------------------------------------------------------------------------------


class Log:
    """An event log that is being read.

    Parameters
    ----------
    path : str
    offset : int
        Where to begin, as an earlier reader said: at the end of an event.
    """

    def __init__(self, path: str, offset: int) -> None:
        self.path = path
        self.offset = offset
        self._size = -1
        self._inode = -1
        self._log: htcondor2.JobEventLog | None = None

    def read(self, names: list[str], at_most: int) -> list[Frame]:
        """The next job ads that events carry, with the ``names``; none if there is nothing new."""
        try:
            now = os.stat(self.path)  # noqa: PTH116
        except FileNotFoundError:
            return []
        is_other = now.st_ino != self._inode
        if now.st_size == self._size and not is_other:
            return []
        if is_other or now.st_size < self.offset:
            # Somebody has replaced or cut it: HTCondor's reader would wait for ever.
            resumes = self._log is None and now.st_size >= self.offset
            self._open(self.offset if resumes else 0)
            self._inode = now.st_ino
        ads: list[Frame] = []
        for event in self._events():
            if int(event.type) == _JOB_AD_INFORMATION:
                ads.append(plain(event, names))
                if len(ads) == at_most:
                    return ads  # there may be more: the size is not taken as read
        self._size = now.st_size
        return ads

    def close(self) -> None:
        """Let go of the file."""
        if self._log is not None:
            self._log.close()

    def _open(self, offset: int) -> None:
        self.close()
        self._log = htcondor2.JobEventLog.__new__(htcondor2.JobEventLog)
        # What unpickling one does: the only way to begin elsewhere than at the start.
        self._log.__setstate__(({"_deadline": 0, "_filename": self.path}, offset))
        self.offset = offset

    def _events(self) -> Iterator[htcondor2.JobEvent]:
        assert self._log is not None
        while True:
            before = self.offset
            # An event that is not UTF-8 is passed over; the queue tells what it would have told.
            with contextlib.suppress(UnicodeDecodeError):
                for event in self._log.events(0):
                    self.offset = self._log.__getstate__()[1]
                    yield event
            # The iteration also stops at what is no event: another one goes past it.
            self.offset = self._log.__getstate__()[1]
            if self.offset == before:
                return


def follow(channel: Channel) -> None:
    """Send what is written to the event logs, until the server is gone.

    The first request has the settings; then come ``{"follow": path, "offset": n}`` for what is
    there, ``{"begin": true}``, and more of the first kind, or ``{"unfollow": path}``.

    What is sent is ``{"path", "offset", "ads"}``, `offset` being the place after them; the next
    only when the server has answered with ``{"taken": true}``; and ``{"caught_up": true}``, once,
    when all that was there at the beginning has been read.
    """
    logs: dict[str, Log] = {}
    channel.send({"ok": {}})
    settings = channel.receive()
    names, at_most = settings["attributes"], settings["at_most"]
    while not (request := channel.receive()).get("begin"):
        _change(logs, request)
    caught_up = False
    while True:
        while select.select([channel.read_fd], [], [], 0)[0]:
            _change(logs, channel.receive())
        idle = True
        for log in list(logs.values()):
            before = log.offset
            ads = log.read(names, at_most)
            if log.offset != before:
                idle = False
                channel.send({"path": log.path, "offset": log.offset, "ads": ads})
                while not (request := channel.receive()).get("taken"):
                    _change(logs, request)
        if idle:
            if not caught_up:
                caught_up = True
                channel.send({"caught_up": True})
            select.select([channel.read_fd], [], [], _LOOK_EVERY_S)


def _change(logs: dict[str, Log], request: Frame) -> None:
    if "follow" in request:
        logs.setdefault(request["follow"], Log(request["follow"], request["offset"]))
    elif (log := logs.pop(request["unfollow"], None)) is not None:
        log.close()


# Both ---------------------------------------------------------------------------------------------


def bind_to_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; end now if it is dead already."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Run as the child that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["calls", "follow"])
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--lock-fd", type=int, required=True)
    options = parser.parse_args()
    bind_to_parent(options.parent)
    # A Ctrl-C at the server's terminal is the server's: it lets a call end first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The lock lives as long as this process, and not in what HTCondor's library may start.
    os.set_inheritable(options.lock_fd, False)
    channel = Channel(os.dup(0), os.dup(1))
    os.dup2(2, 1)  # whatever prints must not print among the frames
    with contextlib.suppress(EOFError, BrokenPipeError):  # the server is gone, or wants no more
        (make_calls if options.role == "calls" else follow)(channel)


if __name__ == "__main__":
    main()
