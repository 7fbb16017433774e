"""What a run is to do: the plans of the long run and of the tests."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.faults.faulty_server import points


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of what.

    Attributes
    ----------
    jobs : int
        About so many, the burst's included.
    burst : int
        So many get their data at once; 0 for none.
    points : sequence of (str, str)
        Where servers are killed.
    random_kills, stops : int
        Servers killed at any instant, and servers that are stopped as an operator does.
    removals : int
        Jobs removed while a step of their launch dawdles, each in both orders.
    hanging_kills, outages, schedd_kills, child_kills : int
        On a pool.
    """

    seed: int
    jobs: int
    burst: int
    points: Sequence[tuple[str, str]]
    random_kills: int
    stops: int
    removals: int
    monitor_kills: int
    hanging_kills: int = 0
    outages: int = 0
    schedd_kills: int = 0
    child_kills: int = 0
    outage_s: tuple[float, float] = (4.0, 8.0)


def long_plan(
    scheduler: str, seed: int, jobs: int, kills: int, outages: int, monitors: int
) -> Plan:
    """Every named point, before and after, and as many faults of each kind as are asked for.

    Parameters
    ----------
    jobs, kills, outages, monitors : int
        At least so many jobs, servers killed, outages of the schedd, and monitors killed.
    """
    pool = scheduler == "htcondor"
    named = _all_of(points(scheduler), kills, seed)
    hanging, schedd_kills = (max(2, outages // 3), max(2, outages // 3)) if pool else (0, 0)
    return Plan(
        seed=seed,
        jobs=jobs + jobs // 20,  # not every submission is answered
        burst=min(1000, jobs // 2),
        points=named,
        random_kills=max(2, kills // 4),
        stops=max(1, kills // 16),
        removals=max(1, kills // 10),
        # Some find no monitor, and some monitors have ended by then.
        monitor_kills=monitors + monitors // 4,
        hanging_kills=hanging,
        outages=max(1, outages - hanging - schedd_kills) + 1 if pool else 0,
        schedd_kills=schedd_kills,
        child_kills=max(2, outages) if pool else 0,
        outage_s=(4.0, 12.0),
    )


def short_plan(scheduler: str, seed: int) -> Plan:
    """Every step, before or after it."""
    dice = random.Random(seed)
    steps = sorted({step for step, _ in points(scheduler)} - {"commit"})
    pool = scheduler == "htcondor"
    return Plan(
        seed=seed,
        jobs=100,
        burst=20,
        points=[(step, dice.choice(("before", "after"))) for step in steps]
        + [("commit", "before")],
        random_kills=2,
        stops=1,
        removals=1,
        monitor_kills=8,
        hanging_kills=1 if pool else 0,
        outages=1 if pool else 0,
        schedd_kills=1 if pool else 0,
        child_kills=1 if pool else 0,
    )


def blind_plan(seed: int, times: int = 1) -> Plan:
    """What makes a server that can't look for its jobs run them twice, so many times."""
    return Plan(
        seed=seed,
        jobs=4 * times,
        burst=0,
        points=[("submit", "after"), ("record queued", "before")] * times,
        random_kills=0,
        stops=0,
        removals=0,
        monitor_kills=0,
    )


def _all_of(every: Sequence[tuple[str, str]], at_least: int, seed: int) -> list[tuple[str, str]]:
    """Every point once; if that is not enough, some once more."""
    more = random.Random(seed).choices(every, k=max(0, at_least - len(every)))
    return [*every, *more]


def quiet_plan(seed: int, jobs: int = 8) -> Plan:
    """No faults but those that are added."""
    return Plan(
        seed=seed,
        jobs=jobs,
        burst=0,
        points=[],
        random_kills=0,
        stops=0,
        removals=0,
        monitor_kills=0,
    )
