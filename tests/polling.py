"""Clients that poll a server without ever trying a request twice."""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator

import requests


class Poller:
    """Asks again and again, in a thread of its own, and counts.

    Parameters
    ----------
    get : callable
        Makes a request, without a retry.
    pause_s : callable
        Gives the time to the next.
    """

    def __init__(
        self, get: Callable[[str], requests.Response], url: str, pause_s: Callable[[], float]
    ) -> None:
        self._get = get
        self._url = url
        self._pause_s = pause_s
        self._stop = threading.Event()
        self.answers = 0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._poll)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the request that is being made."""
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stop.is_set():
            try:
                answer = self._get(self._url)
            except requests.RequestException as error:
                self.failures.append(repr(error))
            else:
                self.answers += 1
                if answer.status_code != 200:
                    self.failures.append(f"{answer.status_code} {answer.text}")
            self._stop.wait(self._pause_s())


@contextlib.contextmanager
def polling(
    url: str, *, greedy: int = 0, verify: str | bool = True
) -> Iterator[tuple[Poller, Poller]]:
    """Poll during the block as two clients; none of their requests may fail.

    One makes a new connection every 100 ms. The other has a `requests.Session` that idles from 0
    to 2 s between two requests. Further ones, `greedy`, have a session and make no pause at all.
    """
    with contextlib.ExitStack() as stack:

        def session() -> Callable[[str], requests.Response]:
            pooled = stack.enter_context(requests.Session())
            return lambda url: pooled.get(url, timeout=30, verify=verify)

        fresh = Poller(lambda url: requests.get(url, timeout=30, verify=verify), url, lambda: 0.1)
        idling = Poller(session(), url, lambda: random.uniform(0, 2))
        pollers = [fresh, idling, *(Poller(session(), url, lambda: 0.0) for _ in range(greedy))]
        for poller in pollers:
            poller.start()
        try:
            yield fresh, idling
        finally:
            for poller in pollers:
                poller.stop()
    for poller in pollers:
        assert not poller.failures
        assert poller.answers
