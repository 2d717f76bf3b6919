"""Prefect's worker of type `azure-ml`: a flow run becomes one command job of Azure ML that executes it.

Found through the entry point `prefect.collections`, so that `prefect work-pool create aml --type azure-ml` and
`prefect worker start --pool aml` know it. Azure's libraries are imported with the first job: they take seconds, and
every command of Prefect imports this module.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.abc
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import InfrastructureNotFound
from prefect.types._datetime import now
from prefect.workers.base import BaseWorker, BaseWorkerResult

from plato_core.aml import WORKER_TYPE
from plato_core.aml.asking import Once, in_thread
from plato_core.aml.job import job_name
from plato_core.aml.pool import AzureMLJobConfiguration, AzureMLVariables
from plato_core.errors import AmlError, AmlUnavailable, PlatoError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from plato_core.aml.client import JobClient
    from plato_core.aml.job import JobSpec
    from plato_core.aml.watch import JobWatch
    from plato_core.aml.workspace import Workspace

T = TypeVar("T")
JOB_LABEL = "plato.job"  # the attempt, and its job's name
# Waits between tries to submit while Azure ML does not answer, in seconds: some ten minutes in all.
_WAITS_S = (5.0, 10.0, 20.0, 40.0, *[60.0] * 9)
_NEW_S = 60.0  # a run that was just taken over by a worker, which has not put its name on it


class AzureMLWorkerResult(BaseWorkerResult):
    """What became of a job. Its status code is 0: the flow run's own state tells how it ended."""


