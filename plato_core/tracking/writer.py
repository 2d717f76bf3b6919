"""The writer: one background thread that sends what the journal holds.

It gathers what was journaled since its last round into few, full requests, waits longer between rounds the
longer the store takes to answer, and goes on trying as long as the sweep runs. Uploads have threads of
their own. Whatever the store has not taken when the process ends, however it ends, is in the spool and
goes up with ``plato flush``.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from plato_core.tracking.lanes import Job, Lane, Numbered
from plato_core.tracking.ops import CreateRun, LogOp, Op, SetStatus
from plato_core.tracking.retention import checkpoints_to_keep
from plato_core.tracking.sender import Away, Refused, Sender, batch_of
from plato_core.tracking.spool import Spool
from plato_core.tracking.summary import DrainSummary
from plato_core.tracking.uploads import Outcome, UploadPool

logger = logging.getLogger(__name__)

MIN_PAUSE_S = 0.2
MAX_PAUSE_S = 10.0
ROUND_TRIPS_A_PAUSE = 3
MAX_BACKOFF_S = 30.0
MAX_IN_MEMORY = 5000
MAX_DELETE_ATTEMPTS = 5
LONGEST_UPLOAD_S = 600.0
_KINDS = frozenset({"create", "metrics", "params", "tags", "checkpoint", "file", "status"})


class Writer:
    """Sends a spool's operations to its store.

    Args:
        spool: What to send; the writer closes it in the end.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        target = spool.target
        self._sender = Sender(target.tracking_uri, target.experiment_id, target.sweep_id)
        self._pool: UploadPool[Job] = UploadPool(self._work, finished=lambda: self._wake.set())
        self._resumed = (
            spool.journal.pending > 0
        )  # an earlier process may have created runs it had no answer for
        self._lanes: dict[str, Lane] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._drain_timeout_s: float | None = None
        self._failures = 0
        self._next_round = 0.0
        self._dirty = False
        self._release: list[str] = []
        self._can_delete = True
        self._sent = DrainSummary()
        self._thread = threading.Thread(target=self._run, name="plato-tracking", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def append(self, op: Op) -> None:
        """Journal an operation. Costs one write to a local file; never waits for the store."""
        self.spool.journal.append(cast(dict[str, Any], op))

    def drain(
        self, timeout_s: float = 60.0, on_progress: Callable[[DrainSummary], None] | None = None
    ) -> DrainSummary:
        """Send all that is left, and close.

        Goes on as long as there is progress, however long that takes; nothing may be appended any more.

        Args:
            timeout_s: Give up after so many seconds without progress.
            on_progress: Called now and then with what was done so far.

        Returns:
            What was sent. The spool is removed when nothing is left in it, and named otherwise.
        """
        self._drain_timeout_s = timeout_s
        self._wake.set()
        seen, since = -1, time.monotonic()
        while self._pending() and self._thread.is_alive():
            self._thread.join(0.05)
            if (finished := self.spool.journal.finished) != seen:
                seen, since = finished, time.monotonic()
                if on_progress:
                    on_progress(self.summary())
            # A big file is one operation: as long as its upload runs, HTTP's own time-outs decide.
            elif time.monotonic() - since > (
                max(timeout_s, LONGEST_UPLOAD_S) if self._pool.running else timeout_s
            ):
                break
        return self.close()

    def close(self) -> DrainSummary:
        """Stop without sending the rest, which stays in the spool."""
        self._stop.set()
        self._wake.set()
        self._thread.join(5.0)
        summary = self.summary()
        if (
            self._thread.is_alive()
        ):  # in a request that hangs; the thread ends with the process, and so does the lock
            return summary
        self.spool.close(remove=summary.complete)
        return replace(summary, spool=None) if summary.complete else summary

    def summary(self) -> DrainSummary:
        """What was done so far."""
        return replace(
            self._sent, pending_ops=self._pending(), rejected=self.spool.rejected, spool=self.spool.directory
        )

    def _pending(self) -> int:
        deletions = sum(
            job.kind == "delete" for lane in list(self._lanes.values()) for job in list(lane.jobs)
        )
        return self.spool.journal.pending + deletions

    def _count(self, **more: int) -> None:
        self._sent = replace(self._sent, **{name: getattr(self._sent, name) + n for name, n in more.items()})

    # ---- the thread

    def _run(self) -> None:
        try:
            hurried = False
            while not self._stop.is_set():
                if self._drain_timeout_s is not None and not hurried:
                    hurried = True
                    self._forget_backoff()
                self._round()
                self._wake.wait(self._pause())
                self._wake.clear()
            self._commit()
        except (
            Exception
        ) as error:  # a bug, or the disk: the spool has it all, and the summary says why it stayed
            logger.exception("the tracking writer stopped; what is left stays in %s", self.spool.directory)
            self._sent = replace(self._sent, last_error=f"{type(error).__name__}: {error}")
        finally:
            self._pool.close()

    def _round(self) -> None:
        for outcome in self._pool.outcomes():
            self._settle(outcome)
        if time.monotonic() >= self._next_round:
            self._read()
            self._send_all()
        self._start_jobs()
        self._commit()

    def _pause(self) -> float:
        """Seconds until there may be something to do."""
        now = time.monotonic()
        times = [job.not_before for lane in self._lanes.values() for job in lane.jobs if not job.running]
        soonest = min([self._next_round, *(t for t in times if t > now)])
        return max(0.0, soonest - now)

    def _backoff(self, attempts: int) -> float:
        ceiling = (
            MAX_BACKOFF_S if self._drain_timeout_s is None else min(MAX_BACKOFF_S, self._drain_timeout_s / 4)
        )
        return random.uniform(0.5, 1.0) * min(ceiling, 0.25 * 2 ** min(attempts, 10))

    def _forget_backoff(self) -> None:
        self._failures, self._next_round = 0, 0.0
        for lane in self._lanes.values():
            for job in lane.jobs:
                job.not_before = 0.0

    def _commit(self) -> None:
        if self._dirty:  # before the cursor: what it says is done must be known here
            self.spool.runs.save()
            self._dirty = False
        self.spool.journal.commit()
        while self._release:
            self.spool.release(self._release.pop())

    def _read(self) -> None:
        room = MAX_IN_MEMORY - sum(len(lane.log) for lane in self._lanes.values())
        for number, op in self.spool.journal.read(max(0, room)):
            if op["op"] not in _KINDS:
                self._reject(number, op, "not an operation")
                continue
            self.spool.runs.record(op["key"]).note(op)
            self._dirty = True
            lane = self._lanes.get(op["key"])
            if lane is None:
                lane = self._lanes[op["key"]] = Lane(op["key"])
                self._prune(lane)
            lane.add(number, op)

    # ---- runs, metrics, params, tags, status

    def _send_all(self) -> None:
        pause = min(MAX_PAUSE_S, max(MIN_PAUSE_S, ROUND_TRIPS_A_PAUSE * self._sender.round_trip_s))
        for lane in list(self._lanes.values()):
            if self._stop.is_set():
                return
            if not lane.wants_run:
                continue
            try:
                self._send(lane)
                self._failures = 0
            except Away as error:
                self._failures += 1
                self._sent = replace(self._sent, last_error=str(error))
                self._lanes[lane.key] = self._lanes.pop(lane.key)  # the next round begins with another
                pause = self._backoff(self._failures)
                break
        self._next_round = time.monotonic() + (
            0.02 if self._drain_timeout_s and not self._failures else pause
        )

    def _send(self, lane: Lane) -> None:
        try:
            run_id = self._run_id(lane)
        except Refused as error:
            for number, op in lane.take_all():
                self._reject(number, op, str(error))
            return
        while lane.log:
            self._log(lane, run_id, batch_of(lane.log, self._sender.max_metrics))
        while lane.statuses and not lane.jobs:
            number, op = lane.statuses[0]
            try:
                self._sender.set_status(run_id, cast(SetStatus, op))
                self.spool.journal.done([number])
            except Refused as error:
                self._reject(number, op, str(error))
            lane.statuses.popleft()

    def _run_id(self, lane: Lane) -> str:
        record = self.spool.runs.record(lane.key)
        if record.run_id is None:
            run_id = None
            if self._resumed or lane.create_tried or lane.create is None:
                run_id = self._sender.find_run(lane.key)
            if run_id is None and lane.create is not None:
                lane.create_tried = True
                run_id = self._sender.create_run(cast(CreateRun, lane.create[1]))
            if run_id is None:
                raise Refused(f"the store has no run of trial {lane.key}")
            record.run_id = run_id
            self.spool.runs.save()
        if lane.create is not None:
            self.spool.journal.done([lane.create[0]])
            lane.create = None
        return record.run_id

    def _log(self, lane: Lane, run_id: str, batch: list[Numbered]) -> None:
        """Send the head of ``lane.log``; of a refused batch, set aside only the operations at fault."""
        try:
            points = self._sender.log(run_id, cast(list[LogOp], [op for _, op in batch]))
        except Refused as error:
            if len(batch) > 1:
                self._log(lane, run_id, batch[: len(batch) // 2])
                self._log(lane, run_id, batch[len(batch) // 2 :])
                return
            self._reject(*batch[0], str(error))
        else:
            self.spool.journal.done([number for number, _ in batch])
            self._count(sent_metrics=points, sent_batches=1)
        for _ in batch:
            lane.log.popleft()

    def _reject(self, number: int, op: dict[str, Any], error: str) -> None:
        logger.warning("the tracking store refused an operation of trial %s: %s", op.get("key"), error)
        self.spool.reject(op, error)
        self.spool.journal.done([number])
        self._sent = replace(self._sent, last_error=error)

    # ---- uploads and deletions

    def _start_jobs(self) -> None:
        now, ready = time.monotonic(), []
        target = self.spool.target
        for lane in self._lanes.values():
            record = self.spool.runs.record(lane.key)
            for job in lane.superseded(record.uploaded, target.keep_checkpoints, target.mode):
                lane.jobs.remove(job)
                self._finish(job)
                self._count(superseded=1)
            if record.run_id is not None:
                ready += [job for job in lane.jobs if not job.running and job.not_before <= now]
        for job in sorted(ready, key=lambda job: job.number or 0)[: max(0, self._pool.free)]:
            job.running = True
            self._pool.submit(job)

    def _work(self, job: Job) -> int:
        """Do a job, in a thread of the pool."""
        run_id = self.spool.runs[job.lane.key].run_id
        assert run_id is not None
        if job.kind == "delete":
            self._sender.delete_checkpoint(run_id, job.op["iteration"])
            return 0
        path = self.spool.directory / job.op["path"]
        if not path.exists():
            raise Refused(f"{path} is gone")
        upload = self._sender.upload_checkpoint if job.kind == "checkpoint" else self._sender.upload_file
        return upload(run_id, path)

    def _settle(self, outcome: Outcome[Job]) -> None:
        job, error = outcome.job, outcome.error
        job.running = False
        job.attempts += 1
        if isinstance(error, Away) and not (job.kind == "delete" and job.attempts >= MAX_DELETE_ATTEMPTS):
            job.not_before = time.monotonic() + self._backoff(job.attempts)
            self._sent = replace(self._sent, last_error=str(error))
            return
        job.lane.jobs.remove(job)
        if error is not None:
            self._give_up(job, error)
            return
        record = self.spool.runs.record(job.lane.key)
        if job.kind == "delete":
            record.uploaded = {i: s for i, s in record.uploaded.items() if i != job.op["iteration"]}
        else:
            self._count(uploads=1, bytes=outcome.size)
        if job.kind == "checkpoint":
            record.uploaded = {**record.uploaded, job.op["iteration"]: job.op["score"]}
            self._prune(job.lane)
        self._dirty = True
        self._finish(job)

    def _finish(self, job: Job) -> None:
        if job.number is not None:
            self.spool.journal.done([job.number])
            self._release.append(job.op["path"])  # only once the journal says on disk that it is done

    def _give_up(self, job: Job, error: BaseException) -> None:
        text = str(error) if isinstance(error, Refused | Away) else f"{type(error).__name__}: {error}"
        if job.number is not None:
            self._reject(job.number, job.op, text)
            return
        if isinstance(error, Refused) and self._can_delete:
            self._can_delete = False
            logger.warning("the tracking store cannot delete checkpoints: %s", text)
        self._leave(job.lane, job.op["iteration"])

    def _prune(self, lane: Lane) -> None:
        """Have the store delete what is neither among the best nor the last of what it has whole."""
        target, uploaded = self.spool.target, self.spool.runs.record(lane.key).uploaded
        surplus = set(uploaded) - checkpoints_to_keep(uploaded, target.keep_checkpoints, target.mode)
        asked = {job.op["iteration"] for job in lane.jobs if job.kind == "delete"}
        for iteration in sorted(surplus - asked):
            if self._can_delete:
                lane.jobs.append(Job(lane, None, {"op": "delete", "iteration": iteration}))
            else:
                self._leave(lane, iteration)

    def _leave(self, lane: Lane, iteration: int) -> None:
        """Let a surplus checkpoint be, and count it."""
        record = self.spool.runs.record(lane.key)
        record.uploaded = {i: s for i, s in record.uploaded.items() if i != iteration}
        self._dirty = True
        self._count(undeletable=1)
