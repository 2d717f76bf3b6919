"""A small pool of threads for uploads, so that metrics do not wait for big files.

``concurrent.futures`` would make the end of the process wait for an upload that hangs; these are daemon
threads, and what they had not finished is still in the spool.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

JobT = TypeVar("JobT")


@dataclass(frozen=True)
class Outcome(Generic[JobT]):
    """What became of a job: bytes moved, or the error it raised."""

    job: JobT
    size: int
    error: BaseException | None


class UploadPool(Generic[JobT]):
    """Runs jobs in a few daemon threads and hands their outcomes back to whoever asks.

    Args:
        work: Does one job and returns the bytes it moved.
        finished: Called, in a pool's thread, after each job.
        threads: How many jobs run at once.
    """

    def __init__(self, work: Callable[[JobT], int], finished: Callable[[], None], threads: int = 2) -> None:
        self._work = work
        self._finished = finished
        self._threads = threads
        self._started = False
        self._jobs: queue.SimpleQueue[JobT | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome[JobT]] = queue.SimpleQueue()
        self.running = 0

    @property
    def free(self) -> int:
        """How many more jobs would start at once."""
        return self._threads - self.running

    def submit(self, job: JobT) -> None:
        """Start a job. Only from the one thread that also calls :meth:`outcomes`."""
        if not self._started:
            self._started = True
            for number in range(self._threads):
                threading.Thread(target=self._serve, name=f"plato-upload-{number}", daemon=True).start()
        self.running += 1
        self._jobs.put(job)

    def outcomes(self) -> list[Outcome[JobT]]:
        """What has finished since the last call."""
        found: list[Outcome[JobT]] = []
        while not self._outcomes.empty():
            found.append(self._outcomes.get())
        self.running -= len(found)
        return found

    def close(self) -> None:
        """Let the threads end after the jobs that they are at."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                outcome = Outcome(job, self._work(job), None)
            except BaseException as error:
                outcome = Outcome(job, 0, error)
            self._outcomes.put(outcome)
            self._finished()