class AzureMLWorker(BaseWorker[AzureMLJobConfiguration, AzureMLVariables, AzureMLWorkerResult]):
    """Submits flow runs as jobs of Azure Machine Learning, and follows them."""

    type = WORKER_TYPE
    job_configuration = AzureMLJobConfiguration
    job_configuration_variables = AzureMLVariables
    _display_name = "Azure Machine Learning"
    _description = "Execute flow runs as command jobs on Azure Machine Learning's compute clusters."
    _documentation_url = ""
    _logo_url = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._followed: list[Any] = []  # an attempt's job may still be followed when that of the next one is
        self._once = Once()
        self._clients: dict[Workspace, JobClient] = {}

    async def run(
        self,
        flow_run: FlowRun,
        configuration: AzureMLJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> AzureMLWorkerResult:
        """Submit a flow run's job, or find the one that it has, and follow it to its end.

        Args:
            flow_run: To execute.
            configuration: Its settings.
            task_status: Told the job's name when there is one, or what kept it from being.
        """
        self._followed.append(flow_run.id)
        name = job_name(flow_run)
        try:
            try:
                jobs = self._jobs(configuration)
                name, submitted = await self._submit(flow_run, configuration, jobs)
            except PlatoError as error:
                self.get_flow_run_logger(flow_run).error("No job was submitted: %s", error)
                await self._propose_crashed_state(flow_run, f"No Azure ML job was submitted: {error}")
                if task_status is not None:
                    task_status.started(error)
                return AzureMLWorkerResult(identifier=name, status_code=0)
            if task_status is not None:
                task_status.started(name)
            if submitted:
                await self._watch(flow_run, configuration, jobs, name).follow()
            return AzureMLWorkerResult(identifier=name, status_code=0)
        finally:
            self._followed.remove(flow_run.id)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: AzureMLJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Cancel a job.

        Args:
            infrastructure_pid: The job's name.
            configuration: Of its flow run.
            grace_seconds: Not used: Azure ML has its own.

        Raises:
            InfrastructureNotFound: There is no such job.
        """
        jobs = self._jobs(configuration)
        if await _in_thread(jobs.find, infrastructure_pid) is None:
            raise InfrastructureNotFound(f"There is no Azure ML job {infrastructure_pid}.")
        await _in_thread(jobs.cancel, infrastructure_pid)

    async def sync_with_backend(self) -> None:
        """Synchronize, and take over runs whose worker is gone; BaseWorker would leave them alone for ever."""
        await super().sync_with_backend()
        if self._work_pool is None or self._runs_task_group is None:
            return
        try:
            await self._take_over()
        except Exception as error:  # it is tried again with the next heartbeat
            self._logger.warning("Runs of an earlier worker could not be looked for: %s", error)

    async def _submit(
        self, flow_run: FlowRun, configuration: AzureMLJobConfiguration, jobs: JobClient
    ) -> tuple[str, bool]:
        """Submit the job unless it is there already.

        Returns:
            Its name, and whether there is one: not, if the run was cancelled before.
        """
        name, once = "", Once()
        logger = self.get_flow_run_logger(flow_run)
        spec = configuration.job_spec(flow_run)
        for wait_s in (*_WAITS_S, None):
            current = await self.client.read_flow_run(flow_run.id)
            state = current.state
            try:
                name = name or await self._name(current, jobs)
                spec = spec.model_copy(update={"name": name})
                job = await _in_thread(jobs.find, name)
                if job is not None:
                    logger.info("Job %s is there already; following it", name)
                    return name, True
                if state is not None and (state.is_cancelling() or state.is_cancelled()):
                    if state.is_cancelling():
                        await self._cancelled(current, "Cancelled before an Azure ML job was submitted.")
                    return name, False
                if once.first("submitting"):
                    logger.info("Submitting job %s to %s", name, jobs.workspace)
                await _in_thread(jobs.check, spec)
                await self._create(jobs, spec)
                return name, True
            except AmlUnavailable as error:
                if wait_s is None:
                    raise
                if once.first(str(error)):
                    logger.warning("%s; trying again for some minutes", error)
                await anyio.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    async def _create(self, jobs: JobClient, spec: JobSpec) -> None:
        """Submit a job; one that is there after an error, by this request or another worker's, is submitted."""
        try:
            await _in_thread(jobs.submit, spec)
        except PlatoError as error:
            try:
                there = await _in_thread(jobs.find, spec.name) is not None
            except PlatoError:
                there = False
            if not there:
                raise
            self._logger.info("Job %s is there in spite of: %s", spec.name, error)

    async def _name(self, run: FlowRun, jobs: JobClient) -> str:
        """Return the name of the job of a run's attempt, the same whenever it is asked for in this attempt.

        Prefect counts how often the flow has begun. An attempt whose job died before that leaves the count as it was,
        so the next takes a further number. An attempt is known by the state that asked for it.
        """
        states = await self.client.read_flow_run_states(run.id)
        asked_for = max(
            (state for state in states if state.is_scheduled()), key=lambda one: one.timestamp, default=None
        )
        attempt = str(asked_for.id) if asked_for else "none"
        known, _, name = str(run.labels.get(JOB_LABEL, "")).partition(":")
        if known != attempt or not name:
            number = run.run_count
            name = job_name(run, number)
            while (job := await _in_thread(jobs.find, name)) and (job.ended or job.status == "CancelRequested"):
                number += 1
                name = job_name(run, number)
            await self.client.update_flow_run_labels(run.id, {JOB_LABEL: f"{attempt}:{name}"})
        # Before the job: whoever comes after this worker must find it.
        await self.client.update_flow_run(run.id, infrastructure_pid=name)
        return name

    async def _take_over(self) -> None:
        """Follow each run of the pool that nobody follows."""
        running = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
        runs = await self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=running)),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name])),
        )
        alone = [run for run in runs if run.id not in self._followed and run.id not in self._submitting_flow_run_ids]
        if not alone:
            return
        workers = await self.client.read_workers_for_work_pool(self._work_pool_name)
        others = {str(worker.name) for worker in workers if worker.status == "ONLINE"} - {self.name}
        for run in alone:
            owner = run.labels.get("prefect.worker.name")
            if owner in others or _just_taken(run, owner) or self._runs_task_group is None:
                continue
            self._followed.append(run.id)
            # A job that is there counts against --limit, and is followed even where that is reached.
            if self._limiter is not None:
                with contextlib.suppress(anyio.WouldBlock, RuntimeError):  # reached, or held already
                    self._limiter.acquire_on_behalf_of_nowait(run.id)
            self._runs_task_group.start_soon(self._follow_again, run)

    async def _follow_again(self, run: FlowRun) -> None:
        logger = self.get_flow_run_logger(run)
        try:
            configuration = await self.job_configuration.resolve_for_flow_run(
                run,
                client=self.client,
                work_pool=copy.deepcopy(self.work_pool),
                worker_name=self.name,
                worker_id=self.backend_id,
            )
            name = run.infrastructure_pid
            jobs = self._jobs(configuration)
            assert run.state is not None
            if name is None and not run.state.is_pending():
                # Without a job: it was cancelled before there was one, or somebody executes it by hand.
                if run.state.is_cancelling():
                    await self._cancelled(run, "Cancelled before an Azure ML job was submitted.")
                return
            # A worker that cannot ask leaves the run to one that can.
            job = await _in_thread(jobs.find, name or job_name(run))
            await self._give_worker_labels_to_flow_run(run.id)
            if name is None or (run.state.is_pending() and (job is None or job.ended)):
                # Its worker died before it had submitted the job, or before it could say what the job died of.
                await self.run(run, configuration)
            else:
                logger.info("Worker %s follows job %s from here on", self.name, name)
                await self._watch(run, configuration, jobs, name).follow()
        except Exception as error:
            text = str(error) if isinstance(error, PlatoError) else f"{type(error).__name__}: {error}"
            if self._once.first(f"{run.name}: {text}"):  # not with every heartbeat
                logger.warning("Worker %s cannot follow the run's job: %s", self.name, text)
                self._logger.debug("Run %s cannot be followed", run.id, exc_info=error)
        finally:
            self._followed.remove(run.id)
            self._release_limit_slot(run.id)

    def _watch(self, flow_run: FlowRun, configuration: AzureMLJobConfiguration, jobs: JobClient, name: str) -> JobWatch:
        from plato_core.aml.watch import JobWatch

        logger = self.get_flow_run_logger(flow_run)
        return JobWatch(
            name, flow_run, configuration, jobs, self.client, logger, self._propose_crashed_state, self._cancelled
        )

    async def _cancelled(self, flow_run: FlowRun, message: str) -> None:
        await self._mark_flow_run_as_cancelled(flow_run, state_updates={"message": message})

    def _jobs(self, configuration: AzureMLJobConfiguration) -> JobClient:
        from plato_core.aml.client import JobClient

        workspace = configuration.find_workspace()
        return self._clients.setdefault(workspace, JobClient(workspace))


def _just_taken(run: FlowRun, owner: object) -> bool:
    """Whether some worker may just have taken a run, and not put its name on it in place of an earlier one's."""
    state = run.state
    if state is None or (owner is not None and (not state.is_pending() or state.name != "Pending")):
        return False
    return now("UTC") - state.timestamp < timedelta(seconds=_NEW_S)


async def _in_thread(question: Callable[..., T], *arguments: object) -> T:
    try:
        return await in_thread(question, *arguments)
    except PlatoError:
        raise
    except Exception as error:  # the SDK's validation raises many kinds
        raise AmlError(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}") from error
