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

from plato_core.aml.asking import Once, Outages
from plato_core.aml.client import Failure, JobState
from plato_core.aml.joblog import JobLog
from plato_core.aml.pool import AzureMLJobConfiguration
from plato_core.aml.watch import JobWatch
from plato_core.errors import AmlError, AmlUnavailable

NAME = "pf-00000000-0000-0000-0000-000000000007-000"


def run_in(kind: StateType, pid: str = NAME) -> FlowRun:
    return FlowRun(id=UUID(int=7), flow_id=UUID(int=8), infrastructure_pid=pid, state=State(type=kind))


@dataclass
class Jobs:
    """A job that goes through statuses, the last of which stays; `cancel` fails so many times first."""

    statuses: list[str]
    failing: int = 0
    cancelled: int = 0
    found: int = 0

    def find(self, name: str) -> JobState | None:
        self.found += 1
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


def test_a_job_that_waits_for_long_is_asked_after_less_often_until_its_run_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_in(StateType.PENDING)
    watched = Watched(run, "Queued")
    monkeypatch.setattr("plato_core.aml.watch.propose_state", _proposed)
    watched.watch._status, watched.watch._since = "Queued", time.monotonic() - 86_400.0  # a day
    ticks = 0

    async def read_flow_run(flow_run_id: UUID) -> FlowRun:
        nonlocal ticks
        ticks += 1
        return run if ticks < 200 else run_in(StateType.CANCELLING)

    watched.api.read_flow_run = read_flow_run  # type: ignore[method-assign]
    watched.follow()
    assert watched.jobs.found <= 4  # the first, and from the cancellation on; it was due 200 times else
    assert (watched.jobs.cancelled, set(watched.said)) == (1, {"Cancelled"})


def test_a_service_that_is_away_is_told_of_once_and_once_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(run_in(StateType.RUNNING), "Running", "Completed")
    answers, asked = watched.jobs.find, 0

    def find(name: str) -> JobState | None:
        nonlocal asked
        asked += 1
        if asked <= 30:
            raise AmlUnavailable(f"no answer from port {asked}: <connection at 0x{asked:012x}>")
        return answers(name)

    watched.jobs.find = find  # type: ignore[method-assign]
    watched.watch._questions.pause_s = lambda poll_interval_s: 0.0  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO):
        watched.follow()
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "could not be asked" in line]) == 1
    assert len([line for line in said if "answers again" in line]) == 1
    assert watched.said == ["Crashed"]  # the job's end is not missed


def test_an_outage_that_comes_back_later_is_told_again_with_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plato_core.aml.asking._AGAIN_S", 0.0)
    watched = Watched(run_in(StateType.RUNNING), "Running", "Running", "Completed")
    answers, read = watched.jobs.find, watched.api.read_flow_run
    azure, prefect = iter([True, False, False, True, False]), iter([True, False])

    def find(name: str) -> JobState | None:
        if not next(azure, True):
            raise AmlUnavailable("busy")
        return answers(name)

    async def read_flow_run(flow_run_id: UUID) -> FlowRun:
        if not next(prefect, True):
            raise OSError("the server restarts")
        return await read(flow_run_id)

    watched.jobs.find = find  # type: ignore[method-assign]
    watched.api.read_flow_run = read_flow_run  # type: ignore[method-assign]
    watched.watch._questions.pause_s = lambda poll_interval_s: 0.0  # type: ignore[method-assign]
    with caplog.at_level(logging.INFO):
        watched.follow()
    said = [record.getMessage() for record in caplog.records]
    away, back = "Azure ML could not be asked", "Azure ML answers again"
    told = [line for line in said if "could not be asked" in line or "answers again" in line]
    assert [line.partition(" about")[0] for line in told] == [
        "The Prefect API could not be asked", "The Prefect API answers again", away, back, away, back,
    ]  # fmt: skip


def test_what_comes_and_goes_is_told_seldom_and_what_lasts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("plato_core.aml.asking.time.monotonic", lambda: now)
    outages = Outages()
    begun, ended = [], []
    for _ in range(100):  # the log cannot be read, while the job's state can, but for each second time
        now += 5.0
        begun += [outages.begins("state", "busy 1"), outages.begins("log", "forbidden")]
        ended.append(outages.ends("state"))
    assert begun == [True, True] + [False] * 198
    assert ended == [True] + [False] * 99
    assert not outages.begins("state", "busy 2")
    now += 600.0
    assert outages.begins("state", "busy 3")
    assert outages.ends("state")
    assert not outages.begins("log", "forbidden")
    assert outages.ends("log")


