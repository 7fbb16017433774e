"""A run: jobs, clients and faults in an order that a seed decides, then a verdict."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from tests.faults.faulty_server import AFTER, BEFORE, Order
from tests.faults.ledger import read_ledger
from tests.faults.plans import Plan
from tests.faults.report import Report
from tests.faults.sites import PoolSite, Site
from tests.faults.target import STOP_DEADLINE_S, FaultyServer
from tests.faults.verdict import ENDLESS_S, Given, judge
from tests.server import wait_until

ENDS = frozenset({"completed", "removed", "failed"})
#: How long traffic goes on for an order to be carried out; then the server is killed anyway.
_ORDER_S = 6.0
#: With nobody ending for so long, nobody will.
_SETTLE_S = 120.0
#: Steps that are not taken often enough to let some pass.
_RARE = frozenset({"record removed", "discard folder"})
#: Steps that only a removal makes a server take.
_OF_REMOVALS = frozenset(
    {"request removal", "remove", "write wish", "call remove", "record removed"}
)
#: As long as more jobs than this have not ended, the next fault waits.
_MOST_UNFINISHED = 150


class Run:
    """Carries a plan out.

    Parameters
    ----------
    say : callable
        Takes lines of progress.
    more_faults : sequence of (str, callable)
        Further ones, in this order and after those of the plan; they are given the run.
    """

    def __init__(
        self,
        server: FaultyServer,
        site: Site,
        plan: Plan,
        say: Callable[[str], None],
        more_faults: "Sequence[tuple[str, Callable[[Run], None]]]" = (),
    ) -> None:
        self.server = server
        self.site = site
        self.plan = plan
        self.say = say
        self._more_faults = more_faults
        self.random = random.Random(plan.seed)
        self.jobs: dict[str, Given] = {}
        self.counts: Counter[str] = Counter()
        self.missed: list[str] = []
        self.wrong: list[tuple[str, str]] = []
        self._waiting: list[Given] = []
        self._endless: list[Given] = []
        self._keys: list[str] = []
        self._many = ThreadPoolExecutor(8)
        self._began = time.monotonic()

    def carry_out(self) -> Report:
        """Do all of it; whatever happens, nothing is left running."""
        try:
            self.start()
            faults = self._faults()
            each = max(2, (self.plan.jobs - self.plan.burst) // max(1, len(faults)))
            for number, (name, fault) in enumerate(faults, 1):
                self.some_jobs(each)
                fault()
                self._look_after()
                if number % 5 == 0 or number == len(faults):
                    self.say(f"{number}/{len(faults)} {name}; {self._so_far()}")
                self._wait_for_room()
            if self.plan.burst:
                self._burst(self.plan.burst)
            self._settle()
            return self._report()
        finally:
            self._many.shutdown(cancel_futures=True)
            if isinstance(self.site, PoolSite):
                with suppress(ProcessLookupError):
                    self.site.pool.continue_schedd()
            self.server.end_all()

    def _so_far(self) -> str:
        kills = self.counts["servers killed"]
        return (
            f"{len(self.jobs)} jobs, {kills} servers killed, {time.monotonic() - self._began:.0f} s"
        )

    # Clients -----------------------------------------------------------------------------------

    def _submit(self, count: int, **more: float) -> list[Given]:
        """Submit jobs of all kinds, side by side; give those of which an id came back."""
        kinds = [self._kind(**more) for _ in range(count)]
        told: Iterable[str | None] = self._many.map(lambda kind: self.server.post(*kind), kinds)
        given = []
        for (lasts_s, end), job_id in zip(kinds, list(told), strict=True):
            if job_id is None:
                self.counts["submissions without an answer"] += 1
                continue
            job = self.jobs[job_id] = Given(job_id, lasts_s, end)
            given.append(job)
            if job.is_endless:
                self._endless.append(job)
        return given

    def _kind(self, lasts_s: float | None = None) -> tuple[float, str]:
        if lasts_s is not None:
            return lasts_s, "0"
        dice = self.random.random()
        if dice < 0.08:
            return ENDLESS_S, "0"
        if dice < 0.18:
            return self.random.uniform(0.2, 1.5), "0"
        return 0.0, self.random.choice(("0", "0", "0", "0", "3", "TERM"))

    def some_jobs(self, count: int) -> None:
        """Submit jobs, each of which goes one of the ways that there are."""
        later: list[Future[object]] = []
        for job in self._submit(count):
            dice = self.random.random()
            if dice < 0.45:
                self.server.data_arrive(job.id)  # often before its monitor has started
            elif dice < 0.60:
                later += self._call_back_many_times(job)
            elif dice < 0.70:
                later.append(self._many.submit(self._remove, job))
                self.server.data_arrive(job.id)
            elif dice < 0.75:
                self.server.data_arrive(job.id)
                later.append(self._many.submit(self._remove, job))
            elif dice < 0.80:
                later += self._call_back_many_times(job)
                later.append(self._many.submit(self._remove, job))
            else:
                self._waiting.append(job)
        for one in later:
            one.result()

    def _call_back_many_times(self, job: Given) -> list[Future[object]]:
        key = self.server.key_of(job.id)
        self._keys.append(key)
        times = self.random.randint(2, 4)
        return [self._many.submit(self._call_back, key) for _ in range(times)]

    def _call_back(self, key: str) -> None:
        self.counts["callbacks by hand"] += 1
        self.server.call_back(key)

    def _remove(self, job: Given) -> bool:
        """Ask for a job's removal; give whether that was heard."""
        job.removal = True
        answer = self.server.ask("DELETE", f"job/{job.id}")
        self.counts["removals asked for"] += 1
        return answer is not None and answer.status_code == 200

    def _look_after(self) -> None:
        """Late data, late callbacks, and an end to what has none."""
        self.random.shuffle(self._waiting)
        for _ in range(len(self._waiting) // 2):
            self.server.data_arrive(self._waiting.pop().id)
        for key in self._keys[-3:]:
            self._call_back(key)  # it has been launched, has ended, or was removed
        kept = [
            job for job in self._endless if not (self.random.random() < 0.7 and self._remove(job))
        ]
        self._endless = kept

    def _unfinished(self) -> list[str]:
        states = self.server.states()
        return [job_id for job_id in self.jobs if states.get(job_id) not in ENDS]

    def _wait_for_room(self) -> None:
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline and len(self._unfinished()) > _MOST_UNFINISHED:
            time.sleep(0.2)

    # Faults ------------------------------------------------------------------------------------

    def _faults(self) -> list[tuple[str, Callable[[], None]]]:
        """The plan's faults, shuffled."""
        plan = self.plan
        faults: list[tuple[str, Callable[[], None]]] = [
            (f"killed {when} {step!r}", partial(self._kill_at, step, when))
            for step, when in plan.points
        ]
        faults += [("killed at any instant", self._kill_any_time)] * plan.random_kills
        faults += [("stopped", self._stop)] * plan.stops
        faults += [("removed at a launch", self._remove_at_launch)] * plan.removals
        at_once = 4
        times = -(-plan.monitor_kills // at_once)
        faults += [("monitors killed", partial(self._kill_monitors, at_once))] * times
        if isinstance(self.site, PoolSite):
            faults += [("killed while submit() hangs", self._kill_hanging)] * plan.hanging_kills
            faults += [("the schedd stopped", self._outage)] * plan.outages
            faults += [("the schedd killed", self._kill_schedd)] * plan.schedd_kills
            faults += [("condor children killed", self._kill_children)] * plan.child_kills
        self.random.shuffle(faults)
        for name, fault in self._more_faults:
            faults.append((name, partial(fault, self)))
        return faults

    def start(self) -> None:
        """Have a server that answers, however many die while they start."""
        while not self.server.begin():
            self.counts["servers killed"] += 1
            self.counts["servers killed while they started"] += 1

    def kill(self) -> None:
        """Kill the server at this instant, if it lives."""
        if self.server.lives():
            self.server.kill()
        self.counts["servers killed"] += 1

    def _while_away(self) -> None:
        """What happens while no server runs."""
        for _ in range(min(2, len(self._waiting))):
            self.server.data_arrive(self._waiting.pop().id)

    def _kill_at(self, step: str, when: str) -> None:
        """Kill the server before or after a step of some job."""
        order = Order(id=0, step=step, when=when)
        if step == "find":
            # It takes doubt to look for a job: the last server died with one in its hands.
            self._die(
                "submit", Order(id=0, step="submit", when=self.random.choice((BEFORE, AFTER)))
            )
            self._die(step, order)
        elif step == "end":
            self._die_at_the_end(order)
        else:
            if step not in _RARE:
                order.skip = self.random.choice((0, 0, 0, 1, 3))
            self._die(step, order)
        self.server.order()
        self._while_away()
        self.start()

    def _die(self, step: str, order: Order) -> None:
        """Have the server die by an order, or else by a signal."""
        [number] = self.server.order(order)
        if not self.server.lives():
            self.server.begin()  # it may die while it does
        deadline = time.monotonic() + _ORDER_S
        while self.server.lives() and time.monotonic() < deadline:
            self._traffic(step)
        self._kill_if_not(number, order)

    def _kill_if_not(self, number: int, order: Order) -> None:
        """Note whether an order was carried out; either way the server is dead afterwards."""
        if self.server.reached(number):
            self.counts["servers killed at a named step"] += 1
        else:
            self.missed.append(f"{order.when} {order.step!r}")
        self.kill()

    def _die_at_the_end(self, order: Order) -> None:
        """A job is asked to go after its launch has begun, and before it is handed over."""
        for job in self._submit(1, lasts_s=ENDLESS_S):
            order.job_id = job.id
            pause = Order(id=0, step="prepare", when=BEFORE, pause_s=0.7, job_id=job.id)
            paused, died = self.server.order(pause, order)
            self.server.data_arrive(job.id)
            self._pass(_ORDER_S, partial(self.server.reached, paused))
            self._remove(job)
            self._pass(_ORDER_S)
            self._kill_if_not(died, order)

    def _traffic(self, step: str) -> None:
        """A little of everything that makes a server take its steps."""
        removal = step in _OF_REMOVALS
        for job in self._submit(2, lasts_s=ENDLESS_S if removal else 0.0):
            self.server.data_arrive(job.id)
            if removal:
                self._pass(0.6)
                self._remove(job)
        self._pass(0.3)

    def _pass(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, unless the server has died."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.server.lives() and not until():
            time.sleep(0.02)

    def _kill_any_time(self) -> None:
        """Kill it while clients submit and data arrive, or while it starts."""
        submitting = [self._many.submit(self.server.post, 0.0, "0") for _ in range(4)]
        for job in self._waiting[:2]:
            self.server.data_arrive(job.id)
        self._sleep(0.0, 0.5)
        self.kill()
        for one in submitting:
            if (job_id := one.result()) is not None:
                self.jobs[job_id] = Given(job_id, 0.0, "0")
                self.server.data_arrive(job_id)
        self._while_away()
        if self.random.random() < 0.3:
            self.server.process = self.server.spawn()
            self._sleep(0.2, 1.5)
            self.counts["servers killed while they started"] += 1
            self.kill()
        self.start()

    def _stop(self) -> None:
        """Stop it as an operator does, with all hands full."""
        submitting = [self._many.submit(self.server.post, 0.0, "0") for _ in range(4)]
        self._sleep(0.0, 0.1)
        status, took_s = self.server.terminate()
        for one in submitting:
            if (job_id := one.result()) is not None:
                self.jobs[job_id] = Given(job_id, 0.0, "0")
                self.server.data_arrive(job_id)
        self.counts["servers stopped"] += 1
        if status != 0 or took_s > STOP_DEADLINE_S + 2:
            self.wrong.append(("stop", f"SIGTERM: exit status {status} after {took_s:.1f} s"))
        self._while_away()
        self.start()

    def _remove_at_launch(self) -> None:
        """Ask for a removal while the launch stands still: before its start, and after it."""
        for step, when in (("prepare", BEFORE), ("submit", BEFORE), ("submit", AFTER)):
            for job in self._submit(1, lasts_s=ENDLESS_S):
                pause = Order(id=0, step=step, when=when, pause_s=0.5, job_id=job.id)
                [paused] = self.server.order(pause)
                self.server.data_arrive(job.id)
                self._pass(_ORDER_S, partial(self.server.reached, paused))
                self._remove(job)
                self.counts["jobs removed while they were launched"] += 1

    def _kill_monitors(self, count: int) -> None:
        for job in self._submit(count, lasts_s=0.0):
            self._waiting.append(job)
        with suppress(AssertionError):
            wait_until(self.server.monitors, "a monitor runs", 5.0)
        for pid in self._some(self.server.monitors().values(), count):
            self._kill_process(pid, "monitors killed")

    def _kill_children(self) -> None:
        """Kill what talks to HTCondor for the server, while it does."""
        for job in self._submit(3, lasts_s=0.0):
            self.server.data_arrive(job.id)
        self._sleep(0.0, 0.4)
        for pid, argv in self.server.children().items():
            if "condor_worker" in str(argv):
                self._kill_process(pid, "condor children killed")

    def _kill_process(self, pid: int, what: str) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.counts[what] += 1

    def _outage(self) -> None:
        """The schedd stands still while jobs come, are to be launched, and are removed."""
        assert isinstance(self.site, PoolSite)
        self.counts["schedd outages"] += 1
        with self.site.stopped_schedd():
            ends = time.monotonic() + self.random.uniform(*self.plan.outage_s)
            self.some_jobs(4)
            while time.monotonic() < ends:
                time.sleep(0.1)

    def _kill_schedd(self) -> None:
        """The schedd dies; another one is there after some seconds."""
        assert isinstance(self.site, PoolSite)
        for job in self._submit(3, lasts_s=0.0):
            self.server.data_arrive(job.id)
        self._sleep(0.0, 0.3)
        self.counts["schedd outages"] += 1
        self.counts["schedds killed"] += 1
        self.site.pool.kill_schedd()

    def _kill_hanging(self) -> None:
        """The server dies while `submit` hangs; so does its successor, while it may not look."""
        assert isinstance(self.site, PoolSite)
        jobs = self._submit(3, lasts_s=0.0)
        self.counts["schedd outages"] += 1
        with self.site.stopped_schedd():
            for job in jobs:
                self.server.data_arrive(job.id)
            ids = {job.id for job in jobs}
            with suppress(AssertionError):
                wait_until(
                    lambda: "submitting" in {self.server.states().get(one) for one in ids},
                    "the launch has begun",
                    5.0,
                )
            self._sleep(0.2, 2.0)
            self.kill()
            self.counts["servers killed while submit() hung"] += 1
            self.start()
            self._sleep(0.0, 1.0)

    def _sleep(self, least_s: float, most_s: float) -> None:
        """Let a random time pass: at which instant things happen is what the seed decides."""
        time.sleep(self.random.uniform(least_s, most_s))

    def _some(self, pids: Iterable[int], count: int) -> list[int]:
        there = list(pids)
        return self.random.sample(there, min(count, len(there)))

    # The end -----------------------------------------------------------------------------------

    def _burst(self, count: int) -> None:
        """Many jobs wait, and get their data at the same moment."""
        self.say(f"{count} jobs are to get their data at once")
        jobs: list[Given] = []
        while len(jobs) < count:
            jobs += self._submit(min(100, count - len(jobs)), lasts_s=0.0)
        self.say(f"... they wait, {len(self.server.monitors())} monitors run")
        for job in jobs:
            self.server.data_arrive(job.id)
        self.counts["data files at once"] = count

    def _settle(self) -> None:
        """No more faults: all that was given is to end, for as long as some still do."""
        self.say(f"no more faults; {self._so_far()}")
        for job_id in self._unfinished():
            self.server.data_arrive(job_id)  # also where no callback got through
        left, since = len(self.jobs), time.monotonic()
        while self.jobs and time.monotonic() - since < _SETTLE_S:
            self._endless = [job for job in self._endless if not self._remove(job)]
            unfinished = self._unfinished()
            if not unfinished:
                break
            if len(unfinished) < left:
                if len(unfinished) // 200 < left // 200:
                    self.say(f"{len(unfinished)} have still to end")
                left, since = len(unfinished), time.monotonic()
            time.sleep(0.2)
        # Accepted, but the client was never told: they wait for ever, as nobody knows their name.
        for job_id in self.server.states().keys() - self.jobs.keys():
            self.counts["accepted without the client being told"] += 1
            self.server.ask("DELETE", f"job/{job_id}")
        self._call_late()

    def _call_late(self) -> None:
        """Once more, of jobs that have ended."""
        for key in self.random.sample(self._keys, min(20, len(self._keys))):
            status = self.server.call_back(key)
            if status not in (200, 409):
                self.wrong.append(("callback", f"a late callback was answered with {status}"))

    def _report(self) -> Report:
        self.say("the verdict")
        records = {}
        for job_id in self.jobs:
            answer = self.server.ask("GET", "job", params={"id": job_id})
            if answer is not None and answer.status_code == 200:
                records[job_id] = answer.json()["job"]
        with suppress(AssertionError):
            wait_until(lambda: not list(self._folders()), "no local job's folder is left", 10)
        folders = list(self._folders())
        ads = self.site.ads(self.server.work)
        status, took_s = self.server.terminate()
        with suppress(AssertionError):
            wait_until(lambda: not self.server.left_over(), "no process is left", 15)
        runs, nonsense = read_ledger(self.server.ledger)
        verdict = judge(self.jobs, records, runs, ads)
        for line in nonsense:
            verdict.say("stranger", f"in the ledger: {line!r}")
        for folder in folders:
            verdict.say("left over", f"the folder of local job {folder}")
        for process in self.server.left_over().values():
            verdict.say("left over", process)
        if status != 0 or took_s > STOP_DEADLINE_S + 2:
            verdict.say("stop", f"SIGTERM: exit status {status} after {took_s:.1f} s")
        for kind, sentence in self.wrong:
            verdict.say(kind, sentence)
        for status_of_answer, count in self.server.answers.items():
            if status_of_answer >= 500 and status_of_answer != 503:
                verdict.say("answers", f"{count} answers of {status_of_answer}")
        self.counts["jobs given to clients"] = len(self.jobs)
        self.counts["jobs that ran"] = len(runs)
        return Report(
            verdict=verdict,
            counts=self.counts,
            answers=self.server.answers,
            seconds=time.monotonic() - self._began,
            missed=self.missed,
        )

    def _folders(self) -> Iterable[str]:
        place = self.server.work / "state" / "local"
        return [folder.name for folder in place.iterdir()] if place.is_dir() else []
