"""The job of a sweep, from this machine: its log read as the sweep's events, cancelled, mourned."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from plato_core.aml.client import JobClient, JobState
from plato_core.aml.diagnosis import Diagnosis, Evidence, diagnose
from plato_core.aml.joblog import EVENT, JobLog
from plato_core.aml.placing import Placing
from plato_core.aml.sweepsettings import SweepJobFields
from plato_core.aml.talk import Talk
from plato_core.config import SweepConfig
from plato_core.errors import SweepError, TrackingError
from plato_core.sweep.events import Event, Failed, SweepEnded, TrackingState, parse
from plato_core.sweep.protocol import TRACKING_FOLDER, Go
from plato_core.tracking.left_running import LeftRun, end_left_running
from plato_core.tracking.runs import note_ended

_ON_NODES = ("Running", "Finalizing", "CancelRequested")
_GONE = 3  # so many times a job must be unknown before it counts as gone
_SILENT_S = 900.0  # of a job that is NotResponding
_AGAIN_S = 60.0  # between two requests to cancel
_SELDOM_S = 60.0  # between two questions about a job that waits: each after a tenth of its wait, this at most
_LOG_WITHIN_S = 300.0  # of a job's end, its log must be readable
_TAIL = 40


class Following:
    """One sweep's job.

    Args:
        config: The sweep's.
        sweep_dir: The sweep's folder on this machine.
        settings: Of the job.
        jobs: Of the workspace.
        go: Where the sweep is tracked.
        take: Takes what the sweep tells.

    Attributes:
        name: Of the job; empty before there is one.
    """

    def __init__(
        self,
        config: SweepConfig,
        sweep_dir: Path,
        settings: SweepJobFields,
        jobs: JobClient,
        go: Go,
        take: Callable[[Event], None],
    ) -> None:
        self._config, self._sweep_dir, self._settings, self._take = config, sweep_dir, settings, take
        self._jobs = jobs
        self._talk = Talk(settings.poll_interval_s, take)
        self._placing = Placing(config, sweep_dir, settings, jobs, go, self._talk, self._set_name)
        self._cancelling = self._leaving = False
        self._asked_at: float | None = None
        self.name = ""

    @property
    def cancel_was_heard(self) -> bool:
        """Whether Azure ML has taken the request to cancel the job; there may be no job."""
        return self.name == "" or self._asked_at is not None

    def cancel(self) -> None:
        """Has the job cancelled, and goes on following it."""
        self._cancelling = True
        self._talk.hurry()

    def leave(self) -> None:
        """Has `follow` return soon; the job goes on, or goes on ending."""
        self._leaving = True
        self._talk.hurry()

    def cancel_what_is_left(self) -> None:
        """Cancels the job where `follow` has failed, if it still does something; does not wait for its end."""
        if self.name and self._asked_at is None:
            job = self._talk.ask(self._jobs.find, self.name)
            if job is not None and not job.ended:
                self._cancel()

    def follow(self) -> None:
        """Tells what the job tells, until its sweep has ended.

        Raises:
            PlatoError: The job could not be submitted, or died; with a diagnosis.
        """
        while True:
            placed = self._placing.place(lambda: self._cancelling or self._leaving)
            if placed is None or (ended := self._watch()) is None:
                return
            if placed.enough or not isinstance(ended, SweepEnded) or ended.outcome != "finished":
                self._take(ended)
                return
            self._talk.say(f"job {self.name} is done; the larger budget is for the next one")
            while (job := self._talk.ask(self._jobs.find, self.name)) is None or not job.ended:
                self._talk.pause()
                if self._leaving:
                    return

    def _set_name(self, name: str) -> None:
        self.name, self._asked_at = name, None

    def _watch(self) -> SweepEnded | Failed | None:
        """Returns the sweep's last word; None where nobody wants to hear it any more."""
        seen = _Seen()
        while not self._leaving or (self._cancelling and self._asked_at is None):
            if self._cancelling and (self._asked_at is None or time.monotonic() - self._asked_at >= _AGAIN_S):
                self._cancel()
            job = self._talk.ask(self._jobs.find, self.name)
            if self._talk.misses == 0:
                seen.note(job)
                if seen.is_dead():
                    if job is not None:
                        self._talk.ask(self._jobs.cancel, self.name)
                    self._mourn(seen, job)
            if job is not None:
                page = f": {job.studio_url}" if seen.status == "" and job.studio_url else ""
                seen.status = job.status
                self._talk.say(f"job {job.name} is {job.status}", page)
                if (ended := self._read(seen, job)) is not None:
                    return ended
                if job.ended and (ended := self._conclude(seen, job)) is not None:
                    return ended
            self._talk.pause(0.0 if job is None or job.status in _ON_NODES else min(_SELDOM_S, 0.1 * seen.waited_s()))
        return None

    def _cancel(self) -> None:
        self._talk.say(f"cancelling job {self.name}")
        self._talk.ask(self._jobs.cancel, self.name)
        if self._talk.misses == 0:
            self._asked_at = time.monotonic()

    def _read(self, seen: _Seen, job: JobState) -> SweepEnded | Failed | None:
        """Passes on what the log has that is new; returns the sweep's last word once it is there."""
        if not job.ended and job.status not in _ON_NODES:
            seen.stopped = None  # the node was taken away in order, and the job begins again
            return None
        log = seen.log = seen.log or JobLog(self._jobs, job.name, job.experiment, raw=True)
        while lines := self._talk.ask(log.new_lines, job.ended):
            for line in lines:
                event = parse(line.removeprefix(EVENT).encode()) if line.startswith(EVENT) else None
                if isinstance(event, SweepEnded) and event.outcome == "stopped":
                    seen.stopped = event  # for good only if the job does not begin again
                elif isinstance(event, SweepEnded | Failed):
                    return event
                elif event is not None:
                    seen.stopped = None
                    self._take(event)
            if not log.behind or self._cancelling or self._leaving:
                break
        return None

    def _conclude(self, seen: _Seen, job: JobState) -> SweepEnded | None:
        """The end of a job whose sweep has not said how it ended; None while its log may still be read."""
        if self._talk.misses and seen.waited_s() < _LOG_WITHIN_S:
            return None
        if seen.log is not None and seen.log.behind and not self._cancelling and self._talk.misses == 0:
            return None
        if self._cancelling:
            self._end_runs()
            return seen.stopped or self._ended("stopped", f"its job {job.name} has ended")
        if job.status == "Completed":
            self._talk.say(f"job {job.name} is Completed; its log could not be read")
            self._take(TrackingState())  # with anything left to send it would have failed
            return self._ended("finished", "the job's log could not be read")
        if seen.stopped is not None and not self._diagnosis(seen, job).is_time_limit:
            self._end_runs()
            return seen.stopped
        self._mourn(seen, job)
        raise AssertionError("to mourn is to raise")

    def _ended(self, outcome: Literal["finished", "stopped"], message: str) -> SweepEnded:
        trials = self._config.num_tune_samples
        return SweepEnded(
            outcome=outcome, fit_s=0.0, training_slot_s=0.0, slots=0, trials=trials, message=message, spool=None
        )

    def _diagnosis(self, seen: _Seen, job: JobState | None) -> Diagnosis:
        failure, tail = None, None
        if job is not None:
            failure = self._talk.ask(self._jobs.failure, job.name)
            log = seen.log or JobLog(self._jobs, job.name, job.experiment)
            tail = self._talk.ask(log.tail, _TAIL)
        return diagnose(
            Evidence(
                status=job.status if job is not None else "",
                code=failure.code if failure else "",
                message=failure.message if failure else "",
                tail=[line for line in tail or () if not line.startswith(EVENT)],
                ran=seen.log is not None,
                seconds=seen.ran_s(),
                timeout_seconds=self._settings.timeout_seconds,
                compute=self._settings.compute,
                way_on="Go on with the sweep.",
                prefect=False,
            )
        )

    def _mourn(self, seen: _Seen, job: JobState | None) -> NoReturn:
        """Raises what the job died of."""
        diagnosis = self._diagnosis(seen, job)
        self._end_runs()
        page = f" {job.studio_url}" if job is not None and job.studio_url else ""
        raise SweepError(f"sweep {self._sweep_dir.name}, job {self.name}: {diagnosis.message}{page}")

    def _end_runs(self) -> None:
        """Ends the trials' runs that the job has left RUNNING; the flow ends the sweep's own."""

        def note(runs: list[LeftRun]) -> None:
            ended = {run.trial_id: run.run_id for run in runs if run.trial_id is not None}
            note_ended(self._sweep_dir / TRACKING_FOLDER, ended)

        config, now_ms = self._config, time.time_ns() // 1_000_000
        with contextlib.suppress(TrackingError):
            end_left_running(
                config.store_uri, config.experiment_name, self._sweep_dir.name, None,
                ended_ms=now_ms, error=None, found=note,
            )  # fmt: skip


@dataclass
class _Seen:
    """What was seen of a job."""

    log: JobLog | None = None
    stopped: SweepEnded | None = None
    _status: str = ""
    _since: float = field(default_factory=time.monotonic)
    _ran_since: float | None = None
    _unknown: int = 0

    @property
    def status(self) -> str:
        return self._status

    @status.setter
    def status(self, value: str) -> None:
        if value != self._status:
            self._status, self._since = value, time.monotonic()
        if value == "Running" and self._ran_since is None:
            self._ran_since = time.monotonic()

    def note(self, job: JobState | None) -> None:
        """Counts how often it was unknown."""
        self._unknown = self._unknown + 1 if job is None else 0

    def is_dead(self) -> bool:
        """Whether it is unknown, or has given no sign of life, for too long."""
        return self._unknown >= _GONE or (self._status == "NotResponding" and self.waited_s() >= _SILENT_S)

    def waited_s(self) -> float:
        """For how long it has had its status."""
        return time.monotonic() - self._since

    def ran_s(self) -> float | None:
        return None if self._ran_since is None else time.monotonic() - self._ran_since