def test_what_was_said_is_not_remembered_without_end() -> None:
    once = Once(most=3)
    assert [once.first(f"{word} 1 at 0xab{number}") for number, word in enumerate("aabcd")] == [1, 0, 1, 1, 1]
    assert len(once._said) == 3


class Blob:
    """A log of a job, as it is read."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked, self.reads, self.refused = content, 0, 0, ""

    def history(self, path: str, query: dict[str, str]) -> dict[str, str]:
        self.asked += 1
        return {"contentUri": f"https://blob/{self.asked}"}

    def size(self, url: str) -> int:
        return len(self.content)

    def read(self, url: str, offset: int, most: int) -> bytes | None:
        if url == self.refused:
            raise AmlError("Azure ML refuses (403)")
        self.reads += 1
        return self.content[offset : offset + most] or None


def log_of(blob: Any, **more: Any) -> JobLog:
    return JobLog(blob, NAME, "experiment", **more)


def test_a_log_is_read_in_bounded_pieces_and_no_line_is_lost_between_them() -> None:
    lines = [b"line %06d of a long log %s\n" % (number, b"." * 400) for number in range(10_000)]
    blob = Blob(b"".join(lines))
    log, read = log_of(blob), []
    for _ in range(10):
        before = blob.reads
        read += log.new_lines()
        assert blob.reads - before <= 2
        if not log.behind:
            break
    assert read == [line.decode().strip() for line in lines]
    assert blob.asked == 1  # its address is asked for once, not with every piece


def test_a_log_is_read_no_further_than_lines_are_wanted() -> None:
    blob = Blob((b"." * 499 + b"\n") * 20_000)
    log = log_of(blob)
    assert len(log.new_lines(to_the_end=True, most=100)) >= 100
    assert (blob.reads, log.behind) == (1, True)


def test_an_address_whose_right_has_ended_is_asked_for_again() -> None:
    blob = Blob(b"one\n")
    log = log_of(blob)
    assert log.new_lines() == ["one"]
    blob.content += b"two\n"
    blob.refused = "https://blob/1"
    assert log.new_lines() == ["two"]
    blob.refused = "https://blob/3"
    log._address = None
    with pytest.raises(AmlError):  # a fresh one that is refused is an error
        log.new_lines()


@pytest.mark.parametrize("times", [1, 4, 1000])
def test_a_log_that_begins_anew_is_read_from_its_beginning(times: int) -> None:
    blob = Blob(b"02:00:00.000 | INFO    | Flow run 'a' - of the first attempt\n")
    log = log_of(blob)
    assert log.new_lines() == []
    again = [f"  line {number} of the next" for number in range(times)]
    blob.content = "\n".join([*again, ""]).encode()
    assert log.new_lines() == [line.strip() for line in again]
    assert log.new_lines() == []
    blob.content += b"and the last"
    assert log.new_lines(to_the_end=True) == ["and the last"]


def test_a_log_that_another_process_has_read_is_read_on_from_there() -> None:
    blob = Blob(b"one\ntwo\n")
    log = log_of(blob, offset=4)
    assert log.new_lines() == ["two"]
    blob.content += b"three\n"
    assert (log.new_lines(), log.offset) == (["three"], 14)


def test_what_was_read_before_an_error_is_not_lost() -> None:
    blob = Blob((b"." * 499 + b"\n") * 4_000)
    log, read = log_of(blob), blob.read

    def fails_once(url: str, offset: int, most: int) -> bytes | None:
        if blob.reads == 1:
            blob.reads += 1
            raise AmlUnavailable("not now")
        return read(url, offset, most)

    blob.read = fails_once  # type: ignore[method-assign]
    first = log.new_lines()
    assert log.behind
    assert len(first) + len(log.new_lines()) == 4_000


def test_a_log_that_was_not_copied_to_its_end_still_shows_its_end() -> None:
    blob = Blob(b"".join(b"line %06d of a long log\n" % number for number in range(200_000)))
    tail = log_of(blob, offset=50_000).tail(40)
    assert len(tail) == 40
    assert tail[-1] == "line 199999 of a long log"


async def _proposed(client: Any, state: State[Any], flow_run_id: UUID) -> None:
    pass
