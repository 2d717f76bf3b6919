"""What a watch makes of a job's statuses and its run's states. No server, no Azure: both answer as they are told."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound

from plato_core.aml.client import Failure, JobState
from plato_core.aml.joblog import JobLog
from plato_core.aml.pool import AzureMLJobConfiguration
from plato_core.aml.watch import JobWatch
from plato_core.errors import AmlUnavailable

NAME = "pf-00000000-0000-0000-0000-000000000007-000"


def run_in(kind: StateType, pid: str = NAME) -> FlowRun:
    return FlowRun(id=UUID(int=7), flow_id=UUID(int=8), infrastructure_pid=pid, state=State(type=kind))


@dataclass
class Jobs:
    """A job that goes through statuses, the last of which stays; `cancel` fails so many times first."""

    statuses: list[str]
    failing: int = 0
    cancelled: int = 0

    def find(self, name: str) -> JobState | None:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return JobState(name, status, "experiment", "") if status else None

    def cancel(self, name: str) -> None:
        self.cancelled += 1
        if self.cancelled <= self.failing:
            raise AmlUnavailable("not now")
        self.statuses = ["Canceled"]

    def failure(self, name: str) -> Failure:
        return Failure()

    def history(self, path: str, query: dict[str, str] | None = None) -> None:
        return None


@dataclass
class Api:
    """One run: as it is, or None for one that was deleted."""

    run: FlowRun | None
    set_to: list[str] = field(default_factory=list)

    async def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        if self.run is None:
            raise ObjectNotFound(Exception())
        return self.run

    async def set_flow_run_state(self, flow_run_id: UUID, state: State[Any], force: bool) -> None:
        self.set_to.append(state.name or "")


class Watched:
    """A watch with what it said."""

    def __init__(self, run: FlowRun | None, *statuses: str, failing: int = 0) -> None:
        self.said: list[str] = []
        self.jobs, self.api = Jobs(list(statuses), failing), Api(run)
        configuration = AzureMLJobConfiguration.model_validate({"poll_interval_s": 0.5, "cancel_grace_s": 0})
        configuration.poll_interval_s = 0.001

        async def crashed(run: FlowRun, message: str) -> None:
            self.said.append("Crashed")

        async def cancelled(run: FlowRun, message: str) -> None:
            self.said.append("Cancelled")

        parts: tuple[Any, ...] = (configuration, self.jobs, self.api, logging.getLogger("test"), crashed, cancelled)
        self.watch = JobWatch(NAME, run or run_in(StateType.RUNNING), *parts)

    def follow(self) -> None:
        asyncio.run(asyncio.wait_for(self.watch.follow(), 20.0))


@pytest.mark.parametrize(
    ("statuses", "set_to"),
    [
        (("Running", "Queued", "Running", "Completed"), ["Queued"]),
        (("Running", "NotResponding", "Running", "Completed"), []),
        (("Running", "NotResponding", "Queued", "Preparing", "Completed"), ["Queued"]),
        (("Starting", "Preparing", "Completed"), []),  # its flow runs before Azure ML says so
    ],
)
def test_only_a_job_that_waits_again_was_preempted(statuses: tuple[str, ...], set_to: list[str]) -> None:
    watched = Watched(run_in(StateType.RUNNING), *statuses)
    watched.follow()
    assert watched.api.set_to == set_to


def test_a_job_that_is_silent_for_long_is_cancelled_before_its_run_is_crashed() -> None:
    watched = Watched(run_in(StateType.RUNNING), "NotResponding")
    watched.watch._silent_since = time.monotonic() - 1000.0
    watched.follow()
    assert (watched.jobs.cancelled, watched.said) == (1, ["Crashed"])


def test_a_job_that_is_unknown_is_cancelled_too() -> None:
    watched = Watched(run_in(StateType.RUNNING), "")
    watched.follow()
    assert (watched.jobs.cancelled, watched.said) == (1, ["Crashed"])


def test_a_deleted_runs_job_is_cancelled_until_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plato_core.aml.watch._AGAIN_S", 0.01)
    watched = Watched(None, "Running", failing=2)
    watched.follow()
    assert (watched.jobs.cancelled, watched.jobs.statuses) == (3, ["Canceled"])


def test_a_run_that_is_in_another_attempt_is_not_marked_by_this_job() -> None:
    watched = Watched(run_in(StateType.CANCELLING, "pf-other-001"), "Queued")
    watched.follow()
    assert (watched.jobs.cancelled, watched.said) == (1, [])


def test_a_log_that_was_not_copied_to_its_end_still_shows_its_end() -> None:
    content = b"".join(b"line %06d of a long log\n" % number for number in range(200_000))

    class Blob:
        def history(self, path: str, query: dict[str, str]) -> dict[str, str]:
            return {"contentUri": "https://blob"}

        def size(self, url: str) -> int:
            return len(content)

        def read(self, url: str, offset: int, most: int) -> bytes:
            return content[offset : offset + most]

    blob: Any = Blob()
    tail = JobLog(blob, NAME, "experiment", offset=50_000).tail(40)
    assert len(tail) == 40
    assert tail[-1] == "line 199999 of a long log"
