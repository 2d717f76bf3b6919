"""Uploads of checkpoints and files, and what stays of them in the store."""

import logging
import queue
import time
from collections.abc import Callable, Iterable

from plato_core.tracking.courtesy import Courtesy, meter
from plato_core.tracking.lanes import Job, Lane
from plato_core.tracking.ledger import Ledger
from plato_core.tracking.pool import Outcome, UploadPool
from plato_core.tracking.retention import checkpoints_to_keep
from plato_core.tracking.sender import Away, Refused, Sender

logger = logging.getLogger(__name__)

MAX_DELETE_ATTEMPTS = 5


class Uploads:
    """Runs the jobs of the writer's lanes in the pool's threads, again and again until they are done.

    Args:
        ledger: The writer's books.
        sender: Makes the requests.
        backoff: Seconds to wait after so many attempts.
        courtesy: Says how long to rest after an upload.
        finished: Called, in a pool's thread, when there is something to settle.
    """

    def __init__(
        self,
        ledger: Ledger,
        sender: Sender,
        backoff: Callable[[int], float],
        courtesy: Courtesy,
        finished: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._spool = ledger.spool
        self._sender = sender
        self._backoff = backoff
        self._courtesy, self._rests_until = courtesy, 0.0
        self._meter = meter(ledger.spool.target.tracking_uri)
        self._spent_s: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._pool: UploadPool[Job] = UploadPool(self._work, finished)
        self._can_delete = True

    def close(self) -> None:
        """Start no more."""
        self._pool.close()

    def hurry(self) -> None:
        """Rest no more."""
        self._rests_until = 0.0

    @property
    def running(self) -> int:
        """How many are under way."""
        return self._pool.running

    def start(self, lanes: Iterable[Lane]) -> None:
        """Start what is due, oldest first, as far as threads are free; drop what need not be sent at all."""
        now, ready = time.monotonic(), []
        target = self._spool.target
        for lane in lanes:
            record = self._spool.runs.record(lane.key)
            for job in lane.superseded(record.uploaded, target.keep_checkpoints, target.mode):
                lane.jobs.remove(job)
                assert job.number is not None
                self._ledger.release(job.number, job.op["path"])
                self._ledger.count(superseded=1)
            if record.run_id is not None:
                ready += [job for job in lane.jobs if not job.running and job.not_before <= now]
        if now < self._rests_until:
            for job in ready:
                job.not_before = self._rests_until
            return
        for job in sorted(ready, key=lambda job: job.number or 0)[: max(0, self._pool.free)]:
            job.running = True
            self._pool.submit(job)

    def _work(self, job: Job) -> int:
        """Do a job, in a thread of the pool."""
        began = self._meter()
        try:
            return self._transfer(job)
        finally:
            self._spent_s.put(self._meter() - began)

    def _transfer(self, job: Job) -> int:
        run_id = self._spool.runs[job.lane.key].run_id
        assert run_id is not None
        if job.kind == "delete":
            self._sender.delete_checkpoint(run_id, job.op["iteration"])
            return 0
        path = self._spool.directory / job.op["path"]
        if not path.exists():
            raise Refused(f"{path} is gone")
        upload = self._sender.upload_checkpoint if job.kind == "checkpoint" else self._sender.upload_file
        return upload(run_id, path)

    def settle(self) -> None:
        """Take in what has finished."""
        for outcome in self._pool.outcomes():
            self._settle(outcome)
        while not self._spent_s.empty():
            rest_s = self._courtesy.pause_s(self._spent_s.get())
            self._rests_until = max(self._rests_until, time.monotonic() + rest_s)

    def _settle(self, outcome: Outcome[Job]) -> None:
        job, error = outcome.job, outcome.error
        job.running = False
        job.attempts += 1
        if isinstance(error, Away) and not (job.kind == "delete" and job.attempts >= MAX_DELETE_ATTEMPTS):
            job.not_before = time.monotonic() + self._backoff(job.attempts)
            self._ledger.note_away(error)
            return
        job.lane.jobs.remove(job)
        if error is not None:
            self._give_up(job, error)
            return
        record = self._spool.runs.record(job.lane.key)
        if job.kind == "delete":
            record.uploaded = {i: s for i, s in record.uploaded.items() if i != job.op["iteration"]}
        else:
            self._ledger.count(uploads=1, bytes=outcome.size)
        if job.kind == "checkpoint":
            record.uploaded = {**record.uploaded, job.op["iteration"]: job.op["score"]}
            self.prune(job.lane)
        self._ledger.runs_changed = True
        if job.number is not None:
            self._ledger.release(job.number, job.op["path"])

    def _give_up(self, job: Job, error: BaseException) -> None:
        text = str(error) if isinstance(error, Refused | Away) else f"{type(error).__name__}: {error}"
        if job.number is not None:
            self._ledger.reject(job.number, job.op, text)
            return
        if isinstance(error, Refused) and self._can_delete:
            self._can_delete = False
            logger.warning("the tracking store cannot delete checkpoints: %s", text)
        self._leave(job.lane, job.op["iteration"])

    def prune(self, lane: Lane) -> None:
        """Have the store delete what is neither among the best nor the last of what it has whole."""
        target, uploaded = self._spool.target, self._spool.runs.record(lane.key).uploaded
        surplus = set(uploaded) - checkpoints_to_keep(uploaded, target.keep_checkpoints, target.mode)
        asked = {job.op["iteration"] for job in lane.jobs if job.kind == "delete"}
        for iteration in sorted(surplus - asked):
            if self._can_delete:
                lane.jobs.append(Job(lane, None, {"op": "delete", "iteration": iteration}))
            else:
                self._leave(lane, iteration)

    def _leave(self, lane: Lane, iteration: int) -> None:
        """Let a surplus checkpoint be, and count it."""
        record = self._spool.runs.record(lane.key)
        record.uploaded = {i: s for i, s in record.uploaded.items() if i != iteration}
        self._ledger.runs_changed = True
        self._ledger.count(undeletable=1)
