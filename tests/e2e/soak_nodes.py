"""Nodes that are lost while a sweep trains on them, also of an emulated Azure ML by either launcher: `make soak`.

Files here are not named as tests are, so that only `make soak` finds them.
"""

# ruff: noqa: F811 - fixtures of other modules
from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from aml_stack import AmlStack
from product import PYTHONPATH, SHORT_CONFIG, Product
from test_aml_sweep import Begun, assert_whole_sweep, begun, stack  # noqa: F401
from test_two_nodes import HEAD, OTHER, Cluster, assert_whole, cluster, nodes_of_trials, sweep  # noqa: F401
from waiting import wait_until

from plato_core.sweep.events import NodeChanged, parse

SEED = 20261123
TIMES = range(3)

pytestmark = pytest.mark.timeout(900)
JOINS = """
import sys, time, ray
from pathlib import Path
from plato_core.errors import SweepError
from plato_core.sweep import channel
from plato_core.sweep.nodewatch import NodeWatch
from plato_core.sweep.packing import Packing
channel.open_events()
ray.init(address=sys.argv[1])
small, large = (Packing(slots=2, resident=3, cpus_per_trial=cpus, gpus_per_trial=0.0) for cpus in (0.5, 2.0))
watch = NodeWatch(small, 0, Path("/nowhere"), 60.0)
print("watches", flush=True)
while not watch._refused:
    watch.on_step_end(0, [])
    time.sleep(0.1)
while ray.available_resources()["CPU"] > 1:
    time.sleep(0.1)
watch = NodeWatch(large, 0, Path("/nowhere"), 0.0)
try:
    while True:
        watch.on_step_end(0, [])
        time.sleep(0.1)
except SweepError as error:
    print(error)
"""


def _some_time_later(swept: Begun, again: int = 0) -> None:
    """At any moment of an iteration, a checkpoint or an exploit."""
    time.sleep(random.Random(f"{SEED} {swept.experiment} {again}").uniform(0.0, 6.0))


def _ends_in_its_job(stack: AmlStack, swept: Begun) -> None:
    job = swept.job(0)
    assert stack.bed.job_ended(job) == "Completed", stack.emulator.log(job)
    assert stack.bed.ended(swept.run_id)["state_name"] == "Completed"
    assert stack.jobs_of(swept.run_id) == [job]
    assert assert_whole_sweep(stack, swept, swept.experiment)[job]["status"] == "FINISHED"


@pytest.mark.parametrize("number", TIMES)
def test_a_worker_node_that_vanishes_is_done_without(stack: AmlStack, number: int) -> None:
    swept = begun(stack, f"node-{number}")
    _some_time_later(swept)
    stack.emulator.control("kill_node", job=swept.job(0), node=1)
    _ends_in_its_job(stack, swept)


@pytest.mark.parametrize("notice_s", [0.0, 30.0])
@pytest.mark.parametrize("launcher", ["ray", "mpi"])
def test_a_job_that_is_preempted_twice_goes_on(stack: AmlStack, launcher: str, notice_s: float) -> None:
    swept = begun(stack, f"preempted-{launcher}-{notice_s:g}", "-jv", f"launcher={launcher}")
    job = swept.job(0)
    for again in (1, 2):
        stack.emulator.control("preempt", job=job, notice_s=notice_s)
        wait_until(lambda again=again: (swept.sweep / f"tune-{again + 1}").is_dir(), "it goes on", 240.0)
        _some_time_later(swept, again)
    _ends_in_its_job(stack, swept)


@pytest.mark.parametrize(("launcher", "node"), [("ray", 0), ("mpi", 0), ("mpi", 1)])
def test_a_job_that_cannot_do_without_a_node_ends_and_its_retry_goes_on(
    stack: AmlStack, launcher: str, node: int
) -> None:
    swept = begun(stack, f"lost-{launcher}-{node}", "-jv", f"launcher={launcher}")
    _some_time_later(swept)
    stack.emulator.control("kill_node", job=swept.job(0), node=node)
    assert stack.bed.job_ended(swept.job(0)) == "Failed"
    assert stack.bed.ended(swept.run_id)["state_name"] == "Crashed"
    stack.bed.prefect("flow-run", "retry", swept.run_id)
    wait_until(lambda: swept.job(1) in stack.jobs_of(swept.run_id), "the next attempt's job")
    assert stack.bed.job_ended(swept.job(1)) == "Completed", stack.emulator.log(swept.job(1))
    assert stack.bed.ended(swept.run_id)["state_name"] == "Completed"
    assert assert_whole_sweep(stack, swept, swept.experiment)[swept.job(1)]["tags"]["plato.resumes"] == swept.job(0)


def test_a_sweep_outlives_a_node_that_is_shut_down(product: Product, cluster: Cluster) -> None:
    other = cluster.join()
    # Long enough an iteration that no trial is done before its node goes.
    product.short_config.write_text(f"{SHORT_CONFIG}  min_time_s_per_iteration: 1.5\n")
    script = sweep(product, cluster, iterations=12)
    script.wait_for_training()
    other.__exit__(None, None, None)
    assert script.wait() == 0, script.said
    assert f"Ray node {OTHER} is lost: 1 of 2 left" in script.stderr
    assert set(nodes_of_trials(script).values()) == {HEAD}
    assert_whole(script, 12)


def test_a_new_node_that_cannot_train_is_said_and_left_alone(cluster: Cluster, environment: dict[str, str]) -> None:
    """Driven without a sweep: on one machine all nodes see the same folders."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOINS, cluster.address],
        env=environment | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": PYTHONPATH, "PLATO_EVENTS_FD": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "watches\n"
        cluster.join()
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    told, gave_up = said.splitlines()
    event = parse(told)
    assert isinstance(event, NodeChanged)
    assert (event.change, event.address, event.nodes) == ("refused", OTHER, 1)
    assert "does not see /nowhere" in str(event.why)
    assert "none of the 2 Ray nodes that are left has had room for a trial" in gave_up
