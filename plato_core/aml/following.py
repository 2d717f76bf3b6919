"""The job of a sweep, from this machine: found or submitted, its log read as the sweep's events, cancelled, mourned."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from plato_core.aml.client import JobClient, JobState
from plato_core.aml.diagnosis import Evidence, diagnose
from plato_core.aml.job import COMMAND, JobSpec, job_spec
from plato_core.aml.joblog import EVENT, JobLog
from plato_core.aml.jobnote import JobNote, job_name
from plato_core.aml.jobsettings import ORDER
from plato_core.aml.sweepsettings import SweepJobFields
from plato_core.aml.workspace import Workspace
from plato_core.config import SweepConfig
from plato_core.errors import AmlError, AmlUnavailable, PlatoError, SweepError, TrackingError
from plato_core.report.text import plain
from plato_core.resuming import BUDGET
from plato_core.sweep.events import Event, Failed, Phase, SweepEnded, parse
from plato_core.sweep.protocol import TRACKING_FOLDER, Go, SweepOrder
from plato_core.tracking.left_running import end_left_running
from plato_core.tracking.runs import RunTable, note_ended

T = TypeVar("T")
_WAITS_S = (5.0, 10.0, 20.0, 40.0, 60.0)  # between tries while Azure ML does not answer; the last one again and again
_SUBMIT_WITHIN_S = 600.0
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
        workspace: That the job is in.
        go: Where the sweep is tracked.
        take: Takes what the sweep tells.
    """

    def __init__(
        self,
        config: SweepConfig,
        sweep_dir: Path,
        settings: SweepJobFields,
        workspace: Workspace,
        go: Go,
        take: Callable[[Event], None],
    ) -> None:
        self._config, self._sweep_dir, self._settings, self._go, self._take = config, sweep_dir, settings, go, take
        self._workspace, self._jobs = workspace, JobClient(workspace)
        self._wake = threading.Event()
        self._cancelling = self._leaving = False
        self._asked_at: float | None = None
        self._misses = 0
        self._told = ""
        self.name = ""

    def cancel(self) -> None:
        """Has the job cancelled, and goes on following it."""
        self._cancelling = True
        self._wake.set()

    def leave(self) -> None:
        """Has `follow` return soon; the job goes on."""
        self._leaving = True
        self._wake.set()

    def follow(self) -> None:
        """Tells what the job tells, until its sweep has ended.

        Raises:
            PlatoError: The job could not be submitted, or died; with a diagnosis.
        """
        if self._find_or_submit():
            self._watch()

    def _find_or_submit(self) -> bool:
        """Says whether there is a job to follow: not where the sweep was told to stop before."""
        note = JobNote.read(self._sweep_dir)
        job = None if note is None else self._patiently(lambda: self._jobs.find(note.name))
        while job is not None and job.status == "CancelRequested" and not self._stopping():
            self._say(f"waiting for the end of job {job.name}")
            self._pause()
            job = self._patiently(lambda: self._jobs.find(self._named(note)))
        budget = {name: getattr(self._config, name) for name in BUDGET}
        if note is not None and job is not None and self._is_to_follow(job, note, budget):
            self.name = note.name
            self._take(Phase(text=f"job {self.name} is there already ({job.status}); following it"))
            return True
        number = 0 if note is None else note.number + (job is not None)
        self.name = job_name(self._sweep_dir.name, number)
        spec = self._spec()
        if self._stopping():
            return False
        JobNote(
            name=self.name,
            number=number,
            workspace=self._workspace,
            storage=self._settings.storage,
            budget=budget,
        ).write(self._sweep_dir)
        self._take(Phase(text=f"submitting job {self.name} to {self._workspace}"))
        self._patiently(lambda: self._jobs.check_compute(spec.compute, spec.instance_count))
        self._patiently(lambda: self._submit(spec))
        return True

    def _named(self, note: JobNote | None) -> str:
        assert note is not None
        return note.name

    def _is_to_follow(self, job: JobState, note: JobNote, budget: dict[str, object]) -> bool:
        """A job that lives is; one that has done all that it was asked for is too: its log has what the sweep told."""
        return not job.ended or (job.status == "Completed" and note.budget == budget)

    def _submit(self, spec: JobSpec) -> None:
        """Submits the job; one that is there after an error, by this request or an earlier one, is submitted."""
        try:
            self._jobs.submit(spec)
        except PlatoError:
            if self._jobs.find(spec.name) is None:
                raise

    def _spec(self) -> JobSpec:
        config, sweep_id = self._config, self._sweep_dir.name
        known = RunTable.of_spool(self._sweep_dir / TRACKING_FOLDER)
        ended = {trial: one.run_id for trial, one in known.items() if one.ended and one.run_id is not None}
        order = SweepOrder(sweep_id=sweep_id, config=config.flow_parameters(), go=self._go, ended=ended)
        return job_spec(
            self._settings,
            name=self.name,
            display_name=f"{config.algorithm} {config.env_name} x{config.num_tune_samples} {sweep_id}",
            command=COMMAND,
            experiment=config.experiment_name,
            tags={"plato.job_of": sweep_id},  # not as the sweep's own runs have it: the job's run is none of them
            env=self._settings.env | {ORDER: order.model_dump_json()},
        )

    def _watch(self) -> None:
        seen = _Seen()
        while not self._leaving:
            job = self._ask(lambda: self._jobs.find(self.name))
            if self._misses == 0:
                seen.note(job)
                if seen.unknown >= _GONE or seen.silent_s() >= _SILENT_S:
                    if job is not None:
                        self._ask(lambda: self._jobs.cancel(self.name))
                    self._mourn(seen, job)
                    return
            if job is not None:
                self._tell_status(job)
                if self._read(seen, job) or (job.ended and self._conclude(seen, job)):
                    return
                self._cancel_if_asked()
            self._pause()

    def _tell_status(self, job: JobState) -> None:
        first = self._told == ""
        page = f": {job.studio_url}" if first and job.studio_url else ""
        self._say(f"job {job.name} is {job.status}", page)

    def _say(self, text: str, more: str = "") -> None:
        if text != self._told:
            self._told = text
            self._take(Phase(text=text + more))

    def _read(self, seen: _Seen, job: JobState) -> bool:
        """Passes on what the log has that is new; says whether the sweep has ended by its own word."""
        if not (job.ended or job.status in ("Running", "Finalizing", "CancelRequested")):
            seen.stopped = None  # the node was taken away in order, and the job begins again
            return False
        log = seen.log = seen.log or JobLog(self._jobs, job.name, job.experiment, _filter=_Lines())  # type: ignore[arg-type]
        while lines := self._ask(lambda: log.new_lines(job.ended)):
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
        if self._misses and seen.unread():
            return False  # its log is there, and could not be read just now
        if seen.stopped is not None or self._cancelling:
            self._end_runs()
            message = "" if seen.stopped is None else seen.stopped.message
            self._take(self._ended("stopped", message or f"its job {job.name} has ended"))
        elif job.status == "Completed":
            self._take(Phase(text=f"job {job.name} is Completed; its log could not be read"))
            self._take(self._ended("finished", "the job's log could not be read"))
        else:
            self._mourn(seen, job)
        return True

    def _ended(self, outcome: str, message: str) -> SweepEnded:
        return SweepEnded.model_validate(
            {"outcome": outcome, "fit_s": 0.0, "training_slot_s": 0.0, "slots": 0, "message": message}
            | {"trials": self._config.num_tune_samples}
        )

    def _mourn(self, seen: _Seen, job: JobState | None) -> None:
        """Raises what the job died of."""
        failure = None if job is None else self._ask(lambda: self._jobs.failure(job.name))
        log = seen.log
        if log is None and job is not None:
            log = JobLog(self._jobs, job.name, job.experiment)
        tail = (self._ask(lambda: log.tail(_TAIL)) if log is not None else None) or []
        diagnosis = diagnose(
            Evidence(
                status=job.status if job is not None else "",
                code=failure.code if failure else "",
                message=failure.message if failure else "",
                tail=[line for line in tail if not line.startswith(EVENT)],
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
        with contextlib.suppress(TrackingError):
            end_left_running(
                self._config.store_uri,
                self._config.experiment_name,
                self._sweep_dir.name,
                None,
                ended_ms=time.time_ns() // 1_000_000,
                error=None,
                found=lambda runs: note_ended(
                    self._sweep_dir / TRACKING_FOLDER,
                    {run.trial_id: run.run_id for run in runs if run.trial_id is not None},
                ),
            )

    def _cancel_if_asked(self) -> None:
        if not self._cancelling:
            return
        if self._asked_at is None or time.monotonic() - self._asked_at >= _AGAIN_S:
            self._asked_at = time.monotonic()
            self._say(f"cancelling job {self.name}")
            self._ask(lambda: self._jobs.cancel(self.name))

    def _ask(self, question: Callable[[], T]) -> T | None:
        """Returns what Azure ML answers; None, and a miss counted, if it does not, which says nothing of the job."""
        try:
            answer = question()
        except AmlError as error:
            self._misses += 1
            self._say(f"Azure ML could not be asked about job {self.name}; trying again. {plain(str(error))}")
            return None
        self._misses = 0
        return answer

    def _patiently(self, question: Callable[[], T]) -> T:
        """Returns what Azure ML answers, for some minutes also if it does not at once.

        Raises:
            PlatoError: It refuses, or did not answer for `_SUBMIT_WITHIN_S`.
        """
        deadline, tries = time.monotonic() + _SUBMIT_WITHIN_S, 0
        while True:
            try:
                return question()
            except AmlUnavailable as error:
                wait_s = _WAITS_S[min(tries, len(_WAITS_S) - 1)]
                if self._stopping() or time.monotonic() + wait_s > deadline:
                    raise
                tries += 1
                self._say(f"{plain(str(error))}; trying again in {wait_s:.0f} s")
                self._wake.wait(wait_s)

    def _stopping(self) -> bool:
        return self._cancelling or self._leaving

    def _pause(self) -> None:
        backoff = _WAITS_S[min(self._misses, len(_WAITS_S)) - 1] if self._misses else 0.0
        self._wake.wait(max(self._settings.poll_interval_s, backoff))
        self._wake.clear()


@dataclass
class _Seen:
    """What was seen of a job."""

    log: JobLog | None = None
    stopped: SweepEnded | None = None
    unknown: int = 0
    _silent_since: float | None = field(default=None)

    def note(self, job: JobState | None) -> None:
        self.unknown = self.unknown + 1 if job is None else 0
        if job is None or job.status != "NotResponding":
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = time.monotonic()

    def silent_s(self) -> float:
        return 0.0 if self._silent_since is None else time.monotonic() - self._silent_since

    def unread(self) -> bool:
        return self.log is not None


class _Lines:
    """Keeps every line of a log as it is."""

    def kept(self, lines: list[str]) -> list[str]:
        return lines
