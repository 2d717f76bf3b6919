"""One job, followed for its flow run: its states, its log, its cancellation, its end.

The flow inside the job tells the Prefect API by itself what it does, and ends in order when its run is cancelled. What
it cannot tell is told here: that the job waits in a queue, that it has to be cancelled there, that it is dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.to_thread import run_sync
from prefect.client.schemas.actions import LogCreate
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Pending
from prefect.types._datetime import now
from prefect.utilities.engine import propose_state

from plato_core.aml.client import JobClient, JobState
from plato_core.aml.diagnosis import Evidence, diagnose, shown_tail
from plato_core.aml.joblog import JobLog
from plato_core.errors import AmlError
from plato_core.report.text import plain

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

    from plato_core.aml.pool import AzureMLJobConfiguration

T = TypeVar("T")
Say = Callable[["FlowRun", str], Awaitable[None]]
LOG_LABEL = "plato.job-log"
_RUNNING = frozenset({"Running", "Finalizing", "CancelRequested"})
_WAITING = frozenset({"NotStarted", "Queued", "Preparing", "Provisioning", "Starting"})
_BATCH = 400  # log lines of one request
_GONE = 3  # so many times a job must be unknown before it counts as gone
_SILENT_S = 900.0  # of a job that is NotResponding
_SETTLE = 3  # polls in which a flow's last report may still come after its job's end
_AFTER_END_S = 1800.0  # for a job that goes on after its flow has ended: nobody is to pay for it for ever
_AGAIN_S = 60.0  # between two requests to cancel
_MOST_S = 60.0  # between two polls, while Azure ML or Prefect does not answer


@dataclass
class JobWatch:
    """A job and its flow run.

    Args:
        name: Of the job.
        flow_run: As it was when the watch began.
        configuration: Of the flow run.
        jobs: The workspace's jobs.
        prefect: A client of the Prefect API.
        logger: Of the flow run.
        crashed: Marks a flow run Crashed, with a message.
        cancelled: Marks a flow run Cancelled, with a message.
    """

    name: str
    flow_run: FlowRun
    configuration: AzureMLJobConfiguration
    jobs: JobClient
    prefect: PrefectClient
    logger: logging.Logger | logging.LoggerAdapter[Any]
    crashed: Say
    cancelled: Say
    _status: str = ""
    _on_nodes: bool = False
    _ran_since: float | None = None
    _silent_since: float | None = None
    _over_since: float | None = None
    _asked_to_cancel: float | None = None
    _unknown: int = 0
    _misses: int = 0
    _log: JobLog | None = None
    _log_lines: int = 0
    _studio_url: str = ""
    _told: set[str] = field(default_factory=set)

    async def follow(self) -> None:
        """Return when the job has ended, or is gone, and its flow run has a final state."""
        while True:
            run = await self._read_run()
            if run is None:  # deleted, with all that could be said about it
                await self._end("Its flow run was deleted")
                return
            found = await self._ask(self.jobs.find, self.name)
            job = found[0] if found else None
            if found:
                self._unknown = 0 if job is not None else self._unknown + 1
                if self._unknown >= _GONE:
                    await self._cancel("It is unknown")
                    await self._conclude(run, None)
                    return
            if job is not None:
                await self._tell(run, job)
                await self._copy_log(job)
                if job.ended or self._silent(job):
                    if not job.ended:
                        await self._cancel(f"It is {job.status} for long")
                    await self._conclude(run, job)
                    return
                await self._stop_if_needed(run, job)
            await self._pause()

    async def _end(self, why: str) -> None:
        """Cancel the job until it has ended or is gone."""
        self._unknown = 0
        while self._unknown < _GONE:
            if self._asked_to_cancel is None or time.monotonic() - self._asked_to_cancel >= _AGAIN_S:
                await self._cancel(why)
            found = await self._ask(self.jobs.find, self.name)
            if found:
                self._unknown = 0 if found[0] is not None else self._unknown + 1
                if found[0] is not None and found[0].ended:
                    return
            await self._pause()

    async def _tell(self, run: FlowRun, job: JobState) -> None:
        """Report a new status: in the log, and as the flow run's state for as long as it has not begun."""
        if job.status == self._status:
            return
        before, self._status = self._status, job.status
        taken = self._on_nodes and job.status in _WAITING
        self._on_nodes = job.status in _RUNNING or (self._on_nodes and not taken)  # NotResponding says nothing of it
        self._studio_url = job.studio_url or self._studio_url
        page = f": {job.studio_url}" if job.studio_url and not before else ""
        self.logger.info("Job %s is %s%s", job.name, job.status, page)
        if job.status == "Running":
            self._ran_since = self._ran_since or time.monotonic()
        if job.ended or not self._concerns(run) or run.state is None:
            return
        # A name of its own lets Prefect take it; once the flow itself runs, Prefect refuses.
        name = "Starting" if job.status in _RUNNING else job.status
        state = Pending(name=name, message=f"Azure ML job {job.name} is {job.status}. {self._studio_url}".strip())
        try:
            if run.state.is_pending():
                await propose_state(self.prefect, state, flow_run_id=run.id)
            elif run.state.is_running() and taken:
                self.logger.warning("Job %s was taken from its nodes (preempted); it starts again", job.name)
                await self.prefect.set_flow_run_state(run.id, state, force=True)
        except Abort:
            pass
        except Exception as error:
            self.logger.debug("The state %s could not be reported: %s", name, error)

    async def _stop_if_needed(self, run: FlowRun, job: JobState) -> None:
        """Cancel a job whose run is cancelled or over: at once if it waits, after a grace if it runs."""
        state = run.state
        if state is None or not (state.is_final() or state.is_cancelling() or not self._concerns(run)):
            self._over_since = None
            return
        self._over_since = self._over_since or time.monotonic()
        over_s = time.monotonic() - self._over_since
        unwanted = state.is_cancelling() or state.is_cancelled()
        grace = self.configuration.cancel_grace_s if unwanted else _AFTER_END_S
        if unwanted and job.status not in _RUNNING:
            grace = 0.0
        if over_s < grace:
            return
        if self._asked_to_cancel is not None and time.monotonic() - self._asked_to_cancel < _AGAIN_S:
            return
        why = "Its flow run is cancelled" if unwanted else f"Its flow run is {state.name} for long"
        if await self._cancel(why) and state.is_cancelling() and self._concerns(run):
            when = f"after {grace:.0f} s of grace" if grace else "before it ran"
            await self.cancelled(run, f"Cancelled; its Azure ML job was stopped {when}.")

    async def _cancel(self, why: str) -> bool:
        self.logger.info("%s: cancelling job %s", why, self.name)
        self._asked_to_cancel = time.monotonic()
        return await self._ask(self.jobs.cancel, self.name) is not None

    async def _conclude(self, run: FlowRun, job: JobState | None) -> None:
        """Have the flow run end where the flow itself did not say how."""
        for _ in range(_SETTLE):
            found = await self._read_run()
            if found is None or self._over(found):
                return
            run = found
            await anyio.sleep(min(self.configuration.poll_interval_s, 5.0))
        assert run.state is not None
        if run.state.is_cancelling():
            await self.cancelled(run, f"Cancelled; its Azure ML job {self.name} has ended.")
            return
        evidence = await self._evidence(run, job)
        diagnosis = diagnose(evidence)
        if job is not None and job.status == "Canceled" and not diagnosis.cause.startswith("Cause: the time limit"):
            await self.cancelled(run, diagnosis.message)
            return
        for line in shown_tail(evidence.tail):
            self.logger.error("job log: %s", line)
        page = f" {self._studio_url}" if self._studio_url else ""
        await self.crashed(run, f"{diagnosis.message}{page}")

    async def _evidence(self, run: FlowRun, job: JobState | None) -> Evidence:
        failure, tail = None, None
        if job is not None:
            failure = await self._ask(self.jobs.failure, job.name)
            tail = await self._ask((self._log or self._open_log(job)).tail, 40)
        return Evidence(
            status=job.status if job is not None else "",
            code=failure[0].code if failure else "",
            message=failure[0].message if failure else "",
            tail=tail[0] if tail else (),
            ran=bool(self._ran_since or (tail and tail[0])),
            seconds=time.monotonic() - self._ran_since if self._ran_since else None,
            timeout_seconds=self.configuration.timeout_seconds,
            compute=self.configuration.compute,
            api_url=self.configuration.env.get("PREFECT_API_URL") or "",
            flow_state=run.state.name or "" if run.state else "",
        )

    async def _copy_log(self, job: JobState) -> None:
        """Copy new lines of the job's log into the flow run's, and remember how far."""
        most = self.configuration.log_lines
        if self._log_lines >= most or not (job.ended or job.status in _RUNNING):
            return
        log = self._log = self._log or self._open_log(job)
        offset = log.offset
        found = await self._ask(log.new_lines, job.ended)
        if not found or log.offset == offset:
            return
        lines = found[0]
        shown = lines[: most - self._log_lines]
        self._log_lines += len(lines)
        if self._log_lines >= most:
            shown.append(f"Further lines of the job's log are in Studio: {self._studio_url or job.name}")
        try:
            for begin in range(0, len(shown), _BATCH):
                await self.prefect.create_logs([self._log_entry(line) for line in shown[begin : begin + _BATCH]])
            # After them: a worker that dies in between repeats some lines, and loses none.
            label = f"{self.name}:{log.offset}:{self._log_lines}"
            await self.prefect.update_flow_run_labels(self.flow_run.id, {LOG_LABEL: label})
        except Exception as error:
            self.logger.debug("Lines of the job's log could not be sent: %s", error)

    def _log_entry(self, line: str) -> LogCreate:
        entry = {"name": "azure-ml.job", "level": logging.INFO, "message": line, "timestamp": now("UTC")}
        return LogCreate.model_validate(entry | {"flow_run_id": self.flow_run.id})

    def _open_log(self, job: JobState) -> JobLog:
        """Go on where a worker before this one was, if there was one."""
        log = JobLog(self.jobs, job.name, job.experiment)
        name, _, rest = str(self.flow_run.labels.get(LOG_LABEL, "")).partition(":")
        offset, _, lines = rest.partition(":")
        if name == self.name and offset.isdecimal() and lines.isdecimal():
            log.offset, self._log_lines = int(offset), int(lines)
        return log

    def _concerns(self, run: FlowRun) -> bool:
        """Whether the run is still in the attempt that this job is."""
        return run.infrastructure_pid in (None, self.name)

    def _over(self, run: FlowRun) -> bool:
        state = run.state
        return state is None or state.is_final() or state.is_scheduled() or not self._concerns(run)

    def _silent(self, job: JobState) -> bool:
        if job.status != "NotResponding":
            self._silent_since = None
            return False
        self._silent_since = self._silent_since or time.monotonic()
        return time.monotonic() - self._silent_since >= _SILENT_S

    async def _read_run(self) -> FlowRun | None:
        """Return the flow run as it is now; None if it was deleted."""
        while True:
            try:
                return await self.prefect.read_flow_run(self.flow_run.id)
            except ObjectNotFound:
                return None
            except Exception as error:  # a server that restarts must not lose the job
                self._missed("The Prefect API", error)
                await self._pause()

    async def _pause(self) -> None:
        await anyio.sleep(min(_MOST_S, self.configuration.poll_interval_s * 2 ** min(self._misses, 8)))

    async def _ask(self, question: Callable[..., T], *arguments: object) -> tuple[T] | None:
        """Return what Azure ML answers, in a tuple; None if it does not, which says nothing about the job."""
        try:
            answer = await run_sync(lambda: question(*arguments), abandon_on_cancel=True)
        except Exception as error:
            self._missed("Azure ML", error)
            return None
        self._misses = 0
        return (answer,)

    def _missed(self, who: str, error: Exception) -> None:
        self._misses += 1
        text = str(error) if isinstance(error, AmlError) else f"{type(error).__name__}: {error}"
        if text not in self._told:  # once each, not with every poll
            self._told.add(text)
            self.logger.warning("%s could not be asked about job %s; trying again. %s", who, self.name, plain(text))
