"""Nodes of an emulated Azure ML that are lost while a sweep trains on them, by either launcher: `make soak`.

Files here are not named as tests are, so that only `make soak` finds them.
"""

from __future__ import annotations

import random
import time

import pytest
from aml_stack import AmlStack
from prefect_server import wait_for
from test_aml_sweep import Begun, assert_whole_sweep, begun, stack  # noqa: F401

SEED = 20261123
TIMES = range(3)

pytestmark = pytest.mark.timeout(900)


def _some_time_later(number: int) -> None:
    """At any moment of an iteration, a checkpoint or an exploit."""
    time.sleep(random.Random(SEED + number).uniform(0.0, 6.0))


def _ends_in_its_job(stack: AmlStack, swept: Begun) -> None:  # noqa: F811
    job = swept.job(0)
    assert stack.bed.job_ended(job) == "Completed", stack.emulator.log(job)
    assert stack.bed.ended(swept.run_id)["state_name"] == "Completed"
    assert stack.jobs_of(swept.run_id) == [job]
    assert assert_whole_sweep(stack, swept, swept.experiment)[job]["status"] == "FINISHED"


@pytest.mark.parametrize("number", TIMES)
def test_a_worker_node_that_vanishes_is_done_without(stack: AmlStack, number: int) -> None:  # noqa: F811
    swept = begun(stack, f"node-{number}")
    _some_time_later(number)
    stack.emulator.control("kill_node", job=swept.job(0), node=1)
    _ends_in_its_job(stack, swept)


@pytest.mark.parametrize("notice_s", [0.0, 30.0])
@pytest.mark.parametrize("launcher", ["ray", "mpi"])
def test_a_job_that_is_preempted_twice_goes_on(stack: AmlStack, launcher: str, notice_s: float) -> None:  # noqa: F811
    swept = begun(stack, f"preempted-{launcher}-{notice_s:g}", "-jv", f"launcher={launcher}")
    job = swept.job(0)
    for again in (1, 2):
        stack.emulator.control("preempt", job=job, notice_s=notice_s)
        wait_for(lambda again=again: (swept.sweep / f"tune-{again + 1}").is_dir(), "it goes on", 240.0)
        _some_time_later(again)
    _ends_in_its_job(stack, swept)


@pytest.mark.parametrize("node", [0, 1])
def test_a_job_of_which_mpi_misses_a_rank_ends_and_its_retry_goes_on(stack: AmlStack, node: int) -> None:  # noqa: F811
    swept = begun(stack, f"rank-{node}", "-jv", "launcher=mpi")
    stack.emulator.control("kill_node", job=swept.job(0), node=node)
    assert stack.bed.job_ended(swept.job(0)) == "Failed"
    assert stack.bed.ended(swept.run_id)["state_name"] == "Crashed"
    stack.bed.prefect("flow-run", "retry", swept.run_id)
    wait_for(lambda: swept.job(1) in stack.jobs_of(swept.run_id), "the next attempt's job")
    assert stack.bed.job_ended(swept.job(1)) == "Completed", stack.emulator.log(swept.job(1))
    assert stack.bed.ended(swept.run_id)["state_name"] == "Completed"
    assert assert_whole_sweep(stack, swept, swept.experiment)[swept.job(1)]["tags"]["plato.resumes"] == swept.job(0)
