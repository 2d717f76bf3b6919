"""What a real Prefect server and worker make of runs that a concurrency limit keeps apart.

The settings are those that `prefect.yaml` and the docs name; the flow is a small one, not a sweep.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
from prefect_server import PrefectServer
from thorough import soaked, thorough
from waiting import wait_until

FLOW = """
import time
from prefect import flow

@flow
def wait():
    time.sleep(2)
"""
PREFECT_YAML = """
pull:
  - prefect.deployments.steps.set_working_directory: {directory: "."}
definitions:
  common: &common
    entrypoint: waiting.py:wait
    work_pool: {name: local, job_variables: {working_dir: "{{ $PWD }}"}}
deployments:
  - {<<: *common, name: enqueue, concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}}
  - {<<: *common, name: cancel, concurrency_limit: {limit: 1, collision_strategy: CANCEL_NEW}}
  - {<<: *common, name: free}
"""
ENDED = {"COMPLETED", "CANCELLED", "FAILED", "CRASHED"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    # 30 s by default: so long a run waits before it asks for the place again.
    waits = {"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1"}
    with PrefectServer(tmp_path_factory.mktemp("prefect"), **waits) as server:
        yield server


@pytest.fixture(scope="module")
def worker(server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker of a process pool, and the deployments on it."""
    folder = tmp_path_factory.mktemp("flows")
    (folder / "waiting.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(PREFECT_YAML)
    server.request("POST", "/work_pools/", {"name": "local", "type": "process"})
    deployed = server.run("-m", "prefect", "--no-prompt", "deploy", "--all", cwd=folder)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local", "--type", "process"]
    environment = server.environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(60.0)
            except subprocess.TimeoutExpired:  # how long Prefect's worker takes for its end is not the test's
                process.kill()
                process.wait()


def start_two(server: PrefectServer, deployment: str) -> list[str]:
    deployment_id = server.request("GET", f"/deployments/name/wait/{deployment}")["id"]
    return [server.request("POST", f"/deployments/{deployment_id}/create_flow_run", {})["id"] for _ in range(2)]


def ended(server: PrefectServer, ids: list[str]) -> list[dict[str, Any]]:
    """Waits for the runs' ends and returns them in their order."""

    def read() -> list[dict[str, Any]]:
        runs = [server.request("GET", f"/flow_runs/{one}") for one in ids]
        return runs if all(run["state_type"] in ENDED for run in runs) else []

    return sorted(wait_until(read, "the runs end"), key=lambda run: run["end_time"])


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def states(server: PrefectServer, run: dict[str, Any]) -> set[str]:
    return {state["name"] for state in server.request("GET", f"/flow_run_states/?flow_run_id={run['id']}")}


@thorough
@pytest.mark.usefixtures("worker")
def test_two_runs_of_a_deployment_that_takes_one_at_a_time(server: PrefectServer) -> None:
    enqueued, cancelled = start_two(server, "enqueue"), start_two(server, "cancel")

    first, second = ended(server, enqueued)
    assert (first["state_type"], second["state_type"]) == ("COMPLETED", "COMPLETED")
    assert moment(second["start_time"]) >= moment(first["end_time"])
    assert "AwaitingConcurrencySlot" in states(server, second)
    assert "AwaitingConcurrencySlot" not in states(server, first)

    first, second = ended(server, cancelled)
    assert {first["state_type"], second["state_type"]} == {"CANCELLED", "COMPLETED"}
    refused = first if first["state_type"] == "CANCELLED" else second
    assert refused["state"]["message"] == "Deployment concurrency limit reached."
    assert "Running" not in states(server, refused)


@soaked
@pytest.mark.usefixtures("worker")
def test_two_runs_of_a_pool_that_takes_one_at_a_time(server: PrefectServer) -> None:
    server.request("PATCH", "/work_pools/local", {"concurrency_limit": 1})
    first, second = ended(server, start_two(server, "free"))
    assert (first["state_type"], second["state_type"]) == ("COMPLETED", "COMPLETED")
    assert moment(second["start_time"]) >= moment(first["end_time"])


@soaked
def test_a_place_under_a_limit_outlives_a_restart_of_the_server(server: PrefectServer) -> None:
    server.request("POST", "/v2/concurrency_limits/", {"name": "one at a time", "limit": 1})
    asked = {"names": ["one at a time"], "slots": 1, "mode": "concurrency", "lease_duration": 300}
    lease = server.request("POST", "/v2/concurrency_limits/increment-with-lease", asked)["lease_id"]
    server.stop()
    server.start()
    renew = f"{server.api_url}/v2/concurrency_limits/leases/{{}}/renew"
    known = httpx.post(renew.format(lease), json={"lease_duration": 300}, trust_env=False)
    assert known.status_code == 204
    unknown = httpx.post(renew.format(os.urandom(16).hex()), json={"lease_duration": 300}, trust_env=False)
    assert unknown.status_code == 410  # what a run gets of a server that forgot: it ends the run
    with pytest.raises(httpx.HTTPStatusError, match="423"):
        server.request("POST", "/v2/concurrency_limits/increment-with-lease", asked)
