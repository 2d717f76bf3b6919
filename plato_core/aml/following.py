"""The job of a sweep, from this machine: its log read as the sweep's events, cancelled, mourned."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plato_core.aml.client import JobClient, JobState
from plato_core.aml.diagnosis import Evidence, diagnose
from plato_core.aml.joblog import EVENT, JobLog
from plato_core.aml.placing import Placing
from plato_core.aml.sweepsettings import SweepJobFields
from plato_core.aml.talk import Talk
from plato_core.config import SweepConfig
from plato_core.errors import SweepError, TrackingError
from plato_core.sweep.events import Event, Failed, Phase, SweepEnded, parse
from plato_core.sweep.protocol import TRACKING_FOLDER, Go
from plato_core.tracking.left_running import LeftRun, end_left_running
from plato_core.tracking.runs import note_ended

_ON_NODES = ("Running", "Finalizing", "CancelRequested")
_GONE = 3  # so many times a job must be unknown before it counts as gone
_SILENT_S = 900.0  # of a job that is NotResponding
_AGAIN_S = 60.0  # between two requests to cancel
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
        self._placing = Placing(config, sweep_dir, settings, jobs, go, self._talk)
        self._cancelling = self._leaving = False
        self._asked_at: float | None = None
        self.name = ""

    def cancel(self) -> None:
        """Has the job cancelled, and goes on following it."""
        self._cancelling = True
        self._talk.hurry()

    def leave(self) -> None:
        """Has `follow` return soon; the job goes on."""
        self._leaving = True
        self._talk.hurry()

    def follow(self) -> None:
        """Tells what the job tells, until its sweep has ended.

        Raises:
            PlatoError: The job could not be submitted, or died; with a diagnosis.
        """
        name = self._placing.place(lambda: self._cancelling or self._leaving)
        if name is None:
            return
        self.name, seen, status = name, _Seen(), ""
        while not self._leaving:
            job = self._talk.ask(lambda: self._jobs.find(self.name))
            if self._talk.misses == 0:
                seen.note(job)
                if seen.is_dead():
                    if job is not None:
                        self._talk.ask(lambda: self._jobs.cancel(self.name))
                    self._mourn(seen, job)
            if job is not None:
                page = f": {job.studio_url}" if not status and job.studio_url else ""
                status = job.status
                self._talk.say(f"job {job.name} is {job.status}", page)
                if self._read(seen, job) or (job.ended and self._conclude(seen, job)):
                    return
                self._cancel_if_asked()
            self._talk.pause()

    def _read(self, seen: _Seen, job: JobState) -> bool:
        """Passes on what the log has that is new; says whether the sweep has ended by its own word."""
        if not job.ended and job.status not in _ON_NODES:
            seen.stopped = None  # the node was taken away in order, and the job begins again
            return False
        log = seen.log = seen.log or JobLog(self._jobs, job.name, job.experiment, raw=True)
        while lines := self._talk.ask(lambda: log.new_lines(job.ended)):
            for line in lines:
                event = parse(line.removeprefix(EVENT).encode()) if line.startswith(EVENT) else None
                if isinstance(event, SweepEnded) and event.outcome == "stopped":
                    seen.stopped = event  # for good only if the job does not begin again
                elif event is not None:
                    self._take(event)
                    if isinstance(event, SweepEnded | Failed):
                        return True
        return False

    def _conclude(self, seen: _Seen, job: JobState) -> bool:
        """The end of a job whose sweep has not said how it ended."""
        if self._talk.misses:
            return False  # its log could not be read just now
        if seen.stopped is not None or self._cancelling:
            self._end_runs()
            self._take(seen.stopped or self._ended("stopped", f"its job {job.name} has ended"))
        elif job.status == "Completed":
            self._take(Phase(text=f"job {job.name} is Completed; its log could not be read"))
            self._take(self._ended("finished", "the job's log could not be read"))
        else:
            self._mourn(seen, job)
        return True

    def _ended(self, outcome: Literal["finished", "stopped"], message: str) -> SweepEnded:
        trials = self._config.num_tune_samples
        return SweepEnded(
            outcome=outcome, fit_s=0.0, training_slot_s=0.0, slots=0, trials=trials, message=message, spool=None
        )

    def _mourn(self, seen: _Seen, job: JobState | None) -> None:
        """Raises what the job died of."""
        failure, tail = None, None
        if job is not None:
            failure = self._talk.ask(lambda: self._jobs.failure(job.name))
            log = seen.log or JobLog(self._jobs, job.name, job.experiment)
            tail = self._talk.ask(lambda: log.tail(_TAIL))
        diagnosis = diagnose(
            Evidence(
                status=job.status if job is not None else "",
                code=failure.code if failure else "",
                message=failure.message if failure else "",
                tail=[line for line in tail or () if not line.startswith(EVENT)],
                ran=seen.log is not None,
                timeout_seconds=self._settings.timeout_seconds,
                compute=self._settings.compute,
                way_on="Go on with the sweep.",
            )
        )
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

    def _cancel_if_asked(self) -> None:
        again = self._asked_at is None or time.monotonic() - self._asked_at >= _AGAIN_S
        if self._cancelling and again:
            self._asked_at = time.monotonic()
            self._talk.say(f"cancelling job {self.name}")
            self._talk.ask(lambda: self._jobs.cancel(self.name))


@dataclass
class _Seen:
    """What was seen of a job."""

    log: JobLog | None = None
    stopped: SweepEnded | None = None
    _unknown: int = 0
    _silent_since: float | None = field(default=None)

    def note(self, job: JobState | None) -> None:
        self._unknown = self._unknown + 1 if job is None else 0
        if job is None or job.status != "NotResponding":
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = time.monotonic()

    def is_dead(self) -> bool:
        """Whether it is unknown, or has given no sign of life, for too long."""
        silent = self._silent_since is not None and time.monotonic() - self._silent_since >= _SILENT_S
        return silent or self._unknown >= _GONE
