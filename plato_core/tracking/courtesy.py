"""How the writer keeps out of the way of Tune's loop, which runs in the same process."""

import time
from collections.abc import Callable

from plato_core.config_store import is_of_this_machine
from plato_core.tracking.ops import Op

# Results a second from which on the loop is what a sweep waits for; one that trains has one now and then.
BUSY = 50.0
# Of the time the writer then takes so much at most; the rest waits in the journal.
SHARE = 0.01
LONGEST_PAUSE_S = 10.0
_WINDOW_S = 0.5
_TRIFLE_S = 0.001  # hardly a request


class Courtesy:
    """Says how long to pause after a request that took so much of this machine.

    Python runs one thread at a time, so while a request takes the CPU the loop has to wait: for a SQLite file MLflow
    takes 70 ms for 1000 points. A server on this machine takes 100 ms for them (`benchmarks/tracking_loop.py`), of
    CPUs that the loop and the trials need.

    Args:
        clock: The time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._results = 0
        self._rate = 0.0
        self._seen = (clock(), 0)
        self._hurried = False

    def count(self, op: Op) -> None:
        """Count an operation of the loop if it is a result; what a large population's start journals is soon over."""
        self._results += op["op"] == "metrics"

    def hurry(self) -> None:
        """Pause no more: the loop is over."""
        self._hurried = True

    def pause_s(self, spent_s: float) -> float:
        """Seconds to pause for, 0 while the loop has time to spare.

        Args:
            spent_s: What the request took, by the `meter` of its store.
        """
        now, results = self._clock(), self._results
        passed, came = now - self._seen[0], results - self._seen[1]
        if passed >= _WINDOW_S or came > BUSY * _WINDOW_S:  # so many are too many, however soon they came
            self._rate = came / max(passed, 1e-6)
            self._seen = (now, results)
        busy = self._rate > BUSY and spent_s > _TRIFLE_S and not self._hurried
        return min(LONGEST_PAUSE_S, spent_s / SHARE) if busy else 0.0


def meter(uri: str) -> Callable[[], float]:
    """Return a clock, in seconds, for what the calling thread's requests take of this machine.

    Args:
        uri: The store they go to. One on this machine takes its CPUs for as long as it is waited for.
    """
    return time.monotonic if is_of_this_machine(uri) else time.thread_time
