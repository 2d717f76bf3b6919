"""A sweep on a Ray cluster of two nodes, each on a loopback address of its own with one CPU; nodes go and come."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient
from product import PYTHONPATH, SHORT_CONFIG, Product, Script, free_port
from thorough import soaked, thorough
from waiting import wait_until

from plato_core.aml.nodes import RayNode
from plato_core.manifest import read_manifest, verify
from plato_core.sweep.process import kill_session

HEAD, OTHER, THIRD = "127.0.0.4", "127.0.0.5", "127.0.0.6"
TRIALS = 3


class Cluster:
    """A head, and the nodes that join it when told to; gone with the context."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._held = contextlib.ExitStack()
        self._temp_dir = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # a short path, for sockets
        self._held.callback(shutil.rmtree, self._temp_dir, ignore_errors=True)
        self._environment = environment | {"PYTHONPATH": PYTHONPATH, "RAY_TMPDIR": str(self._temp_dir)}
        self.address = f"{HEAD}:{free_port()}"
        port = self.address.partition(":")[2]
        self._start(HEAD, "--head", f"--port={port}", "--include-dashboard=false")
        wait_until(lambda: answers(HEAD, int(port)), "the head answers")

    def join(self, address: str = OTHER) -> RayNode:
        return self._start(address, f"--address={self.address}")

    def kill(self, address: str) -> None:
        """Kills a node's processes, as where the machine is gone: nothing of it says a word."""
        daemons = [process for process in psutil.process_iter() if _daemon_of(process, self._temp_dir) == address]
        assert daemons, address
        kill_session(os.getsid(daemons[0].pid))

    def _start(self, address: str, *arguments: str) -> RayNode:
        own = [f"--node-ip-address={address}", "--num-cpus=1", "--object-store-memory=100000000"]
        return self._held.enter_context(RayNode([*arguments, *own], self._environment))

    def close(self) -> None:
        self._held.close()


def _daemon_of(process: psutil.Process, temp_dir: Path) -> str | None:
    """The address of the node whose raylet this process is; None of any other."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        if process.name() == "raylet" and any(str(temp_dir) in word for word in words):
            found = [word.partition("=")[2] for word in words if word.startswith("--node_ip_address=")]
            return found[0] if found else None
    return None


@pytest.fixture
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    # As on the nodes of a job: no login between them, whatever this user has in its home folder.
    # Ray's head misses a node that vanished after some 3 s instead of 20.
    sooner = {"RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "2000"}
    cluster = Cluster(environment | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"} | sooner)
    try:
        yield cluster
    finally:
        cluster.close()


def answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False


def sweep(product: Product, cluster: Cluster, *more: str, wait_s: int = 60, iterations: int = 6) -> Script:
    return product.start(
        "--preset", "test-local", "--config", product.short_config, "--num-tune-samples", str(TRIALS), "--seed", "3",
        "--max-iterations", str(iterations), "--perturbation-interval", "2", "--json", "--ray-address", cluster.address,
        "--ray-nodes", "2", *more,
        RAY_AUTH_MODE="disabled", PLATO_RAY_WAIT_S=str(wait_s),
    )  # fmt: skip


def results(script: Script) -> dict[str, list[dict[str, Any]]]:
    """What each trial has reported and still counts."""
    found = {}
    for path in script.folder.glob(".plato/sweeps/*/tune/*/result.json"):
        lines = path.read_text().splitlines(keepends=True)
        found[path.parent.name] = [json.loads(line) for line in lines if line.endswith("\n")]  # one may be on its way
    return found


def nodes_of_trials(script: Script) -> dict[str, str]:
    """On which node each trial trained last."""
    return {trial: reported[-1]["node_ip"] for trial, reported in results(script).items()}


def has_come_far(script: Script, address: str) -> bool:
    """Whether a trial on a node is in the middle of its turn of two iterations, and has a checkpoint from before."""
    last = [reported[-1] for reported in results(script).values() if reported]
    return any(result["node_ip"] == address and result["training_iteration"] in range(3, 20, 2) for result in last)


def assert_whole(script: Script, iterations: int) -> None:
    """One run for each trial, and in its log and in MLflow each of its steps once."""
    steps = list(range(1, iterations + 1))
    assert [[result["training_iteration"] for result in reported] for reported in results(script).values()] == [
        steps
    ] * TRIALS
    client = MlflowClient(script.store)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in children] == ["FINISHED"] * TRIALS
    for run in children:
        assert [point.step for point in client.get_metric_history(run.info.run_id, "timesteps_total")] == steps


@soaked
def test_trials_train_on_both_nodes_once_both_are_there(product: Product, cluster: Cluster) -> None:
    script = sweep(product, cluster)
    wait_until(lambda: "waiting for Ray nodes: 1 of 2" in script.stderr, "it says what it waits for")
    cluster.join()
    assert script.wait() == 0, script.said
    trained = nodes_of_trials(script)
    assert len(trained) == TRIALS
    assert set(trained.values()) == {HEAD, OTHER}
    result = json.loads(script.stdout.splitlines()[-1])
    assert result["slots"] == 2
    checkpoint = Path(result["checkpoint_path"])
    assert verify(checkpoint, read_manifest(checkpoint)) == []


def test_too_few_nodes_end_the_sweep_with_their_number(product: Product, cluster: Cluster) -> None:
    script = sweep(product, cluster, wait_s=1)
    assert script.wait() == 1, script.said
    assert "1 of 2 Ray nodes came within 1 s" in script.stderr


def test_a_node_that_does_not_see_the_sweeps_folder_is_named(cluster: Cluster, environment: dict[str, str]) -> None:
    program = (
        "import sys, ray; from pathlib import Path; from plato_core.sweep.nodes import check_nodes\n"
        "ray.init(address=sys.argv[1]); check_nodes(ray.nodes(), Path('/nowhere'), seen_within_s=0.1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, cluster.address],
        env=environment | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"the Ray node {HEAD} does not see /nowhere" in done.stderr


@thorough
def test_a_node_that_vanishes_costs_no_restart_and_a_new_one_is_taken_in(product: Product, cluster: Cluster) -> None:
    cluster.join()
    product.short_config.write_text(f"{SHORT_CONFIG}  min_time_s_per_iteration: 1.5\n")
    script = sweep(product, cluster, "--max-failures", "0", iterations=20)
    wait_until(lambda: has_come_far(script, OTHER), "a trial on the node goes on from a checkpoint", 300)
    cluster.kill(OTHER)
    wait_until(lambda: f"Ray node {OTHER} is lost: 1 of 2 left; its " in script.stderr, "it says so")
    cluster.join(THIRD)
    wait_until(lambda: f"Ray node {THIRD} has joined: 2 nodes now" in script.stderr, "it says that too")
    assert script.wait() == 0, script.said
    assert "has lost its node and goes on from iteration" in script.stderr
    assert " failed: " not in script.stderr
    assert THIRD in {result["node_ip"] for reported in results(script).values() for result in reported}
    assert_whole(script, 20)
