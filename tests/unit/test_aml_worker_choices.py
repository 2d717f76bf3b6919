"""Whose run it is, and who leaves it alone. No server, no Azure: both answer as they are told."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import anyio
import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.types._datetime import now

from plato_core.aml.job import job_name
from plato_core.aml.worker import AzureMLWorker, _just_taken
from plato_core.errors import AmlError


def run_in(kind: StateType, name: str | None = None, pid: str | None = None, age_s: float = 5.0) -> FlowRun:
    state = State(type=kind, name=name, timestamp=now("UTC") - timedelta(seconds=age_s))
    return FlowRun(id=UUID(int=7), flow_id=UUID(int=8), name="fox", infrastructure_pid=pid, state=state)


GONE = "a worker that is gone"  # by which an earlier attempt was submitted


@pytest.mark.parametrize(
    ("kind", "name", "age_s", "owner", "just"),
    [
        (StateType.PENDING, None, 5.0, None, True),
        (StateType.PENDING, None, 5.0, GONE, True),
        (StateType.PENDING, "Queued", 5.0, GONE, False),
        (StateType.RUNNING, None, 5.0, GONE, False),
        (StateType.PENDING, None, 100.0, None, False),
    ],
)
def test_a_run_is_left_to_the_worker_that_just_took_it(
    kind: StateType, name: str | None, age_s: float, owner: str | None, just: bool
) -> None:
    assert _just_taken(run_in(kind, name, age_s=age_s), owner) is just


@dataclass
class Api:
    """Notes what is written."""

    written: list[str] = field(default_factory=list)

    async def set_flow_run_state(self, flow_run_id: UUID, state: State[Any], force: bool) -> None:
        self.written.append(str(state.name))

    async def update_flow_run_labels(self, flow_run_id: UUID, labels: dict[str, str]) -> None:
        self.written.append("labels")


class Worker(AzureMLWorker):
    """A worker whose workspace cannot be asked."""

    type = "azure-ml-of-this-test"

    def __init__(self, api: Any) -> None:
        super().__init__(work_pool_name="aml", name="aml")
        self._client, self._work_pool = api, api
        self.job_configuration: Any = self

    def get_flow_run_logger(self, flow_run: FlowRun) -> Any:
        return logging.getLogger("test")  # Prefect's own would start a server

    async def resolve_for_flow_run(self, *_: Any, **__: Any) -> Any:
        return None

    def _jobs(self, configuration: Any) -> Any:
        class Jobs:
            def find(self, name: str) -> None:
                raise AmlError("signed in to another tenant")

        return Jobs()

    def follow(self, run: FlowRun, times: int = 1) -> list[str]:
        for _ in range(times):
            self._followed.append(run.id)
            asyncio.run(self._follow_again(run))
        assert not self._followed
        return self._client.written  # type: ignore[union-attr]


def test_only_a_run_that_is_being_cancelled_is_cancelled_for_want_of_a_job() -> None:
    assert Worker(Api()).follow(run_in(StateType.RUNNING)) == []
    assert Worker(Api()).follow(run_in(StateType.CANCELLING)) == ["Cancelled"]


def test_a_worker_that_cannot_follow_puts_no_name_on_a_run_and_says_why_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = run_in(StateType.RUNNING, pid="pf-x")
    assert Worker(Api()).follow(run, times=3) == []
    assert len([record for record in caplog.records if "another tenant" in record.getMessage()]) == 1


def test_each_attempt_has_a_name_of_its_own_though_prefect_counts_only_flows_that_began() -> None:
    """An attempt whose job died early leaves the count; within an attempt the name stays, ended or not."""
    from plato_core.aml.client import JobState

    run = run_in(StateType.PENDING)
    ended = {job_name(run, 0): "Failed", job_name(run, 1): "Failed"}

    class Jobs:
        def find(self, name: str) -> JobState | None:
            return JobState(name, ended[name], "", "") if name in ended else None

    class States(Api):
        def __init__(self) -> None:
            super().__init__()
            self.states = [State(type=StateType.SCHEDULED), State(type=StateType.PENDING)]

        async def read_flow_run_states(self, flow_run_id: UUID) -> list[State[Any]]:
            return self.states

        async def update_flow_run_labels(self, flow_run_id: UUID, labels: dict[str, Any]) -> None:
            run.labels.update(labels)

        async def update_flow_run(self, flow_run_id: UUID, infrastructure_pid: str) -> None:
            self.written.append(infrastructure_pid)

    api, jobs = States(), Jobs()
    worker = Worker(api)
    name = asyncio.run(worker._name(run, jobs))  # type: ignore[arg-type]
    assert name == job_name(run, 2)
    ended[name] = "Failed"
    assert asyncio.run(worker._name(run, jobs)) == name  # type: ignore[arg-type]
    api.states = [*api.states, State(type=StateType.SCHEDULED, timestamp=now("UTC") + timedelta(seconds=1))]
    assert asyncio.run(worker._name(run, jobs)) == job_name(run, 3)  # type: ignore[arg-type]
    assert api.written == [job_name(run, 2), job_name(run, 2), job_name(run, 3)]


@pytest.mark.parametrize("held", [0, 1])
def test_a_run_that_is_taken_over_counts_against_the_workers_limit_and_is_followed_in_spite_of_it(held: int) -> None:
    run = run_in(StateType.RUNNING, pid="pf-x", age_s=500.0)

    class Runs(Api):
        async def read_flow_runs(self, **_: Any) -> list[FlowRun]:
            return [run]

        async def read_workers_for_work_pool(self, name: str) -> list[Any]:
            return []

    class Group:
        def __init__(self) -> None:
            self.followed: list[FlowRun] = []

        def start_soon(self, _: Any, run: FlowRun) -> None:
            self.followed.append(run)

    async def take_over() -> None:
        worker = Worker(Runs())
        worker._limiter = limiter = anyio.CapacityLimiter(1)
        for _ in range(held):
            limiter.acquire_on_behalf_of_nowait("another run")
        worker._runs_task_group = group = Group()  # type: ignore[assignment]
        await worker._take_over()
        assert group.followed == [run]
        assert limiter.borrowed_tokens == 1
        await worker._follow_again(run)
        assert limiter.borrowed_tokens == held

    asyncio.run(take_over())
