"""The writer: one background thread that sends what the journal holds.

It gathers what was journaled since its last round into few, full requests, waits longer between rounds the
longer the store takes to answer, and goes on trying as long as the sweep runs. Uploads have threads of
their own. Whatever the store has not taken when the process ends, however it ends, is in the spool and
goes up with ``plato flush``.
"""

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from plato_core.tracking.azure import is_azure
from plato_core.tracking.courtesy import Courtesy, meter
from plato_core.tracking.lanes import Lane, Numbered
from plato_core.tracking.ledger import Ledger
from plato_core.tracking.ops import CreateRun, LogOp, Op, SetStatus
from plato_core.tracking.patience import patience_s
from plato_core.tracking.sender import Away, Refused, Sender, batch_of
from plato_core.tracking.spool import Spool
from plato_core.tracking.summary import DrainSummary
from plato_core.tracking.uploads import Uploads

logger = logging.getLogger(__name__)

MIN_PAUSE_S = 0.2
MAX_PAUSE_S = 10.0
ROUND_TRIPS_A_PAUSE = 3
MAX_BACKOFF_S = 30.0
MAX_IN_MEMORY = 5000
LONGEST_UPLOAD_S = 600.0
TOLD_AFTER_S = 20.0  # longer than the pause between two tries of a drain
_LAST_REQUEST_S = 2.0  # that is under way when no more time is left
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
        self._lanes: dict[str, Lane] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._drain_timeout_s: float | None = None
        self._patience_s = 0.0
        self._failures = 0
        self._next_round = 0.0
        self._courtesy = Courtesy()
        self._spent_s = meter(target.tracking_uri)
        self._ledger = Ledger(spool)
        self._uploads = Uploads(self._ledger, self._sender, self._backoff, self._courtesy, self._wake.set)
        self._thread = threading.Thread(target=self._run, name="plato-tracking", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def append(self, op: Op) -> None:
        """Journal an operation. Costs one write to a local file; never waits for the store."""
        self._courtesy.count(op)
        self.spool.journal.append(cast(dict[str, Any], op))

    def drain(
        self,
        timeout_s: float = 60.0,
        on_progress: Callable[[DrainSummary], None] | None = None,
        limit_s: Callable[[], float] = lambda: math.inf,
        patient: bool = False,
    ) -> DrainSummary:
        """Send all that is left, and close.

        Goes on as long as there is progress, however long that takes; nothing may be appended any more.

        Args:
            timeout_s: Give up after so many seconds without progress.
            on_progress: Called now and then with what was done so far, and when the store has not answered for a while.
            limit_s: Give up after so many seconds in any case; asked again and again.
            patient: Whether a store on another machine that is away or throttles gets `patience_s` instead.

        Returns:
            What was sent. The spool is removed when nothing is left in it, and named otherwise.
        """
        self._drain_timeout_s = timeout_s
        self._patience_s = patience_s(self.spool.target.tracking_uri) if patient else 0.0
        self._wake.set()
        seen, told, began = -1, False, time.monotonic()
        since = began
        while self._pending() and self._thread.is_alive() and time.monotonic() - began < limit_s():
            self._thread.join(0.05)
            waited_s = time.monotonic() - since
            if (finished := self.spool.journal.finished) != seen:
                now = self.summary()
                if seen >= 0:  # it takes something again; what still fails is behind by its own pause
                    now = replace(now, last_error=None)
                seen, since, told = finished, time.monotonic(), now.last_error is not None
                if on_progress:
                    on_progress(now)
            elif waited_s > self._gives_up_s(timeout_s):
                break
            elif waited_s > TOLD_AFTER_S and self.failing and not told:
                told = True
                if on_progress:
                    on_progress(self.summary())
        return self.close()

    def _gives_up_s(self, timeout_s: float) -> float:
        # A big file is one operation: as long as its upload runs, HTTP's own time-outs decide.
        longest = max(timeout_s, LONGEST_UPLOAD_S) if self._uploads.running else timeout_s
        refused = self.failing and not self._ledger.passes
        return longest if refused else max(longest, self._patience_s)

    def close(self) -> DrainSummary:
        """Stop without sending the rest, which stays in the spool."""
        self._stop.set()
        self._wake.set()
        self._thread.join(_LAST_REQUEST_S)
        summary = self.summary()
        if self._thread.is_alive():  # in a request that hangs; the thread ends with the process, and so does the lock
            return summary
        self.spool.close(remove=summary.complete)
        return replace(summary, spool=None) if summary.complete else summary

    def summary(self) -> DrainSummary:
        """What was done so far."""
        return replace(
            self._ledger.sent,
            pending_ops=self._pending(),
            rejected=self.spool.rejected,
            spool=self.spool.directory,
            last_error=self._ledger.sent.last_error if self.failing else None,
            gives_up_s=None if self._drain_timeout_s is None else self._gives_up_s(self._drain_timeout_s),
        )

    @property
    def failing(self) -> bool:
        """Whether the store did not answer when it was last tried, or is left alone after a bug of the writer."""
        waiting = (job for lane in list(self._lanes.values()) for job in list(lane.jobs))
        return self._failures > 0 or not self._thread.is_alive() or any(job.attempts for job in waiting)

    def _pending(self) -> int:
        deletions = sum(job.kind == "delete" for lane in list(self._lanes.values()) for job in list(lane.jobs))
        return self.spool.journal.pending + deletions

    # ---- the thread

    def _run(self) -> None:
        try:
            hurried = False
            while not self._stop.is_set():
                if self._drain_timeout_s is not None and not hurried:
                    hurried = True
                    self._hurry()
                self._round()
                self._wake.wait(self._pause())
                self._wake.clear()
            self._ledger.commit()
        except Exception as error:  # a bug, or the disk: the spool has it all, and the summary says why it stayed
            logger.exception("the tracking writer stopped; what is left stays in %s", self.spool.directory)
            self._ledger.note_error(f"{type(error).__name__}: {error}")
        finally:
            self._uploads.close()

    def _round(self) -> None:
        self._uploads.settle()
        if time.monotonic() >= self._next_round:
            self._read()
            self._send_all()
        self._uploads.start(self._lanes.values())
        self._ledger.commit()

    def _pause(self) -> float:
        """Seconds until there may be something to do."""
        now = time.monotonic()
        times = [job.not_before for lane in self._lanes.values() for job in lane.jobs if not job.running]
        soonest = min([self._next_round, *(t for t in times if t > now)])
        return max(0.0, soonest - now)

    def _backoff(self, attempts: int) -> float:
        ceiling = MAX_BACKOFF_S if self._drain_timeout_s is None else min(MAX_BACKOFF_S, self._drain_timeout_s / 4)
        return random.uniform(0.5, 1.0) * min(ceiling, 0.25 * 2 ** min(attempts, 10))

    def _hurry(self) -> None:
        self._courtesy.hurry()
        self._uploads.hurry()
        self._failures, self._next_round = min(self._failures, 1), 0.0  # it is still away, as far as is known
        for lane in self._lanes.values():
            for job in lane.jobs:
                job.not_before = 0.0

    def _read(self) -> None:
        room = MAX_IN_MEMORY - sum(len(lane.log) for lane in self._lanes.values())
        for number, op in self.spool.journal.read(max(0, room)):
            if op["op"] not in _KINDS:
                self._ledger.reject(number, op, "not an operation")
                continue
            if self.spool.journal.cursor_lost and "path" in op and not (self.spool.directory / op["path"]).exists():
                self.spool.journal.done([number])  # it was let go of, so it was sent
                continue
            self.spool.runs.record(op["key"]).note(op)
            self._ledger.runs_changed = True
            lane = self._lanes.get(op["key"])
            if lane is None:
                lane = self._lanes[op["key"]] = Lane(op["key"])
                self._uploads.prune(lane)
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
                rest_s = self._send(lane)
                self._failures = 0
            except Away as error:
                self._failures += 1
                self._ledger.note_away(error)
                rest_s = self._backoff(self._failures)
            if rest_s:
                self._lanes[lane.key] = self._lanes.pop(lane.key)  # the next round begins with another
                pause = rest_s if self._failures else max(pause, rest_s)
                break
        self._next_round = time.monotonic() + (0.02 if self._drain_timeout_s and not self._failures else pause)

    def _send(self, lane: Lane) -> float:
        """Send what a lane has, until the loop is to be left alone for a while; returns for how many seconds."""
        began = self._spent_s()

        def rest_s() -> float:
            nonlocal began
            spent, began = self._spent_s() - began, self._spent_s()
            return self._courtesy.pause_s(spent)

        try:
            run_id = self._run_id(lane)
        except Refused as error:
            for number, op in lane.take_all():
                self._ledger.reject(number, op, str(error))
            return 0.0
        while lane.log:
            self._log(lane, run_id, batch_of(lane.log, self._sender.max_metrics))
            if rest := rest_s():
                return rest
        while lane.statuses and (not lane.jobs or self._ends_before_its_uploads(lane)):
            number, op = lane.statuses[0]
            try:
                self._sender.set_status(run_id, cast(SetStatus, op))
                self.spool.journal.done([number])
            except Refused as error:
                self._ledger.reject(number, op, str(error))
            lane.statuses.popleft()
        return rest_s()

    def _ends_before_its_uploads(self, lane: Lane) -> bool:
        # Of a sweep that was stopped, whose uploads may hang. Whether Azure ML takes files of a run that has ended is
        # not known; there the runs of a job that is cancelled are ended from outside.
        return lane.statuses[0][1]["status"] == "KILLED" and not is_azure(self.spool.target.tracking_uri)

    def _run_id(self, lane: Lane) -> str:
        record = self.spool.runs.record(lane.key)
        if not lane.run_known:
            # What an earlier process, or a request without an answer, came to is what the store says: what is written
            # here may be older, or lost.
            found = self._sender.find_run(lane.key) if self.spool.used_before or lane.create_tried else None
            if found is not None:
                record.run_id, lane.sent_before = found.run_id, found.step
                if lane.create is not None and not found.running:
                    self._sender.take_up(found.run_id)
            elif record.run_id is None and lane.create is not None:
                lane.create_tried = True
                record.run_id = self._sender.create_run(cast(CreateRun, lane.create[1]))
            if record.run_id is None:
                raise Refused(f"the store has no run of trial {lane.key}")
            lane.run_known = True
            self.spool.runs.save()
        assert record.run_id is not None
        if lane.create is not None:
            self.spool.journal.done([lane.create[0]])
            lane.create = None
        return record.run_id

    def _log(self, lane: Lane, run_id: str, batch: list[Numbered]) -> None:
        """Send the head of ``lane.log``; of a refused batch, set aside only the operations at fault."""
        # A step that is trained again is other points for MLflow, which would keep both.
        ops = [op for _, op in batch if op["op"] != "metrics" or op["step"] > lane.sent_before]
        try:
            points = self._sender.log(run_id, cast(list[LogOp], ops)) if ops else 0
        except Refused as error:
            if len(batch) > 1:
                self._log(lane, run_id, batch[: len(batch) // 2])
                self._log(lane, run_id, batch[len(batch) // 2 :])
                return
            self._ledger.reject(*batch[0], str(error))
        else:
            self.spool.journal.done([number for number, _ in batch])
            self._ledger.count(sent_metrics=points, sent_batches=1)
        for _ in batch:
            lane.log.popleft()
