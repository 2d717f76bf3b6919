"""A CPU for each trial that trains, where more trials than CPUs are resident: the others wait between two iterations.

Left to the operating system, processes that share a CPU change every few milliseconds, and each finds its data gone
from the CPU's caches. What that costs depends on the machine: `benchmarks/cpu_places.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from plato_core.training.spec import TrialSpec

# Whoever has waited so long goes ahead beside the others: another may hang, and must not hold up the population.
PATIENCE_S = 30.0
# An iteration with less to do for a CPU, in parts of its time, waits for something else, as for a simulator elsewhere.
BUSY = 0.6
# So many iterations are then trained without a place, before one is asked for again.
LOOK_AGAIN = 10
# Between two looks for a place; of those who wait, only the first looks.
_LOOK_S = 0.001


class CpuPlaces:
    """The CPUs that some processes of a machine share, a place for one process on each.

    They are locks on files, so a process that is killed gives its place back.

    Args:
        folder: For the files; the same for all who share.
        cpus: Number of places.
        patience_s: How long one waits at most, in seconds; longer where an iteration takes as long.
    """

    def __init__(self, folder: Path, cpus: int, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._places = [self._open(folder / f"cpu-{number}.lock") for number in range(cpus)]
        self._turnstile = self._open(folder / "cpu-next.lock")
        self._without = 0
        self._longest_s = 0.0

    @contextlib.contextmanager
    def place(self, judged: bool = True) -> Iterator[None]:
        """Waits for a place, and keeps it for as long as the block runs.

        Args:
            judged: Whether the block is an iteration, whose use of the CPU says whether the next ones need a place.
        """
        if self._without:
            self._without -= 1
            yield
            return
        place = self._take()
        began, busy = time.monotonic(), _busy_s()
        try:
            yield
        finally:
            taken, busy = time.monotonic() - began, _busy_s() - busy
            if place is not None:
                fcntl.flock(place, fcntl.LOCK_UN)
            if judged:
                if place is None or busy < BUSY * taken:
                    self._without = LOOK_AGAIN
                self._longest_s = max(self._longest_s, taken)

    def close(self) -> None:
        """Closes the files."""
        for file in (*self._places, self._turnstile):
            os.close(file)

    def _take(self) -> int | None:
        fcntl.flock(self._turnstile, fcntl.LOCK_EX)
        try:
            # A place comes free within an iteration, and others take about as long as one's own.
            ends = time.monotonic() + max(self._patience_s, 3 * self._longest_s)
            while time.monotonic() < ends:
                for place in self._places:
                    if _locked(place):
                        return place
                time.sleep(_LOOK_S)
            return None
        finally:
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)

    @staticmethod
    def _open(path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _busy_s() -> float:
    """Seconds for which this thread has had a CPU or, where the system tells that, has waited for one to be free."""
    try:
        running, waiting, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(running) + int(waiting)) / 1e9


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def shared_places(spec: TrialSpec) -> CpuPlaces | None:
    """Returns the places of the machine that a trial's process is on; None where it shares its CPUs with no other."""
    if not shares_cpus(spec.num_cpus, spec.num_env_runners) or not ray.is_initialized():
        return None
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    # In the folder of this Ray, which goes when it does.
    sockets = Path(node["ObjectStoreSocketName"]).parent
    return CpuPlaces(sockets.parent, int(node["Resources"]["CPU"])) if sockets.is_dir() else None


def shares_cpus(cpus: float, env_runners: int) -> bool:
    """Returns whether trials that are allotted so much take turns at a CPU.

    Args:
        cpus: Of a trial.
        env_runners: Processes that it has beside its own; those train nothing, and are left to the system.
    """
    return cpus < 1.0 and env_runners == 0
