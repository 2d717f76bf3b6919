"""One job, followed for its flow run: its states, its log, its cancellation, its end.

The flow inside the job tells the Prefect API by itself what it does, and ends in order when its run is cancelled. What
it cannot tell is told here: that the job waits in a queue, that it has to be cancelled there, that it is dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from prefect.exceptions import Abort, ObjectNotFound
from prefect.states import Pending
from prefect.utilities.engine import propose_state

from plato_core.aml.asking import MOST_S, Once, Questions
from plato_core.aml.client import JobClient, JobState
from plato_core.aml.diagnosis import Evidence, diagnose, shown_tail
from plato_core.aml.logcopy import LogCopy

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun

    from plato_core.aml.pool import AzureMLJobConfiguration

Say = Callable[["FlowRun", str], Awaitable[None]]
_RUNNING = frozenset({"Running", "Finalizing", "CancelRequested"})
_WAITING = frozenset({"NotStarted", "Queued", "Preparing", "Provisioning", "Starting"})
_GONE = 3  # so many times a job must be unknown before it counts as gone
_SILENT_S = 900.0  # of a job that is NotResponding
_SETTLE = 3  # polls in which a flow's last report may still come after its job's end
_AFTER_END_S = 1800.0  # for a job that goes on after its flow has ended: nobody is to pay for it for ever
_AGAIN_S = 60.0  # between two requests to cancel
_PATIENCE = 0.1  # a job that waits is asked after less often: each time after so much of the time that it has waited


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
    _studio_url: str = ""
    _since: float = field(default_factory=time.monotonic)
    _asked_at: float = float("-inf")
    _once: Once = field(default_factory=Once)

    def __post_init__(self) -> None:
        self._questions = Questions(self.name, self.logger)
        self._log = LogCopy(self.flow_run, self.configuration.log_lines, self.jobs, self.prefect, self.logger)

    async def follow(self) -> None:
        """Return when the job has ended, or is gone, and its flow run has a final state."""
        while True:
            run = await self._read_run()
            if run is None:  # deleted, with all that could be said about it
                await self._end("Its flow run was deleted")
                return
            if not self._due(run):
                await self._pause()
                continue
            found = await self._questions.ask(self.jobs.find, self.name)
            self._asked_at = time.monotonic()
            job = found[0] if found else None
            if found:
                self._unknown = 0 if job is not None else self._unknown + 1
                if self._unknown >= _GONE:
                    await self._cancel("It is unknown")
                    await self._conclude(run, None)
                    return
            if job is not None:
                await self._tell(run, job)
                if job.ended or job.status in _RUNNING:
                    await self._log.copy(job, self._questions, self._studio_url)
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
            found = await self._questions.ask(self.jobs.find, self.name)
            if found:
                self._unknown = 0 if found[0] is not None else self._unknown + 1
                if found[0] is not None and found[0].ended:
                    return
            await self._pause()

    async def _tell(self, run: FlowRun, job: JobState) -> None:
        """Report a new status: in the log, and as the flow run's state for as long as it has not begun."""
        if job.status == self._status:
            return
        before, self._status, self._since = self._status, job.status, time.monotonic()
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
        if self._once.first(why):
            self.logger.info("%s: cancelling job %s", why, self.name)
        asked = await self._questions.ask(self.jobs.cancel, self.name) is not None
        self._asked_to_cancel = time.monotonic() if asked else None
        return asked

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
        if job is not None and job.status == "Canceled" and not diagnosis.is_time_limit:
            await self.cancelled(run, diagnosis.message)
            return
        for line in shown_tail(evidence.tail):
            self.logger.error("job log: %s", line)
        page = f" {self._studio_url}" if self._studio_url else ""
        await self.crashed(run, f"{diagnosis.message}{page}")

    async def _evidence(self, run: FlowRun, job: JobState | None) -> Evidence:
        failure, tail = None, None
        if job is not None:
            failure = await self._questions.ask(self.jobs.failure, job.name)
            tail = await self._questions.ask(self._log.log(job).tail, 40)
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

    def _due(self, run: FlowRun) -> bool:
        """Whether to ask after the job: less often while it waits, unless its run has come further than that."""
        if self._status not in _WAITING or run.state is None or not (run.state.is_pending() and self._concerns(run)):
            return True
        now = time.monotonic()
        return now - self._asked_at >= min(MOST_S, _PATIENCE * (now - self._since))

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
                run = await self.prefect.read_flow_run(self.flow_run.id)
            except ObjectNotFound:
                run = None
            except Exception as error:  # a server that restarts must not lose the job
                self._questions.missed("The Prefect API", error)
                await self._pause()
                continue
            self._questions.answered("The Prefect API")
            return run

    async def _pause(self) -> None:
        await anyio.sleep(self._questions.pause_s(self.configuration.poll_interval_s))
